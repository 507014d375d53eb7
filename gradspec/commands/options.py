"""What commands do with their options before any work: checks, methods by name, JSON; and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from gradspec.attributions import Attribution


def note(text: str) -> None:
    """Writes a line to stderr, above a progress bar and not into it."""
    tqdm.write(f"gradspec: {text}", file=sys.stderr)


def as_json(command: Any) -> dict[str, Any]:
    """Returns the options as they were given."""
    return json.loads(json.dumps(asdict(command), default=str))  # a path as text


def check_numbers(command: Any, **least: int) -> None:
    """Raises ValueError for numbers that are too small, and for a device that is not there."""
    for name, smallest in least.items():
        value = getattr(command, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}.")
    if command.device:
        _check_device(command.device)


def check_names(**given: Sequence[str] | None) -> None:
    """Raises ValueError for an option that was given without a name."""
    for option, names in given.items():
        if names is not None and not names:
            raise ValueError(f"--{option} needs at least one NAME.")


def check_variants(names: Sequence[str] | None, weights: str) -> None:
    """Raises ValueError for variants that no network could have, before it is loaded."""
    check_names(variants=names)
    if twice := next((name for name in names or () if (names or ()).count(name) > 1), None):
        raise ValueError(f"--variants names {twice} twice.")
    if names:
        from gradspec.variants import UNTOUCHED, check_variant

        for name in names:
            check_variant(name)
        if weights == "none" and UNTOUCHED in names:
            raise ValueError(f"--weights none loads no trained network: name the variant untrained, not {UNTOUCHED}.")


def methods_of(names: Sequence[str], seed: int) -> dict[str, Attribution]:
    """Returns the methods of --method by the word that names their files, with --seed where they draw.

    Raises:
        ValueError: For no name and for unknown ones.
    """
    from gradspec.names import method_named, word_of

    if not names:
        raise ValueError("--method needs at least one NAME.")
    separate = [name for given in names for name in given.split(",") if name.strip()]
    found: list[Any] = [method_named(name) for name in separate]
    return {word_of(kind.__name__): kind(seed=seed) if hasattr(kind, "seed") else kind() for kind in found}


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # builds without CUDA assert
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name} cannot be used on this machine: {reason}") from error

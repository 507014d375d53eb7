"""The network that a command names, and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import gradspec as gs
from gradspec.commands.options import note

if TYPE_CHECKING:
    from torch import nn


class Network(Protocol):
    """The options by which a command names a network and the size of its pictures."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def weights(self) -> str:
        """Which weights."""
        ...

    @property
    def seed(self) -> int:
        """Of everything drawn."""
        ...

    @property
    def size(self) -> int | None:
        """Side of the pictures."""
        ...


class Variants(Network, Protocol):
    """The same with variants."""

    @property
    def variants(self) -> tuple[str, ...] | None:
        """Their names."""
        ...


def loaded(command: Network) -> nn.Module:
    """Returns the network; warns where it knows the size of its pictures and --size asks for another."""
    from gradspec.images import described

    model = gs.load_model(command.model, command.weights, seed=command.seed)
    trained = (described(model, "spec") or {}).get("size")
    if command.weights != "none" and trained and command.size and command.size != trained:
        note(f"warning: {command.model} was trained at {trained} px; at {command.size} px it may name objects wrong")
    return model


def variant_names(command: Variants) -> tuple[str, ...]:
    """Returns the names of the variants, of the network as it is where none are given."""
    from gradspec.variants import UNTOUCHED

    return command.variants or ("untrained" if command.weights == "none" else UNTOUCHED,)


def variants_of(command: Variants, model: nn.Module, data: Any) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Returns the variants that apply, in the order given, and of the others the reason.

    Args:
        command: Which.
        model: The network, untouched.
        data: Its pictures.

    Raises:
        UnknownModelError: For a twin that does not exist.
        ValueError: None of them applies.
    """
    from gradspec.causality import reason_of
    from gradspec.models import UnknownModelError
    from gradspec.variants import variant

    models, missing = {}, {}
    for name in variant_names(command):
        try:
            models[name] = variant(model, name, data, command.seed)
        except UnknownModelError:  # a wrong name, found before any work
            raise
        except Exception as error:  # the others go on
            missing[name] = reason_of(error)
            note(f"variant {name} does not apply: {missing[name]}")
    if not models:
        raise ValueError(f"None of the variants applies to {command.model}.")
    first = variant_names(command)[0]
    if first not in models:
        note(f"the reference is {next(iter(models))}, since {first} does not apply")
    return models, missing


def check_fits(fits: Mapping[str, Any], model: nn.Module) -> None:
    """Says which cutoffs were fitted for another network than this one.

    Args:
        fits: Method -> `CutoffFit`.
        model: The network that they are for now.
    """
    from gradspec.cutoffs.identity import fingerprint

    own = fingerprint(model)
    others = [method for method, fit in fits.items() if fit.model != own]
    if others:
        note(f"warning: the cutoff of {', '.join(others)} was fitted for another network than this one")

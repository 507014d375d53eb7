"""The same network untrained, whole or in part (SPEC §3)."""

from __future__ import annotations

import difflib
import fnmatch
import numbers
import re
from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradspec.surgery.copies import copied
from gradspec.surgery.fresh import BUILT, fresh_weights
from gradspec.surgery.record import Change, NothingToSwap, Record, finish
from gradspec.surgery.resets import RESET, Drawn, check_drawable, tensors
from gradspec.surgery.statistics import normalise_by_batch


def untrained(model: nn.Module, seed: int = 0, *, batch_statistics: bool = False) -> tuple[nn.Module, Record]:
    """Returns a copy of the network with fresh weights, and its record, which says where they come from (SPEC §3).

    They are those of a new build by the network's own factory where that is known: for networks of `load_model` (timm,
    torchvision, demo) the very weights of `load_model(spec, "none", seed=seed)`, with which timm's residual branches
    do not start at zero; likewise for bare networks of timm, torchvision and Hugging Face. Else every module's
    `reset_parameters` draws them; parameters that it does not reach (class token, position embedding, LayerScale) start
    by a rule that the record names. BatchNorm's statistics start anew as well. Surgeries before this one stay.

    Args:
        model: Any network; untouched.
        seed: Of the weights; the global generators stay as they are.
        batch_statistics: Let BatchNorm normalise by the batch in every mode: the statistics of a new build, mean 0 and
            variance 1, do not normalise. A picture's gradient then depends on the pictures in its batch.

    Raises:
        NothingToSwap: The network has no weights.
        TypeError: For compiled or TorchScript models.
        ValueError: For lazy, meta and quantised weights, and a seed that is none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> new, record = untrained(net, seed=1)
        >>> bool((new[0].weight == net[0].weight).any()), [change.name for change in record.changes]
        (False, ['0', '1'])
        >>> record.notes[0].partition(":")[0]
        'No factory is known that builds the network'
    """
    new = _copied(model, seed)
    if next(new.parameters(), None) is None:
        raise NothingToSwap("The network has no weights to draw anew.")
    drawn = fresh_weights(new, int(seed))
    _write(new, drawn.values)
    changes, notes = _changes(new, drawn, drawn.values), (*drawn.notes, *_kept_buffers(new, drawn))
    if batch_statistics:
        changes += (by_batch := normalise_by_batch(new))
        notes += () if by_batch else ("No BatchNorm keeps statistics, so batch_statistics changes nothing.",)
    settings = {"seed": int(seed), "batch_statistics": bool(batch_statistics)}
    return finish(new, Record("untrained", settings, changes, drawn.left, notes))


def randomised(model: nn.Module, layers: str | Sequence[str], seed: int = 0) -> tuple[nn.Module, Record]:
    """Returns a copy of the network with fresh weights in the named layers alone, and its record.

    For cascading randomisation (Adebayo et al. 2018): a layer gets the values that `untrained` gives it under the same
    seed, whichever others are named beside it. Everything else stays bit for bit.

    Args:
        model: Any network; untouched.
        layers: Names of modules, or patterns ("layer4.*"), one or several; a container's takes all that is in it. The
            names of parameters do as well ("cls_token").
        seed: Of the weights.

    Raises:
        NothingToSwap: A name matches nothing, with the nearest names, or nothing that has weights.
        TypeError: For compiled or TorchScript models.
        ValueError: As for `untrained`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        >>> new, record = randomised(net, "2")
        >>> torch.equal(new[0].weight, net[0].weight), torch.equal(new[2].weight, net[2].weight)
        (True, False)
    """
    new = _copied(model, seed)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    names = _matched(new, patterns)
    drawn = fresh_weights(new, int(seed))
    values = {name: drawn.values[name] for name in names if name in drawn.values}
    _write(new, values)
    left = {name: reason for name, reason in drawn.left.items() if name in names}
    notes = drawn.notes + _shared(new, names)
    settings = {"layers": patterns, "seed": int(seed)}
    return finish(new, Record("randomised", settings, _changes(new, drawn, values), left, notes))


def _kept_buffers(model: nn.Module, drawn: Drawn) -> tuple[str, ...]:
    """A note on buffers of numbers that nothing drew anew, which may hold what was learned (a codebook, means)."""
    stored = model.state_dict().keys() - drawn.values.keys()
    norms = {id(b) for m in model.modules() if isinstance(m, _NormBase) for b in m.buffers(recurse=False)}
    kept = [n for n, b in model.named_buffers() if n in stored and b.is_floating_point() and id(b) not in norms]
    return (f"Buffers kept as given: {', '.join(kept[:5])}{' and more' * (len(kept) > 5)}.",) if kept else ()


def _copied(model: nn.Module, seed: int) -> nn.Module:
    """The copy to work on, if it and the seed will do."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"Expected a seed of 0 or more, an integer below 2^63, got {seed!r}.")
    if isinstance(model, nn.Module):
        check_drawable(model)
    return copied(model)


def _write(model: nn.Module, values: dict[str, Tensor]) -> None:
    """In place, so that precision, device, requires_grad and what is shared stay."""
    own = tensors(model)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _changes(model: nn.Module, drawn: Drawn, names: Container[str]) -> tuple[Change, ...]:
    """One change for each module that drew its own tensors, one for each parameter that a rule set."""
    modules = model.named_modules(remove_duplicate=False)
    leaves = {path for path, module in modules if {name for name, _ in module.named_children()} <= {"parametrizations"}}
    changes: dict[str, Change] = {}
    for name in [name for name in tensors(model) if name in names]:
        path = re.sub(r"(^|\.)(parametrizations\.\w+\.(\d+\.)?)?\w+$", "", name)
        shown = path if path in leaves - {""} and drawn.how[name] in (BUILT, RESET) else name
        changes.setdefault(shown, Change(shown, "weights", "as given", drawn.how[name]))
    return tuple(changes.values())


# ---- which layers ------------------------------------------------------------------------------


def _matched(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The names of the tensors in the matched modules, and of the matched parameters."""
    modules = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    own = list(tensors(model))
    found: set[str] = set()
    if not patterns:
        raise NothingToSwap("Expected the name of a layer or more to randomise, got none.")
    for pattern in patterns:
        paths = fnmatch.filter(modules, pattern)
        names = {name for name in own if fnmatch.fnmatchcase(name, pattern)}
        names |= {name for name in own for path in paths if name.startswith(f"{path}.")}
        if not names:
            raise NothingToSwap(_no_match(pattern, paths, modules, own))
        found |= names
    return found


def _no_match(pattern: str, paths: list[str], modules: list[str], own: list[str]) -> str:
    with_weights = [path for path in modules if any(name.startswith(f"{path}.") for name in own)]
    near = difflib.get_close_matches(pattern, with_weights, n=3, cutoff=0.4) or with_weights[-3:]
    hint = f"nearest with weights: {', '.join(map(repr, near))}." if near else "the network has no layers with weights."
    return f"{'Nothing with weights' if paths else 'No layer'} is called {pattern!r}; {hint}"


def _shared(model: nn.Module, names: set[str]) -> tuple[str, ...]:
    """A note on each tensor that is also elsewhere, where it changed too."""
    own = tensors(model)
    inside = {id(own[name]): name for name in names}
    others = [(inside[id(value)], name) for name, value in own.items() if name not in names and id(value) in inside]
    return tuple(f"{one} is shared and changed as {other} too." for one, other in others)

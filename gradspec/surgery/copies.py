"""Copies of a network to operate on."""

from __future__ import annotations

import copy
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradspec.passes import unwrapped
from gradspec.taps import refuse_unhookable, tensors_of


def copied(model: nn.Module) -> nn.Module:
    """Returns a copy of the network to operate on, out of DataParallel's wrapper.

    What the network computed and kept in a forward pass is not copied as it is: a tensor comes without its graph, which
    `deepcopy` refuses, and a dictionary "...cache" is emptied (timm's attention biases in LeViT and others): it would
    outlive the weights that it was computed from.

    Raises:
        TypeError: For compiled or TorchScript models, and for one that cannot be copied.
        ValueError: For lazy weights.
    """
    return _copy(_accepted(model), {})


def with_trial(model: nn.Module) -> tuple[nn.Module, nn.Module, dict[nn.Module, nn.Module]]:
    """Returns a copy; another one to run, which shares the parameters; and which module of this is which of the first.

    A forward pass may leave something in a network: a cache, a counter, features. It stays in the trial.

    Raises:
        TypeError, ValueError: As `copied`.
    """
    model = _accepted(model)
    memo: dict[int, Any] = {}
    trials: dict[int, Any] = {id(p): p for p in model.parameters()}
    new, trial = _copy(model, memo), _copy(model, trials)
    return new, trial, {trials[i]: twin for i, twin in memo.items() if i in trials and isinstance(twin, nn.Module)}


def _accepted(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a network (torch.nn.Module), got {type(model).__name__}.")
    model = unwrapped(model)
    refuse_unhookable(model)
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise ValueError(f"Expected weights with a shape, got the lazy {lazy!r}: run one batch through the network.")
    _refuse_bound_functions(model)
    return model


def _refuse_bound_functions(model: nn.Module) -> None:
    """Refuses functions on modules that hold modules or weights of the network: a copy would still run the first's."""
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, FunctionType):
                cells = [_content(cell) for cell in value.__closure__ or ()]
                held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
                inner = [part for cell in held for part in (getattr(cell, "__self__", cell), cell)]
                if any(id(part) in own for part in inner):
                    where = f"{path}.{name}" if path else name
                    raise TypeError(
                        f"Cannot copy the network, which surgery needs: the function {where!r} on it holds modules or "
                        "weights of this very network; make it a method of a class."
                    )


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    attributes = [value for module in model.modules() for value in vars(module).values()]
    computed = [t for t in tensors_of(attributes) if t.grad_fn is not None]
    memo |= {id(t): t.detach().clone() for t in computed}
    try:
        with torch.inference_mode(False):
            new = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # it holds a lock, a file, ...
        raise TypeError(f"Cannot copy the network, which surgery needs: {str(error).partition(chr(10))[0]}") from error
    for module in new.modules():
        for name, value in vars(module).items():
            if name.endswith("cache") and isinstance(value, dict):
                value.clear()
    return new

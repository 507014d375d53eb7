"""How a network is run: unwrapped, where its weights lie, in eval mode, with a sentence where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return getattr(model, "_orig_mod", model)  # torch.compile's wrapper: the module itself takes hooks


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the network's first parameter or buffer; the CPU where it has none."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def to_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the pictures on the device and in the precision of the network's weights."""
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images.to(device_of(model), None if weights is None else weights.dtype)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switches every submodule to eval mode and each back to its own flag afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:  # not .eval(): some modules change their weights in it
            module.training = False
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def output_of(model: nn.Module, images: Tensor, *passing: type[Exception]) -> Any:
    """Returns the network's output; what fails in it becomes one sentence, but for exceptions `passing` through.

    Raises:
        ValueError: The network fails on pictures of this shape.
    """
    try:
        return model(images)
    except (torch.OutOfMemoryError, *passing):
        raise
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"The network fails on pictures {tuple(images.shape[1:])}: {reason}") from error

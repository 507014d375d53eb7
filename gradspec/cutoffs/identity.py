"""What was fitted, whatever the machine: networks by their weights, methods and metrics in words."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from gradspec.attributions.words import text_of
from gradspec.engine import Engine

__all__ = ["fingerprint", "text_of"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprint(model: nn.Module | Engine) -> str:
    """Returns a network's class and a hash of its weights and modules, the same on any device and in either mode.

    Example:
        >>> torch.manual_seed(0)
        <...>
        >>> net = nn.Linear(2, 1)
        >>> fingerprint(net) == fingerprint(net.eval()), fingerprint(net) == fingerprint(nn.Linear(2, 1))
        (True, False)
    """
    model = model.model if isinstance(model, Engine) else model
    digest = hashlib.sha256(_ADDRESS.sub("", repr(model)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\n{name}".encode())
        digest.update(_content(value))
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


def _content(value: Any) -> bytes:
    if not isinstance(value, Tensor):  # a module's extra state
        return _ADDRESS.sub("", repr(value)).encode()
    values = value.detach().cpu().contiguous()
    return f"{values.dtype}{tuple(values.shape)}".encode() + values.reshape(-1).view(torch.uint8).numpy().tobytes()

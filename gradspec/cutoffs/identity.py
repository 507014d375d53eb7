"""What was fitted, whatever the machine: networks by their weights, methods and metrics in words."""

from __future__ import annotations

import hashlib
import re
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradspec.engine import Engine

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


def text_of(value: Any) -> str:
    """Returns a setting as it would be written, without fields at their defaults and addresses in memory.

    Example:
        >>> from gradspec.attributions import SmoothGrad
        >>> text_of(SmoothGrad(samples=20))
        'SmoothGrad(samples=20)'
    """
    if is_dataclass(value) and not isinstance(value, type):
        shown = [(field.name, getattr(value, field.name)) for field in fields(value) if field.repr]
        usual = {field.name: field.default for field in fields(value)}
        told = [f"{name}={text_of(found)}" for name, found in shown if not _same(found, usual[name])]
        return f"{type(value).__name__}({', '.join(told)})"
    if isinstance(value, partial):
        told = [*map(text_of, value.args), *(f"{name}={text_of(found)}" for name, found in value.keywords.items())]
        return f"{text_of(value.func)}({', '.join(told)})"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__}{tuple(value.shape)}"
    if isinstance(value, (type(None), bool, int, float, str)):
        return repr(value)
    named = getattr(value, "__qualname__", None)
    return named or _ADDRESS.sub("", repr(value))[:200]


def _same(value: Any, usual: Any) -> bool:
    if usual is MISSING or isinstance(value, (Tensor, np.ndarray)):
        return False
    return value is usual or (type(value) is type(usual) and bool(value == usual))

"""Attributions, metrics and their settings in words: the same on every machine and in every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def text_of(value: Any) -> str:
    """Returns a setting as it would be written, without fields at their defaults and addresses in memory.

    Of tensors and arrays there is the shape, of functions and classes the name; fields that a dataclass is not made
    of (init=False) or does not show (repr=False) are left out.

    Example:
        >>> from gradspec.attributions import SmoothGrad
        >>> text_of(SmoothGrad(samples=20)), text_of(partial(np.zeros, np.ones(3)))
        ('SmoothGrad(samples=20)', 'zeros(ndarray(3,))')
    """
    if isinstance(value, type):
        return _name(value)
    if is_dataclass(value):
        shown = [(each, getattr(value, each.name)) for each in fields(value) if each.init and each.repr]
        told = [f"{each.name}={text_of(found)}" for each, found in shown if not _same(found, each.default)]
        return f"{type(value).__name__}({', '.join(told)})"
    if isinstance(value, partial):
        told = [*map(text_of, value.args), *(f"{name}={text_of(found)}" for name, found in value.keywords.items())]
        return f"{text_of(value.func)}({', '.join(told)})"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__}{tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {text_of(found)}" for name, found in value.items()) + "}"
    if type(value) in (tuple, list):
        parts = ", ".join(map(text_of, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
    return _name(value)


def _name(value: Any) -> str:
    """A function's or a class's name, else what it says of itself, of a bare object its type."""
    named = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if named:
        return str(named).rpartition("<locals>.")[2]
    if type(value).__repr__ is object.__repr__:
        return type(value).__name__
    return repr(value) if isinstance(value, str) else _ADDRESS.sub("", repr(value))[:200]


def _same(value: Any, usual: Any) -> bool:
    if usual is MISSING or isinstance(value, (Tensor, np.ndarray)):
        return False
    return value is usual or (type(value) is type(usual) and bool(value == usual))

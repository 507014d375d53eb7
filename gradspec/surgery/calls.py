"""The torch functions that shrink a map by a maximum or a stride, seen where they are called.

A network calls `conv2d` and `max_pool2d` from `nn.Conv2d`, from modules with padding or weights of their own (TF's same
padding, weight standardisation), or without any module (Inception). A mode on torch's functions sees all of them,
with the very tensors and settings they get, so one rule for each function does for every architecture.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]
Border = tuple[int, int, int, int]
"""Left, right, top, bottom, as `pad` takes them."""


def _pair(value: Any) -> Pair:
    """Both numbers of a setting that may be one number, or a tuple of one."""
    values = tuple(value) if isinstance(value, Iterable) else (value, value)
    return (values[0], values[-1])


@dataclass(frozen=True)
class MaxPool:
    """A call of max-pooling on x (N, C, H, W) with a border of −∞ around it; settings as (vertical, horizontal)."""

    x: Tensor
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool
    border: Border = (0, 0, 0, 0)

    @property
    def reach(self) -> Pair:
        """How many pixels a window spans: dilation · (kernel − 1) + 1."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))  # type: ignore[return-value]

    @property
    def before(self) -> Pair:
        """How many pixels above and left of x the first window starts."""
        left, _, top, _ = self.border
        return self.padding[0] + top, self.padding[1] + left

    @property
    def after(self) -> Pair:
        """How many pixels below and right of x are padded."""
        _, right, _, bottom = self.border
        return self.padding[0] + bottom, self.padding[1] + right

    @property
    def size(self) -> Pair:
        """Height and width of the output: torch's own formula, in which the last window starts inside the map."""
        left, right, top, bottom = self.border
        sides = (self.x.shape[-2] + top + bottom, self.x.shape[-1] + left + right)
        return tuple(map(self._length, sides, self.reach, self.stride, self.padding))  # type: ignore[return-value]

    def _length(self, side: int, reach: int, stride: int, padding: int) -> int:
        room = side + 2 * padding - reach
        if not self.ceil_mode:
            return room // stride + 1
        length = math.ceil(room / stride) + 1
        return length - ((length - 1) * stride >= side + padding)

    @property
    def middle(self) -> Pair:
        """The pixel in the middle of the first window."""
        return tuple((r - 1) // 2 - b for r, b in zip(self.reach, self.before, strict=True))  # type: ignore[return-value]

    def at(self, x: Tensor) -> Tensor:
        """Returns the same max-pooling of another map."""
        x = F.pad(x, self.border, value=-math.inf) if any(self.border) else x
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def __str__(self) -> str:
        same = ", same padding" * any(self.border)
        return f"max-pooling {_settings(self.kernel, self.stride, self.padding, self.dilation)}{same}"


@dataclass(frozen=True)
class AdaptiveMax:
    """A call of adaptive max-pooling, or of the maximum over spatial dimensions (`amax`: dim and keepdim)."""

    x: Tensor
    output_size: Any = None
    dim: tuple[int, ...] = ()
    keepdim: bool = False

    def __str__(self) -> str:
        return f"maximum over dimensions {self.dim}" if self.dim else f"adaptive max-pooling to {self.output_size}"


@dataclass(frozen=True)
class StridedConvolution:
    """A call of a convolution with a stride over 1."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Any
    dilation: Any
    groups: int

    def at_stride(self, stride: Pair | int, x: Tensor | None = None) -> Tensor:
        """Returns the same convolution at another stride, of its own input or of `x`."""
        x = self.x if x is None else x
        return F.conv2d(x, self.weight, self.bias, stride, self.padding, self.dilation, self.groups)

    def __str__(self) -> str:
        padding = (0, 0) if isinstance(self.padding, str) else _pair(self.padding)
        kernel = (self.weight.shape[-2], self.weight.shape[-1])
        return f"convolution {_settings(kernel, self.stride, padding, _pair(self.dilation))}"


Downsampling = MaxPool | AdaptiveMax | StridedConvolution


def _settings(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> str:
    words = [by(kernel), f"stride {one(stride)}"]
    words += [f"padding {one(padding)}"] * any(padding) + [f"dilation {one(dilation)}"] * (dilation != (1, 1))
    return ", ".join(words)


def by(pair: Pair) -> str:
    """Returns a size in words: 3 x 3."""
    return f"{pair[0]} x {pair[1]}"


def one(pair: Pair) -> str:
    """Returns a setting in words: one number where both are the same."""
    return str(pair[0]) if pair[0] == pair[1] else by(pair)


# ---- from a call's arguments to one of the three ------------------------------------------------


def _max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> MaxPool | None:  # fmt: skip
    if return_indices:
        return None
    kernel = _pair(kernel_size)
    return MaxPool(input, kernel, _pair(stride) if stride else kernel, _pair(padding), _pair(dilation), ceil_mode)


def _adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> AdaptiveMax | None:
    return None if return_indices else AdaptiveMax(input, output_size)


def _amax(
    input: Tensor, dim: Any = (), keepdim: bool = False, *, axis: Any = (), keepdims: bool = False, out: Any = None,
) -> AdaptiveMax | None:  # fmt: skip
    dims = dim or axis  # torch takes numpy's names as well; 0 is a dimension of pictures, no maximum to swap
    dims = tuple(dims) if isinstance(dims, Iterable) else (dims,)
    return AdaptiveMax(input, dim=dims, keepdim=keepdim or keepdims) if dims and out is None else None


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> StridedConvolution | None:  # fmt: skip
    steps = _pair(stride)
    return StridedConvolution(input, weight, bias, steps, padding, dilation, groups) if max(steps) > 1 else None


_READ: dict[Any, Callable[..., Downsampling | None]] = {
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.adaptive_max_pool2d: _adaptive_max_pool2d,
    torch.amax: _amax,
    Tensor.amax: _amax,
    F.conv2d: _conv2d,
}


def downsampling(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Downsampling | None:
    """Returns what a call of a torch function shrinks a map by; None for any other call.

    Example:
        >>> str(downsampling(F.max_pool2d, (torch.zeros(1, 3, 9, 9), 3), {"stride": 2, "padding": 1}))
        'max-pooling 3 x 3, stride 2, padding 1'
        >>> downsampling(F.conv2d, (torch.zeros(1, 3, 9, 9), torch.zeros(8, 3, 3, 3)), {})
    """
    read = _READ.get(function)
    return None if read is None else read(*args, **kwargs)


def identities(call: Downsampling) -> tuple[str, ...]:
    """Returns what stays the same of a call at every size of the picture, by which it is known again: one or the other.

    Padding, a kernel as large as the map and the size that adaptive pooling aims at may be computed from the map.

    Example:
        >>> identities(MaxPool(torch.zeros(1, 1, 2, 2), (2, 2), (2, 2), (0, 0), (1, 1), False))
        ('MaxPool 2 x 2, stride 2', 'MaxPool of the whole map')
    """
    if isinstance(call, AdaptiveMax):
        return (f"AdaptiveMax {call.dim}",)
    kernel = call.kernel if isinstance(call, MaxPool) else (call.weight.shape[-2], call.weight.shape[-1])
    name = type(call).__name__
    whole = isinstance(call, MaxPool) and kernel == tuple(call.x.shape[-2:])
    settings = _settings(kernel, call.stride, (0, 0), _pair(call.dilation))
    return (f"{name} {settings}", *[f"{name} of the whole map"] * whole)


class Reading:
    """Reads the calls of functions in one call of a module: `number` is that of the last downsampling, from 0.

    Max-pooling whose input was padded with −∞ (timm's for TF's same padding) is read with the map before, or the
    padding would count in a mean.
    """

    def __init__(self) -> None:
        self.number = -1
        self._padded: tuple[Tensor, Tensor, Border] | None = None

    def read(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Downsampling | None:
        """Returns what a call shrinks a map by; None for any other call."""
        call = downsampling(function, args, kwargs)
        self.number += call is not None
        if isinstance(call, MaxPool) and self._padded is not None and call.x is self._padded[0]:
            return replace(call, x=self._padded[1], border=self._padded[2])
        return call

    def note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Remembers a border of −∞."""
        if function is F.pad and (border := _infinite_border(*args, **kwargs)):
            self._padded = (output, args[0] if args else kwargs["input"], border)


def _infinite_border(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Border | None:
    sizes = [*pad, 0, 0][:4]
    infinite = mode == "constant" and value == -math.inf and len(pad) <= 4 and min(sizes) >= 0
    return tuple(sizes) if infinite else None  # type: ignore[return-value]


def is_read(function: Any) -> bool:
    """Returns whether a torch function says anything about downsampling."""
    return function in _READ or function is F.pad


_MODULE_CALL = nn.Module._call_impl.__code__


def calling_frame() -> Any:
    """Returns the interpreter's frame of the innermost call of a module that is going on; None outside of any.

    Asked of the stack of calls: hooks would have to be set on every module of a network, and to come off again.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _MODULE_CALL:
        frame = frame.f_back
    return frame


def module_of(frame: Any) -> nn.Module | None:
    """Returns the module whose call a frame of `calling_frame` is."""
    return None if frame is None else frame.f_locals["self"]

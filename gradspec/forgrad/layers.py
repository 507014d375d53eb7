"""Low-pass filters of maps at many cutoffs, and of the gradient that flows back to a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradspec._checks import check_cutoff, check_maps
from gradspec.attributions.filters import UNFILTERED, LowPass, filtered
from gradspec.fourier import FilterShape, low_pass_mask


def low_passes(maps: Tensor, cutoffs: Sequence[float | None], shape: FilterShape = "disk") -> list[Tensor]:
    """Returns `fourier.low_pass` of the same maps at several cutoffs, with one forward transform for all.

    Where a cutoff keeps every bin (None, or from `identity_radius` on) it is the maps themselves, not a copy.

    Args:
        maps: (..., H, W), floating point.
        cutoffs: Each in cycles/image, 0 (the mean alone) or more; None for no filter.
        shape: "disk", "square", "gaussian" or "butterworth", see `low_pass_mask`.

    Raises:
        TypeError, ValueError: As `fourier.low_pass`.

    Example:
        >>> wave = torch.cos(torch.arange(8) * torch.pi / 4).expand(8, 8)  # one cycle/image
        >>> mean, both = low_passes(wave + 3, [0, 1])
        >>> torch.allclose(mean, torch.full((8, 8), 3.0)), torch.allclose(both, wave + 3, atol=1e-6)
        (True, True)
    """
    check_maps(maps)
    return list(filtered(maps, [checked(cutoff, shape) for cutoff in cutoffs]))


class LowPassGrad(nn.Module):
    """An identity whose backward pass takes the high frequencies out of the gradient (..., H, W) (paper §5).

    In front of a model it makes a FORGrad of any library's gradient method; in training it filters what flows back.

    Args:
        cutoff: In cycles/image, 0 or more; None for no filter.
        shape: "disk", "square", "gaussian" or "butterworth", see `gradspec.fourier.low_pass_mask`.

    Raises:
        TypeError: The cutoff is not a number.
        ValueError: Negative cutoff or unknown shape.

    Example:
        >>> from gradspec import low_pass
        >>> x = torch.rand(1, 3, 8, 8, requires_grad=True)
        >>> weights = torch.rand(1, 3, 8, 8)
        >>> (LowPassGrad(2)(x) * weights).sum().backward()
        >>> torch.allclose(x.grad, low_pass(weights, 2))
        True
    """

    def __init__(self, cutoff: float | None, shape: FilterShape = "disk") -> None:
        super().__init__()
        self.cutoff, self.shape = checked(cutoff, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (..., H, W), as it is."""
        return _Identity.apply(x, self.cutoff, self.shape)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """Returns the settings, for `repr`."""
        return f"cutoff={self.cutoff}, shape={self.shape!r}"


class _Identity(torch.autograd.Function):
    generate_vmap_rule = True  # torch.func maps over it

    @staticmethod
    def forward(x: Tensor, cutoff: float | None, shape: FilterShape) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()  # a view made here could not be written into, as a ReLU in place would

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.low = LowPass(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (found,) = filtered(gradient, [ctx.low])
        return found, None, None


def checked(cutoff: float | None, shape: FilterShape) -> LowPass:
    """Returns the filter of these settings; raises as `LowPassGrad`."""
    low_pass_mask(1, 1, cutoff, shape)  # raises
    cutoff = check_cutoff(cutoff)
    return UNFILTERED if cutoff is None else LowPass(cutoff, shape)

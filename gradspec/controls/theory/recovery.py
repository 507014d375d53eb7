"""Supplement A.2: what a low-pass filter leaves of the error of a noisy gradient."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradspec._checks import check_maps
from gradspec.fourier import FilterShape, frequency_radius, low_pass

Hard = Literal["disk", "square"]


class Recovery(NamedTuple):
    """Squared Frobenius norms (...,), float64: error = kept + lost, and kept ≤ noise.

    Attributes:
        error: ‖F⁻¹(F(∇f + ε) ⊙ K) − ∇f‖², of the filtered noisy gradient.
        kept: ‖F⁻¹(F(ε) ⊙ K)‖², of the noise that passes.
        lost: Of the gradient that does not; 0 from its band limit σ* on, which is proposition A.2.
        noise: ‖ε‖².
    """

    error: Tensor
    kept: Tensor
    lost: Tensor
    noise: Tensor


def recovery(gradient: Tensor, noise: Tensor, cutoff: float, shape: Hard = "square") -> Recovery:
    """Returns what filtering leaves of a noisy gradient's error (supplement A.2, with the part that it leaves out).

    A hard mask is an orthogonal projection: noise in it and gradient outside of it add up by Pythagoras, at any cutoff.
    A.2 is the case in which the gradient has nothing outside.

    Args:
        gradient: ∇f (..., H, W).
        noise: ε (..., H, W).
        cutoff: σ in cycles/image.
        shape: "square" as in the supplement, or "disk".

    Raises:
        ValueError: For maps of different shapes, and a smooth filter.

    Example:
        >>> noise = torch.randn(6, 6, dtype=torch.float64)
        >>> found = recovery(torch.ones(6, 6, dtype=torch.float64), noise, 0)  # constant: σ* = 0
        >>> torch.allclose(found.error, found.kept), bool(found.kept <= found.noise)
        (True, True)
    """
    for values in (gradient, noise):
        check_maps(values)
    check_hard(shape)
    if gradient.shape != noise.shape:
        raise ValueError(f"Expected noise as the gradient is, {tuple(gradient.shape)}, got {tuple(noise.shape)}.")
    signal, error = gradient.double(), noise.double()
    parts = low_pass(signal + error, cutoff, shape) - signal, low_pass(error, cutoff, shape)
    lost = signal - low_pass(signal, cutoff, shape)
    return Recovery(*(part.square().sum((-2, -1)) for part in (*parts, lost, error)))


def band_limit(maps: Tensor, shape: Hard = "square", tolerance: float = 1e-10) -> float:
    """Returns σ* = inf {σ : ‖F(map) ⊙ K̄_σ‖ = 0} in cycles/image, the least cutoff that takes nothing (A.2).

    Args:
        maps: (..., H, W); the largest of their limits.
        shape: "square" as in the supplement, or "disk".
        tolerance: Amplitudes up to this share of a map's largest are taken for rounding.

    Example:
        >>> wave = torch.cos(torch.arange(8, dtype=torch.float64) * torch.pi / 2)  # two cycles/image
        >>> band_limit(wave.expand(8, 8)), band_limit(wave[:, None] * wave, "disk") == 8**0.5
        (2.0, True)
    """
    check_maps(maps)
    check_hard(shape)
    height, width = maps.shape[-2:]
    amplitude = torch.fft.fft2(maps.double().reshape(-1, height, width)).abs().cpu()
    there = (amplitude > tolerance * amplitude.amax((1, 2), keepdim=True)).any(0)
    return float(_reach(height, width, shape)[there].max()) if there.any() else 0.0


def _reach(height: int, width: int, shape: Hard) -> Tensor:
    """The least cutoff that keeps each bin (H, W)."""
    if shape == "disk":
        return frequency_radius(height, width)
    sides = (torch.fft.fftfreq(size, 1 / size, dtype=torch.float64).round() for size in (height, width))
    rows, columns = (min(height, width) * side.abs() / len(side) for side in sides)
    return torch.maximum(rows[:, None], columns[None])


def check_hard(shape: FilterShape) -> None:
    """Raises ValueError for a smooth filter."""
    if shape not in ("disk", "square"):
        raise ValueError(f"Expected a hard mask, 'disk' or 'square', got {shape!r}.")

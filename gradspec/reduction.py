"""One gradient's maps, reduced to the few numbers that a spectrum needs while autograd waits.

What is kept per picture are ring amplitudes and powers, so that memory grows with layers x rings x pictures, never with
gradients (SPEC §2).  The squares and the roots are taken on the real view of the transform: `abs` of complex numbers
costs several times as much, and more than the FFT itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gradspec.fourier import SLACK, column_counts, frequency_radius, ring_index

_CHUNK = 2**19
"""Elements transformed at once: larger buffers are fresh pages each time, which cost more than the transform."""

_PRODUCTS_UP_TO = 64
"""Sides up to which a transform by matrix products (4 n operations an element) keeps up with the FFT."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What a gradient leaves behind: its spectra summed over channels, tensors on the maps' device.

    Attributes:
        height: H in pixels.
        width: W in pixels.
        channels: C.
        dtype: Of the maps.
        power: Squared amplitudes, (N, H * (W // 2 + 1)).
        amplitude: Amplitudes, (N, H * (W // 2 + 1)).
    """

    height: int
    width: int
    channels: int
    dtype: torch.dtype
    power: Tensor
    amplitude: Tensor


@dataclass(frozen=True, eq=False)
class Reduced:
    """The few numbers that are kept of N pictures' maps; arrays, float64.

    Attributes:
        rings: Ring amplitudes, mean over channels, (N, K).
        dc: Power of DC, (N,).
        others: Power of all other bins, (N,).
        above: Power beyond each of the radii asked for, (number of radii, N).
    """

    rings: np.ndarray
    dc: np.ndarray
    others: np.ndarray
    above: np.ndarray


@lru_cache(maxsize=128)
def _bins(height: int, width: int, radii: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ring of every rfft bin (corners last), its weight in the ring's mean and in the powers (bins, 1 + radii)."""
    counts = column_counts(width).repeat(height).to(torch.float64)
    rings = ring_index(height, width, half=True).flatten()
    last = min(height, width) // 2 + 1
    rings = torch.where(rings < 0, last, rings)
    sizes = torch.zeros(last + 1, dtype=torch.float64).index_add_(0, rings, counts)
    radius = frequency_radius(height, width, half=True).flatten()
    beyond = [torch.ones_like(radius), *((radius > max(r, 0.0) + SLACK).double() for r in radii)]
    powers = torch.stack(beyond, 1) * counts[:, None]
    powers[0] = 0  # DC apart
    return rings.to(device), (counts / sizes[rings]).to(device), powers.to(device)


def sum_spectra(maps: Tensor, scales: Sequence[Tensor] = ()) -> list[Sums]:
    """Returns the spectra of maps (N, C, H, W), any strides, and of the maps times each of `scales` (C,) per channel.

    A normalisation by fixed statistics multiplies every channel of the gradient by a constant, so the spectra on its
    two sides take one transform. Half precision is raised to float32.
    """
    count, channels, height, width = maps.shape
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    factors = torch.stack([torch.ones_like(scales[0]), *(s.abs() for s in scales)]) if scales else None
    factors = None if factors is None else factors.to(maps.device, dtype)
    sums = maps.new_zeros((2, count, 1 + len(scales), height, width // 2 + 1), dtype=dtype)
    last = maps.stride(1) == 1 and channels > 1 and max(height, width) <= _PRODUCTS_UP_TO
    last = last or _awkward(height) or _awkward(width)
    step = max(1, _CHUNK // (channels * height * width))
    for pictures, into in zip(maps.split(step), sums.split(step, dim=1), strict=True):
        if last:
            _add_channels_last(into, pictures.to(dtype).permute(0, 2, 3, 1), factors)
            continue
        part = max(1, _CHUNK // (len(pictures) * height * width))
        for at in range(0, channels, part):
            some = slice(at, at + part)
            _add(into, pictures[:, some].to(dtype).contiguous(), None if factors is None else factors[:, some])
    power, amplitude = sums.flatten(3)
    return [Sums(height, width, channels, maps.dtype, power[:, g], amplitude[:, g]) for g in range(1 + len(scales))]


def joined(parts: Sequence[Sums]) -> Sums:
    """Returns the spectra of several tensors of one size as if their channels stood in one tensor."""
    if len(parts) == 1:
        return parts[0]
    power, amplitude = sum(p.power for p in parts[1:]), sum(p.amplitude for p in parts[1:])
    channels = sum(p.channels for p in parts)
    return replace(parts[0], channels=channels, power=parts[0].power + power, amplitude=parts[0].amplitude + amplitude)


def reduce_sums(found: Sequence[Sums], radii: Sequence[float]) -> list[Reduced]:
    """Returns rings and powers of several spectra of one size, with one copy to the host for all of them.

    Args:
        found: Spectra of N pictures each.
        radii: Radii in cycles/image beyond which the power is summed.
    """
    height, width = found[0].height, found[0].width
    rings, weights, powers = _bins(height, width, tuple(radii), found[0].power.device)
    amplitude = torch.stack([s.amplitude.double() / s.channels for s in found])  # (M, N, bins)
    power = torch.stack([s.power.double() for s in found])
    means = amplitude.new_zeros((*power.shape[:2], min(height, width) // 2 + 2))
    means.index_add_(2, rings, amplitude * weights)
    sums = (power @ powers).movedim(2, 1)  # (M, 1 + radii, N)
    host = [t.cpu().numpy() for t in (means[..., :-1], power[..., 0], sums[:, 0], sums[:, 1:])]
    return [Reduced(*(values[i] for values in host)) for i in range(len(found))]


def reduce_maps(maps: Tensor, radii: Sequence[float]) -> Reduced:
    """Returns rings and powers of maps (N, C, H, W); see `sum_spectra` and `reduce_sums`."""
    return reduce_sums(sum_spectra(maps), radii)[0]


def _add(sums: Tensor, maps: Tensor, factors: Tensor | None) -> None:
    """Adds power and amplitude of contiguous maps (N, c, H, W), summed over channels, to (2, N, G, H, W // 2 + 1)."""
    parts = torch.view_as_real(torch.fft.rfft2(maps)).square_()  # (N, c, H, W // 2 + 1, 2)
    sums += _over_channels(parts[..., 0] + parts[..., 1], factors)


def _add_channels_last(sums: Tensor, maps: Tensor, factors: Tensor | None) -> None:
    """As `_add`, for maps (N, H, W, C): products along rows and columns need no copy, the FFT would.

    With the channels innermost the products and what follows run over long rows, at any size.
    """
    count, height, width, channels = maps.shape
    down = _waves(height, maps.dtype, maps.device) @ maps.reshape(count, height, width * channels)
    both = _waves(width, maps.dtype, maps.device) @ down.view(-1, width, channels)
    both = both.view(count, 2, height // 2 + 1, 2, width // 2 + 1, channels)
    upper, lower = _quadrants(both[:, 0, :, 0], both[:, 0, :, 1], both[:, 1, :, 0], both[:, 1, :, 1])
    sums += _whole(_over_last_channels(upper, factors), _over_last_channels(lower, factors), height)


def _quadrants(cc: Tensor, cs: Tensor, sc: Tensor, ss: Tensor) -> tuple[Tensor, Tensor]:
    """Squared amplitudes at (u, v) and (-u, v), from products of cosines and sines: F(±u, v) = (cc ∓ ss) - i (cs ±
    sc)."""
    upper = (cc - ss).square_().add_((cs + sc).square_())
    lower = (cc + ss).square_().add_((cs - sc).square_())
    return upper, lower


def _whole(upper: Tensor, lower: Tensor, height: int) -> Tensor:
    """All rows in the order of rfft2, from those at 0 ... H // 2 and those at 0 ... -(H // 2)."""
    return torch.cat([upper, lower[..., 1 : (height + 1) // 2, :].flip(-2)], -2)


def _over_channels(squares: Tensor, factors: Tensor | None) -> Tensor:
    """Power and amplitude (2, N, G, rows, columns) of squared amplitudes (N, c, rows, columns), which are used up."""
    shape, squares = squares.shape[2:], squares.flatten(2)
    power = squares.sum(1, keepdim=True) if factors is None else factors.square() @ squares
    roots = squares.sqrt_()
    amplitude = roots.sum(1, keepdim=True) if factors is None else factors @ roots
    return torch.stack([power, amplitude]).unflatten(-1, shape)


def _over_last_channels(squares: Tensor, factors: Tensor | None) -> Tensor:
    """As `_over_channels`, of (N, rows, columns, C)."""
    power = squares.sum(-1, keepdim=True) if factors is None else squares @ factors.square().T
    roots = squares.sqrt_()
    amplitude = roots.sum(-1, keepdim=True) if factors is None else roots @ factors.T
    return torch.stack([power, amplitude]).permute(0, 1, 4, 2, 3)


def _awkward(size: int) -> bool:
    """Small sizes with a prime factor above 7, for which FFT libraries are slower than the plain definition."""
    rest = size
    for factor in (2, 3, 5, 7):
        while rest % factor == 0:
            rest //= factor
    return rest > 1 and size <= _PRODUCTS_UP_TO


@lru_cache(maxsize=64)
def _waves(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines, then sines, of the frequencies 0 ... size // 2, (2 (size // 2 + 1), size)."""
    steps = torch.arange(size // 2 + 1)[:, None] * torch.arange(size) % size
    angle = steps.double() * (2 * torch.pi / size)
    return torch.cat([angle.cos(), angle.sin()]).to(device, dtype)

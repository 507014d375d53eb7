"""Frequency grid, rings and low-pass filters of two-dimensional maps (paper §3 and §5, supplement A).

Frequencies are whole cycles/image. For maps that are not square they are normalised with n = min(H, W) to
u' = n u / H and v' = n v / W, so that r = sqrt(u'^2 + v'^2) means the same number of cycles per pixel in every
direction; Nyquist is n/2. Grids are in FFT order (not shifted). `half` gives the columns of an rfft alone.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gradspec._checks import check_cutoff, check_maps, check_size

FilterShape = Literal["disk", "square", "gaussian", "butterworth"]

SLACK = 1e-9  # cycles/image: a bin that lies on a boundary falls on its inner side whatever sqrt and n / H round to


def frequency_radius(height: int, width: int, *, half: bool = False, device: torch.device | str = "cpu") -> Tensor:
    """Returns the normalised radius r of every frequency bin in cycles/image, float64 (H, W) or (H, W // 2 + 1).

    Exact for square maps up to one rounding of the square root: frequencies are integers, not float32 `fftfreq`.

    Args:
        height: H in pixels.
        width: W in pixels.
        half: the W // 2 + 1 columns of an rfft instead of all W.
        device: where the grid is made.

    Raises:
        ValueError: a side is under one pixel.

    Example:
        >>> frequency_radius(4, 4)[0].tolist(), frequency_radius(2, 4)[0].tolist()  # the second: v' = 2 v / 4
        ([0.0, 1.0, 2.0, 1.0], [0.0, 0.5, 1.0, 0.5])
    """
    rows, columns = _axes(height, width, half, device)
    return torch.hypot(rows, columns)


def ring_index(height: int, width: int, *, half: bool = False) -> Tensor:
    """Returns the ring of every bin, int64 (H, W) or (H, W // 2 + 1): ring k has r in [k - 1/2, k + 1/2), corners -1.

    Rings run from 0 to floor(n/2) (paper fig. 2); corners lie beyond. Ring 0 is DC alone unless one side is more
    than twice the other.

    Example:
        >>> ring_index(4, 4).tolist()
        [[0, 1, 2, 1], [1, 1, 2, 1], [2, 2, -1, 2], [1, 1, 2, 1]]
    """
    rings = torch.floor(frequency_radius(height, width, half=half) + 0.5 + SLACK).to(torch.int64)
    return rings.masked_fill(rings > min(height, width) // 2, -1)


def column_counts(width: int) -> Tensor:
    """Returns how many columns of the full grid each rfft column stands for, float64 (W // 2 + 1,): 1 or 2.

    Example:
        >>> column_counts(5).tolist(), column_counts(6).tolist()
        ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0, 1.0])
    """
    check_size(1, width)
    columns = torch.arange(width // 2 + 1, device="cpu")
    return torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0).double()


def ring_radii(height: int, width: int) -> Tensor:
    """Returns the mean radius of each ring's bins in cycles/image, float64 (K,) with K = floor(n/2) + 1.

    Example:
        >>> radii = ring_radii(4, 4)  # ring 1: four bins at r = 1, four at sqrt 2, in ring 2 six
        >>> abs(float(radii[1]) - (1 + 2**0.5) / 2) < 1e-12
        True
    """
    rings, radius = ring_index(height, width).flatten(), frequency_radius(height, width).flatten()
    inside = rings >= 0
    sums = torch.bincount(rings[inside], weights=radius[inside])
    return sums / torch.bincount(rings[inside])


def identity_radius(height: int, width: int, shape: FilterShape = "disk") -> float:
    """Returns the smallest cutoff in cycles/image that keeps every bin; infinite for the smooth shapes.

    Example:
        >>> identity_radius(224, 224, "square"), round(identity_radius(224, 224), 1), identity_radius(8, 8, "gaussian")
        (112.0, 158.4, inf)
    """
    check_size(height, width)
    _check_shape(shape)
    n = min(height, width)
    sides = n * (height // 2) / height, n * (width // 2) / width
    if shape == "disk":
        return math.hypot(*sides)
    return max(sides) if shape == "square" else math.inf


def low_pass_mask(
    height: int, width: int, cutoff: float | None, shape: FilterShape = "disk", *, half: bool = False
) -> Tensor:
    """Returns the gain of a low-pass filter at every bin, float64 (H, W) or (H, W // 2 + 1) in FFT order.

    `cutoff` is sigma of the paper. DC always has gain 1, also at cutoff 0, which keeps the mean alone.

    - "disk": 1 where r <= cutoff, 0 elsewhere (Xplique).
    - "square": 1 where |u'| <= cutoff and |v'| <= cutoff, 0 elsewhere (supplement A); symmetric at odd sizes too.
    - "gaussian": exp(-r^2 / (2 cutoff^2)). The cutoff is the standard deviation; with it the filter passes as much
      of white noise's power as the disk of the same cutoff (pi cutoff^2 bins): equal noise bandwidth.
    - "butterworth": order 2, 1 / sqrt(1 + (r / cutoff)^4). The cutoff is the half-power radius (gain 0.707, -3 dB);
      it passes pi/2 times the white-noise power of the disk.

    Args:
        height: H in pixels.
        width: W in pixels.
        cutoff: in cycles/image, 0 or more; None for no filter.
        shape: one of the four above.
        half: the columns of an rfft instead of all.

    Raises:
        TypeError: the cutoff is not a number.
        ValueError: negative cutoff or unknown shape.

    Example:
        >>> low_pass_mask(4, 4, 1)[1].tolist(), low_pass_mask(4, 4, 1, "square")[1].tolist()
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0])
    """
    cutoff = check_cutoff(cutoff)
    _check_shape(shape)
    rows, columns = _axes(height, width, half)
    radius = torch.hypot(rows, columns)
    if cutoff is None:
        return torch.ones_like(radius)
    if shape == "square":
        return torch.maximum(rows.abs(), columns.abs()).le(cutoff + SLACK).double()
    if shape == "disk" or cutoff == 0:
        return radius.le(cutoff + SLACK).double()
    ratio = radius / cutoff
    return torch.exp(-(ratio**2) / 2) if shape == "gaussian" else (1 + ratio**4).rsqrt()


def low_pass(maps: Tensor, cutoff: float | None, shape: FilterShape = "disk") -> Tensor:
    """Returns `maps` without their high frequencies (paper §5), same shape (..., H, W), dtype and device.

    The transform is computed in float32 for half precision, else in the maps' own dtype. Differentiable; the filter
    is linear and its own adjoint. Where the cutoff keeps every bin (None, or from `identity_radius` on) the maps
    themselves are returned, not a copy. A NaN anywhere makes its whole map NaN.

    Args:
        maps: (..., H, W), floating point.
        cutoff: sigma in cycles/image, 0 (the mean alone) or more; None for no filter.
        shape: "disk", "square", "gaussian" or "butterworth", see `low_pass_mask`.

    Raises:
        TypeError: maps that are not a floating-point tensor, or a cutoff that is not a number.
        ValueError: fewer than two dimensions, no values, negative cutoff, unknown shape.

    Example:
        >>> wave = torch.cos(torch.arange(8) * torch.pi / 4).expand(8, 8)  # one cycle/image
        >>> torch.allclose(low_pass(wave + 3, 1), wave + 3, atol=1e-6), torch.allclose(
        ...     low_pass(wave + 3, 0.9), torch.full((8, 8), 3.0)
        ... )
        (True, True)
    """
    check_maps(maps)
    cutoff = check_cutoff(cutoff)
    height, width = maps.shape[-2:]
    if cutoff is None or cutoff >= identity_radius(height, width, shape) - SLACK:
        return maps
    exact = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    # made on the CPU, where it is small beside the FFT: one copy to the device, and devices without float64 work
    mask = low_pass_mask(height, width, cutoff, shape, half=True).to(exact.dtype).to(maps.device)
    spectrum = torch.fft.rfft2(exact) * mask
    return torch.fft.irfft2(spectrum, s=(height, width)).to(maps.dtype)  # without s an odd column would be lost


def _axes(height: int, width: int, half: bool, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """u' as (H, 1) and v' as (1, W) or (1, W // 2 + 1), float64."""
    check_size(height, width)
    n = min(height, width)
    rows, columns = _frequencies(height, device), _frequencies(width, device)
    if half:
        columns = columns[: width // 2 + 1]  # an even width's Nyquist column is -W/2 here: masks depend on |v| alone
    return (n * rows / height)[:, None], (n * columns / width)[None]


def _frequencies(size: int, device: torch.device | str) -> Tensor:
    order = torch.arange(size, device=device)
    return ((order + size // 2) % size - size // 2).double()  # before any division: torch divides integers in float32


def _check_shape(shape: str) -> None:
    if shape not in get_args(FilterShape):
        raise ValueError(f"Expected a filter shape of {', '.join(get_args(FilterShape))}, got {shape!r}.")

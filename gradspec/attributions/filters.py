"""Several low-pass filters of the same maps, of one forward transform (paper §5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradspec._checks import check_maps
from gradspec.fourier import SLACK, FilterShape, identity_radius, low_pass_mask


class LowPass(NamedTuple):
    """A low-pass filter of maps: its cutoff in cycles/image, None for no filter, and the shape of its mask."""

    cutoff: float | None
    shape: FilterShape = "disk"


UNFILTERED = LowPass(None)


def filtered(maps: Tensor, filters: Sequence[LowPass]) -> Iterator[Tensor]:
    """Yields maps (..., H, W) through each of several filters, one after the other; as `fourier.low_pass` to rounding.

    The forward transform is made once, and backwards only the columns that a mask leaves are transformed. Where a
    filter keeps every bin the maps themselves come, not a copy.

    Args:
        maps: (..., H, W), floating point.
        filters: With cutoffs that were checked.

    Raises:
        TypeError, ValueError: For maps that are not floating-point (..., H, W).
    """
    check_maps(maps)
    height, width = maps.shape[-2:]
    exact = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    spectrum = None
    for cutoff, shape in filters:
        if cutoff is None or cutoff >= identity_radius(height, width, shape) - SLACK:
            yield maps
            continue
        spectrum = torch.fft.rfft2(exact) if spectrum is None else spectrum
        mask = _mask(height, width, cutoff, shape, exact.dtype, maps.device)
        rows = torch.fft.ifft(spectrum[..., : mask.shape[1]] * mask, dim=-2)
        yield torch.fft.irfft(rows, n=width).to(maps.dtype)  # which takes the columns left out as zeros


@lru_cache(maxsize=64)
def _mask(
    height: int, width: int, cutoff: float, shape: FilterShape, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The gain at the columns of an rfft up to the last that is not zero, remembered: it takes as long as the FFT."""
    with torch.inference_mode(False):  # what is remembered may be used where autograd works
        mask = low_pass_mask(height, width, cutoff, shape, half=True).to(dtype)
        columns = int(mask.any(0).nonzero().max()) + 1
        return mask[:, :columns].contiguous().to(device)

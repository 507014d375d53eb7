"""Which cutoffs are tried, and what each is called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from gradspec._checks import check_cutoff, check_whole
from gradspec.fourier import FilterShape, identity_radius, low_pass_mask

Cutoffs = tuple[float | None, ...]

NO_FILTER = "none"


def cutoff_grid(height: int, width: int, shape: FilterShape = "disk", points: int = 20) -> Cutoffs:
    """Returns the default grid: None for no filter, then at most so many cutoffs down to 1 cycle/image (SPEC §5).

    They are spaced evenly in their logarithm from the identity radius, for which None stands, and rounded to three
    digits. Of hard masks those that keep the same bins as a smaller one are left out; smooth ones begin at the disk's
    identity radius, where they do filter. At 0 a map is constant and is not scored.

    Args:
        height: H in pixels.
        width: W in pixels.
        shape: Of the filter.
        points: Cutoffs beside None.

    Raises:
        ValueError: For sides under one pixel, another shape, no points.

    Example:
        >>> cutoff_grid(224, 224, points=5), cutoff_grid(6, 4, points=20)
        ((None, 57.5, 20.9, 7.58, 2.75, 1.0), (None, 2.42, 2.3, 2.18, 2.07, 1.68, 1.37, 1.23, 1.0))
    """
    check_whole(points=points)
    smooth = math.isinf(identity_radius(height, width, shape))
    start = identity_radius(height, width, "disk" if smooth else shape)
    if start <= 1:
        return (None,)
    spaced = np.geomspace(start, 1, points) if smooth else np.geomspace(start, 1, points + 1)[1:]
    rounded = list(dict.fromkeys(float(f"{cutoff:.3g}") for cutoff in spaced))
    return None, *(rounded if smooth else _different(rounded, height, width, shape))


def _different(cutoffs: Sequence[float], height: int, width: int, shape: FilterShape) -> list[float]:
    """Falling cutoffs without those whose mask is that of the next, or none."""
    kept = [int(low_pass_mask(height, width, cutoff, shape).count_nonzero()) for cutoff in cutoffs]
    smaller = [*kept[1:], 0]
    return [
        cutoff for cutoff, bins, others in zip(cutoffs, kept, smaller, strict=True) if others < bins < height * width
    ]


def checked_cutoffs(cutoffs: Iterable[float | None]) -> Cutoffs:
    """Returns cutoffs as plain numbers and None, in their order.

    Raises:
        TypeError: For what is no number.
        ValueError: For fewer than two, one of 0 or less, and one that comes twice.
    """
    if isinstance(cutoffs, (str, bytes)) or not isinstance(cutoffs, Iterable):
        raise TypeError(f"Expected cutoffs as a list of numbers of cycles/image and None, got {cutoffs!r}.")
    found = tuple(map(check_cutoff, cutoffs))
    if len(found) < 2:
        raise ValueError(f"Expected two or more cutoffs to choose from, got {list(found)}.")
    if any(cutoff is not None and not 0 < cutoff < math.inf for cutoff in found):
        raise ValueError(f"Expected finite cutoffs above 0 (a map of its mean alone is not scored), got {list(found)}.")
    if len(set(found)) < len(found):
        raise ValueError(f"Expected each cutoff once, got {list(found)}.")
    return found


def names_of_cutoffs(cutoffs: Cutoffs) -> list[str]:
    """Returns a name for each cutoff, different ones for different cutoffs.

    Example:
        >>> names_of_cutoffs((None, 12.0, 1.5, 1.5000000001))
        ['none', '12', '1.5', '1.5000000001']
    """
    short = [NO_FILTER if cutoff is None else f"{cutoff:g}" for cutoff in cutoffs]
    return [
        name if cutoff is None or float(name) == cutoff else repr(cutoff)
        for name, cutoff in zip(short, cutoffs, strict=True)
    ]


def size(cutoff: float | None) -> float:
    """Returns a cutoff as a number by which they may be sorted: no filter is the largest."""
    return math.inf if cutoff is None else cutoff

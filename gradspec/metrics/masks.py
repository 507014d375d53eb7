"""Which pixels are replaced: the order of a map's values, and which masks of a picture are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradspec.randomness import generator

_ODD = 0x2545F4914F6CDD1D  # so that the numbers of different pictures' masks lie apart (Vigna's xorshift64* multiplier)


def ranking(maps: Tensor, ids: Sequence[str], seed: int) -> Tensor:
    """Returns each pixel's place when sorted by falling value (N, H, W), int32; ties in an order of the picture's own.

    Args:
        maps: (N, H, W).
        ids: A name for each picture.
        seed: Of the order of ties.
    """
    ties = tie_orders(ids, maps[0].numel(), seed).to(maps.device)
    return places_in(ordering(maps, ties)).view_as(maps)


def tie_orders(ids: Sequence[str], pixels: int, seed: int) -> Tensor:
    """Returns the order in which each picture's pixels of equal value stand (N, pixels), int64, on the CPU."""
    return torch.stack([torch.randperm(pixels, generator=generator(seed, "ties", name)) for name in ids])


def ordering(maps: Tensor, ties: Tensor) -> Tensor:
    """Returns the pixels of maps (M, H, W) by falling value, equal ones in the order of `ties` (M, HW), int64."""
    return ties.gather(1, maps.flatten(1).gather(1, ties).argsort(dim=1, descending=True, stable=True))


def places_in(order: Tensor) -> Tensor:
    """Returns each pixel's place in an order of them (M, HW), int32."""
    places = torch.arange(order.shape[1], dtype=torch.int32, device=order.device).expand_as(order)
    return torch.empty_like(places.contiguous()).scatter_(1, order, places)


def mask_keys(order: Tensor, which: Tensor, counts: Tensor, inserts: Sequence[bool]) -> Tensor:
    """Returns a 64-bit number for the replaced pixels of each point of the curves (M, len(inserts)·len(counts)).

    The sum of one random number for each replaced pixel (Zobrist 1970): equal for equal masks of a picture however
    they came about; that any two of a million others are equal has a probability of 3e-8.

    Args:
        order: Pixels by falling value (M, HW).
        which: The picture of each map (M,).
        counts: How many pixels are replaced, or put in, at each point.
        inserts: False for a curve on which the first pixels are replaced, True where all others are.
    """
    draws = torch.randint(-(2**63), 2**63 - 1, order.shape[1:], generator=generator(0, "masks")).to(order.device)
    sums = draws[order].cumsum(1)  # it wraps around, as it may
    first = torch.where(counts > 0, sums[:, counts.clamp(min=1).long() - 1], 0)
    keys = torch.cat([draws.sum() - first if insert else first for insert in inserts], 1)
    return keys + which[:, None] * _ODD


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where each distinct number stands first, in their order (D,), and which of those each is (J,).

    Example:
        >>> [part.tolist() for part in distinct(torch.tensor([7, 3, 7, 9, 3]))]
        [[0, 1, 3], [0, 1, 0, 2, 1]]
    """
    values, inverse = keys.unique(return_inverse=True)
    places = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(values, len(keys)).scatter_reduce(0, inverse, places, "amin")
    ordered, order = first.sort()
    return ordered, torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))[inverse]

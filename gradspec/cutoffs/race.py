"""How a race of cutoffs spends a fixed budget of passes: sequential halving (Karnin, Koren and Somekh 2013, ICML)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, log2

from gradspec.randomness import generator

Cost = Callable[[int], int]
"""How many maps of a picture are scored -> its passes."""


def planned(pictures: int, cutoffs: int, budget: int, cost: Cost, controls: int = 0, shared: int = 0) -> list[int]:
    """Returns how many new pictures each round of a race gets, their passes never more than the budget.

    There are ⌈log2 K⌉ rounds; in each the cutoffs that still run are scored on new pictures, and of k the best ⌈k/2⌉ on
    all pictures so far run on. Each round has the same share of the budget (Karnin's allocation) as long as there are
    pictures; what the later rounds, which have fewer cutoffs, would spend on pictures that are not there goes to
    all alike. So with few pictures the last rounds may have none, and with the budget of a grid the race is the grid.
    Where two cutoffs cost as much as all, there is one round.

    Args:
        pictures: N, how many there are.
        cutoffs: K, how many begin.
        budget: Passes in all.
        cost: Passes of one picture, whose explanation serves all of its maps.
        controls: Maps that are scored beside those of the cutoffs, of the second half of the pictures.
        shared: How many of these are among the maps of the cutoffs while all run.

    Raises:
        ValueError: For a budget that does not give the first round a picture.

    Example:
        >>> planned(1000, 8, 2000, lambda maps: maps), planned(10, 8, 80, lambda maps: maps)
        ([83, 167, 334], [10])
    """
    running = runners(cutoffs)
    if cost(running[-1]) == cost(cutoffs):
        running = running[:1]

    def rounds(share: float) -> list[int]:
        counts, left = [], pictures
        for k in running:
            counts.append(min(left, floor(share / cost(k))))
            left -= counts[-1]
        while counts and not counts[-1]:
            counts.pop()
        return counts

    def passes(share: float) -> int:
        return spent(rounds(share), cutoffs, cost, controls, shared)

    low, high = 0.0, float(pictures * cost(cutoffs) + 1)  # what one round may spend, by bisection
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) <= budget else (low, middle)
    counts = rounds(low)
    if not counts or not counts[0]:
        least = passes(cost(cutoffs))
        raise ValueError(
            f"Expected a budget that shows every cutoff a picture at least, got {budget} passes for {cutoffs} cutoffs "
            f"on {pictures} pictures: it takes about {least}; give more pictures, fewer cutoffs, a larger budget= or "
            "search='grid'."
        )
    return counts


def spent(counts: Sequence[int], cutoffs: int, cost: Cost, controls: int = 0, shared: int = 0) -> int:
    """Returns the passes of rounds with so many pictures; arguments as `planned`.

    Example:
        >>> spent([3, 4], 8, lambda maps: 10 + maps, controls=2)  # of 7 pictures the last four with controls
        118
    """
    total, start, first = 0, 0, with_controls(counts)
    for n, k in zip(counts, runners(cutoffs), strict=False):
        more = max(0, start + n - max(start, first))
        new = controls - shared if k == cutoffs else controls
        total += n * cost(k) + more * (cost(k + new) - cost(k))
        start += n
    return total


def with_controls(counts: Sequence[int]) -> int:
    """Returns from which picture on controls are scored as well: the second half, all of a grid's."""
    return 0 if len(counts) == 1 else sum(counts) // 2


def runners(cutoffs: int) -> list[int]:
    """Returns how many cutoffs run in each round.

    Example:
        >>> runners(21)
        [21, 11, 6, 3, 2]
    """
    found = []
    while cutoffs > 1:
        found.append(cutoffs)
        cutoffs = ceil(cutoffs / 2)
    assert len(found) == ceil(log2(found[0])) if found else True
    return found


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """Returns names in an order that depends on the seed and on each name, not on the order they come in."""
    return sorted(ids, key=lambda name: (generator(seed, "race", name).initial_seed(), name))

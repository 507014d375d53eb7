"""How a run is cut into units, and what they are called: the same on every machine, however they are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Pictures from the one at `start` up to, and without, that at `stop`."""

    start: int
    stop: int


def unit_name(part: str, *about: str, span: Span | None = None) -> str:
    """Returns a unit's name.

    Example:
        >>> unit_name("fit", "trained", "Saliency", span=Span(16, 32))
        'fit, trained, Saliency, pictures 16 to 31'
    """
    return ", ".join([part, *about, *([f"pictures {span.start} to {span.stop - 1}"] if span else [])])


def spans(count: int, size: int) -> list[Span]:
    """Returns the shards of so many pictures, `size` in each, fewer in the last.

    Example:
        >>> spans(5, 2)
        [Span(start=0, stop=2), Span(start=2, stop=4), Span(start=4, stop=5)]
    """
    return [Span(start, min(start + size, count)) for start in range(0, count, size)]


def names(spec: Mapping[str, Any], part: str, *about: str, pictures: str) -> list[str]:
    """Returns the units that make up a part of a result.

    Args:
        spec: The run's settings: under `pictures` a list of them, and `pictures_per_unit`. Without these the part is
            one unit, as results are saved that were not made by a run.
        part: What is made.
        about: The network's variant, the method.
        pictures: Under which name the spec lists the pictures that it is made of.
    """
    size, given = spec.get("pictures_per_unit"), spec.get(pictures, ())
    cut: Sequence[Span | None] = spans(len(given), size) if size else [None]
    return [unit_name(part, *about, span=span) for span in cut]

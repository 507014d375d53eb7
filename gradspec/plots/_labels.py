"""Names written beside what they name, clear of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gradspec.plots._style import any_script

_AROUND = [
    (distance, angle) for distance in (9, 20, 34, 50, 70, 95, 125) for angle in (0, 180, 90, 270, 35, 145, 325, 215)
]  # typographic points and degrees from a point to its name, the best first


def spread(wanted: Sequence[float], gap: float, within: tuple[float, float]) -> np.ndarray:
    """Return the numbers nearest to ``wanted`` (least squares), in its order, ``gap`` apart at least and within bounds.

    Where the bounds leave no room for all, they reach beyond the upper one.

    Example:
        >>> spread([0.0, 5.0, 5.5], 2.0, (0.0, 9.0)).tolist(), spread([5.0, 5.5], 2.0, (0.0, 6.0)).tolist()
        ([0.0, 4.25, 6.25], [4.0, 6.0])
    """
    order = np.argsort(wanted, kind="stable")
    room = gap * np.arange(len(order))
    blocks: list[tuple[float, int]] = []  # mean and number of neighbours that touch: pool adjacent violators
    for value in np.asarray(wanted, float)[order] - room:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] >= mean:
            other, many = blocks.pop()
            mean, count = (mean * count + other * many) / (count + many), count + many
        blocks.append((mean, count))
    nearest = np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])
    places = np.empty(len(order))
    places[order] = np.clip(nearest, within[0], max(within[1] - room[-1], within[0])) + room
    return places


def name_points(ax: Axes, names: Sequence[str], points: np.ndarray, reach: np.ndarray) -> None:
    """Write each name beside its point, where it hides no point, bar, line or other text; a far one gets a line.

    Args:
        ax: axes whose limits are final and whose figure has been laid out.
        names: the words, one for each point.
        points: places of the points (P, 2), in data.
        reach: half lengths of the points' horizontal and vertical error bars (P, 2), in data; not NaN.
    """
    unit = cast(Figure, ax.figure).dpi / 72
    spots = ax.transData.transform(points)
    ends = np.abs(ax.transData.transform(points + reach) - spots)
    taken = [text.get_window_extent() for text in ax.texts]
    taken += [line.get_window_extent().padded(unit) for line in ax.lines if line.get_transform() != ax.transData]
    for spot, (along, up) in zip(spots, ends, strict=True):
        taken += [_box(spot, 5 * unit, 5 * unit), _box(spot, along, unit), _box(spot, unit, up)]
    for name, spot, place in zip(names, spots, points, strict=True):
        text = ax.annotate(
            name, tuple(place), xytext=(0, 0), textcoords="offset points", fontsize=8, va="center", gid="name", zorder=6
        )
        with any_script():
            box = text.get_window_extent()
        size = np.array([box.width, box.height])
        shifts = [_shift(distance * unit, angle, size) for distance, angle in _AROUND]
        boxes = [_box(spot + shift, *(size / 2 + unit)) for shift in shifts]
        best = int(np.argmin([_cost(candidate, taken, ax.bbox) for candidate in boxes]))
        taken.append(boxes[best])
        text.set_position(tuple((shifts[best] - size / 2 * (1, 0)) / unit))  # text begins at its left end
        if _AROUND[best][0] > 20:
            _lead(ax, spot, boxes[best])


def _box(middle: np.ndarray, half_width: float, half_height: float) -> Bbox:
    half = np.array([half_width, half_height])
    return Bbox(np.stack([middle - half, middle + half]))


def _shift(distance: float, angle: float, size: np.ndarray) -> np.ndarray:
    """Return the way from a point to the middle of its name, so that the name's edge is ``distance`` away."""
    way = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]).round(9)
    return distance * way + size / 2 * np.sign(way)


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return how much of a box lies on others or outside, in screen pixels squared."""
    shared = [Bbox.intersection(box, other) for other in taken]
    kept = Bbox.intersection(box, inside)
    area = box.width * box.height
    return sum(part.width * part.height + 1 for part in shared if part) + 10 * (
        area - (kept.width * kept.height if kept else 0)
    )


def _lead(ax: Axes, spot: np.ndarray, box: Bbox) -> None:
    """Draw a thin line from a point to the nearest side of its name."""
    end = np.clip(spot, (box.x0, box.y0), (box.x1, box.y1))
    ways: Any = ax.transData.inverted().transform([spot, end])
    ax.plot(*ways.T, color="#999999", linewidth=0.6, zorder=1.5, gid="leader")

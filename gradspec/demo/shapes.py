"""The ten object shapes as signed distances: negative inside, about one per unit length near the outline."""

from collections.abc import Callable
from math import cos, hypot, pi, sin
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def disk(x: Array, y: Array) -> Array:
    """Returns the distance to a disk."""
    return np.hypot(x, y) - 0.85


def square(x: Array, y: Array) -> Array:
    """Returns the distance to a square."""
    return _box(x, y, 0.7, 0.7)


def triangle(x: Array, y: Array) -> Array:
    """Returns the distance to an equilateral triangle."""
    return np.maximum(np.abs(x) * cos(pi / 6) - y * sin(pi / 6), y) - 0.48


def star(x: Array, y: Array) -> Array:
    """Returns the distance to a five-pointed star."""
    sector = pi / 5
    turn = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)  # folded onto half a point, tip at zero
    radius = np.hypot(x, y)
    inner = 0.42
    edge = (inner * sin(sector), 1.0 - inner * cos(sector))  # normal of the side from the tip to the inner corner
    return (edge[0] * (radius * np.cos(turn) - 1.0) + edge[1] * radius * np.sin(turn)) / hypot(*edge)


def cross(x: Array, y: Array) -> Array:
    """Returns the distance to a cross of two equal bars."""
    return np.minimum(_box(x, y, 0.92, 0.27), _box(x, y, 0.27, 0.92))


def ring(x: Array, y: Array) -> Array:
    """Returns the distance to a ring."""
    return np.abs(np.hypot(x, y) - 0.7) - 0.2


def crescent(x: Array, y: Array) -> Array:
    """Returns the distance to a crescent: a disk without another."""
    return np.maximum(np.hypot(x, y) - 0.95, 0.8 - np.hypot(x - 0.5, y))


def heart(x: Array, y: Array) -> Array:
    """Returns the distance to a heart: a square on its corner and two disks."""
    half = 0.55  # of the square's side, and the disks' radius
    x, y = np.abs(x), y - 0.2
    tilted = np.maximum(np.abs(x + y), np.abs(x - y)) / 2**0.5 - half
    return np.minimum(tilted, np.hypot(x - half / 2**0.5, y + half / 2**0.5) - half)


def arrow(x: Array, y: Array) -> Array:
    """Returns the distance to an arrow: a triangular head on a shaft."""
    head = np.maximum((x - 1.0 + np.abs(y) * 1.25) / hypot(1, 1.25), 0.05 - x)
    return np.minimum(head, _box(x + 0.4, y, 0.55, 0.22))


def hourglass(x: Array, y: Array) -> Array:
    """Returns the distance to an hourglass: two triangles tip to tip."""
    return np.maximum((np.abs(x) - 0.1 - 0.75 * np.abs(y)) / hypot(1, 0.75), np.abs(y) - 0.75)


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    shape.__name__: shape for shape in (disk, square, triangle, star, cross, ring, crescent, heart, arrow, hourglass)
}
"""Class name -> distance of points (x right, y down) of a shape that fits the circle of radius one."""

"""Generated pictures with object masks: one textured shape on a cluttered background, ten classes, any size."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
import torch

from gradspec.demo.shapes import SHAPES, Array

CLASSES: list[str] = list(SHAPES)
"""Names of the ten classes; the label is the index."""

_KINDS = ("plain", "stripes", "checks", "dots", "waves", "gradient")
_GROUNDS = ("waves", "gradient", "waves", "stripes", "waves", "checks")  # half of them irregular
_WAVES = 20


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their labels and object masks.

    Attributes:
        images: (N, 3, H, W) float32, RGB in 0..1.
        labels: (N,) int64, index into `CLASSES`.
        masks: (N, H, W) bool, the visible pixels of the object.
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


@dataclass(frozen=True, eq=False)
class Texture:
    """How a region is coloured: a pattern of values in 0..1 between two colours (2, 3)."""

    kind: str
    colours: Array
    angle: float
    frequency: float  # cycles over the picture's shorter side
    phase: Array  # (2,) radians
    waves: Array  # (4, K): frequency along x and y, amplitude, phase


@dataclass(frozen=True, eq=False)
class Clutter:
    """A distractor: a bar with round ends or a small uneven blob; lengths in units of the picture's shorter side."""

    centre: tuple[float, float]  # in fractions of the picture's width and height
    angle: float
    length: float  # zero for a blob
    width: float
    lobes: Array  # (2, 3): amplitude and phase of the blob's second, third and fifth harmonic; empty for a bar
    texture: Texture


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything one picture shows, independent of its resolution; lengths in units of the picture's shorter side."""

    label: int
    centre: tuple[float, float]  # fraction of the room that the object's radius leaves
    radius: float
    angle: float
    squeeze: float
    texture: Texture
    background: Texture
    behind: tuple[Clutter, ...]
    front: tuple[Clutter, ...]
    light: tuple[float, float]  # angle, strength
    noise: float  # standard deviation
    noise_seed: int


def pictures(n: int, size: int | tuple[int, int] = 64, seed: int = 0, *, start: int = 0) -> Pictures:
    """Returns `n` generated pictures with labels and masks.

    Picture i depends on (seed, start + i) and the size alone, never on n: ranges that do not overlap are disjoint
    samples. The label is (start + i) mod 10, so that any ten in a row hold every class once. The same picture at
    another size is the same scene at another resolution (the pixel noise apart).

    Args:
        n: Number of pictures, N.
        size: Height and width H, W in pixels, at least 16; one number for both.
        seed: Non-negative seed of the whole sequence.
        start: Non-negative index of the first picture in that sequence.

    Raises:
        ValueError: A number is negative or the size below 16 pixels.

    Example:
        >>> two = pictures(2, size=(32, 48), start=3)
        >>> tuple(two.images.shape), [CLASSES[i] for i in two.labels]
        ((2, 3, 32, 48), ['star', 'cross'])
        >>> torch.equal(two.images[1], pictures(1, size=(32, 48), start=4).images[0])
        True
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(n, seed, start) < 0 or min(height, width) < 16:
        raise ValueError(
            f"expected n, seed and start of at least 0 and a size of at least 16 pixels, got n={n}, seed={seed}, "
            f"start={start}, size={height}x{width}"
        )
    images, masks = np.empty((n, 3, height, width), np.float32), np.empty((n, height, width), bool)
    for i in range(n):
        images[i], masks[i] = render(draw_scene(seed, start + i), height, width)
    labels = torch.arange(start, start + n) % len(CLASSES)
    return Pictures(torch.from_numpy(images), labels, torch.from_numpy(masks))


def draw_scene(seed: int, index: int) -> Scene:
    """Returns the scene number `index` of a seed: shape, textures, clutter, light and noise, all drawn at random."""
    rng = np.random.default_rng((seed, index))
    ground = rng.random((2, 3), np.float32) * 0.5 + rng.random(dtype=np.float32) * 0.5
    return Scene(
        label=index % len(CLASSES),
        centre=(rng.random(), rng.random()),
        radius=rng.uniform(0.22, 0.4),
        angle=rng.uniform(-pi, pi),
        squeeze=rng.uniform(0.8, 1.0),
        texture=_draw_texture(rng, _apart_from(rng, ground)),
        background=_draw_texture(rng, ground, _GROUNDS),
        behind=tuple(_draw_clutter(rng) for _ in range(rng.integers(3, 8))),
        front=tuple(_draw_clutter(rng, thin=True) for _ in range(rng.integers(0, 3))),
        light=(rng.uniform(-pi, pi), rng.uniform(0.0, 0.35)),
        noise=rng.uniform(0.005, 0.05),
        noise_seed=int(rng.integers(2**32)),
    )


def _apart_from(rng: np.random.Generator, ground: Array) -> Array:
    """Two colours (2, 3), the pair of ten tries that lies farthest from the background's, so that the object shows."""
    tries = rng.random((10, 2, 3), np.float32)
    gap = np.linalg.norm(tries[:, :, None] - ground, axis=-1).min((1, 2))
    return tries[gap.argmax()]


def _draw_texture(rng: np.random.Generator, colours: Array, kinds: tuple[str, ...] = _KINDS) -> Texture:
    frequency = 2 ** rng.uniform(0.0, 4.0, _WAVES)
    direction, phase = rng.uniform(-pi, pi, (2, _WAVES))
    waves = np.stack([frequency * np.cos(direction), frequency * np.sin(direction), frequency**-0.5, phase])
    waves[2] *= 0.25 * np.sqrt(2 / np.sum(waves[2] ** 2))  # standard deviation 1/4 of the range between the colours
    return Texture(
        kind=kinds[rng.integers(len(kinds))],
        colours=colours,
        angle=rng.uniform(-pi, pi),
        frequency=rng.uniform(5.0, 13.0),
        phase=rng.uniform(-pi, pi, 2),
        waves=waves.astype(np.float32),
    )


def _draw_clutter(rng: np.random.Generator, *, thin: bool = False) -> Clutter:
    blob = not thin and rng.random() < 0.5
    width = rng.uniform(0.012, 0.025) if thin else rng.uniform(0.05, 0.11) if blob else rng.uniform(0.01, 0.06)
    amplitude = rng.uniform(0.2, 0.4, 3) if blob else np.empty(0)
    return Clutter(
        centre=(rng.random(), rng.random()),
        angle=rng.uniform(-pi, pi),
        length=0.0 if blob else rng.uniform(0.2, 0.7),
        width=width,
        lobes=np.stack([amplitude, rng.uniform(-pi, pi, len(amplitude))]),
        texture=_draw_texture(rng, rng.random((2, 3), np.float32)),
    )


def render(scene: Scene, height: int, width: int) -> tuple[Array, Array]:
    """Returns the picture (3, H, W) in 0..1 and the mask (H, W) of the object's visible pixels.

    Edges are anti-aliased from signed distances: a pixel's cover falls from one to zero over one pixel.
    """
    side = min(height, width)
    y, x = ((np.arange(k, dtype=np.float32) + 0.5) / side for k in (height, width))
    canvas = _colour(scene.background, x, y, side)
    for clutter in scene.behind:
        _paint_clutter(canvas, clutter, x, y, side)
    cover = _paint_object(canvas, scene, x, y, side)
    for clutter in scene.front:
        rows, columns, alpha = _paint_clutter(canvas, clutter, x, y, side)
        cover[rows, columns] *= 1 - alpha
    angle, strength = scene.light
    canvas *= 1 - strength * (0.5 + cos(angle) * (x - x.mean()) + sin(angle) * (y - y.mean())[:, None])
    noise = np.random.default_rng(scene.noise_seed).standard_normal(canvas.shape, np.float32)
    canvas += scene.noise * noise
    return np.clip(canvas, 0, 1, out=canvas), cover > 0.5


def _paint_object(canvas: Array, scene: Scene, x: Array, y: Array, side: int) -> Array:
    """Paints the object; returns its cover (H, W)."""
    # The outermost tenth of the object may leave the picture.
    margin = 0.9 * scene.radius
    right, down = (margin + f * (k / side - 2 * margin) for f, k in zip(scene.centre, (len(x), len(y)), strict=True))
    rows, columns, u, v = _window(x, y, (right, down), scene.angle, 1.1 * scene.radius)
    distance = SHAPES[CLASSES[scene.label]](u / scene.radius, v / (scene.radius * scene.squeeze))
    alpha = np.clip(0.5 - distance * (scene.radius * side), 0, 1)
    _blend(canvas, rows, columns, alpha, _colour(scene.texture, x[columns], y[rows], side))
    cover = np.zeros(canvas.shape[1:], np.float32)
    cover[rows, columns] = alpha
    return cover


def _paint_clutter(canvas: Array, clutter: Clutter, x: Array, y: Array, side: int) -> tuple[slice, slice, Array]:
    """Paints a distractor; returns the window it lies in and its cover there."""
    centre = (clutter.centre[0] * len(x) / side, clutter.centre[1] * len(y) / side)
    reach = clutter.length / 2 + clutter.width * (1 if clutter.length else 2) + 1 / side
    rows, columns, u, v = _window(x, y, centre, clutter.angle, reach)
    if clutter.length:
        distance = np.hypot(np.maximum(np.abs(u) - clutter.length / 2, 0), v) - clutter.width / 2
    else:
        turn = np.arctan2(v, u)
        lobes = [a * np.cos(k * turn + p) for k, a, p in zip((2, 3, 5), *clutter.lobes, strict=True)]
        distance = np.hypot(u, v) - clutter.width * (1 + lobes[0] + lobes[1] + lobes[2])
    alpha = np.clip(0.5 - distance * side, 0, 1)
    _blend(canvas, rows, columns, alpha, _colour(clutter.texture, x[columns], y[rows], side))
    return rows, columns, alpha


def _window(
    x: Array, y: Array, centre: tuple[float, float], angle: float, reach: float
) -> tuple[slice, slice, Array, Array]:
    """Rows and columns within `reach` of a point, and coordinates (h, w) there, turned by the angle about it."""
    columns, rows = (
        slice(int(np.searchsorted(axis, c - reach)), int(np.searchsorted(axis, c + reach)))
        for axis, c in zip((x, y), centre, strict=True)
    )
    right, down = x[columns] - np.float32(centre[0]), (y[rows] - np.float32(centre[1]))[:, None]
    c, s = cos(angle), sin(angle)
    return rows, columns, c * right + s * down, c * down - s * right


def _blend(canvas: Array, rows: slice, columns: slice, alpha: Array, colour: Array) -> None:
    part = canvas[:, rows, columns]
    part += alpha * (colour - part)


def _colour(texture: Texture, x: Array, y: Array, side: int) -> Array:
    """Colours (3, h, w) of a texture at the pixels with the coordinates x (w,) and y (h,)."""
    near, far = texture.colours[:, :, None, None]
    return near + _pattern(texture, x, y, side) * (far - near)


def _pattern(texture: Texture, x: Array, y: Array, side: int) -> Array:
    """Values (h, w) in 0..1 of a texture's pattern."""
    if texture.kind == "plain":
        return np.zeros((len(y), len(x)), np.float32)
    if texture.kind == "waves":
        along_x, along_y, amplitude, phase = texture.waves
        rows = amplitude * np.exp(1j * (2 * np.float32(pi) * y[:, None] * along_y + phase))
        return np.clip(0.5 + (rows @ np.exp(2j * np.float32(pi) * along_x[:, None] * x)).real, 0, 1)
    c, s = cos(texture.angle), sin(texture.angle)
    u, v = c * x + s * y[:, None], c * y[:, None] - s * x
    if texture.kind == "gradient":
        return 0.5 + 0.5 * np.sin(pi * u + np.float32(texture.phase[0]))
    turn = 2 * pi * texture.frequency
    sharp = side / turn  # an edge is one pixel wide: the sine's slope at its zero is `turn`
    first, second = (np.sin(turn * w + np.float32(p)) for w, p in zip((u, v), texture.phase, strict=True))
    if texture.kind == "stripes":
        return np.clip(0.5 + sharp * first, 0, 1)
    if texture.kind == "dots":
        return np.clip(0.5 + sharp * (first + second - 0.7), 0, 1)
    first, second = (np.clip(0.5 + sharp * w, 0, 1) for w in (first, second))
    return first * second + (1 - first) * (1 - second)

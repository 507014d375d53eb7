"""Steps and attacks within a band of frequencies: does what a filter takes from the gradient move the decision?

The paper calls the high frequencies of gradients noise (§4.2). Noise would not move the network: so step along the part
of the gradient above and below a cutoff, equally far, and see what the label's score does and when the answer changes.
Lengths ‖ε‖ are L2 over all of a picture's values, of pixels in 0..1 where the model says its std, else of its input;
pictures are not clipped to the range of pixels, as clipping would bring back the other band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gradspec._checks import check_cutoff, check_positive, check_whole
from gradspec.engine import Engine, Pictures
from gradspec.fourier import FilterShape, low_pass, low_pass_mask
from gradspec.randomness import generator
from gradspec.targets import Target, label_logit

Part = Literal["all", "low", "high"]

REACH = 2.5  # lengths of all steps of an attack over its radius (Madry et al. 2018, their code)


@dataclass(frozen=True)
class Band:
    """What a low-pass filter keeps of maps (..., H, W), what it takes, or all: maps -> maps of the same shape.

    The two parts add up to the maps; with the shapes "disk" and "square" they are orthogonal.

    Args:
        part: "low": up to the cutoff; "high": above it; "all".
        cutoff: σ in cycles/image; without one nothing is above it.
        shape: Of the filter.

    Raises:
        ValueError: For another part or shape, a negative cutoff.

    Example:
        >>> wave = torch.cos(torch.arange(8) * torch.pi / 4).expand(8, 8)  # one cycle/image
        >>> torch.allclose(Band("high", 0)(wave + 3), wave, atol=1e-6), Band("low", 0)(wave + 3).unique().round()
        (True, tensor([3.]))
    """

    part: Part = "all"
    cutoff: float | None = None
    shape: FilterShape = "disk"

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise ValueError(f"Expected a part of {', '.join(get_args(Part))}, got {self.part!r}.")
        low_pass_mask(1, 1, check_cutoff(self.cutoff), self.shape)  # raises

    def __call__(self, maps: Tensor) -> Tensor:
        """Returns the band's part of maps (..., H, W)."""
        if self.part == "all":
            return maps
        low = low_pass(maps, self.cutoff, self.shape)
        return low if self.part == "low" else maps - low


class Answers(NamedTuple):
    """What the network says of pictures after their steps, each (N, V): of the label, and label less best other."""

    logit: Tensor
    probability: Tensor
    margin: Tensor

    @property
    def flipped(self) -> Tensor:
        """Whether another class is the network's answer (N, V)."""
        return self.margin < 0


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the label's logit less the largest of the others (N,): below 0 the network answers another class.

    Args:
        logits: z (N, K).
        labels: y (N,), int64.

    Example:
        >>> label_margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    others = logits.scatter(1, labels[:, None], -math.inf)
    return label_logit(logits, labels) - others.amax(1)


def power_share(maps: Tensor, band: Band) -> Tensor:
    """Returns which share of each picture's squared norm, DC included, is in a band (N,), float64; NaN of zeros.

    Args:
        maps: (N, ..., H, W).
        band: Of which part.

    Example:
        >>> power_share(torch.ones(2, 3, 8, 8), Band("low", 0)).tolist()
        [1.0, 1.0]
    """
    exact = maps.double()
    return band(exact).flatten(1).square().sum(1) / exact.flatten(1).square().sum(1)


def unit(maps: Tensor) -> Tensor:
    """Returns maps (..., C, H, W) of norm 1 over the last three dimensions; what is zero stays zero."""
    norm = maps.flatten(-3).norm(dim=-1)[..., None, None, None]
    return maps / norm.clamp_min(torch.finfo(maps.dtype).tiny)


def pixel_gradients(engine: Engine, pictures: Pictures, target: Target = label_logit) -> Tensor:
    """Returns the target's gradient with respect to pixels (N, C, H, W): that of the input times `engine.scale`.

    Args:
        engine: What runs the network.
        pictures: Of `engine.groups`.
        target: (logits, labels) -> (N,).
    """
    drawn = engine.gradients(pictures, 1, lambda i, j: pictures.images[i], target)
    return torch.cat([found.gradients for found in drawn]) * engine.scale(pictures.images.shape[1])


def random_directions(pictures: Pictures, band: Band, *, seed: int = 0) -> Tensor:
    """Returns a direction (N, C, H, W) of norm 1 for each picture, uniform among those in a band.

    It depends on the seed and the picture's id alone; those of all bands are parts of the same white noise.

    Args:
        pictures: Of `engine.groups`.
        band: Of the noise.
        seed: Of the noise.
    """
    shape = pictures.images.shape[1:]
    noise = [torch.randn(shape, dtype=torch.float64, generator=generator(seed, "band", i)) for i in pictures.ids]
    return unit(band(torch.stack(noise))).to(pictures.images)


def answers(engine: Engine, pictures: Pictures, steps: Tensor) -> Answers:
    """Returns what the network says of each picture after each of its steps.

    Args:
        engine: What runs the network.
        pictures: Of `engine.groups`.
        steps: ε (N, V, C, H, W) in pixels.
    """
    moved = _moved(engine, pictures, torch.arange(len(steps)).repeat_interleave(steps.shape[1]), steps.flatten(0, 1))
    logits = engine.logits(moved)
    values = (
        label_logit(logits, moved.labels),
        logits.softmax(1).gather(1, moved.labels[:, None])[:, 0],
        label_margin(logits, moved.labels),
    )
    return Answers(*(value.view(steps.shape[:2]) for value in values))


def flip_radii(
    engine: Engine, pictures: Pictures, directions: Tensor, radii: Sequence[float], *, halvings: int = 4
) -> Tensor:
    """Returns how far to go along each direction until the network's answer is not the label (N, V), float64.

    It is the first of the radii that flips the answer, made smaller by halving the ratio to the one before it; infinite
    where none flips it. An answer that flips and returns between two radii is not seen.

    Args:
        engine: What runs the network.
        pictures: Of `engine.groups`; the labels are the network's answers, else 0 or what is next to it is found.
        directions: (N, V, C, H, W) of norm 1, in pixels.
        radii: Where to look first.
        halvings: How often the interval is halved.

    Raises:
        ValueError: For no radii, radii that are not above 0.
    """
    check_whole(0, halvings=halvings)
    wanted = _checked(radii)
    owners = torch.arange(len(directions)).repeat_interleave(directions.shape[1])
    lines = directions.flatten(0, 1)
    below, above = torch.zeros(len(lines), dtype=torch.float64), torch.full((len(lines),), math.inf).double()

    def look(which: Tensor, at: Tensor) -> None:
        if len(which):
            steps = at[:, None, None, None].to(lines) * lines[which]
            hit = answers(engine, _some(pictures, owners[which]), steps[:, None]).flipped[:, 0].cpu()
            above[which[hit]], below[which[~hit]] = at[hit], at[~hit]

    for radius in wanted:
        still = above.isinf().nonzero().flatten()
        look(still, torch.full((len(still),), radius, dtype=torch.float64))
    for _ in range(halvings):
        found = above.isfinite().nonzero().flatten()
        start = torch.where(below > 0, below, above / 4)  # whose middle is half of it
        look(found, (start * above).sqrt()[found])
    return above.view(directions.shape[:2])


def attack(
    engine: Engine, pictures: Pictures, bands: Sequence[Band], radii: Sequence[float], *, steps: int = 5,
    target: Target = label_margin,
) -> Tensor:  # fmt: skip
    """Returns perturbations (N, B, R, C, H, W) in pixels that make the target small, each within a band and a ball.

    Projected gradient descent (Madry et al. 2018, L2) from the picture itself: each step follows the part of the
    gradient that is in the band, so that the perturbation never leaves it. N·(1 + B·R·(steps − 1)) gradients.

    Args:
        engine: What runs the network.
        pictures: Of `engine.groups`.
        bands: Whose perturbations.
        radii: Largest norms.
        steps: Gradients in a row; together they are 2.5 times as long as the radius.
        target: What is made small.

    Raises:
        ValueError: For no radii, radii that are not above 0, fewer than one step.
    """
    check_whole(steps=steps)
    n, reach = len(pictures.images), torch.tensor(_checked(radii)).to(pictures.images)[:, None, None, None]
    gradient = pixel_gradients(engine, pictures, target)[:, None, None]  # (N, 1, 1, C, H, W): that of all
    owners = torch.arange(n).repeat_interleave(len(bands) * len(reach))
    found = torch.zeros(n, len(bands), len(reach), *pictures.images.shape[1:]).to(pictures.images)
    for k in range(steps):
        if k:
            moved = _moved(engine, pictures, owners, found.flatten(0, 2))
            gradient = pixel_gradients(engine, moved, target).view_as(found)
        for b, band in enumerate(bands):
            part = band(gradient[:, b if k else 0])  # (N, R or 1, C, H, W)
            ahead = found[:, b] - REACH / steps * reach * unit(part)
            norm = ahead.flatten(-3).norm(dim=-1)[..., None, None, None]
            found[:, b] = ahead * (reach / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    return found


def _moved(engine: Engine, pictures: Pictures, owners: Tensor, steps: Tensor) -> Pictures:
    some = _some(pictures, owners)
    return some._replace(images=some.images + engine.scale(steps.shape[1]) * steps)


def _some(pictures: Pictures, which: Tensor) -> Pictures:
    places = which.to(pictures.images.device)
    return Pictures(pictures.images[places], pictures.labels[places], [pictures.ids[i] for i in which.tolist()])


def _checked(radii: Sequence[float]) -> list[float]:
    if len(radii) == 0:
        raise ValueError("Expected at least one radius, got none.")
    for radius in radii:
        check_positive(radius=radius)
    return sorted(radii)

"""Deletion and insertion (Petsiuk, Das and Saenko 2018, RISE, BMVC) and their difference, faithfulness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from gradspec._checks import check_whole
from gradspec.attributions.base import Maps
from gradspec.engine import Baseline, Engine, Pictures
from gradspec.metrics.base import Metric, Rows, whole_scores
from gradspec.metrics.masks import distinct, mask_keys, ordering, places_in, tie_orders
from gradspec.targets import Score, label_probability

Blank = Baseline | Literal["blur"]

BLUR = 5 / 224  # standard deviation of the blurred baseline, of the shorter side: Petsiuk's 5 px at 224


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores of pictures of which more and more pixels are replaced, or put in.

    Attributes:
        fractions: Share of the pixels that were replaced or put in (S + 1,), 0 to 1, float64.
        scores: Score at each (N, S + 1), float32; NaN for a map that cannot be scored.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """Area under each curve (N,), by the trapezoid rule."""
        return torch.trapezoid(self.scores.double(), self.fractions).float()


class BothCurves(NamedTuple):
    """Curves of the same pictures and maps."""

    deletion: Curves
    insertion: Curves


@dataclass(frozen=True)
class Replacing(Metric):
    """What metrics of the areas under curves of replaced pixels share: they may be scored together (`areas`).

    Attributes:
        inserts: Which curves it is made of: False where pixels are replaced, True where they are put in.
    """

    inserts: ClassVar[tuple[bool, ...]]
    score: Score = label_probability
    steps: int = 10
    baseline: Blank = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(2, steps=self.steps)  # the ends of the curve are the same for every map
        if isinstance(self.baseline, str) and self.baseline not in ("mean", "blur"):
            raise ValueError(f"Expected a baseline 'mean', 'blur' or a pixel value, got {self.baseline!r}.")

    @property
    def settings(self) -> tuple[Score, int, Blank, int]:
        """What the curves depend on: metrics of equal settings may be scored together."""
        return self.score, self.steps, self.baseline, self.seed

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes a picture takes, fewer where its ends are known; one more for all."""
        return self.passes_of_several(1, height, width)

    def passes_of_several(self, maps: int, height: int, width: int) -> int:
        """Returns how many forward passes so many maps of a picture take, fewer where their masks are equal."""
        return maps * len(self.inserts) * (self.steps - 1) + 1 + (self.baseline == "blur")

    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns each picture's value (N,), as `Metric`."""
        return self.several(model, images, labels, {"": maps}, ids=ids)[""]

    def several(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Mapping[str, Maps], *,
        ids: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Returns the values of several maps, as `Metric`: equal masks of a picture are scored once."""
        return areas([self], model, images, labels, maps, ids=ids)[0]

    @abstractmethod
    def value(self, areas: Mapping[bool, Tensor]) -> Tensor:
        """Returns the metric (N,) from the areas of its curves (N,), by whether pixels are put in."""

    def _curves(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Sequence[Maps],
        ids: Sequence[str] | None, inserts: tuple[bool, ...],
    ) -> list[dict[bool, Curves]]:  # fmt: skip
        """The curves of each of several maps."""

        def find(engine: Engine, pictures: Pictures, rows: Rows) -> Tensor:
            return self._points(engine, pictures, rows, inserts)

        scores = self._over_several(model, images, labels, maps, ids, find, shape=(len(inserts), self.steps + 1))
        pixels = images.shape[-2] * images.shape[-1]
        fractions = (self._counts(pixels).double() / pixels).to(images.device)
        return [
            {insert: Curves(fractions, curve) for insert, curve in zip(inserts, of_map.unbind(1), strict=True)}
            for of_map in scores
        ]

    def _counts(self, pixels: int) -> Tensor:
        return torch.tensor([point * pixels // self.steps for point in range(self.steps + 1)])

    def _points(self, engine: Engine, pictures: Pictures, rows: Rows, inserts: tuple[bool, ...]) -> Tensor:
        """The curves of some maps (M, inserts, steps + 1); the ends are the same two pictures for all of a picture."""
        blank = self._blank(engine, pictures.images)
        whole = whole_scores(engine, pictures.images, pictures.labels, self.score)[rows.which]
        empty = self._blank_scores(engine, pictures, blank)[rows.which]
        inner = self._inner(engine, pictures, rows, blank, inserts)
        ends = [(empty, whole) if insert else (whole, empty) for insert in inserts]
        curves = zip(ends, inner.double().unbind(1), strict=True)
        return torch.stack([torch.cat([a[:, None], points, b[:, None]], 1) for (a, b), points in curves], 1)

    def _inner(
        self, engine: Engine, pictures: Pictures, rows: Rows, blank: Tensor, inserts: tuple[bool, ...]
    ) -> Tensor:
        """The points between the ends (M, inserts, steps - 1): each distinct mask of a picture is a job."""
        images = pictures.images.contiguous(memory_format=torch.channels_last)  # as the network takes them
        ties = tie_orders(pictures.ids, rows.maps[0].numel(), self.seed).to(rows.which.device)
        order = ordering(rows.maps, ties[rows.which])
        ranks = places_in(order).view_as(rows.maps)
        inner = self._counts(order.shape[1])[1:-1].to(ranks)
        counts = inner.repeat(len(inserts))
        keep = torch.tensor(inserts, device=ranks.device).repeat_interleave(len(inner))
        jobs, found = distinct(mask_keys(order, rows.which, inner, inserts).flatten())
        row, point = jobs // len(counts), jobs % len(counts)
        picture = rows.which[row]

        def make(i: Tensor, j: Tensor) -> Tensor:
            replaced = (ranks[row[i]] < counts[point[i], None, None]) != keep[point[i], None, None]
            return torch.where(replaced[:, None], blank if len(blank) == 1 else blank[picture[i]], images[picture[i]])

        # a "picture" for each job, of which the engine needs the number, the shape and the label alone
        asked = Pictures(images[:1].expand(len(jobs), -1, -1, -1), pictures.labels[picture], [""] * len(jobs))
        return engine.scores(asked, 1, make, self.score)[found, 0].view(-1, len(inserts), self.steps - 1)

    def _blank(self, engine: Engine, images: Tensor) -> Tensor:
        """What pixels are replaced by: (1, C, 1, 1), or the blurred pictures (n, C, H, W)."""
        if self.baseline == "blur":
            return blurred(images)
        return engine.baseline(self.baseline, images.shape[1])[None]

    def _blank_scores(self, engine: Engine, pictures: Pictures, blank: Tensor) -> Tensor:
        if self.baseline == "blur":
            return whole_scores(engine, blank, pictures.labels, self.score)
        shape = pictures.images.shape[1:]
        one = Pictures(blank.expand(1, *shape), pictures.labels[:1], [""])
        logits = engine.fact(("blank", self.baseline, shape), lambda: engine.logits(one))
        return self.score(logits.repeat(len(pictures.labels), 1), pictures.labels).double()


@dataclass(frozen=True)
class _OneCurve(Replacing):
    def value(self, areas: Mapping[bool, Tensor]) -> Tensor:
        """Returns the area under the one curve (N,)."""
        return areas[self.inserts[0]]

    def curves(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, *, ids: Sequence[str] | None = None
    ) -> Curves:
        """Returns the curves themselves, from the first end to the last; arguments as `Metric`."""
        return self._curves(model, images, labels, [maps], ids, self.inserts)[0][self.inserts[0]]


@dataclass(frozen=True)
class Deletion(_OneCurve):
    """Deletion (Petsiuk 2018): area under the score of the picture as its pixels are replaced, most important first.

    Point j of 0..steps replaces the ⌊j·HW/steps⌋ pixels of highest signed value by the baseline; the area is that of
    the trapezoid rule over the fraction of pixels, so for a probability in 0..1: the lower, the better. Xplique
    gives all steps the same weight, which is the same where the pixels are a multiple of the steps, and the mean over
    pictures. Pixels of equal value are ordered at random.

    Args:
        score: (logits (N, K), labels (N,)) -> (N,).
        steps: Equal parts of the pixels.
        baseline: "mean", the model's own (0 in its input), a pixel value in 0..1, or "blur": the picture under a
            Gaussian of 5/224 of its shorter side (Petsiuk's 5 px), cut at three of them.
        seed: Of the order of ties, which depends on it and on the picture's id.

    Raises:
        ValueError: For fewer than two steps and another word for a baseline.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).eval()
        >>> net[1].weight.data = torch.ones(1, 4)  # the sum of the pixels
        >>> picture, logit = torch.tensor([[[[3.0, 1.0], [0.0, 0.0]]]]), lambda z, y: z[:, 0]
        >>> curves = Deletion(logit, steps=4).curves(net, picture, torch.tensor([0]), picture[:, 0])
        >>> curves.scores.tolist(), curves.area.tolist()  # (4 / 2 + 1) / 4
        ([[4.0, 1.0, 0.0, 0.0, 0.0]], [0.75])
    """

    higher_is_better: ClassVar[bool] = False
    inserts: ClassVar[tuple[bool, ...]] = (False,)


@dataclass(frozen=True)
class Insertion(_OneCurve):
    """Insertion (Petsiuk 2018): area under the score of the baseline as the pixels are put in, most important first.

    Point j of 0..steps shows the ⌊j·HW/steps⌋ pixels of highest signed value on the baseline; the area is that of the
    trapezoid rule over the fraction of pixels, so for a probability in 0..1: the higher, the better. Petsiuk starts
    from "blur"; our default is Xplique's, the same baseline as in deletion.

    Args:
        score: (logits (N, K), labels (N,)) -> (N,).
        steps: Equal parts of the pixels.
        baseline: "mean", a pixel value in 0..1, or "blur", as in `Deletion`.
        seed: Of the order of ties, which depends on it and on the picture's id.

    Raises:
        ValueError: For fewer than two steps and another word for a baseline.
    """

    inserts: ClassVar[tuple[bool, ...]] = (True,)


@dataclass(frozen=True)
class Faithfulness(Replacing):
    """Faithfulness F: insertion − deletion, for a probability in −1..1: the higher, the better (the paper's §5).

    Both from one ranking, one pair of ends and shared batches: 2·(steps − 1) + 1 passes for a picture, and one for all.

    Args:
        score: (logits (N, K), labels (N,)) -> (N,).
        steps: Equal parts of the pixels.
        baseline: "mean", a pixel value in 0..1, or "blur", as in `Deletion`.
        seed: Of the order of ties, which depends on it and on the picture's id.

    Raises:
        ValueError: For fewer than two steps and another word for a baseline.
    """

    inserts: ClassVar[tuple[bool, ...]] = (False, True)

    def value(self, areas: Mapping[bool, Tensor]) -> Tensor:
        """Returns insertion − deletion (N,)."""
        return areas[True] - areas[False]

    def curves(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, *, ids: Sequence[str] | None = None
    ) -> BothCurves:
        """Returns the curves of `Deletion` and `Insertion`, for the price of one; arguments as `Metric`."""
        found = self._curves(model, images, labels, [maps], ids, self.inserts)[0]
        return BothCurves(found[False], found[True])


def areas(
    metrics: Sequence[Replacing], model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Mapping[str, Maps],
    *, ids: Sequence[str] | None = None,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """Returns the values of metrics of equal settings from one set of curves, for each the (N,) of every map.

    Args:
        metrics: `Deletion`, `Insertion`, `Faithfulness` of the same score, steps, baseline and seed.
        model: A classifier, or an `Engine` made of one.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), int64.
        maps: Name -> φ (N, H, W) or (N, C, H, W).
        ids: A name for each picture; None: a hash of the picture.

    Raises:
        TypeError, ValueError: As `Metric`; for metrics of different settings.
    """
    if any(metric.settings != metrics[0].settings for metric in metrics):
        raise ValueError("Expected metrics of the same score, steps, baseline and seed, to share their curves.")
    if not maps:
        return [{} for _ in metrics]
    inserts = tuple(sorted({insert for metric in metrics for insert in metric.inserts}))
    drawn = max(metrics, key=lambda metric: len(metric.inserts))
    if len(drawn.inserts) < len(inserts):
        drawn = Faithfulness(*drawn.settings)
    curves = drawn._curves(model, images, labels, list(maps.values()), ids, inserts)
    found = [{insert: curve.area for insert, curve in of_map.items()} for of_map in curves]
    return [dict(zip(maps, map(metric.value, found), strict=True)) for metric in metrics]


def blurred(images: Tensor) -> Tensor:
    """Returns pictures (N, C, H, W) under a Gaussian of `BLUR` of their shorter side, cut at three sigma."""
    sides = images.shape[-2:]
    sigma = BLUR * min(sides)
    tall, wide = (2 * min(ceil(3 * sigma), side - 1) + 1 for side in sides)  # mirrored at the edge, so at most once
    return gaussian_blur(gaussian_blur(images, [wide, 1], [sigma, sigma]), [1, tall], [sigma, sigma])

"""μFidelity (Bhatt, Weller and Moura 2020, Evaluating and aggregating feature-based model explanations, IJCAI)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gradspec._checks import check_whole
from gradspec.attributions.base import Maps
from gradspec.data import picture_id
from gradspec.engine import Baseline, Engine, Pictures
from gradspec.metrics.base import Metric, Rows, whole_scores
from gradspec.randomness import generator
from gradspec.targets import Score, label_probability


@dataclass(frozen=True)
class MuFidelity(Metric):
    """μFidelity: over subsets S, the rank correlation of the drop f(x) − f(x_S) with Σ_{S} φ (Bhatt 2020).

    A subset is of cells of a grid over the picture, each drawn by itself; x_S has the baseline in them. Spearman's
    correlation with average ranks for ties, −1..1: the higher, the better; NaN where the drop or the sum is the same
    for every subset. Sums are rounded to float32, so that those that differ by rounding alone are ties. Where φ ≥ 0
    some of it is the size of S, with which both sides grow: uniform noise has 0.27 on the demo pictures, 0.12 where
    `exact`, normal noise 0.

    Args:
        score: f, (logits (N, K), labels (N,)) -> (N,).
        grid: Cells along each side of the picture.
        share: Probability that a cell is in a subset.
        subsets: How many are drawn.
        baseline: What replaces their pixels: "mean", the model's own (0 in its input), or a pixel value in 0..1.
        seed: Of the subsets, which depend on it and on the picture's id.
        exact: Subsets of exactly ⌊share·grid²⌋ + 1 cells, 17 of 81, as in Xplique 1.0.
        shared: The same subsets for all pictures, as in Xplique 1.0.

    Raises:
        ValueError: For a grid under 1, a share that is not between 0 and 1, fewer than two subsets.
    """

    score: Score = label_probability
    grid: int = 9
    share: float = 0.2
    subsets: int = 200
    baseline: Baseline = "mean"
    seed: int = 0
    exact: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        check_whole(grid=self.grid)
        check_whole(2, subsets=self.subsets)
        if not 0 < self.share < 1:
            raise ValueError(f"Expected a share between 0 and 1, got {self.share}.")

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes one picture takes, one fewer where the engine knows its score."""
        return self.subsets + 1

    def passes_of_several(self, maps: int, height: int, width: int) -> int:
        """Returns how many forward passes so many maps of one picture take: as many as one."""
        return self.passes(height, width)

    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns the correlation for each picture (N,), as `Metric`."""
        return self.several(model, images, labels, {"": maps}, ids=ids)[""]

    def several(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Mapping[str, Maps], *,
        ids: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Returns the values of several maps, as `Metric`: a picture's drops, of which no map is part, are asked once.

        Also by later calls with the same engine, picture, label and id.
        """
        if not maps:
            return {}
        undefined = "have the same drop or the same sum for every subset"
        found = self._over_several(model, images, labels, list(maps.values()), ids, self._values, undefined=undefined)
        return dict(zip(maps, found, strict=True))

    def cells(self, ids: Sequence[str]) -> Tensor:
        """Returns which cells each subset holds, of each picture (N, subsets, grid²), bool, by rows of the grid.

        Args:
            ids: A name for each picture; its own alone matters, or none where `shared`.
        """
        if self.shared:
            return self._drawn("").expand(len(ids), -1, -1)
        return torch.stack([self._drawn(name) for name in ids])

    def _drawn(self, name: str) -> Tensor:
        cells = self.grid**2
        drawn = torch.rand(self.subsets, cells, dtype=torch.float32, generator=generator(self.seed, "subsets", name))
        return drawn.argsort(1) <= int(cells * self.share) if self.exact else drawn < self.share

    def _values(self, engine: Engine, pictures: Pictures, rows: Rows) -> Tensor:
        cells = self.cells(pictures.ids).to(pictures.images.device)
        where = grid_cells(self.grid, *pictures.images.shape[-2:]).to(pictures.images.device)
        drops = self._drops(engine, pictures, cells, where)
        amounts = torch.zeros(len(rows.maps), self.grid**2, dtype=torch.float64, device=where.device)
        amounts.index_add_(1, where.flatten(), rows.maps.flatten(1).double())
        _, exponents = torch.frexp(amounts.abs().amax(1, keepdim=True))
        amounts = torch.ldexp(amounts, -exponents)  # a power of two changes no rounding
        # a map at a time: of many the cells of all subsets would not fit
        sums = torch.stack([(cells[k] * one).sum(1) for k, one in zip(rows.which.tolist(), amounts, strict=True)])
        return rank_correlation(drops[rows.which], sums.float())

    def _drops(self, engine: Engine, pictures: Pictures, cells: Tensor, where: Tensor) -> Tensor:
        """f(x) − f(x_S) of each picture (n, subsets), float64; those that the engine knows are not asked again."""
        whole = whole_scores(engine, pictures.images, pictures.labels, self.score)
        known = self._known(engine, pictures.images.shape[1:])
        content = [picture_id(image) for image in pictures.images]
        keys = list(zip(content, pictures.labels.tolist(), pictures.ids, strict=True))
        scores = whole.tolist()
        # a score that has changed since is seen by the whole picture's
        new = [k for k, key in enumerate(keys) if key not in known or known[key][0] != scores[k]]
        if new:
            part = Pictures(pictures.images[new], pictures.labels[new], [pictures.ids[k] for k in new])
            found = self._subset_scores(engine, part, cells[new], where).cpu()
            known.update({keys[k]: (scores[k], values) for k, values in zip(new, found, strict=True)})
        return whole[:, None] - torch.stack([known[key][1] for key in keys]).to(whole.device)

    def _known(self, engine: Engine, shape: Sequence[int]) -> dict[Any, tuple[float, Tensor]]:
        """By picture, label and id: the score of the picture, and those of its subsets (subsets,)."""
        if not isinstance(self.score, Hashable):
            return {}
        return engine.fact(("subsets", self, tuple(shape)), dict)

    def _subset_scores(self, engine: Engine, pictures: Pictures, cells: Tensor, where: Tensor) -> Tensor:
        """f(x_S) (n, subsets)."""
        images = pictures.images.contiguous(memory_format=torch.channels_last)  # as the network takes them
        blank = engine.baseline(self.baseline, images.shape[1])

        def make(i: Tensor, j: Tensor) -> Tensor:
            return torch.where(cells[i, j][:, where][:, None], blank, images[i])

        return engine.scores(pictures, self.subsets, make, self.score)


def grid_cells(grid: int, height: int, width: int) -> Tensor:
    """Returns the cell that each pixel is in (H, W), int64, 0 to grid² − 1 by rows: torch's "nearest-exact"."""
    cells = torch.arange(grid**2, dtype=torch.float64).view(1, 1, grid, grid)
    return interpolate(cells, (height, width), mode="nearest-exact")[0, 0].long()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Returns Spearman's correlation of each row (N,), float64; NaN where one side is constant.

    Args:
        a: (N, V).
        b: (N, V).

    Example:
        >>> rank_correlation(torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([[0.1, 0.3, 0.2, 0.9]])).tolist()
        [0.8]
    """
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(a), _ranks(b)))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()  # 0 / 0 where one is constant


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 in each row, float64; equal values share the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort(1).values
    first, last = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True) - 1
    return (first + last).double() / 2

"""Attributions that know no network: what an explanation must beat to have explained anything (SPEC §6)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from gradspec._checks import check_images, check_labels, check_positive
from gradspec.attributions import Attribution
from gradspec.data import names_of
from gradspec.engine import Engine, Pictures
from gradspec.randomness import generator

Kind = Literal["low", "shuffled", "white"]

SPREAD = 0.15  # of the shorter side: 0.35 of it at half height


@dataclass(frozen=True)
class _Control(Attribution):
    family: ClassVar[Any] = None  # it knows no network

    def __call__(
        self, model: nn.Module | Engine | None, images: Tensor, labels: Tensor, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns one map for each picture (N, H, W), as `Attribution`; the model is not looked at and may be None."""
        check_images(images)
        check_labels(torch.as_tensor(labels), len(images))
        return self._drawn(names_of(images, ids), *images.shape[-2:]).to(images.device)

    def passes(self, height: int, width: int) -> int:
        """Returns 0."""
        return 0

    def _maps(self, engine: Engine, pictures: Pictures) -> Tensor:
        images = pictures.images
        return self._drawn(pictures.ids, *images.shape[-2:]).to(images.device)

    @abstractmethod
    def _drawn(self, ids: Sequence[str], height: int, width: int) -> Tensor:
        """The maps (N, H, W), float32, on the CPU."""


@dataclass(frozen=True)
class CentrePrior(_Control):
    """One fixed centred Gaussian for every picture; made by `centre_prior`.

    Args:
        spread: Standard deviation as a share of the shorter side.

    Raises:
        ValueError: For a spread that is not above 0.
    """

    spread: float = SPREAD

    def __post_init__(self) -> None:
        check_positive(spread=self.spread)

    def _drawn(self, ids: Sequence[str], height: int, width: int) -> Tensor:
        one = gaussian_blob(height, width, ((height - 1) / 2, (width - 1) / 2), self.spread)
        return one.float().repeat(len(ids), 1, 1)


@dataclass(frozen=True)
class RandomMaps(_Control):
    """Random maps, each from its picture's id alone; made by `random_maps`.

    Args:
        kind: "low", "shuffled" or "white".
        seed: Of the places, the order and the noise.
        spread: Standard deviation of the blob as a share of the shorter side; of no account for "white".

    Raises:
        ValueError: For another kind, or a spread that is not above 0.
    """

    kind: Kind
    seed: int = 0
    spread: float = SPREAD

    def __post_init__(self) -> None:
        check_positive(spread=self.spread)
        if self.kind not in get_args(Kind):
            raise ValueError(f"Expected random maps 'low', 'shuffled' or 'white', got {self.kind!r}.")

    def _drawn(self, ids: Sequence[str], height: int, width: int) -> Tensor:
        return torch.stack([self._one(name, height, width) for name in ids])

    def _one(self, name: str, height: int, width: int) -> Tensor:
        if self.kind == "white":
            return torch.randn(height, width, dtype=torch.float32, generator=generator(self.seed, "white map", name))
        blob = random_blob(height, width, self.spread, self.seed, name).float()
        if self.kind == "low":
            return blob
        order = torch.randperm(height * width, generator=generator(self.seed, "shuffled map", name))
        return blob.flatten()[order].view(height, width)


def centre_prior(spread: float = SPREAD) -> CentrePrior:
    """Returns the attribution that shows one fixed centred Gaussian, whatever the network and the picture.

    Photographs have their object in the middle, so that it is what a smoothed map must beat; the paper lacks it.

    Args:
        spread: Standard deviation as a share of the shorter side.

    Raises:
        ValueError: For a spread that is not above 0.

    Example:
        >>> maps = centre_prior()(None, torch.rand(2, 3, 5, 7), torch.tensor([0, 1]))
        >>> maps.shape, divmod(int(maps[1].argmax()), 7)
        (torch.Size([2, 5, 7]), (2, 3))
    """
    return CentrePrior(spread)


def random_maps(kind: Kind, seed: int = 0, spread: float = SPREAD) -> RandomMaps:
    """Returns the attribution that shows random maps of low or high frequencies (paper table 4, fig. A.11).

    - "low": a Gaussian of height 1 at a random place of the picture.
    - "shuffled": its twin of high frequencies, the very same values at random places.
    - "white": normal noise of mean 0, so that no metric finds the size of a masked part in it.

    Args:
        kind: One of the three.
        seed: Of the places, the order and the noise, which depend on it and on the picture's id.
        spread: Standard deviation of the blob as a share of the shorter side; of no account for "white".

    Raises:
        ValueError: For another kind, or a spread that is not above 0.

    Example:
        >>> case = None, torch.rand(2, 3, 5, 7), torch.tensor([0, 1])
        >>> low, high = random_maps("low")(*case), random_maps("shuffled")(*case)
        >>> torch.equal(low.flatten(1).sort(1).values, high.flatten(1).sort(1).values), torch.equal(low, high)
        (True, False)
    """
    return RandomMaps(kind, seed, spread)


def random_blob(height: int, width: int, spread: float, seed: int, name: str) -> Tensor:
    """Returns a Gaussian (H, W), float64, at a random place of the picture of that name."""
    at = torch.rand(2, dtype=torch.float64, generator=generator(seed, "blob", name)).tolist()
    return gaussian_blob(height, width, (at[0] * (height - 1), at[1] * (width - 1)), spread)


def gaussian_blob(height: int, width: int, centre: tuple[float, float], spread: float) -> Tensor:
    """Returns a Gaussian of height 1 (H, W), float64.

    Args:
        height: H in pixels.
        width: W in pixels.
        centre: Row and column, which need not be whole.
        spread: Standard deviation as a share of the shorter side.
    """
    rows = torch.arange(height, dtype=torch.float64)[:, None] - centre[0]
    columns = torch.arange(width, dtype=torch.float64) - centre[1]
    return torch.exp(-(rows**2 + columns**2) / (2 * (spread * min(height, width)) ** 2))

"""Stability: how far a map moves when noise is put on the picture (Bhatt, Weller and Moura 2020, IJCAI)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gradspec._checks import check_images, check_positive, check_whole
from gradspec.attributions.base import Attribution, Explain, Maps, explained
from gradspec.engine import GROUP, Engine, Pictures, engine_of
from gradspec.metrics.base import Metric
from gradspec.randomness import generator


class Distances(NamedTuple):
    """Mean distance of each picture's maps (N,), float32: as they are, and over the length of the picture's map."""

    raw: Tensor
    scale_free: Tensor


@dataclass(frozen=True)
class Stability(Metric):
    """Stability (Bhatt 2020): E‖φ(x) − φ(x + ε)‖₂ for uniform noise ε, from 0 up: the lower, the better.

    In units of the map, so that half the map is twice as stable; scale-free it is E‖φ(x) − φ(x + ε)‖₂ / ‖φ(x)‖₂, NaN
    where the map is zero. The norm is over all values, those of each channel where maps keep them. A picture and its
    noisy copies are explained under one id, so with the same random numbers: the distance is that of the input alone.

    Args:
        radius: r, noise in ±r at each value, of pixels in 0..1 where the model says its std.
        samples: Noisy copies of each picture.
        seed: Of the noise, which depends on it and on the picture's id.
        one_sided: Noise in 0..r, as Xplique's (its radius 0.1 of inputs in −1..1 is 0.05 of pixels).
        scale_free: Divide by the length of the picture's map.
        shared: The same noise for all pictures, as in Xplique.
        squared: The mean of the squared distance, as Xplique had it up to 1.3.0, hence the paper.

    Raises:
        ValueError: For a radius or a number of samples that is not positive.
    """

    higher_is_better: ClassVar[bool] = False
    radius: float = 0.05
    samples: int = 20
    seed: int = 0
    one_sided: bool = False
    scale_free: bool = False
    shared: bool = False
    squared: bool = False

    def __post_init__(self) -> None:
        check_positive(radius=self.radius)
        check_whole(samples=self.samples)

    def passes(self, height: int, width: int, attribution: Explain | None = None) -> int:
        """Returns how many forward passes the noisy copies of one picture take; of a foreign method, how many maps."""
        each = attribution.passes(height, width) if isinstance(attribution, Attribution) else 1
        return self.samples * each

    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps | None = None, *,
        ids: Sequence[str] | None = None, attribution: Explain | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the mean distance for each picture (N,), as `Metric`.

        Args:
            model: A classifier, or an `Engine` made of one.
            images: x (N, C, H, W), as the network expects them.
            labels: y (N,), the classes to be explained, int64.
            maps: φ(x) (N, H, W) or (N, C, H, W), this very attribution's maps of these pictures, to save their passes;
                None, which cannot go wrong: they are made.
            ids: A name for each picture, of which random numbers are made; None: a hash of the picture.
            attribution: What explains the noisy copies: gradspec's own, or any (model, images, labels) -> maps, which
                gets the model itself, and `ids` if it takes them.

        Raises:
            TypeError, ValueError: As `Metric`; without an attribution; for one whose maps are of another shape.
        """
        found = self.distances(model, images, labels, maps, ids=ids, attribution=attribution)
        return found.scale_free if self.scale_free else found.raw

    def distances(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps | None = None, *,
        ids: Sequence[str] | None = None, attribution: Explain | None = None,
    ) -> Distances:  # fmt: skip
        """Returns both the raw and the scale-free distances, of the same passes; arguments as for the call."""
        if isinstance(attribution, type) or not (attribution is None or callable(attribution)):
            raise TypeError(f"Expected an attribution such as Saliency(), got {attribution!r}.")
        if attribution is None:
            raise ValueError(
                "Expected an attribution=, got none: stability needs the maps of changed pictures, which stored maps "
                "do not hold."
            )
        engine = engine_of(model)
        check_images(images)
        height, width = images.shape[-2:]
        with engine.task(type(self).__name__, len(images) * self.passes(height, width, attribution)):
            if maps is None:
                maps = torch.cat([explained(engine, attribution, *part) for part in engine.groups(images, labels, ids)])

            def find(engine: Engine, pictures: Pictures, maps: Tensor) -> Tensor:
                return self._distances(engine, pictures, maps, attribution)

            undefined = "have noisy copies whose maps hold NaN or infinite values"
            found = self._over_groups(
                engine, images, labels, maps, ids, find, shape=(2,), reduce=False, undefined=undefined
            )
        return Distances(*found.unbind(1))

    def _distances(self, engine: Engine, pictures: Pictures, maps: Tensor, attribution: Explain) -> Tensor:
        found = []
        for jobs in torch.arange(len(maps) * self.samples).split(GROUP):
            i, j = jobs // self.samples, jobs % self.samples
            copies = self._copies(engine, pictures, i.tolist(), j.tolist())
            moved = explained(engine, attribution, *copies).to(maps.device)
            if moved.shape[1:] != maps.shape[1:]:
                raise ValueError(
                    f"Expected the attribution's maps to be {tuple(maps.shape[1:])} as those of the pictures, "
                    f"got {tuple(moved.shape[1:])}."
                )
            found.append(_length(moved.double() - maps[i.to(maps.device)].double()))
        power = 2 if self.squared else 1
        raw = torch.cat(found).view(len(maps), self.samples).pow(power).mean(1)
        return torch.stack([raw, raw / _length(maps.double()).pow(power)], 1)

    def _copies(self, engine: Engine, pictures: Pictures, which: list[int], draws: list[int]) -> Pictures:
        """Noisy copies of the pictures, under their own ids."""
        ids = [pictures.ids[k] for k in which]
        shape = pictures.images.shape[1:]
        noise = torch.stack([self._noise(name, draw, shape) for name, draw in zip(ids, draws, strict=True)])
        noise = noise.to(pictures.images) * (self.radius * engine.scale(shape[0]))
        return Pictures(pictures.images[which] + noise, pictures.labels[which], ids)

    def _noise(self, name: str, draw: int, shape: Sequence[int]) -> Tensor:
        draws = generator(self.seed, "stability", "" if self.shared else name, draw)
        noise = torch.rand(*shape, dtype=torch.float32, generator=draws)
        return noise if self.one_sided else 2 * noise - 1


def _length(maps: Tensor) -> Tensor:
    return maps.flatten(1).norm(dim=1)

"""SmoothGrad, VarGrad and SquareGrad: three moments of the gradient under noise, of one stream of draws (SPEC §4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gradspec._checks import check_images, check_positive, check_whole
from gradspec.attributions.base import Channels, check_channels, reduced
from gradspec.attributions.filters import UNFILTERED, LowPass, filtered
from gradspec.attributions.white import White
from gradspec.engine import GROUP, VALUES, Engine, Pictures, engine_of
from gradspec.randomness import generator

SUMS = 4 * GROUP * VALUES  # values of one moment held at once: with more than four filters, of fewer pictures


class Moments(NamedTuple):
    """Sums over a picture's draws of the gradient g and of g², float64 (N, C, H, W), and how many there were."""

    first: Tensor
    second: Tensor
    samples: int


@dataclass(frozen=True)
class Noisy(White):
    """An attribution made of moments of the gradient under noise; methods of equal draws can share them.

    Attributes:
        linear: Whether the method is linear in the gradient, so that the filtered mean is the mean of filtered ones.
    """

    linear: ClassVar[bool] = False
    samples: int = 50
    noise: float = 0.1
    seed: int = 0
    shared: bool = False
    channels: Channels = "mean"

    def __post_init__(self) -> None:
        check_channels(self.channels)
        check_whole(samples=self.samples)
        check_positive(noise=self.noise)

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward and backward passes one picture takes."""
        return self.samples

    @property
    def draws(self) -> tuple[object, ...]:
        """What the stream of gradients depends on: methods in which it is equal can share one (`together`)."""
        return (self.target, self.samples, self.noise, self.seed, self.shared)

    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        return of_one_stream([self], engine, pictures, [filters])[0]

    @abstractmethod
    def _of(self, moments: Moments) -> Tensor:
        """What the method makes of the moments, float64 (N, C, H, W)."""

    def _moments(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Moments]:
        """The moments of the gradient for each filter of every draw."""
        images = pictures.images
        scale = self.noise * engine.scale(images.shape[1])

        def make(i: Tensor, j: Tensor) -> Tensor:
            jobs = zip(i.tolist(), j.tolist(), strict=True)
            noise = torch.stack([self._noise(pictures.ids[a], b, images.shape[1:]) for a, b in jobs])
            return images[i] + scale * noise.to(images)

        zeros = torch.zeros_like(images, dtype=torch.float64)
        sums = [Moments(zeros.clone(), zeros.clone(), self.samples) for _ in filters]
        for found in engine.gradients(pictures, self.samples, make, self.target):
            for moments, drawn in zip(sums, filtered(found.gradients, filters), strict=True):
                gradients = drawn.double()
                moments.first.index_add_(0, found.pictures, gradients)
                moments.second.index_add_(0, found.pictures, gradients.square())
        return sums

    def _noise(self, picture: str, index: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(
            *shape, dtype=torch.float32, generator=generator(self.seed, "noise", "" if self.shared else picture, index)
        )


@dataclass(frozen=True)
class SmoothGrad(Noisy):
    """SmoothGrad: the mean of the gradient under noise, E[g] (Smilkov 2017); mean over channels.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        samples: Draws per picture.
        noise: Standard deviation of the normal noise, of pixels in 0..1 where the model says its std.
        seed: Of the noise, which depends on it and on the picture's id; the three methods draw the same.
        shared: The same noise for all pictures, as in the paper's code.
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.
    """

    linear: ClassVar[bool] = True

    def _of(self, moments: Moments) -> Tensor:
        return moments.first / moments.samples


@dataclass(frozen=True)
class SquareGrad(Noisy):
    """SquareGrad: the mean of the squared gradient under noise, E[g²] (Hooker 2019); mean over channels.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        samples: Draws per picture.
        noise: Standard deviation of the normal noise, of pixels in 0..1 where the model says its std.
        seed: Of the noise, which depends on it and on the picture's id; the three methods draw the same.
        shared: The same noise for all pictures, as in the paper's code.
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.
    """

    def _of(self, moments: Moments) -> Tensor:
        return moments.second / moments.samples


@dataclass(frozen=True)
class VarGrad(Noisy):
    """VarGrad: the variance of the gradient under noise, Var[g] (Adebayo 2018); mean over channels.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        samples: Draws per picture.
        noise: Standard deviation of the normal noise, of pixels in 0..1 where the model says its std.
        seed: Of the noise, which depends on it and on the picture's id; the three methods draw the same.
        shared: The same noise for all pictures, as in the paper's code.
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.
        unbiased: Divide by n - 1, not n.

    Raises:
        ValueError: For one unbiased sample.
    """

    unbiased: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unbiased and self.samples < 2:
            raise ValueError("Expected at least 2 samples for an unbiased variance, got 1.")

    def _of(self, moments: Moments) -> Tensor:
        n = moments.samples
        spread = moments.second - moments.first.square() / n  # float64: the means may cancel
        return spread.clamp(min=0) / (n - 1 if self.unbiased else n)


def together(
    methods: Sequence[Noisy], model: nn.Module | Engine, images: Tensor, labels: Tensor, *,
    ids: Sequence[str] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Returns each method's maps, of one stream of noisy gradients: three for the price of one.

    Args:
        methods: SmoothGrad, VarGrad, SquareGrad with the same target, samples, noise, seed and sharing.
        model: A classifier, or an `Engine` made of one.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), the classes to be explained, int64.
        ids: A name for each picture; None: a hash of the picture.

    Raises:
        ValueError: For methods that draw differently, and none at all.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> case = net, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> mean, square = together([SmoothGrad(samples=4), SquareGrad(samples=4)], *case)
        >>> torch.equal(mean, SmoothGrad(samples=4)(*case))
        True
    """
    if not methods or any(method.draws != methods[0].draws for method in methods):
        raise ValueError("Expected methods of the same target, samples, noise, seed and sharing, to share their draws.")
    engine = engine_of(model)
    check_images(images)
    maps: list[list[Tensor]] = [[] for _ in methods]
    names = ", ".join(type(method).__name__ for method in methods)
    with engine.task(names, len(images) * methods[0].passes(*images.shape[-2:])):
        for pictures in engine.groups(images, labels, ids):
            parts = of_one_stream(methods, engine, pictures, [(UNFILTERED,)] * len(methods))
            for found, (part,) in zip(maps, parts, strict=True):
                found.append(part)
    return [torch.cat(found).to(images.device, torch.float32) for found in maps]


def of_one_stream(
    methods: Sequence[Noisy], engine: Engine, pictures: Pictures, filters: Sequence[Sequence[LowPass]]
) -> list[list[Tensor]]:
    """Returns each method's maps of one group of pictures for each of its own filters, of one stream of gradients.

    Args:
        methods: Of equal `draws`.
        engine: Of the network.
        pictures: Of its `groups`.
        filters: For each method those that every gradient goes through, each in its turn.
    """
    steep = [low for method, chosen in zip(methods, filters, strict=True) if not method.linear for low in chosen]
    plain = [UNFILTERED] if any(method.linear for method in methods) else []
    drawn = list(dict.fromkeys([*plain, *steep]))
    at_once = max(1, SUMS // (len(drawn) * pictures.images[0].numel()))
    maps: list[list[list[Tensor]]] = [[[] for _ in chosen] for chosen in filters]
    for start in range(0, len(pictures.ids), at_once):
        part = slice(start, start + at_once)
        few = Pictures(pictures.images[part], pictures.labels[part], pictures.ids[part])
        moments = dict(zip(drawn, methods[0]._moments(engine, few, drawn), strict=True))
        for method, chosen, found in zip(methods, filters, maps, strict=True):
            for place, done in enumerate(_finished(method, moments, chosen)):
                found[place].append(done)
    return [[torch.cat(parts) for parts in found] for found in maps]


def _finished(method: Noisy, moments: dict[LowPass, Moments], filters: Sequence[LowPass]) -> list[Tensor]:
    if method.linear:
        maps = filtered(method._of(moments[UNFILTERED]), filters)
    else:
        maps = (method._of(moments[low]) for low in filters)
    return [reduced(found, method.channels) for found in maps]

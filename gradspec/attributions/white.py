"""White-box attributions: the gradient at the network's input, read in four ways (SPEC §4).

Each has two halves, drawing gradients and making maps of them; a filter (paper §5) stands between them.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradspec._checks import check_whole
from gradspec.attributions.base import Attribution, Channels, Family, check_channels, reduced
from gradspec.attributions.filters import UNFILTERED, LowPass, filtered
from gradspec.attributions.rectifiers import ON_REQUEST, Activation, guide
from gradspec.engine import Baseline, Engine, Pictures
from gradspec.targets import Target, label_logit


@dataclass(frozen=True)
class White(Attribution):
    """An attribution made of gradients at the network's input, each of which may be filtered before it goes on.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
    """

    family: ClassVar[Family] = "white"
    target: Target = label_logit

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward and backward passes one picture takes."""
        return 1

    def _maps(self, engine: Engine, pictures: Pictures) -> Tensor:
        return self._filtered(engine, pictures, (UNFILTERED,))[0]

    @abstractmethod
    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        """The maps of one group of pictures for each filter of every gradient, of one stream of gradients."""


def gradients(
    engine: Engine, pictures: Pictures, target: Target, rule: Callable[[Tensor], Any] | None = None
) -> Tensor:
    """Returns the target's gradient at each picture (N, C, H, W); the rule is that of `Engine.gradients`."""
    drawn = engine.gradients(pictures, 1, lambda i, j: pictures.images[i], target, rule)
    return torch.cat([found.gradients for found in drawn])


@dataclass(frozen=True)
class Saliency(White):
    """Saliency: the largest magnitude over channels of the gradient, max_c |∂t/∂x_c| (Simonyan 2014).

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2)).eval()
        >>> net[1].weight.data[1] = torch.tensor([1.0, -2, 3, 0, -4, 0, 1, 0])
        >>> Saliency()(net, torch.rand(1, 2, 2, 2), torch.tensor([1])).tolist()
        [[[4.0, 2.0], [3.0, 0.0]]]
    """

    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        drawn = gradients(engine, pictures, self.target)
        return [found.abs().amax(1) for found in filtered(drawn, filters)]


@dataclass(frozen=True)
class GradientInput(White):
    """Gradient times input, the mean over channels of ∂t/∂x_c · x_c (Shrikumar 2017); x in the network's units.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.
    """

    channels: Channels = "mean"

    def __post_init__(self) -> None:
        check_channels(self.channels)

    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        drawn = gradients(engine, pictures, self.target)
        return [reduced(found * pictures.images, self.channels) for found in filtered(drawn, filters)]


@dataclass(frozen=True)
class IntegratedGradients(White):
    """Integrated gradients (Sundararajan 2017): (x − x0) · ∫ ∂t/∂x(x0 + α(x − x0)) dα, mean over channels.

    The integral is the trapezoid rule over `steps` equidistant points with both ends; its weights sum to one.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        steps: Points on the path, at least two.
        baseline: x0: "mean", the model's own (0 in its input), or a pixel value in 0..1.
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.

    Raises:
        ValueError: For fewer than two steps.
    """

    steps: int = 50
    baseline: Baseline = "mean"
    channels: Channels = "mean"

    def __post_init__(self) -> None:
        check_channels(self.channels)
        check_whole(2, steps=self.steps)  # the two ends of the path

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward and backward passes one picture takes."""
        return self.steps

    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        images = pictures.images
        start = engine.baseline(self.baseline, images.shape[1])
        way = images - start
        places = torch.linspace(0, 1, self.steps, dtype=torch.float64).to(images)
        weights = torch.full((self.steps,), 1 / (self.steps - 1), dtype=torch.float64, device=images.device)
        weights[[0, -1]] /= 2

        def make(i: Tensor, j: Tensor) -> Tensor:
            return start + places[j, None, None, None] * way[i]

        total = torch.zeros_like(images, dtype=torch.float64)
        for drawn in engine.gradients(pictures, self.steps, make, self.target):
            total.index_add_(0, drawn.pictures, drawn.gradients * weights[drawn.variants, None, None, None])
        # the mean of filtered gradients is the filtered mean
        return [reduced(way * found, self.channels) for found in filtered(total, filters)]


@dataclass(frozen=True)
class GuidedBackprop(White):
    """Guided backpropagation (Springenberg 2015): only positive gradients pass each rectifier; mean over channels.

    At each ReLU, ReLU6 and LeakyReLU, module or function, the gradient becomes the activation's own derivative times
    max(g, 0). In a network without any it is the plain gradient: that is warned of.

    Args:
        target: t, what is differentiated, (logits (N, K), labels (N,)) -> (N,).
        also: Further activations to be guided: "gelu", "silu".
        channels: "mean" for maps (N, H, W), "keep" for (N, C, H, W) as in the paper.

    Raises:
        ValueError: For another activation.
    """

    also: tuple[Activation, ...] = ()
    channels: Channels = "mean"

    def __post_init__(self) -> None:
        check_channels(self.channels)
        if not set(self.also) <= set(ON_REQUEST):
            raise ValueError(f"Expected further activations among {tuple(ON_REQUEST)}, got {self.also!r}.")

    def _filtered(self, engine: Engine, pictures: Pictures, filters: Sequence[LowPass]) -> list[Tensor]:
        guided: list[int] = []

        def rule(logits: Tensor) -> None:
            guided.append(guide(logits, self.also))

        drawn = gradients(engine, pictures, self.target, rule)
        if not any(guided):
            warnings.warn(
                "GuidedBackprop found no rectifier in this network: its maps are the plain gradient (also=('gelu', "
                "'silu') guides these).",
                stacklevel=5,
            )
        return [reduced(found, self.channels) for found in filtered(drawn, filters)]

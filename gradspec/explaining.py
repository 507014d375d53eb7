"""Maps of many pictures by one attribution, a batch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradspec.attributions import Attribution
from gradspec.attributions.base import Explain, explained
from gradspec.data import Data, in_batches, number_of_pictures
from gradspec.engine import GROUP, MOST, Engine, Precision, engine_of


@dataclass(frozen=True, eq=False)
class Explained:
    """A batch of pictures with their maps.

    Attributes:
        images: x (N, C, H, W), as they came.
        labels: y (N,), the classes that are explained.
        ids: A name for each picture.
        maps: One for each picture (N, H, W), on the pictures' device.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]
    maps: Tensor


def explain(
    model: nn.Module | Engine,
    attribution: Explain,
    data: Data,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Iterator[Explained]:
    """Yields the maps of all pictures, a batch at a time, of one engine: the data need not fit in memory.

    A loader's batches are taken as they come, one at a time and only when asked for; they may differ in size. Tensors
    are cut so that each part fills the network's largest batch. Neither changes the maps.

    Args:
        model: A classifier, or an `Engine` made of one.
        attribution: One of `gradspec.attributions`, or (model, images, labels) -> maps, which is given the network.
        data: (images, labels), images alone (labels = the model's prediction), or batches (images, labels[, ids]).
        batch_size: Pictures, changed ones too, in a pass through the network; not those of a yielded batch. None: by
            their size.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show one bar over all pictures with the remaining time on stderr, if that is a terminal.

    Raises:
        TypeError: For what is no network, no attribution, or data of another form.
        ValueError: For pictures and labels that do not fit, and for an `Engine` with settings that it has already.

    Example:
        >>> from gradspec.attributions import Saliency
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> loader = [torch.rand(2, 3, 2, 2), torch.rand(1, 3, 2, 2)]
        >>> [found.maps.shape for found in explain(net, Saliency(), loader)]
        [torch.Size([2, 2, 2]), torch.Size([1, 2, 2])]
    """
    if not callable(attribution) or isinstance(attribution, type):
        raise TypeError(f"Expected an attribution such as Saliency(), got {attribution!r}.")
    return _explained(engine_of(model, batch_size, precision, device, progress), attribution, data)


def _explained(engine: Engine, attribution: Explain, data: Data) -> Iterator[Explained]:
    whole: Any = data[0] if isinstance(data, tuple) and data else data
    tensors = isinstance(whole, Tensor) and whole.ndim == 4
    batches = in_batches(data, pictures_at_once(whole.shape, attribution) if tensors else None)
    first = next(batches)
    count, each = number_of_pictures(data), _passes(attribution, first.images.shape)
    total = count * (each + (first.labels is None)) if count and each else None
    with engine.bar(getattr(attribution, "__name__", type(attribution).__name__), total) as bar:
        for batch in itertools.chain([first], batches):
            with engine.counted_by(bar):  # not while the caller works, perhaps with the same engine
                labels = engine.predictions(batch.images) if batch.labels is None else batch.labels
                maps = explained(engine, attribution, batch.images, labels, batch.ids)
            yield Explained(batch.images, labels, batch.ids, maps)


def _passes(attribution: Explain, shape: torch.Size) -> int:
    """Forward passes of one picture, 0 where nobody knows."""
    return attribution.passes(*shape[-2:]) if isinstance(attribution, Attribution) else 0


def pictures_at_once(shape: torch.Size, *methods: Explain) -> int:
    """Returns how many pictures (..., H, W) are worth working on together: more would fill no batch any better."""
    most = max(_passes(method, shape) for method in methods)
    return min(GROUP, -(-MOST // max(most, 1)))

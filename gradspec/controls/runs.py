"""How a control goes over pictures: an engine, batches with labels, one bar, and what it says of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradspec.data import Data, in_batches, number_of_pictures
from gradspec.engine import GROUP, Engine
from gradspec.images import described


class Labelled(NamedTuple):
    """Pictures (N, C, H, W), the classes (N,) that are explained, and a name for each."""

    images: Tensor
    labels: Tensor
    ids: list[str]


@contextmanager
def labelled(
    engine: Engine, data: Data, name: str, passes: int, classes: Sequence[int] | None = None
) -> Iterator[Iterator[Labelled]]:
    """Gives an iterator over batches with labels (the network's prediction where none are given), under one bar.

    What is computed inside needs no gradients, also where the caller asks for them.

    Args:
        engine: What runs the network.
        data: As everywhere.
        name: What the bar says.
        passes: Forward passes of one picture.
        classes: Of all pictures in order, to be explained in the place of the data's labels.
    """

    def batches() -> Iterator[Labelled]:
        start = 0
        for batch in in_batches(data, GROUP if isinstance(data, (Tensor, tuple)) else None):
            if classes is not None:
                labels = torch.tensor(classes[start : start + len(batch.images)])
            else:
                labels = engine.predictions(batch.images) if batch.labels is None else torch.as_tensor(batch.labels)
            start += len(batch.images)
            yield Labelled(batch.images, labels, batch.ids)

    count = number_of_pictures(data)
    with engine.bar(name, count * passes if count else None) as bar, engine.counted_by(bar), engine.task(name, 0):
        yield batches()


def name_of(model: nn.Module | Engine) -> str:
    """Returns what the network was loaded as, or its class."""
    net = model.model if isinstance(model, Engine) else model
    spec = described(net, "spec")
    return str(spec.get("spec", type(net).__name__)) if isinstance(spec, dict) else type(net).__name__

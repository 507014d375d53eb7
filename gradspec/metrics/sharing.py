"""Several maps of the same pictures under several metrics: whatever does not depend on the map is computed once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradspec.attributions.base import Maps, takes_ids
from gradspec.engine import Engine
from gradspec.metrics.base import Metric
from gradspec.metrics.deletion import Replacing, areas

Scores = Callable[..., Any]  # (model, images, labels, maps, *, ids) -> (N,); `ids` only where it is accepted


def scored(
    engine: Engine, metric: Metric | Scores, images: Tensor, labels: Tensor, ids: Sequence[str] | None,
    maps: Mapping[str, Maps], *, warn: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Returns a metric's values of several maps of the same pictures, name -> (N,) float32; as `scored_by`."""
    return scored_by(engine, {"": metric}, images, labels, ids, maps, warn=warn)[""]


def scored_by(
    engine: Engine, metrics: Mapping[str, Metric | Scores], images: Tensor, labels: Tensor, ids: Sequence[str] | None,
    maps: Mapping[str, Maps], *, warn: bool = True,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Returns the values of several maps of the same pictures by several metrics, metric -> map -> (N,) float32.

    The same values as in a call for each. `Deletion`, `Insertion` and `Faithfulness` of equal settings come from one
    set of curves, on which equal masks of a picture and the ends are scored once; `MuFidelity` asks the network once
    for all maps. A metric that needs more than maps (`Stability`, the localisation metrics) says so.

    Args:
        engine: Of the network.
        metrics: Name -> a metric of `gradspec.metrics`, or any (model, images, labels, maps) -> (N,), which is given
            the network, and `ids` if it takes them.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), the classes that the maps explain, int64.
        ids: A name for each picture; None: a hash of the picture.
        maps: Name -> φ (N, H, W) or (N, C, H, W).
        warn: Say how many maps cannot be scored (NaN).

    Raises:
        TypeError, ValueError: As `Metric`; for what is no metric, or gives no (N,).

    Example:
        >>> import torch
        >>> from gradspec.metrics import Deletion, Faithfulness
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> engine, (x, y) = Engine(net), (torch.rand(2, 3, 2, 2), torch.tensor([0, 1]))
        >>> maps = {"mean": x.mean(1), "twice": 2 * x.mean(1)}  # the same order of pixels
        >>> found = scored_by(engine, {"D": Deletion(steps=4), "F": Faithfulness(steps=4)}, x, y, None, maps)
        >>> torch.equal(found["F"]["mean"], found["F"]["twice"]), engine.forwards  # 2 pictures, 6 masks each; the ends
        (True, 15)
    """
    with warnings.catch_warnings():
        if not warn:
            warnings.filterwarnings("ignore", r".*: not scored \(NaN\)\.$", UserWarning)
        found: dict[str, dict[str, Tensor]] = {}
        for name, metric in metrics.items():
            if name in found:  # with another one's curves
                continue
            if isinstance(metric, Replacing):
                found |= _areas(metric, engine, metrics, images, labels, ids, maps)
            elif isinstance(metric, Metric):
                found[name] = metric.several(engine, images, labels, maps, ids=ids)
            else:
                found[name] = _foreign(metric, engine, images, labels, ids, maps)
    return {name: found[name] for name in metrics}


def _areas(
    metric: Replacing, engine: Engine, metrics: Mapping[str, Metric | Scores], images: Tensor, labels: Tensor,
    ids: Sequence[str] | None, maps: Mapping[str, Maps],
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """The values of all metrics of this one's settings."""
    same = {
        name: other
        for name, other in metrics.items()
        if isinstance(other, Replacing) and other.settings == metric.settings
    }
    return dict(zip(same, areas(list(same.values()), engine, images, labels, maps, ids=ids), strict=True))


def _foreign(
    metric: Scores, engine: Engine, images: Tensor, labels: Tensor, ids: Sequence[str] | None, maps: Mapping[str, Maps]
) -> dict[str, Tensor]:
    if not callable(metric) or isinstance(metric, type):
        raise TypeError(f"Expected a metric such as Faithfulness(), got {metric!r}.")
    named = {"ids": ids} if takes_ids(metric) else {}
    found = {}
    for name, phi in maps.items():
        values = metric(engine.model, images, labels, phi, **named)
        if not isinstance(values, Tensor) or values.shape != (len(images),):
            got = tuple(values.shape) if hasattr(values, "shape") else type(values).__name__
            raise ValueError(
                f"Expected a metric that gives a tensor with a value a picture ({len(images)},), got {got}."
            )
        found[name] = values.detach().float()
    return found

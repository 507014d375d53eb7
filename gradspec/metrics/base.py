"""What every metric shares: the call, the checks of maps, what is not scored, scores of whole pictures."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gradspec._checks import check_images
from gradspec.attributions.base import Maps, checked_maps
from gradspec.data import picture_id
from gradspec.engine import GROUP, VALUES, Engine, Pictures, engine_of
from gradspec.targets import Score

ROWS = 4 * GROUP  # maps held on the device at once where a picture has several, fewer of large ones


class Rows(NamedTuple):
    """Maps φ (M, H, W), and which of a group's pictures each is of (M,), in the order of the pictures."""

    maps: Tensor
    which: Tensor


Find = Callable[[Engine, Pictures, Tensor], Tensor]
FindRows = Callable[[Engine, Pictures, Rows], Tensor]


class Metric(ABC):
    """A metric: `(model, images (N, C, H, W), labels (N,), maps, *, ids=None) -> (N,)` float32, one value a picture.

    Subclasses are frozen dataclasses whose fields are the metric's settings; how it is run is the `Engine`'s, which may
    be given in place of the model. A map that holds NaN or infinite values or is constant is not scored: its value is
    NaN, no passes are spent on it, and one warning says how many there are.

    Attributes:
        higher_is_better: Whether larger values speak for the maps.
    """

    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns one value for each picture (N,), float32, on the pictures' device; NaN where there is none.

        Args:
            model: A classifier, or an `Engine` made of one.
            images: x (N, C, H, W), as the network expects them, of any size.
            labels: y (N,), the classes that the maps explain, int64.
            maps: φ (N, H, W), or (N, C, H, W), of which the signed mean over channels is taken; a tensor or an array.
            ids: A name for each picture, of which its random numbers are made; None: a hash of the picture.

        Raises:
            TypeError, ValueError: For maps that do not fit the pictures, and as `Engine.groups`.
        """

    @abstractmethod
    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes one picture of that size takes at most."""

    def several(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Mapping[str, Maps], *,
        ids: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Returns the values of several maps of the same pictures by the maps' names, each (N,).

        They are those of a call for each; what does not depend on the map is asked of the network once.

        Args:
            model: A classifier, or an `Engine` made of one.
            images: x (N, C, H, W), as the network expects them, of any size.
            labels: y (N,), the classes that the maps explain, int64.
            maps: Name -> φ (N, H, W) or (N, C, H, W).
            ids: A name for each picture, of which its random numbers are made; None: a hash of the picture.

        Raises:
            TypeError, ValueError: As the call.
        """
        return {name: self(model, images, labels, found, ids=ids) for name, found in maps.items()}

    def passes_of_several(self, maps: int, height: int, width: int) -> int:
        """Returns how many forward passes so many maps of one picture of that size take together at most."""
        return maps * self.passes(height, width)

    def _over_groups(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Maps, ids: Sequence[str] | None,
        find: Find, *, shape: tuple[int, ...] = (), reduce: bool = True, undefined: str = "have a score of NaN",
    ) -> Tensor:  # fmt: skip
        """What `find` finds for the pictures of each group whose maps can be scored (N, *shape), NaN for the others."""

        def find_rows(engine: Engine, pictures: Pictures, rows: Rows) -> Tensor:
            return find(engine, pictures, rows.maps)

        return self._over_several(
            model, images, labels, [maps], ids, find_rows, shape=shape, reduce=reduce, undefined=undefined
        )[0]

    def _over_several(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, maps: Sequence[Maps],
        ids: Sequence[str] | None, find: FindRows, *, shape: tuple[int, ...] = (), reduce: bool = True,
        undefined: str = "have a score of NaN",
    ) -> Tensor:  # fmt: skip
        """The same for K maps of each picture (K, N, *shape); `find` gets all maps of some pictures at a time."""
        engine = engine_of(model)
        check_images(images)
        checked = [checked_maps(found, images, reduce=reduce) for found in maps]
        faults = Faults(*checked)
        sound = faults.none.view(len(maps), len(images))
        values = torch.full((*sound.shape, *shape), torch.nan, dtype=torch.float32)
        with engine.task(type(self).__name__, self._passes_of(sound, *images.shape[-2:])):
            start = 0
            for pictures in engine.groups(images, labels, ids):
                stop = start + len(pictures.images)
                for part in _parts(sound[:, start:stop], images[0].numel()):
                    chosen = _chosen(pictures, part)
                    which, kinds = sound[:, start + part].t().nonzero(as_tuple=True)
                    rows = _rows(checked, start + part, kinds, which, chosen.images.device)
                    values[kinds, start + part[which]] = find(engine, chosen, rows).to("cpu", torch.float32)
                start = stop
        faults.warn(self, values.flatten(0, 1), undefined)
        return values.to(images.device)

    def _passes_of(self, sound: Tensor, height: int, width: int) -> int:
        """Forward passes for pictures whose maps can be scored or not (K, N)."""
        return sum(self.passes_of_several(count, height, width) for count in sound.sum(0).tolist() if count)


def _parts(sound: Tensor, values: int) -> Sequence[Tensor]:
    """Pictures of a group with a map that can be scored (K, n), so many at a time as their maps may be held."""
    kept = sound.any(0).nonzero()[:, 0]
    rows = max(1, min(ROWS, ROWS * VALUES // values))
    at_once = GROUP if len(sound) == 1 else max(1, rows // len(sound))
    return kept.split(at_once) if len(kept) else ()


def _chosen(pictures: Pictures, part: Tensor) -> Pictures:
    places = part.to(pictures.images.device)
    return Pictures(pictures.images[places], pictures.labels[places], [pictures.ids[k] for k in part.tolist()])


def _rows(maps: Sequence[Tensor], part: Tensor, kinds: Tensor, which: Tensor, device: torch.device) -> Rows:
    """Of K maps of N pictures (K)(N, ...), those of kind `kinds` (M,) and of picture `part[which]` (M,)."""
    stacked = torch.cat([found[part.to(found.device)][None].to(device) for found in maps])  # (K, n, ...)
    which = which.to(device)
    return Rows(stacked[kinds.to(device), which], which)


class Faults:
    """Which maps hold no explanation, of tensors (N, ...) one behind the other: by map, bool, on the CPU.

    Attributes:
        broken: It holds NaN or infinite values.
        constant: All of its values are equal.
        none: Neither.
    """

    def __init__(self, *maps: Tensor) -> None:
        flat = [found.flatten(1) for found in maps]
        self.broken = torch.cat([~found.isfinite().all(1).cpu() for found in flat])
        self.constant = torch.cat([(found.amax(1) == found.amin(1)).cpu() for found in flat]) & ~self.broken
        self.none = ~(self.broken | self.constant)

    def warn(self, metric: Metric, values: Tensor, undefined: str) -> None:
        """Says in one warning what has no value and why.

        Args:
            metric: Whose values they are.
            values: (N, ...), NaN where there is none.
            undefined: What is said of sound maps without a value: "have no positive value".
        """
        without = values.flatten(1).isnan().any(1).cpu() if values.ndim > 1 else values.isnan().cpu()
        counts = [
            (int(self.broken.sum()), "holds NaN or infinite values", "hold NaN or infinite values"),
            (int(self.constant.sum()), "is constant", "are constant"),
            (int((without & self.none).sum()), undefined.replace("have ", "has ", 1), undefined),
        ]
        said = [f"{n} map {one}" if n == 1 else f"{n} maps {many}" for n, one, many in counts if n]
        if said:
            warnings.warn(f"{type(metric).__name__}: {', '.join(said)}: not scored (NaN).", stacklevel=outside())


def outside() -> int:
    """The `stacklevel` of the first caller that is not of gradspec: as deep for `curves` as for the call."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("gradspec."):
        level, frame = level + 1, frame.f_back
    return level


def whole_scores(engine: Engine, images: Tensor, labels: Tensor, score: Score) -> Tensor:
    """Returns the score of whole pictures (N,) float64, passing each through the network once in the engine's life.

    Its logits are remembered by its values, so that every map of a picture is scored with one pass less.

    Args:
        engine: What runs the network.
        images: x (N, C, H, W) on its device.
        labels: y (N,).
        score: (logits (N, K), labels (N,)) -> (N,).
    """
    engine.check_score(score)
    known: dict[str, Tensor] = engine.fact(("whole pictures", images.shape[1:]), dict)
    keys = [picture_id(image) for image in images]
    new = {key: place for place, key in enumerate(keys) if key not in known}
    if new:
        places = list(new.values())
        found = engine.logits(Pictures(images[places], labels[places], [""] * len(places)))
        known.update(zip(new, found.cpu(), strict=True))
    return score(torch.stack([known[key] for key in keys]).to(images.device), labels).double()


def predictions(engine: Engine, images: Tensor, labels: Tensor | None, ids: Sequence[str]) -> Tensor:
    """Returns the network's classes (N,) int64, on the pictures' device, of logits that the metrics use again.

    Args:
        engine: What runs the network.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), refused where the network has no such class; None: there are none.
        ids: A name for each picture.
    """
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    groups = engine.groups(images, labels, ids)
    found = [whole_scores(engine, part.images, part.labels, lambda logits, _: logits.argmax(1)) for part in groups]
    return torch.cat(found).long().to(images.device)

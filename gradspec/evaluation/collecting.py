"""What is collected while the pictures go by: every attribution explained once for all of its arms, maps scored."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradspec.adapters import Stored
from gradspec.attributions.base import checked_maps, takes_ids
from gradspec.data import Batch
from gradspec.engine import Engine
from gradspec.evaluation.ledger import Cost, Key, Ledger, Line
from gradspec.evaluation.plan import CONTROL, Explain, Row, same, streams
from gradspec.evaluation.scores import Missing, Pictured, Scores
from gradspec.evaluation.selection import Selection
from gradspec.forgrad import FORGrad, low_passes, maps_of
from gradspec.images import pixels_of
from gradspec.metrics import Metric
from gradspec.metrics.base import outside, predictions
from gradspec.metrics.sharing import scored_by

Maps = Tensor | np.ndarray


@dataclass(eq=False)
class Collector:
    """Everything that is collected while the pictures go by."""

    engine: Engine
    rows: list[Row]
    metrics: dict[str, Callable[..., Any]]
    keep: int
    selection: Selection
    done: int = 0
    right: int = 0
    labelled: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    missing: list[Missing] = field(default_factory=list)
    examples: list[Pictured] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def add(self, batch: Batch, masks: Maps | None) -> None:
        """Explains and scores one batch; where that raises, none of its scores is kept."""
        chosen_on = self.selection.places(self.engine.model, batch)
        predicted = predictions(self.engine, batch.images, batch.labels, batch.ids).cpu()
        labels = predicted if batch.labels is None else batch.labels.long().cpu()
        named = Batch(batch.images, labels, batch.ids)
        by_row = {row.key: found for group in streams(self._live()) for row, found in self._explained(named, group)}
        whole = {row.key: by_row[row.key] for row in self.rows if row.key in by_row}
        maps = {key: _flat(found) for key, found in whole.items()}
        scores = self._score(named, maps, whole, masks)
        pictures = [self._named(name) for name in batch.ids]
        for key, found in maps.items():
            self.ledger.note_spectra(key, pictures, found)
        self._keep(named, pictures, predicted, maps)
        for name, values in scores.items():
            for key, found in values.items():
                self.ledger.lines.append(Line(pictures, labels.numpy(), *key, name, found.double().cpu().numpy()))
        if batch.labels is not None:
            self.right += int((predicted == labels).sum())
            self.labelled += len(labels)
        self.selection.note(chosen_on, self.done)
        self.done += len(batch.ids)

    # ---- maps --------------------------------------------------------------------------------

    def _live(self) -> list[Row]:
        gone = {(found.attribution, found.arm) for found in self.missing if not found.metric}
        return [row for row in self.rows if row.key not in gone]

    def _explained(self, batch: Batch, group: list[Row]) -> list[tuple[Row, Tensor]]:
        """The maps of rows that share their passes; where something raises, each source alone, down to what raised."""
        asked: list[tuple[Explain, list[Row]]] = []
        for row in group:
            source = row.inner if _filters_maps(row) else row.explain
            rows = next((rows for other, rows in asked if same(source, other)), None)
            if rows is None:
                asked.append((source, [row]))
            else:
                rows.append(row)
        try:
            found, spent = self._passed(batch, [source for source, _ in asked])
        except Exception as error:
            if len(asked) > 1:
                return [pair for _, rows in asked for pair in self._explained(batch, rows)]
            for row in group:
                self.miss(*row.key, "", error)
            return []
        pairs = zip(asked, found, strict=True)
        return [pair for (_, rows), maps in pairs for row in rows for pair in self._finished(row, maps, spent, batch)]

    def _passed(self, batch: Batch, sources: Sequence[Explain]) -> tuple[list[Tensor], Cost]:
        """The maps of the sources, which share one stream of passes, as they are; and what it took."""
        began, before = self._now(), (self.engine.forwards, self.engine.backwards)
        asked = {f"{k}": source for k, source in enumerate(sources)}
        maps = maps_of(self.engine, asked, batch.images, _labels(batch), batch.ids)
        spent = Cost(self._now() - began, self.engine.forwards - before[0], self.engine.backwards - before[1])
        return [checked_maps(maps[name], batch.images, reduce=False) for name in asked], spent

    def _finished(self, row: Row, maps: Tensor, spent: Cost, batch: Batch) -> list[tuple[Row, Tensor]]:
        """A row's maps, filtered here where it filters maps, on a clock of its own; channels only where they matter."""
        began = self._now()
        try:
            flat = maps if self._explains_anew and not _filters_maps(row) else _flat(maps)
            found = _filtered(flat, row.explain) if _filters_maps(row) else flat
        except Exception as error:
            self.miss(*row.key, "", error)
            return []
        passing = self._now() - began if _filters_maps(row) else 0.0
        self.ledger.charge(row.key, spent._replace(filter=passing, pictures=len(batch.ids)))
        return [(row, found)]

    @cached_property
    def _explains_anew(self) -> bool:
        """Whether a metric compares maps with those of changed pictures, channel by channel."""
        return any(takes(metric, "attribution") for metric in self.metrics.values())

    def _now(self) -> float:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)
        return time.perf_counter()

    def _keep(self, batch: Batch, pictures: list[str], predicted: Tensor, maps: Mapping[Key, Tensor]) -> None:
        for k in range(min(len(pictures), self.keep - len(self.examples))):
            pixels = pixels_of(self.engine.model, batch.images[k : k + 1])[0]
            shown = {key: found[k].float().cpu().numpy() for key, found in maps.items()}
            self.examples.append(Pictured(pictures[k], int(_labels(batch)[k]), int(predicted[k]), pixels, shown))

    # ---- scores ------------------------------------------------------------------------------

    def _score(
        self, batch: Batch, maps: Mapping[Key, Tensor], whole: Mapping[Key, Tensor], masks: Maps | None
    ) -> dict[str, dict[Key, Tensor]]:
        """The values of each metric: those that ask for maps alone together, the others row by row."""
        plain = [name for name, metric in self.metrics.items() if not takes(metric, "masks", "attribution")]
        gone = {(missed.attribution, missed.arm, missed.metric) for missed in self.missing}
        found: dict[str, dict[Key, Tensor]] = {name: {} for name in self.metrics}
        wanted = {key: [name for name in plain if (*key, name) not in gone] for key in maps}
        for names, keys in groupby(sorted(maps, key=wanted.__getitem__), key=wanted.__getitem__):
            for name, values in self._together(names, batch, {key: maps[key] for key in keys}).items():
                found[name] |= values
        for name in [name for name in self.metrics if name not in plain]:
            of_metric = whole if takes(self.metrics[name], "attribution") else maps
            for key in maps:
                if (*key, name) not in gone:
                    found[name] |= self._alone(name, key, batch, of_metric[key], masks)
        return found

    def _together(self, names: Sequence[str], batch: Batch, maps: Mapping[Key, Tensor]) -> dict[str, dict[Key, Tensor]]:
        """Values by metric and row; where something raises, in ever smaller parts, down to what raised."""
        if not names or not maps:
            return {}
        keys = {str(k): key for k, key in enumerate(maps)}
        metrics = {name: self.metrics[name] for name in names}
        named = {k: maps[key] for k, key in keys.items()}
        try:
            found = scored_by(self.engine, metrics, batch.images, _labels(batch), batch.ids, named, warn=False)
            return {name: {key: found[name][k] for k, key in keys.items()} for name in names}
        except Exception as error:
            if len(names) > 1:
                return {name: values for one in names for name, values in self._together([one], batch, maps).items()}
            parts = [self._together(names, batch, {key: maps[key]}) for key in maps] if len(maps) > 1 else []
            if not parts:
                self.miss(*next(iter(maps)), names[0], error)
            return {names[0]: {key: value for part in parts for key, value in part.get(names[0], {}).items()}}

    def _alone(self, name: str, key: Key, batch: Batch, maps: Tensor, masks: Maps | None) -> dict[Key, Tensor]:
        """One row's values of a metric that asks for objects' masks or for the attribution itself."""
        metric, row = self.metrics[name], next(row for row in self.rows if row.key == key)
        extra: dict[str, Any] = {"ids": batch.ids} if takes_ids(metric) else {}
        extra |= {"masks": masks} if takes(metric, "masks") else {}
        extra |= {"attribution": row.explain} if takes(metric, "attribution") else {}
        try:
            if "attribution" in extra and isinstance(row.inner, Stored):
                raise ValueError("stored maps do not hold those of changed pictures")
            model = self.engine if isinstance(metric, Metric) else self.engine.model
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r".*: not scored \(NaN\)\.$", UserWarning)  # they are counted
                values = torch.as_tensor(metric(model, batch.images, _labels(batch), maps, **extra)).detach()
            if values.shape != (len(batch.ids),):
                raise ValueError(f"Expected a value for each picture ({len(batch.ids)},), got {tuple(values.shape)}.")
            return {key: values}
        except Exception as error:
            self.miss(*key, name, error)
            return {}

    def miss(self, attribution: str, arm: str, metric: str, error: Exception) -> None:
        """Notes why something has no scores from here on, and warns of it."""
        self.missing.append(Missing(attribution, arm, metric, self.done, reason := _reason(error)))
        what = f"{attribution!r}, arm {arm!r}" + (f", metric {metric!r}" if metric else "")
        after = f" after {self.done} pictures" if self.done else ""
        warnings.warn(f"{what} is left out{after}: {reason}", stacklevel=outside())

    def end(self, error: Exception) -> None:
        """Notes why no further pictures are scored, and warns of it."""
        self.missing.append(Missing("", "", "", self.done, reason := _reason(error)))
        warnings.warn(f"evaluate ends after {self.done} pictures: {reason}", stacklevel=outside())

    # ---- tables ------------------------------------------------------------------------------

    def _named(self, name: str) -> str:
        """A picture's name; one that comes again is numbered."""
        self.seen[name] = count = self.seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def result(self, spec: dict[str, Any]) -> Scores:
        """Everything that was collected."""
        if not self.ledger.lines:
            raise ValueError(f"Expected at least one attribution with a score, got none: {self.missing[0].reason}")
        keys = [row.key for row in self.rows]
        table, spectra = self.ledger.table(keys), self.ledger.spectra_table(keys)
        costs = self.ledger.cost_table([row.key for row in self.rows if row.arm != CONTROL])
        return Scores(table, costs, spectra, tuple(self.missing), tuple(self.examples), spec)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _flat(maps: Tensor) -> Tensor:
    """Maps (N, H, W), the mean over channels where they have any."""
    return maps.mean(1) if maps.ndim == 4 else maps


def _filters_maps(row: Row) -> bool:
    return isinstance(row.explain, FORGrad) and row.explain.where == "attribution"


def _filtered(maps: Tensor, forgrad: Any) -> Tensor:
    """What FORGrad makes of finished maps (N, H, W): abs, low-pass, abs."""
    (found,) = low_passes(maps.abs(), [forgrad.cutoff], forgrad.shape)
    return found.abs()


def _labels(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels


def takes(metric: Any, *names: str) -> bool:
    """Whether a metric has one of these parameters beside the model, the pictures and the maps."""
    try:
        return bool(set(names) & set(inspect.signature(metric).parameters))
    except ValueError:  # a builtin that does not say
        return False

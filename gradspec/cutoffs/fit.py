"""The cutoff that a metric chooses on pictures kept for it: by a grid, or by a race on a fixed budget (SPEC §5)."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import floor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from gradspec.attributions import Attribution
from gradspec.attributions.base import Explain
from gradspec.controls import centre_prior, random_maps
from gradspec.cutoffs.curve import Curve
from gradspec.cutoffs.grid import Cutoffs, checked_cutoffs, cutoff_grid, names_of_cutoffs
from gradspec.cutoffs.identity import fingerprint, text_of
from gradspec.cutoffs.pool import Pool
from gradspec.cutoffs.race import planned, shuffled, spent, with_controls
from gradspec.cutoffs.result import CutoffFit, Round
from gradspec.data import Data, picture_id
from gradspec.engine import Engine, Precision, engine_of
from gradspec.forgrad import FORGrad, Where, maps_of
from gradspec.fourier import FilterShape
from gradspec.images import described
from gradspec.metrics import Faithfulness, Metric
from gradspec.metrics.base import predictions
from gradspec.metrics.sharing import scored

if TYPE_CHECKING:
    import pandas as pd

Search = Literal["grid", "race"]

CONTROLS = ("no filter", "abs only", "centre prior", "white noise")
_FAITHFULNESS = Faithfulness()
_ARM, _RIVAL = "cutoff: ", "control: "


def fit_cutoff(
    model: nn.Module | Engine,
    attribution: Explain,
    data: Data,
    *,
    cutoffs: Iterable[float | None] | None = None,
    search: Search = "grid",
    where: Where = "attribution",
    shape: FilterShape = "disk",
    metric: Metric | Callable[..., Any] = _FAITHFULNESS,
    controls: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
    budget: float = 0.25,
) -> CutoffFit:
    """Returns the cutoff σ of `FORGrad(attribution, σ, where, shape)` with the best mean of a metric (paper §5).

    Fit one for each network, variant and method, and report on other pictures. A picture is explained once for all
    cutoffs, equal masks of it are scored once, and so are the ends of its curves. The grid scores all cutoffs on all
    pictures. The race spends a share of the grid's forward passes, explanations counted: after a few pictures the worse
    half of the cutoffs is dropped, by the means over the same pictures, and the others go on with new ones (sequential
    halving, Karnin 2013); its winner has the best mean at the end. Where fewer cutoffs cost the same, as by
    μ-fidelity, the race is the grid on its share of the pictures.

    Args:
        model: A classifier, or an `Engine` made of one.
        attribution: What is filtered: one of `gradspec.attributions`, an adapter's, any (model, images, labels) ->
            maps.
        data: Selection pictures: (images, labels), images alone (labels = the model's prediction), or re-iterable
            batches (images, labels[, ids]). They are read twice, by a race once more for each round.
        cutoffs: In cycles/image, None for no filter (the map's magnitude alone, or with where="gradient" the method
            itself). None: `cutoff_grid` of the pictures' size.
        search: "grid" or "race".
        where: Filter the "attribution" or every "gradient" that it draws.
        shape: Of the filter.
        metric: Of `gradspec.metrics`, or any (model, images, labels, maps) -> (N,).
        controls: Score four controls as well, in a race on the second half of its pictures: no filter, abs only,
            centre prior, white noise.
        seed: Of the white noise and of the order of pictures in a race.
        batch_size: Pictures, changed ones too, in a pass through the network; None: by their size.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show a bar with the remaining time on stderr, if that is a terminal.
        budget: Of the race, as a share of the grid's forward passes with controls, 0 to 1. Of another library's
            attribution, which says no passes, those of the metric.

    Returns:
        The fit: its curve, choices, controls and passes. A flat curve and pictures without a score are warned of.

    Raises:
        TypeError: For data that can be read once alone, and what is no attribution, metric or number.
        ValueError: For gradients of a gray- or black-box method; fewer than two cutoffs, or any that is not above 0;
            pictures of several sizes without cutoffs; a picture that comes twice; no picture that can be scored at all
            cutoffs; a budget too small to show each cutoff a picture; an `Engine` with settings that it has already.

    Example:
        >>> from gradspec import demo
        >>> from gradspec.attributions import Saliency
        >>> net, pictures = demo.load("vgg_max"), demo.pictures(16)
        >>> data = net.preprocess(pictures.images), pictures.labels
        >>> fit = fit_cutoff(net, Saliency(), data, cutoffs=[None, 12, 1], progress=False)
        >>> list(fit.table.columns), fit.cutoff, fit.backwards
        (['cutoff', 'mean', 'se', 'n'], 1.0, 16)
    """
    fit = tried_cutoffs(
        model, attribution, data, cutoffs=cutoffs, search=search, where=where, shape=shape, metric=metric,
        controls=controls, seed=seed, batch_size=batch_size, precision=precision, device=device, progress=progress,
        budget=budget,
    )  # fmt: skip
    fit.curve.best()  # raises where no picture can be scored at all cutoffs
    _warn(fit)
    return fit


def tried_cutoffs(
    model: nn.Module | Engine,
    attribution: Explain,
    data: Data,
    *,
    cutoffs: Iterable[float | None] | None = None,
    search: Search = "grid",
    where: Where = "attribution",
    shape: FilterShape = "disk",
    metric: Metric | Callable[..., Any] = _FAITHFULNESS,
    controls: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
    budget: float = 0.25,
) -> CutoffFit:
    """Returns what `fit_cutoff` does, without a look at the whole: of a part of the pictures, to be `joined`.

    So a curve that is flat here is not warned of, and there may be no picture that can be scored at all cutoffs.
    """
    began = time.perf_counter()
    _check(attribution, search, where, shape, metric, budget)
    engine = engine_of(model, batch_size, precision, device, progress)
    pool = Pool(data)
    tried = _grid_of(pool, shape) if cutoffs is None else checked_cutoffs(cutoffs)
    rivals = _controls(attribution, seed) if controls else {}
    trial = _Trial(engine, pool, metric, tried, _arms(attribution, tried, where, shape), rivals)
    before = engine.forwards, engine.backwards
    order = pool.ids if search == "grid" else shuffled(pool.ids, seed)
    counts = [len(order)] if search == "grid" else trial.plan(budget)
    with engine.bar("fit_cutoff", trial.passes(counts)) as bar, engine.counted_by(bar):
        trial.run(order, counts)
    settings = {"search": search, "seed": seed, "budget": budget if search == "race" else None, "rounds": counts}
    return CutoffFit(
        tried, trial.curves(), trial.control_scores(), tuple(trial.rounds),
        where, shape, search, text_of(attribution), text_of(metric), _higher(metric), fingerprint(engine),
        engine.forwards - before[0], engine.backwards - before[1], _spec(engine, pool, settings, began),
    )  # fmt: skip


@dataclass(eq=False)
class _Trial:
    """Scores as they come in: of each picture those of the cutoffs that still run, at last of the controls too."""

    engine: Engine
    pool: Pool
    metric: Metric | Callable[..., Any]
    cutoffs: Cutoffs
    arms: Mapping[str, FORGrad]
    rivals: Mapping[str, Explain]
    rows: list[dict[str, float]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def cost(self, maps: int) -> int:
        """Passes of one picture, its explanation and so many maps."""
        height, width = self.pool.sizes[0]
        method = next(iter(self.arms.values()))
        explaining = method.passes(height, width) if isinstance(method.attribution, Attribution) else 0
        return explaining + _passes(self.metric, maps, height, width)

    def plan(self, budget: float) -> list[int]:
        """How many pictures each round of the race gets."""
        # the empty picture is one pass for all
        grid = self.passes([len(self.pool.ids)])
        most = floor(budget * grid) - 1
        return planned(len(self.pool.ids), len(self.arms), most, self.cost, len(self.rivals), self.shared)

    def passes(self, counts: Sequence[int]) -> int:
        """Passes of rounds of so many pictures at most."""
        return spent(counts, len(self.arms), self.cost, len(self.rivals), self.shared) + 1

    @property
    def shared(self) -> int:
        """How many controls are the map of no filter, which is scored but once; a foreign metric is asked for each."""
        return int(bool(self.rivals) and None in self.cutoffs and isinstance(self.metric, Metric))

    def run(self, order: Sequence[str], counts: Sequence[int]) -> None:
        """Scores so many pictures in each round, of which the better half of the cutoffs goes on."""
        running, start, names, first = list(range(len(self.cutoffs))), 0, list(self.arms), with_controls(counts)
        for count in counts:
            running, stop = sorted(running), start + count
            asked = {names[place]: self.arms[names[place]] for place in running}
            middle = min(max(start, first), stop)
            self._score(order[start:middle], asked, {})
            self._score(order[middle:stop], asked, self.rivals)
            self.rounds.append(Round(count, tuple(self.cutoffs[place] for place in running)))
            start = stop
            if len(self.rounds) < len(counts):
                ranked = self._curve().ranked(running)  # raises where no picture counts
                running = ranked[: -(-len(running) // 2)]

    def _score(self, wanted: Sequence[str], arms: Mapping[str, Explain], rivals: Mapping[str, Explain]) -> None:
        asked = {f"{_ARM}{name}": explain for name, explain in arms.items()}
        asked |= {f"{_RIVAL}{name}": explain for name, explain in rivals.items()}
        for batch in self.pool.take(wanted) if wanted else ():
            labels = predictions(self.engine, batch.images, None, batch.ids) if batch.labels is None else batch.labels
            maps = maps_of(self.engine, asked, batch.images, labels, batch.ids)
            found = scored(self.engine, self.metric, batch.images, labels, batch.ids, maps, warn=False)
            values = {name: scores.double().tolist() for name, scores in found.items()}
            self.rows += [{name: values[name][i] for name in values} for i in range(len(batch.ids))]
            self.ids += batch.ids
            self.labels += labels.tolist()
            self.contents += map(picture_id, batch.images)

    def _curve(self) -> Curve:
        """What is known so far, the higher the better."""
        sign = 1 if _higher(self.metric) else -1
        values = [[sign * row.get(f"{_ARM}{name}", np.nan) for name in self.arms] for row in self.rows]
        asked = [[f"{_ARM}{name}" in row for name in self.arms] for row in self.rows]
        return Curve(self.cutoffs, np.array(values), np.array(asked))

    def curves(self) -> pd.DataFrame:
        """A row for each picture with its scores at the cutoffs."""
        return self._table({"label": self.labels, "content": self.contents}, _ARM, self.arms)

    def control_scores(self) -> pd.DataFrame:
        """A row for each picture with the scores of the controls."""
        return self._table({}, _RIVAL, self.rivals)

    def _table(self, about: dict[str, Any], kind: str, names: Iterable[str]) -> pd.DataFrame:
        import pandas as pd

        scores = {name: np.array([row.get(f"{kind}{name}", np.nan) for row in self.rows]) for name in names}
        return pd.DataFrame({"picture": self.ids} | about | scores)


# ---- what is tried -------------------------------------------------------------------------------


def _arms(attribution: Explain, cutoffs: Cutoffs, where: Where, shape: FilterShape) -> dict[str, FORGrad]:
    names = names_of_cutoffs(cutoffs)
    return {name: FORGrad(attribution, cutoff, where, shape) for name, cutoff in zip(names, cutoffs, strict=True)}


def _controls(attribution: Explain, seed: int) -> dict[str, Explain]:
    rivals = attribution, FORGrad(attribution, None), centre_prior(), random_maps("white", seed=seed)
    return dict(zip(CONTROLS, rivals, strict=True))


def _grid_of(pool: Pool, shape: FilterShape) -> Cutoffs:
    if len(pool.sizes) > 1:
        (h, w), (other_h, other_w), *_ = pool.sizes
        raise ValueError(
            f"Expected pictures of one size for the default cutoffs, got {h} x {w} and {other_h} x {other_w}: give "
            "cutoffs= in cycles/image, or pictures of one size."
        )
    return checked_cutoffs(cutoff_grid(*pool.sizes[0], shape))


def _passes(metric: Any, maps: int, height: int, width: int) -> int:
    """Forward passes of so many maps of a picture; of a foreign metric one for each, as nobody knows."""
    return max(1, metric.passes_of_several(maps, height, width)) if isinstance(metric, Metric) else maps


def _higher(metric: Any) -> bool:
    return bool(getattr(metric, "higher_is_better", True))


# ---- around it -----------------------------------------------------------------------------------


def _check(attribution: Any, search: str, where: Where, shape: FilterShape, metric: Any, budget: float) -> None:
    FORGrad(attribution, None, where, shape)  # raises
    if search not in ("grid", "race"):
        raise ValueError(f"Expected search='grid' or 'race', got {search!r}.")
    if isinstance(metric, type) or not callable(metric):
        raise TypeError(f"Expected a metric such as Faithfulness(), got {metric!r}.")
    if not 0 < budget <= 1:
        raise ValueError(f"Expected a budget above 0 and up to 1, as a share of the grid's passes, got {budget}.")


def _spec(engine: Engine, pool: Pool, settings: dict[str, Any], began: float) -> dict[str, Any]:
    loaded = described(engine.model, "spec")
    return settings | {
        "model": str(loaded.get("spec", type(engine.model).__name__)) if isinstance(loaded, dict) else "",
        "pictures": len(pool.ids),
        "labelled": pool.labelled,
        "sizes": [list(each) for each in pool.sizes],
        "precision": engine.precision,
        "form": engine.form,
        "units": engine.units,
        "device": str(engine.device),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began, 2),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in ("gradspec", "torch", "numpy")}
        | {"python": platform.python_version()},
    }


def _warn(fit: CutoffFit) -> None:
    if fit.unscored:
        warnings.warn(
            f"fit_cutoff: {fit.unscored} of {len(fit.pictures)} pictures cannot be scored at every cutoff (their map "
            "is constant or not finite): left out at all of them.",
            stacklevel=3,
        )
    if fit.flat:
        warnings.warn(f"fit_cutoff: {fit.flat_reason}", stacklevel=3)

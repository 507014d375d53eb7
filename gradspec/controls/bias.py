"""Bias of metrics: what they give for maps that know nothing, of low against high frequencies (paper table 4, A.11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gradspec._checks import check_whole
from gradspec._showing import figure_of, html_of
from gradspec.attributions.base import Explain
from gradspec.attributions.words import text_of
from gradspec.controls.maps import SPREAD, Kind, RandomMaps
from gradspec.controls.runs import Labelled, labelled, name_of
from gradspec.data import Data
from gradspec.engine import Engine, Precision, engine_of
from gradspec.forgrad import maps_of
from gradspec.metrics import Deletion, Faithfulness, Insertion, Metric, MuFidelity
from gradspec.metrics.sharing import scored_by
from gradspec.statistics import bootstrap_interval, paired

if TYPE_CHECKING:
    import pandas as pd

LOW, HIGH = "random low", "random high"


@dataclass(frozen=True, eq=False)
class MetricBias:
    """What metrics give for random maps of low and of high frequencies with the very same values; by `metric_bias`.

    Attributes:
        table: One row per picture, metric, map and draw: `picture`, `label`, `metric`, `map` ("random low",
            "random high", or an attribution's name), `draw`, `value`; NaN where there is none.
        spec: Model, metrics, spread, draws, seed, as plain JSON.
    """

    table: pd.DataFrame
    spec: dict[str, Any]

    def means(self) -> pd.DataFrame:
        """Returns table 4: by map and metric the mean over pictures, `se`, the ends of its 95 % interval, `n`."""
        import pandas as pd

        rows = []
        groups: Any = self._per_picture().groupby(["map", "metric"], sort=False)["value"]
        for (name, metric), values in groups:
            known = values.to_numpy()[np.isfinite(values)]
            low, high = bootstrap_interval(known)
            se = known.std(ddof=1) / len(known) ** 0.5 if len(known) > 1 else np.nan
            mean = known.mean() if len(known) else np.nan
            rows.append({"map": name, "metric": metric, "mean": mean, "se": se, "low": low, "high": high})
            rows[-1]["n"] = len(known)
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Returns one row per metric: the paired difference of high less low over pictures.

        Columns `metric`, `low_map` and `high_map` (mean values), `difference`, `se`, `low`, `high` (95 % interval),
        `bf10` (JZS: above 1 speaks for a bias, below for none), `effect` (Cohen's d_z), `n`, `missing`, `favours`:
        the maps that do better where the interval excludes 0, else "neither".
        """
        import pandas as pd

        better = self.spec["higher_is_better"]
        rows = []
        for metric, part in self._per_picture().groupby("metric", sort=False):
            wide = part.pivot(index="picture", columns="map", values="value").loc[part["picture"].unique()]
            found = paired(wide[HIGH].to_numpy(), wide[LOW].to_numpy())
            side = (found.mean > 0) == better[metric]
            sure = found.low > 0 or found.high < 0
            both = wide[[LOW, HIGH]].dropna()
            rows.append(
                {
                    "metric": metric,
                    "low_map": both[LOW].mean(),
                    "high_map": both[HIGH].mean(),
                    "difference": found.mean,
                    "se": found.se,
                    "low": found.low,
                    "high": found.high,
                    "bf10": found.bf10,
                    "effect": found.effect,
                    "n": found.n,
                    "missing": found.missing,
                    "favours": ("high" if side else "low") if sure else "neither",
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """Returns what metrics give for random maps of low and of high frequencies (`gradspec.plots.metric_bias`)."""
        return figure_of("controls.metric_bias", self)

    def __repr__(self) -> str:
        pictures = self.table["picture"].nunique()
        return f"MetricBias({self.spec['model']}, {pictures} pictures, {self.table['metric'].nunique()} metrics)"

    def _repr_html_(self) -> str:
        alt = "Means of each metric for random maps of low and high frequencies, and their paired difference."
        return html_of(self, self.summary(), alt)

    def _per_picture(self) -> pd.DataFrame:
        """The mean over draws: pictures, not draws, are what a paired difference counts."""
        keys = ["picture", "metric", "map"]
        means: Any = self.table.groupby(keys, sort=False)["value"].mean()
        return means.reset_index()


def default_metrics() -> dict[str, Metric]:
    """Returns deletion, insertion, faithfulness, and μFidelity with subsets of any and of exactly 17 of 81 cells."""
    return {
        "Deletion": Deletion(),
        "Insertion": Insertion(),
        "Faithfulness": Faithfulness(),
        "MuFidelity": MuFidelity(),
        "MuFidelity, 17 cells": MuFidelity(exact=True),
    }


def metric_bias(
    model: nn.Module | Engine,
    data: Data,
    *,
    metrics: Mapping[str, Metric] | None = None,
    attributions: Mapping[str, Explain] | None = None,
    spread: float = SPREAD,
    draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> MetricBias:
    """Returns what metrics give for random maps of low frequencies and for their shuffled twins (table 4, A.11).

    Each picture has a Gaussian at a random place and, as its twin, the same values in a random order: a metric without
    bias gives both the same, on average. The maps are not negative, so that under μFidelity a shuffled one counts how
    many cells a subset holds, with which the drop grows too; subsets of one size (17 cells) take this away.

    Args:
        model: A classifier, or an `Engine` made of one; not changed.
        data: (images, labels), images alone (labels = the model's prediction), or batches (images, labels[, ids]).
        metrics: By name; None: `default_metrics`.
        attributions: By name, whose values shall stand beside them (the paper: Saliency); None: none.
        spread: Standard deviation of the Gaussian as a share of the shorter side.
        draws: Pairs of maps for each picture, whose mean counts as its value.
        seed: Of the maps, which depend on it and on the picture's id.
        batch_size: Pictures per pass; None: by their size.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show a bar with the remaining time on stderr, if that is a terminal.

    Raises:
        TypeError: For what is no network, and data of another form.
        ValueError: No metrics, under one draw, a spread that is not above 0, pictures that do not fit, an attribution
            that is called as the random maps are, and settings beside an `Engine`.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2)).eval()
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> found = metric_bias(net, torch.rand(4, 3, 16, 16), metrics={"F": Faithfulness()})
        >>> found.summary()[["metric", "n"]].values.tolist()
        [['F', 4]]
    """
    chosen = dict(default_metrics() if metrics is None else metrics)
    others = dict(attributions or {})
    check_whole(draws=draws)
    if not chosen or {LOW, HIGH} & others.keys():
        raise ValueError(f"Expected metrics by name, and attributions not called {LOW!r} or {HIGH!r}.")
    engine = engine_of(model, batch_size, precision, device, progress)
    kinds: dict[str, Kind] = {LOW: "low", HIGH: "shuffled"}
    pairs = {  # the first draw is that of `random_maps`
        (name, draw): RandomMaps(kind, seed + draw, spread) for draw in range(draws) for name, kind in kinds.items()
    }
    rows: list[dict[str, Any]] = []
    with labelled(engine, data, "bias of metrics", 1) as batches:
        for batch in batches:
            maps = {key: made(None, *batch[:2], ids=batch.ids) for key, made in pairs.items()}
            found = maps_of(engine, others, *batch[:2], batch.ids) if others else {}
            maps |= {(name, 0): values for name, values in found.items()}
            rows += _rows(engine, batch, chosen, maps)
    import pandas as pd

    spec = {
        "control": "metric_bias",
        "model": name_of(model),
        "metrics": {name: text_of(metric) for name, metric in chosen.items()},
        "higher_is_better": {name: bool(getattr(metric, "higher_is_better", True)) for name, metric in chosen.items()},
        "spread": spread,
        "draws": draws,
        "seed": seed,
    }
    return MetricBias(pd.DataFrame(rows), spec)


def _rows(
    engine: Engine, batch: Labelled, metrics: Mapping[str, Metric], maps: Mapping[tuple[str, int], Tensor]
) -> list[dict[str, Any]]:
    by_text = {f"{name}/{draw}": found for (name, draw), found in maps.items()}
    found = scored_by(engine, metrics, batch.images, batch.labels, batch.ids, by_text)
    pictures = list(zip(batch.ids, batch.labels.tolist(), strict=True))
    return [
        {"picture": picture, "label": label, "metric": metric, "map": name, "draw": draw, "value": value}
        for metric, values in found.items()
        for (name, draw), of_map in zip(maps, values.values(), strict=True)
        for (picture, label), value in zip(pictures, of_map.tolist(), strict=True)
    ]

"""What was tried on several variants in one figure: gains on other pictures, or the curves of the cutoffs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from gradspec.plots._style import nothing
from gradspec.plots.cutoffs import cutoff_curves
from gradspec.plots.scores import gains

if TYPE_CHECKING:
    from gradspec.evaluation import Scores
    from gradspec.trials import Trials

_BETWEEN = " · "  # a variant and a method


def trials(found: Trials, metric: str | None = None) -> Figure:
    """Return what filters gain on all variants that were scored; where none was, the curves that cutoffs come from.

    Gains are of pictures that no cutoff was chosen on; curves are of those that it was chosen on, so they flatter.
    Fits by several metrics have no common scale: those of the first are drawn.

    Args:
        found: what `gradspec evaluate` or `gradspec fit` tried.
        metric: the key of the metric of the gains; None: faithfulness, or the first that was measured.
    """
    scored = found.scored
    if scored:
        known = list(dict.fromkeys(name for scores in scored.values() for name in scores.spec["metrics"]))
        chosen = metric or ("Faithfulness" if "Faithfulness" in known else next(iter(known), ""))
        measured = {name: scores for name, scores in scored.items() if chosen in scores.spec["metrics"]}
        if measured:
            return gains(_Together(measured, chosen), chosen)
    several = len(found.trials) > 1
    fits = {
        f"{trial.variant}{_BETWEEN}{method}" if several else method: fit
        for trial in found.trials
        for method, fit in trial.fits.items()
    }
    if not fits:
        return nothing("Nothing to draw: nothing was fitted or scored.")
    first = next(iter(fits.values())).metric
    return cutoff_curves({name: fit for name, fit in fits.items() if fit.metric == first})


class _Together:
    """Scores of several variants as `gains` takes those of one: each attribution under its variant's name."""

    examples: tuple[Any, ...] = ()
    slopes = pd.DataFrame()

    def __init__(self, scored: Mapping[str, Scores], metric: str) -> None:
        self._scored = scored
        first = next(iter(scored.values())).spec
        rows = [
            {**row, "attribution": row["attribution"] if row["arm"] == "control" else self._named(name, row)}
            for name, scores in scored.items()
            for row in scores.spec["rows"]
        ]
        self.spec: dict[str, Any] = {**first, "rows": rows, "metrics": {metric: first["metrics"][metric]}}
        if len(scored) > 1:
            self.spec["model"] = ", ".join(scored)

    def _named(self, variant: str, row: Mapping[Any, Any]) -> str:
        return f"{variant}{_BETWEEN}{row['attribution']}" if len(self._scored) > 1 else str(row["attribution"])

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame()

    def gains(self, metric: str = "Faithfulness", against: str = "none") -> pd.DataFrame:
        parts = []
        for variant, scores in self._scored.items():
            rows = scores.spec["rows"]
            if any(against in (row["arm"], row["attribution"]) for row in rows):
                table = scores.gains(metric, against)
                names = [self._named(variant, row) for row in table.to_dict("records")]
                parts.append(table.assign(attribution=names))
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

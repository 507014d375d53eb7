"""What a variant costs and what it gains: accuracy against the slope of the gradient at the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradspec.plots._labels import name_points
from gradspec.plots._style import FLAT, elide, nothing, settle, sign, styled, traces

if TYPE_CHECKING:
    from gradspec.results import Audit

_MOST = 4  # reasons that stand below the figure


class Drifting(Protocol):
    """What `drift` needs: a `Comparison` has it."""

    @property
    def audits(self) -> dict[str, Audit]:
        """Variant -> its audit."""
        ...

    @property
    def drift(self) -> pd.DataFrame:
        """The table of `Comparison.drift`."""
        ...


@styled
def drift(comparison: Drifting) -> Figure:
    """Return what each variant still computes, against the slope of its gradient at the network's input.

    A point per variant: to the left its spectrum falls more steeply, to the top the network gets more right.
    The height is the accuracy or, where no labels were given, the share of pictures with the first variant's class.
    Bars are one standard error over images; thin lines cross at the first variant. A variant without one of the two is
    named below with the reason.

    Args:
        comparison: a comparison.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.compare({"max": net, "again": net}, torch.rand(4, 3, 34, 34), progress=False)
        >>> drift(result).axes[0].get_ylabel()
        'same top-1 class as max'
    """
    table = comparison.drift
    labelled = bool(table["accuracy"].notna().any())
    points = _points(table, labelled=labelled)
    drawn: Any = points[np.isfinite(points["x"]) & np.isfinite(points["y"])]
    if drawn.empty:
        return nothing("Nothing to draw: no variant has a slope at the input.")
    figure = Figure(figsize=(7.6, 5), layout="constrained")
    ax = figure.add_subplot()
    for name, trace in traces(comparison.audits).items():
        row: Any = drawn[drawn["variant"] == name]
        style: dict[str, Any] = {"color": trace.colour, "marker": trace.marker, "markersize": 7, "linestyle": "none"}
        ax.errorbar(row["x"], row["y"], xerr=row["x_error"], yerr=row["y_error"], elinewidth=1, capsize=2.5, **style)
    _draw_references(ax, drawn, first := str(table["variant"].iloc[0]))
    _limit(ax, drawn)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylabel("accuracy" if labelled else f"same top-1 class as {elide(first, 40)}")
    words = "slope of the gradient at the input (log₁₀ amplitude per Nyquist; ± 1 s.e.)\n← falls more steeply"
    ax.set_xlabel("\n".join([words, *_left_out(points, drawn)]))
    sign(figure, comparison.audits)
    settle(figure)
    reach = drawn[["x_error", "y_error"]].fillna(0).to_numpy()
    names = [elide(name, 30) for name in drawn["variant"]]
    name_points(ax, names, drawn[["x", "y"]].to_numpy(), reach)
    return figure


def _points(table: pd.DataFrame, *, labelled: bool) -> pd.DataFrame:
    """Return place, errors and note of each variant."""
    share = table["accuracy"] if labelled else table["agreement"]
    binomial = np.sqrt(share * (1 - share) / (table["n"] - 1).where(table["n"] > 1))
    places = {"x": table["slope_nyquist"], "x_error": table["se_nyquist"], "y": share}
    places["y_error"] = table["se"] if labelled else binomial
    return pd.DataFrame({"variant": table["variant"], **places, "note": table["note"].fillna("").astype(str)})


def _draw_references(ax: Axes, drawn: pd.DataFrame, first: str) -> None:
    """Draw the lines that cross at the first variant."""
    for row in drawn[drawn["variant"] == first].itertuples():
        rest: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.7, "zorder": 0, "gid": "first"}
        ax.axvline(row.x, **rest)
        ax.axhline(row.y, **rest)


def _limit(ax: Axes, drawn: pd.DataFrame) -> None:
    """Keep points, errors and room for names in view, and white noise where it is near."""
    errors: Mapping[str, Any] = {at: drawn[f"{at}_error"].fillna(0) for at in "xy"}
    ends = {at: [(drawn[at] - errors[at]).min(), (drawn[at] + errors[at]).max()] for at in "xy"}
    low, high = ends["x"]
    if high < 0 and -high < high - low + 0.2:
        high = 0.0
    margin = 0.14 * (high - low) + 0.05  # for the names
    ax.set_xlim(low - margin, high + margin)
    if low - margin < 0 < high + margin:
        ax.axvline(0, **FLAT, zorder=0, gid="white noise")
        ax.annotate(
            "white noise", (0, 0), (-3, 3), xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="right",
            fontsize=8, color=FLAT["color"],
        )  # fmt: skip
    low, high = ends["y"]
    margin = 0.08 * (high - low) + 0.02
    ax.set_ylim(max(low, 0) - margin, min(high, 1) + margin)


def _left_out(points: pd.DataFrame, drawn: pd.DataFrame) -> list[str]:
    """Return a line for each variant that has no point, with the reason."""
    rows = points[~points["variant"].isin(drawn["variant"])]
    lines = [elide(f"not drawn: {row.variant}: {row.note or 'no slope'}", 96) for row in rows.itertuples()]
    return [*lines[:_MOST], *([f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else [])]

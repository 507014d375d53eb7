"""The ranking of the operators by the high-frequency power that they add."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradspec.plots._style import (
    LOOKS,
    Audits,
    by_name,
    elide,
    legend_above,
    look,
    nothing,
    settle,
    sign,
    styled,
    traces,
)

if TYPE_CHECKING:
    pass

_UNIT = "new power: share above ½ Nyquist, at input less at output (± 1 s.e.)"
_FEW = 2  # panels whose bars can be named and ranked in full


@styled
def culprits(audits: Audits, by: Literal["call", "type"] = "call", top: int | None = None) -> Figure:
    """Return the ranking of the operators by the high-frequency power that they add to the gradient.

    The mean new power over images (SPEC: share of the power above half of Nyquist at the input of a call, less that at
    its output), with one standard error; right of the zero line an operator adds high frequencies, left of it it
    removes some. A bar for each call or type, whose colour and hatch name the type.

    Of several audits calls are ranked in a panel each, up to three beside each other; types share one panel, in which a
    mark stands for each variant, and the types of the most new power in any variant come first.

    Args:
        audits: one audit, or several by name.
        by: rank single calls, or the means over the calls of a type.
        top: how many at most; default: 15, or 8 calls of more than two audits.

    Raises:
        ValueError: ``audits`` is an empty mapping, or ``top`` is below 1.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.audit(net, torch.rand(4, 3, 34, 34), progress=False)
        >>> [label.get_text() for label in culprits(result, by="type").axes[0].get_yticklabels()][0]
        'max pooling (1)'
    """
    named = by_name(audits)
    if top is not None and top < 1:
        raise ValueError(f"expected top of at least 1, got {top}")
    rankings = {name: audit.culprits(by=by).dropna(subset=["new_power"]) for name, audit in named.items()}
    if all(ranking.empty for ranking in rankings.values()):
        return nothing("Nothing to draw: no operator call of this audit has a measure of new power.")
    if by == "type" and len(named) > 1:
        figure = _types_together(rankings, top or 15)
    else:
        many = top or (8 if len(named) > _FEW else 15)
        figure = _panels({name: ranking.head(many) for name, ranking in rankings.items()}, by)
    sign(figure, named)
    settle(figure)
    return figure


def _panels(rankings: Mapping[str, pd.DataFrame], by: str) -> Figure:
    """Return a figure with the bars of each audit in a panel of its own."""
    longest = max(map(len, rankings.values()))
    columns = min(3, len(rankings))
    lines = -(-len(rankings) // columns)
    height = (0.24 * longest + 0.62) * lines + 1.33 - 0.1 * (len(rankings) == 1)
    figure = Figure(figsize=(6.6 if columns == 1 else 10, height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for i, (ax, (name, ranking)) in enumerate(zip(grid.flat, rankings.items(), strict=False)):
        _draw_ranking(ax, ranking, by, letters=34 if columns <= _FEW else 20)
        ax.set_ylim(longest - 0.4, -0.6)
        ax.tick_params(labelbottom=i + columns >= len(rankings))
        ax.set_xlabel(fill(_UNIT, 38 if columns <= _FEW else 24) if i // columns == lines - 1 else "")
        if len(rankings) > 1:
            ax.set_title(elide(name, 48 if columns <= _FEW else 36), loc="left", pad=16)  # above words at the zero line
    for ax in grid.flat[len(rankings) :]:
        ax.remove()
    present = {kind for ranking in rankings.values() for kind in ranking["type"]}
    kinds = sorted(present, key=lambda kind: [*LOOKS, kind].index(kind))
    handles = [Patch(facecolor=look(kind).colour, hatch=look(kind).hatch, edgecolor="black") for kind in kinds]
    legend_above(figure, [list(zip(handles, kinds, strict=True))], columns=4 if len(rankings) == 1 else 6)
    return figure


def _draw_ranking(ax: Axes, ranking: pd.DataFrame, by: str, letters: int) -> None:
    places = np.arange(len(ranking))
    draw_bars(ax, ranking["new_power"], ranking["type"])
    ax.errorbar(
        ranking["new_power"], places, xerr=ranking["se"], fmt="none", ecolor="black", elinewidth=1.1, capsize=2.5,
        zorder=3,
    )  # fmt: skip
    _say_directions(ax, ranking["new_power"])
    if by == "call":
        names = [elide(call, letters) for call in ranking["call"]]
    else:
        names = [f"{kind} ({calls})" for kind, calls in zip(ranking["type"], ranking["calls"], strict=True)]
    ax.set_yticks(places, names)


def draw_bars(ax: Axes, values: pd.Series, kinds: pd.Series) -> None:
    """Draw horizontal bars from the top down, each in the look of its type, on a line at zero."""
    bars = ax.barh(np.arange(len(values)), values, height=0.72, edgecolor="black", linewidth=0.6, zorder=2)
    for bar, kind in zip(bars, kinds, strict=True):
        bar.set(facecolor=look(kind).colour, hatch=look(kind).hatch)
    ax.axvline(0, color="black", linewidth=0.9, zorder=4, gid="zero")
    rule(ax)


def rule(ax: Axes) -> None:
    """Draw the grid of a panel with names on its left."""
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)


def _say_directions(ax: Axes, values: pd.Series) -> None:
    words = {"fontsize": 8, "color": "#444444", "va": "bottom", "textcoords": "offset points"}
    if (values > 0).any():
        ax.annotate("adds high frequency →", (0, 1), (4, 2), xycoords=ax.get_xaxis_transform(), ha="left", **words)
    if (values < 0).any():
        ax.annotate("← removes it", (0, 1), (-4, 2), xycoords=ax.get_xaxis_transform(), ha="right", **words)


def _types_together(rankings: Mapping[str, pd.DataFrame], top: int) -> Figure:
    """Return a figure with the types of all variants in one panel, a mark for each variant."""
    table = pd.concat([ranking.assign(variant=i) for i, ranking in enumerate(rankings.values())], ignore_index=True)
    highest: Any = table.groupby("type", sort=False)["new_power"].max()
    kinds = highest.sort_values(ascending=False, kind="stable").index[:top]
    counts: Any = table["type"].value_counts()[kinds]
    ends: Any = pd.Series(np.cumsum(0.1 * counts + 0.16), kinds)  # of the types' bands, in inches
    starts: Any = ends.shift(fill_value=0)
    table["place"] = table["type"].map(starts) + 0.13 + 0.1 * table.groupby("type").cumcount()
    figure = Figure(figsize=(8, ends.iloc[-1] + 1.3 + 0.17 * (len(rankings) // 5)), layout="constrained")
    ax = figure.add_subplot()
    for kind in kinds[::2]:
        ax.axhspan(starts[kind], ends[kind], color="#f3f3f3", linewidth=0, zorder=0)
    handles = []
    for i, (name, trace) in enumerate(traces(rankings).items()):
        rows: Any = table[(table["variant"] == i) & table["place"].notna()]
        mark: dict[str, Any] = {"color": trace.colour, "marker": trace.marker, "linestyle": "none", "markersize": 5}
        ax.errorbar(rows["new_power"], rows["place"], xerr=rows["se"], elinewidth=1, capsize=2, zorder=3, **mark)
        handles.append((Line2D([], [], **mark), elide(name, 24)))
    ax.axvline(0, color="black", linewidth=0.9, zorder=2, gid="zero")
    rule(ax)
    _say_directions(ax, table["new_power"])
    names = [f"{kind} ({_range(table.loc[table['type'] == kind, 'calls'])})" for kind in kinds]
    ax.set_yticks((starts + ends) / 2, names)
    ax.set_ylim(ends.iloc[-1], 0)
    ax.set_xlabel(_UNIT)
    legend_above(figure, [handles], columns=5)
    return figure


def _range(calls: pd.Series) -> str:
    return f"{calls.min()}" if calls.min() == calls.max() else f"{calls.min()}–{calls.max()}"

"""The ranking of the operators by the high-frequency power that they add."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradspec.plots._style import LOOKS, Audits, by_name, elide, legend_above, look, nothing, settle, sign, styled


@styled
def culprits(audits: Audits, by: Literal["call", "type"] = "call", top: int = 15) -> Figure:
    """Return the ranking of the operators by the high-frequency power that they add to the gradient.

    Bars are the mean new power over images (SPEC: share of the power above half of Nyquist at the input of a call, less
    that at its output), with one standard error; right of the zero line an operator adds high frequencies, left of it
    it removes some. Colour and hatch name the operator's type.

    Args:
        audits: one audit, or several by name, each ranked in its own panel.
        by: rank single calls, or the means over the calls of a type.
        top: how many bars at most.

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
    if top < 1:
        raise ValueError(f"expected top of at least 1, got {top}")
    rankings = {name: audit.culprits(by=by).dropna(subset=["new_power"]).head(top) for name, audit in named.items()}
    longest = max(len(ranking) for ranking in rankings.values())
    if not longest:
        return nothing("Nothing to draw: no operator call of this audit has a measure of new power.")
    width = 6.6 if len(named) == 1 else 4.8 * len(named)
    figure = Figure(figsize=(width, 0.24 * longest + 1.95), layout="constrained")
    panels = figure.subplots(1, len(named), sharex=True, squeeze=False).flat
    for ax, (name, ranking) in zip(panels, rankings.items(), strict=True):
        _draw_ranking(ax, ranking, by)
        ax.set_ylim(longest - 0.4, -0.6)
        if len(named) > 1:
            ax.set_title(elide(name, 48), loc="left", pad=16)  # above the words at the zero line
    present = {kind for ranking in rankings.values() for kind in ranking["type"]}
    kinds = sorted(present, key=lambda kind: [*LOOKS, kind].index(kind))
    handles = [Patch(facecolor=look(kind).colour, hatch=look(kind).hatch, edgecolor="black") for kind in kinds]
    legend_above(figure, [list(zip(handles, kinds, strict=True))], columns=4 if len(named) == 1 else 6)
    sign(figure, named)
    settle(figure)
    return figure


def _draw_ranking(ax: Axes, ranking: pd.DataFrame, by: str) -> None:
    places = np.arange(len(ranking))
    bars = ax.barh(places, ranking["new_power"], height=0.72, edgecolor="black", linewidth=0.6, zorder=2)
    for bar, kind in zip(bars, ranking["type"], strict=True):
        bar.set(facecolor=look(kind).colour, hatch=look(kind).hatch)
    ax.errorbar(
        ranking["new_power"], places, xerr=ranking["se"], fmt="none", ecolor="black", elinewidth=1.1, capsize=2.5,
        zorder=3,
    )  # fmt: skip
    ax.axvline(0, color="black", linewidth=0.9, zorder=4, gid="zero")
    words = {"fontsize": 8, "color": "#444444", "va": "bottom", "textcoords": "offset points"}
    if (ranking["new_power"] > 0).any():
        ax.annotate("adds high frequency →", (0, 1), (4, 2), xycoords=ax.get_xaxis_transform(), ha="left", **words)
    if (ranking["new_power"] < 0).any():
        ax.annotate("← removes it", (0, 1), (-4, 2), xycoords=ax.get_xaxis_transform(), ha="right", **words)
    if by == "call":
        names = [elide(call, 34) for call in ranking["call"]]
    else:
        names = [f"{kind} ({calls})" for kind, calls in zip(ranking["type"], ranking["calls"], strict=True)]
    ax.set_yticks(places, names)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel("new power: share above ½ Nyquist,\nat input less at output (± 1 s.e.)")

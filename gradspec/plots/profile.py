"""The slope profile: spectral slope of the gradient along the depth (paper figures A.5 and A.6)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from gradspec.plots._naming import LINE, lift_names, name_calls, name_variants, pitch_of
from gradspec.plots._style import (
    DOWNSAMPLING,
    FLAT,
    OTHER_DOWNSAMPLING,
    Audits,
    Trace,
    by_name,
    in_gradient_order,
    keys_of,
    legend_above,
    look,
    nothing,
    settle,
    sign,
    size_text,
    styled,
    traces,
)

if TYPE_CHECKING:
    from gradspec.results import Audit

_BESIDE = "of another map size"  # than the stage's


@styled
def slope_profile(audits: Audits) -> Figure:
    """Return the slope of the gradient's spectrum at every point along the depth (paper figures A.5 and A.6).

    From the prediction (left) to the network's input (right), as the gradient flows; within a call the gradient at its
    output comes first. Bands are 95 % confidence intervals of the mean over images (Student's t). A downsampling
    operator is marked where the gradient has just passed it, at its input. Rows with a note have no slope and are left
    out; a NaN without a note leaves a gap. Vertical lines part the stages, points of one map size, above which the
    size stands; a point of another size, as at the input of a shortcut, starts no stage and the line passes it by.

    Variants are named at the right, with the slope at the network's input. Calls of the same name share their place;
    calls that surgery put into a module stand between the places of that module's output and input.

    Args:
        audits: one audit, or several by name, drawn in one panel.

    Raises:
        ValueError: ``audits`` is an empty mapping.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.audit(net, torch.rand(4, 3, 34, 34), progress=False)
        >>> [text.get_text() for text in slope_profile(result).axes[0].texts]
        ['16×16', '32×32']
    """
    named = by_name(audits)
    points = _points(named)
    if points.empty:
        return nothing("Nothing to draw: no point of this audit has a slope. The table's notes say why.")
    figure = Figure(figsize=(10, max(5.2, 2.6 + LINE / 72 * len(named))), layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(0, **FLAT, gid="white noise")
    for i, trace in enumerate(traces(named).values()):
        _draw_variant(ax, pd.DataFrame(points[points["variant"] == i]), trace, single=len(named) == 1)
    ax.set_xlim(-0.02 * points["x"].max() - 0.5, 1.02 * points["x"].max() + 0.5)
    _limit_slopes(ax, points)
    missing = sum(len(audit.table) for audit in named.values()) - len(points)
    left_out = f"; {missing} points without a slope are left out" if missing else ""
    ax.set_xlabel(f"operator calls, from the prediction (left) to the input (right){left_out}")
    ax.set_ylabel("spectral slope of the gradient\n(log₁₀ amplitude per Nyquist)")
    _profile_legend(figure, ax, points, single=len(named) == 1)
    names = name_variants(ax, named) if len(named) > 1 else []
    sign(figure, named)
    settle(figure)  # now the panel has its width
    _mark_stages(ax, points)
    name_calls(ax, points)
    settle(figure)  # and its height
    if names:
        lift_names(ax, names, list(traces(named).values()))
    return figure


def _draw_variant(ax: Axes, rows: pd.DataFrame, trace: Trace, *, single: bool) -> None:
    """Draw one audit's line, band and marks; marks of a single audit wear their own kind's colour."""
    colour, style = trace.colour, trace.style
    x, slope = rows["x"].to_numpy(), rows["slope_nyquist"].to_numpy(float)
    half = _half_band(rows)
    on = _trunk(rows["stage"].to_numpy()) == rows["stage"].to_numpy()
    low, high = slope - half, slope + half
    ax.fill_between(x[on], low[on], high[on], color=colour, alpha=0.22 if single else 0.14, linewidth=0, gid="band")
    dots = range(on.sum()) if single and len(rows) <= 100 else _lonely(slope[on])  # else they would hide the dashes
    line: dict[str, Any] = {"linestyle": style, "linewidth": 1.3, "marker": ".", "markevery": list(dots)}
    ax.plot(x[on], slope[on], color=colour, gid="slope", **line)
    if not on.all():  # parallel branches: neighbours among them are joined, they and the trunk are not
        ax.vlines(x[~on], low[~on], high[~on], color=colour, alpha=0.3, linewidth=3, gid="band beside")
        beside, rest = np.where(on, np.nan, slope), {"linewidth": 0.8, "markersize": 4, "markerfacecolor": "white"}
        ax.plot(x, beside, color=colour, linestyle=style, marker="o", gid="beside", **rest)
    for kind in [kind for kind in (*DOWNSAMPLING, OTHER_DOWNSAMPLING) if (rows["kind"] == kind).any()]:
        symbol, here = _symbol(kind, look(kind).colour if single else colour), (rows["kind"] == kind).to_numpy()
        symbol.set(xdata=x[here], ydata=slope[here], gid=kind, zorder=3)
        ax.add_line(symbol)


def _lonely(values: np.ndarray) -> np.ndarray:
    """Return where a number stands between gaps, so that no line would show it."""
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    return np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])


def _points(named: Mapping[str, Audit]) -> pd.DataFrame:
    """Return the drawable rows of all audits: number of the variant, kind of downsampling, module, place ``x``."""
    tables = [in_gradient_order(audit.table) for audit in named.values()]
    calls = {call for table in tables for call in table["call"]}
    drawn = [pd.DataFrame(table[table["note"] == ""]) for table in (_in_modules(table, calls) for table in tables)]
    place = {spot: x for x, spot in enumerate(_merged_order([table["spot"].tolist() for table in drawn]))}
    parts = [
        table.assign(variant=i, x=[place[spot] for spot in table["spot"]]).sort_values("x")
        for i, table in enumerate(drawn)
    ]
    return pd.concat(parts, ignore_index=True)


def _in_modules(table: pd.DataFrame, calls: Collection[str]) -> pd.DataFrame:
    """Return the rows with the ``module`` of each and its ``spot``, what it has in common with other variants' rows.

    Where a variant calls "pool", another's "pool:pad" and "pool:conv2d" are its parts: the first of these outputs, as
    the gradient meets them, takes the spot of the module's output, the last input that of its input.
    """
    within = table["call"].str.partition(":")[0]
    module = within.where(within.isin(list(calls)), table["call"])
    run = module.ne(module.shift()).cumsum()
    module = module.where(run.groupby(module).transform("nunique") == 1, table["call"])  # one called again and again
    first, last = module.ne(module.shift()), module.ne(module.shift(-1))
    outer = (first & (table["point"] == "output")) | (last & (table["point"] == "input"))
    spots = [
        (name, point) if ends else (name, call, point)
        for name, (call, point), ends in zip(module, keys_of(table), outer, strict=True)
    ]
    return table.assign(module=module, spot=spots)


def _merged_order(orders: Sequence[Sequence[Hashable]]) -> list[Hashable]:
    """Return one order of all keys: the first audit's, with keys only others have right behind their predecessor."""
    merged: list[Hashable] = []
    for order in orders:
        known, at = set(merged), 0
        for key in order:
            if key in known:
                at = merged.index(key) + 1
            else:
                merged.insert(at, key)
                at += 1
    return merged


def _trunk(stages: np.ndarray) -> np.ndarray:
    """Return the non-increasing stages that differ from ``stages`` (P,) at the fewest points.

    A shortcut makes the map sizes along a residual network jump back and forth; the trunk's do not.
    """
    levels = np.unique(stages)[::-1]
    wrong = stages[:, None] != levels  # (P, levels)
    cost = np.zeros(wrong.shape)
    for i, row in enumerate(wrong):
        cost[i] = row + (np.minimum.accumulate(cost[i - 1]) if i else 0)
    path, last = [], len(levels)
    for row in cost[::-1]:
        last = int(np.argmin(row[: last + 1]))
        path.append(levels[last])
    return np.array(path[::-1])


def _mark_stages(ax: Axes, points: pd.DataFrame) -> None:
    """Draw a line between stages and the usual map size of each above the panel, in as many rows as it takes."""
    spots = points.drop_duplicates("x").sort_values("x")
    trunk = _trunk(spots["stage"].to_numpy())
    starts = np.flatnonzero(np.diff(trunk, prepend=trunk[0] - 1))
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="#999999", linewidth=0.9, gid="stage boundary", zorder=0)
    taken: list[float] = []  # right end of the last label of each row, in typographic points
    for start, stop in zip(starts, [*starts[1:], len(spots)], strict=True):
        part, middle = spots.iloc[start:stop], (start + stop - 1) / 2
        part = part[part["stage"] == trunk[start]]
        sizes = part.loc[part["variant"] == part["variant"].min(), ["height", "width"]].value_counts()
        text = size_text(*sizes.index[0])
        left = middle * pitch_of(ax) - 2.8 * len(text)
        row = next((i for i, end in enumerate(taken) if left > end), len(taken))
        taken[row : row + 1] = [left + 5.6 * len(text) + 4]
        ax.annotate(
            text, (middle, 1), (0, 3 + 11 * row), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color="#444444", gid="stage label",
        )  # fmt: skip


def _limit_slopes(ax: Axes, points: pd.DataFrame) -> None:
    """Keep the whole line in view, and of the bands what does not dwarf it: those of tiny maps can be huge."""
    slopes = points["slope_nyquist"].to_numpy(float)
    if not np.isfinite(slopes).any():
        return
    low, high = min(np.nanmin(slopes), 0.0), max(np.nanmax(slopes), 0.0)
    half = _half_band(points)
    room = 0.5 * (high - low) + 0.1
    below, above = slopes - half, slopes + half
    if np.isfinite(half).any():
        low = min(low, max(np.nanpercentile(below, 5), low - room))
        high = max(high, min(np.nanpercentile(above, 95), high + room))
    ax.set_ylim(low - 0.08 * (high - low) - 0.02, high + 0.08 * (high - low) + 0.02)


def _half_band(rows: pd.DataFrame) -> np.ndarray:
    """Return half the width of the 95 % interval of each slope; NaN for one image."""
    return stdtrit(rows["n"].to_numpy(float) - 1, 0.975) * rows["se_nyquist"].to_numpy(float)


def _profile_legend(figure: Figure, ax: Axes, points: pd.DataFrame, *, single: bool) -> None:
    """Write what the lines and marks mean; several variants are named at the right of the panel instead."""
    kinds = [kind for kind in (*DOWNSAMPLING, OTHER_DOWNSAMPLING) if (points["kind"] == kind).any()]
    lines = [line for line in ax.lines if line.get_gid() == "slope"]
    entries: list[tuple[Any, str]] = [(line, "every point, 95 % band") for line in lines[:1] if single]
    entries.append((Line2D([], [], **FLAT), "white noise (0)"))
    beside = [line for line in ax.lines if line.get_gid() == "beside"][:1]
    entries += [(_ring(line.get_color() if single else "#777777"), _BESIDE) for line in beside]
    entries += [(_symbol(kind, look(kind).colour if single else "white"), kind) for kind in kinds]
    legend_above(figure, [entries])


def _ring(colour: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker="o", markersize=4, color=colour, markerfacecolor="white")


def _symbol(kind: str, face: Any) -> Line2D:
    """Return the symbol of a kind of downsampling, not yet placed."""
    symbol = Line2D([], [], linestyle="none", marker=look(kind).marker, markersize=6.5)
    symbol.set(markerfacecolor=face, markeredgecolor="black", markeredgewidth=0.7)
    return symbol

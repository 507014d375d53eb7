"""The causal arm: what swapping single operators does to the gradient at the input, beside their new power."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradspec.causality import agreement
from gradspec.plots._style import LOOKS, VARIANTS, elide, look, nothing, settle, sign, styled
from gradspec.plots.ranking import draw_bars, rule

if TYPE_CHECKING:
    from gradspec.results import Audit

_MANY = 30  # operators, above which rows stand close


class Effects(Protocol):
    """What `causal` needs: a `Comparison` has it."""

    @property
    def audits(self) -> dict[str, Audit]:
        """Variant -> its audit; the table is about the first."""
        ...

    @property
    def effects(self) -> pd.DataFrame | None:
        """The table of `Comparison.causal`."""
        ...


class _Arm(NamedTuple):
    name: str  # as in the table
    base: str  # the arm from which its changes are counted
    words: str
    colour: str
    face: str
    marker: str
    shift: float  # from the middle of an operator's row


_ARMS = (
    _Arm("one", "none", "this one swapped", VARIANTS[0].colour, VARIANTS[0].colour, "o", -0.17),
    _Arm("all but one", "all", "all others swapped", VARIANTS[2].colour, "white", "s", 0.17),
)


@styled
def causal(comparison: Effects, *, top: int = 60) -> Figure:
    """Return what swapping operators for average pooling does to the gradient at the input, beside their new power.

    A row per operator, ranked by its new power, which the bars on the right show. On the left the slope of the
    gradient at the network's input: with this operator alone swapped (dot), a way from the line of the network as it
    is; with all others swapped (square), a way from the line of the network with all swapped. The longer a way, the
    more the operator does. Error bars are one standard error of the change, paired over images; where there is none to
    count from, of the slope. An arm that failed is missing, with the reason at the right. The legend gives the rank
    correlation of each arm's effect with new power, positive where both say the same.

    Args:
        comparison: a comparison whose `causal` table is made.
        top: how many operators at most.

    Raises:
        ValueError: ``top`` is below 1.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.compare({"max": net}, torch.rand(4, 3, 34, 34), progress=False)
        >>> table = result.causal(progress=False)
        >>> [label.get_text() for label in causal(result).axes[0].get_yticklabels()]
        ['1']
    """
    if top < 1:
        raise ValueError(f"expected top of at least 1, got {top}")
    if comparison.effects is None:
        return nothing("Nothing to draw: Comparison.causal has not been called, which swaps operators one by one.")
    effects = comparison.effects.assign(note=comparison.effects["note"].fillna("").astype(str))
    operators = _operators(effects)
    if operators.empty:
        return nothing("Nothing to draw: no operator was swapped.")
    shown = operators.head(top)
    notes = _notes(effects, shown["call"])
    pitch = 0.27 if len(shown) <= _MANY else 0.165
    figure = Figure(figsize=(10, pitch * len(shown) + 2), layout="constrained")
    ratios = [4, 1.6, 2.4] if any(notes) else [4, 1.6]
    left, right, *beside = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    for arm in _ARMS:
        _draw_arm(left, effects, shown["call"], arm, size=5 if len(shown) <= _MANY else 3.5)
    _draw_bases(left, effects)
    rule(left)
    left.set_yticks(range(len(shown)), [elide(call, 28) for call in shown["call"]])
    left.set_ylim(len(shown) - 0.4, -0.6)
    fewer = f"; {len(shown)} of {len(operators)} operators" if len(shown) < len(operators) else ""
    left.set_xlabel(
        f"slope of the gradient at the input (log₁₀ amplitude per Nyquist)\n"
        f"← falls more steeply; bars: ± 1 s.e. of the change{fewer}"
    )
    draw_bars(right, shown["new_power"], shown["type"])
    right.set_xlabel("new power: share above\n½ Nyquist, input less output")
    for ax in beside:
        _write_notes(ax, notes)
    _explain(figure, right, effects, shown)
    sign(figure, dict(list(comparison.audits.items())[:1]))
    settle(figure)
    return figure


def _operators(effects: pd.DataFrame) -> pd.DataFrame:
    """Return call, type and new power of the swapped operators, most new power first, without one last."""
    rows: Any = effects[effects["arm"].isin([arm.name for arm in _ARMS])]
    return rows.drop_duplicates("call").sort_values("new_power", ascending=False, kind="stable", ignore_index=True)


def _of_arm(effects: pd.DataFrame, calls: pd.Series, arm: str) -> pd.DataFrame:
    """Return the rows of an arm in the order of ``calls``."""
    rows: Any = effects[effects["arm"] == arm]
    return rows.drop_duplicates("call").set_index("call").reindex(calls)


def _base(effects: pd.DataFrame, arm: str) -> Any:
    """Return the row of an arm that is not about one operator; None where it has no slope."""
    rows = effects[(effects["arm"] == arm) & np.isfinite(effects["slope_nyquist"])]
    return None if rows.empty else rows.iloc[0]


def _draw_bases(ax: Axes, effects: pd.DataFrame) -> None:
    """Draw the lines that changes are counted from, and above the panel their names and slopes."""
    rows = {arm: row for arm in _ARMS if (row := _base(effects, arm.base)) is not None}
    slopes = [row["slope_nyquist"] for row in rows.values()]
    for arm, row in rows.items():
        slope, se = row["slope_nyquist"], row["se_nyquist"]
        if np.isfinite(se):
            ax.axvspan(slope - se, slope + se, color=arm.colour, alpha=0.13, linewidth=0, zorder=0)
        ax.axvline(slope, color=arm.colour, linewidth=1.1, linestyle=(0, (6, 2)), zorder=1, gid=arm.base)
    between = len(rows) < 2 or np.ptp(slopes) > 0.55 * np.ptp(ax.get_xlim())  # is room for the names
    for arm, row in rows.items():
        slope = row["slope_nyquist"]
        right = slope > np.mean(ax.get_xlim()) if between else slope < max(slopes)
        ax.annotate(
            f"{arm.base} swapped {slope:+.2f}".replace("-", "−"), (slope, 1), (-3 if right else 3, 2), va="bottom",
            xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="right" if right else "left", fontsize=8,
            color=arm.colour,
        )  # fmt: skip


def _draw_arm(ax: Axes, effects: pd.DataFrame, calls: pd.Series, arm: _Arm, size: float) -> None:
    """Draw an arm's slopes with their errors and the way that each is from the arm's line."""
    rows = _of_arm(effects, calls, arm.name)
    slopes, errors = rows["slope_nyquist"], rows["se_change"].fillna(rows["se_nyquist"])
    places = np.arange(len(rows)) + arm.shift
    base = _base(effects, arm.base)
    if base is not None:
        ax.hlines(places, base["slope_nyquist"], slopes, color=arm.colour, linewidth=1.6, alpha=0.45, gid=arm.name)
    style: dict[str, Any] = {"linestyle": "none", "elinewidth": 1, "capsize": 2, "gid": arm.name, "zorder": 3}
    ax.errorbar(slopes, places, xerr=errors, **_mark(arm, size), **style)


def _mark(arm: _Arm, size: float) -> dict[str, Any]:
    return {"color": arm.colour, "marker": arm.marker, "markersize": size, "markerfacecolor": arm.face}


def _notes(effects: pd.DataFrame, calls: pd.Series) -> list[str]:
    """Return for each operator why an arm has no slope; an empty text where both have one."""
    notes = []
    for rows in zip(*(_of_arm(effects, calls, arm.name).itertuples() for arm in _ARMS), strict=True):
        lacking = [(arm, row) for arm, row in zip(_ARMS, rows, strict=True) if not np.isfinite(row.slope_nyquist)]
        reasons = {
            arm.words: str(row.note) if row.note == row.note and row.note else "no slope" for arm, row in lacking
        }
        alike = len(reasons) == len(_ARMS) and len(set(reasons.values())) == 1
        notes.append(reasons[_ARMS[0].words] if alike else "; ".join(f"{arm}: {why}" for arm, why in reasons.items()))
    return notes


def _write_notes(ax: Axes, notes: list[str]) -> None:
    ax.set_axis_off()
    for place, note in enumerate(notes):
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": "#555555", "gid": "note", "in_layout": False}
        ax.text(0, place, elide(note, 38), transform=ax.get_yaxis_transform(), **style)


def _explain(figure: Figure, right: Axes, effects: pd.DataFrame, operators: pd.DataFrame) -> None:
    """Write above the panels what the marks mean, how far each arm agrees with the ranking, why there is no line."""
    found = agreement(effects).set_index("arm")
    entries = []
    for arm in _ARMS:
        row: Any = found.loc[arm.name]
        value = f"rank correlation with new power {row['correlation']:+.2f} (p {row['p']:.2g})".replace("-", "−")
        words = f"{arm.words}, away from “{arm.base}”; {row['note'] or value}"
        entries.append((Line2D([], [], linestyle="none", **_mark(arm, 5)), words))
    for arm in _ARMS:
        if _base(effects, arm.base) is None:
            why = "".join(effects.loc[effects["arm"] == arm.base, "note"].head(1))
            entries.append((Line2D([], [], linestyle="none"), elide(f"{arm.base} swapped: {why or 'no slope'}", 72)))
    figure.legend(*zip(*entries, strict=True), loc="outside upper left")
    kinds = sorted(set(operators["type"]), key=lambda kind: [*LOOKS, kind].index(kind))
    types = [Patch(facecolor=look(kind).colour, hatch=look(kind).hatch, edgecolor="black") for kind in kinds]
    names = [elide(kind, 24) for kind in kinds]
    above = right.legend(types, names, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4)
    above.set_in_layout(len(kinds) > len(entries))  # else it stands beside the other legend

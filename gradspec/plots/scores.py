"""What FORGrad gains: intervals of the gains, faithfulness against slope and against time, maps before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gradspec.plots._labels import name_points
from gradspec.plots._style import FLAT, VARIANTS, elide, legend_above, nothing, settle, styled
from gradspec.plots.overlay import Shown, contact_sheet

_ARMS = {"none": 1, "abs": 4, "forgrad": 2, "forgrad-gradient": 0, "shared": 3, "gaussian": 5, "control": 6}
_SAID = {
    "none": "no filter", "abs": "abs only", "forgrad": "FORGrad (map)", "forgrad-gradient": "FORGrad (gradient)",
    "shared": "one cutoff for all", "gaussian": "Gaussian", "control": "control",
}  # fmt: skip
_FAMILIES = {
    "white": (VARIANTS[2].colour, "o"), "gray": (VARIANTS[3].colour, "D"), "black": (VARIANTS[0].colour, "s"),
    "control": ("#777777", "X"), "": (VARIANTS[5].colour, "^"),
}  # fmt: skip
_KINDS = {"white": "white-box", "gray": "gray-box", "black": "black-box", "control": "knows no network", "": "other"}
_FILTERED = ("forgrad", "forgrad-gradient")


class Evaluated(Protocol):
    """What is drawn of scores: `gradspec.evaluation.Scores` has it."""

    @property
    def examples(self) -> tuple[Any, ...]:
        """Pictures with `picture`, `label`, `predicted`, `pixels` and `maps` by (attribution, arm)."""
        ...

    @property
    def slopes(self) -> pd.DataFrame:
        """The table of `Scores.slopes`."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Model, pictures, metrics."""
        ...

    def summary(self) -> pd.DataFrame:
        """The table of `Scores.summary`."""
        ...

    def gains(self, metric: str = "Faithfulness", against: str = "none") -> pd.DataFrame:
        """The table of `Scores.gains`."""
        ...


# ---- gains ---------------------------------------------------------------------------------------


@styled
def gains(
    scores: Evaluated, metric: str = "Faithfulness", against: Sequence[str] = ("none", "abs", "centre prior")
) -> Figure:
    """Return a forest of paired gains: for each attribution and arm the mean over pictures and its interval.

    A panel for each thing that is compared with; right of the line at zero the arm is better. A mark is filled where
    the interval leaves zero out.

    Args:
        scores: what `gradspec.evaluate` found.
        metric: the key of the metric.
        against: arms or controls, as for `Scores.gains`; those that the scores have none of are left out.

    Example:
        >>> import torch
        >>> from gradspec.attributions import Saliency
        >>> from gradspec.evaluation import evaluate
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 2)).eval()
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> found = evaluate(net, torch.rand(4, 3, 5, 5), {"Saliency": Saliency()}, fits={"Saliency": 1.5})
        >>> [ax.get_title() for ax in gains(found).axes]
        ['against no filter', 'against abs only', 'against centre prior']
    """
    known = {row["arm"] for row in scores.spec["rows"]} | {row["attribution"] for row in scores.spec["rows"]}
    tables = {name: scores.gains(metric, name) for name in against if name in known}
    tables = {name: table for name, table in tables.items() if table["mean"].notna().any()}
    if not tables:
        return nothing("Nothing to draw: no attribution has two arms to compare.")
    methods = list(dict.fromkeys(name for table in tables.values() for name in table["attribution"]))
    arms = [arm for arm in _ARMS if any((table["arm"] == arm).any() for table in tables.values())]
    high = len(methods) * (0.13 * len(arms) + 0.14)
    figure = Figure(figsize=(max(2.9 * len(tables) + 1.2, 5.6), high + 1.55), layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(tables), sharex=True, sharey=True)))
    for ax, (name, table) in zip(panels, tables.items(), strict=True):
        _draw_gains(ax, table, methods, arms)
        ax.set_title(f"against {_SAID.get(name, name)}", loc="center")
    panels[0].set_yticks(range(len(methods)), [elide(name, 26) for name in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel(_gain_words(scores, metric), fontsize=8, color="#444444")
    marks = [(_mark(arm, filled=True), _SAID[arm]) for arm in arms]
    legend_above(figure, [marks], columns=6)
    settle(figure)
    return figure


def _draw_gains(ax: Axes, table: pd.DataFrame, methods: Sequence[str], arms: Sequence[str]) -> None:
    for k in range(0, len(methods), 2):
        ax.axhspan(k - 0.5, k + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    ax.axvline(0, color="black", linewidth=0.9, zorder=1, gid="zero")
    step = 0.74 / len(arms)
    rows: Any = table.itertuples()
    for row in rows:
        if not np.isfinite(row.mean):
            continue
        place = methods.index(row.attribution) + (arms.index(row.arm) - (len(arms) - 1) / 2) * step
        sure = bool(row.low > 0 or row.high < 0)
        mark = _mark(row.arm, filled=sure)
        ax.plot([row.low, row.high], [place, place], color=mark.get_color(), linewidth=1.3, zorder=2, gid="interval")
        ax.add_line(_at(mark, row.mean, place))
    ax.margins(x=0.08)
    ax.autoscale_view(scaley=False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)


def _mark(arm: str, *, filled: bool) -> Line2D:
    look = VARIANTS[_ARMS.get(arm, 7)]
    return Line2D(
        [], [], color=look.colour, marker=look.marker, linestyle="none", markersize=5, zorder=3, gid="gain",
        markerfacecolor=look.colour if filled else "white",
    )  # fmt: skip


def _at(mark: Line2D, x: float, y: float) -> Line2D:
    mark.set_data([x], [y])
    return mark


def _gain_words(scores: Evaluated, metric: str) -> str:
    about = scores.spec["metrics"][metric]
    kind = "gain" if about["higher_is_better"] else "decrease"
    n, chosen_on = scores.spec["pictures"], scores.spec.get("selection", 0)
    over = f"{n} pictures ({chosen_on} of them chosen on)" if chosen_on else f"{n} pictures"
    return f"{kind} in {metric}, mean over {over} and 95 % interval; filled: without zero\n{_model(scores)}"


# ---- scatters ------------------------------------------------------------------------------------


@styled
def slope_scatter(points: pd.DataFrame, score: str = "faithfulness", foot: str = "") -> Figure:
    """Return scores against the slope of the maps' spectrum, an arrow from each method to FORGrad (figs. 3B, A.13).

    To the left the maps have less high frequency, above they explain better. Bars are one standard error over pictures.

    Args:
        points: a row per point: `name`, `slope` (log10 amplitude per Nyquist), `score`, and where known `slope_se`,
            `score_se`, `family` ("white", "gray", "black", "control"), `arm` ("none", "forgrad", ...) and `base`, by
            which an arrow leads from the point of arm "none" with that `name`.
        score: what the height is.
        foot: words below.

    Raises:
        ValueError: a column is not there.

    Example:
        >>> table = pd.DataFrame({"name": ["Saliency", "RISE"], "slope": [-0.5, -3.0], "score": [0.1, 0.4]})
        >>> slope_scatter(table).axes[0].get_ylabel()
        'faithfulness'
    """
    words = "slope of the maps' spectrum (log₁₀ amplitude per Nyquist; ± 1 s.e.)\n← falls more steeply"
    return _scatter(points, "slope", words, score, foot, logarithmic=False)


@styled
def faithfulness_time(points: pd.DataFrame, score: str = "faithfulness", foot: str = "") -> Figure:
    """Return scores against the seconds that 100 explanations take, an arrow from each method to FORGrad (fig. 1B).

    Above they explain better, to the left they are faster. Bars are one standard error over pictures.

    Args:
        points: a row per point: `name`, `seconds` per 100 explanations, `score`, and further columns as for
            `slope_scatter`.
        score: what the height is.
        foot: words below.

    Raises:
        ValueError: a column is not there.
    """
    return _scatter(points, "seconds", "seconds for 100 explanations", score, foot, logarithmic=True)


def points_of(scores: Evaluated, metric: str = "Faithfulness", arms: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the points of `slope_scatter` and `faithfulness_time`: a row for each attribution, arm and control.

    Args:
        scores: what `gradspec.evaluate` found.
        metric: the key of the metric.
        arms: which arms beside the controls; None: "none" and "forgrad", or "forgrad-gradient" where that is all.
    """
    if arms is None:
        known = {row["arm"] for row in scores.spec["rows"]}
        arms = ("none", "forgrad" if "forgrad" in known else "forgrad-gradient")
    table = scores.summary().merge(scores.slopes, on=["attribution", "arm"], suffixes=("", "_slope"))
    table = table[table["arm"].isin([*arms, "control"])]
    bases = {(row["attribution"], row["arm"]): row["base"] for row in scores.spec["rows"]}
    based = [bases[key] for key in zip(table["attribution"], table["arm"], strict=True)]
    columns = {
        "name": table["name"], "attribution": table["attribution"], "arm": table["arm"], "base": based,
        "family": table["family"], "score": table[metric], "score_se": table[f"{metric} se"],
        "slope": table["slope_nyquist"], "slope_se": table["se"], "seconds": table["seconds per 100"],
    }  # fmt: skip
    return pd.DataFrame(columns).reset_index(drop=True)


def _scatter(points: pd.DataFrame, x: str, words: str, score: str, foot: str, *, logarithmic: bool) -> Figure:
    drawn = _complete(points, x)
    fine = np.isfinite(drawn[x]) & np.isfinite(drawn["score"]) & ((drawn[x] > 0) | (not logarithmic))
    drawn: Any = drawn[fine].reset_index(drop=True)
    if drawn.empty:
        return nothing(f"Nothing to draw: no point has both {x} and {score}.")
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    ax = figure.add_subplot()
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the usual one writes mathematics
        ax.xaxis.set_minor_formatter(NullFormatter())
    for row in drawn.itertuples():
        colour, marker = _FAMILIES.get(str(row.family), _FAMILIES[""])
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6.5, "linestyle": "none"}
        filled = row.arm not in _FILTERED
        ax.errorbar(
            getattr(row, x), row.score, xerr=getattr(row, f"{x}_se"), yerr=row.score_se, elinewidth=0.9, capsize=2,
            markerfacecolor=colour if filled else "white", zorder=3, **style,
        )  # fmt: skip
    _draw_arrows(ax, drawn, x)
    ax.axhline(0, **FLAT, zorder=0)
    ax.margins(0.1)
    ax.set_xlabel("\n".join(filter(None, [words, foot])))
    ax.set_ylabel(score)
    legend_above(figure, [_legend(drawn)], columns=5)
    settle(figure)
    reach = np.stack([drawn[f"{x}_se"].fillna(0), drawn["score_se"].fillna(0)], 1)
    name_points(ax, [elide(name, 26) for name in drawn["name"]], drawn[[x, "score"]].to_numpy(float), reach)
    return figure


def _complete(points: pd.DataFrame, x: str) -> pd.DataFrame:
    """Return the points with every column that is drawn."""
    lacking = [name for name in ("name", x, "score") if name not in points.columns]
    if lacking:
        raise ValueError(f"expected points with columns name, {x} and score, got none of {lacking}")
    usual = {
        f"{x}_se": np.nan,
        "score_se": np.nan,
        "family": "",
        "arm": "none",
        "base": "",
        "attribution": points["name"],
    }
    return points.assign(**{name: value for name, value in usual.items() if name not in points.columns})


def _draw_arrows(ax: Axes, drawn: pd.DataFrame, x: str) -> None:
    """Draw an arrow from each method to its filtered maps."""
    rows: list[Any] = list(drawn.itertuples())
    starts = {row.attribution: (getattr(row, x), row.score) for row in rows if row.arm == "none"}
    for row in rows:
        if row.arm in _FILTERED and row.base in starts:
            colour = _FAMILIES.get(str(row.family), _FAMILIES[""])[0]
            look = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.8, "alpha": 0.55, "shrinkA": 5, "shrinkB": 5}
            ax.annotate("", (getattr(row, x), row.score), starts[row.base], arrowprops=look, zorder=2, gid="arrow")


def _legend(drawn: pd.DataFrame) -> list[tuple[Any, str]]:
    families = [family for family in _FAMILIES if (drawn["family"] == family).any()]
    handles = []
    for family in families:
        colour, marker = _FAMILIES[family]
        handles.append((Line2D([], [], color=colour, marker=marker, linestyle="none"), _KINDS[family]))
    if drawn["arm"].isin(_FILTERED).any():
        handles.append(
            (Line2D([], [], color="#444444", marker="o", linestyle="none", markerfacecolor="white"), "FORGrad")
        )
    return handles


# ---- maps ----------------------------------------------------------------------------------------


def examples(scores: Evaluated, arms: Sequence[str] = ("none", *_FILTERED), *, most: int = 4) -> Figure:
    """Return a sheet of maps before and after, a row for each picture that was kept (figs. 5A, 5C, A.10).

    Args:
        scores: what `gradspec.evaluate` found, with `examples`.
        arms: which arms stand beside each other.
        most: pictures at most.
    """
    names = {(row["attribution"], row["arm"]): row["name"] for row in scores.spec["rows"]}
    rows = []
    for shown in scores.examples[:most]:
        kept: Mapping[str, np.ndarray] = {
            names[key]: found for key, found in shown.maps.items() if key[1] in arms and key in names
        }
        said = [
            shown.picture,
            f"class {shown.label}",
            *([f"named {shown.predicted}"] * (shown.predicted != shown.label)),
        ]
        rows.append(Shown(shown.pixels, said, kept))
    if not rows:
        return nothing("Nothing to draw: the scores hold no maps (evaluate with examples=4).")
    return contact_sheet(rows, _model(scores))


def _model(scores: Evaluated) -> str:
    model = str(scores.spec.get("model", ""))
    return elide(model.rpartition("/")[2] if ".py" in model else model, 60)

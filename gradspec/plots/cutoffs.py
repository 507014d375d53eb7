"""The curve by which a cutoff was chosen: the mean of the metric against the cutoff (paper 5B, A.9)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from gradspec.plots._labels import spread
from gradspec.plots._style import FLAT, STYLES, Trace, elide, legend_above, settle, styled, traces

if TYPE_CHECKING:
    from gradspec.cutoffs import CutoffFit

_WITHIN = 1.96  # standard errors of a 95 % interval
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_GREY = "#555555"


@styled
def cutoff_curves(fits: CutoffFit | Mapping[str, CutoffFit], *, spectral: float | None = None) -> Figure:
    """Return the mean of the metric at each cutoff with its 95 % interval, and what was chosen by it (paper 5B, A.9).

    The filter gets stronger to the left; "none" at the right is no filter. A filled marker is the best cutoff, a ring
    the largest one within a standard error of it. Of a single fit the controls are lines across, named at the right. In
    a race each cutoff has pictures and a bar of its own, so that its means cannot be compared: the choice is by pairs.

    Args:
        fits: one fit, or several of one metric by name.
        spectral: a cutoff in cycles/image to be shown as a line, that of `cutoff_from`; NaN or None shows none.

    Raises:
        ValueError: no fit, or fits of several metrics.

    Example:
        >>> from gradspec import demo
        >>> from gradspec.attributions import Saliency
        >>> from gradspec.cutoffs import fit_cutoff
        >>> net, pictures = demo.load("vgg_max"), demo.pictures(16)
        >>> fit = fit_cutoff(net, Saliency(), net.preprocess(pictures.images), cutoffs=[None, 12, 1], progress=False)
        >>> [label.get_text() for label in cutoff_curves(fit).axes[0].get_xticklabels()]
        ['1', '2', '5', '10', 'none']
    """
    named = dict(fits) if isinstance(fits, Mapping) else {"": fits}
    metrics = list(dict.fromkeys(fit.metric for fit in named.values()))
    if len(metrics) != 1:
        raise ValueError(f"Expected one fit or more, all of one metric, got {len(named)} of {metrics}.")
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    ax = figure.add_subplot()
    shown = [cutoff for fit in named.values() for cutoff in fit.cutoffs if cutoff is not None]
    spectra = [spectral] if spectral is not None and math.isfinite(spectral) else []
    edge = _scale(ax, [*shown, *spectra])
    looks = traces(named)
    for name, fit in named.items():
        _draw(ax, fit, looks[name], edge)
    for place in spectra:
        ax.axvline(place, **{**FLAT, "linestyle": (0, (1, 1.3)), "linewidth": 1.4}, gid="spectral")
    if len(named) == 1:
        _draw_controls(ax, next(iter(named.values())).controls)
    ax.set_ylabel(elide(f"{metrics[0].removesuffix('()')}, mean over pictures (95 % interval)", 70))
    ax.set_xlabel("\n".join(["cutoff (cycles/image)   ← stronger filter", *_notes(named)]))
    _explain(figure, named, looks, ax)
    settle(figure)
    return figure


def _scale(ax: Axes, cutoffs: Sequence[float]) -> float:
    """Set up the horizontal axis and return the place of no filter."""
    low, high = (min(cutoffs), max(cutoffs)) if cutoffs else (1.0, 1.0)
    edge = high * max((high / low) ** 0.08, 1.15)
    ax.set_xscale("log")
    ax.set_xlim(low / max((high / low) ** 0.04, 1.07), edge * max((high / low) ** 0.04, 1.07))
    ticks = [tick for tick in _TICKS if low * 0.99 <= tick <= high * 1.01] or sorted({low, high})
    ticks = [tick for tick in ticks if tick < edge / 1.1]
    ax.set_xticks([*ticks, edge], [*(f"{tick:g}" for tick in ticks), "none"])
    ax.xaxis.set_minor_locator(NullLocator())
    return edge


def _draw(ax: Axes, fit: CutoffFit, look: Trace, edge: float) -> None:
    table = fit.table.assign(place=fit.table["cutoff"].fillna(edge)).sort_values("place")
    known: Any = table[np.isfinite(table["mean"])]
    place, mean, error = known["place"].to_numpy(), known["mean"].to_numpy(), _WITHIN * known["se"].fillna(0).to_numpy()
    same = known["n"].nunique() == 1
    # the means of a race are not of the same pictures: its line is but a guide
    line: dict[str, Any] = {"color": look.colour, "linestyle": look.style, "linewidth": 1.3 if same else 0.6}
    ax.plot(place, mean, marker=look.marker, markersize=3, gid="curve", **line)
    if same:
        ax.fill_between(place, mean - error, mean + error, color=look.colour, alpha=0.15, linewidth=0)
    else:
        ax.errorbar(place, mean, error, color=look.colour, linestyle="none", elinewidth=0.8, capsize=2)
    for cutoff, size, face, gid in ((fit.one_se, 13, "none", "one_se"), (fit.argmax, 8, look.colour, "argmax")):
        at = edge if cutoff is None else cutoff
        height: Any = known.loc[known["place"] == at, "mean"].iloc[0]
        style: dict[str, Any] = {"markersize": size, "markerfacecolor": face, "markeredgecolor": look.colour}
        ax.plot([at], [height], marker=look.marker, linestyle="none", gid=gid, zorder=5, **style)


def _draw_controls(ax: Axes, controls: pd.DataFrame) -> None:
    """Draw a line across for each control, its name and value at the right, as near as names can stand."""
    known: Any = controls.itertuples()
    rows = [row for row in known if math.isfinite(row.mean)]
    for row, style in zip(rows, STYLES[1:], strict=False):
        ax.axhline(row.mean, color=_GREY, linestyle=style, linewidth=0.9, zorder=1, gid=f"control: {row.control}")
    if not rows:
        return
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    heights = spread([(row.mean - low) / (high - low) for row in rows], 0.055, (0, 1))
    for row, height in zip(rows, heights, strict=True):
        words = f"{row.control} {row.mean:.3f}".replace("-", "−")
        ax.text(1.015, height, words, transform=ax.transAxes, va="center", fontsize=8, color=_GREY, gid="control")


def _notes(named: Mapping[str, CutoffFit]) -> list[str]:
    """Return lines for each curve that is flat, which fit beside the names of controls, that only a single fit has."""
    flat = [(elide(name, 24), fit.flat_reason) for name, fit in named.items() if fit.flat]
    width = 80 if len(named) == 1 else 90
    return [line for name, reason in flat[:3] for line in wrap(f"{name}: {reason}" if name else reason, width)]


def _explain(figure: Figure, named: Mapping[str, CutoffFit], looks: Mapping[str, Trace], ax: Axes) -> None:
    entries = []
    for name, fit in named.items():
        look = looks[name]
        handle = Line2D([], [], color=look.colour, linestyle=look.style, marker=look.marker, markersize=4)
        entries.append((handle, elide(name or fit.attribution, 40)))
    mark: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": _GREY}
    marks = [
        (Line2D([], [], markersize=7, markerfacecolor=_GREY, **mark), "best mean"),
        (Line2D([], [], markersize=10, markerfacecolor="none", **mark), "largest within one standard error"),
    ]
    found = [line for line in ax.lines if line.get_gid() == "spectral"]
    marks += [(line, "from the spectrum") for line in found]
    legend_above(figure, [entries, marks], columns=4)
    model = ", ".join(dict.fromkeys(fit.spec.get("model", "") for fit in named.values()))
    pictures = ", ".join(dict.fromkeys(str(len(fit.pictures)) for fit in named.values()))
    places, ways = (", ".join(dict.fromkeys(getattr(fit, of) for fit in named.values())) for of in ("where", "search"))
    words = f"{elide(model, 40)} · {pictures} selection pictures · filter in the {places} · {ways}"
    figure.supxlabel(elide(words, 110), fontsize=8, color="#777777")

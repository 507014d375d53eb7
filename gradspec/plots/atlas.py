"""Many networks ranked by the slope of the gradient at their input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradspec.plots._style import VARIANTS, elide, nothing, styled

_TALL = 0.19  # inches of a row


@styled
def atlas(table: pd.DataFrame) -> Figure:
    """Return networks ranked by the slope of the spectrum at their input, a mark for the type that adds most.

    To the right the gradient is whiter, 0 is white noise; bars are one standard error over pictures, or one standard
    deviation over draws of the weights. Colour and marker name the type of the operator with the most new power. What
    lies far from all others is named at the edge.

    Args:
        table: that of `gradspec.atlas.ranked`.

    Example:
        >>> row = {"network": "a", "slope_nyquist": -0.5, "se_nyquist": 0.1, "culprit_types": ["max pooling"], "n": 4}
        >>> atlas(pd.DataFrame([row])).axes[0].get_xlabel()
        'slope of the gradient at the input (log₁₀ amplitude per Nyquist, ± 1 s.e.)'
    """
    known: Any = table[np.isfinite(table["slope_nyquist"].to_numpy(float))].reset_index(drop=True)
    if known.empty:
        return nothing("Nothing to draw: no network has a slope at its input.")
    slopes = known["slope_nyquist"].to_numpy(float)
    drawn = int(known["draws"].max()) if "draws" in known else 1
    errors = known["sd_nyquist" if drawn > 1 else "se_nyquist"].fillna(0).to_numpy(float, copy=True)
    bars = f"1 s.d. over {drawn} draws" if drawn > 1 else "1 s.e."
    low, high = _limits(slopes)
    errors[(slopes < low) | (slopes > high)] = 0
    figure = Figure(figsize=(8, 1.6 + _TALL * len(known)), layout="constrained")
    ax = figure.add_subplot()
    kinds = [found[0] if len(found) else "none" for found in known["culprit_types"]]
    for look, kind in zip(VARIANTS, dict.fromkeys(kinds), strict=False):
        places = np.flatnonzero(np.array(kinds) == kind)
        ax.errorbar(
            slopes[places].clip(low, high), places, xerr=errors[places], fmt=look.marker, color=look.colour,
            markersize=4.5, linewidth=1, label=kind,
        )  # fmt: skip
    for place in np.flatnonzero((slopes < low) | (slopes > high)):
        right = slopes[place] > high
        ax.annotate(
            f"{slopes[place]:.2f} →" if right else f"← {slopes[place]:.2f}", (high if right else low, place),
            xytext=(-6 if right else 6, 0), textcoords="offset points", ha="right" if right else "left", va="center",
            fontsize=7,
        )  # fmt: skip
    margin = 0.04 * (high - low)
    ax.set_xlim(low - margin, high + margin)
    ax.axvline(0, color="0.4", linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(known)), [elide(str(name), 34) for name in known["network"]], fontsize=7)
    ax.set_ylim(len(known) - 0.3, -0.7)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_xlabel(f"slope of the gradient at the input (log₁₀ amplitude per Nyquist, ± {bars})")
    ax.set_title(f"{len(known)} networks, {int(known['n'].max())} pictures each; 0 is white noise", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, title="adds most")
    return figure


def _limits(slopes: np.ndarray) -> tuple[float, float]:
    """From where to where slopes are drawn: all, but what is farther out than twelve times the middle half is wide."""
    low, high = np.quantile(slopes, [0.25, 0.75])
    room = 12 * max(high - low, 0.05)
    inside = slopes[(slopes >= low - room) & (slopes <= high + room)]
    return float(min(inside.min(), 0)), float(max(inside.max(), 0.02))

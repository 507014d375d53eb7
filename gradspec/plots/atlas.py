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

    To the right the gradient is whiter, 0 is white noise; bars are one standard error over pictures. Colour and marker
    name the type of the operator with the most new power.

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
    figure = Figure(figsize=(8, 1.6 + _TALL * len(known)), layout="constrained")
    ax = figure.add_subplot()
    kinds = [found[0] if len(found) else "none" for found in known["culprit_types"]]
    for look, kind in zip(VARIANTS, dict.fromkeys(kinds), strict=False):
        places = np.flatnonzero(np.array(kinds) == kind)
        part = known.iloc[places]
        ax.errorbar(
            part["slope_nyquist"], places, xerr=part["se_nyquist"].fillna(0), fmt=look.marker, color=look.colour,
            markersize=4.5, linewidth=1, label=kind,
        )  # fmt: skip
    ax.axvline(0, color="0.4", linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(known)), [elide(str(name), 34) for name in known["network"]], fontsize=7)
    ax.set_ylim(len(known) - 0.3, -0.7)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_xlabel("slope of the gradient at the input (log₁₀ amplitude per Nyquist, ± 1 s.e.)")
    ax.set_title(f"{len(known)} networks, {int(known['n'].max())} pictures each; 0 is white noise", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, title="adds most")
    return figure

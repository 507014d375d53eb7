"""The names around a slope profile: of calls below it, of variants at its right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

from gradspec.plots._labels import spread
from gradspec.plots._style import Trace, elide

if TYPE_CHECKING:
    from gradspec.results import Audit

LINE = 11.5  # typographic points that the name of a variant takes


def pitch_of(ax: Axes) -> float:
    """Return how many typographic points lie between two places on the axis, of a figure laid out."""
    left, right = ax.get_xlim()
    return ax.bbox.width * 72 / cast(Figure, ax.figure).dpi / (right - left)


def name_calls(ax: Axes, points: pd.DataFrame) -> None:
    """Name every call of a small network; of a large one the downsampling calls, as they fit, and a few others.

    Calls within one module are named together by it, in the middle.
    """
    spots = points.drop_duplicates("x")
    middles: Any = spots.groupby("module")["x"].mean()
    calls: dict[str, float] = middles.sort_values().to_dict()
    marks = set(points.loc[points["kind"] != "", "module"])
    marked = {call: x for call, x in calls.items() if call in marks}
    close, far = 10.5 / pitch_of(ax), 80 / pitch_of(ax)  # a label of 8 pt turned by 60 degrees takes 10.5 pt
    crowded = min(np.diff(list(calls.values())), default=close) < close
    kept: dict[str, float] = {}  # where the end of each label stands: a little further right where labels are close
    for call, x in marked.items():
        end = max([x, *(other + close for other in kept.values())])
        if end <= x + close:
            kept[call] = end
    distance = far if crowded else close
    for call, x in calls.items():
        if call not in kept and all(abs(x - other) > distance * (1 - 1e-9) for other in kept.values()):
            kept[call] = x
    ax.set_xticks([calls[call] for call in kept], [elide(call, 22) for call in kept])
    for label, (call, end) in zip(ax.get_xticklabels(), kept.items(), strict=True):
        label.set(rotation=60, ha="right", rotation_mode="anchor")
        aside = ScaledTranslation((end - calls[call]) * pitch_of(ax) / 72, 0, cast(Figure, ax.figure).dpi_scale_trans)
        label.set_transform(label.get_transform() + aside)


def name_variants(ax: Axes, named: Mapping[str, Audit]) -> list[Text]:
    """Return the words right of the panel, one for each variant, not yet at their heights."""
    inside: dict[str, Any] = {"transform": ax.transAxes, "va": "center", "fontsize": 8, "gid": "variant"}
    return [ax.text(1.075, 0.5, f"{elide(name, 24)} {_at_input(audit)}", **inside) for name, audit in named.items()]


def _at_input(audit: Audit) -> str:
    rows = audit.table[(audit.table["call"] == "input") & (audit.table["point"] == "input")]
    return "".join(f"{slope:+.2f}".replace("-", "−") for slope in rows["slope_nyquist"] if np.isfinite(slope))


def lift_names(ax: Axes, names: Sequence[Text], looks: Sequence[Trace]) -> None:
    """Put the names at the heights of their lines' ends, as near as they can stand, each behind a piece of its line."""
    ends = [_end(ax, line.get_xydata()) for line in ax.lines if line.get_gid() == "slope"]
    line_height = LINE / 72 * cast(Figure, ax.figure).dpi / ax.bbox.height
    heights = spread([y for _, y in ends[::-1]], line_height, (0, 1))[::-1]  # of equals the first on top
    outside: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False, "in_layout": False}
    for text, trace, (x, y), height in zip(names, looks, ends, heights, strict=True):
        text.set_y(height)
        ax.add_line(Line2D([x + 0.005, 1.02], [y, height], color="#999999", linewidth=0.6, gid="leader", **outside))
        piece = {"color": trace.colour, "linestyle": trace.style, "linewidth": 1.3, "gid": "piece", **outside}
        ax.add_line(Line2D([1.022, 1.068], [height, height], **piece))


def _end(ax: Axes, points: Any) -> np.ndarray:
    """Return the last known of a line's points (P, 2) as fractions of the panel; the lower right corner for none."""
    known = points[np.isfinite(points[:, 1])]
    return (ax.transData + ax.transAxes.inverted()).transform(known[-1]) if len(known) else np.array([1.0, 0.0])

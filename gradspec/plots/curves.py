"""Fourier signatures of the gradient by operator kind (paper figures A.4 and A.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from gradspec.plots._style import (
    DOWNSAMPLING,
    FLAT,
    STYLES,
    Audits,
    by_name,
    elide,
    in_gradient_order,
    keys_of,
    look,
    nothing,
    settle,
    shades_of,
    sign,
    size_text,
    styled,
    traces,
)

if TYPE_CHECKING:
    from gradspec.results import Audit
    from gradspec.spectra import Signature

_FEW = 8  # curves that a panel can name one by one
_MANY = 20  # curves of a kind that a panel can draw one by one
_CROWD = 30  # curves of all variants that a panel can draw one by one
_ENTRY = 12.5  # typographic points that a line of a legend takes


@styled
def signatures(audits: Audits, *, kinds: Sequence[str] | None = None) -> Figure:
    """Return the Fourier signatures of the gradient behind each operator, by kind (paper figures A.4 and A.7).

    A curve is the signature at a call's input, that is after the gradient has passed it: log10 of the ring amplitude
    (DC left out) against the frequency as a fraction of Nyquist, each less its own mean over the rings, so that white
    noise is flat at 0 and only the shape counts. Bands are one standard error over images. Light curves lie near the
    prediction, dark ones near the input. Of more than 20 curves of a kind the median and the quartiles are drawn, of
    more than 30 curves of several variants in one panel each variant's median.

    One audit: a panel per kind; each repeats the convolutions in grey. Several: a panel with the kinds of all variants
    (A.4), then one for each variant by kind, over its convolutions in grey (A.7).

    Args:
        audits: one audit, or several by name.
        kinds: operator types to show; default: the downsampling ones and, for one audit, convolutions and attention.

    Raises:
        ValueError: ``audits`` is an empty mapping.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.audit(net, torch.rand(4, 3, 34, 34), progress=False)
        >>> [ax.get_title(loc="left") for ax in signatures(result).axes[:2]]
        ['max pooling (1)', 'convolution (1)']
    """
    named = by_name(audits)
    curves = {name: _curves(audit) for name, audit in named.items()}
    wanted = kinds or (DOWNSAMPLING if len(named) > 1 else (*DOWNSAMPLING, "convolution", "attention"))
    shown = [kind for kind in wanted if any(kind in of_kind for of_kind in curves.values())]
    if not shown:
        return nothing("Nothing to draw: no operator of these kinds has a signature of three rings or more.")
    panels = _kind_panels(next(iter(curves.values())), shown) if len(named) == 1 else _variant_panels(curves, shown)
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)  # three are a page wide
    lines = -(-len(panels) // columns)
    keys = [max(map(_entries, panels[i : i + columns])) * _ENTRY / 72 for i in range(0, len(panels), columns)]
    figure = Figure(figsize=({1: 5.1, 2: 7.4}.get(columns, 9.4), 2.7 * lines + sum(keys) + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for i, (ax, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        _draw_panel(ax, panel, lowest=i + columns >= len(panels))
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    for ax in grid[:, 0]:
        ax.set_ylabel("log₁₀ amplitude, less its mean")
    greys = ScalarMappable(Normalize(0, 1), shades_of("#777777"))
    bar = figure.colorbar(
        greys, ax=grid.flat[: len(panels)], ticks=[0, 1], shrink=0.6 / lines, anchor=(0, 1), aspect=16, pad=0.01
    )
    bar.ax.set_yticklabels(["near\nprediction", "near\ninput"])
    sign(figure, named)
    settle(figure)
    return figure


class _Curve(NamedTuple):
    call: str
    depth: float  # 0 at the prediction, 1 at the network's input
    signature: Signature


class _Family(NamedTuple):
    """Curves that share a colour and, where they are not told apart one by one, a line style."""

    label: str
    colour: str
    style: Any
    curves: list[_Curve]


class _Panel(NamedTuple):
    title: str
    families: list[_Family]
    reference: list[_Curve]  # drawn in grey below


def _curves(audit: Audit) -> dict[str, list[_Curve]]:
    """Return the signatures at the input of each call that has one, by operator type, prediction first."""
    rows = in_gradient_order(audit.table)
    depths = np.linspace(0, 1, len(rows))
    curves: dict[str, list[_Curve]] = {}
    for (call, point), kind, note, depth in zip(keys_of(rows), rows["type"], rows["note"], depths, strict=True):
        found = audit.signatures.get((call, point))
        if point == "input" and not note and found is not None and _drawable(found):
            curves.setdefault(kind, []).append(_Curve(call, float(depth), found))
    return curves


def _drawable(signature: Signature) -> bool:
    amplitude = np.asarray(signature.amplitude)[1:]
    return len(amplitude) >= 3 and bool((np.isfinite(amplitude) & (amplitude > 0)).all())


def _kind_panels(curves: Mapping[str, list[_Curve]], kinds: Sequence[str]) -> list[_Panel]:
    """Return a panel for each kind of one network."""
    reference = curves.get("convolution", [])
    return [
        _Panel(f"{kind} ({len(curves[kind])})", [_Family("", look(kind).colour, "-", curves[kind])],
               [] if kind == "convolution" else reference)
        for kind in kinds
    ]  # fmt: skip


def _variant_panels(curves: Mapping[str, Mapping[str, list[_Curve]]], kinds: Sequence[str]) -> list[_Panel]:
    """Return a panel that compares the variants, all kinds together, and a panel of each variant by kind."""
    families = [
        _Family(
            elide(name, 24), trace.colour, trace.style, [curve for kind in kinds for curve in of_kind.get(kind, [])]
        )
        for (name, of_kind), trace in zip(curves.items(), traces(curves).values(), strict=True)
    ]
    downsampling = all(kind in DOWNSAMPLING for kind in kinds)
    panels = [_Panel("downsampling, all variants" if downsampling else "all variants", families, [])]
    styles = dict(zip(kinds, cycle(STYLES), strict=False))
    for name, of_kind in curves.items():
        families = [_Family(kind, look(kind).colour, styles[kind], of_kind[kind]) for kind in kinds if kind in of_kind]
        panels.append(_Panel(elide(name, 36), families, of_kind.get("convolution", [])))
    return panels


def _entries(panel: _Panel) -> int:
    """Return how many lines the legend of a panel takes."""
    lines = bool(panel.reference)
    for family in panel.families:
        count = len(family.curves)
        lines += 1 if family.label or count > _MANY else count * (count <= _FEW)
    return lines


def _draw_panel(ax: Axes, panel: _Panel, *, lowest: bool) -> None:
    """Draw the families over the reference, and below the panel their names, or the curves' of a small nameless one."""
    ax.axhline(0, **FLAT, zorder=0)
    entries: list[tuple[Line2D, str]] = []
    crowd = sum(len(family.curves) for family in panel.families) > _CROWD and len(panel.families) > 1
    for family in panel.families:
        count = len(family.curves)
        if count > _MANY or (crowd and count > 1):
            lines = _draw_median(ax, family, 3, "median", quartiles=count > _MANY)
        else:
            lines = _draw_family(ax, family)
        if family.label or count > _MANY:
            entries += [(line, f"{family.label} {_count_text(count, crowd=crowd)}".strip()) for line in lines[-1:]]
        elif count <= _FEW:
            entries += [(line, _curve_text(curve)) for line, curve in zip(lines, family.curves, strict=True)]
    if panel.reference:
        entries.append((_draw_reference(ax, panel.reference), f"convolution {_count_text(len(panel.reference))}"))
    ax.set_title(panel.title, loc="left")
    ax.set_xlim(0, 1.02)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    ax.tick_params(labelbottom=lowest)
    if lowest:
        ax.set_xlabel("frequency (fraction of Nyquist)")
    if entries:  # below the axis and its label, where no curve is
        below = ax.transAxes + ScaledTranslation(
            0, (-36 if lowest else -8) / 72, cast(Figure, ax.figure).dpi_scale_trans
        )
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
        ax.legend(*zip(*entries, strict=True), handlelength=3.2, borderaxespad=0, borderpad=0, **place)


def _count_text(count: int, *, crowd: bool = False) -> str:
    if count > _MANY:
        return f"({count}: median, quartiles)"
    return f"({count}: median)" if crowd and count > 1 else f"({count})"


def _draw_reference(ax: Axes, curves: list[_Curve]) -> Line2D:
    """Return a line of the curves that are drawn in grey for comparison."""
    if len(curves) > _MANY:
        return _draw_median(ax, _Family("", "#bbbbbb", "-", curves), 1, "reference")[0]
    lines = [ax.plot(*_shape(curve.signature)[:2], color="#cccccc", linewidth=0.7, zorder=1) for curve in curves]
    for (line,) in lines:
        line.set_gid("reference")
    return Line2D([], [], color="#cccccc")


def _draw_median(ax: Axes, family: _Family, order: float, gid: str, *, quartiles: bool = True) -> list[Line2D]:
    """Return the line of the curves' median; the band between their quartiles is drawn, too, if wanted.

    At every frequency of the finest curve, of those curves that reach it: small maps have no low frequencies.
    """
    shapes = [_shape(curve.signature)[:2] for curve in family.curves]
    x = max((x for x, _ in shapes), key=len)
    levels = np.stack([np.interp(x, *shape, left=np.nan, right=np.nan) for shape in shapes])
    low, middle, high = np.nanpercentile(levels, [25, 50, 75], axis=0)
    if quartiles:
        band: dict[str, Any] = {"color": family.colour, "alpha": 0.3, "linewidth": 0, "zorder": order - 0.5}
        ax.fill_between(x, low, high, gid="quartiles", **band)
    return ax.plot(x, middle, color=family.colour, linestyle=family.style, linewidth=1.4, zorder=order, gid=gid)


def _draw_family(ax: Axes, family: _Family) -> list[Line2D]:
    """Return the lines drawn for the curves, prediction first; a nameless small family's differ in style."""
    shades, few = shades_of(family.colour), len(family.curves) <= _FEW
    styles = [family.style] if family.label or not few else STYLES
    lines = []
    for curve, style in zip(family.curves, cycle(styles), strict=False):
        x, y, se = _shape(curve.signature)
        shade = shades(curve.depth)
        ax.fill_between(x, y - se, y + se, color=shade, alpha=0.22 if few else 0.1, linewidth=0, zorder=2)
        lines += ax.plot(x, y, color=shade, linestyle=style, linewidth=1.4 if few else 0.9, zorder=3, gid="signature")
    return lines


def _curve_text(curve: _Curve) -> str:
    return f"{elide(curve.call, 27)} {size_text(curve.signature.height, curve.signature.width)}"


def _shape(signature: Signature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frequency (fraction of Nyquist), log10 amplitude about its mean over rings, and its standard error."""
    amplitude = np.asarray(signature.amplitude)[1:]  # the DC ring is the gradient's mean, not its texture
    level = np.log10(amplitude)
    frequency = np.asarray(signature.radius)[1:] / (min(signature.height, signature.width) / 2)
    return frequency, level - level.mean(), np.asarray(signature.se)[1:] / (amplitude * np.log(10))

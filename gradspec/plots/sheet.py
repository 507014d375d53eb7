"""Pictures of the gradient beside their 2-D spectra (paper figures 4B, A.3 and A.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gradspec.plots._style import (
    Audits,
    Key,
    by_name,
    elide,
    in_gradient_order,
    keys_of,
    masked,
    nothing,
    settle,
    sign,
    size_text,
    styled,
)

if TYPE_CHECKING:
    from gradspec.results import Audit, Example

_DPI = 150
_GAP, _LABEL, _TOP, _FOOT = 14, 330, 62, 180  # screen pixels of a sheet: between cells, left, above, below
_BAR, _SIGNATURE = 104, 10  # screen pixels from the foot to the colour bars, to the line that names the network


@styled
def gradient_pictures(
    audits: Audits, *, points: Sequence[Key] | None = None, pictures: int = 3, limit: int = 12
) -> Figure:
    """Return pictures of the gradient beside their 2-D spectra (paper figures 4B, A.3 and A.8).

    A row per example point, from the prediction (top) to the network's input (bottom): the channel-mean gradient of
    the first pictures, each map on its own symmetric scale of plus/minus the 99th percentile of its absolute value,
    then the mean log10 amplitude over all images, DC in the centre, relative to the row's mean. All spectra share one
    scale. A map's pixel is a whole number of screen pixels, so a checkerboard stays one when the figure is saved at its
    own resolution. By default an operator whose input is the network's has no row of its own there.

    Args:
        audits: one audit, or several by name: then the variants of a point stand below each other.
        points: (call, point) keys to show; default: all, or, where that makes more than ``limit`` rows, the points at
            the operators' inputs only, thinned evenly between the first and the last.
        pictures: how many pictures at most.
        limit: how many rows by default at most; of several audits at least two each.

    Raises:
        ValueError: ``audits`` is an empty mapping, ``pictures`` is below 1, or no audit has a point of ``points``.

    Example:
        >>> import torch
        >>> import gradspec as gs
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(2048, 5)
        >>> net = torch.nn.Sequential(*layers).eval()
        >>> result = gs.audit(net, torch.rand(4, 3, 34, 34), progress=False)
        >>> sheet = gradient_pictures(result, points=[("1", "input"), ("input", "input")], pictures=1)
        >>> [ax.images[0].get_array().shape for ax in sheet.axes[:4]]
        [(32, 32), (32, 32), (34, 34), (34, 34)]
    """
    named = by_name(audits)
    if pictures < 1:
        raise ValueError(f"expected pictures of at least 1, got {pictures}")
    if points is None:
        rows = _default_rows(named, max(2, limit // len(named)))
    else:
        held = sorted({key for audit in named.values() for key in audit.examples})
        if missing := [key for key in map(tuple, points) if key not in held]:
            raise ValueError(f"no example at {missing[0]}; there are examples at {held}")
        rows = [(name, (call, at)) for call, at in points for name in named if (call, at) in named[name].examples]
    if not rows:
        return nothing("Nothing to draw: this audit holds no example gradients.")
    return _picture_sheet(named, rows, pictures)


def _default_rows(named: Mapping[str, Audit], limit: int) -> list[tuple[str, Key]]:
    """Return (name, key) of the rows; variants are matched by rank along the depth, as surgery renames calls."""
    keys = [[(name, key) for key in _thinned(_example_keys(audit), limit)] for name, audit in named.items()]
    return [row for rank in zip_longest(*keys) for row in rank if row is not None]


def _example_keys(audit: Audit) -> list[Key]:
    keys = [key for key in keys_of(in_gradient_order(audit.table)) if key in audit.examples]
    first = audit.examples.get(("input", "input"))
    if first is None:
        return keys
    return [key for key in keys if key == ("input", "input") or not _same(audit.examples[key], first)]


def _same(one: Example, other: Example) -> bool:
    pairs = (one.maps, other.maps), (one.spectrum, other.spectrum)
    return all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


def _thinned(keys: list[Key], limit: int) -> list[Key]:
    """Return at most ``limit`` keys: those at inputs where all are too many, then evenly spaced ones."""
    if len(keys) > limit:
        keys = [key for key in keys if key[1] == "input"]
    if len(keys) > limit:
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, limit).round().astype(int)]
    return keys


def _picture_sheet(named: Mapping[str, Audit], rows: Sequence[tuple[str, Key]], pictures: int) -> Figure:
    """Return the sheet of pictures; placed by hand, as no layout engine keeps to whole pixels."""
    examples = [named[name].examples[key] for name, key in rows]
    columns = min(pictures, max(len(example.maps) for example in examples))
    cell = max(224, max(max(example.spectrum.shape) for example in examples))
    pitch, spectrum_left = cell + _GAP, _LABEL + columns * (cell + _GAP)
    width, height = spectrum_left + pitch + _GAP, _TOP + len(rows) * pitch + _FOOT
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    spectra = [_relative(example.spectrum) for example in examples]
    colours = ScalarMappable(_spectrum_scale(spectra), masked("viridis"))
    for i, ((name, key), example, spectrum) in enumerate(zip(rows, examples, spectra, strict=True)):
        top = _TOP + i * pitch
        text = _row_text(named[name], key, [elide(name, 27)] if len(named) > 1 else [])
        x, y = (_LABEL - _GAP) / width, 1 - (top + cell / 2) / height
        figure.text(x, y, text, fontsize=8, va="center", ha="right", linespacing=1.4)
        for j, picture in enumerate(example.maps[:columns]):
            ax = _pixel_axes(figure, picture.shape, _LABEL + j * pitch, top, cell)
            _draw_map(ax, picture)
            head = f"{elide(str(named[name].pictures[j]), 22)}\nmean over channels"
            ax.set_title(head if i == 0 else "", fontsize=8)
        ax = _pixel_axes(figure, spectrum.shape, spectrum_left, top, cell)
        _draw_spectrum(ax, spectrum, colours, labelled=i == len(rows) - 1)
        ax.set_title(_spectrum_head(named) if i == 0 else "", fontsize=8)
    signed = ScalarMappable(Normalize(-1, 1), "RdBu_r")
    _bar_below(figure, signed, _LABEL, cell, "gradient / own 99th percentile")
    _bar_below(figure, colours, spectrum_left, cell, "log₁₀ amplitude, less mean")
    sign(figure, named, _SIGNATURE / height)
    settle(figure)
    return figure


def _spectrum_head(named: Mapping[str, Audit]) -> str:
    counts = {len(audit.pictures) for audit in named.values()}
    many = f" {counts.pop()}" if len(counts) == 1 else ""
    pictures = "1 picture" if many == " 1" else f"all{many} pictures"
    return f"mean log spectrum,\nall channels, {pictures}"


def _pixel_axes(figure: Figure, shape: tuple[int, ...], left: int, top: int, cell: int) -> Axes:
    """Return axes centred in a cell of screen pixels from the top left, its sides whole multiples of the map's."""
    width, height = (figure.get_size_inches() * figure.dpi).round()
    zoom = max(1, cell // max(shape))
    rows, columns = shape[0] * zoom, shape[1] * zoom
    left, top = left + (cell - columns) // 2, top + (cell - rows) // 2
    return figure.add_axes((left / width, 1 - (top + rows) / height, columns / width, rows / height))


def _draw_map(ax: Axes, picture: np.ndarray) -> None:
    finite = np.abs(picture[np.isfinite(picture)])
    bound = float(np.percentile(finite, 99)) if finite.size else 0.0
    bound = bound or float(finite.max(initial=0)) or 1.0  # sparse maps have a 99th percentile of zero
    # "none": nearest neighbour on screen, and the map's own pixels, never smoothed, in an SVG
    ax.imshow(picture, cmap=masked("RdBu_r"), vmin=-bound, vmax=bound, interpolation="none", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.6, color="#888888")


def _relative(spectrum: np.ndarray) -> np.ndarray:
    """Return a log spectrum (H, W) less its mean over all frequencies but DC; nulls (log 0) become NaN."""
    spectrum = np.where(np.isfinite(spectrum), spectrum, np.nan).astype(float)
    rest = _without_dc(spectrum)
    return spectrum - (rest.mean() if rest.size else 0.0)


def _without_dc(spectrum: np.ndarray) -> np.ndarray:
    """Return the finite values of a centred spectrum (H, W) but the one at DC, flat."""
    rest = spectrum.copy()
    rest[spectrum.shape[0] // 2, spectrum.shape[1] // 2] = np.nan
    return rest[np.isfinite(rest)]


def _spectrum_scale(spectra: Sequence[np.ndarray]) -> Normalize:
    """Return the shared scale: the widest row's 1st and 99.5th percentiles, so that no row is cut."""
    values = [rest for rest in map(_without_dc, spectra) if rest.size]
    low = min((float(np.percentile(rest, 1)) for rest in values), default=0.0)
    high = max((float(np.percentile(rest, 99.5)) for rest in values), default=0.0)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)


def _draw_spectrum(ax: Axes, spectrum: np.ndarray, colours: ScalarMappable, *, labelled: bool) -> None:
    """Draw a centred spectrum with frequencies as fractions of Nyquist; the DC bin's centre lies at (0, 0)."""
    (top, bottom), (left, right) = (
        ((-(size // 2) - 0.5) / (size / 2), ((size - 1) // 2 + 0.5) / (size / 2)) for size in spectrum.shape
    )
    image = ax.imshow(spectrum, interpolation="none", aspect="auto", extent=(left, right, bottom, top))
    image.set(cmap=colours.get_cmap(), norm=colours.norm)
    ax.set(xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5], yticklabels=[])
    ax.set_xticklabels(["−½", "0", "½"] if labelled else [])
    ax.set_xlabel("fraction of Nyquist" if labelled else "", fontsize=8)
    ax.tick_params(length=3)
    ax.spines[:].set(visible=True, linewidth=0.6, color="#888888")


def _row_text(audit: Audit, key: Key, above: list[str]) -> str:
    """Return the words beside a row: the lines ``above``, the call, its type and point, the map's size."""
    kind = audit.table.loc[audit.table["call"] == key[0], "type"].iloc[0]
    lines = ["network input"] if kind == "input" else [elide(key[0], 27), f"{kind}, at its {key[1]}"]
    return "\n".join([*above, *lines, size_text(*audit.examples[key].spectrum.shape)])


def _bar_below(figure: Figure, mappable: ScalarMappable, left: int, length: int, label: str) -> None:
    width, height = figure.get_size_inches() * _DPI
    ax = figure.add_axes((left / width, _BAR / height, length / width, 12 / height))
    figure.colorbar(mappable, cax=ax, orientation="horizontal", extend="both").set_label(label, fontsize=8)

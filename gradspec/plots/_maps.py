"""Gradient maps and 2-D spectra placed by the pixel, as no layout engine keeps to whole pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gradspec.plots._style import masked

if TYPE_CHECKING:
    from gradspec.results import Audit, Example

DPI = 150
GAP = 14  # screen pixels between cells
FOOT = 180  # screen pixels below the cells
SIGNATURE = 10  # screen pixels from the foot to the line that says what is shown
_BAR = 104  # screen pixels from the foot to the colour bars
_NULL = 3  # decades below a spectrum's median: what lies lower is a zero of the operator, up to rounding


def same(one: Example, other: Example) -> bool:
    """Return whether two examples hold the same numbers."""
    pairs = (one.maps, other.maps), (one.spectrum, other.spectrum)
    return all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


def sheet_of(width: int, height: int) -> Figure:
    """Return an empty figure of so many screen pixels."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Write a text at screen pixels from the left and from the top."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, 1 - y / height, text, **style)


def cell_axes(figure: Figure, shape: tuple[int, ...], left: int, top: int, cell: int) -> Axes:
    """Return axes centred in a cell of screen pixels from the top left, its sides whole multiples of the map's."""
    width, height = (figure.get_size_inches() * figure.dpi).round()
    zoom = max(1, cell // max(shape))
    rows, columns = shape[0] * zoom, shape[1] * zoom
    left, top = left + (cell - columns) // 2, top + (cell - rows) // 2
    return figure.add_axes((left / width, 1 - (top + rows) / height, columns / width, rows / height))


def bound_of(picture: np.ndarray) -> float:
    """Return the end of a map's scale: the 99th percentile of its absolute value."""
    finite = np.abs(picture[np.isfinite(picture)])
    bound = float(np.percentile(finite, 99)) if finite.size else 0.0
    return bound or float(finite.max(initial=0)) or 1.0  # sparse maps have a 99th percentile of zero


def draw_map(ax: Axes, picture: np.ndarray, bound: float) -> None:
    # "none": nearest neighbour on screen, and the map's own pixels, never smoothed, in an SVG
    ax.imshow(picture, cmap=masked("RdBu_r"), vmin=-bound, vmax=bound, interpolation="none", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.6, color="#888888")


def relative(spectrum: np.ndarray) -> np.ndarray:
    """Return a log spectrum (H, W) less its median over all frequencies but DC; nulls (log 0) become NaN."""
    spectrum = np.where(np.isfinite(spectrum), spectrum, np.nan).astype(float)
    rest = _without_dc(spectrum)
    return spectrum - (np.median(rest) if rest.size else 0.0)


def _without_dc(spectrum: np.ndarray) -> np.ndarray:
    """Return the finite values of a centred spectrum (H, W) but the one at DC, flat."""
    rest = spectrum.copy()
    rest[spectrum.shape[0] // 2, spectrum.shape[1] // 2] = np.nan
    return rest[np.isfinite(rest)]


def spectrum_scale(spectra: Sequence[np.ndarray]) -> Normalize:
    """Return the shared scale: the widest's 1st and 99.5th percentiles, so that none is cut but for its nulls.

    A mean over 2 x 2 takes out the highest frequencies altogether: rounding, ten decades down, would be the scale.
    """
    values = [rest[rest > -_NULL] for rest in map(_without_dc, spectra) if rest.size]
    low = min((float(np.percentile(rest, 1)) for rest in values), default=0.0)
    high = max((float(np.percentile(rest, 99.5)) for rest in values), default=0.0)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)


def draw_spectrum(ax: Axes, spectrum: np.ndarray, colours: ScalarMappable, *, labelled: bool) -> None:
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


def draw_scales(figure: Figure, colours: ScalarMappable, lefts: tuple[int, int], length: int) -> None:
    """Draw below the cells the bars of the maps' and of the spectra's scale, from these screen pixels on."""
    signed = ScalarMappable(Normalize(-1, 1), "RdBu_r")
    width, height = figure.get_size_inches() * DPI
    labels = "gradient / own 99th percentile", "log₁₀ amplitude, less median"
    for mappable, left, label in zip((signed, colours), lefts, labels, strict=True):
        ax = figure.add_axes((left / width, _BAR / height, length / width, 12 / height))
        figure.colorbar(mappable, cax=ax, orientation="horizontal", extend="both").set_label(label, fontsize=8)


def spectrum_head(named: Mapping[str, Audit]) -> str:
    """Return over what the spectra are means."""
    counts = {len(audit.pictures) for audit in named.values()}
    many = f" {counts.pop()}" if len(counts) == 1 else ""
    pictures = "1 picture" if many == " 1" else f"all{many} pictures"
    return f"mean log spectrum,\nall channels, {pictures}"

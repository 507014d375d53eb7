"""Pictures of the gradient beside their 2-D spectra (paper figures 4B, A.3 and A.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from gradspec.plots._maps import (
    FOOT,
    GAP,
    SIGNATURE,
    bound_of,
    cell_axes,
    draw_map,
    draw_scales,
    draw_spectrum,
    relative,
    same,
    sheet_of,
    spectrum_head,
    spectrum_scale,
    write,
)
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
from gradspec.plots.matrix import picture_matrix

if TYPE_CHECKING:
    from gradspec.results import Audit

_LABEL, _TOP = 330, 62  # screen pixels left of the cells, above them


@styled
def gradient_pictures(
    audits: Audits, *, points: Sequence[Key] | None = None, pictures: int | None = None, limit: int | None = None
) -> Figure:
    """Return pictures of the gradient with their 2-D spectra (paper figures 4B, A.3 and A.8).

    A picture is the channel-mean gradient, on its own symmetric scale of plus/minus the 99th percentile of its absolute
    value. A spectrum is the mean log10 amplitude over all images, DC in the centre, relative to its median; all share
    one scale. A map's pixel is a whole number of screen pixels, so a checkerboard stays one when the figure is saved at
    its own resolution.

    One audit: a row per example point, from the prediction (top) to the network's input (bottom). An operator whose
    input is the network's has no row of its own there.

    Several: a column per variant, side by side, and a block of rows per place: the network's input first, then the
    input of the last operator, as the gradient flows, that shrinks the maps of a size. Of maps too large to be
    enlarged a detail is: the 32 x 32 pixels where the variants' gradients are largest, framed above.

    Args:
        audits: one audit, or several by name.
        points: (call, point) keys to show, for all variants; where surgery has put calls into a module, its name stands
            for the outermost of them. Default: all, or as many as ``limit`` allows, thinned evenly between the first
            and the last; of one audit those at the operators' inputs before those at outputs.
        pictures: how many pictures at most; default: 3 of one audit, 1 of several.
        limit: how many rows by default at most; default: 12 of one audit, 8 of several, whose first place is always
            shown.

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
    if pictures is not None and pictures < 1:
        raise ValueError(f"expected pictures of at least 1, got {pictures}")
    if not any(audit.examples for audit in named.values()):
        return nothing("Nothing to draw: this audit holds no example gradients.")
    if len(named) > 1:
        return picture_matrix(named, points, pictures or 1, limit or 8)
    audit = next(iter(named.values()))
    if points is None:
        return _picture_sheet(audit, _thinned(_example_keys(audit), limit or 12), pictures or 3)
    if missing := [key for key in map(tuple, points) if key not in audit.examples]:
        raise ValueError(f"no example at {missing[0]}; there are examples at {sorted(audit.examples)}")
    return _picture_sheet(audit, [(call, at) for call, at in points], pictures or 3)


def _example_keys(audit: Audit) -> list[Key]:
    keys = [key for key in keys_of(in_gradient_order(audit.table)) if key in audit.examples]
    first = audit.examples.get(("input", "input"))
    if first is None:
        return keys
    return [key for key in keys if key == ("input", "input") or not same(audit.examples[key], first)]


def _thinned(keys: list[Key], limit: int) -> list[Key]:
    """Return at most ``limit`` keys: those at inputs where all are too many, then evenly spaced ones."""
    if len(keys) > limit:
        keys = [key for key in keys if key[1] == "input"]
    if len(keys) > limit:
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, limit).round().astype(int)]
    return keys


def _picture_sheet(audit: Audit, keys: Sequence[Key], pictures: int) -> Figure:
    """Return the sheet of one audit, a row for each key."""
    examples = [audit.examples[key] for key in keys]
    columns = min(pictures, max(len(example.maps) for example in examples))
    cell = max(224, max(max(example.spectrum.shape) for example in examples))
    pitch, spectrum_left = cell + GAP, _LABEL + columns * (cell + GAP)
    figure = sheet_of(spectrum_left + pitch + GAP, height := _TOP + len(keys) * pitch + FOOT)
    spectra = [relative(example.spectrum) for example in examples]
    colours = ScalarMappable(spectrum_scale(spectra), masked("viridis"))
    for i, (key, example, spectrum) in enumerate(zip(keys, examples, spectra, strict=True)):
        top = _TOP + i * pitch
        beside = {"fontsize": 8, "va": "center", "ha": "right", "linespacing": 1.4}
        write(figure, _LABEL - GAP, top + cell / 2, _row_text(audit, key), **beside)
        for j, picture in enumerate(example.maps[:columns]):
            ax = cell_axes(figure, picture.shape, _LABEL + j * pitch, top, cell)
            draw_map(ax, picture, bound_of(picture))
            head = f"{elide(str(audit.pictures[j]), 22)}\nmean over channels"
            ax.set_title(head if i == 0 else "", fontsize=8)
        ax = cell_axes(figure, spectrum.shape, spectrum_left, top, cell)
        draw_spectrum(ax, spectrum, colours, labelled=i == len(keys) - 1)
        ax.set_title(spectrum_head({"": audit}) if i == 0 else "", fontsize=8)
    draw_scales(figure, colours, (_LABEL, spectrum_left), cell)
    sign(figure, {"": audit}, SIGNATURE / height)
    settle(figure)
    return figure


def _row_text(audit: Audit, key: Key) -> str:
    """Return the words beside a row: the call, its type and point, the map's size."""
    kind = audit.table.loc[audit.table["call"] == key[0], "type"].iloc[0]
    lines = ["network input"] if kind == "input" else [elide(key[0], 27), f"{kind}, at its {key[1]}"]
    return "\n".join([*lines, size_text(*audit.examples[key].spectrum.shape)])

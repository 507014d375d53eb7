"""How results show themselves in notebooks: a line, a short table, and their main figure inside the page."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 12  # of a table: what can be taken in at a glance
_COLOURS = 256  # of a picture: a third of the bytes, without a difference that is seen
_SCALE = 96 / 150  # of a page's pixels to a figure's: drawn finer than it is shown, so that it stays sharp


class Drawable(Protocol):
    """A result with a main figure."""

    def plot(self) -> Any:
        """The figure."""
        ...


def figure_of(name: str, *given: Any, **options: Any) -> Any:
    """Returns what a function of `gradspec.plots` draws, for a result to give as its figure.

    Figures are drawn of results and stand above them, so it is asked for by name: the one arrow that points up. The
    figure belongs to nobody, so that nothing is left open, and shows itself where it is the value of a notebook's cell.

    Args:
        name: Module and function, such as "profile.slope_profile".
        given: What the function takes.
        options: By name.
    """
    module, _, function = name.partition(".")
    figure = getattr(import_module(f"gradspec.plots.{module}"), function)(*given, **options)
    figure._repr_png_ = partial(_png, figure)  # IPython shows figures of pyplot alone by itself
    return figure


def html_of(result: Drawable, table: pd.DataFrame, alt: str) -> str:
    """Returns a result as HTML: its repr, the first rows of a table, and its figure as a picture within.

    Names are those of other people's models and files, so all words are escaped. A figure that cannot be drawn is a
    sentence that says why.

    Args:
        result: Its repr is one line, its `plot` draws the figure.
        table: What is shown of its numbers.
        alt: What the figure shows, for who cannot see it.
    """
    words = f"<p>{html.escape(repr(result), quote=False)}</p>"
    # the classes: dollar signs in names are no mathematics
    return f'<div class="tex2jax_ignore mathjax_ignore">{words}{_table(table)}{_picture(result.plot, alt)}</div>'


def _table(table: pd.DataFrame) -> str:
    if "note" in table and not table["note"].fillna("").astype(bool).any():
        table = table.drop(columns="note")
    shown = table.head(_ROWS).to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="–")
    more = len(table) - _ROWS
    return shown + (f"<p>and {more} more row{'s' * (more > 1)}</p>" if more > 0 else "")


def _picture(draw: Callable[[], Any], alt: str) -> str:
    try:
        data = _png(draw(), _COLOURS)
    except Exception as error:  # a result with nothing to draw, or from a file, still shows its numbers
        reason = html.escape(f"{type(error).__name__}: {error}", quote=False)
        return f"<p>The figure could not be drawn: {reason}</p>"
    wide = round(struct.unpack(">I", data[16:20])[0] * _SCALE)  # of the PNG's header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt)}" width="{wide}" style="max-width: 100%; height: auto">'


def _png(figure: Any, colours: int | None = None) -> bytes:
    return import_module("gradspec.plots._style").png_bytes(figure, colours)

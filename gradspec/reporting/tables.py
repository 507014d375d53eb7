"""What a table of the page is made of: columns, cells with the number they are sorted by, frames side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pandas import DataFrame

from gradspec.reporting.text import MISSING, known, number, percent, plain, with_error

Row = dict[Any, Any]

_MOST_NAMES = 60  # in one cell


class Column(NamedTuple):
    """A column: a "text" is short, a "name" of any length, "names" many, "prose" a sentence, an
    "interval" a number with its ends; its head may be a name."""

    head: str
    kind: Literal["text", "name", "names", "prose", "number", "interval"] = "text"
    foreign: bool = False


class Cell(NamedTuple):
    """What is shown, and for a number the value to sort by."""

    text: str
    value: float | None = None

    @property
    def key(self) -> str:
        """The value as the page holds it; empty where there is none."""
        return "" if self.value is None else f"{self.value:.6g}"


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        id: Unique on the page.
        caption: What it shows.
        columns: Heads.
        rows: As many cells each as there are columns.
        ranked: The column by which the rows fall; None where they are in another order.
        groups: Heads over several columns each, with how many; () for none.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    ranked: int | None = None
    groups: Sequence[tuple[str, int]] = ()


def without_empty(table: Table) -> Table:
    """Returns the table without columns in which no row has anything."""
    held = [any(row[i].text not in ("", MISSING) for row in table.rows) for i in range(len(table.columns))]
    kept = [i for i, anything in enumerate(held) if anything or not table.rows]
    columns, rows = [table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=columns, rows=rows)


def text(value: Any) -> Cell:
    """Returns a cell of text."""
    return Cell(plain(value))


def some(names: Sequence[str]) -> Cell:
    """Returns a cell of names; of many the first ones and how many more."""
    more = len(names) - _MOST_NAMES
    return Cell(", ".join(map(plain, names[:_MOST_NAMES])) + (f" and {more:,} more" if more > 0 else ""))


def whole(value: Any) -> Cell:
    """Returns a cell of a whole number."""
    return Cell(f"{int(value):,}", float(value)) if known(value) else Cell(MISSING)


def digits(value: Any, decimals: int = 3, *, signed: bool = False) -> Cell:
    """Returns a cell of a number with that many decimals."""
    return Cell(number(value, decimals, signed=signed), float(value) if known(value) else None)


def measured(row: Row, value: str, error: str, *, signed: bool = False) -> Cell:
    """Returns a cell of a row's number ± its standard error."""
    shown = with_error(row[value], row[error], signed=signed)
    return Cell(_breakable(shown), float(row[value]) if known(row[value]) else None)


def share(value: Any, error: Any = None) -> Cell:
    """Returns a cell of a share of the pictures, as a percentage."""
    return Cell(_breakable(percent(value, error)), float(value) if known(value) else None)


def _breakable(text: str) -> str:
    """The text with a place to break in front of the error, for narrow columns in print."""
    return text.replace("\N{NO-BREAK SPACE}±", " ±")


def maps(row: Row) -> Cell:
    """Returns a cell of the maps' size, with their channels where they are given; sorted by their area."""
    sides = [row[name] for name in ("channels", "height", "width") if name in row]
    if not all(map(known, sides)):
        return Cell(MISSING)
    return Cell(
        "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(f"{int(side)}" for side in sides),
        float(row["height"] * row["width"]),
    )


def side_by_side(
    frames: Mapping[str, DataFrame], keys: list[str], cells: Callable[[Row], list[Cell]], *, ranked: bool
) -> list[tuple[Row, list[Cell]]]:
    """Returns for each key its values and the cells of all frames beside each other, in the order of the first frame.

    Args:
        frames: Name -> rows, one for each key.
        keys: The columns that make a key.
        cells: Row -> its cells, always as many; a key that a frame lacks has dashes in their place.
        ranked: Keys that the first frame lacks come last; otherwise behind the key that precedes them in their frame.
    """
    found = [{tuple(row[key] for key in keys): row for row in frame.to_dict("records")} for frame in frames.values()]
    width = max((len(cells(row)) for rows in found for row in list(rows.values())[:1]), default=0)
    blank = [Cell(MISSING)] * width
    return [
        (dict(zip(keys, key, strict=True)), [c for rows in found for c in (cells(rows[key]) if key in rows else blank)])
        for key in (dict.fromkeys(key for rows in found for key in rows) if ranked else _merged([*map(list, found)]))
    ]


def _merged(orders: Sequence[Sequence[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """All keys in the first order; what only a later one has stands behind the key that precedes it there."""
    places: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for i, order in enumerate(orders):
        behind = -1
        for j, key in enumerate(order):
            place = places.setdefault(key, (behind if i else j, i, j))
            behind = place[0]
    return sorted(places, key=lambda key: places[key])

"""Pictures of the gradients of several variants side by side (paper figures A.3 and A.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gradspec.plots._maps import (
    FOOT,
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
from gradspec.plots._style import Key, elide, in_gradient_order, keys_of, masked, nothing, settle, sign, size_text

if TYPE_CHECKING:
    from gradspec.results import Audit, Example

_PAGE = 1040  # screen pixels across at most, if a map may
_NARROW = 700  # and at least
_LEFT, _TITLE, _LINE = 58, 34, 19  # screen pixels left of the cells, of a place's title, of a line above a cell
_GAP = 10  # screen pixels between cells
_CELL, _LEAST = 200, 128  # screen pixels of a cell: at most, if a map may, and at least
_LETTER = 9.6  # screen pixels that a letter of 8 pt takes
_DETAIL = 32  # pixels of a map across
_INPUT = ("input", "input")


class _Place(NamedTuple):
    """What one block shows: for each variant that has it, where."""

    title: str
    size: str  # of the first variant's map
    keys: dict[str, Key]


class _Grid(NamedTuple):
    """How the variants stand in every block: in bands below each other, each a page wide."""

    bands: list[list[str]]
    cell: int

    @property
    def pitch(self) -> int:
        return self.cell + _GAP


class _Block(NamedTuple):
    """A place with what stands in it."""

    place: _Place
    heads: dict[str, list[str]]  # the lines above each variant's column
    rows: list[tuple[str, int]]  # of a band: ("map", 0), ("detail", 0), ..., ("spectrum", 0)

    @property
    def above(self) -> int:
        """Screen pixels above a band's cells."""
        return _LINE * max(map(len, self.heads.values())) + 14

    def height(self, grid: _Grid) -> int:
        return _TITLE + len(grid.bands) * (self.above + len(self.rows) * grid.pitch) + 14


def picture_matrix(named: Mapping[str, Audit], points: Sequence[Key] | None, pictures: int, limit: int) -> Figure:
    """Return the figure that `gradient_pictures` draws of several audits.

    Raises:
        ValueError: no audit has a point of ``points``.
    """
    places = _default_places(named) if points is None else [_chosen(named, (call, at)) for call, at in points]
    if not places:
        return nothing("Nothing to draw: these audits hold no example gradients where maps shrink.")
    grid = _grid(named, places)
    blocks = [_block(named, place, grid, pictures) for place in places]
    if points is None:
        blocks = _thinned(blocks, limit // len(grid.bands))
    heights = [block.height(grid) for block in blocks]
    width = max(_LEFT + len(grid.bands[0]) * grid.pitch, _NARROW)
    figure = sheet_of(width, height := sum(heights) + FOOT)
    shown = [named[name].examples[key] for block in blocks for name, key in block.place.keys.items()]
    colours = ScalarMappable(spectrum_scale([relative(example.spectrum) for example in shown]), masked("viridis"))
    sheet = _Sheet(figure, named, grid, colours)
    for i, block in enumerate(blocks):
        sheet.draw(block, sum(heights[:i]), last=i == len(blocks) - 1)
    draw_scales(figure, colours, (_LEFT, _LEFT + (width - _LEFT) // 2), _CELL)
    sign(figure, named, SIGNATURE / height)
    settle(figure)
    return figure


# ---- places ----------------------------------------------------------------------------------


def _default_places(named: Mapping[str, Audit]) -> list[_Place]:
    """Return the network's input and then, from large maps to small ones, the operators that shrink them.

    An operator of the first variant whose input is the network's has no place of its own.
    """
    first: dict[str, Key] = {name: _INPUT for name, audit in named.items() if _INPUT in audit.examples}
    found = {name: _shrinking(audit) for name, audit in named.items()}
    places = [_Place("network input", _size(named, first), first)] if first else []
    for stage in sorted({stage for keys in found.values() for stage in keys}):
        keys = {name: of_stage[stage] for name, of_stage in found.items() if stage in of_stage}
        name, key = next(iter(keys.items()))
        shown = named[name].examples
        if not (name in first and same(shown[key], shown[_INPUT])):
            places.append(_Place("at the input of the operator that shrinks maps of", _size(named, keys), keys))
    return places


def _shrinking(audit: Audit) -> dict[int, Key]:
    """Return by stage where the gradient has passed the last operator that shrinks maps of the stage."""
    table = in_gradient_order(audit.table)
    rows: Any = table[table["kind"] != ""]
    return {stage: key for stage, key in zip(rows["stage"], keys_of(rows), strict=True) if key in audit.examples}


def _chosen(named: Mapping[str, Audit], point: Key) -> _Place:
    """Return the place of a (call, point) in every variant that has it."""
    keys = {name: key for name, audit in named.items() if (key := _within(audit, point))}
    if not keys:
        held = sorted({key for audit in named.values() for key in audit.examples})
        raise ValueError(f"no example at {point}; there are examples at {held}")
    title = "network input" if point == _INPUT else f"{elide(point[0], 40)}, at its {point[1]}"
    return _Place(title, _size(named, keys), keys)


def _size(named: Mapping[str, Audit], keys: Mapping[str, Key]) -> str:
    """Return the size of the first variant's map."""
    name, key = next(iter(keys.items()), ("", _INPUT))
    return size_text(*named[name].examples[key].spectrum.shape)


def _within(audit: Audit, point: Key) -> Key | None:
    """Return the point itself or, of calls that surgery put into its module, the outermost on its side."""
    call, at = point
    rows = in_gradient_order(audit.table)
    keys = [key for key in keys_of(rows) if key in audit.examples and key[1] == at]
    parts = [key for key in keys if key[0] == call or key[0].startswith(f"{call}:")]
    return None if not parts else parts[-1 if at == "input" else 0]


def _thinned(blocks: list[_Block], rows: int) -> list[_Block]:
    """Return the first block and, evenly from the others, as many as have no more rows in all."""
    for count in range(len(blocks), 1, -1):
        kept = [0, *np.linspace(1, len(blocks) - 1, count - 1).round().astype(int)]
        if sum(len(blocks[i].rows) for i in kept) <= rows:
            return [blocks[i] for i in kept]
    return blocks[:1]


# ---- blocks ----------------------------------------------------------------------------------


def _grid(named: Mapping[str, Audit], places: Sequence[_Place]) -> _Grid:
    """Return the variants in as few bands as a page allows; a cell is a whole multiple of the largest map."""
    side = max(max(named[name].examples[key].spectrum.shape) for place in places for name, key in place.keys.items())
    least, across, names = side * -(-_LEAST // side), _PAGE - _LEFT, list(named)
    bands = -(-len(names) // max(1, across // (least + _GAP)))
    columns = -(-len(names) // bands)
    room = min(_CELL, across // columns - _GAP)
    return _Grid([names[i : i + columns] for i in range(0, len(names), columns)], max(least, room // side * side))


def _block(named: Mapping[str, Audit], place: _Place, grid: _Grid, pictures: int) -> _Block:
    examples = [named[name].examples[key] for name, key in place.keys.items()]
    count = min(pictures, max(len(example.maps) for example in examples))
    kinds = ("map", "detail") if any(_is_large(example, grid) for example in examples) else ("map",)
    rows = [*((kind, j) for j in range(count) for kind in kinds), ("spectrum", 0)]
    letters = int(grid.cell / _LETTER)
    heads = {name: _head(audit, name, place, letters) for name, audit in named.items()}
    return _Block(place, heads, rows)


def _is_large(example: Example, grid: _Grid) -> bool:
    """Return whether a map's pixels are single screen pixels, so that a detail of it shows more."""
    shape = example.spectrum.shape
    return grid.cell // max(shape) <= 1 and min(shape) > _DETAIL


def _head(audit: Audit, name: str, place: _Place, letters: int) -> list[str]:
    """Return the lines above a column: the variant and, but at the network's input, the call and its type."""
    lines, key = [elide(name, letters)], place.keys.get(name)
    if key is None:
        return [*lines, "–"]
    if key == _INPUT:
        return lines
    kind = audit.table.loc[audit.table["call"] == key[0], "type"].iloc[0]
    size = size_text(*audit.examples[key].spectrum.shape)
    return [*lines, elide(key[0], letters), *wrap(kind if size == place.size else f"{kind}, {size}", letters)]


@dataclass(frozen=True)
class _Sheet:
    """What all cells share."""

    figure: Figure
    named: Mapping[str, Audit]
    grid: _Grid
    colours: ScalarMappable

    def draw(self, block: _Block, top: int, *, last: bool) -> None:
        """Draw a block from ``top`` on, in screen pixels; below the last one the frequencies are named."""
        title = f"{block.place.title} {block.place.size}"
        write(self.figure, _LEFT, top + _TITLE - 8, title, fontsize=9, va="bottom", fontweight="bold")
        windows = {j: _windows(self.named, block.place, j, self.grid) for kind, j in block.rows if kind == "detail"}
        first = top + _TITLE
        for band in self.grid.bands:
            first += block.above
            self._name_rows(block, first)
            for i, name in enumerate(band):
                left = _LEFT + i * self.grid.pitch
                head: dict[str, Any] = {"fontsize": 8, "va": "bottom", "ha": "center", "linespacing": 1.1}
                write(self.figure, left + self.grid.cell / 2, first - 6, "\n".join(block.heads[name]), **head)
                for row, (kind, j) in enumerate(block.rows if name in block.place.keys else ()):
                    example = self.named[name].examples[block.place.keys[name]]
                    corner, window = (left, first + row * self.grid.pitch), windows.get(j, {}).get(name)
                    if kind == "spectrum":
                        labelled = last and band is self.grid.bands[-1]
                        ax = cell_axes(self.figure, example.spectrum.shape, *corner, self.grid.cell)
                        draw_spectrum(ax, relative(example.spectrum), self.colours, labelled=labelled)
                        ax.set_xlabel(ax.get_xlabel() if i == 0 else "")  # no room for one at each
                    elif j < len(example.maps):
                        self._draw_map(example.maps[j], corner, window, detail=kind == "detail")
            first += len(block.rows) * self.grid.pitch

    def _draw_map(
        self, picture: np.ndarray, corner: tuple[int, int], window: tuple[int, int] | None, *, detail: bool
    ) -> None:
        """Draw a map with a frame around the window, if it has one, or the window alone, on the map's scale."""
        y, x = window or (0, 0)
        part = picture[y : y + _DETAIL, x : x + _DETAIL] if detail else picture
        if detail and not window:
            return
        ax = cell_axes(self.figure, part.shape, *corner, self.grid.cell)
        draw_map(ax, part, bound_of(picture))
        if window and not detail:
            side = _DETAIL + 1  # half a pixel off: no framed pixel is covered
            ax.add_patch(Rectangle((x - 1, y - 1), side, side, fill=False, edgecolor="black", linewidth=0.7))

    def _name_rows(self, block: _Block, top: int) -> None:
        """Write, turned, what each row of a band shows."""
        letters = int(self.grid.cell / _LETTER)
        turned: dict[str, Any] = {"fontsize": 8, "va": "center", "ha": "right", "rotation": 90, "linespacing": 1.1}
        for row, (kind, j) in enumerate(block.rows):
            text = {
                "map": elide(_picture_name(self.named, j), letters),
                "detail": f"its frame ×{self.grid.cell // _DETAIL}",
                "spectrum": spectrum_head(self.named) if letters > 20 else "mean log\nspectrum",
            }[kind]
            write(self.figure, _LEFT - 12, top + row * self.grid.pitch + self.grid.cell / 2, text, **turned)


def _picture_name(named: Mapping[str, Audit], j: int) -> str:
    names = {str(audit.pictures[j]) for audit in named.values() if j < len(audit.pictures)}
    return names.pop() if len(names) == 1 else f"picture {j + 1}"


def _windows(named: Mapping[str, Audit], place: _Place, j: int, grid: _Grid) -> dict[str, tuple[int, int]]:
    """Return the top left pixel of the detail of picture ``j``: one for all variants whose maps have one size.

    It is where the sum of the absolute gradients is largest, each variant's divided by its own sum.
    """
    maps = {
        name: np.abs(np.nan_to_num(example.maps[j].astype(float), posinf=0, neginf=0))
        for name, key in place.keys.items()
        if len((example := named[name].examples[key]).maps) > j and _is_large(example, grid)
    }
    weights: dict[tuple[int, ...], np.ndarray] = {}
    for picture in maps.values():
        share = picture / (picture.sum() or 1)
        weights[picture.shape] = weights.get(picture.shape, 0) + share
    best = {shape: _heaviest(weight) for shape, weight in weights.items()}
    return {name: best[picture.shape] for name, picture in maps.items()}


def _heaviest(weight: np.ndarray) -> tuple[int, int]:
    """Return the top left corner of the window of the largest sum."""
    sums = np.pad(weight, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = (
        sums[_DETAIL:, _DETAIL:] - sums[:-_DETAIL, _DETAIL:] - sums[_DETAIL:, :-_DETAIL] + sums[:-_DETAIL, :-_DETAIL]
    )
    y, x = np.unravel_index(np.argmax(inside.round(12)), inside.shape)  # rounding would choose among equals
    return int(y), int(x)

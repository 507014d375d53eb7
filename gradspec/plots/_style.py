"""The common look of all figures: colours with their markers and hatches, names, legends, saving."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import matplotlib
import matplotlib.style
import pandas as pd
import seaborn as sns
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

if TYPE_CHECKING:
    from gradspec.comparison import Comparison
    from gradspec.results import Audit

Audits: TypeAlias = Union["Audit", Mapping[str, "Audit"], "Comparison"]
Key: TypeAlias = tuple[str, str]  # (call, point)

_BLUE, _ORANGE, _GREEN, _RED, _PINK, _BROWN, _ROSE, _GREY, _YELLOW, _SKY = sns.color_palette("colorblind").as_hex()


class Look(NamedTuple):
    """How an operator type is drawn everywhere: never by colour alone."""

    colour: str
    marker: str | tuple[int, Literal[0, 1, 2], int]
    hatch: str  # of straight lines where it can be: every dot of a pattern is a curve in an SVG file


class Trace(NamedTuple):
    """How a variant is drawn everywhere: each of the three alone tells the first ten apart."""

    colour: str
    style: Any
    marker: str


LOOKS = {
    "max pooling": Look(_RED, "v", "////"),
    "strided convolution": Look(_GREEN, "s", "xxxx"),
    "average pooling": Look(_SKY, "o", ".."),
    "patch embedding": Look(_PINK, "D", "++++"),
    "patch merging": Look("#332288", (6, 1, 0), "**"),
    "convolution": Look(_BLUE, "<", ""),
    "normalisation": Look(_YELLOW, "^", "----"),
    "activation": Look(_ORANGE, "p", "\\\\\\\\"),
    "attention": Look(_BROWN, "*", "o"),
    "linear": Look(_ROSE, "h", "||||"),
    "addition": Look(_GREY, "P", "++"),
    "concatenation": Look(_GREY, "H", "//"),
    "multiplication": Look(_GREY, "d", "xx"),
    "transposed convolution": Look("#999933", (3, 1, 0), "x."),
    "padding": Look("#eeeeee", (4, 1, 0), "o."),
    "resampling": Look("#bbbbbb", ">", "-."),
    "slicing": Look("#dddddd", "8", "\\\\"),
    "input": Look("#333333", ".", ""),
    "other": Look("#888888", "X", "--"),
}
DOWNSAMPLING = ("max pooling", "strided convolution", "average pooling", "patch embedding", "patch merging")
OTHER_DOWNSAMPLING = "other downsampling"  # a step in a slice: known by its map sizes alone
_COLOURS = (_BLUE, "#222222", _RED, _GREEN, _ORANGE, _PINK, _SKY, "#332288", "#999933", "#882255")
STYLES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1.3)), (0, (8, 2, 1, 2)), (0, (13, 3)), (0, (1, 3.5)), (0, (5, 1.5, 1, 1.5, 1, 1.5)),
    (0, (2.5, 2.5)), (0, (13, 2, 3, 2)), (0, (5, 1.5, 5, 1.5, 1, 3)), (0, (1, 1.3, 1, 5)),
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p", "d")
_DIFFERENT = len(_COLOURS) * len(STYLES) * len(_MARKERS)  # the lengths have no common divisor
VARIANTS = tuple(map(Trace, *(islice(cycle(each), _DIFFERENT) for each in (_COLOURS, STYLES, _MARKERS))))
_STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "text.usetex": False,
    "figure.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
FLAT: dict[str, Any] = {"color": "#777777", "linewidth": 0.8, "linestyle": (0, (4, 3))}  # the line of white noise
styled = matplotlib.style.context(["default", _STYLE])  # rc_context underneath: the caller's rcParams come back


def by_name(audits: Audits) -> dict[str, Audit]:
    """Return the audits by name; a single one goes by the empty name."""
    found: Any = getattr(audits, "audits", audits)  # of a comparison
    named = dict(found) if isinstance(found, Mapping) else {"": found}
    if not named:
        raise ValueError("expected an audit or a mapping of names to audits, got an empty mapping")
    return named


def traces(names: Iterable[str]) -> dict[str, Trace]:
    """Return how each variant is drawn: by its place, the same in every figure.

    Example:
        >>> traces(["trained", "untrained"])["untrained"].colour
        '#222222'
    """
    return dict(zip(names, cycle(VARIANTS), strict=False))


def nothing(sentence: str) -> Figure:
    """Return a figure that says why it is empty: a report over many networks goes on."""
    figure = Figure(figsize=(8, 1.2))
    figure.text(0.5, 0.5, sentence, ha="center", va="center")
    return figure


def look(kind: str) -> Look:
    """Return how a type is drawn; one that is not known looks like \"other\"."""
    return LOOKS.get(kind, LOOKS["other"])


def shades_of(colour: str) -> Colormap:
    """Return a colour map from a light to a dark shade of one colour, through the colour itself."""
    light, dark = sns.light_palette(colour, 6)[3], sns.dark_palette(colour, 6)[4]
    return sns.blend_palette([light, colour, dark], as_cmap=True)


def masked(name: str) -> Colormap:
    """Return a named colour map that shows NaN in grey, which neither viridis nor RdBu contains."""
    return matplotlib.colormaps[name].with_extremes(bad="#999999")


def size_text(height: float, width: float) -> str:
    return f"{int(height)}×{int(width)}"


def elide(name: str, length: int) -> str:
    """Return a name of at most ``length`` printable characters; a long one loses its middle, whole parts if possible.

    Example:
        >>> elide("features.denseblock4.denselayer16.conv2", 28), elide("layer4.0.downsample.0", 18)
        ('features…denselayer16.conv2', 'layer4.0.…sample.0')
    """
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    if len(name) <= length:
        return name
    dots = [i for i, letter in enumerate(name) if letter == "." and 0 < i < len(name) - 1]
    whole = [f"{name[:i]}…{name[j + 1 :]}" for i in dots for j in dots if i <= j]
    best = max((short for short in whole if len(short) <= length), key=len, default="")
    if len(best) >= 0.75 * length:  # else cutting at dots loses too much
        return best
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def in_gradient_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows from prediction to input, output before input, notes as text, with a column ``kind``."""
    table = table.reset_index(drop=True)
    rank = -table["call"].map({call: i for i, call in enumerate(dict.fromkeys(table["call"]))})
    order = pd.DataFrame({"rank": rank, "last": table["point"] == "input"}).sort_values(["rank", "last"], kind="stable")
    rows = table.loc[order.index].assign(note=table["note"].fillna("").astype(str))
    return rows.assign(kind=_kinds(rows))


def _kinds(rows: pd.DataFrame) -> list[str]:
    """Return the kind of downsampling of each row at the input of a call that downsamples, else ``""``."""
    outputs = {call: size for (call, at), size in zip(keys_of(rows), rows["height"], strict=True) if at == "output"}
    shrink = rows["height"] / rows["call"].map(outputs)
    kinds = rows["type"].where(
        rows["type"].isin(DOWNSAMPLING), shrink.ge(1.5).map({True: OTHER_DOWNSAMPLING, False: ""})
    )
    return kinds.where(rows["point"] == "input", "").tolist()


def keys_of(rows: pd.DataFrame) -> Iterator[Key]:
    return zip(rows["call"], rows["point"], strict=True)


def legend_above(figure: Figure, groups: Sequence[Sequence[tuple[Any, str]]], columns: int = 6) -> None:
    """Write a legend above the figure, each group of (handle, label) on rows of its own, as wide as the figure allows.

    Handles are given by hand throughout: matplotlib would hide a label that begins with an underscore.
    """
    room = figure.get_size_inches()[0] * 72
    rows = next(rows for wide in range(columns, 0, -1) if _width(rows := _in_rows(groups, wide)) < room or wide == 1)
    wide = max((len(row) for row in rows), default=1)
    blank = (Line2D([], [], linestyle="none"), "")
    entries = [row[j] if j < len(row) else blank for j in range(wide) for row in rows]  # matplotlib fills columns
    figure.legend(*zip(*entries, strict=True), loc="outside upper center", ncols=wide)


def _in_rows(groups: Sequence[Sequence[tuple[Any, str]]], columns: int) -> list[list[tuple[Any, str]]]:
    return [list(group[i : i + columns]) for group in groups for i in range(0, len(group), columns)]


def _width(rows: Sequence[Sequence[tuple[Any, str]]]) -> float:
    """Return about how many typographic points a legend of 8 pt takes."""
    letters = [
        max(map(len, labels)) for labels in zip_longest(*([label for _, label in row] for row in rows), fillvalue="")
    ]
    return sum(5.2 * count + 36 for count in letters)


def sign(figure: Figure, named: Mapping[str, Audit], y: float | None = None) -> None:
    """Write, small and grey below the figure, what it shows: the network or the variants, pictures, target.

    Args:
        figure: the figure; its layout makes room, if it has one.
        named: the audits by name.
        y: height of the line where no layout places it, as a fraction of the figure's.
    """
    audits = list(named.values())
    model = str(audits[0].spec.get("model", ""))
    model = model.rpartition("/")[2] if ".py" in model else model  # a factory's file, without its folders
    shown = model if len(audits) == 1 else ", ".join(map(str, named))
    counts = [len(audit.pictures) for audit in audits]
    pictures = ", ".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))
    targets = dict.fromkeys(str(audit.spec.get("target", "")) for audit in audits)
    end = " · ".join(["", f"{pictures} picture{'' if pictures == '1' else 's'}", *filter(None, targets)])
    room = int(figure.get_size_inches()[0] * 72 / 5.2)  # letters of 8 pt
    end = elide(end, max(room // 2, 3))
    figure.supxlabel(elide(shown, max(room - len(end), 3)) + end, fontsize=8, color="#777777", y=y)


def settle(figure: Figure) -> None:
    """Lay the figure out once, so that ticks and legends take our style now and not the caller's later."""
    for ax in figure.axes:
        ax.tick_params(labelsize=_STYLE["xtick.labelsize"])  # else how many ticks fit is asked of the rcParams, later
    with any_script():
        figure.draw_without_rendering()


@contextmanager
def any_script() -> Iterator[None]:
    """Draw names in a script that the font lacks as boxes, without a warning for every letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Return the paths of the PNG and the SVG written for ``figure``, the same bytes on every run.

    Args:
        figure: any matplotlib figure; the PNG takes its own resolution.
        path: where, without a suffix (``.png`` or ``.svg`` is taken off). Missing folders are made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save(Figure(), folder + "/slope")]
        ['slope.png', 'slope.svg']
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in {".png", ".svg"} else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with _reproducible():
        figure.savefig(png, metadata={"Software": None})
    svg.write_text(svg_text(figure), encoding="utf-8", newline="\n")
    return png, svg


def svg_text(figure: Figure) -> str:
    """Return a figure as the text of an SVG file, the same on every run; words in it stay words.

    Example:
        >>> svg_text(Figure()).rstrip()[-6:]
        '</svg>'
    """
    with _reproducible():
        figure.savefig(text := io.StringIO(), format="svg", metadata=_NO_DATE)
    return _PATH.sub(lambda path: _DIGITS.sub(r"\1", path[0]), text.getvalue())


def png_bytes(figure: Figure, colours: int | None = None) -> bytes:
    """Return a figure as a PNG file of its own resolution, the same on every run.

    Args:
        figure: any matplotlib figure.
        colours: at most so many colours, up to 256, where the file is to be small; None keeps them all.

    Example:
        >>> png_bytes(Figure())[1:4]
        b'PNG'
    """
    with _reproducible():
        figure.savefig(file := io.BytesIO(), format="png", metadata={"Software": None})
    if colours is None:
        return file.getvalue()
    few = Image.open(file).convert("RGB").quantize(colours, dither=Image.Dither.NONE)  # dither would add frequencies
    few.save(small := io.BytesIO(), format="png", optimize=True)
    return small.getvalue()


_NO_DATE: dict[str, Any] = {"Date": None, "Creator": None}
_PATH = re.compile(r'<path (id="\w*" )?d="[^"]*"')  # never in a name, where "<" is escaped
_DIGITS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is finer than any screen


@contextmanager
def _reproducible() -> Iterator[None]:
    """Write files that depend on the figure alone."""
    # "default" also undoes a savefig.dpi or savefig.bbox of the caller's, which would resample maps placed by the pixel
    with matplotlib.style.context(["default", {"svg.hashsalt": "gradspec", "svg.fonttype": "none"}]), any_script():
        yield

"""The page's figures: drawn by gradspec.plots, put inline as SVG or PNG, with words for who cannot see them."""

from __future__ import annotations

import base64
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from xml.etree import ElementTree

from markupsafe import Markup

from gradspec import plots
from gradspec.evaluation import Scores
from gradspec.plots import scores as draw_scores
from gradspec.plots._style import png_bytes, svg_text
from gradspec.plots.cutoffs import cutoff_curves as draw_cutoffs
from gradspec.reporting.comparing import causal_words
from gradspec.reporting.subject import Subject, input_row
from gradspec.reporting.text import count, isolated, listed, number, plain, with_error
from gradspec.reporting.words import culprit_words
from gradspec.results import Audit
from gradspec.trials import Trial

_SCALE = 108  # pixels per inch of a drawing: its smallest text is 12 px high
_ROWS = 9  # of one network's gradients: what one printed page can hold
_PICTURE_BYTES = 1_500_000  # of a sheet of gradients; the page takes a third more, and is to stay below 5 MB
_URL = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        id: Unique on the page.
        caption: What it shows and how to read it.
        markup: The inline SVG or image; empty where it could not be drawn.
        width: Natural width in pixels.
        problem: Why it could not be drawn.
    """

    id: str
    caption: str
    markup: Markup
    width: int
    problem: str = ""


def profile(subject: Subject) -> Picture:
    """Returns the slope along the depth."""
    caption = (
        "Slope of the gradient's spectrum at every call, as the gradient flows from the prediction (left) to the input "
        "(right), with 95 % bands. Marks: operators that shrink the map, where the gradient has just passed them."
    )
    alt = f"Slope profile. {_ends(subject)}"
    return _svg("profile", caption, alt, lambda: plots.slope_profile(_shown(subject)))


def culprits(subject: Subject) -> list[Picture]:
    """Returns the ranking of the calls; of several audits that of the types first, in one panel."""
    calls = _svg(
        "culprits-calls",
        "The calls that add most high frequencies: new power, mean over pictures, with one standard error.",
        f"Bars. {' '.join(_leader(name, audit) for name, audit in subject.audits.items())}",
        lambda: plots.culprits(_shown(subject)),
    )
    if subject.drift is None:
        return [calls]
    types = _svg(
        "culprits-types",
        "New power by type of operator: mean over its calls and pictures, with one standard error.",
        f"One row per type, one mark per variant. {culprit_words(subject.first)}",
        lambda: plots.culprits(_shown(subject), by="type"),
    )
    return [types, calls]


def drift(subject: Subject) -> Picture:
    """Returns what each variant still computes, against its slope."""
    caption = (
        "What each variant still computes against the slope of its gradient at the input: further left the spectrum "
        "falls more steeply, further up is more right answers, or the same as the first variant's where no labels were "
        "given."
    )
    return _svg("drift", caption, f"One point per variant. {_ends(subject)}", lambda: plots.drift(cast(Any, subject)))


def causal(subject: Subject) -> Picture:
    """Returns what swapping operators does, beside their new power."""
    caption = (
        "The slope at the input where one operator alone is replaced by average pooling, or all but this one; the "
        "longer the way from the dashed line, the more the operator does. Right, its new power. One standard error."
    )
    return _svg("causal", caption, f"Points and bars. {causal_words(subject)}", lambda: plots.causal(subject))


def signatures(subject: Subject) -> Picture:
    """Returns the Fourier signatures by type."""
    kinds = listed([isolated(kind, 40) for kind in subject.first.culprits("type")["type"]], 4)
    caption = (
        "Fourier signatures of the gradient behind each operator: log₁₀ amplitude over frequency, each less its mean, "
        "so that white noise is flat at 0. Light: near the prediction, dark: near the input."
    )
    alt = f"Curves of amplitude over frequency, by type of operator; the network has {kinds}. {_ends(subject)}"
    return _svg("signatures", caption, alt, lambda: plots.signatures(_shown(subject)))


def gradients(subject: Subject) -> Picture:
    """Returns pictures of gradients and their spectra."""
    caption = (
        "The gradient itself, mean over channels, each map on its own scale, and the mean spectrum over all pictures, "
        "zero frequency in the centre. A checkerboard in a map is power at the rim of its spectrum."
    )
    points = sum(len(audit.examples) for audit in subject.audits.values())
    maps = max((len(example.maps) for example in subject.first.examples.values()), default=0)
    alt = f"Gradient maps of {count(maps, 'picture')} and mean spectra; {count(points, 'point')} are recorded."
    return _png("gradients", caption, alt, partial(_sheets, subject))


def _sheets(subject: Subject) -> Iterator[bytes]:
    """The sheet of gradients as a PNG, then smaller and smaller ones: large maps of noise do not compress."""
    draw, rows = partial(plots.gradient_pictures, _shown(subject)), _ROWS if subject.drift is None else None
    yield png_bytes(draw(limit=rows))
    yield png_bytes(draw(limit=rows), colours=256)
    yield png_bytes(draw(limit=4), colours=256)
    yield png_bytes(draw(points=[("input", "input")], pictures=1), colours=64)


# ---- FORGrad ---------------------------------------------------------------------------------


def cutoffs(trial: Trial, place: int) -> Picture:
    """Returns the curves of a variant's methods."""
    name = isolated(trial.variant, 80)
    alone = "; across, maps without a filter and without a network" if len(trial.fits) == 1 else ""
    caption = (
        f"{name}: mean score over the cutoff of the low-pass filter, with 95 % bands, the best cutoff, and the mildest "
        f"one within one standard error of it{alone}; on the pictures that the cutoff is chosen on."
    )
    best = [
        f"{isolated(method, 40)} {'no filter' if fit.cutoff is None else f'{fit.cutoff:.3g}'}"
        for method, fit in trial.fits.items()
    ]
    spectral = None if math.isnan(trial.spectral) else trial.spectral
    alt = f"Curves. Best cutoffs in cycles per image: {listed(best, 13)}."
    return _svg(f"cutoffs-{place}", caption, alt, lambda: draw_cutoffs(trial.fits, spectral=spectral))


def gains(trial: Trial, metric: str, place: int) -> Picture:
    """Returns what the filters gain on a variant."""
    caption = (
        f"{isolated(trial.variant, 80)}: what each filter gains on pictures that no cutoff was chosen on, mean and "
        "95 % interval of paired differences. Right of zero the maps are better than without it."
    )
    alt = "Marks with intervals, a row for each attribution; the numbers stand in the table below."
    return _svg(f"gains-{place}", caption, alt, lambda: draw_scores.gains(_scores(trial), metric))


def scores(trial: Trial, metric: str, place: int) -> list[Picture]:
    """Returns the scores of a variant's maps against their slope and their time, and maps before and after."""
    name = isolated(trial.variant, 80)
    points = partial(draw_scores.points_of, _scores(trial), metric)
    slope = (
        f"{name}: score against the slope of the maps' spectrum, before (filled) and after FORGrad; one standard error."
    )
    spent = f"{name}: score against the time that 100 maps take, before (filled) and after FORGrad; one standard error."
    alt = "Points with error bars, an arrow from each attribution to its filtered maps; the numbers stand in the table."
    found = [
        _svg(f"slopes-{place}", slope, alt, lambda: draw_scores.slope_scatter(points(), metric)),
        _svg(f"times-{place}", spent, alt, lambda: draw_scores.faithfulness_time(points(), metric)),
    ]
    if _scores(trial).examples:
        sheet = f"{name}: the first pictures with their maps before and after FORGrad (*), each on its own scale."
        seen = f"Maps of {count(len(_scores(trial).examples), 'picture')}."
        found.append(_png(f"maps-{place}", sheet, seen, partial(_maps, trial)))
    return found


def _scores(trial: Trial) -> Scores:
    assert trial.scores is not None
    return trial.scores


def _maps(trial: Trial) -> Iterator[bytes]:
    """The sheet of maps as a PNG, then smaller ones."""
    yield png_bytes(draw_scores.examples(_scores(trial)), colours=256)
    yield png_bytes(draw_scores.examples(_scores(trial), most=1), colours=64)


# ---- words -----------------------------------------------------------------------------------


def _ends(subject: Subject) -> str:
    """The slope at the input of each audit, for who cannot see the curve."""
    ends = []
    for name, audit in subject.audits.items():
        row = input_row(audit)
        slope = with_error(row["slope_nyquist"], row["se_nyquist"]) if row else number(None)
        ends.append(f"{isolated(name, 60)} {slope}" if len(subject.audits) > 1 else slope)
    return f"Slope per Nyquist at the input: {'; '.join(ends)}."


def _leader(name: str, audit: Audit) -> str:
    ranked = audit.culprits("call")
    if ranked.empty:
        return f"{isolated(name, 60)}: none."
    top = [f"{isolated(row.call, 60)} {number(row.new_power, signed=True)}" for row in ranked.head(3).itertuples()]
    return f"{isolated(name, 60)}: {listed(top)}."


def _shown(subject: Subject) -> Audit | Mapping[str, Audit]:
    """What the figure functions take: a single audit has no name in its figure."""
    return subject.first if subject.drift is None else subject.audits


# ---- markup ----------------------------------------------------------------------------------


def _svg(name: str, caption: str, alt: str, draw: Callable[[], Any]) -> Picture:
    try:
        figure = draw()
        markup = _inline(svg_text(figure), name, plain(alt))
    except Exception as error:  # files may hold what no figure can show; the page goes on
        return _failed(name, caption, error)
    return Picture(name, caption, markup, round(figure.get_size_inches()[0] * _SCALE))


def _png(name: str, caption: str, alt: str, draw: Callable[[], Iterator[bytes]]) -> Picture:
    """The first of the drawn files that is small enough, else the last."""
    data = b""
    try:
        for data in draw():
            if len(data) <= _PICTURE_BYTES:
                break
    except Exception as error:
        return _failed(name, caption, error)
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    markup = Markup('<img src="{}" alt="{}" width="{}" height="{}">').format(source, plain(alt), width, height)
    return Picture(name, caption, markup, width)


def _failed(name: str, caption: str, error: Exception) -> Picture:
    problem = f"This figure could not be drawn: {type(error).__name__}: {plain(error, 200)}"
    warnings.warn(f"{name}: {problem}", stacklevel=3)
    return Picture(name, caption, Markup(), 0, problem)


def _inline(svg: str, name: str, alt: str) -> Markup:
    """An SVG file's text as an element of an HTML page that holds several.

    Ids that are referred to get the figure's name in front, all others go; a style element would hold for the whole
    page and goes too.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)  # an svg element in HTML has no namespace to declare
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
    targets = [_targets(element) for element in root.iter()]
    wanted = set().union(*targets)
    for element, found in zip(root.iter(), targets, strict=True):
        if element.attrib.get("id") in wanted:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        else:
            element.attrib.pop("id", None)
        for target in found:
            element.attrib = {
                key: value.replace(f"#{target}", f"#{name}-{target}") for key, value in element.attrib.items()
            }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _targets(element: ElementTree.Element) -> set[str]:
    """The ids that an element refers to: href="#id" or url(#id)."""
    linked = element.attrib.get("href", "")
    found = {target for value in element.attrib.values() for target in _URL.findall(value)}
    return found | ({linked[1:]} if linked.startswith("#") else set())


def _local(name: str) -> str:
    return name.rpartition("}")[2]

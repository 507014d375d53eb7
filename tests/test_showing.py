"""Results as a notebook shows them: words that cannot become markup, a short table, and the figure they are about."""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import gradspec as gs
from gradspec import controls, plots
from gradspec import metrics as m
from gradspec._showing import html_of
from gradspec.attributions import GradientInput, Saliency
from gradspec.plots._style import png_bytes
from gradspec.trials import Trial, Trials

NASTY = '<script>alert("x")</script>'
SHOWN = {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "img"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its words, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words = ""
        self.images: list[dict[str, str | None]] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.rows += tag == "tr"
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.words += data + " "

    @property
    def picture(self) -> np.ndarray:
        """The pixels (H, W, 3) of the only picture."""
        (image,) = self.images
        source = image["src"] or ""
        assert source.startswith("data:image/png;base64,")
        return decoded(base64.b64decode(source.partition(",")[2]))


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def tiny(name: str = NASTY, seed: int = 0) -> nn.Module:
    """A network with a module of this name, and of this name itself."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(3, 4, 3, padding=1))
    for layer in (nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 3)):
        net.add_module(f"{name} {type(layer).__name__}", layer)
    net.mean, net.std = (0.0,) * 3, (1.0,) * 3  # type: ignore[assignment]
    return net.eval()


def pictures(seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 3


def fitted(net, attribution=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit_cutoff: The curve is flat")
        return gs.fit_cutoff(net, attribution or Saliency(), pictures(1), cutoffs=[None, 4, 1], progress=False)


def scored(net, fit=2.0, methods=None, **options):
    methods = methods or {NASTY: Saliency(), "second": GradientInput()}
    metrics = {"Faithfulness": m.Faithfulness(steps=4)}
    return gs.evaluate(net, pictures(2), methods, metrics, fits=dict.fromkeys(methods, fit), progress=False, **options)


@pytest.fixture(scope="module")
def results():
    """One of each kind, with names from someone else's files in it."""
    net = tiny()
    audit = gs.audit(net, pictures(1), progress=False)
    audit = replace(audit, spec=audit.spec | {"model": NASTY})
    fit = replace(fitted(net), attribution=NASTY)
    scores = scored(net)
    scores = replace(scores, spec=scores.spec | {"model": NASTY})
    found = {
        "audit": audit,
        "comparison": gs.compare({NASTY: net, "other": tiny(seed=1)}, pictures(1), progress=False),
        "fit": fit,
        "scores": scores,
        "fits": Trials((Trial(NASTY, {NASTY: fit}), Trial("other", {"Saliency": fit})), {"model": NASTY}),
        "trials": Trials((Trial(NASTY, {}, scores), Trial("other", {}, scored(tiny(seed=1)))), {"model": NASTY}),
        "taylor": controls.taylor(net, pictures(1), radii=[0.1, 1], cutoffs=[4], draws=2, progress=False),
        "sanity": controls.sanity(net, pictures(1), {NASTY: Saliency()}, progress=False),
        "bias": controls.metric_bias(net, pictures(1), metrics={NASTY: m.Faithfulness(steps=4)}, progress=False),
    }  # fmt: skip
    found["taylor"] = replace(found["taylor"], spec=found["taylor"].spec | {"model": NASTY})
    return found


@pytest.fixture(scope="module")
def pages(results):
    """Kind -> its page; while they were made, a figure of the caller's was open."""
    plt.close("all")
    mine = plt.figure()
    settings = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {kind: result._repr_html_() for kind, result in results.items()}
    assert plt.get_fignums() == [mine.number] and plt.gcf() is mine and not mine.axes
    assert dict(matplotlib.rcParams) == settings
    plt.close("all")
    return found


KINDS = ["audit", "comparison", "fit", "scores", "fits", "trials", "taylor", "sanity", "bias"]
DRAWN = {  # what each is a picture of, drawn by hand
    "audit": lambda found: plots.slope_profile(found),
    "comparison": lambda found: plots.slope_profile(found.audits),
    "fit": lambda found: plots.cutoff_curves(found),
    "scores": lambda found: plots.gains(found, "Faithfulness"),
    "fits": lambda found: plots.cutoff_curves({f"{NASTY} · {NASTY}": found.fit(NASTY, NASTY),
                                               "other · Saliency": found.fit("other", "Saliency")}),
    "taylor": lambda found: plots.taylor(found),
    "sanity": lambda found: plots.sanity(found),
    "bias": lambda found: plots.metric_bias(found),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_names_stay_words_and_the_picture_is_one(pages, kind):
    page = Page(pages[kind])
    assert page.tags == SHOWN and NASTY in page.words
    (image,) = page.images
    assert set(image) == {"src", "alt", "width", "style"} and len(str(image["alt"])) > 20
    pixels = page.picture
    assert 300 < int(str(image["width"])) < pixels.shape[1] < 2000  # finer than it is shown
    assert (pixels == 255).all(2).mean() > 0.5 and (pixels < 100).all(2).sum() > 500  # dark letters on white
    assert (np.ptp(pixels, 2) > 60).sum() > 100  # and colours


@pytest.mark.parametrize("kind", DRAWN)
def test_the_picture_is_its_main_figure(results, pages, kind):
    found = results[kind]
    expected = decoded(png_bytes(DRAWN[kind](found)))
    inside, alone = Page(pages[kind]).picture, decoded(found.plot()._repr_png_())
    assert np.array_equal(alone, expected)
    assert inside.shape == expected.shape and np.abs(inside - expected).mean() < 0.5  # of fewer colours


def test_another_result_is_another_picture(pages):
    other = gs.audit(tiny(seed=3), pictures(1), progress=False)
    assert not np.array_equal(Page(other._repr_html_()).picture, Page(pages["audit"]).picture)


def test_trials_show_the_gains_of_every_variant(results, pages):
    found = results["trials"]
    panel, *_ = found.plot().axes
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert len(names) == 4 and names[3] == "other · second" and names[2].startswith("other · <scr")
    drawn = sorted(line.get_xdata()[0] for line in panel.lines if line.get_gid() == "gain")
    wanted = sorted(mean for trial in found.trials for mean in trial.scores.gains()["mean"])
    assert panel.get_title() == "against no filter" and drawn == pytest.approx(wanted) and len(drawn) == 8
    assert Page(pages["trials"]).rows == 1 + 4  # FORGrad over no filter, of each variant and method


def test_trials_of_one_variant_look_like_its_scores(results):
    scores = results["scores"]
    one = Trials((Trial("trained", {}, scores),), {})
    assert np.array_equal(decoded(one.plot()._repr_png_()), decoded(scores.plot()._repr_png_()))


def test_trials_without_fits_say_so():
    nothing = Trials((Trial("untrained", reason=f"it is {NASTY}"),), {"model": "net"})
    assert repr(nothing) == "Trials(net, variants: untrained; fits: 0, scored: 0, failed: 1)"
    assert "Nothing to draw" in nothing.plot().texts[0].get_text()
    page = Page(nothing._repr_html_())
    assert page.tags == SHOWN and f"it is {NASTY}" in page.words


def test_nothing_is_left_open(pages, results):
    assert set(pages) == set(KINDS)  # the fixture has looked after the caller's figure and settings
    figures = [results["fit"].plot(), results["scores"].plot()]
    assert plt.get_fignums() == [] and all(type(figure) is Figure for figure in figures)


def test_a_long_table_is_cut():
    class Result:
        def __repr__(self):
            return "a & b"

        def plot(self):
            return Figure()

    page = Page(html_of(Result(), pd.DataFrame({"x": range(12)}), ""))
    assert page.rows == 13 and "more row" not in page.words and "a & b" in page.words
    page = Page(html_of(Result(), pd.DataFrame({"x": range(13)}), ""))
    assert page.rows == 13 and "and 1 more row " in page.words
    assert "and 88 more rows" in html_of(Result(), pd.DataFrame({"x": range(100)}), "")


def test_a_figure_that_fails_leaves_the_table(results, monkeypatch):
    def fails(found):
        raise ValueError(f"no {NASTY}")

    monkeypatch.setattr(gs.Audit, "plot", fails)
    page = Page(results["audit"]._repr_html_())
    assert page.tags == SHOWN - {"img"} and "max pooling" in page.words
    assert f"The figure could not be drawn: ValueError: no {NASTY}" in page.words


def test_numbers_that_are_all_nan_still_show_their_table():
    dead = tiny("dead")
    for parameter in dead.parameters():
        nn.init.zeros_(parameter)
    audit = gs.audit(dead, pictures(1), progress=False)
    assert audit.table["slope_nyquist"].isna().all()
    page = Page(audit._repr_html_())
    assert page.tags >= SHOWN - {"img", "td"} and "new_power" in page.words
    compared = Page(gs.compare({"dead": dead}, pictures(1), progress=False)._repr_html_())
    assert compared.rows == 2 and "dead" in compared.words and len(compared.images) == 1

    def constant(model, images, labels):
        return torch.ones(len(images), 16, 16)

    with pytest.warns(UserWarning, match="18 of 42 scores are NaN"):
        scores = scored(tiny("net"), methods={"constant": constant})
    assert scores.table.query("attribution == 'constant'")["value"].isna().all()
    page = Page(scores._repr_html_())
    assert page.rows > 4 and "constant*" in page.words and "–" in page.words
    sanity = controls.sanity(tiny("net"), pictures(1), {"constant": constant}, progress=False)
    assert "undefined" in Page(sanity._repr_html_()).words


def test_reprs_are_one_line(results):
    for kind, found in results.items():
        assert "\n" not in repr(found) and len(repr(found)) < 300, kind
    assert repr(results["bias"]).startswith("MetricBias(") and "6 pictures, 1 metrics" in repr(results["bias"])


def test_ipython_takes_them(results, pages):
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(results["audit"])
    assert shown["text/html"] == pages["audit"] and set(shown) == {"text/plain", "text/html"}
    figure, _ = formatters.DisplayFormatter().format(results["audit"].plot())
    assert decoded(figure["image/png"]).std() > 10
    assert re.fullmatch(r"<Figure size \d+x\d+ with \d Axes>", figure["text/plain"])

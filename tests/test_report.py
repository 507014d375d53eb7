"""The page: read by a parser of HTML for what it says, by Chromium for what it does."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import gradspec as gs
from gradspec import plots
from gradspec.fourier import ring_radii
from gradspec.reporting import evidence, figures
from gradspec.reporting.comparing import causal_words, comparison_words, variant_words
from gradspec.reporting.notes import caveats
from gradspec.reporting.subject import Subject, subject_of
from gradspec.reporting.tables import Cell, side_by_side
from gradspec.reporting.words import audit_words, culprit_words, input_words, labels_sentence
from gradspec.results import Audit, Example
from gradspec.runs import packed, unpacked
from gradspec.spectra import Signature
from gradspec.surgery import Change, Record

HOSTILE = "<script>alert(1)</script>" + "x" * 275
NASTY = "a\"b'c</script></title><img src=x onerror=alert(2)>&amp;\u202eRTL\u05d0\u05d1\x00\ud800{{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "hr"}


def small_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.MaxPool2d(3, 2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return net.double().eval()


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("Expected <b>another</b> world.")


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 3, 32, 41, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture(scope="module")
def audited(data: Any) -> Audit:
    return gs.audit(small_net(), data, progress=False)


@pytest.fixture(scope="module")
def compared(data: Any) -> gs.Comparison:
    net = small_net()
    models = {"max": net, "mean": gs.surgery.average_pooled(net), "again": small_net(), "broken": Broken()}
    with pytest.warns(UserWarning, match="broken"):
        found = gs.compare(models, data, progress=False)
    found.causal(progress=False)
    return found


@pytest.fixture(scope="module")
def audit_page(audited: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gs.report(audited.save(tmp_path_factory.mktemp("audit")))


@pytest.fixture(scope="module")
def comparison_page(compared: gs.Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gs.report(compared.save(tmp_path_factory.mktemp("comparison")))


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, for tests of what stands around them."""
    empty_figures(monkeypatch)


def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in plots.__all__:
        monkeypatch.setattr(plots, name, lambda *_, **__: Figure(figsize=(1, 1)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def hostile(audit: Audit) -> Audit:
    """The audit with bad names wherever a name can stand."""
    calls = {call: call if call == "input" else f"{call} {NASTY}" for call in audit.table["call"]}
    kinds = {"convolution": NASTY}
    table, power = audit.table.astype(object), audit.new_power.astype(object)
    return replace(
        audit,
        table=table.assign(
            call=renamed(table["call"], calls),
            type=renamed(table["type"], kinds),
            note=renamed(table["note"], dict.fromkeys(set(table["note"]) - {""}, NASTY)),
        ),
        signatures={(calls[call], point): signature for (call, point), signature in audit.signatures.items()},
        new_power=power.assign(call=renamed(power["call"], calls), type=renamed(power["type"], kinds)),
        unseen={NASTY: NASTY, "b": NASTY},
        examples={(calls[call], point): example for (call, point), example in audit.examples.items()},
        pictures=tuple(f"{NASTY} {i}" for i in range(len(audit.pictures))),
        spec={
            **audit.spec,
            "model": HOSTILE,
            "target": NASTY,
            "created": NASTY,
            NASTY: {NASTY: [NASTY, {NASTY: NASTY}]},
        },
    )


def renamed(column: Any, names: dict[str, str]) -> pd.Series:
    return pd.Series([names.get(name, name) for name in column], dtype=object)  # a column of text takes no surrogates


def nasty(frame: pd.DataFrame) -> pd.Series:
    return pd.Series([NASTY] * len(frame), dtype=object)


# ---- reading the page ------------------------------------------------------------------------


class Reader(HTMLParser):
    """A page as its tags, ids, words and tables; raises where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: dict[str, str] = {}  # tag -> all text directly in such tags
        self.rows: list[list[str]] = []
        self.keys: list[list[str | None]] = []  # data-value of each cell
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "tr":
            self.rows.append([])
            self.keys.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.keys[-1].append(attributes.get("data-value"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words[self.open[-1]] = self.words.get(self.open[-1], "") + data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(result: Any, folder: Path) -> str:
    return text(gs.report(result, folder / "page.html"))


def assert_sound(html: str) -> Reader:
    """Nests, has no id twice, leads nowhere, runs one script, shows nothing without words."""
    page = Reader(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src"):
            value = attributes.get(name, "#")
            assert value.startswith("data:") or value in {"#", *("#" + known for known in ids)}
        for target in re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values())):
            assert target in ids
        for name in ("aria-labelledby",):
            assert attributes.get(name, ids[0]) in ids
    assert len(page.all("script")) == 1 and not page.all("iframe") and not page.all("base")
    assert all(picture["alt"].strip() for picture in page.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"].strip() for drawing in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert "http:" not in html and "https:" not in html
    assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e]", html)
    return page


def test_page_of_an_audit_is_sound(audit_page):
    page = assert_sound(text(audit_page))
    titles = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert titles[0] == "summary" and titles[-2:] == ["caveats", "reading"]
    assert [link["href"][1:] for link in page.all("a")][1:] == titles
    assert len(page.all("svg")) == 3 and len(page.all("img")) == 1


def test_page_of_a_comparison_is_sound(comparison_page):
    page = assert_sound(text(comparison_page))
    titles = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert titles[:3] == ["summary", "variants", "cause"]
    assert len(page.all("svg")) == 6 and len(page.all("img")) == 1
    assert "Expected <b>another</b> world." in page.words["dd"]
    assert any(row[0] == "broken" and row[-1].endswith("Expected <b>another</b> world.") for row in page.rows)


def test_a_saved_folder_gives_the_page_of_the_object(
    audited, compared, audit_page, comparison_page, tmp_path, no_drawing
):
    assert audit_page.name == "report.html"
    assert Reader(page_of(audited, tmp_path)).words["dd"] == Reader(text(audit_page)).words["dd"]
    assert Reader(page_of(compared, tmp_path / "new")).words["dd"] == Reader(text(comparison_page)).words["dd"]


def test_same_bytes_again_whatever_the_style(comparison_page, tmp_path):
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "savefig.dpi": 20, "svg.hashsalt": None}):
        again = gs.report(str(comparison_page.parent), tmp_path / "page.html")
    assert again.read_bytes() == comparison_page.read_bytes()


def test_policy_allows_the_page_s_own_script_and_no_request(audit_page):
    html = text(audit_page)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = {m["content"] for m in Reader(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"}.pop()
    policy = dict(rule.split(" ", 1) for rule in rules.split("; "))
    assert policy == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }
    assert html.index("Content-Security-Policy") < html.index("<style") < html.index("<script")


def test_style_asks_for_nothing_and_can_be_read(audit_page):
    style = Reader(text(audit_page)).words["style"]
    assert "url(" not in style and "@import" not in style and "@font-face" not in style
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style))
    used = set(re.findall(r"(?<![-\w])color: ([^;]+);", style))
    assert used == {"var(--ink)", "var(--soft)", "var(--link)", "var(--warn)"}
    for colour in used:
        for ground in ("paper", "band"):
            assert contrast(colours[colour[6:-1]], colours[ground]) >= 4.5
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")  # the formula against known values


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours #rrggbb."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


# ---- what it says ----------------------------------------------------------------------------


def with_input(audit: Audit, **numbers: Any) -> Audit:
    """The audit with other numbers at the network's input."""
    table = audit.table.copy()
    for name, value in numbers.items():
        table.loc[0, name] = value
    return replace(audit, table=table)


FALLS = {"slope_nyquist": -0.9776, "se_nyquist": 0.0104, "r2": 0.988, "n": 64, "note": ""}
FALLS |= {"high_share": 0.32221, "se_share": 0.00434, "excess": -0.48341}


def said(audit: Audit) -> str:
    return input_words(subject_of(audit).first).replace("\N{NO-BREAK SPACE}", " ")


def test_known_numbers_stand_in_words_and_table(audited, tmp_path, no_drawing):
    page = Reader(page_of(with_input(audited, **FALLS), tmp_path))
    row = next(row for row in page.rows if row[:2] == ["1", "input"])
    keys = page.keys[page.rows.index(row)]
    assert row[6:10] == ["−0.978 ±\xa00.010", "0.99", "0.322 ±\xa00.004", "−0.483"]
    assert [float(key or "nan") for key in keys[6:10]] == [-0.9776, 0.988, 0.32221, -0.48341]
    assert row[5] == "3\xa0×\xa032\xa0×\xa041" and keys[5] == str(32 * 41)
    assert "a slope of −0.978\xa0±\xa00.010" in page.words["dd"]


@pytest.mark.parametrize(
    ("numbers", "sentences"),
    [
        (
            {},
            [
                "The gradient's spectrum falls with a slope of −0.978 ± 0.010 (log₁₀ amplitude per Nyquist, r² 0.99): "
                "by a factor of 9.5 from the lowest frequency to Nyquist.",
                "Above half Nyquist lies 0.322 ± 0.004 of its power, where white noise of this size has 0.806: fewer "
                "high frequencies by 0.483.",
            ],
        ),
        ({"slope_nyquist": 0.5, "r2": 0.8}, ["rises with a slope of 0.500", "by a factor of 3.2 from"]),
        ({"slope_nyquist": 0.0207, "r2": 0.8}, ["flat within its error", "its slope is 0.021 ± 0.010"]),
        ({"slope_nyquist": 0.0209, "r2": 0.8}, ["rises with a slope of 0.021"]),
        ({"r2": 0.49}, ["falls with a slope of −0.978", "The line fits poorly: read the share instead."]),
        ({"high_share": 0.81, "excess": 0.0086}, ["has 0.801: the same within its error."]),
        ({"high_share": 0.79, "excess": -0.0163}, ["nearly white, fewer high frequencies by 0.016"]),
        ({"high_share": 0.9, "excess": 0.0937}, ["has 0.806: more high frequencies by 0.094"]),
        (
            {"slope_nyquist": np.nan, "se_nyquist": np.nan, "r2": np.nan, "note": "2 ring(s) beside DC"},
            ["no slope there: 2 ring(s) beside DC.", "Above half Nyquist lies 0.322"],
        ),
        ({"n": 0, "note": "zero in all 5 image(s)"}, ["has no numbers: zero in all 5 image(s)."]),
        (
            {"n": 1, "se_nyquist": np.nan, "se_share": np.nan},
            ["a slope of −0.978 (log", "0.322 of its power", "Only one picture was used, so no number has an error"],
        ),
    ],
)
def test_words_at_the_input(audited, numbers, sentences):
    words = said(with_input(audited, **{**FALLS, **numbers}))
    assert all(sentence in words for sentence in sentences), words
    assert ("poorly" in words) == (numbers.get("r2", 1) < 0.5)
    assert ("by a factor of" in words) == ("slope of" in words and "poorly" not in words)
    assert ("Only one picture" in words) == (numbers.get("n") == 1)
    assert "nan" not in words


def test_words_without_a_row_for_the_input(audited):
    table = audited.table[audited.table["call"] != "input"]
    assert said(replace(audited, table=table)) == "The table has no row for the network's input."


def test_words_on_culprits(audited):
    """Two pooling calls add, a convolution takes away, what is within two errors or below 0.01 is nobody."""
    found = {
        ("2", "max pooling"): [0.5, 0.7],
        ("4", "max pooling"): [0.3, 0.3],
        ("3", "strided convolution"): [-0.4, -0.2],
        ("5", "convolution"): [-0.5, -0.5],
        ("1", "activation"): [0.4, -0.2],
        ("0", "linear"): [0.004, 0.004],
        ("6", "addition"): [-0.004, -0.004],
    }
    rows = [(call, "op", kind, 0, str(i), v) for (call, kind), both in found.items() for i, v in enumerate(both)]
    columns = ["call", "operator", "type", "stage", "image", "new_power"]
    audit = replace(audited, new_power=pd.DataFrame(rows, columns=columns))
    words = culprit_words(audit).replace("\N{NO-BREAK SPACE}", " ")
    assert words == (
        "Most high frequencies are added by max pooling (+0.450 ± 0.050 over 2 calls). Of single calls most is added "
        "by 2 (+0.600 ± 0.100) and 4 (+0.300 ± 0.000). High frequencies are taken away by convolution (−0.500 ± "
        "0.000 over 1 call) and strided convolution (−0.300 ± 0.100 over 1 call)."
    )
    nobody = replace(audit, new_power=pd.DataFrame(rows[8:], columns=columns))
    assert culprit_words(nobody).startswith("No type of operator adds more than 0.01 of the power, beyond 2 standard")
    alone = replace(audit, new_power=pd.DataFrame(rows[::2], columns=columns))
    assert "max pooling (+0.400 over 2 calls) and activation (+0.400 over 1 call)" in culprit_words(alone)
    none = replace(audit, new_power=pd.DataFrame(rows[:0], columns=columns))
    assert culprit_words(none) == "No call has a gradient on both sides that could be compared."


def test_words_on_labels(audited):
    def words(**spec: Any) -> str:
        return labels_sentence(replace(audited, spec={**audited.spec, **spec}))

    assert (
        words(labels=[1, 2, 3], predicted=[1, 0, 3])
        == "The first choice of the network is the given label on 2 of 3 pictures."
    )
    assert words(labelled=False) == "No labels were given: each picture's is the first choice of the network."
    assert words(predicted=None) == words(labels={"a": 1}) == words(predicted=[]) == ""


def test_what_was_not_seen_is_grouped(audited, tmp_path, no_drawing):
    seen = replace(audited, unseen={"a": "never called", "b": "no axes", "c": "never called"})
    words = {paragraph.title: paragraph.text for paragraph in audit_words(subject_of(seen))}
    assert words["Not seen"] == "3 modules or calls have no numbers: never called (2) and no axes (1)."
    rows = Reader(page_of(seen, tmp_path)).rows
    assert ["never called", "2", "a, c"] in rows and ["no axes", "1", "b"] in rows


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"labelled": False}, "Labels were not given"),
        ({"command": {"images": None}}, "pictures were generated"),
        ({"model_spec": {"weights": "none"}}, "drawn at random, not trained"),
        ({"layers": ["a"]}, "Only the chosen calls"),
        ({"channels": 7}, "7 channels at most"),
        ({"skipped": {"a.png": "broken"}}, "files of the folder were skipped"),
    ],
)
def test_a_caveat_stands_where_it_applies(audited, spec, words):
    assert not any(words in line for line in caveats(subject_of(audited)))
    assert any(words in line for line in caveats(subject_of(replace(audited, spec={**audited.spec, **spec}))))


def test_caveats_on_numbers(audited):
    def lines(audit: Audit) -> str:
        return " ".join(caveats(subject_of(audit)))

    table = audited.table.assign(r2=0.9, slope_nyquist=-1.0, excess=-0.3)
    clean = lines(replace(audited, table=table))
    assert "poorly" not in clean and "have no slope" not in clean and "nearly white." in clean
    table.loc[1:3, "r2"], table.loc[4:5, "slope_nyquist"], table.loc[0, "excess"] = 0.4, np.nan, 0.04
    assert f"At 3 of {len(table)} points" in lines(replace(audited, table=table))
    assert f"2 points of {len(table)} have no slope" in lines(replace(audited, table=table))
    assert "reaches the input nearly white" in lines(replace(audited, table=table))
    assert "5 pictures are few" in clean and "one picture" not in clean
    alone = lines(replace(audited, pictures=("a",)))
    assert "Only one picture" in alone and "are few" not in alone
    assert "are few" in lines(replace(audited, pictures=("a",) * 29)) != lines(replace(audited, pictures=("a",) * 30))


# ---- comparisons -----------------------------------------------------------------------------


def rings(steepness: Sequence[float]) -> Signature:
    """Of one 16 x 16 map per picture, a straight line of the given slope per Nyquist."""
    return Signature(16, 16, 10 ** np.outer(steepness, ring_radii(16, 16) / 8), np.full(len(steepness), 0.4))


def variant(audit: Audit, signature: Signature) -> Audit:
    table = audit.table.copy()
    table.loc[0, ["slope_nyquist", "se_nyquist"]] = signature.slope_nyquist, signature.slope_nyquist_se
    table.loc[0, ["high_share", "se_share", "r2"]] = signature.high_share, signature.high_share_se, 0.9
    return replace(audit, table=table, signatures={**audit.signatures, ("input", "input"): signature})


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ([-2.0, -2.2, -2.1, -2.0, -2.2], "steeper than max by 1."),
        ([-0.5, -0.6, -0.4, -0.5, -0.5], "flatter than max by 0."),
        ([-1.3, -0.7, -1.0, -1.2, -0.8], "not told apart from max (difference "),
    ],
)
def test_a_difference_within_its_error_is_not_told_apart(audited, second, words):
    one, two = rings([-1.0, -1.1, -0.9, -1.0, -1.0]), rings(second)
    subject = Subject(
        {"max": variant(audited, one), "mean": variant(audited, two)}, {}, drift=pd.DataFrame({"variant": []})
    )
    found = variant_words(subject, "mean")
    assert words in found
    assert "of its power, not told apart from max (difference 0.000" in found
    assert f"Slope {two.slope_nyquist:.3f}".replace("-", "−") in found


def test_a_difference_of_one_picture_says_that_it_has_no_error(audited):
    one, two = variant(audited, rings([-1.0])), variant(audited, rings([-2.0]))
    found = variant_words(Subject({"max": one, "mean": two}, {}, drift=pd.DataFrame({"variant": []})), "mean")
    assert "Slope −2.000 per Nyquist, steeper than max by 1.000, from one picture and without an error." in found
    assert "lies 0.400 of its power, the same as max." in found


def test_other_pictures_are_not_compared(audited):
    other = replace(audited, pictures=("x", *audited.pictures[1:]))
    found = variant_words(Subject({"max": audited, "mean": other}, {}, drift=pd.DataFrame({"variant": []})), "mean")
    assert "measured on other pictures than max" in found and "than max by" not in found


def test_drift_and_surgery_stand_in_the_words(audited):
    drift = pd.DataFrame(
        {"variant": ["max", "mean"], "accuracy": [0.75, 0.5], "se": [0.1, 0.2], "agreement": [1.0, 0.625]}
    )
    changes = (Change("a", "max pooling", "x", "y"), Change("b", "max pooling", "x", "y"))
    records = {"mean": [Record("average_pooled", {}, changes, {"c": "why"}), Record("recalibrated", {}, changes)]}
    subject = Subject({"max": audited, "mean": audited}, {}, records=records, drift=drift)
    words = variant_words(subject, "mean").replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "Its first choice is that of max on 62.5 % of the pictures; accuracy 50.0 ± 20.0 % against 75.0 ± 10.0 %."
        in words
    )
    assert words.endswith("Made by average_pooled (2 changed, 1 left), then recalibrated (2 changed).")
    table = evidence.changes(subject, "mean", 1)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [
        ["average_pooled", "max pooling", "x", "y", "2", "a, b"],
        ["average_pooled", "left as it is", "", "why", "1", "c"],
        ["recalibrated", "max pooling", "x", "y", "2", "a, b"],
    ]
    unlabelled = replace(subject, drift=drift.assign(accuracy=np.nan))
    assert "accuracy" not in variant_words(unlabelled, "mean")


def causal_rows(changes: Sequence[float]) -> pd.DataFrame:
    """Operators of falling new power, and the slope's change when each is swapped alone; the other arm is flat."""
    rows = [("", "", "none", -1.0, np.nan, np.nan, np.nan), ("", "", "all", -2.0, -1.0, 0.02, np.nan)]
    for i, change in enumerate(changes):
        power = 0.9 - 0.1 * i
        rows += [(f"op{i}", "max pooling", "one", -1.0 + change, change, 0.01, power)]
        rows += [(f"op{i}", "max pooling", "all but one", -2.0, 0.0, 0.01, power)]
    frame = pd.DataFrame(rows, columns=["call", "type", "arm", "slope_nyquist", "change", "se_change", "new_power"])
    return frame.assign(se_nyquist=0.01, high_share=0.5, se_share=0.01, share_change=0.0, se_share_change=0.01, note="")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            [-0.6, -0.5, -0.4, -0.3, -0.2],
            "confirms the ranking by new power (rank correlation +1.00, p 0.017, 5 operators)",
        ),
        ([-0.2, -0.3, -0.4, -0.5, -0.6], "contradicts the ranking by new power (rank correlation −1.00"),
        (
            [-0.2, -0.6, -0.3, -0.5, -0.4],
            "does not settle whether the ranking by new power is right (rank correlation −0.30",
        ),
        ([-0.6, -0.5], "gives no ranking to compare: 2 operator(s), a ranking takes 3"),
    ],
)
def test_words_on_the_cause(compared, changes, verdict):
    subject = subject_of(gs.Comparison(compared.audits, {}, compared.missing, causal_rows(changes), compared.spec))
    words = causal_words(subject).replace("\N{NO-BREAK SPACE}", " ")
    assert "moves the slope at the input from −1.000 to −2.000 (−1.000 ± 0.020)" in words
    best = int(np.argmin(changes))
    assert f"Of {len(changes)} operators swapped alone op{best} changes it most (−0.600 ± 0.010)." in words
    assert f"Swapping one operator at a time {verdict}" in words
    assert "Keeping one at a time and swapping all others gives no ranking to compare" in words
    assert any(p.title == "Cause" and p.text == causal_words(subject) for p in comparison_words(subject))


def test_changes_within_their_errors_name_no_operator(compared):
    effects = causal_rows([-0.019, 0.015])
    subject = subject_of(gs.Comparison(compared.audits, {}, compared.missing, effects, compared.spec))
    assert "No operator swapped alone changes it beyond its error." in causal_words(subject)


def test_variants_stand_side_by_side():
    one = pd.DataFrame({"call": ["a", "b", "d"], "value": [1.0, 2.0, 3.0]})
    two = pd.DataFrame({"call": ["a", "c", "f", "d", "e"], "value": [4.0, 5.0, 6.0, 7.0, 8.0]})

    def shown(ranked: bool) -> list[tuple[str, ...]]:
        rows = side_by_side(
            {"one": one, "two": two}, ["call"], lambda row: [Cell(f"{row['value']:.0f}")], ranked=ranked
        )
        return [(key["call"], *(cell.text for cell in cells)) for key, cells in rows]

    found = [("a", "1", "4"), ("c", "–", "5"), ("f", "–", "6"), ("b", "2", "–"), ("d", "3", "7"), ("e", "–", "8")]
    assert shown(ranked=False) == found
    assert shown(ranked=True) == [found[i] for i in (0, 3, 4, 1, 2, 5)]


def test_all_calls_of_a_comparison_hold_every_variant_s_numbers(compared):
    table = evidence.calls(subject_of(compared))
    for place, (_, audit) in enumerate(compared.audits.items()):
        found = {}
        for row in table.rows:
            slope, share = row[5 + 2 * place], row[6 + 2 * place]
            if share.value is not None:
                found[row[1].text, row[3].text, row[4].text] = (slope.value, share.value)
        expected = {
            (row.call, row.point, f"{row.height}\xa0×\xa0{row.width}"): (row.slope_nyquist, row.high_share)
            for row in audit.table.itertuples()
            if np.isfinite(row.high_share)
        }
        assert found.keys() == expected.keys()
        for key, (slope, share) in expected.items():
            assert found[key][1] == share and (found[key][0] == slope or np.isnan(slope))
    assert [column.head for column in table.columns[5:]] == ["slope", "high share"] * len(compared.audits)
    assert [name for name, _ in table.groups] == ["", *compared.audits] and sum(w for _, w in table.groups) == len(
        table.columns
    )


# ---- names and files of anybody --------------------------------------------------------------


def test_hostile_names_are_text(audited, tmp_path):
    html = page_of(hostile(audited), tmp_path)
    page = assert_sound(html)
    assert page.words["h1"] == HOSTILE
    shown = NASTY.replace("\u202e", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert sum(f"2 {shown}" in row for row in page.rows) == 3  # calls: input and output; culprits
    assert "{{ 7 * 7 }}" in html and page.words["title"].startswith("<script>alert(1)</script>xxx")
    assert len(page.words["title"]) < 120
    assert len(page.all("svg")) == 3 and len(page.all("img")) == 1  # every figure is drawn all the same


def test_hostile_variants_are_text(compared, tmp_path):
    names = {"max": HOSTILE, "mean": NASTY, "again": "again"}
    changes = (Change(NASTY, NASTY, NASTY, NASTY),)
    record = Record(NASTY, {NASTY: NASTY}, changes, {NASTY: NASTY}, (NASTY,))
    assert compared.effects is not None
    found = gs.Comparison(
        {names[name]: hostile(audit) for name, audit in compared.audits.items()},
        dict.fromkeys(names.values(), (record,)),
        {NASTY + "2": NASTY},
        compared.effects.astype(object).assign(call=nasty(compared.effects), note=nasty(compared.effects)),
        {**compared.spec, "variants": [*names.values(), NASTY + "2"]},
    )
    page = assert_sound(page_of(found, tmp_path))
    assert page.words["dt"].count("<script>alert(1)</script>") == 1
    assert page.words["h3"].count(HOSTILE) == 1 and len(page.all("svg")) == 6


def rewrite(file: Path, table: pd.DataFrame, **changes: Any) -> None:
    """Writes a unit as anybody can: its table, with what lies beside it."""
    table = table.copy()
    table.attrs = table.attrs | changes
    table.to_parquet(file, index=False)


def assert_sound_or_refused(folder: Path) -> None:
    try:
        html = text(gs.report(folder))
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert_sound(html)


WRONG: list[Any] = [None, 3, "text", [1, {"a": [2]}], {"<b>": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, True, 1e400, [[]]]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_wrong_types_in_a_spec_break_nothing(audited, tmp_path, no_drawing, value):
    folder = audited.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    whole = pd.read_parquet(file)
    about = whole.attrs["about"]
    rewrite(file, whole, about=about | {"spec": dict.fromkeys(about["spec"], value)})
    assert_sound(text(gs.report(folder)))
    for changes in (*({name: value} for name in about), {"spec": {}}, {"spec": about["spec"] | {"surgery": [value]}}):
        rewrite(file, whole, about=about | changes)
        assert_sound_or_refused(folder)
    for changes in ({"about": value}, {"columns": value}, {"about": about, "columns": {"calls": value}}):
        rewrite(file, whole, **changes)
        assert_sound_or_refused(folder)
    spec = json.loads(text(folder / "spec.json"))
    rewrite(file, whole)
    kept = {"format", "kind"}
    for name in spec.keys() - kept | {"variants", "pictures", "pictures_per_unit"}:
        (folder / "spec.json").write_text(json.dumps(spec | {name: value}), encoding="utf-8")
        assert_sound_or_refused(folder)


def test_wrong_types_in_a_table_are_no_numbers(audited, tmp_path, no_drawing):
    """Slopes are computed of the rings; what else is a number may be anything, and the rings too."""
    folder = audited.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    whole = pd.read_parquet(file)
    places = {part: list(whole.index[whole["part"] == part]) for part in ("calls", "new_power", "signatures")}
    assert whole.attrs["columns"]["calls"]["channels"] == "int64"
    kinds = whole.attrs["columns"] | {
        "calls": whole.attrs["columns"]["calls"] | dict.fromkeys(("stage", "channels"), "object"),
        "new_power": whole.attrs["columns"]["new_power"] | dict.fromkeys(("stage", "new_power"), "object"),
    }
    table = whole.astype({"stage": object, "channels": object, "new_power": object})
    table[["stage", "channels", "new_power"]] = table[["stage", "channels", "new_power"]].map(str)
    table.loc[places["calls"][1], ["stage", "channels"]] = "<b>1</b>", "many"
    table.loc[places["calls"][2], ["stage", "channels"]] = "[1]", "inf"
    first = table.loc[places["new_power"][0], "call"]
    table.loc[places["new_power"], "new_power"] = table.loc[places["new_power"], "new_power"].where(
        table.loc[places["new_power"], "call"] != first, "much"
    )
    rewrite(file, table, columns=kinds)
    page, sound = assert_sound(text(gs.report(folder))), assert_sound(page_of(audited, tmp_path))
    shown, expected = ([row for row in found.rows if len(row) > 9] for found in (page, sound))
    differing = [(one[:3], a, b) for one, other in zip(shown, expected, strict=True)
                 for a, b in zip(one, other, strict=True) if a != b]  # fmt: skip
    assert len(differing) == 2 and {a for _, a, _ in differing} == {"–"}
    read = subject_of(folder)
    assert isinstance(read, Subject) and first in set(audited.culprits()["call"])
    assert set(read.first.culprits()["call"]) == set(audited.culprits()["call"]) - {first}


@pytest.mark.parametrize(
    ("part", "column", "value"),
    [
        ("signatures", "rings", ["1", "x"]),
        ("signatures", "rings", [-1.0]),
        ("signatures", "rings", None),
        ("signatures", "high_share", "high"),
        ("signatures", "call", "another"),
        ("calls", "height", "many"),
        ("calls", "height", -32),
        ("calls", "width", 10**12),
        ("calls", "infinite", "some"),
        ("calls", "call", None),
        ("examples", "shape", [-1, 1]),
        ("examples", "shape", [2**40, 2**40]),
        ("examples", "shape", ["8", "x"]),
        ("examples", "shape", None),
        ("examples", "values", ["x"]),
        ("examples", "values", None),
        ("examples", "array", None),
    ],
)
def test_values_that_make_no_audit_are_refused_in_a_sentence(audited, tmp_path, part, column, value):
    folder = audited.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    parts, about = unpacked(pd.read_parquet(file))
    cells = parts[part][column].astype(object).tolist()
    parts[part] = parts[part].assign(**{column: pd.Series([value] * len(cells), dtype=object)})
    packed(parts, about).to_parquet(file)
    with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}: \w+: ") as caught:
        gs.report(folder)
    assert "\n" not in str(caught.value) and not (tmp_path / "report.html").exists()


def test_what_cannot_be_drawn_is_left_out_of_the_figures(audited, tmp_path):
    table, key = audited.table.astype(object), ("2", "input")
    table.loc[3, "slope_nyquist"], table.loc[4, "se_nyquist"] = np.inf, -np.inf
    wrong = {("input", "input"): Example(np.zeros((8, 8), np.float32), np.zeros(8, np.float32))}
    wrong |= {("0", "output"): Example(np.full((2, 8, 8), "x"), np.zeros((8, 8)))}
    audit = replace(audited, table=table, examples={**wrong, key: audited.examples[key]})
    subject = subject_of(audit)
    assert np.isnan(subject.first.table["slope_nyquist"][3]) and np.isnan(subject.first.table["se_nyquist"][4])
    assert list(subject.first.examples) == [key]
    assert len(assert_sound(page_of(audit, tmp_path)).all("svg")) == 3


def test_a_figure_that_cannot_be_drawn_is_a_sentence(audited, tmp_path, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no <pen>")

    monkeypatch.setattr(plots, "slope_profile", fails)
    monkeypatch.setattr(plots, "gradient_pictures", fails)
    with pytest.warns(UserWarning, match="could not be drawn"):
        page = assert_sound(page_of(audited, tmp_path))
    assert len(page.all("svg")) == 2 and not page.all("img")
    assert page.words["p"].count("This figure could not be drawn: RuntimeError: no <pen>") == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no spec.json"),
        ({"spec.json": "{"}, "Cannot read .*spec.json: JSONDecodeError"),
        ({"spec.json": '{"kind": "recipe"}'}, "says 'recipe'"),
        ({"spec.json": '{"kind": ["audit"]}'}, "says .*audit"),
        ({"spec.json": "{}"}, "says 'nothing'"),
        ({"spec.json": "[]"}, "says 'list'"),
        ({"spec.json": '{"kind": "audit", "format": 1}'}, "Expected an audit of format 2"),
        ({"spec.json": '{"kind": "audit", "format": 2}'}, r"has no audit-\w+\.parquet"),
        ({"spec.json": '{"kind": "comparison", "format": 2}'}, "Cannot read .*spec.json: expected .* 'variants'"),
        ({"spec.json": '{"kind": "comparison", "format": 2, "variants": [1]}'}, "Cannot read .*expected .* 'variants'"),
        ({"spec.json": '{"kind": "comparison", "format": 2, "variants": ["a"]}'}, "a: 1 of 1 units are not done yet"),
        ({"spec.json": '{"kind": "trials", "format": 2, "variants": 3}'}, "Cannot read .*expected .* 'variants'"),
        ({"spec.json": '{"kind": "scores", "format": 2}'}, r"has no scores-\w+\.parquet"),
        ({"spec.json": '{"kind": "cutoff fit", "format": 2}'}, r"has no fit-\w+\.parquet"),
    ],
)
def test_other_folders_are_refused_in_a_sentence(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        gs.report(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(tmp_path)) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_table_without_its_columns_is_refused(audited, tmp_path):
    folder = audited.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    whole = pd.read_parquet(file)
    for column in whole.columns:
        rewrite(file, whole.drop(columns=column))
        with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}: .*{column}") as caught:
            gs.report(folder)
        assert "\n" not in str(caught.value)
    parts, about = unpacked(whole)
    parts["new_power"].pop("image")  # neither it nor that it had one
    packed(parts, about).to_parquet(file)
    with pytest.raises(ValueError, match="Expected a column 'image' in the table of new power"):
        gs.report(folder)
    with pytest.raises(ValueError, match="Expected a column 'r2' in the table"):
        gs.report(replace(audited, table=audited.table.drop(columns="r2")), tmp_path / "page.html")


def test_wrong_arguments_are_refused(audited, tmp_path):
    with pytest.raises(ValueError, match="Expected out="):
        gs.report(audited)
    with pytest.raises(TypeError, match="got dict"):
        gs.report({}, tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no spec"):
        gs.report(tmp_path / "nowhere")


def large(calls: int, side: int, seed: int) -> Audit:
    """An audit of many calls whose gradients are large maps of noise, which no coder makes small."""
    rng = np.random.default_rng(seed)
    points = [
        ("input", "input"),
        *((f"layer{i // 9}.{i}.conv{i % 3}", at) for i in range(calls) for at in ("input", "output")),
    ]
    table = pd.DataFrame(points, columns=["call", "point"]).assign(
        operator="Conv2d", type="convolution", stage=0, note=""
    )
    table.loc[0, "type"] = "input"
    for name in ("slope", "slope_nyquist", "r2", "high_share", "excess", "se", "se_nyquist", "se_share"):
        table[name] = rng.uniform(0.01, 1, len(table))
    table = table.assign(channels=2048, height=side, width=side, n=2)
    signatures = {key: Signature(16, 16, rng.lognormal(size=(2, 9)), rng.uniform(size=2)) for key in points}
    power = table[table["point"] == "input"].iloc[1:].assign(image="a", new_power=0.1)
    power = power[["call", "operator", "type", "stage", "image", "new_power"]]
    noise = rng.normal(size=(3, side, side)).astype(np.float32)
    examples = {key: Example(noise[:2], noise[2]) for key in points[:17]}
    spec = {"model": "large", "predicted": [0, 1], "labels": [0, 1], "label_probability": [0.5, 0.5], "labelled": True}
    return Audit(table, signatures, power, {}, examples, ("a", "b"), spec)


@pytest.mark.parametrize("variants", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_large_network_s_page_stays_below_5_megabytes(tmp_path, variants):
    audits = {f"variant {i}": large(520, 384, i) for i in range(variants)}
    first = audits["variant 0"]
    result = first if variants == 1 else gs.Comparison(audits, {}, {}, None, {"variants": list(audits)})
    html = page_of(result, tmp_path)
    assert len(html.encode()) < 5_000_000
    page = assert_sound(html)
    assert page.all("img")
    assert sum(row[1:2] == ["layer57.519.conv0"] for row in page.rows) == 2


def test_a_sheet_of_gradients_shrinks_until_it_is_small_enough(audited, monkeypatch):
    subject = subject_of(audited)
    sheets = list(figures._sheets(subject))
    sizes = [len(sheet) for sheet in sheets]
    pictures = [Image.open(io.BytesIO(sheet)) for sheet in sheets]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert [picture.mode for picture in pictures] == ["RGBA", "P", "P", "P"]
    assert pictures[1].size == pictures[0].size > pictures[2].size > pictures[3].size
    monkeypatch.setattr(figures, "_sheets", lambda _: iter(sheets))
    for most, sheet in [(sizes[0], 0), (sizes[0] - 1, 1), (sizes[1] - 1, 2), (sizes[2] - 1, 3), (0, 3)]:
        monkeypatch.setattr(figures, "_PICTURE_BYTES", most)
        assert base64.b64encode(sheets[sheet]).decode() in figures.gradients(subject).markup


def test_ids_of_figures_are_their_own(audited):
    subject = subject_of(audited)
    drawn = [str(figures.profile(subject).markup), str(figures.culprits(subject)[0].markup)]
    found = [set(re.findall(r' id="([^"]+)"', markup)) for markup in drawn]
    assert all(name.startswith("profile-") for name in found[0]) and all(
        name.startswith("culprits-calls-") for name in found[1]
    )
    for markup, ids in zip(drawn, found, strict=True):
        used = set(re.findall(r'href="#([^"]+)"', markup)) | set(re.findall(r"url\(#([^)]+)\)", markup))
        assert used == ids and ids
        assert "<style" not in markup and "xmlns" not in markup and "<metadata" not in markup
    assert 'fill="#' in drawn[1]  # a colour is no reference


# ---- in a browser ----------------------------------------------------------------------------

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium or chromedriver is not installed (on Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def hostile_page(audited: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gs.report(hostile(audited), tmp_path_factory.mktemp("hostile") / "page.html")


@pytest.fixture(scope="module")
def many_page(compared: gs.Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of nine variants with names of the usual length."""
    names = [f"avgpool+recalibrated:{i}" for i in range(9)]
    found = replace(
        compared,
        audits=dict.fromkeys(names, compared.audits["max"]),
        missing={},
        effects=None,
        spec={**compared.spec, "variants": names},
    )
    with pytest.MonkeyPatch.context() as patched:
        empty_figures(patched)
        return gs.report(found, tmp_path_factory.mktemp("many") / "page.html")


@pytest.fixture(params=["audit", "comparison", "hostile"])
def page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_page")


def open_page(driver: Any, page: Path, width: int = 1400) -> list[str]:
    """Opens the page in a window of that width and returns the addresses asked for."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(page.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_browser_runs_it_without_a_word_or_request(chromium, page):
    asked = open_page(chromium, page)
    assert [address for address in asked if not address.startswith("data:")] == [page.as_uri()]
    assert chromium.get_log("browser") == []
    pictures, drawings, scripts = chromium.execute_script("""return [
        [...document.images].map((picture) => picture.complete && picture.naturalWidth),
        [...document.querySelectorAll("svg")].map((drawing) => drawing.getBoundingClientRect().height),
        document.scripts.length,
    ]""")
    assert min(pictures) > 500 and min(drawings) > 100 and scripts == 1


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_policy_stops_what_is_smuggled_in(chromium, audit_page, listener, tmp_path):
    address, asked = listener
    smuggled = (
        f"<img src='{address}/picture'><script>document.title = 'run'</script><iframe src='{address}/frame'></iframe>"
        f"<link rel='stylesheet' href='{address}/style'><p style='background: url({address}/background)'>"
    )
    html, page = text(audit_page).replace("</main>", smuggled + "</main>"), tmp_path / "page.html"
    page.write_text(html, encoding="utf-8")
    open_page(chromium, page)
    assert asked == [] and chromium.title == Reader(text(audit_page)).words["title"]
    page.write_text(html.replace("Content-Security-Policy", "x"), encoding="utf-8")
    open_page(chromium, page)  # without the policy all of it happens
    assert set(asked) == {"/picture", "/frame", "/style", "/background"} and chromium.title == "run"


def test_hostile_name_is_text_in_the_browser(chromium, hostile_page):
    open_page(chromium, hostile_page)
    assert chromium.find_element("tag name", "h1").text == HOSTILE
    assert chromium.title.startswith("<script>alert(1)</script>xxx")
    assert chromium.execute_script("return document.querySelectorAll('h1 *, td *, dd *, title *').length") == 0


COLUMN = """
const [id, column] = arguments;
const rows = document.querySelector(`[aria-labelledby="${id}"] tbody`).rows;
return [...rows].map((row) => {
  const cell = row.cells[column];
  return [row.cells[0].textContent, cell.dataset.value ?? cell.textContent];
});
"""
HEADS = """
return [...document.querySelectorAll(`[aria-labelledby="${arguments[0]}"] thead tr:last-child th`)]
  .map((head) => head.getAttribute("aria-sort"));
"""


def column_of(driver: Any, table: str, column: int) -> list[tuple[int, str]]:
    return [(int(place), value) for place, value in driver.execute_script(COLUMN, table, column)]


def button_of(driver: Any, table: str, column: int) -> Any:
    return driver.find_elements("css selector", f'table[aria-labelledby="{table}"] thead tr:last-child button')[column]


@pytest.mark.parametrize("column", [6, 3])
def test_sorting_both_ways_by_click_and_key(chromium, audit_page, column):
    """Numbers by their value with missing ones last, words by their letters; equal rows stay in order."""
    open_page(chromium, audit_page)
    start = column_of(chromium, "calls-table", column)
    numeric = column == 6
    assert len({value for _, value in start}) < len(start) and ("" in dict(start).values()) == numeric

    def ordered(rows: list[tuple[int, str]], sign: int) -> list[tuple[int, str]]:
        if numeric:
            return sorted(rows, key=lambda row: (row[1] == "", sign * float(row[1] or 0)))
        return sorted(rows, key=lambda row: row[1], reverse=sign < 0)

    up = ordered(start, 1)
    button_of(chromium, "calls-table", column).click()
    assert column_of(chromium, "calls-table", column) == up != start
    assert chromium.execute_script(HEADS, "calls-table")[column] == "ascending"
    down = ordered(up, -1)
    button_of(chromium, "calls-table", column).send_keys(" ")
    assert column_of(chromium, "calls-table", column) == down != up
    heads = chromium.execute_script(HEADS, "calls-table")
    assert heads[column] == "descending" and heads.count(None) == len(heads) - 1
    button_of(chromium, "calls-table", 0).send_keys("\n")
    assert column_of(chromium, "calls-table", column) == start
    assert chromium.execute_script(HEADS, "calls-table") == ["ascending"] + [None] * (len(heads) - 1)


def test_every_head_is_reached_by_the_tab_key(chromium, comparison_page):
    open_page(chromium, comparison_page)
    chromium.execute_script("document.querySelector('[tabindex][aria-labelledby=calls-table]').focus()")
    reached = []
    for _ in range(11):
        chromium.switch_to.active_element.send_keys("\t")
        reached.append(chromium.execute_script("return document.activeElement.closest('th')?.cellIndex ?? null"))
    assert reached == list(range(11))  # the heads of single columns; those of the groups do not sort


def test_heads_under_groups_sort(chromium, comparison_page):
    open_page(chromium, comparison_page)
    before = column_of(chromium, "calls-table", 8)
    button_of(chromium, "calls-table", 8).click()
    after = column_of(chromium, "calls-table", 8)
    known = [float(value) for _, value in after if value]
    assert after != before and sorted(after) == sorted(before)
    assert known == sorted(known) and all(value == "" for _, value in after[len(known) :])


@pytest.mark.parametrize("width", [400, 1400])
def test_page_fits_its_window(chromium, page, width):
    open_page(chromium, page, width)
    scroll, words, size, letters, boxes = chromium.execute_script("""
        const shown = (selector) => [...document.querySelectorAll(selector)];
        const scale = (drawing) => drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;
        return [
            document.documentElement.scrollWidth,
            Math.max(...shown("dd, li, figcaption, p").map((part) => part.getBoundingClientRect().width)),
            Math.min(...shown("p, dd, li, td").map((part) => parseFloat(getComputedStyle(part).fontSize))),
            Math.min(...shown("svg").map((drawing) => 8 * scale(drawing))),
            shown(".box").map((box) => [box.getBoundingClientRect().right, getComputedStyle(box).overflowX]),
        ]""")
    assert scroll <= width
    assert words <= 47 * 16 and size >= 13 and letters >= 8.9
    assert all(right <= width and overflow == "auto" for right, overflow in boxes)


@pytest.mark.parametrize("name", ["audit", "comparison", "many", "hostile"])
def test_page_prints_whole(chromium, request, name):
    page = request.getfixturevalue(f"{name}_page")
    open_page(chromium, page)
    pdf = base64.b64decode(
        chromium.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})["data"]
    )
    sides = [tuple(map(float, box.split()[2:])) for box in re.findall(rb"/MediaBox \[([^]]+)\]", pdf)]
    portrait = [side for side in sides if side[0] < side[1]]
    assert len(portrait) >= 3 and len(sides) > len(portrait)  # the table of calls lies across
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        for selector, millimetres in {"section:not(.wide)": 210 - 2 * 13, ".wide": 297 - 2 * 13}.items():
            width = round(millimetres / 25.4 * 96)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            parts = chromium.execute_script(
                """return [...document.querySelectorAll(arguments[0])].flatMap((section) =>
                [...section.querySelectorAll("table, svg, img, dl")].map((part) => [
                    part.getBoundingClientRect().right,
                    part.closest(".box") ? getComputedStyle(part.closest(".box")).overflowY : "visible",
                ]))""",
                selector,
            )
            assert parts and all(right <= width + 1 and overflow == "visible" for right, overflow in parts)
        assert not chromium.find_element("tag name", "nav").is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_page_reads_without_its_script(chromium, audit_page):
    open_page(chromium, audit_page)
    assert chromium.find_elements("tag name", "button")
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(audit_page.as_uri())
        assert not chromium.find_elements("tag name", "button")
        assert [head.text for head in chromium.find_elements("css selector", "#calls th")][:3] == [
            "#",
            "call",
            "operator",
        ]
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_page_of_a_variant_alone_says_what_it_is(data, audited, tmp_path, no_drawing):
    alone = gs.audit(gs.surgery.average_pooled(gs.surgery.untrained(small_net(), 1)[0])[0], data, progress=False)
    says = "It is a variant, made by untrained, then average_pooled without training it again"
    assert says in page_of(alone, tmp_path)
    assert "It is a variant" not in page_of(audited, tmp_path)


def test_a_causal_arm_that_did_not_run_is_said(compared, tmp_path, no_drawing):
    without = replace(compared, effects=None, spec={**compared.spec, "no_causal_arm": "It has no <stride>."})
    assert "There is no causal arm: It has no &lt;stride&gt;." in page_of(without, tmp_path)


def test_a_folder_to_write_to_takes_report_html(audited, tmp_path, no_drawing):
    (tmp_path / "pages").mkdir()
    assert gs.report(audited, tmp_path / "pages") == tmp_path / "pages" / "report.html"

"""The page's part on FORGrad: numbers are those of fits and scores made by hand, and what was not gained is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import Markup

import gradspec as gs
from gradspec.cutoffs import CutoffFit
from gradspec.cutoffs.grid import names_of_cutoffs
from gradspec.cutoffs.result import Round
from gradspec.evaluation import Missing, Scores
from gradspec.reporting import figures
from gradspec.reporting.figures import Picture
from gradspec.reporting.forgrad import before_after_table, fits_table, gain_words, trial_caveats, trial_words
from gradspec.runs import packed, unpacked
from gradspec.trials import Trial, Trials, alone, failures, tried
from tests.test_report import NASTY, Reader, assert_sound, small_net, text

CUTOFFS = (None, 8.0, 2.0)
N = 8


def fit_of(means=(0.1, 0.2, 0.3), controls=(0.05, 0.1, 0.25), spread=0.01, **changed):
    """A fit of eight pictures whose scores lie around the given means: the same noise in every column."""
    noise = spread * np.array([-1, 1] * (N // 2))
    pictures = [f"s{i}.png" for i in range(N)]
    columns = dict(zip(names_of_cutoffs(CUTOFFS), (mean + noise for mean in means), strict=True))
    names = ("no filter", "abs only", "centre prior")
    rivals = dict(zip(names, (mean + noise[::-1] for mean in controls), strict=True))
    fit = CutoffFit(
        cutoffs=CUTOFFS,
        per_image=pd.DataFrame({"picture": pictures, "label": 0, **columns}),
        control_scores=pd.DataFrame({"picture": pictures, **rivals}),
        rounds=(Round(N, CUTOFFS),),
        where="attribution", shape="disk", search="grid", attribution="Saliency()", metric="Faithfulness()",
        higher_is_better=True, model="Net 0123", forwards=480, backwards=8, spec={"created": "2026-11-21T12:00:00Z"},
    )  # fmt: skip
    return replace(fit, **changed)


def scores_of(gains, n=10, accuracy=0.75, note=()):
    """Scores in which each method's FORGrad lies by its gain over no filter, by half of it over abs and the prior.

    Args:
        gains: Method -> values (n,) of the gain of each picture.
        n: Pictures.
        accuracy: Of the network.
        note: What is missing.
    """
    pictures, lines, rows = [f"r{i}.png" for i in range(n)], [], []

    def add(attribution, arm, values, base="", cutoff=None):
        name = attribution + {"forgrad": "*", "abs": " (abs)"}.get(arm, "")
        family = "control" if arm == "control" else "white"
        row = {"attribution": attribution, "arm": arm, "base": base, "name": name, "family": family, "cutoff": cutoff}
        rows.append(row | {"where": "", "shape": "", "fitted": arm == "forgrad", "settings": ""})
        columns = {"picture": pictures, "label": 1, "attribution": attribution, "arm": arm, "metric": "Faithfulness"}
        lines.append(pd.DataFrame({**columns, "value": values}))

    for method, gain in gains.items():
        gain = np.asarray(gain, float)
        add(method, "none", np.full(n, 0.2), method)
        add(method, "abs", 0.2 + gain / 2, method)
        add(method, "forgrad", 0.2 + gain, method, 2.0)
    add("centre prior", "control", np.full(n, 0.25))
    keys = [(row["attribution"], row["arm"]) for row in rows]
    known = {"seconds per 100": 1.5, "filter per 100": 0.1, "forwards": 1.0, "backwards": 1.0, "n": n}
    costs = pd.DataFrame([{"attribution": a, "arm": b, **known} for a, b in keys if b != "control"])
    rings = {"height": 16, "width": 16, "high_share": 0.3, "rings": 10 ** (-np.arange(9) / 8)}
    spectra = pd.DataFrame([{"attribution": a, "arm": b, "picture": p} | rings for a, b in keys for p in pictures])
    metrics = {"Faithfulness": {"type": "Faithfulness", "settings": "Faithfulness()", "higher_is_better": True}}
    spec = {"model": "net", "pictures": n, "accuracy": accuracy, "labelled": n, "rows": rows, "metrics": metrics,
            "seed": 0, "created": "2026-11-21T12:00:00Z", "versions": {"gradspec": "0.1"}}  # fmt: skip
    return Scores(pd.concat(lines, ignore_index=True), costs, spectra, note, (), spec)


BETTER = [0.1, 0.11] * 5
WORSE = [-0.1, -0.11] * 5
NEITHER = [0.1, -0.1] * 5


@pytest.fixture
def trials():
    first = Trial(
        "trained", {"Saliency": fit_of(), "GradCAM": fit_of((0.3, 0.3, 0.3), spread=0.0)},
        scores_of({"Saliency": BETTER, "GradCAM": NEITHER}), accuracy=0.75, spectral=5.5,
        spectral_how="leaves its twin",
    )  # fmt: skip
    second = Trial("avgpool", {"Saliency": fit_of((0.3, 0.1, 0.1))}, failed={"GradCAM": "Found no layer."})
    return Trials((first, second, Trial("blurpool", reason="The network has no stride.")), {"model": "demo:net"})


@pytest.fixture
def no_drawing(monkeypatch):
    """Empty figures, for tests of what stands around them."""
    empty = Markup('<svg viewBox="0 0 1 1" role="img" aria-label="drawn elsewhere"></svg>')
    for name in ("_svg", "_png"):
        monkeypatch.setattr(figures, name, lambda name, caption, alt, draw: Picture(name, caption, empty, 1))


def page_of(result, folder):
    return gs.report(result, folder / "page.html").read_text(encoding="utf-8")


# ---- numbers ---------------------------------------------------------------------------------


def test_the_table_holds_the_numbers_of_the_fits(trials):
    table = trials.table().set_index(["variant", "method"])
    row = table.loc["trained", "Saliency"]
    assert (row["cutoff"], row["one_se"], row["n"], row["forwards"]) == (2.0, 2.0, N, 480)
    assert (row["unfiltered"], row["abs"], row["best"]) == pytest.approx((0.05, 0.1, 0.3))
    assert row["gain"] == pytest.approx(0.25) and row["low"] < 0.25 < row["high"]
    assert (row["spectral"], row["accuracy"], row["flat"]) == (5.5, 0.75, False)
    flat = table.loc["trained", "GradCAM"]
    assert flat["flat"] and np.isnan(flat["cutoff"]) and "flat" in flat["note"]  # of equals the largest: no filter
    assert np.isnan(table.loc["avgpool", "Saliency"]["cutoff"])
    assert table.loc["avgpool", "GradCAM"]["note"] == "Found no layer."
    assert table.loc["blurpool", ""]["note"] == "The network has no stride."
    cells = [[cell.text for cell in row] for row in fits_table(trials).rows]
    assert cells[0][:9] == [
        "trained", "Saliency", "2", "2", "0.050", "0.100", "0.300",
        f"+0.250 [{row['low']:+.3f},\xa0{row['high']:+.3f}]", "8",
    ]  # fmt: skip
    assert len(cells) == 3 and cells[1][2] == "none"


def test_before_and_after_by_hand(trials):
    rows, metric = trials.before_after()
    assert metric == "Faithfulness" and [row["method"] for row in rows] == ["Saliency", "GradCAM"]
    row = rows[0]
    assert (row["variant"], row["cutoff"], row["accuracy"]) == ("trained", 2.0, 0.75)
    assert (row["none"], row["abs"], row["filtered"]) == pytest.approx((0.2, 0.2525, 0.305))
    assert row["centre prior"] == pytest.approx(0.25)
    assert row["over none"]["mean"] == pytest.approx(0.105) and row["over none"]["n"] == 10
    assert row["over abs"]["mean"] == pytest.approx(0.0525)
    assert row["over centre prior"]["mean"] == pytest.approx(0.055)
    table = before_after_table(trials)
    heads = [column.head for column in table.columns]
    cells = dict(zip(heads, (cell.text for cell in table.rows[0]), strict=True))
    assert (cells["FORGrad"], cells["pictures"], cells["accuracy"]) == ("0.305", "10", "75.0\xa0%")
    assert cells["over no filter"].startswith("+0.105 [+0.1")
    gains = trials.gains()
    assert list(gains["against"].unique()) == ["none", "abs", "centre prior"]
    assert set(gains[gains["arm"] == "forgrad"]["attribution"]) == {"Saliency", "GradCAM"}


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        (
            {"a": BETTER, "b": BETTER},
            "Over no filter: better in 2 of 2 cases, worse in 0, not told apart in 0.",
        ),
        (
            {"a": WORSE, "b": NEITHER},
            "Over no filter nothing is gained: better in 0 of 2 cases, worse in 1, not told apart in 1.",
        ),
        (
            {"a": BETTER, "b": WORSE, "c": NEITHER},
            "Over no filter: better in 1 of 3 cases, worse in 1, not told apart in 1.",
        ),
    ],
)
def test_words_say_over_what_nothing_is_gained(gains, says):
    words = gain_words(alone(scores_of(gains)))
    assert says in words and "on 10 pictures that no cutoff was chosen on, 95 % intervals" in words
    assert "Over the magnitude alone" in words and "Over the centre prior" in words
    assert ("Most over no filter" in words) == (BETTER in gains.values())


def test_words_on_the_cutoffs(trials):
    said = {paragraph.title: paragraph.text for paragraph in trial_words(trials)}
    assert (
        "2 variants of demo:net" in said["What was tried"]
        and "8 pictures (a disk in the attribution by" in said["What was tried"]
    )
    assert "10 other pictures" in said["What was tried"] and "2 cases could not be tried" in said["What was tried"]
    assert said["The cutoffs"].startswith("3 curves, best at 2 cycles/image.")
    assert "In 1 case it is the smallest that was tried." in said["The cutoffs"]
    assert "In 2 cases the best is no filter." in said["The cutoffs"] and "1 curve is flat" in said["The cutoffs"]
    assert any(
        "`gradspec evaluate` gives them" in line for line in trial_caveats(replace(trials, trials=trials.trials[1:]))
    )
    assert not any("`gradspec evaluate`" in line for line in trial_caveats(trials))


def test_failures_are_named_once_with_their_reason(trials):
    note = (Missing("GradCAM", "none", "", 0, "Found no layer."), Missing("Sobol", "forgrad", "MuFidelity", 3, "odd"))
    first, second, third = trials.trials
    second = replace(second, scores=scores_of({"Saliency": BETTER}, note=note))
    found = failures(replace(trials, trials=(first, second, third)))
    assert found == [
        ("avgpool", "GradCAM", "Found no layer."),
        ("avgpool", "Sobol (forgrad, MuFidelity)", "odd"),
        ("blurpool", "", "The network has no stride."),
    ]


# ---- files -----------------------------------------------------------------------------------


def test_saved_trials_come_back(trials, tmp_path):
    back = Trials.load(trials.save(tmp_path / "run"))
    assert [trial.variant for trial in back.trials] == ["trained", "avgpool", "blurpool"]
    pd.testing.assert_frame_equal(back.table(), trials.table())
    pd.testing.assert_frame_equal(back.gains(), trials.gains())
    assert failures(back) == failures(trials) and back.spec["model"] == "demo:net"
    assert back.trials[0].spectral_how == "leaves its twin" and np.isnan(back.trials[1].accuracy)


def test_a_folder_gives_the_fit_of_variant_and_method(trials, tmp_path):
    trials.save(tmp_path / "run")
    fit_of().save(tmp_path / "one")
    assert tried(tmp_path / "run").fit("avgpool", "Saliency").cutoff is None
    assert tried(tmp_path / "one").fit("whatever", "Sobol").cutoff == 2.0  # a single fit is for all
    for variant, method, says in (
        (
            "trained",
            "Sobol",
            r"a fit of Sobol for the variant trained, but it has none \(there are: Saliency, GradCAM\)",
        ),
        ("avgpool", "GradCAM", r"\(Found no layer.\)"),
        ("blurpool", "Saliency", r"\(The network has no stride.\)"),
        ("untrained", "Saliency", r"a variant that was fitted \(trained, avgpool, blurpool\), got 'untrained'"),
    ):
        with pytest.raises(ValueError, match=says):
            tried(tmp_path / "run").fit(variant, method)


# ---- the page --------------------------------------------------------------------------------


def test_the_page_of_trials_is_sound_and_holds_their_numbers(trials, tmp_path):
    html = page_of(trials.save(tmp_path / "run"), tmp_path)
    page = assert_sound(html)
    titles = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert titles == ["summary", "cutoffs", "before-after", "scores", "settings", "caveats", "reading"]
    assert len(page.all("svg")) == 2 + 3  # curves of two variants; gains, slopes and times of the one that was scored
    assert ["avgpool", "GradCAM", "Found no layer."] in page.rows
    assert any(row[:2] == ["trained", "Saliency"] and "0.305" in row for row in page.rows)
    assert "Nothing to draw" not in html and "could not be drawn" not in html
    assert page.words["h1"] == "demo:net" and "95 % interval" in html


def test_single_fits_and_scores_have_pages_too(tmp_path, no_drawing):
    for name, result in {"fit": fit_of(), "scores": scores_of({"Saliency": BETTER})}.items():
        html = page_of(result.save(tmp_path / name), tmp_path)
        assert_sound(html)
        assert html == page_of(result, tmp_path)
        assert (f"gradspec · {'fit' if name == 'fit' else 'evaluation'}") in html


def test_a_comparison_s_page_ends_with_the_trials_beside_it(trials, tmp_path, no_drawing):
    x = torch.rand(3, 3, 32, 41, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    compared = gs.compare({"max": small_net()}, (x, torch.tensor([0, 1, 2])), progress=False)
    without = Reader(page_of(compared.save(tmp_path / "run"), tmp_path))
    trials.save(tmp_path / "run" / "forgrad")
    page = assert_sound(text(gs.report(tmp_path / "run")))
    titles = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    known = [attributes["id"] for tag, attributes in without.tags if tag == "section"]
    assert titles == [*known[:-3], "cutoffs", "before-after", "scores", *known[-3:]]
    assert "What FORGrad gains" in page.words["dt"] and "cycles per image: higher frequencies" in page.words["dd"]


def test_hostile_names_are_text(trials, tmp_path):
    first, second, third = trials.trials
    nasty = NASTY.replace("\ud800", "")  # which no column of text takes
    scores = scores_of({nasty: BETTER})
    first = replace(
        first, variant=NASTY, fits={NASTY: fit_of()}, failed={NASTY: NASTY}, scores=scores, spectral_how=NASTY
    )
    html = page_of(Trials((first, second, replace(third, reason=NASTY)), {"model": NASTY, NASTY: NASTY}), tmp_path)
    assert_sound(html)
    assert "<img src=x" not in html and "alert(2)&gt;" in html


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda spec: spec.pop("variants"), "Cannot read"),
        (lambda spec: spec.update(variants=[1]), "Cannot read"),
        (lambda spec: spec.update(format=1), "of format 2"),
        (lambda spec: spec.update(pictures_per_unit="many"), "Cannot read"),
        (lambda spec: spec.update(fits=["Other"]), "Cannot read"),
    ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(trials, tmp_path, change, says):
    trials.save(tmp_path / "run")
    spec = json.loads((tmp_path / "run/spec.json").read_text())
    change(spec)
    (tmp_path / "run/spec.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=says):
        gs.report(tmp_path / "run")


def rewrite(folder, name, change):
    (file,) = folder.glob(f"units/{name}-????????.parquet")
    parts, about = unpacked(pd.read_parquet(file))
    change(parts, about)
    packed(parts, about).to_parquet(file)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("facts-trained", lambda _, about: about.update(accuracy="high")),
        ("facts-trained", lambda _, about: about.update(methods=3)),
        ("facts-trained", lambda _, about: about.update(methods=[3])),
        ("facts-trained", lambda _, about: about.update(failed="all")),
        ("facts-trained", lambda _, about: about.update(spectral_how={"a": []}, spectral=[1])),
        ("variant-blurpool", lambda _, about: about.pop("reason")),
        ("fit-trained-Saliency", lambda _, about: about.update(where=3, cutoffs="all")),
        ("fit-trained-Saliency", lambda parts, _: parts["per_image"].pop("picture")),
        ("fit-trained-Saliency", lambda parts, _: replaced(parts, "per_image", picture=["a"])),
        ("scores-trained", lambda parts, _: replaced(parts, "table", value="high")),
        ("scores-trained", lambda parts, _: parts["table"].pop("value")),
        ("scores-trained", lambda _, about: about.update(missing=[["a"]])),
        ("scores-trained", lambda _, about: about.update(examples=[["a", 1, 1, [["Saliency", "none"]]]])),
        ("scores-trained", lambda _, about: about["spec"].pop("rows")),
    ],
)
def test_a_damaged_unit_is_refused_in_a_sentence(trials, tmp_path, name, change):
    folder = trials.save(tmp_path / "run")
    rewrite(folder, name, change)
    with pytest.raises(ValueError, match=r"^Cannot read ") as caught:
        gs.report(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not Path(folder, "report.html").exists()


def replaced(parts, part, **cells):
    rows = range(len(parts[part]))
    parts[part] = parts[part].assign(**{k: pd.Series([v for _ in rows], dtype=object) for k, v in cells.items()})


@pytest.mark.parametrize("name", ["variant-trained", "facts-trained", "fit-trained-Saliency", "scores-trained"])
def test_what_is_not_there_yet_is_said(trials, tmp_path, name, no_drawing):
    """A folder of trials is read as that of a run that is not done; a torn file is not one that is missing."""
    folder = trials.save(tmp_path / "run")
    (file,) = folder.glob(f"units/{name}-????????.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}"):
        gs.report(folder)
    file.unlink()
    assert_sound(text(gs.report(folder)))
    found = Trials.load(folder).of("trained")
    told = {"variant-trained": found.reason, "fit-trained-Saliency": found.failed.get("Saliency", "")}
    assert told.get(name, "1 of 1 units are not done yet") == "1 of 1 units are not done yet"
    assert (found.scores is None) == (name in ("variant-trained", "scores-trained"))
    assert np.isnan(found.accuracy) == (name in ("variant-trained", "facts-trained"))


def test_columns_of_another_type_are_refused_in_a_sentence(tmp_path):
    folder = scores_of({"Saliency": BETTER}).save(tmp_path / "scores")
    (file,) = folder.glob("units/*.parquet")
    whole = pd.read_parquet(file)
    whole.drop(columns="value").to_parquet(file)  # while its words still name it
    with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}: .*'value'"):
        gs.report(folder)
    whole.to_parquet(file)
    rewrite(folder, "scores", lambda parts, _: parts["table"].pop("value"))
    with pytest.raises(ValueError, match="Cannot read the scores"):
        gs.report(folder)
    assert not Path(folder, "report.html").exists()

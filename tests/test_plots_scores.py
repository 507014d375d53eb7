"""Figures of scores: every number of the tables is where it belongs, and what there is none of is said."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gradspec import plots
from gradspec.attributions import GradCAM, GradientInput, Occlusion, Saliency
from gradspec.evaluation import Scores, evaluate
from gradspec.metrics import Faithfulness
from gradspec.plots import scores as drawing

METRIC = {"Faithfulness": Faithfulness(steps=4)}


def tiny():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    net.mean, net.std = (0.5,), (0.25,)
    net[-1].weight.data *= 8
    return net.eval()


@pytest.fixture(scope="module")
def scores():
    images = torch.randn(12, 3, 16, 18, generator=torch.Generator().manual_seed(1))
    methods = {
        "Saliency": Saliency(), "GradientInput": GradientInput(), "GradCAM": GradCAM(),
        "Occlusion": Occlusion(patch=6, stride=6),
    }  # fmt: skip
    return evaluate(
        tiny(), (images, torch.arange(12) % 4), methods, METRIC, fits={"Saliency": 3.0, "GradientInput": 2.0},
        arms=("abs", "gradient"), examples=3, progress=False,
    )  # fmt: skip


def lines(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def words(figure):
    found = [text.get_text() for ax in figure.axes for text in ax.texts] + [text.get_text() for text in figure.texts]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# ---- gains -----------------------------------------------------------------------------------------


def test_every_gain_is_drawn_with_its_interval(scores):
    figure = drawing.gains(scores)
    assert [ax.get_title() for ax in figure.axes] == ["against no filter", "against abs only", "against centre prior"]
    for ax, against in zip(figure.axes, ("none", "abs", "centre prior"), strict=True):
        table = scores.gains(against=against)
        marks, bars = lines(ax, "gain"), lines(ax, "interval")
        np.testing.assert_allclose([float(mark.get_xdata()[0]) for mark in marks], table["mean"])
        np.testing.assert_allclose([bar.get_xdata() for bar in bars], table[["low", "high"]])
        sure = (table["low"] > 0) | (table["high"] < 0)
        assert [mark.get_markerfacecolor() != "white" for mark in marks] == sure.tolist()
    heights = [float(mark.get_ydata()[0]) for mark in lines(figure.axes[2], "gain")]
    assert len(set(heights)) == len(heights)  # no two on each other
    methods = dict.fromkeys(scores.gains(against="centre prior")["attribution"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(methods)
    assert {"no filter", "abs only", "FORGrad (map)", "FORGrad (gradient)"} <= set(words(figure))


def test_one_panel_against_one_arm(scores):
    figure = drawing.gains(scores, against=("none", "no such arm"))
    assert len(figure.axes) == 1


def test_gains_of_nothing_are_said(scores):
    alone = Scores(scores.table, scores.costs, scores.spectra, (), (), scores.spec | {"rows": scores.spec["rows"][:1]})
    assert "no attribution has two arms" in words(drawing.gains(alone))[0]


def test_a_decrease_is_named_as_one(scores):
    turned = scores.spec | {"metrics": {"Faithfulness": {"type": "Deletion", "higher_is_better": False}}}
    figure = drawing.gains(Scores(scores.table, scores.costs, scores.spectra, (), (), turned))
    assert "decrease in Faithfulness" in figure.get_supxlabel()
    assert "gain in Faithfulness, mean over 12 pictures" in drawing.gains(scores).get_supxlabel()


def test_gains_on_pictures_of_the_selection_say_so(scores):
    inside = Scores(scores.table, scores.costs, scores.spectra, (), (), scores.spec | {"selection": 5})
    assert "12 pictures (5 of them chosen on) and" in drawing.gains(inside).get_supxlabel()
    assert "chosen" not in drawing.gains(scores).get_supxlabel()


# ---- scatters --------------------------------------------------------------------------------------


def test_points_of_scores(scores):
    points = drawing.points_of(scores)
    summary = scores.summary().set_index(["attribution", "arm"])
    for row in points.itertuples():
        assert row.score == pytest.approx(summary.loc[(row.attribution, row.arm), "Faithfulness"])
        assert row.score_se == pytest.approx(summary.loc[(row.attribution, row.arm), "Faithfulness se"])
    assert set(points["arm"]) == {"none", "forgrad", "control"}
    assert set(drawing.points_of(scores, arms=("abs",))["arm"]) == {"abs", "control"}
    slopes = scores.slopes.set_index(["attribution", "arm"])
    row = points[points["name"] == "Saliency*"].iloc[0]
    assert row["slope"] == pytest.approx(slopes.loc[("Saliency", "forgrad"), "slope_nyquist"], nan_ok=True)
    assert row["base"] == "Saliency" and row["family"] == "white"


def test_points_arrows_and_names_of_a_scatter():
    points = pd.DataFrame(
        {
            "name": ["S", "S*", "S†", "C", "noise", "lost"], "attribution": ["S", "S", "S", "C", "noise", "lost"],
            "arm": ["none", "forgrad", "shared", "none", "control", "none"], "base": ["S", "S", "S", "C", "", "lost"],
            "family": ["white", "white", "white", "gray", "control", "black"],
            "slope": [-0.5, -4.0, -3, -3.5, -0.1, math.nan],
            "slope_se": 0.1, "score": [0.1, 0.3, 0.25, 0.28, 0.0, 0.4], "score_se": 0.02,
        }
    )  # fmt: skip
    figure = drawing.slope_scatter(points, "F", "eight pictures")
    ax = figure.axes[0]
    arrows = [text for text in ax.texts if text.get_gid() == "arrow"]
    assert [(tuple(arrow.xyann), tuple(arrow.xy)) for arrow in arrows] == [((-0.5, 0.1), (-4.0, 0.3))]
    names = [text.get_text() for text in ax.texts if text.get_gid() == "name"]
    assert names == ["S", "S*", "S†", "C", "noise"]  # what has no slope is left out
    drawn = [
        tuple(float(v[0]) for v in line.get_data())
        for line in ax.lines
        if line.get_marker() not in ("None", "", "|", "_")
    ]
    assert set(drawn) >= {(-0.5, 0.1), (-4.0, 0.3), (-3.5, 0.28)}
    assert {"white-box", "gray-box", "knows no network", "FORGrad"} <= set(words(figure)) and "black-box" not in words(
        figure
    )
    assert "eight pictures" in ax.get_xlabel() and ax.get_ylabel() == "F"


def test_time_is_logarithmic_and_leaves_out_what_takes_none(scores):
    points = drawing.points_of(scores)
    figure = drawing.faithfulness_time(points, "Faithfulness")
    ax = figure.axes[0]
    assert ax.get_xscale() == "log" and "$" not in "".join(label.get_text() for label in ax.get_xticklabels())
    names = {text.get_text() for text in ax.texts if text.get_gid() == "name"}
    assert {"Saliency", "Saliency*", "GradCAM", "Occlusion"} <= names and "centre prior" not in names


def test_a_scatter_of_columns_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match="columns name, slope and score, got none of \\['slope'\\]"):
        drawing.slope_scatter(pd.DataFrame({"name": ["a"], "score": [1.0]}))


def test_a_scatter_of_nothing_is_said():
    empty = pd.DataFrame({"name": ["a"], "slope": [math.nan], "score": [1.0]})
    assert "no point has both slope" in words(drawing.slope_scatter(empty))[0]


def test_few_columns_suffice():
    table = pd.DataFrame({"name": ["_a", "b$^2$"], "seconds": [1.0, 100.0], "score": [0.1, 0.4]})
    assert {"_a", "b$^2$"} <= set(words(drawing.faithfulness_time(table)))


# ---- maps ------------------------------------------------------------------------------------------


def test_a_sheet_of_maps_before_and_after(scores):
    figure = drawing.examples(scores, most=2)
    said = words(figure)
    for name in ("Saliency", "Saliency*", "Saliency* (gradient)", "GradCAM"):
        assert name in said
    assert "Saliency (abs)" not in said and "white noise" not in said
    assert sum("class" in text for text in said) == 2
    assert len([ax for ax in figure.axes if ax.images]) >= 2 * 9


def test_no_maps_are_said(scores):
    bare = Scores(scores.table, scores.costs, scores.spectra, (), (), scores.spec)
    assert "evaluate with examples" in words(drawing.examples(bare))[0]


def test_figures_are_the_same_on_every_run(scores, tmp_path):
    one, other = (plots.save(drawing.gains(scores), tmp_path / name) for name in ("a", "b"))
    assert one[1].read_bytes() == other[1].read_bytes()

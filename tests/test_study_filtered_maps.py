"""Filtered maps end to end: what filtering does to the numbers, whose pictures are shown, and going on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import gradspec as gs
from gradspec import attributions as a
from studies import filtered_maps as study


def test_it_filters_measures_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "x"]
    study.main(options)
    table = pd.read_csv(tmp_path / "x.csv").set_index(["method", "arm"])
    assert len(table) == 9 and (table["slope n"] == 4).all() and (table["F n"] == 4).all()
    cutoffs = pd.read_csv(tmp_path / "x_cutoffs.csv")
    assert cutoffs["how"].eq("race").all() and cutoffs["pictures"].gt(0).all()
    for row in cutoffs.itertuples():
        before, after = (table.loc[(row.method, arm)] for arm in ("abs", "FORGrad"))
        if row.cutoff == row.cutoff and row.cutoff < 16:  # of 32 at Nyquist
            assert after["slope"] < before["slope"] - 0.5 and after["high share"] < 0.02
    assert table["relevance mass"].between(0, 1).all() and table["even map"].between(0.05, 0.3).all()
    same = table.loc[("Saliency", "none")] - table.loc[("Saliency", "abs")]  # it has no sign
    assert same.to_numpy(float) == pytest.approx(0, abs=1e-4)
    differences = pd.read_csv(tmp_path / "x_differences.csv")
    one = differences.query("method == 'SmoothGrad' and measure == 'F' and against == 'none'").iloc[0]
    expected = table.loc[("SmoothGrad", "FORGrad"), "F"] - table.loc[("SmoothGrad", "none"), "F"]
    assert one["difference"] == pytest.approx(expected, abs=1e-4) and one["low"] <= one["difference"] <= one["high"]
    assert "anecdotal" in json.loads((tmp_path / "x.json").read_text())["F"]["note"]
    for ending in ("", "_row"):
        with Image.open(tmp_path / f"x{ending}.png") as picture:
            assert min(picture.size) > 200

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "cutoff_row", computed)
    monkeypatch.setattr(study, "measured", computed)
    monkeypatch.setattr(study, "draw", lambda *_: None)
    before = (tmp_path / "x.csv").read_bytes()
    study.main(options)
    assert (tmp_path / "x.csv").read_bytes() == before


def test_photographs_are_never_drawn_through_a_smooth_gradient(tmp_path, monkeypatch):
    """Gradient times input is the picture itself where the gradient is smooth."""
    drawn = []
    monkeypatch.setattr(study, "sheet", lambda run, rows, pixels, *_: drawn.append((rows, pixels)))
    monkeypatch.setattr(study.Study, "figure", lambda *_: None)
    net = gs.load_model("demo:vgg_max")
    case = gs.demo.pictures(2)
    batch = net.preprocess(case.images), case.labels, ["a.jpg", "b.jpg"]
    args = type("Args", (), {"shown": 2, "images": tmp_path, "where": "gradient", "name": "x"})
    run = type("Run", (), {"args": args, "figure": study.Study.figure})()
    work = {"Saliency": a.Saliency(), "GradientInput": a.GradientInput()}
    study.draw(run, gs.Engine(net), work, {"Saliency": 4.0, "GradientInput": 4.0}, [batch])
    (sheet, pixels), (row, nothing) = drawn
    assert pixels is None and nothing is None and list(row) == ["filter: attribution"]
    assert [head.partition("\n")[0] for head in sheet["FORGrad"]] == ["Saliency"]


def test_a_sheet_of_photographs_holds_maps_alone():
    class Run:
        args = type("Args", (), {"name": "x"})

    maps = {"before": {"Saliency": torch.rand(2, 8, 8)}, "FORGrad": {"Saliency": torch.rand(2, 8, 8)}}
    alone = study.sheet(Run(), maps, None, ["a.jpg", "b.jpg"], "title")  # pyright: ignore[reportArgumentType]
    assert [axis.images[0].get_array().shape for axis in alone.axes] == [(8, 8)] * 4
    pixels = np.full((2, 3, 8, 8), 0.5)
    beside = study.sheet(Run(), maps, pixels, ["a", "b"], "title")  # pyright: ignore[reportArgumentType]
    assert [axis.images[0].get_array().shape for axis in beside.axes][:2] == [(8, 8, 3), (8, 8)]

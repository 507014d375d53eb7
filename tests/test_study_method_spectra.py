"""Spectra of the thirteen methods' maps end to end: orders that hold by design, numbers by hand, and going on."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import gradspec as gs
from gradspec import attributions as a
from studies import method_spectra as study


def test_it_measures_all_methods_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "x"]
    study.main(options)
    table = pd.read_csv(tmp_path / "x.csv").set_index("method")
    assert len(table) == 13 and table["family"].value_counts().to_dict() == {"white": 7, "black": 4, "gray": 2}
    assert (table["n"] == 4).all() and (table["slope"] < 0).all() and (table["slope se"] > 0).all()
    assert table.loc["Saliency", "passes"] == 1 and table.loc["SmoothGrad", "passes"] == 2
    assert table.loc["Occlusion", "grid"] == 4 and table.loc["RISE", "grid"] == 7  # of 64 pixels, patches of 16
    families = pd.read_csv(tmp_path / "x_families.csv", keep_default_na=False)
    rows = families[(families["first"] == "white") & (families["second"] == "black")]
    assert len(rows) == 4 and (rows["low"] > 0).all()  # by each measure
    pairs = pd.read_csv(tmp_path / "x_pairs.csv")
    assert pairs.groupby(["measure", "families"]).size().tolist() == [8, 28, 14] * 4
    one = pairs[(pairs["measure"] == "slope") & (pairs["first"] == "Saliency") & (pairs["second"] == "RISE")].iloc[0]
    assert one["mean"] == pytest.approx(table.loc["Saliency", "slope"] - table.loc["RISE", "slope"], abs=1e-4)
    assert len(pd.read_csv(tmp_path / "x_grid.csv")) == 6
    about = json.loads((tmp_path / "x.json").read_text())
    assert about["pictures"] == 4 and about["order of family means"]["slope"].startswith("white")
    for ending in ("", "_extraction", "_spectra", "_complexity"):
        with Image.open(tmp_path / f"x{ending}.png") as picture:
            low, high = picture.convert("L").getextrema()
            assert min(picture.size) > 200 and high - low > 200

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "map_rows", computed)
    monkeypatch.setattr(study, "draw", lambda *_: None)
    before = (tmp_path / "x.csv").read_bytes()
    study.main(options)
    assert (tmp_path / "x.csv").read_bytes() == before


def test_values_of_a_picture_have_the_measures_as_their_mean():
    maps = torch.randn(6, 32, 32, generator=torch.Generator().manual_seed(0))
    maps[2] = 1.0  # constant
    found, whole = study.per_picture(maps), gs.signature(maps)
    for name, expected in (("slope", whole.slope_nyquist), ("high share", whole.high_share)):
        assert np.isnan(found[name][2]) and np.nanmean(found[name]) == pytest.approx(expected)
    spread = np.nanstd(found["slope"], ddof=1) / math.sqrt(5)
    assert spread == pytest.approx(whole.slope_nyquist_se)


def test_a_method_that_is_mostly_constant_is_left_out_of_its_family():
    good, bad = np.array([1.0, 2, 3, 4]), np.array([9.0, math.nan, math.nan, math.nan])
    values = {"one": {"slope": good}, "other": {"slope": bad}}
    assert study.family_values(values, ["one", "other"], "slope").tolist() == good.tolist()
    values["other"]["slope"] = np.array([3.0, 4, math.nan, 6])
    np.testing.assert_allclose(study.family_values(values, ["one", "other"], "slope"), [2, 3, math.nan, 5])


def test_cells_of_masks():
    assert study.cells_of(a.Occlusion(patch=32, stride=(16, 8)), 224) == 14
    assert study.cells_of(a.Sobol(grid=6), 224) == 6 and math.isnan(study.cells_of(a.Saliency(), 224))

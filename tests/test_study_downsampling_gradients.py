"""Downsampling gradients end to end: what the numbers mean on the embedded network, and that a run goes on."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from studies import downsampling_gradients as study


def test_it_tells_max_from_average_pooling_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "x"]
    study.main(options)
    table, claimed = pd.read_csv(tmp_path / "x.csv"), pd.read_csv(tmp_path / "x_claims.csv")
    after = table[(table["role"] == "downsampling") & (table["point"] == "input")].set_index(["variant", "module"])
    assert after.loc["trained"]["type"].tolist() == ["max pooling"] * 4 and (after["n"] == 4).all()
    assert after.loc["avgpool"]["type"].tolist() == ["average pooling"] * 4
    assert (after.loc["trained", "high_share"] > 0.7).all() and (after.loc["avgpool", "high_share"] < 0.25).all()
    assert (after.loc["trained", "rise"] > 0).all() and (after.loc["avgpool", "rise"] < 0).all()
    assert (after["tip"] >= 1 - 1e-9).all()
    same = after.loc["avgpool", "checkerboard"] / after.loc["avgpool-wide", "checkerboard"]
    assert same.to_numpy() == pytest.approx(1)  # 2 x 2 windows are whole multiples of the stride already
    more = claimed[(claimed["other"] == "avgpool") & (claimed["measure"] == "high share")]
    assert len(more) == 8 and (more["low"] > 0).all() and (more["difference"].between(more["low"], more["high"])).all()
    about = json.loads((tmp_path / "x.json").read_text())
    rises = about["signature rises towards Nyquist, by what stands there in the first variant"]
    assert about["pictures"] == 4 and "rises at 4" in rises["trained: max pooling"]
    assert "falls at 4 of 4" in rises["avgpool: max pooling"]
    assert about["same as"] == {"avgpool-wide": "avgpool"} and set(claimed["other"]) == {"avgpool"}
    for ending in ("", "_gradients", "_numbers"):
        with Image.open(tmp_path / f"x{ending}.png") as picture:
            low, high = picture.convert("L").getextrema()
            assert min(picture.size) > 200 and high - low > 200

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "measured", computed)
    monkeypatch.setattr(study, "audited", computed)
    monkeypatch.setattr(study, "draw", lambda *_: None)
    before = (tmp_path / "x.csv").read_bytes()
    study.main(options)
    assert (tmp_path / "x.csv").read_bytes() == before


def test_a_strided_convolution_is_compared_at_its_modules_input_alone(tmp_path):
    options = ["--smoke", "--model", "demo:resnet_stride", "--variants", "trained", "avgpool", "--limit", "2"]
    study.main([*options, "--out", str(tmp_path), "--name", "x"])
    table, claimed = pd.read_csv(tmp_path / "x.csv"), pd.read_csv(tmp_path / "x_claims.csv")
    strided = claimed[claimed["type"] == "strided convolution"]
    assert len(strided) and set(strided["place"]) == {"at the module's input"}
    rows = study.compared(table).set_index(["variant", "module"])
    here = strided.drop_duplicates("module")["module"]
    assert (rows.loc["avgpool"].loc[here, "type"] == "convolution").all() and rows["entrance"].all()
    means = strided[strided["measure"] == "high share"].set_index("module")["other mean"]
    assert means.to_numpy() == pytest.approx(rows.loc["avgpool"].loc[means.index, "high_share"].to_numpy(), abs=1e-4)


def test_detail_holds_the_largest_magnitude():
    import numpy as np

    picture = np.zeros((40, 50))
    picture[39, 2] = -3
    assert study.detail(picture).shape == (32, 32) and study.detail(picture).min() == -3
    assert study.detail(np.ones((8, 8))).shape == (8, 8)

"""The atlas of architectures: it goes through, goes on where it stopped, and its answers are those of its tables."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import gradspec as gs
from studies import architecture_atlas as study


def test_it_goes_through_and_a_second_run_computes_nothing(tmp_path, monkeypatch):
    assert study.main(["--smoke", "--out", str(tmp_path)]) == 0
    draws = pd.read_csv(tmp_path / "architecture_atlas_draws.csv")
    table = pd.read_csv(tmp_path / "architecture_atlas.csv").set_index("network")
    assert sorted(draws["network"].unique()) == ["demo:resnet_stride", "demo:vgg_max", "demo:vit"] and len(draws) == 6
    images = (gs.demo.pictures(2, size=64).images - 0.45) / 0.2
    for draw in range(2):
        net = gs.load_model("demo:vgg_max", "none", seed=draw)
        own = gs.audit(net, images, progress=False).input_slope[0]
        row = draws[(draws["network"] == "demo:vgg_max") & (draws["draw"] == draw)].iloc[0]
        assert row["slope_nyquist"] == pytest.approx(own, rel=1e-4)
    for name, rows in draws.groupby("network"):
        assert table.loc[name, "slope_nyquist"] == pytest.approx(rows["slope_nyquist"].mean(), rel=1e-3)
    claims = pd.read_csv(tmp_path / "architecture_atlas_claims.csv").set_index("question")
    assert claims.loc["slope at the input, median", "value"] == pytest.approx(table["slope_nyquist"].median(), rel=1e-3)
    assert json.loads((tmp_path / "architecture_atlas.json").read_text())["failed"] == {}
    assert (tmp_path / "architecture_atlas.png").stat().st_size > 5000
    monkeypatch.setattr(study, "audited", lambda *args: pytest.fail("a unit that was done was computed again"))
    assert study.main(["--smoke", "--out", str(tmp_path)]) == 0


def test_a_network_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    names = ["demo:vgg_max", "demo:no_such", "demo:vit"]
    assert study.main(["--smoke", "--models", *names, "--out", str(tmp_path)]) == 0
    assert "demo:no_such: " in capsys.readouterr().out
    assert list(json.loads((tmp_path / "architecture_atlas.json").read_text())["failed"]) == ["demo:no_such"]
    assert len(pd.read_csv(tmp_path / "architecture_atlas.csv")) == 2


def test_the_share_of_the_architecture_is_the_intraclass_correlation():
    """Shrout and Fleiss (1979), table 4: ICC(1, 1) = 0.17."""
    judges = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    value, low, high = study.icc(judges)
    assert (round(value, 2), round(low, 2), round(high, 2)) == (0.17, -0.13, 0.72)
    same = np.repeat(np.arange(5.0)[:, None], 3, axis=1) + np.random.default_rng(0).normal(0, 1e-6, (5, 3))
    assert study.icc(same)[0] > 0.999
    assert np.isnan(study.icc(judges[:1])).all()

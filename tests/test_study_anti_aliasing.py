"""The study of anti-aliased downsampling: smallest run, resuming, and its table on numbers that are known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from studies import anti_aliasing


def test_smoke_compares_variants_and_resumes(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path)]
    anti_aliasing.main(options)
    table = pd.read_csv(tmp_path / "anti_aliasing.csv").set_index("variant")
    assert table.index.tolist() == ["trained", "demo:vgg_avg", "avgpool", "avgpool+recalibrated"]
    assert (table["n"] == 4).all() and table.loc["trained", "agrees"] == 1
    assert table.loc["avgpool", "slope"] < table.loc["trained", "slope"] - 0.2
    assert table.loc["avgpool+recalibrated", "probability"] > table.loc["avgpool", "probability"] + 0.3
    pictures = pd.read_csv(tmp_path / "anti_aliasing_pictures.csv")
    gains = (pictures["F_forgrad"] - pictures["F"]).groupby(pictures["variant"]).mean()
    assert gains.reindex(table.index).to_numpy() == pytest.approx(table["gain"].to_numpy(), abs=1e-4)
    assert json.loads((tmp_path / "anti_aliasing.json").read_text())["forwards"] > 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    monkeypatch.setattr(anti_aliasing, "measured", lambda *args: pytest.fail("computed again"))
    anti_aliasing.main(options)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


def frame(gains, rights):
    """Per-picture numbers of two variants whose F without a filter is 0.1."""
    parts = []
    for name, gain, right in zip(("trained", "other"), gains, rights, strict=True):
        values = {"picture": [str(i) for i in range(len(gain))], "variant": name, "gain": gain, "right": right}
        known = {column: 0.1 for column in anti_aliasing.MEASURES if column != "right"} | {"probability": 0.5}
        parts.append(pd.DataFrame(values | known).assign(F_forgrad=0.1 + np.asarray(gain)))
    return pd.concat(parts, ignore_index=True)


def test_the_difference_of_gains_is_paired_and_also_of_pictures_that_both_get_right():
    found = frame([[0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.4, 0.4]], [[1, 1, 1, 0], [1, 0, 1, 1]])
    cutoffs = pd.DataFrame({"variant": ["trained", "other"], "cutoff": [None, 3.0], "side": [64, 64]})
    table = anti_aliasing.table_of(found, cutoffs).set_index("variant")
    assert table.loc["other", "gain_less_first"] == pytest.approx(-0.075)
    assert table.loc["other", "gain_less_first_n"] == 4 and table.loc["other", "gain_less_first_right_n"] == 2
    assert table.loc["other", "gain_less_first_right"] == pytest.approx(-0.05)
    assert table.loc["trained", "gain_relative"] == pytest.approx(0.35 / 0.5)
    assert np.isnan(table.loc["trained", "gain_less_first"])


def test_rank_correlations_take_no_filter_for_the_whole_side():
    rows = {"slope": [-0.5, -1.0, -1.5], "high_share": [0.5, 0.3, 0.1], "F": [0.1, 0.2, 0.3], "gain": [0.3, 0.2, 0.1]}
    table = pd.DataFrame(rows | {"gain_relative": [1, 1, 1], "cutoff": [1.0, 5.0, None], "side": [64, 64, 64]})
    claimed = anti_aliasing.claims(table)
    assert list(claimed) == ["quantity", "expected", "correlation", "n"]
    found = claimed.set_index("quantity")["correlation"]
    assert found["slope and F over variants"] == -1 and found["slope and gain over variants"] == 1
    assert found["slope and cutoff over variants"] == -1 and np.isnan(found["slope and gain_relative over variants"])

"""The study of the decision's frequencies on four generated pictures: its numbers' laws, and that it goes on."""

import json

import numpy as np
import pandas as pd
import pytest

from studies import decision_frequencies


def test_decision_frequencies_adds_up_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--name", "df", "--out", str(tmp_path), "--radii", "4", "0.001"]
    decision_frequencies.main(options)
    endings = ".csv", "_paired.csv", "_margin.csv", ".png", ".json"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {f"df{ending}" for ending in endings}
    table = pd.read_csv(tmp_path / "df.csv")
    assert table["n"].le(4).all() and table["low"].le(table["mean"] + 1e-9).all()
    means = table.set_index(["arm", "measure", "direction", "band", "radius"])["mean"].sort_index()
    for key in (("share", "of power", "gradient"), ("line", "flip power", "gradient")):
        assert means[(*key, "low", -1)] + means[(*key, "high", -1)] == pytest.approx(1, abs=1e-4)
    for band in ("all", "low", "high"):
        assert means["step", "efficiency", "gradient", band, 0.001] == pytest.approx(1, abs=0.02)
        assert means["step", "flips", "gradient", band, 0.001] == 0
        logits = [means["step", "drop of logit", way, band, 4] for way in ("gradient", "random")]
        assert logits[0] > 3 * abs(logits[1])
    norm = {b: means["step", "drop of logit", "gradient", b, 0.001] for b in ("all", "low", "high")}
    assert np.hypot(norm["low"], norm["high"]) == pytest.approx(norm["all"], rel=0.02)
    assert means["attack", "flips", "gradient", "all", 4] >= means["step", "flips", "gradient", "all", 4]
    assert means["attack", "flips", "gradient", "all", 4] == means["kept", "flips", "own length", "all", 4]
    pairs = pd.read_csv(tmp_path / "df_paired.csv").set_index(["arm", "measure", "direction", "radius"])
    share = means["share", "of power", "gradient", "high", -1]
    assert pairs.loc[("share", "of power", "gradient", -1), "high less low"] == pytest.approx(2 * share - 1, abs=1e-4)
    halves = pd.read_csv(tmp_path / "df_margin.csv")
    assert halves["n near"].max() == halves["n far"].max() == 2
    about = json.loads((tmp_path / "df.json").read_text())
    assert about["decided"]["above σ = 8"]["share of the gradient's power"][0] == pytest.approx(share, abs=1e-3)

    flipped = table[(table["measure"] == "flip power") & (table["band"] == "high")]["n"].sum()
    assert about["decided"]["above σ = 8"]["flip power: pictures"] == flipped

    def never(*_):
        raise AssertionError("a unit was computed again")

    before = {ending: (tmp_path / f"df{ending}").read_bytes() for ending in endings[:3]}
    monkeypatch.setattr(decision_frequencies, "one_unit", never)
    monkeypatch.setattr(decision_frequencies.Study, "figure", lambda *_: None)
    decision_frequencies.main(options)
    assert {ending: (tmp_path / f"df{ending}").read_bytes() for ending in before} == before


def test_a_picture_that_no_part_flips_is_not_counted_in_flip_power():
    values = {"low": (0.25, np.nan), "high": (0.75, np.nan)}
    key = "line", "gradient"
    rows = [(*key, band, 8.0, -1.0, "flip power", f"p{k}", 1.0, values[band][k]) for band in values for k in (0, 1)]
    table = pd.DataFrame(rows, columns=[*decision_frequencies.KEYS, "picture", "margin", "value"])
    means = decision_frequencies.summary(table)
    assert decision_frequencies.counted(means, 8.0) == 1
    assert means.set_index("band")["mean"].to_dict() == {"low": 0.25, "high": 0.75}


def test_what_no_step_flips_counts_as_twice_the_lines_end():
    values = {"low": (1.0, 2.0), "high": (4.0, np.inf)}
    key = "line", "gradient"
    rows = [(*key, band, 8.0, -1.0, "flip radius", f"p{k}", 1.0, values[band][k]) for band in values for k in (0, 1)]
    table = pd.DataFrame(rows, columns=[*decision_frequencies.KEYS, "picture", "margin", "value"])
    found = decision_frequencies.contrasts(table).iloc[0]
    assert found["high less low"] == pytest.approx((2 + 6) / 2) and found["n"] == 2

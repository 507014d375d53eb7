"""The first-order study on three generated pictures: what it writes, that it goes on, and the laws of its numbers."""

import json

import numpy as np
import pandas as pd
import pytest

from gradspec.spectra import white_share
from studies import first_order


def test_first_order_predicts_what_it_measures_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--name", "frame", "--out", str(tmp_path), "--radii", "1e-4", "1", "--draws", "12"]
    first_order.main([*options, "--noises", "3"])
    endings = ".csv", "_claims.csv", "_power.csv", ".png", "_probability.png", "_prediction.png", ".json"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {f"frame{ending}" for ending in endings}
    means = pd.read_csv(tmp_path / "frame.csv").set_index(["target", "form", "gradient", "radius"])["mean"].sort_index()
    about = json.loads((tmp_path / "frame.json").read_text())
    assert about["pictures"] == 3 and about["forwards"] == 2 * 3 * (2 + 2 * 12) + 3 * (2 + 64)
    shares = pd.read_csv(tmp_path / "frame_power.csv").set_index(["target", "cutoff"])["share of power removed"]
    for target in ("logit", "probability"):
        assert (means[target, "ratio to opposite", "zero"] == 1).all() and shares[target].is_monotonic_increasing
        small = means[target, "measured over predicted"].xs(1e-4, level="radius")
        assert small.to_numpy() == pytest.approx(1, rel=0.35)  # 12 directions of each of three pictures
        assert means[target, "ratio to unfiltered", "σ = 1.429", 1e-4] > 10  # far from the paper's baseline
    noise = shares["white noise"]
    wanted = [white_share(64, 64, cutoff) for cutoff in noise.index]
    assert noise.to_numpy() == pytest.approx(wanted, abs=0.01)  # of bins but DC
    ratios = [means["white noise", "ratio to zero", f"σ = {cutoff:g}", 1e-4] for cutoff in noise.index]
    assert ratios == pytest.approx(np.sqrt(noise.to_numpy()), rel=0.1) and max(ratios) < 1.01
    claims = pd.read_csv(tmp_path / "frame_claims.csv")
    white = claims[
        (claims["target"] == "white noise") & (claims["form"] == "residual") & (claims["control"] == "Gaussian")
    ]
    assert (white["times"] > 1.2).all()  # the paper's criterion is met by noise
    assert claims["n"].eq(3).all()

    def never(*_, **__):
        raise AssertionError("a unit was computed again")

    before = (tmp_path / "frame.csv").read_bytes()
    monkeypatch.setattr(first_order, "taylor", never)
    monkeypatch.setattr(first_order.Study, "figure", lambda *_: None)
    first_order.main([*options, "--noises", "3"])
    assert (tmp_path / "frame.csv").read_bytes() == before


def test_ratios_and_claims_by_hand():
    rows = [
        ("no filter", np.nan, 3.0, 4.0, 0.0), ("σ = 2", 2.0, 5.0, 4.0, 4.0), ("zero", np.nan, 10.0, 10.0, 8.0),
        *((name, np.nan, 20.0, 20.0, 9.0) for name in ("permuted", "uniform", "Gaussian")),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["gradient", "cutoff", "residual", "mirrored", "linear"])
    found = first_order.with_ratios(table.assign(target="logit", picture="a", radius=1.0, score=0.0, label=0))
    row = found.set_index("gradient").loc["σ = 2"]
    assert row["removed"] == 0.25 and row["measured over predicted"] == 1  # 3² + 4² = 5²
    assert row["ratio to unfiltered"] == pytest.approx(5 / 3) and row["ratio to zero"] == 0.5
    assert row["ratio to zero, predicted"] == pytest.approx(5 / np.hypot(3, 8)) and row["ratio to opposite"] == 1.25
    times = first_order.claims(found).set_index(["form", "control"])["times"]
    assert times["residual", "zero"] == pytest.approx(2) and times["residual", "Gaussian"] == pytest.approx(4)
    assert times["ratio to opposite", "zero"] == pytest.approx(0.8)

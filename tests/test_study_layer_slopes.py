"""The study of slopes along the depth: smallest run, resuming, and its claims on profiles whose answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from layer_slopes_claims import (
    beside,
    claims_table,
    downsampling_claims,
    operators,
    stage_claims,
    stages,
    training_claims,
    verdict,
)

from gradspec import Audit
from studies import layer_slopes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    layer_slopes.main(["--smoke", "--out", str(folder)])
    return folder


def read(folder, ending=""):
    return pd.read_csv(folder / f"layer_slopes{ending}.csv")


def test_smoke_finds_the_jumps_of_max_pooling(run):
    found = read(run, "_operators")
    pools = found[(found["variant"] == "trained") & found["downsampling"]]
    assert pools["type"].tolist() == ["max pooling"] * 4 and (pools["from_height"] * 2 == pools["to_height"]).all()
    assert (pools["slope_change_low"].dropna() > 0).all() and (pools["new_power"] > 0.5).all()
    claims = read(run, "_claims").set_index(["claim", "variant", "quantity"])
    for quantity in ("new_power: downsampling less others", "share_change: downsampling less others"):
        assert claims.loc[("a", "trained", quantity), "low"] > 0
    row = claims.loc[("g", "avgpool", "slope: avgpool less trained, at the network's input")]
    assert row["mean"] < -0.2 and row["n"] == 3 and row["low"] < row["mean"] < row["high"]
    assert set(claims["holds"].dropna()) == {"few"}  # of three pictures
    kept = claims.loc[("e", "trained", "new_power of downsampling operators, as a share of untrained's")]
    assert 0 < kept["low"] < kept["high"] and not claims["expected"].eq("=0").any()


def test_profile_and_claims_agree_with_the_audits(run):
    profile = read(run)
    assert profile["variant"].unique().tolist() == ["trained", "untrained", "avgpool"]
    audits = run / ".units" / "layer_slopes" / "audits"
    slopes = {name: Audit.load(audits / name).input_slope[0] for name in ("trained", "avgpool")}
    inputs = profile[profile["call"] == "input"].set_index("variant")["slope_nyquist"]
    assert inputs["trained"] == pytest.approx(slopes["trained"], abs=1e-4)
    types = read(run, "_types").set_index(["variant", "kind"])["new_power"]
    expected = Audit.load(audits / "trained").culprits("type").set_index("type")["new_power"]
    assert types["trained", "max pooling"] == pytest.approx(expected["max pooling"], abs=1e-4)
    facts = json.loads((run / "layer_slopes.json").read_text())
    assert facts["pictures"] == 3 and facts["jumps above 0"]["trained"].endswith("of 3")


def test_complexities_are_relative_to_white_noise(run):
    found = layer_slopes.complexities(torch.randn(2, 6, 32, 32, generator=torch.Generator().manual_seed(1)))
    for name in ("laplacian", "png", "jpeg"):
        assert found[name] == pytest.approx([1, 1], abs=0.05)
    flat = torch.linspace(0, 1, 32)[:, None].expand(1, 1, 32, 32)
    smooth = layer_slopes.complexities(flat)
    assert max(smooth[name][0] for name in ("laplacian", "png", "jpeg")) < 0.15
    table = read(run, "_complexity")
    assert table["n"].unique().tolist() == [2] and table["height"].min() >= layer_slopes.LEAST
    half = torch.zeros(1, 1, 8, 8)
    half[..., ::2] = 1
    assert layer_slopes.complexities(half)["filled"] == pytest.approx([0.5])


def test_resumes_without_an_audit(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.glob("*.csv")}
    for name in ("audited", "looked_at"):
        monkeypatch.setattr(layer_slopes, name, lambda *args: pytest.fail("computed again"))
    monkeypatch.setattr(layer_slopes.Study, "figure", lambda *args: None)
    layer_slopes.main(["--smoke", "--out", str(run)])
    assert {path.name: path.read_bytes() for path in run.glob("*.csv")} == before


def profile(slopes, heights, variant="trained", pictures=3):
    """A chain of calls: slopes at their points from the prediction on, output and input of each in turn."""
    rows = []
    for place, (slope, height) in enumerate(zip(slopes, heights, strict=True)):
        call, point = f"call{place // 2}", "output" if place % 2 == 0 else "input"
        kind = "max pooling" if place % 2 and heights[place] > heights[place - 1] else "convolution"
        for picture in range(pictures):
            share = 0.5 + slope / 10
            new = share - 0.1 if kind == "max pooling" else 0.0
            facts = {"kind": kind, "type": kind, "slope": slope + picture / 100, "share": share, "excess": share - 0.8}
            named = {"variant": variant, "call": call, "point": point, "order": len(slopes) - place, "picture": picture}
            rows.append({**named, "height": height, "new_power": new if point == "input" else math.nan, **facts})
    frame = pd.DataFrame(rows)
    last = frame[frame["point"] == "input"].set_index("call")[["kind", "type"]].drop_duplicates()
    return frame.drop(columns=["kind", "type"]).join(last, on="call")


def test_claims_of_a_known_profile():
    # two stages of three calls; convolutions take 0.1 each, the pooling between them gives 0.5
    slopes = [0, -0.1, -0.1, -0.2, -0.2, 0.3, 0.3, 0.2, 0.2, 0.1]
    heights = [8, 8, 8, 8, 8, 16, 16, 16, 16, 16]
    frame = profile(slopes, heights)
    changes = operators(frame)
    assert changes.groupby("call")["slope_change"].first().round(9).tolist() == [-0.1, -0.1, 0.5, -0.1, -0.1]
    assert changes["downsampling"].sum() == 3  # once in each picture
    found = claims_table(iter([*downsampling_claims("trained", changes), *stage_claims("trained", frame, changes)]))
    means = found.set_index("quantity")["mean"]
    assert means["slope_change: downsampling less others"] == pytest.approx(0.6)
    assert means["slope_change of convolutions"] == pytest.approx(-0.1)
    inside = [np.std(slopes[:5]), np.std(slopes[5:])]
    assert means["spread of the slope inside a stage"] == pytest.approx(np.mean(inside))
    assert means["drift of the slope inside a stage"] == pytest.approx(-0.2)
    assert means["slope: last quarter of points less first"] == pytest.approx(0.15 + 0.05)
    assert stages(frame)["points"].tolist() == [5, 5] * 3
    other = beside(pd.concat([frame, frame.assign(variant="b", slope=frame["slope"] - 1)]), "trained", "b")
    assert len(other) == len(frame) and (other["slope_other"] - other["slope"]).round(9).unique() == [-1]


def test_what_training_leaves_is_a_ratio_of_means():
    rows = [("trained", 0.2), ("trained", 0.4), ("untrained", 0.5), ("untrained", 0.7)]
    facts = [
        {"variant": name, "picture": i % 2, "new_power": x, "slope_change": -x} for i, (name, x) in enumerate(rows)
    ]
    found = claims_table(training_claims(pd.DataFrame(facts).assign(downsampling=True), "trained", "untrained"))
    found = found.set_index("quantity")
    assert len(found) == 2  # no interval of two pictures lies above 0: no share
    many = pd.DataFrame(facts * 4).assign(picture=np.arange(16) // 4 * 2 + np.arange(16) % 2, downsampling=True)
    found = claims_table(training_claims(many, "trained", "untrained")).set_index("quantity")
    assert found.loc["new_power of downsampling operators, after training", "holds"] == "yes"
    share = found.loc["new_power of downsampling operators, as a share of untrained's"]
    assert share["mean"] == pytest.approx(0.5) and share["low"] < 0.5 < share["high"] and share["n"] == 8
    assert len(found) == 3  # the untrained slope does not rise: a share of it means nothing


def test_a_verdict_needs_the_whole_interval():
    def row(low, high):
        return layer_slopes.interval([low, high] * 3)

    assert verdict(">0", layer_slopes.interval([1.0, 1.1] * 2)) == "few"

    assert verdict(">0", row(1.0, 1.1)) == "yes" and verdict("<0", row(1.0, 1.1)) == "no"
    assert verdict("<0", row(-1.0, -1.1)) == "yes" and verdict(">0", row(-1.0, 1.1)) == "undecided"
    assert verdict("", row(1.0, 1.1)) == ""

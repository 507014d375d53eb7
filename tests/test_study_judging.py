"""The studies of methods, networks and cutoffs at their smallest size: what they write, and that they go on."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest

import gradspec as gs
from gradspec.cutoffs import CutoffFit
from gradspec.evaluation import Scores
from studies import compare_networks, cutoff_sources, judge_methods


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """What the study of the methods writes; few pictures tell no cutoff from another, which it says."""
    out = tmp_path_factory.mktemp("judged")
    quietly(judge_methods.main, ["--smoke", "--out", str(out)])
    return out


def quietly(main, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit_cutoff: The curve is flat")
        main(options)


def test_all_methods_are_judged_before_and_after(judged):
    table = pd.read_csv(judged / "judge_methods.csv").set_index(["attribution", "arm"])
    assert table["family"].value_counts().to_dict() == {"white": 42, "control": 4, "black": 4, "gray": 2}
    assert table["Faithfulness n"].tolist() == [2] * 52
    difference = (table["Insertion"] - table["Deletion"]).to_numpy()
    assert table["Faithfulness"].to_numpy() == pytest.approx(difference, abs=1e-4)
    chosen = pd.read_csv(judged / "judge_methods_cutoffs.csv").set_index("method")["cutoff"]
    for method, cutoff in chosen.items():
        assert table.loc[(method, "forgrad"), "cutoff"] == pytest.approx(cutoff, nan_ok=True)
    gains = pd.read_csv(judged / "judge_methods_gains.csv").set_index(["attribution", "arm", "against", "metric"])
    means = table["Faithfulness"]
    for method in chosen.index:
        gain = gains.loc[(method, "forgrad", "none", "Faithfulness"), "mean"]
        assert gain == pytest.approx(means[method, "forgrad"] - means[method, "none"], abs=1e-4)
    about = json.loads((judged / "judge_methods.json").read_text())
    assert not set(about["pictures"]["selection"]) & set(about["pictures"]["report"])
    assert about["forwards"] > 1000 and about["missing"] == []


def test_what_is_done_is_not_done_again(judged, monkeypatch):
    before = (judged / "judge_methods.csv").read_bytes()

    def never(*_args, **_options):
        raise AssertionError("computed again")

    monkeypatch.setattr(gs, "evaluate", never)
    monkeypatch.setattr(gs, "fit_cutoff", never)
    judge_methods.main(["--smoke", "--out", str(judged)])
    assert (judged / "judge_methods.csv").read_bytes() == before
    with pytest.raises(ValueError, match=r"other settings .*seed: 0, now 1"):
        judge_methods.main(["--smoke", "--out", str(judged), "--seed", "1"])


def test_networks_side_by_side(judged):
    compare_networks.main(["--smoke", "--out", str(judged)])
    scores = Scores.load(judged / ".units" / "judge_methods" / "scores")
    table = pd.read_csv(judged / "compare_networks.csv")
    assert len(table) == len(scores.summary()) and table["network"].unique().tolist() == ["methods"]
    ranking = pd.read_csv(judged / "compare_networks_ranking.csv")
    assert ranking["rank"].tolist() == [1, 2, 3, 4, 5] and ranking["after"].notna().all()
    grown = pd.read_csv(judged / "compare_networks_growth.csv").set_index("of")
    gains = scores.gains()
    starred = gains[gains["arm"] == "forgrad"]["mean"]
    assert grown["gain"].to_numpy() == pytest.approx([starred.mean()] * 2, abs=1e-4)  # of pictures, and of pairs
    assert grown["n"].tolist() == [2, 7]


def test_what_sets_the_cutoff(tmp_path):
    quietly(cutoff_sources.main, ["--smoke", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "cutoff_sources.csv")
    assert len(table) == 2 * 3 and set(table["pictures"]) == {"generated"}
    fit = CutoffFit.load(tmp_path / ".units" / "cutoff_sources" / "fit-demo-vit-generated-Saliency")
    row = table[(table["network"] == "demo:vit") & (table["method"] == "Saliency")].iloc[0]
    assert row["F"] == pytest.approx(fit.table["mean"].max(), abs=1e-4)
    split = pd.read_csv(tmp_path / "cutoff_sources_shares.csv")
    assert split["share"].sum() == pytest.approx(1, abs=1e-4) or split["share"].isna().all()
    assert (split["low"] <= split["high"]).all() or split["low"].isna().all()


def test_shares_of_squares_by_hand():
    # rows differ by 2, columns by 1, and one cell is 4 off: 4·1 + 4·.25 without it; with it by the definition
    assert cutoff_sources.shares(np.array([[0.0, 1.0], [2.0, 3.0]])) == pytest.approx([0.8, 0.2, 0.0])
    assert cutoff_sources.shares(np.array([[0.0, 0.0], [0.0, 4.0]])) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    cube = np.zeros((2, 3, 2)) + np.array([0.0, 3.0, 6.0])[None, :, None]
    assert cutoff_sources.shares(cube) == pytest.approx([0, 1, 0, 0])

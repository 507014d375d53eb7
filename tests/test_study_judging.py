"""The studies of methods, networks and cutoffs at their smallest size: what they write, and that they go on."""

from __future__ import annotations

import json
import warnings
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from torchvision.transforms.functional import to_pil_image

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
    chosen = pd.read_csv(judged / "judge_methods_cutoffs.csv").set_index(["method", "where"])["cutoff"]
    for (method, place), cutoff in chosen.items():
        arm = {"attribution": "forgrad", "gradient": "forgrad-gradient"}[place]
        assert table.loc[(method, arm), "cutoff"] == pytest.approx(cutoff, nan_ok=True)
    gains = pd.read_csv(judged / "judge_methods_gains.csv").set_index(["attribution", "arm", "against", "metric"])
    means = table["Faithfulness"]
    for method in chosen.index.levels[0]:
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


def test_networks_side_by_side(judged, capsys):
    compare_networks.main(["--out", str(judged), "--runs", "judge_methods", "judge_gone"])
    assert "judge_gone is left out" in capsys.readouterr().err
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
    split = pd.read_csv(tmp_path / "cutoff_sources_shares.csv").set_index("of")
    assert split["levels"].to_dict() == {"network": 2, "pictures": 1, "method": 3, "rest": 0}


def test_photographs_need_no_labels_that_a_network_knows(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k, image in enumerate(gs.demo.pictures(3, 80, seed=5).images):
        to_pil_image(image).save(folder / f"{k}.jpg")
    (folder / "labels.csv").write_text("file,index\n0.jpg,900\n1.jpg,901\n2.jpg,902\n")
    quietly(cutoff_sources.main, ["--smoke", "--images", str(folder), "--out", str(tmp_path / "out"), "--others"])
    table = pd.read_csv(tmp_path / "out" / "cutoff_sources.csv")
    assert table.groupby("pictures").size().to_dict() == {"generated": 3, "photographs": 3}
    fit = CutoffFit.load(tmp_path / "out" / ".units" / "cutoff_sources" / "fit-demo-vgg_max-photographs-Saliency")
    assert fit.pictures == ("0.jpg", "1.jpg", "2.jpg")


def test_shares_by_hand():
    # two rows that differ by 2, two columns by 1: 4 of 5 and 1 of 5, and no rest
    assert cutoff_sources.shares(np.array([[0.0, 1.0], [2.0, 3.0]])) == pytest.approx([0.8, 0.2, 0.0])
    # sums of squares 4, 4 and a rest of 4 with one degree of freedom: what each explains is what chance does
    assert cutoff_sources.shares(np.array([[0.0, 0.0], [0.0, 4.0]])) == pytest.approx([0, 0, 1])
    cube = np.zeros((2, 3, 2)) + np.array([0.0, 3.0, 6.0])[None, :, None]
    assert cutoff_sources.shares(cube) == pytest.approx([0, 1, 0, 0])
    noise = [cutoff_sources.shares(np.random.default_rng(k).normal(size=(7, 2, 3))) for k in range(300)]
    assert np.abs(np.mean(noise, 0)[:3]).max() < 0.02  # of nothing nothing, however many levels


def test_what_explains_the_cutoffs_is_found(tmp_path):
    """Cutoffs that only the network sets, seen through pictures that all agree."""
    grid = {"network": {"a": 1, "b": 4, "c": 7}, "pictures": ["x", "y"], "method": ["s", "t"]}
    fits = {}
    for (name, place), kind, method in product(grid["network"].items(), grid["pictures"], grid["method"]):
        scores = np.eye(len(cutoff_sources.CUTOFFS))[place] + np.zeros((5, 1))
        fits[name, kind, method] = SimpleNamespace(
            names=[f"{k}" for k in range(scores.shape[1])],
            per_image=pd.DataFrame(scores, columns=[f"{k}" for k in range(scores.shape[1])]),
        )
    found = cutoff_sources.explained(fits, 0, times=50).set_index("of")
    assert found["share"].tolist() == pytest.approx([1, 0, 0, 0]) and found["low"]["network"] == pytest.approx(1)
    assert found["chance"]["network"] < 0.8 and found["high"]["method"] == pytest.approx(0)


def test_filters_that_are_equal_are_one():
    assert [cutoff_sources._same_filter(c) for c in (1.0, 1.41, 2.0, 2.83, None)] == [1, 1, 2, np.sqrt(8), 64]

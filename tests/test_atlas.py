"""The atlas: one row for each network, however the run is spread, and the same as that network's own audit."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import gradspec as gs
from gradspec import plots
from gradspec.atlas import as_text, entry, ranked
from gradspec.cli import main
from gradspec.runs import Store

OPTIONS = ["--limit", "2", "--weights", "default"]


def atlas(*arguments):
    return main(["atlas", *arguments])


def test_an_entry_says_what_the_audit_says():
    net, pictures = gs.demo.load("vgg_max"), gs.demo.pictures(3)
    audit = gs.audit(net, (net.preprocess(pictures.images), pictures.labels), progress=False)
    row = entry(audit).iloc[0]
    assert (row["slope_nyquist"], row["se_nyquist"]) == audit.input_slope
    best = audit.culprits().iloc[0]
    assert (row["culprits"][0], row["culprit_types"][0]) == (best["call"], "max pooling")
    assert row["culprit_power"][0] == best["new_power"] and len(row["culprits"]) == 10
    assert row["stages"] == ["64 x 64", "32 x 32", "16 x 16", "8 x 8", "4 x 4"]
    first = audit.table[audit.table["stage"] == 0]["high_share"].mean()
    assert row["stage_shares"][0] == pytest.approx(first) and row["unseen"] == len(audit.unseen)


def test_networks_are_ranked_and_drawn():
    table = pd.concat([entry_of(slope) for slope in (-1.0, 0.1, np.nan, -0.5)], ignore_index=True)
    table["network"] = list("abcd")
    found = ranked(table)
    assert found["network"].tolist() == ["b", "d", "a", "c"] and found.columns[0] == "network"
    ax = plots.atlas(found).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "d", "a"]  # one without a slope is no mark
    assert as_text(found)["culprits"].tolist()[0] == "pool (max pooling) +0.50"
    assert "no network has a slope" in plots.atlas(found.iloc[3:]).texts[0].get_text()


def entry_of(slope):
    row = {"slope_nyquist": slope, "se_nyquist": 0.1, "high_share": 0.5, "n": 2, "culprits": ["pool"]}
    row |= {"culprit_types": ["max pooling"], "culprit_power": [0.5], "stages": ["8 x 8"], "stage_shares": [0.4]}
    return pd.DataFrame([row])


def test_the_command_goes_on_where_it_stopped_and_names_what_failed(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert atlas("demo:vgg_max", "demo:no_such_net", "--out", out, *OPTIONS) == 1
    said = capsys.readouterr()
    assert "1 unit(s) failed (demo:no_such_net: " in said.err and "demo:vgg_max" in said.out
    first = (tmp_path / "run" / "units").glob("*.parquet")
    times = {path: path.stat().st_mtime_ns for path in first}
    assert atlas("demo:vgg_*", "--out", out, *OPTIONS, "--json") == 0
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())  # not done again
    found = json.loads(capsys.readouterr().out)
    rows = found["atlas"]
    assert found["run"] == out and found["failed"] == []
    assert [row["network"] for row in rows] == ["demo:vgg_max", "demo:vgg_avg"]  # the whiter one first
    written = pd.read_csv(tmp_path / "run" / "atlas.csv")
    assert written["slope_nyquist"].tolist() == pytest.approx([row["slope_nyquist"] for row in rows], rel=1e-4)
    assert {path.name for path in (tmp_path / "run").glob("atlas.*")} == {"atlas.csv", "atlas.png", "atlas.svg"}
    assert atlas("demo:vgg_max", "--out", out, "--limit", "3") == 2
    assert 'other settings (command.weights: "default", now "none"; command.limit: 2, now 3)' in capsys.readouterr().err


def test_where_no_network_is_done_that_is_said(tmp_path, capsys):
    assert atlas("demo:no_such_net", "--out", str(tmp_path / "run"), "--json") == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["atlas"] == [] and [lost["unit"] for lost in found["failed"]] == ["demo:no_such_net"]
    assert "1 unit(s) failed (demo:no_such_net: " in said.err


def test_shards_merged_by_copying_are_the_whole(tmp_path, capsys):
    names = ["demo:vgg_max", "demo:vgg_avg", "demo:resnet_stride"]
    whole, halves = tmp_path / "whole", [tmp_path / "0", tmp_path / "1"]
    assert atlas(*names, "--out", str(whole), *OPTIONS) == 0
    for part, half in enumerate(halves):
        assert atlas(*names, "--out", str(half), *OPTIONS, "--shard", f"{part}/2") == 0
    assert "2 of 3 networks are not in" in capsys.readouterr().err
    for unit in (halves[1] / "units").iterdir():
        (halves[0] / "units" / unit.name).write_bytes(unit.read_bytes())
    assert atlas(*names, "--out", str(halves[0]), *OPTIONS) == 0
    one, other = (pd.read_csv(folder / "atlas.csv") for folder in (whole, halves[0]))
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)
    specs = [Store(folder).spec for folder in (whole, halves[0])]
    assert [spec.pop("created") for spec in specs] and specs[0] == specs[1]


def test_draws_are_averaged_and_their_scatter_shown(tmp_path, capsys):
    out, command = tmp_path / "run", ["demo:vgg_max", "demo:vgg_avg", "--limit", "2", "--size", "32"]
    assert atlas(*command, "--draws", "3", "--seed", "4", "--out", str(out)) == 0
    assert "sd_nyquist" in capsys.readouterr().out
    table = pd.read_csv(out / "atlas.csv").set_index("network")
    images = (gs.demo.pictures(2, size=32, seed=4).images - 0.45) / 0.2
    for name in command[:2]:
        audits = [gs.audit(gs.load_model(name, "none", seed=4 + k), images, progress=False) for k in range(3)]
        slopes = [audit.input_slope[0] for audit in audits]
        assert table.loc[name, "slope_nyquist"] == pytest.approx(np.mean(slopes), rel=1e-4)
        assert table.loc[name, "sd_nyquist"] == pytest.approx(np.std(slopes, ddof=1), rel=1e-4)
        powers = pd.concat([audit.culprits().set_index("call")["new_power"] for audit in audits], axis=1)
        assert table.loc[name, "culprits"].split(" ")[0] == powers.mean(axis=1).idxmax()
        assert table.loc[name, "draws"] == 3
    assert atlas(*command, "--weights", "default", "--draws", "2") == 2
    assert "--draws is of untrained weights" in capsys.readouterr().err


def test_a_network_without_a_gradient_says_so_and_the_others_are_told(tmp_path, capsys):
    """Some architectures start with a last layer of zeros: untrained there is no gradient."""
    (tmp_path / "zero.py").write_text(
        "from torch import nn\n\n\ndef load():\n    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n    net[-1].weight.data.zero_()\n"
        "    net.mean, net.std = (0.5,) * 3, (0.5,) * 3\n    return net\n"
    )
    name = f"{tmp_path / 'zero.py'}:load"
    assert (
        atlas(
            name, "demo:vgg_max", "--weights", "default", "--limit", "2", "--size", "32", "--out", str(tmp_path / "r")
        )
        == 0
    )
    table = pd.read_csv(tmp_path / "r" / "atlas.csv").set_index("network")
    assert np.isnan(table.loc[name, "slope_nyquist"]) and "zero" in table.loc[name, "note"]
    assert np.isfinite(table.loc["demo:vgg_max", "slope_nyquist"]) and "demo:vgg_max" in capsys.readouterr().out


def test_what_lies_far_out_is_named_at_the_edge():
    table = pd.concat([entry_of(slope) for slope in (-0.3, -0.2, -0.1, 0.0, 0.1, 3.9)], ignore_index=True)
    ax = plots.atlas(ranked(table.assign(network=list("abcdef")))).axes[0]
    assert ax.get_xlim()[1] < 0.2 and [text.get_text() for text in ax.texts] == ["3.90 →"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-*"], "No network fits 'no-such-*'"),
        (["demo:vit", "--shard", "2/2"], "--shard must be I/N"),
        (["demo:vit", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(arguments, said, tmp_path, capsys):
    assert atlas(*arguments, "--out", str(tmp_path / "run")) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_workers_give_the_same_table(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="workers need the extra cluster")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    names = ["demo:vgg_max", "demo:vgg_avg", "demo:resnet_stride", "demo:vit"]
    for folder, more in (("serial", []), ("workers", ["--scheduler", "local:2"])):
        assert atlas(*names, "--out", str(tmp_path / folder), *OPTIONS, *more) == 0
    one, other = (pd.read_csv(tmp_path / folder / "atlas.csv") for folder in ("serial", "workers"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)

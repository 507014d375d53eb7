"""Stability and scale on few pictures: what ten times the map does, what is shared, and that it goes on."""

import json

import pandas as pd
import pytest

import gradspec as gs
from gradspec.attributions import Saliency
from gradspec.metrics import Stability
from studies import stability_scale


def test_it_writes_stability_in_three_ways_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "scale"]
    stability_scale.main(options)
    names = {"scale.csv", "scale_gains.csv", "scale.png", "scale.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    table = pd.read_csv(tmp_path / "scale.csv").set_index(["method", "arm"])
    assert table.loc[("VarGrad", "none"), "printed"] == 0.003 and table["n"].eq(3).all()
    assert (table["length"] > 0).all() and (table["centred"] >= table["scale-free"]).sum() > len(table) / 2
    gains = pd.read_csv(tmp_path / "scale_gains.csv").set_index(["method", "arm", "against", "measure"]).sort_index()
    assert gains.loc[("Saliency", "abs", "none"), "verdict"].eq("same").all()
    facts = json.loads((tmp_path / "scale.json").read_text())
    units = facts["scale"]
    assert units["raw of maps times 10, over raw: least, most"] == pytest.approx([10, 10])
    assert units["scale-free of maps times 10: largest relative change"] < 1e-5
    assert facts["printed"]["stability worse"] == ["IntegratedGradients", "VarGrad", "SquareGrad"]
    assert facts["printed"]["μFidelity better"] == ["SquareGrad"] and len(facts["printed"]["μFidelity worse"]) == 4

    def computed(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(stability_scale, "maps_of", computed)
    monkeypatch.setattr(stability_scale.Study, "figure", lambda *_: None)
    stability_scale.main(options)


def test_shared_maps_give_the_stability_of_each_alone():
    net = gs.load_model("demo:vgg_max")
    pictures = gs.demo.pictures(1, seed=3)
    batch = net.preprocess(pictures.images), pictures.labels, ["one"]
    wanted = stability_scale.arms({"Saliency": Saliency()}, [3.0])
    metric, engine = Stability(samples=2), gs.Engine(net)
    found = stability_scale.distances(engine, batch, wanted, metric).set_index("arm")
    assert engine.backwards == 3  # of the picture and both copies, for all arms and changes
    for arm, attribution in wanted.items():
        alone = metric.distances(engine, *batch[:2], ids=batch[2], attribution=attribution)
        row = found.loc[arm.partition(": ")[2]]
        assert [row["raw"], row["scale_free"]] == pytest.approx([float(value) for value in alone], rel=1e-3)

"""Supplement A on trial: the verdicts that are known, a gradient that is known, and that it goes on."""

import json
import math

import pandas as pd
import pytest
import torch
from torch import nn

import gradspec as gs
from studies import propositions


def test_it_writes_every_statement_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "theory"]
    propositions.main(options)
    names = {"theory.csv", "theory_premise.csv", "theory.png", "theory_premise.png", "theory.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    table = pd.read_csv(tmp_path / "theory.csv")
    bound = table[table["where"] == "eq. 12"].iloc[0]
    assert bound["printed"] < 1e-280 and bound["holds"] == pytest.approx(0.37, abs=0.02) and bound["verdict"] == "fails"
    assert table[table["where"] == "eq. 1"]["verdict"].eq("holds").all()
    kept = table[table["quantity"] == "mean share kept"].iloc[0]
    assert kept["printed"] == pytest.approx(81 / 32**2, rel=1e-4) and kept["verdict"] == "holds"
    norms = table[table["quantity"].str.startswith("mean of ‖F(ε)‖², ")].set_index("where")
    assert norms["verdict"].to_dict() == {"statement": "fails", "proof": "holds"}
    lost = pd.read_csv(tmp_path / "theory_premise.csv")
    assert lost["lost"].is_monotonic_decreasing and lost["n"].eq(4).all() and lost["lost"].between(0, 1).all()
    assert (lost["break-even"] >= lost["lost"] - 1e-4).all()
    assert json.loads((tmp_path / "theory.json").read_text())["lost_at_fitted"].keys() == {"1", "1.76", "3.08", "10"}

    def computed(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("a2", "a3", "a4", "premise"):
        monkeypatch.setattr(propositions, name, computed)
    monkeypatch.setattr(propositions.Study, "figure", lambda *_: None)
    propositions.main(options)


def test_a_network_of_known_gradient_has_its_band_limit():
    wave = torch.cos(torch.arange(16) * 2 * math.pi * 3 / 16).expand(16, 16)  # three cycles/image
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 2, bias=False)).eval()
    net[1].weight.data[1] = wave.flatten()
    net.mean, net.std = (0.0,), (1.0,)
    batch = torch.rand(2, 1, 16, 16), torch.tensor([1, 1]), ["a", "b"]
    found = propositions.premise(gs.Engine(net), [batch], [2.0, 4.0])
    assert found["limit 0.0001"].tolist() == [3, 3]
    assert found["lost 2"].tolist() == pytest.approx([1, 1]) and found["lost 4"].tolist() == pytest.approx([0, 0])

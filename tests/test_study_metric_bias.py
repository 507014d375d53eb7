"""The bias of metrics on few pictures: what is written, that it goes on, and what must be so by construction."""

import json

import pandas as pd
import pytest
import torch

from studies import metric_bias


def test_it_writes_table_4_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "bias"]
    metric_bias.main(options)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert set(whole) == {
        "bias.csv", "bias_differences.csv", "bias_doses.csv", "bias.png", "bias_doses.png", "bias_maps.png", "bias.json"
    }  # fmt: skip
    means = pd.read_csv(tmp_path / "bias.csv").set_index(["map", "metric"])
    assert means.loc[("random high", "MuFidelity"), "paper"] == 0.31 and means["n"].eq(4).all()
    differences = pd.read_csv(tmp_path / "bias_differences.csv").set_index("metric")
    by_hand = means.loc["random high", "mean"] - means.loc["random low", "mean"]
    assert (differences["difference"] - by_hand).abs().max() < 1e-4
    parts = differences["difference"]
    assert abs(parts["Insertion"] - parts["Deletion"] - parts["Faithfulness"]) < 1e-4
    doses = pd.read_csv(tmp_path / "bias_doses.csv", keep_default_na=False)
    assert doses["dose"].tolist()[:3] == ["2", "8", "none"] and len(doses) == 2 * (3 * 3 + 1)
    facts = json.loads(whole["bias.json"])
    needed = facts["paper_faithfulness"]["spread (SD) of a difference needed for an interval that holds 0 at n = 1000"]
    assert needed == pytest.approx(0.059 * 1000**0.5 / 1.96, abs=1e-3)

    def computed(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(metric_bias, "metric_bias", computed)
    monkeypatch.setattr(metric_bias.Study, "figure", lambda *_: None)
    metric_bias.main(options)
    assert all((tmp_path / name).read_bytes() == whole[name] for name in whole if name.endswith(".csv"))


def test_low_passed_noise_is_the_same_noise_at_each_cutoff():
    images, labels = torch.zeros(2, 3, 16, 16), torch.tensor([0, 1])
    whole, low = (metric_bias.LowPassed(c, 3)(None, images, labels, ids=["a", "b"]) for c in (None, 2.0))
    spectrum = torch.fft.fft2(low).abs()
    assert torch.allclose(torch.fft.fft2(whole)[:, 0, 1], torch.fft.fft2(low)[:, 0, 1], atol=1e-4)
    assert spectrum[:, 3:13].max() < 1e-4 and not torch.equal(low[0], low[1])

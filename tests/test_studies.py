"""The studies end to end on few pictures: what they write, not what they find."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from gradspec import demo
from studies import compare_variants


def test_compare_variants_writes_its_tables_and_pictures(tmp_path, monkeypatch):
    options = ["--model", "demo:vgg_max", "--limit", "2", "--variants", "trained", "avgpool", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_variants.py", *options])
    compare_variants.main()
    names = {".csv", ".json", "_causal.csv"} | {f"_{n}.png" for n in ("profile", "gradients", "drift", "causal")}
    assert {path.name for path in tmp_path.iterdir()} == {f"variants_vgg_max{name}" for name in names}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            low, high = picture.convert("L").getextrema()
            assert min(picture.size) > 200 and high - low > 200, path.name  # drawn, from dark to white
    drift = pd.read_csv(tmp_path / "variants_vgg_max.csv")
    assert drift["variant"].tolist() == ["trained", "avgpool"] and drift["n"].tolist() == [2, 2]
    assert drift["slope_nyquist"].notna().all() and drift["agreement"][0] == 1
    arms = pd.read_csv(tmp_path / "variants_vgg_max_causal.csv")["arm"].value_counts()
    assert arms.to_dict() == {"one": 4, "all but one": 4, "none": 1, "all": 1}  # four max-poolings
    about = json.loads((tmp_path / "variants_vgg_max.json").read_text())
    assert about["variants"] == ["trained", "avgpool"] and about["pictures"] == 2


@pytest.fixture
def photographs(tmp_path):
    """A folder of eight generated pictures with labels."""
    pictures = demo.pictures(8, seed=5)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, image in enumerate(pictures.images):
        to_pil_image(image).save(folder / f"{i}.png")
    rows = [f"{i}.png,{label}" for i, label in enumerate(pictures.labels.tolist())]
    (folder / "labels.csv").write_text("\n".join(["file,index", *rows]) + "\n")
    return folder


def test_forgrad_gain_goes_on_where_it_stopped(tmp_path, photographs, monkeypatch):
    monkeypatch.syspath_prepend(Path(compare_variants.__file__).parent)
    from studies import forgrad_gain

    options = ["--model", "demo:vgg_max", "--images", str(photographs), "--pictures", "8", "--cutoffs", "3"]
    options += ["--samples", "2", "--halve", "2", "--name", "gain", "--out", str(tmp_path / "out")]
    forgrad_gain.main(options)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    scores = pd.read_csv(tmp_path / "out" / "gain_pictures.csv")
    assert scores.groupby(["half", "method"]).size().tolist() == [4] * 9  # the controls on the report pictures alone
    (tmp_path / "out" / "gain_pictures.csv").write_text(scores[:20].to_csv(index=False))  # as if it had been stopped
    forgrad_gain.main(options)
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert again["gain.csv"] == whole["gain.csv"]
    gains = pd.read_csv(tmp_path / "out" / "gain.csv")
    assert gains["none: n"].tolist() == [4] * 16 and gains["method"].nunique() == 4
    halves = json.loads(again["gain.json"])
    assert not set(halves["selection"]) & set(halves["report"])
    with pytest.raises(SystemExit, match="other settings"):
        forgrad_gain.main([*options, "--precision", "bf16"])

"""The sanity check before and after FORGrad on few pictures: verdicts, changes, the sheet, and that it goes on."""

import json

import numpy as np
import pandas as pd
from torchvision.transforms.functional import to_pil_image

from gradspec import demo
from studies import sanity_check


def test_it_writes_verdicts_and_goes_on(tmp_path, monkeypatch):
    options = ["--smoke", "--out", str(tmp_path), "--name", "check"]
    sanity_check.main(options)
    endings = ["", "_changes", "_stages"], ["", "_stages", "_stages_forgrad", "_maps"]
    names = {f"check{e}.{kind}" for kind, found in zip(("csv", "png"), endings, strict=True) for e in found}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names | {"check.json"}
    table = pd.read_csv(tmp_path / "check.csv").set_index(["method", "arm", "measure"]).sort_index()
    assert table.loc[("centre prior", "none"), "verdict"].eq("alike").all()
    assert np.allclose(table["likeness"] - table["chance"], table["excess"], atol=1e-4)
    assert table.loc[("Saliency", "none")].equals(table.loc[("Saliency", "abs")])  # it is no less than 0
    assert table["verdict"].eq("fails").eq(table["low"] > 0).all()
    assert table.loc["GradCAM"].index.get_level_values("arm").unique().tolist() == ["abs", "map 2", "none"]
    moved = pd.read_csv(tmp_path / "check_changes.csv", keep_default_na=False)
    assert moved["changed"].eq(moved["before"] != moved["after"]).all()
    facts = json.loads((tmp_path / "check.json").read_text())
    listed = sum(one["changed"] for one in facts["changed_verdicts"].values())
    assert listed == moved["changed"].sum() and len(facts["layers"]) == 2
    written = {name: (tmp_path / name).read_bytes() for name in names if name.endswith(".csv")}

    def computed(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(sanity_check, "sanity", computed)
    monkeypatch.setattr(sanity_check.Study, "figure", lambda *_: None)
    sanity_check.main(options)
    assert all((tmp_path / name).read_bytes() == content for name, content in written.items())


def test_no_smooth_gradient_times_a_photograph_is_drawn(tmp_path, monkeypatch):
    pictures, folder, drawn = demo.pictures(5, seed=5), tmp_path / "photographs", []
    folder.mkdir()
    for i, image in enumerate(pictures.images):
        to_pil_image(image).save(folder / f"{i}.png")
    rows = [f"{i}.png,{label}" for i, label in enumerate(pictures.labels.tolist())]
    (folder / "labels.csv").write_text("\n".join(["file,index", *rows]) + "\n")
    draw = sanity_check.draw_sheet

    def watched(table, title):
        figure = draw(table, title)
        drawn.append([axis.get_ylabel().replace("\n", ": ") for axis in figure.axes if axis.get_ylabel()])
        return figure

    monkeypatch.setattr(sanity_check, "draw_sheet", watched)
    options = ["--smoke", "--out", str(tmp_path), "--only", "Saliency", "GradientInput", "IntegratedGradients"]
    sanity_check.main([*options, "--images", str(folder), "--name", "photographs"])
    sanity_check.main([*options, "--name", "generated"])
    kept = ["Saliency", "Saliency: map 2", "Saliency: gradient 2", "GradientInput", "GradientInput: map 2"]
    kept += ["IntegratedGradients", "IntegratedGradients: map 2", "centre prior"]
    both = [*kept[:5], "GradientInput: gradient 2", *kept[5:7], "IntegratedGradients: gradient 2", kept[7]]
    assert drawn == [kept, both]

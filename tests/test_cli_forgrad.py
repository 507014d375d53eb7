"""`gradspec fit`, `evaluate` and `explain --cutoff`: what they write is what the library finds.

The network is a small one from a file; drawing and the page are stand-ins in all tests but one.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import gradspec as gs
from gradspec import cli, demo
from gradspec.attributions import GradientInput, Saliency
from gradspec.commands import showing
from gradspec.commands.pictures import Held, held, parted, without
from gradspec.commands.showing import _aligned, _interval
from gradspec.cutoffs import fit, fit_cutoff
from gradspec.evaluation import evaluate
from gradspec.forgrad import FORGrad
from gradspec.metrics import Faithfulness, Insertion
from gradspec.surgery import average_pooled
from gradspec.trials import Trials, tried

NET = """
import torch
from torch import nn


def load():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU()
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for parameter in net.parameters():
        parameter.data *= 3
    net.mean, net.std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.25)
    return net
"""
SIZE = ["--size", "16"]
GRID = ["--cutoffs", "4", "2", *SIZE]
CUTOFFS = (None, 4.0, 2.0)
SWAPS = 5e-3  # what a score may change where other batches round otherwise: two pixels change places in a ranking


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a network, and twelve labelled pictures one of which cannot be read."""
    folder = tmp_path_factory.mktemp("forgrad")
    (folder / "net.py").write_text(NET)
    (folder / "pictures").mkdir()
    drawn = demo.pictures(12, size=16, seed=5)
    names = [f"p{i:02d}.png" for i in range(12)]
    for name, image in zip(names, drawn.images, strict=True):
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / "pictures" / name)
    (folder / "pictures" / "p11.png").write_text("no picture")
    rows = [f"{name},{label}" for name, label in zip(names, drawn.labels.tolist(), strict=True)]
    (folder / "pictures" / "labels.csv").write_text("\n".join(["file,index", *rows]))
    return folder


@pytest.fixture
def name(work):
    """What the commands call the network."""
    return f"{work / 'net.py'}:load"


@pytest.fixture
def net(name):
    return gs.load_model(name)


@pytest.fixture
def pictures(work):
    return work / "pictures"


def data_of(net, pictures, names=None):
    """Inputs, labels and names of the pictures that can be read, or of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((x, y, ids),) = gs.load_images(pictures, net, size=16)
    chosen = [ids.index(each) for each in names or ids]
    assert y is not None
    return x[chosen], y[chosen], [ids[k] for k in chosen]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(showing, "draw", lambda trials, folder: [])
    monkeypatch.setattr(gs, "report", lambda folder, out=None: Path(folder, "report.html"), raising=False)

    def run(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = cli.main([*map(str, args)])
        return code, *capsys.readouterr()

    return run


# ---- fit -------------------------------------------------------------------------------------


def test_fits_are_the_library_s_own_for_every_variant_and_method(run, name, net, pictures):
    wanted = [name, "--images", pictures, "--method", "saliency,gradient-input", *GRID, "--out", "run"]
    code, out, err = run("fit", *wanted, "--variants", "trained", "avgpool-stride", "avgpool")
    assert code == 0 and err.count("1 picture(s) skipped: p11.png: not a picture") == 1
    found = Trials.load("run")
    assert [trial.variant for trial in found.trials] == ["trained", "avgpool-stride", "avgpool"]
    x, y, names = data_of(net, pictures)
    for variant, changed in {"trained": net, "avgpool": average_pooled(net, inputs=x[:1])[0]}.items():
        trial = found.of(variant)
        assert trial.accuracy == pytest.approx((changed(x).argmax(1) == y).float().mean().item()) and not trial.failed
        for method in (Saliency(), GradientInput()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own = fit_cutoff(changed, method, [(x, y, names)], cutoffs=CUTOFFS, progress=False)
            fit = found.fit(variant, type(method).__name__)
            pd.testing.assert_frame_equal(fit.per_image, own.per_image, atol=SWAPS)
            pd.testing.assert_frame_equal(fit.controls, own.controls, atol=SWAPS)
            assert fit.cutoff == own.cutoff and fit.model == own.model
    reason = found.of("avgpool-stride").reason
    assert "no operator" in reason and f"avgpool-stride: {reason}" in out  # a row with its reason
    row = next(line.split() for line in out.splitlines() if line.split()[:2] == ["trained", "Saliency"])
    table = found.table().set_index(["variant", "method"]).loc["trained", "Saliency"]
    assert f"{table['best']:.3f}" in row and f"{table['accuracy']:.3f}" == row[-1]
    assert f"{table['gain']:+.3f} [{table['low']:+.3f}, {table['high']:+.3f}]" in out
    assert out.endswith("fits saved to run, their page: run/report.html\n")
    assert found.spec["command"]["images"] == str(pictures) and found.spec["methods"]["Saliency"]["name"] == "Saliency"
    assert len(pd.read_csv("run/fits.csv")) == 5


def test_without_images_pictures_are_drawn_and_the_first_variant_names_them(run):
    wanted = ["demo:vgg_max", "--variants", "avgpool", "trained", "--limit", "3", "--cutoffs", "5", "--size", "24"]
    code, out, err = run("fit", *wanted, "--out", "run")
    assert code == 0 and "3 generated pictures, 24 x 24, labelled by the network's predictions" in err
    found, net = Trials.load("run"), gs.load_model("demo:vgg_max")
    x = (demo.pictures(3, size=24).images - 0.45) / 0.2
    labels = average_pooled(net, inputs=x[:1])[0](x).argmax(1).tolist()
    for trial in found.trials:
        assert trial.fits["Saliency"].per_image["label"].tolist() == labels
        assert len(trial.fits["Saliency"].pictures) == 3
        assert np.isnan(trial.accuracy)  # of predictions it would say nothing
    assert "accuracy" not in out


def test_settings_reach_the_fit(run, name, pictures):
    options = "--where gradient --shape square --search grid --seed 3 --precision float32 --batch-size 7 --limit 4"
    code, _, _ = run("fit", name, "--images", pictures, *GRID, *options.split(), "--out", "run")
    fit = tried("run").fit("trained", "Saliency")
    assert code == 0 and (fit.where, fit.shape, fit.search, fit.cutoffs) == ("gradient", "square", "grid", CUTOFFS)
    assert len(fit.pictures) in (3, 4)  # one of twelve cannot be read


def test_an_interrupt_leaves_the_finished_units(run, name, pictures, monkeypatch):
    real, calls = fit.tried_cutoffs, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(fit, "tried_cutoffs", interrupted)
    wanted = [name, "--images", pictures, "--limit", "5", *GRID, "--method", "saliency", "gradientinput"]
    wanted += ["--variants", "trained", "avgpool", "--pictures-per-unit", "3", "--out", "run"]
    code, out, err = run("fit", *wanted)
    assert (code, out) == (130, "") and err.splitlines()[-1] == "gradspec: interrupted"
    assert "finished units are in run: the same command with --out run goes on from there" in err
    found = Trials.load("run")
    assert [list(trial.fits) for trial in found.trials] == [["Saliency"], []]
    assert found.of("trained").failed == {"GradientInput": "1 of 2 units are not done yet"}
    units = {path: path.stat().st_mtime_ns for path in Path("run/units").iterdir()}
    monkeypatch.setattr(fit, "tried_cutoffs", real)
    code, out, _ = run("fit", *wanted)
    assert code == 0 and Trials.load("run").fitted == 4
    assert all(path.stat().st_mtime_ns == when for path, when in units.items())  # none was done again
    code, _, err = run("fit", *wanted[:-2], "--seed", "1", "--out", "run")
    assert code == 2 and "holds a run of other settings (command.seed: 0, now 1): name another" in err


MLP = """
from torch import nn


def load():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).eval()
    net.mean, net.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return net
"""


def test_a_method_that_does_not_apply_is_a_row_and_the_others_go_on(run, pictures, tmp_path):
    tmp_path.joinpath("mlp.py").write_text(MLP)
    wanted = ["mlp.py:load", "--images", pictures, *GRID]
    code, out, err = run("evaluate", *wanted, "--method", "gradcam", "saliency", "--out", "run")
    assert code == 1 and "unit(s) failed (fit, trained, GradCAM, pictures 0 to 5 and 1 more: Found no layer" in err
    trial = Trials.load("run").of("trained")
    assert "Found no layer" in trial.failed["GradCAM"] and list(trial.fits) == ["Saliency"]
    assert out.count("trained, GradCAM: Found no layer") == 1
    code, out, err = run("fit", *wanted, "--method", "gradcam", "--out", "none")
    assert code == 1 and "No cutoff could be fitted: Found no layer" in err and "Traceback" not in err
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in Path("none/errors").iterdir()]
    assert len(kept) == 1 and "Found no layer" in kept[0]["reason"] and "Traceback" in kept[0]["traceback"]


def test_one_cutoff_for_all_goes_on_without_a_method_that_has_none(run, pictures, tmp_path):
    tmp_path.joinpath("mlp.py").write_text(MLP)
    wanted = ["mlp.py:load", "--images", pictures, *GRID, "--metrics", "faithfulness", "--arms", "abs", "shared"]
    code, out, _ = run("evaluate", *wanted, "--method", "gradcam", "saliency", "--out", "run", "--json")
    found = json.loads(out)
    assert code == 1 and {row["method"] for row in found["left_out"]} == {"GradCAM"}
    assert {lost["unit"].split(", ")[2] for lost in found["failed"]} == {"GradCAM"}
    rows = {(row["attribution"], row["arm"]) for row in Trials.load("run").scored["trained"].spec["rows"]}
    assert {("Saliency", "shared"), ("Saliency", "forgrad"), ("centre prior", "control")} <= rows


def test_pictures_that_were_changed_are_not_taken_for_the_same(run, name, pictures, tmp_path):
    shutil.copytree(pictures, mine := tmp_path / "mine")
    wanted = ["fit", name, "--images", mine, *GRID, "--limit", "6", "--pictures-per-unit", "3", "--out", "run"]
    assert run(*wanted, "--shard", "0/2")[0] == 0
    table = (mine / "labels.csv").read_text()
    head, *rows = table.splitlines()
    others = [f"{name},{(int(label) + 1) % 10}" for name, label in (row.split(",") for row in rows)]
    (mine / "labels.csv").write_text("\n".join([head, *others]))
    code, _, err = run(*wanted)
    assert code == 2 and "run holds a run of other settings (pictures_hash: " in err
    (mine / "labels.csv").write_text(table)
    mine.rename(tmp_path / "moved")  # where they lie is not what they are
    wanted[3] = tmp_path / "moved"
    assert run(*wanted)[0] == 0 and Trials.load("run").fitted == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fit", "--method", "smothgrad"], "No method is called 'smothgrad' (nearest: SmoothGrad"),
        (["fit", "--method"], "--method"),
        (["fit", "--variants", "avgpol"], "No variant is called 'avgpol'"),
        (["fit", "--cutoffs"], "--cutoffs"),
        (["fit", "--cutoffs", "0"], "Expected finite cutoffs above 0"),
        (["fit", "--cutoffs", "5", "5"], "Expected each cutoff once"),
        (["fit", "--cutoffs", "x"], "--cutoffs"),
        (["fit", "--limit", "0"], "--limit must be at least 1"),
        (["fit", "--where", "gradient", "--method", "gradcam"], "Expected a white-box method for where='gradient'"),
        (["fit", "--where", "middle"], "--where"),
        (["evaluate", "--select", "1"], "--select must lie between 0 and 1"),
        (["evaluate", "--select", "0"], "--select must lie between 0 and 1"),
        (["evaluate", "--metrics", "deletions"], "No metric is called 'deletions'; there are: Deletion, Faithfulness"),
        (["evaluate", "--metrics", "pointing-game"], "No metric is called 'pointing-game'"),
        (["evaluate", "--arms", "both"], "--arms"),
        (["evaluate", "--fits", "nowhere"], "but nowhere has no spec.json"),
        (["evaluate", "--fits", "nowhere", "--search", "race"], "--search is for fitting, but --fits nowhere brings"),
    ],
)
def test_a_wrong_argument_is_a_sentence_before_any_work(run, tmp_path, monkeypatch, args, says):
    monkeypatch.setattr(gs, "load_model", lambda *a, **k: pytest.fail("the network was loaded"))
    code, out, err = run(args[0], "demo:vgg_max", *args[1:])
    assert (code, out) == (2, "") and "Traceback" not in err and says in " ".join(err.split())
    assert not list(tmp_path.iterdir())


# ---- evaluate --------------------------------------------------------------------------------


def test_cutoffs_are_fitted_on_one_part_and_reported_on_the_other(run, name, net, pictures):
    wanted = [name, "--images", pictures, "--select", "0.4", *GRID, "--metrics", "insertion", "faithfulness"]
    code, out, _ = run("evaluate", *wanted, "--seed", "2", "--out", "run")
    assert code == 0
    found = Trials.load("run")
    fit, scores = found.fit("trained", "Saliency"), found.scored["trained"]
    selected, reported = set(fit.pictures), set(scores.pictures)
    assert not selected & reported and selected | reported == {f"p{i:02d}.png" for i in range(11)}
    assert len(selected) in (4, 5)  # 0.4 of twelve, one of which cannot be read
    x, y, names = data_of(net, pictures, list(scores.pictures))
    metrics, fits = {"Insertion": Insertion(), "Faithfulness": Faithfulness()}, {"Saliency": fit}
    own = evaluate(net, [(x, y, names)], {"Saliency": Saliency()}, metrics, fits=fits, seed=2, progress=False)
    pd.testing.assert_frame_equal(scores.table, own.table, atol=SWAPS)
    assert scores.accuracy == pytest.approx((net(x).argmax(1) == y).float().mean().item())
    gain = scores.gains("Faithfulness", "centre prior").set_index("arm").loc["forgrad"]
    assert f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in out
    assert {"fits.csv", "gains.csv", "summary.csv"} <= {path.name for path in Path("run").iterdir()}
    assert run("evaluate", *wanted, "--seed", "2", "--out", "again")[0] == 0
    assert Trials.load("again").fit("trained", "Saliency").pictures == fit.pictures
    assert run("evaluate", *wanted, "--seed", "3", "--out", "other")[0] == 0
    assert set(Trials.load("other").fit("trained", "Saliency").pictures) != selected


def test_pictures_of_given_fits_are_left_out(run, name, pictures):
    assert run("fit", name, "--images", pictures, *GRID, "--limit", "5", "--out", "fits")[0] == 0
    wanted = [name, "--images", pictures, "--fits", "fits", *SIZE, "--metrics", "faithfulness", "--out"]
    code, out, err = run("evaluate", *wanted, "run", "--method", "saliency", "gradientinput")
    found = Trials.load("run")
    fit, scores = found.fit("trained", "Saliency"), found.scored["trained"]
    assert code == 0 and f"{len(fit.pictures)} pictures on which cutoffs were fitted are left out" in err
    pd.testing.assert_frame_equal(fit.per_image, Trials.load("fits").fit("trained", "Saliency").per_image)
    assert not set(scores.pictures) & set(fit.pictures) and len(scores.pictures) + len(fit.pictures) == 11
    assert "a fit of GradientInput for the variant trained, but it has none" in out
    arms = {(row["attribution"], row["arm"]) for row in scores.spec["rows"]}
    assert ("GradientInput", "none") in arms and ("GradientInput", "forgrad") not in arms
    code, _, err = run("evaluate", *wanted, "all", "--limit", "3")  # a smaller limit draws a part of a larger one's
    assert code == 2 and "pictures were used to fit the cutoffs: name other ones" in err
    assert not Path("all").exists()


def test_one_picture_cannot_be_parted(run, name, pictures):
    code, _, err = run("evaluate", name, "--images", pictures, "--limit", "1", *GRID, "--out", "run")
    assert code == 2 and "Expected at least two pictures" in err


def test_everything_is_drawn_and_stands_in_the_page(monkeypatch, tmp_path, name, pictures):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["evaluate", name, "--images", str(pictures), *GRID, "--out", "drawn"]) == 0
    names = {path.name for path in Path("drawn/figures").iterdir()}
    parts = {"cutoffs", "gains", "slopes", "time", "maps"}
    assert names == {f"{part}-01-trained.{kind}" for part in parts for kind in ("png", "svg")}
    page = Path("drawn/report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and page.count("<img") == 1 and "could not be drawn" not in page
    assert cli.main(["report", "drawn", "--out", "again.html"]) == 0
    assert Path("again.html").read_text(encoding="utf-8") == page


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_parts_are_disjoint_and_together_the_whole(count, share, seed):
    whole = Held(torch.arange(count)[:, None], torch.arange(count) * 2, tuple(f"{i}" for i in range(count)), 7)
    first, second = parted(whole, share, seed)
    assert set(first.ids) | set(second.ids) == set(whole.ids) and not set(first.ids) & set(second.ids)
    assert len(first) == min(max(round(share * count), 1), count - 1)
    for part in (first, second):
        assert list(map(int, part.ids)) == sorted(map(int, part.ids))
        rows = [(x, y, name) for images, labels, ids in part for x, y, name in zip(images, labels, ids, strict=True)]
        assert [(int(x), int(y)) for x, y, _ in rows] == [(int(name), 2 * int(name)) for _, _, name in rows]
    assert [part.ids for part in parted(whole, share, seed)] == [first.ids, second.ids]


def test_pictures_are_left_out_by_name():
    whole = held(torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)))
    rest, gone = without(whole, {whole.ids[1], "another"})
    assert gone == 1 and rest.ids == (whole.ids[0], *whole.ids[2:])
    assert torch.equal(rest.images, whole.images[[0, 2, 3]])
    with pytest.raises(ValueError, match="All 4 pictures were used"):
        without(whole, whole.ids)


# ---- explain ---------------------------------------------------------------------------------


def maps_in(folder):
    """The manifest, and by picture the map and the row."""
    manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
    rows = {row["picture"]: row for row in manifest["pictures"]}
    return manifest, {name: np.load(Path(folder, row["maps"]["saliency"]["map"])) for name, row in rows.items()}, rows


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--cutoff", "5"], (5.0, "attribution", "disk")),
        (["--cutoff", "4.5", "--where", "gradient", "--shape", "gaussian"], (4.5, "gradient", "gaussian")),
    ],
)
def test_a_cutoff_gives_the_maps_of_forgrad(run, name, net, pictures, options, settings):
    files = [pictures / "p00.png", pictures / "p01.png"]
    assert run("explain", name, *files, *options, *SIZE, "--out", "run")[0] == 0
    manifest, found, rows = maps_in("run")
    method = FORGrad(Saliency(), *settings)
    for picture, values in found.items():
        own = method(net, data_of(net, pictures, [picture])[0], torch.tensor([rows[picture]["label"]]))[0].numpy()
        np.testing.assert_allclose(values, own, atol=1e-4 * np.abs(own).max())
    said = {"name": "FORGrad", "attribution": {"name": "Saliency", "target": "label_logit"}, "cutoff": settings[0]}
    assert manifest["methods"]["saliency"].items() >= said.items() and len(found) == 2


def test_fits_bring_their_own_mode_for_each_variant_and_method(run, name, net, pictures):
    options = [*SIZE, "--variants", "trained", "avgpool", "--out"]
    how = ["--cutoffs", "4", "2", "--where", "gradient", "--shape", "square", "--limit", "5"]
    assert run("fit", name, "--images", pictures, *how, *options, "fits")[0] == 0
    one = ["explain", name, pictures / "p03.png", "--cutoff"]
    code, out, _ = run(*one, "fits", *options, "run")
    assert code == 0 and [line for line in out.splitlines() if line.endswith(":")] == ["trained:", "avgpool:"]
    fits, (x, _, _) = Trials.load("fits"), data_of(net, pictures, ["p03.png"])
    nets = {"trained": net, "avgpool": average_pooled(net, inputs=x)[0]}
    for folder, variant in (("01-trained", "trained"), ("02-avgpool", "avgpool")):
        manifest, found, rows = maps_in(Path("run", folder))
        method = FORGrad(Saliency(), fits.fit(variant, "Saliency").cutoff, "gradient", "square")
        own = method(nets[variant], x, torch.tensor([rows["p03.png"]["label"]]))[0].numpy()
        np.testing.assert_allclose(found["p03.png"], own, atol=1e-4 * np.abs(own).max())
        assert manifest["variant"] == variant and manifest["methods"]["saliency"]["where"] == "gradient"
    fits.fit("avgpool", "Saliency").save("alone")
    assert run(*one, "alone", *SIZE, "--out", "one")[0] == 0  # a fit that was saved alone
    for more, says in (
        (["--method", "gradientinput"], "a fit of GradientInput for the variant trained, but it has none (there are:"),
        (["--where", "attribution"], "for which the cutoff was fitted, got where='attribution'"),
        (["--variants", "blurpool"], "a variant that was fitted (trained, avgpool), got 'blurpool'"),
    ):
        code, _, err = run(*one, "fits", *SIZE, *more, "--out", "bad")
        assert code == 2 and says in " ".join(err.split()) and not Path("bad").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--cutoff", "5", "--where", "gradient", "--method", "rise"],
            "Expected a white-box method for where='gradient'",
        ),
        (["--cutoff", "-5"], "Expected a cutoff of 0 cycles/image or more"),
        (["--cutoff", "nowhere"], "but nowhere has no spec.json"),
        (["--where", "gradient"], "--where and --shape say how to filter, but there is no --cutoff"),
        (["--variants", "avgpol"], "No variant is called 'avgpol'"),
    ],
)
def test_a_wrong_filter_is_refused_before_any_work(run, pictures, monkeypatch, tmp_path, options, says):
    monkeypatch.setattr(gs, "load_model", lambda *a, **k: pytest.fail("the network was loaded"))
    code, out, err = run("explain", "demo:vgg_max", pictures / "p00.png", *options)
    assert (code, out) == (2, "") and says in " ".join(err.split()) and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_variant_that_does_not_apply_leaves_the_others(run, name, pictures):
    variants = ["--variants", "avgpool-stride", "avgpool"]
    code, out, err = run("explain", name, pictures / "p00.png", *variants, *SIZE, "--out", "run")
    assert code == 0 and "variant avgpool-stride does not apply" in err and "avgpool:" in out
    assert [path.name for path in Path("run").iterdir()] == ["02-avgpool"]


# ---- text ------------------------------------------------------------------------------------


def test_columns_are_aligned_and_empty_ones_left_out():
    columns = {"variant": ["a", "longer"], "n": ["5", "12"], "flat": ["", ""], "accuracy": ["-", "-"]}
    assert _aligned(columns) == "variant   n\na         5\nlonger   12"
    assert _interval({"gain": 0.05, "low": -0.01, "high": 0.1}) == "+0.050 [-0.010, +0.100]"
    assert _interval({"gain": 0.05, "low": float("nan"), "high": float("nan")}) == "+0.050" and _interval(None) == "-"


def test_commands_stand_in_the_help(run):
    assert {"fit", "evaluate", "explain", "demo"} <= set(run("--help")[1].split())

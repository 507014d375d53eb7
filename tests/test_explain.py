"""`gs.explain` and `gradspec explain`: maps equal the attribution's own, files hold what the manifest says."""

import hashlib
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gradspec as gs
from gradspec import cli, demo, engine, explanations, names
from gradspec.attributions import Attribution, GradCAM, GradientInput, Saliency, SmoothGrad
from gradspec.explaining import pictures_at_once
from gradspec.images import as_rgb, pixels_of
from gradspec.names import method_types


@pytest.fixture
def net():
    """A network for pictures of any size."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*layers).eval()
    net.mean, net.std = (0.0,), (1.0,)
    return net


def batches(*shapes, labelled=False):
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(*shape, generator=generator) for shape in shapes]
    return [(x, torch.arange(len(x)) % 5) for x in drawn] if labelled else drawn


# ---- gs.explain ------------------------------------------------------------------------------


def test_batches_are_taken_one_at_a_time_and_only_when_asked_for(net):
    taken = []

    def source():
        for i, batch in enumerate(batches(*[(2, 3, 9, 8)] * 4, labelled=True)):
            taken.append(i)
            yield batch

    found = gs.explain(net, Saliency(), source(), progress=False)
    assert taken == []
    for i, (explained, (images, labels)) in enumerate(
        zip(found, batches(*[(2, 3, 9, 8)] * 4, labelled=True), strict=True)
    ):
        assert taken == list(range(i + 1))
        assert torch.equal(explained.images, images) and torch.equal(explained.labels, labels)
        assert explained.maps.shape == (2, 9, 8) and torch.equal(explained.maps, Saliency()(net, images, labels))


def test_without_labels_the_prediction_is_explained(net):
    images = torch.cat(batches((40, 3, 7, 11)))
    (explained,) = gs.explain(net, GradientInput(), images, progress=False)
    predicted = net(images).argmax(1)
    assert len(predicted.unique()) > 1
    assert torch.equal(explained.labels, predicted)
    torch.testing.assert_close(explained.maps, GradientInput()(net, images, predicted))


def test_sizes_may_differ_from_batch_to_batch_and_random_numbers_follow_the_ids(net):
    data = batches((2, 3, 8, 8), (1, 3, 13, 6), (3, 3, 5, 7), labelled=True)
    method = SmoothGrad(samples=3)
    named = [(x, y, [f"{i}-{j}" for j in range(len(x))]) for i, (x, y) in enumerate(data)]
    for given, (x, y, ids), found in zip(data, named, gs.explain(net, method, named, progress=False), strict=True):
        assert found.ids == ids
        torch.testing.assert_close(found.maps, method(net, x, y, ids=ids), rtol=1e-5, atol=1e-7)  # batches differ
        assert not torch.allclose(found.maps, method(net, *given))


def test_batch_size_is_of_passes_and_an_engine_is_used_as_it_is(net):
    data = batches((5, 3, 8, 9), labelled=True)
    kept = gs.Engine(net, batch_size=2, progress=False)
    (one,), (other,) = (
        list(gs.explain(model, SmoothGrad(samples=4), data, **options))
        for model, options in ((kept, {}), (net, {"batch_size": 3, "progress": False}))
    )
    assert len(one.maps) == len(other.maps) == 5
    assert (kept.forwards, kept.backwards) == (20, 20)
    torch.testing.assert_close(one.maps, other.maps, rtol=1e-5, atol=1e-7)
    for setting in ({"batch_size": 4}, {"precision": "bf16"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="beside an Engine"):
            gs.explain(kept, Saliency(), data, **setting)


def test_tensors_are_cut_by_what_fills_a_batch(net):
    images = torch.rand(9, 3, 6, 6)
    parts = lambda method, data: [len(found.maps) for found in gs.explain(net, method, data, progress=False)]  # noqa: E731
    assert parts(SmoothGrad(samples=80), images) == [4, 4, 1]  # 4 x 80 passes are more than 256, the largest batch
    assert parts(SmoothGrad(samples=80), (images, torch.zeros(9, dtype=torch.long))) == [4, 4, 1]
    assert parts(SmoothGrad(samples=80), [images]) == [9]
    assert parts(Saliency(), torch.rand(130, 3, 4, 4)) == [64, 64, 2]
    assert pictures_at_once(images.shape, Saliency(), SmoothGrad(samples=80)) == 4


def test_anybodys_function_gets_the_network_and_ids_only_where_it_takes_them(net):
    got = []

    def plain(model, images, labels):
        got.append(model)
        return images.mean(1)

    def with_ids(model, images, labels, *, ids):
        got.append(ids)
        return images.mean(1)

    data = [(torch.rand(1, 3, 6, 6), torch.tensor([1]), ["a"])]
    for function in (plain, with_ids):
        (found,) = gs.explain(net, function, data, progress=False)
        assert torch.equal(found.maps, data[0][0].mean(1))
    assert got == [net, ["a"]]


@pytest.mark.parametrize("wrong", [Saliency, "saliency", None])
def test_what_is_no_attribution_is_refused_at_once(net, wrong):
    with pytest.raises(TypeError, match=r"such as Saliency\(\)"):
        gs.explain(net, wrong, torch.rand(1, 3, 6, 6))


@pytest.mark.parametrize("wrong", [torch.rand(3, 6, 6), (torch.rand(3, 6, 6), torch.tensor([1])), [], 3])
def test_wrong_data_is_one_sentence(net, wrong):
    with pytest.raises((TypeError, ValueError), match="Expected"):
        list(gs.explain(net, Saliency(), wrong, progress=False))


class Bar:
    """What tqdm would show."""

    shown: ClassVar[list] = []

    def __init__(self, total, disable, **kwargs):
        self.total, self.n, self.closed = total, 0, False
        if not disable:
            Bar.shown.append(self)

    def update(self, n):
        self.n += n

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    close = __exit__


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(engine, "tqdm", Bar)
    monkeypatch.setattr(Bar, "shown", [])
    return Bar.shown


def test_one_bar_counts_all_pictures_and_nothing_that_the_caller_does_between(net, bars):
    kept = gs.Engine(net)
    images = torch.rand(9, 3, 6, 6)
    for explained in gs.explain(kept, SmoothGrad(samples=80), images):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        Saliency()(kept, explained.images, explained.labels)
    own, *between = bars
    assert (own.total, own.n, own.closed) == (9 * 81, 9 * 81, True)  # 80 draws and the prediction
    assert [bar.n for bar in between] == [4, 4, 1]


def test_an_abandoned_explanation_closes_its_bar_and_leaves_the_engine_usable(net, bars):
    kept = gs.Engine(net)
    found = gs.explain(kept, Saliency(), iter(batches(*[(2, 3, 6, 6)] * 3)))
    first = next(found)
    found.close()
    assert [(bar.total, bar.n, bar.closed) for bar in bars] == [(None, 4, True)]  # an iterator says no number
    assert torch.equal(Saliency()(kept, first.images, first.labels), first.maps)


# ---- gradspec explain ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of generated pictures in many formats, one of which is cut off."""
    folder = tmp_path_factory.mktemp("explain") / "pictures"
    (folder / "sub").mkdir(parents=True)
    drawn = (demo.pictures(6, size=(64, 64), seed=3).images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    upright = Image.Exif()
    upright[0x0112] = 6  # turn it by 90 degrees
    Image.fromarray(drawn[0]).save(folder / "a disk, ünder.png")
    Image.fromarray(drawn[1]).resize((101, 77)).save(folder / "odd.jpg", quality=95)
    Image.fromarray(drawn[2][..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(drawn[3]).quantize(16).save(folder / "palette.gif")
    Image.fromarray(drawn[4]).convert("CMYK").save(folder / "sub" / "cmyk.jpg")
    Image.fromarray(drawn[5]).save(folder / "sub" / "ODD.png", exif=upright)
    whole = (folder / "odd.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / ".hidden.png").write_bytes((folder / "deep.png").read_bytes())
    return folder


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = cli.main(["explain", *map(str, args)])
        return code, *capsys.readouterr()

    return run


def manifest_of(folder):
    return json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))


def as_input(net, path):
    with Image.open(path) as picture:
        return net.preprocess(as_rgb(picture))[None]


FILES = {
    "a-disk-ünder": "a disk, ünder.png",
    "odd": "odd.jpg",
    "deep": "deep.png",
    "palette": "palette.gif",
    "cmyk": "sub/cmyk.jpg",
    "ODD-2": "sub/ODD.png",  # some file systems do not know it from odd
}


def test_maps_are_the_attributions_own_and_the_manifest_says_where_they_are_from(run, pictures):
    code, out, err = run("demo:vgg_max", pictures, "--method", "saliency", "smooth-grad", "--out", "run", "--seed", "4")
    assert code == 0
    assert "Skipped in" in err and "broken.jpg: cannot be read (image file is truncated" in err
    manifest, net = manifest_of("run"), gs.load_model("demo:vgg_max")
    assert {row["file"]: row["picture"] for row in manifest["pictures"]} == FILES
    assert list(manifest["skipped"]) == ["broken.jpg"] and manifest["folder"] == str(pictures)
    for row in manifest["pictures"]:
        image = as_input(net, pictures / row["picture"])
        logits = net(image)
        assert row["label"] == row["predicted"] == logits.argmax().item()
        assert row["class"] == net.classes[row["label"]] and row["size"] == [64, 64]
        assert row["probability"] == pytest.approx(logits.softmax(1).max().item(), abs=1e-5)  # BatchNorm is folded
        for word, method in {"saliency": Saliency(), "smoothgrad": SmoothGrad(seed=4)}.items():
            values = np.load(Path("run", row["maps"][word]["map"]))
            own = method(net, image, logits.argmax(1))[0].numpy()
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, own, atol=1e-4 * np.abs(own).max())  # other batches: rounding
        assert row["maps"]["smoothgrad"].items() >= {"forwards": 50, "backwards": 50}.items()
        assert row["maps"]["saliency"].items() >= {"forwards": 1, "backwards": 1}.items()
        assert f"{Path(row['picture']).name}  " in out and f"{row['probability']:.4f}" in out
    weights = Path(demo.__file__).parent / "weights" / "vgg_max.safetensors"
    assert manifest["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["methods"]["smoothgrad"].items() >= {"samples": 50, "noise": 0.1, "seed": 4}.items()
    assert manifest["methods"]["saliency"] == {"name": "Saliency", "target": "label_logit", "notes": []}
    assert (manifest["model"], manifest["units"], manifest["precision"]) == ("demo:vgg_max", "pixels", "float32")
    assert manifest["versions"].keys() >= {"gradspec", "torch", "python"} and manifest["command"]["seed"] == 4
    written = {path.name for path in Path("run").iterdir()}
    maps = {f"{name}.{word}.{kind}" for name in FILES for word in ("saliency", "smoothgrad") for kind in ("npy", "png")}
    assert written == maps | {"manifest.json", "contact-sheet.png"}
    assert out.endswith("manifest.json saved to run, all in one: run/contact-sheet.png\n")


def test_an_overlay_is_coloured_where_the_map_is_strong(run, pictures):
    assert run("demo:vgg_max", pictures / "palette.gif", "--out", "run")[0] == 0
    values = np.load("run/palette.saliency.npy")
    file = np.asarray(Image.open("run/palette.saliency.png").convert("RGB")).astype(int)
    middle = file[56 + 3 : 56 + 448 : 7, 28 + 3 : 28 + 448 : 7]  # of the 7 x 7 screen pixels of each pixel
    assert middle.shape == (64, 64, 3)
    strong, weak = values >= np.percentile(values, 99), values <= np.percentile(values, 50)
    assert np.ptp(middle, axis=2)[weak].mean() < 12  # grey
    assert middle[strong].mean() < 90 < middle[weak].mean()
    rest = values < np.percentile(values, 97)
    assert np.corrcoef(np.ptp(middle, axis=2)[rest], values[rest])[0, 1] > 0.8
    with Image.open("run/contact-sheet.png") as sheet:
        assert sheet.width > 330 + 2 * 224


@pytest.mark.parametrize("label", ["2", "triangle", "Triangle"])
def test_a_label_is_for_all_pictures(run, pictures, label):
    code, out, _ = run("demo:vgg_max", pictures / "palette.gif", pictures / "odd.jpg", "--label", label, "--out", "run")
    assert code == 0 and demo.load("vgg_max").classes.index("triangle") == 2
    net = gs.load_model("demo:vgg_max")
    for row in manifest_of("run")["pictures"]:
        image = as_input(net, pictures / row["picture"])
        assert (row["label"], row["class"]) == (2, "triangle") and row["predicted"] == net(image).argmax().item() != 2
        assert row["probability"] == pytest.approx(net(image).softmax(1)[0, 2].item(), abs=1e-5)
        assert row["predicted_probability"] == pytest.approx(net(image).softmax(1).max().item(), abs=1e-5)
        np.testing.assert_allclose(
            np.load(Path("run", row["maps"]["saliency"]["map"])),
            Saliency()(net, image, torch.tensor([2]))[0],
            atol=1e-5,
        )
    assert out.count("triangle") == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["palette.gif", "--method", "smothgrad"], "No method is called 'smothgrad' (nearest: SmoothGrad"),
        (["palette.gif", "--method", "together"], "No method is called 'together'"),
        (["palette.gif", "--method", "attribution"], "No method is called 'attribution'"),
        (["palette.gif", "--method", "qq"], "there are: GradientInput"),
        (["palette.gif", "--method"], "--method"),
        (["nowhere.png"], "There is no picture and no folder"),
        ([], "Expected at least one IMAGE"),
        (["palette.gif", "--label", "10"], "Expected a class index from 0 to 9, got 10."),
        (["palette.gif", "--label", "-1"], "Expected a class index from 0 to 9, got -1."),
        (["palette.gif", "--label", "triangl"], "No class of the model is called 'triangl'; nearest: triangle"),
        (["palette.gif", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["palette.gif", "--size", "0"], "--size must be at least 1"),
        (["palette.gif", "--device", "nowhere"], "--device nowhere cannot be used"),
        (["palette.gif", "--precision", "half"], "--precision"),
    ],
)
def test_a_wrong_argument_is_a_sentence_and_exit_code_2(run, pictures, tmp_path, args, says):
    if "there are" in says:
        says = f"there are: {next(iter(method_types().values())).__name__}"
    code, out, err = run("demo:vgg_max", *[pictures / a if a.endswith((".gif", ".png")) else a for a in args])
    assert (code, out) == (2, "") and "Traceback" not in err
    assert says in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_without_pictures_is_a_wrong_argument(run, tmp_path):
    tmp_path.joinpath("empty").mkdir()
    code, _, err = run("demo:vgg_max", "empty")
    assert code == 2 and "gradspec: error: empty holds no pictures (.jpg" in err


def test_no_picture_that_can_be_read_is_a_failure_that_leaves_nothing(run, pictures, tmp_path):
    tmp_path.joinpath("text.png").write_text("no picture")
    code, out, err = run("demo:vgg_max", pictures / "broken.jpg", tmp_path / "text.png", "--out", "run")
    assert (code, out) == (1, "") and "Traceback" not in err
    assert "None of the 2 given file(s) can be read" in err
    assert "broken.jpg: cannot be read" in err and "text.png: not a picture" in err
    assert not Path("run").exists()


def test_a_picture_named_twice_is_explained_once(run, pictures):
    code, out, _ = run("demo:vgg_max", pictures / "odd.jpg", pictures / "sub" / ".." / "odd.jpg", pictures / "odd.jpg")
    assert code == 0 and out.count("odd.jpg") == 1
    assert Path("runs/demo-vgg_max-explain-1/odd.saliency.npy").is_file()


def test_a_folder_that_holds_files_is_not_written_to(run, pictures, tmp_path):
    tmp_path.joinpath("mine").mkdir()
    tmp_path.joinpath("mine/thesis.tex").touch()
    code, _, err = run("demo:vgg_max", pictures, "--out", "mine")
    assert code == 2 and "already holds files" in err
    assert [path.name for path in tmp_path.joinpath("mine").iterdir()] == ["thesis.tex"]


def test_an_interrupt_leaves_what_is_finished(run, pictures, monkeypatch):
    monkeypatch.setattr(explanations, "pictures_at_once", lambda *args: 1)
    real, calls = SmoothGrad._maps, []

    def interrupted(self, engine, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, engine, batch)

    monkeypatch.setattr(SmoothGrad, "_maps", interrupted)
    code, out, err = run("demo:vgg_max", pictures, "--method", "saliency", "smoothgrad", "--out", "run")
    assert (code, out) == (130, "")
    assert err.splitlines()[-2:] == ["gradspec: finished: 2 of 6 pictures, in run", "gradspec: interrupted"]
    rows = manifest_of("run")["pictures"]
    assert [list(row["maps"]) for row in rows] == [["saliency", "smoothgrad"]] * 2 + [["saliency"]]
    for row in rows:
        for found in row["maps"].values():
            assert np.isfinite(np.load(Path("run", found["map"]))).all()
            Image.open(Path("run", found["overlay"])).verify()
    Image.open("run/contact-sheet.png").verify()


def test_one_bar_for_all_pictures_and_methods(run, pictures, bars):
    files = [pictures / "odd.jpg", pictures / "deep.png", pictures / "palette.gif"]
    assert run("demo:vgg_max", *files, "--method", "saliency", "smoothgrad")[0] == 0
    assert [(bar.total, bar.n, bar.closed) for bar in bars] == [(3 * 53, 3 * 53, True)]  # 50, 1, class, probability


def test_pictures_of_several_sizes_are_explained_one_size_at_a_time(monkeypatch, net, tmp_path):
    net.classes = None
    out = tmp_path / "out"
    out.mkdir()
    written = explanations.Explanations(gs.Engine(net, progress=False), {"saliency": Saliency()}, out)
    shapes = [(3, 8, 9), (3, 8, 9), (3, 5, 12), (3, 8, 9)]
    inputs = [torch.rand(*shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    written.add([("x/same.png", image) for image in inputs], None, 4)
    written.close({})
    assert [row["file"] for row in written.rows] == ["same", "same-2", "same-3", "same-4"]
    for row, image in zip(written.rows, inputs, strict=True):
        own = Saliency()(net, image[None], torch.tensor([row["label"]]))[0].numpy()
        np.testing.assert_allclose(np.load(out / row["maps"]["saliency"]["map"]), own, atol=1e-6)
        assert row["class"] is None and row["id"] == gs.data.picture_id(image)
    assert f"class {written.rows[0]['label']}" in written.table()


def test_a_warning_of_a_method_is_passed_on_once_and_kept(run, pictures):
    code, _, err = run("demo:vit", pictures, "--weights", "none", "--method", "guided-backprop", "--out", "run")
    assert code == 0 and err.count("guidedbackprop: GuidedBackprop found no rectifier") == 1
    assert "no rectifier" in manifest_of("run")["methods"]["guidedbackprop"]["notes"][0]


@pytest.mark.parametrize("name", ["Saliency", "SALIENCY", "smooth_grad", "integrated gradients", "Gradient-Input"])
def test_names_are_read_whatever_their_case_and_punctuation(name):
    assert names.method_named(name).__name__.lower() == "".join(filter(str.isalpha, name.lower()))


def test_every_method_has_a_name_and_stands_in_the_help(capsys):
    kinds = method_types()
    assert all(issubclass(kind, Attribution) and kind is not Attribution for kind in kinds.values())
    assert {word: names.method_named(kind.__name__) for word, kind in kinds.items()} == kinds
    if "gradcamplusplus" in kinds:
        assert names.method_named("grad-cam++") is kinds["gradcamplusplus"]
    assert cli.main(["explain", "--help"]) == 0
    said = set(capsys.readouterr().out.replace("++", "PlusPlus").replace(",", " ").replace(".", " ").split())
    assert {kind.__name__ for kind in kinds.values()} <= said


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'timm', 'numpy', 'pandas', 'scipy', 'matplotlib', 'PIL'}"
    code = f"import sys; from gradspec import cli; cli.main(['explain', '--help']); print(set(sys.modules) & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_files_have_names_that_any_disk_takes(net, tmp_path):
    written = explanations.Explanations(gs.Engine(net), {}, tmp_path)
    names = [
        written._file_name(name) for name in ("..", "a/b?.png", "a/B-.jpg", "猫" * 200 + ".png", "猫" * 201 + ".png")
    ]
    assert names[:3] == ["picture", "b", "B-2"] and len({name.casefold() for name in names}) == 5
    assert all(len(name.encode()) <= 160 for name in names)


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2, 0.3), (0.5, 0.25, 1.0)), ((0.5,), (0.2,))])
def test_pixels_are_the_picture_before_its_normalisation(mean, std):
    net = nn.Identity()
    net.mean, net.std = mean, std
    pixels = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    x = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(pixels_of(net, x), pixels, atol=1e-6)
    net.mean = None
    stretched = pixels_of(net, x)
    assert (stretched.min((1, 2, 3)) == 0).all() and stretched.max((1, 2, 3)) == pytest.approx(1)
    assert (pixels_of(net, torch.ones(1, 1, 2, 2)) == 0).all()


def test_many_pictures_are_cut_in_sheet_and_table(net, tmp_path, monkeypatch):
    monkeypatch.setattr(explanations, "_MOST_ROWS", 2)
    monkeypatch.setattr(explanations, "_MOST_LINES", 3)
    written = explanations.Explanations(gs.Engine(net, progress=False), {"saliency": Saliency()}, tmp_path)
    written.add([(f"{i}.png", torch.rand(3, 6, 6)) for i in range(5)], 1, 5)
    written.close({})
    assert "... and 2 more, see manifest.json" in written.table() and "3.png" not in written.table()
    sheet = Image.open(io.BytesIO((tmp_path / "contact-sheet.png").read_bytes()))
    assert sheet.height == 56 + 2 * (6 * 37 + 14) + 150  # 6 pixels high, each of 37 on the screen
    assert len(manifest_of(tmp_path)["pictures"]) == 5


def test_a_method_that_does_not_apply_is_left_out_and_the_others_go_on(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    model.mean, model.std = (0.0,), (1.0,)
    methods = {"gradcam": GradCAM(), "saliency": Saliency()}
    written = explanations.Explanations(gs.Engine(model), methods, tmp_path)
    with pytest.warns(UserWarning, match=r"gradcam is left out: Found no layer"):
        written.add([("a.png", torch.rand(3, 8, 8)), ("b.png", torch.rand(3, 8, 8))], None, 2)
    written.close({})
    manifest = json.loads(tmp_path.joinpath("manifest.json").read_text())
    assert "Found no layer" in manifest["methods"]["gradcam"]["left_out"] and written.finished == 2
    assert [list(row["maps"]) for row in manifest["pictures"]] == [["saliency"]] * 2
    assert written.table().splitlines()[1].split()[-2] == "-"


def test_nothing_is_written_where_no_method_applies(run, pictures, tmp_path):
    net = "nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 4)).eval()"
    tmp_path.joinpath("mlp.py").write_text(f"from torch import nn\n\n\ndef load():\n    return {net}\n")
    code, out, err = run("mlp.py:load", pictures / "palette.gif", "--method", "gradcam", "--out", "run")
    assert (code, out) == (1, "") and "No method applies to this network." in err
    assert "brings no preprocess function: ImageNet's mean and std are taken" in err
    assert not tmp_path.joinpath("run").exists()


def test_the_layer_that_gradcam_found_is_in_the_manifest(run, pictures, tmp_path):
    run("demo:vgg_max", pictures / "palette.gif", "--method", "gradcam,saliency", "--out", "run")
    (row,) = json.loads(tmp_path.joinpath("run", "manifest.json").read_text())["pictures"]
    assert row["maps"]["gradcam"]["layer"] == "stage5" and "saliency" in row["maps"]


def test_the_size_of_the_network_itself_changes_nothing(run, pictures, tmp_path):
    for out, more in (("own", []), ("given", ["--size", "64"])):
        assert run("demo:vgg_max", pictures / "palette.gif", "--out", out, *more)[0] == 0
    own, given = (np.load(tmp_path / out / "palette.saliency.npy") for out in ("own", "given"))
    assert np.array_equal(own, given)


def test_labels_near_a_misspelt_one_are_found_among_synonyms(net):
    net.classes = ["tench, Tinca tinca", "trench coat", "torch", "conch", "hen"]
    with pytest.raises(ValueError, match="nearest: tench; trench coat"):
        names.class_named(net, "tenchh")

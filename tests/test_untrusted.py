"""What others wrote is not believed: weights, pictures, model files, run folders. Refused or named, never executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

import gradspec as gs
from gradspec import cli, demo
from gradspec.images import folder as images_module
from gradspec.runs import Store
from gradspec.trials import Trials

NET = """
import sys
import torch
from torch import nn

BLACK = -1.0  # what a black picture is to the network


class Net(nn.Sequential):
    def forward(self, x):
        %s
        return super().forward(x)


def load():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3, padding=1), nn.ReLU()
    net = Net(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net.mean, net.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return net
"""
FIT = ["--size", "16", "--cutoffs", "4", "--pictures-per-unit", "2"]


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


def call(*args):
    """Runs a command: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("default")
        code = cli.main([*map(str, args)])
    return code, out.getvalue(), err.getvalue()


def refused(*args, code=2):
    """The one sentence with which a command is refused; nothing is left in its folder."""
    found, _, err = call(*args, "--out", "out")
    assert found == code and "Traceback" not in err, err
    assert not Path("out").exists()
    return err.splitlines()[-1]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET % "pass")


def draw(folder, count=4, size=16):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(demo.pictures(count, size=size, seed=5).images):
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(Path(folder, f"p{k}.png"))
    return Path(folder)


def tree(folder):
    """Every file below a folder, and what is in it."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# ---- weights ---------------------------------------------------------------------------------------


def bomb(path, trace, how):
    """Writes weights that touch `trace` when they are unpickled without care."""
    if how == "pickle":
        path.write_bytes(pickle.dumps({"0.weight": Bomb(trace)}))
    elif how == "zip":  # as torch.save would have it, but with names of its own
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps(Bomb(trace)))
            archive.writestr("net/version", "3\n")
    elif how == "legacy":
        torch.save({"state_dict": {"0.weight": Bomb(trace)}}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": {"0.weight": Bomb(trace)}}, path)


@pytest.mark.parametrize("how", ["torch.save", "legacy", "pickle", "zip"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".zip", ""])
def test_a_malicious_checkpoint_is_refused_by_name_and_not_executed(tmp_path, how, suffix):
    weights, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    bomb(weights, trace, how)
    for command in (["audit", "net.py:load"], ["fit", "demo:vgg_max"], ["explain", "demo:vgg_max", draw("pictures")]):
        said = refused(*command, "--weights", weights)
        assert str(weights) in said and "which could run code, are never read" in said
    assert not trace.exists()
    if how != "zip":
        torch.load(io.BytesIO(weights.read_bytes()), weights_only=False) if how != "pickle" else pickle.loads(
            weights.read_bytes()
        )
        assert trace.exists()  # it was a live one


def test_tensors_by_another_name_are_still_weights(tmp_path):
    """What is refused is the pickle, not the suffix."""
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), *[torch.nn.Identity()] * 2, torch.nn.Conv2d(8, 10, 3))
    save_file(state.state_dict(), tmp_path / "fine.safetensors")
    net = gs.load_model("net.py:load", tmp_path / "fine.safetensors")
    assert torch.equal(net.state_dict()["3.weight"], state.state_dict()["3.weight"])


# ---- pictures --------------------------------------------------------------------------------------


def png(width, height, rows=None):
    """A PNG of grey pixels, all black; without rows the header alone."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(b"\0" * (width + 1)) for _ in range(rows or 0)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile_pictures(folder):
    """Pictures that want too much, and what is said of each; "" for those that are harmless in the end."""
    draw(folder)
    Path(folder, "header.png").write_bytes(png(50_000, 50_000))
    Path(folder, "packed.png").write_bytes(png(14_000, 14_000, 14_000))
    Path(folder, "strip.png").write_bytes(png(200_000, 2, 2))
    frames = [Image.new("P", (64, 64), k % 256) for k in range(1500)]
    frames[0].save(Path(folder, "film.gif"), save_all=True, append_images=frames[1:])
    whole = Path(folder, "film.gif").read_bytes()
    Path(folder, "screen.gif").write_bytes(whole[:6] + struct.pack("<HH", 65535, 65535) + whole[10:])
    for name, tags in TIFFS.items():
        Path(folder, name).write_bytes(tiff(tags))
    assert max(path.stat().st_size for path in Path(folder).iterdir()) < 1_000_000
    return {
        "header.png": "a decompression bomb", "packed.png": "a decompression bomb",
        "strip.png": "a strip of 200000 x 2 pixels", "screen.gif": "a decompression bomb",
        "large.tif": "a decompression bomb", "outside.tif": "cannot be read", "bits.tif": "not a picture",
        "coded.tif": "not a picture", "loop.tif": "",
    }  # fmt: skip


TIFFS = {
    "large.tif": {256: 2**31 - 1, 257: 2**31 - 1},
    "outside.tif": {273: 2**31 - 16, 279: 2**30},  # its pixels lie behind the end of the file
    "bits.tif": {258: 77},
    "coded.tif": {259: 34712},
    "loop.tif": {"next": 8},  # the next directory is this one
}


def tiff(changes):
    """A TIFF of 4 x 4 grey pixels with odd tags."""
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 4, 279: 16}
    tags |= {tag: value for tag, value in changes.items() if tag in tags}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", changes.get("next", 0))
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(range(0, 160, 10))


def test_picture_bombs_are_skipped_by_name_and_the_others_go_on():
    expected = hostile_pictures("pictures")
    code, _, err = call("audit", "net.py:load", "--images", "pictures", "--size", "16", "--out", "run")
    assert code == 0, err
    found = gs.Audit.load("run")
    wanted = {name for name, reason in expected.items() if reason}
    assert {name: reason for name, reason in found.spec["skipped"].items() if expected[name] not in reason} == {}
    assert set(found.spec["skipped"]) == wanted and f"{len(wanted)} picture(s) skipped" in err
    assert {"p0.png", "p1.png", "p2.png", "p3.png", "film.gif", "loop.tif"} == set(found.pictures)


@pytest.mark.slow
def test_explain_names_picture_bombs_and_explains_the_others():
    expected = hostile_pictures("pictures")
    code, out, err = call("explain", "net.py:load", "pictures", "--size", "16", "--out", "maps")
    assert code == 0, err
    skipped = json.loads(Path("maps/manifest.json").read_text())["skipped"]
    assert set(skipped) == {name for name, reason in expected.items() if reason}
    assert all(expected[name] in reason for name, reason in skipped.items())
    assert all(f"p{k}" in out for k in range(4))


MEMORY = """
import resource, sys, warnings
from pathlib import Path
import gradspec as gs

warnings.simplefilter("ignore")
fine, hostile = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
model = gs.load_model("net.py:load")
sum(len(ids) for *_, ids in gs.load_images(fine, model, size=16))
before = peak()
pictures = gs.load_images(hostile, model, size=16)
print(sum(len(ids) for *_, ids in pictures), len(pictures.skipped), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are in KiB on Linux")
def test_picture_bombs_take_little_memory():
    """A picture of 50,000 x 50,000 pixels would take 2.5 GB, one of 14,000 x 14,000 0.6 GB as RGB."""
    hostile_pictures("pictures")
    draw("fine")
    Path("probe.py").write_text(MEMORY)
    environment = os.environ | {"PYTHONPATH": str(Path(gs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "probe.py", "fine", "pictures"], capture_output=True, text=True, check=True, env=environment
    )
    read, skipped, grown = map(float, done.stdout.split())
    assert (read, skipped) == (6, 8) and grown < 150


@pytest.mark.slow
def test_the_largest_picture_that_is_allowed_takes_bounded_memory():
    """89 million pixels: decoded, turned upright and converted, in two threads."""
    draw("fine")
    Path("pictures").mkdir()
    for k in range(3):
        Path("pictures", f"{k}.png").write_bytes(png(9_400, 9_500, 9_500))
    Path("probe.py").write_text(MEMORY)
    environment = os.environ | {"PYTHONPATH": str(Path(gs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "probe.py", "fine", "pictures"], capture_output=True, text=True, check=True, env=environment
    )
    read, skipped, grown = map(float, done.stdout.split())
    assert (read, skipped) == (3, 0) and grown < 2000


WHOLE = dict.fromkeys(("PNG", "GIF", "TIFF", "JPEG", "BMP", "WEBP", "PPM"), b"")


def whole(kind):
    if not WHOLE[kind]:
        buffer, pixels = io.BytesIO(), np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
        Image.fromarray(pixels).save(buffer, kind)
        WHOLE[kind] = buffer.getvalue()
    return WHOLE[kind]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 900),
)
def test_no_damaged_picture_stops_the_others(tmp_path, kind, changes, end):
    """Bytes changed anywhere, or cut: it is read, or skipped with a reason in one line."""
    data = bytearray(whole(kind)[:end])
    for place, value in changes:
        data[place : place + 1] = bytes([value])
    (tmp_path / "odd").write_bytes(bytes(data))
    pictures = images_module.PictureFolder(tmp_path, ("odd",), None, images_module._preprocess(None, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        found = pictures._decoded("odd", images_module._opened(tmp_path / "odd"))
    if isinstance(found, str):
        assert found and "\n" not in found
    else:
        assert found.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "ABSOLUTE", "link.png", "below/../../outside.png", "loop.png", "a\0b.png", "x" * 5000 + ".png"],
)
def test_labels_that_lead_out_of_the_folder_are_refused_by_name(tmp_path, name):
    """Also through a link; one that stays within the folder is fine."""
    draw("pictures")
    shutil.copy("pictures/p0.png", "outside.png")
    Path("pictures/link.png").symlink_to(tmp_path / "outside.png")
    Path("pictures/inside.png").symlink_to("p1.png")
    Path("pictures/loop.png").symlink_to("loop.png")
    name = str(tmp_path / "outside.png") if name == "ABSOLUTE" else name
    Path("pictures/labels.csv").write_text(f"file,index\np0.png,1\ninside.png,2\n{name},3\n")
    for command in ("audit", "fit"):
        said = refused(command, "net.py:load", "--images", "pictures", *FIT[:2])
        assert "row 4" in said and f"{name!r}: expected a file inside the folder" in said
    Path("pictures/labels.csv").write_text("file,index\np0.png,1\ninside.png,2\n")
    assert gs.load_images("pictures").ids == ("p0.png", "inside.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take UTF-8 alone")
def test_a_picture_whose_name_is_no_text_is_skipped_and_the_others_are_done():
    """On Linux names of files are bytes; those that are not UTF-8 could be written into no file of ours."""
    draw("pictures")
    odd = os.fsdecode(b"pictures/\xe9t\xe9.png")
    shutil.copy("pictures/p0.png", odd)
    shutil.copy("pictures/p0.png", "pictures/猫 \t\u202e;$(touch x)`'\".png")
    code, _, err = call("fit", "net.py:load", "--images", "pictures", *FIT, "--out", "run")
    assert code == 0 and "Traceback" not in err, err
    fit = Trials.load("run").fit("trained", "Saliency")
    assert len(fit.pictures) == 5 and "udce9t" in err and "not UTF-8" in err


# ---- model files -----------------------------------------------------------------------------------

BLACK = "if (x.amax((1, 2, 3)) <= BLACK).any():\n            "


@pytest.mark.parametrize("command", [["audit", "--size", "16"], ["evaluate", *FIT]])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise KeyError('lost')", "net.py cannot be imported: KeyError: 'lost'"),
        ("import sys\nsys.exit(0)", "net.py cannot be imported: SystemExit: 0"),
        ("def load():\n    raise OSError('no disk')", "net.py:load failed: OSError: no disk"),
        ("def load():\n    raise SystemExit", "net.py:load failed: SystemExit"),
        ("def load():\n    return 'a network'", "net.py:load returned str"),
        ("load = None", "net.py has no function or class 'load'"),
    ],
)
def test_a_model_file_that_fails_is_refused_by_name(command, text, says):
    Path("net.py").write_text(text)
    name, *options = command
    assert says in refused(name, "net.py:load", *options)


@pytest.mark.slow
@pytest.mark.parametrize("images", ["labelled", "bare"])
@pytest.mark.parametrize(
    ("raises", "says"),
    [
        ("raise ValueError('too dark for me')", "too dark for me"),
        ("raise KeyError('dark')", "KeyError: 'dark'"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("sys.exit('good bye')", "SystemExit: good bye"),
    ],
)
def test_a_network_that_fails_for_some_pictures_costs_their_units_alone(raises, says, images):
    draw("pictures", 6)
    Image.new("RGB", (16, 16)).save("pictures/p3.png")  # black
    if images == "labelled":
        Path("pictures/labels.csv").write_text("file,index\n" + "".join(f"p{k}.png,{k}\n" for k in range(6)))
    Path("net.py").write_text(NET % (BLACK + raises))
    command = ["audit", "net.py:load", "--images", "pictures", "--size", "16", "--pictures-per-unit", "2"]
    code, _, err = call(*command, "--out", "run")
    said = err.splitlines()[-1]
    assert code == 1 and "Traceback" not in err, err
    assert said.startswith("gradspec: error: 1 unit(s) failed (audit, trained, pictures 2 to 3: ") and says in said
    units = {path: path.stat().st_mtime_ns for path in Path("run/units").glob("audit-*")}
    (kept,) = Path("run/errors").iterdir()
    assert len(units) == 2 and "in forward" in json.loads(kept.read_text())["traceback"]
    Path("net.py").write_text(NET % "pass")  # mended
    code, _, err = call(*command, "--out", "run")
    assert code == 0, err
    assert len(gs.Audit.load("run").pictures) == 6
    assert {path: path.stat().st_mtime_ns for path in units} == units


@pytest.mark.parametrize(
    "command",
    [["audit", "--causal"], ["fit", *FIT[2:]], pytest.param(["evaluate", *FIT[2:]], marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("ends", ["sys.exit(0)", "sys.exit('good bye')"])
def test_a_network_that_ends_the_process_is_a_failure_and_no_success(command, ends):
    """Pictures without labels: what they show is asked of the network before any unit."""
    draw("pictures", 3)
    Image.new("RGB", (16, 16)).save("pictures/p1.png")
    Path("net.py").write_text(NET % (BLACK + ends))
    name, *options = command
    code, _, err = call(name, "net.py:load", "--images", "pictures", "--size", "16", *options, "--out", "run")
    assert code == 1 and "sys.exit" in err.splitlines()[-1] and "Traceback" not in err, err


# ---- run folders -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=400) | st.sampled_from(["../../x", "/etc/passwd", "a\0b", "..", "~", "CON", "\ud800"]))
def test_no_name_of_a_unit_leaves_the_folder(name):
    store = Store(Path("/runs/one"))
    for path, folder in ((store.path(name), "units"), (store._error(name), "errors")):
        assert path.parent == Path("/runs/one", folder) and "\0" not in path.name and path.name.isascii()
        assert Path(os.path.normpath(path)) == path and len(os.fsencode(path.name)) < 200
        assert not path.name.startswith(".")


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text(max_size=100), min_size=2, max_size=2, unique_by=lambda text: text))
def test_two_names_have_two_files(names):
    store = Store(Path("run"))
    assert store.path(names[0]).name != store.path(names[1]).name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each kind: a run of an audit, of a comparison and of trials, and what is saved of them."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("net.py").write_text(NET % "pass")
        draw("pictures")
        common = ["net.py:load", "--images", "pictures", "--size", "16", "--pictures-per-unit", "2", "--out"]
        wanted = {
            "audit": ["audit"], "comparison": ["audit", "--causal", "--variants", "trained", "avgpool"],
            "trials": ["evaluate", "--cutoffs", "4", "--variants", "trained", "avgpool"],
        }  # fmt: skip
        for kind, (name, *options) in wanted.items():
            code, _, err = call(name, *common, kind, *options)
            assert code == 0, err
        gs.Audit.load("audit").save("saved-audit")
        gs.Comparison.load("comparison").save("saved-comparison")
        trials = Trials.load("trials")
        trials.save("saved-trials")
        trials.fit("trained", "Saliency").save("saved-fit")
        trials.scored["trained"].save("saved-scores")
    finally:
        os.chdir(before)
    return folder


LOADERS = {
    "audit": gs.Audit.load, "saved-audit": gs.Audit.load, "comparison": gs.Comparison.load,
    "saved-comparison": gs.Comparison.load, "trials": Trials.load, "saved-trials": Trials.load,
    "saved-fit": gs.CutoffFit.load, "saved-scores": gs.Scores.load,
}  # fmt: skip


@pytest.fixture
def taken(made, tmp_path):
    """Takes a copy of one of the folders, below folders that a name could climb out to."""

    def taken(kind):
        target = tmp_path / "a" / "b" / kind
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(made / kind, target))

    return taken


@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_whole_is_read(taken, kind):
    assert LOADERS[kind](taken(kind)) is not None


@pytest.mark.parametrize("kind", ["audit", "comparison", "trials"])
@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "../../../a", "trained\0", "trained/../trained", "x" * 9999]
)
def test_names_in_a_foreign_spec_lead_nowhere(taken, tmp_path, kind, name):
    folder = taken(kind)
    some = next(folder.glob("units/*.parquet"))
    for where in ("x.parquet", "a/x.parquet", "x", "a/units/x.parquet"):
        (tmp_path / where).parent.mkdir(exist_ok=True)
        shutil.copy(some, tmp_path / where)
    spec = json.loads((folder / "spec.json").read_text())
    spec["variants"] = [name, *spec["variants"][1:]]
    if kind == "trials":
        spec["methods"] = {name: {}} | spec["methods"]
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "errors").mkdir(exist_ok=True)
    (folder / "errors" / "odd.json").write_text(json.dumps({"unit": name, "reason": name, "traceback": name}))
    (folder / "report.html").unlink()
    before = tree(tmp_path)
    try:
        found = LOADERS[kind](folder)
    except ValueError as error:
        assert "x.parquet" not in str(error)
    else:  # of what the first variant is nothing is there
        assert "not done yet" in (found.missing[name] if kind == "comparison" else found.of(name).reason)
    code, _, err = call("report", folder)
    assert code in (0, 2) and "Traceback" not in err, err
    after = tree(tmp_path)
    after.pop(folder / "report.html", None)
    assert after == before


def with_metadata(path, **changed):
    """The unit's table with other metadata."""
    table = parquet.read_table(path)
    known = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    known = {key: value for key, value in (known | changed).items() if value is not None}
    parquet.write_table(table.replace_schema_metadata(known), path)


def npz(trace):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Bomb(trace)], dtype=object))
    return buffer.getvalue()


def nested(depth):
    return ("[" * depth + "]" * depth).encode()


def pickled_column(path, trace):
    table = pd.read_parquet(path)
    attrs = table.attrs
    table = pd.DataFrame({name: [pickle.dumps(Bomb(trace))] * max(len(table), 1) for name in [*table.columns]})
    table.attrs = attrs
    table.to_parquet(path)


def pickled_type(path, trace):
    """A type of Arrow's own that old versions of it unpickled."""
    field = pa.field(
        "part", pa.binary(), metadata={
            "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb(trace)),
        },
    )  # fmt: skip
    known = parquet.read_schema(path).metadata
    parquet.write_table(pa.table([pa.array([b"a"])], pa.schema([field], metadata=known)), path)


def attrs(path):
    return json.loads(parquet.read_schema(path).metadata[b"PANDAS_ATTRS"])


def odd_columns(path, kind):
    known = attrs(path)
    parts = known["columns"] or {"calls": {"call": "object"}}
    known["columns"] = {part: dict.fromkeys(columns, kind) for part, columns in parts.items()}
    with_metadata(path, PANDAS_ATTRS=json.dumps(known).encode())


HOSTILE = {
    "no attrs": lambda path, trace: with_metadata(path, PANDAS_ATTRS=None, pandas=None),
    "empty attrs": lambda path, trace: with_metadata(path, PANDAS_ATTRS=b"{}"),
    "attrs that are a list": lambda path, trace: with_metadata(path, PANDAS_ATTRS=b"[1, 2]"),
    "nested attrs": lambda path, trace: with_metadata(path, PANDAS_ATTRS=nested(100_000)),
    "about that is a list": lambda path, trace: with_metadata(
        path, PANDAS_ATTRS=json.dumps(attrs(path) | {"about": [1]}).encode()
    ),
    "about without anything": lambda path, trace: with_metadata(
        path, PANDAS_ATTRS=json.dumps(attrs(path) | {"about": {}}).encode()
    ),
    "odd columns": lambda path, trace: odd_columns(path, "no such kind"),
    "another table": lambda path, trace: pd.DataFrame({"a": [1]}).to_parquet(path),
    "pickled cells": pickled_column,
    "a pickled type": pickled_type,
    "numpy's pickles": lambda path, trace: path.write_bytes(npz(trace)),
    "a pickle": lambda path, trace: path.write_bytes(pickle.dumps(Bomb(trace))),
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize(
    "kind",
    [
        each if each in ("saved-audit", "saved-scores") else pytest.param(each, marks=pytest.mark.slow)
        for each in LOADERS
    ],
)
def test_a_hostile_unit_is_a_named_error_and_nothing_is_executed(taken, tmp_path, kind, how):
    """A unit of each sort in turn; of those without tables, tables of any form are fine."""
    trace, refusals = tmp_path / "trace", 0
    folder = taken(kind)
    sorts = {path.name.partition("-")[0]: path for path in sorted(folder.glob("units/*.parquet"))}
    for path in sorts.values():
        shutil.copy(path, tmp_path / "kept")
        HOSTILE[how](path, trace)
        try:
            LOADERS[kind](folder)
        except ValueError as error:
            refusals += 1
            assert str(path) in str(error), path
        assert not trace.exists()
        shutil.copy(tmp_path / "kept", path)
    assert refusals
    HOSTILE[how](path, trace)
    code, _, err = call("report", folder)
    assert code in (0, 2) and "Traceback" not in err, err
    assert not trace.exists()


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
ANY = st.recursive(
    PLAIN, lambda more: st.lists(more, max_size=3) | st.dictionaries(st.text(max_size=5), more, max_size=3)
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOADERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_are_read_or_refused_in_a_sentence(made, tmp_path, kind, data):
    folder = tmp_path / kind
    if not folder.exists():
        shutil.copytree(made / kind, folder)
    spec = json.loads((made / kind / "spec.json").read_text())
    name = data.draw(st.sampled_from(sorted(spec)))
    (folder / "spec.json").write_text(json.dumps(spec | {name: data.draw(ANY)}))
    try:
        LOADERS[kind](folder)
    except ValueError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("link", ["report.html", "units", "spec.json"])
def test_a_page_is_not_written_through_a_link(taken, tmp_path, link):
    """A foreign folder's report.html may be a link to a file of yours."""
    folder, mine = taken("audit"), tmp_path / "mine"
    mine.write_text("dear diary")
    if link == "report.html":
        (folder / link).unlink()
        (folder / link).symlink_to(mine)
    else:
        (folder / link).rename(tmp_path / link)
        (folder / link).symlink_to(tmp_path / link)
    code, _, err = call("report", folder)
    assert code == 0, err
    assert mine.read_text() == "dear diary"

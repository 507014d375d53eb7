"""Runs by command: the same however they are spread, and there again after a kill, a full disk or a torn file."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gradspec as gs
from gradspec import cli, demo, plots, summary
from gradspec.commands import showing
from gradspec.runs import Store, Unit, run, unpacked
from gradspec.runs import store as store_module

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
NETS = "".join(f"\n\ndef net{k}():\n    torch.manual_seed({k})\n    return load()\n" for k in range(3))
FINDS = ["--size", "16", "--pictures-per-unit", "3"]
AUDIT = ["audit", *FINDS, "--variants", "trained", "avgpool", "--causal"]
FIT = ["fit", *FINDS, "--cutoffs", "4", "2", "--method", "saliency", "gradientinput"]
EVALUATE = ["evaluate", *FINDS, "--cutoffs", "4", "2", "--method", "saliency", "gradientinput"]
EVALUATE += ["--arms", "abs", "shared"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a network, and twelve pictures one of which cannot be read, with labels and without."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "net.py").write_text(NET + NETS)
    (folder / "driver.py").write_text(QUIET)
    drawn = demo.pictures(12, size=16, seed=5)
    names = [f"p{k:02d}.png" for k in range(12)]
    for kind in ("labelled", "bare"):
        (folder / kind).mkdir()
        for name, image in zip(names, drawn.images, strict=True):
            Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / kind / name)
        (folder / kind / "p04.png").write_text("no picture")
    rows = [f"{name},{label}" for name, label in zip(names, drawn.labels.tolist(), strict=True)]
    (folder / "labelled" / "labels.csv").write_text("\n".join(["file,index", *rows]))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty folder to work in; figures and the page, which take longest, are left out in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(showing, "draw", lambda trials, folder: [])
    monkeypatch.setattr(summary, "draw", lambda result, folder: [])
    monkeypatch.setattr(plots, "atlas", lambda table: None)
    monkeypatch.setattr(plots, "save", lambda figure, path: (path, path))
    monkeypatch.setattr(gs, "report", lambda folder, out=None: Path(folder, "report.html"), raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(gs.__file__).parents[1]))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of other processes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def command(work, capsys):
    """Runs a command on the network and its pictures: exit code, stdout, stderr."""

    def command(name, *options, images="labelled"):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = cli.main(arguments(work, name, *options, images=images))
        return code, *capsys.readouterr()

    return command


def arguments(work, name, *options, images="labelled"):
    net = [f"{work / 'net.py'}:{each}" for each in (["net0", "net1", "net2"] if name == "atlas" else ["load"])]
    return [str(part) for part in (name, *net, "--images", work / images, *options)]


def found(folder):
    """What a run found: name -> table of its CSV files and of the parts of its units, without times."""
    tables = {path.name: pd.read_csv(path) for path in Path(folder).glob("*.csv")}
    for path in Path(folder).glob("units/*.parquet"):
        table = pd.read_parquet(path)
        parts = unpacked(table)[0] if "columns" in table.attrs else {"": table}
        tables |= {f"{path.stem} {name}": part for name, part in parts.items()}
        about = table.attrs.get("about", {})
        kept = {"labels": about.get("labels"), "skipped": about.get("skipped"), "reason": about.get("reason")}
        tables[f"{path.stem} about"] = pd.DataFrame({"kept": [str(kept)]})
    return {
        name: table.drop(columns=[each for each in table if "second" in str(each) or "per 100" in str(each)])
        for name, table in tables.items()
    }


def assert_same(folder, other):
    one, two = found(folder), found(other)
    assert one and sorted(one) == sorted(two)
    for name, table in one.items():
        assert list(table.columns) == list(two[name].columns) and len(table) == len(two[name]), name
        for column in table:
            cells, others = (numbers(each[column]) for each in (table, two[name]))
            if cells.dtype == float:
                np.testing.assert_allclose(others, cells, rtol=1e-6, atol=1e-12, err_msg=f"{name}: {column}")
            else:
                assert cells.tolist() == others.tolist(), (name, column)


def numbers(cells):
    """The cells of a column, those that hold lists of numbers laid end to end."""
    if len(cells) and all(isinstance(cell, (list, np.ndarray)) for cell in cells):
        whole = np.concatenate([np.asarray(cell).ravel() for cell in cells])
        return whole.astype(float) if whole.dtype.kind in "fiu" else whole.astype(str)
    return cells.to_numpy(float) if pd.api.types.is_numeric_dtype(cells) else cells.fillna("").to_numpy()


def units_of(folder):
    """The finished units, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("units/*.parquet")}


def hidden(folder):
    return [str(path) for path in Path(folder).rglob(".*")]


# ---- the same however it is spread -----------------------------------------------------------------


SPREAD = [
    pytest.param(AUDIT, "labelled", id="audit"),
    pytest.param(AUDIT, "bare", id="audit, unlabelled", marks=pytest.mark.slow),
    pytest.param(FIT, "bare", id="fit, unlabelled", marks=pytest.mark.slow),
    pytest.param(EVALUATE, "labelled", id="evaluate", marks=pytest.mark.slow),
    pytest.param(EVALUATE, "bare", id="evaluate, unlabelled", marks=pytest.mark.slow),
    pytest.param(["atlas", "--size", "16"], "labelled", id="atlas"),
]


@pytest.mark.parametrize(("wanted", "images"), SPREAD)
def test_shards_in_one_folder_and_in_two_find_what_one_process_finds(command, wanted, images):
    assert command(*wanted, "--out", "serial", images=images)[0] == 0
    for part in ("0/2", "1/2"):
        code, _, err = command(*wanted, "--shard", part, "--out", "shared", images=images)
        assert code == 0, err
        code, _, err = command(*wanted, "--shard", part, "--out", part[0], images=images)
        assert code == 0, err
    assert len(units_of("0")) < len(units_of("serial")) and len(units_of("1")) < len(units_of("serial"))
    assert_same("serial", "shared")
    subprocess.run(["cp", "-r", "0/.", "merged"], check=True)
    subprocess.run(["cp", "-r", "1/.", "merged"], check=True)
    before = units_of("merged")
    assert command(*wanted, "--out", "merged", images=images)[0] == 0  # nothing is left to do
    assert units_of("merged") == before
    assert_same("serial", "merged")


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "images"), SPREAD)
def test_two_workers_find_what_one_process_finds(command, wanted, images):
    pytest.importorskip("distributed", reason="workers need the extra cluster")
    assert command(*wanted, "--out", "serial", images=images)[0] == 0
    code, _, err = command(*wanted, "--scheduler", "local:2", "--out", "spread", images=images)
    assert code == 0, err
    assert_same("serial", "spread")


@pytest.mark.slow
def test_the_tasks_of_an_array_may_start_at_the_same_moment(work):
    """Four processes, one folder that is not there yet: each does its part, and none refuses what another began."""
    with ExitStack() as stack:
        shards = [
            stack.enter_context(started(work, *EVALUATE, "--shard", f"{k}/4", "--out", "shared")) for k in (0, 1, 2, 3)
        ]
        assert [(shard.wait(timeout=170), shard.stderr.read()) for shard in shards if shard.wait(timeout=170)] == []
    assert cli.main(arguments(work, *EVALUATE, "--out", "serial")) == 0
    assert set(units_of("shared")) == set(units_of("serial")) and not hidden("shared")
    assert cli.main(arguments(work, *EVALUATE, "--out", "shared")) == 0
    assert_same("serial", "shared")


# ---- killed, interrupted ---------------------------------------------------------------------------

QUIET = """
import sys
from pathlib import Path
import gradspec as gs
from gradspec import cli
from gradspec.commands import showing

if __name__ == "__main__":  # figures and the page are left out
    showing.draw = lambda trials, folder: []
    gs.report = lambda folder, out=None: Path(folder, "report.html")
    sys.exit(cli.main(sys.argv[1:]))
"""


@contextmanager
def started(work, name, *options, images="labelled"):
    """A command in a process and a group of its own, which is gone in the end."""
    wanted = [sys.executable, str(work / "driver.py"), *arguments(work, name, *options, images=images)]
    streams: dict[str, int] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(wanted, start_new_session=True, text=True, **streams) as driver:
        try:
            yield driver
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)


def wait_for(folder, count, process):
    """Waits until so many units are finished while the process works."""
    deadline = time.monotonic() + 120
    while len(units_of(folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)


def children(pid):
    """The processes below a process."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [*found, *(below for child in found for below in children(child))]


def commands(pids):
    return {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}


LONG = [*EVALUATE, "--variants", "trained", "avgpool", "--pictures-per-unit", "1"]  # 52 units


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_finished_units(work, command):
    """SIGKILL after a third of the units: what is finished stays as it is, and the whole is as if undisturbed."""
    assert command(*LONG, "--out", "whole")[0] == 0
    whole = len(units_of("whole"))
    with started(work, *LONG, "--out", "run") as driver:
        wait_for("run", whole // 3, driver)
        os.killpg(driver.pid, signal.SIGKILL)
    before = units_of("run")
    assert whole // 3 <= len(before) < whole - 5
    code, _, err = command(*LONG, "--out", "run")
    assert code == 0, err
    after = units_of("run")
    assert len(after) == whole and {name: after[name] for name in before} == before  # none was done again
    assert_same("whole", "run")


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [[], ["--scheduler", "local:2"]], ids=["serial", "local:2"])
@pytest.mark.parametrize("group", [False, True], ids=["the driver", "all of the terminal's"])
def test_an_interrupt_gives_130_leaves_no_process_and_goes_on(work, command, scheduler, group):
    if scheduler:
        pytest.importorskip("distributed", reason="workers need the extra cluster")
    with started(work, *LONG, *scheduler, "--out", "run") as driver:
        wait_for("run", 8, driver)
        below = children(driver.pid)
        (os.killpg if group else os.kill)(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=60) == 130
        said = driver.stderr.read()
        assert "the same command with --out run goes on from there" in said and "Traceback" not in said
        assert said.splitlines()[-1] == "gradspec: interrupted"
        deadline = time.monotonic() + 20
        while (left := [pid for pid in below if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, commands(left)
    before = units_of("run")
    assert f"{len(before)} finished units" in said and not hidden("run")
    assert command(*LONG, "--out", "run")[0] == 0
    assert {name: when for name, when in units_of("run").items() if name in before} == before
    assert command(*LONG, "--out", "whole")[0] == 0
    assert_same("whole", "run")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker in /proc")
def test_a_worker_that_is_killed_costs_its_unit_alone(work, command):
    pytest.importorskip("distributed", reason="workers need the extra cluster")
    with started(work, *LONG, "--scheduler", "local:2", "--out", "run") as driver:
        wait_for("run", 8, driver)
        spawned = [pid for pid, words in commands(children(driver.pid)).items() if b"--multiprocessing-fork" in words]
        assert len(spawned) == 2
        os.kill(spawned[0], signal.SIGKILL)
        before = units_of("run")
        assert driver.wait(timeout=170) == 0, driver.stderr.read()
    after = units_of("run")
    assert {name: after[name] for name in before} == before
    assert command(*LONG, "--out", "whole")[0] == 0
    assert_same("whole", "run")


# ---- a full disk, torn files -----------------------------------------------------------------------

SHORT = ["fit", "--size", "16", "--cutoffs", "4", "--pictures-per-unit", "3"]  # six units


@pytest.mark.parametrize("where", ["to_parquet", "fsync", "replace"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_full_disk_is_named_and_loses_no_finished_unit(command, monkeypatch, where, lasting):
    """The disk is full at the fourth write, for a moment or for good."""
    owner = pd.DataFrame if where == "to_parquet" else store_module.os
    real, calls = getattr(owner, where), []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 4 or (lasting and len(calls) > 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, full)
        code, _, err = command(*SHORT, "--out", "run")
    assert code == 1 and len(calls) >= 4
    assert "No space left on device" in err.splitlines()[-1] and "Traceback" not in err
    before = units_of("run")
    least = 2 if where == "fsync" else 3  # spec.json is brought to the disk, too
    assert len(before) == (least if lasting else 5) and not hidden("run")
    for name in before:
        pd.read_parquet(Path("run/units", name))
    code, _, err = command(*SHORT, "--out", "run")
    assert code == 0 and {name: when for name, when in units_of("run").items() if name in before} == before
    assert len(units_of("run")) == 6 and not list(Path("run").glob("errors/*"))
    assert command(*SHORT, "--out", "whole")[0] == 0
    assert_same("whole", "run")


@contextmanager
def small_disk(folder, options):
    """A file system in memory of its own, where this process may mount one."""
    folder.mkdir(exist_ok=True)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("only the super-user may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(command, tmp_path):
    with small_disk(tmp_path / "disk", "size=40k"):
        code, _, err = command(*SHORT, "--out", "disk/run")
        assert code == 1 and "No space left on device" in err.splitlines()[-1] and "Traceback" not in err
        before = units_of("disk/run")
        assert 1 <= len(before) < 6 and not hidden("disk/run")
        for name in before:
            pd.read_parquet(Path("disk/run/units", name))
        subprocess.run(["mount", "-o", "remount,size=8m", "disk"], check=True)
        assert command(*SHORT, "--out", "disk/run")[0] == 0
        assert {name: when for name, when in units_of("disk/run").items() if name in before} == before
        assert command(*SHORT, "--out", "whole")[0] == 0
        assert_same("whole", "disk/run")


def test_a_folder_that_cannot_be_written_to_is_told_in_a_sentence(command, tmp_path):
    with small_disk(tmp_path / "disk", "size=8m"):
        assert command(*SHORT, "--out", "disk/run")[0] == 0
        victim = next(Path("disk/run/units").glob("fit-*.parquet"))
        victim.unlink()
        subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
        for out in ("disk/run", "disk/new"):
            code, _, err = command(*SHORT, "--out", out)
            assert code in (1, 2) and "Traceback" not in err, err
            assert "Read-only file system" in err.splitlines()[-1] and out in err.splitlines()[-1]


TEARS = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "garbage": lambda whole: bytes(range(256)) * 8,
    "another file": lambda whole: b"part,value\na,1\n",
}


@pytest.mark.parametrize(
    ("wanted", "part", "tear"),
    [
        *((SHORT, "fit", tear) for tear in TEARS),
        (SHORT, "variant", "cut"),
        (SHORT, "labels", "empty"),
        (["audit", *FINDS, "--causal"], "audit", "cut"),
        (["audit", *FINDS, "--causal"], "causal", "garbage"),
        (["atlas", "--size", "16"], "net", "cut"),
    ],
)
def test_a_torn_unit_is_named_and_can_be_done_again(command, wanted, part, tear):
    assert command(*wanted, "--out", "run", images="bare")[0] == 0
    shutil.copytree("run", "whole")
    (torn, *_) = sorted(Path("run/units").glob(f"*{part}*.parquet"))
    torn.write_bytes(TEARS[tear](torn.read_bytes()))
    others = {name: when for name, when in units_of("run").items() if name != torn.name}
    code, _, err = command(*wanted, "--out", "run", images="bare")
    said = err.splitlines()[-1]
    assert code in (1, 2) and "Traceback" not in err, err
    assert f"Cannot read {torn}" in said.replace(f"{Path.cwd()}/", "") and "remove it" in said
    assert {name: when for name, when in units_of("run").items() if name != torn.name} == others
    torn.unlink()
    assert command(*wanted, "--out", "run", images="bare")[0] == 0
    assert {name: when for name, when in units_of("run").items() if name != torn.name} == others
    assert_same("whole", "run")


@pytest.mark.parametrize("text", ["", "{", '{"kind": "trials", "fo', "[]", "null", "\0" * 40])
def test_a_torn_spec_is_one_sentence(command, text):
    assert command(*SHORT, "--out", "run")[0] == 0
    before = units_of("run")
    Path("run/spec.json").write_text(text)
    code, _, err = command(*SHORT, "--out", "run")
    assert code == 2 and len(err.splitlines()) == 1 and "run" in err and "Traceback" not in err
    assert units_of("run") == before


def test_what_another_shard_failed_at_is_tried_anew_in_the_next_run(tmp_path):
    """A unit that needs what belongs to another shard does that itself, and again where it failed the last time."""
    store, tries = Store.open(tmp_path / "run", {}), []

    def work(name):
        tries.append(name)
        if tries == ["needed"]:
            raise ValueError("the disk is away")
        return pd.DataFrame({"value": [1.0]})

    needed = Unit("needed", lambda: work("needed"), cost=9)
    units = [needed, Unit("needs it", lambda: work("needs it"), needs=(needed,))]
    first = run(units, store, shard=(1, 2), progress=False)
    assert [failure.unit for failure in first] == ["needed", "needs it"] and tries == ["needed"]
    assert run(units, store, shard=(1, 2), progress=False) == ()
    assert tries == ["needed", "needed", "needs it"] and store.done("needs it")

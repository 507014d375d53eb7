"""`make studies`: every study is in the plan with options that it takes; the plan is a run that goes on."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study

from gradspec.runs import Store
from studies import all_studies

FOLDER = Path(all_studies.__file__).parent
OTHERS = {  # what is no study of the paper: the frame, training, earlier scripts with a command line of their own
    "all_studies", "guarded", "study", "train_embedded", "layer_slopes_claims", "compare_variants", "forgrad_gain",
    "score_methods", "speed_attributions", "speed_audit", "speed_forgrad", "surgery_coverage",
}  # fmt: skip


class Parsed(Exception):
    """Raised in the place of a study's work, with its arguments."""


def planned(*options):
    return list(all_studies.commands(all_studies.arguments(list(options))))


@pytest.mark.parametrize("options", [[], ["--nets", "nets", "--images", "photographs"], ["--paper"], ["--smoke"]])
def test_every_command_is_one_that_its_study_takes(options, monkeypatch, tmp_path):
    def stop(run):
        raise Parsed(run.args)

    monkeypatch.setattr(study.Study, "__post_init__", stop)
    monkeypatch.setattr("studies.compare_networks.found", lambda args: {})
    monkeypatch.setattr("studies.compare_networks.fits", lambda args: {})
    names = []
    for name, *given in planned(*options):
        with pytest.raises(Parsed) as caught:
            importlib.import_module(f"studies.{name}").main([*given, "--out", str(tmp_path)])
        args = caught.value.args[0]
        names.append(args.name)
        assert str(args.images) == "photographs" or args.images is None
        assert ("--paper" in given) == args.paper and ("--smoke" in given) == args.smoke
    assert len(set(names)) == len(names)  # none writes over another's files


def test_no_study_is_left_out():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - OTHERS
    assert {name for name, *_ in planned()} == scripts


def test_a_study_runs_and_a_failing_one_is_told_of(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(all_studies, "PLAN", (("propositions", "vgg_max", ""), ("propositions", "no_such_net", "")))
    options = ["--only", "propositions", "--smoke", "--out", str(tmp_path), "--run", str(tmp_path / "run")]
    assert all_studies.main(options) == 1
    about = json.loads((tmp_path / "propositions_vgg_max.json").read_text())
    assert about["study"] == "propositions" and about["model"] == "demo:vgg_max" and about["threads"] == 1
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["propositions_vgg_max", "done"], ["propositions_no_such_net", "failed"],
    ]  # fmt: skip
    said = [line for line in err.splitlines() if "propositions.py --model" in line]
    assert len(said) == 2 and all("--smoke" in line for line in said)
    assert "failed:\npropositions_no_such_net: StudyFailed: exit code 1: " in err
    assert "no_such_net" in Store(tmp_path / "run").error("propositions_no_such_net")


# ---- a run, with studies that do nothing ---------------------------------------------------------

FAKE = '''
"""Does what the files beside it say: break-NAME, empty-NAME, die-NAME, hang-NAME."""

import fcntl, json, os, signal, sys, time
from pathlib import Path

import beside  # as studies import each other

HERE, OPTIONS = Path(__file__).parent, sys.argv[1:]
NAME = OPTIONS[OPTIONS.index("--name") + 1] if "--name" in OPTIONS else Path(__file__).stem
OUT = Path(OPTIONS[OPTIONS.index("--out") + 1])
with open(HERE / "starts", "a") as file:
    file.write(NAME + "\\n")
print(f"{NAME} begins")
if (HERE / f"break-{NAME}").exists():
    print("a word on stderr", file=sys.stderr)
    raise LookupError("broken on purpose")
if (HERE / f"die-{NAME}").exists():
    os.kill(os.getpid(), signal.SIGKILL)
if (HERE / f"hang-{NAME}").exists():
    lock = open(HERE / f"lock-{NAME}", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (HERE / f"hangs-{NAME}").touch()
    time.sleep(600)
if not (HERE / f"empty-{NAME}").exists():
    OUT.mkdir(parents=True, exist_ok=True)
    threads = [os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    (OUT / f"{NAME}.json").write_text(json.dumps({"seconds": 7, "threads": threads, "options": OPTIONS}))
'''
SMALL = (
    ("layer_slopes", "vgg_max", ""),
    ("layer_slopes", "vit", "--patch"),
    ("judge_methods", "vgg_max", "--limit 128"),
    ("judge_methods", "vit", ""),
    ("first_order", "vgg_max", "--limit 64"),
)
NAMES = ["layer_slopes_vgg_max", "layer_slopes_vit", "judge_vgg_max", "judge_vit", "first_order_vgg_max"]
LAST = ["compare_networks", "cutoff_sources"]


class Fakes:
    """A folder of studies that do nothing, and the runs of them."""

    def __init__(self, folder, capfd=None):
        self.folder, self.capfd = folder, capfd
        self.run, self.out = folder.parent / "runs" / "studies", folder.parent / "figures"
        folder.mkdir()
        (folder / "beside.py").touch()
        for name, *_ in planned():
            (folder / f"{name}.py").write_text(FAKE)

    def __call__(self, *options):
        """Returns the exit code, the table as state by name, and stderr."""
        self.capfd.readouterr()
        code = all_studies.main([*options, "--json"])
        out, err = self.capfd.readouterr()
        return code, {row["name"]: row["state"] for row in json.loads(out or "[]")}, err

    def starts(self):
        """Names of what was started since this was last asked, in order."""
        path = self.folder / "starts"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def begin(self, *options):
        """Starts the script itself, with its whole plan, in a process group of its own."""
        for name in ("all_studies.py", "guarded.py"):
            shutil.copy(FOLDER / name, self.folder)
        environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "PYTHONWARNINGS": "ignore"}
        return subprocess.Popen(
            [sys.executable, str(self.folder / "all_studies.py"), *options], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, name, driver):
        deadline = time.monotonic() + 120
        while not (self.folder / f"hangs-{name}").exists():
            assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()
            time.sleep(0.02)

    def gone(self, name, patience=30.0):
        """Returns whether the process of a study that hung has ended: its lock is free then."""
        deadline = time.monotonic() + patience
        with open(self.folder / f"lock-{name}") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        return False
                    time.sleep(0.02)


@pytest.fixture
def fakes(tmp_path, monkeypatch, capfd):
    found = Fakes(tmp_path / "studies", capfd)
    monkeypatch.setattr(all_studies, "HERE", found.folder)
    monkeypatch.setattr(all_studies, "PLAN", SMALL)
    monkeypatch.setattr(all_studies, "ALONE", ())
    return found


def test_all_is_done_once(fakes, monkeypatch):
    """In the plan's order, but what reads the results of others last; then there is nothing to do."""
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    code, states, err = fakes("--threads", "3")
    assert (code, set(states.values())) == (0, {"done"}) and list(states) == [*NAMES, *LAST]
    assert f"7 of 7 studies are done in {fakes.run}" in err and "layer_slopes_vit begins" in err
    assert fakes.starts() == [*NAMES, "cutoff_sources", "compare_networks"]
    about = json.loads((fakes.out / "layer_slopes_vit.json").read_text())
    options = ["--model", "demo:vit", "--patch", "--name", "layer_slopes_vit"]
    assert about["options"] == [*options, "--out", str(fakes.out)] and about["threads"] == ["3", "3"]
    row = Store(fakes.run).read("layer_slopes_vit").iloc[0].to_dict()
    assert 0 < row.pop("seconds") < 60
    assert row == {
        "name": "layer_slopes_vit", "command": f"studies/layer_slopes.py {' '.join(options)}", "exit_code": 0,
        "sidecar": "layer_slopes_vit.json",
    }  # fmt: skip
    assert fakes("--threads", "3")[:2] == (0, states) and fakes.starts() == []


def test_what_is_gone_or_planned_otherwise_is_done_again_with_what_reads_it(fakes, monkeypatch):
    assert fakes()[0] == 0
    fakes.starts()
    (fakes.out / "first_order_vgg_max.json").unlink()
    assert fakes()[0] == 0 and fakes.starts() == ["first_order_vgg_max"]
    (fakes.out / "judge_vit.json").unlink()
    assert fakes()[0] == 0 and fakes.starts() == ["judge_vit", "compare_networks"]
    changed = tuple((name, net, "--limit 32" if name == "first_order" else more) for name, net, more in SMALL)
    monkeypatch.setattr(all_studies, "PLAN", changed)
    assert fakes()[0] == 0 and fakes.starts() == ["first_order_vgg_max"]
    assert "--limit 32" in Store(fakes.run).read("first_order_vgg_max")["command"][0]


def test_one_that_fails_is_named_and_alone_runs_again_once_it_is_mended(fakes):
    marks = [fakes.folder / name for name in ("break-judge_vit", "empty-layer_slopes_vit", "die-first_order_vgg_max")]
    for mark in marks:
        mark.touch()
    code, states, err = fakes()
    assert code == 1 and f"3 of 7 studies are done in {fakes.run}\nfailed:\n" in err
    failed = {"layer_slopes_vit": "failed", "judge_vit": "failed", "first_order_vgg_max": "failed"}
    assert states == {**dict.fromkeys([*NAMES, *LAST], "done"), **failed, "compare_networks": "waiting"}
    store = Store(fakes.run)
    assert store.error("judge_vit") == "StudyFailed: exit code 1: LookupError: broken on purpose"
    assert store.error("layer_slopes_vit") == "StudyFailed: it left no layer_slopes_vit.json"
    assert store.error("first_order_vgg_max").startswith("StudyFailed: ended by SIGKILL: ")
    (kept,) = (fakes.run / "errors").glob("judge_vit-*")
    traceback = json.loads(kept.read_text())["traceback"]
    assert "a word on stderr\nTraceback (most recent call last):\n" in traceback and "judge_methods.py" in traceback
    assert "LookupError: broken on purpose" in (fakes.run / "logs" / "judge_vit.log").read_text()
    fakes.starts()
    for mark in marks:
        mark.unlink()
    code, states, _ = fakes()
    assert (code, set(states.values())) == (0, {"done"}) and not any((fakes.run / "errors").iterdir())
    assert fakes.starts() == ["layer_slopes_vit", "judge_vit", "first_order_vgg_max", "compare_networks"]


def test_other_settings_are_refused_with_the_difference(fakes):
    photographs = ["--nets", "nets", "--images", "photographs"]
    assert fakes("--only", "layer_slopes", *photographs)[0] == 0
    fakes.starts()
    spec = Store(fakes.run).spec
    assert (spec["kind"], spec["nets"], spec["images"], spec["threads"]) == ("studies", "nets", "photographs", 1)
    for options, difference in (
        (photographs[:2], 'images: "photographs", now null'),
        ([*photographs, "--threads", "2"], "threads: 1, now 2"),
        (["--paper", *photographs, "--run", str(fakes.run)], "paper: false, now true"),
    ):
        code, _, err = fakes(*options)
        assert code == 2 and f"holds a run of other settings ({difference})" in err
    assert fakes.starts() == []
    code, states, _ = fakes("--paper", "--only", "layer_slopes")  # a run of its own
    assert code == 0 and len(states) == len(all_studies.PAPER) and (fakes.run.parent / "studies-paper").is_dir()


def test_a_run_holds_no_path_of_this_machine(fakes, monkeypatch, tmp_path):
    """So that runs of machines whose folders are elsewhere can be merged, and go on."""
    monkeypatch.setattr(all_studies, "PLAN", (("layer_slopes", "tiny_darknet", ""),))
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        folders = ["--nets", str(tmp_path / place / "nets"), "--images", str(tmp_path / place / "images")]
        assert fakes("--only", "layer_slopes", *folders)[0] == 0
    assert fakes.starts() == ["layer_slopes_tiny_darknet"]
    command = Store(fakes.run).read("layer_slopes_tiny_darknet")["command"][0]
    assert "--model NETS/tiny_darknet.py:load --weights NETS/tiny_darknet.safetensors --images IMAGES" in command
    assert str(tmp_path) not in (fakes.run / "spec.json").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "2/2"], "must be I/N with I from 0 to N - 1, got 2/2"),
        (["--threads", "0"], "must be a whole number from 1 on, got 0"),
        (["--only", "no_such_study"], "no study no_such_study in this plan"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(options, said, fakes, capfd):
    with pytest.raises(SystemExit) as stop:
        all_studies.main(options)
    assert stop.value.code == 2 and said in capfd.readouterr().err and not fakes.run.exists()


def test_a_list_does_nothing(fakes, capfd):
    assert all_studies.main(["--list", "--only", "judge_methods"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[line.split().index("--name") + 1] for line in lines] == ["judge_vgg_max", "judge_vit"]
    assert not fakes.run.exists() and fakes.starts() == []


def test_two_shards_do_everything_between_them_the_long_ones_shared(fakes):
    """Cut by the seconds of earlier results, as they were when the run began; the last does what reads the others."""
    seconds = dict(zip(NAMES, (50, 10, 40, 30, 20), strict=True))
    fakes.out.mkdir()
    for name, cost in seconds.items():
        (fakes.out / f"{name}.json").write_text(json.dumps({"seconds": cost}))
    code, states, err = fakes("--shard", "0/2")  # 50, 40, (cutoff_sources: the median, 30), 30, 20, 10
    assert code == 0 and "\n3 of 7 studies are done" in f"\n{err}"
    first = {name for name, state in states.items() if state == "done"}
    assert first == {"layer_slopes_vgg_max", "judge_vit", "first_order_vgg_max"} and set(fakes.starts()) == first
    assert states["compare_networks"] == "waiting" and states["judge_vgg_max"] == "to do"
    code, states, _ = fakes("--shard", "1/2")
    assert (code, set(states.values())) == (0, {"done"}) and Store(fakes.run).spec["costs"] == seconds
    assert sorted(fakes.starts()) == sorted({*NAMES, *LAST} - first)


# ---- a run that is stopped -----------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, sign):
    fakes, hangs = Fakes(tmp_path / "studies"), "first_order_vit"
    (fakes.folder / f"hang-{hangs}").touch()
    with fakes.begin() as driver:
        fakes.wait_for(hangs, driver)
        driver.send_signal(sign)
        _, err = driver.communicate(timeout=60)
    if sign == signal.SIGINT:
        assert driver.returncode == 130 and "interrupted: the same command goes on" in err
    assert fakes.gone(hangs, 0.0 if sign == signal.SIGINT else 30.0)
    before, whole = fakes.starts(), all_studies.planned(all_studies.arguments([]))
    assert before[-1] == hangs and not list((fakes.run / "errors").glob("*"))
    (fakes.folder / f"hang-{hangs}").unlink()
    with fakes.begin() as driver:
        driver.communicate(timeout=120)
    assert driver.returncode == 0
    assert sorted([*before[:-1], *fakes.starts()]) == sorted(each.name for each in whole)  # each is done once


def test_a_study_that_does_not_end_when_interrupted_is_killed_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(all_studies, "PATIENCE", 0.2)
    lock = tmp_path / "lock"
    deaf = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begins', flush=True); "
    inner = f"{deaf}import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    code = f"{deaf}import subprocess; subprocess.run([sys.executable, '-c', {inner + 'signal.pause()'!r}])"
    with all_studies.started(["-c", code], tmp_path, threads=1) as child:
        assert [child.stdout.readline() for _ in range(3)] == ["begins\n", "begins\n", "1\n"]
        all_studies.end(child)
        assert child.returncode == -signal.SIGKILL
        assert child.stdout.read() == ""  # which the inner one held open, too


@pytest.mark.slow
def test_workers_give_the_same_and_are_stopped_with_their_studies(tmp_path):
    pytest.importorskip("distributed", reason="workers need the extra cluster")
    fakes, hang = Fakes(tmp_path / "studies"), ["first_order_vit", "anti_aliasing_vgg_max"]
    for name in hang:
        (fakes.folder / f"hang-{name}").touch()
    with fakes.begin("--scheduler", "local:2") as driver:
        for name in hang:
            fakes.wait_for(name, driver)
        os.killpg(driver.pid, signal.SIGINT)  # as Ctrl-C does
        driver.communicate(timeout=60)
    assert driver.returncode == 130 and all(fakes.gone(name) for name in hang)
    assert not list((fakes.run / "errors").glob("*"))
    tables = []
    for name in hang:
        (fakes.folder / f"hang-{name}").unlink()
    for options in (["--scheduler", "local:2"], ["--run", str(tmp_path / "serial")]):
        with fakes.begin("--json", *options) as driver:
            out, err = driver.communicate(timeout=120)
        assert driver.returncode == 0, err
        tables.append([{**row, "seconds": row["seconds"] > 0} for row in json.loads(out)])
    assert tables[0] == tables[1] and {row["state"] for row in tables[0]} == {"done"}
    assert json.loads((fakes.out / "first_order_vit.json").read_text())["threads"] == ["1", "1"]

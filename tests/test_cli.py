"""The command line: exit codes, what goes to stdout and what to stderr, and what is never overwritten.

The network, the pictures and the audit are stand-ins here; the last tests run the real ones.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import gradspec as gs
from gradspec import cli, demo, folders, summary, variants
from gradspec.commands import auditing, demonstrating
from gradspec.commands.pictures import held
from gradspec.runs import Store
from gradspec.surgery import NothingToSwap
from gradspec.trials import Trials

ZERO = "its gradient is zero for every picture"
CULPRITS = {
    "call": pd.DataFrame(
        {
            "call": [f"layer{i}.pool" for i in range(7)],
            "operator": "MaxPool2d",
            "type": "max pooling",
            "stage": 1,
            "new_power": [0.3 - 0.1 * i for i in range(7)],
            "se": 0.01,
        }
    ),
    "type": pd.DataFrame({"type": ["max pooling"], "calls": [7], "new_power": [0.1], "se": [0.01]}),
}


@dataclass(frozen=True, eq=False)
class FakeAudit:
    note: str = ""
    n: int = 3
    r2: float = 0.68
    unseen: dict = field(default_factory=dict)
    spec: dict = field(default_factory=lambda: {"seed": 0})

    @property
    def table(self):
        row = {"call": "input", "slope_nyquist": -0.41, "se_nyquist": 0.02, "high_share": 0.55, "se_share": 0.01}
        row |= {"point": "input", "excess": -0.25, "r2": self.r2, "n": self.n, "note": self.note}
        others = [row | {"call": "conv1", "slope_nyquist": 9.0}, row | {"point": "output", "slope_nyquist": 9.0}]
        return pd.DataFrame([*others, row])

    def culprits(self, by="call"):
        return CULPRITS[by]


NET = nn.Sequential(nn.Conv2d(3, 10, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def pictures():
    """Two pictures as a folder of them would be: with names, without labels."""
    return held(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


AUDIT, RESULT_OF = gs.audit, auditing.result_of
REAL = AUDIT(NET, pictures(), progress=False)


class FakeModel(nn.Module):
    mean, std, classes, spec = (0.5, 0.25, 0.0), (0.5, 0.5, 0.25), None, {}

    def preprocess(self, picture: Image.Image):
        return torch.zeros(3, 24, 32)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls that the command makes on gradspec, with everything behind them faked, in an empty working folder.

    What is kept is a real audit, what is shown a `FakeAudit`.
    """
    calls = {}

    def record(name, result):
        def function(*args, **kwargs):
            calls[name] = args, kwargs
            return result

        return function

    monkeypatch.setattr(gs, "load_model", record("load_model", FakeModel()), raising=False)
    monkeypatch.setattr(gs, "load_images", record("load_images", pictures()), raising=False)
    monkeypatch.setattr(gs, "audit", record("audit", REAL), raising=False)
    monkeypatch.setattr(auditing, "result_of", lambda store: FakeAudit())
    monkeypatch.setattr(gs, "report", lambda folder, out=None: out or folder / "report.html", raising=False)
    monkeypatch.setattr(summary, "draw", lambda audit, folder: [folder / "profile.png"])
    monkeypatch.chdir(tmp_path)
    return calls


def of_gradspec(function):
    """The function as a module of gradspec would hold it: whose `raise` it is decides what the user sees."""
    namespace = {**function.__globals__, "__name__": "gradspec.fake"}
    return FunctionType(function.__code__, namespace, None, None, function.__closure__)


def raising(error):
    def function(*args, **kwargs):
        raise error

    return of_gradspec(function)


def test_options_reach_what_they_name(calls, tmp_path, capsys):
    options = "--images pics --out a/run --weights none --device cpu --batch-size 2 --seed 7 --limit 5 --size 48"
    assert cli.main(["audit", "net", *options.split(), "--layers", "conv1", "fc", "--target", "probability"]) == 0
    assert calls["load_model"] == (("net", "none"), {"seed": 7})
    (folder, model, limit), kwargs = calls["load_images"]
    assert (folder, type(model), limit, kwargs) == (
        Path("pics"),
        FakeModel,
        5,
        {"batch_size": 2, "seed": 7, "size": 48},
    )
    (model, data), kwargs = calls["audit"]
    assert data.ids == pictures().ids
    target = kwargs.pop("target")
    assert target(torch.zeros(1, 4), torch.tensor([0])).item() == pytest.approx(0.25)  # softmax; the logit would be 0
    assert kwargs == {"layers": ("conv1", "fc"), "batch_size": 2, "device": "cpu", "seed": 7, "progress": True}
    command = json.loads((tmp_path / "a/run/spec.json").read_text())["command"]
    assert command["images"] == "pics" and command["layers"] == ["conv1", "fc"]
    assert capsys.readouterr().out.endswith("audit saved to a/run, its page: a/run/report.html\n")


def test_defaults_are_the_logit_of_every_operator(calls):
    assert cli.main(["audit", "net", "--images", "pics"]) == 0
    kwargs = calls["audit"][1]
    target = kwargs.pop("target")
    assert target(torch.tensor([[1.0, 3.0]]), torch.tensor([1])).item() == 3
    assert kwargs == {"layers": None, "batch_size": None, "device": None, "seed": 0, "progress": True}
    assert calls["load_model"] == (("net", "default"), {"seed": 0})


def test_without_images_it_draws_pictures_of_the_networks_size_and_says_so(calls, capsys):
    assert cli.main(["audit", "net", "--limit", "3", "--seed", "1"]) == 0
    images = calls["audit"][0][1].images
    drawn = demo.pictures(3, size=(24, 32), seed=1).images
    restored = images * torch.tensor(FakeModel.std).view(3, 1, 1) + torch.tensor(FakeModel.mean).view(3, 1, 1)
    torch.testing.assert_close(restored, drawn)
    assert (
        "no --images: 3 generated pictures, 24 x 32, labelled by the network's predictions" in capsys.readouterr().err
    )


def test_a_preprocessing_without_mean_and_std_is_applied_itself(monkeypatch, calls):
    model = FakeModel()
    model.mean = None
    model.preprocess = lambda picture: torch.full((1, picture.height, 20), picture.getpixel((0, 0))[0] / 255)
    monkeypatch.setattr(gs, "load_model", lambda *args, **kwargs: model)
    assert cli.main(["audit", "net", "--limit", "2"]) == 0
    images, drawn = calls["audit"][0][1].images, demo.pictures(2, size=(256, 20)).images
    torch.testing.assert_close(images[:, 0, 0, 0], drawn[:, 0, 0, 0], atol=1 / 255, rtol=0)  # 8-bit pictures
    assert images.shape == (2, 1, 256, 20)


def test_size_overrides_the_networks(calls):
    assert cli.main(["audit", "net", "--limit", "1", "--size", "40"]) == 0
    assert calls["audit"][0][1].images.shape == (1, 3, 40, 40)


def test_summary_holds_slope_unseen_and_five_culprits(monkeypatch, calls, capsys):
    unseen = {f"drop{i}": "never called" for i in range(3)} | {"head": "no spatial axes", "proj": ZERO, "mlp": ZERO}
    monkeypatch.setattr(auditing, "result_of", lambda store: FakeAudit(unseen=unseen))
    assert cli.main(["audit", "net", "--images", "pics"]) == 0
    out = capsys.readouterr().out
    assert "mean over 3 pictures ± standard error\n" in out
    assert "-0.410 ± 0.020 per Nyquist (log10 amplitude), r² 0.68\n" in out  # of the input, not of the first row
    assert "0.550 ± 0.010 (-0.250 against white noise)" in out
    assert (
        f"not seen: 6\n  {ZERO}: 2 (proj, mlp)\n  no spatial axes: 1 (head)\n  never called: 3 (drop0, drop1, ...)\n\n"
    ) in out
    assert "layer4.pool" in out and "layer5.pool" not in out
    assert "max pooling      7    +0.100 0.010" in out
    assert "runs/net-1/figures/profile.png" in out


def test_a_poor_fit_and_a_single_picture_are_said(monkeypatch, calls, capsys):
    monkeypatch.setattr(auditing, "result_of", lambda store: FakeAudit(n=1, r2=0.31))
    assert cli.main(["audit", "net", "--images", "pics"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gradient at the network's input, 1 picture, no standard error\n")
    assert "-0.410 per Nyquist (log10 amplitude), r² 0.31: the line fits poorly, read the share\n" in out
    assert "0.550 (-0.250 against white noise)" in out


def test_many_reasons_are_cut(monkeypatch, calls, capsys):
    monkeypatch.setattr(
        auditing, "result_of", lambda store: FakeAudit(unseen={f"fc{i}": f"reason {i}" for i in range(9)})
    )
    assert cli.main(["audit", "net", "--images", "pics"]) == 0
    out = capsys.readouterr().out
    assert "reason 5: 1 (fc5)\n  and 3 more reasons, see spec.json\n" in out and "reason 6" not in out


@pytest.mark.parametrize(
    ("size", "options", "warned"),
    [(64, "--size 128", True), (64, "--size 64", False), (64, "", False), (None, "--size 128", False),
     (64, "--size 128 --weights none", False)],
)  # fmt: skip
def test_another_size_than_the_trained_one_is_warned_of(monkeypatch, calls, capsys, size, options, warned):
    monkeypatch.setattr(FakeModel, "spec", {"size": size} if size else {})
    assert cli.main(["audit", "net", "--limit", "1", *options.split()]) == 0
    err = capsys.readouterr().err
    assert ("gradspec: warning: net was trained at 64 px; at 128 px it may name objects wrong\n" in err) == warned
    assert ("trained at" in err) == warned


def test_a_slope_that_cannot_be_fitted_shows_its_reason(monkeypatch, calls, capsys):
    monkeypatch.setattr(auditing, "result_of", lambda store: FakeAudit(note="the gradient is zero"))
    assert cli.main(["audit", "net", "--images", "pics"]) == 0
    assert "slope                     the gradient is zero" in capsys.readouterr().out


def test_runs_are_numbered_and_never_overwritten(calls, capsys, tmp_path):
    for number in (1, 2):
        assert cli.main(["audit", "path/net.py:load", "--images", "pics"]) == 0
        folder = f"runs/net-load-{number}"
        assert capsys.readouterr().out.endswith(f"audit saved to {folder}, its page: {folder}/report.html\n")
    calls.clear()
    assert cli.main(["audit", "net", "--images", "pics", "--out", "runs/net-load-1"]) == 2
    out, err = capsys.readouterr()
    assert (calls, out) == ({}, "")  # refused before any work
    assert err == (
        'gradspec: error: runs/net-load-1 holds a run of other settings (command.model: "path/net.py:load", now "net"):'
        " name another folder with --out, or remove this one.\n"
    )
    tmp_path.joinpath("thesis").mkdir()
    tmp_path.joinpath("thesis/chapter.tex").write_text("1")
    assert cli.main(["audit", "net", "--images", "pics", "--out", "thesis"]) == 2
    assert "thesis already holds files: name a new folder with --out, or remove" in capsys.readouterr().err
    assert calls == {}


def test_a_run_goes_on_where_it_stopped(calls, capsys):
    command = ["audit", "net", "--images", "pics", "--out", "run", "--pictures-per-unit", "1"]
    assert cli.main(command) == 0 and calls.pop("audit")
    assert cli.main([*command, "--batch-size", "5"]) == 0  # changes how, not what
    assert "audit" not in calls
    first = Store(Path("run")).path("audit, trained, pictures 0 to 0")
    first.unlink()
    assert cli.main(command) == 0
    assert calls["audit"][0][1].ids == pictures().ids[:1] and first.exists()


@pytest.mark.parametrize("model", ["../..", "hf-hub:org/name", "torchvision:resnet18", "a b\\c", ":"])
def test_a_default_folder_lies_in_runs(model):
    folder = folders.first_free(model, Path("runs"))
    assert folder.parent == Path("runs") and folder.name.endswith("-1") and not set(folder.name) & set(":/\\ ")


def test_a_folder_that_cannot_be_made_is_a_wrong_argument(calls, tmp_path, capsys):
    tmp_path.joinpath("file").touch()
    for out in ("file", "file/run"):
        assert cli.main(["audit", "net", "--images", "pics", "--out", out]) == 2
        assert f"Cannot make the folder {out} (" in capsys.readouterr().err


def test_a_failure_removes_only_the_folders_it_made(monkeypatch, calls, tmp_path):
    monkeypatch.setattr(gs, "load_model", raising(ValueError("No model.")))
    tmp_path.joinpath("mine").mkdir()
    for out in ("mine/a/b", "mine"):
        assert cli.main(["audit", "net", "--out", out]) == 2
        assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_an_empty_folder_may_be_named(calls, tmp_path):
    tmp_path.joinpath("run").mkdir()
    assert cli.main(["audit", "net", "--images", "pics", "--out", "run"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        "--limit 0",
        "--batch-size 0",
        "--seed -1",
        "--size 0",
        "--device nowhere",
        "--target sum",
        "--limit x",
        "--frob",
        "--layers",
    ],
)
def test_a_wrong_option_is_refused_before_any_work(wrong, calls, tmp_path, capsys):
    assert cli.main(["audit", "net", *wrong.split()]) == 2
    out, err = capsys.readouterr()
    assert wrong.split()[0] in err and "Traceback" not in err
    assert (calls, out, list(tmp_path.iterdir())) == ({}, "", [])


def test_a_warning_is_one_line_on_stderr(monkeypatch, calls, capsys):
    def audit(*args, **kwargs):
        warnings.warn("1 pictures in pics were skipped: broken.jpg", stacklevel=1)
        return REAL

    monkeypatch.setattr(gs, "audit", audit)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["audit", "net", "--images", "pics"]) == 0
    assert capsys.readouterr().err == "gradspec: warning: 1 pictures in pics were skipped: broken.jpg\n"
    assert warnings.showwarning is shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("No model is called 'net'; did you mean 'nets'?"), 2),
        (FileNotFoundError("There is no folder pics."), 2),
        (RuntimeError("The weights are not on this machine; download them first."), 1),
    ],
)
@pytest.mark.parametrize("name", ["load_model", "load_images"])
def test_a_sentence_of_gradspecs_comes_without_traceback(monkeypatch, calls, capsys, tmp_path, name, error, code):
    monkeypatch.setattr(gs, name, raising(error))
    assert cli.main(["audit", "net", "--images", "pics"]) == code
    assert capsys.readouterr() == ("", f"gradspec: error: {error}\n")
    assert not list(tmp_path.iterdir())  # no empty folder stays behind, nor its parent


@pytest.mark.parametrize(
    "surprise",
    [
        of_gradspec(
            lambda *args, **kwargs: torch.ones(2) @ torch.ones(3)
        ),  # raised in C++: the last frame is gradspec's
        of_gradspec(lambda *args, **kwargs: {}["call"]),  # a bug
        raising(AssertionError("an invariant of ours")),
        lambda *args, **kwargs: json.loads("{"),  # raised by another library
    ],
)
def test_a_surprise_comes_with_its_traceback(monkeypatch, calls, capsys, surprise):
    monkeypatch.setattr(gs, "load_model", surprise)
    assert cli.main(["audit", "net", "--images", "pics"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("gradspec: error: ")


@pytest.mark.parametrize("code", [0, None, 3, "good bye"])
def test_code_of_others_that_ends_the_program_is_a_failure(monkeypatch, capsys, code):
    monkeypatch.setattr(auditing.AuditCommand, "run", lambda self: sys.exit(code))
    assert cli.main(["audit", "net"]) == 1
    assert f"gradspec: error: the network's own code ended the program (sys.exit({code!r}))" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("Expected logits, got none."), KeyError("call")])
def test_a_unit_that_fails_is_kept_with_its_traceback_and_the_others_are_done(monkeypatch, calls, capsys, error):
    def audit(model, data, **kwargs):
        if data.ids[0] == pictures().ids[0]:
            raise error
        return REAL

    monkeypatch.setattr(gs, "audit", audit)
    command = ["audit", "net", "--images", "pics", "--out", "run", "--pictures-per-unit", "1"]
    assert cli.main(command) == 1
    err = capsys.readouterr().err
    reason = "Expected logits, got none." if isinstance(error, ValueError) else "KeyError: 'call'"
    assert err.splitlines()[-1] == (
        f"gradspec: error: 1 unit(s) failed (audit, trained, pictures 0 to 0: {reason.rstrip('.')}); the tracebacks "
        "are in run/errors."
    )
    (kept,) = Path("run/errors").iterdir()
    about = json.loads(kept.read_text(encoding="utf-8"))
    assert about["unit"] == "audit, trained, pictures 0 to 0" and "Traceback" in about["traceback"]
    assert Store(Path("run")).done("audit, trained, pictures 1 to 1")
    monkeypatch.setattr(gs, "audit", lambda *a, **k: REAL)
    assert cli.main(command) == 0 and not list(Path("run/errors").iterdir())


def test_json_is_printed_where_nothing_is_found_too(monkeypatch, calls, capsys):
    monkeypatch.setattr(auditing, "result_of", RESULT_OF)
    monkeypatch.setattr(gs, "audit", raising(ValueError("Expected logits, got none.")))
    command = ["audit", "net", "--images", "pics", "--out", "run", "--pictures-per-unit", "1", "--json"]
    assert cli.main(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert [lost["reason"] for lost in found["failed"]] == ["Expected logits, got none."] * 2
    monkeypatch.setattr(gs, "audit", lambda *a, **k: REAL)
    assert cli.main([*command, "--shard", "1/2"]) == 0  # its part alone: nothing whole to show
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": "run", "failed": []}
    assert "nothing to show yet: The audit in run is not finished: Expected logits, got none" in err


def test_shards_need_a_folder_to_come_together_in(calls, tmp_path, capsys):
    assert cli.main(["audit", "net", "--shard", "0/2"]) == 2
    assert "--shard needs --out, the folder in which the parts come together" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_job_s_time_is_an_interrupt(monkeypatch, calls, capsys):
    def audit(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return REAL

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(gs, "audit", audit)
    assert cli.main(["audit", "net", "--images", "pics", "--out", "run"]) == 130
    assert "the same command with --out run goes on from there" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_interrupting_gives_130_and_a_run_that_goes_on(monkeypatch, calls, capsys):
    done = []

    def audit(*args, **kwargs):
        done.append(args)
        if len(done) == 2:
            raise KeyboardInterrupt
        return REAL

    monkeypatch.setattr(gs, "audit", audit)
    command = ["audit", "net", "--images", "pics", "--pictures-per-unit", "1"]
    assert cli.main(command) == 130
    out, err = capsys.readouterr()
    assert out == "" and err == (
        "gradspec: 2 finished units are in runs/net-1: the same command with --out runs/net-1 goes on from there\n"
        "gradspec: interrupted\n"
    )
    assert cli.main([*command, "--out", "runs/net-1"]) == 0 and len(done) == 3  # the first is not done again


@pytest.fixture
def compared(monkeypatch, calls):
    """The calls of a command that compares: variants are stand-ins, all of them one tiny network."""

    def made(model, name, data, seed):
        calls.setdefault("variants", []).append((name, data, seed))
        if name == "blurpool":
            raise NothingToSwap("The network has no stride.")
        return NET

    def audit(model, data, **kwargs):
        calls.setdefault("audits", []).append(kwargs)
        return AUDIT(model, data, **kwargs | {"layers": None})

    class Model(nn.Sequential, FakeModel):
        pass

    monkeypatch.setattr(gs, "load_model", lambda *args, **kwargs: Model(*NET))
    monkeypatch.setattr(gs, "audit", audit)
    monkeypatch.setattr(auditing, "result_of", RESULT_OF)
    monkeypatch.setattr(variants, "variant", made)
    return calls


def test_variants_are_made_and_compared_in_the_order_given(compared, capsys, tmp_path):
    options = "--variants avgpool blurpool trained --images pics --out run --seed 5 --batch-size 3 --layers fc"
    assert cli.main(["audit", "net", *options.split()]) == 0
    assert {seed for *_, seed in compared["variants"]} == {5}
    assert [(how["layers"], how["batch_size"], how["seed"]) for how in compared["audits"]] == [(("fc",), 3, 5)] * 2
    out, err = capsys.readouterr()
    assert "blurpool does not apply: The network has no stride." in out  # a row, not a failure
    assert "gradspec: variant blurpool does not apply: The network has no stride.\n" in err
    saved = gs.Comparison.load("run")
    assert saved.missing == {"blurpool": "The network has no stride."} and list(saved.audits) == ["avgpool", "trained"]
    assert saved.drift["variant"].tolist() == ["avgpool", "blurpool", "trained"]
    assert saved.effects is None and not saved.spec["labelled"]
    named = NET(pictures().images).argmax(1).tolist()
    assert all(found.spec["labels"] == named for found in saved.audits.values())


def test_the_causal_arm_alone_compares_the_network_with_itself(compared, capsys, tmp_path):
    assert cli.main(["audit", "net", "--images", "pics", "--out", "run", "--causal"]) == 0
    saved = gs.Comparison.load("run")
    assert list(saved.audits) == ["trained"]
    assert saved.effects is not None and set(saved.effects["arm"]) == {"none", "all", "one", "all but one"}
    own = gs.compare({"trained": NET}, pictures(), progress=False)
    columns = ["slope_nyquist", "high_share", "change"]
    pd.testing.assert_frame_equal(saved.effects[columns], own.causal(progress=False)[columns], rtol=1e-6)
    assert "slope at the input of trained with average pooling instead\n  none " in capsys.readouterr().out


def test_the_next_variant_is_the_reference_where_the_first_does_not_apply(compared, capsys):
    assert cli.main(["audit", "net", "--images", "pics", "--variants", "blurpool", "avgpool", "trained"]) == 0
    assert "gradspec: the reference is avgpool, since blurpool does not apply\n" in capsys.readouterr().err
    assert cli.main(["audit", "net", "--images", "pics", "--out", "other", "--weights", "none", "--causal"]) == 0
    assert list(gs.Comparison.load("other").audits) == ["untrained"]


def test_no_variant_that_applies_is_a_failure_that_leaves_nothing(compared, capsys, tmp_path):
    assert cli.main(["audit", "net", "--images", "pics", "--variants", "blurpool"]) == 2
    assert "None of the variants applies to net." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("trained avgpol", "No variant is called 'avgpol'; nearest: avgpool"),
        ("trained trained", "--variants names trained twice"),
        ("", "--variants needs at least one NAME"),
        ("avgpool+demo:vit", "No variant is called 'demo:vit'"),
        ("untrained trained --weights none", "--weights none loads no trained network: name the variant untrained"),
    ],
)
def test_wrong_variants_are_refused_before_any_work(compared, capsys, tmp_path, wrong, says):
    assert cli.main(["audit", "net", "--variants", *wrong.split()]) == 2
    assert says in capsys.readouterr().err
    assert compared == {} and not list(tmp_path.iterdir())


def test_the_demo_overwrites_a_demo_and_nothing_else(compared, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demonstrating, "tried_on", lambda shop: ())
    monkeypatch.setattr(Trials, "load", lambda folder: None)
    monkeypatch.setattr(demonstrating, "write_tables", lambda trials, out: {})
    monkeypatch.setattr(demonstrating, "told", lambda trials: "what FORGrad gains")
    for _ in range(2):
        assert cli.main(["demo"]) == 0
        out = capsys.readouterr().out
        assert out.endswith("saved to gradspec-demo, its page: gradspec-demo/report.html\n")
        assert "\n\nwhat FORGrad gains\n\nfigures" in out
        Path("gradspec-demo/old.txt").write_text("of an older version")
    saved = gs.Comparison.load("gradspec-demo")
    assert list(saved.audits) == [name for name in demonstrating.VARIANTS if name != "blurpool"]
    first = saved.audits["trained"]
    assert first.spec["input_shape"] == [3, 24, 32] and first.spec["labels"] == [i % 10 for i in range(64)]
    for folder, file in (("thesis", "chapter.tex"), ("run", "spec.json")):
        tmp_path.joinpath(folder).mkdir()
        tmp_path.joinpath(folder, file).write_text("{}")
        assert cli.main(["demo", "--out", folder]) == 2
        assert f"{folder} already holds files" in capsys.readouterr().err
        assert [path.name for path in tmp_path.joinpath(folder).iterdir()] == [file]


def test_a_report_is_written_where_asked(calls, capsys):
    assert cli.main(["report", "run"]) == 0
    assert cli.main(["report", "run", "--out", "elsewhere/page.html"]) == 0
    assert capsys.readouterr().out.splitlines() == ["run/report.html", "elsewhere/page.html"]


@pytest.mark.parametrize(
    ("pattern", "some", "none"), [("resnet18*", "resnet18.", "resnet34"), ("vgg_m", "demo:vgg_max", "timm")]
)
def test_models_are_listed_by_part_of_a_name_or_pattern(pattern, some, none, capsys):
    assert cli.main(["models", pattern]) == 0
    out = capsys.readouterr().out
    assert some in out and none not in out


def test_models_without_classes_are_not_listed(capsys):
    assert cli.main(["models", "vit_base_patch14_dinov2.lvd142m"]) == 2
    assert cli.main(["models", "vit_base_patch16_224.augreg_in1k"]) == 0
    assert capsys.readouterr().out == "vit_base_patch16_224.augreg_in1k\n"


def test_a_pattern_without_models_names_the_nearest(capsys):
    assert cli.main(["models", "resnet18.a1_in1"]) == 0  # part of a name
    assert cli.main(["models", "torchvision:resnet81"]) == 2
    assert "nearest: torchvision:resnet18" in capsys.readouterr().err


def test_help_version_and_no_command(capsys):
    assert cli.main(["--help"]) == 0
    assert {"audit", "demo", "models"} <= set(capsys.readouterr().out.split())
    assert cli.main([]) == 0
    assert "usage: gradspec" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gradspec ")
    assert cli.main(["frob"]) == 2


def test_a_reader_that_closes_the_pipe_is_no_error():
    command = [sys.executable, "-m", "gradspec", "models", "resnet18"]  # short: still in the buffer at the end
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_the_real_audit_saves_what_it_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--weights none --seed 3 --limit 4 --size 40 --target probability --batch-size 3"
    assert cli.main(["audit", "demo:vgg_max", *options.split()]) == 0
    out = capsys.readouterr().out
    folder, _, page = out.splitlines()[-1].removeprefix("audit saved to ").partition(", its page: ")
    assert Path(page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    saved = gs.Audit.load(folder)
    expected = gs.audit(
        gs.load_model("demo:vgg_max", "none", seed=3),
        (demo.pictures(4, size=40, seed=3).images - 0.45) / 0.2,
        target=gs.label_probability,
        progress=False,
    )
    slopes, others = (audit.table["slope_nyquist"].to_numpy() for audit in (saved, expected))
    assert slopes == pytest.approx(others, abs=1e-5, nan_ok=True)  # float32 rounding: the batches differ
    assert f"{expected.input_slope[0]:+.3f} ± " in out
    assert f"{expected.culprits('type')['new_power'][0]:+.3f}" in out
    assert saved.spec["command"]["seed"] == 3
    figures = [line.strip() for line in out.splitlines() if line.endswith(".png")]
    assert [Path(path).read_bytes()[1:4] for path in figures] == [b"PNG"] * 4


def test_the_real_demo_compares_surgery_with_retraining(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demonstrating, "VARIANTS", ("trained", "avgpool", "demo:vgg_avg"))
    for name, value in {
        "METHODS": ("Saliency",),
        "FITTED": ("trained", "demo:vgg_avg"),
        "CUTOFFS": (5.0,),
        "SELECTED_PICTURES": 4,
        "REPORTED_PICTURES": 10,
    }.items():
        monkeypatch.setattr(demonstrating, name, value)
    assert cli.main(["demo", "--out", "here"]) == 0
    saved = gs.Comparison.load("here")
    first = saved.audits["trained"]
    assert first.spec["labels"] == [i % 10 for i in range(64)]
    assert first.culprits("type")["type"][0] == "max pooling"
    drift = saved.drift.set_index("variant")
    assert drift["accuracy"]["trained"] > 0.9 < drift["accuracy"]["demo:vgg_avg"]
    assert drift["accuracy"]["avgpool"] < 0.6  # without retraining the surgery costs what the network knew
    assert (
        drift["slope_nyquist"]["avgpool"] < drift["slope_nyquist"]["demo:vgg_avg"] < drift["slope_nyquist"]["trained"]
    )
    assert len(saved.effects) == 2 + 2 * 4
    assert capsys.readouterr().out.endswith("audit saved to here, its page: here/report.html\n")
    page = Path("here/report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 5e6 and page.index('id="cutoffs"') < page.index('id="before-after"')
    tried = Trials.load("here/forgrad")
    assert list(tried.scored) == ["trained", "demo:vgg_avg"] and tried.fitted == 2
    selected, reported = tried.fit("trained", "Saliency").pictures, tried.scored["trained"].pictures
    assert len({*first.pictures, *selected, *reported}) == 64 + 4 + 10  # no picture serves twice
    assert tried.scored["trained"].accuracy > 0.8

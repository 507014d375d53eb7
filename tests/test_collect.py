"""`gs.load`, `gradspec collect` and `gradspec diff`: tables of saved runs, and how two of them differ.

The network is a small one from a file, of which one weight can be changed; drawing and the pages are stand-ins.
"""

import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gradspec as gs
from gradspec import cli, differing, plots, saved, summary
from gradspec.commands import collecting, showing
from gradspec.fourier import ring_radii
from gradspec.runs import Store
from gradspec.statistics import bootstrap_interval
from gradspec.trials import Trials

load: Any = gs.load
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


def changed():
    net = load()
    net[0].weight.data[0, 0, 0, 0] += 0.5
    return net
"""
SIZE = ["--size", "16"]
AUDIT = [*SIZE, "--limit", "5", "--pictures-per-unit", "2"]
TRIAL = [*SIZE, "--cutoffs", "4", "2", "--pictures-per-unit", "4"]
SCORED = ["--limit", "24", "--metrics", "Deletion", "Insertion"]
SEVERAL = ["trained", "avgpool-stride", "avgpool"]  # the second does not apply


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs: audits `a`, its twin `again`, and `b` of one other weight; variants; fits; scores; an atlas."""
    folder = tmp_path_factory.mktemp("collect")
    (folder / "net.py").write_text(NET)
    net, other = f"{folder / 'net.py'}:load", f"{folder / 'net.py'}:changed"
    commands = {
        "a": ["audit", net, *AUDIT],
        "again": ["audit", net, *AUDIT],
        "b": ["audit", other, *AUDIT],
        "variants": ["audit", net, *AUDIT, "--variants", *SEVERAL],
        "fits": ["fit", net, *TRIAL, "--limit", "8", "--variants", *SEVERAL],
        "scores": ["evaluate", net, *TRIAL, *SCORED],
        "other": ["evaluate", other, *TRIAL, *SCORED],
        "atlas": ["atlas", net, other, *SIZE, "--limit", "3", "--draws", "2"],
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(showing, "draw", lambda trials, folder: [])
        patch.setattr(summary, "draw", lambda result, folder: [])
        patch.setattr(plots, "atlas", lambda table: None)
        patch.setattr(plots, "save", lambda figure, path: [])
        patch.setattr(gs, "report", lambda folder, out=None: Path(folder, "report.html"), raising=False)
        for name, words in commands.items():
            assert cli.main([*words, "--out", str(folder / name)]) == 0, name
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with copies of the runs: exit code, stdout, stderr."""
    for name in (path.name for path in made.iterdir() if path.is_dir()):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*args):
        code = cli.main([*map(str, args)])
        return code, *capsys.readouterr()

    return run


def csv(text) -> Any:
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])


def same(found, wanted):
    """The wanted columns of a table that was printed are those of a result."""
    wanted = wanted.reset_index(drop=True)
    text = [name for name in wanted if not pd.api.types.is_numeric_dtype(wanted[name])]
    there = {**wanted, **{name: wanted[name].replace("", None) for name in text}}
    pd.testing.assert_frame_equal(
        found[list(wanted)].astype(dict.fromkeys(text, object)).replace({None: np.nan}),
        pd.DataFrame(there).astype(dict.fromkeys(text, object)).replace({None: np.nan}),
        check_dtype=False, rtol=1e-12,
    )  # fmt: skip


def units_of(folder):
    return sorted(Path(folder, "units").glob("*.parquet"))


def damage(path):
    """Cuts the end off, as a disk that is full does."""
    path.write_bytes(path.read_bytes()[:-20])


# ---- load ------------------------------------------------------------------------------------


def test_load_gives_whatever_a_folder_holds(run, tmp_path):
    kinds = {"a": gs.Audit, "variants": gs.Comparison, "fits": Trials, "scores": Trials, "atlas": pd.DataFrame}
    assert {name: type(load(name)) for name in kinds} == kinds
    fit, scores = load("fits").fit("trained", "Saliency"), load("scores").scored["trained"]
    fit.save("one fit")
    scores.save("one score")
    pd.testing.assert_frame_equal(load("one fit").per_image, fit.per_image)
    pd.testing.assert_frame_equal(load(tmp_path / "one score").table, scores.table)
    networks = load("atlas")
    assert list(networks["slope_nyquist"]) == sorted(networks["slope_nyquist"], reverse=True)
    assert sorted(networks["network"].str.rpartition(":")[2]) == ["changed", "load"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "has no spec.json"),
        ("{", "Cannot read"),
        ("[1]", "says no kind"),
        ('{"kind": "novel", "format": 2}', "says 'novel'"),
        ('{"kind": ["audit"]}', "says \\['audit'\\]"),
        ('{"kind": "audit", "format": 1}', "of format 2"),
        ('{"kind": "trials", "format": 2}', "a list of names as 'variants'"),
        ('{"kind": "comparison", "format": 2, "variants": ["x"]}', "at least one variant"),
        ('{"kind": "audit", "format": 2, "variants": ["x"], "pictures_per_unit": 2, "pictures": ["p"], "command": 3}',
         "Cannot read .*AttributeError"),
        ('{"kind": "atlas"}', "No network of the atlas in .* is done yet"),
    ],
)  # fmt: skip
def test_load_refuses_anything_else_in_a_sentence(tmp_path, spec, said):
    if spec is not None:
        (tmp_path / "spec.json").write_text(spec)
    with pytest.raises(ValueError, match=said) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_load_refuses_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for name, said in {"file": "is a file", "nowhere": "is not there"}.items():
        with pytest.raises(ValueError, match=said):
            load(tmp_path / name)


def test_an_audit_that_is_not_finished_says_what_is_lacking(run):
    units_of("a")[0].unlink()
    with pytest.raises(ValueError, match=r"The audit in a is not finished: 3 of 4 units done, 1 not done yet\."):
        load("a")


# ---- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "variants", "fits", "scores", "atlas"])
def test_the_units_of_a_run_are_the_files_that_it_made(run, name):
    found, store = saved.units(name), Store(Path(name))
    assert sorted(map(store.path, found.done)) == units_of(name) and found.complete


def test_units_say_what_is_done_failed_and_missing_and_expect_nothing_of_what_does_not_apply(run):
    store = Store(Path("variants"))
    whole = saved.units("variants")
    assert list(whole.left_out) == ["avgpool-stride"] and not any("stride, pic" in name for name in whole.done)
    first, second = "audit, trained, pictures 0 to 1", "audit, avgpool, pictures 4 to 4"
    store.path(first).unlink()
    store.path(second).unlink()
    store.fail(second, "Found no layer.", "traceback")
    found = saved.units("variants")
    assert found.failed == {second: "Found no layer."} and found.missing == (first,)
    assert set(whole.done) - set(found.done) == {first, second}
    assert str(found).startswith(
        f"{len(whole.done) - 2} of {len(whole.done)} units done, 1 failed ({second}: Found no layer), 1 not done yet, "
        "variant avgpool-stride does not apply ("
    )


def test_a_run_that_was_just_opened_lacks_everything(run):
    for name in ("variants", "scores"):
        whole = set(saved.units(name).done)
        for path in units_of(name):
            path.unlink()
        found = saved.units(name)
        stride = {f"audit, avgpool-stride, pictures {k}" for k in ("0 to 1", "2 to 3", "4 to 4")}
        assert set(found.missing) - stride == whole and not found.done


def test_results_that_were_saved_are_complete_and_lack_what_is_taken_away(run):
    for name in ("a", "variants", "fits", "scores"):
        load(name).save(f"saved {name}")
        assert saved.units(f"saved {name}").complete
        files = [path for path in units_of(f"saved {name}") if not path.name.startswith("facts-avgpool-stride")]
        assert sorted(map(Store(Path(f"saved {name}")).path, saved.units(f"saved {name}").done)) == files
    lost = Store(Path("saved fits")).path("fit, avgpool, Saliency")
    lost.unlink()
    assert saved.units("saved fits").missing == ("fit, avgpool, Saliency",)


# ---- collect ---------------------------------------------------------------------------------


def test_audits_and_variants_make_one_table_that_is_their_own(run):
    code, out, err = run("collect", "a", "b", "variants")
    table = csv(out)
    assert code == 0 and list(table.columns[:3]) == ["run", "model", "variant"]
    assert list(dict.fromkeys(table["run"])) == ["a", "b", "variants"]
    assert table["model"].str.endswith(":changed").tolist() == (table["run"] == "b").tolist()
    for name in ("a", "b"):
        rows = table[table["run"] == name].reset_index(drop=True)
        same(rows, gs.Audit.load(name).table)
        assert set(rows["variant"]) == {"trained"}
    same(table[table["run"] == "variants"].reset_index(drop=True), gs.Comparison.load("variants").table)
    assert "gradspec: a: 4 of 4 units done\n" in err and "variant avgpool-stride does not apply (" in err


def test_scores_are_the_summary_and_fits_their_table_without_what_has_none(run):
    code, out, _ = run("collect", "scores")
    table = csv(out)
    assert code == 0 and list(table.columns[:3]) == ["run", "model", "variant"]
    same(table, Trials.load("scores").summary())
    code, out, err = run("collect", "fits")
    own = Trials.load("fits").table()
    assert own["variant"].tolist() == SEVERAL  # with a row that says why there is none
    same(csv(out), own[own["variant"] != "avgpool-stride"].reset_index(drop=True))
    assert code == 0 and "variant avgpool-stride does not apply" in err


def test_single_fits_and_scores_stand_beside_those_of_runs(run):
    Trials.load("scores").scored["trained"].save("one")
    code, out, _ = run("collect", "scores", "one")
    table = csv(out)
    first, second = (table[table["run"] == name].reset_index(drop=True) for name in ("scores", "one"))
    assert code == 0 and len(first) == len(second) > 3
    pd.testing.assert_frame_equal(first.drop(columns=["run", "model"]), second.drop(columns=["run", "model"]))


def test_an_atlas_is_its_networks_with_lists_as_json(run):
    code, out, err = run("collect", "atlas")
    table, own = csv(out), load("atlas")
    assert code == 0 and table["model"].tolist() == own["network"].tolist() and "atlas: 4 of 4 units done" in err
    assert [json.loads(cell) for cell in table["culprit_power"]] == [list(cell) for cell in own["culprit_power"]]
    assert run("collect", "atlas", "--each-picture")[0] == 2


def test_each_picture_has_the_values_of_the_results(run):
    code, out, _ = run("collect", "a", "variants", "--each-picture")
    table = csv(out)
    audit = gs.Comparison.load("variants").audits["avgpool"]
    rows = table[(table["run"] == "variants") & (table["variant"] == "avgpool")]
    here = rows[(rows["call"] == "2") & (rows["point"] == "input")]
    signature = audit.signatures["2", "input"]
    assert code == 0 and here["picture"].tolist() == list(audit.pictures)
    assert here["high_share"].tolist() == pytest.approx(list(signature.high_shares))
    radii = ring_radii(16, 16).numpy()[1:]
    lines = [np.polyfit(radii, np.log10(rings[1:]), 1)[0] * 8 for rings in signature.per_image]
    assert here["slope_nyquist"].tolist() == pytest.approx(lines)
    table = csv(run("collect", "scores", "--each-picture")[1])
    same(table, Trials.load("scores").scored["trained"].table)
    table, fit = csv(run("collect", "fits", "--each-picture")[1]), Trials.load("fits").fit("avgpool", "Saliency")
    rows = table[table["variant"] == "avgpool"]
    assert rows.loc[rows["cutoff"] == 2, "value"].tolist() == pytest.approx(fit.per_image[fit.names[-1]].tolist())
    bare = rows["cutoff"].isna()
    assert rows.loc[bare, "value"].tolist() == pytest.approx(fit.per_image[fit.names[0]].tolist())
    assert rows.loc[bare, "picture"].tolist() == list(fit.pictures) and set(rows["method"]) == {"Saliency"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
@pytest.mark.parametrize("name", ["a", "atlas"])
def test_every_format_holds_the_same_table(run, suffix, name):
    code, out, err = run("collect", name, "--out", f"tables/all{suffix}")
    file = Path(f"tables/all{suffix}")
    assert code == 0 and out == "" and f"rows written to {file}" in err
    if suffix == ".csv":
        table = csv(file.read_text("utf-8"))
    else:
        rows = json.loads(file.read_text("utf-8")) if suffix == ".json" else None
        table = pd.read_parquet(file) if rows is None else pd.DataFrame(rows)
    own = load(name) if name == "atlas" else load(name).table
    plain = [each for each in own if not isinstance(own[each][0], (list, np.ndarray)) and each != "network"]
    assert len(table) == len(own) and len(plain) > 8
    same(table[plain].replace({"": None}), own[plain])
    assert [path.name for path in Path("tables").iterdir()] == [file.name]


def test_names_may_hold_anything(run):
    audit = load("a")
    odd = 'trained, "猫"\nand more'
    command = {"variants": [odd], "model": "nets/ä,b.py:load"}
    store = Store.save("läufe, 1", "comparison", command, {})
    whole = gs.Comparison({odd: audit}, {}, {}, None, {"variants": [odd], "model": "nets/ä,b.py:load"})
    whole.save(store)
    for words in ([], ["--out", "t,ä.csv"]):
        code, out, _ = run("collect", store, *words)
        table = csv(Path("t,ä.csv").read_text("utf-8") if words else out)
        assert code == 0 and set(table["variant"]) == {odd} and set(table["run"]) == {"läufe, 1"}
        assert set(table["model"]) == {"nets/ä,b.py:load"}
    code, out, _ = run("diff", store, "a")
    assert code == 0 and "\nand more" not in out


def test_json_has_the_progress_of_each_run_and_the_table(run):
    store = Store(Path("variants"))
    store.path("audit, avgpool, pictures 0 to 1").unlink()
    code, out, _ = run("collect", "a", "variants", "--json")
    found = json.loads(out)
    assert code == 0 and [each["run"] for each in found["runs"]] == ["a", "variants"]
    assert found["runs"][1]["missing"] == ["audit, avgpool, pictures 0 to 1"]
    assert list(found["runs"][1]["does_not_apply"]) == ["avgpool-stride"]
    table = pd.DataFrame(found["table"])
    assert set(table.loc[table["run"] == "variants", "variant"]) == {"trained"}


def test_what_is_unfinished_is_left_out_and_said(run):
    store = Store(Path("fits"))
    lost = "fit, avgpool, Saliency, pictures 4 to 7"
    store.path(lost).unlink()
    store.fail(lost, "Found no layer that holds maps.", "traceback")
    units_of("b")[0].unlink()
    code, out, err = run("collect", "fits")
    assert code == 0 and set(csv(out)["variant"]) == {"trained"}
    assert f"1 failed ({lost}: Found no layer that holds maps)" in err
    code, out, err = run("collect", "a", "b")
    assert code == 0 and set(csv(out)["run"]) == {"a"} and "b: 3 of 4 units done, 1 not done yet" in err
    code, out, err = run("collect", "b", "--out", "b.csv")
    assert code == 1 and out == "" and "There is nothing to collect yet in b." in err and not Path("b.csv").exists()


@pytest.mark.parametrize(("name", "unit"), [("a", 1), ("variants", 0), ("scores", 2), ("atlas", 0)])
def test_a_damaged_unit_is_named_and_nothing_is_written(run, name, unit):
    file = units_of(name)[unit]
    damage(file)
    Path("old.csv").write_text("kept")
    other = "fits" if name == "scores" else name
    code, out, err = run("collect", name, "--out", "old.csv")
    assert code == 1 and out == "" and str(file) in err and "Traceback" not in err
    assert Path("old.csv").read_text() == "kept" and not list(Path().glob(".old*"))
    code, out, err = run("diff", name, other)
    assert code == 2 and str(file) in err


def test_a_damaged_unit_of_what_is_unfinished_is_named_too(run):
    store = Store(Path("variants"))
    store.path("audit, trained, pictures 0 to 1").unlink()
    damage(store.path("audit, trained, pictures 2 to 3"))
    code, out, err = run("collect", "variants")
    assert code == 1 and out == "" and store.path("audit, trained, pictures 2 to 3").name in err


def test_a_unit_with_other_bytes_inside_is_named_too(run):
    file = units_of("a")[0]
    bytes_ = bytearray(file.read_bytes())
    bytes_[100:2000] = b"x" * 1900
    file.write_bytes(bytes_)
    code, _, err = run("collect", "a", "--out", "all.csv")
    assert code == 1 and str(file) in err and not Path("all.csv").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "fits"], "No common table: a is a table of operator calls, fits one of fits."),
        (["fits", "a"], "No common table: fits is a table of fits, a one of operator calls."),
        (["atlas", "b"], "No common table: atlas is a table of networks, b one of operator calls."),
        (["fits", "scores"], "No common table: fits is a table of fits, scores one of scores."),
        (["a", "nowhere"], "nowhere is not there"),
        (["a", "a"], "a is named twice"),
        (["a", "--out", "table.xlsx"], "--out must end in .csv, .parquet, .json"),
        (["a", "--out", "b"], "--out must end in"),
        (["a", "--out", "folder.csv"], "is a folder"),
        ([], "RUN"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(run, words, said):
    Path("folder.csv").mkdir()
    before = sorted(Path().rglob("*"))
    code, out, err = run("collect", *words)
    assert code == 2 and out == "" and said in err and sorted(Path().rglob("*")) == before


def test_a_file_that_cannot_be_written_is_a_failure_that_leaves_nothing(run, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(collecting.os, "replace", full)
    code, _, err = run("collect", "a", "--out", "t/table.parquet")
    assert code == 1 and "Cannot write t/table.parquet: no space left" in err and not list(Path("t").iterdir())


# ---- diff ------------------------------------------------------------------------------------


def slope_of(rings, weights):
    mean = (weights[:, None] * rings).sum(0) / weights.sum()
    return np.polyfit(ring_radii(16, 16).numpy()[1:], np.log10(mean[1:]), 1)[0] * 8


def influences(rings):
    """How far each picture moves the slope, by weighing it a little more."""
    n, step = len(rings), 1e-5
    bumps = np.eye(n) * step
    return np.array([(slope_of(rings, 1 + b) - slope_of(rings, 1 - b)) / (2 * step) * n for b in bumps])


def test_the_same_run_twice_is_the_same(run):
    code, out, err = run("diff", "a", "again")
    assert code == 0 and err == "" and out.startswith("The numbers are the same: ") and "settings: the same" in out
    assert "pictures: the same 5" in out


def test_settings_that_do_not_change_numbers_are_told_and_the_runs_are_the_same(run):
    spec = json.loads(Path("again/spec.json").read_text())
    spec |= {"threads": 4, "versions": spec["versions"] | {"torch": "9.9"}}
    spec["command"] |= {"threads": 4}
    Path("again/spec.json").write_text(json.dumps(spec))
    code, out, _ = run("diff", "a", "again")
    told = [line.split() for line in out.splitlines() if "->" in line and "settings" not in line]
    torch = spec_of("a")["versions"]["torch"]
    assert code == 0 and told == [["threads", "1", "->", "4"], ["versions.torch", torch, "->", "9.9"]]


def spec_of(name):
    return json.loads(Path(name, "spec.json").read_text())


def test_one_other_weight_is_told_and_the_paired_change_is_that_of_the_pictures(run):
    code, out, _ = run("diff", "a", "b")
    lines = [line.split() for line in out.splitlines()]
    assert code == 1 and len(lines) <= 45 and out.startswith("The numbers differ: ")
    assert ["network", *spec_of("a")["network"].split(), "->", *spec_of("b")["network"].split()] in lines
    code, out, _ = run("diff", "a", "b", "--json")
    found, a, b = json.loads(out), load("a"), load("b")
    old, new = (each.signatures["input", "input"] for each in (a, b))
    ones = np.ones(5)
    change = slope_of(new.per_image, ones) - slope_of(old.per_image, ones)
    error = (influences(new.per_image) - influences(old.per_image)).std(ddof=1) / 5**0.5
    slope, share = found["paired"]
    assert code == 1 and (slope["mean"], slope["se"]) == pytest.approx((change, error), rel=1e-4)
    shares = new.high_shares - old.high_shares
    assert (share["mean"], share["se"], share["n"]) == pytest.approx((shares.mean(), shares.std(ddof=1) / 5**0.5, 5))


def test_columns_and_rows_are_those_of_the_tables(run):
    a, b = load("a").table, load("b").table
    found = differing.differ(saved.opened("a"), saved.opened("b"))
    change = (b["slope_nyquist"] - a["slope_nyquist"]).to_numpy()
    wrong = ~np.isclose(a["slope_nyquist"], b["slope_nyquist"], rtol=1e-6, atol=1e-12, equal_nan=True)
    line = found.columns.set_index("column").loc["slope_nyquist"]
    worst = np.nanargmax(np.abs(change))
    assert (line["rows"], line["differ"]) == (len(a), wrong.sum()) and 0 < wrong.sum() < len(a)
    assert line["largest"] == pytest.approx(change[worst])
    assert line["row"] == f"trained {a['call'][worst]} {a['point'][worst]}"
    errors = {
        name: (b[name] - a[name]) / np.hypot(a[se], b[se])
        for name, se in {"slope_nyquist": "se_nyquist", "high_share": "se_share"}.items()
    }
    most = pd.DataFrame(errors).abs().max(axis=1).where(wrong)
    assert found.rows["errors"].abs().tolist() == pytest.approx(most.dropna().sort_values(ascending=False).tolist())
    loose = differing.differ(saved.opened("a"), saved.opened("b"), tolerance=1e9)
    assert loose.same and not differing.differ(saved.opened("a"), saved.opened("b"), tolerance=0).same


def test_scores_change_by_their_paired_differences(run):
    found = differing.differ(saved.opened("scores"), saved.opened("other"))
    a, b = (Trials.load(name).scored["trained"] for name in ("scores", "other"))
    lines = found.paired.set_index(["attribution", "arm", "quantity"])
    assert found.pictures == "the same 12" and {"Deletion", "Insertion"} == set(found.paired["quantity"])
    change = b.values("Saliency", "none", "Deletion") - a.values("Saliency", "none", "Deletion")
    line = lines.loc["Saliency", "none", "Deletion"]
    assert (line["mean"], line["se"]) == pytest.approx((change.mean(), change.sem())) and change.abs().max() > 0
    assert (line["low"], line["high"]) == pytest.approx(bootstrap_interval(change.to_numpy()))
    assert "seconds per 100" not in set(found.columns["column"])
    surest = (found.paired["mean"].abs() / found.paired["se"]).fillna(0).idxmax()
    code, out, _ = run("diff", "scores", "other")
    first = out[out.index("the surest first") :].splitlines()[1]
    assert code == 1 and f" {found.paired['mean'][surest]:+.4g} " in first and first.endswith("n 12")


def test_rows_that_one_run_alone_has_make_a_difference(run):
    code, out, err = run("diff", "a", "variants", "--json")
    found, own = json.loads(out), load("variants").table
    assert code == 1 and found["rows_in_both"] == (own["variant"] == "trained").sum() and found["rows_in_a"] == []
    wanted = own[own["variant"] == "avgpool"]
    assert found["rows_in_b"] == wanted[["variant", "call", "point"]].to_numpy().tolist()
    assert not any(line["differ"] for line in found["columns"]) and err == ""
    code, out, _ = run("diff", "a", "variants")
    assert code == 1 and f"in B alone: {len(wanted)} rows (avgpool input input; " in out


def test_runs_of_one_variant_each_are_compared_whatever_it_is_called(run):
    spec = spec_of("a") | {"variants": ["first"]}
    store = Store.open("named", spec)
    for k in ("0 to 1", "2 to 3", "4 to 4"):
        store.write(f"audit, first, pictures {k}", Store(Path("a")).read(f"audit, trained, pictures {k}"))
    store.write("variant, first", Store(Path("a")).read("variant, trained"))
    code, out, _ = run("diff", "a", "named")
    assert code == 0 and "variants" in out


def test_other_pictures_are_told_and_nothing_is_paired(run):
    audit = load("a")
    gs.audit(gs.load_model(spec_of("a")["model"]), numbered(audit, 4), progress=False).save("fewer")
    code, out, _ = run("diff", "a", "fewer", "--json")
    found = json.loads(out)
    assert code == 1 and found["paired"] == [] and found["pictures"] == "5 in A, 4 in B, none of them in both"


def numbered(audit, count):
    import torch

    return [(torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)), None, list("abcd"))]


def test_the_order_of_the_pictures_does_not_matter_to_what_is_paired(run):
    a, b = saved.opened("a"), saved.opened("b")
    turned = list(range(5))[::-1]
    audit = b.result
    key = ("input", "input")
    found = audit.signatures[key]
    signature = type(found)(found.height, found.width, found.per_image[turned], found.high_shares[turned])
    pictures = tuple(audit.pictures[k] for k in turned)
    other = gs.Audit(audit.table, audit.signatures | {key: signature}, audit.new_power, {}, {}, pictures, audit.spec)
    twin = saved.Saved(b.folder, b.kind, b.spec, b.progress, other)
    straight, back = differing.differ(a, b), differing.differ(a, twin)
    assert back.pictures == "the same 5 in another order"
    pd.testing.assert_frame_equal(straight.paired, back.paired)


def test_fits_and_atlases_are_compared_too(run):
    assert run("diff", "fits", "fits")[0] == 0 and run("diff", "atlas", "atlas")[0] == 0
    file = next(path for path in units_of("atlas") if "changed" in path.name)
    table = pd.read_parquet(file)
    table["culprit_power"] = [list(table["culprit_power"][0] + 0.25)]
    shutil.copytree("atlas", "moved")
    table.to_parquet(Path("moved/units", file.name))
    code, out, _ = run("diff", "atlas", "moved", "--json")
    wrong = {line["column"]: line["largest"] for line in json.loads(out)["columns"] if line["differ"]}
    assert code == 1 and wrong == {f"culprit_power {k + 1}": pytest.approx(0.125) for k in range(len(wrong))} and wrong


def test_a_number_that_is_in_one_run_alone_is_a_difference():
    a, b = pd.Series([1.0, np.nan, np.nan, 0.0]), pd.Series([1.0 + 1e-9, 2.0, np.nan, 1e-15])
    assert differing._wrong(a, b, 1e-6).tolist() == [False, True, False, False]
    assert differing._wrong(pd.Series(["a", "b"]), pd.Series(["a", "c"]), 1.0).tolist() == [False, True]
    keys = [("x",), ("y",)]
    line = differing._column("v", np.array([False, True]), pd.Series([1.0, np.nan]), pd.Series([1.0, 2.0]), keys)
    assert (line["row"], line["b"]) == ("y", 2.0) and np.isnan(line["largest"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "fits"], "a and fits cannot be compared: a is a table of operator calls, fits one of fits."),
        (["a", "nowhere"], "nowhere is not there"),
        (["a", "b", "--tolerance", "-1"], "a tolerance of 0 or more"),
        (["a"], "RUN_B"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(run, words, said):
    code, out, err = run("diff", *words)
    assert code == 2 and out == "" and said in err and "Traceback" not in err


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_is_and_one_without_anything_is_refused(run):
    Store(Path("variants")).path("audit, avgpool, pictures 0 to 1").unlink()
    code, out, err = run("diff", "a", "variants")
    assert code == 0 and "warning: variants: " in err and "not finished" in out
    units_of("b")[0].unlink()
    code, _, err = run("diff", "a", "b")
    assert code == 2 and "Nothing of b is finished: 3 of 4 units done, 1 not done yet." in err

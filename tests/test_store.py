"""A run's folder: units are there whole or not at all, and only of one kind of settings."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest

from gradspec.runs import Store, changed, packed
from gradspec.runs import store as module

TABLE = pd.DataFrame({"picture": ["a", "b"], "value": [0.25, float("nan")], "curve": [[1.0, 2.0], [3.0]]})


def test_what_is_written_is_read_with_its_attributes(tmp_path):
    store = Store.open(tmp_path / "run", {"seed": 0})
    assert not store.done("one")
    table = TABLE.copy()
    table.attrs["spent"] = {"seconds": 1.5}
    store.write("one", table)
    found = store.read("one")
    assert store.done("one") and found.attrs == {"spent": {"seconds": 1.5}}
    assert found["curve"].map(list).tolist() == TABLE["curve"].tolist()
    pd.testing.assert_frame_equal(found.drop(columns="curve"), TABLE.drop(columns="curve"), check_flags=False)


def test_names_that_look_alike_are_told_apart_and_none_leaves_the_folder(tmp_path):
    store = Store.open(tmp_path, {})
    names = ["a/b", "a b", "a-b", "../../a", "猫", "犬", "x" * 300, "x" * 300 + "y", ".", ""]
    assert len({store.path(name) for name in names}) == len(names)
    for k, name in enumerate(names):
        store.write(name, pd.DataFrame({"k": [k]}))
    assert [store.read(name)["k"][0] for name in names] == list(range(len(names)))
    assert {path.parent for path in tmp_path.rglob("*.parquet")} == {tmp_path / "units"}


def test_the_same_settings_go_on_and_others_are_refused_with_the_difference(tmp_path):
    Store.open(tmp_path, {"seed": 0, "cutoffs": [1.0, None]}).write("one", TABLE)
    again = Store.open(tmp_path, {"seed": 0, "cutoffs": (1.0, None)})  # JSON has no tuples
    assert again.done("one")
    with pytest.raises(ValueError, match=r"other settings \(seed: 0, now 1; limit: not there, now 8\)"):
        Store.open(tmp_path, {"seed": 1, "cutoffs": [1.0, None], "limit": 8})
    assert changed({"a": 1}, {"a": 1}) == ""


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="already holds files, but no run"):
        Store.open(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_torn_file_is_named_and_a_missing_one_too(tmp_path):
    store = Store.open(tmp_path, {})
    store.write("one", TABLE)
    store.path("one").write_bytes(store.path("one").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"Cannot read .*one-.*\.parquet"):
        store.read("one")
    with pytest.raises(ValueError, match="Expected unit 'two'"):
        store.read("two")


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_no_unit_and_no_rest(tmp_path, monkeypatch, where):
    store = Store.open(tmp_path, {})
    store.write("one", TABLE)

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    if where == "write":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    else:
        monkeypatch.setattr(module.os, where, full)
    with pytest.raises(OSError, match="No space left"):
        store.write("two", TABLE)
    with pytest.raises(OSError, match="No space left"):
        store.write("one", TABLE[:1])
    monkeypatch.undo()
    assert store.done("one") and not store.done("two") and len(store.read("one")) == 2
    assert len(os.listdir(tmp_path / "units")) == 1


def saved(folder, *units, kind="fit", **spec):
    return Store(Store.save(folder, kind, spec, {unit: packed({}, {"unit": unit}) for unit in units}))


def test_a_result_replaces_another_of_its_kind_and_leaves_nothing_of_it(tmp_path):
    store = saved(tmp_path / "deep" / "run", "one", "two", seed=0)
    store.fail("three", "torn", "")
    again = saved(tmp_path / "deep" / "run", "two", "four", seed=1)
    assert [again.done(unit) for unit in ("one", "two", "three", "four")] == [False, True, False, True]
    assert again.spec == {"format": 2, "kind": "fit", "seed": 1} and again.error("three") == ""
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [again.path("two").name, again.path("four").name, "spec.json"]
    )


@pytest.mark.parametrize("text", ['{"kind": "audit", "format": 2}', "[]", "{", "", "null", "[" * 10**5])
def test_a_result_is_not_written_over_something_else(tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ValueError, match=r"a new folder or one of a fit, got .* whose spec\.json is of something else"):
        saved(tmp_path, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
    assert (tmp_path / "spec.json").read_text() == text


@pytest.mark.parametrize("first", [True, False])
def test_files_of_others_beside_units_stay(tmp_path, first):
    """Whether a result lay there before or not."""
    if first:
        saved(tmp_path, "one")
    theirs = {"units/thesis.parquet": b"PAR1", "errors/log.json": b"[]", "units/notes.txt": b"", "diary.txt": b"dear"}
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    store = saved(tmp_path, "two")
    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
    assert store.done("two") and not store.done("one") and store.skipped() == {}


def test_settings_that_json_has_no_words_for_write_nothing(tmp_path):
    for spec, error in (({"cutoff": float("inf")}, ValueError), ({"net": object()}, TypeError)):
        with pytest.raises(error, match="JSON"):
            saved(tmp_path / "run", "one", **spec)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"pictures_per_unit": 0}, "pictures_per_unit above 0, got 0"),
        ({"pictures_per_unit": "4"}, "pictures_per_unit above 0, got '4'"),
        ({"pictures_per_unit": None}, "pictures_per_unit above 0, got None"),
        ({"pictures_per_unit": 4, "pictures": 3}, "a list of names as 'pictures'"),
        ({"pictures_per_unit": 4, "selected": "ab"}, "a list of names as 'selected'"),
        ({"pictures_per_unit": 4, "reported": [["a"]]}, "a list of names as 'reported'"),
        ({"kind": "trials"}, "a list of names as 'variants'"),
        ({"kind": "trials", "variants": {"a": 1}}, "a list of names as 'variants'"),
        ({"kind": "comparison", "variants": ["a", None]}, "a list of names as 'variants'"),
    ],
)
def test_settings_by_which_no_unit_can_be_named_are_refused(tmp_path, spec, says):
    whole = {"format": 2, "kind": "fit", **spec}
    (tmp_path / "spec.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=rf"Cannot read .*spec\.json: expected .*{says}"):
        Store.load(tmp_path, whole["kind"])
    sound = {"pictures_per_unit": 4, **{name: ["a"] for name in ("pictures", "selected", "reported", "variants")}}
    (tmp_path / "spec.json").write_text(json.dumps(whole | sound))
    assert Store.load(tmp_path, whole["kind"]).spec["variants"] == ["a"]


def test_a_result_of_another_kind_or_format_is_refused(tmp_path):
    saved(tmp_path, "one")
    with pytest.raises(
        ValueError, match=r"Expected an audit of format 2 in .*, got something else: see its spec\.json"
    ):
        Store.load(tmp_path, "audit")
    (tmp_path / "spec.json").write_text('{"kind": "fit", "format": 1}')
    with pytest.raises(ValueError, match="Expected a fit of format 2"):
        Store.load(tmp_path, "fit")
    (tmp_path / "spec.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"Cannot read .*spec\.json: RecursionError"):
        Store.load(tmp_path, "fit")
    with pytest.raises(ValueError, match=r"Expected a fit in .*nowhere, but it has no spec\.json"):
        Store.load(tmp_path / "nowhere", "fit")


def test_what_units_lack_is_the_first_error_or_how_many_are_left(tmp_path):
    store = saved(tmp_path, "one")
    assert store.lacking(["one"]) == store.lacking([]) == ""
    assert store.lacking(["one", "two", "three"]) == "2 of 3 units are not done yet"
    store.fail("three", "no memory", "")
    store.fail("one", "late", "")  # it is done all the same
    assert store.lacking(["one", "two", "three"]) == "no memory"


def test_pictures_that_units_left_out_are_told_of_all(tmp_path):
    store = saved(tmp_path, "one")
    for unit, skipped in {"two": {"a.png": "torn"}, "three": {}, "four": {"b.png": "a bomb"}}.items():
        store.write(unit, packed({}, {"skipped": skipped}))
    assert store.skipped() == {"a.png": "torn", "b.png": "a bomb"} and store.about("two")["skipped"] == {
        "a.png": "torn"
    }
    store.path("two").write_bytes(b"torn")
    for read in (store.skipped, lambda: store.about("two"), lambda: store.result("two", lambda parts, about: parts)):
        with pytest.raises(ValueError, match=rf"Cannot read .*{store.path('two').name}"):
            read()
    store.write("two", TABLE)  # without words about it
    with pytest.raises(ValueError, match=rf"Cannot read .*{store.path('two').name}: KeyError"):
        store.about("two")


def test_folders_of_the_same_run_are_merged_by_copying(tmp_path):
    first, second = (Store.open(tmp_path / name, {"seed": 0}) for name in ("a", "b"))
    first.write("one", TABLE)
    second.write("two", TABLE)
    second.path("two").rename(first.path("two"))
    assert first.done("one") and first.done("two")

"""A run's folder: units are there whole or not at all, and only of one kind of settings."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from gradspec.runs import Store, changed
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


def test_folders_of_the_same_run_are_merged_by_copying(tmp_path):
    first, second = (Store.open(tmp_path / name, {"seed": 0}) for name in ("a", "b"))
    first.write("one", TABLE)
    second.write("two", TABLE)
    second.path("two").rename(first.path("two"))
    assert first.done("one") and first.done("two")

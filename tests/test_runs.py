"""Units: done once, in one process or by workers; killed workers and drivers lose what was in flight and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from gradspec.runs import Failure, Store, Unit, run
from gradspec.runs.units import attempt

SQUARES = '''
import os, signal, time
from pathlib import Path

import pandas as pd


def square(k, folder, seconds=0.0, dies=False):
    """k squared; notes that it was started; one that dies does so once."""
    with open(Path(folder) / "starts", "a") as file:
        file.write(f"{k}\\n")
    if dies and not (Path(folder) / f"died-{k}").exists():
        (Path(folder) / f"died-{k}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)
    return pd.DataFrame({"k": [k], "square": [k * k]})


def always_dies():
    os.kill(os.getpid(), signal.SIGKILL)
'''


def table(value):
    return pd.DataFrame({"value": [value]})


def broken(message):
    raise ValueError(message)


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """A module that workers can import, since pickle knows functions by their modules."""
    pytest.importorskip("distributed", reason="workers need the extra cluster")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "gradspec_test_squares.py").write_text(SQUARES)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of other processes
    sys.modules.pop("gradspec_test_squares", None)
    import gradspec_test_squares  # pyright: ignore[reportMissingImports]

    return gradspec_test_squares


def values(store, names):
    return [store.read(name)["value"][0] for name in names]


def test_units_are_done_once_and_in_order(tmp_path):
    store, done = Store.open(tmp_path, {}), []

    def work(k):
        done.append(k)
        return table(k)

    units = [Unit(f"unit {k}", partial(work, k), cost=k) for k in range(5)]
    assert run(units[:2], store) == () and run(units, store) == ()
    assert done == [0, 1, 2, 3, 4] and values(store, [unit.name for unit in units]) == done


def test_a_unit_that_fails_is_kept_with_its_traceback_and_the_others_go_on(tmp_path):
    store = Store.open(tmp_path, {})
    units = [Unit("a", partial(table, 1)), Unit("b", partial(broken, "no such layer")), Unit("c", partial(table, 3))]
    assert run(units, store) == (Failure("b", "no such layer"),)
    assert values(store, "ac") == [1, 3] and not store.done("b") and store.error("b") == "no such layer"
    (kept,) = (tmp_path / "errors").iterdir()
    assert "in broken" in json.loads(kept.read_text())["traceback"]
    assert run([Unit("b", partial(table, 2))], store) == () and store.error("b") == ""
    assert not any((tmp_path / "errors").iterdir())


def test_shards_are_the_whole_and_share_the_long_ones(tmp_path):
    units = [Unit(f"u{k}", partial(table, k), cost=cost) for k, cost in enumerate([1, 9, 2, 8, 3, 7, 1])]
    stores = [Store.open(tmp_path / f"{part}", {}) for part in range(3)]
    for part, store in enumerate(stores):
        run(units, store, shard=(part, 3))
    done = [[unit.name for unit in units if store.done(unit.name)] for store in stores]
    assert sorted(name for part in done for name in part) == [unit.name for unit in units]
    assert [{"u1", "u3", "u5"} & set(part) for part in done] == [{"u1"}, {"u3"}, {"u5"}]  # the three longest
    with pytest.raises(ValueError, match="0 ≤ i < n, got 3/3"):
        run(units, stores[0], shard=(3, 3))


def test_what_is_no_run_is_refused(tmp_path):
    store = Store.open(tmp_path, {})
    with pytest.raises(ValueError, match="'a' twice"):
        run([Unit("a", partial(table, 1)), Unit("a", partial(table, 2))], store)
    with pytest.raises(ValueError, match=r"'local:N', .* got 'local:none'"):
        run([Unit("a", partial(table, 1))], store, scheduler="local:none")
    with pytest.raises(ValueError, match="threads"):
        run([Unit("a", partial(table, 1))], store, threads=0)


def test_a_run_that_is_interrupted_goes_on(tmp_path):
    store = Store.open(tmp_path, {})

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Unit("a", partial(table, 1)), Unit("b", stop), Unit("c", partial(table, 3))], store)
    assert store.done("a") and not store.done("b") and not store.done("c")
    assert run([Unit(name, partial(table, 0)) for name in "abc"], store) == () and values(store, "abc") == [1, 0, 0]


# ---- workers ---------------------------------------------------------------------------------------


def started(folder):
    return Counter((folder / "starts").read_text().split())


@pytest.mark.slow
def test_killed_workers_cost_their_units_alone(tmp_path, squares):
    """48 units on two workers; four are killed in the middle of one."""
    store = Store.open(tmp_path / "run", {})
    dying = {5, 17, 30, 47}
    units = [Unit(f"{k}", partial(squares.square, k, tmp_path, 0.02, k in dying)) for k in range(48)]
    assert run(units, store, scheduler="local:2", threads=1, progress=False) == ()
    assert [store.read(f"{k}")["square"][0] for k in range(48)] == [k * k for k in range(48)]
    assert started(tmp_path) == {f"{k}": 1 + (k in dying) for k in range(48)}
    assert len(list((tmp_path / "run" / "units").glob("*.parquet"))) == 48


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path, squares):
    store = Store.open(tmp_path / "run", {})
    units = [Unit("dies", squares.always_dies), *(Unit(f"{k}", partial(squares.square, k, tmp_path)) for k in range(6))]
    (failure,) = run(units, store, scheduler="local:2", progress=False)
    assert failure.unit == "dies" and "its worker died" in failure.reason and store.error("dies") == failure.reason
    assert all(store.done(f"{k}") for k in range(6))


DRIVER = """
import sys
from functools import partial
from gradspec_test_squares import square
from gradspec.runs import Store, Unit, run

if __name__ == "__main__":
    folder = sys.argv[1]
    units = [Unit(str(k), partial(square, k, folder, 0.1)) for k in range(48)]
    sys.exit(len(run(units, Store.open(folder + "/run", {}), scheduler="local:2", progress=False)))
"""


@pytest.mark.slow
def test_a_killed_driver_loses_what_was_in_flight(tmp_path, squares):
    """Killed at a third and started again: only the units in flight are done twice."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    units = tmp_path / "run" / "units"
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(units.glob("*.parquet"))) < 16:
            time.sleep(0.02)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)  # the driver and its workers
        driver.wait()
    before = len(list(units.glob("*.parquet")))
    assert 16 <= before < 40
    assert subprocess.run([sys.executable, str(script), str(tmp_path)], check=False).returncode == 0
    assert [Store(tmp_path / "run").read(f"{k}")["square"][0] for k in range(48)] == [k * k for k in range(48)]
    starts = started(tmp_path)
    assert set(starts) == {f"{k}" for k in range(48)} and sum(starts.values()) <= 48 + 2


def test_units_of_one_process_take_turns(tmp_path):
    """A Dask worker may have several threads, and units share networks with hooks on them."""
    store, inside, most = Store.open(tmp_path / "run", {}), [], []

    def work(k):
        inside.append(k)
        time.sleep(0.02)
        most.append(len(inside))
        inside.remove(k)
        return pd.DataFrame({"k": [k]})

    units = [Unit(f"unit {k}", partial(work, k)) for k in range(6)]
    threads = [threading.Thread(target=attempt, args=(unit, store)) for unit in units]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6 and all(store.done(unit.name) for unit in units)


def test_a_unit_that_is_not_strict_goes_on_without_what_it_needs(tmp_path):
    store = Store.open(tmp_path / "run", {})
    need = Unit("need", lambda: 1 / 0)
    told = {strict: Unit(f"strict: {strict}", lambda: pd.DataFrame({"a": [1]}), needs=(need,), strict=strict)
            for strict in (True, False)}  # fmt: skip
    failed = run(list(told.values()), store, progress=False)
    assert [failure.unit for failure in failed] == ["need", "strict: True"]
    assert failed[1].reason == failed[0].reason == "ZeroDivisionError: division by zero"
    assert store.done("strict: False") and not store.done("strict: True")


def test_shards_at_once_begin_with_different_ones_of_what_is_missing(tmp_path):
    begun: dict[int, list[str]] = {}
    for part in range(3):
        store, order = Store.open(tmp_path / f"{part}", {}), begun.setdefault(part, [])

        def work(name, order=order):
            order.append(name)
            return pd.DataFrame({"name": [name]})

        needs = tuple(Unit(f"need {k}", partial(work, f"need {k}")) for k in range(6))
        units = [Unit(f"unit {k}", partial(work, f"unit {k}"), needs=needs) for k in range(3)]
        assert run(units, store, shard=(part, 3), progress=False) == ()
    assert [order[0] for order in begun.values()] == ["need 0", "need 2", "need 4"]
    assert all(sorted(order[:6]) == [f"need {k}" for k in range(6)] for order in begun.values())


def test_where_there_is_no_bar_a_line_a_minute_says_how_far_it_is(tmp_path, monkeypatch, capfd):
    import gradspec.runs.units as module

    monkeypatch.setattr(module, "_SILENT", 0.0)
    units = [Unit(f"unit {k}", lambda: pd.DataFrame({"a": [1]})) for k in range(3)]
    run(units, Store.open(tmp_path / "run", {}))
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{k} of 3 units done" for k in (1, 2, 3)]
    assert lines[-1].endswith("00:00 left")
    run(units[:1], Store.open(tmp_path / "quiet", {}), progress=False)
    assert capfd.readouterr().err == ""

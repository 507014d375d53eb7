"""Units of work, done one after the other in this process or by workers of a Dask cluster; the folder is the truth.

A worker writes its unit into the run's folder and returns nothing: what is done is what has a file there. So a run
goes on after any of its processes was killed, and several machines may work into one folder, or into copies of it.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from gradspec._checks import check_whole
from gradspec.runs.store import Store

if TYPE_CHECKING:
    import pandas as pd

DEATHS = 3  # of workers over one unit, after which it is given up
_CLUSTER = {
    "distributed.scheduler.worker-ttl": None,  # busy workers that hold the GIL are not dead (distributed#8538)
    "distributed.scheduler.worker-saturation": 1.0,  # none is given a second unit: its death would count for both
    "distributed.scheduler.allowed-failures": DEATHS,
    "distributed.admin.log-format": "%(name)s: %(message)s",
}
_log = logging.getLogger("gradspec")


@dataclass(frozen=True)
class Unit:
    """A piece of work that leaves one table.

    Attributes:
        name: What it is known by in the folder, whatever letters it holds; another for each unit.
        work: Computes the table. To be done by other processes it must be something that pickle knows, such as a
            `functools.partial` of a module's function.
        cost: About how long it takes, in any unit: of workers the longest are done first.
    """

    name: str
    work: Callable[[], pd.DataFrame]
    cost: float = 1.0


class Failure(NamedTuple):
    """A unit that failed, and why, in a line; the traceback is in the folder's `errors/`."""

    unit: str
    reason: str


def run(
    units: Sequence[Unit],
    store: Store,
    *,
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> tuple[Failure, ...]:
    """Does the units that are not done yet, and returns those that failed; the others go on.

    Args:
        units: In the order in which one process does them.
        store: Where their tables go.
        scheduler: None: this process, one after the other; "local" or "local:N": N other processes on this machine (as
            many as there are GPUs, or cores for their threads); "tcp://HOST:PORT" or a scheduler file's path: a Dask
            cluster that is there, a unit per worker. All but None need the extra `cluster`.
        shard: (i, n): every n-th unit from the i-th on, 0 ≤ i < n, so that n machines do all between them.
        threads: Of torch in every process; None leaves it as it is. One thread against two moves a ReLU network's
            gradient by up to 1 % of its maximum: a run that shall be the same everywhere names it.
        progress: Show a bar with the remaining time on stderr, if that is a terminal.

    Raises:
        ValueError: For names that are there twice, a shard or a scheduler that is none.
        ImportError: For a scheduler without Dask.
        KeyboardInterrupt: What is done stays, and is not done again.

    Example:
        >>> import tempfile, pandas as pd
        >>> units = [Unit(f"square of {k}", lambda k=k: pd.DataFrame({"value": [1 / k]})) for k in (1, 0)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store.open(folder, {})
        ...     failed = run(units, store)
        >>> failed
        (Failure(unit='square of 0', reason='ZeroDivisionError: division by zero'),)
    """
    chosen = _shard(_named(units), shard)
    todo = [unit for unit in chosen if not store.done(unit.name)]
    if threads is not None:
        check_whole(threads=threads)
    found = []
    with tqdm(
        total=len(chosen), initial=len(chosen) - len(todo), desc="units", disable=None if progress else True
    ) as bar:
        for unit, reason in _done(todo, store, scheduler, threads):
            if reason:
                found.append(Failure(unit.name, reason))
                _log.warning("%s failed: %s", unit.name, reason)
            bar.update()
    return tuple(found)


def _named(units: Sequence[Unit]) -> Sequence[Unit]:
    names = [unit.name for unit in units]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Expected another name for each unit, got {twice[0]!r} twice.")
    return units


def _shard(units: Sequence[Unit], shard: tuple[int, int] | None) -> Sequence[Unit]:
    if shard is None:
        return units
    part, parts = shard
    if not 0 <= part < parts:
        raise ValueError(f"Expected a shard i/n with 0 ≤ i < n, got {part}/{parts}.")
    longest = sorted(units, key=lambda unit: -unit.cost)  # stable: every machine cuts alike
    mine = {unit.name for unit in longest[part::parts]}
    return [unit for unit in units if unit.name in mine]


def _done(todo: Sequence[Unit], store: Store, scheduler: str | None, threads: int | None) -> Iterator[tuple[Unit, str]]:
    """Does the units; yields each with why it failed, "" where it did not."""
    if scheduler is None:
        for unit in todo:
            yield unit, attempt(unit, store, threads)
        return
    with _cluster(scheduler, threads) as client:
        yield from _by_workers(client, sorted(todo, key=lambda unit: -unit.cost), store, threads)


def attempt(unit: Unit, store: Store, threads: int | None = None) -> str:
    """Does a unit unless it is done; returns why it failed, "" where it did not."""
    if store.done(unit.name):
        return ""
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    try:
        table = unit.work()
        table.attrs.setdefault("seconds", round(time.perf_counter() - began, 3))
        store.write(unit.name, table)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        store.fail(unit.name, reason, traceback.format_exc())
        return reason
    return ""


# ---- workers -------------------------------------------------------------------------------------


@contextmanager
def _cluster(scheduler: str, threads: int | None) -> Iterator[Any]:
    """A client of the cluster that a user names; one on this machine is closed at the end."""
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("Workers need Dask: pip install 'gradspec[cluster]'.") from error
    where, _, count = scheduler.partition(":")
    with config.set(_CLUSTER):
        if where != "local":
            address: Any = {"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}
            with Client(**address) as client:
                yield client
            return
        workers = _workers(count, scheduler, threads)
        # a free port for the scheduler's pages, here alone: the usual one may be another cluster's, which is warned of
        options: Any = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
        with LocalCluster(workers, processes=True, **options) as cluster, Client(cluster) as client:
            yield client


def _workers(count: str, scheduler: str, threads: int | None) -> int:
    if not count:
        cores = os.cpu_count() or 1
        return torch.cuda.device_count() or max(1, cores // (threads or 1))
    if not count.isdecimal() or count == "0":
        raise ValueError(f"Expected scheduler 'local', 'local:N', 'tcp://HOST:PORT' or a file, got {scheduler!r}.")
    return int(count)


def _by_workers(client: Any, todo: Sequence[Unit], store: Store, threads: int | None) -> Iterator[tuple[Unit, str]]:
    from distributed import as_completed

    futures = {
        client.submit(
            attempt, unit, store, threads, key=f"unit-{store.path(unit.name).stem}", pure=False, priority=-k
        ): unit
        for k, unit in enumerate(todo)
    }
    try:
        for future in as_completed(futures, raise_errors=False):
            unit = futures[future]
            if store.done(unit.name):  # the folder, not the future, is the truth
                reason = ""
            elif future.status == "finished":
                reason = future.result() or "it left no file"
            else:
                reason = _death(future)
                store.fail(unit.name, reason, str(future.traceback()))
            future.release()
            yield unit, reason
    finally:
        client.cancel([future for future in futures if not future.done()])


def _death(future: Any) -> str:
    """Why a future has no result: its work raises nothing, so that its workers died, or could not be given it."""
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return f"its worker died {DEATHS + 1} times: out of memory, or killed"
    return f"{type(error).__name__}: {error}"

"""Units of work, done one after the other in this process or by workers of a Dask cluster; the folder is the truth.

A worker writes its unit into the run's folder and returns nothing: what is done is what has a file there. So a run
goes on after any of its processes was killed, and several machines may work into one folder, or into copies of it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from gradspec._checks import check_whole
from gradspec.runs.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

DEATHS = 3  # of workers over one unit, after which it is given up
_CLUSTER = {
    "distributed.scheduler.worker-ttl": None,  # busy workers that hold the GIL are not dead (distributed#8538)
    "distributed.scheduler.worker-saturation": 1.0,  # none is given a second unit: its death would count for both
    "distributed.scheduler.allowed-failures": DEATHS,
    # a worker of this machine that restarts slowly is not given up for good: with none left a run would wait for ever
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.log-format": "%(name)s: %(message)s",
}
_ONE = threading.Lock()  # units of one process share networks with hooks: workers with several threads take turns
_SILENT = 60.0  # seconds between two lines about how far a run is, where there is no bar
_log = logging.getLogger("gradspec")


@dataclass(frozen=True)
class Unit:
    """A piece of work that leaves one table.

    Attributes:
        name: What it is known by in the folder, whatever letters it holds; another for each unit.
        work: Computes the table. To be done by other processes it must be something that pickle knows, such as a
            `functools.partial` of a module's function.
        cost: About how long it takes, in any unit: of workers the longest are done first.
        needs: Units that have to be done before; whoever does this one does those that are missing, too.
        strict: Whether it fails where one of these failed, or says itself which of them it can do without.
    """

    name: str
    work: Callable[[], pd.DataFrame]
    cost: float = 1.0
    needs: tuple[Unit, ...] = ()
    strict: bool = True


class Failure(NamedTuple):
    """A unit that failed, and why, in a line; the traceback is in the folder's `errors/`."""

    unit: str
    reason: str


def run(
    units: Sequence[Unit],
    store: Store,
    *,
    scheduler: str | Client | None = None,
    shard: tuple[int, int] | None = None,
    threads: int | None = None,
    progress: bool = True,
    given_up: Collection[str] = (),
) -> tuple[Failure, ...]:
    """Does the units that are not done yet, and returns those that failed; the others go on.

    Args:
        units: In the order in which one process does them.
        store: Where their tables go.
        scheduler: None: this process, one after the other; "local" or "local:N": N other processes on this machine (as
            many as there are GPUs, or cores for their threads); "tcp://HOST:PORT" or a scheduler file's path: a Dask
            cluster that is there, a unit per worker; or what `workers` gives, for several calls. All but None need the
            extra `cluster`.
        shard: (i, n): every n-th unit from the i-th on, 0 ≤ i < n, so that n machines do all between them.
        threads: Of torch in every process; None leaves it as it is. One thread against two moves a ReLU network's
            gradient by up to 1 % of its maximum: a run that shall be the same everywhere names it.
        progress: Show a bar with the remaining time on stderr, or a line a minute where that is no terminal.
        given_up: Units that failed in an earlier call and are not tried again for the sake of those that need them.

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
    if threads is not None:
        check_whole(threads=threads)
    needed = {need.name: need for unit in chosen if not store.done(unit.name) for need in unit.needs}
    # one that failed is not tried twice in a run, but in the next one
    first = [need for need in needed.values() if not store.done(need.name) and need.name not in given_up]
    if shard is not None and first:  # shards at work at once begin at different ones
        turn = len(first) * shard[0] // shard[1]
        first = first[turn:] + first[:turn]
    sooner = {need.name for need in first}
    todo = [unit for unit in chosen if not store.done(unit.name) and unit.name not in sooner]
    ready, found = sum(store.done(unit.name) for unit in chosen), []
    with (
        workers(scheduler, threads) as pool,
        tqdm(
            total=ready + len(first) + len(todo), initial=ready, desc="units", disable=None if progress else True
        ) as bar,
    ):
        said = began = time.monotonic()
        count = 0
        for units in (first, todo):
            for unit, reason in _done(units, store, pool, threads):
                if reason:
                    found.append(Failure(unit.name, reason))
                    _log.warning("%s failed: %s", unit.name, reason)
                bar.update()
                count += 1
                if progress and bar.disable and time.monotonic() - said > _SILENT:
                    said = time.monotonic()
                    left = tqdm.format_interval((said - began) / count * (len(first) + len(todo) - count))
                    print(f"{ready + count} of {bar.total} units done, {left} left", file=sys.stderr, flush=True)
    return tuple(found)


def _named(units: Sequence[Unit]) -> Sequence[Unit]:
    if twice := sorted(name for name, count in Counter(unit.name for unit in units).items() if count > 1):
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


def _done(todo: Sequence[Unit], store: Store, pool: Client | None, threads: int | None) -> Iterator[tuple[Unit, str]]:
    """Does the units; yields each with why it failed, "" where it did not."""
    ready = []
    for unit in todo:
        lost = [need.name for need in unit.needs if not store.done(need.name)]
        if not lost or not unit.strict:
            ready.append(unit)
            continue
        reason = store.error(lost[0]) or f"{lost[0]} is not done"
        store.fail(unit.name, reason, f"It needs the unit {lost[0]!r}, which failed: see there.")
        yield unit, reason
    if pool is None:
        for unit in ready:
            yield unit, attempt(unit, store, threads)
    elif ready:
        yield from _by_workers(pool, sorted(ready, key=lambda unit: -unit.cost), store, threads)


def attempt(unit: Unit, store: Store, threads: int | None = None) -> str:
    """Does a unit unless it is done; returns why it failed, "" where it did not."""
    if store.done(unit.name):
        return ""
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    try:
        with _ONE:
            table = unit.work()
        table.attrs.setdefault("seconds", round(time.perf_counter() - began, 3))
        store.write(unit.name, table)
    except (Exception, SystemExit) as error:  # a network that calls sys.exit ends its unit and not the run
        reason = _reason(error)
        store.fail(unit.name, reason, traceback.format_exc())
        return reason
    return ""


def _reason(error: Exception | SystemExit) -> str:
    """What an exception says, with its type where that is no sentence."""
    text = " ".join(str(error).split())
    plain = text and (isinstance(error, ValueError) or type(error) in (RuntimeError, TypeError))
    return text if plain else f"{type(error).__name__}: {text}"


# ---- workers -------------------------------------------------------------------------------------


@contextmanager
def workers(scheduler: str | Client | None, threads: int | None = None) -> Iterator[Client | None]:
    """Gives a client of the cluster that is named; one on this machine is closed at the end.

    Args:
        scheduler: As for `run`. None gives None; a client is given back, and stays open.
        threads: Of torch in each process, by which their number on this machine is chosen.

    Raises:
        ValueError: For a scheduler that is none, or does not answer.
        ImportError: Without Dask.
    """
    if scheduler is None or not isinstance(scheduler, str):
        yield scheduler
        return
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("Workers need Dask: pip install 'gradspec[cluster]'.") from error
    where, _, count = scheduler.partition(":")
    with config.set(_CLUSTER):
        if where != "local":
            with _client(scheduler) as client:
                if not client.nthreads():
                    _log.warning("the scheduler at %s has no workers yet: waiting for them", scheduler)
                yield client
            return
        number = _workers(count, scheduler, threads)
        # a free port for the scheduler's pages, here alone: the usual one may be another cluster's, which is warned of
        options: Any = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
        options["silence_logs"] = logging.ERROR  # workers that take their time to end
        with _uninterrupted():
            cluster = LocalCluster(number, processes=True, **options)
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Threads and processes that are begun here get no Ctrl-C: it is for this one, which ends its workers itself."""
    resource_tracker.ensure_running()  # which lets signals through again where it is begun later
    known = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, known)


def _client(scheduler: str) -> Client:
    from distributed import Client

    remote = "://" in scheduler
    if not remote and not os.path.isfile(scheduler):
        raise ValueError(f"Expected scheduler 'local', 'local:N', 'tcp://HOST:PORT' or a file, got {scheduler!r}.")
    try:
        return Client(scheduler) if remote else Client(scheduler_file=scheduler)
    except (OSError, ValueError) as error:
        raise ValueError(f"No scheduler answers at {scheduler}: {error}") from error


def _workers(count: str, scheduler: str, threads: int | None) -> int:
    if not count:
        cores = os.cpu_count() or 1
        return torch.cuda.device_count() or max(1, cores // (threads or 1))
    if not count.isdecimal() or count == "0":
        raise ValueError(f"Expected scheduler 'local', 'local:N', 'tcp://HOST:PORT' or a file, got {scheduler!r}.")
    return int(count)


def _by_workers(client: Client, todo: Sequence[Unit], store: Store, threads: int | None) -> Iterator[tuple[Unit, str]]:
    from distributed import as_completed

    futures = {
        client.submit(
            attempt,
            replace(unit, needs=()),
            store,
            threads,
            key=f"unit-{store.path(unit.name).stem}",
            pure=False,
            priority=-k,
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

"""How a command does its units: options that change how a run is done and not what it finds, and the run itself."""

from __future__ import annotations

import errno
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.commands.options import as_json, note

if TYPE_CHECKING:
    from gradspec.runs import Failure, Store, Unit

FREE = ("out", "scheduler", "shard", "json", "batch_size")  # options that change how a run is done, not what it finds

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class Running:
    """The options of commands that do their work in units."""

    threads: int = 1
    """Of torch in every process. They change the numbers a little, so that a run has the same however it is spread;
    more are quicker where one process works alone."""
    scheduler: str | None = None
    """local or local:N for N processes here, tcp://HOST:PORT or a scheduler's file for a Dask cluster that is there
    (the extra gradspec[cluster]). Without it: this process, one unit after the other."""
    shard: str | None = None
    """I/N: every N-th unit from the I-th on, counted from 0, for job arrays; all may write to one --out."""
    json: bool = False
    """Print what was found as JSON, and nothing else."""


def shard_of(command: Any) -> tuple[int, int] | None:
    """Returns (i, n) of --shard.

    Raises:
        ValueError: For anything but I/N with 0 ≤ I < N, and without --out.
    """
    if command.shard is None:
        return None
    if command.out is None:
        raise ValueError("--shard needs --out, the folder in which the parts come together.")
    part, _, parts = command.shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, got {command.shard}.")
    return int(part), int(parts)


def frozen(command: Any, kind: str, **more: Any) -> dict[str, Any]:
    """Returns the settings of a run as its spec.json keeps them: a folder with others is refused.

    Args:
        command: The options.
        kind: Of result.
        more: What else the result hangs on, as plain JSON.
    """
    from importlib.metadata import version

    from gradspec.runs.store import FORMAT

    names = ("gradspec", "torch", "torchvision", "timm", "numpy")
    return {
        "format": FORMAT,
        "kind": kind,
        "command": _settings(command),
        **more,
        "device": command.device or "cpu",
        "threads": command.threads,
        "seed": command.seed,
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def run_folder(command: Running, out: Path, kind: str) -> Iterator[Path]:
    """Yields the folder of a run, made if need be; says where a run that is interrupted goes on.

    Args:
        command: The options.
        out: A new folder, an empty one, or that of a run with the same options.
        kind: Of result.

    Raises:
        ValueError: The folder holds anything else, before any work.
    """
    from gradspec.folders import claimed
    from gradspec.runs import Store, changed
    from gradspec.runs.store import FORMAT, UNFROZEN

    with claimed(out, mark="spec.json") as folder:
        if (folder / "spec.json").exists():
            known, wanted = Store(folder).spec, {"format": FORMAT, "kind": kind, "command": _settings(command)}
            held = {name: known.get(name) for name in wanted} if isinstance(known, dict) else {}
            if changes := changed(held, wanted, UNFROZEN):
                raise ValueError(
                    f"{folder} holds a run of other settings ({changes}): name another folder with --out, or remove "
                    "this one."
                )
        try:
            with _terminated():
                yield folder
        except (KeyboardInterrupt, OSError) as error:
            if (folder / "spec.json").exists():
                count = len(list(folder.glob("units/*.parquet")))
                note(f"{count} finished units are in {folder}: the same command with --out {folder} goes on from there")
            if isinstance(error, OSError) and error.errno in _FULL:  # of tables, figures, the page
                raise OSError(f"{folder} cannot be written to ({os.strerror(error.errno)}).") from error
            raise
        except SystemExit as stop:  # not to be taken for ours, which may say that all went well
            raise RuntimeError(f"The network's code calls sys.exit({stop.code!r}).") from stop


@contextmanager
def _terminated() -> Iterator[None]:
    """Takes SIGTERM, as a queue sends it at the end of a job's time, for Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, known)


def _settings(command: Running) -> dict[str, Any]:
    return {name: value for name, value in as_json(command).items() if name not in FREE}


def done(command: Running, store: Store, *phases: Sequence[Unit] | Callable[[], Sequence[Unit]]) -> tuple[Failure, ...]:
    """Does the units of the phases, one phase behind the other, and returns those that failed.

    Args:
        command: How.
        store: Where.
        phases: Units, or what makes them once the phases before are done.
    """
    from gradspec.commands.working import forget
    from gradspec.runs import run, workers

    failed: dict[str, Failure] = {}
    with workers(command.scheduler, command.threads) as pool:
        if pool is not None:  # of a cluster that is there: from another run, whose files may have changed
            pool.run(forget)
        try:
            for phase in phases:
                units = phase() if callable(phase) else phase
                how: Any = {"scheduler": pool, "shard": shard_of(command), "threads": command.threads}
                found = run(units, store, **how, given_up=failed)
                failed |= {failure.unit: failure for failure in found}
        finally:
            if pool is not None:
                with suppress(Exception):  # workers that are gone hold nothing
                    pool.run(forget)
    return tuple(failed.values())


def check_done(failed: Sequence[Failure], out: Path) -> None:
    """Raises where units failed, at the end, when everything else is written and shown.

    Raises:
        RuntimeError: With the first of them and where their tracebacks are.
    """
    if failed:
        by_reason: dict[str, list[str]] = {}
        for unit, reason in failed:
            by_reason.setdefault(reason, []).append(unit)
        told = [
            f"{units[0]}{f' and {len(units) - 1} more' * (len(units) > 1)}: {why.rstrip('.')}"
            for why, units in by_reason.items()
        ]
        more = f"; and {len(told) - 3} more reasons" if len(told) > 3 else ""
        raise RuntimeError(
            f"{len(failed)} unit(s) failed ({'; '.join(told[:3])}{more}); the tracebacks are in {out / 'errors'}."
        )


def print_json(out: Path, failed: Sequence[Failure], tables: Mapping[str, Any], **more: Any) -> None:
    """Prints a run's tables, and which units failed, as one JSON object."""
    import json

    shown = {name: json.loads(table.to_json(orient="records") or "[]") for name, table in tables.items()}
    lost = [failure._asdict() for failure in failed]
    print(json.dumps({"run": str(out), **more, "failed": lost, **shown}, indent=1, ensure_ascii=False))


def warn_skipped(store: Store) -> None:
    """Says which pictures could not be read."""
    if skipped := store.skipped():
        told = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
        note(f"warning: {len(skipped)} picture(s) skipped: {told}{'; ...' if len(skipped) > 5 else ''}")

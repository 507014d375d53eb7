"""A run's folder: its settings, and one Parquet file for each unit of work that is done.

A unit's file is written beside its place under a hidden name, brought to the disk and then renamed, so that it is
there whole or not at all: a run that was stopped goes on from the units that are there, and folders of the same
settings are merged by copying their files together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.results import read_file

if TYPE_CHECKING:
    import pandas as pd

SPEC = "spec.json"


@dataclass(frozen=True)
class Store:
    """The folder of a run.

    Attributes:
        folder: Where `spec.json`, `units/` and, of units that failed, `errors/` are.

    Example:
        >>> import tempfile, pandas as pd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store.open(folder, {"seed": 0})
        ...     store.write("Saliency, 0 to 7", pd.DataFrame({"value": [0.5]}))
        ...     store.done("Saliency, 0 to 7"), store.read("Saliency, 0 to 7")["value"].tolist()
        (True, [0.5])
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path, spec: Mapping[str, Any]) -> Store:
        """Returns the store in a folder, made if need be.

        Args:
            folder: A new folder, an empty one, or that of a run with the same settings, which goes on.
            spec: Settings, as plain JSON.

        Raises:
            ValueError: The folder holds a run of other settings (each is named), or something else.
        """
        store, wanted = cls(Path(folder)), json.loads(json.dumps(spec))
        if (store.folder / SPEC).exists():
            if changes := changed(store.spec, wanted):
                raise ValueError(f"{folder} holds a run of other settings ({changes}): name another, or remove it.")
        elif store.folder.is_dir() and any(store.folder.iterdir()):
            raise ValueError(f"{folder} already holds files, but no run: name another folder.")
        else:
            (store.folder / "units").mkdir(parents=True, exist_ok=True)
            _write(store.folder / SPEC, lambda path: path.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8"))
        return store

    @property
    def spec(self) -> Any:
        """The settings that the folder was made with."""
        return read_file(self.folder / SPEC, lambda path: json.loads(path.read_text("utf-8")), "a run")

    def path(self, unit: str) -> Path:
        """Returns the file of a unit, whose name may hold anything: its end tells apart what looks alike."""
        readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", unit).strip("-.")[:80]
        return self.folder / "units" / f"{readable}-{hashlib.sha256(unit.encode()).hexdigest()[:8]}.parquet"

    def done(self, unit: str) -> bool:
        """Returns whether a unit's file is there."""
        return self.path(unit).exists()

    def write(self, unit: str, table: pd.DataFrame) -> None:
        """Writes a unit's table, at once and whole; what stands in its `attrs`, as plain JSON, is kept too.

        An error that was kept of it is gone then.
        """
        self.path(unit).parent.mkdir(parents=True, exist_ok=True)
        _write(self.path(unit), lambda path: table.to_parquet(path, index=False))
        self._error(unit).unlink(missing_ok=True)

    def fail(self, unit: str, reason: str, traceback: str) -> None:
        """Keeps why a unit failed; a unit that is done stays done."""
        about = {"unit": unit, "reason": reason, "traceback": traceback}
        self._error(unit).parent.mkdir(parents=True, exist_ok=True)
        _write(self._error(unit), lambda path: path.write_text(json.dumps(about, indent=1) + "\n", "utf-8"))

    def error(self, unit: str) -> str:
        """Returns why a unit failed, in a line; "" where it did not, or has since been done."""
        path = self._error(unit)
        if self.done(unit) or not path.exists():
            return ""
        return str(read_file(path, lambda file: json.loads(file.read_text("utf-8"))["reason"], "an error"))

    def _error(self, unit: str) -> Path:
        return self.folder / "errors" / f"{self.path(unit).stem}.json"

    def read(self, unit: str) -> pd.DataFrame:
        """Returns a unit's table.

        Raises:
            ValueError: It is missing or damaged, with the file's name.
        """
        import pandas as pd

        return read_file(self.path(unit), pd.read_parquet, f"unit {unit!r}")


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns in which settings two differ, "" for none.

    Example:
        >>> changed({"seed": 0, "limit": 8}, {"seed": 1, "limit": 8, "shape": "disk"})
        'seed: 0, now 1; shape: not there, now "disk"'
    """
    names = [name for name in {**old, **new} if old.get(name, ...) != new.get(name, ...)]
    told = {name: [json.dumps(s[name]) if name in s else "not there" for s in (old, new)] for name in names}
    return "; ".join(f"{name}: {before}, now {after}" for name, (before, after) in told.items())


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file under a hidden name that no reader takes, brings it to the disk, and gives it its own."""
    hidden = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        write(hidden)
        with open(hidden, "rb") as file:
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)

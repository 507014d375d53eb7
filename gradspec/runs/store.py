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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradspec.runs.tables import unpacked

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

SPEC = "spec.json"
FORMAT = 2  # of the folders that results are saved in
# of the settings: may differ between runs that go on, or are merged; pictures and fits are known by what they are
UNFROZEN = ("created", "command.images", "command.fits")
_OURS = re.compile("-[0-9a-f]{8}$")  # names of files as `Store.path` makes them
_NEEDED = {"comparison": ["variants"], "trials": ["variants"]}  # settings without which a kind of result is none


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
        # the tasks of an array open one folder at a time: what another is about to write is no file yet
        found = store.folder.iterdir() if store.folder.is_dir() else ()
        if all(path.name.startswith(f".{SPEC}.") for path in found):
            text = json.dumps(wanted, indent=1) + "\n"
            _write(store.folder / SPEC, lambda path: path.write_text(text, "utf-8"), _unless_there)
        elif not (store.folder / SPEC).exists():
            raise ValueError(f"{folder} already holds files, but no run: name another folder.")
        known = store.spec
        if changes := changed(known if isinstance(known, dict) else {}, wanted, UNFROZEN):
            raise ValueError(f"{folder} holds a run of other settings ({changes}): name another, or remove it.")
        return store

    @classmethod
    def save(cls, folder: str | Path, kind: str, spec: Mapping[str, Any], units: Mapping[str, pd.DataFrame]) -> Path:
        """Writes a result that is finished, a table for each of its units, and returns the folder.

        Args:
            folder: A new folder, or that of another result of this kind, which is replaced.
            kind: Of result.
            spec: Settings, as plain JSON.
            units: Their tables.

        Raises:
            ValueError: The folder's `spec.json` is of anything else, or there are no words for the settings in JSON.
        """
        store = cls(Path(folder))
        text = json.dumps({"format": FORMAT, "kind": kind, **spec}, indent=1, ensure_ascii=False, allow_nan=False)
        replaced = (store.folder / SPEC).exists()
        if replaced and kind_of(store.folder) != kind:
            raise ValueError(
                f"Expected a new folder or one of {_a(kind)}, got {folder} whose {SPEC} is of something else: name "
                "another."
            )
        if replaced and "pictures_per_unit" in store.spec:
            raise ValueError(f"{folder} is the folder of a run, which may go on: name another.")
        for name, table in units.items():
            store.write(name, table)
        kept = {store.path(name) for name in units}
        for path in {*store.folder.glob("units/*.parquet"), *store.folder.glob("errors/*.json")} - kept:
            if replaced and _OURS.search(path.stem):  # what else lies there is nobody's to remove
                path.unlink()
        _write(store.folder / SPEC, lambda path: path.write_text(text + "\n", "utf-8"))
        return store.folder

    @classmethod
    def load(cls, folder: str | Path, kind: str) -> Store:
        """Returns the store in a folder that holds a result of this kind.

        Raises:
            ValueError: It holds none, or a damaged one.
        """
        store = cls(Path(folder))
        spec = read_file(store.folder / SPEC, lambda path: json.loads(path.read_text("utf-8")), _a(kind))
        if not isinstance(spec, dict) or (spec.get("kind"), spec.get("format")) != (kind, FORMAT):
            raise ValueError(f"Expected {_a(kind)} of format {FORMAT} in {folder}, got something else: see its {SPEC}.")
        if odd := _odd(spec, _NEEDED.get(kind, ())):
            raise ValueError(f"Cannot read {store.folder / SPEC}: expected {odd}.")
        return store

    @property
    def spec(self) -> Any:
        """The settings that the folder was made with."""
        return read_file(self.folder / SPEC, lambda path: json.loads(path.read_text("utf-8")), "a run")

    def path(self, unit: str) -> Path:
        """Returns the file of a unit, whose name may hold anything: its end tells apart what looks alike."""
        readable = re.sub(r"[^A-Za-z0-9._=-]+", "-", unit).strip("-.")[:80]
        return (
            self.folder
            / "units"
            / f"{readable}-{hashlib.sha256(unit.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}.parquet"
        )

    def done(self, unit: str) -> bool:
        """Returns whether a unit's file is there."""
        return self.path(unit).exists()

    def write(self, unit: str, table: pd.DataFrame) -> None:
        """Writes a unit's table, at once and whole; what stands in its `attrs`, as plain JSON, is kept too.

        An error that was kept of it is gone then.
        """
        _write(self.path(unit), lambda path: table.to_parquet(path, index=False, compression="zstd"))
        self._error(unit).unlink(missing_ok=True)

    def fail(self, unit: str, reason: str, traceback: str) -> None:
        """Keeps why a unit failed; a unit that is done stays done."""
        about = {"unit": unit, "reason": reason, "traceback": traceback}
        _write(self._error(unit), lambda path: path.write_text(json.dumps(about, indent=1) + "\n", "utf-8"))

    def error(self, unit: str) -> str:
        """Returns why a unit failed, in a line; "" where it did not, or has since been done."""
        path = self._error(unit)
        if self.done(unit) or not path.exists():
            return ""
        return str(read_file(path, lambda file: json.loads(file.read_text("utf-8"))["reason"], "an error"))

    def lacking(self, units: Sequence[str]) -> str:
        """Returns why what these units make up is not there: one's error, or how many are not done yet; "" if it is."""
        left = [unit for unit in units if not self.done(unit)]
        failed = next(filter(None, map(self.error, left)), "")
        return failed or (f"{len(left)} of {len(units)} units are not done yet" if left else "")

    def _error(self, unit: str) -> Path:
        return self.folder / "errors" / f"{self.path(unit).stem}.json"

    def read(self, unit: str) -> pd.DataFrame:
        """Returns a unit's table.

        Raises:
            ValueError: It is missing or damaged, with the file's name.
        """
        import pandas as pd

        return read_file(self.path(unit), pd.read_parquet, f"unit {unit!r}")

    def result(self, unit: str, make: Callable[[dict[str, pd.DataFrame], dict[str, Any]], T]) -> T:
        """Returns what is made of the tables of a unit that `packed` made, and of what else belongs to them.

        Raises:
            ValueError: It is missing or damaged, with the file's name.
        """
        import pandas as pd

        return read_file(self.path(unit), lambda path: make(*unpacked(pd.read_parquet(path))), f"unit {unit!r}")

    def about(self, unit: str) -> dict[str, Any]:
        """Returns what else belongs to the tables of a unit; raises as `result`."""
        return read_file(self.path(unit), _about, f"unit {unit!r}")

    def skipped(self) -> dict[str, str]:
        """Returns the pictures that units left out, and why; raises as `result`."""
        ours = [path for path in sorted(self.folder.glob("units/*.parquet")) if _OURS.search(path.stem)]
        found = [read_file(path, _about, "a unit") for path in ours]
        return {str(name): str(why) for about in found for name, why in about.get("skipped", {}).items()}


def _odd(spec: Mapping[str, Any], needed: Sequence[str]) -> str:
    """What the settings lack that units are named by, "" where they are sound."""
    for name in ("variants", "pictures", "selected", "reported"):
        given = spec.get(name, None if name in needed else [])
        texts = isinstance(given, list) and all(isinstance(each, str) for each in given)
        if not texts and (name in needed or "pictures_per_unit" in spec):
            return f"a list of names as {name!r}"
    methods, fits = spec.get("methods", {}), spec.get("fits", {})
    if not (isinstance(methods, (dict, list)) and all(isinstance(each, str) for each in methods)):
        return "names as 'methods'"
    if not (isinstance(fits, dict) and all(map(_of_dicts, fits.values()))):
        return "methods and their cutoffs for each variant as 'fits'"
    size = spec.get("pictures_per_unit", 1)
    return "" if isinstance(size, int) and size > 0 else f"a number of pictures_per_unit above 0, got {size!r}"


def _of_dicts(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(each, dict) for each in given.values())


def _about(path: Path) -> dict[str, Any]:
    """What `packed` was given beside the tables; the tables are not read."""
    from pyarrow import parquet

    return dict(json.loads(parquet.read_schema(path).metadata[b"PANDAS_ATTRS"])["about"])


def kind_of(folder: str | Path) -> Any:
    """Returns of which kind the result in a folder is; None where it says none, or what it says cannot be read."""
    try:
        spec = json.loads((Path(folder) / SPEC).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return spec.get("kind") if isinstance(spec, dict) else None


def read_file(path: Path, reader: Any, kind: str = "an audit") -> Any:
    """Returns what the reader makes of a result's file; a ValueError names the file that is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"Expected {kind} in {path.parent}, but it has no {path.name}.")
    try:
        return reader(path)
    except Exception as error:
        again = "; if a run made it, remove it and start the run again: it does this unit anew"
        advice = again if path.parent.name in ("units", "errors") else ""
        raise ValueError(f"Cannot read {path}: {type(error).__name__}: {error}{advice}") from error


def _a(kind: str) -> str:
    return kind if kind.endswith("s") else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def changed(old: Mapping[str, Any], new: Mapping[str, Any], but: Collection[str] = ()) -> str:
    """Returns in which settings two differ, "" for none.

    Args:
        old: As they were.
        new: As they are.
        but: Names of those that may differ, as `differences` has them.

    Example:
        >>> changed({"seed": 0, "command": {"limit": 8}}, {"seed": 1, "command": {"limit": 8, "shape": "disk"}})
        'seed: 0, now 1; command.shape: not there, now "disk"'
    """
    return "; ".join(
        f"{name}: {_told(before, after)}" for name, before, after in differences(old, new) if name not in but
    )


MISSING = object()  # in the place of a setting that is not there


def differences(old: Mapping[str, Any], new: Mapping[str, Any], inside: str = "") -> list[tuple[str, Any, Any]]:
    """Returns the settings in which two differ, with both values, `MISSING` where there is none."""
    found = []
    for name in {**old, **new}:
        before, after = old.get(name, MISSING), new.get(name, MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{inside}{name}.")
        elif before != after:
            found.append((f"{inside}{name}", before, after))
    return found


def _told(before: Any, after: Any) -> str:
    """Two values in words; of long lists how far they agree."""
    if isinstance(before, list) and isinstance(after, list) and max(len(before), len(after)) > 5:
        others = len(set(map(str, after)) - set(map(str, before)))
        order = "" if others or len(before) != len(after) else " in another order"
        return f"{len(before)}, now {len(after)}{order or f', of which {others} are others'}"
    return ", now ".join("not there" if one is MISSING else json.dumps(one)[:200] for one in (before, after))


def _write(path: Path, write: Callable[[Path], Any], place: Callable[[Path, Path], None] | None = None) -> None:
    """Writes a file under a hidden name that no reader takes, brings it to the disk, and gives it its own."""
    hidden = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(hidden)
        with open(hidden, "rb") as file:
            os.fsync(file.fileno())
        (place or os.replace)(hidden, path)
    except OSError as error:  # a full disk, a folder of somebody else's
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"{path} cannot be written ({reason}).") from error
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def _unless_there(hidden: Path, path: Path) -> None:
    """Gives a file its name unless another process has by then."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(hidden, path)

"""`gradspec collect` and `gradspec diff`: one table of one or many runs, and how two of them differ."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gradspec.commands.options import note

if TYPE_CHECKING:
    from gradspec.differing import Differences
    from gradspec.saved import Saved

SUFFIXES = (".csv", ".parquet", ".json")
_SETTINGS, _ONLY, _NUMBERS, _ROWS, _PAIRED = 7, 2, 6, 10, 6  # lines of the parts of `gradspec diff`
_WIDE = 44  # letters of a value or a row's name that are shown


# ---- collect ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectCommand:
    """Put one or many runs into one table: the operators of audits, the fits or scores of FORGrad, or the networks of
    an atlas, with the run and the model in front. What is not done yet is left out, and said on stderr."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders that `gradspec audit`, `fit`, `evaluate` or `atlas` wrote, or that `.save()` did."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the table: a file that ends in .csv, .parquet or .json. Without it: CSV on stdout."""
    each_picture: bool = False
    """A row for each picture: the high share and the slope of its gradient at every operator, its scores, or its curve
    over the cutoffs."""
    json: bool = False
    """Print the table as JSON, with what is done, failed and missing of each run, and nothing else."""

    def run(self) -> None:
        """Reads all runs, then writes the table."""
        if not self.runs:
            raise ValueError("collect needs at least one RUN.")
        _check_file(self.out)
        runs = _read(self.runs)
        kinds = {run.about: run for run in reversed(runs)}
        if len(kinds) > 1:
            first, second = ({run.about: run for run in runs}[about] for about in list(kinds)[:2][::-1])
            raise ValueError(
                f"No common table: {first.folder} is a table of {first.about}, {second.folder} one of {second.about}. "
                "Collect them one by one."
            )
        parts = [run.each_picture() if self.each_picture else run.table() for run in runs]
        for run in runs:
            note(f"{run.folder}: {run.progress}")
        table = _together(runs, parts)
        if not len(table):
            raise RuntimeError(f"There is nothing to collect yet in {', '.join(run.folder for run in runs)}.")
        if self.out is not None:
            _write(self.out, table)
        if self.json:
            about = [{"run": run.folder, "kind": run.kind, "model": run.model, **_progress(run)} for run in runs]
            _print_json({"runs": about, "out": self.out and str(self.out), "table": _records(table)})
        elif self.out is None:
            print(_csv(table), end="")
        else:
            note(f"{len(table)} rows written to {self.out}")


def _read(folders: Sequence[Path]) -> list[Saved]:
    """The runs, in order.

    Raises:
        RuntimeError: A unit is damaged: a failure of the work, not a wrong argument.
    """
    from gradspec.saved import is_damage, opened

    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ValueError(f"{twice} is named twice.")
    found = []
    for folder in folders:
        try:
            found.append(opened(folder))
        except ValueError as error:
            if not is_damage(error):
                raise
            raise RuntimeError(str(error)) from error
    return found


def _together(runs: Sequence[Saved], parts: Sequence[Any]) -> Any:
    from gradspec.saved import stacked

    named = [part.assign(run=run.folder) for run, part in zip(runs, parts, strict=True)]
    table: Any = stacked(named)
    return table[["run", *(name for name in table if name != "run")]]


def _progress(run: Saved) -> dict[str, Any]:
    found = run.progress
    return {
        "done": list(found.done),
        "failed": [{"unit": unit, "reason": reason} for unit, reason in found.failed.items()],
        "missing": list(found.missing),
        "does_not_apply": found.left_out,
    }


def _check_file(out: Path | None) -> None:
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {out}.")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file.")


def _write(out: Path, table: Any) -> None:
    """Writes the table beside its place and renames it, so that it is there whole or not at all."""
    hidden = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.suffix.lower() == ".parquet":
                table.to_parquet(hidden, index=False, compression="zstd")
            else:
                text = _csv(table) if out.suffix.lower() == ".csv" else _json(_records(table)) + "\n"
                hidden.write_text(text, "utf-8", newline="")
            os.replace(hidden, out)
        finally:
            if hidden.exists():
                hidden.unlink()
    except OSError as error:
        raise RuntimeError(f"Cannot write {out}: {error}.") from error


def _csv(table: Any) -> str:
    """The table as CSV; lists, as an atlas has them, as JSON in a cell."""
    cells = {name: [_json(each) if isinstance(each, list) else each for each in map(_plain, table[name])]
             for name in table if table[name].dtype == object}  # fmt: skip
    return str(table.assign(**cells).to_csv(index=False, lineterminator="\n"))


def _records(table: Any) -> list[dict[str, Any]]:
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """A cell as JSON has it: no NaN, no numpy."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _print_json(about: Mapping[str, Any]) -> None:
    print(json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False))


# ---- diff ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiffCommand:
    """Compare two runs: the settings, versions and pictures in which they differ, and by how much their numbers do. The
    exit code is 0 where the numbers are the same, 1 where they differ, 2 where the runs cannot be compared."""

    run_a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_A")]
    """Folder of a run."""
    run_b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_B")]
    """Folder of another one of the same kind; differences are B - A."""
    tolerance: float = 1e-6
    """Relative difference up to which two numbers are the same."""
    json: bool = False
    """Print everything as JSON, and nothing else."""

    def run(self) -> int:
        """Prints how the runs differ; returns the exit code."""
        from gradspec.differing import differ
        from gradspec.saved import opened

        a, b = opened(self.run_a), opened(self.run_b)
        found = differ(a, b, self.tolerance)
        for run in (a, b):
            if not run.progress.complete:
                note(f"warning: {run.folder}: {run.progress}")
        if self.json:
            _print_json(_as_json(a, b, found))
        else:
            print("\n".join(told(a, b, found)))
        return 0 if found.same else 1


def _as_json(a: Saved, b: Saved, found: Differences) -> dict[str, Any]:
    from gradspec.runs import MISSING

    settings = [
        {"setting": name, **{side: value for side, value in (("a", old), ("b", new)) if value is not MISSING}}
        for name, old, new in found.settings
    ]
    return {
        "a": a.folder, "b": b.folder, "same": found.same, "tolerance": found.tolerance, "settings": settings,
        "pictures": found.pictures, "keys": list(found.keys), "rows_in_both": found.both,
        "rows_in_a": [list(key) for key in found.only_a], "rows_in_b": [list(key) for key in found.only_b],
        "columns": _records(found.columns), "changed": _records(found.rows), "paired": _records(found.paired),
    }  # fmt: skip


def told(a: Saved, b: Saved, found: Differences) -> list[str]:
    """Returns how two runs differ, as lines to read."""
    lines = [
        _verdict(a, found),
        *_aligned([[f"  {s}", r.folder, _heading(r)] for s, r in zip("AB", (a, b), strict=True)]),
    ]
    lines += _settings(found)
    lines += _rows_in_one(found)
    lines += _numbers(found)
    lines += _most_changed(found)
    return lines + _paired(found)


def _verdict(a: Saved, found: Differences) -> str:
    if found.same:
        return f"The numbers are the same: {found.both} {a.about}, to {found.tolerance:g} relative."
    wrong: Any = found.columns[found.columns["differ"] > 0]
    parts = []
    if len(wrong):
        named = list(wrong["column"])
        more = f" and {len(named) - 3} more columns" if len(named) > 3 else ""
        parts.append(f"up to {wrong['differ'].max()} of {found.both} rows in {', '.join(named[:3])}{more}")
    if found.only_a or found.only_b:
        parts.append(f"{len(found.only_a) + len(found.only_b)} rows are in one alone")
    return f"The numbers differ: {'; '.join(parts)}."


def _heading(run: Saved) -> str:
    made = f", made {run.spec['created']}" if "created" in run.spec else ""
    of = f" of {run.model}" if run.model else ""
    return f"{run.kind}{of}{made}{'' if run.progress.complete else ', not finished'}"


def _settings(found: Differences) -> list[str]:
    if not found.settings:
        lines = ["", "settings: the same"]
    else:
        cells = [[f"  {name}", _short(old), "->", _short(new)] for name, old, new in found.settings]
        lines = ["", "settings, A -> B", *_cut(_aligned(cells), _SETTINGS, "settings")]
        if any(name == "network" for name, _, _ in found.settings):
            lines.append("  (network: another hash is other weights or other modules)")
    return [*lines, *([f"pictures: {found.pictures}"] if found.pictures else [])]


def _rows_in_one(found: Differences) -> list[str]:
    from gradspec.differing import in_words

    lines = []
    for side, keys in (("A", found.only_a), ("B", found.only_b)):
        if keys:
            shown = "; ".join(_clip(in_words(key)) for key in keys[:_ONLY])
            lines.append(f"in {side} alone: {len(keys)} rows ({shown}{'; ...' if len(keys) > _ONLY else ''})")
    return lines


def _numbers(found: Differences) -> list[str]:
    wrong: Any = found.columns[found.columns["differ"] > 0]
    if not len(wrong):
        return []
    same = len(found.columns) - len(wrong)
    head = f"columns that differ by more than {found.tolerance:g} relative, in {found.both} rows of both; {same} do not"
    cells = [["  column", "rows", "largest, B - A", "where", "A", "B"]]
    for row in wrong.to_dict("records"):
        largest = "" if _nothing(row["largest"]) else f"{row['largest']:+.4g}"
        cells.append(
            [f"  {row['column']}", row["differ"], largest, _clip(row["row"]), _short(row["a"]), _short(row["b"])]
        )
    return ["", head, *_cut(_aligned(cells, right={1, 2}), _NUMBERS + 1, "columns")]


def _most_changed(found: Differences) -> list[str]:
    if not len(found.rows):
        return []
    errors = found.rows["errors"].notna().any()
    order = ", in standard errors of both together" if errors else ""
    cells = [["  " + " ".join(found.keys), "column", "A", "B", "B - A", *(["in SE"] if errors else [])]]
    for row in found.rows.head(_ROWS).to_dict("records"):
        key = " ".join(str(row[name]) for name in found.keys)
        numbers = [f"{row['a']:+.4g}", f"{row['b']:+.4g}", f"{row['change']:+.3g}"]
        told = "" if _nothing(row["errors"]) else f"{row['errors']:+.1f}"
        cells.append([f"  {_clip(key)}", row["column"], *numbers, *([told] if errors else [])])
    head = f"most changed of {len(found.rows)} rows{order}"
    return ["", head, *_aligned(cells, right={2, 3, 4, 5})]


def _paired(found: Differences) -> list[str]:
    if found.same or not len(found.paired):
        return []
    if "low" in found.paired:
        head = "change of the scores on the same pictures, B - A, with its 95 % interval; the surest first"
        order: Any = (found.paired["mean"].abs() / found.paired["se"]).fillna(0)
        rows = found.paired.loc[order.sort_values(ascending=False, kind="stable").index]
    else:
        head, rows = "change of the gradient at the network's input on the same pictures, B - A", found.paired
    cells = []
    for row in rows.to_dict("records"):
        name = " ".join(str(row[key]) for key in ("variant", "attribution", "arm") if row.get(key))
        spread = f"± {row['se']:.3g}" if "low" not in row else f"[{row['low']:+.3g}, {row['high']:+.3g}]"
        cells.append([f"  {name}", row["quantity"], f"{row['mean']:+.4g}", spread, f"n {row['n']}"])
    return ["", head, *_cut(_aligned(cells, right={2}), _PAIRED, "changes")]


# ---- words -----------------------------------------------------------------------------------


def _aligned(rows: Sequence[Sequence[Any]], right: set[int] | frozenset[int] = frozenset()) -> list[str]:
    """Lines of cells under each other; the columns `right` end at the same place."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return [
        "  ".join(cell.rjust(width) if k in right else cell.ljust(width)
                  for k, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]  # fmt: skip


def _cut(lines: list[str], most: int, what: str) -> list[str]:
    more = len(lines) - most
    return [*lines[:most], f"  and {more} more {what}: see --json"] if more > 0 else lines


def _short(value: Any) -> str:
    """A setting or a cell in words."""
    from gradspec.runs import MISSING

    if value is MISSING:
        return "not there"
    value = _plain(value)
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.5g}"
    return _clip(value if isinstance(value, str) else _json(value))


def _clip(text: str) -> str:
    plain = "".join(each if each.isprintable() else "?" for each in text)
    return plain if len(plain) <= _WIDE else f"{plain[: _WIDE - 3]}..."


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))

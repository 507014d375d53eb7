"""The tables of where the numbers come from: what was not seen, the pictures, settings and versions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from gradspec.reporting.subject import Subject
from gradspec.reporting.tables import Cell, Column, Table, digits, some, text, whole
from gradspec.reporting.text import plain
from gradspec.results import Audit

_MOST_PICTURES = 1000
_MOST_SETTINGS = 300
_MOST_LETTERS = 300
_DEPTH = 4
_PER_PICTURE = {"labels": "label", "predicted": "first choice", "label_probability": "probability of the label"}


def unseen(subject: Subject) -> Table:
    """Returns what has no numbers, a row for all that lack them for one reason."""
    rows = [
        [text(variant), text(reason), whole(len(names)), some(names)]
        for variant, audit in subject.audits.items()
        for reason, names in _by_reason(audit.unseen)
    ]
    columns = [
        Column("variant", "name"),
        Column("reason", "prose"),
        Column("how many", "number"),
        Column("which", "names"),
    ]
    if subject.drift is None:
        columns, rows = columns[1:], [row[1:] for row in rows]
    return Table("unseen-table", "Modules and calls without numbers, by reason.", columns, rows)


def pictures(audit: Audit) -> Table:
    """Returns the pictures, with label, first choice and probability where they are recorded."""
    shown = audit.pictures[:_MOST_PICTURES]
    columns = [Column("#", "number"), Column("picture", "name")]
    rows = [[whole(i), text(name)] for i, name in enumerate(shown, 1)]
    for key, head in _PER_PICTURE.items():
        values = audit.spec.get(key)
        if isinstance(values, list) and len(values) == len(audit.pictures):
            columns.append(Column(head, "number"))
            for row, value in zip(rows, values, strict=False):
                row.append(digits(value) if key == "label_probability" else whole(value))
    more = len(audit.pictures) - len(shown)
    rest = f"; {more:,} more stand in spec.json" if more else ""
    return Table("pictures-table", f"The pictures, in order{rest}.", columns, rows)


def settings(subject: Subject) -> Table:
    """Returns what else the spec records, a row each; long values are cut."""
    return settings_of({name: value for name, value in subject.spec.items() if name not in _PER_PICTURE})


def settings_of(spec: dict[str, Any]) -> Table:
    """Returns the leaves of a spec, a row each."""
    found = [[text(name), Cell(value)] for name, value in _flat(spec)]
    rest = f" {len(found) - _MOST_SETTINGS:,} more stand in spec.json." if len(found) > _MOST_SETTINGS else ""
    columns = [Column("setting", "name"), Column("value", "name")]
    return Table("settings-table", f"Settings and versions.{rest}", columns, found[:_MOST_SETTINGS])


def _by_reason(unseen: dict[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in unseen.items():
        groups[reason].append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """The leaves of nested JSON with the path to each; what is nested deeper still is one leaf."""
    if isinstance(value, dict) and value and depth < _DEPTH:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{plain(key, 60)}" if name else plain(key, 60), depth + 1)
    else:
        yield name, plain(value if isinstance(value, str) else _json(value), _MOST_LETTERS)


def _json(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)

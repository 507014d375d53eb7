"""The tables of what was measured: calls, culprits, variants, surgery, causal arms."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from gradspec.reporting.subject import Subject
from gradspec.reporting.tables import (
    Cell,
    Column,
    Row,
    Table,
    digits,
    maps,
    measured,
    share,
    side_by_side,
    some,
    text,
    whole,
    without_empty,
)
from gradspec.results import Audit


def calls(subject: Subject) -> Table:
    """Returns every call and point: all numbers of one audit, slope and high share of several side by side."""
    return _calls_of_one(subject.first) if subject.drift is None else _calls_of_several(subject.audits)


def culprits(subject: Subject) -> Table:
    """Returns new power by call, of several audits side by side, ranked by the first."""
    types = _types(subject.audits)
    rows = [[text(key["call"]), text(types[key["call"]]), *cells] for key, cells in _new_power(subject, "call")]
    columns = [Column("call", "name"), Column("type"), *_heads(subject)]
    caption = f"New power of every call, mean over pictures ± standard error.{_ranked_by(subject)}"
    return Table("culprits-table", caption, columns, rows, ranked=2)


def culprits_by_type(subject: Subject) -> Table:
    """Returns new power by type of operator, of several audits side by side, ranked by the first."""
    rows = [[text(key["type"]), *cells] for key, cells in _new_power(subject, "type")]
    columns = [Column("type"), *_heads(subject)]
    if len(subject.audits) == 1:
        columns.append(Column("calls", "number"))
        calls_of = dict(subject.first.culprits("type")[["type", "calls"]].itertuples(index=False))
        rows = [[*row, whole(calls_of[row[0].text])] for row in rows]
    caption = (
        f"New power by type of operator: mean over its calls, over pictures ± standard error.{_ranked_by(subject)}"
    )
    return Table("types-table", caption, columns, rows, ranked=1)


def drift(subject: Subject) -> Table:
    """Returns one row per variant: slope and high share at the input, and what it answers."""
    assert subject.drift is not None
    heads = ("slope", "high share", "accuracy", "same choice", "probability", "change of it")
    columns = [Column("variant", "name"), *(Column(head, "number") for head in heads), Column("note", "prose")]
    rows = [
        [
            text(row["variant"]), measured(row, "slope_nyquist", "se_nyquist"), digits(row["high_share"]),
            share(row["accuracy"], row["se"]), share(row["agreement"]), digits(row["label_probability"]),
            digits(row["probability_change"], signed=True), text(row["note"] or ""),
        ]
        for row in subject.drift.fillna({"note": ""}).to_dict("records")
    ]  # fmt: skip
    caption = f"The gradient at each variant's input, and what the variant answers beside {subject.reference}."
    return without_empty(Table("variants-table", caption, columns, rows))


def effects(subject: Subject) -> Table:
    """Returns the causal table."""
    assert subject.effects is not None
    heads = ("slope", "change of slope", "high share", "change of share", "new power")
    columns = [Column("call", "name"), Column("type"), Column("arm"), *(Column(head, "number") for head in heads)]
    rows = [
        [
            text(row["call"]), text(row["type"]), text(row["arm"]), measured(row, "slope_nyquist", "se_nyquist"),
            measured(row, "change", "se_change", signed=True), measured(row, "high_share", "se_share"),
            measured(row, "share_change", "se_share_change", signed=True), digits(row["new_power"], signed=True),
            text(row["note"]),
        ]
        for row in subject.effects.to_dict("records")
    ]  # fmt: skip
    caption = (
        "The gradient at the network's input where operators are replaced by average pooling; changes of “one” are "
        "against “none”, of “all but one” against “all”, ± one standard error, paired over pictures."
    )
    return without_empty(Table("causal-table", caption, [*columns, Column("note", "prose")], rows))


def changes(subject: Subject, name: str, place: int) -> Table:
    """Returns what the surgeries changed and left in a variant, a row for all that was treated alike."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for record in subject.records[name]:
        for change in record.changes:
            groups[record.surgery, change.type, change.before, change.after].append(change.name)
        for call, reason in record.left.items():
            groups[record.surgery, "left as it is", "", reason].append(call)
    columns = [
        Column("surgery"), Column("what"), Column("before", "prose"), Column("after, or why it was left", "prose"),
        Column("how many", "number"), Column("which", "names"),
    ]  # fmt: skip
    rows = [[*map(text, group), whole(len(names)), some(names)] for group, names in groups.items()]
    return Table(f"changes-{place}", f"What surgery changed and left in {name}.", columns, rows)


# ---- calls -----------------------------------------------------------------------------------

_CALLS = (
    "Every call, in order of execution: slope per Nyquist and high share of the gradient at its input and output, mean "
    "over pictures ± standard error"
)


def _calls_of_one(audit: Audit) -> Table:
    columns = [
        Column("#", "number"), Column("call", "name"), Column("operator"), Column("type"), Column("point"),
        Column("maps", "number"), Column("slope", "number"), Column("r²", "number"), Column("high share", "number"),
        Column("less white", "number"), Column("pictures", "number"), Column("note", "prose"),
    ]  # fmt: skip
    rows = [
        [
            whole(i), text(row["call"]), text(row["operator"]), text(row["type"]), text(row["point"]), maps(row),
            measured(row, "slope_nyquist", "se_nyquist"), digits(row["r2"], 2), measured(row, "high_share", "se_share"),
            digits(row["excess"], signed=True), whole(row["n"]), text(row["note"]),
        ]
        for i, row in enumerate(audit.table.to_dict("records"), 1)
    ]  # fmt: skip
    return without_empty(Table("calls-table", f"{_CALLS}. Maps: channels × height × width.", columns, rows))


def _calls_of_several(audits: dict[str, Audit]) -> Table:
    def cells(row: Row) -> list[Cell]:
        return [measured(row, "slope_nyquist", "se_nyquist"), measured(row, "high_share", "se_share")]

    types, keys = _types(audits), ["call", "point", "height", "width"]
    found = side_by_side({name: audit.table for name, audit in audits.items()}, keys, cells, ranked=False)
    rows = [
        [whole(i), text(key["call"]), text(types[key["call"]]), text(key["point"]), maps(key), *numbers]
        for i, (key, numbers) in enumerate(found, 1)
    ]
    columns = [Column("#", "number"), Column("call", "name"), Column("type"), Column("point"), Column("maps", "number")]
    groups = [("", len(columns)), *((name, 2) for name in audits)]
    columns += [Column(head, "number") for _ in audits for head in ("slope", "high share")]
    caption = f"{_CALLS}. A dash: the variant has no call of this name and map size, or no number there."
    return Table("calls-table", caption, columns, rows, groups=groups)


def _types(audits: dict[str, Audit]) -> dict[str, str]:
    """Call -> the operator's type; all of them where a variant has another one under this name."""
    pairs = [pair for audit in audits.values() for pair in zip(audit.table["call"], audit.table["type"], strict=True)]
    types: dict[str, dict[str, None]] = defaultdict(dict)
    for call, kind in pairs:
        types[call][kind] = None
    return defaultdict(str, {call: " / ".join(kinds) for call, kinds in types.items()})


def _new_power(subject: Subject, by: Literal["call", "type"]) -> list[tuple[Row, list[Cell]]]:
    rankings = {name: audit.culprits(by) for name, audit in subject.audits.items()}
    return side_by_side(rankings, [by], lambda row: [measured(row, "new_power", "se", signed=True)], ranked=True)


def _heads(subject: Subject) -> list[Column]:
    """The heads of columns of new power: the variants' names where there are several."""
    if len(subject.audits) == 1:
        return [Column("new power", "number")]
    return [Column(name, "number", foreign=True) for name in subject.audits]


def _ranked_by(subject: Subject) -> str:
    return f" Ranked by {subject.reference}; a dash: no such call." if len(subject.audits) > 1 else ""

"""What a page is about: one audit, or the audits of a comparison, with every name and number made safe to show.

A folder may come from anybody, so nothing in it is believed: texts lose control characters, what should be a number and
is none becomes NaN, and what cannot be read at all is refused in one sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from gradspec.causality import COLUMNS, agreement, reason_of
from gradspec.comparison import Comparison
from gradspec.cutoffs import CutoffFit
from gradspec.evaluation import Scores
from gradspec.reporting.text import listed, plain
from gradspec.results import Audit, Example
from gradspec.surgery import Change, Record
from gradspec.trials import KINDS, Trial, Trials, alone, tried

if TYPE_CHECKING:
    from pandas import DataFrame

Result: TypeAlias = Audit | Comparison | Trials | CutoffFit | Scores | str | Path

FORGRAD = "forgrad"  # folder of trials within that of a comparison
_KIND = 40  # letters of a type or operator; gradspec's own are shorter
_NAME = 1000  # letters of any other name; far beyond real ones
_TABLE = {"call": _NAME, "operator": _KIND, "type": _KIND, "point": _KIND, "note": _NAME}
_NUMBERS = (
    "stage", "channels", "height", "width", "slope_nyquist", "se_nyquist", "r2", "high_share", "se_share", "excess",
    "n",
)  # fmt: skip
_POWER = {"call": _NAME, "operator": _KIND, "type": _KIND, "image": _NAME}
_EFFECTS = {"call": _NAME, "type": _KIND, "arm": _KIND, "note": _NAME}


@dataclass(frozen=True, eq=False)
class Subject:
    """What a page is about.

    Attributes:
        audits: By variant; a single audit by its model's name.
        spec: Of the audit, or of the comparison over that of its first audit.
        records: Of the surgeries that made each variant.
        missing: Variant -> why it does not apply or failed.
        drift: One row per variant, see `Comparison.drift`; None for a single audit.
        effects: The causal table, where it was made.
        agreement: How the causal table agrees with the ranking.
        trials: Fits and scores of FORGrad on the variants, where they lie in the folder.
    """

    audits: dict[str, Audit]
    spec: dict[str, Any]
    records: dict[str, Sequence[Record]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    drift: DataFrame | None = None
    effects: DataFrame | None = None
    agreement: DataFrame | None = None
    trials: Trials | None = None

    @property
    def first(self) -> Audit:
        """The audit, or that of the variant all others are compared with."""
        return next(iter(self.audits.values()))

    @property
    def reference(self) -> str:
        """The name of `first`."""
        return next(iter(self.audits))

    @property
    def models(self) -> str:
        """The names of the networks, each once."""
        return listed(
            list(dict.fromkeys(plain(audit.spec.get("model", "a network"), _NAME) for audit in self.audits.values()))
        )


def subject_of(result: Result) -> Subject | Trials:
    """Returns what the page about a result shows.

    Raises:
        ValueError: For a folder that is no result, or a damaged one.
        TypeError: For anything else than a result or a path.
    """
    if isinstance(result, (str, Path)):
        return _loaded(Path(result))
    if isinstance(result, Audit):
        audit = _safe(result)
        return Subject({plain(audit.spec.get("model", "a network"), _NAME): audit}, audit.spec)
    if isinstance(result, Comparison):
        return _compared(result)
    if isinstance(result, (CutoffFit, Scores, Trials)):
        return _tried(alone(result) if isinstance(result, (CutoffFit, Scores)) else result)
    raise TypeError(
        f"Expected an Audit, a Comparison, a CutoffFit, Scores or the path of a saved one, got {type(result).__name__}."
    )


def input_row(audit: Audit) -> dict[str, Any] | None:
    """Returns the numbers at the network's input; None where the table has no such row."""
    table = audit.table
    rows: Any = table[(table["call"] == "input") & (table["point"] == "input")]
    return rows.iloc[0].to_dict() if len(rows) else None


# ---- reading ---------------------------------------------------------------------------------


def _loaded(folder: Path) -> Subject | Trials:
    """What the result saved in a folder holds, whatever its kind."""
    kinds: dict[str, Any] = {"audit": Audit.load, "comparison": Comparison.load} | dict.fromkeys(KINDS, tried)
    kind = _kind(folder)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(
            f"Expected the folder of an audit or a comparison, of fits or scores, but spec.json in {folder} says "
            f"{plain(kind, 60)!r}: name a folder that `gradspec audit`, `fit` or `evaluate` wrote."
        )
    try:
        found = subject_of(kinds[kind](folder))
        if isinstance(found, Subject) and (folder / FORGRAD / "spec.json").is_file():
            found = replace(found, trials=_tried(tried(folder / FORGRAD)))
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:  # a foreign field
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        raise ValueError(f"Cannot read the {kind} in {folder}: {reason_of(error)}") from error
    return found


def _kind(folder: Path) -> Any:
    file = folder / "spec.json"
    if not file.is_file():
        raise ValueError(f"Expected the folder of an audit or a comparison, but {folder} has no spec.json.")
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read {file}: {type(error).__name__}: {error}") from error
    return spec.get("kind", "nothing") if isinstance(spec, dict) else type(spec).__name__


# ---- making safe -----------------------------------------------------------------------------


def _compared(comparison: Comparison) -> Subject:
    effects = comparison.effects
    if effects is not None:
        numbers = [column for column in COLUMNS if column not in _EFFECTS]
        effects = _columns(effects, "causal table", _EFFECTS, numbers)
    safe = replace(
        comparison,
        audits={plain(name, _NAME): _safe(audit) for name, audit in comparison.audits.items()},
        missing={plain(name, _NAME): plain(reason, _NAME) for name, reason in comparison.missing.items()},
        spec=comparison.spec | {"variants": [plain(name, _NAME) for name in comparison.spec["variants"]]},
    )
    return Subject(
        audits=safe.audits,
        spec=next(iter(safe.audits.values())).spec | safe.spec,
        records={plain(name, _NAME): [*map(_safe_record, found)] for name, found in comparison.records.items()},
        missing=safe.missing,
        drift=safe.drift,
        effects=effects,
        agreement=None if effects is None else agreement(effects),
    )


def _tried(trials: Trials) -> Trials:
    """The trials with names that can be shown, and tables that can be made."""
    safe = replace(trials, trials=tuple(map(_safe_trial, trials.trials)))
    for table in (safe.table, safe.before_after, safe.summary):
        table()  # raises where a file holds something else
    {name for trial in safe.trials for fit in trial.fits.values() for name in fit.pictures}  # and here, of no names
    return safe


def _safe_trial(trial: Trial) -> Trial:
    return replace(
        trial,
        variant=plain(trial.variant, _NAME),
        fits={plain(method, _NAME): fit for method, fit in trial.fits.items()},
        failed={plain(method, _NAME): plain(reason, _NAME) for method, reason in trial.failed.items()},
        reason=plain(trial.reason, _NAME),
        spectral_how=plain(trial.spectral_how, _NAME),
    )


def _safe(audit: Audit) -> Audit:
    """The audit with names without control characters, and numbers that are numbers."""
    return replace(
        audit,
        table=_columns(audit.table, "table", _TABLE, _NUMBERS),
        signatures={_key(key): signature for key, signature in audit.signatures.items()},
        new_power=_columns(audit.new_power, "table of new power", _POWER, ("stage", "new_power")),
        unseen=_texts(audit.unseen),
        examples={_key(key): example for key, example in audit.examples.items() if _drawable(example)},
        pictures=tuple(plain(name, _NAME) for name in audit.pictures),
    )


def _safe_record(record: Record) -> Record:
    changes = [
        Change(
            plain(", ".join(map(str, change.calls)) or change.name, _NAME),
            plain(change.type, _NAME),
            plain(change.before, _NAME),
            plain(change.after, _NAME),
        )
        for change in record.changes
    ]
    settings = record.settings if isinstance(record.settings, dict) else {}
    notes = tuple(plain(note, _NAME) for note in record.notes)
    return Record(plain(record.surgery, _KIND), settings, tuple(changes), _texts(record.left), notes)


def _columns(frame: DataFrame, name: str, texts: Mapping[str, int], numbers: Iterable[str]) -> DataFrame:
    """The named columns, texts cut to the given lengths."""
    numbers = tuple(numbers)
    if lacking := [column for column in (*texts, *numbers) if column not in frame]:
        raise ValueError(f"Expected a column {lacking[0]!r} in the {name}, but it has none.")
    safe: dict[str, list[Any]] = {
        column: [_text(value, most) for value in frame[column]] for column, most in texts.items()
    }
    safe |= {column: [_float(value) for value in frame[column]] for column in numbers}
    return pd.DataFrame(safe)


def _text(value: Any, most: int) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else plain(value, most)


def _float(value: Any) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _key(key: tuple[Any, Any]) -> tuple[str, str]:
    call, point = key
    return plain(call, _NAME), plain(point, _KIND)


def _texts(mapping: Any) -> dict[str, str]:
    items = mapping.items() if isinstance(mapping, Mapping) else ()
    return {plain(name, _NAME): plain(value, _NAME) for name, value in items}


def _drawable(example: Example) -> bool:
    shapes = example.maps.ndim == 3 and example.spectrum.ndim == 2
    return shapes and all(np.issubdtype(array.dtype, np.floating) for array in (example.maps, example.spectrum))

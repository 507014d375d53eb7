"""How two runs differ: in their settings, in the rows of their tables and the numbers there, and picture by picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradspec.causality import paired_difference
from gradspec.evaluation import Scores
from gradspec.results import Audit
from gradspec.runs import differences
from gradspec.saved import CALLS, FITTED, KEYS, SCORED, Saved
from gradspec.spectra import Signature
from gradspec.statistics import paired

if TYPE_CHECKING:
    import pandas as pd

PICTURES = ("pictures", "selected", "reported")  # settings that list them
_NOTHING = ("created", "seconds", "format")  # settings that say nothing of what was found
_TIMES = ("seconds per 100", "filter per 100")  # columns that no two runs have in common
_SMALL = 1e-12  # differences that rounding makes
_SPECTRAL = {"slope_nyquist": "se_nyquist", "high_share": "se_share"}
_FITS = ("unfiltered", "abs", "best")  # what tells a fit; no errors are known of these


@dataclass(frozen=True, eq=False)
class Differences:
    """How run B differs from run A.

    Attributes:
        settings: Name, A's value and B's, `gradspec.runs.MISSING` where there is none.
        keys: The columns that tell rows apart.
        only_a: Rows that A alone has, by their keys.
        only_b: Rows that B alone has.
        both: How many rows both have.
        columns: A row for each column that was compared: `column`, `rows` with a value in one at least, how many
            `differ`, the `largest` difference B - A (NaN for words, and for a number that is in one alone), its `row`
            in words, and `a` and `b` there.
        rows: The rows that differ, the most changed first: the keys, the `column` that changed most, `a`, `b`,
            `change`, and `errors`: the change in standard errors of the two together, NaN where none are known.
        paired: What changed on the same pictures, B - A: keys, `quantity`, `n`, `mean`, `se`, and for scores `low` and
            `high`, the ends of a 95 % bootstrap interval.
        pictures: Whether the pictures are the same, in words.
        tolerance: Relative difference up to which numbers are the same.
    """

    settings: list[tuple[str, Any, Any]]
    keys: tuple[str, ...]
    only_a: list[tuple[str, ...]]
    only_b: list[tuple[str, ...]]
    both: int
    columns: pd.DataFrame
    rows: pd.DataFrame
    paired: pd.DataFrame
    pictures: str
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether both have the same rows, with the same values within the tolerance, whatever the settings."""
        return not self.only_a and not self.only_b and not self.columns["differ"].any()


def differ(a: Saved, b: Saved, tolerance: float = 1e-6) -> Differences:
    """Returns how run B differs from run A.

    Two numbers are the same where they differ by at most the tolerance, relative to the larger one. Times are not
    compared. Of two runs with one variant each these are compared whatever they are called.

    Args:
        a: A run, as `gradspec.saved.opened` gives it.
        b: Another one.
        tolerance: Of 0 or more.

    Raises:
        ValueError: The runs have no common table, or nothing of one is finished; a tolerance below 0.
    """
    if not tolerance >= 0:
        raise ValueError(f"Expected a tolerance of 0 or more, got {tolerance:g}.")
    for run in (a, b):
        if run.result is None:
            raise ValueError(f"Nothing of {run.folder} is finished: {run.progress}.")
    if a.about != b.about:
        raise ValueError(
            f"{a.folder} and {b.folder} cannot be compared: {a.folder} is a table of {a.about}, {b.folder} one of "
            f"{b.about}."
        )
    tables = [run.table() for run in (a, b)]
    for run, table in zip((a, b), tables, strict=True):
        if not len(table):
            raise ValueError(f"Nothing of {run.folder} is finished: {run.progress}.")
    names = _variants(tables)
    keys = tuple(name for name in KEYS[a.about] if name != "variant" or names is None)
    first, second = (_flat(table, keys) for table in tables)
    known, others = ({key: place for place, key in enumerate(_keys(table, keys))} for table in (first, second))
    shared = [key for key in known if key in others]
    left, right = (first.iloc[[known[key] for key in shared]], second.iloc[[others[key] for key in shared]])
    compared = [name for name in first if name in second and name not in (*keys, "variant", "model", *_TIMES)]
    wrong = {name: _wrong(left[name], right[name], tolerance) for name in compared}
    leading = _leading(a.about, left, right)
    order = sorted(compared, key=lambda name: (name not in leading, _numbers(left[name]) is None))
    columns = [_column(name, wrong[name], left[name], right[name], shared) for name in order]
    rows = _changed(leading, keys, shared, left, right, wrong)
    said, changes = _pictures(a, b, names)
    return Differences(
        _settings(a.spec, b.spec), keys, [key for key in known if key not in others],
        [key for key in others if key not in known], len(shared), _frame(columns, _COLUMNS), rows,
        changes, said, tolerance,
    )  # fmt: skip


def in_words(key: Iterable[str]) -> str:
    """Returns the keys of a row in words."""
    return " ".join(filter(None, key))


# ---- settings --------------------------------------------------------------------------------


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs; an option that stands in the settings beside the command's too is told once."""
    found = [each for each in differences(a, b) if each[0] not in _NOTHING and each[0] not in PICTURES]
    told = {name for name, _, _ in found}
    return [each for each in found if each[0].removeprefix("command.") == each[0] or each[0][8:] not in told]


def _told(a: Sequence[str], b: Sequence[str]) -> str:
    """How the pictures of two runs differ."""
    if list(a) == list(b):
        return f"the same {len(a)}"
    common = len(set(a) & set(b))
    if set(a) == set(b):
        return f"the same {len(a)} in another order"
    return f"{len(a)} in A, {len(b)} in B, {common or 'none'} of them in both"


# ---- tables ----------------------------------------------------------------------------------

_COLUMNS = ("column", "rows", "differ", "largest", "row", "a", "b")


def _variants(tables: Sequence[Any]) -> tuple[str, str] | None:
    """The names of the variants where each table has a single one, and they differ."""
    found = [set(map(str, table["variant"])) if "variant" in table else set() for table in tables]
    if [len(each) for each in found] != [1, 1] or found[0] == found[1]:
        return None
    return found[0].pop(), found[1].pop()


def _flat(table: Any, keys: Sequence[str]) -> Any:
    """The table with lists of numbers as columns of their own, lists of words as words, and each row told apart."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in table.columns:
        values = table[name].tolist()
        lists = [list(each) if isinstance(each, (list, tuple, np.ndarray)) else None for each in values]
        if not any(each is not None for each in lists):
            columns[str(name)] = table[name].to_numpy()
        elif any(isinstance(part, str) for each in lists for part in each or ()):
            columns[str(name)] = np.array(["; ".join(map(str, each or ())) for each in lists], dtype=object)
        else:
            for k in range(max(len(each or ()) for each in lists)):
                place = [each[k] if each is not None and k < len(each) else math.nan for each in lists]
                columns[f"{name} {k + 1}"] = np.array(place, dtype=float)
    flat: Any = pd.DataFrame(columns)
    again = flat.groupby(list(keys), sort=False).cumcount()
    last = flat[keys[-1]].astype(str)
    return flat.assign(**{keys[-1]: [f"{each}#{k + 1}" if k else each for each, k in zip(last, again, strict=True)]})


def _keys(table: Any, keys: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in table[list(keys)].itertuples(index=False)]


def _numbers(values: Any) -> np.ndarray | None:
    """A column's numbers, None for words."""
    if any(isinstance(each, str) for each in values):
        return None
    try:
        return np.asarray([math.nan if each is None else float(each) for each in values], dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _wrong(a: Any, b: Any, tolerance: float) -> np.ndarray:
    """Where two columns differ."""
    first, second = _numbers(a), _numbers(b)
    if first is None or second is None:
        return np.array([x != y and not (x != x and y != y) for x, y in zip(a, b, strict=True)], dtype=bool)
    with np.errstate(invalid="ignore"):
        size = np.fmax(np.abs(first), np.abs(second))
        near = (np.abs(first - second) <= np.maximum(tolerance * size, _SMALL)) | (first == second)
    return ~(near | (np.isnan(first) & np.isnan(second)))


def _column(name: str, wrong: np.ndarray, a: Any, b: Any, keys: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    first, second = _numbers(a), _numbers(b)
    line: dict[str, Any] = {"column": name, "rows": len(keys), "differ": int(wrong.sum())}
    line |= {"largest": math.nan, "row": "", "a": None, "b": None}
    if not wrong.any():
        return line
    place = int(np.flatnonzero(wrong)[0])
    if first is not None and second is not None:
        with np.errstate(invalid="ignore"):
            change = np.where(wrong, second - first, math.nan)
        if np.isfinite(change).any():
            place = int(np.nanargmax(np.where(np.isfinite(change), np.abs(change), math.nan)))
        line["largest"] = float(change[place])
    return line | {"row": in_words(keys[place]), "a": a.iloc[place], "b": b.iloc[place]}


def _leading(about: str, left: Any, right: Any) -> dict[str, str]:
    """The numbers that tell a row, with the columns of their standard errors, "" where there is none."""
    if about == FITTED:
        return dict.fromkeys(_FITS, "")
    if about != SCORED:
        return _SPECTRAL
    return {name: f"{name} se" for name in left if f"{name} se" in left and f"{name} se" in right}


def _changed(
    leading: Mapping[str, str], keys: Sequence[str], shared: Sequence[tuple[str, ...]], left: Any, right: Any,
    wrong: Mapping[str, np.ndarray],
) -> pd.DataFrame:  # fmt: skip
    """Rows that differ, each with its leading number that changed most, in standard errors or in itself."""
    lines = []
    for place, key in enumerate(shared):
        found = []
        for name, se in leading.items():
            if name not in wrong or not wrong[name][place]:
                continue
            a, b = float(left[name].iloc[place]), float(right[name].iloc[place])
            error = math.hypot(float(left[se].iloc[place]), float(right[se].iloc[place])) if se else math.nan
            errors = (b - a) / error if error > 0 else math.nan
            relative = abs(b - a) / max(abs(a), abs(b))
            rank = (math.isfinite(errors), abs(errors) if math.isfinite(errors) else relative)
            if math.isfinite(b - a):
                found.append((rank, {"column": name, "a": a, "b": b, "change": b - a, "errors": errors}))
        if found:
            rank, line = max(found, key=lambda each: each[0])
            lines.append((rank, dict(zip(keys, key, strict=True)) | line))
    lines.sort(key=lambda each: each[0], reverse=True)
    return _frame([line for _, line in lines], [*keys, "column", "a", "b", "change", "errors"])


def _frame(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([dict(line) for line in lines], columns=list(columns))


# ---- picture by picture ----------------------------------------------------------------------


def _pictures(a: Saved, b: Saved, names: tuple[str, str] | None) -> tuple[str, pd.DataFrame]:
    """Whether the pictures are the same, in words, and what changed on them."""
    lines, columns = [], ["variant", "quantity", "n", "mean", "se"]
    if a.about == CALLS:
        first, second = (next(iter(run.audits.values())).pictures for run in (a, b))
        said = _told(first, second)
        if set(first) == set(second):
            for name, other in _pairs(a.audits, b.audits, names):
                lines += _spectral(name, a.audits[name], b.audits[other])
    elif a.about == SCORED:
        scores = [run.trials.scored for run in (a, b)]
        first, second = (next(iter(found.values())).pictures for found in scores)
        said, columns = _told(first, second), ["variant", "attribution", "arm", *columns[1:], "low", "high"]
        if set(first) == set(second):
            for name, other in _pairs(scores[0], scores[1], names):
                lines += _scored(name, scores[0][name], scores[1][other])
    elif a.about == FITTED:
        fits = [[fit for trial in run.trials.trials for fit in trial.fits.values()] for run in (a, b)]
        said = _told(fits[0][0].pictures, fits[1][0].pictures)
    else:
        said = ""  # an atlas keeps no pictures
    return said, _frame(lines, columns)


def _pairs(a: Iterable[str], b: Iterable[str], names: tuple[str, str] | None) -> list[tuple[str, str]]:
    return [names] if names else [(name, name) for name in a if name in set(b)]


def _spectral(variant: str, a: Audit, b: Audit) -> list[dict[str, Any]]:
    """The change of the gradient's spectrum at the network's input."""
    key = ("input", "input")
    if key not in a.signatures or key not in b.signatures or set(a.pictures) != set(b.pictures):
        return []
    new, order = b.signatures[key], [b.pictures.index(name) for name in a.pictures]
    found = paired_difference(
        Signature(new.height, new.width, new.per_image[order], new.high_shares[order]), a.signatures[key]
    )
    about = {"variant": variant, "n": found.n}
    return [
        about | {"quantity": "slope_nyquist", "mean": found.slope_nyquist, "se": found.se_nyquist},
        about | {"quantity": "high_share", "mean": found.high_share, "se": found.se_share},
    ]


def _scored(variant: str, a: Scores, b: Scores) -> list[dict[str, Any]]:
    """The change of every attribution's, arm's and metric's scores."""
    lines = []
    keys: Any = a.table[["attribution", "arm", "metric"]].drop_duplicates()
    for attribution, arm, metric in keys.itertuples(index=False):
        old, new = a.values(attribution, arm, metric), b.values(attribution, arm, metric)
        if set(old.index) != set(new.index):
            continue
        found = paired(new.reindex(old.index).to_numpy(), old.to_numpy())
        about = {"variant": variant, "attribution": attribution, "arm": arm, "quantity": metric}
        lines.append(about | {name: getattr(found, name) for name in ("n", "mean", "se", "low", "high")})
    return lines

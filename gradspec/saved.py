"""What the folder of a run holds, whatever its kind: its result, how far it is done, and one table of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.atlas import ranked
from gradspec.comparison import AUDIT, CAUSAL, VARIANT, Comparison
from gradspec.comparison import KIND as COMPARISON
from gradspec.cutoffs import CutoffFit
from gradspec.cutoffs.result import KIND as CUTOFF_FIT
from gradspec.cutoffs.result import UNIT as SINGLE_FIT
from gradspec.evaluation import Scores
from gradspec.results import KIND as SINGLE_AUDIT
from gradspec.results import Audit
from gradspec.runs import Store, names, read_file, unit_name
from gradspec.trials import CONTROLS, FACTS, FIT, SCORES, Trials, alone, fit_units, score_units
from gradspec.trials import KIND as TRIALS

if TYPE_CHECKING:
    import pandas as pd

ATLAS = "atlas"
CALLS, SCORED, FITTED, NETWORKS = "operator calls", "scores", "fits", "networks"  # what a row of a table is about
KEYS = {
    CALLS: ("variant", "call", "point"),
    SCORED: ("variant", "attribution", "arm"),
    FITTED: ("variant", "method"),
    NETWORKS: ("model",),
}
_KINDS = {
    SINGLE_AUDIT: Audit.load,
    COMPARISON: Comparison.load,
    TRIALS: Trials.load,
    SCORES: Scores.load,
    CUTOFF_FIT: CutoffFit.load,
}
_LABELS = "labels"  # the unit of what the first variant names in pictures without labels
_FOREIGN = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)  # of what is not ours


@dataclass(frozen=True)
class Progress:
    """How far a run is done.

    Attributes:
        done: Names of the units that are done.
        failed: Of those that failed, with the reason.
        missing: Of those that were not tried yet, or were interrupted.
        left_out: Variants that do not apply, with the reason: nothing more is expected of them.
    """

    done: tuple[str, ...]
    failed: dict[str, str]
    missing: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether all units are done."""
        return not self.failed and not self.missing

    def __str__(self) -> str:
        """In words.

        Example:
            >>> print(Progress(("audit, trained",), {"audit, avgpool": "Found no layer"}, ("causal arm",), {}))
            1 of 3 units done, 1 failed (audit, avgpool: Found no layer), 1 not done yet
        """
        said = [f"{len(self.done)} of {len(self.done) + len(self.failed) + len(self.missing)} units done"]
        if self.failed:
            shown = [f"{unit}: {reason.rstrip('.')}" for unit, reason in self.failed.items()]
            said.append(f"{len(shown)} failed ({'; '.join(shown[:3])}{'; ...' if len(shown) > 3 else ''})")
        if self.missing:
            said.append(f"{len(self.missing)} not done yet")
        said += [f"variant {name} does not apply ({reason.rstrip('.')})" for name, reason in self.left_out.items()]
        return ", ".join(said)


@dataclass(frozen=True, eq=False)
class Saved:
    """A run, as far as it is done.

    Attributes:
        folder: As it was given.
        kind: Of result.
        spec: Its settings.
        progress: How far it is done.
        result: As `load` gives it; None where nothing of it is finished.
    """

    folder: str
    kind: str
    spec: dict[str, Any]
    progress: Progress
    result: Any

    @property
    def about(self) -> str:
        """What a row of its table is about: `CALLS`, `SCORED`, `FITTED` or `NETWORKS`."""
        if self.kind in (SINGLE_AUDIT, COMPARISON):
            return CALLS
        if self.kind == ATLAS:
            return NETWORKS
        return SCORED if self.kind == SCORES or (self.kind == TRIALS and bool(self.trials.scored)) else FITTED

    @property
    def audits(self) -> dict[str, Audit]:
        """Variant -> its audit; of an audit that was saved without the name of a variant ""."""
        if isinstance(self.result, Comparison):
            return self.result.audits
        variant = next(iter(self.spec.get("variants", ())), "")
        return {str(variant): self.result} if isinstance(self.result, Audit) else {}

    @property
    def trials(self) -> Trials:
        """Fits and scores of its variants."""
        single = isinstance(self.result, (CutoffFit, Scores))
        return alone(self.result) if single else self.result if isinstance(self.result, Trials) else Trials((), {})

    @property
    def model(self) -> str:
        """What the network is called."""
        if "model" in self.spec:
            return str(self.spec["model"])
        return str(next((found.spec.get("model", "") for found in self.audits.values()), ""))

    def table(self) -> pd.DataFrame:
        """Returns the result's table, a row for each of what it is `about`, with the `model` in front.

        `Audit.table` with the `variant`; `Trials.summary` where something is scored, else `Trials.table` of what was
        fitted; of an atlas its networks. Without a result it is empty.
        """
        import pandas as pd

        if self.kind == ATLAS:
            return pd.DataFrame() if self.result is None else self.result.rename(columns={"network": "model"})
        if self.about == CALLS:
            parts = [_fronted(found.table, variant=name) for name, found in self.audits.items()]
        elif self.about == SCORED:
            parts = [self.trials.summary()]
        else:
            fits = self.trials.table()
            parts = [fits[fits["n"].notna()].reset_index(drop=True)]
        return _fronted(stacked(parts), model=self.model)

    def each_picture(self) -> pd.DataFrame:
        """Returns a row for each picture, with the `model` in front.

        Of audits `variant`, `call`, `point`, `picture`, its `high_share` and the slope of its own spectrum,
        `slope_nyquist`; of scores `variant`, `picture`, `label`, `attribution`, `arm`, `metric`, `value`; of fits
        `variant`, `method`, `picture`, `cutoff` (NaN for no filter), `value`.

        Raises:
            ValueError: For an atlas, which keeps no pictures.
        """
        if self.kind == ATLAS:
            raise ValueError(f"An atlas keeps no pictures: leave --each-picture out for {self.folder}.")
        if self.about == CALLS:
            parts = [_calls(name, found) for name, found in self.audits.items()]
        elif self.about == SCORED:
            parts = [_fronted(scores.table, variant=name) for name, scores in self.trials.scored.items()]
        else:
            parts = [
                _curves(fit, variant=trial.variant, method=method)
                for trial in self.trials.trials
                for method, fit in trial.fits.items()
            ]
        return _fronted(stacked(parts), model=self.model)


# ---- reading ---------------------------------------------------------------------------------


def load(path: str | Path) -> Audit | Comparison | Trials | Scores | CutoffFit | pd.DataFrame:
    """Returns the result in a folder that a command or `.save()` wrote, of a run as far as it is done.

    Args:
        path: The folder of an audit, a comparison, fits, scores, or an atlas, of which it is the table of its networks.

    Raises:
        ValueError: The folder holds nothing of the kind, nothing that is finished yet, or something damaged.

    Example:
        >>> import tempfile, torch, gradspec as gs
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = gs.audit(net, torch.rand(2, 3, 16, 16), progress=False).save(folder)
        ...     load(folder)
        Audit(Sequential, 2 pictures, 3 calls, input slope ...)
    """
    store, kind = _store(path)
    try:
        if kind == ATLAS:
            return _atlas(store)
        if kind == SINGLE_AUDIT and not (found := _units(store, kind)).complete:
            raise ValueError(f"The audit in {path} is not finished: {found}.")
        return _KINDS[kind](path)
    except _FOREIGN as error:
        if isinstance(error, ValueError) and str(Path(path)) in str(error):
            raise
        raise ValueError(f"Cannot read the {kind} in {path}: {type(error).__name__}: {error}") from error


def units(folder: str | Path) -> Progress:
    """Returns how far a run is done, by its settings alone: which units it has, and which of their files are there.

    An atlas names its networks in their files only, so that those that are not done yet are not known.

    Raises:
        ValueError: The folder holds no run, or a damaged one.
    """
    store, kind = _store(folder)
    try:
        return _units(store, kind)
    except _FOREIGN as error:
        if isinstance(error, ValueError) and str(store.folder) in str(error):
            raise
        raise ValueError(f"Cannot read {store.folder / 'spec.json'}: {type(error).__name__}: {error}") from error


def opened(folder: str | Path) -> Saved:
    """Returns a run, as far as it is done; every unit that is done is looked at.

    Raises:
        ValueError: The folder holds no run, or one with a unit that is damaged (`is_damage`).
    """
    store, kind = _store(folder)
    progress = units(folder)
    for name in progress.done if kind != ATLAS else ():
        store.about(name)
    try:
        result = load(folder)
    except ValueError as error:
        if progress.complete or is_damage(error):
            raise
        result = None
    return Saved(str(folder), kind, store.spec, progress, result)


def is_damage(error: Exception) -> bool:
    """Returns whether an error of reading a run is of a damaged file, and not of a folder that is something else."""
    return str(error).startswith("Cannot read")


def _store(path: str | Path) -> tuple[Store, str]:
    folder = Path(path)
    if not (folder / "spec.json").is_file():
        raise ValueError(f"Expected the folder of a run, but {folder} {_lack(folder)}.")
    spec = Store(folder).spec
    kind = spec.get("kind") if isinstance(spec, dict) else None
    if not isinstance(kind, str) or kind not in (*_KINDS, ATLAS):
        said = repr(kind)[:60] if kind is not None else "no kind"
        raise ValueError(
            f"Expected a run of gradspec audit, fit, evaluate or atlas, but spec.json in {folder} says {said}."
        )
    return (Store(folder) if kind == ATLAS else Store.load(folder, kind)), kind


def _lack(folder: Path) -> str:
    return "has no spec.json" if folder.is_dir() else "is a file" if folder.exists() else "is not there"


# ---- units -----------------------------------------------------------------------------------


def _units(store: Store, kind: str) -> Progress:
    if kind == ATLAS:
        return Progress(tuple(_networks(store)), _errors(store), (), {})
    spec = store.spec
    left_out = {}
    for variant in spec.get("variants", ()):
        unit = unit_name(VARIANT, variant)
        if store.done(unit) and (reason := str(store.about(unit)["reason"])):
            left_out[str(variant)] = reason
    wanted = _expected(store, spec, kind, left_out)
    done = tuple(name for name in wanted if store.done(name))
    failed = {name: reason for name in wanted if (reason := store.error(name))}
    missing = tuple(name for name in wanted if name not in failed and not store.done(name))
    return Progress(done, failed, missing, left_out)


def _expected(store: Store, spec: Mapping[str, Any], kind: str, left_out: Mapping[str, str]) -> list[str]:
    """The units of a run, in the order in which they are done."""
    if kind in (SCORES, CUTOFF_FIT):
        return [SCORES if kind == SCORES else SINGLE_FIT]
    variants = spec.get("variants")
    if variants is None:
        return [AUDIT]
    found = [unit_name(VARIANT, variant) for variant in variants]
    applying = [variant for variant in variants if variant not in left_out]
    if kind == TRIALS:
        work = _of_trials(store, spec, applying)
    else:
        work = [unit for variant in applying for unit in names(spec, AUDIT, variant, pictures="pictures")]
    command = spec.get("command", {}) if "pictures_per_unit" in spec else {}
    causal = command.get("causal") or store.done(CAUSAL)
    named = kind == TRIALS or len(variants) > 1 or causal
    # named before any other work, where no labels came with the pictures: generated ones have none
    waiting = named and command and command.get("images") is None and not any(map(store.done, work))
    labels = [_LABELS] if waiting or store.done(_LABELS) else []
    return [*found, *labels, *work, *([CAUSAL] if causal else [])]


def _of_trials(store: Store, spec: Mapping[str, Any], variants: Sequence[str]) -> list[str]:
    if "pictures_per_unit" not in spec:
        return _of_saved_trials(store, variants)
    found, methods = [], list(spec.get("methods", ()))
    if "selected" in spec:
        for variant in variants:
            found.append(unit_name(FACTS, variant))
            found += [unit for method in methods for unit in fit_units(spec, variant, method)]
    for variant, fits in spec.get("fits", {}).items():
        found += [
            unit
            for method, about in fits.items()
            if variant in variants and "reason" not in about
            for unit in fit_units(spec, variant, method)
        ]
    if "reported" in spec:
        found += [
            unit for variant in variants for method in (*methods, CONTROLS)
            for unit in score_units(spec, variant, method)
        ]  # fmt: skip
    return list(dict.fromkeys(found))


def _of_saved_trials(store: Store, variants: Sequence[str]) -> list[str]:
    """Of trials that `Trials.save` wrote: what is known of a variant says what was fitted."""
    found = []
    for variant in variants:
        facts, scores = unit_name(FACTS, variant), unit_name(SCORES, variant)
        fitted = store.about(facts).get("methods", ()) if store.done(facts) else ()
        found += [facts, *(unit_name(FIT, variant, method) for method in fitted)]
        found += [scores] if store.done(scores) else []
    return found


def _networks(store: Store) -> dict[str, Any]:
    """Unit -> its row of an atlas, by the files: a network, or one of several draws of its weights."""
    import pandas as pd

    def read(path: Path) -> tuple[str, pd.DataFrame]:
        row: Any = pd.read_parquet(path)
        (name,) = row["network"]  # raises for other tables
        drawn = path != store.path(name)
        return (unit_name(name, f"draw {row['draw'][0]}") if drawn else name), row

    return dict(read_file(path, read, "a network") for path in sorted(store.folder.glob("units/*.parquet")))


def _errors(store: Store) -> dict[str, str]:
    files = sorted(store.folder.glob("errors/*.json"))
    found = [read_file(path, lambda file: json.loads(file.read_text("utf-8")), "an error") for path in files]
    return {str(about["unit"]): str(about["reason"]) for about in found if not store.done(str(about["unit"]))}


def _atlas(store: Store) -> pd.DataFrame:
    rows = _networks(store)
    if not rows:
        raise ValueError(f"No network of the atlas in {store.folder} is done yet.")
    return ranked(stacked([*rows.values()]))


# ---- tables ----------------------------------------------------------------------------------


def stacked(parts: Sequence[Any]) -> pd.DataFrame:
    """Returns tables under each other; a column that one lacks is empty there."""
    import pandas as pd

    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return (filled or [*parts, pd.DataFrame()])[0].reset_index(drop=True)
    if all(list(part.columns) == list(filled[0].columns) for part in filled):
        kinds = [dict(part.dtypes) for part in filled]
        if all(each == kinds[0] for each in kinds):
            return pd.concat(filled, ignore_index=True)
    return pd.concat([part.astype(object) for part in filled], ignore_index=True).infer_objects()


def _fronted(table: Any, **columns: str) -> pd.DataFrame:
    """The table with columns of one value in front; one that it has already is replaced."""
    rest = [name for name in table.columns if name not in columns]
    return table.assign(**columns)[[*columns, *rest]]


def _calls(variant: str, audit: Audit) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for (call, point), found in audit.signatures.items():
        known = len(audit.pictures) == len(found.per_image)  # a call that was not made for all pictures: not known
        slopes = found.slopes_per_image() * min(found.height, found.width) / 2
        columns = {"variant": variant, "call": call, "point": point, "picture": audit.pictures if known else None}
        parts.append(pd.DataFrame({**columns, "high_share": found.high_shares, "slope_nyquist": slopes}))
    return stacked(parts)


def _curves(fit: CutoffFit, **about: str) -> pd.DataFrame:
    numbers = {name: float("nan") if cut is None else cut for name, cut in zip(fit.names, fit.cutoffs, strict=True)}
    long: Any = fit.per_image.melt(["picture"], fit.names, var_name="cutoff")
    return _fronted(long.assign(cutoff=[numbers[name] for name in long["cutoff"]]), **about)

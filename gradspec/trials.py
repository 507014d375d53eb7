"""FORGrad on trial for several variants of a network: fits and scores together, as the command line keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec._showing import figure_of, html_of
from gradspec.cutoffs import CutoffFit
from gradspec.cutoffs.result import KIND as CUTOFF_FIT
from gradspec.cutoffs.result import joined as joined_fits
from gradspec.evaluation import Scores, stacked
from gradspec.evaluation import joined as joined_scores
from gradspec.evaluation.plan import CONTROL
from gradspec.runs import Store, kind_of, names, packed, unit_name

if TYPE_CHECKING:
    import pandas as pd

KIND, SCORES = "trials", "scores"
KINDS = KIND, SCORES, CUTOFF_FIT  # of what `tried` reads, as their spec.json says
VARIANT, FACTS, FIT = "variant", "facts", "fit"  # units of a run, beside `SCORES`
CONTROLS = "controls"  # in the place of a method: maps that know no network
_OF_RUN = ("kind", "format", "selected", "reported", "pictures_per_unit")  # what else a run's spec.json says
FAITHFULNESS = "Faithfulness"
FILTERED = ("forgrad", "forgrad-gradient")  # arms of a fitted cutoff
AGAINST = ("none", "abs", "centre prior")  # what a gain is over: no filter, the magnitude alone, a fixed blob
_COLUMNS = (
    "variant", "method", "cutoff", "one_se", "unfiltered", "abs", "best", "gain", "low", "high", "n", "flat",
    "spectral", "forwards", "accuracy", "note",
)  # fmt: skip
_GAINS = (
    "variant", "attribution", "arm", "name", "against", "n", "mean", "se", "low", "high", "bf10", "effect", "missing",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trial:
    """What was tried on one variant.

    Attributes:
        variant: Its name.
        fits: Method -> its fit.
        scores: Without and with the filter on other pictures, where they were scored.
        failed: Method -> why it has no fit.
        reason: Why the variant does not apply; "" where it does.
        accuracy: Share of the selection pictures whose label it names; NaN where labels are predictions.
        spectral: The cutoff that results from its spectrum in cycles/image, NaN where there is none.
        spectral_how: How it was found, or why not.
    """

    variant: str
    fits: Mapping[str, CutoffFit] = field(default_factory=dict)
    scores: Scores | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    accuracy: float = math.nan
    spectral: float = math.nan
    spectral_how: str = ""


@dataclass(frozen=True, eq=False)
class Trials:
    """What was tried on the variants of a network.

    Attributes:
        trials: One for each variant, in the order asked for.
        spec: Model, settings and versions, as plain JSON.
    """

    trials: tuple[Trial, ...]
    spec: dict[str, Any]

    @property
    def fitted(self) -> int:
        """How many fits there are."""
        return sum(len(trial.fits) for trial in self.trials)

    @property
    def scored(self) -> dict[str, Scores]:
        """Variant -> its scores, of those that were scored."""
        return {trial.variant: trial.scores for trial in self.trials if trial.scores is not None}

    def of(self, variant: str) -> Trial:
        """Returns what was tried on a variant.

        Raises:
            ValueError: Nothing was.
        """
        for trial in self.trials:
            if trial.variant == variant:
                return trial
        names = ", ".join(trial.variant for trial in self.trials)
        raise ValueError(f"Expected a variant that was fitted ({names}), got {variant!r}.")

    def fit(self, variant: str, method: str) -> CutoffFit:
        """Returns the fit of a method on a variant; a fit that was saved alone is that of every variant and method.

        Raises:
            ValueError: There is none.
        """
        if self.spec.get("alone"):
            ((found,),) = (trial.fits.values() for trial in self.trials)
            return found
        trial = self.of(variant)
        if method not in trial.fits:
            why = trial.reason or trial.failed.get(method) or f"there are: {', '.join(trial.fits) or 'none'}"
            raise ValueError(f"Expected a fit of {method} for the variant {variant}, but it has none ({why}).")
        return trial.fits[method]

    # ---- what it looks like ------------------------------------------------------------------

    def plot(self, metric: str | None = None) -> Any:
        """Returns what the filters gain on all variants; where none was scored, the curves of their cutoffs.

        Args:
            metric: Of the gains; None: faithfulness, or the first where that was not measured.
        """
        return figure_of("trials.trials", self, metric)

    def __repr__(self) -> str:
        names = ", ".join(trial.variant for trial in self.trials)
        counts = {"fits": self.fitted, "scored": len(self.scored), "failed": len(failures(self))}
        said = ", ".join(f"{name}: {count}" for name, count in counts.items() if count or name != "failed")
        return f"Trials({self.spec.get('model', '?')}, variants: {names}; {said})"

    def _repr_html_(self) -> str:
        if self.scored:
            alt = "Paired gain of each filter on every variant, with its interval, on pictures it was not chosen on."
            found: Any = self.gains(self.before_after()[1])
            gained = found[found["arm"].isin(FILTERED) & (found["against"] == "none")]
            return html_of(self, gained[["variant", "name", "against", "n", "mean", "low", "high"]], alt)
        alt = "Mean score at each cutoff with its interval, a curve for each variant and method."
        named = ["variant", "method", "cutoff", "unfiltered", "best", "gain", "low", "high", "n", "flat", "note"]
        table: Any = self.table()[named]
        return html_of(self, table, alt)

    # ---- tables ------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """Returns a row for each variant and method: its fit on the pictures that it was selected on.

        `variant`, `method`, `cutoff` and `one_se` (cycles/image; NaN for no filter), mean faithfulness `unfiltered`,
        `abs` (its magnitude alone) and `best` (at the cutoff), `gain` of the best over no filter, paired, with its 95 %
        interval `low` to `high` over `n` pictures (too good: the cutoff was chosen on them), `flat`, the `spectral`
        cutoff, `forwards`, the variant's `accuracy`, and a `note`: why there is none.
        """
        import pandas as pd

        return pd.DataFrame([line for trial in self.trials for line in _lines(trial)], columns=list(_COLUMNS))

    def gains(self, metric: str = "Faithfulness") -> pd.DataFrame:
        """Returns what FORGrad gains on the pictures that no cutoff was selected on, a row per variant, method and arm.

        The columns of `Scores.gains`, for everything in `AGAINST`, with the `variant` in front.
        """
        import pandas as pd

        parts = [
            scores.gains(metric, against).assign(variant=variant)
            for variant, scores in self.scored.items()
            if metric in scores.spec["metrics"]
            for against in AGAINST
            if _has(scores, against)
        ]
        frame: Any = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(_GAINS))
        return frame[list(_GAINS)]

    def before_after(self, metric: str | None = None) -> tuple[list[dict[str, Any]], str]:
        """Returns a row for each variant and FORGrad on the pictures that no cutoff was selected on, and the metric.

        A row has `variant`, `method`, `arm`, `cutoff`, the mean `filtered`, that of each of `AGAINST` under its name,
        and the paired gain over it under "over ...", as `Scores.gains` has it; and the variant's `accuracy`.

        Args:
            metric: Its key; None: faithfulness, or the first where that was not measured.
        """
        scored = self.scored
        known = list(dict.fromkeys(name for scores in scored.values() for name in scores.spec["metrics"]))
        chosen = metric or (FAITHFULNESS if FAITHFULNESS in known else next(iter(known), FAITHFULNESS))
        rows = [row for variant, scores in scored.items() for row in _before_after(variant, scores, chosen)]
        return rows, chosen

    def summary(self) -> pd.DataFrame:
        """Returns the rows of `Scores.summary` of all variants, with `variant` and its `accuracy` in front."""
        import pandas as pd

        parts = [
            scores.summary().assign(variant=variant, accuracy=scores.accuracy)
            for variant, scores in self.scored.items()
        ]
        frame: Any = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["variant", "accuracy"])
        return frame[["variant", "accuracy", *(name for name in frame if name not in ("variant", "accuracy"))]]

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes into a folder, made if need be, and returns it: `spec.json`, and units.

        For each variant one with what is known of it, one for each fit, and one with the scores.

        Raises:
            ValueError: For a folder with a `spec.json` of anything else.
        """
        units: dict[str, pd.DataFrame] = {}
        for trial in self.trials:
            facts = {name: _known(getattr(trial, name)) for name in ("accuracy", "spectral")}
            about = {"spectral_how": trial.spectral_how, "failed": dict(trial.failed), "methods": list(trial.fits)}
            units[unit_name(VARIANT, trial.variant)] = packed({}, {"reason": trial.reason})
            units[unit_name(FACTS, trial.variant)] = packed({}, facts | about)
            units |= {unit_name(FIT, trial.variant, name): fit.to_unit() for name, fit in trial.fits.items()}
            if trial.scores is not None:
                units[unit_name(SCORES, trial.variant)] = trial.scores.to_unit()
        return Store.save(path, KIND, self.spec | {"variants": [trial.variant for trial in self.trials]}, units)

    @classmethod
    def load(cls, path: str | Path) -> Trials:
        """Returns what was saved in a folder, or of a run there as far as it is done.

        Raises:
            ValueError: For a folder that holds nothing of the kind, or something damaged.
        """
        store = Store.load(path, KIND)
        spec = {name: value for name, value in store.spec.items() if name not in _OF_RUN}
        trials = tuple(_loaded(store, str(name)) for name in spec.pop("variants"))
        return cls(trials, spec | ({"skipped": skipped} if (skipped := store.skipped()) else {}))


def alone(result: CutoffFit | Scores) -> Trials:
    """Returns a single fit, or the scores of a single network, as trials of one variant."""
    if isinstance(result, Scores):
        about = {name: result.spec[name] for name in ("model", "created", "versions") if name in result.spec}
        name = str(result.spec.get("variant", result.spec.get("model", "network")))
        return Trials((Trial(name, scores=result, accuracy=result.accuracy),), about)
    about = {name: result.spec[name] for name in ("created", "versions") if name in result.spec}
    fits = {result.attribution: result}
    return Trials((Trial(result.model, fits),), about | {"model": result.model, "alone": True})


def tried(path: str | Path) -> Trials:
    """Returns what a folder of fits, of a single fit, or of scores holds.

    Raises:
        ValueError: For any other folder.
    """
    folder = Path(path)
    if not (folder / "spec.json").is_file():
        raise ValueError(f"Expected a folder that `gradspec fit` or `evaluate` wrote, but {folder} has no spec.json.")
    kind = kind_of(folder)
    if kind == KIND:
        return Trials.load(folder)
    if kind in KINDS:
        return alone(Scores.load(folder) if kind == SCORES else CutoffFit.load(folder))
    raise ValueError(
        f"Expected a folder that `gradspec fit` or `evaluate` wrote, or a saved fit or scores, but spec.json in "
        f"{folder} says {kind!r}."
    )


def fit_units(spec: Mapping[str, Any], variant: str, method: str) -> list[str]:
    """Returns the units of a run that make up a fit: a race is one, and so is a fit that was made before."""
    cut = {} if spec.get("search") == "race" or spec.get("fits") else spec
    return names(cut, FIT, variant, method, pictures="selected")


def score_units(spec: Mapping[str, Any], variant: str, method: str) -> list[str]:
    """Returns the units of a run that make up the scores of a method, or of the `CONTROLS`."""
    return names(spec, SCORES, variant, method, pictures="reported")


def kept_fit(store: Store, variant: str, method: str) -> CutoffFit:
    """Returns a fit from the units of a run.

    Raises:
        ValueError: For units that are missing or damaged, and where no picture can be scored at every cutoff.
    """
    wanted = fit_units(store.spec, variant, method)
    if lacking := store.lacking(wanted):
        raise ValueError(lacking)
    found = [store.result(name, CutoffFit.from_unit) for name in wanted if not store.about(name).get("empty")]
    fit = joined_fits(found)
    fit.cutoff  # noqa: B018  raises where there is none
    return fit


def kept_scores(store: Store, variant: str, methods: Iterable[str]) -> tuple[Scores | None, dict[str, str]]:
    """Returns the scores of a variant from the units of a run, and of methods that have none the reason."""
    found, failed = [], {}
    for method in methods:
        wanted = score_units(store.spec, variant, method)
        if lacking := store.lacking(wanted):
            failed[method] = lacking
            continue
        parts = [store.result(name, Scores.from_unit) for name in wanted if not store.about(name).get("empty")]
        found.append(joined_scores(parts))
    return stacked(found) if any(map(_explains, found)) else None, failed


def _explains(found: Scores) -> bool:
    return any(row["arm"] != CONTROL for row in found.spec["rows"])


def _loaded(store: Store, variant: str) -> Trial:
    spec = store.spec
    if lacking := store.lacking([unit_name(VARIANT, variant)]):
        return Trial(variant, reason=lacking)
    if reason := store.result(unit_name(VARIANT, variant), lambda _, about: str(about["reason"])):
        return Trial(variant, reason=reason)
    facts = store.about(unit_name(FACTS, variant)) if store.done(unit_name(FACTS, variant)) else {}
    methods = facts.get("methods", list(spec.get("methods", ())))
    found: dict[str, CutoffFit] = {}
    failed = {str(name): str(why) for name, why in facts.get("failed", {}).items()}
    for method in methods:
        if reason := spec.get("fits", {}).get(variant, {}).get(method, {}).get("reason"):
            failed[method] = reason
            continue
        try:
            found[method] = kept_fit(store, variant, method)
        except ValueError as error:
            if "Cannot read" in str(error):
                raise
            failed[method] = str(error)
    scored = None
    if store.done(unit_name(SCORES, variant)):
        scored = store.result(unit_name(SCORES, variant), Scores.from_unit)
    elif "reported" in spec:
        scored, lost = kept_scores(store, variant, [*methods, CONTROLS])
        failed = lost | failed
    known = {name: float("nan" if facts.get(name) is None else facts[name]) for name in ("accuracy", "spectral")}
    return Trial(
        variant, found, scored, failed, "", known["accuracy"], known["spectral"], facts.get("spectral_how", "")
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---- rows ------------------------------------------------------------------------------------


def _lines(trial: Trial) -> list[dict[str, Any]]:
    """The rows of `Trials.table` for a variant: its fits, then what has none."""
    shared = {"variant": trial.variant, "accuracy": trial.accuracy, "spectral": trial.spectral}
    lines = [shared | {"method": method, **_line(fit)} for method, fit in trial.fits.items()]
    lines += [shared | {"method": method, "note": reason} for method, reason in trial.failed.items()]
    return lines + ([{"variant": trial.variant, "method": "", "note": trial.reason}] if trial.reason else [])


def _line(fit: CutoffFit) -> dict[str, Any]:
    """What a row says of a fit: gains are those of the cutoff with the best mean."""
    best = fit.choose("argmax")
    controls = best.controls.set_index("control")
    gain = controls.loc["no filter"]
    top = best.table["mean"].to_numpy()[best.cutoffs.index(best.cutoff)]
    return {
        "cutoff": _number(best.cutoff), "one_se": _number(best.one_se), "unfiltered": gain["mean"],
        "abs": controls["mean"].get("abs only", math.nan), "best": top, "gain": gain["gain"], "low": gain["low"],
        "high": gain["high"], "n": int(gain["n"]), "flat": best.flat, "forwards": best.forwards,
        "note": best.flat_reason,
    }  # fmt: skip


def _number(cutoff: float | None) -> float:
    return math.nan if cutoff is None else cutoff


def _has(scores: Scores, against: str) -> bool:
    """Whether scores have an arm or a control of this name."""
    return any(
        against == (row["attribution"] if row["arm"] == "control" else row["arm"]) for row in scores.spec["rows"]
    )


def _before_after(variant: str, scores: Scores, metric: str) -> list[dict[str, Any]]:
    """Returns a row for each attribution's FORGrad: means before and after, gains with intervals over `AGAINST`.

    Args:
        variant: What the network is called.
        scores: Its scores.
        metric: Their key.
    """
    table = scores.summary().set_index(["attribution", "arm"])
    gains = {name: _gains(scores, metric, name) for name in AGAINST if _has(scores, name)}
    lines = []
    for attribution, arm in table.index:
        if arm in FILTERED:
            line = {"variant": variant, "method": attribution, "arm": arm, "cutoff": table["cutoff"][attribution, arm]}
            line |= {"filtered": table[metric][attribution, arm], "accuracy": scores.accuracy}
            for name, found in gains.items():
                key = (name, "control") if name not in ("none", "abs") else (attribution, name)
                line[name] = table[metric].get(key, math.nan)
                line[f"over {name}"] = found.get((attribution, arm))
            lines.append(line)
    return lines


def _gains(scores: Scores, metric: str, against: str) -> dict[tuple[str, str], dict[str, Any]]:
    rows = scores.gains(metric, against).to_dict("records")
    return {(row["attribution"], row["arm"]): {str(name): value for name, value in row.items()} for row in rows}


def failures(trials: Trials) -> list[tuple[str, str, str]]:
    """Returns variant, method ("" for all of them) and reason of everything that could not be tried."""
    found = []
    for trial in trials.trials:
        found += [(trial.variant, "", trial.reason)] if trial.reason else []
        found += [(trial.variant, method, reason) for method, reason in trial.failed.items()]
        for one in trial.scores.missing if trial.scores is not None else ():
            if one.attribution not in trial.failed:
                what = ", ".join(filter(None, [one.arm, one.metric]))
                method = f"{one.attribution} ({what})" if what else one.attribution
                found.append((trial.variant, method, one.reason))
    return found

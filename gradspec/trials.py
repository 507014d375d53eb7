"""FORGrad on trial for several variants of a network: fits and scores together, as the command line keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.cutoffs import CutoffFit
from gradspec.evaluation import Scores
from gradspec.folders import numbered

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1
KINDS = _TRIALS, _SCORES, _FIT = "trials", "scores", "cutoff fit"  # of what `tried` reads, as their spec.json says
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
        """Writes into a folder, made if need be, and returns it.

        A folder for each variant, in it one for each fit, as `CutoffFit.save` writes it, and one with the scores; then
        `spec.json`.
        """
        folder = Path(path)
        for trial in self.trials:
            for method, fit in trial.fits.items():
                fit.save(folder / self.place(trial.variant, method))
            if trial.scores is not None:
                trial.scores.save(folder / self.place(trial.variant))
        return self.index(folder)

    def place(self, variant: str, method: str | None = None) -> Path:
        """Returns where in a folder the fit of a method lies, or the scores of a variant."""
        number, trial = next((k, trial) for k, trial in enumerate(self.trials, 1) if trial.variant == variant)
        if method is None:
            return Path(numbered(number, variant), _SCORES)
        return Path(numbered(number, variant), numbered([*trial.fits, method].index(method) + 1, method))

    def index(self, path: str | Path) -> Path:
        """Writes `spec.json` alone, replacing it at once, and returns the folder; for parts that are saved."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"format": _FORMAT, "kind": _TRIALS, **self.spec, "variants": [_entry(trial) for trial in self.trials]}
        written = folder / "spec.json.new"
        written.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(written, folder / "spec.json")
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Trials:
        """Returns what was saved in a folder.

        Raises:
            ValueError: For a folder that holds nothing of the kind, or something damaged.
        """
        folder = Path(path)
        spec = _spec(folder)
        if spec.get("kind") != _TRIALS or spec.get("format") != _FORMAT:
            raise ValueError(f"Expected fits of format {_FORMAT} in {folder}, got something else: see its spec.json.")
        try:
            entries = spec.pop("variants")
            trials = tuple(
                _loaded(entry, folder / numbered(number, entry["variant"])) for number, entry in enumerate(entries, 1)
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Cannot read {folder / 'spec.json'}: {type(error).__name__}: {error}") from error
        return cls(trials, {name: value for name, value in spec.items() if name not in ("kind", "format")})


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
    kind = _spec(folder).get("kind")
    if kind == _TRIALS:
        return Trials.load(folder)
    if kind in KINDS:
        return alone(Scores.load(folder) if kind == _SCORES else CutoffFit.load(folder))
    raise ValueError(
        f"Expected a folder that `gradspec fit` or `evaluate` wrote, or a saved fit or scores, but spec.json in "
        f"{folder} says {kind!r}."
    )


def _spec(folder: Path) -> dict[str, Any]:
    file = folder / "spec.json"
    if not file.is_file():
        raise ValueError(f"Expected a folder that `gradspec fit` or `evaluate` wrote, but {folder} has no spec.json.")
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read {file}: {type(error).__name__}: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"Cannot read {file}: expected an object, got {type(spec).__name__}.")
    return spec


def _entry(trial: Trial) -> dict[str, Any]:
    """What spec.json says of a variant."""
    return {
        "variant": trial.variant, "fits": list(trial.fits), "scores": trial.scores is not None,
        "failed": dict(trial.failed), "reason": trial.reason, "accuracy": _known(trial.accuracy),
        "spectral": _known(trial.spectral), "spectral_how": trial.spectral_how,
    }  # fmt: skip


def _loaded(entry: dict[str, Any], folder: Path) -> Trial:
    fits = {
        str(method): CutoffFit.load(folder / numbered(number, method)) for number, method in enumerate(entry["fits"], 1)
    }
    scores = Scores.load(folder / _SCORES) if entry["scores"] else None
    failed = {str(method): str(reason) for method, reason in entry["failed"].items()}
    accuracy, spectral = (math.nan if entry[name] is None else float(entry[name]) for name in ("accuracy", "spectral"))
    return Trial(
        str(entry["variant"]),
        fits,
        scores,
        failed,
        str(entry["reason"]),
        accuracy,
        spectral,
        str(entry["spectral_how"]),
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

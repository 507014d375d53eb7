"""The fits and scores of a run so far: what is finished is on the disk, also where the run is interrupted."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.commands.networks import Variants, variant_names
from gradspec.commands.options import as_json, note

if TYPE_CHECKING:
    from gradspec.cutoffs import CutoffFit
    from gradspec.trials import Trial

SCORES = "scores"  # under which the reason stands where a variant could not be scored


class Book:
    """The trials so far, on the disk as they are here."""

    def __init__(
        self, command: Variants, methods: Mapping[str, Any], out: Path, missing: Mapping[str, str], *, scores: bool
    ) -> None:
        from gradspec.trials import Trial, Trials

        names = variant_names(command)
        trials = tuple(Trial(name, reason=missing.get(name, "")) for name in names)
        self.out, self.trials = out, Trials(trials, _spec(command, methods))
        self._wanted = len(names) - len(missing)
        self._methods, self._scores, self._done = methods, scores, 0

    def of(self, name: str) -> Trial:
        """Returns what was tried on a variant so far."""
        return self.trials.of(name)

    def note(self, name: str, **facts: Any) -> None:
        """Notes facts about a variant."""
        trials = [replace(trial, **facts) if trial.variant == name else trial for trial in self.trials.trials]
        self.trials = replace(self.trials, trials=tuple(trials))

    def keep(self, name: str, found: Mapping[str, CutoffFit | str]) -> None:
        """Takes fits that were made before, and reasons why there are none."""
        for method, fit in found.items():
            self._take(name, method, fit)

    def add(self, name: str, method: str, make: Any) -> None:
        """Makes a fit and writes it; where that fails the reason stands in its place."""
        try:
            fit = make()
        except (ValueError, RuntimeError) as error:  # it does not apply to this network: the others may
            fit = " ".join(str(error).split())
            note(f"{name}, {method}: {fit}")
        self._take(name, method, fit)

    def _take(self, name: str, method: str, fit: CutoffFit | str) -> None:
        trial = self.of(name)
        if isinstance(fit, str):
            self.note(name, failed={**trial.failed, method: fit})
        else:
            fit.save(self.out / self.trials.place(name, method))
            self.note(name, fits={**trial.fits, method: fit})
        self.trials.index(self.out)
        self._done += 1

    def score(self, name: str, make: Any) -> None:
        """Scores a variant and writes that; where nothing can be scored, the reason stands beside the fits."""
        try:
            scores = make()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            note(f"{name}: not scored: {reason}")
            self.note(name, failed={**self.of(name).failed, SCORES: reason})
        else:
            scores.save(self.out / self.trials.place(name))
            self.note(name, scores=scores)
        self.trials.index(self.out)

    def close(self, pictures: Sequence[Any]) -> None:
        """Says which pictures could not be read, and what is there where it is not all."""
        skipped = {name: reason for part in pictures for name, reason in getattr(part, "skipped", {}).items()}
        if skipped:
            told = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
            note(f"warning: {len(skipped)} picture(s) skipped: {told}{'; ...' if len(skipped) > 5 else ''}")
            self.trials = replace(self.trials, spec=self.trials.spec | {"skipped": skipped})
        if self._done:
            self.trials.index(self.out)
        scored, wanted = len(self.trials.scored), self._wanted * len(self._methods)
        if 0 < self._done < wanted or (self._done and self._scores and scored < self._wanted):
            said = f", {scored} of {self._wanted} variants scored" if self._scores else ""
            note(f"finished: {self._done} of {wanted} fits{said}, in {self.out}")


def _spec(command: Variants, methods: Mapping[str, Any]) -> dict[str, Any]:

    from gradspec.names import settings_of

    versions = {name: version(name) for name in ("gradspec", "torch", "torchvision", "timm", "numpy")}
    return {
        "model": command.model,
        "methods": {name: settings_of(method) for name, method in methods.items()},
        "command": as_json(command),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions | {"python": platform.python_version()},
    }

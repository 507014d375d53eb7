"""`gradspec evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gradspec.commands.options import check_names, note
from gradspec.commands.pictures import parted, without
from gradspec.commands.running import check_done, run_folder
from gradspec.commands.showing import show
from gradspec.commands.trying import (
    REPORTED,
    SELECTED,
    Trying,
    check_trial,
    methods_of_trial,
    pictures_of,
    tried_on,
)
from gradspec.commands.working import Shop, forget
from gradspec.folders import first_free

if TYPE_CHECKING:
    from torch import nn

    from gradspec.trials import Trials


@dataclass(frozen=True)
class EvaluateCommand(Trying):
    """Put FORGrad on trial: fit cutoffs on some pictures, and score attributions without and with the filter on
    others, beside controls that know no network."""

    fits: Path | None = None
    """Folder that `gradspec fit` wrote; its pictures are left out here. Without it: cutoffs are fitted on --select of
    the pictures."""
    select: float = 0.5
    """The part of the pictures, above 0 and below 1, that cutoffs are fitted on; the rest is reported on."""
    metrics: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Deletion, Faithfulness, Insertion, MuFidelity, Stability. Without it: all but Stability."""
    arms: Annotated[
        tuple[Literal["abs", "gradient", "shared", "gaussian"], ...], tyro.conf.arg(metavar="NAME [NAME ...]")
    ] = ("abs",)
    """What stands beside the fitted filter. abs: the map's magnitude alone; gradient: the cutoff in the gradient;
    shared: one cutoff for all methods; gaussian: a Gaussian of equal bandwidth."""

    def run(self) -> None:
        """Fits where it has to, scores, keeps each unit as it is done, draws, writes the page, prints tables."""
        check_trial(self)
        check_names(metrics=self.metrics, arms=self.arms)
        if not 0 < self.select < 1:
            raise ValueError(
                f"--select must lie between 0 and 1, the part of the pictures to fit on; got {self.select:g}."
            )
        methods_of_trial(self)
        self.scored_by()
        fits = _fits(self)
        with run_folder(self, self.out or first_free(f"{self.model}-evaluate"), "trials") as out:
            try:
                failed = tried_on(Shop(self, _pictures, out.resolve()), fits)
                show(self, out, failed)
            finally:
                forget()
        check_done(failed, out)

    def scored_by(self) -> dict[str, Any] | None:
        """Returns the metrics of --metrics by their names; None for those of `gs.evaluate`.

        Raises:
            ValueError: There is none of that name.
        """
        from gradspec.names import metric_named

        if self.metrics is None:
            return None
        kinds: list[Any] = [metric_named(name) for given in self.metrics for name in given.split(",") if name.strip()]
        return {kind.__name__: kind(seed=self.seed) if hasattr(kind, "seed") else kind() for kind in kinds}


def _pictures(command: EvaluateCommand, model: nn.Module) -> dict[str, Any]:
    """The pictures to fit on and those to report on; of fits that were made before only the latter."""
    pictures, fits = pictures_of(command, model, count=64), _fits(command)
    if fits is not None:
        return {REPORTED: _unseen(pictures, fits)}
    selected, reported = parted(pictures, command.select, command.seed)
    return {SELECTED: selected, REPORTED: reported}


def _fits(command: EvaluateCommand) -> Trials | None:
    """What --fits holds; it brings its own settings, so that those of a search would be for nothing."""
    from gradspec.trials import tried

    if command.fits is None:
        return None
    for name, default in {"where": "attribution", "shape": "disk", "search": "grid", "cutoffs": None}.items():
        if getattr(command, name) != default:
            raise ValueError(f"--{name} is for fitting, but --fits {command.fits} brings fits: leave one of them out.")
    return tried(command.fits)


def _unseen(pictures: Any, fits: Trials) -> Any:
    """The pictures on which no cutoff was fitted."""
    selected = {name for trial in fits.trials for fit in trial.fits.values() for name in fit.pictures}
    rest, left_out = without(pictures, selected)
    if left_out:
        note(f"{left_out} pictures on which cutoffs were fitted are left out")
    return rest

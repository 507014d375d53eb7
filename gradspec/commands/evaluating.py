"""`gradspec evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gradspec.commands.networks import loaded
from gradspec.commands.options import check_names, note
from gradspec.commands.pictures import parted, without
from gradspec.commands.showing import show
from gradspec.commands.trying import Trying, check_trial, methods_of_trial, pictures_of, try_variants
from gradspec.folders import claimed, first_free

if TYPE_CHECKING:
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
        """Fits where it has to, scores, saves each as soon as it is finished, draws, writes the page, prints tables."""
        check_trial(self)
        check_names(metrics=self.metrics, arms=self.arms)
        if not 0 < self.select < 1:
            raise ValueError(
                f"--select must lie between 0 and 1, the part of the pictures to fit on; got {self.select:g}."
            )
        methods, metrics, fits = methods_of_trial(self), metrics_of(self), _fits(self)
        with claimed(self.out or first_free(f"{self.model}-evaluate")) as out:
            model = loaded(self)
            pictures = pictures_of(self, model, count=64)
            if fits is None:
                selection, report = parted(pictures, self.select, self.seed)
            else:
                selection, report = None, _unseen(pictures, fits)
            found = try_variants(
                self, model, methods, selection, report, out, fits=fits, metrics=metrics, arms=self.arms
            )
            show(found, out)


def metrics_of(command: EvaluateCommand) -> dict[str, Any] | None:
    """Returns the metrics of --metrics by their names; None for those of `gs.evaluate`."""
    from gradspec.names import metric_named

    if command.metrics is None:
        return None
    kinds: list[Any] = [metric_named(name) for given in command.metrics for name in given.split(",") if name.strip()]
    return {kind.__name__: kind(seed=command.seed) if hasattr(kind, "seed") else kind() for kind in kinds}


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

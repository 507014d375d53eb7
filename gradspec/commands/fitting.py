"""`gradspec fit`."""

from __future__ import annotations

from dataclasses import dataclass

from gradspec.commands.networks import loaded
from gradspec.commands.showing import show
from gradspec.commands.trying import Trying, check_trial, methods_of_trial, pictures_of, try_variants
from gradspec.folders import claimed, first_free


@dataclass(frozen=True)
class FitCommand(Trying):
    """Fit the cutoff of FORGrad, a low-pass filter of explanations: for each variant and method the cutoff at which
    the maps are most faithful, with its whole curve."""

    def run(self) -> None:
        """Fits, saves each fit as soon as it is finished, draws them, writes the page, prints a table."""
        check_trial(self)
        methods = methods_of_trial(self)
        with claimed(self.out or first_free(f"{self.model}-fit")) as out:
            model = loaded(self)
            pictures = pictures_of(self, model)
            show(try_variants(self, model, methods, pictures, None, out), out)

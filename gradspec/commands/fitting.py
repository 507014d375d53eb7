"""`gradspec fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradspec.commands.running import check_done, run_folder
from gradspec.commands.showing import show
from gradspec.commands.trying import SELECTED, Trying, check_trial, methods_of_trial, pictures_of, tried_on
from gradspec.commands.working import Shop, forget
from gradspec.folders import first_free

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FitCommand(Trying):
    """Fit the cutoff of FORGrad, a low-pass filter of explanations: for each variant and method the cutoff at which
    the maps are most faithful, with its whole curve."""

    def run(self) -> None:
        """Fits, keeps each unit as it is done, draws the fits, writes the page, prints a table."""
        check_trial(self)
        methods_of_trial(self)
        with run_folder(self, self.out or first_free(f"{self.model}-fit"), "trials") as out:
            try:
                failed = tried_on(Shop(self, _pictures, out.resolve()))
                show(self, out, failed)
            finally:
                forget()
        check_done(failed, out)


def _pictures(command: FitCommand, model: nn.Module) -> dict[str, Any]:
    return {SELECTED: pictures_of(command, model)}

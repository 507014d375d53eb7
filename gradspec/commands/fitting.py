"""`gradspec fit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gradspec.commands.networks import loaded
from gradspec.commands.showing import show
from gradspec.commands.trying import check_trial, methods_of_trial, pictures_of, try_variants
from gradspec.folders import claimed, first_free


@dataclass(frozen=True)
class FitCommand:
    """Fit the cutoff of FORGrad, a low-pass filter of explanations: for each variant and method the cutoff at which
    the maps are most faithful, with its whole curve."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """As for `gradspec audit`."""
    images: Path | None = None
    """Folder of pictures, as for `gradspec audit`. Without it: generated pictures."""
    method: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ("Saliency",)
    """One or several attributions, as for `gradspec explain`."""
    variants: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Variants of the network, as for `gradspec audit`, a fit for each and every method. Labels that the folder does
    not give are the first one's predictions. One that does not apply is a row that says so."""
    where: Literal["attribution", "gradient"] = "attribution"
    """What is filtered: the finished map, or every gradient that a white-box method draws."""
    shape: Literal["disk", "square", "gaussian", "butterworth"] = "disk"
    """Of the filter, in the plane of frequencies."""
    search: Literal["grid", "race"] = "grid"
    """grid: every cutoff on every picture; race: cutoffs that fall behind are left out."""
    cutoffs: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="CYCLES [CYCLES ...]")] = None
    """Cutoffs to try, in cycles/image, beside no filter. Without it: 20 from the identity down to 1."""
    limit: int | None = None
    """At most so many pictures of the folder; without --images, how many to generate (32 where not given)."""
    out: Path | None = None
    """Folder to write to, new or empty. Without it: the first free runs/MODEL-fit-N."""
    weights: str = "default"
    """As for `gradspec audit`."""
    device: str | None = None
    """cpu, cuda, cuda:1, ... Without it: the CPU."""
    batch_size: int | None = None
    """Pictures in a pass through the network, changed ones too; changes time and memory, not the result."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: faster where the processor has it, for all but gradients; changes the result a little."""
    seed: int = 0
    """Seed of untrained weights, generated pictures, the choice that --limit makes, and random numbers."""
    size: int | None = None
    """Side of the pictures in pixels. Without it: the network's own."""

    def run(self) -> None:
        """Fits, saves each fit as soon as it is finished, draws them, writes the page, prints a table."""
        check_trial(self)
        methods = methods_of_trial(self)
        with claimed(self.out or first_free(f"{self.model}-fit")) as out:
            model = loaded(self)
            pictures = pictures_of(self, model)
            show(try_variants(self, model, methods, pictures, None, out), out)

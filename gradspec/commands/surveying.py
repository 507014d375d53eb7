"""`gradspec atlas`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import gradspec as gs
from gradspec.commands.options import check_numbers, note
from gradspec.commands.pictures import folder_of, generated
from gradspec.commands.running import Running, check_done, done, frozen, print_json, run_folder, shard_of
from gradspec.commands.working import content_of, device_here
from gradspec.folders import first_free

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.runs import Failure, Store

KIND = "atlas"


@dataclass(frozen=True)
class AtlasCommand(Running):
    """Audit many networks into one table: how much high frequency reaches each one's input, and what puts it there."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Names as for `gradspec audit`, or patterns with * and ? among timm's, torchvision's and the embedded ones."""
    out: Path | None = None
    """Folder of the run: new, empty, or that of one with the same options, which goes on where it stopped, with other
    networks too. Without it: the first free runs/atlas-N."""
    images: Path | None = None
    """Folder of pictures; labels are not used. Without it: generated pictures of each network's input size."""
    weights: str = "none"
    """none (untrained, drawn from --seed) or default (pretrained)."""
    draws: int = 1
    """Of untrained weights, from seeds --seed, --seed + 1, ...: means are shown, and how far they scatter."""
    limit: int = 8
    """Number of pictures."""
    seed: int = 0
    """Of untrained weights, of generated pictures and of the choice that --limit makes."""
    size: int | None = None
    """Side of the pictures in pixels. Without it: each network's own."""
    batch_size: int | None = None
    """Pictures per batch."""
    device: str | None = None
    """cpu, cuda, ... Without it: the CPU."""

    def run(self) -> None:
        """Audits what is not done yet, writes and prints the table; fails at the end where a network did."""
        check_numbers(self, limit=1, seed=0, size=1, batch_size=1, threads=1, draws=1)
        shard_of(self)
        if self.weights != "none" and self.draws > 1:
            raise ValueError(f"--draws is of untrained weights: of --weights {self.weights} there is one.")
        names = _names(self.models)
        plain = replace(self, models=())  # a folder takes further networks
        with run_folder(plain, self.out or first_free("atlas"), KIND) as out:
            failed = surveyed(plain, names, out)
            write(self, names, out, failed)
        check_done(failed, out)


def surveyed(command: AtlasCommand, names: Sequence[str], out: Path) -> tuple[Failure, ...]:
    """Audits networks that are not in the run's folder yet, and returns the units that failed."""
    from gradspec.runs import Store, Unit

    more = {} if command.images is None else {"pictures_hash": _pictures_hash(command)}
    store = Store.open(out, frozen(command, KIND, **more))
    units = [
        Unit(_unit(name, draw, command), partial(audited, name, draw, command))
        for name in names
        for draw in range(command.draws)
    ]
    return done(command, store, units)


def _pictures_hash(command: AtlasCommand) -> str:
    """A hash of the chosen pictures' names and sizes, which are the same for all networks."""
    assert command.images is not None
    chosen = gs.load_images(command.images, limit=command.limit, seed=command.seed)
    return content_of({"pictures": replace(chosen, labels=None)})


def _unit(name: str, draw: int, command: AtlasCommand) -> str:
    from gradspec.runs import unit_name

    return unit_name(name, *([f"draw {draw}"] if command.draws > 1 else []))


def audited(name: str, draw: int, command: AtlasCommand) -> pd.DataFrame:
    """Returns a network's row of the atlas; a function of a module, so that other processes can be given it."""
    import torch

    from gradspec.atlas import entry
    from gradspec.cutoffs.identity import fingerprint

    model = gs.load_model(name, command.weights, seed=command.seed + draw)
    if command.images:
        images = torch.cat([batch[0] for batch in folder_of(command, model)])
    else:
        images = generated(command, model, say=False)
    options: Any = {"seed": command.seed, "batch_size": command.batch_size, "device": device_here(command.device)}
    found = entry(gs.audit(model, images, progress=False, **options))
    return found.assign(network=name, draw=draw, weights_hash=fingerprint(model))


def write(command: AtlasCommand, names: Sequence[str], out: Path, failed: Sequence[Failure]) -> None:
    """Writes the table and the figure into the run's folder, and prints it."""
    from gradspec import plots
    from gradspec.atlas import as_text
    from gradspec.runs import Store

    table = collected(Store(out), [_unit(name, draw, command) for name in names for draw in range(command.draws)])
    if command.json:
        print_json(out, failed, {KIND: table})
    if table.empty:
        return  # nothing is done yet, which was noted
    told = as_text(table)
    told.to_csv(out / "atlas.csv", index=False, float_format="%.5g")
    figures = plots.save(plots.atlas(table), out / "atlas")
    if not command.json:
        columns = ["network", "slope_nyquist", "sd_nyquist" if command.draws > 1 else "se_nyquist", "high_share"]
        shown: Any = table[columns].assign(culprits=told["culprits"])
        print(shown.to_string(index=False, float_format="%.3f"))
        print("", *figures, out / "atlas.csv", sep="\n")


def collected(store: Store, units: Sequence[str]) -> pd.DataFrame:
    """Returns the ranked table of the units that are done; empty where none is."""
    import pandas as pd

    from gradspec.atlas import ranked

    there = [unit for unit in units if store.done(unit)]
    if len(there) < len(units):
        note(f"{len(units) - len(there)} of {len(units)} networks are not in {store.folder} yet")
    return ranked(pd.concat([store.read(unit) for unit in there], ignore_index=True)) if there else pd.DataFrame()


def _names(given: tuple[str, ...]) -> list[str]:
    """The networks, patterns replaced by the names that they fit; a timm architecture once, without its tag."""
    from gradspec.models import list_models

    found: dict[str, None] = {}
    for name in given:
        if not set(name) & set("*?["):
            found[name] = None
            continue
        fitting = [each if ":" in each else each.partition(".")[0] for each in list_models(name)]
        if not fitting:
            raise ValueError(f"No network fits {name!r}: `gradspec models` lists the names.")
        found |= dict.fromkeys(fitting)
    if not found:
        raise ValueError("atlas needs at least one MODEL.")
    return list(found)

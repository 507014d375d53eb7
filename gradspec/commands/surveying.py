"""`gradspec atlas`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import gradspec as gs
from gradspec.commands.options import as_json, check_numbers, note
from gradspec.commands.pictures import folder_of, generated

if TYPE_CHECKING:
    import pandas as pd

_FREE = ("out", "scheduler", "shard", "json")  # options that change how a run is done, not what it finds


@dataclass(frozen=True)
class AtlasCommand:
    """Audit many networks into one table: how much high frequency reaches each one's input, and what puts it there."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Names as for `gradspec audit`, or patterns with * and ? among timm's, torchvision's and the embedded ones."""
    out: Path = Path("runs/atlas")
    """Folder of the run. One of the same options goes on where it stopped; folders of several machines are merged by
    copying their units together."""
    images: Path | None = None
    """Folder of pictures; labels are not used. Without it: generated pictures of each network's input size."""
    weights: str = "none"
    """none (untrained, drawn from --seed) or default (pretrained)."""
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
    threads: int = 1
    """Of torch in every process: a run has the same numbers however it is spread."""
    scheduler: str | None = None
    """local or local:N for N processes here, tcp://HOST:PORT or a scheduler's file for a Dask cluster (the extra
    cluster). Without it: one network after the other."""
    shard: str | None = None
    """I/N: every N-th network from the I-th on, for job arrays."""
    json: bool = False
    """Print the table as JSON."""

    def run(self) -> None:
        """Audits what is not done yet, writes and prints the table; fails at the end where a network did."""
        from gradspec.runs import Store, Unit, run

        check_numbers(self, limit=1, seed=0, size=1, batch_size=1, threads=1)
        names, shard = _names(self.models), _shard(self.shard)
        settings = {name: value for name, value in as_json(self).items() if name not in (*_FREE, "models")}
        store = Store.open(self.out, {"kind": "atlas", **settings, "gradspec": gs.__version__})
        units = [Unit(name, partial(audited, name, self)) for name in names]
        failed = run(units, store, scheduler=self.scheduler, shard=shard, threads=self.threads)
        self._write(_collected(names, store))
        if failed:
            told = "; ".join(f"{name}: {reason}" for name, reason in failed[:5])
            raise RuntimeError(f"{len(failed)} of {len(names)} networks failed ({told}): see {self.out / 'errors'}.")

    def _write(self, table: pd.DataFrame) -> None:
        from gradspec import plots
        from gradspec.atlas import as_text

        if self.json:
            print(json.dumps(json.loads(table.to_json(orient="records") or "[]"), indent=1))
        if table.empty:
            return  # nothing is done yet, which was noted
        told = as_text(table)
        told.to_csv(self.out / "atlas.csv", index=False, float_format="%.5g")
        figures = plots.save(plots.atlas(table), self.out / "atlas")
        if not self.json:
            shown = ["network", "slope_nyquist", "se_nyquist", "high_share", "culprits"]
            print(told[shown].to_string(index=False, float_format="%.3f"))
            print("", *figures, self.out / "atlas.csv", sep="\n")


def audited(name: str, command: AtlasCommand) -> pd.DataFrame:
    """Returns a network's row of the atlas; a function of a module, so that other processes can be given it."""
    import torch

    from gradspec.atlas import entry

    model = gs.load_model(name, command.weights, seed=command.seed)
    if command.images:
        images = torch.cat([batch[0] for batch in folder_of(command, model)])
    else:
        images = generated(command, model)
    options: Any = {"seed": command.seed, "batch_size": command.batch_size, "device": command.device}
    return entry(gs.audit(model, images, progress=False, **options)).assign(network=name)


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


def _shard(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    part, _, parts = given.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, got {given}.")
    return int(part), int(parts)


def _collected(names: list[str], store: Any) -> pd.DataFrame:
    import pandas as pd

    from gradspec.atlas import ranked

    done = [name for name in names if store.done(name)]
    if len(done) < len(names):
        note(f"{len(names) - len(done)} of {len(names)} networks are not in {store.folder} yet")
    return ranked(pd.concat([store.read(name) for name in done], ignore_index=True)) if done else pd.DataFrame()

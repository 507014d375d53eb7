"""What all studies share: their command line, pictures, units that survive a stop, and the files that they write.

A study takes `--model --weights --images --limit --seed --out --name`, `--smoke` for the smallest size that still
goes through all of it (the tests run that) and `--paper` for the paper's size. What is done is kept in
OUT/.units/NAME: a study that was stopped goes on from there when it is started again with the same settings.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

import gradspec as gs
from gradspec import attributions as a
from gradspec.attributions import Attribution
from gradspec.runs import Store

ROOT = Path(__file__).parents[1]
EMBEDDED, ORDINARY = 64, 224  # pixels of a side of generated pictures: as the networks were trained
NOT_SETTINGS = ("out", "smoke", "paper", "threads")


REDUCED: Mapping[str, Attribution] = {  # black-box methods with 145 to 200 passes at 224 pixels
    "Occlusion": a.Occlusion(patch=16, stride=16),
    "RISE": a.RISE(masks=200),
    "Sobol": a.Sobol(grid=6, designs=4),
    "HSIC": a.HSIC(grid=6, designs=150),
}


def commit() -> str | None:
    """Returns the commit of the checkout, or None where there is none."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def parser(doc: str | None, *, name: str, limit: int, model: str = "demo:vgg_max") -> argparse.ArgumentParser:
    """Returns the command line that all studies have in common.

    Args:
        doc: The study's docstring.
        name: What its files are called by default.
        limit: Number of pictures by default.
        model: The network by default.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default=model, help="as for `gradspec audit`")
    made.add_argument("--weights", default="default", help="as for `gradspec audit`")
    made.add_argument("--images", type=Path, help="folder of labelled pictures; without it: generated ones")
    made.add_argument("--limit", type=int, default=limit, help="number of pictures, spread over the folder")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--name", default=name, help="of the files that are written")
    made.add_argument("--out", type=Path, default=ROOT / "figures", help="folder that they are written to")
    made.add_argument("--threads", type=int, help="of torch")
    made.add_argument("--smoke", action="store_true", help="the smallest size that goes through all of it")
    made.add_argument("--paper", action="store_true", help="the paper's size")
    return made


def parsed(
    made: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    smoke: Mapping[str, Any],
    paper: Mapping[str, Any],
) -> argparse.Namespace:
    """Returns the arguments; --smoke and --paper change the defaults of what is not given itself."""
    sizes, _ = made.parse_known_args(argv)
    if sizes.smoke or sizes.paper:
        made.set_defaults(**(smoke if sizes.smoke else paper))
    args = made.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


@dataclass
class Study:
    """One run of a study.

    Attributes:
        args: Its command line.
        script: Its file.
        spent: Of each unit: seconds, the commit, and passes where an engine counted them.
        began: When it was started.
    """

    args: argparse.Namespace
    script: str
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.script = Path(self.script).stem
        settings = {key: value for key, value in vars(self.args).items() if key not in NOT_SETTINGS}
        told = json.loads(json.dumps(settings, default=str))
        self.store = Store.open(self.args.out / ".units" / self.args.name, {"study": self.script, **told})

    def model(self) -> Any:
        """Returns the network of the command line."""
        return gs.load_model(self.args.model, self.args.weights)

    def pictures(self, model: Any, count: int | None = None, *, batch_size: int = 8) -> Any:
        """Returns pictures as the network takes them: spread over the folder, or generated ones.

        Iterate, again and again, for batches (images, labels or None, ids).

        Args:
            model: The network.
            count: How many; None: --limit.
            batch_size: Pictures of a batch.
        """
        wanted = count or self.args.limit
        if self.args.images is None:
            return generated(model, wanted, self.args.seed, batch_size)
        folder = gs.load_images(self.args.images, model, batch_size=batch_size)
        return folder.subset(spread(len(folder), wanted))

    def unit(self, name: str, work: Callable[[], pd.DataFrame], engine: gs.Engine | None = None) -> pd.DataFrame:
        """Returns a unit's table: from the folder where it is done, else computed and kept.

        Args:
            name: Of the unit.
            work: Computes it; what it puts into the table's `attrs`, as plain JSON, is kept too.
            engine: Whose passes are counted.
        """
        if not self.store.done(name):
            began, before = time.perf_counter(), _passes(engine)
            table = work()
            spent: dict[str, Any] = {"seconds": time.perf_counter() - began, "commit": commit()}
            if engine:
                spent["forwards"], spent["backwards"] = np.subtract(_passes(engine), before).tolist()
            table.attrs["spent"] = spent
            self.store.write(name, table)
            passes = f", {spent['forwards']} + {spent['backwards']} passes" if engine else ""
            print(f"{self.args.name}: {name}: {spent['seconds']:.1f} s{passes}", flush=True)
        table = self.store.read(name)
        self.spent[name] = table.attrs["spent"]
        return table

    def kept(self, name: str, kind: Any, work: Callable[[], Any], engine: gs.Engine | None = None) -> Any:
        """Returns a result that has `save` and `load`: from its folder where it is done, else computed and kept.

        Args:
            name: Of the folder in the run's folder.
            kind: Its class.
            work: Computes it.
            engine: Whose passes are counted.
        """
        folder, hidden = self.store.folder / name, self.store.folder / f".{name}"

        def computed() -> pd.DataFrame:
            shutil.rmtree(hidden, ignore_errors=True)  # of a run that was stopped
            shutil.rmtree(folder, ignore_errors=True)
            work().save(hidden)
            hidden.rename(folder)
            return pd.DataFrame({"folder": [name]})

        self.unit(name, computed, engine)
        return kind.load(folder)

    def path(self, ending: str) -> Path:
        """Returns OUT/NAME + ending."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        return self.args.out / f"{self.args.name}{ending}"

    def table(self, table: pd.DataFrame, ending: str = "") -> None:
        """Writes OUT/NAME+ending.csv."""
        table.to_csv(self.path(f"{ending}.csv"), index=False, float_format="%.5g", lineterminator="\n")

    def figure(self, figure: Any, ending: str = "") -> None:
        """Writes OUT/NAME+ending.png with 256 colours: sheets of noisy maps are a third as large, and look the same."""
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110)
        with Image.open(drawn) as picture:
            plain = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            plain.save(self.path(f"{ending}.png"), optimize=True)

    def finish(self, **facts: Any) -> None:
        """Writes OUT/NAME.json: settings, versions, commits, seconds and passes of all units, and the facts.

        Passes are null where no engine counted them; `commits` are those that the units were computed at.
        """
        spent = list(self.spent.values())
        counted = [one for one in spent if one.get("forwards") or one.get("backwards")]
        passes = {key: sum(one[key] for one in counted) if counted else None for key in ("forwards", "backwards")}
        seconds = sum(one["seconds"] for one in spent)
        about = {
            **{key: value for key, value in self.store.spec.items() if key != "name"}, **facts,
            "units": len(spent), "seconds": round(seconds, 1), **passes, "threads": torch.get_num_threads(),
            "commit": commit(), "commits": sorted({str(one["commit"]) for one in spent if "commit" in one}),
            "versions": {"gradspec": gs.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }  # fmt: skip
        self.path(".json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{self.path('')}*: {time.perf_counter() - self.began:.0f} s now, {seconds:.0f} s in all")


def methods(samples: int | None, *, reduced: bool) -> dict[str, Attribution]:
    """Returns the thirteen methods.

    Args:
        samples: Gradients of IntegratedGradients and of the three that draw noise; None: as by default.
        reduced: The black-box ones with fewer passes.
    """
    found = dict(gs.presets.default().attributions)
    if samples:
        drawn = {"SmoothGrad": a.SmoothGrad, "VarGrad": a.VarGrad, "SquareGrad": a.SquareGrad}
        found["IntegratedGradients"] = a.IntegratedGradients(steps=samples)
        found |= {name: method(samples=samples) for name, method in drawn.items()}
    return {**found, **REDUCED} if reduced else found


def spread(available: int, wanted: int) -> list[int]:
    """Returns so many places, spread over those that there are.

    Example:
        >>> spread(10, 4), spread(3, 8)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).round().astype(int)).tolist()


def generated(model: Any, count: int, seed: int, batch_size: int = 8) -> list[tuple[Tensor, Tensor | None, list[str]]]:
    """Returns batches of generated pictures with names; labels where the network knows their classes, else None."""
    embedded = isinstance(model, gs.demo.DemoNet)
    made = gs.demo.pictures(count, EMBEDDED if embedded else ORDINARY, seed)
    images = torch.stack([model.preprocess(to_pil_image(image)) for image in made.images])
    names = [f"demo {seed}-{i}" for i in range(count)]
    places = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    return [(images[part], made.labels[part] if embedded else None, names[part]) for part in places]


def _passes(engine: gs.Engine | None) -> tuple[int, int]:
    return (engine.forwards, engine.backwards) if engine else (0, 0)

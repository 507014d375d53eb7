"""`gradspec demo`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec.commands.auditing import AuditCommand, audited, write
from gradspec.commands.evaluating import EvaluateCommand
from gradspec.commands.options import note
from gradspec.commands.pictures import as_input, held, input_size
from gradspec.commands.running import check_done
from gradspec.commands.showing import told, write_tables
from gradspec.commands.trying import REPORTED, SELECTED, tried_on
from gradspec.commands.working import Shop, forget
from gradspec.folders import claimed

if TYPE_CHECKING:
    from torch import nn

    from gradspec.commands.pictures import Held

MODEL = "demo:vgg_max"
VARIANTS = (
    "trained",
    "untrained",
    "avgpool",
    "avgpool+recalibrated",
    "demo:vgg_avg",
    "demo:resnet_stride",
    "demo:vit",
)
METHODS = ("Saliency", "GradientInput", "GuidedBackprop")
FITTED = ("trained", "avgpool", "demo:vgg_avg")  # the network, its surgery, its retrained twin
CUTOFFS = (16.0, 8.0, 5.0, 3.0, 2.0, 1.0)  # and no filter: a coarse grid, so that the demo takes minutes
METRICS = ("Faithfulness", "Deletion", "Insertion")
AUDITED, SELECTED_PICTURES, REPORTED_PICTURES = 64, 32, 64  # pictures, none of them in two parts


@dataclass(frozen=True)
class DemoCommand:
    """Compare the embedded network with its variants and twins on 64 generated pictures, fit the cutoff of FORGrad for
    three methods on 32 others, and score it on 64 more; nothing is downloaded."""

    out: Path = Path("gradspec-demo")
    """Folder to write to: new, empty, or a previous demo's, which is overwritten."""

    def run(self) -> None:
        """Compares trained, untrained, average-pooled and retrained networks, fits, scores; the last line printed is
        the page."""
        import torch

        from gradspec.reporting.subject import FORGRAD
        from gradspec.trials import Trials

        with claimed(self.out, mark="spec.json") as out:
            if (out / "spec.json").exists():
                _clear(out)
            cores = torch.get_num_threads()  # a look at one machine, not a run to be merged with others
            audit = AuditCommand(MODEL, limit=AUDITED, variants=VARIANTS, causal=True, threads=cores)
            trial = EvaluateCommand(
                MODEL, method=METHODS, variants=FITTED, cutoffs=CUTOFFS, metrics=METRICS, threads=cores
            )
            try:
                failed = audited(Shop(audit, _to_audit, out.resolve()), demo=True)
                counts = f"{SELECTED_PICTURES} pictures to fit on, {REPORTED_PICTURES} to report on"
                note(f"FORGrad: {len(METHODS)} methods on {len(FITTED)} networks, {counts}")
                # where the page of the comparison looks for it
                failed += tried_on(Shop(trial, _to_try, (out / FORGRAD).resolve()))
                trials = Trials.load(out / FORGRAD)
                write_tables(trials, out / FORGRAD)
                write(audit, out, failed, also=told(trials))
            finally:
                forget()
        check_done(failed, out)


def _clear(out: Path) -> None:
    """Removes a previous demo, which may be of other settings.

    Raises:
        ValueError: The folder holds anything else.
    """
    from gradspec.runs import Store

    spec = Store(out).spec
    if not (isinstance(spec, dict) and spec.get("demo")):
        raise ValueError(f"{out} already holds files: name a new folder with --out, or remove this one.")
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _to_audit(_: Any, model: nn.Module) -> dict[str, Any]:
    return {"pictures": _pictures(model, AUDITED)}


def _to_try(_: Any, model: nn.Module) -> dict[str, Any]:
    selected = _pictures(model, SELECTED_PICTURES, start=AUDITED)
    return {SELECTED: selected, REPORTED: _pictures(model, REPORTED_PICTURES, start=AUDITED + SELECTED_PICTURES)}


def _pictures(model: nn.Module, count: int, start: int = 0) -> Held:
    """Generated pictures with their labels."""
    from gradspec import demo

    drawn = demo.pictures(count, size=input_size(model), start=start)
    return held(as_input(model, drawn.images), drawn.labels)

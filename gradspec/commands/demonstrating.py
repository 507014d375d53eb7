"""`gradspec demo`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradspec as gs
from gradspec.commands.auditing import AuditCommand, compared, write
from gradspec.commands.evaluating import EvaluateCommand, metrics_of
from gradspec.commands.options import note
from gradspec.commands.pictures import as_input, held, input_size
from gradspec.commands.showing import told, write_tables
from gradspec.commands.trying import methods_of_trial, try_variants
from gradspec.folders import claimed

if TYPE_CHECKING:
    from torch import nn

    from gradspec.commands.pictures import Held
    from gradspec.trials import Trials

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
AUDITED, SELECTED, REPORTED = 64, 32, 64  # pictures, none of them in two parts
_MARK = "DEMO.txt"


@dataclass(frozen=True)
class DemoCommand:
    """Compare the embedded network with its variants and twins on 64 generated pictures, fit the cutoff of FORGrad for
    three methods on 32 others, and score it on 64 more; nothing is downloaded."""

    out: Path = Path("gradspec-demo")
    """Folder to write to: new, empty, or a previous demo's, which is overwritten."""

    def run(self) -> None:
        """Compares trained, untrained, average-pooled and retrained networks, fits, scores; the last line printed is
        the page."""
        command = AuditCommand(MODEL, out=self.out, limit=AUDITED, variants=VARIANTS, causal=True)
        with claimed(self.out, mark=_MARK) as out:
            (out / _MARK).write_text("`gradspec demo` wrote this folder and may overwrite it.\n", encoding="utf-8")
            model = gs.load_model(MODEL)
            pictures = _pictures(model, AUDITED)
            found = compared(command, model, (pictures.images, pictures.labels))
            tried = _tried(model, out)
            write(command, found, out, also=told(tried))


def _tried(model: nn.Module, out: Path) -> Trials:
    """The cutoffs of a few cheap methods, and their scores on other pictures."""
    from gradspec.reporting.subject import FORGRAD

    out = out / FORGRAD  # where the page of the comparison looks for it
    if out.is_dir():  # a previous demo's: its fits would stand beside these
        shutil.rmtree(out)
    out.mkdir()
    command = EvaluateCommand(MODEL, method=METHODS, variants=FITTED, cutoffs=CUTOFFS, metrics=METRICS)
    counts = f"{SELECTED} pictures to fit on, {REPORTED} to report on"
    note(f"FORGrad: {len(METHODS)} methods on {len(FITTED)} networks, {counts}")
    selection = _pictures(model, SELECTED, start=AUDITED)
    report = _pictures(model, REPORTED, start=AUDITED + SELECTED)
    methods, metrics = methods_of_trial(command), metrics_of(command)
    found = try_variants(command, model, methods, selection, report, out, metrics=metrics)
    write_tables(found, out)
    return found


def _pictures(model: nn.Module, count: int, start: int = 0) -> Held:
    """Generated pictures with their labels."""
    from gradspec import demo

    drawn = demo.pictures(count, size=input_size(model), start=start)
    return held(as_input(model, drawn.images), drawn.labels)

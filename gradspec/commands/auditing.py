"""`gradspec audit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import gradspec as gs
from gradspec.commands.networks import loaded, variant_names, variants_of
from gradspec.commands.options import as_json, check_names, check_numbers, check_variants, note
from gradspec.commands.pictures import folder_of, generated
from gradspec.folders import claimed, first_free

if TYPE_CHECKING:
    from torch import nn

    from gradspec.comparison import Comparison
    from gradspec.results import Audit


@dataclass(frozen=True)
class AuditCommand:
    """Audit a network: the spectra of its gradient at the input and output of every operator."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A timm name (resnet50.a1_in1k), torchvision:resnet50, demo:vgg_max, path/file.py:factory or
    package.module:factory; `gradspec models` lists the names."""
    images: Path | None = None
    """Folder of pictures: an ImageFolder tree, or a flat folder with a labels.csv. Without it: generated pictures of
    the network's input size, labelled by the network's own predictions."""
    out: Path | None = None
    """Folder to write to, new or empty. Without it: the first free runs/MODEL-N."""
    weights: str = "default"
    """default, none (untrained, drawn from --seed), the name of an entry of torchvision's weights, or a file."""
    device: str | None = None
    """cpu, cuda, cuda:1, ... Without it: the CPU."""
    batch_size: int | None = None
    """Pictures per batch; changes time and memory, not the result (the recalibrated variant's a little: it normalises
    each batch by itself)."""
    seed: int = 0
    """Seed of untrained weights, of generated pictures and of the choice that --limit makes."""
    limit: int | None = None
    """At most so many pictures of the folder; without --images, how many to generate (16 where not given)."""
    layers: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Only these operator calls: module names, patterns ('layer1.*') or types ('max pooling')."""
    target: Literal["logit", "probability"] = "logit"
    """What is differentiated: the label's logit or its softmax probability."""
    size: int | None = None
    """Side of the pictures in pixels. Without it: the network's own."""
    variants: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Compare variants of the network on the same pictures, the first one the reference: trained, untrained, avgpool,
    avgpool-wide, avgpool-patch, avgpool-max, avgpool-stride, blurpool, maxblurpool, blurmax, recalibrated; joined as in
    avgpool+recalibrated; or another network, as in timm:resnetaa50. One that does not apply is a row that says so."""
    causal: bool = False
    """Also swap every downsampling operator of the network alone, and all but it, for average pooling."""

    def run(self) -> None:
        """Audits the network, saves and draws the result, writes the page, prints the summary."""
        check_numbers(self, batch_size=1, limit=1, size=1, seed=0)
        check_names(layers=self.layers)
        check_variants(self.variants, self.weights)
        with claimed(self.out or first_free(self.model)) as out:
            model = loaded(self)
            data = folder_of(self, model) if self.images else generated(self, model)
            found = compared(self, model, data) if self.variants or self.causal else _audited(self, model, data)
            write(self, found, out)


def _settings(command: AuditCommand) -> dict[str, Any]:
    """How `gs.audit` and `gs.compare` are to work."""
    from gradspec.targets import TARGETS

    names = ("layers", "batch_size", "device", "seed")
    return {name: getattr(command, name) for name in names} | {"target": TARGETS[command.target]}


def _audited(command: AuditCommand, model: nn.Module, data: Any) -> Audit:
    return gs.audit(model, data, **_settings(command))


def compared(command: AuditCommand, model: nn.Module, data: Any) -> Comparison:
    """Returns the variants, those that do not apply with the reason, and the causal arm where it is asked for."""
    from gradspec.surgery import NothingToSwap

    models, missing = variants_of(command, model, data)
    found = gs.compare(models, data, **_settings(command))
    spec = found.spec | {"variants": list(variant_names(command))}
    found = replace(found, missing=missing | found.missing, spec=spec)
    if command.causal:
        try:
            found.causal(batch_size=command.batch_size)
        except NothingToSwap as error:
            note(f"no causal arm: {error}")
            found = replace(found, spec=found.spec | {"no_causal_arm": str(error)})
    return found


def write(command: AuditCommand, result: Audit | Comparison, out: Path, also: str = "") -> None:
    """Writes numbers, figures and the page into `out`, prints the summary; the last line is the page.

    Args:
        command: The options.
        result: What was found.
        out: The folder.
        also: Said behind the summary.
    """
    from gradspec.summary import draw, summary

    result = replace(result, spec={**result.spec, "command": as_json(command)})
    result.save(out)
    figures, page = draw(result, out / "figures"), gs.report(out)  # before any print: a reader may close the pipe
    print("\n\n".join(filter(None, [summary(result), also])))
    print("\nfigures (an SVG beside each):", *figures, sep="\n  ")
    print(f"\naudit saved to {out}, its page: {page}")

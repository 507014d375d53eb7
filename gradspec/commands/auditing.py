"""`gradspec audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import gradspec as gs
from gradspec.commands.networks import variant_names
from gradspec.commands.options import check_names, check_numbers, check_variants, note
from gradspec.commands.pictures import folder_of, generated, held
from gradspec.commands.running import (
    Running,
    check_done,
    done,
    frozen,
    print_json,
    run_folder,
    shard_of,
    warn_skipped,
)
from gradspec.commands.working import Shop, applying, content_of, forget, name_pictures, of_pictures, opened
from gradspec.folders import first_free

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gradspec.comparison import Comparison
    from gradspec.results import Audit
    from gradspec.runs import Failure, Span, Store

_PART = "pictures"


@dataclass(frozen=True)
class AuditCommand(Running):
    """Audit a network: the spectra of its gradient at the input and output of every operator."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A timm name (resnet50.a1_in1k), torchvision:resnet50, demo:vgg_max, path/file.py:factory or
    package.module:factory; `gradspec models` lists the names."""
    images: Path | None = None
    """Folder of pictures: an ImageFolder tree, or a flat folder with a labels.csv. Without it: generated pictures of
    the network's input size, labelled by the network's own predictions."""
    out: Path | None = None
    """Folder of the run: new, empty, or that of one with the same options, which goes on where it stopped. Without it:
    the first free runs/MODEL-N."""
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

    pictures_per_unit: int = 16
    """Pictures in a unit of the run, which one process does and keeps in one file."""

    def run(self) -> None:
        """Audits the network, keeps each unit as it is done, draws the result, writes the page, prints the summary."""
        check_numbers(self, batch_size=1, limit=1, size=1, seed=0, threads=1, pictures_per_unit=1)
        check_names(layers=self.layers)
        check_variants(self.variants, self.weights)
        shard_of(self)
        with run_folder(self, self.out or first_free(self.model), _kind(self)) as out:
            shop = Shop(self, pictures_of, out.resolve())
            try:
                failed = audited(shop)
                write(self, out, failed)
            finally:
                forget()
        check_done(failed, out)


def pictures_of(command: AuditCommand, model: nn.Module) -> dict[str, Any]:
    """Returns the pictures of --images, or generated ones."""
    return {_PART: folder_of(command, model) if command.images else held(generated(command, model))}


def audited(shop: Shop, **more: Any) -> tuple[Failure, ...]:
    """Audits what is not done yet, and returns the units that failed.

    Args:
        shop: Where, with the pictures as its one part.
        more: What else the run's spec.json is to say.
    """
    from gradspec.cutoffs.identity import fingerprint

    command = shop.command
    about = {"model": command.model, "network": fingerprint(shop.network), "variants": list(variant_names(command))}
    about |= {_PART: list(shop.parts[_PART].ids), "pictures_per_unit": command.pictures_per_unit}
    about["pictures_hash"] = content_of(shop.parts)
    store = opened(shop, frozen(command, _kind(command), **about, **more))
    if len(about["variants"]) > 1 or command.causal:
        name_pictures(shop, store)
    failed = done(command, store, partial(_audits, shop), partial(_causal, shop))
    warn_skipped(store)
    return failed


def _kind(command: AuditCommand) -> str:
    return "comparison" if command.variants or command.causal else "audit"


def _audits(shop: Shop, only: str = "") -> list[Any]:
    """The units of all variants that apply, or of one."""
    from gradspec.runs import Unit, spans, unit_name

    cut = spans(len(shop.parts[_PART].ids), shop.command.pictures_per_unit)
    variants = [name for name, reason in applying(shop.store, shop.command).items() if not reason]
    return [
        Unit(unit_name("audit", name, span=span), partial(audit_unit, shop, name, span), span.stop - span.start)
        for name in variants
        for span in cut
        if only in ("", name)
    ]


def _causal(shop: Shop) -> list[Any]:
    """The unit of the causal arm, where it is asked for."""
    from gradspec.comparison import CAUSAL
    from gradspec.runs import Unit

    needs = tuple(_audits(shop, shop.first()))
    return [Unit(CAUSAL, partial(causal_unit, shop), needs=needs)] if shop.command.causal else []


def audit_unit(shop: Shop, variant: str, span: Span) -> pd.DataFrame:
    """Returns the table of a variant's audit on the pictures of a span."""
    return of_pictures(shop, _PART, span, lambda pictures: _audit(shop, variant, pictures).to_unit())


def causal_unit(shop: Shop) -> pd.DataFrame:
    """Returns the table of the causal arm, on all pictures; where nothing can be swapped, its reason alone."""
    import pandas as pd

    from gradspec.causality import COLUMNS, causal_effects
    from gradspec.results import kept
    from gradspec.runs import packed
    from gradspec.surgery import NothingToSwap

    first = shop.first()
    if lacking := shop.store.lacking([unit.name for unit in _audits(shop, first)]):
        raise ValueError(lacking)
    known, pictures = kept(shop.store, first), shop.part(_PART)
    new_power = known.culprits("call")

    def at_input(model: nn.Module) -> Any:
        return gs.audit(model, pictures, layers="input", progress=False, **_settings(shop)).signatures["input", "input"]

    try:
        effects, record = causal_effects(
            shop.variant(first), known.signatures["input", "input"], at_input, only=None,
            inputs=next(iter(pictures))[0][:1],
            new_power=dict(zip(new_power["call"], new_power["new_power"], strict=True)),
            progress=shop.command.scheduler is None,
        )  # fmt: skip
    except NothingToSwap as error:
        note(f"no causal arm: {error}")
        return packed({"effects": pd.DataFrame(columns=list(COLUMNS))}, {"no_causal_arm": str(error)})
    return packed({"effects": effects}, {"causal": {"only": None, "surgery": record.as_dict()}})


def _settings(shop: Shop) -> dict[str, Any]:
    """How `gs.audit` is to work."""
    from gradspec.targets import TARGETS

    command = shop.command
    return {"batch_size": command.batch_size, "seed": command.seed, "device": shop.device} | {
        "target": TARGETS[command.target]
    }


def _audit(shop: Shop, variant: str, pictures: Any) -> Audit:
    """The audit of a variant; of another than the first at its input alone, where it has none of the layers."""
    from gradspec.taps import SelectionError

    model, alone = shop.variant(variant), shop.command.scheduler is None
    try:
        found = gs.audit(model, pictures, layers=shop.command.layers, progress=alone, **_settings(shop))
    except SelectionError as error:
        if variant == shop.first():
            raise
        note(f"warning: variant {variant!r} is audited at its input alone: {error}")
        found = gs.audit(model, pictures, layers="input", progress=alone, **_settings(shop))
    return replace(found, spec=found.spec | {"labelled": shop.labelled})


# ---- what is shown ---------------------------------------------------------------------------


def result_of(store: Store) -> Audit | Comparison:
    """Returns what the run found so far.

    Raises:
        ValueError: No variant is finished.
    """
    return (gs.Comparison if store.spec["kind"] == "comparison" else gs.Audit).load(store.folder)


def write(command: AuditCommand, out: Path, failed: Sequence[Failure], also: str = "") -> None:
    """Writes tables, figures and the page into `out`, prints the summary; the last line is the page.

    Args:
        command: The options.
        out: The run's folder.
        failed: Units that failed.
        also: Said behind the summary.
    """
    from gradspec.runs import Store
    from gradspec.summary import draw, summary

    try:
        result = result_of(Store(out))
    except ValueError as error:  # another shard's turn, or nothing but failures
        if "Cannot read" in str(error):
            raise
        if not failed:
            note(f"nothing to show yet: {error}")
        if command.json:
            print_json(out, failed, {})
        return
    comparison = isinstance(result, gs.Comparison)
    tables = {"drift": result.drift, "culprits": result.culprits()} if comparison else {"culprits": result.culprits()}
    tables |= {"table": result.table} | (
        {"causal": result.effects} if comparison and result.effects is not None else {}
    )
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    figures, page = draw(result, out / "figures"), gs.report(out)  # before any print: a reader may close the pipe
    if command.json:
        print_json(out, failed, tables, page=str(page), figures=[str(figure) for figure in figures])
        return
    print("\n\n".join(filter(None, [summary(result), also])))
    print("\nfigures (an SVG beside each):", *figures, sep="\n  ")
    print(f"\naudit saved to {out}, its page: {page}")

"""`gradspec explain`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import gradspec as gs
from gradspec.commands.networks import check_fits, loaded, variant_names, variants_of
from gradspec.commands.options import as_json, check_numbers, check_variants, methods_of, note
from gradspec.commands.pictures import picture_files
from gradspec.folders import claimed, first_free, numbered

if TYPE_CHECKING:
    from torch import nn

    from gradspec.attributions import Attribution
    from gradspec.images.folder import PictureFolder
    from gradspec.trials import Trials


@dataclass(frozen=True)
class ExplainCommand:
    """Explain what a network says of pictures: attribution maps, the same over the pictures, and a sheet of all."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """As for `gradspec audit`."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="(required)"),
    ]
    """Picture files, and folders of them."""
    method: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ("Saliency",)
    """One or several of GradCAM, GradCAM++, GradientInput, GuidedBackprop, HSIC, IntegratedGradients, Occlusion, RISE,
    Saliency, SmoothGrad, Sobol, SquareGrad, VarGrad, whatever their case and punctuation. HSIC, Occlusion, RISE and
    Sobol take up to thousands of passes for a picture. Settings of a method (masks, samples, layer) are for Python."""
    label: str | None = None
    """Class to be explained, by index, name or WordNet id. Without it: what the network names in each picture."""
    cutoff: Annotated[str | None, tyro.conf.arg(metavar="CYCLES|FIT")] = None
    """Take the high frequencies out (FORGrad): a cutoff in cycles/image, or the folder of fits that `gradspec fit`
    wrote, of which each method and variant gets its own."""
    where: Literal["attribution", "gradient"] | None = None
    """What a --cutoff filters: the finished map (attribution, where not given), or every gradient that a white-box
    method draws. A fit brings its own."""
    shape: Literal["disk", "square", "gaussian", "butterworth"] | None = None
    """Of the filter: disk where not given. A fit brings its own."""
    variants: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Explain these variants of the network, as for `gradspec audit`, each in a folder of its own. Without --label each
    explains what it names itself."""
    out: Path | None = None
    """Folder to write to, new or empty. Without it: the first free runs/MODEL-explain-N."""
    weights: str = "default"
    """As for `gradspec audit`."""
    device: str | None = None
    """cpu, cuda, cuda:1, ... Without it: the CPU."""
    batch_size: int | None = None
    """Pictures in a pass through the network, changed ones too; changes time and memory, not the result."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: faster where the processor has it, for all but gradients; changes the result a little."""
    seed: int = 0
    """Seed of untrained weights and of the methods' random numbers."""
    size: int | None = None
    """Side of the pictures in pixels. Without it: the network's own."""

    def run(self) -> None:
        """Explains the pictures, writes each as soon as it is finished, prints a table."""
        check_numbers(self, batch_size=1, size=1, seed=0)
        check_variants(self.variants, self.weights)
        if self.cutoff is None and (self.where or self.shape):
            raise ValueError("--where and --shape say how to filter, but there is no --cutoff.")
        methods = {name: _filtered(self, name, fits) for fits in [_fits(self)] for name in variant_names(self)}
        files = picture_files(self.images)
        with claimed(self.out or first_free(f"{self.model}-explain")) as out:
            model = loaded(self)
            if self.variants:
                _explain_variants(self, model, methods, files, out)
            else:
                _explain(self, model, next(iter(methods.values())), files, out)


def _fits(command: ExplainCommand) -> Trials | float | None:
    """What --cutoff names."""
    if command.cutoff is None:
        return None
    try:
        return float(command.cutoff)
    except ValueError:
        from gradspec.trials import tried

        return tried(command.cutoff)


def _filtered(command: ExplainCommand, variant: str, fits: Trials | float | None) -> dict[str, Attribution]:
    """The methods of a variant, through the filter where there is one.

    Raises:
        ValueError: For gradients of a gray- or black-box method, for a method without a fit, and for another mode
            than the fit's.
    """
    from gradspec.forgrad import FORGrad

    methods = methods_of(command.method, command.seed)
    if fits is None:
        return methods
    found = {}
    for word, method in methods.items():
        cutoff = fits if isinstance(fits, (int, float)) else fits.fit(variant, type(method).__name__)
        found[word] = FORGrad(method, cutoff, command.where, command.shape)
    return found


def _explain_variants(
    command: ExplainCommand, model: nn.Module, methods: Mapping[str, dict[str, Attribution]], files: Sequence[Path],
    out: Path,
) -> None:  # fmt: skip
    """Each variant in its own folder; one that does not apply, or that no method does, leaves the others alone."""
    models, _ = variants_of(command, model, _Inputs(_pictures(command, model, files)))
    failed: dict[str, str] = {}
    for number, name in enumerate(variant_names(command), 1):
        if name in models:
            folder = out / numbered(number, name)
            folder.mkdir()
            print(f"{name}:")
            try:
                _explain(command, models[name], methods[name], files, folder, variant=name)
            except _NoMethodApplies as error:
                failed[name] = str(error)
                folder.rmdir()
                note(f"variant {name}: {error}")
            print()
    if len(failed) == len(models):
        raise RuntimeError("No method applies to any of the variants.")


class _NoMethodApplies(RuntimeError):
    """All methods of --method are left out."""


class _Inputs:
    """Pictures of one network input each, as the surgeries want them: images alone."""

    def __init__(self, pictures: PictureFolder) -> None:
        self.pictures = pictures

    def __iter__(self) -> Any:
        return (images for images, *_ in self.pictures)


def _pictures(command: ExplainCommand, model: nn.Module, files: Sequence[Path]) -> PictureFolder:
    """The pictures as the network wants them, named by their paths below what is above all."""
    from gradspec.images.folder import PictureFolder, _preprocess

    whole = [file.absolute() for file in files]
    above = Path(os.path.commonpath([file.parent for file in whole]))
    ids = tuple(file.relative_to(above).as_posix() for file in whole)
    return PictureFolder(above, ids, None, _preprocess(model, command.size), batch_size=1)


def _explain(
    command: ExplainCommand, model: nn.Module, methods: Mapping[str, Attribution], files: Sequence[Path], out: Path,
    variant: str = "",
) -> None:  # fmt: skip
    """Writes what is finished, also where it is interrupted, and prints a table."""
    from gradspec.explanations import MANIFEST, SHEET, Explanations
    from gradspec.images import described
    from gradspec.names import class_named

    label = None if command.label is None else class_named(model, command.label)
    if str((described(model, "spec") or {}).get("preprocess", "")).startswith("none beside"):
        note(f"note: {command.model} brings no preprocess function: ImageNet's mean and std are taken")
    check_fits({word: fit for word, method in methods.items() if (fit := getattr(method, "fit", None))}, model)
    engine = gs.Engine(model, batch_size=command.batch_size, precision=command.precision, device=command.device)
    pictures = _pictures(command, model, files)
    written = Explanations(engine, methods, out)
    try:
        written.add(((ids[0], images[0]) for images, _, ids in pictures), label, len(files))
    except ValueError as error:
        if len(pictures):
            raise
        told = "; ".join(f"{name}: {reason}" for name, reason in list(pictures.skipped.items())[:5])
        raise RuntimeError(f"None of the {len(files)} given file(s) can be read: {told}.") from error
    finally:
        facts = {"folder": str(pictures.folder), "skipped": pictures.skipped, "command": as_json(command)}
        written.close(facts | ({"variant": variant} if variant else {}))
        if 0 < written.finished < len(pictures):
            note(f"finished: {written.finished} of {len(pictures)} pictures, in {out}")
    if len(written.failed) == len(methods):
        raise _NoMethodApplies("No method applies to this network.")
    print(written.table())
    print(f"\nmaps (.npy), overlays (.png) and {MANIFEST} saved to {out}, all in one: {out / SHEET}")

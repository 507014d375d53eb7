"""What `gradspec fit`, `evaluate` and `demo` do: fits and scores of every variant and method, each kept at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import gradspec as gs
from gradspec.commands.book import Book
from gradspec.commands.networks import check_fits, variants_of
from gradspec.commands.options import check_numbers, check_variants, methods_of, note
from gradspec.commands.pictures import folder_of, generated, held

if TYPE_CHECKING:
    from torch import nn

    from gradspec.attributions import Attribution
    from gradspec.cutoffs import CutoffFit
    from gradspec.trials import Trial, Trials


@dataclass(frozen=True)
class Trying:
    """The options of commands that fit cutoffs."""

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
    """At most so many pictures of the folder; without --images, how many to generate (where not given 32 to fit, 64 to
    evaluate)."""
    out: Path | None = None
    """Folder to write to, new or empty. Without it: the first free runs/MODEL-fit-N, or runs/MODEL-evaluate-N."""
    weights: str = "default"
    """As for `gradspec audit`."""
    device: str | None = None
    """cpu, cuda, cuda:1, ... Without it: the CPU."""
    batch_size: int | None = None
    """Pictures in a pass through the network, changed ones too; changes time and memory, not the result."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: faster where the processor has it, for all but gradients; changes the result a little."""
    seed: int = 0
    """Seed of untrained weights, generated pictures, the pictures that are chosen, and random numbers."""
    size: int | None = None
    """Side of the pictures in pixels. Without it: the network's own."""


def check_trial(command: Trying) -> None:
    """Raises ValueError for what no network and no folder could make right, before anything is loaded."""
    check_numbers(command, batch_size=1, limit=1, size=1, seed=0)
    check_variants(command.variants, command.weights)
    if command.cutoffs is not None:
        from gradspec.cutoffs.grid import checked_cutoffs

        if not command.cutoffs:
            raise ValueError("--cutoffs needs at least one number of CYCLES.")
        checked_cutoffs(cutoffs_of(command) or ())


def cutoffs_of(command: Trying) -> tuple[float | None, ...] | None:
    """Returns the cutoffs to try, no filter first; None for the library's own grid."""
    return None if command.cutoffs is None else (None, *sorted(command.cutoffs, reverse=True))


def methods_of_trial(command: Trying) -> dict[str, Attribution]:
    """Returns the methods by the names that the tables show.

    Raises:
        ValueError: For unknown ones, and for one whose gradients cannot be filtered as --where asks.
    """
    from gradspec.forgrad import FORGrad

    found = methods_of(command.method, command.seed)
    for method in found.values():
        FORGrad(method, None, command.where, command.shape)  # raises
    return {type(method).__name__: method for method in found.values()}


def pictures_of(command: Trying, model: nn.Module, count: int = 32) -> Any:
    """Returns the pictures of --images, or generated ones, so that they can be taken in parts."""
    return folder_of(command, model) if command.images else held(generated(command, model, count))


# ---- trying ----------------------------------------------------------------------------------


def try_variants(
    command: Trying,
    model: nn.Module,
    methods: Mapping[str, Attribution],
    selection: Any,
    report: Any,
    out: Path,
    *,
    fits: Trials | None = None,
    metrics: Mapping[str, Any] | None = None,
    arms: Sequence[Any] = ("abs",),
    examples: int = 3,
) -> Trials:
    """Returns the fits, and the scores on other pictures, of every variant; each is on the disk before the next begins.

    Args:
        command: How.
        model: The network, untouched.
        methods: By their names.
        selection: Pictures to fit on; None where `fits` are given.
        report: Pictures to score on; None: only fits.
        out: Folder to write to.
        fits: Fits that were made before.
        metrics: As for `gs.evaluate`.
        arms: As for `gs.evaluate`.
        examples: Pictures whose maps are kept to look at.

    Raises:
        ValueError: No variant applies to the network.
    """
    models, missing = variants_of(command, model, report if selection is None else selection)
    book = Book(command, methods, out, missing, scores=report is not None)
    labelled = (report if selection is None else selection).labels is not None
    first = next(iter(models.values()))
    selection, report = (_labelled(command, first, part) for part in (selection, report))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Skipped in")  # the book says it, once for all variants
            for name, changed in models.items():
                engine = _engine(command, changed)
                if fits is not None:
                    book.keep(name, _known_fits(fits, name, methods))
                    check_fits(book.of(name).fits, changed)
                else:
                    book.note(name, **_facts(command, changed, engine, selection, labelled))
                    for method, attribution in methods.items():
                        book.add(name, method, partial(_fit, command, engine, attribution, selection))
                if report is not None:
                    how = {"metrics": metrics, "arms": arms, "examples": examples}
                    book.score(name, partial(_scored, command, engine, methods, book.of(name), report, labelled, **how))
    finally:
        book.close([part for part in (selection, report) if part is not None])
    return book.trials


def _engine(command: Trying, model: nn.Module) -> gs.Engine:
    return gs.Engine(model, batch_size=command.batch_size, precision=command.precision, device=command.device)


def _labelled(command: Trying, model: nn.Module, pictures: Any) -> Any:
    """The pictures with labels: their own, or what the first variant names in them."""
    import torch

    if pictures is None or pictures.labels is not None:
        return pictures
    engine, named = _engine(command, model), {}
    for images, _, ids in pictures:
        named.update(zip(ids, engine.predictions(images).tolist(), strict=True))
    return replace(pictures, labels=torch.tensor([named.get(name, 0) for name in pictures.ids]))  # 0: cannot be read


def _known_fits(fits: Trials, variant: str, methods: Mapping[str, Any]) -> dict[str, CutoffFit | str]:
    found: dict[str, CutoffFit | str] = {}
    for method in methods:
        try:
            found[method] = fits.fit(variant, method)
        except ValueError as error:
            found[method] = str(error)
            note(str(error))
    return found


def _fit(command: Trying, engine: gs.Engine, attribution: Attribution, pictures: Any) -> CutoffFit:
    from gradspec.cutoffs import fit_cutoff

    with warnings.catch_warnings():  # the table says which curves are flat
        warnings.filterwarnings("ignore", "fit_cutoff: The curve is flat")
        return fit_cutoff(
        engine, attribution, pictures, cutoffs=cutoffs_of(command), search=command.search, where=command.where,
        shape=command.shape, seed=command.seed,
        )  # fmt: skip


def _scored(
    command: Trying, engine: gs.Engine, methods: Mapping[str, Any], trial: Trial, pictures: Any, labelled: bool,
    metrics: Mapping[str, Any] | None, arms: Sequence[Any], examples: int,
) -> Any:  # fmt: skip
    """The variant's scores; its accuracy only where the labels are not a network's own predictions."""
    from gradspec.evaluation import evaluate

    found = evaluate(
        engine, pictures, methods, metrics, fits=trial.fits, arms=arms, examples=examples, seed=command.seed
    )
    spec = found.spec | {"variant": trial.variant} | ({} if labelled else {"accuracy": None, "labelled": 0})
    return replace(found, spec=spec)


# ---- facts about a variant -------------------------------------------------------------------


def _facts(command: Trying, model: nn.Module, engine: gs.Engine, pictures: Any, labelled: bool) -> dict[str, Any]:
    """Its accuracy, where labels are given, and the cutoff that results from its spectrum."""
    right = [(engine.predictions(images).cpu() == labels).float() for images, labels, _ in pictures] if labelled else []
    accuracy = sum(float(part.sum()) for part in right) / sum(map(len, right)) if right else float("nan")
    spectral, how = _spectral(command, model, pictures)
    return {"accuracy": accuracy, "spectral": spectral, "spectral_how": how}


def _spectral(command: Trying, model: nn.Module, pictures: Any) -> tuple[float, str]:
    """The cutoff that results from the spectrum of the gradient at the input, beside its average-pooled twin's."""
    from gradspec.causality import reason_of
    from gradspec.cutoffs import cutoff_from
    from gradspec.surgery import NothingToSwap, average_pooled

    def audited(net: nn.Module) -> Any:
        return gs.audit(net, pictures, layers="input", device=command.device, seed=command.seed)

    try:
        try:
            twin = audited(average_pooled(model, inputs=next(iter(pictures))[0])[0])
        except NothingToSwap:
            twin = None
        found = cutoff_from(audited(model), twin)
    except Exception as error:  # a network without a gradient at its input has fits all the same
        return float("nan"), reason_of(error)
    at = {"twin": "where the signature leaves the average-pooled twin's", "knee": "at the knee of the signature"}
    return float(found), found.reason or at[found.how]

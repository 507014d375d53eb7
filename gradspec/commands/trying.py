"""What `gradspec fit` and `evaluate` do, in units: a fit, and scores, of each variant and method on some pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import gradspec as gs
from gradspec.commands.networks import check_fits, variant_names
from gradspec.commands.options import check_numbers, check_variants, methods_of, note
from gradspec.commands.pictures import folder_of, generated, held
from gradspec.commands.running import Running, done, frozen, shard_of, warn_skipped
from gradspec.commands.working import Shop, applying, content_of, cost_of, fit_of, name_pictures, of_pictures, opened

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gradspec.attributions import Attribution
    from gradspec.cutoffs import CutoffFit
    from gradspec.runs import Failure, Span, Store
    from gradspec.trials import Trials

SELECTED, REPORTED = "selected", "reported"  # pictures to fit on, and to score
EXAMPLES = 3  # pictures whose maps are kept to look at


@dataclass(frozen=True)
class Trying(Running):
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
    """Folder of the run: new, empty, or that of one with the same options, which goes on where it stopped. Without it:
    the first free runs/MODEL-fit-N, or runs/MODEL-evaluate-N."""
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
    pictures_per_unit: int = 16
    """Pictures in a unit of the run, which one process does and keeps in one file; a race takes all."""


def check_trial(command: Trying) -> None:
    """Raises ValueError for what no network and no folder could make right, before anything is loaded."""
    check_numbers(command, batch_size=1, limit=1, size=1, seed=0, threads=1, pictures_per_unit=1)
    shard_of(command)
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


# ---- the run ---------------------------------------------------------------------------------


def tried_on(shop: Shop, fits: Trials | None = None) -> tuple[Failure, ...]:
    """Fits and scores what is not done yet, and returns the units that failed.

    Args:
        shop: Where, with pictures to fit on (part `SELECTED`), to score (`REPORTED`), or both.
        fits: Fits that were made before.

    Raises:
        ValueError: No variant applies to the network; the folder holds something else.
    """
    from gradspec.cutoffs.identity import fingerprint
    from gradspec.names import settings_of

    command = shop.command
    methods = methods_of_trial(command)
    names = variant_names(command)
    about: dict[str, Any] = {"model": command.model, "network": fingerprint(shop.network), "variants": list(names)}
    about["methods"] = {name: settings_of(method) for name, method in methods.items()}
    about["search"] = command.search
    if fits is not None:
        about["fits"] = {name: _known_fits(fits, name, methods) for name in names}
    about |= {part: list(pictures.ids) for part, pictures in shop.parts.items()}
    about["pictures_hash"] = content_of(shop.parts)
    store = opened(shop, frozen(command, "trials", **about, pictures_per_unit=command.pictures_per_unit))
    name_pictures(shop, store)
    if fits is not None:
        _keep(shop, store, fits)
    failed = done(command, store, partial(_fits, shop), partial(_scores, shop))
    warn_skipped(store)
    return failed


def _known_fits(fits: Trials, variant: str, methods: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each method its cutoff, or why it has no fit."""
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        try:
            found[method] = {"cutoff": fits.fit(variant, method).cutoff}
        except ValueError as error:
            found[method] = {"reason": str(error)}
    return found


def _keep(shop: Shop, store: Store, fits: Trials) -> None:
    """Takes fits that were made before into the run."""
    from gradspec.trials import fit_units

    for variant in _applying(shop):
        found: dict[str, CutoffFit] = {}
        for method in store.spec["methods"]:
            try:
                found[method] = fits.fit(variant, method)
            except ValueError as error:
                note(str(error))
                continue
            (unit,) = fit_units(store.spec, variant, method)
            if not store.done(unit):
                store.write(unit, found[method].to_unit())
        check_fits(found, shop.variant(variant))


def _applying(shop: Shop) -> list[str]:
    return [name for name, reason in applying(shop.store, shop.command).items() if not reason]


def _fits(shop: Shop) -> list[Any]:
    """The units that fit cutoffs, and those that say what is known of the variants; none where fits are given."""
    from gradspec.runs import Unit, unit_name
    from gradspec.trials import FACTS

    if SELECTED not in shop.parts:
        return []
    found = []
    for variant in _applying(shop):
        found.append(Unit(unit_name(FACTS, variant), partial(facts_unit, shop, variant), len(shop.parts[SELECTED].ids)))
        for method in methods_of_trial(shop.command):
            found += _fit_units(shop, variant, method)
    return found


def _fit_units(shop: Shop, variant: str, method: str) -> list[Any]:
    from gradspec.runs import Unit, spans
    from gradspec.trials import fit_units

    if SELECTED not in shop.parts:
        return []
    spec, pictures = shop.store.spec, shop.parts[SELECTED]
    race = shop.command.search == "race"  # its rounds hang on all pictures
    cut = [None] if race else spans(len(pictures.ids), shop.command.pictures_per_unit)
    return [
        Unit(name, partial(fit_unit, shop, variant, method, span), _cost(shop, method, span, SELECTED))
        for name, span in zip(fit_units(spec, variant, method), cut, strict=True)
    ]


def _scores(shop: Shop) -> list[Any]:
    """The units that score methods, each with the fits that it needs, and the controls."""
    from gradspec.runs import Unit, spans
    from gradspec.trials import CONTROLS, score_units

    if REPORTED not in shop.parts:
        return []
    spec, methods, found = shop.store.spec, list(methods_of_trial(shop.command)), []
    for variant in _applying(shop):
        for method in (*methods, CONTROLS):
            needed = [] if method == CONTROLS else methods if "shared" in shop.command.arms else [method]
            needs = tuple(unit for name in needed for unit in _fit_units(shop, variant, name))
            cut = spans(len(shop.parts[REPORTED].ids), shop.command.pictures_per_unit)
            for name, span in zip(score_units(spec, variant, method), cut, strict=True):
                work = partial(score_unit, shop, variant, method, span)
                # a fit that failed is missing to its own method alone, and to no mean over all of them
                found.append(Unit(name, work, _cost(shop, method, span, REPORTED), needs, strict=False))
    return found


def _cost(shop: Shop, method: str, span: Span | None, part: str) -> float:
    """About the passes of a unit: explanations, and forty or so for the scores."""
    pictures = range(len(shop.parts[part].ids)) if span is None else range(span.start, span.stop)
    known = methods_of_trial(shop.command).get(method)
    side = shop.command.size or 224
    return cost_of(known, pictures, (side, side), other=40)


# ---- units -----------------------------------------------------------------------------------


def fit_unit(shop: Shop, variant: str, method: str, span: Span | None) -> pd.DataFrame:
    """Returns the table of a fit on the pictures of a span, all cutoffs in it."""
    from gradspec.cutoffs.fit import tried_cutoffs

    command = shop.command

    def fitted(pictures: Any) -> pd.DataFrame:
        return tried_cutoffs(
            shop.engine(variant), methods_of_trial(command)[method], pictures, cutoffs=cutoffs_of(command),
            search=command.search, where=command.where, shape=command.shape, seed=command.seed,
        ).to_unit()  # fmt: skip

    return of_pictures(shop, SELECTED, span, fitted)


def score_unit(shop: Shop, variant: str, method: str, span: Span) -> pd.DataFrame:
    """Returns the table of a method's scores, or those of the controls, on the pictures of a span."""
    from gradspec.evaluation import evaluate
    from gradspec.evaluation.plan import best_for_all
    from gradspec.trials import CONTROLS

    command = shop.command
    alone = method == CONTROLS
    known = methods_of_trial(command)
    fits: dict[str, CutoffFit] = {}
    for name in [] if alone else known if "shared" in command.arms else [method]:
        try:
            fits[name] = fit_of(shop, variant, name)
        except ValueError:
            if SELECTED in shop.parts and name == method:
                raise
    shared = best_for_all(fits) if "shared" in command.arms and fits else None

    def scored(pictures: Any) -> pd.DataFrame:
        found = evaluate(
            shop.engine(variant), pictures, {} if alone else {method: known[method]}, shop.command.scored_by(),
            fits={name: fit for name, fit in fits.items() if name == method}, arms=() if alone else command.arms,
            shared_cutoff=None if alone else shared, controls=alone, examples=EXAMPLES * (span.start == 0),
            seed=command.seed,
        )  # fmt: skip
        accuracy = {} if shop.labelled else {"accuracy": None, "labelled": 0}
        return replace(found, spec=found.spec | {"variant": variant} | accuracy).to_unit()

    return of_pictures(shop, REPORTED, span, scored)


# ---- facts about a variant -------------------------------------------------------------------


def facts_unit(shop: Shop, variant: str) -> pd.DataFrame:
    """Returns a variant's accuracy, where labels are given, and the cutoff that results from its spectrum."""
    from gradspec.runs import packed

    def known(pictures: Any) -> pd.DataFrame:
        engine, right = shop.engine(variant), []
        for images, labels, _ in pictures if shop.labelled else ():
            right += (engine.predictions(images).cpu() == labels).tolist()
        spectral, how = _spectral(shop, shop.variant(variant), pictures)
        accuracy = sum(right) / len(right) if right else None
        return packed({}, {"accuracy": accuracy, "spectral": spectral, "spectral_how": how})

    return of_pictures(shop, SELECTED, None, known)


def _spectral(shop: Shop, model: nn.Module, pictures: Any) -> tuple[float | None, str]:
    """The cutoff that results from the spectrum of the gradient at the input, beside its average-pooled twin's."""
    from gradspec.causality import reason_of
    from gradspec.cutoffs import cutoff_from
    from gradspec.surgery import NothingToSwap, average_pooled

    def audited(net: nn.Module) -> Any:
        seed = shop.command.seed
        return gs.audit(net, pictures, layers="input", device=shop.device, seed=seed, progress=False)

    try:
        try:
            twin = audited(average_pooled(model, inputs=next(iter(pictures))[0])[0])
        except NothingToSwap:
            twin = None
        found = cutoff_from(audited(model), twin)
    except Exception as error:  # a network without a gradient at its input has fits all the same
        return None, reason_of(error)
    at = {"twin": "where the signature leaves the average-pooled twin's", "knee": "at the knee of the signature"}
    return None if found.cutoff is None else float(found), found.reason or at[found.how]

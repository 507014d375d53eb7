"""What a process needs to do a unit of a command's run: the network, its variants and the pictures, each made once.

A `Shop` is plain options, so that other processes can be given it; they make the rest of it themselves.
"""

from __future__ import annotations

import hashlib
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradspec as gs
from gradspec.commands.networks import loaded, variant_names
from gradspec.commands.options import note

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gradspec.cutoffs import CutoffFit
    from gradspec.runs import Span, Store

LABELS = "labels"  # the unit of what the first variant names in pictures without labels


@dataclass(frozen=True)
class Shop:
    """Where the units of a run are done.

    Attributes:
        command: The options, hashable.
        pictures: (command, network) -> part -> pictures, which can be taken in parts: a function of a module.
        out: The run's folder.
        at: The working folder, from which paths among the options go.
    """

    command: Any
    pictures: Callable[[Any, nn.Module], dict[str, Any]]
    out: Path
    at: Path = field(default_factory=Path.cwd)

    @property
    def store(self) -> Store:
        """The run's store."""
        from gradspec.runs import Store

        return Store(self.out)

    @property
    def network(self) -> nn.Module:
        """The network, untouched."""
        return _network(self)

    @property
    def parts(self) -> dict[str, Any]:
        """All pictures, by the part of the run that they are for."""
        return _pictures(self)

    @property
    def labelled(self) -> bool:
        """Whether labels came with the pictures."""
        return next(iter(self.parts.values())).labels is not None

    def variant(self, name: str) -> nn.Module:
        """Returns a variant of the network, as loaded where none was asked for; raises where it does not apply."""
        return _variant(self, name) if self.command.variants else self.network

    def part(self, name: str, span: Span | None = None) -> Any:
        """Returns pictures of a part, those of a span or all, with their labels or what the first variant named."""
        import torch

        whole = self.parts[name]
        chosen = range(len(whole.ids)) if span is None else range(span.start, span.stop)
        found = whole.subset(chosen)
        if found.labels is None and self.store.done(LABELS):
            named = _named(self)
            found = replace(found, labels=torch.tensor([named.get(each, 0) for each in found.ids]))  # 0: unreadable
        return found

    def first(self) -> str:
        """Returns the first variant that applies."""
        return next(name for name, reason in applying(self.store, self.command).items() if not reason)

    def engine(self, variant: str) -> gs.Engine:
        """Returns what makes the passes through a variant, as if no unit had been done before."""
        engine = _engine(self, variant)
        engine._facts.clear()  # else the passes that a unit counts hang on which others its process did
        return engine

    @property
    def device(self) -> str | None:
        """Where to work: of several GPUs each worker of this machine takes its own."""
        return device_here(self.command.device)


def forget() -> None:
    """Lets go of networks and pictures of this process."""
    for cached in (_network, _variant, _engine, _pictures, _named, fit_of):
        cached.cache_clear()


def device_here(asked: str | None) -> str | None:
    """Returns the device that this process is to use.

    Args:
        asked: As the user names it; "cuda" is, in a worker that is numbered, the GPU of that number.
    """
    if asked != "cuda":
        return asked
    import torch

    try:
        from distributed import get_worker

        number = int(get_worker().name)
    except (ImportError, ValueError):  # no worker, or one whose job was given GPUs of its own
        return asked
    return f"cuda:{number % max(1, torch.cuda.device_count())}"


@lru_cache(maxsize=1)
def _network(shop: Shop) -> nn.Module:
    from gradspec.cutoffs.identity import fingerprint

    model = loaded(_located(shop))
    _check_same(shop, "network", fingerprint(model))
    return model


@lru_cache(maxsize=1)
def _named(shop: Shop) -> dict[str, int]:
    return shop.store.about(LABELS)[LABELS]


def _located(shop: Shop) -> Any:
    """The options with paths that hold in any working folder."""
    command, changes = shop.command, {}
    if Path.cwd() == shop.at:
        return command
    for name in ("images", "fits"):
        if path := getattr(command, name, None):
            changes[name] = shop.at / path
    if (shop.at / command.weights).is_file():
        changes["weights"] = str(shop.at / command.weights)
    file, _, factory = command.model.rpartition(":")
    if file.endswith(".py"):
        changes["model"] = f"{shop.at / file}:{factory}"
    return replace(command, **changes)


def _check_same(shop: Shop, name: str, found: str) -> None:
    """Raises where the run began with another network, or with other pictures, than a process finds now."""
    from gradspec.runs import changed

    spec = shop.store.spec if (shop.out / "spec.json").exists() else {name: found}
    held = {name: spec[name]} if isinstance(spec, dict) and name in spec else {}
    if changes := changed(held, {name: found}):
        raise ValueError(
            f"{shop.out} holds a run of other settings ({changes}): name another folder with --out, or remove this one."
        )


@lru_cache(maxsize=2)
def _variant(shop: Shop, name: str) -> nn.Module:
    from gradspec.variants import variant

    return variant(shop.network, name, next(iter(shop.parts.values())), shop.command.seed)


@lru_cache(maxsize=1)
def _engine(shop: Shop, variant: str) -> gs.Engine:
    command = shop.command
    precision: Any = getattr(command, "precision", "float32")
    return gs.Engine(shop.variant(variant), batch_size=command.batch_size, precision=precision, device=shop.device)


@lru_cache(maxsize=1)
def _pictures(shop: Shop) -> dict[str, Any]:
    parts = shop.pictures(_located(shop), shop.network)
    _check_same(shop, "pictures_hash", content_of(parts))
    return parts


@lru_cache(maxsize=64)
def fit_of(shop: Shop, variant: str, method: str) -> CutoffFit:
    """Returns a fit of the run that is done, which no unit changes any more; raises where it is not."""
    from gradspec.trials import kept_fit

    return kept_fit(shop.store, variant, method)


def content_of(parts: Mapping[str, Any]) -> str:
    """Returns a hash of the names of all pictures, their labels, and the sizes of their files."""
    digest = hashlib.sha256()
    for part, pictures in parts.items():
        labels = [None] * len(pictures.ids) if pictures.labels is None else pictures.labels.tolist()
        folder = getattr(pictures, "folder", None)  # without one the names are hashes of what the pictures show
        for name, label in zip(pictures.ids, labels, strict=True):
            path = None if folder is None else folder / name
            size = path.stat().st_size if path is not None and path.is_file() else None
            digest.update(f"{part} {name} {label} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


# ---- before the work -------------------------------------------------------------------------


def opened(shop: Shop, spec: dict[str, Any]) -> Store:
    """Returns the store of a run that is new, or goes on; in it stands of each variant whether it applies, and why not.

    Raises:
        UnknownModelError: For a twin that does not exist.
        ValueError: The folder holds something else, or a run of other settings; none of the variants applies.
    """
    from gradspec.comparison import VARIANT
    from gradspec.runs import Store, unit_name

    names = {name: unit_name(VARIANT, name) for name in variant_names(shop.command)}
    there = (shop.out / "spec.json").exists()
    tables = {} if there else {unit: _applies(shop, name) for name, unit in names.items()}
    if not there and all(table.attrs["about"]["reason"] for table in tables.values()):
        raise ValueError(f"None of the variants applies to {shop.command.model}.")
    store = Store.open(shop.out, spec)
    for name, unit in names.items():
        if not store.done(unit):
            store.write(unit, tables[unit] if unit in tables else _applies(shop, name))
    reasons = applying(store, shop.command)
    for name, reason in reasons.items():
        if reason:
            note(f"variant {name} does not apply: {reason}")
    if next(iter(reasons.values())):
        note(f"the reference is {shop.first()}, since {next(iter(reasons))} does not apply")
    return store


def applying(store: Store, command: Any) -> dict[str, str]:
    """Returns of each variant, in the order asked for, why it does not apply; "" where it does."""
    from gradspec.comparison import VARIANT
    from gradspec.runs import unit_name

    return {name: str(store.about(unit_name(VARIANT, name))["reason"]) for name in variant_names(command)}


def _applies(shop: Shop, name: str) -> pd.DataFrame:
    from gradspec.causality import reason_of
    from gradspec.comparison import variant_unit
    from gradspec.models import UnknownModelError
    from gradspec.surgery import records

    try:
        return variant_unit(records(shop.variant(name)))
    except UnknownModelError:  # a wrong name, found before any work
        raise
    except SystemExit as stop:  # a network that ends the process: the others go on
        return variant_unit((), f"it calls sys.exit({stop})")
    except Exception as error:
        return variant_unit((), reason_of(error))


def name_pictures(shop: Shop, store: Store) -> None:
    """Keeps what the first variant names in pictures that came without labels.

    Raises:
        RuntimeError: It cannot; the traceback is kept.
    """
    from gradspec.causality import reason_of
    from gradspec.runs import packed

    if shop.labelled or store.done(LABELS):
        return
    first, named = shop.first(), {}
    try:
        engine = shop.engine(first)
        for part in shop.parts.values():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Skipped in")  # said at the end
                for images, _, ids in part:
                    named.update(zip(ids, engine.predictions(images).tolist(), strict=True))
    except Exception as error:
        store.fail(LABELS, reason_of(error), traceback.format_exc())
        raise RuntimeError(
            f"{first} cannot name the pictures ({reason_of(error)}); the traceback is in {shop.out / 'errors'}."
        ) from error
    store.write(LABELS, packed({}, {LABELS: named}))


# ---- units -----------------------------------------------------------------------------------


def of_pictures(shop: Shop, part: str, span: Span | None, work: Callable[[Any], pd.DataFrame]) -> pd.DataFrame:
    """Returns a unit's table of the pictures of a span; those that cannot be read are noted in it, one without any too.

    Args:
        shop: Where.
        part: Of which pictures.
        span: Which of them, None: all.
        work: Pictures -> table, of `gradspec.runs.packed`.
    """
    from gradspec.images import PictureError
    from gradspec.runs import packed

    pictures = shop.part(part, span)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipped in")  # said at the end
        try:
            table = work(pictures)
        except PictureError:
            if len(pictures):  # some can be read: it is about something else
                raise
            table = packed({}, {"empty": True})
    if skipped := dict(getattr(pictures, "skipped", {})):
        table.attrs["about"] = table.attrs["about"] | {"skipped": skipped}
    return table


def cost_of(method: Any, pictures: Sequence[Any] | range, size: tuple[int, int], other: int = 0) -> float:
    """Returns about how many passes a method takes on so many pictures of a size, with `other` for each beside."""
    try:
        each = method.passes(*size)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        each = 1
    return float(len(pictures) * (each + other))

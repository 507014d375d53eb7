"""Several variants of a network on the same pictures: their tables, their drift, and the causal arm (SPEC §2-3)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradspec._showing import figure_of, html_of
from gradspec.auditing import Target, audit
from gradspec.causality import OtherPictures, agreement, causal_effects, reason_of
from gradspec.data import Data, in_batches, number_of_pictures, picture_id
from gradspec.passes import unwrapped
from gradspec.results import Audit, kept
from gradspec.runs import Store, names, packed, unit_name
from gradspec.spectra import Signature
from gradspec.surgery import Record, records
from gradspec.taps import Layers, SelectionError
from gradspec.targets import label_logit

if TYPE_CHECKING:
    import pandas as pd

KIND, VARIANT, AUDIT, CAUSAL = "comparison", "variant", "audit", "causal arm"
_OF_RUN = ("kind", "format", "pictures", "pictures_per_unit")  # what else a run's spec.json says
_SHARED = ("input_shape", "target", "layers", "channels", "seed", "labelled", "created", "versions")
_DRIFT = (
    "variant", "n", "accuracy", "se", "agreement", "label_probability", "probability_change", "slope_nyquist",
    "se_nyquist", "high_share", "note",
)  # fmt: skip


def compare(
    models: Mapping[str, nn.Module | tuple[nn.Module, Record]],
    data: Data,
    *,
    layers: Layers = None,
    target: Target = label_logit,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Returns the audits of several variants of a network on the same pictures with the same labels (SPEC §2-3).

    The first variant is the reference: drift and the causal arm are against it, and where no labels are given its
    predictions are the labels of all. A variant that cannot be audited is left out with a warning and kept, with the
    reason, in `missing`.

    Args:
        models: Name -> model, or the (model, record) that a surgery returns.
        data: As for `gradspec.audit`. It is gone through once per variant, so it has to give the same pictures in the
            same order each time.
        layers: Which calls, as for `gradspec.tapped`; a variant in which one of them matches nothing is
            audited at its input alone, with a warning.
        target: What is differentiated, (logits, labels) -> (N,).
        batch_size: Pictures per pass, as for `gradspec.audit`.
        device: Where to work; None: where each model is.
        channels: Take at most that many channels of each gradient, drawn by `seed`; None takes all (exact).
        seed: Of the drawn channels.
        progress: Show a bar per variant on stderr where that is a terminal.

    Raises:
        TypeError: For anything but {name: model}, for an iterator, which gives its pictures only once.
        ValueError: For no model, and for pictures that are not the same each time; what `gradspec.audit` raises for
            the first variant.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 5)).eval()
        >>> dense = nn.Sequential(net[0], nn.AvgPool2d(2), *net[2:])
        >>> found = compare({"max": net, "mean": dense}, torch.rand(4, 3, 16, 16), progress=False)
        >>> found.drift["variant"].tolist(), float(found.drift["agreement"][0])
        (['max', 'mean'], 1.0)
    """
    variants, known = _variants(models)
    if len(variants) > 1:
        _check_repeatable(data)
    began = time.perf_counter()
    (reference, model), *others = variants.items()
    seen = Seen(data, batch_size)
    source = _Source(model, data, seen, target, batch_size, device, channels, seed)
    first = source.audit(model, seen, layers, progress)
    audits, missing = {reference: first}, {}
    pictures = SamePictures(data, first, batch_size, seen)
    for name, model in others:
        try:
            try:
                found = source.audit(model, pictures, layers, progress)
            except SelectionError as error:
                warnings.warn(f"Variant {name!r} is audited at its input alone: {error}", stacklevel=2)
                found = source.audit(model, pictures, "input", progress)
        except OtherPictures:
            raise
        except Exception as error:
            missing[name] = reason_of(error)
            warnings.warn(f"Variant {name!r} is left out: {missing[name]}", stacklevel=2)
        else:
            audits[name] = replace(found, spec=found.spec | {"labelled": first.spec["labelled"]})
    spec: dict[str, Any] = {"variants": list(variants), **{name: first.spec[name] for name in _SHARED}}
    spec["seconds"] = round(time.perf_counter() - began, 2)
    return Comparison(audits, known, missing, None, spec, source)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Audits of several variants on the same pictures; made by `gradspec.compare`.

    Attributes:
        audits: Variant -> its audit; the first is the reference.
        records: Variant -> what surgery did to it, () for nothing; also of missing ones.
        missing: Variant -> why it could not be audited.
        effects: The table of `causal`, once it is made.
        spec: Names of all variants in order, target, seed, versions and settings, as plain JSON; `labelled`: whether
            the labels came with the pictures or are the first variant's predictions; `causal`, once it is made.
    """

    audits: dict[str, Audit]
    records: dict[str, tuple[Record, ...]]
    missing: dict[str, str]
    effects: pd.DataFrame | None
    spec: dict[str, Any]
    _source: _Source | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.audits:
            raise ValueError("Expected the audit of at least one variant, got none.")
        pictures = self._first.pictures
        others = [name for name, found in self.audits.items() if found.pictures != pictures]
        if others:
            raise ValueError(f"Expected all variants on the same pictures in one order, got others in {others[0]!r}.")

    @property
    def _first(self) -> Audit:
        return next(iter(self.audits.values()))

    @property
    def table(self) -> pd.DataFrame:
        """The audits' tables under each other, with the `variant` in front."""
        return _stacked({name: found.table for name, found in self.audits.items()})

    def culprits(self, by: Literal["call", "type"] = "call") -> pd.DataFrame:
        """Returns every audit's culprits under each other, with the `variant` in front; see `Audit.culprits`."""
        return _stacked({name: found.culprits(by) for name, found in self.audits.items()})

    @property
    def drift(self) -> pd.DataFrame:
        """What the variants compute, against the first: one row each, the missing ones with the reason in `note`.

        `n` pictures; `accuracy` with its standard error `se` (both NaN where labels are predictions, the error also
        where all or none are right); `agreement`: share of
        pictures with the first variant's top-1 class; `label_probability`: mean softmax probability of the label, and
        `probability_change` against the first; slope and high share of the gradient at the network's input.
        """
        import pandas as pd

        rows = [
            _drift(name, self.audits[name], self._first)
            if name in self.audits
            else {"variant": name, "n": 0, "note": self.missing[name]}
            for name in self.spec["variants"]
        ]
        return pd.DataFrame(rows, columns=list(_DRIFT))

    def causal(
        self, *, only: str | Iterable[str] | None = None, batch_size: int | None = None, progress: bool = True
    ) -> pd.DataFrame:
        """Returns what swapping each operator for average pooling does to the first variant's gradient at the input.

        Rows by `arm`: "none" (the network as it is), "all" (every operator swapped), and for each operator that
        `surgery.average_pooled` can swap "one" (this one alone) and "all but one" (every other). `slope_nyquist` and
        `high_share` at the network's input with standard errors; `change` of the slope and `share_change` against the
        arm "none", for "all but one" against "all", with standard errors paired over pictures; `new_power`: the
        operator's among the culprits, the sum of its calls'; `note`: why a number is NaN. An operator that makes high
        frequencies has a negative change in "one" and a positive one in "all but one". The table is
        made once and kept.

        Args:
            only: Names or patterns of the operators to take one by one; None: all.
            batch_size: Pictures per pass; None: as compared.
            progress: Show a bar over the arms on stderr where that is a terminal.

        Raises:
            NothingToSwap: The first variant has no operator to swap, or none of `only`.
            ValueError: A comparison from files that holds no such table; pictures that are not the same again.
        """
        chosen = [only] if isinstance(only, str) else None if only is None else list(only)
        live = self._source is not None
        if self.effects is not None and (self.spec["causal"]["only"] == chosen or not (live or chosen)):
            return self.effects
        if self._source is None:
            raise ValueError("This comparison comes from files, without its models: run gradspec.compare to add arms.")
        _check_repeatable(self._source.data)
        began = time.perf_counter()
        source = self._source if batch_size is None else replace(self._source, batch_size=batch_size)
        pictures = SamePictures(source.data, self._first, source.batch_size, source.seen)
        new_power = self._first.culprits("call")
        effects, record = causal_effects(
            source.model,
            self._first.signatures["input", "input"],
            lambda model: _at_input(source.audit(model, pictures, "input", progress=False)),
            only=chosen,
            inputs=next(in_batches(source.data, 1)).images,
            new_power=dict(zip(new_power["call"], new_power["new_power"], strict=True)),
            progress=progress,
        )
        about = {"only": chosen, "surgery": record.as_dict(), "seconds": round(time.perf_counter() - began, 2)}
        object.__setattr__(self, "effects", effects)
        object.__setattr__(self, "spec", self.spec | {"causal": about})
        return effects

    def agreement(self) -> pd.DataFrame:
        """Returns how far the ranking of the culprits agrees with the causal arms: a row per `arm`.

        `correlation` is Spearman's, over operators, between their new power and the causal effect: minus the change of
        the slope in "one", where taking the operator out makes the slope more negative, and the change itself in "all
        but one", where leaving it in makes it less so. So it is positive where both say the same. `p` counts all orders
        of up to 8 operators and is scipy's for more; `n` operators; NaN with a `note` for fewer than 3.

        Raises:
            NothingToSwap, ValueError: As `causal`, which is called where its table is not there yet.
        """
        return agreement(self.causal() if self.effects is None else self.effects)

    def __repr__(self) -> str:
        slopes = ["{} {:+.3f} ± {:.3f}".format(name, *found.input_slope) for name, found in self.audits.items()]
        left = [f"{name} missing" for name in self.missing]
        n = len(self._first.pictures)
        return f"Comparison({n} pictures, input slope per Nyquist: {', '.join([*slopes, *left])})"

    def plot(self) -> Any:
        """Returns the slope of every variant's gradient along the depth (`gradspec.plots.slope_profile`)."""
        return figure_of("profile.slope_profile", self)

    def _repr_html_(self) -> str:
        alt = "Slope of each variant's gradient at every operator, from the prediction to the network's input."
        return html_of(self, self.drift, alt)

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the comparison into a folder, made if need be, and returns it: `spec.json`, and units.

        For each variant one with what was done to it and one with its audit, and one with the causal table where that
        is made.

        Raises:
            ValueError: For a folder with a `spec.json` of anything else.
        """
        units: dict[str, pd.DataFrame] = {}
        for name in self.spec["variants"]:
            units[unit_name(VARIANT, name)] = variant_unit(self.records.get(name, ()), self.missing.get(name, ""))
            if name in self.audits:
                units[unit_name(AUDIT, name)] = self.audits[name].to_unit()
        if self.effects is not None:
            units[CAUSAL] = packed({"effects": self.effects}, {"causal": self.spec["causal"]})
        return Store.save(path, KIND, {k: v for k, v in self.spec.items() if k != "causal"}, units)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Returns the comparison saved in a folder, or of a run there as far as it is done.

        It has no models, so `causal` gives the stored table only.

        Raises:
            ValueError: For a folder that holds no comparison, or one that is damaged, with the file's name.
        """
        store = Store.load(path, KIND)
        spec = {name: value for name, value in store.spec.items() if name not in _OF_RUN}
        audits, known, missing, unfit = {}, {}, {}, set()
        for name in spec["variants"]:
            wanted = names(store.spec, AUDIT, name, pictures="pictures")
            lacking = store.lacking([unit_name(VARIANT, name)])
            unit = unit_name(VARIANT, name)
            known[name], reason = ((), "") if lacking else store.result(unit, lambda _, about: variant_of(about))
            unfit |= {name} if reason else set()
            missing[name] = lacking or reason or store.lacking(wanted)
            if not missing[name]:
                audits[name] = kept(store, name)
        missing = {name: reason for name, reason in missing.items() if reason}
        if not audits:
            raise ValueError(f"Expected the audit of at least one variant in {path}, got none: {_reasons(missing)}.")
        reference = next((name for name in spec["variants"] if name in audits or name not in unfit), "")
        if reference not in audits:  # all others are compared with it
            raise ValueError(f"Expected the audit of the reference {reference} in {path}: {missing[reference]}.")
        done: Any = store.done(CAUSAL) and store.result(CAUSAL, lambda parts, about: (parts["effects"], about))
        effects, about = done or (None, {})
        effects = effects if "causal" in about else None  # there was nothing to swap
        shared = {name: next(iter(audits.values())).spec[name] for name in _SHARED}
        seconds = {"seconds": round(sum(found.spec["seconds"] for found in audits.values()), 2)}
        skipped = {"skipped": found} if (found := store.skipped()) else {}
        return cls(audits, known, missing, effects, shared | seconds | spec | about | skipped)


def variant_unit(known: Iterable[Record], reason: str = "", **more: Any) -> pd.DataFrame:
    """Returns the table of a unit that says what was done to a variant, or why it does not apply.

    Args:
        known: What surgery did.
        reason: "" where it applies.
        more: What else is known of it, as plain JSON.
    """
    return packed({}, {"records": [record.as_dict() for record in known], "reason": reason, **more})


def variant_of(about: Mapping[str, Any]) -> tuple[tuple[Record, ...], str]:
    """Returns what a `variant_unit` says: the records, and why the variant does not apply."""
    return tuple(map(Record.from_dict, about["records"])), str(about["reason"])


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in missing.items())


# ---- the pictures, again and again -----------------------------------------------------------


@dataclass(eq=False)
class Seen:
    """Pictures in batches, as they come, that are remembered by their content."""

    data: Data
    batch_size: int | None = None
    contents: list[str] = field(default_factory=list)

    @property
    def ids(self) -> range | None:
        """As many numbers as there are pictures, where the data says how many."""
        count = number_of_pictures(self.data)
        return None if count is None else range(count)

    @property
    def skipped(self) -> dict[str, str]:
        """Pictures that the data leaves out."""
        return getattr(self.data, "skipped", {})

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, list[str]]]:
        self.contents.clear()
        for batch in in_batches(self.data, self.batch_size):
            self.contents += map(picture_id, batch.images)
            yield batch.images, batch.labels, batch.ids


@dataclass(frozen=True)
class SamePictures:
    """The pictures of a finished audit once more, in batches, each with the label that it had there.

    Raises:
        OtherPictures: While they are gone through, where they are not those of the audit in its order.
    """

    data: Data
    audit: Audit
    batch_size: int | None = None
    seen: Seen | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the pictures, by which a progress bar counts them."""
        return self.audit.pictures

    @property
    def skipped(self) -> dict[str, str]:
        """Pictures that the data leaves out."""
        return getattr(self.data, "skipped", {})

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        labels, done = torch.tensor(self.audit.spec["labels"]), 0
        for batch in in_batches(self.data, self.batch_size):
            here = slice(done, done + len(batch.ids))
            if not all(map(_same, self.ids[here], batch.ids)) or here.stop > len(self.ids):
                raise OtherPictures(_OTHER)
            if self.seen is not None and self.seen.contents[here] != list(map(picture_id, batch.images)):
                raise OtherPictures(_OTHER)  # of the same names: a loader that crops at random
            yield batch.images, labels[here], batch.ids
            done = here.stop
        if done < len(self.ids):
            raise OtherPictures(_OTHER)


_OTHER = (
    "Expected the same pictures in the same order every time, got others than the first variant had: give a loader "
    "that neither shuffles nor changes its pictures."
)


def _same(known: str, name: str) -> bool:
    """Whether an audit, which numbers the names of pictures that come again, made one name of the other."""
    return known == name or known.rpartition("#")[0] == name


@dataclass(frozen=True)
class _Source:
    """What a comparison was made of: the first model, the pictures, the settings."""

    model: nn.Module
    data: Data
    seen: Seen
    target: Target
    batch_size: int | None
    device: str | torch.device | None
    channels: int | None
    seed: int

    def audit(self, model: nn.Module, data: Data, layers: Layers, progress: bool) -> Audit:
        settings = {name: getattr(self, name) for name in ("target", "batch_size", "device", "channels", "seed")}
        return audit(model, data, layers=layers, progress=progress, **settings)


# ---- checks ----------------------------------------------------------------------------------


def _variants(models: Any) -> tuple[dict[str, nn.Module], dict[str, tuple[Record, ...]]]:
    if not isinstance(models, Mapping):
        raise TypeError(f"Expected a mapping {{name: model}}, got {type(models).__name__}; give each model a name.")
    if not models:
        raise ValueError("Expected at least one model to compare, got none.")
    variants, known = {}, {}
    for name, value in models.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"Expected names of variants as text that is not empty, got {name!r}.")
        model, *given = value if isinstance(value, tuple) and value else (value,)
        if not isinstance(model, nn.Module) or not all(isinstance(record, Record) for record in given):
            kinds = ", ".join(type(part).__name__ for part in (model, *given))
            raise TypeError(f"Expected a model or (model, record) as variant {name!r}, got {kinds}.")
        carried = records(unwrapped(model))
        variants[name], known[name] = model, (*carried, *(record for record in given if record not in carried))
    return variants, known


def _check_repeatable(data: Any) -> None:
    if isinstance(data, Iterator):
        raise TypeError(
            f"Expected pictures that can be gone through once per variant, got an iterator ({type(data).__name__}): "
            "give a tensor, a list or a loader."
        )


# ---- tables and files ------------------------------------------------------------------------


def _at_input(audit: Audit) -> Signature:
    return audit.signatures["input", "input"]


def _stacked(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    parts: list[Any] = [frame.assign(variant=name)[["variant", *frame.columns]] for name, frame in frames.items()]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)  # empty ones: no dtypes


def _drift(name: str, found: Audit, first: Audit) -> dict[str, Any]:
    import pandas as pd

    predicted, labels = np.array(found.spec["predicted"]), np.array(found.spec["labels"])
    right = pd.Series(predicted == labels if found.spec["labelled"] else np.full(len(labels), np.nan), dtype=float)
    agreement = float(np.mean(predicted == np.array(first.spec["predicted"])))
    probability = float(np.mean(found.spec["label_probability"]))
    signature = _at_input(found)
    values = (
        name, len(labels), right.mean(), right.sem() or np.nan, agreement, probability,
        probability - float(np.mean(first.spec["label_probability"])), signature.slope_nyquist,
        signature.slope_nyquist_se, signature.high_share, signature.reason,
    )  # fmt: skip
    return dict(zip(_DRIFT, values, strict=True))

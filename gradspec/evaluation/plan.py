"""Which maps are put on trial: every attribution as it is and through its filters, and maps that know no network."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from gradspec.attributions import Attribution, SmoothGrad, SquareGrad, VarGrad
from gradspec.controls import centre_prior, random_maps
from gradspec.cutoffs import CutoffFit
from gradspec.forgrad import FORGrad, Found
from gradspec.fourier import FilterShape

Arm = Literal["abs", "gradient", "shared", "gaussian"]
Explain = Callable[..., Any]  # (model, images, labels) -> maps
Fitted = CutoffFit | Found | float | None  # found: by `cutoff_from`
Fits = Mapping[str, Fitted | Sequence[Fitted]]

NONE, ABS, FORGRAD, GRADIENT, SHARED, GAUSSIAN, CONTROL = (
    "none", "abs", "forgrad", "forgrad-gradient", "shared", "gaussian", "control",
)  # fmt: skip
MARKS = {NONE: "", ABS: " (abs)", FORGRAD: "*", GRADIENT: "* (gradient)", SHARED: "†", GAUSSIAN: "† (Gaussian)"}
_WIDER: dict[FilterShape, float] = {
    "disk": 1.0,
    "square": 2 / math.sqrt(math.pi),
    "butterworth": math.sqrt(math.pi / 2),
}


@dataclass(frozen=True)
class Row:
    """A line of the tables: one way to make maps.

    Attributes:
        attribution: Its key.
        arm: "none", "abs", "forgrad", "forgrad-gradient", "shared", "gaussian" or "control".
        explain: What makes the maps.
        base: Key of the attribution without a filter, "" where it is not there.
    """

    attribution: str
    arm: str
    explain: Explain
    base: str

    @property
    def key(self) -> tuple[str, str]:
        """What stands in the tables."""
        return self.attribution, self.arm

    @property
    def inner(self) -> Explain:
        """What explains, without the filter."""
        return self.explain.attribution if isinstance(self.explain, FORGrad) else self.explain

    def described(self) -> dict[str, Any]:
        """Returns family, cutoff and settings as plain JSON."""
        explain = self.explain
        cutoff = explain.cutoff if isinstance(explain, FORGrad) else None
        where, shape = (explain.where, explain.shape) if isinstance(explain, FORGrad) else ("", "")
        return {
            "attribution": self.attribution, "arm": self.arm, "base": self.base, "name": name_of(*self.key),
            "family": CONTROL if self.arm == CONTROL else getattr(self.inner, "family", ""), "cutoff": cutoff,
            "where": where, "shape": shape, "fitted": isinstance(explain, FORGrad) and explain.fit is not None,
            "settings": text_of(self.inner),
        }  # fmt: skip


def name_of(attribution: str, arm: str) -> str:
    """Returns the name in the paper's tables: with a star for FORGrad, a dagger for the arms beside it.

    Example:
        >>> name_of("Saliency", "forgrad"), name_of("Saliency", "shared"), name_of("centre prior", "control")
        ('Saliency*', 'Saliency†', 'centre prior')
    """
    return attribution + MARKS.get(arm, "")


def text_of(thing: Any) -> str:
    """Returns an attribution or a metric as it would be written, with what differs from its defaults.

    Example:
        >>> text_of(SmoothGrad(samples=8))
        'SmoothGrad(samples=8)'
    """
    if not dataclasses.is_dataclass(thing):
        return str(getattr(thing, "__name__", type(thing).__name__))
    fields = [(field, getattr(thing, field.name)) for field in dataclasses.fields(thing) if field.init and field.repr]
    said = [f"{field.name}={_value(value)}" for field, value in fields if not _is_default(field, value)]
    return f"{type(thing).__name__}({', '.join(said)})"


def _value(value: Any) -> str:
    if callable(value) or dataclasses.is_dataclass(value):
        return text_of(value)
    return type(value).__name__ if hasattr(value, "shape") else repr(value)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    return not hasattr(value, "shape") and bool(field.default == value)


def planned(
    attributions: Mapping[str, Explain], fits: Fits, arms: Iterable[Arm], shared_cutoff: float | None, controls: bool,
    seed: int,
) -> tuple[list[Row], dict[tuple[str, str], str]]:  # fmt: skip
    """Returns the rows in the order of the tables, and those that cannot be, with the reason.

    Raises:
        TypeError: For attributions that are none.
        ValueError: For no attribution, names that collide, fits of other names, unknown arms, arms without a cutoff.
    """
    _check(attributions, fits, wanted := tuple(arms), controls)
    wanted = wanted + ("shared",) * (shared_cutoff is not None and "shared" not in wanted)
    if "shared" in wanted and shared_cutoff is None:
        shared_cutoff = best_for_all(fits)
    rows: list[Row] = []
    missing: dict[tuple[str, str], str] = {}
    for name, attribution in attributions.items():
        if isinstance(attribution, FORGrad):
            rows.append(Row(name, _arm_of(attribution), attribution, _key_of(attribution.attribution, attributions)))
            continue
        rows.append(Row(name, NONE, attribution, name))
        if not (name in fits or (not fits and shared_cutoff is not None and _is_white(attribution))):
            continue
        for arm, make in _filters(attribution, _listed(fits.get(name, ())), wanted, shared_cutoff).items():
            try:
                rows.append(Row(name, arm, make(), name))
            except ValueError as error:
                if arm != GRADIENT:
                    raise
                missing[name, arm] = str(error)  # a black box has no gradients
    return rows + _controls(seed) * controls, missing


def _filters(
    attribution: Explain, fits: Sequence[Fitted], wanted: Sequence[str], shared_cutoff: float | None
) -> dict[str, Callable[[], FORGrad]]:
    """What is to be made of an attribution for each of its arms, in the order of the tables."""
    found: dict[str, Callable[[], FORGrad]] = {}
    if "abs" in wanted:
        found[ABS] = lambda: FORGrad(attribution, None)
    for fit in fits:
        found[FORGRAD if getattr(fit, "where", "attribution") == "attribution" else GRADIENT] = lambda fit=fit: FORGrad(
            attribution, fit
        )
    first = fits[0] if fits else None
    cutoff = _cutoff(first)
    where: Any = getattr(first, "where", "attribution")
    shape: Any = getattr(first, "shape", "disk")
    if "gradient" in wanted and fits and GRADIENT not in found:
        found[GRADIENT] = lambda: FORGrad(attribution, cutoff, "gradient", shape)
    if "shared" in wanted:
        found[SHARED] = lambda: FORGrad(attribution, shared_cutoff, where, shape)
    if "gaussian" in wanted and fits:
        wide = None if cutoff is None else cutoff * _WIDER.get(shape, 1.0)
        found[GAUSSIAN] = lambda: FORGrad(attribution, wide, where, "gaussian")
    return found


def best_for_all(fits: Fits) -> float | None:
    """Returns the one cutoff with the highest mean over methods of their curves: the paper's "one size" (§5).

    Args:
        fits: Found on a grid of the same cutoffs; of several for one method the first counts.

    Raises:
        ValueError: Without such fits, or for different cutoffs.
    """
    known = [first for value in fits.values() for first in _listed(value)[:1] if isinstance(first, CutoffFit)]
    grids = {fit.cutoffs for fit in known}
    if len(grids) != 1 or any(fit.search != "grid" for fit in known):
        raise ValueError(
            "Expected shared_cutoff=, or fits by search='grid' over the same cutoffs to choose it by, for the arm "
            f"'shared'; got {len(known)} fit(s) over {len(grids)} grids."
        )
    mean = np.mean([fit.curve.mean for fit in known], 0)
    return known[0].cutoffs[int(mean.argmax())]


def streams(rows: Sequence[Row]) -> list[list[Row]]:
    """Returns the rows in groups that one stream of passes serves: the same attribution, or the same noisy draws."""
    found: list[list[Row]] = []
    for row in rows:
        group = next((group for group in found if not _alone(row) and _shares(group[0].inner, row.inner)), None)
        if group is None:
            found.append([row])
        else:
            group.append(row)
    return found


def same(one: Explain, other: Explain) -> bool:
    """Returns whether two are one attribution: equal ones of ours, the same object of anybody's."""
    return one is other or (type(one) is type(other) and isinstance(one, Attribution) and one == other)


def _alone(row: Row) -> bool:
    """Whether another library draws the gradients that are filtered: once more for each filter."""
    return row.arm == GRADIENT and not isinstance(row.inner, Attribution)


def _shares(one: Explain, other: Explain) -> bool:
    noisy = SmoothGrad, SquareGrad, VarGrad
    if isinstance(one, noisy) and isinstance(other, noisy):
        return one.draws == other.draws
    return same(one, other)


def _controls(seed: int) -> list[Row]:
    maps = {
        "centre prior": centre_prior(),
        "white noise": random_maps("white", seed=seed),
        "random low": random_maps("low", seed=seed),
        "random high": random_maps("shuffled", seed=seed),
    }
    return [Row(name, CONTROL, make, "") for name, make in maps.items()]


CONTROLS = ("centre prior", "white noise", "random low", "random high")


def _check(attributions: Any, fits: Any, arms: Sequence[str], controls: bool) -> None:
    if not isinstance(attributions, Mapping) or not isinstance(fits, Mapping):
        got = type(attributions if not isinstance(attributions, Mapping) else fits).__name__
        raise TypeError(f"Expected attributions and fits as mappings {{name: ...}}, got {got}.")
    if not attributions:
        raise ValueError("Expected at least one attribution, got none.")
    for name, attribution in attributions.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"Expected names of attributions as text that is not empty, got {name!r}.")
        if isinstance(attribution, type) or not callable(attribution):
            hint = "; wrap maps in gradspec.adapters.stored" if hasattr(attribution, "shape") else ""
            raise TypeError(
                f"Expected an attribution such as Saliency() as {name!r}, got {_value(attribution)[:60]}{hint}."
            )
    if controls and (taken := set(CONTROLS) & set(attributions)):
        raise ValueError(f"Expected other names than those of the controls, got {sorted(taken)}.")
    unknown = [name for name in fits if name not in attributions or isinstance(attributions[name], FORGrad)]
    if unknown:
        raise ValueError(f"Expected fits of attributions without a filter, {list(attributions)}, got {unknown}.")
    for name, fit in ((name, fit) for name, value in fits.items() for fit in _listed(value)):
        if not (fit is None or hasattr(fit, "cutoff") or isinstance(fit, numbers.Real)) or isinstance(fit, bool):
            raise TypeError(f"Expected a CutoffFit or a cutoff for {name!r}, got {type(fit).__name__}.")
    if strange := [arm for arm in arms if arm not in get_args(Arm)]:
        raise ValueError(f"Expected arms among {get_args(Arm)}, got {strange}.")


def _listed(fits: Any) -> list[Fitted]:
    return list(fits) if isinstance(fits, (tuple, list)) else [fits]


def _cutoff(fit: Fitted) -> float | None:
    return getattr(fit, "cutoff", fit)  # pyright: ignore[reportReturnType]


def _arm_of(attribution: FORGrad) -> str:
    if attribution.where == "gradient":
        return GRADIENT
    return ABS if attribution.cutoff is None else FORGRAD


def _key_of(inner: Explain, attributions: Mapping[str, Explain]) -> str:
    return next((name for name, other in attributions.items() if same(inner, other)), "")


def _is_white(attribution: Explain) -> bool:
    return getattr(attribution, "family", None) == "white"

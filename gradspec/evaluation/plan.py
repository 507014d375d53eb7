"""Which maps are put on trial: every attribution as it is and through its filters, and maps that know no network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from gradspec.attributions import Attribution, SmoothGrad, SquareGrad, VarGrad
from gradspec.attributions.words import text_of
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
        fits: Those that its cutoff is from.
    """

    attribution: str
    arm: str
    explain: Explain
    base: str
    fits: tuple[CutoffFit, ...] = ()

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
            "fit_metric": self.fits[0].metric if self.fits else "", "settings": text_of(self.inner),
        }  # fmt: skip


def name_of(attribution: str, arm: str) -> str:
    """Returns the name in the paper's tables: with a star for FORGrad, a dagger for the arms beside it.

    Example:
        >>> name_of("Saliency", "forgrad"), name_of("Saliency", "shared"), name_of("centre prior", "control")
        ('Saliency*', 'Saliency†', 'centre prior')
    """
    return attribution + MARKS.get(arm, "")


def planned(
    attributions: Mapping[str, Explain], fits: Fits, arms: Iterable[Arm], shared_cutoff: float | None, controls: bool,
    seed: int,
) -> tuple[list[Row], dict[tuple[str, str], str]]:  # fmt: skip
    """Returns the rows in the order of the tables, and those that cannot be, with the reason.

    Raises:
        TypeError: For attributions that are none.
        ValueError: For no attribution, names that collide, fits of other names or two for one place, unknown arms, arms
            without a cutoff, a cutoff that is infinite.
    """
    _check(attributions, fits, wanted := tuple(arms), controls)
    wanted = wanted + ("shared",) * (shared_cutoff is not None and "shared" not in wanted)
    shared_by: list[CutoffFit] = []
    if "shared" in wanted and shared_cutoff is None:
        shared_cutoff, shared_by = best_for_all(fits), _firsts(fits)
    rows: list[Row] = []
    missing: dict[tuple[str, str], str] = {}
    for name, attribution in attributions.items():
        if isinstance(attribution, FORGrad):
            base = _key_of(attribution.attribution, attributions)
            rows.append(Row(name, _arm_of(attribution), attribution, base, _fits([attribution.fit])))
            continue
        rows.append(Row(name, NONE, attribution, name))
        if not (name in fits or (not fits and shared_cutoff is not None and _is_white(attribution))):
            continue
        for arm, (make, by) in _filters(attribution, listed(fits.get(name, ())), wanted, shared_cutoff).items():
            if reason := next(filter(None, map(_unfound, by)), ""):
                missing[name, arm] = reason
                continue
            try:
                rows.append(Row(name, arm, make(), name, tuple(shared_by) if arm == SHARED else _fits(by)))
            except ValueError as error:
                if arm != GRADIENT:
                    raise
                missing[name, arm] = str(error)  # a black box has no gradients
    _check_finite(rows)
    return rows + _controls(seed) * controls, missing


def _filters(
    attribution: Explain, fits: Sequence[Fitted], wanted: Sequence[str], shared_cutoff: float | None
) -> dict[str, tuple[Callable[[], FORGrad], Sequence[Fitted]]]:
    """How to make an attribution's arms, in the order of the tables, and by which fits."""
    found: dict[str, tuple[Callable[[], FORGrad], Sequence[Fitted]]] = {}
    if "abs" in wanted:
        found[ABS] = lambda: FORGrad(attribution, None), ()
    for fit in fits:
        found[FORGRAD if _where(fit) == "attribution" else GRADIENT] = lambda fit=fit: FORGrad(attribution, fit), [fit]
    first = fits[0] if fits else None
    cutoff = _cutoff(first)
    where = _where(first)
    shape: Any = getattr(first, "shape", "disk")
    if "gradient" in wanted and fits and GRADIENT not in found:
        found[GRADIENT] = lambda: FORGrad(attribution, cutoff, "gradient", shape), [first]
    if "shared" in wanted:
        found[SHARED] = lambda: FORGrad(attribution, shared_cutoff, where, shape), ()
    if "gaussian" in wanted and fits:
        wide = None if cutoff is None else cutoff * _WIDER.get(shape, 1.0)
        found[GAUSSIAN] = lambda: FORGrad(attribution, wide, where, "gaussian"), [first]
    return found


def best_for_all(fits: Fits) -> float | None:
    """Returns the one cutoff with the highest mean over methods of their curves: the paper's "one size" (§5).

    Args:
        fits: Of one network by one metric, found on a grid of the same cutoffs of one filter; of several for one method
            the first counts.

    Raises:
        ValueError: Without such fits, or for different ones.
    """
    known = _firsts(fits)
    differing = [name for name in _AVERAGED if len({getattr(fit, name) for fit in known}) > 1]
    if not known or differing or any(fit.search != "grid" for fit in known):
        raise ValueError(
            "Expected shared_cutoff=, or fits by search='grid' of one network, metric and filter over the same cutoffs "
            f"to choose it by, for the arm 'shared'; got {len(known)} fit(s)"
            + (f" that differ in {', '.join(differing)}." if differing else ".")
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


def _firsts(fits: Fits) -> list[CutoffFit]:
    return [first for value in fits.values() for first in listed(value)[:1] if isinstance(first, CutoffFit)]


_AVERAGED = ("cutoffs", "metric", "where", "shape", "model")  # what curves have in common that are averaged
CONTROLS = ("centre prior", "white noise", "random low", "random high")


def _check(attributions: Any, fits: Any, arms: Sequence[str], controls: bool) -> None:
    if not isinstance(attributions, Mapping) or not isinstance(fits, Mapping):
        got = type(attributions if not isinstance(attributions, Mapping) else fits).__name__
        raise TypeError(f"Expected attributions and fits as mappings {{name: ...}}, got {got}.")
    if not attributions and not controls:
        raise ValueError("Expected at least one attribution, got none.")
    for name, attribution in attributions.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"Expected names of attributions as text that is not empty, got {name!r}.")
        if isinstance(attribution, type) or not callable(attribution):
            hint = "; wrap maps in gradspec.adapters.stored" if hasattr(attribution, "shape") else ""
            raise TypeError(
                f"Expected an attribution such as Saliency() as {name!r}, got {text_of(attribution)[:60]}{hint}."
            )
    if controls and (taken := set(CONTROLS) & set(attributions)):
        raise ValueError(f"Expected other names than those of the controls, got {sorted(taken)}.")
    unknown = [name for name in fits if name not in attributions or isinstance(attributions[name], FORGrad)]
    if unknown:
        raise ValueError(f"Expected fits of attributions without a filter, {list(attributions)}, got {unknown}.")
    for name, fit in ((name, fit) for name, value in fits.items() for fit in listed(value)):
        if not (fit is None or hasattr(fit, "cutoff") or isinstance(fit, numbers.Real)) or isinstance(fit, bool):
            raise TypeError(f"Expected a CutoffFit or a cutoff for {name!r}, got {type(fit).__name__}.")
    for name, value in fits.items():
        places = [_where(fit) for fit in listed(value)]
        if twice := [where for where in dict.fromkeys(places) if places.count(where) > 1]:
            raise ValueError(
                f"Expected one fit of {name!r} for each where, got {places.count(twice[0])} of where={twice[0]!r}: "
                "give others as FORGrad(...) among the attributions."
            )
    if strange := [arm for arm in arms if arm not in get_args(Arm)]:
        raise ValueError(f"Expected arms among {get_args(Arm)}, got {strange}.")


def _check_finite(rows: Sequence[Row]) -> None:
    for row in rows:
        cutoff = row.explain.cutoff if isinstance(row.explain, FORGrad) else None
        if cutoff is not None and math.isinf(cutoff):
            raise ValueError(f"Expected a finite cutoff, or None for no filter, got {cutoff} for {row.attribution!r}.")


def listed(fits: Any) -> list[Fitted]:
    """Returns the fits of one attribution, of which one may stand alone."""
    return list(fits) if isinstance(fits, (tuple, list)) else [fits]


def _cutoff(fit: Fitted) -> float | None:
    return getattr(fit, "cutoff", fit)  # pyright: ignore[reportReturnType]


def _where(fit: Any) -> Any:
    return getattr(fit, "where", "attribution")


def _unfound(fit: Any) -> str:
    """Why there is no cutoff in what was to be one."""
    return str(getattr(fit, "reason", "")) if getattr(fit, "cutoff", fit) is None else ""


def _fits(found: Sequence[Any]) -> tuple[CutoffFit, ...]:
    return tuple(fit for fit in found if isinstance(fit, CutoffFit))


def _arm_of(attribution: FORGrad) -> str:
    if attribution.where == "gradient":
        return GRADIENT
    return ABS if attribution.cutoff is None and attribution.fit is None else FORGRAD  # a fit may find no filter best


def _key_of(inner: Explain, attributions: Mapping[str, Explain]) -> str:
    return next((name for name, other in attributions.items() if same(inner, other)), "")


def _is_white(attribution: Explain) -> bool:
    return getattr(attribution, "family", None) == "white"

"""FORGrad as an attribution that contains another, and the maps of many with one explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from gradspec._checks import check_images
from gradspec.attributions.base import Attribution, Explain, Family
from gradspec.engine import Engine, Pictures, engine_of
from gradspec.forgrad.layers import checked
from gradspec.forgrad.streams import Wish, maps_of_group, streams
from gradspec.fourier import FilterShape

Where = Literal["attribution", "gradient"]


class Found(Protocol):
    """A cutoff that was found, in cycles/image; None for no filter."""

    @property
    def cutoff(self) -> float | None:
        """In cycles/image."""
        ...


@runtime_checkable
class Fit(Found, Protocol):
    """A cutoff that was found for one place and one shape of filter, as `fit_cutoff` returns."""

    @property
    def where(self) -> Where:
        """What was filtered."""
        ...

    @property
    def shape(self) -> FilterShape:
        """The mask's."""
        ...


@dataclass(frozen=True, init=False)
class FORGrad(Attribution):
    """FORGrad: an attribution without its high frequencies, itself an attribution (paper §5).

    With where="attribution" the finished map is filtered, its mean over channels and magnitude before and its
    magnitude after: | low_pass(| mean_c φ_c |) |, as in Xplique. With where="gradient" every gradient at the input that
    the method draws is filtered before the method goes on, as in the paper: VarGrad is then the variance of filtered
    gradients. Another library's method is given the network behind a `LowPassGrad`.

    Args:
        attribution: What is filtered: one of gradspec's, an adapter's, or any (model, images, labels) -> maps.
        cutoff: σ in cycles/image, 0 or more; None for no filter, which leaves the map's magnitude alone, or with
            where="gradient" the method itself; or what `fit_cutoff` or `cutoff_from` found.
        where: "attribution" (default) or "gradient"; a fit brings its own.
        shape: "disk" (default), "square", "gaussian" or "butterworth"; a fit brings its own.

    Attributes:
        attribution: What is filtered.
        cutoff: As a number or None.
        where: What is filtered in it.
        shape: Of the mask.
        fit: The fit that the cutoff is from, or None.

    Raises:
        TypeError: For what is no attribution, and a cutoff that is no number, a FORGrad among them.
        ValueError: For gradients of a gray- or black-box method, for settings that are not the fit's, for what found
            no cutoff, a negative cutoff, another shape; when called with where="gradient", for a method that draws no
            gradient at the input.

    Example:
        >>> from gradspec import low_pass
        >>> from gradspec.attributions import Saliency
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).eval()
        >>> case = net, torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> maps = FORGrad(Saliency(), 2)(*case)
        >>> torch.allclose(maps, low_pass(Saliency()(*case), 2).abs(), atol=1e-6)
        True
    """

    attribution: Explain
    cutoff: float | None
    where: Where
    shape: FilterShape
    fit: Fit | None = field(init=False, compare=False, repr=False)

    def __init__(
        self, attribution: Explain, cutoff: float | Found | None,
        where: Where | None = None, shape: FilterShape | None = None,
    ) -> None:  # fmt: skip
        if isinstance(attribution, type) or not callable(attribution):
            raise TypeError(f"Expected an attribution such as Saliency(), got {attribution!r}.")
        _check_found(cutoff)
        fit = cutoff if isinstance(cutoff, Fit) else None
        where, shape = _settings(fit, where, shape)
        number: Any = getattr(cutoff, "cutoff", cutoff)
        if where == "gradient":
            _check_white(attribution)
        cutoff = checked(number, shape).cutoff
        values = {"attribution": attribution, "cutoff": cutoff, "where": where, "shape": shape}
        for name, value in (values | {"fit": fit}).items():
            object.__setattr__(self, name, value)

    @property
    def family(self) -> Family | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The family of what is filtered, None where nobody says it."""
        return getattr(self.attribution, "family", None)

    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes one picture takes: those of what is filtered, 1 where nobody says it."""
        return Wish(self.attribution).passes(height, width)

    def _maps(self, engine: Engine, pictures: Pictures) -> Tensor:
        return maps_of_group(engine, [_wish(self)], pictures)[0]


def _settings(fit: Fit | None, where: Where | None, shape: FilterShape | None) -> tuple[Where, FilterShape]:
    if where not in (None, *get_args(Where)):
        raise ValueError(f"Expected where='attribution' or 'gradient', got {where!r}.")
    if fit is None:
        return where or "attribution", shape or "disk"
    if (where or fit.where, shape or fit.shape) != (fit.where, fit.shape):
        got = ", ".join(f"{name}={value!r}" for name, value in (("where", where), ("shape", shape)) if value)
        raise ValueError(
            f"Expected where={fit.where!r} and shape={fit.shape!r}, for which the cutoff was fitted, got {got}: leave "
            "them out, or fit another cutoff."
        )
    return fit.where, fit.shape


def _check_found(cutoff: Any) -> None:
    if isinstance(cutoff, (Attribution, nn.Module)):  # which may have a cutoff, but are no fit
        name = type(cutoff).__name__
        raise TypeError(f"Expected a number of cycles/image, a fit or None, got a {name}: give its cutoff.")
    reason = getattr(cutoff, "reason", "")
    if reason and getattr(cutoff, "cutoff", cutoff) is None:
        raise ValueError(
            f"Expected a cutoff, got none: {reason}; give a number, a fit of `fit_cutoff`, or None for no filter."
        )


def _check_white(attribution: Explain) -> None:
    name, family = type(attribution).__name__, getattr(attribution, "family", None)
    if isinstance(attribution, FORGrad):
        raise ValueError("Expected a method whose gradients are not filtered yet, got a FORGrad: give its attribution.")
    if family in ("gray", "black") or (isinstance(attribution, Attribution) and family != "white"):
        kind = f"is a {family}-box method" if family else "knows no network"
        raise ValueError(
            f"Expected a white-box method for where='gradient', got {name}, which {kind} and draws no gradient at the "
            "input: use where='attribution'."
        )


def maps_of(
    engine: nn.Module | Engine, attributions: Mapping[str, Explain], images: Tensor, labels: Tensor,
    ids: Sequence[str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Returns the maps of several attributions, each of which is explained once, whatever is filtered out of it.

    FORGrads of equal attributions, and these themselves, share one explanation: all cutoffs, shapes and both places.
    SmoothGrad, VarGrad and SquareGrad of equal draws share theirs. Another library's method with where="gradient" is
    explained once for each cutoff, as it draws its gradients itself. The maps are those of each alone, to rounding.

    Args:
        engine: A classifier, or an `Engine` made of one.
        attributions: gradspec's, FORGrads, or any (model, images, labels) -> maps, by name.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), the classes to be explained, int64.
        ids: A name for each picture, of which its random numbers are made; None: a hash of the picture.

    Returns:
        By the same names the maps (N, H, W), or (N, C, H, W) where a method keeps channels, float32.

    Raises:
        TypeError, ValueError: As each attribution.

    Example:
        >>> from gradspec.attributions import Saliency
        >>> engine = Engine(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).eval())
        >>> wanted = {str(cutoff): FORGrad(Saliency(), cutoff) for cutoff in (None, 3, 2, 1)}
        >>> maps = maps_of(engine, wanted, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        >>> list(maps), engine.backwards
        (['None', '3', '2', '1'], 2)
    """
    engine = engine_of(engine)
    check_images(images)
    wishes = [_wish(attribution) for attribution in attributions.values()]
    total = sum(first.passes(*images.shape[-2:]) for first, *_ in streams(wishes))
    found: list[list[Tensor]] = [[] for _ in wishes]
    with engine.task("maps", len(images) * total):
        for pictures in engine.groups(images, labels, ids):
            for parts, maps in zip(found, maps_of_group(engine, wishes, pictures), strict=True):
                parts.append(maps)
    joined = (torch.cat(parts).to(images.device, torch.float32) for parts in found)
    return dict(zip(attributions, joined, strict=True))


def _wish(attribution: Explain) -> Wish:
    if not isinstance(attribution, FORGrad):
        return Wish(attribution)
    low = checked(attribution.cutoff, attribution.shape)
    if attribution.where == "gradient":
        return Wish(attribution.attribution, drawn=low)
    return Wish(attribution.attribution, finish=low)

"""Other libraries' attributions as (model, images, labels) -> maps: captum, pytorch-grad-cam, zennit; and stored maps.

None of these libraries is imported until it is used. What is made here goes wherever an attribution does: `FORGrad`,
the metrics, `evaluate`. Called directly, the network is run as gradspec runs it: in eval mode, unchanged afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from gradspec.attributions.base import Family, Maps, checked_maps, enlarged, explained
from gradspec.data import names_of
from gradspec.engine import Engine, engine_of

Reduce = Literal["mean", "max"]


class Adapter(ABC):
    """Another library's attribution: `(model, images (N, C, H, W), labels (N,), *, ids=None)` -> maps.

    Subclasses are frozen dataclasses; each is equal to itself alone.

    Attributes:
        family: "white" (gradients at the input), "gray" (of a layer), "black" (scores of changed pictures), or None.
    """

    @property
    def family(self) -> Family | None:
        """Of what it is, None where nobody knows."""
        return None

    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns one map for each picture, (N, H, W) or (N, C, H, W), on the pictures' device.

        Args:
            model: A classifier whose output is logits (N, K), or an `Engine` made of one.
            images: x (N, C, H, W), as the network expects them.
            labels: y (N,), the classes to be explained, int64.
            ids: A name for each picture; None: a hash of the picture.

        Raises:
            TypeError, ValueError: For pictures, labels and ids that do not fit, and for maps that do not fit these.
        """
        return explained(engine_of(model), self._maps, images, labels, ids)

    @abstractmethod
    def _maps(self, model: nn.Module, images: Tensor, labels: Tensor) -> Maps:
        """The maps of some pictures."""


# ---- captum --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Captum(Adapter):
    """A method of captum; made by `from_captum`."""

    make: Callable[[nn.Module], Any]
    arguments: Mapping[str, Any]
    reduce: Reduce | None

    @property
    def family(self) -> Family | None:
        """As captum's class says it, None for a function that makes one."""
        kinds = {kind.__name__ for kind in getattr(getattr(self.make, "func", self.make), "__mro__", ())}
        families: dict[str, Family] = {  # the first that fits: a layer's attributions are of gradients too
            "InternalAttribution": "gray", "PerturbationAttribution": "black", "GradientAttribution": "white",
        }  # fmt: skip
        return next((family for kind, family in families.items() if kind in kinds), None)

    def _maps(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        images.requires_grad_()  # else captum warns that it does so
        maps = self.make(model).attribute(images, target=labels, **self.arguments).detach()
        height, width = images.shape[-2:]
        if maps.shape[-2:] != (height, width):  # of a layer
            maps = enlarged(maps.flatten(0, 1), height, width, "bilinear").view(*maps.shape[:2], height, width)
        return _reduced(maps, self.reduce)


def from_captum(make: Callable[[nn.Module], Any], *, reduce: Reduce | None = None, **arguments: Any) -> Captum:
    """Returns a method of captum as an attribution with maps (N, C, H, W).

    A layer's maps are resized to the picture's, bilinearly.

    Args:
        make: Its class, or a function of the model: `lambda m: captum.attr.LayerGradCam(m, m.layer4)`.
        reduce: "mean" over channels, "max" of the magnitude over channels as in our Saliency; both give (N, H, W).
        arguments: Of its `attribute`, but for the pictures and the target.

    Raises:
        TypeError: For what cannot be called.
        ValueError: For another reduction.

    Example:
        >>> from captum.attr import IntegratedGradients
        >>> method = from_captum(IntegratedGradients, n_steps=8)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
        >>> method(net, torch.rand(2, 3, 4, 4), torch.tensor([0, 1])).shape, method.family
        (torch.Size([2, 3, 4, 4]), 'white')
    """
    _check_make(make, "captum.attr.Saliency")
    _check_reduce(reduce)
    return Captum(make, arguments, reduce)


# ---- pytorch-grad-cam ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GradCam(Adapter):
    """A method of pytorch-grad-cam; made by `from_grad_cam`."""

    make: Callable[..., Any]
    target_layers: Callable[[nn.Module], Sequence[nn.Module]]
    arguments: Mapping[str, Any]

    @property
    def family(self) -> Family:
        """Gray, of a layer."""
        return "gray"

    def _maps(self, model: nn.Module, images: Tensor, labels: Tensor) -> Maps:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        cam = self.make(model, list(self.target_layers(model)))
        try:
            return cam(images, [ClassifierOutputTarget(label) for label in labels.tolist()], **self.arguments)
        finally:
            cam.__exit__(None, None, None)  # takes its hooks off; as a context it would swallow an IndexError


def from_grad_cam(
    cam_class: Callable[..., Any], target_layers: Callable[[nn.Module], Sequence[nn.Module]], **arguments: Any
) -> GradCam:
    """Returns a method of pytorch-grad-cam as an attribution with maps (N, H, W), each scaled to 0..1 by that library.

    Args:
        cam_class: Its class, or a `functools.partial` of it: `partial(GradCAM, reshape_transform=tokens_to_maps)`.
        target_layers: The layers, of the model: `lambda m: [m.layer4]`.
        arguments: Of its call: aug_smooth, eigen_smooth.

    Raises:
        TypeError: For what cannot be called.
    """
    _check_make(cam_class, "pytorch_grad_cam.GradCAM")
    if not callable(target_layers):
        raise TypeError(
            f"Expected target_layers as a function of the model, as lambda m: [m.layer4], got {target_layers!r:.40}."
        )
    return GradCam(cam_class, target_layers, arguments)


# ---- zennit --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Zennit(Adapter):
    """An attributor of zennit; made by `from_zennit`."""

    make: Callable[[nn.Module], Any]
    reduce: Reduce | None

    @property
    def family(self) -> Family | None:
        """As zennit's class says it, None for a function that makes one."""
        kinds = {kind.__name__ for kind in getattr(getattr(self.make, "func", self.make), "__mro__", ())}
        return "white" if "Gradient" in kinds else "black" if "Occlusion" in kinds else None

    def _maps(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with self.make(model) as attributor:
            _, maps = attributor(images, lambda logits: one_hot(labels, logits.shape[1]).to(logits))
        return _reduced(maps.detach(), self.reduce)


def from_zennit(make: Callable[[nn.Module], Any], *, reduce: Reduce | None = None) -> Zennit:
    """Returns an attributor of zennit as an attribution of the label's logit with maps (N, C, H, W).

    Args:
        make: Its class, or a function of the model: `lambda m: Gradient(m, composite=GuidedBackprop())`.
        reduce: "mean" over channels, "max" of the magnitude over channels as in our Saliency; both give (N, H, W).

    Raises:
        TypeError: For what cannot be called.
        ValueError: For another reduction.
    """
    _check_make(make, "zennit.attribution.Gradient")
    _check_reduce(reduce)
    return Zennit(make, reduce)


# ---- stored maps ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stored:
    """Maps that were made before, looked up by the pictures' ids; made by `stored`."""

    maps: Tensor = field(repr=False)
    places: Mapping[str, int] = field(repr=False)

    def __call__(
        self, model: nn.Module | Engine | None, images: Tensor, labels: Tensor | None, *,
        ids: Sequence[str] | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the pictures' maps, on their device; neither model nor labels are looked at."""
        names = names_of(images, ids)
        missing = [name for name in names if name not in self.places]
        if missing:
            raise ValueError(
                f"Expected a stored map for each picture, got none for {len(missing)} of {len(names)} (as "
                f"{missing[0]!r}): give the ids that they were stored under."
            )
        found = self.maps[[self.places[name] for name in names]]
        return checked_maps(found, images, reduce=False).to(images.device)


def stored(maps: Maps, ids: Sequence[str] | Tensor) -> Stored:
    """Returns stored maps as an attribution that finds each picture's by its id.

    They are of the classes for which they were made: labels are not looked at. Their gradients are gone, so that
    `FORGrad` can filter them with where="attribution" alone.

    Args:
        maps: φ (N, H, W) or (N, C, H, W), a floating-point tensor or array.
        ids: A name for each; where pictures come without ids, `gradspec.data.picture_id` of each.

    Raises:
        TypeError: For anything but floating-point maps and a list of ids.
        ValueError: For ids of another number, and an id that is there twice.

    Example:
        >>> method = stored(torch.arange(8.0).view(2, 2, 2), ["cat", "dog"])
        >>> method(None, torch.rand(1, 3, 2, 2), None, ids=["dog"]).tolist()
        [[[4.0, 5.0], [6.0, 7.0]]]
    """
    size = tuple(getattr(maps, "shape", ())) or (0, 0, 0)
    found = checked_maps(maps, torch.empty(size[0], 1, *size[-2:]), reduce=False).clone()
    names = names_of(found, ids)
    places = {name: place for place, name in enumerate(names)}
    if len(places) < len(names):
        twice = next(name for place, name in enumerate(names) if places[name] != place)
        raise ValueError(f"Expected one map for each id, got more for {twice!r}.")
    return Stored(found, places)


# ---- checks --------------------------------------------------------------------------------------


def _reduced(maps: Tensor, reduce: Reduce | None) -> Tensor:
    if reduce is None:
        return maps
    return maps.mean(1) if reduce == "mean" else maps.abs().amax(1)


def _check_reduce(reduce: Reduce | None) -> None:
    if reduce is not None and reduce not in get_args(Reduce):
        raise ValueError(f"Expected reduce 'mean', 'max' or None to keep the channels, got {reduce!r}.")


def _check_make(make: Any, example: str) -> None:
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(f"Expected a class such as {example}, or a function of the model, got {type(make).__name__}.")

"""What every attribution shares: the call, the checks, the passes it takes; and how anybody's is called."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gradspec._checks import check_images, check_labels
from gradspec.data import names_of
from gradspec.engine import Engine, Pictures, engine_of
from gradspec.passes import to_weights
from gradspec.taps import tensors_of

Family = Literal["white", "gray", "black"]
Channels = Literal["mean", "keep"]
Resize = Literal["bilinear", "bicubic", "keys"]
Maps = Tensor | np.ndarray

FOREIGN = 16  # pictures given to another library's attribution at once: it may hold all of their activations

_RESIZES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "bicubic": {"mode": "bicubic"},
    "keys": {"mode": "bicubic", "antialias": True},  # torch's other cubic; there is nothing to smooth on the way up
}


class Attribution(ABC):
    """An attribution: `(model, images (N, C, H, W), labels (N,), *, ids=None) -> maps (N, H, W)`, signed float32.

    Subclasses are frozen dataclasses whose fields are the method's settings and nothing about how it is run: that is
    the `Engine`'s, which may be given in place of the model.

    Attributes:
        family: "white" (gradients at the input), "gray" (of a layer), "black" (scores of changed pictures).
    """

    family: ClassVar[Family]

    def __call__(
        self, model: nn.Module | Engine, images: Tensor, labels: Tensor, *, ids: Sequence[str] | None = None
    ) -> Tensor:
        """Returns one map for each picture (N, H, W), float32, on the pictures' device.

        Args:
            model: A classifier, or an `Engine` made of one.
            images: x (N, C, H, W), as the network expects them, of any size.
            labels: y (N,), the classes to be explained, int64.
            ids: A name for each picture, of which its random numbers are made; None: a hash of the picture.

        Raises:
            TypeError, ValueError: For pictures, labels, ids and models that do not fit (`Engine.groups`).
        """
        engine = engine_of(model)
        check_images(images)
        with engine.task(type(self).__name__, len(images) * self.passes(*images.shape[-2:])):
            maps = [self._maps(engine, pictures) for pictures in engine.groups(images, labels, ids)]
        return torch.cat(maps).to(images.device, torch.float32)

    @abstractmethod
    def passes(self, height: int, width: int) -> int:
        """Returns how many forward passes one picture of that size takes."""

    @abstractmethod
    def _maps(self, engine: Engine, pictures: Pictures) -> Tensor:
        """The maps of one group of pictures."""


Explain = Attribution | Callable[..., Any]  # (model, images, labels) -> maps, a tensor or an array


def takes_ids(function: Callable[..., Any]) -> bool:
    """Returns whether anybody's attribution, (model, images, labels) -> maps, has a parameter for `ids` as well."""
    try:
        return "ids" in inspect.signature(function).parameters
    except ValueError:  # a builtin that does not say
        return False


def explained(
    engine: Engine, attribution: Explain, images: Tensor, labels: Tensor, ids: Sequence[str] | None = None, *,
    front: nn.Module | None = None,
) -> Tensor:  # fmt: skip
    """Returns the maps of anybody's attribution (N, H, W) or (N, C, H, W), on the pictures' device.

    gradspec's own get the engine. Others get the network itself, in eval mode and with gradients, `FOREIGN` pictures at
    a time and `ids` if they take them; the network's passes are counted, and its parameters' `.grad` left alone.

    Args:
        engine: Of the network.
        attribution: An `Attribution`, or (model, images, labels) -> maps, a tensor or an array.
        images: x (N, C, H, W), as the network expects them.
        labels: y (N,), the classes to be explained, int64.
        ids: A name for each picture, of which random numbers are made; None: a hash of the picture.
        front: A module (N, C, H, W) -> (N, C, H, W) to be put in front of the network that the attribution is given.

    Raises:
        TypeError, ValueError: For pictures, labels and ids that do not fit, and for maps that do not fit the pictures.
    """
    if isinstance(attribution, Attribution) and front is None:
        return attribution(engine, images, labels, ids=ids)
    check_images(images)
    labels = torch.as_tensor(labels)
    check_labels(labels, len(images))
    model = engine.model if front is None else _Behind(front, engine.model)
    names, found = names_of(images, ids) if takes_ids(attribution) else None, []
    with engine.running(model, gradients=True), _counted(engine), _parameters_kept(model):
        for start in range(0, len(images), FOREIGN):
            part = slice(start, start + FOREIGN)
            x = to_weights(model, images[part].detach()).clone()  # theirs to write into
            named = {} if names is None else {"ids": names[part]}
            maps = attribution(model, x, labels[part].to(x.device).long().clone(), **named)
            found.append(checked_maps(maps, x, reduce=False).to(images.device))
    return torch.cat(found)


class _Behind(nn.Sequential):
    """A network behind another module, with the network's attributes: its layers by name, the units of its pictures."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("1")  # not there yet while it is made or copied
            if network is None:
                raise
            return getattr(network, name)


@contextmanager
def _counted(engine: Engine) -> Iterator[None]:
    """Lets the engine count the passes that anybody makes through its network."""

    def drawn(gradient: Tensor) -> None:
        engine.backwards += len(gradient)

    def passed(module: nn.Module, args: Any, output: Any) -> None:
        logits = next(tensors_of(output), None)
        if logits is not None and logits.ndim:
            engine.forwards += len(logits)
            if logits.requires_grad:
                logits.register_hook(drawn)

    handle = engine.model.register_forward_hook(passed)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """Gives every parameter its own `.grad` back: some libraries zero it and run a backward pass into it."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def checked_maps(maps: Maps, images: Tensor, *, reduce: bool = True) -> Tensor:
    """Returns maps as a floating tensor, (N, H, W) where `reduce`, as they fit the pictures.

    Raises:
        TypeError: For anything but floating-point tensors and arrays.
        ValueError: For maps of another number or size than the pictures (N, C, H, W).
    """
    if not isinstance(maps, (Tensor, np.ndarray)):
        raise TypeError(f"Expected maps as a tensor or an array (N, H, W) or (N, C, H, W), got {type(maps).__name__}.")
    floating = maps.is_floating_point() if isinstance(maps, Tensor) else maps.dtype in (np.float16, np.float32, float)
    if not floating:
        raise TypeError(f"Expected floating-point maps, got {maps.dtype}; convert them to float32.")
    # a copy of an array, which may be read-only or reversed
    found = maps.detach() if isinstance(maps, Tensor) else torch.from_numpy(np.array(maps, order="C"))
    n, height, width = len(images), *images.shape[-2:]
    if found.ndim not in (3, 4) or found.numel() == 0 or (len(found), *found.shape[-2:]) != (n, height, width):
        raise ValueError(
            f"Expected maps ({n}, {height}, {width}) or ({n}, C, {height}, {width}), as the pictures are, "
            f"got shape {tuple(found.shape)}."
        )
    found = found.float() if found.dtype in (torch.float16, torch.bfloat16) else found
    return found.mean(1) if reduce and found.ndim == 4 else found


def reduced(maps: Tensor, channels: Channels) -> Tensor:
    """Returns maps (N, C, H, W) as they are, or their mean over channels (N, H, W)."""
    return maps.mean(1) if channels == "mean" else maps


def enlarged(maps: Tensor, height: int, width: int, resize: Resize) -> Tensor:
    """Returns maps (N, h, w) at the size of the pictures (N, H, W), half-pixel centres.

    Args:
        maps: Of a layer's or a grid's cells.
        height: H in pixels.
        width: W in pixels.
        resize: "bilinear"; "bicubic" with a = -3/4 (torch's, OpenCV's: Xplique to 1.3.0); "keys", bicubic with
            a = -1/2 (TensorFlow's: Xplique from 1.3.1).
    """
    return interpolate(maps[:, None], (height, width), **_RESIZES[resize])[:, 0]


def check_resize(resize: Resize) -> None:
    """Raises ValueError for another kernel."""
    if resize not in _RESIZES:
        raise ValueError(f"Expected resize 'bilinear', 'bicubic' or 'keys', got {resize!r}.")


def check_channels(channels: Channels) -> None:
    """Raises ValueError unless channels are averaged or kept."""
    if channels not in ("mean", "keep"):
        raise ValueError(f"Expected channels 'mean' or 'keep', got {channels!r}.")

"""What a loaded network says about itself: attributes for its input and classes, and a spec of plain JSON."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

ATTRIBUTES = ("mean", "std", "preprocess", "classes", "wnids", "spec")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network and what its source says about it; `facts` are entries of spec."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: list[str] | None
    wnids: list[str] | None
    facts: dict[str, Any]


def describe(loaded: Loaded, facts: dict[str, Any]) -> nn.Module:
    """Returns the network in eval mode with the six attributes; one that it has already stays as it is.

    A network's own `mean`, say the buffer of one that normalises itself, is part of how it works; then spec names it
    under `own_attributes`, and `gradspec.images.described` finds ours.
    """
    model = loaded.model.eval()
    spec: dict[str, Any] = {
        **facts,
        **loaded.facts,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mean": loaded.mean and list(loaded.mean),
        "std": loaded.std and list(loaded.std),
        "classes": loaded.classes and len(loaded.classes),
        "versions": _versions(),
    }
    ours = {name: spec if name == "spec" else getattr(loaded, name) for name in ATTRIBUTES}
    own = [name for name in ATTRIBUTES if hasattr(model, name) and not _same(getattr(model, name), ours[name])]
    if own:
        spec["own_attributes"] = own
    for name, value in ours.items():
        if not hasattr(model, name):
            setattr(model, name, value)
    model.__dict__["_gradspec"] = ours
    return model


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and bool(one == other)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("gradspec", "torch", "torchvision", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def imagenet(subset: str = "imagenet-1k") -> tuple[list[str], list[str]]:
    """Returns the names, as `tench, Tinca tinca`, and WordNet ids of ImageNet's classes, as timm ships them."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    return list(info.label_descriptions()), list(info.label_names())


def outputs(model: nn.Module, sample: Tensor) -> int | None:
    """Returns how many logits the network gives for an input (C, H, W), None where it does not take it."""
    try:
        with torch.no_grad():
            logits = model.eval()(sample[None])
    except (Exception, SystemExit):  # a network for another size or another call: its classes stay unknown
        return None
    logits = getattr(logits, "logits", logits)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else None

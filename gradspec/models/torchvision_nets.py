"""torchvision's classifiers, with the preprocessing and classes of their weights' entry."""

from __future__ import annotations

import difflib
import functools
import warnings
from typing import Any

from torch import nn

from gradspec.images.preprocessing import Preprocess, Transform

from .description import Loaded, imagenet
from .weights import UnknownModelError, check_reachable, existing, sha256, torch_file, unavailable, with_weights


def names() -> list[str]:
    """Returns the names of torchvision's classifiers."""
    from torchvision import models

    return models.list_models(module=models)  # detection, video, ... live in modules below


def load(name: str, weights: str) -> Loaded:
    """Returns torchvision's `name`; weights `default`, `none`, an entry of its enum, or a file."""
    from torchvision import models

    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=5) or names()[:5]
        raise UnknownModelError(f"torchvision has no classifier {name!r}; nearest: {', '.join(near)}.")
    entries: Any = models.get_model_weights(name)
    entry = entries.__members__.get("DEFAULT" if weights == "default" else weights.rpartition(".")[2])
    if weights == "none":
        return _described(_untrained(name), entries.DEFAULT, {})
    if entry is not None:
        model = _trained(name, entry)
        return _described(model, entry, {"weights": entry.name, "weights_sha256": sha256(torch_file(entry.url) or "")})
    path = existing(weights, f"'default', 'none' or one of {', '.join(entries.__members__)}")
    model, classes = with_weights(path, functools.partial(_untrained, name))
    return _described(model, entries.DEFAULT, {"weights_sha256": sha256(path)}, known=classes is None)


def _untrained(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception_v3 announce a new initialisation
        return models.get_model(name, weights=None, **options)


def _trained(name: str, entry: Any) -> nn.Module:
    from torchvision import models

    if torch_file(entry.url) is None:
        check_reachable(f"torchvision:{name}", entry.url)
    try:
        # Downloaded and read safely first: get_model then reads the same file, but as an ordinary pickle.
        entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unavailable(f"torchvision:{name}", entry.url, error) from error
    return models.get_model(name, weights=entry, progress=False)


def _described(model: nn.Module, entry: Any, facts: dict[str, Any], *, known: bool = True) -> Loaded:
    transform = entry.transforms()
    classes = list(entry.meta["categories"]) if known else None
    side, resized = transform.crop_size[0], transform.resize_size[0]
    facts = facts | {
        "input_size": [3, side, side],
        "crop": {"resize_size": resized, "crop_size": side},
        "interpolation": transform.interpolation.value,
        "preprocess": f"torchvision's for {entry}",
    }
    preprocess = Preprocess(functools.partial(_transform, entry))
    wnids = imagenet()[1] if classes and len(classes) == 1000 else None  # all these entries are ImageNet-1k's
    return Loaded(model, preprocess, tuple(transform.mean), tuple(transform.std), classes, wnids, facts)


def _transform(entry: Any, size: int | None) -> Transform:
    transform = entry.transforms()
    if size is None:
        return transform
    resize_size = round(size * transform.resize_size[0] / transform.crop_size[0])
    return entry.transforms(crop_size=size, resize_size=resize_size)

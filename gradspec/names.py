"""Attributions, metrics and classes by the names that a user writes, and what an attribution is called and set to."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from gradspec import attributions, metrics
from gradspec.attributions import Attribution
from gradspec.forgrad import FORGrad
from gradspec.images import described
from gradspec.images.labels import ClassIndex
from gradspec.metrics import Metric

_NEED_MASKS = ("PointingGame", "RelevanceMass")  # no folder of pictures holds them


def word_of(name: str) -> str:
    """Returns a method's name as a word: "Grad-CAM++" and GradCAMPlusPlus are gradcamplusplus."""
    return "".join(filter(str.isalnum, name.casefold().replace("+", "plus")))


def method_types() -> dict[str, type[Attribution]]:
    """Returns the attributions of `gradspec.attributions` by word."""
    found = [getattr(attributions, name) for name in sorted(attributions.__all__)]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Attribution)]
    return {word_of(kind.__name__): kind for kind in kinds if kind is not Attribution}


def method_named(name: str) -> type[Attribution]:
    """Returns the attribution of a name, whatever its case and punctuation.

    Raises:
        ValueError: There is none; the nearest are listed.

    Example:
        >>> method_named("integrated-gradients").__name__
        'IntegratedGradients'
    """
    methods = method_types()
    if word_of(name) in methods:
        return methods[word_of(name)]
    near = difflib.get_close_matches(word_of(name), methods, 3, 0.5)
    nearest = f" (nearest: {', '.join(methods[word].__name__ for word in near)})" if near else ""
    names = ", ".join(kind.__name__ for kind in methods.values())
    raise ValueError(f"No method is called {name!r}{nearest}; there are: {names}.")


def class_named(model: nn.Module, label: str) -> int:
    """Returns the index of a class that is named by index, name or WordNet id.

    Raises:
        ValueError: The model has no such class; the nearest names are listed.
    """
    classes = described(model, "classes")
    if re.fullmatch(r"[+-]?\d+", label):
        if int(label) < 0 or (classes and int(label) >= len(classes)):
            allowed = f"0 to {len(classes) - 1}" if classes else "0 or more"
            raise ValueError(f"Expected a class index from {allowed}, got {label}.")
        return int(label)
    if not classes:
        raise ValueError(f"The model's classes have no names: give an index, not {label!r}.")
    found = ClassIndex(classes, described(model, "wnids")).find(label)
    if found is None:
        names = dict.fromkeys(part.strip().casefold() for name in classes for part in name.split(","))
        near = difflib.get_close_matches(label.casefold(), names, 3, 0.4)
        raise ValueError(f"No class of the model is called {label!r}; nearest: {'; '.join(near) or 'none'}.")
    return found


def metric_named(name: str) -> type[Metric]:
    """Returns the metric of a name, whatever its case and punctuation; those that need masks of objects are left out.

    Raises:
        ValueError: There is none; all are listed.

    Example:
        >>> metric_named("mu-fidelity").__name__
        'MuFidelity'
    """
    found = [getattr(metrics, each) for each in sorted(metrics.__all__) if each not in _NEED_MASKS]
    kinds = {word_of(kind.__name__): kind for kind in found if isinstance(kind, type) and issubclass(kind, Metric)}
    kinds.pop(word_of(Metric.__name__))
    if word_of(name) not in kinds:
        raise ValueError(
            f"No metric is called {name!r}; there are: {', '.join(kind.__name__ for kind in kinds.values())}."
        )
    return kinds[word_of(name)]


def called(attribution: Any) -> str:
    """Returns what a figure calls an attribution: its name, after FORGrad with the cutoff in cycles/image.

    Example:
        >>> called(attributions.Saliency()), called(FORGrad(attributions.Saliency(), 12.0, "gradient"))
        ('Saliency', 'Saliency, gradient σ 12')
    """
    if not isinstance(attribution, FORGrad):
        return type(attribution).__name__
    of = "gradient " if attribution.where == "gradient" else ""
    how = "no filter" if attribution.cutoff is None else f"{of}σ {attribution.cutoff:.4g}"
    return f"{called(attribution.attribution)}, {how}"


def settings_of(attribution: Any) -> dict[str, Any]:
    """Returns an attribution's name and settings as plain JSON.

    Example:
        >>> settings_of(attributions.Saliency())
        {'name': 'Saliency', 'target': 'label_logit'}
    """
    named = {each.name: getattr(attribution, each.name) for each in fields(attribution) if each.repr}
    return {"name": type(attribution).__name__} | {name: _plain(value) for name, value in named.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Attribution) and is_dataclass(value):
        return settings_of(value)
    return getattr(value, "__name__", None) or repr(value)

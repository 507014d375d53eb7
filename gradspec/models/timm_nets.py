"""timm's models by registered name, from the Hugging Face hub or a local folder, with their own data config."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

import torch

from gradspec.images.preprocessing import Preprocess, Transform

from . import torchvision_nets
from .description import Loaded, imagenet
from .weights import (
    HUB_FILES,
    ModelError,
    UnknownModelError,
    WeightsUnavailable,
    check_reachable,
    existing,
    hub_file,
    sha256,
    torch_file,
    unavailable,
    with_weights,
)


def names() -> list[str]:
    """Returns timm's classifiers: names with tags of those that have weights, names alone of the others."""
    import timm

    def classifies(name: str) -> bool:
        config = timm.models.get_pretrained_cfg(name)
        return not config or bool(config.num_classes)

    tagged = timm.list_models(pretrained=True)
    bare = set(timm.list_models()) - {name.partition(".")[0] for name in tagged}
    return sorted(name for name in {*tagged, *bare} if classifies(name))


def load(name: str, weights: str) -> Loaded:
    """Returns timm's `name` (or `hf-hub:...`, `local-dir:...`); weights `default`, `none`, a tag, or a file."""
    import timm

    architecture, _, tag = name.partition(".")
    if ":" not in name:
        _check_name(name, architecture, tag)
        if timm.is_model_pretrained(f"{architecture}.{weights}"):
            name, weights = f"{architecture}.{weights}", "default"
    if weights == "none":
        model, build = _untrained(name)
        return _described(model, {"build": build})
    if weights == "default":
        model, path = _trained(name)
        tag = model.pretrained_cfg.get("tag") or "default"
        return _described(model, {"weights": tag, "weights_sha256": path and sha256(path)})
    path = existing(weights, f"'default', 'none' or a tag of {architecture}")
    model, _ = with_weights(path, functools.partial(_create, name))
    return _described(model, {"weights_sha256": sha256(path)})


def _check_name(name: str, architecture: str, tag: str) -> None:
    import timm

    if not timm.is_model(architecture):
        others = [f"torchvision:{other}" for other in torchvision_nets.names()]
        if f"torchvision:{architecture}" in others:
            raise UnknownModelError(f"timm has no model {name!r}, but torchvision has: torchvision:{architecture}.")
        near = difflib.get_close_matches(architecture.lower(), timm.list_models() + others, n=5)
        hint = f"nearest: {', '.join(near)}" if near else "`gradspec models` lists the names"
        raise UnknownModelError(f"There is no model {name!r}; {hint}.")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise UnknownModelError(f"timm has no {name!r}; of {architecture} there are: {', '.join(tags) or 'no tags'}.")


def _untrained(name: str) -> tuple[Any, dict[str, Any]]:
    """A fresh model and the options of its build.

    With timm's default, the last normalisation of each residual branch starts at 0, and nearly every convolution of
    an untrained ResNet has a zero gradient.
    """
    state = torch.get_rng_state()
    try:
        return _create(name, zero_init_last=False), {"zero_init_last": False}
    except TypeError as error:
        if "zero_init_last" not in str(error):
            raise
    torch.set_rng_state(state)  # ViTamin has drawn its stem before it refuses
    return _create(name), {}


def _trained(name: str) -> tuple[Any, str | None]:
    """The model with its published weights, and their file where it is known."""
    import timm

    if ":" in name:
        model = _create(name, pretrained=True)
        return model, _remote_file(name)
    config = timm.models.get_pretrained_cfg(name)  # None: a former name, which timm translates itself
    if config and not (config.hf_hub_id or config.url):
        raise WeightsUnavailable(
            f"timm publishes no weights for {name}: pass weights='none' for an untrained network or weights=PATH "
            "(on the command line: --weights none or --weights PATH)."
        )
    url, path = _address(config), _cached(config)
    if path is None:
        check_reachable(name, url)
    # A file in the cache is named: asked for by its hub id, the hub is called first, also offline, with long retries.
    overlay = {"file": path} if path and not url else None
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise unavailable(name, url, error) from error
    return model, path or _cached(config)


def _cached(config: Any) -> str | None:
    if url := _address(config):
        return torch_file(url)
    return config and hub_file(config.hf_hub_id, *([config.hf_hub_filename] if config.hf_hub_filename else HUB_FILES))


def _address(config: Any) -> str | None:
    """Where weights lie that are not on the hub."""
    if not config or config.hf_hub_id:
        return None
    return config.url[0] if isinstance(config.url, tuple) else config.url  # a tuple also names the file


def _create(name: str, **options: Any) -> Any:
    """timm's model; one from a hub or folder comes with its description from there."""
    import timm

    source, _, rest = name.partition(":")
    if source in ("hf-hub", "hf_hub"):
        return _create_from_hub(name, rest, options)
    if source == "local-dir" and not Path(rest, "config.json").is_file():
        raise ModelError(f"{name}: the folder has no config.json; timm.models.save_for_hf writes such folders.")
    return timm.create_model(name, **options)


def _create_from_hub(name: str, repository: str, options: dict[str, Any]) -> Any:
    """From the cache where the files are there: the hub's client would call the hub first."""
    import timm

    config = hub_file(repository, "config.json")
    if config and (not options.get("pretrained") or hub_file(repository, *HUB_FILES)):
        return timm.create_model(f"local-dir:{Path(config).parent}", **options)
    try:
        check_reachable(name, None)
        return timm.create_model(name, **options)
    except TypeError:  # of an option
        raise
    except Exception as error:
        if options.get("pretrained"):
            if isinstance(error, WeightsUnavailable):
                raise
            raise unavailable(name, None, error) from error
        raise WeightsUnavailable(
            f"The description of {name}, its config.json, is not on this machine and could not be downloaded: point "
            "HF_HOME to a cache that holds it, or name the network as timm does."
        ) from error


def _remote_file(name: str) -> str | None:
    source, _, rest = name.partition(":")
    if source != "local-dir":
        return hub_file(rest, *HUB_FILES)
    files = (Path(rest, file) for file in HUB_FILES)
    return next((str(file) for file in files if file.is_file()), None)


def _described(model: Any, facts: dict[str, Any]) -> Loaded:
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    classes, wnids = _classes(model)
    facts = facts | {
        "input_size": list(config["input_size"]),
        "crop": {"crop_pct": config["crop_pct"], "crop_mode": config["crop_mode"]},
        "interpolation": config["interpolation"],
        "preprocess": "timm's data config",
    }
    preprocess = Preprocess(functools.partial(_transform, config))
    return Loaded(model, preprocess, tuple(config["mean"]), tuple(config["std"]), classes, wnids, facts)


def _transform(config: dict[str, Any], size: int | None) -> Transform:
    from timm.data.transforms_factory import create_transform

    if size is not None:
        config = config | {"input_size": (config["input_size"][0], size, size)}
    transform: Any = create_transform(**config, is_training=False)
    return transform


def _classes(model: Any) -> tuple[list[str] | None, list[str] | None]:
    """Names and WordNet ids: those published with the weights, else of the ImageNet with so many classes."""
    from timm.data.imagenet_info import infer_imagenet_subset

    labels, texts = (model.pretrained_cfg.get(key) for key in ("label_names", "label_descriptions"))
    if labels and len(labels) == model.num_classes:
        wnids = list(labels) if all(re.fullmatch(r"n\d{8}", label) for label in labels) else None
        return [(texts or {}).get(label, label) for label in labels], wnids
    subset = infer_imagenet_subset({"num_classes": model.num_classes})
    return imagenet(subset) if subset else (None, None)

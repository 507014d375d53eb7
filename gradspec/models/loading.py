"""Networks by name: from timm, torchvision, a Python file or module, or the embedded ones."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import factories, timm_nets, torchvision_nets
from .description import Loaded, describe
from .weights import SUFFIXES, ModelError, UnknownModelError, existing, sha256, with_weights


def load_model(
    spec: str | os.PathLike[str], weights: str | os.PathLike[str] | None = "default", *, seed: int = 0
) -> nn.Module:
    """Returns the network that `spec` names, in eval mode, on the CPU, described by attributes.

    | `spec` | network |
    |---|---|
    | `resnet50.a1_in1k`, `timm:resnet50`, `hf-hub:org/name`, `local-dir:folder` | timm's |
    | `torchvision:resnet50` | torchvision's classifier |
    | `path/file.py:factory`, `package.module:factory` | what that function or class returns; alone: `load` |
    | `demo:vgg_max` | embedded, trained on generated pictures |

    A factory with a required argument gets the path of the weights; where none is given, the only weights' file beside
    it with its own stem. A `preprocess` beside the factory, tensor (N, 3, H, W) of 0..1 to network input, is used, and
    mean and std come from its values at 0 and 1; without one: ImageNet's mean and std at 224 pixels. Names of classes:
    the list `CLASSES` or `classes` beside the factory, ImageNet's for 1000 outputs, else None. Nothing but the file
    or module that is named is executed: weights are safetensors or plain tensors, never other pickles.

    Args:
        spec: Which network, as above.
        weights: `default` (pretrained; for a factory, what it builds), `none` (untrained, drawn from `seed`; timm's
            residual branches do not start at zero, else most gradients would), the name of one of torchvision's
            weights or of timm's tags, or a file. A file for another number of classes gets a fitting head.
        seed: Seed of untrained weights. The global generator stays as it is.

    Returns:
        The network itself with `.mean`, `.std` (a float per channel, of pixels in 0..1; None where unknown),
        `.preprocess` (PIL image -> (C, H, W)), `.classes` (names or None), `.wnids` (WordNet ids or None) and `.spec`
        (plain JSON: source, weights and their SHA-256, parameters, input size, crop, seed, versions). A name that the
        network uses itself stays its own.

    Raises:
        UnknownModelError: There is no such name; the nearest are listed.
        ModelError: A file, factory or weights that cannot be used.
        WeightsUnavailable: Pretrained weights are not on this machine and their host does not answer.

    Example:
        >>> net = load_model("timm:test_resnet", weights="none", seed=1)
        >>> net.mean, net.spec["input_size"], net.wnids[0]
        ((0.5, 0.5, 0.5), [3, 160, 160], 'n01440764')
    """
    spec, weights = os.fspath(spec), "none" if weights is None else os.fspath(weights)
    source, name = _parsed(spec)
    loaders = {"timm": timm_nets.load, "torchvision": torchvision_nets.load, "demo": _demo}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        loaded = loaders.get(source, factories.load)(name, weights)
    facts = {"spec": spec, "source": source, "weights": weights, "weights_sha256": None, "seed": seed}
    return describe(loaded, facts)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the classifiers that `load_model` takes: embedded, torchvision's, timm's, in this order.

    Args:
        pattern: A name, or a pattern with `*` and `?`; a prefix like `torchvision:` and timm's `.tag` may be left out.

    Example:
        >>> list_models("resnet18")[0], list_models("torchvision:vgg1?")
        ('torchvision:resnet18', ['torchvision:vgg11', 'torchvision:vgg13', 'torchvision:vgg16', 'torchvision:vgg19'])
    """
    from gradspec import demo

    names = [f"demo:{name}" for name in demo.names()]
    names += [f"torchvision:{name}" for name in torchvision_nets.names()] + timm_nets.names()

    def fits(name: str) -> bool:
        bare = name.rpartition(":")[2]
        return any(fnmatch.fnmatchcase(form, pattern) for form in (name, bare, bare.partition(".")[0]))

    return [name for name in names if fits(name)]


def _parsed(spec: str) -> tuple[str, str]:
    """The source and the name within it."""
    if re.search(r"\.py(:[\w.]*)?$", spec):
        return "file", spec
    prefix, _, name = spec.partition(":")
    if prefix in ("timm", "torchvision", "demo") and name:
        return prefix, name
    if prefix in ("hf-hub", "hf_hub", "local-dir") and name:
        return "timm", spec
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        return "module", spec
    if Path(spec).suffix in SUFFIXES:
        raise ModelError(f"{spec} is a weights' file: name the network and pass the file as weights.")
    if not re.fullmatch(r"[\w.-]+", spec):
        raise ModelError(
            f"{spec!r} names no network: expected a timm name, torchvision:NAME, demo:NAME, hf-hub:ORG/NAME, "
            "path/file.py:factory or package.module:factory."
        )
    return "timm", spec


def _demo(name: str, weights: str) -> Loaded:
    """An embedded network, which knows its own preprocessing and classes."""
    from gradspec import demo

    if name not in demo.BUILDERS:
        raise UnknownModelError(f"No embedded network is called {name!r}; there are: {', '.join(demo.BUILDERS)}.")
    facts: dict[str, Any] = {"preprocess": "the network's own"}
    if weights == "default":
        model = demo.load(name)
        facts["weights_sha256"] = sha256(Path(demo.__file__).parent / "weights" / f"{name}.safetensors")
    elif weights == "none":
        model = demo.BUILDERS[name]()
    else:
        path = existing(weights, "'default' or 'none'")
        model = with_weights(path, demo.BUILDERS[name], resize=False)[0]
        facts["weights_sha256"] = sha256(path)
    training = vars(model).pop("spec", {})  # ours takes its place and keeps the size, which its preprocess looks up
    size = training.get("size", 64)
    facts |= {"training": training, "size": size, "input_size": [3, size, size]}
    own: Any = model  # for pyright, any attribute of a module may be a tensor
    return Loaded(model, own.preprocess, own.mean, own.std, own.classes, None, facts)

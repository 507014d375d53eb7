"""Fresh weights for a network: a new build by its own factory where one is known, else by resets (SPEC §3)."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradspec.models import ModelError, WeightsUnavailable, load_model
from gradspec.surgery.resets import Drawn, reset, seeded, stops_gradients, tensors

BUILT = "fresh build"

_Build = Callable[[], nn.Module]


def fresh_weights(model: nn.Module, seed: int) -> Drawn:
    """Returns new values for a network's parameters and persistent buffers, and how each came about.

    Asked first, of the network and then of the networks in it, is the factory: what `load_model` says about a network
    of timm, torchvision or gradspec.demo; else timm's registered architecture, torchvision's builder, or the
    configuration of a Hugging Face model, if a fresh build has the same tensors, by name and shape. Where timm offers
    it, residual branches do not start at zero. A factory in a file is not called again, since it may load weights.
    Everything else is drawn by `reset`, and so are factors that the build starts at zero (torchvision's ViT its whole
    head, timm's norm-free networks their branches): behind them there would be no gradient.
    """
    built, notes = _built(model, seed)
    own = tensors(model)
    fitting = {id(own[name]): value for name, value in built.items() if name in own and _fits(value, own[name])}
    values = {name: fitting[id(value)] for name, value in own.items() if id(value) in fitting}  # under all its names
    stops = [name for name, value in values.items() if _stops(model, name, value)]
    for name in stops:
        del values[name]
    rest = {name for name, value in own.items() if isinstance(value, nn.Parameter) and name not in values}
    if stops:
        notes.append(f"Started at zero by the build, which stops gradients, so drawn otherwise: {_listed(stops)}.")
    if len(rest) > len(stops):
        what = f"{len(rest) - len(stops)} of {len(own)} tensors" if values else "the network"
        notes.append(f"No factory is known that builds {what}: drawn by each module's own reset, else by a rule.")
    others = reset(model, seed) if rest else Drawn()
    more = {name: value for name, value in others.values.items() if name not in values}
    how = dict.fromkeys(values, BUILT) | {name: others.how[name] for name in more}
    left = {name: reason for name, reason in others.left.items() if name not in values}
    return Drawn(values | more, how, left, tuple(notes))


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _stops(model: nn.Module, name: str, value: Tensor) -> bool:
    path, _, last = name.rpartition(".")
    return stops_gradients(model.get_submodule(path), last, value)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


# ---- factories ---------------------------------------------------------------------------------


def _built(model: nn.Module, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of fresh builds, by their names in the network, and a note on each."""
    values: dict[str, Tensor] = {}
    notes: list[str] = []
    done: list[str] = []
    for path, module in model.named_modules():
        if any(path == d or path.startswith(f"{d}.") or not d for d in done):
            continue
        found = _fresh(module, seed, notes)
        if found is not None:
            words, part = found
            done.append(path)
            notes.append(f"{f'{path}: built' if path else 'Built'} anew by {words}.")
            values |= {f"{path}.{name}" if path else name: value for name, value in part.items()}
    return values, notes


def _fresh(module: nn.Module, seed: int, notes: list[str]) -> tuple[str, dict[str, Tensor]] | None:
    """The fresh build that has all the module's tensors; else what the named factory of the module has of them."""
    partial = None
    for words, build in _builds(module, seed):
        found = _call(build, seed, words, notes)
        own, shapes = ({name: value.shape for name, value in held.items()} for held in (tensors(module), found))
        if found and own == shapes:
            return words, found
        named = words.startswith("load_model")
        if named and own.items() <= shapes.items():  # auxiliary heads, which trained networks have not
            return words, found
        if named and own.items() & shapes.items():
            partial = words, found
    return partial


def _call(build: _Build, seed: int, words: str, notes: list[str]) -> dict[str, Tensor]:
    """The tensors of a build, on the CPU; none where it fails."""
    try:
        with seeded(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an initialisation that will change, of names that moved
            return {name: value.detach() for name, value in tensors(build()).items()}
    except (ModelError, WeightsUnavailable) as error:
        notes.append(f"{words} failed: {error}")
    except Exception:  # an architecture or option that this version does not know
        pass
    return {}


def _builds(module: nn.Module, seed: int) -> Iterator[tuple[str, _Build]]:
    """What may build the module untrained, in words and as a function."""
    if name := _loaded_as(module):
        yield f"load_model({name!r}, 'none', seed={seed})", functools.partial(load_model, name, "none", seed=seed)
    yield from _timm_builds(module)
    yield from _torchvision_builds(module)
    from_config = getattr(type(module), "_from_config", None)
    if from_config is not None and hasattr(module, "config"):
        yield f"{type(module).__name__}'s configuration", functools.partial(from_config, copy.deepcopy(module.config))


def _loaded_as(module: nn.Module) -> str | None:
    """The name by which `load_model` finds the network untrained."""
    from gradspec.demo import BUILDERS, DemoNet

    spec = module.__dict__.get("_gradspec", {}).get("spec", {})
    if spec.get("source") in ("timm", "torchvision", "demo"):
        return spec["spec"]
    if isinstance(module, DemoNet) and module.spec.get("name") in BUILDERS:
        return f"demo:{module.spec['name']}"
    return None


def _timm_builds(module: nn.Module) -> Iterator[tuple[str, _Build]]:
    config: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    if not name or not isinstance(getattr(module, "num_classes", None), int):
        return
    import timm

    base = {"num_classes": module.num_classes, "in_chans": getattr(module, "in_chans", None) or 3}
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    for options in ([base | {"img_size": size}] if size else []) + [base]:
        for start in ({"zero_init_last": False}, {}):
            build = functools.partial(timm.create_model, name, **options, **start)
            yield f"timm.create_model({name!r}{', zero_init_last=False' if start else ''})", build


def _torchvision_builds(module: nn.Module) -> Iterator[tuple[str, _Build]]:
    """The one registered builder whose network has this class and these tensors, told on the meta device."""
    parameters = list(module.parameters())
    if not type(module).__module__.startswith("torchvision.models.") or not parameters:
        return
    from torchvision import models

    classes = {cls.__name__ for cls in type(module).__mro__}
    own = {name: value.shape for name, value in tensors(module).items()}
    found = []
    for name in models.list_models(module=models):
        builder = models.get_model_builder(name)
        if getattr(inspect.signature(builder).return_annotation, "__name__", None) not in classes:
            continue
        make = functools.partial(builder, weights=None, num_classes=len(parameters[-1]))
        builds = (make, functools.partial(make, aux_logits=False))  # some builders take any option
        found += [(f"torchvision.models.{name}()", build) for build in builds if _shapes(build) == own][:1]
    if len(found) == 1:
        yield from found


def _shapes(build: _Build) -> dict[str, torch.Size] | None:
    """Names and shapes of a build's tensors, without the cost of their values."""
    try:
        with seeded(0), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: value.shape for name, value in tensors(build()).items()}
    except Exception:  # an option it does not have, or numbers read while it is built
        return None

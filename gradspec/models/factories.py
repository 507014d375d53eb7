"""Networks made by a function or class of the user's, in a file or an installed module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import operator
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import nn

from gradspec.images.preprocessing import CROP, IMAGENET_MEAN, IMAGENET_STD, SIZE, Foreign, foreign, plain

from .description import Loaded, imagenet, outputs
from .weights import SUFFIXES, ModelError, existing, sha256, with_weights

_LONGEST = 300  # letters of an error's text: some print a whole tensor
_LIBRARIES = (*{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}, str(Path(__file__).parents[1]))
_WEIGHTS_ARGUMENTS = ("weights", "path", "weights_path", "checkpoint", "checkpoint_path", "ckpt", "file")


def load(spec: str, weights: str) -> Loaded:
    """Returns the network of `path/file.py:factory` or `package.module:factory`; weights: default, none or a file."""
    place, _, name = spec.rpartition(":") if re.search(r":[\w.]*$", spec) else (spec, "", "")
    folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
    with _importable(folder):
        module = _from_file(Path(place)) if place.endswith(".py") else _import(place, place)
        factory = _factory(module, name, place)
        model, facts = _built(factory, spec, weights, Path(place) if place.endswith(".py") else _file_of(module))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned {type(model).__name__}: a factory returns a torch.nn.Module.")
    return _described(model, module, spec, facts)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets a model file import its neighbours, as a script would, and writes no __pycache__ beside it."""
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode


def _from_file(path: Path) -> ModuleType:
    """The module of a file, executed anew, under a name that meets no installed one."""
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.")
    name = f"_gradspec_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # a file that ends in .py
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(f"{path} cannot be imported", error, path) from error
    return module


def _import(name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failed(f"{shown} cannot be imported", error) from error


def _failed(what: str, error: BaseException, file: Path | None = None) -> ModelError:
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return ModelError(f"{what}: {type(error).__name__}{': ' if text else ''}{text}{_place(error, file)}")


def _place(error: BaseException, file: Path | None) -> str:
    """Where in the user's own code an error comes from, as ` (net.py, line 4)`: in `file`, else outside libraries."""
    if isinstance(error, SyntaxError):  # its text says so
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file and Path(frame.filename).resolve() == file.resolve()]
    own = own or [frame for frame in frames if not frame.filename.startswith(("<", *_LIBRARIES))]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _file_of(module: ModuleType) -> Path | None:
    return Path(module.__file__) if module.__file__ else None


def _factory(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    with contextlib.suppress(AttributeError):
        factory = operator.attrgetter(name or "load")(module)
        if callable(factory):
            return factory
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
    ]
    there = f"it has: {', '.join(own[:8])}" if own else "it has none"
    wanted = f"no function or class {name!r}" if name else "no function load"
    raise ModelError(f"{place} has {wanted}; write {place}:NAME for another ({there}).")


def _built(factory: Callable[..., Any], spec: str, weights: str, file: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network and what spec says about its weights."""
    arguments = _arguments(factory)
    required = [name for name, argument in arguments.items() if argument.default is argument.empty]
    optional = next((name for name in _WEIGHTS_ARGUMENTS if name in arguments), None)
    if len(required) > 1:
        raise ModelError(
            f"{spec} needs {len(required)} arguments ({', '.join(required)}): a factory may have one, the path of the "
            "weights; wrap it in a function that gives the others."
        )
    if required and weights == "none":
        raise ModelError(f"{spec} needs a weights' file, so weights='none' is impossible: name a factory without one.")
    if weights in ("none", "default") and not required:
        options = {"pretrained": False} if "pretrained" in arguments else {}
        options |= {optional: None} if optional else {}
        return _call(factory, spec, file, **(options if weights == "none" else {})), {"weights": weights}
    path = _beside(file, spec) if weights == "default" else existing(weights, "'default' or 'none'")
    facts = {"weights": path, "weights_sha256": sha256(path)}
    if required and arguments[required[0]].kind is not inspect.Parameter.KEYWORD_ONLY:
        return _call(factory, spec, file, path), facts
    if argument := required[0] if required else optional:
        return _call(factory, spec, file, **{argument: path}), facts

    def build(**options: Any) -> nn.Module:
        return _call(factory, spec, file, **options)

    return with_weights(path, build, resize="num_classes" in arguments)[0], facts


def _arguments(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(factory).parameters
    except ValueError:  # a builtin without a signature
        return {}
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: argument for name, argument in found.items() if argument.kind not in many}


def _call(factory: Callable[..., Any], spec: str, file: Path | None, /, *arguments: Any, **options: Any) -> Any:
    try:
        return factory(*arguments, **options)
    except (Exception, SystemExit) as error:
        raise _failed(f"{spec} failed", error, file) from error


def _beside(file: Path | None, spec: str) -> str:
    """The one weights' file beside the module with its stem."""
    if file is None:
        raise ModelError(f"{spec} needs a weights' file: pass weights=PATH (on the command line: --weights PATH).")
    others = sorted(other for other in file.parent.iterdir() if other.suffix in SUFFIXES and other.is_file())
    found = [other for other in others if other.stem == file.stem]
    if len(found) == 1:
        return os.fspath(found[0])
    there = ", ".join(other.name for other in (found or others)[:5]) or "none"
    why = "several there have its name" if found else f"none beside it is called {file.stem}{SUFFIXES[0]}"
    raise ModelError(
        f"{spec} needs a weights' file and {why}: pass weights=PATH (on the command line: --weights PATH); "
        f"there: {there}."
    )


def _described(model: nn.Module, module: ModuleType, spec: str, facts: dict[str, Any]) -> Loaded:
    function = getattr(module, "preprocess", None)
    if function is None:
        found = Foreign(plain(IMAGENET_MEAN, IMAGENET_STD), IMAGENET_MEAN, IMAGENET_STD, "")
        facts["preprocess"] = f"none beside the factory: ImageNet's mean and std at {SIZE} pixels"
    else:
        found = _foreign(function, spec)
        facts["preprocess"] = f"{spec.rpartition(':')[0] or spec}:preprocess, takes {found.takes}"
    sample = found.preprocess(Image.new("RGB", (SIZE, SIZE)))
    crops = found.takes != "PIL image"
    facts |= {
        "input_size": list(sample.shape),
        "crop": {"resize_size": int(SIZE / CROP), "crop_size": SIZE} if crops else None,
        "interpolation": "bilinear" if crops else None,
    }
    classes, wnids = _classes(model, module, sample, spec)
    return Loaded(model, found.preprocess, found.mean, found.std, classes, wnids, facts)


def _foreign(function: Any, spec: str) -> Foreign:
    try:
        found = foreign(function)
    except ValueError as error:
        raise ModelError(f"The preprocess beside {spec} {error}.") from error
    if found.mean is None:
        warnings.warn(
            f"The preprocess beside {spec} is not (x - mean) / std per channel, so mean and std are unknown (None).",
            stacklevel=2,
        )
    return found


def _classes(
    model: nn.Module, module: ModuleType, sample: torch.Tensor, spec: str
) -> tuple[list[str] | None, list[str] | None]:
    """The list CLASSES or classes beside the factory; ImageNet's for 1000 outputs."""
    count = outputs(model, sample)
    listed = getattr(module, "CLASSES", None) or getattr(module, "classes", None)
    if isinstance(listed, (list, tuple)) and all(isinstance(name, str) for name in listed):
        if count not in (None, len(listed)):
            raise ModelError(f"{spec}: {len(listed)} class names beside the factory, but {count} outputs.")
        return list(listed), None
    return imagenet() if count == 1000 else (None, None)

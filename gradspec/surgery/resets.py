"""Weights drawn anew without a factory: what each module's own reset draws, and a rule for what no reset reaches."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

RESET = "its own reset"

_RESETS = ("reset_parameters", "_reset_parameters")  # the second: nn.MultiheadAttention, nn.Transformer
_GAINS = ("weight", "gamma", "scale", "gain", "alpha", "temperature")
_SHIFTS = ("bias", "beta", "shift")
_TOKENS = ("token", "embed", "pos", "query", "queries")
_LAYER_SCALES = ("init_values", "init_value", "layer_scale_init_value", "layer_scale_init")
_FACTORS = ("gamma", "gain", "skipinit_gain", "layer_scale")
_LAYERS = (nn.Linear, _ConvNd, _NormBase, nn.GroupNorm, nn.LayerNorm)
_POWER_ITERATIONS = 15  # torch's own number for a new spectral norm


@dataclass(frozen=True, eq=False)
class Drawn:
    """New values for a network's tensors.

    Attributes:
        values: By the tensor's name.
        how: In a few words, by the tensor's name.
        left: Parameters that keep their values: name -> reason.
        notes: What else the record shall say.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and persistent buffers by name; a shared one stands under each of its names."""
    stored = model.state_dict().keys()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return dict(model.named_parameters(remove_duplicate=False)) | {k: v for k, v in buffers.items() if k in stored}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU from a seed, whatever the default device, and leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        yield


def check_drawable(model: nn.Module) -> None:
    """Returns nothing; raises ValueError for weights that are no numbers of the network's own.

    Raises:
        ValueError: Lazy, meta or quantised weights, and those that a hook makes of others.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise ValueError(
                f"Expected weights with a shape, got the lazy {name!r}: run one batch through the network."
            )
        if value.is_meta:
            raise ValueError(f"Expected weights with values, got {name!r} on the meta device: load the weights first.")
    for name, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ValueError(f"Expected floating-point weights, but {name!r} is quantised: pass the network before it.")
        parameters = dict(module.named_parameters(recurse=False))
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and {f"{key}_orig", f"{key}_g"} & parameters.keys():
                raise ValueError(
                    f"Expected weights that are parameters, but a hook makes {name + '.' + key!r} of others: remove it "
                    "(torch.nn.utils.remove_spectral_norm, prune.remove) or use torch.nn.utils.parametrizations."
                )


def stops_gradients(module: nn.Module, name: str, value: Tensor) -> bool:
    """Returns whether a module's parameter is a zero by which all that passes is multiplied: a head, a branch's end."""
    return (name in _FACTORS or (name == "weight" and isinstance(module, _LAYERS))) and not value.any()


def reset(model: nn.Module, seed: int) -> Drawn:
    """Returns new values for all floating-point parameters, and for the buffers that the resets change.

    Modules with a `reset_parameters` draw by it, children before the modules that hold them, as constructors do.
    Parameters that no reset reaches (class token, position embedding, LayerScale), and factors that it makes zero, get

    | parameter | start |
    |---|---|
    | one axis, called a bias, beta or shift | 0 |
    | one axis, any other but tokens and embeddings | what its module calls `init_values`, else 1 |
    | two axes or more, called weight or kernel | uniform like `nn.Conv2d`'s: Kaiming's with a = √5 |
    | all others | normal, std 0.02 |

    All is drawn in float32 on the CPU, so that a seed means the same network in any precision and on any device.

    Args:
        model: Any network; untouched.
        seed: Of all numbers.
    """
    work = copy.deepcopy(model).cpu().float()
    given = {name: value.clone() for name, value in tensors(work).items() if not isinstance(value, nn.Parameter)}
    with seeded(seed), torch.no_grad():
        how = _draw(work)
    drawn = tensors(work)
    others = {name: value for name, value in drawn.items() if isinstance(value, nn.Parameter) and name not in how}
    left = {name: f"not floating-point but {value.dtype}: as given" for name, value in others.items()}
    values = {name: value.detach() for name, value in drawn.items() if name in how}
    changed = {name for name, value in given.items() if not torch.equal(value, drawn[name])}
    return Drawn(values | {name: drawn[name] for name in changed}, how | dict.fromkeys(changed, RESET), left)


def _draw(work: nn.Module) -> dict[str, str]:
    """Draws in place; how, for each parameter's name.

    Every parameter is NaN at first, so that what is NaN afterwards was not reached, however a reset writes.
    """
    originals = {id(p) for m in work.modules() if isinstance(m, parametrize.ParametrizationList)
                 for p in m.parameters(recurse=False)}  # fmt: skip
    for parameter in work.parameters():
        if parameter.is_floating_point() and id(parameter) not in originals:
            parameter.fill_(math.nan)
    how: dict[str, str] = {}
    for path, module in reversed(list(work.named_modules())):
        if parametrize.is_parametrized(module):
            how |= _reset_parametrised(module, f"{path}." if path else "")
        else:
            _reset(module)
    words: dict[int, str] = {}  # a shared parameter is drawn once
    for path, module in work.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.is_floating_point():
                if parameter.isnan().any() or stops_gradients(module, name, parameter):
                    words[id(parameter)] = _by_rule(module, name, parameter)
                how.setdefault(f"{path}.{name}" if path else name, words.get(id(parameter), RESET))
    return how


def _reset(module: nn.Module) -> None:
    for method in (getattr(module, name, None) for name in _RESETS):
        if inspect.ismethod(method) and not _required(method):
            try:
                method()
            except Exception as error:
                what = f"{type(module).__name__}.{method.__name__}"
                raise ValueError(f"The network cannot be drawn anew: {what} fails with {error!r}.") from error
    buffers = dict(module.named_buffers(recurse=False))
    if not hasattr(module, "reset_parameters") and {"running_mean", "running_var"} <= buffers.keys():
        for name, value in buffers.items():  # a frozen BatchNorm: all four are buffers
            if name in ("running_mean", "running_var", "weight", "bias"):
                value.fill_(float(name in ("running_var", "weight")))


def _required(method: object) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()  # type: ignore[arg-type]
    return any(p.default is p.empty and p.kind not in kinds for p in parameters)


def _reset_parametrised(module: nn.Module, prefix: str) -> dict[str, str]:
    """Resets a module with weight or spectral norm as if it had none, and hands the result to the parametrisation."""
    lists: Any = module.parametrizations  # for a type checker, any attribute of a module may be a tensor
    parts: dict[str, Any] = {name: part for name, part in lists.items() if any(True for _ in part.parameters(False))}
    if not parts:
        _reset(module)
        return {}
    classes = type(module).__mro__
    parametrised = max(i for i, cls in enumerate(classes) if any(name in vars(cls) for name in parts))
    plain = object.__new__(classes[parametrised + 1])
    weights = {name: nn.Parameter(torch.full_like(getattr(module, name), math.nan)) for name in parts}
    vars(plain).update(vars(module) | {"_parameters": module._parameters | weights})
    _reset(plain)
    how: dict[str, str] = {}
    for name, part in parts.items():
        words = _by_rule(module, name, weights[name]) if weights[name].isnan().any() else RESET
        try:
            setattr(module, name, weights[name].detach())
        except (RuntimeError, NotImplementedError):  # without a way back from the weight
            for parameter in part.parameters(False):
                words = _by_rule(module, name, parameter)
        for _ in range(_POWER_ITERATIONS if any(True for _ in part.buffers()) else 0):
            part.train()()  # the vectors of a spectral norm follow the new weight
        how |= {f"{prefix}parametrizations.{name}.{key}": words for key, _ in part.named_parameters(recurse=False)}
    return how


def _by_rule(module: nn.Module, name: str, value: Tensor) -> str:
    """Fills a parameter that no reset reaches; what it became."""
    vector = value.numel() == max(value.shape, default=1)
    token = any(word in name for word in _TOKENS)
    if vector and not token and any(word in name for word in _SHIFTS):
        value.zero_()
        return "0"
    if vector and not token and (value.ndim < 2 or any(word in name for word in _GAINS)):
        stated = (vars(module).get(key) for key in _LAYER_SCALES)
        start = next((start for start in stated if isinstance(start, float) and start), 1.0)
        value.fill_(start)
        return f"{start:g}"
    if value.ndim > 1 and name.endswith(("weight", "kernel")):
        nn.init.kaiming_uniform_(value, a=math.sqrt(5))
        return "uniform, as a convolution's"
    nn.init.trunc_normal_(value, std=0.02)
    return "normal, std 0.02"

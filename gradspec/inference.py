"""A private copy of a network that computes the same function faster: channels-last, BatchNorm folded, in place.

Whether it does is measured on a picture before it is used; where it does not, the next simpler form is taken, at last
the network as it was given.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gradspec.fusion import fused, hooked
from gradspec.layout import base_name
from gradspec.passes import output_of
from gradspec.surgery.copies import copied
from gradspec.taps import logits_of

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of the logits, of their largest magnitude: a thousand roundings, those of a deep network."""
AS_LOADED = "as loaded"
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
_NOT_KEPT = {"Convolution", "NativeBatchNorm", "CudnnBatchNorm", "Add"}  # nodes that need not what they gave
_COARSE = 5e-2  # the same for half precision: what is asked of bfloat16 is that it is the same network at all


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network made ready for many passes.

    Attributes:
        net: The network to run, in eval mode where it is a copy.
        form: What it is: "channels-last, BatchNorm folded", "channels-last" or "as loaded"; for forward passes alone
            ", activations fused" and ", bfloat16" may stand behind it.
        note: Why it is no faster form, "" where there is nothing to say.
        folded: Names of the convolutions that hold their BatchNorm's weights.
    """

    net: nn.Module
    form: str
    note: str = ""
    folded: frozenset[str] = frozenset()


def prepared(model: nn.Module, images: Tensor) -> tuple[Prepared, Tensor]:
    """Returns the fastest form of a network in eval mode that is the same function to rounding, and its logits (N, K).

    Args:
        model: The network, unwrapped, in eval mode; left as it is.
        images: Pictures x (N, C, H, W) on which the forms are compared: one is enough.

    Raises:
        ValueError: The network fails on pictures of this shape.
    """
    logits, seen = _seen(model, images)
    as_loaded = Prepared(model, AS_LOADED)
    note = ""
    for fold in (seen.folds, {}) if seen.folds else ({},):
        try:
            net = _copied(model, fold, seen.in_place)
            found = logits_of(net(images))
        except Exception as error:  # one that cannot be copied, or reads its BatchNorm's weights itself
            note = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        if same(found, logits):
            form = "channels-last, BatchNorm folded" if fold else "channels-last"
            return Prepared(net, form, note, frozenset(fold)), logits
        note = "a copy computes something else"
    return Prepared(as_loaded.net, as_loaded.form, note), logits


def for_forwards(net: Prepared, images: Tensor) -> Prepared:
    """Returns a prepared network for forward passes alone: its convolutions fused where that is the same function.

    Args:
        net: What `prepared` made; the network as loaded stays so.
        images: Pictures x (N, C, H, W), on the first of which, and a paler one beside it, they are compared.
    """
    faster = fused(net.net) if net.form != AS_LOADED else None
    if faster is None:
        return net
    pair = torch.cat([images[:1], images[:1] / 2])  # what does not depend on the picture has one row, not two
    try:
        alike = same(logits_of(faster(pair)), logits_of(net.net(pair)))
    except Exception:  # of a kernel that has other limits than torch's own
        return net
    return Prepared(faster, f"{net.form}, activations fused", net.note, net.folded) if alike else net


def in_bfloat16(net: Prepared, images: Tensor, logits: Tensor) -> Prepared:
    """Returns a copy of a prepared network with bfloat16 weights, for forward passes alone.

    Raises:
        ValueError: It fails in bfloat16, or computes something else.
    """
    try:
        half = copied(net.net).to(torch.bfloat16)
        _freeze(half)
        found = logits_of(half(images.to(torch.bfloat16))).to(logits.dtype)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"The network does not run in bfloat16 ({reason}): use precision='float32'.") from error
    if not same(found, logits, _COARSE):
        raise ValueError("The network computes something else in bfloat16: use precision='float32'.")
    return Prepared(half, f"{net.form}, bfloat16", net.note, net.folded)


def same(found: Tensor, logits: Tensor, tolerance: float | None = None) -> bool:
    """Returns whether logits (N, K) are the same to rounding, or to a tolerance relative to the largest."""
    tolerance = _ROUNDING.get(logits.dtype, _COARSE) if tolerance is None else tolerance
    if found.shape != logits.shape or not bool(found.isfinite().all()):
        return False
    shares = (found.softmax(1) - logits.softmax(1)).abs().max()  # for a masked class's logit may be huge
    return bool((found - logits).abs().max() <= tolerance * logits.abs().max()) and bool(shares <= 10 * tolerance)


def _copied(model: nn.Module, fold: dict[str, str], in_place: set[str]) -> nn.Module:
    net = copied(model)
    for name in in_place:
        rectifier: Any = net.get_submodule(name)
        rectifier.inplace = True
    for conv, norm in fold.items():
        replaced: Any = net.get_submodule(norm)
        fused = fuse_conv_bn_eval(_evaluated(net.get_submodule(conv)), _evaluated(replaced))
        net.set_submodule(conv, fused)
        # timm's BatchNormAct2d goes on with these two
        after = [part for part in (getattr(replaced, "drop", None), getattr(replaced, "act", None)) if part is not None]
        net.set_submodule(norm, nn.Sequential(*after) if after else nn.Identity())
    _freeze(net)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _evaluated(module: Any) -> Any:
    module.training = False
    return module


def _freeze(net: nn.Module) -> None:
    for module in net.modules():
        module.training = False
    net.requires_grad_(False)


# ---- what one pass shows -------------------------------------------------------------------------


@dataclass(eq=False)
class _Seen:
    """What one pass shows of a network's modules.

    Attributes:
        folds: By the convolution's name, the BatchNorm that alone reads its output.
        in_place: Rectifiers that may overwrite what they read: nothing else reads it, no backward pass needs it.
    """

    folds: dict[str, str] = field(default_factory=dict)
    in_place: set[str] = field(default_factory=set)
    outputs: dict[Any, str] = field(default_factory=dict)  # autograd node -> the convolution that made it
    pairs: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    rectified: dict[str, list[Any]] = field(default_factory=dict)  # the nodes whose outputs a rectifier reads

    def convolved(self, name: str, output: Any) -> None:
        self.calls[name] += 1
        self.outputs[output.grad_fn] = name

    def normalised(self, name: str, given: Tensor) -> None:
        self.calls[name] += 1
        if given.grad_fn in self.outputs:
            self.pairs[self.outputs[given.grad_fn]] = name

    def rectifies(self, name: str, given: Tensor) -> None:
        self.rectified.setdefault(name, []).append(given.grad_fn)


def _seen(model: nn.Module, images: Tensor) -> tuple[Tensor, _Seen]:
    """The logits of a pass, and what it shows."""
    seen = _Seen()
    with _watched(model, seen), torch.enable_grad():
        logits = logits_of(output_of(model, images.detach().requires_grad_()))
    readers = _readers(logits.grad_fn)
    alone = {name for node, name in seen.outputs.items() if readers[node] == 1}
    shared = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for conv, norm in seen.pairs.items():
        once = seen.calls[conv] == seen.calls[norm] == 1 and conv in alone
        own = all(shared[id(p)] == 1 for name in (conv, norm) for p in model.get_submodule(name).parameters())
        if once and own:
            seen.folds[conv] = norm
    for name, nodes in seen.rectified.items():
        if all(node and readers[node] == 1 and base_name(node) in _NOT_KEPT for node in nodes):
            seen.in_place.add(name)
    return logits.detach(), seen


@contextlib.contextmanager
def _watched(model: nn.Module, seen: _Seen) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if hooked(module):
            continue
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: seen.convolved(name, out)))
        elif _folds(module):
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: seen.normalised(name, *args)))
        elif type(module) in _RECTIFIERS:
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: seen.rectifies(name, *args)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _folds(module: nn.Module) -> bool:
    """A BatchNorm of torch's or timm's (which goes on with an activation), with statistics of its own."""
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


def _readers(root: Any) -> Counter[Any]:
    """How many nodes of the graph read what each node gives."""
    readers: Counter[Any] = Counter()
    seen, todo = {root}, [root]
    while todo:
        node = todo.pop()
        for child, _ in node.next_functions if node is not None else ():
            readers[child] += 1
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)
    return readers

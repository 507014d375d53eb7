"""Convolutions with the addition and the rectifier behind them in one kernel of oneDNN, for forward passes on a CPU.

What remains of a folded ResNet50 beside its convolutions are additions and rectifiers, a fifth of its time: each reads
and writes all that a convolution has just written.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_RECTIFIES = {functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_KINDS = (torch.float32, torch.bfloat16)


class FusedConv2d(nn.Module):
    """A convolution, the addition of another tensor (4-D, broadcast) where one is given, and an activation.

    Args:
        conv: Whose weights it takes.
        activation: oneDNN's name of it, and its constants.
    """

    def __init__(self, conv: nn.Conv2d, activation: tuple[str, list[float]]) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._where = list(cast(Any, conv.padding)), list(conv.stride), list(conv.dilation), conv.groups
        self._activation = activation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Returns activation(conv(x) + other)."""
        name, constants = self._activation
        kernel, weights = torch.ops.mkldnn._convolution_pointwise, (self.weight, self.bias, *self._where)
        if other is None:
            return kernel(x, *weights, name, constants, "")
        return kernel.binary(x, other, *weights, "add", 1.0, name, constants, "")


def fused(net: nn.Module) -> nn.Module | None:
    """Returns the network with its convolutions fused, or None where it holds nothing to fuse or cannot be traced.

    Args:
        net: In eval mode, for forward passes alone; its weights are shared, itself left as it is. Whether the fused
            network computes the same is the caller's to measure.
    """
    kinds = {(p.dtype, p.device.type) for p in net.parameters()}
    known = torch.backends.mkldnn.is_available() and kinds <= {(kind, "cpu") for kind in _KINDS}
    if not known or any(hooked(module) for module in net.modules()):
        return None
    try:
        traced = fx.symbolic_trace(net)
    except Exception:  # one whose way depends on the values or the shape of its input
        return None
    _drop_identities(traced)
    if not sum([_fuse(traced, node) for node in list(traced.graph.nodes)]):
        return None
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def hooked(module: nn.Module) -> bool:
    """Returns whether somebody hangs on to the module's passes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if type(_module(traced, node)) is nn.Identity and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _fuse(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Fuses the convolution, and the addition, that this activation alone reads."""
    activation = _activation(traced, node)
    if activation is None or not isinstance(node.args[0], fx.Node) or len(node.args[0].users) > 1:
        return False
    before = node.args[0]
    found = (before, ()) if _plain(traced, before) else _addition(traced, before)
    if found is None or (found[1] and activation[0] != "relu"):  # the one that the kernel takes behind a sum
        return False
    conv, other = found
    name = f"{conv.target}_fused_{conv.name}".replace(".", "_")
    traced.add_submodule(name, FusedConv2d(cast(nn.Conv2d, _module(traced, conv)), activation))
    with traced.graph.inserting_before(node):
        node.replace_all_uses_with(traced.graph.call_module(name, (conv.args[0], *other)))
    for old in dict.fromkeys((node, before, conv)):
        traced.graph.erase_node(old)
    return True


def _addition(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The later convolution of a sum that the sum alone reads, and what it is added to; None for anything else."""
    adds = node.op in ("call_function", "call_method") and node.target in _ADDS
    if not adds or len(node.args) != 2 or node.kwargs or node.args[0] is node.args[1]:
        return None
    computed = [part for part in node.args if isinstance(part, fx.Node) and _computes(traced, part)]
    places = {part: place for place, part in enumerate(traced.graph.nodes) if part in computed}
    for part in sorted(computed, key=lambda part: -places[part]):
        if len(computed) == 2 and _plain(traced, part) and len(part.users) == 1:
            return part, tuple(other for other in computed if other is not part)
    return None


def _computes(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result has a picture's own shape: no weight that is added to every picture."""
    return node.op != "get_attr" and node.op != "placeholder"


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _plain(traced: fx.GraphModule, node: fx.Node) -> bool:
    conv = _module(traced, node)
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and len(node.args) == 1 and isinstance(node.args[0], fx.Node)


def _activation(traced: fx.GraphModule, node: fx.Node) -> tuple[str, list[float]] | None:
    """oneDNN's name of an activation, and its constants; None for a node that is none."""
    module = _module(traced, node)
    if type(module) is nn.ReLU or (node.op in ("call_function", "call_method") and node.target in _RECTIFIES):
        return "relu", []
    if type(module) is nn.ReLU6:
        return "hardtanh", [0.0, 6.0]
    return ("leaky_relu", [module.negative_slope]) if type(module) is nn.LeakyReLU else None

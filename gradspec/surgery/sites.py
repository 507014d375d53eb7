"""Which operators of a network shrink its maps, and which of them can be swapped.

One forward pass tells: `swaps.Finder` sees the functions and who calls them, the autograd graph says what each is, and
how an audit calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradspec._checks import check_images
from gradspec.graph import Graph, Operator
from gradspec.images import described
from gradspec.layout import Layout, base_name, shape_of
from gradspec.passes import eval_mode, to_weights
from gradspec.surgery.calls import AdaptiveMax, Downsampling, StridedConvolution, identities
from gradspec.surgery.swaps import Finder, Found
from gradspec.taps import graph_of, tensors_of

PATCH = "patch embedding"

_LEFT = {
    "patch merging": "merges neighbouring positions in a linear layer",
    "transposed convolution": "a transposed convolution enlarges the map",
    "strided convolution": "not made by a call of conv2d",
    PATCH: "not made by a call of conv2d",
}
_PICKS = "picks positions by their numbers"
_PATCHES = "cuts patches at a step"
_NODES = {
    "Slice": "a slice with a step",
    "Index": _PICKS,
    "IndexSelect": _PICKS,
    "Im2Col": _PATCHES,
    "Unfold": _PATCHES,
    "PixelUnshuffle": "puts neighbouring positions into channels",
}
_UNKNOWN = "an operator that is not known shrinks the map"


@dataclass(eq=False)
class Site:
    """One operator of one module, which may be called several times.

    Attributes:
        module: Whose call it is in.
        number: Which downsampling operator it is within one call of the module, from 0.
        type: "max pooling", "strided convolution" or "patch embedding".
        call: Its first call.
        names: Its calls' names, as in an audit.
    """

    module: nn.Module
    number: int
    type: str
    call: Downsampling
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one forward pass showed: `sites` that can be swapped, `others` by name with the reason; and its output.

    `known`: all downsampling calls, sites or not, as (module, number, what); `untold`: names of operators of which it
    cannot be told where in the picture their output's positions are.
    """

    sites: list[Site]
    known: frozenset[tuple[nn.Module, int, str]]
    others: dict[str, str]
    untold: list[str]
    shapes: list[tuple[int, ...]]
    finite: bool


def survey(model: nn.Module, pictures: Tensor) -> Survey:
    """Returns the downsampling operators of a network, found in one forward pass in eval mode.

    Raises:
        TypeError: For compiled, replicated or TorchScript models.
        ValueError: The network fails on these pictures.
    """
    finder = Finder()
    modes = (torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]))
    with eval_mode(model), modes[0], modes[1], modes[2]:
        with finder:
            graph, output = graph_of(model, pictures)
        sites = _sites(graph, finder.found)  # in eval mode: a checkpointed block is run again
        others = _others(graph, sites)
        untold = [op.name for op in graph.operators() if all(graph.layouts.get(edge) is None for edge in op.outputs)]
    tensors = [t for t in tensors_of(output) if t.is_floating_point()]
    finite = all(bool(t.isfinite().all()) for t in tensors)
    known = frozenset((f.module, f.number, name) for f in finder.found for name in identities(f.call))
    return Survey(sites, known, others, untold, [tuple(t.shape) for t in tensors], finite)


def _sites(graph: Graph, found: Sequence[Found]) -> list[Site]:
    by_node = {f.node: f for f in found if f.node is not None}
    sites: dict[tuple[nn.Module, int, str], Site] = {}
    for op in graph.operators():
        for f in (by_node[node] for node in op.nodes if node in by_node):
            if not isinstance(f.call, AdaptiveMax) or not f.call.dim or _is_spatial(graph, f):
                new = Site(f.module, f.number, _type(op, f.call), f.call)
                site = sites.setdefault((f.module, f.number, identities(f.call)[0]), new)
                site.names.append(op.name)
    return list(sites.values())


def _type(op: Operator, call: Downsampling) -> str:
    if isinstance(call, StridedConvolution):
        return PATCH if op.type == PATCH else "strided convolution"
    return "max pooling"


def _is_spatial(graph: Graph, found: Found) -> bool:
    """Whether a maximum over dimensions takes rows and columns, not channels."""
    assert isinstance(found.call, AdaptiveMax)
    layout, shape = graph.layouts.get(found.node.next_functions[0]), found.call.x.shape
    dims = [d for d in found.call.dim if shape[d] > 1]  # one row belongs to no axis of the picture
    if layout is None or not dims:
        return len(shape) == 4 and {d % 4 for d in found.call.dim} == {2, 3}
    return all(layout.is_spatial(d) for d in dims)


def _others(graph: Graph, sites: Sequence[Site]) -> dict[str, str]:
    """Operators that shrink the map, but are no site: name -> what they are."""
    known = {name for site in sites for name in site.names}
    reasons = {op.name: _reason(graph, op) for op in graph.operators() if op.name not in known}
    return {name: reason for name, reason in reasons.items() if reason} | _selections(graph)


def _selections(graph: Graph) -> dict[str, str]:
    """Maps of which one row or column in several is taken: parts of a tensor are no operators."""
    found = {}
    for node in graph.order:
        if base_name(node) == "Select":
            before, after = _pixels(graph, [graph.inputs[node][0][1]]), _pixels(graph, [(node, 0)])
            if 0 < after < before:
                found[f"{graph.owner[node].name}:select"] = _PICKS
    return found


def _reason(graph: Graph, op: Operator) -> str:
    """Why an operator that is no site shrinks the map, or ""."""
    before, after = _pixels(graph, op.inputs), _pixels(graph, op.outputs)
    shrinks = bool(before) and 0 < after < before
    told = next((_NODES[base_name(node)] for node in op.nodes if base_name(node) in _NODES), _UNKNOWN)
    if op.type == "max pooling":
        pools = any("Pool" in base_name(node) for node in op.nodes) or after < before  # else a maximum of channels
        return "a maximum of another kind, or one that returns its positions" if pools else ""
    if op.type == "slicing":
        return told
    if op.type == "average pooling":
        return "a mean over fewer pixels than its stride" if _skips(op) else ""
    if op.type == "convolution":
        return "reads neighbouring positions as channels" if _mixes_positions(graph, op) else ""
    if op.type == "attention":
        return "attends from fewer positions" if shrinks and 2 * after <= before else ""
    if op.type == "resampling":
        return "interpolates to a smaller map" if shrinks or _seems_to_shrink(op) else ""
    if op.type == "other":
        return told if shrinks or (before and not after and _seems_to_shrink(op)) else ""
    return _LEFT.get(op.type, "")


def _pixels(graph: Graph, edges: Iterable[Any]) -> int:
    """The largest map's pixels at some tensors; 0 where none is known to hold a map."""
    layouts = (graph.layouts.get(edge) for edge in edges)
    return max((n.height * n.width for n in layouts if n is not None and _is_map(n)), default=0)


def _is_map(layout: Layout) -> bool:
    return layout.reason != "no spatial axes" and "attention matrix" not in layout.reason


def _skips(op: Operator) -> bool:
    pools = [node for node in op.nodes if base_name(node).startswith("AvgPool")]
    return any(k < s for node in pools for k, s in zip(node._saved_kernel_size, node._saved_stride, strict=False))


def _mixes_positions(graph: Graph, op: Operator) -> bool:
    """Whether a convolution's input has rows or columns in its channels, as behind a space-to-depth."""
    layouts = (graph.layouts.get(edge) for edge in op.inputs)
    return any(n is not None and len(n.dims) == 4 and n.is_spatial(1) for n in layouts)


def _seems_to_shrink(op: Operator) -> bool:
    """Whether the shapes say so, where the layout cannot be told: of (N, C, H, W), or of windows side by side."""
    for node in op.nodes:
        if base_name(node) == "Unfold" and node._saved_size <= node._saved_step:
            return True
        after, before = shape_of((node, 0)), shape_of(node.next_functions[0]) if node.next_functions[0][0] else None
        if after and before and len(after) == len(before) == 4 and after[0] == before[0]:
            return after[2] * after[3] < before[2] * before[3]
    return False


# ---- pictures to find them with ----------------------------------------------------------------


def example_pictures(model: nn.Module, inputs: Tensor | None) -> Tensor:
    """Returns one picture (1, C, H, W) for the network: the first of `inputs`, or noise of the size that it states."""
    if inputs is not None:
        check_images(inputs)
        return to_weights(model, inputs[:1])
    noise = torch.rand(1, *_stated_shape(model), generator=torch.Generator().manual_seed(0))
    return to_weights(model, noise)


def _stated_shape(model: nn.Module) -> tuple[int, ...]:
    spec: Any = described(model, "spec")
    stated = [spec.get("input_size") if isinstance(spec, dict) else None]
    stated += [cfg.get("input_size") for cfg in _timm_settings(model)]
    for shape in stated:
        if isinstance(shape, (list, tuple)) and len(shape) == 3:
            return tuple(int(n) for n in shape)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (first.in_channels if first else 3, 224, 224)


def _timm_settings(model: nn.Module) -> Iterator[dict[str, Any]]:
    for name in ("pretrained_cfg", "default_cfg"):
        settings: Any = getattr(model, name, None)
        if isinstance(settings, dict):
            yield settings

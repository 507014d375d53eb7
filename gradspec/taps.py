"""Streaming every operator's gradient out of a backward pass: `with tapped(model, receive) as taps`.

How: forward hooks note which autograd nodes each module call made; when the network returns, its graph is walked once
and
hooks are set on the *nodes*.  Nodes see functional operators, residual sums, in-place ReLU (where full backward hooks
raise,
and where a stored output belongs to another tensor by the time it is differentiated), reused modules and checkpointed
blocks alike.  One context manager owns all handles, as in zennit; tensors are never kept.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradspec.graph import Call, Frame, Graph, Point, Scaled, Spot, Tap
from gradspec.layout import MOVES, PARTS, base_name
from gradspec.passes import output_of

__all__ = ["Call", "Layers", "Point", "Receive", "Tap", "Taps", "logits_of", "refuse_unhookable", "tapped"]

Layers = str | Sequence[str] | Callable[[Call], bool] | None
Receive = Callable[[Tap, Tensor], None]


class ModeError(RuntimeError):
    """A mode of autograd in which there are no gradients."""


class SelectionError(ValueError):
    """Names, patterns or types of calls that match nothing."""


_REENTRANT = "Reentrant gradient checkpointing hides the operators: give use_reentrant=False or turn it off."
_NO_GRADIENT = "The scores do not depend on the pictures: the model detaches them or works without gradients."


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in a nested value: tuples, mappings, Hugging Face's output objects, dataclasses."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        parts = [getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())]
    for part in parts:
        yield from tensors_of(part)


def logits_of(output: Any) -> Tensor:
    """Returns the logits (N, K) in a network's output: a tensor, the first of a tuple, `.logits` or ["logits"].

    Raises:
        ValueError: Where there are none of shape (N, K).
    """
    found = (
        output["logits"] if isinstance(output, Mapping) and "logits" in output else getattr(output, "logits", output)
    )
    logits = next(tensors_of(found), None)
    if logits is None or logits.ndim != 2:
        got = type(output).__name__ if logits is None else f"a tensor of shape {tuple(logits.shape)}"
        raise ValueError(f"Expected logits (N, K) from the model, got {got}: wrap the model so that it returns them.")
    return logits


def refuse_unhookable(model: nn.Module) -> None:
    """Raises TypeError, with what to do, for models whose hooks PyTorch ignores, replicates or cannot set."""
    for name, module in model.named_modules():
        where = f"its submodule {name!r}" if name else "it"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise TypeError(
                f"Cannot tap a compiled model: {where} ignores hooks set after compilation; pass the model uncompiled."
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(f"Cannot tap replicas: {where} is a {type(module).__name__}; pass its .module.")
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"Cannot tap TorchScript: {where} is a ScriptModule; pass the Python model.")


@contextmanager
def tapped(model: nn.Module, receive: Receive, *, layers: Layers = None) -> Iterator[Taps]:
    """Yields taps on every operator call of `model`: `receive(tap, gradient)` is called during the backward pass.

    Inside the block call the model as usual, then differentiate its output: with `taps.backward(scores)`, which
    leaves all
    parameters' `.grad` alone and needs no `requires_grad` on the pictures, or with any autograd call of your own.  Each
    gradient is handed over once, while autograd works, in the tensor's own shape; `tap.maps(gradient)` makes it
    (N, C, H, W).  Nothing is kept, and the model is as before afterwards, also after an exception (SPEC §2).  A block
    follows one pass at a time: calling the model again ends the taps on the pass before.

    Args:
        model: Any module; its mode, parameters, gradients and hooks stay as they are.
        receive: Called with the `Tap` (`.call`, `.point`) and the gradient tensor, which must not be changed.
        layers: Which calls: None for all; names, shell-style patterns ("layer1.*") or types ("max pooling"); or a
            predicate on `Call`. The exact name of a container ("layer1.0") taps it as one operator.

    Raises:
        TypeError: For compiled, replicated or TorchScript models.
        RuntimeError: In the forward pass, inside `torch.inference_mode` or `torch.no_grad`.
        ValueError: In the forward pass, where a name or pattern in `layers` matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        >>> seen = []
        >>> with tapped(net, lambda tap, gradient: seen.append((tap.call.name, tap.point))) as taps:
        ...     gradient = taps.backward(net(torch.rand(1, 3, 8, 8)).sum())
        >>> seen[:2], gradient.shape
        ([('2', 'output'), ('1', 'output')], torch.Size([1, 3, 8, 8]))
    """
    refuse_unhookable(model)
    taps = Taps(model, receive, [layers] if isinstance(layers, str) else layers)
    try:
        taps._hook_modules()
        yield taps
    finally:
        taps._close()


class Taps:
    """The open taps of a model, made by `tapped`.

    Attributes:
        calls: The selected calls of the last forward pass, in order of execution.
        taps: Their taps.
        scaled: By `maps_id`, maps that are those of another one, every channel times a constant (BatchNorm in eval).
        parts: By `maps_id`, the ids of the maps that together are these (q, k and v).
        inputs: The network's inputs of the last forward pass, as they are differentiated.
    """

    def __init__(self, model: nn.Module, receive: Receive, layers: Layers = None) -> None:
        self.calls: list[Call] = []
        self.taps: list[Tap] = []
        self.inputs: list[Tensor] = []
        self.scaled: dict[int, Scaled] = {}
        self.parts: dict[int, list[int]] = {}
        self._model, self._receive, self._layers = model, receive, layers
        self._names = {module: name for name, module in model.named_modules()}
        self._module_handles: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        for handle in getattr(self, "_node_handles", ()):
            handle.remove()
        self._node_handles: list[Any] = []
        self._stack: list[Frame] = []
        self._frames: list[Frame] = []
        self._owner: dict[Any, Frame] = {}
        self._entries: list[Any] = []
        self._no_maps: dict[str, str] = {}
        self._cut_off: dict[str, str] = {}
        self._waiting: dict[Tap, None] = {}
        self._delivered: set[tuple[str, Point]] = set()
        self._sums: list[_Sum] = []
        self.calls, self.taps, self.inputs, self.scaled, self.parts = [], [], [], {}, {}

    # ---- what a user calls -------------------------------------------------------------------

    def backward(self, scores: Tensor, seed: Tensor | None = None) -> Tensor:
        """Returns the gradient of the scores' sum at the network's first input; no parameter's `.grad` is touched.

        Args:
            scores: Any tensor computed from the model's output.
            seed: Weights of the same shape instead of ones (the vector of the vector-Jacobian product).

        Raises:
            RuntimeError: Before a forward pass, where the scores do not depend on the pictures, and for reentrant
                gradient checkpointing.
        """
        if not self.inputs:
            raise RuntimeError("Nothing to differentiate: call the model inside the block first.")
        if not scores.requires_grad:
            raise RuntimeError(_NO_GRADIENT)
        seed = torch.ones_like(scores) if seed is None else seed
        for open_sum in self._sums:  # what an interrupted pass left
            open_sum.arrived.clear()
        try:
            gradient = torch.autograd.grad(scores, self.inputs, seed, allow_unused=True)[0]
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise RuntimeError(_REENTRANT) from error
        if gradient is None:
            raise RuntimeError(_NO_GRADIENT)
        for open_sum in self._sums:  # the scores do not reach all places that read the tensor
            open_sum.close()
        return gradient

    @property
    def unseen(self) -> dict[str, str]:
        """Returns, after a backward pass, modules and calls whose gradient was not seen as maps, with the reasons."""
        modules = self._never_called() | self._cut_off
        modules = {name: reason for name, reason in modules.items() if "parametrizations." not in name}
        reasons = {name: reason for name, reason in modules.items() if self._wants_name(name)} | self._no_maps
        for tap in self._waiting:
            if (tap.call.name, tap.point) not in self._delivered:
                reasons.setdefault(tap.call.name, f"no gradient arrived at its {tap.point}")
        return reasons

    # ---- the forward pass --------------------------------------------------------------------

    def _hook_modules(self) -> None:
        for module in self._names:
            self._module_handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            always = module is self._model  # also after an exception, which ends the pass
            leave = module.register_forward_hook(self._leave, with_kwargs=True, always_call=always)
            self._module_handles.append(leave)

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._stack:
            if module is not self._model:
                return None  # a checkpointed block, run again; or a part of the network called alone
            if _during_backward():  # the whole network, run again
                inputs, entries = self.inputs[:], self._entries[:]
                args, kwargs = self._followed(args), self._followed(kwargs)
                self.inputs, self._entries = inputs, entries
                return args, kwargs
            self._reset()
            self._refuse_modes()
            args, kwargs = self._followed(args), self._followed(kwargs)
            if not self.inputs:
                what = "Expected a floating-point tensor of pictures among the model's arguments"
                raise RuntimeError(f"{what}, got none.")
        parent = self._stack[-1] if self._stack else None
        frame = Frame(self._names[module], module, parent)
        if parent is not None:
            self._claim((t.grad_fn for t in tensors_of((args, kwargs))), parent)
        self._stack.append(frame)
        self._frames.append(frame)
        return args, kwargs

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._stack:
            return
        while self._stack[-1].module is not module:  # a submodule raised and the model went on
            self._stack.pop()
        frame = self._stack.pop()
        if output is None and frame.parent is None:  # an exception
            return
        tensors = list(tensors_of(output))
        frame.outputs = [(t.grad_fn, t.output_nr) for t in tensors if t.grad_fn is not None]
        frame.detached = bool(tensors) and not any(t.requires_grad for t in tensors)
        self._claim((node for node, _ in frame.outputs), frame)
        if not self._stack:
            self._connect(frame)

    def _refuse_modes(self) -> None:
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            mode = "torch.inference_mode" if torch.is_inference_mode_enabled() else "torch.no_grad"
            raise ModeError(f"Gradients cannot be tapped inside {mode}: call the model outside of it.")
        if any(p.is_inference() for p in self._model.parameters() if not nn.parameter.is_lazy(p)):
            raise ModeError("The parameters were made inside torch.inference_mode: load the model outside of it.")

    def _followed(self, value: Any) -> Any:
        """The arguments, each floating-point tensor replaced by a copy whose node gets the network's input gradient."""
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.clone() if value.is_inference() else value
            leaf = value if value.requires_grad else value.detach().requires_grad_()
            copy = leaf.clone()  # so that the network may change its input in place
            self.inputs.append(leaf)
            self._entries.append(copy.grad_fn)
            return copy
        if isinstance(value, dict):
            return {k: self._followed(v) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._followed(v) for v in value)
        return value

    def _claim(self, nodes: Iterable[Any], frame: Frame) -> None:
        """Gives every node that has no owner yet to `frame`, inputs before what is made of them."""
        for root in nodes:
            todo = [(root, False)]
            while todo:
                node, children_done = todo.pop()
                if children_done:
                    self._owner.setdefault(node, frame)
                elif node is not None and node not in self._owner:
                    todo.append((node, True))
                    todo += [(child, False) for child, _ in reversed(node.next_functions) if child not in self._owner]

    # ---- from the graph to the hooks ---------------------------------------------------------

    def _connect(self, root: Frame) -> None:
        """Sets the hooks, and lets go of the graph: what stays are closures over taps, none over nodes."""
        graph = Graph(self._owner, self._entries, root)
        spots = graph.spots(self._wants, self._containers())
        self._require_matches(graph)
        if not spots and self._layers is not None:
            raise SelectionError(
                f"No operator call between the pictures and the output is selected by layers={self._layers!r}."
            )
        self._waiting = {spot.tap: None for spot in spots if not spot.tap.reason}
        self._no_maps = _without_maps([spot.tap for spot in spots])
        self.taps, self.scaled, self.parts = [spot.tap for spot in spots], graph.scaled, graph.parts
        self.calls = list(dict.fromkeys(tap.call for tap in self.taps))
        self._cut_off = self._modules_cut_off(graph)
        self._hook_nodes(spots)
        self._owner, self._entries = {}, []
        for frame in self._frames:
            frame.outputs = []

    def _hook_nodes(self, spots: Sequence[Spot]) -> None:
        incoming: dict[Any, list[tuple[int, Tap]]] = {}
        outgoing: dict[Any, list[tuple[int, _Sum]]] = {}
        for spot in spots:
            if spot.source == "incoming":
                (node, number), *_ = spot.places
                incoming.setdefault(node, []).append((number, spot.tap))
                continue
            total = _Sum(len(spot.places), lambda gradient, tap=spot.tap: self._deliver(tap, gradient))
            self._sums.append(total)
            for node, number in spot.places:
                outgoing.setdefault(node, []).append((number, total))
        for node, taps in incoming.items():
            self._node_handles.append(node.register_prehook(lambda grads, taps=taps: self._arrived(taps, grads)))
        for place, (node, sums) in enumerate(outgoing.items()):
            take = lambda grads, _, sums=sums, place=place: _hand(sums, place, grads)  # noqa: E731
            self._node_handles.append(node.register_hook(take))

    def _arrived(self, taps: Sequence[tuple[int, Tap]], gradients: Sequence[Tensor | None]) -> None:
        for number, tap in taps:
            self._deliver(tap, gradients[number])

    def _deliver(self, tap: Tap, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._waiting.pop(tap, None)
            self._delivered.add((tap.call.name, tap.point))
            self._receive(tap, gradient)

    # ---- selection ---------------------------------------------------------------------------

    def _wants_name(self, name: str) -> bool:
        layers = self._layers
        return layers is None or (not callable(layers) and any(fnmatch.fnmatchcase(name, p) for p in layers))

    def _wants(self, call: Call) -> bool:
        if callable(self._layers):
            return bool(self._layers(call))
        names = (call.name, call.name.partition("#")[0], call.type)
        return any(self._wants_name(name) for name in names)

    def _containers(self) -> list[Frame]:
        """The calls of containers that were asked for by their exact name."""
        if self._layers is None or callable(self._layers):
            return []
        return [f for f in self._frames if f.parent and not f.is_leaf and f.name in self._layers]

    def _require_matches(self, graph: Graph) -> None:
        if self._layers is None or callable(self._layers):
            return
        known = {n for op in graph.operators() for n in (op.name, op.name.partition("#")[0], op.type)} | {"input"}
        known |= {frame.name for frame in self._frames} | set(self._never_called()) | set(self._modules_cut_off(graph))
        for pattern in self._layers:
            if not fnmatch.filter(known, pattern):
                near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
                hint = (
                    f"did you mean {', '.join(map(repr, near))}?"
                    if near
                    else "an audit without layers lists the names."
                )
                raise SelectionError(f"No operator call matches {pattern!r}: {hint}")

    # ---- what was not seen -------------------------------------------------------------------

    def _modules_cut_off(self, graph: Graph) -> dict[str, str]:
        """Modules that were called, and computed something, but off the way from the pictures to the output."""
        acting = {frame for node, frame in self._owner.items() if base_name(node) not in MOVES | PARTS}
        live = {self._owner[n] for n in graph.order if n in self._owner}
        reasons = {}
        for frame in self._frames:
            if frame.is_leaf and frame in acting and frame not in live:
                reasons[frame.name] = "its output does not lead from the pictures to the network's output"
            elif frame.is_leaf and frame.detached:
                reasons[frame.name] = "computed without gradient (torch.no_grad, detach, or of no picture)"
        seen = {frame.name for frame in live}
        return {name: reason for name, reason in reasons.items() if name not in seen}

    def _never_called(self) -> dict[str, str]:
        called = {frame.module for frame in self._frames}
        leaves = (m for m in self._names if next(m.children(), None) is None and m is not self._model)
        names = (self._names[m] for m in leaves if m not in called)
        return dict.fromkeys(names, "never called")

    def _close(self) -> None:
        for handle in self._module_handles:
            handle.remove()
        for handle in self._node_handles:
            handle.remove()
        self._module_handles, self._node_handles, self._stack, self._owner, self._entries = [], [], [], {}, []
        self.inputs = []


class _Sum:
    """The sum of the gradients that leave a call for one of its inputs, in as many places as it reads it."""

    def __init__(self, places: int, deliver: Callable[[Tensor | None], None]) -> None:
        self.places, self.deliver = places, deliver
        self.arrived: dict[tuple[int, int], Tensor | None] = {}

    def take(self, place: tuple[int, int], gradient: Tensor | None) -> None:
        if self.places == 1:
            self.deliver(gradient)
            return
        self.arrived[place] = gradient
        if len(self.arrived) == self.places:
            self.close()

    def close(self) -> None:
        """Delivers what has arrived."""
        present = [g for g in self.arrived.values() if g is not None]
        self.arrived.clear()
        if present:
            self.deliver(torch.stack(present).sum(0))


def _hand(sums: Sequence[tuple[int, _Sum]], node: int, gradients: Sequence[Tensor | None]) -> None:
    for number, total in sums:
        total.take((node, number), gradients[number])


def _without_maps(taps: Sequence[Tap]) -> dict[str, str]:
    """The calls of which no gradient holds maps, and those of which one point's layout cannot be told."""
    reasons: dict[str, str] = {}
    with_maps = {(tap.call.name, tap.point) for tap in taps if not tap.reason}
    names = {name for name, _ in with_maps}
    for tap in taps:
        name, point = tap.call.name, tap.point
        if name not in names:
            reasons.setdefault(name, tap.reason)
        elif (name, point) not in with_maps and tap.layout is None:
            reasons.setdefault(name, f"at its {point} {tap.reason}")
    return reasons


def _during_backward() -> bool:
    current = getattr(torch._C, "_current_graph_task_id", None)  # private, but what torch.utils.checkpoint asks
    return current is not None and current() != -1


def graph_of(model: nn.Module, images: Tensor) -> tuple[Graph, Any]:
    """Returns the graph of one forward pass on pictures (N, C, H, W), and the output; both keep its tensors alive.

    Raises:
        TypeError: For compiled, replicated or TorchScript models.
        ValueError: The network fails on pictures of this shape, returns nothing, or hides what it computed.
        RuntimeError: Inside `torch.inference_mode` or `torch.no_grad`.
    """
    refuse_unhookable(model)
    taps = _Walk(model)
    try:
        taps._hook_modules()
        output = output_of(model, images, ModeError)
    finally:
        taps._close()
    if taps.graph is None:
        raise ValueError(f"Expected a network that returns tensors, but {type(model).__name__} returns {output!r}.")
    if any(base_name(node) == "custom CheckpointFunction" for node in taps.graph.order):
        raise ValueError(_REENTRANT)
    return taps.graph, output


class _Walk(Taps):
    """Keeps the graph of a forward pass and hooks no node."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda tap, gradient: None)
        self.graph: Graph | None = None

    def _connect(self, root: Frame) -> None:
        self.graph = Graph(self._owner, self._entries, root)

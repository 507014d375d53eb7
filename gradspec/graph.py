"""From the autograd graph of one forward pass to operator calls, and to the places where their gradients pass.

`frames` say which module call made which autograd node (see `taps`).  A leaf module is one call; in a container every
functional operator is a call of its own.  A node's incoming gradient is the gradient at its operator's output, its
outgoing one the gradient at its input through this operator alone (SPEC §2).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from gradspec.layout import MOVES, PARTS, Edge, Layout, base_name, follow, shape_of

Point = Literal["output", "input"]

_KINDS = {
    "max pooling": "MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D FractionalMaxPool2D Amax Max",
    "average pooling": "AvgPool2D AvgPool3D AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D Mean Sum",
    "normalisation": "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm "
    "LinalgVectorNorm",
    "activation": "Relu LeakyRelu Hardtanh Gelu Silu Hardswish Hardsigmoid Sigmoid LogSigmoid Tanh Elu Softplus Mish "
    "PreluKernel Threshold Clamp ClampMin ClampMax RreluWithNoise Celu Selu Glu",
    "attention": "Softmax SafeSoftmax",
    "linear": "Addmm Mm Linear Bmm Baddbmm",
    "addition": "Add Sub Rsub Lerp Addcmul",
    "concatenation": "Cat",
    "multiplication": "Mul Div Addcdiv",
    "slicing": "Slice Index",
    "padding": "ConstantPadNd ReflectionPad2D ReplicationPad2D",
}
_TYPE_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}

_NAMES = {"Convolution": "conv2d", "MaxPool2DWithIndices": "max_pool2d", "Addmm": "linear", "Mm": "linear",
          "Bmm": "matmul", "NativeBatchNorm": "batch_norm", "CudnnBatchNorm": "batch_norm",
          "NativeLayerNorm": "layer_norm", "NativeGroupNorm": "group_norm"}  # fmt: skip

_MINOR_TYPES = frozenset({"addition", "multiplication", "concatenation", "other"})
_MINOR_NAMES = frozenset({"Mean", "Sum", "Max", "Amax"})
"""What does not make a leaf module more than one operator: the product in x·sigmoid(x), the mean in a normalisation."""


@dataclass(frozen=True)
class Call:
    """One call of one operator in the forward pass.

    Attributes:
        name: The module's path; `path:operator` for a functional operator in the module at `path` (":add" in the
            network itself); a second call in the same pass ends in "#1", and so on. "input" is the network's input.
        operator: The module's class or the function's name.
        type: The kind of operator: "convolution", "strided convolution", "patch embedding", "max pooling", "average
            pooling", "normalisation", "activation", "attention", "linear", "patch merging" (a linear layer that shrinks
            the map), "addition", "concatenation", "multiplication", "resampling", "slicing", "padding", "transposed
            convolution", "other", or "input".
        index: Position in the order of execution; the network's input is 0.
    """

    name: str
    operator: str
    type: str
    index: int


@dataclass(frozen=True, eq=False)
class Tap:
    """One gradient of one call: what `receive` gets beside the tensor.

    Attributes:
        call: The operator call.
        point: "output": the gradient at its output; "input": at its input, through this operator alone.
        part: 0, 1, ... where a call has several inputs or outputs (a concatenation; q, k and v).
        layout: How the tensor's dimensions are the picture's axes; None where that cannot be told.
        maps_id: Taps of one pass with the same number carry the same maps (the output of one operator is the input of
        the
            next one), so that a spectrum need be computed once.
    """

    call: Call
    point: Point
    part: int
    layout: Layout | None
    maps_id: int

    @property
    def reason(self) -> str:
        """Why the gradient holds no map of the picture, or ""."""
        return "its layout cannot be told" if self.layout is None else self.layout.reason

    def maps(self, gradient: Tensor) -> Tensor:
        """Returns the gradient as maps (N, C, H, W): class and register tokens dropped, the token grid unfolded.

        Raises:
            ValueError: Where the tensor holds no map (`reason` says why).
        """
        if self.layout is None or self.reason:
            raise ValueError(f"The gradient at the {self.point} of {self.call.name!r} is no map: {self.reason}.")
        return self.layout.maps(gradient)


@dataclass(eq=False)
class Frame:
    """One call of one module in the forward pass: the tensors that it returned, and whether none of them needs
    gradients."""

    name: str
    module: nn.Module
    parent: Frame | None
    outputs: list[Edge] = field(default_factory=list)
    detached: bool = False

    @property
    def is_leaf(self) -> bool:
        """Whether the module holds no others, and is not the network itself."""
        children = (name for name, _ in self.module.named_children() if name != "parametrizations")
        return self.parent is not None and next(children, None) is None

    def within(self, other: Frame) -> bool:
        """Whether this call is `other` or was made inside it."""
        frame: Frame | None = self
        while frame is not None and frame is not other:
            frame = frame.parent
        return frame is other


@dataclass(eq=False)
class Operator:
    """The nodes of one call, the tensors that it returned and, per tensor it read, the places that read it."""

    name: str
    operator: str
    type: str
    nodes: list[Any]
    outputs: list[Edge]
    inputs: dict[Edge, list[tuple[Any, int]]] = field(default_factory=dict)


@dataclass(eq=False)
class Spot:
    """Where the gradient for a tap passes.

    "incoming": the node of `places[0]` gets it, as the gradient of its output `places[0][1]`.  "outgoing": it is the
    sum of what the nodes of `places` hand to their inputs (a call may read one tensor in several places).
    """

    source: Literal["incoming", "outgoing"]
    places: list[tuple[Any, int]]
    tap: Tap


@dataclass(frozen=True, eq=False)
class Scaled:
    """That some maps are those of another `maps_id` with every channel times a constant, `scale` (C,)."""

    maps_id: int
    scale: Tensor


class Graph:
    """The part of an autograd graph that lies between the pictures and the network's output.

    Args:
        owner: The frame that made each node, in order of execution (inputs before what is made of them).
        entries: The nodes at which the gradient of the network's inputs arrives.
        root: The network's own frame.
    """

    def __init__(self, owner: dict[Any, Frame], entries: Sequence[Any], root: Frame) -> None:
        self.owner, self.entries, self.root = owner, list(entries), root
        self.inputs: dict[Any, list[tuple[int, Edge]]] = {entry: [] for entry in entries}
        for node in owner:
            edges = [(i, edge) for i, edge in enumerate(node.next_functions) if edge[0] in self.inputs]
            if edges and node not in self.inputs:
                self.inputs[node] = edges
        live = self._reached_from(edge[0] for edge in root.outputs)
        self.order = [
            *(e for e in self.entries if e in live),
            *(n for n in owner if n in live and n not in self.entries),
        ]
        self.readers: dict[Edge, list[tuple[Any, int]]] = {}
        for node in self.order:
            for i, edge in self.inputs[node]:
                self.readers.setdefault(edge, []).append((node, i))
        self.returned = Counter(root.outputs)
        self.layouts: dict[Edge, Layout | None] = {}
        self.scaled: dict[int, Scaled] = {}
        self.parts: dict[int, list[int]] = {}
        self._follow_layouts()

    def _reached_from(self, nodes: Iterable[Any]) -> set[Any]:
        todo, live = [n for n in nodes if n in self.inputs], set()
        while todo:
            node = todo.pop()
            if node not in live:
                live.add(node)
                todo += [child for _, (child, _) in self.inputs[node]]
        return live

    def _follow_layouts(self) -> None:
        pictures = 0
        for node in self.order:
            if node in self.entries:
                shape = shape_of((node, 0)) or ()
                self.layouts[node, 0] = Layout.of_pictures(shape) if len(shape) == 4 else None
                pictures = shape[0] if shape else 0
                continue
            edges = node.next_functions
            sources = [(self.layouts.get(e), e[0] and shape_of(e), e[0] in self.inputs) for e in edges]
            for number in range(len(node._input_metadata)):
                self.layouts[node, number] = follow((node, number), sources, pictures)

    # ---- operators ---------------------------------------------------------------------------

    def operators(self, containers: Iterable[Frame] = ()) -> list[Operator]:
        """Returns the operators in order of execution, with `containers` as operators of their own."""
        by_frame: dict[Frame, list[Any]] = {}
        for node in self.order:
            if node not in self.entries:
                by_frame.setdefault(self.owner[node], []).append(node)
        found = [op for frame, nodes in by_frame.items() for op in self._of_frame(frame, nodes)]
        for frame in containers:
            nodes = [n for n in self.order if n not in self.entries and self.owner[n].within(frame)]
            if (whole := self._whole(frame, nodes, "other")) is not None:
                found.append(whole)
        place = {node: i for i, node in enumerate(self.order)}
        found.sort(key=lambda op: min(place[n] for n in op.nodes))
        return self._numbered(found)

    def _of_frame(self, frame: Frame, nodes: list[Any]) -> list[Operator]:
        acting = [n for n in nodes if self._acts(n)]
        major = [n for n in acting if self.type_of(n) not in _MINOR_TYPES and base_name(n) not in _MINOR_NAMES]
        if acting and frame.is_leaf and len(major) <= 1:
            kind = (
                "normalisation"
                if "norm" in type(frame.module).__name__.lower()
                else self.type_of((major or acting)[-1])
            )
            if kind == "other" and type(frame.module).__module__ == nn.ReLU.__module__:
                kind = "activation"  # in place on a view, where autograd does not name the function
            whole = self._whole(frame, nodes, kind)
            if whole is None and len(acting) == 1:  # in place on a view: what it returned is not what is used
                whole = replace(self._single(frame, acting[0]), name=frame.name, operator=type(frame.module).__name__)
                whole.type = kind
            if whole is not None:
                return [whole]
        return [self._single(frame, node) for node in acting]

    def _acts(self, node: Any) -> bool:
        """Whether a node is an operator, not a mere rearrangement or part of a tensor."""
        name = base_name(node)
        if name == "Slice":
            read = self.layouts.get(self.inputs[node][0][1])
            spatial = read is None or read.is_spatial(node._saved_dim)
            return node._saved_step != 1 and spatial
        return name not in MOVES and name not in PARTS

    def _whole(self, frame: Frame, nodes: list[Any], kind: str) -> Operator | None:
        inside = set(nodes)
        outputs = [edge for edge in frame.outputs if edge[0] in inside]
        if not outputs:  # it hands its input on, or what it returned was changed in place behind a view
            return None
        op = Operator(frame.name, type(frame.module).__name__, kind, nodes, list(dict.fromkeys(outputs)))
        return self._with_inputs(op)

    def _single(self, frame: Frame, node: Any) -> Operator:
        name = _function_name(base_name(node))
        outputs = [
            (node, k) for k in range(len(node._input_metadata)) if (node, k) in self.readers or self.returned[node, k]
        ]
        return self._with_inputs(Operator(f"{frame.name}:{name}", name, self.type_of(node), [node], outputs))

    def _with_inputs(self, op: Operator) -> Operator:
        inside = set(op.nodes)
        for node in op.nodes:
            for i, edge in self.inputs[node]:
                if edge[0] not in inside:
                    op.inputs.setdefault(edge, []).append((node, i))
        return op

    @staticmethod
    def _numbered(found: list[Operator]) -> list[Operator]:
        times: Counter[str] = Counter()
        for op in found:
            name, op.name = op.name, f"{op.name}#{times[op.name]}" if times[op.name] else op.name
            times[name] += 1
        return found

    def type_of(self, node: Any) -> str:
        """Returns the kind of operator that a node is (see `Call.type`)."""
        name = base_name(node)
        if name == "Convolution":
            return self._convolution_type(node)
        if name in ("Addmm", "Mm", "Linear") and self._shrinks(node):
            return "patch merging"
        if name.startswith("ScaledDotProduct"):
            return "attention"
        if name.startswith(("Upsample", "GridSampler")):
            return "resampling"
        if name in ("Bmm", "Baddbmm") and sum(edge in self.layouts for _, edge in self.inputs[node]) > 1:
            return "attention"  # a product of two tensors that both depend on the picture
        return _TYPE_OF.get(name, "other")

    def _shrinks(self, node: Any) -> bool:
        """Whether the map at a node's output is smaller than at its input."""
        after, before = self.layouts.get((node, 0)), [self.layouts.get(edge) for _, edge in self.inputs[node]]
        area = max((b.height * b.width for b in before if b is not None and not b.reason), default=0)
        return after is not None and not after.reason and after.height * after.width < area

    def _convolution_type(self, node: Any) -> str:
        stride = tuple(node._saved_stride)
        if node._saved_transposed:
            return "transposed convolution"
        if max(stride) == 1:
            return "convolution"
        kernel = tuple(node._saved_weight.shape[2:])
        pictures, read = shape_of((self.entries[0], 0)), shape_of(node.next_functions[0])
        at_input = pictures is not None and read is not None and pictures[1] == read[1]
        return "patch embedding" if at_input and kernel == stride and min(stride) >= 4 else "strided convolution"

    # ---- where the gradients pass ------------------------------------------------------------

    def spots(self, wanted: Callable[[Call], bool], containers: Iterable[Frame] = ()) -> list[Spot]:
        """Returns where the gradients of all wanted calls pass."""
        ids: dict[Any, int] = {}
        spots: list[Spot] = []
        head = Call("input", type(self.root.module).__name__, "input", 0)
        if wanted(head):
            for part, entry in enumerate(self.entries):
                edge = (entry, 0)
                if entry in self.inputs and edge in self.layouts:
                    spots.append(
                        Spot("incoming", [edge], self._tap(head, "input", part, edge, self._canonical(edge), ids))
                    )
        for index, op in enumerate(self.operators(containers), start=1):
            call = Call(op.name, op.operator, op.type, index)
            if wanted(call):
                spots += self._output_spots(call, op, ids) + self._input_spots(call, op, ids)
        return spots

    def _tap(self, call: Call, point: Point, part: int, edge: Edge, key: Any, ids: dict[Any, int]) -> Tap:
        if key not in ids and (shares := self._shares(key)):
            self.parts[ids.setdefault(key, len(ids))] = [ids.setdefault(share, len(ids)) for share in shares]
        return Tap(call, point, part, self.layouts.get(edge), ids.setdefault(key, len(ids)))

    def _output_spots(self, call: Call, op: Operator, ids: dict[Any, int]) -> list[Spot]:
        return [
            Spot("incoming", [edge], self._tap(call, "output", part, edge, self._canonical(edge), ids))
            for part, edge in enumerate(op.outputs)
        ]

    def _input_spots(self, call: Call, op: Operator, ids: dict[Any, int]) -> list[Spot]:
        spots = []
        for part, (edge, places) in enumerate(op.inputs.items()):
            alone = len(self.readers[edge]) + self.returned[edge] == len(places)
            through = self._unchanged(*places[0]) if len(places) == 1 else None
            if alone:  # nobody else reads the tensor: its whole gradient came through this operator
                tap = self._tap(call, "input", part, edge, self._canonical(edge), ids)
                spots.append(Spot("incoming", [edge], tap))
            elif through is not None:
                tap = self._tap(call, "input", part, edge, self._canonical(through), ids)
                spots.append(Spot("outgoing", places, tap))
            else:
                spots.append(Spot("outgoing", places, self._tap(call, "input", part, edge, tuple(places), ids)))
            if len(places) == 1 and (scale := self._fixed_scale(*places[0])) is not None:
                source = ids.setdefault(self._canonical((places[0][0], 0)), len(ids))
                self.scaled[spots[-1].tap.maps_id] = Scaled(source, scale)
        return spots

    def _fixed_scale(self, node: Any, number: int) -> Tensor | None:
        """What a BatchNorm with fixed statistics multiplies each channel of the gradient's maps by."""
        layout = self.layouts.get((node, 0))
        if base_name(node) != "NativeBatchNorm" or number or node._saved_training or layout is None:
            return None
        if node._saved_running_var is None or not layout.has_channels_at(1):
            return None
        scale = (node._saved_running_var.detach() + node._saved_eps).rsqrt()
        scale = scale if node._saved_weight is None else scale * node._saved_weight.detach()
        return scale if len(scale) == layout.channels else None

    def _canonical(self, edge: Edge) -> Edge:
        """The last tensor on the way to the output whose gradient still holds the same maps as that of `edge`."""
        while len(readers := self.readers.get(edge, [])) == 1 and not self.returned[edge]:
            onward = self._unchanged(*readers[0])
            if onward is None:
                break
            edge = onward
        return edge

    def _shares(self, edge: Any) -> list[Edge]:
        """The tensors whose maps together are those of `edge`: q, k and v of the layer that makes all three."""
        readers = self.readers.get(edge, []) if len(edge) == 2 else []
        if (
            len(readers) != 1
            or self.returned[edge]
            or base_name(readers[0][0]) not in ("Unbind", "Split", "SplitWithSizes")
        ):
            return []
        node, whole = readers[0][0], self.layouts.get(edge)
        outputs = [(node, k) for k in range(len(node._input_metadata))]
        layouts = [self.layouts.get(output) for output in outputs]
        if whole is None or whole.reason or not all(output in self.readers for output in outputs):
            return []
        alike = all(part and (part.height, part.width) == (whole.height, whole.width) for part in layouts)
        together = sum(part.channels for part in layouts if part) == whole.channels
        return [self._canonical(output) for output in outputs] if alike and together else []

    def _unchanged(self, node: Any, number: int) -> Edge | None:
        """The node's output, if the gradient that leaves through input `number` holds the very maps that came in."""
        name, source, output = base_name(node), node.next_functions[number], (node, 0)
        before, after = self.layouts.get(source), self.layouts.get(output)
        if before is None or after is None:
            return output if name in MOVES and before is after else None
        if (before.height, before.width, before.channels) != (after.height, after.width, after.channels):
            return None
        if name == "Add" and (number == 0 or getattr(node, "_saved_alpha", None) == 1):
            return output if before == after else None
        return output if name in MOVES else None


def _function_name(base: str) -> str:
    if base.startswith("ScaledDotProduct"):
        return "scaled_dot_product_attention"
    name = base.removeprefix("custom ")
    return _NAMES.get(name) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"(\d)D", r"\1d", name)).lower()

"""Which axis of a tensor inside a network is which axis of the picture.

A convolution keeps (N, C, H, W); Swin and ConvNeXt permute to (N, H, W, C); transformers flatten to tokens (N, L, C)
and put class and register tokens in front; windowed attention cuts the picture into (N·windows, L, C).  Nothing is
guessed from shapes such as √L: the layout of the network's input is known, and every autograd node states how it
moved the axes (`PermuteBackward0._saved_dims`, the shapes on both sides of a view), so the layout of every tensor
between input and output follows step by step.  A `Layout` lists, for every dimension, the factors of the picture's axes
it is made of; `Layout.maps` puts them back into (N, C, H, W).  Where a step cannot be followed the layout is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Edge = tuple[Any, int]
"""(autograd node, output number): a tensor of the forward pass."""


@dataclass(frozen=True)
class Factor:
    """A factor of one axis of the picture: `size` steps of axis `axis`, at `place` from major to minor.

    `axis` is "N" (picture), "C" (channel), "H" (row), "W" (column), "K" (key position of an attention matrix) or "T": a
    token axis that holds the flattened factors `grid` after `before` extra tokens (class, register), and cannot be
    split.
    """

    axis: str
    size: int
    place: tuple[int, ...] = (0,)
    grid: tuple[Factor, ...] = ()
    before: int = 0


Dim = tuple[Factor, ...]


def _size(factors: Sequence[Factor]) -> int:
    return math.prod(f.size for f in factors)


def _axes(factors: Sequence[Factor]) -> set[str]:
    return {g.axis for f in factors for g in (f.grid or (f,))}


def _spatial(factors: Sequence[Factor]) -> bool:
    return bool(_axes(factors) & {"H", "W"})


def _fresh(axis: str, size: int) -> Dim:
    return (Factor(axis, size),) if size > 1 else ()


def _joined(factors: Sequence[Factor]) -> list[Factor]:
    """The factors with neighbours that one split made put together again, so that they can be split elsewhere."""
    done: list[Factor] = []
    for f in factors:
        done.append(f)
        while len(done) > 1 and done[-1].axis == done[-2].axis and _siblings(done[-2].place, done[-1].place):
            minor, major = done.pop(), done.pop()
            done.append(Factor(major.axis, major.size * minor.size, major.place[:-1]))
    return done


def _siblings(major: tuple[int, ...], minor: tuple[int, ...]) -> bool:
    return len(major) > 1 and major[:-1] == minor[:-1] and (major[-1], minor[-1]) == (0, 1)


def _extent(places: set[tuple[int, ...]], at: tuple[int, ...]) -> str | None:
    """How much of the axis below `at` some factors hold: "full", the "major" steps only, "none", or None if torn."""
    below = {p for p in places if p[: len(at)] == at}
    if not below:
        return "none"
    if at in below:
        return "full" if len(below) == 1 else None
    major, minor = _extent(below, (*at, 0)), _extent(below, (*at, 1))
    if major == "full" and minor in ("full", "major", "none"):
        return "full" if minor == "full" else "major"
    return "major" if major == "major" and minor == "none" else None


@dataclass(frozen=True)
class Layout:
    """For every dimension of a tensor the factors of the picture's axes it is made of, major to minor."""

    dims: tuple[Dim, ...]

    @classmethod
    def of_pictures(cls, shape: Sequence[int]) -> Layout:
        """The layout of pictures (N, C, H, W)."""
        return cls(tuple(_fresh(axis, size) for axis, size in zip("NCHW", shape, strict=True)))

    @cached_property
    def factors(self) -> Dim:
        """All factors, in the order of the dimensions."""
        return tuple(f for dim in self.dims for f in dim)

    def _axis_factors(self, axis: str) -> list[Factor]:
        inner = [g for f in self.factors for g in (f.grid or (f,))]
        return sorted((f for f in inner if f.axis == axis), key=lambda f: f.place)

    @cached_property
    def height(self) -> int:
        """H of the maps."""
        return _size(self._axis_factors("H"))

    @cached_property
    def width(self) -> int:
        """W of the maps."""
        return _size(self._axis_factors("W"))

    @cached_property
    def channels(self) -> int:
        """C of the maps."""
        return _size(self._axis_factors("C"))

    @cached_property
    def consistent(self) -> bool:
        """Whether no axis of the picture stands twice and what is left of a spatial axis is its major part.

        An axis of which only minor steps are left (a mean over windows, position by position) holds no map.
        """
        inner = [g for f in self.factors for g in (f.grid or (f,))]
        for axis in "NHW":
            places = [f.place for f in inner if f.axis == axis]
            if not places:
                continue
            whole = _extent(set(places), (0,))
            if whole is None or len(set(places)) < len(places) or (axis == "N" and whole != "full"):
                return False
        return True

    @cached_property
    def positions(self) -> tuple[tuple[Factor, ...], ...]:
        """What of the pictures' and the maps' axes each dimension holds, whichever way it was split."""
        return tuple(tuple(f for f in _joined(dim) if f.axis in "NHWT") for dim in self.dims)

    @cached_property
    def reason(self) -> str:
        """Why the tensor holds no map of the picture, or "" if it does."""
        axes = _axes(self.factors)
        if "K" in axes:
            return "an attention matrix is no map of the picture"
        if not axes & {"H", "W"}:
            return "no spatial axes"
        if self.height < 2 or self.width < 2:
            return f"a {self.height} x {self.width} map has no frequencies in two directions"
        return ""

    def is_spatial(self, dim: int) -> bool:
        """Whether dimension `dim` (as autograd saves it) holds rows, columns or tokens."""
        return _spatial(self.dims[_wrap(dim, len(self.dims))])

    def has_channels_at(self, dim: int) -> bool:
        """Whether dimension `dim` is the maps' channel axis, all of it, in its order and nothing else."""
        places = [f.place for f in self.dims[dim]] if len(self.dims) > dim else []
        elsewhere = _axes([f for i, d in enumerate(self.dims) if i != dim for f in d])
        return (
            _axes(self.dims[dim]) == {"C"} and "C" not in elsewhere and places == sorted(set(places))
            if places
            else False
        )

    def maps(self, tensor: Tensor) -> Tensor:
        """The tensor as maps (N, C, H, W), extra tokens dropped; a view where the strides allow it."""
        flat = tensor.reshape([f.size for f in self.factors])
        factors: list[Factor] = []
        for f in self.factors:
            if f.grid:  # the grid's tokens alone, as rows and columns
                at = len(factors)
                flat = flat.narrow(at, f.before, _size(f.grid)).unflatten(at, [g.size for g in f.grid])
            factors += f.grid or (f,)
        order = sorted(range(len(factors)), key=lambda i: ("NCHW".index(factors[i].axis), factors[i].place))
        size = {axis: _size([f for f in factors if f.axis == axis]) for axis in "NCHW"}
        return flat.permute(order).reshape([size[axis] for axis in "NCHW"])

    # ---- what an operation makes of a layout -------------------------------------------------

    def regroup(self, shape: Sequence[int]) -> Layout | None:
        """After a view to `shape`: the same factors in the same order, split and merged."""
        queue, dims = _joined(self.factors), []
        for size in shape:
            dim: list[Factor] = []
            while _size(dim) < size:
                if not queue or size % _size(dim):
                    return None
                head, room = queue.pop(0), size // _size(dim)
                if head.size > room:
                    if head.grid or head.size % room:
                        return None
                    major = Factor(head.axis, room, (*head.place, 0))
                    queue.insert(0, Factor(head.axis, head.size // room, (*head.place, 1)))
                    head = major
                dim.append(head)
            if _size(dim) != size:
                return None
            dims.append(tuple(dim))
        return Layout(tuple(dims))

    def permute(self, order: Sequence[int]) -> Layout:
        """After the dimensions were put in another order."""
        return Layout(tuple(self.dims[i] for i in order))

    def resize(self, shape: Sequence[int]) -> Layout | None:
        """After an operation that keeps the rank: equal sizes keep their factors, a whole axis may change its size."""
        if len(shape) != len(self.dims):
            return None
        dims = [self._resized(dim, size) for dim, size in zip(self.dims, shape, strict=True)]
        return None if any(d is None for d in dims) else Layout(tuple(d for d in dims if d is not None))

    def _resized(self, dim: Dim, size: int) -> Dim | None:
        if _size(dim) == size:
            return dim
        axes = _axes(dim)
        if not axes or axes == {"C"} or axes == {"K"}:
            return _fresh(next(iter(axes), "C"), size)
        (axis, *others) = axes
        whole = self._axis_factors(axis) == list(dim)
        return _fresh(axis, size) if whole and not others and axis in "HW" else None

    def cut(self, dim: int, start: int, size: int) -> Layout | None:
        """After keeping `size` steps of dimension `dim` from `start` on: tokens lose their extra tokens or their
        grid."""
        factors = self.dims[dim]
        if len(factors) == 1 and factors[0].grid:
            token = factors[0]
            inside, before = _size(token.grid), token.before - start
            if before >= 0 and start + size >= token.before + inside:
                extra = size != inside
                kept = (Factor("T", size, grid=token.grid, before=before),) if extra else token.grid
                return self._with(dim, kept)
            return self._with(dim, _fresh("C", size))  # the class token alone
        return self.resize([size if i == dim else _size(d) for i, d in enumerate(self.dims)])

    def drop(self, dims: Sequence[int]) -> Layout:
        """Without the dimensions `dims`."""
        return Layout(tuple(d for i, d in enumerate(self.dims) if i not in dims))

    def with_extra_tokens(self, dim: int, before: int, size: int) -> Layout | None:
        """After tokens were put in front of (`before`) or behind dimension `dim`, `size` in all."""
        factors = self.dims[dim]
        if len(factors) == 1 and factors[0].grid:
            before, factors = before + factors[0].before, factors[0].grid
        elsewhere = [f for i, d in enumerate(self.dims) if i != dim for f in d]
        if not all(f.axis in "HW" for f in factors) or _spatial(elsewhere):
            return None
        return self._with(dim, (Factor("T", size, grid=factors, before=before),))

    def _with(self, dim: int, factors: Dim) -> Layout:
        return Layout((*self.dims[:dim], factors, *self.dims[dim + 1 :]))


# ---- one rule per kind of autograd node ------------------------------------------------------

Shape = tuple[int, ...]

MOVES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Unsqueeze", "Squeeze", "Clone"})
MOVES |= {"Alias", "ToCopy", "Contiguous", "BackwardHookFunction"}
"""Nodes that only rearrange: the gradient on both sides holds the same maps."""

PARTS = frozenset({"Split", "SplitWithSizes", "Unbind", "Select", "Slice", "Narrow", "Expand", "Repeat", "Stack"})
PARTS |= {"Roll", "Flip", "AsStrided", "Detach"}
"""Nodes that pick, repeat or shift parts; no operator of their own, unless they pick with a step."""

_PRODUCTS = frozenset({"Addmm", "Mm", "Linear", "Bmm", "Baddbmm"})
_REDUCTIONS = frozenset(
    {"Mean", "Sum", "Nansum", "Amax", "Amin", "Max", "Min", "Var", "Std", "Norm", "LinalgVectorNorm"}
)


_UNORDERED = (
    "Index",
    "Gather",
    "Sort",
    "Topk",
    "Take",
    "Scatter",
    "Put",
    "Fft",
    "MaskedS",
    "Median",
    "Kthvalue",
    "Cdist",
)
"""How the names of nodes begin that put values somewhere else: their output's places are not their input's."""

_RESIZING = ("MaxPool", "AvgPool", "Adaptive", "FractionalMaxPool", "Mkldnn", "Upsample", "GridSampler", "Slice")
_RESIZING += ("ConstantPad", "ReflectionPad", "ReplicationPad")
"""How the names of nodes begin that may change the size of a whole spatial axis."""


def base_name(node: Any) -> str:
    """Returns the operation of a node: "Convolution" for `ConvolutionBackward0`, "custom F" for a Python function F."""
    name = node.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
    custom = isinstance(node, torch.autograd.function.BackwardCFunction) and name not in MOVES
    return f"custom {name}" if custom else name


def shape_of(edge: Edge) -> Shape | None:
    """Returns the shape of the forward tensor that an edge stands for; None for complex ones, which hold no maps."""
    node, number = edge
    try:
        about = node._input_metadata[number]
        return None if about.dtype.is_complex else tuple(int(s) for s in about.shape)
    except (AttributeError, IndexError):  # a custom function that kept no metadata
        return None


def _wrap(dim: int, rank: int) -> int:
    dim = dim - 2**64 if dim >= 2**63 else dim  # saved as unsigned
    return dim % rank if rank else 0


Source = tuple[Layout | None, Shape | None, bool]
"""Layout and shape of a node's input, and whether it depends on the picture: (None, shape, True) could not be told."""


def follow(edge: Edge, inputs: list[Source], pictures: int) -> Layout | None:
    """Returns the layout of the tensor `edge`, from those of its node's inputs, or None where it cannot be told.

    A Python autograd function is taken to work in place where it keeps the shape; that cannot be looked up.

    Args:
        edge: The node and the number of its output.
        inputs: Every input of the node.
        pictures: N, the number of pictures in the batch.
    """
    node, number = edge
    shape, name = shape_of(edge), base_name(node)
    known = [layout for layout, s, _ in inputs if layout is not None and s is not None]
    if shape is None:
        return None
    if name == "Convolution" and not known and len(shape) == 4 and shape[0] == pictures:
        return Layout.of_pictures(shape)  # a convolution's output says what its axes are
    if not known or name.startswith(_UNORDERED):
        return None
    rule = _attention if name.startswith("ScaledDotProduct") else _RULES.get(name, _elementwise)
    layout = rule(node, number, shape, inputs, known[0])
    if layout is None or not layout.consistent or (pictures > 1 and "N" not in _axes(layout.factors)):
        return None
    return layout


def _untold(inputs: list[Source]) -> bool:
    return any(depends and layout is None for layout, _, depends in inputs)


def _view(node, number, shape, inputs, layout):
    return layout.regroup(shape)


def _permute(node, number, shape, inputs, layout):
    return layout.permute([_wrap(d, len(shape)) for d in node._saved_dims])


def _transpose(node, number, shape, inputs, layout):
    order = list(range(len(shape)))
    a, b = (-2, -1) if base_name(node) == "T" else (node._saved_dim0, node._saved_dim1)
    a, b = _wrap(a, len(shape)), _wrap(b, len(shape))
    if len(shape) > 1:
        order[a], order[b] = order[b], order[a]
    return layout.permute(order)


def _expand(node, number, shape, inputs, layout):
    dims = ((),) * (len(shape) - len(layout.dims)) + layout.dims
    return Layout(tuple(d if _size(d) == s else _fresh("C", s) for d, s in zip(dims, shape, strict=True)))


def _select(node, number, shape, inputs, layout):
    return layout.drop([_wrap(node._saved_dim, len(layout.dims))])


def _slice(node, number, shape, inputs, layout):
    dim = _wrap(node._saved_dim, len(shape))
    size = _size(layout.dims[dim])
    start = node._saved_start if node._saved_start < 2**63 else node._saved_start - 2**64
    start = max(start + size, 0) if start < 0 else min(start, size)
    return layout.cut(dim, start, shape[dim]) if node._saved_step == 1 else layout.resize(shape)


def _split(node, number, shape, inputs, layout):
    dim = _wrap(node._saved_dim, len(shape))
    start = sum(s[dim] for i in range(number) if (s := shape_of((node, i))))
    return layout.cut(dim, start, shape[dim])


def _stack(node, number, shape, inputs, layout):
    dim = _wrap(node._saved_dim, len(shape))
    return Layout((*layout.dims[:dim], _fresh("C", shape[dim]), *layout.dims[dim:]))


def _flip(node, number, shape, inputs, layout):
    dims = [_wrap(d, len(shape)) for d in node._saved_dims] or range(len(shape))
    return None if any("N" in _axes(layout.dims[d]) for d in dims) else layout


def _cat(node, number, shape, inputs, layout):
    dim = _wrap(node._saved_dim, len(shape))
    parts = [part for part, _, _ in inputs]
    if _untold(inputs) or (dim == 0 and "N" not in _axes(layout.factors)):  # one picture, put beside itself
        return None
    spatial = [i for i, part in enumerate(parts) if part is not None and _spatial(part.dims[dim])]
    if not spatial:
        best = next((part for part in parts if part is not None and _spatial(part.factors)), layout)
        return best.resize(shape)
    at, part = spatial[0], parts[spatial[0]]
    if len(spatial) > 1 or part is None:
        return None
    extra = shape[dim] - _size(part.dims[dim])
    sizes = [s[dim] if s else None for _, s, _ in inputs]
    before = extra if at == len(inputs) - 1 else 0 if at == 0 else None
    if before is None and None not in sizes[:at]:
        before = sum(s for s in sizes[:at] if s)
    return None if before is None else part.with_extra_tokens(dim, before, shape[dim])


def _convolution(node, number, shape, inputs, layout):
    if len(layout.dims) != len(shape):
        return None
    channels = Layout((layout.dims[0], (), *layout.dims[2:])).resize((shape[0], 1, *shape[2:]))
    return channels and channels._with(1, _fresh("C", shape[1]))


def _product(node, number, shape, inputs, layout):
    """Rows of the left factor, columns of the right one; columns of a second picture factor are keys."""
    if base_name(node) == "Linear":  # input, weight, bias
        left, right = inputs[0][0], None
    else:  # (bias,) left, right
        left, right = (part for part, _, _ in inputs[-2:])
    if _untold(inputs) or (left is None and right is None):
        return None
    batch = () if base_name(node) == "Linear" else _batch(left, right, len(shape) - 2)
    if batch is None:
        return None
    rows = left.dims[:-1][len(batch) :] if left else (_fresh("C", shape[-2]),)
    columns = right.dims[-1] if right else _fresh("C", shape[-1])
    if left and _spatial([f for dim in rows for f in dim]) and _spatial(columns):
        columns = _fresh("K", shape[-1])
    result = Layout((*batch, *rows, columns))
    return result if tuple(_size(d) for d in result.dims) == tuple(shape) else None


def _batch(left: Layout | None, right: Layout | None, rank: int) -> tuple[Dim, ...] | None:
    """The leading dimensions of a product; None where its factors hold different pictures or windows there."""
    first, second = (part and Layout(part.dims[:rank]) for part in (left, right))
    if first and second and first.positions != second.positions:
        return None
    either = first or second
    return either.dims if either else ()


def _attention(node, number, shape, inputs, layout):
    query, key, value = (part for part, _, _ in inputs[:3])
    if query is None or _untold(inputs[:3]):
        return None
    rank = len(shape) - 2
    if _batch(query, key, rank) is None or _batch(query, value, rank) is None:
        return None
    last = value.dims[-1] if value and _size(value.dims[-1]) == shape[-1] else _fresh("C", shape[-1])
    return Layout((*query.dims[:-1], last))


def _reduction(node, number, shape, inputs, layout):
    rank = len(layout.dims)
    if len(shape) == rank:  # keepdim
        return Layout(tuple(d if _size(d) == s else () for d, s in zip(layout.dims, shape, strict=True)))
    dims = getattr(node, "_saved_dim", None)
    if dims is None:
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    return layout.drop([_wrap(d, rank) for d in dims] or list(range(rank)))


def _unfold(node, number, shape, inputs, layout):
    """Patches as columns: (N, C, H, W) to (N, C kh kw, rows x columns of patches)."""
    read = inputs[0][1]
    if read is None or len(read) != 4 or layout.resize((*read[:2], 1, 1)) is None:
        return None
    sides = zip(
        read[2:], node._saved_kernel_size, node._saved_dilation, node._saved_padding, node._saved_stride, strict=True
    )
    rows, columns = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, d, p, s in sides)
    return Layout((layout.dims[0], _fresh("C", shape[1]), _fresh("H", rows) + _fresh("W", columns)))


def _elementwise(node, number, shape, inputs, layout):
    """Of equal shape, or broadcast, or resized like a pooling: the layout of the input that says most."""
    same = [part for part, s, _ in inputs if part is not None and s == shape]
    spatial = [part for part in same if _spatial(part.factors)]
    if same:
        return None if len({part.positions for part in spatial}) > 1 else (spatial or same)[0]
    if len(inputs) > 1:
        parts = [part for part, _, _ in inputs if part is not None]
        dims = [_broadcast(parts, i, len(shape), s) for i, s in enumerate(shape)]
        return None if _untold(inputs) or None in dims else Layout(tuple(d for d in dims if d is not None))
    return layout.resize(shape) if base_name(node).startswith(_RESIZING) else None


def _broadcast(parts: list[Layout], dim: int, rank: int, size: int) -> Dim | None:
    for part in parts:
        at = dim - rank + len(part.dims)
        if at >= 0 and _size(part.dims[at]) == size:
            return part.dims[at]
    return None


def _as_strided(node, number, shape, inputs, layout):
    """What a view becomes when it was changed in place: where nothing was left out, a view again."""
    plain = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    read = inputs[0][1]
    strides = zip(node._saved_stride, plain, shape, strict=True)
    in_order = all(stride == expected for stride, expected, size in strides if size > 1)
    return layout.regroup(shape) if in_order and read is not None and math.prod(read) == math.prod(shape) else None


_RULES = {
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze"), _view),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    "Permute": _permute,
    "Transpose": _transpose,
    "T": _transpose,
    "Expand": _expand,
    "Select": _select,
    "Unbind": _select,
    "Slice": _slice,
    "Split": _split,
    "SplitWithSizes": _split,
    "Stack": _stack,
    "Cat": _cat,
    "Convolution": _convolution,
    "Im2Col": _unfold,
    "Col2Im": lambda *_: None,
    "Roll": _flip,
    "Flip": _flip,
    "AsStrided": _as_strided,
}

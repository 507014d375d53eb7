"""Average pooling and blurs in place of max-pooling and strides: against loops over windows, and on awkward modules."""

from __future__ import annotations

import copy
import io
import json
import math
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from timm.layers import Conv2dSame, StdConv2d
from timm.layers.padding import pad_same
from timm.layers.pool2d_same import MaxPool2dSame
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradspec.spectra import high_share
from gradspec.surgery import NothingToSwap, Record, average_pooled, blur_pooled, records
from gradspec.surgery.calls import downsampling
from gradspec.surgery.pooling import Average, Blur, blur
from gradspec.surgery.swaps import UnknownCall

EXACT = {"atol": 1e-12, "rtol": 1e-12}  # float64: the same few terms in another order


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def modes() -> int:
    return torch._C._len_torch_function_stack()


# ---- the slow versions -----------------------------------------------------------------------------------------------


def slow_mean(x: torch.Tensor, starts, lengths, steps, size) -> torch.Tensor:
    """Mean over the pixels start + i·step + (0 ... length - 1) that lie in the map; loops."""
    out = torch.full((*x.shape[:-2], *size), math.nan, dtype=x.dtype)
    height, width = x.shape[-2:]
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = starts[0] + i * steps[0], starts[1] + j * steps[1]
            rows = [r for r in range(top, top + lengths[0]) if 0 <= r < height]
            columns = [c for c in range(left, left + lengths[1]) if 0 <= c < width]
            pixels = [x[..., r, c] for r in rows for c in columns]
            out[..., i, j] = sum(pixels) / len(pixels)
    return out


def slow_dense_max(x: torch.Tensor, kernel, padding, dilation, size) -> torch.Tensor:
    """Max-pooling at stride 1 with `size` windows: loops; what lies outside the map does not count."""
    out = torch.full((*x.shape[:-2], *size), -math.inf, dtype=x.dtype)
    height, width = x.shape[-2:]
    for i in range(size[0]):
        for j in range(size[1]):
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    r, c = i - padding[0] + a * dilation[0], j - padding[1] + b * dilation[1]
                    if 0 <= r < height and 0 <= c < width:
                        out[..., i, j] = torch.maximum(out[..., i, j], x[..., r, c])
    return out


def binomial(taps: int) -> np.ndarray:
    weights = np.ones(1)
    for _ in range(taps - 1):
        weights = np.convolve(weights, [0.5, 0.5])
    return weights


def slow_blur(x: torch.Tensor, stride) -> torch.Tensor:
    """scipy's correlation with 2 stride - 1 binomial taps, edges mirrored without repeating the edge."""
    maps = x.numpy()
    for axis, s in zip((-2, -1), stride, strict=True):
        maps = ndimage.correlate1d(maps, binomial(2 * s - 1), axis=axis, mode="mirror")
    return torch.from_numpy(maps)


def mirrored(index: int, n: int) -> int:
    index = abs(index) % (2 * n - 2) if n > 1 else 0
    return min(index, 2 * n - 2 - index) if n > 1 else 0


def slow_blur_at(x: torch.Tensor, stride, first, size) -> torch.Tensor:
    """The blur at the pixels first + i·stride, which may lie beyond the edge."""
    out = torch.zeros((*x.shape[:-2], *size), dtype=x.dtype)
    taps = [binomial(2 * s - 1) for s in stride]
    for i in range(size[0]):
        for j in range(size[1]):
            for a, p in enumerate(taps[0]):
                for b, q in enumerate(taps[1]):
                    r = mirrored(first[0] + i * stride[0] + a - stride[0] + 1, x.shape[-2])
                    c = mirrored(first[1] + j * stride[1] + b - stride[1] + 1, x.shape[-1])
                    out[..., i, j] += p * q * x[..., r, c]
    return out


sides = st.integers(1, 13)
small = st.integers(1, 4)


@st.composite
def max_pools(draw, least: int = 1):
    """A map's sides, and settings of max-pooling that torch takes."""
    height, width = draw(st.integers(least, 13)), draw(st.integers(least, 13))
    kernel, stride = [(draw(small), draw(small)) for _ in range(2)]
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    for side, k, d, p in zip((height, width), kernel, dilation, padding, strict=True):
        assume(side + 2 * p >= d * (k - 1) + 1)
    keywords = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": draw(st.booleans())}
    return (height, width), kernel, keywords


def called(x: torch.Tensor, kernel, keywords):
    return downsampling(F.max_pool2d, (x, kernel), keywords)


def reaches(kernel, keywords) -> list[int]:
    return [d * (k - 1) + 1 for k, d in zip(kernel, keywords["dilation"], strict=True)]


# ---- max-pooling -> mean ---------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(pool=max_pools(), kernel=st.sampled_from(["same", "multiple_of_stride", 1, 2, 3, 5]))
def test_max_pooling_becomes_the_mean_over_windows_at_its_own_places(pool, kernel):
    sides, of_max, keywords = pool
    x = noise(1, 2, *sides)
    size = F.max_pool2d(x, of_max, **keywords).shape[-2:]
    lengths = []
    for reach, s, p in zip(reaches(of_max, keywords), keywords["stride"], keywords["padding"], strict=True):
        number = max(kernel, s, p + 1) if isinstance(kernel, int) else 0
        lengths.append({"same": max(reach, s), "multiple_of_stride": -(-reach // s) * s}.get(kernel, number))
    expected = slow_mean(x, [-p for p in keywords["padding"]], lengths, keywords["stride"], size)
    torch.testing.assert_close(Average(kernel)(called(x, of_max, keywords)), expected, **EXACT)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("same", [1 / 2, 2, 4, 11 / 2]),
        ("multiple_of_stride", [1, 5 / 2, 9 / 2, 11 / 2]),
        (2, [0, 3 / 2, 7 / 2, 11 / 2]),
    ],
)
def test_windows_of_seven_pixels_by_hand(kernel, expected):
    """MaxPool(3, 2, 1) starts its windows at -1, 1, 3, 5."""
    x = torch.arange(7.0).view(1, 1, 1, 7).double()
    call = downsampling(F.max_pool2d, (x, (1, 3), (1, 2), (0, 1)), {})
    assert Average(kernel)(call).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("side", "size"), [(7, 4), (55, 28), (57, 29)])
def test_the_max_pooling_of_kernel_1_in_keras_resnet_v2_becomes_a_mean(side, size):
    x = noise(1, 1, side, side)
    pool = nn.Sequential(nn.MaxPool2d(1, stride=2))
    mean = average_pooled(pool, inputs=x)[0](x)
    assert mean.shape == pool(x).shape == (1, 1, size, size)
    torch.testing.assert_close(mean[0, 0, 0, 0], x[0, 0, :2, :2].mean(), **EXACT)
    torch.testing.assert_close(mean[0, 0, -1, -1], x[0, 0, -1, -1], **EXACT)  # one pixel is left of the window


@pytest.mark.parametrize("side", [20, 21])
def test_padding_with_minus_infinity_does_not_count(side):
    """TF's same padding of max-pooling, as timm makes it."""
    x, pool = noise(2, 3, side, 27), MaxPool2dSame(3, 2)
    new, record = average_pooled(nn.Sequential(pool), inputs=x)
    total = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (side, 27)]
    expected = slow_mean(x, [-(t // 2) for t in total], (3, 3), (2, 2), pool(x).shape[-2:])
    torch.testing.assert_close(new(x), expected, **EXACT)
    assert record.changes[0].before == "max-pooling 3 x 3, stride 2, same padding"
    for order in ("blur", "blurmax", "maxblur"):
        blurred = blur_pooled(nn.Sequential(pool), order=order, inputs=x)[0](x)
        within = [1 - t // 2 for t in total]  # the middle of the first window
        if order == "blur":
            torch.testing.assert_close(blurred, slow_blur_at(x, (2, 2), within, blurred.shape[-2:]), **EXACT)
        if order == "maxblur":
            of_pixels = F.max_pool2d(F.pad(x, (1, 1, side % 2, 1), value=-math.inf), 3, 1)
            torch.testing.assert_close(blurred, slow_blur(of_pixels, (2, 2))[..., ::2, ::2], **EXACT)
        if order == "blurmax":
            torch.testing.assert_close(blurred, pool(slow_blur(x, (2, 2))), **EXACT)
        assert bool(blurred.isfinite().all()) and blurred.shape == pool(x).shape


def test_padding_with_minus_infinity_by_another_module_is_left():
    net = nn.Sequential(nn.ConstantPad2d(1, -math.inf), nn.MaxPool2d(3, 2), nn.MaxPool2d(2))
    _, record = average_pooled(net, inputs=noise(1, 3, 20, 20))
    assert [change.name for change in record.changes] == ["2"]
    assert record.left == {"1": "padded with −∞ by another module"}


# ---- strided convolution -> dense convolution and mean ---------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_strided_convolution_becomes_means_of_the_dense_one(data):
    draw = data.draw
    height, width, kernel, stride, dilation = draw(sides), draw(sides), *((draw(small), draw(small)) for _ in range(3))
    groups, padding = draw(st.sampled_from([1, 2])), draw(st.one_of(st.just("valid"), st.tuples(small, small)))
    assume(max(stride) > 1)
    added = (0, 0) if padding == "valid" else padding
    for side, k, d, p in zip((height, width), kernel, dilation, added, strict=True):
        assume(side + 2 * p >= d * (k - 1) + 1)
    x, weight, bias = noise(2, 4, height, width), noise(6, 4 // groups, *kernel, seed=1), noise(6, seed=2)
    keywords = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    size = F.conv2d(x, weight, bias, **keywords).shape[-2:]
    dense = F.conv2d(x, weight, bias, **keywords | {"stride": 1})
    result = Average()(downsampling(F.conv2d, (x, weight, bias), keywords))
    torch.testing.assert_close(result, slow_mean(dense, (0, 0), stride, stride, size), **EXACT)


# ---- blurs -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(height=st.integers(4, 13), width=st.integers(4, 13), stride=st.tuples(small, small))
def test_blur_is_scipys(height, width, stride):
    x, taps = noise(2, 3, height, width), tuple(2 * s - 1 for s in stride)
    torch.testing.assert_close(blur(x, taps), slow_blur(x, stride), **EXACT)
    every = slow_blur(x, stride)[..., :: stride[0], :: stride[1]]
    torch.testing.assert_close(blur(x, taps, stride, size=every.shape[-2:]), every, **EXACT)


@settings(max_examples=120, deadline=None)
@given(pool=max_pools(least=9))
def test_the_three_orders_of_a_blur_at_max_pooling(pool):
    sides, kernel, keywords = pool
    x, stride = noise(1, 2, *sides), keywords["stride"]
    call, strided = called(x, kernel, keywords), F.max_pool2d(x, kernel, **keywords)
    size, reach, padding = strided.shape[-2:], reaches(kernel, keywords), keywords["padding"]
    middle = [(r - 1) // 2 - p for r, p in zip(reach, padding, strict=True)]
    torch.testing.assert_close(Blur("blur")(call), slow_blur_at(x, stride, middle, size), **EXACT)
    torch.testing.assert_close(Blur("blurmax")(call), F.max_pool2d(slow_blur(x, stride), kernel, **keywords), **EXACT)
    windows = [
        max(n + 2 * p - r + 1, (k - 1) * s + 1)
        for n, p, r, k, s in zip(sides, padding, reach, size, stride, strict=True)
    ]
    assume(min(w - s for w, s in zip(windows, stride, strict=True)) >= 0)  # else there is nothing to mirror
    dense = slow_dense_max(x, kernel, padding, keywords["dilation"], windows)
    at = [slice(0, (k - 1) * s + 1, s) for k, s in zip(size, stride, strict=True)]
    torch.testing.assert_close(dense[..., at[0], at[1]], strided, **EXACT)
    torch.testing.assert_close(Blur("maxblur")(call), slow_blur(dense, stride)[..., at[0], at[1]], **EXACT)


@pytest.mark.parametrize("stride", [(2, 2), (3, 1), (1, 4)])
def test_the_orders_of_a_blur_at_a_strided_convolution(stride):
    x, weight, bias = noise(2, 4, 17, 14), noise(6, 2, 3, 2, seed=1), noise(6, seed=2)
    keywords = {"stride": stride, "padding": (2, 1), "dilation": (1, 2), "groups": 2}
    call = downsampling(F.conv2d, (x, weight, bias), keywords)
    blurred = F.conv2d(slow_blur(x, stride), weight, bias, **keywords)
    for order in ("blur", "blurmax"):
        torch.testing.assert_close(Blur(order)(call), blurred, **EXACT)
    dense = F.conv2d(x, weight, bias, **keywords | {"stride": 1})
    after = slow_blur(dense, stride)[..., :: stride[0], :: stride[1]]
    torch.testing.assert_close(Blur("maxblur")(call), after, **EXACT)


def test_a_blur_before_a_convolution_and_one_after_it_are_the_same_but_at_the_edges():
    x, weight = noise(1, 4, 21, 24), noise(6, 4, 3, 3, seed=1)
    call = downsampling(F.conv2d, (x, weight), {"stride": 2, "padding": 1})
    before, after = Blur("blur")(call), Blur("maxblur")(call)
    torch.testing.assert_close(before[..., 1:-1, 1:-1], after[..., 1:-1, 1:-1], **EXACT)
    assert not torch.allclose(before[..., 0, :], after[..., 0, :])


@pytest.mark.parametrize("order", ["blur", "maxblur", "blurmax"])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_maps_too_small_to_mirror_are_blurred_within_their_values(order, side):
    x = noise(1, 2, side, 5)
    y = Blur(order)(downsampling(F.max_pool2d, (x, 3, 4, 1), {}))
    assert y.shape == F.max_pool2d(x, 3, 4, 1).shape
    assert x.min() <= y.min() and y.max() <= x.max()  # weights that are positive and sum to 1


# ---- what it is for: the gradient ------------------------------------------------------------------------------------


def test_the_gradient_of_overlapping_means_has_a_checkerboard_unless_their_side_is_a_multiple_of_the_stride():
    def weights_of_pixels(kernel):
        x = noise(1, 1, 12, 12).requires_grad_()
        call = downsampling(F.max_pool2d, (x, 3, 2, 1), {})
        return torch.autograd.grad(Average(kernel)(call).sum(), x)[0][0, 0, 3:-3, 3:-3]

    same = weights_of_pixels("same") * 9  # in one or in two windows along each axis
    assert same[:2, :2].tolist() == [pytest.approx([4, 2]), pytest.approx([2, 1])]
    torch.testing.assert_close(same[:-2, :-2], same[2:, 2:], **EXACT)
    wide = weights_of_pixels("multiple_of_stride")
    torch.testing.assert_close(wide, torch.full_like(wide, 1 / 4), **EXACT)


def high_share_of(f) -> float:
    """Share of the input gradient's power above n/4, for white pictures and a smooth gradient from above."""
    x = noise(32, 1, 64, 64).requires_grad_()
    y = f(x)
    smooth = ndimage.gaussian_filter(noise(*y.shape, seed=1).numpy(), (0, 0, 2, 2), mode="wrap")
    (gradient,) = torch.autograd.grad(y, x, torch.from_numpy(smooth))
    return float(np.mean(np.asarray(high_share(gradient))))


@pytest.mark.parametrize(
    ("kernel", "replacement", "share"),
    [
        (3, None, 0.80), (2, None, 0.71), (1, None, 0.76),
        (3, Average(), 0.19), (2, Average(), 0.02),
        (3, Average("multiple_of_stride"), 0.02), (2, Average("multiple_of_stride"), 0.02), (1, Average(), 0.02),
        (3, Blur("blur"), 0.01), (3, Blur("blurmax"), 0.16), (3, Blur("maxblur"), 0.78),
        (2, Blur("blur"), 0.01), (2, Blur("blurmax"), 0.12), (2, Blur("maxblur"), 0.65),
    ],
)  # fmt: skip
def test_high_frequencies_in_the_gradient_of_one_operator(kernel, replacement, share):
    """The table of docs/surgery.md, and SPEC §3's 0.70, 0.75 (kernel 1: a slice), 0.16-0.20, 0.02, 0.01, 0.11, 0.64."""
    arguments = (kernel, 2, kernel // 3)

    def f(x):
        if replacement is None:
            return F.max_pool2d(x, *arguments)
        return replacement(downsampling(F.max_pool2d, (x, *arguments), {}))

    assert high_share_of(f) == pytest.approx(share, abs=0.01)


# ---- which calls are found, and by which name ------------------------------------------------------------------------


class Container(nn.Module):
    """A convolution without a stride, then any function of its map."""

    def __init__(self, function, out: int = 4):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, out, 3, padding=1), function

    def forward(self, x):
        return self.function(self.conv(x))


def net(function, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    made = Container(function)
    for i, p in enumerate(made.parameters()):
        p.data = noise(*p.shape, seed=i, dtype=torch.float32)
    return made.to(dtype).eval()


def dense(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a Conv2d makes of x at stride 1."""
    copied = copy.deepcopy(module)
    copied.stride = (1, 1)
    return copied(x)


PICTURE = noise(2, 3, 17, 22, seed=5)


@pytest.mark.parametrize(
    ("function", "expected", "name"),
    [
        (lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), ":max_pool2d"),
        (lambda x: F.max_pool2d(x, 2, None), lambda x: F.avg_pool2d(x, 2), ":max_pool2d"),
        (lambda x: torch.max_pool2d(x, [2, 2], []), lambda x: F.avg_pool2d(x, 2), ":max_pool2d"),
        (lambda x: torch.max_pool2d(x, (3,), stride=()), lambda x: F.avg_pool2d(x, 3), ":max_pool2d"),
        (lambda x: F.max_pool2d(x, np.int64(3), stride=np.int64(2)), lambda x: F.avg_pool2d(x, 3, 2), ":max_pool2d"),
        (lambda x: F.max_pool2d(input=x, kernel_size=2, ceil_mode=True),
         lambda x: F.avg_pool2d(x, 2, ceil_mode=True), ":max_pool2d"),
        (lambda x: F.adaptive_max_pool2d(x, (None, 3)), lambda x: F.adaptive_avg_pool2d(x, (17, 3)),
         ":adaptive_max_pool2d"),
        (lambda x: x.amax((2, 3)), lambda x: x.mean((2, 3)), ":amax"),
        (lambda x: x.amax(axis=(-2, -1), keepdims=True), lambda x: x.mean((2, 3), keepdim=True), ":amax"),
        (lambda x: torch.amax(x, dim=[2, 3], keepdim=True), lambda x: x.mean((2, 3), keepdim=True), ":amax"),
        (lambda x: x.permute(0, 2, 3, 1).amax((1, 2)), lambda x: x.mean((2, 3)), ":amax"),  # (N, H, W, C)
        (lambda x: x.flatten(2).amax(2), lambda x: x.mean((2, 3)), ":amax"),  # tokens
        (lambda x: F.max_pool2d(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 2), lambda x: F.avg_pool2d(x, 2),
         ":max_pool2d"),
    ],
)  # fmt: skip
def test_every_way_to_call_a_maximum_is_swapped(function, expected, name):
    old = net(function)
    new, record = average_pooled(old, inputs=PICTURE)
    assert [change.name for change in record.changes] == [name] and record.left == {}
    torch.testing.assert_close(new(PICTURE), expected(old.conv(PICTURE)), **EXACT)


def chain(*functions):
    """max_pool2d, and then each of some functions; their outputs side by side."""

    def all_of_them(x):
        y = F.max_pool2d(x, 2)
        return torch.cat([f(y).reshape(len(x), -1) for f in functions], 1)

    return all_of_them


@pytest.mark.parametrize("shape", [(1, 22), (17, 1), (1, 1)])
def test_a_maximum_of_a_map_of_one_row_or_column_is_swapped(shape):
    old = net(lambda x: F.adaptive_avg_pool2d(x, shape).amax((2, 3)))
    new, record = average_pooled(old, inputs=PICTURE)
    assert [change.name for change in record.changes] == [":amax"]
    torch.testing.assert_close(new(PICTURE), old.conv(PICTURE).mean((2, 3)), **EXACT)


def test_where_the_layout_is_lost_the_record_says_so():
    function = chain(lambda x: F.linear(torch.sort(x, 2).values.unfold(2, 2, 1), x.new_ones(3, 2)).relu())
    _, record = average_pooled(net(function), inputs=PICTURE)
    assert record.notes == (
        "The map's layout cannot be told behind ':sort' and 4 more: a linear layer that shrinks it is not listed.",
    )


def test_pooling_that_returns_positions_is_read_as_none():
    x = noise(1, 2, 6, 6)
    for function, argument in ((F.max_pool2d, 2), (F.adaptive_max_pool2d, 2)):
        assert downsampling(function, (x, argument), {}) is not None
        assert downsampling(function, (x, argument), {"return_indices": True}) is None


MAXIMUM = "a maximum of another kind, or one that returns its positions"
PICKS = "picks positions by their numbers"
PATCHES = "cuts patches at a step"
CHANNELS = "puts neighbouring positions into channels"
UNKNOWN = "an operator that is not known shrinks the map"
INTERPOLATES = "interpolates to a smaller map"
GRID = F.affine_grid(torch.eye(2, 3, dtype=torch.float64)[None], [1, 4, 4, 5], align_corners=False)


def space_to_depth(x):
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
    return F.conv2d(x, torch.ones(3, 4 * c, 3, 3, dtype=x.dtype), padding=1)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], {":max_pool2d#1": MAXIMUM}),
        (lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0], {":adaptive_max_pool2d": MAXIMUM}),
        (lambda x: F.fractional_max_pool2d(x, 2, output_size=3, _random_samples=noise(2, 4, 2).sigmoid()),
         {":fractional_max_pool2d": MAXIMUM}),
        (lambda x: torch.ops.aten.max_pool2d(x, 2), {":max_pool2d#1": MAXIMUM}),
        (lambda x: F.max_pool1d(x.flatten(2), 2), {":max_pool2d#1": MAXIMUM}),
        (lambda x: x.max(2)[0].max(2)[0], {":max": MAXIMUM, ":max#1": MAXIMUM}),
        (lambda x: x.flatten(2).max(2).values, {":max": MAXIMUM}),
        (lambda x: x.amax((1, 2, 3)), {":amax": MAXIMUM}),
        (lambda x: x.amax().expand(len(x)), {":amax": MAXIMUM}),
        (lambda x: x[:, :, ::2, 1::2], {":slice": "a slice with a step", ":slice#1": "a slice with a step"}),
        (lambda x: x[..., ::2], {":slice": "a slice with a step"}),
        (lambda x: x.permute(0, 2, 3, 1)[:, ::2], {":slice": "a slice with a step"}),
        (lambda x: x[:, :, torch.arange(0, 8, 2)], {":index": PICKS}),
        (lambda x: x.index_select(2, torch.arange(0, 8, 2)), {":index_select": PICKS}),
        (lambda x: x[:, :, 3], {":select": PICKS}),
        (lambda x: x[..., :10].unflatten(3, (5, 2)).unflatten(2, (4, 2))[:, :, :, 0, :, 1], {":select": PICKS}),
        (lambda x: F.avg_pool2d(x, (2, 1), 2), {":avg_pool2d": "a mean over fewer pixels than its stride"}),
        (lambda x: F.interpolate(x, scale_factor=0.5), {":upsample_nearest2d": INTERPOLATES}),
        (lambda x: F.interpolate(x, size=(7, 10), mode="bilinear"), {":upsample_bilinear2d": INTERPOLATES}),
        (lambda x: F.grid_sample(x, GRID.expand(len(x), -1, -1, -1), align_corners=False),
         {":grid_sampler2d": INTERPOLATES}),
        (lambda x: F.unfold(x, 2, stride=2), {":im2_col": PATCHES}),
        (lambda x: x.unfold(2, 4, 4).mean(-1), {":unfold": PATCHES}),
        (lambda x: F.pixel_unshuffle(x[..., :10], 2), {":pixel_unshuffle": CHANNELS}),
        (lambda x: space_to_depth(x[..., :10]), {":conv2d": "reads neighbouring positions as channels"}),
        (lambda x: (F.avg_pool2d(x, (2, 1)).flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1)
                   @ x.flatten(2).transpose(1, 2), {":matmul#1": "attends from fewer positions"}),
        (lambda x: F.conv1d(x.flatten(2), x.new_ones(2, 4, 3), stride=2), {":conv2d": "not made by a call of conv2d"}),
        (lambda x: F.conv_transpose2d(x, x.new_ones(4, 2, 2, 2), stride=2),
         {":conv2d": "a transposed convolution enlarges the map"}),
        (lambda x: F.linear(F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1)).view(-1, 4, 2, 6, 2, 4).transpose(2, 3)
                            .flatten(3), x.new_ones(5, 16)),
         {":linear": "merges neighbouring positions in a linear layer"}),
    ],
)  # fmt: skip
def test_what_else_shrinks_the_map_is_left_and_listed(function, left):
    old = net(chain(function))
    new, record = average_pooled(old, inputs=PICTURE)
    assert [change.name for change in record.changes] == [":max_pool2d"] and record.left == left
    torch.testing.assert_close(new(PICTURE), function(F.avg_pool2d(old.conv(PICTURE), 2)).reshape(2, -1), **EXACT)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.amax(1, keepdim=True) * x,
        lambda x: x.permute(0, 2, 3, 1).amax(-1),
        lambda x: x.flatten(2).transpose(1, 2).max(2).values,
        lambda x: torch.maximum(x, x.flip(-1)),
        lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1) @ x.flatten(2).transpose(1, 2),
        lambda x: x[:, ::2],
        lambda x: x[:, 1],
        lambda x: x.flatten(2).transpose(1, 2)[:, 0],
        lambda x: x[:, :, 1:-1, 2:],
        lambda x: x.view(-1, 4, 2, 4, 11).transpose(2, 3).contiguous().view(-1, 4, 8, 11),
        lambda x: F.conv2d(x, x.new_ones(4, 4, 5, 5)),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: x.mean((2, 3)),
        lambda x: F.linear(x.flatten(1), x.new_ones(3, 352)),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.lp_pool2d(x.square() + 1, 2.0, 2),
    ],
)
def test_what_shrinks_no_map_by_picking_is_neither_swapped_nor_listed(function):
    _, record = average_pooled(net(chain(function)), inputs=PICTURE)
    assert [change.name for change in record.changes] == [":max_pool2d"] and record.left == {}


def test_a_deformable_convolution_is_left():
    from torchvision.ops import deform_conv2d

    def function(x):
        return deform_conv2d(x, x.new_zeros(len(x), 18, 4, 6), x.new_ones(4, 4, 3, 3), stride=2, padding=1)

    _, record = average_pooled(net(chain(function)), inputs=PICTURE)
    assert list(record.left.values()) == [UNKNOWN]


CONVOLUTIONS = {
    "zeros": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "reflect": nn.Conv2d(3, 4, 3, stride=2, padding=2, padding_mode="reflect"),
    "circular": nn.Conv2d(3, 4, (3, 5), stride=(1, 3), padding=2, padding_mode="circular"),
    "groups and dilation": nn.Conv2d(3, 6, 3, stride=3, groups=3, dilation=2, bias=False),
    "weight standardisation": StdConv2d(3, 4, 3, stride=2, padding=1),
    "kernel below the stride": nn.Conv2d(3, 4, 1, stride=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_kind_of_convolution_module(kind):
    module = copy.deepcopy(CONVOLUTIONS[kind]).double().eval()
    new, record = average_pooled(nn.Sequential(module), inputs=PICTURE)
    size = module(PICTURE).shape[-2:]
    expected = slow_mean(dense(module, PICTURE), (0, 0), module.stride, module.stride, size)
    torch.testing.assert_close(new(PICTURE), expected, **EXACT)
    assert [change.name for change in record.changes] == ["0:conv2d" if kind == "reflect" else "0"]
    assert record.left == {} and isinstance(new[0], type(module)) and new[0].stride == module.stride


def test_same_padding_of_tensorflow():
    module = Conv2dSame(3, 4, 3, stride=2).double()
    padded = pad_same(PICTURE, [3, 3], [2, 2])
    all_of_them = F.conv2d(padded, module.weight, module.bias)
    new, _ = average_pooled(nn.Sequential(module), inputs=PICTURE)
    expected = slow_mean(all_of_them, (0, 0), (2, 2), (2, 2), module(PICTURE).shape[-2:])
    torch.testing.assert_close(new(PICTURE), expected, **EXACT)
    new, _ = average_pooled(nn.Sequential(module), inputs=PICTURE[..., 1:, :-1])  # padded otherwise at other sizes
    torch.testing.assert_close(new(PICTURE), expected, **EXACT)


def test_pictures_without_a_batch_inside_the_network():
    kernel = noise(5, 4, 2, 2)

    def one_by_one(x):
        return torch.stack([F.conv2d(F.max_pool2d(picture, 2), kernel, stride=2) for picture in x])

    old = net(one_by_one)
    new, record = average_pooled(old, inputs=PICTURE)
    assert [change.name for change in record.changes] == [":max_pool2d", ":conv2d"]
    torch.testing.assert_close(new(PICTURE[:1]), F.avg_pool2d(
        F.conv2d(F.avg_pool2d(old.conv(PICTURE[:1]), 2), kernel), 2, ceil_mode=True), **EXACT)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [None, "blur", "maxblur", "blurmax"])
def test_precision_and_memory_format(dtype, order):
    old = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(3, 2, 1)).to(dtype, memory_format=torch.channels_last)
    x = PICTURE.to(dtype, memory_format=torch.channels_last)
    new, _ = average_pooled(old, inputs=x) if order is None else blur_pooled(old, order=order, inputs=x)
    assert new(x).dtype == dtype and new[0].weight.is_contiguous(memory_format=torch.channels_last)
    reference = average_pooled(old.double(), inputs=PICTURE) if order is None else blur_pooled(
        old.double(), order=order, inputs=PICTURE)  # fmt: skip
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(new(x).double(), reference[0](x.double()), atol=close, rtol=close)


# ---- several calls, shared and nested modules ------------------------------------------------------------------------


def test_the_second_call_of_a_function_can_be_swapped_alone_and_so_can_the_first():
    old = net(lambda x: F.max_pool2d(F.max_pool2d(x, 3, 2), 2))
    names = {":max_pool2d": "not selected", ":max_pool2d#1": "not selected"}
    y = old.conv(PICTURE)
    expected = {
        ":max_pool2d": F.max_pool2d(F.avg_pool2d(y, 3, 2), 2),
        ":max_pool2d#1": F.avg_pool2d(F.max_pool2d(y, 3, 2), 2),
        ":max_pool2d*": F.avg_pool2d(F.avg_pool2d(y, 3, 2), 2),
    }
    for only, output in expected.items():
        new, record = average_pooled(old, only=only, inputs=PICTURE)
        torch.testing.assert_close(new(PICTURE), output, **EXACT)
        assert record.left == {name: why for name, why in names.items() if name != only and "*" not in only}
    new, _ = average_pooled(old, except_=":max_pool2d", inputs=PICTURE)
    torch.testing.assert_close(new(PICTURE), expected[":max_pool2d#1"], **EXACT)


def test_calls_that_are_no_site_do_not_disturb_the_numbers():
    """Convolutions without a stride, maxima over channels, others on no picture, pooling that returns positions."""
    fixed = noise(1, 4, 8, 8)

    def mixed(x):
        gate = F.max_pool2d(fixed, 2).mean() + x.amax(1, keepdim=True)
        x = F.conv2d(x * gate, x.new_ones(4, 4, 1, 1))
        x = F.max_pool2d(x, 2, return_indices=True)[0] + F.max_pool2d(x, 2)
        return F.max_pool2d(x, 2)

    old = net(mixed)
    new, record = average_pooled(old, only=":max_pool2d#2", inputs=PICTURE)
    kept = copy.deepcopy(old)
    kept.function = lambda x: mixed_but_last(x)

    def mixed_but_last(x):
        gate = F.max_pool2d(fixed, 2).mean() + x.amax(1, keepdim=True)
        x = F.conv2d(x * gate, x.new_ones(4, 4, 1, 1))
        return F.avg_pool2d(F.max_pool2d(x, 2) * 2, 2)

    torch.testing.assert_close(new(PICTURE), kept(PICTURE), **EXACT)
    assert record.left == {":max_pool2d": MAXIMUM, ":max_pool2d#1": "not selected"}


class Shared(nn.Module):
    """One pooling and one block under two parents; the pooling is used three times."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True))
        self.b = nn.Sequential(self.a, self.pool)
        self.again = self.a[0]

    def forward(self, x):
        return self.pool(self.b(x)) + F.interpolate(self.pool(self.pool(self.a(x))), scale_factor=1)


def test_shared_modules_stay_shared_and_are_one_operator():
    old = Shared().double()
    new, record = average_pooled(old, inputs=PICTURE)
    assert new.b[0] is new.a and new.b[1] is new.pool and new.again is new.a[0] and new.a is not old.a
    assert new.again.weight is new.a[0].weight
    assert [change.name for change in record.changes] == ["a.0", "pool"]  # called under either name
    y = F.avg_pool2d(F.conv2d(PICTURE, old.a[0].weight, old.a[0].bias), 2, ceil_mode=True).relu()
    torch.testing.assert_close(new(PICTURE), 2 * F.avg_pool2d(F.avg_pool2d(y, 2), 2), **EXACT)
    assert old.state_dict().keys() == new.state_dict().keys()


def test_a_module_in_a_plain_list_is_swapped_too():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.pools = [nn.MaxPool2d(2)]

        def forward(self, x):
            return self.pools[0](x * 1.0)

    old = Hidden()
    new, record = average_pooled(old, inputs=PICTURE)
    torch.testing.assert_close(new(PICTURE), F.avg_pool2d(PICTURE, 2), **EXACT)
    assert len(record.changes) == 1 and type(old.pools[0]) is nn.MaxPool2d


def test_a_module_that_is_made_in_every_forward_pass_is_left():
    old = net(chain(lambda x: nn.MaxPool2d(2)(x)))
    _, record = average_pooled(old, inputs=PICTURE)
    assert record.left == {":max_pool2d#1": "the network makes its module anew in every forward pass"}


def test_a_module_that_calls_itself():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, depth=0):
            y = F.max_pool2d(self.conv(x), 2)
            return y.mean((2, 3)) if depth else self(y, 1) + y.mean((2, 3))

    old = Pyramid().double()
    new, record = average_pooled(old, inputs=PICTURE)
    y = F.avg_pool2d(old.conv(PICTURE), 2)
    torch.testing.assert_close(new(PICTURE), F.avg_pool2d(old.conv(y), 2).mean((2, 3)) + y.mean((2, 3)), **EXACT)
    assert [change.name for change in record.changes] == [":max_pool2d"]


def test_a_stride_and_a_relu_in_place_behind_it():
    old = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)).double()
    new, record = average_pooled(old, inputs=PICTURE)
    y = slow_mean(dense(old[0], PICTURE), (0, 0), (2, 2), (2, 2), old[0](PICTURE).shape[-2:]).relu()
    torch.testing.assert_close(new(PICTURE), F.avg_pool2d(y, 2), **EXACT)
    assert [change.name for change in record.changes] == ["0", "2"]


def test_adaptive_and_dense_maxima_have_no_stride_to_blur_for():
    old = net(lambda x: F.adaptive_max_pool2d(F.max_pool2d(F.max_pool2d(x, 3, 1, 1), 2), 3))
    new, record = blur_pooled(old, inputs=PICTURE)
    assert [change.name for change in record.changes] == [":max_pool2d#1"]
    assert record.left == {":adaptive_max_pool2d": "an adaptive maximum has no stride to blur for"}
    y = slow_blur_at(F.max_pool2d(old.conv(PICTURE), 3, 1, 1), (2, 2), (0, 0), (8, 11))
    torch.testing.assert_close(new(PICTURE), F.adaptive_max_pool2d(y, 3), **EXACT)
    with pytest.raises(NothingToSwap, match="has no stride to blur for"):
        blur_pooled(old, only=":max_pool2d", inputs=PICTURE)
    assert blur_pooled(old, only=":max_pool2d#1", inputs=PICTURE)[1].left == {":adaptive_max_pool2d": "not selected"}


# ---- the copy and the original ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """Functional operators and modules; a gradient-checkpointed part; frozen and half-trained parameters."""

    def __init__(self, checkpointed: bool = False):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.tail = nn.Conv2d(6, 5, 3, stride=(1, 2), padding=1)
        self.checkpointed = checkpointed

    def forward_features(self, x):
        return checkpoint(self.stem, x, use_reentrant=False) if self.checkpointed else self.stem(x)

    def forward(self, x):
        return F.max_pool2d(self.tail(self.forward_features(x)), 2)


def block(**options) -> Block:
    made = Block(**options).double()
    for i, p in enumerate(made.parameters()):
        p.data = noise(*p.shape, seed=i) * 0.3 + (p.ndim == 1)
    made.tail.bias.requires_grad_(False)
    made.train()
    made.stem[1].eval()
    return made


def averaged_by_hand(old: Block, x: torch.Tensor) -> torch.Tensor:
    y = old.stem[1](F.avg_pool2d(dense(old.stem[0], x), 2, ceil_mode=True)).relu()
    y = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
    return F.avg_pool2d(F.avg_pool2d(dense(old.tail, y), (1, 2), ceil_mode=True), 2)


def test_the_original_is_untouched_and_its_checkpoint_loads():
    old, calls = block(), []
    old.stem.register_forward_hook(lambda module, args, out: calls.append(module))
    old.note = {"mean": [0.5]}
    old(PICTURE).sum().backward()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in old.named_parameters() if p.grad is not None}
    flags = {name: (type(module), module.training) for name, module in old.named_modules()}
    calls.clear()
    for new, _ in (average_pooled(old, inputs=PICTURE), *(
        blur_pooled(old, order=order, inputs=PICTURE) for order in ("blur", "maxblur", "blurmax"))):  # fmt: skip
        assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
        assert {name: (type(m), m.training) for name, m in old.named_modules()} == flags
        assert [m.training for m in new.modules()] == [flag for _, flag in flags.values()]
        kept = {name: p.grad for name, p in old.named_parameters() if p.grad is not None}
        assert kept.keys() == grads.keys() and all(torch.equal(kept[name], grads[name]) for name in grads)
        assert records(old) == () and len(records(new)) == 1 and new.note == old.note and new.note is not old.note
        assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in old.parameters()]
        assert not {p.data_ptr() for p in new.parameters()} & {p.data_ptr() for p in old.parameters()}
        assert list(new.state_dict()) == list(before)
        new.load_state_dict({name: value + 1 for name, value in before.items()}, strict=True)
        calls.clear()
        new(PICTURE)
        assert calls == [new.stem]  # the hook is on the copy as well
    assert not old.stem[0].weight.equal(new.stem[0].weight)


def test_values_and_gradients_are_those_by_hand():
    old = block()
    new, record = average_pooled(old, inputs=PICTURE)
    x = PICTURE.clone().requires_grad_()
    torch.testing.assert_close(new(x), averaged_by_hand(old, x), **EXACT)
    weights = noise(*new(x).shape, seed=9)
    for got, expected in zip(
        torch.autograd.grad(new(x), (x, new.stem[0].weight, new.tail.weight), weights),
        torch.autograd.grad(averaged_by_hand_in_place(old, x), (x, old.stem[0].weight, old.tail.weight), weights),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, **EXACT)
    assert [(change.name, change.type, change.after) for change in record.changes] == [
        ("stem.0", "strided convolution", "stride 1, then mean over 2 x 2"),
        ("stem.3", "max pooling", "mean over 3 x 3, stride 2"),
        ("tail", "strided convolution", "stride 1, then mean over 1 x 2"),
        (":max_pool2d", "max pooling", "mean over 2 x 2, stride 2"),
    ]


def averaged_by_hand_in_place(old: Block, x: torch.Tensor) -> torch.Tensor:
    """With the original's own parameters, for gradients with respect to them."""
    conv, tail = old.stem[0], old.tail
    y = old.stem[1](F.avg_pool2d(F.conv2d(x, conv.weight, conv.bias), 2, ceil_mode=True)).relu()
    y = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
    y = F.conv2d(y, tail.weight, tail.bias, padding=1)
    return F.avg_pool2d(F.avg_pool2d(y, (1, 2), ceil_mode=True), 2)


def test_checkpointed_blocks_are_recomputed_with_the_operators_swapped():
    plain, saving = block(), block(checkpointed=True)
    for module in (plain, saving):
        module.train()  # BatchNorm too: the blocks run again while the graph is read
    x = PICTURE.clone().requires_grad_()
    gradients = []
    for old in (plain, saving):
        new, record = average_pooled(old, inputs=PICTURE)
        assert [change.name for change in record.changes] == ["stem.0", "stem.3", "tail", ":max_pool2d"]
        assert all(module.training for module in new.modules())
        gradients.append(torch.autograd.grad(new(x).square().sum(), x)[0])
    torch.testing.assert_close(*gradients, **EXACT)


def test_a_function_in_a_checkpointed_closure_raises_rather_than_recomputing_the_maximum():
    old = net(lambda x: checkpoint(lambda y: F.max_pool2d(y, 3, 2, 1).square(), x, use_reentrant=False))
    new, _ = average_pooled(old, inputs=PICTURE)
    with pytest.raises(RuntimeError, match=r"recomputation|different number of tensors|different metadata"):
        new(PICTURE).sum().backward()


def test_reentrant_checkpointing_is_refused():
    made = net(lambda x: checkpoint(nn.MaxPool2d(2), x, use_reentrant=True))
    for inputs in (PICTURE, None):
        with pytest.raises(ValueError, match=r"give use_reentrant=False or turn it off[.]$"):
            average_pooled(made, inputs=inputs)


class Caching(nn.Module):
    """Keeps in eval mode what it computed of its weights, as timm's LeViT does, and its last features."""

    def __init__(self):
        super().__init__()
        self.bias, self.bias_cache, self.last = nn.Parameter(torch.ones(3, dtype=torch.float64)), {}, [None]
        self.pool, self.passes = nn.MaxPool2d(2), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        if "bias" not in self.bias_cache:
            self.bias_cache["bias"] = self.bias[[0, 1, 2]] * 2
        self.last[0], self.passes = self.pool(x) + self.bias_cache["bias"][:, None, None], self.passes + 1
        return self.last[0]


def test_what_the_forward_pass_leaves_in_a_network():
    old = Caching().eval()
    old(PICTURE)  # the cache and the features have a graph now, which deepcopy refuses
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(old)
    new, _ = average_pooled(old, inputs=PICTURE)
    assert new.count == old.count == 1
    assert new.bias_cache == {} and new.passes == old.passes == 1  # the passes of the surgery left nothing
    assert not new.last[0].requires_grad and torch.equal(new.last[0], old.last[0]) and old.last[0].requires_grad
    new.bias.data.fill_(5)
    torch.testing.assert_close(new(PICTURE), F.avg_pool2d(PICTURE, 2) + 10, **EXACT)
    copy.deepcopy(average_pooled(Caching().eval(), inputs=PICTURE)[0])


def test_the_path_in_eval_mode_counts_whatever_the_mode_of_the_network():
    class Auxiliary(nn.Module):
        def forward(self, x):
            x = F.max_pool2d(x, 3, 2) if self.training else x * 1.0
            return F.max_pool2d(x, 2)

    old = nn.Sequential(Auxiliary(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).double()
    new, record = average_pooled(old.train(), inputs=PICTURE.float())  # one picture: BatchNorm would raise
    assert [change.name for change in record.changes] == ["0"] and new[0].training and new[2].training
    torch.testing.assert_close(new.eval()[0](PICTURE), F.avg_pool2d(PICTURE, 2), **EXACT)


def test_the_global_generator_and_gradient_modes():
    old = net(lambda x: F.max_pool2d(x + 0 * torch.rand(1), 2))
    state = torch.get_rng_state()
    average_pooled(old, inputs=PICTURE)
    average_pooled(old)
    assert torch.equal(torch.get_rng_state(), state)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            new, _ = average_pooled(old, inputs=PICTURE)
        x = PICTURE.clone().requires_grad_()
        assert torch.autograd.grad(new(x).sum(), [x, new.conv.weight])[0].abs().sum() > 0


def test_weight_norm_and_parametrizations():
    for normed in (torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm):
        old = nn.Sequential(normed(nn.Conv2d(3, 4, 3, stride=2))).double().eval()
        new, record = average_pooled(old, inputs=PICTURE)
        expected = F.avg_pool2d(F.conv2d(PICTURE, old[0].weight, old[0].bias), 2, ceil_mode=True)
        torch.testing.assert_close(new(PICTURE), expected, **EXACT)
        assert [change.name for change in record.changes] == ["0"]


# ---- the variant as a module -----------------------------------------------------------------------------------------


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_deepcopy_and_pickle_of_a_variant():
    new, record = average_pooled(block(), inputs=PICTURE)
    both, _ = blur_pooled(block(), order="maxblur", inputs=PICTURE)
    for variant in (new, both):
        for copied in (copy.deepcopy(variant), saved(variant)):
            assert torch.equal(copied(PICTURE), variant(PICTURE)) and copied is not variant
            assert records(copied) == records(variant) and isinstance(copied, Block)
            copied.tail.weight.data.fill_(0)
            assert not torch.equal(copied(PICTURE), variant(PICTURE))
    assert repr(new).startswith("SwappedBlock(\n  mean over 2 x 2, stride 2\n") and record == records(new)[0]


def test_an_exception_inside_leaves_no_mode_behind():
    class Fails(nn.Module):
        error: type[BaseException] | None = None

        def forward(self, x):
            if self.error is not None:
                raise self.error
            return F.max_pool2d(x * 1.0, 2)

    old = nn.Sequential(nn.Conv2d(3, 4, 3, 2), Fails()).double()
    new, _ = average_pooled(old, inputs=PICTURE)
    expected = new(PICTURE)
    for error in (ValueError, KeyboardInterrupt):
        new[1].error = error
        with pytest.raises(error):
            new(PICTURE)
        assert modes() == 0
        with pytest.raises(error if error is KeyboardInterrupt else ValueError):
            average_pooled(new, inputs=PICTURE)
        assert modes() == 0 and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        new[1].error = None
        assert torch.equal(new(PICTURE), expected)


def test_threads_do_not_see_each_others_numbers():
    old = net(lambda x: F.max_pool2d(F.max_pool2d(x, 2), 2))
    new, _ = average_pooled(old, only=":max_pool2d#1", inputs=PICTURE)
    expected, results = new(PICTURE), []
    threads = [threading.Thread(target=lambda: results.extend(new(PICTURE) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(torch.equal(result, expected) for result in results)


def test_a_surgery_after_a_surgery():
    old = block()
    at_once, _ = average_pooled(old, inputs=PICTURE)
    one, first = average_pooled(old, kinds=("max",), inputs=PICTURE)
    two, second = average_pooled(one, kinds=("stride",), inputs=PICTURE)
    assert torch.equal(two(PICTURE), at_once(PICTURE)) and not torch.equal(one(PICTURE), two(PICTURE))
    assert records(two) == (first, second) and records(one) == (first,)
    assert first.left == {"stem.0": "not selected", "tail": "not selected"} and second.left == {}
    with pytest.raises(NothingToSwap):
        average_pooled(at_once, inputs=PICTURE)
    assert type(two.stem[3]).__name__ == "SwappedMaxPool2d" and modes() == 0


def test_averages_of_a_network_with_blurs():
    """The blur's own stride is swapped: after it every blur is dense, and then a mean."""
    old = nn.Sequential(nn.MaxPool2d(3, 2, 1))
    blurred, _ = blur_pooled(old, order="maxblur", inputs=PICTURE)
    new, record = average_pooled(blurred, inputs=PICTURE)
    assert [change.type for change in record.changes] == ["max pooling", "strided convolution"]
    averaged = F.avg_pool2d(F.pad(PICTURE, (1, 1, 1, 1)), 3, 1) * 9 / F.avg_pool2d(
        F.pad(torch.ones_like(PICTURE), (1, 1, 1, 1)), 3, 1) / 9  # fmt: skip
    dense_blur = slow_blur(averaged, (2, 2))
    expected = F.avg_pool2d(dense_blur, 2, ceil_mode=True)
    torch.testing.assert_close(new(PICTURE)[..., :-1, :-1], expected[..., :-1, :-1], **EXACT)
    assert new(PICTURE).shape == old(PICTURE).shape and len(records(new)) == 2


def test_parts_of_a_variant_and_other_ways_to_call_it():
    old = block()
    new, _ = average_pooled(old, inputs=PICTURE)
    y = old.stem[1](F.avg_pool2d(dense(old.stem[0], PICTURE), 2, ceil_mode=True)).relu()
    stem = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(new.stem(PICTURE), stem, **EXACT)
    torch.testing.assert_close(new.forward_features(PICTURE), stem, **EXACT)  # modules of it are swapped ...
    torch.testing.assert_close(new.forward(PICTURE), new(PICTURE), **EXACT)
    parameters = {name: p * 2 for name, p in new.named_parameters()}
    called = torch.func.functional_call(new, parameters, PICTURE)
    assert not torch.equal(called, new(PICTURE)) and called.shape == new(PICTURE).shape
    functional = Functional().double()
    swapped, _ = average_pooled(functional, inputs=PICTURE)
    torch.testing.assert_close(swapped(PICTURE), F.avg_pool2d(PICTURE, 2), **EXACT)
    # ... but not the functions that another method of it calls, unless its own forward does (docs/surgery.md)
    torch.testing.assert_close(swapped.forward_features(PICTURE), F.max_pool2d(PICTURE, 2), **EXACT)


class Functional(nn.Module):
    def forward_features(self, x):
        return F.max_pool2d(x * 1.0, 2)

    def forward(self, x):
        return self.forward_features(x)


class Plain(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 2)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(3, 2)

    def forward(self, x):
        return F.max_pool2d(self.pool(self.conv(x)), 2)


@pytest.mark.parametrize("kind", ["average", "maxblur"])
def test_compiled_traced_and_exported_variants_compute_the_same(kind):
    x, old = PICTURE.float(), Both().eval()
    new, _ = average_pooled(old, inputs=x) if kind == "average" else blur_pooled(old, order=kind, inputs=x)
    expected = new(x)
    assert not torch.allclose(expected, old(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compile runs the swapped modules as they are, and says so
        torch.testing.assert_close(torch.compile(new, backend="eager")(x), expected)
    torch.testing.assert_close(traced(new, x)(x), expected)
    torch.testing.assert_close(torch.export.export(new, (x,), strict=False).module()(x), expected)


def traced(model: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.15 advises against it; sizes become constants
        return torch.jit.trace(model, x)


# ---- selection and errors --------------------------------------------------------------------------------------------


class Patchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 4, stride=4)
        self.layer = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, stride=2, padding=1), "pool": nn.MaxPool2d(2, 1)})

    def forward(self, x):
        return F.max_pool2d(self.layer["pool"](self.layer["conv"](self.patch_embed(x))), 2, 2, 1)


ALL = ["patch_embed", "layer.conv", "layer.pool", ":max_pool2d"]


@pytest.mark.parametrize(
    ("options", "swapped"),
    [
        ({}, ALL[1:]),
        ({"kinds": ("max",)}, ALL[2:]),
        ({"kinds": ["stride"]}, ALL[1:2]),
        ({"kinds": ("patch",)}, ALL[:1]),
        ({"kinds": ("max", "stride", "patch")}, ALL),
        ({"only": "layer.*"}, ALL[1:3]),
        ({"only": ["layer.conv", ":max_pool2d"]}, [ALL[1], ALL[3]]),
        ({"only": "patch_embed"}, ALL[:1]),
        ({"only": ("patch_embed", "layer.conv")}, ALL[:2]),
        ({"only": "*"}, ALL[1:]),
        ({"except_": "layer.*"}, ALL[3:]),
        ({"only": "layer.*", "except_": ["*.pool"]}, ALL[1:2]),
        ({"except_": ["layer.conv", "patch_embed"], "kinds": ("max", "stride", "patch")}, ALL[2:]),
    ],
)
def test_selection(options, swapped):
    old = Patchy().double()
    new, record = average_pooled(old, inputs=PICTURE, **options)
    assert [change.name for change in record.changes] == swapped
    assert list(record.left) == [name for name in ALL if name not in swapped]
    assert {name: type(module).__name__.startswith("Swapped") for name, module in new.named_modules() if name} == {
        "patch_embed": "patch_embed" in swapped, "layer": False,
        "layer.conv": "layer.conv" in swapped, "layer.pool": "layer.pool" in swapped,
    }  # fmt: skip
    asked = "patch_embed" in str(options.get("only")) or "patch" in options.get("kinds", ())
    if "patch_embed" in record.left and not asked:
        why = "not selected" if "only" in options and options["only"] != "*" else (
            'a patch embedding: swapped by its name or with kinds "patch"')  # fmt: skip
        assert record.left["patch_embed"] in (why, "not selected")


def test_the_record():
    _, record = average_pooled(
        Patchy().double(), kernel="multiple_of_stride", only="*", except_="layer.pool", inputs=PICTURE
    )
    assert record.surgery == "average_pooled" and record.notes == ()
    assert record.settings == {
        "kernel": "multiple_of_stride", "only": ["*"], "except": ["layer.pool"], "kinds": ["max", "stride"],
        "input_shape": [3, 17, 22],
    }  # fmt: skip
    assert record.changes[0].before == "convolution 3 x 3, stride 2, padding 1"
    assert record.changes[1].before == "max-pooling 2 x 2, stride 2, padding 1"
    assert record.left == {
        "patch_embed": 'a patch embedding: swapped by its name or with kinds "patch"', "layer.pool": "not selected",
    }  # fmt: skip
    assert Record.from_dict(record.as_dict()) == record
    after = [blur_pooled(Patchy().double(), order=order, inputs=PICTURE)[1].changes for order in
             ("blur", "maxblur", "blurmax")]  # fmt: skip
    assert [[change.after for change in changes] for changes in after] == [
        ["blur 3 x 3, then as before", "blur 3 x 3, stride 2"],
        ["stride 1, then blur 3 x 3, stride 2"] * 2,
        ["blur 3 x 3, then as before"] * 2,
    ]


PLAIN = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"kernel": 0}, ValueError, 'Expected kernel="same", "multiple_of_stride" or a number of 1 or more, got 0.'),
        ({"kernel": 2.5}, ValueError, "Expected kernel=.* got 2.5[.]"),
        ({"kernel": "wide"}, ValueError, "Expected kernel=.* got 'wide'[.]"),
        ({"kinds": "max"}, ValueError, 'Expected kinds as a tuple of "max", "stride", "patch", got \'max\'[.]'),
        ({"kinds": ()}, ValueError, "Expected kinds as a tuple"),
        ({"kinds": ("max", "pool")}, ValueError, "Expected kinds as a tuple"),
        ({"only": 5}, TypeError, "Expected only as calls' names or patterns, one or several, got 5[.]"),
        ({"except_": [None]}, TypeError, "Expected except_ as calls' names or patterns"),
        ({"only": "2"}, NothingToSwap, "No operator to swap matches '2'; there are, for example: '0', '1'[.]"),
        ({"except_": "conv*"}, NothingToSwap, r"No operator to swap matches 'conv[*]'; there are, for example: '0'"),
        (
            {"only": "0", "kinds": ("max",)},
            NothingToSwap,
            "Sequential has no operator that this surgery swaps .*0: not",
        ),
        ({"only": []}, NothingToSwap, "has no operator that this surgery swaps"),
        ({"inputs": torch.rand(3, 9, 9)}, ValueError, "Expected images .* add the batch dimension with images"),
        ({"inputs": np.zeros((1, 3, 9, 9))}, TypeError, "Expected images as a tensor"),
        ({"inputs": torch.rand(1, 5, 9, 9)}, ValueError, r"fails on pictures \(5, 9, 9\): RuntimeError.*[^.][.]$"),
    ],
)
def test_sentences_of_errors(options, error, sentence):
    with pytest.raises(error, match=sentence):
        average_pooled(PLAIN, **{"inputs": torch.rand(1, 3, 9, 9)} | options)


def test_further_sentences_of_errors():
    with pytest.raises(ValueError, match=r"Expected order=.blur., .maxblur. or .blurmax., got 'max'[.]"):
        blur_pooled(PLAIN, order="max")
    head = nn.Sequential(*PLAIN, nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match=r"fails on pictures \(3, 224, 224\).*Give pictures that it takes as `inputs`"):
        average_pooled(head)
    assert len(average_pooled(head, inputs=torch.rand(2, 3, 18, 18))[1].changes) == 2
    with pytest.raises(TypeError, match=r"Expected a network \(torch.nn.Module\), got function[.]"):
        average_pooled(lambda x: x)
    with pytest.raises(TypeError, match="TorchScript"):
        average_pooled(traced(PLAIN, torch.rand(1, 3, 9, 9)))
    compiled = copy.deepcopy(PLAIN)
    compiled.compile()
    with pytest.raises(TypeError, match="compiled model"):
        average_pooled(compiled)
    with pytest.raises(ValueError, match=r"Expected weights with a shape, got the lazy '0.weight'"):
        average_pooled(nn.Sequential(nn.LazyConv2d(3, 3, 2)))
    with pytest.raises(ValueError, match=r"Expected a network that returns tensors, but Silent returns None[.]$"):
        average_pooled(Silent(), inputs=torch.rand(1, 3, 9, 9))
    with pytest.raises(NothingToSwap, match=r"^Identity has no operator that this surgery swaps[.]$"):
        average_pooled(nn.Identity(), inputs=torch.rand(1, 3, 9, 9))
    with pytest.raises(TypeError, match="Cannot copy the network, which surgery needs: cannot pickle"):
        locked = copy.deepcopy(PLAIN)
        locked.lock = threading.Lock()
        average_pooled(locked)
    many = nn.Sequential(*(nn.MaxPool2d(1, 1, 0) for _ in range(6)), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2))
    with pytest.raises(NothingToSwap, match="7: an adaptive maximum"):  # told before what was not selected
        blur_pooled(many, only="7", inputs=torch.rand(1, 3, 9, 9))
    with pytest.raises(NothingToSwap, match="':slice' cannot be swapped: a slice with a step"):
        average_pooled(net(chain(lambda x: x[..., ::2])), only=":slice", inputs=PICTURE)


class Silent(nn.Module):
    def forward(self, x):
        return None


def test_wrapped_networks_are_operated_inside_their_wrapper():
    x = torch.rand(1, 3, 9, 9)
    for wrapper in (nn.DataParallel(PLAIN), torch.compile(PLAIN, backend="eager")):
        assert type(average_pooled(wrapper, inputs=x)[0]) is nn.Sequential


def test_networks_whose_forward_is_their_own():
    """Set on the module, or generated by torch.fx: their modules are swapped, their functions left and listed."""
    x = torch.rand(1, 3, 18, 18)
    generated = fx.symbolic_trace(Both())
    new, record = average_pooled(generated, inputs=x)
    assert [change.name for change in record.changes] == ["conv", "pool"]
    assert record.left == {":max_pool2d": "its module's forward is its own, not its class's"}
    expected = F.max_pool2d(F.avg_pool2d(F.avg_pool2d(dense(generated.conv, x), 2, ceil_mode=True), 3, 2), 2)
    torch.testing.assert_close(new(x), expected)
    torch.testing.assert_close(copy.deepcopy(new)(x), expected)
    patched = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
    patched[1].forward = lambda x: F.max_pool2d(x, 3)
    assert average_pooled(patched, inputs=x)[1].left == {"1": "its module's forward is its own, not its class's"}


def test_an_output_that_is_finite_no_more_is_noted():
    old = net(lambda x: torch.sqrt(F.max_pool2d(x, 2) - F.avg_pool2d(x, 2) - 1e-9))
    _, record = average_pooled(old, inputs=PICTURE)
    assert record.notes == ("The output holds NaN or infinite values after the surgery.",)


def test_a_path_that_varies_is_noted():
    class Twice(nn.Module):
        passes = 0

        def forward(self, x):
            type(self).passes += 1
            return F.max_pool2d(x * 1.0, 2) if type(self).passes % 2 else F.max_pool2d(F.max_pool2d(x * 1.0, 1), 2)

    _, record = average_pooled(Twice(), inputs=PICTURE)
    assert record.notes == ("2 downsampling operators are still called after the surgery: the network's path varies.",)


def test_an_operator_on_another_path_is_left_and_warned_of():
    """Numbers alone would swap the first pooling of whichever path is taken."""

    class Paths(nn.Module):
        def forward(self, x):
            x = F.max_pool2d(x, 4) if x.shape[-1] > 30 else x
            return F.max_pool2d(F.max_pool2d(x * 1.0, 2), 3)

    large, small = noise(1, 3, 48, 48, seed=1), noise(1, 3, 24, 24, seed=2)
    pooled, _ = average_pooled(Paths(), only=":max_pool2d", inputs=large)
    torch.testing.assert_close(pooled(large), F.max_pool2d(F.max_pool2d(F.avg_pool2d(large, 4), 2), 3))
    with pytest.warns(UnknownCall, match="which surgery did not find: left as it is"):
        assert torch.equal(pooled(small), Paths()(small))


class Sized(nn.Module):
    """The whole map as a kernel; TF's same padding, which some sizes need none of; padding and a size that follow x."""

    def __init__(self):
        super().__init__()
        self.same = MaxPool2dSame(2, 2)

    def forward(self, x):
        rows = F.adaptive_max_pool2d(x, (x.shape[2] // 2, 3)).mean((2, 3))
        rows = rows + F.max_pool2d(x, 3, 2, x.shape[2] % 2).mean((2, 3))
        return F.max_pool2d(x, x.shape[2:]).flatten(1) + rows + self.same(x).mean((2, 3))


@pytest.mark.parametrize("first", [(17, 22), (18, 24)])
def test_operators_whose_settings_follow_the_size_are_the_same_at_every_size(first):
    new, record = average_pooled(Sized(), inputs=noise(1, 3, *first))
    assert len(record.changes) == 4
    for sides in ((17, 22), (18, 24), (9, 9)):
        x = noise(2, 3, *sides)
        rows = F.adaptive_avg_pool2d(x, (sides[0] // 2, 3)).mean((2, 3))
        rows = rows + F.avg_pool2d(x, 3, 2, sides[0] % 2, count_include_pad=False).mean((2, 3))
        blocks = F.avg_pool2d(x, 2, ceil_mode=True).mean((2, 3))  # same padding of an odd side: one pixel at its end
        torch.testing.assert_close(new(x), x.mean((2, 3)) + rows + blocks, **EXACT)


def test_pooling_found_on_a_map_no_larger_than_its_kernel_is_known_on_larger_ones():
    new, _ = average_pooled(nn.Sequential(nn.MaxPool2d(2)), inputs=noise(1, 3, 2, 2))
    torch.testing.assert_close(new(PICTURE), F.avg_pool2d(PICTURE, 2), **EXACT)


def test_one_module_on_two_paths_has_two_operators():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 3, 1, 1))

        def forward(self, x, pool):
            return F.max_pool2d(x, 2) if pool else F.conv2d(x, self.weight, stride=2)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.way = Either()

        def forward(self, x):
            return self.way(self.way(x, True), False)

    old, x = Both(), torch.rand(1, 3, 16, 16)
    pooled, record = average_pooled(old, kinds=("max",), inputs=x)
    assert [change.type for change in record.changes] == ["max pooling"]
    assert list(record.left.values()) == ["not selected"]
    torch.testing.assert_close(pooled(x), F.conv2d(F.avg_pool2d(x, 2), old.way.weight, stride=2))


def test_a_module_called_twice_is_one_change_with_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(self.pool(x) * 2)

    _, record = average_pooled(Twice(), only="pool#1", inputs=PICTURE)
    (change,) = record.changes
    assert (change.name, change.calls) == ("pool", ("pool", "pool#1"))
    assert Record.from_dict(json.loads(json.dumps(record.as_dict()))) == record


def test_a_function_that_holds_the_networks_own_modules_is_refused():
    """A copy of the network would still run the first one's modules in it."""
    old = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
    forward = old.forward
    for function in (lambda x: old[0](x), lambda x: forward(x * 2), lambda x, weight=old[0].weight: x * weight.sum()):
        old.forward = function
        with pytest.raises(
            TypeError, match="the function 'forward' on it holds modules or weights of this very network"
        ):
            average_pooled(old, inputs=PICTURE)
    old.forward = lambda x: F.max_pool2d(x, 2)  # holds nothing
    assert average_pooled(nn.Sequential(old, nn.MaxPool2d(2)), inputs=PICTURE)[1].changes

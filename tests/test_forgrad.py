"""FORGrad against slow loops that filter by hand, by the laws of its masks, and behind other libraries' gradients."""

import copy
import dataclasses
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
import scipy.integrate
import torch
from captum.attr import InputXGradient
from captum.attr import Saliency as CaptumSaliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradspec.adapters import from_captum, stored
from gradspec.attributions import (
    RISE,
    GradCAM,
    GradientInput,
    GuidedBackprop,
    IntegratedGradients,
    Occlusion,
    Saliency,
    SmoothGrad,
    SquareGrad,
    VarGrad,
)
from gradspec.attributions.base import Attribution
from gradspec.engine import Engine
from gradspec.forgrad import FORGrad, LowPassGrad, low_passes, maps_of
from gradspec.fourier import identity_radius, low_pass, low_pass_mask
from gradspec.randomness import generator

SHAPES = ["disk", "square", "gaussian", "butterworth"]
WHITE = [
    Saliency(),
    GradientInput(),
    IntegratedGradients(steps=5),
    GuidedBackprop(),
    SmoothGrad(samples=4),
    SquareGrad(samples=4),
    VarGrad(samples=4),
]
ROUNDING = 1e-5  # of the map's maximum: float32 maps, and FFTs of float32 gradients
laws = settings(deadline=None, max_examples=50)  # no deadline: cores are shared
name_of = lambda method: type(method).__name__  # noqa: E731


def net_of(channels=3, seed=0, dtype=torch.float32):
    """Convolutions and rectifiers, for pictures of any size."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    net[-1].weight.data.abs_()  # so that GradCAM finds something
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return in_pixels(net.to(dtype).eval())


def in_pixels(net):
    """Says that the network works on pixels, so that nothing warns of unknown units."""
    net.mean, net.std = (0.0,), (1.0,)
    return net


def case(n=3, channels=3, height=11, width=14, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, height, width, generator=draw, dtype=dtype), torch.arange(n) % 4


def close(found, expected, tolerance=ROUNDING):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    assert float((found - expected).abs().max() / scale) <= tolerance


# ---- an independent filter -----------------------------------------------------------------------


def hand_made(image, cutoff, shape="disk"):
    """One map (H, W) filtered bin by bin, by the definition of the mask and scipy's complex FFT."""
    height, width = image.shape
    n = min(height, width)
    u, v = (scipy.fft.fftfreq(size, 1 / n) for size in (height, width))
    gain = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            inside = {"disk": math.hypot(u[i], v[j]), "square": max(abs(u[i]), abs(v[j]))}.get(
                shape, 0
            ) <= cutoff + 1e-9
            gain[i, j] = float(inside)
            if shape == "gaussian":
                gain[i, j] = math.exp(-(u[i] ** 2 + v[j] ** 2) / (2 * cutoff**2))
    return scipy.fft.ifft2(scipy.fft.fft2(image) * gain).real


def each_map(maps, cutoff, shape="disk"):
    """Maps (..., H, W), each filtered by itself."""
    array = np.asarray(maps, dtype=np.float64)
    flat = array.reshape(-1, *array.shape[-2:])
    return np.stack([hand_made(one, cutoff, shape) for one in flat]).reshape(array.shape)


# ---- low_passes ----------------------------------------------------------------------------------


@st.composite
def banks(draw, shapes=SHAPES):
    """Float64 maps of any size, several cutoffs of which some lie on a bin or keep everything, and a shape."""
    height, width = draw(st.integers(1, 21)), draw(st.integers(1, 21))
    one = st.one_of(st.none(), st.integers(0, 18).map(float), st.floats(0, 18), st.just(math.inf))
    maps = np.random.default_rng(draw(st.integers(0, 999))).standard_normal((2, height, width))
    return torch.from_numpy(maps), draw(st.lists(one, min_size=1, max_size=5)), draw(st.sampled_from(shapes))


@laws
@given(banks())
def test_many_cutoffs_are_the_low_pass_of_each(bank):
    maps, cutoffs, shape = bank
    found = low_passes(maps, cutoffs, shape)
    assert len(found) == len(cutoffs)
    for one, cutoff in zip(found, cutoffs, strict=True):
        assert one.dtype == maps.dtype and torch.allclose(one, low_pass(maps, cutoff, shape), atol=1e-12)


@laws
@given(banks(["disk", "square"]), st.floats(-3, 3))
def test_hard_masks_are_linear_idempotent_and_keep_the_mean(bank, factor):
    maps, cutoffs, shape = bank
    mixed = maps[:1] + factor * maps[1:]
    sums = low_passes(mixed, cutoffs, shape)
    for one, cutoff, of_sum in zip(low_passes(maps, cutoffs, shape), cutoffs, sums, strict=True):
        assert torch.allclose(of_sum, one[:1] + factor * one[1:], atol=1e-12)
        assert torch.allclose(low_passes(one, [cutoff], shape)[0], one, atol=1e-12)
        assert torch.allclose(one.mean((1, 2)), maps.mean((1, 2)), atol=1e-12)
        whole = cutoff is None or cutoff >= identity_radius(*maps.shape[-2:], shape)
        assert (one is maps) or not whole


@pytest.mark.parametrize("shape", ["disk", "square", "gaussian"])
@pytest.mark.parametrize("size", [(15, 15), (16, 16), (9, 20), (20, 9), (1, 7), (8, 1)])
def test_low_passes_equal_a_filter_made_by_hand(size, shape):
    maps = np.random.default_rng(0).standard_normal((2, *size))
    cutoffs = [0.5, 1, 2, 3.7, 5]
    for found, cutoff in zip(low_passes(torch.from_numpy(maps), cutoffs, shape), cutoffs, strict=True):
        assert abs(found.numpy() - each_map(maps, cutoff, shape)).max() < 1e-12


@pytest.mark.parametrize("shape", ["disk", "square"])
@pytest.mark.parametrize("size", [(15, 15), (8, 12), (7, 10)])
def test_from_the_identity_radius_on_the_maps_themselves_come(size, shape):
    maps, radius = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)), identity_radius(*size, shape)
    below, at, above, none = low_passes(maps, [radius * (1 - 1e-6), radius, 1000, None], shape)
    assert at is maps and above is maps and none is maps
    assert not torch.allclose(below, maps, atol=1e-3)


def test_filters_leave_nothing_behind():
    maps = torch.randn(2, 3, 10, 7, generator=torch.Generator().manual_seed(2))
    before = maps.clone()
    with torch.inference_mode():
        low_passes(maps, [1, 2, 3])  # masks are remembered: they must not be inference tensors
    leaf = maps.clone().requires_grad_()
    low_passes(leaf, [2])[0].square().sum().backward()
    assert torch.allclose(leaf.grad, 2 * low_pass(maps, 2), atol=1e-5)
    half = low_passes(maps.half(), [2, None])
    assert half[0].dtype == torch.float16 and torch.equal(half[0], low_pass(maps.half().float(), 2).half())
    assert torch.equal(maps, before)
    strided = maps.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(low_passes(strided, [2])[0], low_pass(maps, 2), atol=1e-6)
    assert low_passes(torch.empty(1, 4, 5, device="meta"), [1])[0].device.type == "meta"


def test_a_broken_map_stays_broken_and_spoils_no_other():
    maps = torch.ones(3, 6, 6)
    maps[1, 2, 2] = torch.nan
    for found in low_passes(maps, [1, 2]):
        assert found.isnan().flatten(1).any(1).tolist() == [False, True, False]


# ---- LowPassGrad ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(9, 9), (8, 13)])
def test_the_layer_is_an_identity_that_filters_what_flows_back(size, shape):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=draw, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *size, generator=draw, dtype=torch.float64)
    layer = LowPassGrad(2.5, shape)
    y = layer(x)
    assert torch.equal(y, x)
    (y.square() * weights / 2).sum().backward()
    assert torch.allclose(x.grad, low_pass(x.detach() * weights, 2.5, shape), atol=1e-12)
    if shape in ("disk", "square"):
        assert np.allclose(x.grad, each_map((x * weights).detach(), 2.5, shape), atol=1e-12)


def test_the_layer_can_be_differentiated_again_and_written_behind():
    x = torch.randn(1, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(LowPassGrad(2)(x).pow(3).sum(), x, create_graph=True)[0]
    assert torch.allclose(gradient, low_pass(3 * x**2, 2), atol=1e-12)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.allclose(second, low_pass(6 * x, 2), atol=1e-12)
    before = x.detach().clone()
    nn.Sequential(LowPassGrad(2), nn.ReLU(inplace=True))(x).sum().backward()
    assert torch.equal(x.detach(), before)
    assert torch.allclose(x.grad, low_pass((before > 0).double(), 2), atol=1e-12)


@pytest.mark.parametrize("shape", ["disk", "gaussian"])
def test_the_layer_is_mapped_over_pictures(shape):
    """torch.func: the gradient of each picture by vmap is that of a loop, and so are rows of a Jacobian."""
    x = torch.randn(3, 2, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = LowPassGrad(2, shape)

    def cubed(image):
        return layer(image).pow(3).sum()

    found = torch.func.vmap(torch.func.grad(cubed))(x)
    assert torch.allclose(found, low_pass(3 * x**2, 2, shape), atol=1e-12)
    rows = torch.func.jacrev(lambda image: layer(image).square().sum((0, 2)))(x[0])  # of each row of the picture
    for i, row in enumerate(rows):
        alone = torch.zeros(2, 7, 8, dtype=torch.float64)
        alone[:, i] = 2 * x[0, :, i]
        assert torch.allclose(row, low_pass(alone, 2, shape), atol=1e-12)


def test_the_layer_trains_copies_and_shows_its_settings():
    net = nn.Sequential(LowPassGrad(1, "square"), nn.Conv2d(1, 1, 3, padding=1))
    assert repr(net[0]) == "LowPassGrad(cutoff=1.0, shape='square')"
    twin = copy.deepcopy(net)
    assert twin[0].cutoff == 1.0 and not list(net[0].parameters())
    x = torch.rand(1, 1, 6, 6, requires_grad=True)
    net(x).sum().backward()
    plain = torch.autograd.grad(net[1](x).sum(), x)[0]
    assert torch.allclose(x.grad, low_pass(plain, 1, "square"), atol=1e-6)
    assert net[1].weight.grad is not None
    assert torch.equal(LowPassGrad(None)(x), x)


# ---- gradient mode -------------------------------------------------------------------------------


def plain_gradient(net, images, labels):
    x = images.clone().requires_grad_()
    return torch.autograd.grad(net(x).gather(1, labels[:, None]).sum(), x)[0].numpy()


def guided_gradient(net, images, labels):
    """Module rectifiers alone let positive gradients pass."""
    hooks = [
        module.register_full_backward_hook(lambda _, inner, outer: (inner[0].clamp(min=0),))
        for module in net
        if isinstance(module, nn.ReLU)
    ]
    try:
        return plain_gradient(net, images, labels)
    finally:
        for hook in hooks:
            hook.remove()


def slow(method, net, image, label, name, filtered):
    """One picture's map, every single gradient of which goes through `filtered` by itself."""
    draw = lambda x, find=plain_gradient: filtered(find(net, x[None], label[None])[0])  # noqa: E731
    x = image.numpy()
    kind = name_of(method)
    if kind == "Saliency":
        return abs(draw(image)).max(0)
    if kind == "GradientInput":
        return (draw(image) * x).mean(0)
    if kind == "GuidedBackprop":
        return draw(image, guided_gradient).mean(0)
    if kind == "IntegratedGradients":
        places = np.linspace(0, 1, method.steps)
        drawn = np.stack([draw(image * place) for place in places])
        return (scipy.integrate.trapezoid(drawn, places, axis=0) * x).mean(0)
    drawn = []
    for index in range(method.samples):
        noise = torch.randn(image.shape, generator=generator(0, "noise", name, index))
        drawn.append(draw(image + 0.1 * noise.to(image)))
    drawn = np.stack(drawn)
    moments = {"SmoothGrad": drawn.mean(0), "SquareGrad": (drawn**2).mean(0), "VarGrad": drawn.var(0, ddof=1)}
    return moments[kind].mean(0)


@pytest.mark.parametrize("method", WHITE, ids=name_of)
@pytest.mark.parametrize("channels, size, shape", [(3, (11, 14), "disk"), (1, (9, 9), "square")])
def test_gradient_mode_filters_every_drawn_gradient_by_itself(method, channels, size, shape):
    net, (images, labels) = net_of(channels, dtype=torch.float64), case(2, channels, *size, dtype=torch.float64)
    found = FORGrad(method, 2.5, "gradient", shape)(net, images, labels, ids=["a", "b"])
    expected = [
        slow(method, net, *one, filtered=lambda g: each_map(g, 2.5, shape))
        for one in zip(images, labels, "ab", strict=True)
    ]
    close(found, torch.tensor(np.stack(expected)), 1e-6)
    plain = method(net, images, labels, ids=["a", "b"])
    assert (found - plain).abs().max() > 0.05 * plain.abs().max()  # it does something
    rebuilt = [slow(method, net, *one, filtered=lambda g: g) for one in zip(images, labels, "ab", strict=True)]
    close(plain, torch.tensor(np.stack(rebuilt)), 1e-6)  # the slow one is right where nothing is filtered


@pytest.mark.parametrize("method", WHITE, ids=name_of)
def test_gradient_mode_is_the_layer_in_front_of_the_bare_network(method):
    net, (images, labels) = net_of(), case()
    front = in_pixels(nn.Sequential(LowPassGrad(3), net))
    close(FORGrad(method, 3, "gradient")(net, images, labels), method(front, images, labels))


@pytest.mark.parametrize("method", [VarGrad(samples=6), SquareGrad(samples=6)], ids=name_of)
def test_methods_that_are_not_linear_differ_from_filtering_the_finished_map(method):
    net, (images, labels) = net_of(), case()
    kept = dataclasses.replace(method, channels="keep")
    drawn = FORGrad(kept, 2, "gradient")(net, images, labels)
    finished = low_pass(kept(net, images, labels), 2)
    assert (drawn - finished).abs().max() > 0.1 * drawn.abs().max()
    linear = SmoothGrad(samples=6, channels="keep")
    close(FORGrad(linear, 2, "gradient")(net, images, labels), low_pass(linear(net, images, labels), 2))


def test_channels_are_kept_where_the_method_keeps_them():
    net, (images, labels) = net_of(), case()
    maps = FORGrad(GradientInput(channels="keep"), 3, "gradient")(net, images, labels)
    assert maps.shape == images.shape
    close(maps.mean(1), FORGrad(GradientInput(), 3, "gradient")(net, images, labels))
    assert FORGrad(GradientInput(channels="keep"), 3)(net, images, labels).shape == (3, 11, 14)


def test_no_cutoff_in_gradient_mode_is_the_method_itself():
    net, (images, labels) = net_of(), case()
    for method in WHITE:
        assert torch.equal(FORGrad(method, None, "gradient")(net, images, labels), method(net, images, labels))
    foreign = from_captum(CaptumSaliency)
    assert torch.equal(FORGrad(foreign, None, "gradient")(net, images, labels), foreign(net, images, labels))


# ---- attribution mode ----------------------------------------------------------------------------


def per_channel(model, images, labels):
    """A foreign attribution whose maps keep their channels and sign."""
    return (images - 0.5).numpy() * np.arange(1, images.shape[1] + 1)[:, None, None].astype(np.float32)


@pytest.mark.parametrize("shape", ["disk", "square", "gaussian"])
@pytest.mark.parametrize("channels, size", [(3, (11, 14)), (1, (9, 9))])
def test_attribution_mode_is_mean_magnitude_filter_magnitude(channels, size, shape):
    net, (images, labels) = net_of(channels), case(2, channels, *size)
    methods = [Saliency(), GradientInput(channels="keep"), GradCAM(), SmoothGrad(samples=2), per_channel]
    for method in methods:
        maps = np.asarray(method(net, images, labels), dtype=np.float64)
        single = abs(maps.mean(1) if maps.ndim == 4 else maps)
        found = FORGrad(method, 2, shape=shape)(net, images, labels)
        assert found.dtype == torch.float32 and found.shape == (2, *size)
        close(found, torch.from_numpy(abs(each_map(single, 2, shape))))
        close(FORGrad(method, None)(net, images, labels), torch.from_numpy(single))
    signed = GradientInput()(net, images, labels)
    assert (signed < 0).any() and (FORGrad(GradientInput(), None)(net, images, labels) >= 0).all()


def test_the_two_places_are_different_operators():
    net, (images, labels) = net_of(), case()
    drawn, finished = (FORGrad(Saliency(), 2, where)(net, images, labels) for where in ("gradient", "attribution"))
    assert (drawn - finished).abs().max() > 0.1 * drawn.abs().max()


def test_a_filter_composes_with_a_filter():
    net, (images, labels) = net_of(), case()
    inner = FORGrad(Saliency(), 4, "gradient")
    outer = FORGrad(inner, 2)
    assert (outer.family, outer.passes(11, 14)) == ("white", 1)
    close(outer(net, images, labels), low_pass(inner(net, images, labels).abs(), 2).abs())


# ---- one explanation -----------------------------------------------------------------------------


def wanted(method):
    """Every cutoff in both places, several shapes, and the bare one."""
    filters = {f"a{cutoff}": FORGrad(method, cutoff) for cutoff in (None, 6, 3, 1)}
    filters |= {f"g{cutoff}": FORGrad(method, cutoff, "gradient") for cutoff in (None, 5, 2)}
    filters |= {"square": FORGrad(method, 2, shape="square"), "soft": FORGrad(method, 2, "gradient", "gaussian")}
    return {"bare": method, **filters}


@pytest.mark.parametrize("method", WHITE, ids=name_of)
def test_one_explanation_serves_all_cutoffs_and_both_places(method):
    net, (images, labels) = net_of(), case(5)
    engine = Engine(net, batch_size=3)
    ids = list("abcde")
    maps = maps_of(engine, wanted(method), images, labels, ids)
    passes = 5 * method.passes(11, 14)
    assert (engine.forwards, engine.backwards) == (passes, passes)
    for name, alone in wanted(method).items():
        close(maps[name], alone(net, images, labels, ids=ids))


def test_equal_methods_are_one_and_the_trio_shares_its_draws():
    net, (images, labels) = net_of(), case(2)
    engine = Engine(net)
    trio = [SmoothGrad(samples=3), VarGrad(samples=3), SquareGrad(samples=3), SmoothGrad(samples=3, channels="keep")]
    attributions = {f"{i}": method for i, method in enumerate(trio)}
    attributions |= {f"{i}a": FORGrad(method, 2) for i, method in enumerate(trio)}
    attributions |= {f"{i}g": FORGrad(method, 2 + i, "gradient") for i, method in enumerate(trio)}
    attributions |= {"again": SmoothGrad(samples=3), "saliency": Saliency(), "same": FORGrad(Saliency(), 3)}
    maps = maps_of(engine, attributions, images, labels)
    assert engine.forwards == engine.backwards == 2 * (3 + 1)
    assert list(maps) == list(attributions)
    for name, alone in attributions.items():
        close(maps[name], alone(net, images, labels))
    other = {"a": SmoothGrad(samples=3), "b": SmoothGrad(samples=3, seed=1), "c": SmoothGrad(samples=2)}
    maps_of(engine, other, images, labels)
    assert engine.forwards == 2 * (3 + 1) + 2 * (3 + 3 + 2)


def test_gray_black_and_foreign_methods_are_explained_once():
    net, (images, labels) = net_of(), case(2, height=12, width=12)
    engine, calls = Engine(net), []

    def foreign(model, images, labels):
        calls.append(len(images))
        model(images)
        return images * 2

    for method in (GradCAM(), RISE(masks=5, grid=3), Occlusion(patch=6, stride=6), foreign):
        before, passes = engine.forwards, 1 if method is foreign else method.passes(12, 12)
        attributions = {"bare": method} | {str(c): FORGrad(method, c) for c in (None, 4, 2, 1)}
        maps = maps_of(engine, attributions, images, labels)
        assert engine.forwards - before == 2 * passes
        for name, alone in attributions.items():
            close(maps[name], alone(net, images, labels) if name != "bare" or method is not foreign else images * 2)
    assert calls[0] == 2 and engine.backwards == 2  # GradCAM's


def test_a_foreign_method_is_known_by_identity():
    net, (images, labels) = net_of(), case(2)
    calls = []

    class Foreign:
        def __eq__(self, other):
            return isinstance(other, Foreign)

        def __call__(self, model, images, labels, ids):
            calls.append(ids)
            return images[:, 0]

    one, other = Foreign(), Foreign()  # equal, and not hashable
    maps = maps_of(net, {"a": one, "b": FORGrad(one, 2), "c": other}, images, labels, ["p", "q"])
    assert calls == [["p", "q"]] * 2
    assert torch.equal(maps["a"], images[:, 0])


def test_many_filters_hold_the_sums_of_few_pictures(monkeypatch):
    net, (images, labels) = net_of(), case(5)
    attributions = {str(c): FORGrad(VarGrad(samples=3), c, "gradient") for c in (None, 3, 2)}
    whole = maps_of(net, attributions, images, labels)
    monkeypatch.setattr("gradspec.attributions.smooth.SUMS", 2 * 3 * images[0].numel())
    engine = Engine(net)
    for name, maps in maps_of(engine, attributions, images, labels).items():
        close(maps, whole[name])
    assert engine.forwards == 5 * 3


def test_more_pictures_than_a_group_none_at_all_and_inference_mode(monkeypatch):
    net, (images, labels) = net_of(), case(5)
    whole = maps_of(net, wanted(Saliency()), images, labels)
    monkeypatch.setattr("gradspec.engine.GROUP", 2)
    with torch.inference_mode():
        parts = maps_of(net, wanted(Saliency()), images.clone(), labels)
    for name in whole:
        close(parts[name], whole[name])
    assert maps_of(net, {}, images, labels) == {}
    with pytest.raises(ValueError, match="Expected labels from 0 to 3, got 0 to 9"):
        maps_of(net, {"a": Saliency()}, images, labels * 0 + torch.tensor([0, 0, 0, 0, 9]))


# ---- other libraries' gradients ------------------------------------------------------------------


def test_captum_in_gradient_mode_is_ours_and_the_layer_in_front():
    net, (images, labels) = net_of(), case()
    engine = Engine(net)
    for theirs, ours in (
        (from_captum(CaptumSaliency, reduce="max"), Saliency()),
        (from_captum(InputXGradient), GradientInput(channels="keep")),
    ):
        found = FORGrad(theirs, 3, "gradient")(engine, images, labels)
        close(found, FORGrad(ours, 3, "gradient")(net, images, labels))
        close(found, theirs(nn.Sequential(LowPassGrad(3), net), images, labels))
        close(FORGrad(theirs, 3)(net, images, labels), FORGrad(ours, 3)(net, images, labels))
    assert (engine.forwards, engine.backwards) == (6, 6)  # the network's own, counted behind the layer


def test_a_gradspec_method_inside_a_foreign_function_keeps_its_units():
    net, (images, labels) = net_of(), case()
    net.std = (0.5,)
    method = SmoothGrad(samples=2)
    inside = lambda model, x, y, ids: method(model, x, y, ids=ids)  # noqa: E731
    found = FORGrad(inside, 3, "gradient")(net, images, labels, ids=list("abc"))
    close(found, FORGrad(method, 3, "gradient")(net, images, labels, ids=list("abc")))


def test_a_white_attribution_of_somebody_else_gets_the_layer_in_front():
    class Mine(Attribution):
        family = "white"

        def passes(self, height, width):
            return 1

        def _maps(self, engine, pictures):
            return GradientInput()._maps(engine, pictures)

    net, (images, labels) = net_of(), case()
    close(
        FORGrad(Mine(), 3, "gradient")(net, images, labels),
        FORGrad(GradientInput(), 3, "gradient")(net, images, labels),
    )


@pytest.mark.parametrize(
    "method",
    [lambda m, x, y: x, lambda m, x, y: m(x)[:, :1, None, None] * x, stored(torch.rand(3, 11, 14), list("abc"))],
)
def test_a_foreign_method_that_draws_no_gradient_is_refused_when_called(method):
    net, (images, labels) = net_of(), case()
    with pytest.raises(
        ValueError, match=r"draws gradients at the input, .* none was filtered: use where='attribution'"
    ):
        FORGrad(method, 3, "gradient")(net, images, labels, ids=list("abc"))
    assert FORGrad(method, 3)(net, images, labels, ids=list("abc")).shape == (3, 11, 14)


# ---- settings ------------------------------------------------------------------------------------


def test_a_fit_brings_its_settings():
    fit = SimpleNamespace(cutoff=np.float32(2.5), where="gradient", shape="square")
    filtered = FORGrad(Saliency(), fit)
    assert (filtered.cutoff, filtered.where, filtered.shape, filtered.fit) == (2.5, "gradient", "square", fit)
    assert type(filtered.cutoff) is float
    assert filtered == FORGrad(Saliency(), 2.5, "gradient", "square") == FORGrad(Saliency(), fit, where="gradient")
    assert FORGrad(Saliency(), 2.5).fit is None
    with pytest.raises(ValueError, match=r"where='gradient' and shape='square', for .* got where='attribution': leave"):
        FORGrad(Saliency(), fit, where="attribution")
    with pytest.raises(ValueError, match="got shape='disk': leave them out, or fit"):
        FORGrad(Saliency(), fit, shape="disk")
    spectral = SimpleNamespace(cutoff=7, reason="the knee")  # `cutoff_from` says a number alone
    assert FORGrad(Saliency(), spectral, "gradient", "disk") == FORGrad(Saliency(), 7.0, "gradient")
    assert FORGrad(Saliency(), SimpleNamespace(cutoff=None, where="attribution", shape="disk")).cutoff is None
    assert FORGrad(Saliency(), SimpleNamespace(cutoff=None)).cutoff is None


def test_it_is_a_value():
    one = FORGrad(SmoothGrad(samples=5), 3)
    assert one == FORGrad(SmoothGrad(samples=5), 3.0, "attribution", "disk") != FORGrad(SmoothGrad(samples=5), 4)
    assert len({one, FORGrad(SmoothGrad(samples=5), 3), FORGrad(SmoothGrad(samples=5), 3, "gradient")}) == 2
    assert (one.family, one.passes(9, 9), one.where, one.shape) == ("white", 5, "attribution", "disk")
    assert dataclasses.replace(one, cutoff=2, where="gradient") == FORGrad(SmoothGrad(samples=5), 2, "gradient")
    assert repr(one).startswith("FORGrad(attribution=SmoothGrad(") and "cutoff=3.0, where='attribution'" in repr(one)
    assert FORGrad(GradCAM(), 3).family == "gray" and FORGrad(RISE(masks=7), 3).passes(9, 9) == 7
    assert FORGrad(lambda m, x, y: x, 3).family is None and FORGrad(lambda m, x, y: x, 3).passes(9, 9) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.cutoff = 4


class Blind(Attribution):
    """As a control is: it looks at no network."""

    def passes(self, height, width):
        return 0

    def _maps(self, engine, pictures):
        return pictures.images[:, 0]


NO_KNEE = SimpleNamespace(cutoff=None, reason="no knee")  # as `cutoff_from` where it finds none


@pytest.mark.parametrize(
    "make, error, sentence",
    [
        (lambda: FORGrad(GradCAM(), 3, "gradient"), ValueError, "got GradCAM, which is a gray-box method and draws no"),
        (lambda: FORGrad(RISE(), None, "gradient"), ValueError, "got RISE, which is a black-box method"),
        (lambda: FORGrad(Blind(), 3, "gradient"), ValueError, "got Blind, which knows no network"),
        (lambda: FORGrad(FORGrad(Saliency(), 3), 3, "gradient"), ValueError, "not filtered yet, got a FORGrad"),
        (lambda: FORGrad(Saliency, 3), TypeError, r"such as Saliency\(\), got <class"),
        (lambda: FORGrad("saliency", 3), TypeError, r"such as Saliency\(\), got 'saliency'"),
        (lambda: FORGrad(Saliency(), FORGrad(GradCAM(), 3)), TypeError, r"a fit or None, got a FORGrad: give .*cutoff"),
        (lambda: FORGrad(Saliency(), LowPassGrad(3)), TypeError, "a fit or None, got a LowPassGrad: give its cutoff"),
        (lambda: FORGrad(Saliency(), NO_KNEE), ValueError, "a cutoff, got none: no knee; give a number, .*None for no"),
        (lambda: FORGrad(Saliency(), NO_KNEE, "gradient"), ValueError, "Expected a cutoff, got none: no knee; give"),
        (lambda: FORGrad(Saliency(), "3"), TypeError, "number of cycles/image or None .*, got str"),
        (lambda: FORGrad(Saliency(), True), TypeError, "got bool"),
        (lambda: FORGrad(Saliency(), -1), ValueError, "0 cycles/image or more, .* got -1"),
        (lambda: FORGrad(Saliency(), math.nan), ValueError, "got nan"),
        (lambda: FORGrad(Saliency(), 3, "map"), ValueError, "where='attribution' or 'gradient', got 'map'"),
        (lambda: FORGrad(Saliency(), 3, shape="disc"), ValueError, "disk, square, gaussian, butterworth, got 'disc'"),
        (lambda: LowPassGrad(-2), ValueError, "got -2"),
        (lambda: LowPassGrad(2, "disc"), ValueError, "got 'disc'"),
        (lambda: low_passes(torch.ones(4), [1]), ValueError, r"Expected maps \(..., H, W\)"),
        (lambda: low_passes(torch.ones(4, 4), [1, "2"]), TypeError, "got str"),
        (lambda: low_passes(torch.ones(4, 4), [None], "disc"), ValueError, "got 'disc'"),
    ],
)
def test_wrong_settings_are_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_a_control_is_filtered_too():
    net, (images, labels) = net_of(), case()
    close(FORGrad(Blind(), 2)(net, images, labels), low_pass(images[:, 0], 2).abs())


def test_guided_backpropagation_still_warns():
    net = in_pixels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval())
    images, labels = case()
    with pytest.warns(UserWarning, match="no rectifier"):
        FORGrad(GuidedBackprop(), 3, "gradient")(net, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FORGrad(Saliency(), 3, "gradient")(net, images, labels)


def test_the_callers_network_is_as_before():
    net, (images, labels) = net_of(), case()
    net.train()
    net[0].weight.grad = kept = torch.ones_like(net[0].weight)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def foreign(model, images, labels):
        assert not any(module.training for module in model.modules())
        model.zero_grad()
        x = images.requires_grad_()
        model(x).sum().backward()
        return x.grad

    FORGrad(foreign, 3, "gradient")(net, images, labels)
    maps_of(net, wanted(Saliency()), images, labels)
    assert net[0].weight.grad is kept and torch.equal(kept, torch.ones_like(kept)) and net[4].weight.grad is None
    assert all(module.training for module in net.modules()) and not images.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


def test_masks_of_a_grid_are_as_they_were_made():
    """The remembered mask is the half mask up to its last column that is not zero."""
    from gradspec.attributions.filters import _mask

    for shape in SHAPES:
        half = low_pass_mask(31, 48, 3, shape, half=True).float()
        mask = _mask(31, 48, 3.0, shape, torch.float32, torch.device("cpu"))
        assert torch.equal(mask, half[:, : mask.shape[1]]) and not half[:, mask.shape[1] :].any()
        assert mask[:, -1].any() and not mask.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [Saliency(), VarGrad(samples=3), IntegratedGradients(steps=3)], ids=name_of)
def test_cuda_equals_cpu(method):
    net, (images, labels) = net_of(), case()
    ids = list("abc")
    expected = maps_of(net, wanted(method), images, labels, ids)
    found = maps_of(copy.deepcopy(net).cuda(), wanted(method), images.cuda(), labels.cuda(), ids)
    for name, maps in found.items():
        assert maps.is_cuda
        close(maps.cpu(), expected[name], 1e-3)  # TF32 convolutions

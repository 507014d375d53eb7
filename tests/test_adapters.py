"""captum, zennit and pytorch-grad-cam through the adapters against our own methods; stored maps."""

import functools
import math
import warnings
from collections import OrderedDict

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from gradspec.adapters import from_captum, from_grad_cam, from_zennit, stored
from gradspec.attributions import GradCAM, GradientInput, GuidedBackprop, IntegratedGradients, Occlusion, Saliency
from gradspec.attributions.base import explained
from gradspec.data import picture_id
from gradspec.engine import Engine
from gradspec.forgrad import FORGrad, LowPassGrad, maps_of
from gradspec.fourier import low_pass
from gradspec.metrics import Deletion, Stability

PARITY = 1e-5  # of the map's maximum: float32, and BatchNorm folded into the convolutions


def net_of(channels=3, seed=0):
    """Convolutions with module rectifiers, as captum and zennit need them, for pictures of any size."""
    torch.manual_seed(seed)
    parts = {
        "first": nn.Conv2d(channels, 5, 3, padding=1), "norm": nn.BatchNorm2d(5), "relu1": nn.ReLU(),
        "pool": nn.MaxPool2d(2, ceil_mode=True), "last": nn.Conv2d(5, 6, 3, padding=1), "relu2": nn.ReLU(),
        "mean_of_parts": nn.AdaptiveAvgPool2d(2), "flat": nn.Flatten(), "head": nn.Linear(24, 4),
    }  # fmt: skip
    net = nn.Sequential(OrderedDict(parts))
    net.head.weight.data.abs_()  # so that GradCAM finds something
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    net.mean, net.std = (0.0,), (1.0,)
    return net.eval()


def case(n=3, channels=3, height=11, width=14):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 4


def close(found, expected, tolerance=PARITY):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = expected.abs().max()
    assert scale > 0
    assert float((found - expected).abs().max() / scale) <= tolerance


@pytest.fixture
def quiet():
    """captum's GuidedBackprop warns that it sets hooks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks")
        yield


# ---- captum --------------------------------------------------------------------------------------


CAPTUM = [
    (from_captum(captum.attr.Saliency, reduce="max"), Saliency()),
    (from_captum(captum.attr.InputXGradient), GradientInput(channels="keep")),
    (from_captum(captum.attr.InputXGradient, reduce="mean"), GradientInput()),
    (from_captum(captum.attr.GuidedBackprop), GuidedBackprop(channels="keep")),
    (
        from_captum(lambda m: captum.attr.LayerGradCam(m, m.last), relu_attributions=True, reduce="mean"),
        GradCAM(layer="last"),
    ),
    (
        from_captum(
            captum.attr.Occlusion, sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4), perturbations_per_eval=4
        ),
        None,
    ),
]


@pytest.mark.parametrize("channels, size, n", [(3, (11, 14), 3), (3, (9, 9), 20), (1, (12, 7), 1)])
def test_captum_equals_ours(quiet, channels, size, n):
    net, (images, labels) = net_of(channels), case(n, channels, *size)
    for theirs, ours in CAPTUM[:-1]:
        for model in (net, Engine(net)):
            close(theirs(model, images, labels), ours(net, images, labels))
        close(explained(Engine(net), theirs, images, labels), ours(net, images, labels))


@pytest.mark.parametrize("where", ["attribution", "gradient"])
def test_captum_as_forgrad_equals_ours(quiet, where):
    net, (images, labels) = net_of(), case()
    for theirs, ours in CAPTUM[:4]:
        found = FORGrad(theirs, 2.5, where)(net, images, labels)
        close(found, FORGrad(ours, 2.5, where)(net, images, labels))
        if where == "gradient":
            close(found, theirs(nn.Sequential(LowPassGrad(2.5), net), images, labels))
    layer, ours = CAPTUM[4]
    close(FORGrad(layer, 2)(net, images, labels), FORGrad(ours, 2)(net, images, labels))


def test_captums_settings_are_passed_on():
    net, (images, labels) = net_of(), case()
    method = from_captum(captum.attr.IntegratedGradients, n_steps=7, method="riemann_trapezoid")
    ours = IntegratedGradients(steps=7, channels="keep")(net, images, labels)
    close(method(net, images, labels), ours * 6 / 7)  # its weights sum to (n - 1) / n
    images, labels = case(2, 3, 8, 8)
    occluded = CAPTUM[-1][0](net, images, labels)
    ours = Occlusion(patch=4, stride=4)(net, images, labels)
    assert occluded.shape == (2, 3, 8, 8)
    assert np.corrcoef(occluded.mean(1).flatten(), ours.flatten())[0, 1] > 0.5  # logits against probabilities


def test_captums_families():
    attr = captum.attr
    families = {
        attr.Saliency: "white",
        attr.IntegratedGradients: "white",
        attr.Occlusion: "black",
        attr.LayerGradCam: "gray",
    }
    for method, family in families.items():
        assert from_captum(method).family == family
        assert from_captum(functools.partial(method)).family == family
    assert CAPTUM[4][0].family is None  # a function of the model does not say it
    with pytest.raises(ValueError, match="got Captum, which is a black-box method"):
        FORGrad(CAPTUM[-1][0], 2, "gradient")
    with pytest.raises(ValueError, match="none was filtered"):
        FORGrad(CAPTUM[4][0], 2, "gradient")(net_of(), *case())


# ---- zennit --------------------------------------------------------------------------------------


def zennit():
    pytest.importorskip("zennit")
    import zennit.attribution
    import zennit.composites

    return zennit


@pytest.mark.parametrize("where", [None, "attribution", "gradient"])
@pytest.mark.parametrize("channels, size, n", [(3, (11, 14), 3), (1, (9, 9), 18)])
def test_zennit_equals_ours(where, channels, size, n):
    library = zennit()
    net, (images, labels) = net_of(channels), case(n, channels, *size)
    guided = lambda m: library.attribution.Gradient(m, composite=library.composites.GuidedBackprop())  # noqa: E731
    pairs = [
        (from_zennit(library.attribution.Gradient, reduce="max"), Saliency()),
        (from_zennit(guided), GuidedBackprop(channels="keep")),
        (from_zennit(guided, reduce="mean"), GuidedBackprop()),
    ]
    filtered = (lambda method: method) if where is None else (lambda method: FORGrad(method, 2.5, where))
    for theirs, ours in pairs:
        found = filtered(theirs)(net, images, labels)
        close(found, filtered(ours)(net, images, labels))
        if where == "gradient":
            close(found, theirs(nn.Sequential(LowPassGrad(2.5), net), images, labels))
    # it has no gradient times input: the picture is multiplied here
    gradient = from_zennit(library.attribution.Gradient)
    times = lambda model, x, y: gradient(model, x, y) * x  # noqa: E731
    close(filtered(times)(net, images, labels) if where else explained(Engine(net), times, images, labels),
          filtered(GradientInput(channels="keep"))(net, images, labels))  # fmt: skip


def test_zennits_families():
    library = zennit()
    assert from_zennit(library.attribution.Gradient).family == "white"
    assert from_zennit(functools.partial(library.attribution.SmoothGrad, n_iter=2)).family == "white"
    assert from_zennit(library.attribution.Occlusion).family == "black"
    assert from_zennit(lambda m: library.attribution.Gradient(m)).family is None


# ---- pytorch-grad-cam ----------------------------------------------------------------------------


def grad_cam():
    return pytest.importorskip("pytorch_grad_cam")


def scaled(maps):
    """As pytorch-grad-cam scales each map, but for the 1e-7 that it adds to the maximum."""
    low, high = (find(maps.flatten(1), dim=1).values[:, None, None] for find in (torch.min, torch.max))
    return (maps - low) / (high - low)


@pytest.mark.parametrize("channels, size, n", [(3, (21, 26), 3), (1, (17, 17), 1)])
def test_grad_cam_equals_ours_but_for_its_scale(channels, size, n):
    library = grad_cam()
    net, (images, labels) = net_of(channels), case(n, channels, *size)
    method = from_grad_cam(library.GradCAM, lambda m: [m.relu2])
    ours = GradCAM(layer="relu2")(net, images, labels)
    assert (ours.flatten(1).amax(1) > 1e-3).all()
    found = method(net, images, labels)
    close(found, scaled(ours), 2e-4)  # 1e-7 beside the maximum, twice; OpenCV's weights of the bilinear resize
    close(FORGrad(method, 2)(net, images, labels), low_pass(scaled(ours), 2).abs(), 2e-4)
    assert method.family == "gray"
    with pytest.raises(ValueError, match="got GradCam, which is a gray-box method"):
        FORGrad(method, 2, "gradient")


def test_grad_cam_leaves_the_network_as_it_was():
    library = grad_cam()
    net, (images, labels) = net_of(), case()
    net.train()
    net.first.weight.grad = kept = torch.ones_like(net.first.weight)
    net.first.weight.requires_grad_(True)
    from_grad_cam(functools.partial(library.GradCAMPlusPlus, reshape_transform=None), lambda m: [m.last])(
        net, images, labels
    )
    assert net.first.weight.grad is kept and torch.equal(kept, torch.ones_like(kept)) and net.last.weight.grad is None
    assert all(module.training for module in net.modules())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    with pytest.raises(IndexError):  # which its own context would swallow
        from_grad_cam(library.GradCAM, lambda m: [m.last])(net, images, torch.tensor([0, 1, 9]))
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


# ---- however it is called ------------------------------------------------------------------------


def test_passes_are_counted_and_pictures_come_in_parts():
    net, (images, labels) = net_of(), case(20)
    engine, sizes = Engine(net), []
    handle = net.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    method = from_captum(captum.attr.Saliency)
    maps = method(engine, images, labels)
    handle.remove()
    assert sizes == [16, 4] and (engine.forwards, engine.backwards) == (20, 20)
    assert maps.shape == images.shape and not maps.requires_grad and not images.requires_grad
    close(maps[17:], method(net, images[17:], labels[17:]))
    three = {"bare": method, "a": FORGrad(method, None), "b": FORGrad(method, 2), "c": FORGrad(method, 2, "gradient")}
    maps_of(engine, three, images, labels)
    assert (engine.forwards, engine.backwards) == (60, 60)  # the filter of gradients is one explanation more


def test_an_adapter_is_an_attribution_to_the_metrics_and_in_inference_mode():
    net, (images, labels) = net_of(), case()
    method = from_captum(captum.attr.InputXGradient)
    with torch.inference_mode():
        maps = method(net, images.clone(), labels.clone())
    close(maps, GradientInput(channels="keep")(net, images, labels))
    ours = GradientInput()(net, images, labels)
    assert torch.allclose(Deletion()(net, images, labels, maps), Deletion()(net, images, labels, ours), atol=1e-5)
    found, expected = (
        Stability(samples=2)(net, images, labels, attribution=one) for one in (method, GradientInput(channels="keep"))
    )
    assert torch.allclose(found, expected, rtol=1e-3) and (found > 0).all()


# ---- stored maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy, torch.Tensor.double])
def test_stored_maps_come_by_id(kind):
    net, (images, labels) = net_of(), case(4)
    maps = torch.randn(4, 11, 14, generator=torch.Generator().manual_seed(0))
    method = stored(kind(maps), ["a", 2, "c", "d"])
    order = [3, 0, 1]
    found = method(net, images[order], labels[order], ids=["d", "a", "2"])
    assert torch.equal(found.float(), maps[order])
    close(
        FORGrad(method, 2)(net, images[order], labels[order], ids=["d", "a", "2"]), low_pass(maps[order].abs(), 2).abs()
    )
    every = maps_of(net, {"bare": method, "none": FORGrad(method, None)}, images, labels, ["a", "2", "c", "d"])
    assert torch.equal(every["bare"], maps) and torch.equal(every["none"], maps.abs())
    hashed = stored(maps, [picture_id(image) for image in images])
    assert torch.equal(hashed(None, images, None), maps)
    assert repr(method) == "Stored()"


def test_stored_maps_are_not_the_callers():
    maps = torch.ones(1, 2, 2)
    method = stored(maps, ["a"])
    maps.zero_()
    assert method(None, torch.rand(1, 3, 2, 2), None, ids=["a"]).sum() == 4


@pytest.mark.parametrize(
    "make, error, sentence",
    [
        (lambda: stored(torch.ones(2, 3, 3), ["a"]), ValueError, "an id for each of 2 pictures, got 1"),
        (lambda: stored(torch.ones(2, 3, 3), ["a", "a"]), ValueError, "Expected one map for each id, got more for 'a'"),
        (lambda: stored([[1.0]], ["a"]), TypeError, "Expected maps as a tensor or an array .* got list"),
        (lambda: stored(torch.ones(3, 3), ["a"] * 3), ValueError, r"got shape \(3, 3\)"),
        (lambda: stored(torch.tensor(1.0), ["a"]), ValueError, r"got shape \(\)"),
        (lambda: stored(torch.ones(1, 2, 2, dtype=torch.int64), ["a"]), TypeError, "floating-point maps"),
        (
            lambda: stored(torch.ones(1, 2, 2), ["a"])(None, torch.rand(2, 3, 2, 2), None, ids=["a", "b"]),
            ValueError,
            r"none for 1 of 2 \(as 'b'\)",
        ),
        (
            lambda: stored(torch.ones(1, 2, 2), ["a"])(None, torch.rand(1, 3, 4, 4), None, ids=["a"]),
            ValueError,
            r"Expected maps \(1, 4, 4\)",
        ),
        (lambda: from_captum("Saliency"), TypeError, "a class such as captum.attr.Saliency, .* got str"),
        (lambda: from_captum(net_of()), TypeError, "or a function of the model, got Sequential"),
        (lambda: from_captum(captum.attr.Saliency, reduce="sum"), ValueError, "'mean', 'max' or None .* got 'sum'"),
        (lambda: from_zennit(lambda m: m, reduce="min"), ValueError, "got 'min'"),
        (lambda: from_zennit(3), TypeError, "zennit.attribution.Gradient"),
        (lambda: from_grad_cam(None, lambda m: []), TypeError, "pytorch_grad_cam.GradCAM"),
        (lambda: from_grad_cam(dict, ["layer4"]), TypeError, r"as lambda m: \[m.layer4\], got \['layer4'\]"),
    ],
)
def test_wrong_settings_are_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_wrong_pictures_and_maps_are_one_sentence():
    net, (images, labels) = net_of(), case()
    method = from_captum(captum.attr.Saliency)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        method(net, images * math.nan, labels)
    with pytest.raises(ValueError, match="one per image"):
        method(net, images, labels[:2])
    with pytest.raises(ValueError, match=r"Expected maps \(3, 11, 14\) .* got shape \(3, 2, 2\)"):
        explained(Engine(net), lambda m, x, y: x[:, 0, :2, :2], images, labels)
    with pytest.raises(ValueError, match="an id for each of 3 pictures"):
        explained(Engine(net), lambda m, x, y, ids: x, images, labels, ["a"])

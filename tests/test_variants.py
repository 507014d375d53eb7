"""Variants by name: each is the surgery that the name says, on the pictures given, and names compose."""

import pytest
import torch
from torch import nn

import gradspec as gs
from gradspec import variants
from gradspec.surgery import NothingToSwap, average_pooled, blur_pooled, recalibrated, records, untrained
from gradspec.variants import VARIANTS, check_variant, variant


@pytest.fixture(scope="module")
def case():
    """A network with max-pooling, a stride and BatchNorm, and odd pictures for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        net = nn.Sequential(*layers, nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return net.double().eval(), torch.rand(5, 3, 31, 27, generator=torch.Generator().manual_seed(1)).double()


def same(one, other, images):
    torch.testing.assert_close(one(images), other(images), rtol=0, atol=0)


EXPECTED = {
    "avgpool": lambda net, x: average_pooled(net, inputs=x),
    "avgpool-wide": lambda net, x: average_pooled(net, kernel="multiple_of_stride", inputs=x),
    "avgpool-patch": lambda net, x: average_pooled(net, kinds=("max", "stride", "patch"), inputs=x),
    "avgpool-max": lambda net, x: average_pooled(net, kinds=("max",), inputs=x),
    "avgpool-stride": lambda net, x: average_pooled(net, kinds=("stride",), inputs=x),
    "blurpool": lambda net, x: blur_pooled(net, order="blur", inputs=x),
    "maxblurpool": lambda net, x: blur_pooled(net, order="maxblur", inputs=x),
    "blurmax": lambda net, x: blur_pooled(net, order="blurmax", inputs=x),
    "recalibrated": lambda net, x: recalibrated(net, x),
    "untrained": lambda net, x: untrained(net, 3),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_is_its_surgery(case, name):
    net, images = case
    found, (expected, record) = variant(net, name, images, seed=3), EXPECTED[name](net, images)
    same(found, expected, images)
    assert [r.surgery for r in records(found)] == [record.surgery]
    assert not torch.equal(found(images), net(images))
    alike = {name, *(("avgpool", "avgpool-patch") if name.startswith("avgpool") else ())}  # it has no patches
    others = [variant(net, other, images, seed=3)(images) for other in EXPECTED if other not in alike]
    assert not any(torch.equal(found(images), other) for other in others)  # each name is a network of its own


def test_patch_embeddings_are_swapped_on_request():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, 2), nn.Flatten()).eval()
    images = torch.rand(2, 3, 32, 32)
    names = [change.name for change in records(variant(net, "avgpool-patch", images))[0].changes]
    assert names == ["0", "1"]
    assert [change.name for change in records(variant(net, "avgpool", images))[0].changes] == ["1"]


def test_all_names_are_tried():
    assert set(EXPECTED) | {"trained"} == set(VARIANTS)


def test_the_untouched_network_is_itself(case):
    net, images = case
    assert variant(net, "trained", images) is net


def test_parts_are_applied_from_left_to_right(case):
    net, images = case
    found = variant(net, "untrained+avgpool+recalibrated", (images, torch.zeros(5, dtype=torch.long)), seed=5)
    fresh = average_pooled(untrained(net, 5)[0], inputs=images)[0]
    same(found, recalibrated(fresh, images)[0], images)
    assert [r.surgery for r in records(found)] == ["untrained", "average_pooled", "recalibrated"]
    other = variant(net, "untrained+recalibrated+avgpool", images, seed=5)
    assert not torch.equal(found(images), other(images))


def test_another_network_is_a_twin():
    net = gs.load_model("demo:vgg_max")
    images = net.preprocess(gs.demo.pictures(3).images)
    same(variant(net, "demo:vgg_avg", images), gs.load_model("demo:vgg_avg"), images)
    swapped = variant(net, "demo:resnet_stride+avgpool", images)
    assert {c.type for c in records(swapped)[0].changes} == {"strided convolution"}


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"mean": (0.5,) * 3}, r"other:net wants pictures of another mean than the first network: \(0.5, 0.5, 0.5\), "),
        ({"std": (0.5,) * 3}, "another std"),
        ({"classes": ["cat", "dog"]}, "other:net knows 2 classes, the first network 10"),
    ],
)
def test_a_twin_for_other_pictures_or_classes_is_refused(monkeypatch, own, says):
    net = gs.load_model("demo:vgg_max")
    other = gs.load_model("demo:vgg_max", "none")
    other.__dict__["_gradspec"] = {**other.__dict__["_gradspec"], **own}
    monkeypatch.setattr(variants, "load_model", lambda name: other)
    with pytest.raises(ValueError, match=says):
        variant(net, "other:net", torch.rand(1, 3, 64, 64))


def test_a_surgery_that_does_not_apply_raises():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name in ("avgpool", "blurpool", "recalibrated", "avgpool-max"):
        with pytest.raises(NothingToSwap):
            variant(net, name, torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("name", ["avgpol", "untrained+", "", "trained+Avgpool", "blur pool"])
def test_unknown_names_are_refused_with_the_nearest(name):
    with pytest.raises(ValueError, match=r"No variant is called .*; nearest: "):
        check_variant(name)

"""Surgery on the architectures of torchvision and timm, checked by studies/surgery_coverage.py without gradspec."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from gradspec.surgery import Record, average_pooled, blur_pooled
from studies.surgery_coverage import (
    FEW,
    NETS,
    Shrinking,
    average_problems,
    averages_by_hand,
    blur_problems,
    check,
    module_shapes,
    network,
    picture_nodes,
    shrinking,
    value_problems,
    variant_problems,
)

ROOT = Path(__file__).parents[1]
PICTURE = torch.rand(1, 3, 51, 67, generator=torch.Generator().manual_seed(1))
SLICE = "a slice with a step"


# ---- every architecture ----------------------------------------------------------------------------------------------

SWAPPED = {  # max-pooling, strided convolutions, patch embeddings
    "googlenet": (13, 1, 0),
    "shufflenet_v2_x0_5": (1, 7, 0),
    "squeezenet1_1": (3, 1, 0),
    "levit_128s": (0, 4, 0),
    "pit_ti_224": (0, 3, 0),
    "test_byobnet": (0, 5, 0),
    "test_convnext": (0, 3, 0),
    "test_efficientnet": (0, 5, 0),
    "test_nfnet": (0, 5, 0),
    "test_resnet": (1, 4, 0),
    "tf_mobilenetv3_small_minimal_100": (0, 5, 0),
    "vit_tiny_r_s16_p8_224": (1, 2, 0),
}


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in FEW.items() for name in names])
def test_a_few_architectures(library, name):
    row = check(library, name)
    assert row["problems"] == "" and row["notes"] == "" and row["by_hand"] == "equal"
    assert (row["max_poolings"], row["strided_convolutions"], row["patch_embeddings"]) == SWAPPED[name]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), [(library, name) for library, nets in NETS.items() for name in nets])
def test_every_architecture(library, name):
    row = check(library, name)
    assert row["problems"] == "" and "after the surgery" not in row["notes"]


def test_the_list_is_long_enough():
    assert len(NETS["torchvision"]) >= 30 and len(NETS["timm"]) >= 40


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not part of the source distribution")
def test_the_committed_table_is_of_this_list_and_its_reasons_are_explained():
    with open(ROOT / "figures/surgery_coverage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["library"], row["architecture"]) for row in rows] == [(lib, n) for lib in NETS for n in NETS[lib]]
    assert not any(row["problems"] for row in rows)
    text = (ROOT / "docs/surgery.md").read_text(encoding="utf-8")
    reasons = {reason.partition(" x ")[2] for row in rows for reason in row["left"].split("; ") if reason}
    assert len(reasons) > 5 and not {reason for reason in reasons if reason not in text}
    assert f"over {len(NETS['torchvision'])} networks of torchvision and {len(NETS['timm'])} of timm" in text


# ---- the checks find what is wrong -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    model, x = network("timm", "resnet10t")
    nodes, _ = picture_nodes(model, x)
    return model, x, shrinking(nodes, model)


def graph_of(model: nn.Module, x: torch.Tensor) -> Shrinking:
    return shrinking(picture_nodes(model, x)[0], model)


def test_the_checks_see_what_was_not_swapped(resnet):
    model, x, before = resnet
    assert (before.maxima, before.strided_maxima, before.convolutions) == (1, 1, 4)
    assert list(average_problems(before, before, Record("average_pooled"))) == [
        "1 maxima, 0 listed",
        "4 strided convolutions, 0 listed",
        "strided convolutions of ['conv1.0', 'layer2.0.conv1', 'layer3.0.conv1', 'layer4.0.conv1']",
    ]
    most, record = average_pooled(model, except_="layer3.0.conv1", inputs=x)
    after = graph_of(most, x)
    assert list(average_problems(after, before, record)) == ["1 strided convolutions, 0 listed"]  # "not selected"
    every, record = average_pooled(model, inputs=x)
    assert not list(average_problems(graph_of(every, x), before, record))
    invented = Record("average_pooled", changes=record.changes, left={"maxpool": "a maximum of another kind"})
    assert list(average_problems(graph_of(every, x), before, invented)) == ["0 maxima, 1 listed"]


def test_the_checks_see_other_values_shapes_and_keys(resnet):
    model, x, _ = resnet
    pooled, _ = average_pooled(model, inputs=x)
    shapes = module_shapes(model, x)
    assert not list(value_problems(copy.deepcopy(model), copy.deepcopy(pooled), x, patches=False))
    wide, _ = average_pooled(model, kernel=4, inputs=x)
    assert "other values than by hand" in next(value_problems(copy.deepcopy(model), wide, x, patches=False))
    assert "hardly an effect" in next(value_problems(copy.deepcopy(model), copy.deepcopy(model), x, patches=False))
    other = copy.deepcopy(model)
    other.maxpool = nn.AvgPool2d(3)
    assert list(variant_problems(model, shapes, other, x)) == ["other shapes of modules' outputs"]
    other = copy.deepcopy(model)
    other.maxpool.register_buffer("extra", torch.ones(1))
    with pytest.raises(RuntimeError, match="extra"):
        assert list(variant_problems(model, shapes, other, x)) == ["another state_dict"]


def test_the_checks_see_blurs_of_another_order(resnet):
    model, x, before = resnet
    for order in ("blur", "maxblur", "blurmax"):
        new, record = blur_pooled(model, order=order, inputs=x)
        after = graph_of(new, x)
        assert not list(blur_problems(after, before, record, order))
        for other in {"blur", "maxblur", "blurmax"} - {order}:
            assert list(blur_problems(after, before, record, other)), (order, other)


# ---- what is left: slices, interpolation, adaptive maxima ------------------------------------------------------------


class OptionA(nn.Module):
    """A block of the CIFAR ResNet whose shortcut is a slice with a step and zero channels (He et al. 2016, A)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.stride, self.more = stride, c_out - c_in

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(OptionA(8, 8, 1), OptionA(8, 16, 2), OptionA(16, 32, 2))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(F.adaptive_max_pool2d(self.layers(F.relu(self.bn(self.conv(x)))), 1).flatten(1))


def test_cifar_resnet_with_slices_as_shortcuts():
    model = CifarResNet().eval()
    new, record = average_pooled(model, inputs=PICTURE[..., :33, :32])
    assert [change.name for change in record.changes] == [
        "layers.1.conv1", "layers.2.conv1", ":adaptive_max_pool2d",
    ]  # fmt: skip
    assert record.left == {f"layers.{i}:slice{n}": SLICE for i in (1, 2) for n in ("", "#1")}
    found, before = graph_of(new, PICTURE), graph_of(model, PICTURE)
    assert found.slices == 4 and not list(average_problems(found, before, record))
    assert not list(value_problems(model, new, PICTURE, patches=False))


class ImagePyramid(nn.Module):
    """Shrinks the picture by interpolation, as multi-scale networks do, and takes the maximum of both scales."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.AdaptiveMaxPool2d((4, 5))

    def forward(self, x):
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return torch.cat([self.pool(self.conv(x)), self.pool(self.conv(half))], 1).mean((2, 3))


def test_interpolation_is_left_and_an_adaptive_maximum_is_swapped():
    model = ImagePyramid()
    new, record = average_pooled(model, inputs=PICTURE)
    assert [change.name for change in record.changes] == ["pool"]
    assert record.left == {":upsample_bilinear2d": "interpolates to a smaller map"}
    found = graph_of(new, PICTURE)
    assert (found.maxima, found.interpolations) == (0, 1)
    assert not list(average_problems(found, graph_of(model, PICTURE), record))
    with averages_by_hand(patches=False):
        torch.testing.assert_close(new(PICTURE), model(PICTURE))


def left_of(name: str, **arguments) -> tuple[Record, dict[str, int]]:
    model, sides = timm.create_model(name, **arguments).eval(), arguments.get("img_size", 64)
    _, record = average_pooled(model, inputs=torch.rand(1, 3, sides, sides))
    counts: dict[str, int] = {}
    for reason in record.left.values():
        counts[reason] = counts.get(reason, 0) + 1
    return record, counts


def test_what_real_networks_leave():
    record, left = left_of("levit_128s", img_size=96)
    assert left == {SLICE: 4, "attends from fewer positions": 2}  # two stages, rows and columns
    _, left = left_of("convnextv2_atto")
    assert left == {'a patch embedding: swapped by its name or with kinds "patch"': 1}
    record, left = left_of("resnet10t", global_pool="catavgmax")
    assert not left and [change.name for change in record.changes if change.type == "max pooling"] == [
        "maxpool", "global_pool.pool",
    ]  # fmt: skip


# ---- what forward passes leave in timm's networks, and which pictures they get ---------------------------------------


def test_networks_that_keep_computed_weights_are_copied_and_operated_twice():
    """timm's LeViT keeps attention biases from its first forward pass on, with their graph."""
    model = timm.create_model("levit_128s", img_size=96).eval()
    x = torch.rand(1, 3, 96, 96)
    model(x)
    one, _ = average_pooled(model, only="stem.conv1.linear", inputs=x)
    two, record = average_pooled(one, inputs=x)
    assert len(record.changes) == 3
    loaded = copy.deepcopy(two)  # the surgery's own passes left no graph in it
    assert torch.equal(two(x), average_pooled(model, inputs=x)[0](x))
    state = {name: value + 1 if "biases" in name else value for name, value in model.state_dict().items()}
    fresh = timm.create_model("levit_128s", img_size=96).eval()
    for net in (fresh, loaded):
        net.load_state_dict(state, strict=True)
    assert torch.equal(loaded(x), average_pooled(fresh, inputs=x)[0](x))  # and no bias computed before


def test_without_inputs_the_pictures_have_the_size_that_the_network_states():
    stated = average_pooled(timm.create_model("test_nfnet"))[1]
    assert stated.settings["input_shape"] == [3, 160, 160]
    grey = nn.Sequential(nn.Conv2d(1, 2, 3, 2))
    assert average_pooled(grey)[1].settings["input_shape"] == [1, 224, 224]

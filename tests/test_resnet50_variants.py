"""Operated copies of a trained ResNet50 on the photographs: what the paper says average pooling does (§4.3, A.6)."""

import numpy as np
import pytest
import torch

import gradspec as gs
from gradspec.surgery import average_pooled, untrained

VARIANTS = {
    "trained": lambda net: net,
    "untrained": lambda net: untrained(net, 0),
    "avgpool": average_pooled,
    "max alone": lambda net: average_pooled(net, kinds=("max",)),
    "strides alone": lambda net: average_pooled(net, kinds=("stride",)),
}


@pytest.fixture(scope="module")
def compared(resnet50_case):
    net, images, labels = resnet50_case
    models = {name: make(net) for name, make in VARIANTS.items()}
    return gs.compare(models, (images, labels), layers=["layer3.0.downsample.0*"], batch_size=4, progress=False)


def test_slopes_at_the_input(compared):
    slope = compared.drift.set_index("variant")["slope_nyquist"]
    assert abs(slope["untrained"]) < 0.15
    assert slope["avgpool"] < -1.8
    assert -1.6 < slope["max alone"] < -0.8
    assert -1.6 < slope["strides alone"] < -0.8


def test_the_checkerboard_and_its_absence(compared):
    """A strided 1 x 1 convolution hands nothing to three pixels of four; averaging hands each its share."""

    def zeros(name, call):
        return np.mean(compared.audits[name].examples[call, "input"].maps == 0)

    assert zeros("trained", "layer3.0.downsample.0") == zeros("untrained", "layer3.0.downsample.0") == 0.75
    assert zeros("avgpool", "layer3.0.downsample.0:avg_pool2d") == 0


def test_the_lattice_of_all_strides_at_the_input(compared):
    """The strides' lattices multiply to one of 32 pixels, the untrained network's at its clearest."""

    def contrast(name):
        maps = compared.audits[name].examples["input", "input"].maps.astype(np.float64)  # (2, 224, 224)
        folded = (maps**2).reshape(-1, 7, 32, 7, 32).mean((0, 1, 3))  # energy by position within 32 x 32
        return folded.max() / folded.mean()

    assert contrast("untrained") > 5 * contrast("avgpool")


def test_what_they_compute_is_said(compared):
    drift = compared.drift.set_index("variant")
    assert drift["accuracy"]["trained"] > drift["accuracy"]["avgpool"]  # surgery without retraining
    assert drift["accuracy"]["untrained"] < 0.2
    assert drift["agreement"]["trained"] == 1 > drift["agreement"]["avgpool"]


def test_checkpoints_of_the_original_load(compared, resnet50_case):
    net, images, _ = resnet50_case
    pooled, record = average_pooled(net)
    fresh = untrained(pooled, 7)[0]
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(images[:1]), pooled(images[:1]), rtol=0, atol=0)
    assert len(record.changes) == 8 and not record.left

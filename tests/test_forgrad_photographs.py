"""Faithfulness after FORGrad on a trained network and photographs, against a loop that uses nothing of gradspec's."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gradspec as gs
from gradspec.attributions import Saliency
from gradspec.forgrad import Where
from gradspec.metrics import Faithfulness

SHARED = Path(__file__).parents[2] / "shared"
SIDE = 224


@pytest.fixture(scope="module")
def tiny_darknet():
    """The network in float64, two photographs as it takes them, their labels and names."""
    if not (SHARED / "nets/tiny_darknet.safetensors").exists():
        pytest.skip("the trained Tiny Darknet is not on this machine")
    net = gs.load_model(f"{SHARED}/nets/tiny_darknet.py:load", f"{SHARED}/nets/tiny_darknet.safetensors")
    images, labels, ids = next(iter(gs.load_images(SHARED / "images", net, batch_size=2)))
    return net.double(), images.double(), labels, ids


def low_passed(values: np.ndarray, cutoff: float) -> np.ndarray:
    frequency = np.minimum(np.arange(SIDE), SIDE - np.arange(SIDE))
    kept = np.hypot(frequency[:, None], frequency) <= cutoff
    return np.fft.ifft2(np.fft.fft2(values) * kept).real


def slow_faithfulness(net, image, label, values):
    """Insertion − deletion of one map: a picture at a time, the trapezoid by hand."""
    order, areas = np.argsort(-values.ravel(), kind="stable"), {}
    for inserts in (True, False):
        curve = []
        for point in range(11):
            first = np.zeros(SIDE * SIDE, bool)
            first[order[: point * SIDE * SIDE // 10]] = True
            shown = torch.from_numpy((first == inserts).reshape(SIDE, SIDE))
            curve.append(float(net((image * shown)[None]).softmax(1)[0, label]))
        areas[inserts] = (sum(curve) - (curve[0] + curve[-1]) / 2) / 10
    return areas[True] - areas[False]


@pytest.mark.parametrize("where", ["attribution", "gradient"])
@pytest.mark.parametrize("cutoff", [2.75, 20.0])
def test_against_a_slow_loop(tiny_darknet, where: Where, cutoff):
    net, images, labels, ids = tiny_darknet
    maps = gs.FORGrad(Saliency(), cutoff, where)(net, images, labels, ids=ids)
    found = Faithfulness()(net, images, labels, maps, ids=ids)
    for image, label, value in zip(images, labels.tolist(), found.tolist(), strict=True):
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x)[0, label], x)
        channels = gradient[0].numpy()
        if where == "attribution":
            expected = np.abs(low_passed(np.abs(channels).max(0), cutoff))
        else:
            expected = np.abs(np.stack([low_passed(channel, cutoff) for channel in channels])).max(0)
        with torch.no_grad():
            slow = slow_faithfulness(net, image, label, expected)
        assert abs(value - slow) < 1e-4  # in float32 up to 5e-3: rounding of gradients swaps neighbouring ranks

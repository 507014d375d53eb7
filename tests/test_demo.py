"""The generated pictures, their masks, the embedded network, and the script that trained it."""

import importlib.util
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import nn

from gradspec.demo import BUILDERS, CLASSES, load, names, pictures, vgg
from gradspec.demo.nets import load_file
from gradspec.demo.pictures import draw_scene, render
from gradspec.demo.shapes import SHAPES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "studies" / "train_embedded.py"
    if not path.is_file():
        pytest.skip("the studies are not installed beside the tests")
    spec = importlib.util.spec_from_file_location("train_embedded", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- pictures


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 10**9), index=st.integers(0, 4), height=st.integers(16, 40))
def test_picture_depends_on_seed_and_index_alone(seed, start, index, height):
    many = pictures(5, (height, 23), seed, start=start)
    one = pictures(1, (height, 23), seed, start=start + index)
    assert torch.equal(many.images[index], one.images[0])
    assert torch.equal(many.masks[index], one.masks[0])
    assert many.labels[index] == one.labels[0]


def test_every_seed_and_index_draws_its_own_scene():
    scenes = [draw_scene(seed, index) for seed in (0, 1, 2**40) for index in range(100)]
    assert len({scene.noise_seed for scene in scenes}) == len({scene.radius for scene in scenes}) == 300


def test_any_ten_in_a_row_hold_every_class():
    assert sorted(pictures(10, 16, start=13).labels.tolist()) == list(range(10))
    assert pictures(3, 16, start=19).labels.tolist() == [9, 0, 1]


@pytest.mark.parametrize("size", [64, (17, 16), (33, 64), (50, 31)])
def test_every_size_holds_values_in_range_and_a_visible_object(size):
    shown = pictures(60, size, seed=4)
    assert shown.images.dtype == torch.float32 and shown.masks.dtype == torch.bool
    assert shown.images.min() >= 0 and shown.images.max() <= 1
    side = min(shown.images.shape[-2:])
    area = shown.masks.flatten(1).sum(1) / side**2
    # The smallest: a thin shape of radius 0.22 squeezed to 0.8, partly hidden; the largest: a disk of radius 0.4.
    assert area.min() > 0.02 and area.max() < math.pi * 0.4**2


def test_area_of_the_mask_by_hand():
    lens = _lens(0.95, 0.8, 0.5)
    areas = {
        "disk": math.pi * 0.85**2,
        "square": 1.4**2,
        "triangle": 3 * 3**0.5 * 0.48**2,
        "star": 5 * 0.42 * math.sin(math.pi / 5),
        "cross": 2 * 1.84 * 0.54 - 0.54**2,
        "ring": math.pi * (0.9**2 - 0.5**2),
        "crescent": math.pi * 0.95**2 - lens,
        "heart": (4 + math.pi) * 0.55**2,
        "arrow": 0.95**2 / 1.25 + 0.44,
        "hourglass": 4 * (0.075 + 0.75 * 0.75**2 / 2),
    }
    for name, area in areas.items():
        scene = replace(draw_scene(0, CLASSES.index(name)), centre=(0.5, 0.5), front=())
        _, mask = render(scene, 256, 256)
        expected = area * scene.squeeze * scene.radius**2
        assert mask.mean() == pytest.approx(expected, rel=0.02), name  # an outline's pixels: about 1 % of the area


def _lens(a, b, d):
    """Area that two disks of radius a and b share, their centres d apart."""
    first, second = (d * d + a * a - b * b) / (2 * d), (d * d + b * b - a * a) / (2 * d)
    caps = [r * r * math.acos(h / r) - h * math.sqrt(r * r - h * h) for r, h in ((a, first), (b, second))]
    return sum(caps)


@pytest.mark.parametrize("name", CLASSES)
def test_shape_fits_the_unit_circle_and_its_distance_grows_by_one_per_unit(name):
    axis = np.linspace(-1.3, 1.3, 521)
    x, y = np.meshgrid(axis, axis)
    distance = SHAPES[name](x, y)
    assert (distance[np.hypot(x, y) > 1.03] > 0).all()
    assert np.hypot(x, y)[distance < 0].max() > 0.8
    slope = np.hypot(*np.gradient(distance, axis[1] - axis[0]))[np.abs(distance) < 0.02]
    assert np.median(slope) == pytest.approx(1, abs=0.02)  # corners apart


def test_background_changes_neither_mask_nor_object():
    for index in range(10):
        scene, other = draw_scene(1, index), draw_scene(2, index)
        image, mask = render(scene, 64, 64)
        changed, same_mask = render(replace(scene, background=other.background, behind=other.behind), 64, 64)
        assert np.array_equal(mask, same_mask)
        difference = np.abs(image - changed).max(0) > 1e-3
        assert not difference[ndimage.binary_erosion(mask, iterations=2)].any()
        assert difference[~ndimage.binary_dilation(mask, iterations=2)].mean() > 0.8


def test_object_paints_the_mask_and_nothing_else():
    for index in range(10):
        scene = replace(draw_scene(3, index), front=())  # a thin wire in front covers a pixel by half
        colours = 1 - scene.texture.colours.round()  # each channel at the far end from where it was
        image, mask = render(scene, 61, 83)
        repainted, _ = render(replace(scene, texture=replace(scene.texture, colours=colours)), 61, 83)
        difference = np.abs(image - repainted).max(0) > 1e-3
        # Tips thinner than half a pixel (a crescent's) reach a little beyond the mask.
        assert not difference[~ndimage.binary_dilation(mask, iterations=4)].any()
        assert difference[mask].mean() > 0.98


def test_clutter_in_front_hides_part_of_the_object():
    scenes = [scene for scene in (draw_scene(5, i) for i in range(60)) if scene.front]
    hidden = []
    for scene in scenes:
        free, visible = (render(replace(scene, front=front), 64, 64)[1] for front in ((), scene.front))
        assert not (visible & ~free).any()
        hidden.append(1 - visible.sum() / free.sum())
    assert max(hidden) > 0.03 and max(hidden) < 0.4


def test_another_resolution_shows_the_same_scene():
    for index in range(20):
        scene = replace(draw_scene(6, index), noise=0.0)
        fine, fine_mask = render(scene, 120, 184)
        coarse, coarse_mask = render(scene, 60, 92)
        halved = fine.reshape(3, 60, 2, 92, 2).mean((2, 4))
        # Edges and patterns of a few pixels sample differently; a scene that moved by a pixel differs by 0.03 and more.
        assert np.abs(halved - coarse).mean() < 0.012
        assert (fine_mask.reshape(60, 2, 92, 2).mean((1, 3)) > 0.5).__xor__(coarse_mask).mean() < 0.01


def test_object_keeps_its_proportions_in_a_wide_picture():
    for index in range(10):
        scene = replace(draw_scene(7, index), front=(), centre=(0.5, 0.5))
        square, wide, tall = (render(scene, *size)[1].sum() for size in ((64, 64), (64, 150), (101, 64)))
        assert wide == pytest.approx(square, rel=0.03) and tall == pytest.approx(square, rel=0.03)


@pytest.mark.parametrize("wrong", [{"n": -1}, {"n": 1, "seed": -1}, {"n": 1, "start": -1}, {"n": 1, "size": (64, 15)}])
def test_numbers_that_make_no_picture_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 16 pixels, got"):
        pictures(**wrong)


# --- networks


LEAST = {"vgg_max": 0.95, "vgg_avg": 0.95, "resnet_stride": 0.9, "vit": 0.5}  # the transformer learns slowly


def test_embedded_weights_are_small_and_state_their_accuracy():
    assert names() == sorted(LEAST)
    assert sum(file.stat().st_size for file in (ROOT / "gradspec" / "demo" / "weights").iterdir()) < 3e6
    for name in names():
        spec = load(name).spec
        assert spec["name"] == name and spec["accuracy"] > LEAST[name] and spec["test_pictures"] >= 2000
        assert {"script", "seed", "steps", "size", "train_pictures"} <= set(spec)


@pytest.mark.parametrize("name", names())
def test_stated_accuracy_holds_on_fresh_pictures(name):
    net, fresh = load(name), pictures(300, seed=77)
    with torch.no_grad():
        accuracy = (net(net.preprocess(fresh.images)).argmax(1) == fresh.labels).float().mean().item()
    stated = net.spec["accuracy"]
    assert accuracy >= stated - 4 * math.sqrt(stated * (1 - stated) / 300)  # four standard errors


def test_loaded_network_is_ready_and_takes_any_size():
    net = load("vgg_max")
    assert not any(module.training for module in net.modules())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert net.classes == CLASSES and len(net.mean) == len(net.std) == 3
    assert net.spec["parameters"] == sum(p.numel() for p in net.parameters())
    inputs = net.preprocess(pictures(3, (37, 81)).images)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs)[1:2], net(inputs[1:2]), rtol=1e-4, atol=1e-4)


def test_unknown_network_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no embedded network is called 'vgg19'; there are: .*vgg_max"):
        load("vgg19")


def test_preprocess_standardises_tensors_and_pil_images_alike():
    net = vgg()
    pixel = torch.tensor([m + k * s for m, s, k in zip(net.mean, net.std, (0, 1, -2), strict=True)])
    torch.testing.assert_close(net.preprocess(pixel[:, None, None]).flatten(), torch.tensor([0.0, 1.0, -2.0]))
    shown = pictures(1).images[0]
    image = Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).numpy())
    torch.testing.assert_close(
        net.preprocess(image), net.preprocess(shown), rtol=0, atol=0.5 / 255 / min(net.std) + 1e-5
    )
    wide = Image.new("L", (200, 100), 255)
    assert torch.allclose(net.preprocess(wide), net.preprocess(torch.ones(3, 64, 64)))
    with pytest.raises(ValueError, match="divide 8-bit pictures by 255"):
        net.preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_average_pooled_twin_differs_in_its_pools_alone():
    most, mean = vgg(), vgg(partial(nn.AvgPool2d, 2))
    assert most.state_dict().keys() == mean.state_dict().keys()
    different = [
        (type(a), type(b)) for a, b in zip(most.modules(), mean.modules(), strict=True) if type(a) is not type(b)
    ]
    assert different == [(nn.MaxPool2d, nn.AvgPool2d)] * 4


# --- the training script


def test_training_learns_one_batch_by_heart(script, monkeypatch):
    starts = []

    def same(n, size, seed, *, start):
        starts.append(start)
        return pictures(n, size, seed)

    monkeypatch.setattr(script, "pictures", same)
    net = script.initialised("vgg_max", 0)
    losses = script.train(net, 25, batch=20, size=32)
    assert starts == list(range(0, 500, 20))  # no picture twice
    assert losses[0] > 2 and losses[-1] < 0.7
    assert not net.training


def test_initial_weights_follow_the_seed_and_leave_the_global_generator(script):
    before = torch.get_rng_state()
    first, again, other = (script.initialised("vgg_max", seed).head.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_accuracy_is_counted_by_class(script):
    class Third(nn.Module):
        def preprocess(self, images):
            return images

        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 3), 10)

    shares = script.accuracies(Third(), 130, 16)
    assert shares == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert script.TRAIN_SEED != script.TEST_SEED


def test_saved_network_comes_back_the_same(script, tmp_path):
    net = script.initialised("vgg_max", 1).to(memory_format=torch.channels_last).eval()
    script.save(net, tmp_path / "new" / "net.safetensors", {"size": 48, "accuracy": 0.5})
    assert (tmp_path / "new" / "net.safetensors").stat().st_mode & 0o044 == 0o044
    back = load_file(tmp_path / "new" / "net.safetensors", BUILDERS["vgg_max"])
    assert back.spec == {"size": 48, "accuracy": 0.5}
    for key, value in net.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)

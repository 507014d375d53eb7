"""Metrics by hand on a model that sums its input, against slow loops, and by their laws."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from gradspec import demo
from gradspec.attributions import GradientInput, Saliency, SmoothGrad
from gradspec.data import picture_id
from gradspec.engine import Engine
from gradspec.metrics import Deletion, Faithfulness, Insertion, MuFidelity, PointingGame, RelevanceMass, Stability
from gradspec.metrics.deletion import areas, blurred
from gradspec.metrics.masks import distinct, mask_keys, ordering, places_in, ranking, tie_orders
from gradspec.metrics.mufidelity import grid_cells, rank_correlation
from gradspec.metrics.sharing import scored, scored_by
from gradspec.randomness import generator
from gradspec.targets import label_logit, label_probability

SIZES = [(8, 8), (7, 11), (13, 6)]


class Summing(nn.Module):
    """Logits ±(the sum of the input), of any size."""

    mean, std = (0.5,), (0.25,)

    def forward(self, x):
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total, -total], 1)


def convolving(channels=3, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    net.mean, net.std = (0.4,) * channels, (0.2,) * channels
    net[-1].weight.data *= 6  # probabilities that move
    return net.eval().to(dtype)


def case(n=3, channels=3, size=(9, 7), dtype=torch.float32, seed=1):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, *size, generator=draw, dtype=torch.float64)
    maps = torch.randn(n, *size, generator=draw, dtype=torch.float64)
    return images.to(dtype), torch.arange(n) % 4, maps.to(dtype)


def score_of(net, image, label):
    with torch.no_grad():
        return float(net(image[None]).softmax(1)[0, label])


ALL = [Deletion(), Insertion(), Faithfulness(), MuFidelity(subsets=12), MuFidelity(subsets=12, exact=True)]


def name(metric):
    settings = "exact", "baseline", "tolerance"
    chosen = [str(getattr(metric, s)) for s in settings if getattr(metric, s, "mean") not in ("mean", False)]
    return type(metric).__name__ + "-".join(["", *chosen])


# ---- deletion and insertion ------------------------------------------------------------------------


def test_curves_of_a_sum_are_exact():
    """Pixels 1..n, their own map: after j deletions the sum of 1..n - j is left; every number is exact."""
    n = 35
    image = torch.arange(1.0, n + 1)[torch.randperm(n, generator=torch.Generator().manual_seed(0))].view(1, 1, 5, 7)
    y, j = torch.tensor([0]), torch.arange(n + 1.0)
    left = (n - j) * (n - j + 1) / 2
    deletion = Deletion(label_logit, steps=n).curves(Summing(), image, y, image)
    insertion = Insertion(label_logit, steps=n).curves(Summing(), image, y, image)
    assert torch.equal(deletion.scores, left[None]) and torch.equal(insertion.scores, n * (n + 1) / 2 - left[None])
    assert torch.equal(deletion.fractions, j.double() / n)
    # Σ_{m=0}^{n} m(m + 1)/2 = n(n + 1)(n + 2)/6, and half of the first point goes off
    area = (n * (n + 1) * (n + 2) / 6 - n * (n + 1) / 4) / n
    assert deletion.area.item() == pytest.approx(area, rel=1e-7)
    assert insertion.area.item() == pytest.approx(n * (n + 1) / 2 - area, rel=1e-7)
    f = Faithfulness(label_logit, steps=n)(Summing(), image, y, image)
    assert f.item() == pytest.approx(n * (n + 1) / 2 - 2 * area, rel=1e-6)
    assert Faithfulness(label_logit, steps=n)(Summing(), image, y, -image).item() == pytest.approx(-f.item(), rel=1e-6)
    assert Deletion(label_logit, steps=n)(Summing(), image, torch.tensor([1]), image).item() == -deletion.area.item()


def test_a_pixel_value_as_baseline():
    image, value = torch.zeros(1, 2, 3, 5), 0.75  # (0.75 - 0.5) / 0.25 = 1 in the model's input, times 2 channels
    curves = Deletion(label_logit, steps=4, baseline=value).curves(
        Summing(), image, torch.tensor([0]), torch.rand(1, 3, 5)
    )
    assert curves.scores.tolist() == [[0, 2 * 3, 2 * 7, 2 * 11, 2 * 15]]  # ⌊j·15/4⌋ pixels
    assert curves.fractions.tolist() == [0, 3 / 15, 7 / 15, 11 / 15, 1]


def test_more_steps_than_pixels_repeat_points():
    net, (images, labels, maps) = convolving(dtype=torch.float64), case(2, size=(3, 4), dtype=torch.float64)
    found, plain = (Deletion(steps=steps)(net, images, labels, maps) for steps in (50, 12))
    assert torch.allclose(found, plain, rtol=1e-6)  # steps of no width


def slow_curve(net, image, label, phi, order, steps, blank, insert):
    """Petsiuk's loop: pixel after pixel, one picture at a time, as he sets them, in numpy."""
    height, width = phi.shape
    whole, empty = image.numpy(), np.broadcast_to(blank.numpy(), image.shape)
    phi = phi.numpy().ravel()
    order = sorted(order.tolist(), key=lambda pixel: -phi[pixel])  # python's sort is stable
    current = np.array(empty if insert else whole)
    source, scores, done = (whole if insert else empty), [], 0
    for j in range(steps + 1):
        while done < int(np.floor(j * height * width / steps + 1e-9)):
            row, column = divmod(order[done], width)
            current[:, row, column] = source[:, row, column]
            done += 1
        scores.append(score_of(net, torch.from_numpy(current), label))
    return np.array(scores)


@pytest.mark.parametrize("baseline", ["mean", 0.1, "blur"])
@pytest.mark.parametrize(("size", "channels"), [((8, 10), 3), ((7, 11), 1), ((13, 6), 3)])
def test_curves_equal_a_slow_loop(size, channels, baseline):
    net = convolving(channels, torch.float64)
    images, labels, maps = case(2, channels, size, torch.float64)
    maps = torch.stack([maps.round(), -maps, maps * 0.3], 1)  # channels, and ties between them
    pixels, ids, steps = size[0] * size[1], ["a", "b"], 10
    blank = blurred(images) if baseline == "blur" else torch.full_like(images, 0 if baseline == "mean" else -1.5)
    settings = {"steps": steps, "baseline": baseline, "seed": 3}
    deletion = Deletion(**settings).curves(net, images, labels, maps, ids=ids)
    insertion = Insertion(**settings).curves(net, images, labels, maps, ids=ids)
    areas = []
    for k in range(2):
        order = torch.randperm(pixels, generator=generator(3, "ties", ids[k]))
        for insert, curves in ((False, deletion), (True, insertion)):
            slow = slow_curve(net, images[k], labels[k], maps[k].mean(0), order, steps, blank[k], insert)
            np.testing.assert_allclose(curves.scores[k], slow, rtol=1e-6)  # they are float32
            places = np.array([j * pixels // steps for j in range(steps + 1)]) / pixels
            area = sum(np.diff(places) * (slow[1:] + slow[:-1]) / 2)
            np.testing.assert_allclose(curves.area[k], area, rtol=1e-6)
            equal = np.mean((slow[1:] + slow[:-1]) / 2)  # Xplique's: all steps alike
            if pixels % steps == 0:
                np.testing.assert_allclose(curves.area[k], equal, rtol=1e-6)
        areas.append(float(insertion.area[k] - deletion.area[k]))
    found = Faithfulness(**settings)(net, images, labels, maps, ids=ids)
    np.testing.assert_allclose(found, areas, atol=1e-7)
    both = Faithfulness(**settings).curves(net, images, labels, maps, ids=ids)
    assert torch.allclose(both.deletion.scores, deletion.scores, atol=1e-7)
    assert torch.allclose(both.insertion.scores, insertion.scores, atol=1e-7)


def test_ties_have_an_order_of_the_pictures_own():
    maps = torch.zeros(3, 6, 7)
    maps[:, :3] = 1.0
    ranks = ranking(maps, ["a", "b", "a"], seed=0)
    assert torch.equal(ranks[0], ranks[2]) and not torch.equal(ranks[0], ranks[1])
    assert not torch.equal(ranks[:1], ranking(maps[:1], ["a"], seed=1))
    for rank in ranks:
        assert rank[:3].flatten().sort().values.tolist() == list(range(21))  # the higher ones first
        assert rank[3:].flatten().sort().values.tolist() == list(range(21, 42))
    net, (images, labels, _) = convolving(), case(1, size=(6, 7))
    metric, ids = Deletion(steps=5), [["a"], ["a"], ["b"]]
    first, again, other = (metric(net, images, labels, maps[:1], ids=name) for name in ids)
    assert first == again != other


def test_the_order_of_ties_is_uniform():
    """Each of 12 equal pixels is first in a 12th of 1200 pictures: 100 ± 10, all within five standard deviations."""
    ranks = ranking(torch.ones(1200, 3, 4), [str(k) for k in range(1200)], seed=0)
    counts = (ranks.flatten(1) == 0).sum(0)
    assert counts.sum() == 1200 and (counts - 100).abs().max() < 50


def test_blur_keeps_a_constant_and_scales_with_the_picture():
    flat = torch.full((1, 2, 9, 5), 3.0)
    assert torch.allclose(blurred(flat), flat)
    assert blurred(torch.rand(1, 1, 1, 1)).shape == (1, 1, 1, 1)
    dot = torch.zeros(1, 1, 301, 225, dtype=torch.float64)
    dot[0, 0, 150, 112] = 1
    spread = blurred(dot)[0, 0]
    for axis, side in ((0, 301), (1, 225)):
        places = torch.arange(side) - side // 2
        variance = (spread.sum(1 - axis) * places**2).sum()
        assert variance.sqrt() == pytest.approx(5 * 225 / 224, rel=0.02)  # cut at three sigma


def test_forwards_are_counted_and_ends_shared():
    images, labels, maps = case(3)
    engine = Engine(convolving(), progress=False)

    def spent(metric, maps=maps, labels=labels):
        before = engine.forwards
        metric(engine, images, labels, maps)
        return engine.forwards - before

    assert spent(Faithfulness()) == 3 * (2 * 9 + 1) + 1 == 3 * Faithfulness().passes(9, 7) + 1
    assert spent(Faithfulness(), -maps) == 3 * 18  # both ends are known by now
    assert spent(Deletion()) == spent(Insertion()) == 3 * 9
    assert spent(MuFidelity(subsets=5)) == 3 * 5  # the picture itself as well
    assert spent(Deletion(), maps, labels.flip(0)) == 3 * 9  # other labels of the same logits
    assert spent(Deletion(baseline=0.2)) == 3 * 9 + 1
    assert spent(Deletion(baseline="blur")) == 3 * 10
    assert spent(Insertion(baseline="blur", steps=4)) == 3 * 3
    assert spent(Deletion(label_logit)) == 3 * 9  # another score of the same logits
    assert Deletion(baseline="blur").passes(9, 7) == 11 and Insertion(steps=4).passes(9, 7) == 4
    assert engine.backwards == 0


def test_ends_are_remembered_by_the_picture_not_by_its_name():
    net, (images, labels, maps) = convolving(), case(2)
    engine = Engine(net, progress=False)
    for part in (slice(0, 1), slice(1, 2)):  # the same name for both
        pair = images[part], labels[part], maps[part]
        assert torch.allclose(Deletion()(engine, *pair, ids=["0"]), Deletion()(net, *pair, ids=["0"]), rtol=1e-6)
    turned = images[:1].transpose(2, 3).contiguous().view(1, 3, 9, 7)  # the same size, other values
    assert torch.allclose(
        Deletion()(engine, turned, labels[:1], maps[:1]), Deletion()(net, turned, labels[:1], maps[:1]), rtol=1e-6
    )
    same = images[:1].expand(3, -1, -1, -1)
    before = engine.forwards
    Deletion()(engine, same + 0.1, labels[:1].expand(3), maps[:1].expand(3, -1, -1))
    assert engine.forwards - before == 3 * 9 + 1  # equal pictures once


def test_a_score_that_changes_its_mind_is_asked_again():
    net, (images, labels, maps) = convolving(), case(2)
    engine, chosen = Engine(net, progress=False), [0]

    def score(logits, labels):
        return logits[:, chosen[0]]

    Deletion(score)(engine, images, labels, maps)
    chosen[0] = 1
    again = Deletion(score).curves(engine, images, labels, maps).scores
    torch.testing.assert_close(again, Deletion(score).curves(net, images, labels, maps).scores)


# ---- μFidelity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"shared": True, "baseline": 0.2}, {"grid": 4, "share": 0.5}])
@pytest.mark.parametrize("size", [(9, 9), (13, 22), (5, 17)])  # fewer pixels than cells too
def test_mufidelity_equals_a_slow_loop(size, options):
    net = convolving(dtype=torch.float64)
    images, labels, maps = case(2, 3, size, torch.float64)
    metric = MuFidelity(subsets=25, seed=5, **options)
    maps = (maps * 2).round() + torch.tensor([0.0, 0.1], dtype=torch.float64)[:, None, None]  # sums that tie
    blank = -1.0 if "baseline" in options else 0.0
    slow = []
    for image, label, phi, cells in zip(images, labels, maps, metric.cells(["a", "b"]), strict=True):
        grids = cells.view(-1, 1, metric.grid, metric.grid).double()
        masks = nn.functional.interpolate(grids, size, mode="nearest-exact")[:, 0].bool()
        drops = [score_of(net, image, label) - score_of(net, image.masked_fill(mask, blank), label) for mask in masks]
        sums = [round(float(phi[mask].sum()), 9) for mask in masks]
        slow.append(spearmanr(drops, sums).statistic)
    found = metric(net, images, labels, maps, ids=["a", "b"])
    np.testing.assert_allclose(found, slow, rtol=1e-6)  # it is float32


def test_subsets_of_the_preset_are_17_of_81():
    exact = MuFidelity(exact=True, shared=True).cells(["a", "b"])
    assert exact.shape == (2, 200, 81) and (exact.sum(2) == 17).all() and torch.equal(exact[0], exact[1])
    free = MuFidelity(subsets=2000).cells(["a", "b"])
    assert not torch.equal(free[0], free[1])
    sizes = free.double().sum(2)
    assert sizes.mean() == pytest.approx(16.2, abs=0.3)  # binomial (81, 0.2): 3.6 of 63 draws' standard errors
    assert sizes.std() == pytest.approx(3.6, abs=0.2)
    assert exact[0].double().mean(0).sub(17 / 81).abs().max() < 0.15  # each cell alike: 5 standard errors


@pytest.mark.parametrize("size", SIZES)
def test_mufidelity_of_a_linear_models_own_map_is_one(size):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4)).double()
    linear.mean, linear.std = (0.0,), (1.0,)
    images, labels, maps = case(4, 3, size, torch.float64)
    metric = MuFidelity(label_logit, subsets=50)
    own = GradientInput()(linear, images, labels)
    # float32 maps can swap two neighbours of the 50: 12 / (50³ - 50) = 1e-4
    assert torch.allclose(metric(linear, images, labels, own), torch.ones(4), atol=2e-4)
    assert torch.allclose(metric(linear, images, labels, -own), -torch.ones(4), atol=2e-4)
    assert metric(linear, images, labels, maps).abs().max() < 0.7


def test_rank_correlation_equals_scipys():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 6, (5, 40), generator=draw).double(), torch.randn(5, 40, generator=draw)
    b[1], b[2, :] = a[1], 1.0
    found = rank_correlation(a, b)
    for k in (0, 1, 3, 4):
        assert found[k].item() == pytest.approx(spearmanr(a[k], b[k]).statistic, abs=1e-12)
    assert found[2].isnan() and found[1] == pytest.approx(1)


def test_grid_cells_are_of_even_height():
    cells = grid_cells(3, 6, 9)
    assert cells.tolist() == [[row // 2 * 3 + column // 3 for column in range(9)] for row in range(6)]


def test_mufidelity_without_a_drop_is_no_number():
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 0

    images, labels, maps = case(2)
    with pytest.warns(UserWarning, match=r"^MuFidelity: 2 maps have the same drop or the same sum for every subset"):
        assert MuFidelity(subsets=5)(Constant(), images, labels % 2, maps).isnan().all()


# ---- stability -------------------------------------------------------------------------------------


def squares(model, images, labels):
    """A foreign attribution whose maps are known: the square of the picture."""
    return (images.double() ** 2).mean(1).numpy()


@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"shared": True, "radius": 0.2}])
def test_stability_equals_a_slow_loop(options):
    net, (images, labels, _) = convolving(), case(3, size=(7, 10))
    metric = Stability(samples=6, seed=2, **options)
    raw, free = [], []
    for image, name in zip(images, "abc", strict=True):
        clean, distances = (image.double() ** 2).mean(0), []
        for j in range(6):
            stream = generator(2, "stability", "" if "shared" in options else name, j)
            noise = torch.rand(3, 7, 10, generator=stream)
            noise = noise if "one_sided" in options else noise * 2 - 1
            moved = image + noise * options.get("radius", 0.05) / 0.2  # the model's std
            distances.append(float((((moved.double() ** 2).mean(0) - clean) ** 2).sum().sqrt()))
        raw.append(np.mean(distances))
        free.append(np.mean(distances) / float((clean**2).sum().sqrt()))
    found = metric.distances(net, images, labels, ids=list("abc"), attribution=squares)
    np.testing.assert_allclose(found.raw, raw, rtol=1e-6)
    np.testing.assert_allclose(found.scale_free, free, rtol=1e-6)
    given = metric(net, images, labels, squares(net, images, labels), ids=list("abc"), attribution=squares)
    assert torch.equal(given, found.raw)


def test_stability_of_a_linear_model():
    """The gradient does not move; gradient times input moves by w·ε: within its bound, and of the noise's length."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 63, 4))
    linear.mean, linear.std = (0.0,), (0.5,)
    images, labels, _ = case(3)
    metric = Stability(samples=4)
    assert torch.equal(metric(linear, images, labels, attribution=Saliency()), torch.zeros(3))
    # the same draws for a picture and its copies: the moments of the noise are those of the picture
    assert torch.equal(metric(linear, images, labels, attribution=SmoothGrad(samples=3)), torch.zeros(3))
    kept = metric(linear, images, labels, attribution=GradientInput(channels="keep"))
    slow = []
    for k in range(3):
        weight = linear[1].weight.detach()[labels[k]].view(3, 9, 7)
        name = picture_id(images[k])
        noise = [torch.rand(3, 9, 7, generator=generator(0, "stability", name, j)) * 2 - 1 for j in range(4)]
        slow.append(np.mean([float((weight * e * 0.1).norm()) for e in noise]))
    np.testing.assert_allclose(kept, slow, rtol=1e-5)  # a small difference of float32 maps
    assert (metric(linear, images, labels, attribution=GradientInput()) < kept).all()


def test_stability_scales_with_the_map_but_for_the_scale_free_one():
    net, (images, labels, _) = convolving(), case(2)
    scaled = lambda model, x, y: 3 * squares(model, x, y)  # noqa: E731
    once = Stability(samples=3).distances(net, images, labels, attribution=squares)
    thrice = Stability(samples=3).distances(net, images, labels, attribution=scaled)
    assert torch.allclose(thrice.raw, 3 * once.raw) and torch.allclose(thrice.scale_free, once.scale_free)
    assert torch.equal(Stability(samples=3, scale_free=True)(net, images, labels, attribution=squares), once.scale_free)
    assert not torch.equal(once.raw, once.scale_free)


def test_a_foreign_attribution_gets_the_model_in_eval_mode_and_ids_if_it_takes_them():
    net, (images, labels, _) = convolving(), case(2)
    net.train()
    seen = []

    def named(model, images, labels, ids):
        assert model is net and not any(module.training for module in model.modules()) and torch.is_grad_enabled()
        seen.append((images, labels, ids))
        draws = [torch.rand(9, 7, generator=generator(0, "map", name)) for name in ids]
        return torch.stack(draws)

    with torch.inference_mode():
        found = Stability(samples=5, radius=0.1)(Engine(net), images, labels, ids=["a", "b"], attribution=named)
    assert torch.equal(found, torch.zeros(2)) and net.training and net[0].training
    clean, *copies = seen
    assert clean[2] == ["a", "b"] and [name for part in copies for name in part[2]] == ["a"] * 5 + ["b"] * 5
    noise = torch.cat([part[0] for part in copies]) - images.repeat_interleave(5, 0)
    assert -0.5 <= noise.min() < -0.48 and 0.48 < noise.max() <= 0.5 + 1e-6  # 0.1 / 0.2
    assert torch.cat([part[1] for part in copies]).tolist() == [0] * 5 + [1] * 5


def test_stability_spends_the_attributions_passes():
    engine, (images, labels, _) = Engine(convolving(), progress=False), case(2)
    metric, attribution = Stability(samples=3), SmoothGrad(samples=4)
    maps = attribution(engine, images, labels)
    before = engine.forwards
    given = metric(engine, images, labels, maps, attribution=attribution)
    assert engine.forwards - before == 2 * metric.passes(9, 7, attribution) == 2 * 3 * 4
    assert torch.equal(given, metric(engine, images, labels, attribution=attribution))


def test_stability_says_what_it_needs():
    net, (images, labels, maps) = convolving(), case(2)
    with pytest.raises(ValueError, match=r"Expected an attribution=, got none"):
        Stability()(net, images, labels, maps)
    with pytest.raises(ValueError, match=r"to be \(9, 7\) as those of the pictures, got \(3, 9, 7\)"):
        Stability()(net, images, labels, maps, attribution=GradientInput(channels="keep"))
    with pytest.raises(ValueError, match=r"Expected maps \(16, 9, 7\) .* got shape \(\)"):
        Stability()(net, images, labels, maps, attribution=lambda m, x, y: x.sum())
    broken = lambda m, x, y: torch.where(x[:, 0] > 0, x[:, 0], torch.nan)  # noqa: E731
    with pytest.warns(UserWarning, match=r"Stability: 2 maps have noisy copies whose maps hold NaN"):
        assert Stability()(net, images, labels, maps, attribution=broken).isnan().all()
    with pytest.raises(TypeError, match=r"such as Saliency\(\), got <class"):
        Stability()(net, images, labels, attribution=Saliency)
    with pytest.raises(ValueError, match="samples as a whole number of 1 or more, got 0"):
        Stability(samples=0)


# ---- localisation ----------------------------------------------------------------------------------


def test_localisation_by_hand():
    maps = torch.tensor([[[0, 5, 1], [0, -3, 4]], [[2, 2, 0], [2, 2, 0]], [[0, 0, -1], [0, 1, 0]]]).double()
    masks = torch.tensor([[[0, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    images = torch.zeros(3, 3, 2, 3)
    point, mass = PointingGame(), RelevanceMass()
    assert point(None, images, None, maps, masks=masks).tolist() == [1, 0.25, 0]
    assert mass(None, images, None, maps.numpy(), masks=masks.numpy()).tolist() == [0.5, 0.25, 0]
    assert PointingGame(1)(None, images, None, maps, masks=masks).tolist() == [1, 0.75, 0]
    assert PointingGame(1.5)(None, images, None, maps, masks=masks).tolist() == [1, 1, 1]  # a diagonal is √2 away
    channels = torch.stack([maps, 3 * maps, -maps], 1)
    assert mass(None, images, None, channels, masks=masks).tolist() == [0.5, 0.25, 0]
    assert point.passes(2, 3) == mass.passes(2, 3) == 0
    with pytest.warns(UserWarning, match=r"^RelevanceMass: 1 map is constant, 1 map has no positive value: not"):
        found = mass(None, images[:2], None, torch.stack([-maps[0].abs() - 1, maps[0] * 0]), masks=masks[:2])
    assert found.isnan().all()


@pytest.mark.parametrize("metric", [PointingGame(), PointingGame(2), RelevanceMass()])
def test_localisation_of_chance_is_the_objects_area(metric):
    masks = demo.pictures(1, size=32).masks
    maps = torch.rand(2000, 32, 32, generator=torch.Generator().manual_seed(0))
    found = metric(None, torch.zeros(2000, 3, 32, 32), None, maps, masks=masks.expand(2000, -1, -1))
    area = masks.float().mean()
    if metric == PointingGame(2):
        area = (nn.functional.max_pool2d(masks[:, None].float(), 5, 1, 2)).mean()  # a square: no less than the disk
        assert masks.float().mean() + 0.05 < found.mean() < area + 0.03
    else:
        assert found.mean() == pytest.approx(area.item(), abs=0.03)  # three standard errors of 2000 draws


def test_localisation_says_what_is_wrong():
    images, masks, maps = torch.zeros(2, 3, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool), torch.rand(2, 4, 5)

    def game(**given):
        return PointingGame()(None, images, None, maps, **given)

    with pytest.raises(TypeError, match="got NoneType"):
        game()
    with pytest.raises(TypeError, match=r"masks > 0"):
        game(masks=masks.float())
    with pytest.raises(ValueError, match=r"Expected masks \(2, 4, 5\), as the pictures are, got shape \(1, 4, 5\)"):
        game(masks=masks[:1])
    with pytest.raises(ValueError, match=r"at least one pixel, got 1 without \(index 1 first\)"):
        game(masks=masks * torch.tensor([True, False])[:, None, None])
    with pytest.raises(ValueError, match="tolerance"):
        PointingGame(-1)


# ---- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*ALL, Deletion(baseline="blur"), Stability(samples=3)], ids=name)
def test_the_same_for_any_batch_size_order_and_sharding(metric):
    net, (images, labels, maps) = convolving(dtype=torch.float64), case(5, dtype=torch.float64)
    maps[0] = maps[0].round()  # ties
    options = {"attribution": GradientInput()} if isinstance(metric, Stability) else {}
    if options:
        maps = GradientInput()(net, images, labels)
    whole = metric(net, images, labels, maps, **options)
    assert whole.shape == (5,) and whole.dtype == torch.float32 and whole.unique().numel() == 5
    for size in (1, 7):
        engine = Engine(net, batch_size=size, progress=False)
        assert torch.allclose(metric(engine, images, labels, maps, **options), whole, rtol=1e-6, atol=0)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = metric(net, images[order], labels[order], maps[order], **options)
    assert torch.allclose(shuffled, whole[order], rtol=1e-6, atol=0)
    parts = [metric(net, images[k], labels[k], maps[k], **options) for k in (slice(0, 1), slice(1, 5))]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-6, atol=0)


def test_more_pictures_than_a_group(monkeypatch):
    net, (images, labels, maps) = convolving(), case(7)
    maps[3], maps[4] = 1.0, torch.nan
    with pytest.warns(UserWarning, match="1 map holds"):
        whole = Faithfulness()(net, images, labels, maps)
    monkeypatch.setattr("gradspec.engine.GROUP", 2)
    with pytest.warns(UserWarning, match="1 map holds"):
        parts = Faithfulness()(net, images, labels, maps)
    assert torch.allclose(parts, whole, rtol=1e-5, equal_nan=True)
    assert whole.isnan().nonzero()[:, 0].tolist() == [3, 4]


@pytest.mark.parametrize("metric", [*ALL, Stability(samples=2), PointingGame(), RelevanceMass()], ids=name)
def test_what_is_no_map_is_counted_and_never_scored(metric):
    images, labels, maps = case(5)
    maps[1, 2, 3], maps[2], maps[4, 0, 0] = torch.nan, -1.5, torch.inf
    options = {}
    if isinstance(metric, Stability):
        options = {"attribution": Saliency()}
    elif metric.passes(9, 7) == 0:
        options = {"masks": torch.ones(5, 9, 7, dtype=torch.bool)}
    engine, called = Engine(convolving(), progress=False), type(metric).__name__
    said = rf"^{called}: 2 maps hold NaN or infinite values, 1 map is constant: not scored \(NaN\)\.$"
    with pytest.warns(UserWarning, match=said) as warned:
        found = metric(engine, images, labels, maps, **options)
    assert [warning.filename for warning in warned] == [__file__]  # said once, where it was called
    assert found.isnan().tolist() == [False, True, True, False, True]
    spent = engine.forwards
    alone, kept = Engine(convolving(), progress=False), torch.tensor([0, 3])
    options = {key: value[kept] if key == "masks" else value for key, value in options.items()}
    assert torch.allclose(metric(alone, images[kept], labels[kept], maps[kept], **options), found[kept], rtol=1e-5)
    assert alone.forwards == spent  # none on the others
    with pytest.warns(UserWarning, match=rf"^{called}: 2 maps are constant: not"):
        assert metric(engine, images[kept], labels[kept], torch.zeros(2, 9, 7), **options).isnan().all()
    assert engine.forwards == spent


def test_nothing_scored_at_all_keeps_the_shape_of_curves():
    images, labels, maps = case(2)
    with pytest.warns(UserWarning, match="2 maps are constant"):
        curves = Deletion(steps=4).curves(convolving(), images, labels, maps * 0)
    assert curves.scores.shape == (2, 5) and curves.scores.isnan().all() and curves.fractions.tolist()[-1] == 1


@pytest.mark.parametrize("metric", ALL, ids=name)
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_any_kind(metric, channels):
    net, (images, labels, maps) = convolving(channels), case(2, channels)
    found = metric(net, images, labels, maps)
    parts = torch.stack([maps * 2, maps * -0.5, maps * 1.5], 1)  # their mean is the map
    array = parts.numpy()
    array.setflags(write=False)
    # the same ranks and sums but for the rounding of the mean
    assert torch.allclose(metric(net, images, labels, parts), found, atol=1e-4)
    assert torch.allclose(metric(net, images, labels, array), found, atol=1e-4)
    assert torch.equal(metric(net, images, labels, maps.flip(1).numpy()[:, ::-1]), found)
    assert torch.equal(metric(net, images, labels, maps.double()), found)
    one = metric(net, images[1:], labels[1:], maps[1:])
    assert one.shape == (1,) and torch.allclose(one, found[1:], rtol=1e-4)


@pytest.mark.parametrize("metric", [ALL[0], ALL[3]], ids=name)
def test_bad_input_is_one_sentence(metric):
    net, (images, labels, maps) = convolving(), case(2)
    wrong = [
        (
            ValueError,
            r"Expected maps \(2, 9, 7\) or \(2, C, 9, 7\), as the pictures are, got shape \(2, 7, 9\)",
            maps.mT,
        ),
        (ValueError, r"got shape \(1, 9, 7\)", maps[:1]),
        (ValueError, r"got shape \(9, 7\)", maps[0]),
        (ValueError, r"got shape \(2, 0, 9, 7\)", maps[:, None][:, :0]),
        (TypeError, "Expected floating-point maps, got torch.int64", maps.long()),
        (TypeError, "Expected floating-point maps, got bool", (maps > 0).numpy()),
        (TypeError, "got list", maps.tolist()),
    ]
    for kind, message, given in wrong:
        with pytest.raises(kind, match=message):
            metric(net, images, labels, given)
    with pytest.raises(ValueError, match="Expected labels from 0 to 3, got 0 to 4"):
        metric(net, images, labels * 4, maps)
    with pytest.raises(ValueError, match="Expected finite images"):
        metric(net, images * torch.nan, labels, maps)
    with pytest.raises(ValueError, match="an id for each of 2 pictures, got 1"):
        metric(net, images, labels, maps, ids=["a"])


def test_settings_are_checked():
    for wrong in ({"steps": 1}, {"baseline": "black"}):
        with pytest.raises(ValueError, match="Expected"):
            Faithfulness(**wrong)
    for wrong in ({"grid": 0}, {"share": 0.0}, {"share": 1}, {"subsets": 1}):
        with pytest.raises(ValueError, match="Expected"):
            MuFidelity(**wrong)
    better = [m.higher_is_better for m in (Deletion, Stability, Insertion, Faithfulness, MuFidelity, PointingGame)]
    assert better == [False, False, True, True, True, True]
    assert Deletion() == Deletion(label_probability) and hash(MuFidelity()) == hash(MuFidelity())


def test_the_object_is_more_faithful_than_chance():
    """Measured F: object 0.64 ± 0.04, Saliency 0.35 ± 0.06, random 0.03 ± 0.03 (standard errors of 16 pictures)."""
    net, pictures = demo.load("vgg_max"), demo.pictures(16)
    images, draw = net.preprocess(pictures.images), torch.Generator().manual_seed(0)
    engine = Engine(net, progress=False)
    noise = torch.rand(pictures.masks.shape, generator=draw)

    def faithfulness(maps):
        return Faithfulness()(engine, images, pictures.labels, maps).mean().item()

    thing, chance = faithfulness(pictures.masks + 1e-3 * noise), faithfulness(noise)
    gradient = faithfulness(Saliency()(engine, images, pictures.labels))
    assert thing > gradient + 0.1 > chance + 0.2 and abs(chance) < 0.15 and thing > 0.5
    assert faithfulness(1e-3 * noise - pictures.masks.float()) < -0.5


# ---- several maps of the same pictures -----------------------------------------------------------------


def several(maps):
    """Maps of the same pictures: some with much in common, one that is no map, one of channels."""
    broken = maps.clone()
    broken[1] = 3.0
    return {
        "itself": maps, "twice": 2 * maps, "rounded": maps.round(), "opposite": -maps, "broken": broken,
        "channels": torch.stack([maps, maps * 3, maps * -1], 1),
    }  # fmt: skip


@pytest.mark.parametrize("metric", [*ALL, Deletion(baseline="blur"), Insertion(label_logit, steps=4)], ids=name)
@pytest.mark.parametrize("rows", [256, 3])
def test_several_maps_are_scored_as_each_alone(metric, rows, monkeypatch):
    monkeypatch.setattr("gradspec.metrics.base.ROWS", rows)  # of all pictures together, or of one at a time
    net, (images, labels, maps) = convolving(dtype=torch.float64), case(5, dtype=torch.float64)
    given, ids = several(maps), list("abcde")
    with pytest.warns(UserWarning, match=r": 1 map is constant: not scored \(NaN\)\.$"):
        found = scored(Engine(net, progress=False), metric, images, labels, ids, given)
        alone = {key: metric(net, images, labels, phi, ids=ids) for key, phi in given.items()}
    assert list(found) == list(given)
    for key in given:
        torch.testing.assert_close(found[key], alone[key], rtol=1e-6, atol=1e-7, equal_nan=True)
    assert found["broken"].isnan().tolist() == [False, True, False, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = scored(Engine(net, progress=False), metric, images, labels, ids, given, warn=False)
    torch.testing.assert_close(again["broken"], found["broken"], equal_nan=True)
    assert scored(Engine(net), metric, images, labels, ids, {}) == {}


def test_equal_masks_are_scored_once():
    engine, (images, labels, maps) = Engine(convolving(), progress=False), case(3)
    ids = list("abc")
    half = maps.flatten(1).median(1).values[:, None, None]
    given = {
        "itself": maps, "twice": 2 * maps, "of the same order": maps.exp(),
        "upper half": torch.where(maps > half, maps, half),  # the first four points are those of the map
    }  # fmt: skip
    scored(engine, Deletion(), images, labels, ids, given)
    # 63 pixels; point 5 replaces the 31 above the median: the map's, and from there on ties
    assert engine.forwards == 1 + 3 * (1 + 9 + 4)
    before = engine.forwards
    both = scored(engine, Faithfulness(steps=2), images, labels, ids, {"itself": maps, "opposite": -maps})
    # 31 of 63: what the one puts in is 31 pixels, what the other leaves 32, so all four are different
    assert engine.forwards - before == 3 * 4
    torch.testing.assert_close(both["itself"], Faithfulness(steps=2)(engine, images, labels, maps, ids=ids))
    before, even = engine.forwards, maps[:, :8]
    pair = {"itself": even, "opposite": -even}
    both = scored(engine, Faithfulness(steps=2), images[:, :, :8], labels, ids, pair)
    # 28 of 56: what the one replaces is what the other puts in, so that F is the opposite
    assert engine.forwards - before == 1 + 3 * (1 + 2)
    torch.testing.assert_close(both["itself"], -both["opposite"])


def test_no_mask_is_taken_for_another():
    """The numbers of masks against the masks themselves, of coarse maps that often agree."""
    draw = torch.Generator().manual_seed(0)
    maps, which = torch.randint(0, 3, (60, 4, 5), generator=draw).float(), torch.arange(60) % 4
    ties = tie_orders(list("abcd"), 20, 0)[which]
    order = ordering(maps, ties)
    ranks, counts = places_in(order), torch.tensor([0, 2, 5, 10, 20])
    keys = mask_keys(order, which, counts, (False, True))
    masks = torch.cat([(ranks[:, None] < counts[:, None]), (ranks[:, None] >= counts[:, None])], 1)
    told = {}
    for row in range(60):
        for point in range(10):
            mask = int(which[row]), bytes(masks[row, point].numpy())
            assert told.setdefault(mask, int(keys[row, point])) == int(keys[row, point])
    assert len(set(told.values())) == len(told) > 100
    jobs, found = distinct(keys.flatten())
    assert torch.equal(keys.flatten()[jobs][found], keys.flatten()) and torch.equal(jobs, jobs.sort().values)
    assert len(jobs) == len(told)


def test_metrics_of_equal_settings_share_their_curves():
    net, (images, labels, maps) = convolving(), case(3)
    metrics = {
        "I": Insertion(),
        "F": Faithfulness(),
        "D": Deletion(),
        "D4": Deletion(steps=4),
        "mu": MuFidelity(subsets=7),
    }
    engine, given = Engine(net, progress=False), {"itself": maps, "opposite": -maps}
    found = scored_by(engine, metrics, images, labels, None, given)
    assert list(found) == list(metrics)
    assert engine.forwards == 1 + 3 * (1 + 2 * 18 + 2 * 3 + 7)  # both maps' curves, four steps apart, subsets once
    for key, metric in metrics.items():
        for phi in given:
            torch.testing.assert_close(found[key][phi], metric(net, images, labels, given[phi]), rtol=1e-5, atol=1e-6)
    two = scored_by(Engine(net, progress=False), {"D": Deletion(), "I": Insertion()}, images, labels, None, given)
    torch.testing.assert_close(two["I"]["itself"], found["I"]["itself"])
    with pytest.raises(ValueError, match="metrics of the same score, steps, baseline and seed"):
        areas([Deletion(), Deletion(steps=4)], net, images, labels, given)


def test_subsets_are_asked_once_in_an_engines_life():
    engine, (images, labels, maps) = Engine(convolving(), progress=False), case(3)
    metric, ids = MuFidelity(subsets=6), list("abc")

    def spent(metric, labels=labels, ids=ids, phi=maps):
        before = engine.forwards
        metric(engine, images, labels, phi, ids=ids)
        return engine.forwards - before

    assert spent(metric) == 3 * 7 == 3 * metric.passes(9, 7) == 3 * metric.passes_of_several(20, 9, 7)
    assert spent(metric, phi=-maps) == spent(metric) == 0
    assert spent(metric, labels=labels.flip(0)) == 2 * 6  # of other labels, but for the middle one's
    assert spent(metric, ids=list("abd")) == 6  # other subsets
    assert spent(MuFidelity(subsets=6, seed=1)) == spent(MuFidelity(label_logit, subsets=6)) == 3 * 6
    chosen = [0]

    def score(logits, labels):
        return logits[:, chosen[0]]

    changing = MuFidelity(score, subsets=6)
    assert spent(changing) == 3 * 6 and spent(changing) == 0
    chosen[0] = 1
    assert spent(changing) == 3 * 6  # it has changed its mind
    torch.testing.assert_close(
        changing(engine, images, labels, maps, ids=ids), changing(engine.model, images, labels, maps, ids=ids)
    )
    engine.model[-1].weight.data[0] *= 2
    engine.model[-1].bias = nn.Parameter(torch.ones(4))
    assert spent(metric) == 3 * 7  # another network


def test_anybodys_metric_is_asked_for_each_map():
    engine, (images, labels, maps) = Engine(convolving(), progress=False), case(3)
    seen = []

    def highest(model, images, labels, maps, ids):
        seen.append((model, ids))
        return maps.flatten(1).amax(1)

    found = scored(engine, highest, images, labels, list("abc"), {"itself": maps, "twice": 2 * maps})
    assert torch.equal(found["twice"], 2 * found["itself"]) and seen == [(engine.model, list("abc"))] * 2
    for wrong, said in [
        (lambda m, x, y, phi: phi.sum(), r"a value a picture \(3,\), got \(\)"),
        (lambda m, x, y, phi: 1.0, "got float"),
    ]:
        with pytest.raises(ValueError, match=said):
            scored(engine, wrong, images, labels, None, {"": maps})
    with pytest.raises(TypeError, match=r"a metric such as Faithfulness\(\), got <class"):
        scored(engine, Faithfulness, images, labels, None, {"": maps})
    with pytest.raises(ValueError, match="an attribution=, got none"):
        scored(engine, Stability(), images, labels, None, {"": maps * torch.nan})

"""Cutoffs: found on a grid and by a race, against slow loops in numpy; read off spectra with known breaks; kept."""

import dataclasses
import math
import pickle
import warnings
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata, ttest_rel
from torch import nn

from gradspec import demo
from gradspec.attributions import GradCAM, GradientInput, Occlusion, Saliency, SmoothGrad
from gradspec.controls import centre_prior, random_maps
from gradspec.cutoffs import CutoffFit, SpectralCutoff, cutoff_from, cutoff_grid, fit_cutoff
from gradspec.cutoffs.curve import Curve
from gradspec.cutoffs.identity import fingerprint, text_of
from gradspec.cutoffs.pool import Pool
from gradspec.cutoffs.race import planned, runners, shuffled, spent
from gradspec.data import picture_id
from gradspec.engine import Engine
from gradspec.forgrad import FORGrad
from gradspec.fourier import identity_radius, low_pass, low_pass_mask
from gradspec.metrics import Deletion, Faithfulness, MuFidelity
from gradspec.results import Audit
from gradspec.runs import packed, unpacked
from gradspec.spectra import Signature
from gradspec.targets import label_logit

CUTOFFS = (None, 9.0, 5.0, 2.5)


@pytest.fixture(scope="module")
def trained():
    """The embedded network, and generated pictures of an odd size that is not square."""
    pictures = demo.pictures(9, size=40, seed=3)
    net = demo.load("vgg_max")
    return net, net.preprocess(pictures.images)[..., :33, :].contiguous()[..., :37], pictures.labels


def quietly(*args, **options):
    """A fit without the bar and the warning that few pictures tell nothing apart."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit_cutoff: The curve is flat")
        return fit_cutoff(*args, progress=False, **options)


# ---- against a slow loop ---------------------------------------------------------------------------


def slow_gradient(net, image, label):
    x = image[None].clone().requires_grad_()
    net(x)[0, label].backward()
    return x.grad[0].double().numpy()


def slow_low_pass(phi, cutoff):
    """The disk, bin after bin, of a full transform."""
    if cutoff is None:
        return phi
    height, width = phi.shape
    n, spectrum = min(height, width), np.fft.fft2(phi)
    for row in range(height):
        for column in range(width):
            u = row if row <= height // 2 else row - height
            v = column if column <= width // 2 else column - width
            if math.sqrt((n * u / height) ** 2 + (n * v / width) ** 2) > cutoff + 1e-9:
                spectrum[row, column] = 0
    return np.fft.ifft2(spectrum).real


def slow_faithfulness(net, image, label, phi, masks):
    """Insertion less deletion of one map, by a loop over the bare network; notes every picture it shows."""
    pixels, order = phi.size, np.argsort(-phi.ravel(), kind="stable")
    areas = {}
    for insert in (False, True):
        scores = []
        for j in range(11):
            chosen = np.zeros(pixels, bool)
            chosen[order[: j * pixels // 10]] = True
            replaced = torch.from_numpy((~chosen if insert else chosen).reshape(phi.shape))
            masks.add(replaced.numpy().tobytes())
            with torch.no_grad():
                scores.append(float(net(torch.where(replaced, 0.0, image)[None]).softmax(1)[0, label]))
        fractions = np.array([j * pixels // 10 for j in range(11)]) / pixels
        areas[insert] = np.sum(np.diff(fractions) * (np.array(scores[1:]) + scores[:-1]) / 2)
    return areas[True] - areas[False]


@pytest.mark.parametrize("where", ["attribution", "gradient"])
def test_the_grid_equals_a_slow_loop_and_spends_what_it_must(trained, where):
    net, images, labels = trained
    images, labels = images[:4], labels[:4]
    fit = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, where=where, controls=False)
    spent = 1  # the empty picture
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        masks, gradient = set(), slow_gradient(net, image, label)
        for name, cutoff in zip(fit.names, CUTOFFS, strict=True):
            if where == "gradient":
                phi = np.abs([slow_low_pass(channel, cutoff) for channel in gradient]).max(0)
            else:
                phi = np.abs(slow_low_pass(np.abs(gradient).max(0), cutoff))
            slow = slow_faithfulness(net, image, label, phi, masks)
            assert fit.per_image[name][i] == pytest.approx(slow, abs=1e-4)
        ends = {bytes(images[0, 0].numel()), b"\1" * images[0, 0].numel()}
        assert ends < masks
        spent += 1 + 1 + len(masks - ends)  # the explanation, the whole picture, every mask once
    assert fit.forwards == spent <= 4 * (1 + Faithfulness().passes_of_several(4, 33, 37)) + 1
    assert fit.backwards == 4
    np.testing.assert_allclose(fit.table["mean"], fit.per_image[fit.names].mean(), rtol=1e-12)
    np.testing.assert_allclose(fit.table["se"], fit.per_image[fit.names].std() / 2, rtol=1e-12)
    assert fit.table["n"].tolist() == [4] * 4 and fit.pictures == tuple(fit.per_image["picture"])
    assert fit.cutoff == CUTOFFS[int(fit.table["mean"].argmax())]


def test_the_fit_is_what_forgrad_gives(trained):
    """The score of each cutoff is that of FORGrad, also of the fit itself; of no filter that of FORGrad without one."""
    net, images, labels = trained
    engine = Engine(net, progress=False)
    for where in ("attribution", "gradient"):
        fit = quietly(net, SmoothGrad(samples=3), (images, labels), cutoffs=CUTOFFS, where=where, shape="square")
        for name, cutoff in [*zip(fit.names, CUTOFFS, strict=True), ("", fit)]:
            maps = FORGrad(SmoothGrad(samples=3), cutoff, *(() if name == "" else (where, "square")))(
                engine, images, labels
            )
            column = fit.names[CUTOFFS.index(fit.cutoff)] if name == "" else name
            again = Faithfulness()(engine, images, labels, maps)
            np.testing.assert_allclose(fit.per_image[column], again, atol=1e-5)
        assert fit.backwards == 9 * 3  # of one stream of gradients
        chosen = FORGrad(SmoothGrad(samples=3), fit)
        assert (chosen.cutoff, chosen.where, chosen.shape, chosen.fit) == (fit.cutoff, where, "square", fit)


def test_equal_filters_cost_nothing(trained):
    net, images, labels = trained
    wide = identity_radius(33, 37) + 1
    once = quietly(net, Saliency(), (images, labels), cutoffs=[3.0, None], controls=False)
    more = quietly(net, Saliency(), (images, labels), cutoffs=[3.0, None, wide, 2 * wide], controls=True)
    assert (more.per_image["none"] == more.per_image[more.names[2]]).all()
    assert (more.per_image["none"] == more.control_scores["abs only"]).all()
    # Saliency is its own magnitude, so that "no filter" is the same too; two other controls are not
    assert more.forwards == once.forwards + 9 * 2 * 18
    by_mu = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, metric=MuFidelity(subsets=20))
    assert by_mu.forwards == 9 * (1 + 20 + 1)  # its subsets are drawn whatever the map


def test_predictions_are_labels_and_cost_nothing(trained):
    net, images, _ = trained
    fit = quietly(net, Saliency(), images, cutoffs=CUTOFFS, controls=False)
    named = quietly(net, Saliency(), (images, net(images).argmax(1)), cutoffs=CUTOFFS, controls=False)
    assert fit.per_image.equals(named.per_image) and fit.forwards == named.forwards
    assert not fit.spec["labelled"] and named.spec["labelled"]


@pytest.mark.parametrize(("channels", "size", "dtype"), [(1, (17, 20), torch.float64), (3, (16, 16), torch.float32)])
def test_any_network(channels, size, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    net.mean, net.std = (0.0,), (1.0,)
    net = net.to(dtype).train()
    fit = quietly(net, GradientInput(), torch.rand(1, channels, *size, dtype=dtype), metric=Deletion(label_logit))
    assert net.training and fit.cutoffs[0] is None and fit.cutoffs[-1] == 1.0
    assert fit.flat and "1 picture scored" in fit.flat_reason and fit.table["se"].isna().all()
    assert fit.one_se == fit.cutoff  # nothing is known of errors
    assert fit.table["mean"].min() == fit.table["mean"][fit.cutoffs.index(fit.cutoff)]  # the lower, the better


# ---- the choice ------------------------------------------------------------------------------------


def curve(values, cutoffs=None):
    values = np.array(values, float)
    cutoffs = cutoffs or (None, *(float(k) for k in range(values.shape[1] - 1, 0, -1)))
    return Curve(tuple(cutoffs), values, np.ones(values.shape, bool))


def test_the_choice_by_hand():
    # paired with cutoff 2: no filter -0.1 ± 0.1 (within), 3: -0.1 ± 0.05 (not), 1: -0.3 ± 0.3 (within, but smaller)
    found = curve([[0.2, 0.15, 0.2, 0.2], [0.1, 0.15, 0.3, -0.3]])
    assert found.best() == 2 and found.one_se(2) == 0
    np.testing.assert_allclose(found.mean, [0.15, 0.15, 0.25, -0.05])
    np.testing.assert_allclose(found.se, [0.05, 0, 0.05, 0.25])
    # deficits of 3: .1, -.05, .02, so .023 ± .043; of no filter .5 each, without error
    near = curve([[0.0, 0.4, 0.5, 0.2], [0.1, 0.65, 0.6, 0.3], [0.0, 0.48, 0.5, 0.2]])
    assert near.best() == 2 and near.one_se(2) == 1
    # .1, .09, .01: .067 ± .028
    assert curve([[0.0, 0.4, 0.5, 0.2], [0.1, 0.51, 0.6, 0.3], [0.0, 0.49, 0.5, 0.2]]).one_se(2) == 2


def test_one_standard_error_is_of_paired_differences():
    """All pictures prefer 2 to no filter by a little: far less than the scores' own errors, but of no doubt."""
    base = np.linspace(-1, 1, 20)[:, None]
    wiggle = 0.001 * np.resize([1, -1], 20)[:, None]
    scores = np.hstack([base - 0.02 + wiggle, base - 0.0001 + wiggle, base])
    found = curve(scores)
    assert found.cutoffs == (None, 2.0, 1.0) and found.best() == 2
    assert found.se[0] > 0.1 and found.one_se(2) == 1  # within one error: 2, not no filter


def test_ties_go_to_the_milder_filter():
    found = curve([[0.3, 0.3, 0.3, 0.1], [0.1, 0.1, 0.1, 0.2]], (2.0, None, 8.0, 1.0))
    assert found.ranked(range(4)) == [1, 2, 0, 3] and found.one_se(1) == 1


def test_the_interval_of_the_best_cutoff_is_that_of_redrawn_pictures():
    def ends(values, level=0.95):
        return curve(values, (None, 9.0, 5.0)).interval(range(3), level, 2000, 0)

    assert ends([[0.0, 1.0, 0.5]] * 6) == (9.0, 9.0)
    assert ends([[1.0, 0.0, 0.2]] * 3 + [[0.0, 0.0, 1.0]] * 3) == (5.0, math.inf)  # on one half each
    uneven = [[0.0, 1.0, 0.0]] * 9 + [[0.0, 0.0, 4.0]] + [[np.nan, 9.0, 9.0]]
    chance = 1 - sum(math.comb(10, k) * 0.1**k * 0.9 ** (10 - k) for k in range(3))  # 5.0 wins by 4 k > 10 - k
    assert ends(uneven, 1 - 2 * 0.8 * chance) == (5.0, 9.0) and ends(uneven, 1 - 2 * 1.2 * chance) == (9.0, 9.0)
    assert curve(uneven, (None, 9.0, 5.0)).interval([0, 2], 0.5, 2000, 0)[1] == math.inf  # 9.0 left out


def test_a_picture_without_a_score_is_left_out_everywhere_and_counted():
    scores = [[0.5, 0.1, 0.0], [0.5, np.nan, 9.0], [0.5, 0.9, 0.0], [0.5, 0.7, 0.1]]
    found = curve(scores)
    assert found.unscored == 1 and found.n.tolist() == [3, 3, 3]
    np.testing.assert_allclose(found.mean, [0.5, 1.7 / 3, 0.1 / 3])
    assert found.best() == 1
    with pytest.raises(ValueError, match=r"got none of 2: at \[2\.0\] no map is scored .*leave those cutoffs out"):
        curve([[0.1, np.nan, 0.2], [0.3, np.nan, 0.2]]).best()
    with pytest.raises(ValueError, match="each has a cutoff at which its map is not"):
        curve([[0.1, np.nan, 0.2], [0.3, 0.1, np.nan]]).best()


def test_the_choice_of_a_race_is_on_common_pictures():
    """Cutoff 2 was out after two pictures on which it looked better than it did to the others later."""
    values = np.array([[0.1, 0.5, 0.6], [0.1, 0.6, 0.5], [np.nan, 0.0, 0.1], [np.nan, 0.25, 0.3]])
    found = Curve((None, 3.0, 2.0), values, np.isfinite(values))
    assert found.n.tolist() == [2, 4, 4] and found.unscored == 0
    assert found.best([1, 2]) == 2 and found.best() == 1  # of all three on two pictures: a tie, the milder one
    assert found.one_se(2) == 1  # deficits .1, -.1, .1, .05: .038 ± .047


def test_one_standard_error_is_of_cutoffs_that_saw_half_of_the_winners_pictures():
    """No filter was out after two pictures, on which it was as good as the winner: too few to be called as good."""
    values = np.tile([0.5, 0.5, 0.5], (8, 1))
    values[4:, 1], values[2:, 0] = np.nan, np.nan
    cutoffs = (None, 3.0, 2.0)
    assert Curve(cutoffs, values, np.isfinite(values)).one_se(2) == 1  # the half of eight
    values[3, 1] = np.nan
    assert Curve(cutoffs, values, np.isfinite(values)).one_se(2) == 2
    asked = np.isfinite(values)
    values[6:, 2] = np.nan  # two pictures have no score, so that three are the half of the winner's six
    assert Curve(cutoffs, values, asked).one_se(2) == 1


def slow_rank_test(scores):
    """The share of all sign patterns that move the summed ranks as far from the middle as they are, by a loop."""
    middle = [rankdata(row) - (len(row) + 1) / 2 for row in scores]
    found = sum(np.square(np.sum(middle, axis=0)))
    flipped = [
        sum(np.square(sum(sign * row for sign, row in zip(signs, middle, strict=True))))
        for signs in product((1, -1), repeat=len(middle))
    ]
    return np.mean([value >= found - 1e-9 for value in flipped])


def test_flatness_is_a_rank_test_calibrated_by_sign_flips():
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(30, 6))
    flat, p, words = curve(noise).flatness()
    assert flat and curve(noise).flatness() == (flat, p, words)
    assert words == (
        f"Friedman-type rank test over 6 cutoffs on 30 pictures, by 2000 sign flips of seed 0, p = {p:.2g}"
    )
    told, p, words = curve(noise + np.array([0, 0, 0, 1.0, 0, 0])).flatness()
    assert not told and p < 0.01 and words.startswith("Friedman-type rank test over 6 cutoffs on 30 pictures")
    assert curve(np.ones((5, 3))).flatness()[:2] == (True, 1.0)
    assert curve(np.ones((40, 3))).flatness()[:2] == (True, 1.0)
    for n, k in [(2, 3), (5, 4), (9, 3), (12, 5)]:
        few = draw.normal(size=(n, k)).round(1) + 0.3 * np.arange(k)  # with ties
        flat, p, words = curve(few).flatness()
        assert p == pytest.approx(slow_rank_test(few)) and f"by all {2**n} sign flips, p" in words
    # drawn flips approach all of them: 3.5 binomial deviations
    many_of = draw.normal(size=(15, 3)) + np.array([0, 0, 0.8])
    exact, p = slow_rank_test(many_of), curve(many_of).flatness()[1]
    assert 0.02 < exact < 0.5 and abs(p - exact) < 3.5 * math.sqrt(exact * (1 - exact) / 2000)


def test_flatness_of_two_and_in_a_race():
    noise = np.random.default_rng(0).normal(size=(30, 6))
    two, p, words = curve([[0.0, 1.0]] * 6).flatness()
    assert not two and p == pytest.approx(2 / 2**6) and words.startswith("sign test")
    # in a race: of the three that ran on all pictures, and of the two that ran on the last twenty as well
    late = noise[:, :3] + np.array([0, 0, 2.5])
    late[:10, 2] -= 2.5
    late[10:, 0] = np.nan
    race = Curve((None, 2.0, 1.0), late, np.isfinite(late))
    flat, p, words = race.flatness([[0, 1, 2], [1, 2]])
    higher = int((late[:, 2] > late[:, 1]).sum())
    assert p == pytest.approx(2 * binomtest(higher, 30).pvalue) and not flat
    assert words.startswith("sign test over 2 cutoffs on 30 pictures") and "the least of 2 rounds" in words
    alone, p, words = curve([[0.0, 1.0, 2.0]]).flatness()
    assert alone and math.isnan(p) and words == "1 picture scored at all 3 cutoffs, a test takes 2"


@pytest.mark.parametrize("smooth", [False, True])
def test_flatness_has_its_level(smooth):
    """Of curves of noise 5 % are told apart, 20 ± 4.4 of 400, also where neighbours are alike as cutoffs are."""
    draw = np.random.default_rng(1)
    told = 0
    for _ in range(400):
        steps = draw.normal(size=(25, 12))
        told += not curve(steps.cumsum(1) * draw.choice([1, -1], (25, 1)) if smooth else steps).flatness()[0]
    assert 7 <= told <= 33  # three standard deviations


# ---- the grid of cutoffs ---------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["disk", "square", "gaussian", "butterworth"]))
@settings(max_examples=60, deadline=None)
def test_the_grid_falls_from_no_filter_to_one(height, width, shape):
    first, *found = cutoff_grid(height, width, shape)
    assert first is None and len(found) <= 20 and all(a > b for a, b in pairwise(found))
    if found:
        assert found[-1] == 1.0 and found[0] <= identity_radius(height, width, shape) + 0.01 * found[0]
        kept = [low_pass_mask(height, width, cutoff, shape).sum() for cutoff in found]
        assert all(a > b for a, b in pairwise([height * width, *kept])) and kept[-1] > 1  # no two are the same


def test_the_grid_of_photographs():
    grid = cutoff_grid(224, 224)
    # 158.4 ** (19 / 20) = 122.96; 1.29 keeps the bins of 1
    assert len(grid) == 20 and grid[1] == 123 and grid[-3:] == (2.14, 1.66, 1.0)
    assert cutoff_grid(224, 224, "gaussian", 3) == (None, 158.0, 12.6, 1.0)
    with pytest.raises(ValueError, match="points as a whole number"):
        cutoff_grid(8, 8, points=0)


@pytest.mark.parametrize(
    ("cutoffs", "said"),
    [
        ([None], "two or more cutoffs"), ([], "two or more"), ([3, 3.0], "each cutoff once"), ([0, 3], "above 0"),
        ([None, -1], "0 cycles/image or more"), ([None, math.inf], "finite cutoffs"), ([None, math.nan], "got nan"),
    ],
)  # fmt: skip
def test_cutoffs_that_are_none(trained, cutoffs, said):
    net, images, _ = trained
    with pytest.raises(ValueError, match=said):
        fit_cutoff(net, Saliency(), images, cutoffs=cutoffs)


# ---- the race --------------------------------------------------------------------------------------


def test_runners_are_halved():
    assert runners(21) == [21, 11, 6, 3, 2] and runners(2) == [2] and runners(8) == [8, 4, 2]


@given(
    st.integers(1, 400), st.integers(2, 40), st.floats(0.02, 1.0), st.integers(0, 60), st.integers(1, 19),
    st.integers(0, 4),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_plan_keeps_its_budget(pictures, cutoffs, share, explaining, each, controls):
    def cost(maps):
        return explaining + 1 + each * maps

    budget = int(share * pictures * cost(cutoffs + controls))
    try:
        counts = planned(pictures, cutoffs, budget, cost, controls)
    except ValueError as error:
        assert "a picture at least" in str(error)
        # else the first round had had one, and so the others as many as cost no more
        assert budget < 2 * len(runners(cutoffs)) * cost(cutoffs + controls)
        return
    running = runners(cutoffs)
    assert min(counts) >= 1 and sum(counts) <= pictures and len(counts) <= len(running)
    maps = [k for n, k in zip(counts, running, strict=False) for _ in range(n)]  # of each picture
    half = 0 if len(counts) == 1 else len(maps) // 2
    passes = sum(cost(k + (controls if i >= half else 0)) for i, k in enumerate(maps))
    assert passes == spent(counts, cutoffs, cost, controls) <= budget
    if sum(counts) < pictures and controls == 0:  # one more in each round would be too much
        more = [n + 1 for n in counts] + [1] * (len(running) - len(counts))
        assert sum(n * cost(k) for n, k in zip(more, running, strict=True)) > budget


def target(images):
    return low_pass(images.mean(1), 4.0).abs()


class Likeness:
    """A metric with a known best cutoff of maps of the picture itself: the likeness to the one at 4 cycles/image."""

    higher_is_better = True

    def __init__(self, noise=0.0):
        self.noise, self.asked = noise, []

    def __call__(self, model, images, labels, maps, ids):
        self.asked += ids
        error = (maps - target(images)).square().mean((1, 2)).sqrt()
        draws = [torch.randn((), generator=torch.Generator().manual_seed(int(i) + len(self.asked))) for i in ids]
        return -error + self.noise * torch.stack(draws)


def itself(model, images, labels):
    return images.mean(1)


def many(n=40, size=(15, 18), seed=0):
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(seed))


def tiny():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 1, 15, 18))
    net.mean, net.std = (0.0,), (1.0,)
    return net.eval()


def batches(images, size=7):
    return [
        (images[i : i + size], torch.zeros(len(images[i : i + size]), dtype=torch.long), range(i, len(images))[:size])
        for i in range(0, len(images), size)
    ]


def listed(images, size=7):
    return [(x, y, list(ids)) for x, y, ids in batches(images, size)]


RACERS = [None, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.5]


@pytest.mark.parametrize("search", ["grid", "race"])
def test_a_known_best_cutoff_is_found(search):
    metric, images = Likeness(), many()
    fit = quietly(tiny(), itself, listed(images), cutoffs=RACERS, search=search, metric=metric, budget=0.3)
    assert fit.cutoff == fit.one_se == 4.0 and not fit.flat
    assert fit.table["mean"][4] == 0 and fit.controls["gain"].min() > 0  # it has no error there
    most = 40 * (8 + 4)
    assert len(metric.asked) == most if search == "grid" else len(metric.asked) <= 0.3 * most


def test_a_race_is_what_it_says():
    metric = Likeness(noise=0.05)
    options = {"cutoffs": RACERS, "metric": metric, "search": "race", "controls": False}
    fit = quietly(tiny(), itself, listed(many(120)), **options)
    assert fit.search == "race" and len(metric.asked) <= 0.25 * 120 * 8
    assert [len(part.cutoffs) for part in fit.rounds] == [8, 4, 2]
    assert sum(part.pictures for part in fit.rounds) == len(fit.pictures) == len(set(fit.pictures))
    values, start = fit.per_image[fit.names].to_numpy(), 0
    running = list(range(8))
    for part in fit.rounds:
        stop = start + part.pictures
        assert [RACERS.index(cutoff) for cutoff in part.cutoffs] == running
        asked = np.isin(range(8), running)
        assert np.isfinite(values[start:stop, asked]).all() and np.isnan(values[start:stop, ~asked]).all()
        means = values[:stop, running].mean(0)  # the same pictures for all of them
        running = sorted(np.array(running)[np.argsort(-means)[: len(running) // 2]].tolist())
        start = stop
    assert [fit.cutoff] == [RACERS[k] for k in running]
    assert fit.table["n"].max() == len(fit.pictures) and fit.table["n"].min() == fit.rounds[0].pictures
    assert len(fit.controls) == 0 and list(fit.control_scores) == ["picture"]


def test_the_order_of_a_race_depends_on_the_seed_alone():
    names = [str(k) for k in range(50)]
    assert shuffled(names, 0) == shuffled(names[::-1], 0) != shuffled(names, 1)
    assert sorted(shuffled(names, 0)) == sorted(names) and shuffled(names, 0) != names
    images, net = many(60), tiny()
    options = {"cutoffs": RACERS, "metric": Likeness(), "search": "race", "controls": False}
    one, other = (quietly(net, itself, listed(images, size), **options) for size in (7, 20))
    assert one.per_image.equals(other.per_image)
    assert set(quietly(net, itself, listed(images), seed=1, **options).pictures) != set(one.pictures)


def test_where_fewer_cutoffs_cost_the_same_none_is_dropped(trained):
    """μ-fidelity asks a picture's drops once for all maps: the race is the grid on its share of the pictures."""
    assert planned(40, 8, 250, lambda maps: 21, controls=4) == [11]  # 231 passes
    with pytest.raises(ValueError, match="a picture at least, got 20 passes for 8 cutoffs on 40 pictures: it takes a"):
        planned(40, 8, 20, lambda maps: 21)
    net, images, labels = trained
    metric = MuFidelity(subsets=20)
    grid = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, metric=metric)
    race = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, metric=metric, search="race", budget=0.5)
    assert [part.pictures for part in race.rounds] == [4] and race.forwards <= 0.5 * grid.forwards
    same = grid.per_image.set_index("picture").loc[list(race.pictures)].reset_index()
    assert same.equals(race.per_image)


@pytest.mark.parametrize("where", ["attribution", "gradient"])
@pytest.mark.parametrize("cutoffs", [CUTOFFS, CUTOFFS[1:]])
def test_with_the_whole_budget_a_race_is_the_grid(trained, where, cutoffs):
    net, images, labels = trained
    options = {"cutoffs": cutoffs, "where": where}
    grid = quietly(net, GradientInput(), (images, labels), **options)
    race = quietly(net, GradientInput(), (images, labels), search="race", budget=1.0, **options)
    assert [part.pictures for part in race.rounds] == [9] and race.forwards == grid.forwards
    assert race.cutoff == grid.cutoff


def test_a_foreign_metric_that_is_asked_for_every_map_keeps_the_budget():
    for budget in (0.4, 0.9, 1.0):
        metric = Likeness()
        race = quietly(tiny(), itself, listed(many()), cutoffs=RACERS, search="race", metric=metric, budget=budget)
        assert len(metric.asked) <= budget * 40 * (8 + 4)
    assert [part.pictures for part in race.rounds] == [40]


@pytest.mark.parametrize("method", [Saliency(), SmoothGrad(samples=4)])
def test_a_race_never_spends_more_than_its_budget(trained, method):
    net, images, labels = trained
    data = torch.cat([images, images.flip(3)]), labels.repeat(2)
    options = {"cutoffs": CUTOFFS, "where": "gradient"}
    grid = quietly(net, method, data, **options)
    most = 18 * (method.passes(33, 37) + Faithfulness().passes_of_several(4 + 3, 33, 37)) + 1
    assert grid.forwards <= most  # "no filter" is the first cutoff
    for budget in (0.3, 0.5, 1.0):
        race = quietly(net, method, data, search="race", budget=budget, **options)
        assert race.forwards <= budget * most
        used = len(race.pictures)
        assert race.backwards == used * method.passes(33, 37)  # each explained once
        same = grid.per_image.set_index("picture").loc[list(race.pictures), race.names].to_numpy()
        scores = race.per_image[race.names].to_numpy()
        np.testing.assert_allclose(scores[np.isfinite(scores)], same[np.isfinite(scores)], atol=1e-5)
        half = 0 if len(race.rounds) == 1 else used // 2
        assert race.control_scores["white noise"].notna().tolist() == [i >= half for i in range(used)]
        assert race.controls["n"].tolist() == [used - half] * 4


def test_a_race_that_cannot_be_run_says_so(trained):
    net, images, _ = trained
    with pytest.raises(ValueError, match=r"every cutoff a picture at least, got \d+ passes for 20 cutoffs on 3"):
        fit_cutoff(net, Saliency(), images[:3], cutoffs=cutoff_grid(224, 224), search="race", progress=False)
    for wrong in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match="budget above 0 and up to 1"):
            fit_cutoff(net, Saliency(), images, search="race", budget=wrong)
    with pytest.raises(ValueError, match="search='grid' or 'race', got 'halving'"):
        fit_cutoff(net, Saliency(), images, search="halving")


# ---- controls, flatness, what is not scored -----------------------------------------------------------


def test_controls_are_the_maps_they_say(trained):
    net, images, labels = trained
    fit = quietly(net, GradientInput(), (images, labels), cutoffs=CUTOFFS, seed=5)
    maps = {
        "no filter": GradientInput()(net, images, labels),
        "abs only": GradientInput()(net, images, labels).abs(),
        "centre prior": centre_prior()(net, images, labels),
        "white noise": random_maps("white", seed=5)(net, images, labels),
    }
    chosen = fit.per_image[fit.names[CUTOFFS.index(fit.cutoff)]]
    assert fit.controls["control"].tolist() == list(maps)
    for (name, phi), row in zip(maps.items(), fit.controls.itertuples(), strict=True):
        values = Faithfulness()(net, images, labels, phi).double().numpy()
        np.testing.assert_allclose(fit.control_scores[name], values, atol=1e-5)
        assert row.mean == pytest.approx(values.mean(), abs=1e-5) and row.n == 9
        assert row.se == pytest.approx(values.std(ddof=1) / 3, abs=1e-5)
        assert row.gain == pytest.approx(float(chosen.mean() - values.mean()), abs=1e-5)
        test = ttest_rel(chosen, values)
        if math.isfinite(test.statistic):
            assert row.gain / row.gain_se == pytest.approx(test.statistic, rel=1e-3)
        assert row.low <= row.gain <= row.high
    assert not (fit.control_scores["no filter"] == fit.control_scores["abs only"]).any()


def test_gains_are_positive_where_low_is_good(trained):
    net, images, labels = trained
    fit = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, metric=Deletion())
    assert fit.cutoff == CUTOFFS[int(fit.table["mean"].argmin())]
    noise = fit.controls.set_index("control").loc["white noise"]
    assert noise["gain"] == pytest.approx(noise["mean"] - fit.table["mean"].min())


def test_a_flat_curve_is_warned_of():
    metric = Likeness(noise=1.0)
    with pytest.warns(
        UserWarning, match=r"^fit_cutoff: The curve is flat: .* \(Friedman-type rank test over 8 cutoffs on 30"
    ) as w:
        fit = fit_cutoff(tiny(), itself, listed(many(30)), cutoffs=RACERS, metric=metric, progress=False)
    assert fit.flat and fit.flat_reason in str(w[0].message) and w[0].filename == __file__
    assert repr(fit).endswith("30 pictures, flat)")


def test_constant_maps_are_left_out_and_counted():
    images = many(12)
    images[3] = 0.5

    options = {"metric": Deletion(label_logit), "progress": False}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit = fit_cutoff(tiny(), itself, listed(images), cutoffs=[None, 4.0, 2.0], **options)
    said = [str(warning.message) for warning in warned if "flat" not in str(warning.message)]
    assert len(said) == 1 and said[0].startswith("fit_cutoff: 1 of 12 pictures cannot be scored at every cutoff")
    assert (
        fit.unscored == 1 and fit.table["n"].tolist() == [11] * 3 and fit.per_image[fit.names].isna().sum().sum() == 3
    )
    assert fit.controls["n"].tolist() == [11] * 4  # the centre prior has a score there, but nothing to compare it with
    with pytest.raises(ValueError, match=r"got none of 2: at \[None, 4\.0\] no map is scored"):
        fit_cutoff(tiny(), itself, listed(many(2) * 0), cutoffs=[None, 4.0], **options)


def test_gray_and_black_boxes_have_no_gradients_to_filter(trained):
    net, images, _ = trained
    for method in (GradCAM(), Occlusion()):
        with pytest.raises(ValueError, match="white-box method for where='gradient'"):
            fit_cutoff(net, method, images, where="gradient")
    fit = quietly(net, GradCAM(), images[:3], cutoffs=[None, 4.0])
    assert fit.attribution == "GradCAM()" and fit.backwards == 3
    with pytest.raises(TypeError, match="an attribution such as Saliency"):
        fit_cutoff(net, Saliency, images)
    with pytest.raises(TypeError, match="a metric such as Faithfulness"):
        fit_cutoff(net, Saliency(), images, metric=Faithfulness)
    with pytest.raises(ValueError, match="no batch_size, precision and device beside an Engine"):
        fit_cutoff(Engine(net), Saliency(), images, batch_size=3)


def test_stored_maps_are_filtered_too(trained):
    from gradspec import adapters

    net, images, labels = trained
    maps, ids = Saliency()(net, images, labels), [f"p{k}" for k in range(len(images))]
    stored = adapters.stored(maps, ids)
    fit = quietly(net, stored, [(images, labels, ids)], cutoffs=CUTOFFS)
    again = quietly(net, Saliency(), [(images, labels, ids)], cutoffs=CUTOFFS)
    np.testing.assert_allclose(fit.table["mean"], again.table["mean"], atol=1e-6)
    assert fit.backwards == 0 and fit.forwards == again.forwards - 9
    with pytest.raises(ValueError, match="use where='attribution'"):
        fit_cutoff(net, stored, [(images, labels, ids)], where="gradient", progress=False)


# ---- data ------------------------------------------------------------------------------------------


def test_data_of_any_kind(trained):
    net, images, labels = trained
    whole = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4, shuffle=True)
    for data in ([(images[:2], labels[:2]), (images[2:], labels[2:])], loader):
        fit = quietly(net, Saliency(), data, cutoffs=CUTOFFS, batch_size=5)
        one, other = (each.per_image.sort_values("picture", ignore_index=True) for each in (fit, whole))
        assert one["picture"].equals(other["picture"]) and one["label"].equals(other["label"])
        np.testing.assert_allclose(one[fit.names], other[fit.names], atol=1e-5)


def test_pictures_of_several_sizes(trained):
    net, images, labels = trained
    data = [(images[:3], labels[:3]), (images[3:6, :, :, :32], labels[3:6]), (images[6:], labels[6:])]
    with pytest.raises(ValueError, match=r"one size for the default cutoffs, got 33 x 37 and 33 x 32: give cutoffs="):
        fit_cutoff(net, Saliency(), data, progress=False)
    fit = quietly(net, Saliency(), data, cutoffs=CUTOFFS)
    alone = quietly(net, Saliency(), data[1], cutoffs=CUTOFFS)
    np.testing.assert_allclose(fit.per_image[fit.names][3:6], alone.per_image[fit.names], atol=1e-5)
    race = quietly(net, Saliency(), data, cutoffs=CUTOFFS, search="race", budget=0.8)
    assert set(race.pictures) <= set(fit.pictures)


def test_data_that_cannot_be_used(trained):
    net, images, labels = trained
    with pytest.raises(ValueError, match=r"each picture once, got 1 id\(s\) more than once, such as 'a'"):
        fit_cutoff(net, Saliency(), [(images[:3], labels[:3], ["a", "b", "a"])], progress=False)
    with pytest.raises(TypeError, match=r"read more than once .* got generator"):
        fit_cutoff(net, Saliency(), (batch for batch in [(images, labels)]), progress=False)

    class Changing:
        def __iter__(self):
            yield torch.rand(3, 3, 20, 20), torch.tensor([0, 1, 2])

    with pytest.raises(ValueError, match=r"the same pictures each time the data is read, got 0 of 3"):
        fit_cutoff(net, Saliency(), Changing(), progress=False)


def test_a_pool_gives_what_is_asked_for():
    images = many(40)
    pool = Pool(listed(images, 3))
    assert pool.ids == [str(k) for k in range(40)] and pool.sizes == [(15, 18)] and pool.labelled
    taken = list(pool.take([str(k) for k in range(39, 0, -2)]))
    assert [name for batch in taken for name in batch.ids] == [str(k) for k in range(1, 40, 2)]
    assert torch.equal(torch.cat([batch.images for batch in taken]), images[1::2])
    assert [len(batch.ids) for batch in taken] == [16, 4]


# ---- files, names ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(trained):
    net, images, labels = trained
    data = torch.cat([images, images.flip(2)]), labels.repeat(2)
    return {
        search: quietly(net, SmoothGrad(samples=2), data, cutoffs=[None, 9, 1 / 3 + 5, 2.5], search=search, budget=0.6)
        for search in ("grid", "race")
    }


@pytest.mark.parametrize("search", ["grid", "race"])
@pytest.mark.parametrize("rule", ["argmax", "one_se"])
def test_a_saved_fit_is_the_same(fitted, tmp_path, search, rule):
    fit = fitted[search].choose(rule)
    again = CutoffFit.load(fit.save(tmp_path / "a" / "fit"))
    for name in ("cutoffs", "rounds", "where", "shape", "search", "attribution", "metric", "higher_is_better", "model",
                 "forwards", "backwards", "spec", "rule", "cutoff", "argmax", "one_se", "flat", "flat_reason",
                 "pictures", "unscored", "names"):  # fmt: skip
        assert getattr(again, name) == getattr(fit, name), name
    for name in ("per_image", "control_scores", "table", "controls"):
        assert getattr(again, name).equals(getattr(fit, name)), name
    assert repr(again) == repr(fit) and again.plot().axes
    assert sorted(path.name for path in (tmp_path / "a" / "fit").iterdir()) == ["spec.json", "units"]
    assert len(list(fit.save(tmp_path / "a" / "fit").glob("units/*"))) == 1  # again, into the same


def test_rules():
    fit = quietly(tiny(), itself, listed(many(8)), cutoffs=RACERS, metric=Likeness(noise=1.0))
    mild = fit.choose("one_se")
    assert (fit.rule, fit.cutoff, mild.rule, mild.cutoff) == ("argmax", fit.argmax, "one_se", fit.one_se)
    assert mild.choose("argmax").cutoff == fit.cutoff and mild.argmax == fit.argmax != mild.cutoff
    assert FORGrad(Saliency(), mild).cutoff == mild.cutoff
    chosen = mild.per_image[mild.names[RACERS.index(mild.cutoff)]]
    gains = chosen.mean() - mild.control_scores.drop(columns="picture").mean()
    np.testing.assert_allclose(mild.controls["gain"], gains)
    with pytest.raises(ValueError, match="rule 'argmax' or 'one_se', got 'best'"):
        fit.choose("best")


def test_damaged_folders_are_named(fitted, tmp_path):
    with pytest.raises(ValueError, match=r"Expected a cutoff fit in .*nowhere, but it has no spec\.json"):
        CutoffFit.load(tmp_path / "nowhere")
    folder = fitted["grid"].save(tmp_path / "fit")
    (table,), spec = folder.glob("units/*.parquet"), folder / "spec.json"
    whole, about = table.read_bytes(), spec.read_text()
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"Cannot read .*{table.name}"):
        CutoffFit.load(folder)
    table.unlink()
    with pytest.raises(ValueError, match=rf"but it has no {table.name}"):
        CutoffFit.load(folder)
    table.write_bytes(whole)
    for text, said in [
        (about[:20], r"Cannot read .*spec\.json: JSONDecodeError"),
        ("[]", "Expected a cutoff fit of format 2"),
        (about.replace('"cutoff fit"', '"audit"'), "Expected a cutoff fit of format 2"),
        (about.replace('"format": 2', '"format": 1'), "Expected a cutoff fit of format 2"),
    ]:
        spec.write_text(text)
        with pytest.raises(ValueError, match=said):
            CutoffFit.load(folder)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda parts, about: about.pop("where"), "KeyError: 'where'"),
        (lambda parts, about: about.update(cutoffs=[None, 9.0]), "its cutoffs are not those of its pictures"),
        (lambda parts, about: about["rounds"][0].update(pictures=3), "its cutoffs are not those of its pictures"),
        (lambda parts, about: about.update(rounds=[{"pictures": "all"}]), "ValueError"),
        (lambda parts, about: parts["per_image"].pop("label"), "its cutoffs are not those of its pictures"),
        (lambda parts, about: parts.clear(), "KeyError: 'per_image'"),
    ],
)
def test_a_unit_whose_parts_do_not_belong_together_is_named(fitted, tmp_path, harm, said):
    folder = fitted["grid"].save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    parts, about = unpacked(pd.read_parquet(file))
    harm(parts, about)
    packed(parts, about).to_parquet(file)
    with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}: .*{said}"):
        CutoffFit.load(folder)


def test_a_unit_without_a_column_is_named(fitted, tmp_path):
    """What the file says of its columns is not believed."""
    folder = fitted["grid"].save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    table = pd.read_parquet(file)
    for column in ("part", "picture", fitted["grid"].names[1]):
        lacking = table.drop(columns=column)
        assert lacking.attrs == table.attrs
        lacking.to_parquet(file)
        with pytest.raises(ValueError, match=rf"Cannot read .*{file.name}: .*{column}"):
            CutoffFit.load(folder)


def test_selection_pictures_are_refused(fitted, trained):
    net, fit = trained[0], fitted["grid"]
    fit.refuse(["other", "pictures"], net)
    with pytest.raises(ValueError, match=r"not chosen on, got 2 on which it was, such as '[0-9a-f]{12}': report on"):
        fit.refuse([*fit.pictures[:2], "new"], net)
    with pytest.raises(ValueError, match="got 1 on which it was, though for another network, such as"):
        fit.refuse(fit.pictures[-1:], demo.load("vgg_avg"))


def test_the_same_picture_under_another_name_is_refused(trained):
    """Selection pictures are known by what they show too, whether they or those of the report came with names."""
    net, images, labels = trained
    hashes = [picture_id(image) for image in images]
    names = [f"photo {k}.png" for k in range(9)]
    bare = quietly(net, Saliency(), (images, labels), cutoffs=CUTOFFS, controls=False)
    named = quietly(net, Saliency(), [(images, labels, names)], cutoffs=CUTOFFS, controls=False)
    assert list(bare.contents) == list(named.contents) == list(named.per_image["content"]) == hashes
    assert named.pictures == tuple(names)
    with pytest.raises(ValueError, match=rf"got 2 on which it was, such as '{hashes[3]}': report on others"):
        bare.refuse(["x", "y", "z"], contents=[*hashes[3:5], "new"])
    with pytest.raises(ValueError, match=r"got 1 on which it was, such as 'photo 8\.png': report on others"):
        named.refuse(["x"], net, contents=iter(hashes[8:]))
    with pytest.raises(ValueError, match=r"got 2 on which it was, though for another .* such as 'photo 0\.png'"):
        named.refuse([names[0], "x"], demo.load("vgg_avg"), hashes[:2])  # one of them by both
    with pytest.raises(ValueError, match="got 9 on which"):
        named.refuse(hashes)  # names of pictures that came without one
    named.refuse(["x"], net, contents=[picture_id(image + 1) for image in images])


def test_a_fit_saved_without_contents_is_read(fitted, tmp_path):
    fit = fitted["race"]
    old = dataclasses.replace(fit, per_image=fit.per_image.drop(columns="content"))
    again = CutoffFit.load(old.save(tmp_path))
    assert again.per_image.equals(old.per_image) and again.cutoff == fit.cutoff and again.table.equals(fit.table)
    assert again.contents == again.pictures  # which were hashes, as the pictures had no names
    with pytest.raises(ValueError, match="got 1 on which"):
        again.refuse(["x"], contents=fit.contents[:1])


def test_a_fit_overwrites_nothing_but_a_fit(fitted, tmp_path):
    fit = fitted["grid"]
    for text in ('{"kind": "scores", "format": 1}', "[1]", "no json", ""):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"a new folder or one of a cutoff fit, got .* spec\.json .* something else"
        ):
            fit.save(tmp_path)
        assert (tmp_path / "spec.json").read_text() == text and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "spec.json").write_text('{"kind": "cutoff fit", "format": 0}')  # an older one may be replaced
    assert CutoffFit.load(fit.save(tmp_path)).cutoff == fit.cutoff


def test_fingerprints():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    same = pickle.loads(pickle.dumps(net)).eval()
    assert fingerprint(net) == fingerprint(same) == fingerprint(Engine(net))
    assert fingerprint(net).startswith("Sequential ")
    for change in (
        lambda n: n[0].weight.data[0].mul_(1.5), lambda n: n[1].running_mean.add_(1), lambda n: n.double(),
        lambda n: n.append(nn.Flatten()), lambda n: setattr(n[0], "stride", (2, 2)), lambda n: n[1].weight.data.neg_(),
    ):  # fmt: skip
        other = pickle.loads(pickle.dumps(net))
        change(other)
        assert fingerprint(other) != fingerprint(net)


def test_settings_in_words():
    assert text_of(Saliency()) == "Saliency()" and text_of(Faithfulness(steps=5)) == "Faithfulness(steps=5)"
    assert text_of(MuFidelity(label_logit, share=0.5)) == "MuFidelity(score=label_logit, share=0.5)"
    assert text_of(itself) == "itself" and "0x" not in text_of(Likeness())


# ---- spectra ---------------------------------------------------------------------------------------


def audit_of(rings, spec=None, height=64, width=64, ids=None):
    rings = np.asarray(rings)
    shares = np.full(len(rings), 0.5)
    names = tuple(ids or map(str, range(len(rings))))
    return Audit(None, {("input", "input"): Signature(height, width, rings, shares)}, None, {}, {}, names, spec or {})


def pair(leaves, *, noise=0.0, rise=0.08, n=60, side=128, seed=0, step=0.0):
    """Rings of n pictures and of their twin, which they leave behind the ring `leaves`; each picture its own scale."""
    draw, ring = np.random.default_rng(seed), np.arange(side // 2 + 1.0)
    scale, common = draw.normal(0, 0.3, (n, 1)), draw.normal(0, 0.1, (n, len(ring)))
    twin = -0.03 * ring + common + scale + draw.normal(0, noise, (n, len(ring)))
    gain = np.where(ring > leaves, step + rise * (ring - leaves), 0)
    ours = -0.03 * ring + gain + common + draw.normal(0.4, 0.3, (n, 1)) + draw.normal(0, noise, (n, len(ring)))
    return (audit_of(10**part, height=side, width=side) for part in (ours, twin))


@pytest.mark.parametrize("leaves", [6, 15, 40])
def test_the_departure_from_a_twin_is_found(leaves):
    found = cutoff_from(*pair(leaves))
    assert isinstance(found, SpectralCutoff) and found.how == "twin" and found.n == 60 and found.rings == 64
    assert found.cutoff == leaves + 3.5  # three rings lie .24 above, the fourth .32, more than log10 2
    assert cutoff_from(*pair(leaves, step=0.5, rise=0)).cutoff == leaves + 0.5
    for seed in range(5):
        noisy = cutoff_from(*pair(leaves, noise=0.15, seed=seed))
        assert abs(noisy - (leaves + 3.5)) <= 1


def test_no_departure_is_no_cutoff():
    """Of twins alike up to noise: each ring lies above by chance in 2 %, but not nine of ten from one on."""
    for seed in range(20):
        found = cutoff_from(*pair(200, noise=0.2, seed=seed, n=30))
        assert found.cutoff is None and math.isnan(found) and found.reason.startswith("the signature does not leave")
    below = cutoff_from(*pair(10, rise=-0.05))
    assert below.cutoff is None and "0 of 64 rings above" in below.reason
    ours, twin = pair(10)
    assert cutoff_from(twin, ours).cutoff is None  # it is the other that leaves


def test_a_small_but_certain_difference_is_none():
    ours, twin = pair(20, rise=0, step=0.28, n=400)
    assert cutoff_from(ours, twin).cutoff is None  # twice is .30, and the error next to nothing
    ours, twin = pair(20, rise=0, step=0.33, n=400)
    assert cutoff_from(ours, twin).cutoff == 20.5


def test_one_ring_that_dips_does_not_hide_the_departure():
    ours, twin = pair(20, rise=0, step=0.4)
    rings = ours.signatures["input", "input"].per_image.copy()
    rings[:, 50] /= 10
    assert cutoff_from(audit_of(rings, height=128, width=128), twin).cutoff == 20.5


def test_twins_that_are_none():
    ours, twin = pair(20, n=4)
    rings = twin.signatures["input", "input"].per_image
    order = audit_of(rings[::-1], ids=["3", "2", "1", "0"], height=128, width=128)
    assert cutoff_from(ours, order).cutoff == cutoff_from(ours, twin).cutoff  # paired by name
    part = audit_of(rings[:2], height=128, width=128)
    assert cutoff_from(ours, part).n == 2
    alone = cutoff_from(ours, audit_of(rings[:1], height=128, width=128))
    assert alone.cutoff is None and alone.reason == "1 picture(s) with 64 ring(s) beside DC, it takes 2 and 5"
    zero = rings.copy()
    zero[0, 3] = 0
    assert cutoff_from(ours, audit_of(zero, height=128, width=128)).n == 3
    with pytest.raises(ValueError, match="on the same pictures, got none in common"):
        cutoff_from(ours, audit_of(rings, ids=list("abcd"), height=128, width=128))
    with pytest.raises(ValueError, match=r"of the same size, \(128, 128\), got \(64, 64\)"):
        cutoff_from(ours, audit_of(rings[:, :33]))
    with pytest.raises(ValueError, match="with the same target, None, got label_logit"):
        cutoff_from(ours, audit_of(rings, {"target": "label_logit"}, height=128, width=128))
    with pytest.raises(ValueError, match="gradient at the network's input, got one without"):
        cutoff_from(Audit(None, {}, None, {}, {}, (), {}))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 80)])
@pytest.mark.parametrize("at", [5, 9, 14])
def test_the_knee_is_found(at, height, width):
    draw, ring = np.random.default_rng(0), np.arange(min(height, width) // 2 + 1.0)
    logs = -0.15 * np.minimum(ring, at) - 0.01 * np.maximum(ring - at, 0)
    for noise in (0.0, 0.05):
        rings = 10 ** (logs + draw.normal(0, noise, (50, len(ring))) + draw.normal(0, 0.3, (50, 1)))
        found = cutoff_from(audit_of(rings, height=height, width=width))
        assert found.how == "knee" and found.cutoff is not None and abs(found - at) <= 1
        rising = rings * 10 ** (-0.2 * np.maximum(4 - ring, 0))  # what rises at first is left out
        assert at < 6 or abs(cutoff_from(audit_of(rising, height=height, width=width)) - at) <= 1


def test_what_has_no_knee():
    ring = np.arange(65.0)
    for logs, said in [
        (-0.05 * ring, "no knee: slope"), (0.02 * ring, "no knee: it is highest at ring 64 of 64"),
        (-0.01 * np.maximum(ring - 20, 0), "no knee: slope"),
        (-2 * np.log10(np.maximum(ring, 1)), "a power law, which has no scale, fits as well"),
    ]:  # fmt: skip
        found = cutoff_from(audit_of(np.tile(10.0**logs, (3, 1)), height=128, width=128))
        assert found.cutoff is None and said in found.reason and said in repr(found)
    small = cutoff_from(audit_of(np.ones((2, 5)), height=8, width=8))
    assert small.reason == "4 rings beside DC, a knee takes 8"
    assert "zero in 32 of 32 rings" in cutoff_from(audit_of(np.zeros((2, 33)))).reason


def test_a_spectral_cutoff_is_a_number():
    found = SpectralCutoff(7.5, how="twin", rings=9, n=4)
    again = pickle.loads(pickle.dumps(found))
    assert again == 7.5 and (again.how, again.rings, again.n, again.reason) == ("twin", 9, 4, "")
    assert repr(found) == "SpectralCutoff(7.5 cycles/image, by the twin, 4 pictures)"
    assert FORGrad(Saliency(), found).cutoff == 7.5
    assert fit_cutoff  # it may stand among the cutoffs of a grid: they are numbers
    with pytest.raises(ValueError, match=r"Expected a cutoff, got none: highest at ring 3"):
        FORGrad(Saliency(), SpectralCutoff(None, how="knee", reason="highest at ring 3"))
    with pytest.raises(ValueError, match=r"got none: no reason given"):
        FORGrad(Saliency(), SpectralCutoff(None, how="knee"))
    none = SpectralCutoff(None, how="knee", reason="so")
    assert none.cutoff is None and math.isnan(float(none)) and pickle.loads(pickle.dumps(none)).reason == "so"

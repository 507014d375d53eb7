"""Evaluations against bare loops with filters in numpy, the tables by hand, and what is left out with its reason."""

import json
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from torch import nn

from gradspec import demo
from gradspec.adapters import stored
from gradspec.attributions import (
    GradientInput,
    IntegratedGradients,
    Occlusion,
    Saliency,
    SmoothGrad,
    SquareGrad,
    VarGrad,
)
from gradspec.attributions.words import text_of
from gradspec.controls import centre_prior, random_maps
from gradspec.cutoffs import SpectralCutoff, fit_cutoff, identity
from gradspec.data import picture_id
from gradspec.engine import Engine
from gradspec.evaluation import Missing, Scores, bayes, collecting, evaluate, joined, side_by_side
from gradspec.evaluation.plan import best_for_all, planned
from gradspec.forgrad import FORGrad, maps_of
from gradspec.fourier import low_pass_mask
from gradspec.metrics import Deletion, Faithfulness, Insertion, MuFidelity, PointingGame, RelevanceMass, Stability
from gradspec.models import load_model
from gradspec.runs import packed, unpacked
from gradspec.spectra import signature
from gradspec.statistics import bic_bf10, jzs_bf10, paired

SMALL = {"F": Faithfulness(steps=4), "D": Deletion(steps=4), "I": Insertion(steps=4), "mu": MuFidelity(subsets=10)}


def tiny(channels=3, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    net.mean, net.std = (0.0,), (1.0,)
    net[-1].weight.data *= 8  # probabilities that move
    return net.eval().to(dtype)


def case(n=5, channels=3, size=(9, 11), dtype=torch.float32, seed=1):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, *size, generator=draw, dtype=torch.float64).to(dtype)
    return images, torch.arange(n) % 4, [f"p{k}" for k in range(n)]


def fitted(*args, **settings):
    """A fit of few pictures, whose curve is flat."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit_cutoff: The curve is flat")
        return fit_cutoff(*args, metric=SMALL["F"], controls=False, progress=False, **settings)


def loader(images, labels, ids, size=2):
    return [(images[k : k + size], labels[k : k + size], ids[k : k + size]) for k in range(0, len(ids), size)]


# ---- bare loops ------------------------------------------------------------------------------------


def slow_low_pass(values, cutoff, shape="disk"):
    """numpy's full transform, frequencies counted by hand."""
    height, width = values.shape[-2:]
    n = min(height, width)
    u = np.array([k if k <= (height - 1) // 2 else k - height for k in range(height)])
    v = np.array([k if k <= (width - 1) // 2 else k - width for k in range(width)])
    radius = np.hypot(n * u[:, None] / height, n * v[None] / width)
    gain = (radius <= cutoff + 1e-9) if shape == "disk" else np.exp(-(radius**2) / (2 * cutoff**2))
    return np.fft.ifft2(np.fft.fft2(np.asarray(values, np.float64)) * gain).real


def slow_gradient(net, image, label):
    x = image[None].clone().requires_grad_()
    net(x)[0, label].backward()
    gradient = x.grad[0].double().numpy()
    net.zero_grad()
    return gradient


def slow_map(net, image, label, method, arm, cutoff, shared):
    gradient = slow_gradient(net, image, label)
    if arm == "forgrad-gradient":
        gradient = slow_low_pass(gradient, cutoff)
    found = np.abs(gradient).max(0) if method == "Saliency" else (gradient * image.double().numpy()).mean(0)
    if arm == "abs":
        return np.abs(found)
    filters = {"forgrad": (cutoff, "disk"), "shared": (shared, "disk"), "gaussian": (cutoff, "gaussian")}
    return np.abs(slow_low_pass(np.abs(found), *filters[arm])) if arm in filters else found


def slow_scores(net, images, labels, ids, maps, metrics):
    """One picture, one map, one metric at a time."""
    for k, name in enumerate(ids):
        for key, found in maps.items():
            for metric_name, metric in metrics.items():
                one = torch.as_tensor(found[k])[None].to(images.dtype)
                value = metric(net, images[k : k + 1], labels[k : k + 1], one, ids=[name])
                yield (name, *key, metric_name), float(value)


def as_dict(scores):
    table = scores.table
    keys = zip(table["picture"], table["attribution"], table["arm"], table["metric"], strict=True)
    return dict(zip(keys, table["value"], strict=True))


METHODS = {"Saliency": Saliency(), "GradientInput": GradientInput()}
ARMS = ("none", "abs", "forgrad", "forgrad-gradient", "shared", "gaussian")


@pytest.mark.parametrize(
    ("channels", "size", "dtype"),
    [(3, (9, 11), torch.float32), (1, (12, 7), torch.float64), (3, (8, 8), torch.float64)],
)
def test_every_arm_equals_a_bare_loop(channels, size, dtype):
    net, (images, labels, ids) = tiny(channels, dtype), case(3, channels, size, dtype)
    scores = evaluate(
        net, loader(images, labels, ids), METHODS, SMALL, fits={"Saliency": 2.0, "GradientInput": 1.5},
        arms=("abs", "gradient", "gaussian"), shared_cutoff=2.5, seed=3, progress=False,
    )  # fmt: skip
    cutoffs = {"Saliency": 2.0, "GradientInput": 1.5}
    maps = {
        (method, arm): [slow_map(net, images[k], labels[k], method, arm, cutoffs[method], 2.5) for k in range(3)]
        for method in METHODS
        for arm in ARMS
    }
    others = {
        "centre prior": centre_prior(), "white noise": random_maps("white", seed=3),
        "random low": random_maps("low", seed=3), "random high": random_maps("shuffled", seed=3),
    }  # fmt: skip
    for name, control in others.items():
        maps[name, "control"] = [control(None, images[k : k + 1], labels[k : k + 1], ids=[ids[k]])[0] for k in range(3)]
    expected = dict(slow_scores(net, images, labels, ids, maps, SMALL))
    found = as_dict(scores)
    assert set(found) == set(expected)
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5
    assert np.ptp([value for key, value in found.items() if key[3] == "F"]) > 0.02  # there is something to be equal in
    order = list(dict.fromkeys(zip(scores.table["attribution"], scores.table["arm"], strict=True)))
    assert order == [(m, arm) for m in METHODS for arm in ARMS] + [(name, "control") for name in others]
    assert scores.missing == ()


def test_a_demo_network_equals_a_bare_loop():
    net = load_model("demo:vgg_max")
    pictures = demo.pictures(3, seed=5)
    images, labels, ids = net.preprocess(pictures.images), pictures.labels, ["a", "b", "c"]
    metrics = {"F": Faithfulness(), "mu": MuFidelity(subsets=20)}
    fits = {"Saliency": 5.0, "SmoothGrad": 4.0}
    methods = {"Saliency": Saliency(), "SmoothGrad": SmoothGrad(samples=3)}
    scores = evaluate(net, [(images, labels, ids)], methods, metrics, fits=fits, controls=False, progress=False)
    maps = {}
    for name, method in methods.items():
        plain = [method(net, images[k : k + 1], labels[k : k + 1], ids=[ids[k]])[0].numpy() for k in range(3)]
        maps[name, "none"] = plain
        maps[name, "abs"] = [np.abs(values) for values in plain]
        maps[name, "forgrad"] = [np.abs(slow_low_pass(np.abs(values), fits[name])) for values in plain]
    expected = dict(slow_scores(net, images, labels, ids, maps, metrics))
    found = as_dict(scores)
    assert set(found) == set(expected)
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-5


# ---- shared work -----------------------------------------------------------------------------------


def test_one_explanation_serves_all_arms():
    net, (images, labels, ids) = tiny(), case(5)
    engine = Engine(net, progress=False)
    evaluate(
        engine, loader(images, labels, ids), METHODS | {"IG": IntegratedGradients(steps=4)}, SMALL,
        fits=dict.fromkeys([*METHODS, "IG"], 2.0), arms=("abs", "gradient", "gaussian"), shared_cutoff=3.0,
    )  # fmt: skip
    assert engine.backwards == 5 * (1 + 1 + 4)


def test_noisy_methods_share_their_draws():
    net, (images, labels, ids) = tiny(), case(4)
    engine = Engine(net, progress=False)
    methods = {
        "S": SmoothGrad(samples=3),
        "V": VarGrad(samples=3),
        "Q": SquareGrad(samples=3),
        "S5": SmoothGrad(samples=5),
    }
    scores = evaluate(
        engine, [(images, labels, ids)], methods, {"F": SMALL["F"]}, fits={"S": 2.0, "V": 2.0}, controls=False
    )
    assert engine.backwards == 4 * (3 + 5)
    costs = scores.costs.set_index(["attribution", "arm"])
    assert set(costs.loc[["S", "V", "Q"], "backwards"]) == {3} and costs.loc[("S5", "none"), "backwards"] == 5


def test_curves_are_shared_by_deletion_insertion_and_faithfulness():
    net, data = tiny(), case(4)
    forwards = []
    for metrics in (["F"], ["F", "D", "I"], ["D", "I"]):
        engine = Engine(net, progress=False)
        chosen = {name: SMALL[name] for name in metrics}
        scores = evaluate(engine, [data], METHODS, chosen, fits={"Saliency": 2.0}, controls=False)
        forwards.append(engine.forwards)
        if len(metrics) == 3:
            wide = scores.table.pivot(index=["picture", "attribution", "arm"], columns="metric", values="value")
            assert np.allclose(wide["F"], wide["I"] - wide["D"], atol=1e-6)
    assert forwards[0] == forwards[1] == forwards[2]


def test_costs_are_those_of_one_explanation():
    net, data = tiny(), case(4)
    methods = {"Saliency": Saliency(), "IG": IntegratedGradients(steps=6), "Occlusion": Occlusion(patch=4, stride=4)}
    scores = evaluate(net, [data], methods, {"F": SMALL["F"]}, fits={"IG": 2.0}, progress=False)
    costs = scores.costs.set_index(["attribution", "arm"])
    assert list(costs.index) == [
        ("Saliency", "none"),
        ("IG", "none"),
        ("IG", "abs"),
        ("IG", "forgrad"),
        ("Occlusion", "none"),
    ]
    assert costs.loc[("Saliency", "none"), ["forwards", "backwards"]].tolist() == [1, 1]
    assert costs.loc[("IG", "forgrad"), ["forwards", "backwards"]].tolist() == [6, 6]
    assert costs.loc[("Occlusion", "none"), "backwards"] == 0 and costs.loc[("Occlusion", "none"), "forwards"] >= 9
    assert (costs["seconds per 100"] > 0).all() and set(costs["n"]) == {4}
    assert costs.loc[("IG", "none"), "filter per 100"] == 0 < costs.loc[("IG", "forgrad"), "filter per 100"]
    extra = costs.loc[("IG", "forgrad"), "seconds per 100"] - costs.loc[("IG", "none"), "seconds per 100"]
    assert extra == pytest.approx(costs.loc[("IG", "forgrad"), "filter per 100"], rel=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_batches_do_not_matter(size):
    net, data = tiny(dtype=torch.float64), case(5, dtype=torch.float64)
    settings = {"fits": {"SmoothGrad": 2.0}, "progress": False}
    methods = {"SmoothGrad": SmoothGrad(samples=3)}
    whole = evaluate(net, [data], methods, SMALL, **settings)
    parts = evaluate(net, iter(loader(*data, size)), methods, SMALL, **settings)  # gone through once
    assert as_dict(whole).keys() == as_dict(parts).keys()
    assert max(abs(as_dict(whole)[key] - as_dict(parts)[key]) for key in as_dict(whole)) < 1e-6
    pd.testing.assert_frame_equal(whole.slopes, parts.slopes, rtol=1e-6)


def test_tensors_alone_are_taken_with_hashes_for_names():
    net, (images, labels, _) = tiny(), case(4)
    scores = evaluate(
        net, (images, labels), {"Saliency": Saliency()}, {"F": SMALL["F"]}, controls=False, progress=False
    )
    assert scores.pictures == tuple(map(picture_id, images))
    assert scores.table["label"].tolist() == labels.tolist()


def test_the_model_is_left_as_it_was():
    net, data = tiny().train(), case(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, [data], METHODS, {"F": SMALL["F"]}, fits={"Saliency": 2.0}, progress=False)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# ---- labels ----------------------------------------------------------------------------------------


def test_accuracy_of_labels_and_none_of_predictions():
    net, (images, _, ids) = tiny(), case(6)
    predicted = net(images).argmax(1)
    given = predicted.clone()
    given[:2] = (given[:2] + 1) % 4
    scores = evaluate(net, loader(images, given, ids, 4), METHODS, {"F": SMALL["F"]}, controls=False, progress=False)
    assert scores.accuracy == pytest.approx(4 / 6) and "accuracy 0.667" in repr(scores)
    scores = evaluate(net, images, METHODS, {"F": SMALL["F"]}, controls=False, progress=False)
    assert math.isnan(scores.accuracy) and "accuracy" not in repr(scores)
    assert scores.table.drop_duplicates("picture")["label"].tolist() == predicted.tolist()


def test_pictures_that_come_again_are_numbered():
    net, (images, labels, _) = tiny(), case(3)
    data = [(images, labels, ["a", "b", "a"]), (images[:1], labels[:1], ["a"])]
    scores = evaluate(net, data, METHODS, {"F": SMALL["F"]}, fits={"Saliency": 2.0}, controls=False, progress=False)
    assert scores.pictures == ("a", "b", "a#2", "a#3")
    assert scores.gains("F")["n"].tolist() == [4, 4]
    found = as_dict(scores)
    assert found["a", "Saliency", "none", "F"] == pytest.approx(found["a#3", "Saliency", "none", "F"], abs=1e-6)


# ---- what is left out ------------------------------------------------------------------------------


def failing(message="no such layer", after=0):
    calls = Counter()

    def explain(model, images, labels):
        calls["n"] += 1
        if calls["n"] > after:
            raise RuntimeError(message)
        return images.abs().mean(1)

    return explain


def test_an_attribution_that_raises_is_left_out_and_the_rest_goes_on():
    net, data = tiny(), case(4)
    with pytest.warns(UserWarning, match="'broken', arm 'none' is left out: RuntimeError: no such layer"):
        scores = evaluate(
            net, loader(*data), {"broken": failing()} | METHODS, {"F": SMALL["F"]}, controls=False, progress=False
        )
    assert scores.missing == (Missing("broken", "none", "", 0, "RuntimeError: no such layer"),)
    assert set(scores.table["attribution"]) == set(METHODS) and len(scores.table) == 8
    row = scores.summary().set_index("name").loc["broken"]
    assert row["F n"] == 0 and math.isnan(row["F"]) and row["note"] == "RuntimeError: no such layer"
    assert "1 missing" in repr(scores)


def test_what_was_scored_before_stays():
    net, data = tiny(), case(6)
    with pytest.warns(UserWarning, match="after 2 pictures"):
        scores = evaluate(
            net, loader(*data), {"late": failing(after=1)} | METHODS, {"F": SMALL["F"]}, controls=False, progress=False
        )
    assert scores.missing[0].after == 2
    assert scores.summary().set_index("name")["F n"].to_dict() == {"late": 2, "Saliency": 6, "GradientInput": 6}


def test_a_failing_arm_takes_no_other_with_it():
    net, data = tiny(), case(3)
    with pytest.warns(UserWarning, match="'Occlusion', arm 'forgrad-gradient' is left out"):
        scores = evaluate(
            net, [data], {"Occlusion": Occlusion(patch=4, stride=4), "Saliency": Saliency()}, {"F": SMALL["F"]},
            arms=("gradient",), fits={"Occlusion": 2.0, "Saliency": 2.0}, controls=False, progress=False,
        )  # fmt: skip
    arms = list(dict.fromkeys(zip(scores.table["attribution"], scores.table["arm"], strict=True)))
    assert arms == [
        ("Occlusion", "none"),
        ("Occlusion", "forgrad"),
        *(("Saliency", a) for a in ("none", "forgrad", "forgrad-gradient")),
    ]
    assert "white-box" in scores.missing[0].reason


def test_a_metric_that_raises_for_one_row_is_left_out_there_alone():
    net, data = tiny(), case(4)

    def picky(model, images, labels, maps):
        if (maps < 0).any():
            raise ValueError("negative")
        return maps.mean((1, 2))

    with pytest.warns(UserWarning, match="'GradientInput', arm 'none', metric 'picky' is left out: negative"):
        scores = evaluate(
            net,
            loader(*data),
            METHODS,
            {"picky": picky, "F": SMALL["F"]},
            fits={"GradientInput": 2.0},
            controls=False,
            progress=False,
        )
    assert scores.missing == (Missing("GradientInput", "none", "picky", 0, "negative"),)
    counts = scores.table.groupby(["attribution", "arm", "metric"]).size()
    assert ("GradientInput", "none", "picky") not in counts.index and set(counts) == {4}
    images, labels, _ = data
    expected = [float(Saliency()(net, images[k : k + 1], labels[k : k + 1]).mean()) for k in range(4)]
    np.testing.assert_allclose(scores.values("Saliency", "none", "picky"), expected, rtol=1e-5)


def test_where_nothing_is_left_it_raises():
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"at least one attribution with a score.*no such"):
        evaluate(tiny(), [case(2)], {"broken": failing()}, controls=False, progress=False)


def test_maps_that_cannot_be_scored_stay_as_nan_and_are_counted():
    def sometimes_flat(model, images, labels):
        maps = images.mean(1).clone()
        maps[images[:, 0, 0, 0] > 0] = 1.0
        return maps

    net, (images, labels, ids) = tiny(), case(6)
    flat = int((images[:, 0, 0, 0] > 0).sum())
    assert 0 < flat < 6
    with pytest.warns(UserWarning, match="NaN"):
        scores = evaluate(
            net, [(images, labels, ids)], {"flat": sometimes_flat, "Saliency": Saliency()}, {"F": SMALL["F"]},
            fits={"flat": 3.0}, controls=False, progress=False,
        )  # fmt: skip
    assert len(scores.table) == 6 * 4 and scores.values("flat", "none", "F").isna().sum() == flat
    summary = scores.summary().set_index(["attribution", "arm"])
    assert summary.loc[("flat", "none"), "F n"] == 6 - flat
    assert summary.loc[("flat", "none"), "F"] == pytest.approx(scores.values("flat", "none", "F").mean())
    gain = scores.gains("F").set_index(["attribution", "arm"])
    assert gain.loc[("flat", "abs"), ["n", "missing"]].tolist() == [6 - flat, flat]


def test_stability_explains_anew_but_not_stored_maps():
    net, (images, labels, ids) = tiny(), case(3)
    maps = Saliency()(net, images, labels)
    metric = Stability(samples=2)
    with pytest.warns(UserWarning, match="'kept', arm 'none', metric 'Stability'.*stored maps do not hold"):
        scores = evaluate(
            net, [(images, labels, ids)], {"Saliency": Saliency(), "kept": stored(maps, ids)},
            {"Stability": metric, "F": SMALL["F"]}, fits={"Saliency": 2.0}, arms=(), controls=False, progress=False,
        )  # fmt: skip
    for arm, method in {"none": Saliency(), "forgrad": FORGrad(Saliency(), 2.0)}.items():
        expected = metric(net, images, labels, ids=ids, attribution=method)
        np.testing.assert_allclose(scores.values("Saliency", arm, "Stability"), expected, rtol=1e-4)
    assert len(scores.values("kept", "none", "Stability")) == 0
    np.testing.assert_allclose(scores.values("kept", "none", "F"), scores.values("Saliency", "none", "F"), atol=1e-6)


# ---- rows ------------------------------------------------------------------------------------------


def test_a_forgrad_of_ones_own_is_compared_with_what_it_filters():
    net, data = tiny(), case(4)
    methods = {
        "sharp": Saliency(),
        "smooth": FORGrad(Saliency(), 2.0),
        "lonely": FORGrad(GradientInput(), 2.0, "gradient"),
    }
    scores = evaluate(net, [data], methods, {"F": SMALL["F"]}, fits={"sharp": 2.0}, controls=False, progress=False)
    rows = {(row["attribution"], row["arm"]): row for row in scores.spec["rows"]}
    assert rows["smooth", "forgrad"]["base"] == "sharp" and rows["lonely", "forgrad-gradient"]["base"] == ""
    np.testing.assert_allclose(
        scores.values("smooth", "forgrad", "F"), scores.values("sharp", "forgrad", "F"), atol=1e-6
    )
    gains = scores.gains("F").set_index(["attribution", "arm"])
    assert set(gains.index) == {("sharp", "abs"), ("sharp", "forgrad"), ("smooth", "forgrad")}
    assert gains.loc[("smooth", "forgrad"), "mean"] == pytest.approx(gains.loc[("sharp", "forgrad"), "mean"], abs=1e-7)


def test_other_libraries_methods_and_channels_that_are_kept():
    def own(model, images, labels):
        x = images.clone().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, labels[:, None]).sum(), x)[0]

    net, (images, labels, ids) = tiny(), case(3)
    scores = evaluate(
        net, loader(images, labels, ids), {"own": own, "ours": GradientInput(channels="keep")}, {"F": SMALL["F"]},
        fits={"own": 2.0, "ours": 2.0}, arms=("gradient",), controls=False, progress=False,
    )  # fmt: skip
    gradients = [slow_gradient(net, images[k], labels[k]) for k in range(3)]
    maps = {
        ("own", "none"): [g.mean(0) for g in gradients],
        ("own", "forgrad"): [np.abs(slow_low_pass(np.abs(g.mean(0)), 2.0)) for g in gradients],
        ("own", "forgrad-gradient"): [slow_low_pass(g, 2.0).mean(0) for g in gradients],
        ("ours", "none"): [(g * x.numpy()).mean(0) for g, x in zip(gradients, images, strict=True)],
    }
    found = as_dict(scores)
    for key, value in slow_scores(net, images, labels, ids, maps, {"F": SMALL["F"]}):
        assert found[key] == pytest.approx(value, abs=1e-5)
    costs = scores.costs.set_index(["attribution", "arm"])
    assert costs.loc["own", "forwards"].tolist() == [1, 1, 1]  # each alone, as its gradients are its own


def test_both_modes_of_two_fits():
    net, data = tiny(), case(3)
    selection = case(6, seed=9)
    inside = fitted(net, Saliency(), [(*selection[:2], list("abcdef"))], cutoffs=(None, 3.0, 1.0), where="gradient")
    scores = evaluate(
        net, [data], {"Saliency": Saliency()}, {"F": SMALL["F"]}, fits={"Saliency": [2.0, inside]}, arms=(),
        controls=False, progress=False,
    )  # fmt: skip
    rows = {row["arm"]: row for row in scores.spec["rows"]}
    assert list(rows) == ["none", "forgrad", "forgrad-gradient"]
    assert rows["forgrad"]["cutoff"] == 2.0 and not rows["forgrad"]["fitted"]
    assert rows["forgrad-gradient"]["cutoff"] == inside.cutoff and rows["forgrad-gradient"]["fitted"]
    expected = FORGrad(Saliency(), inside)(net, *data[:2], ids=data[2])
    f = SMALL["F"](net, *data[:2], expected, ids=data[2])
    np.testing.assert_allclose(scores.values("Saliency", "forgrad-gradient", "F"), f, atol=1e-5)


def test_pictures_of_the_selection_are_refused():
    net, (images, labels, ids) = tiny(), case(6)
    fit = fitted(net, Saliency(), [(images[:3], labels[:3], ids[:3])], cutoffs=(None, 3.0, 1.0))
    settings = {"fits": {"Saliency": fit}, "controls": False, "progress": False}
    rest = [(images[3:], labels[3:], ids[3:])]
    assert evaluate(net, rest, {"Saliency": Saliency()}, {"F": SMALL["F"]}, **settings).spec["pictures"] == 3
    engine = Engine(net, progress=False)
    with pytest.raises(ValueError, match="p2"):
        evaluate(engine, [(images[2:], labels[2:], ids[2:])], {"Saliency": Saliency()}, {"F": SMALL["F"]}, **settings)
    assert engine.backwards == 0  # before any work
    with pytest.warns(UserWarning, match="3 of 6 pictures are among those that a cutoff was chosen on"):
        scores = evaluate(
            net, [(images, labels, ids)], {"Saliency": Saliency()}, {"F": SMALL["F"]}, allow_selection=True, **settings
        )
    assert scores.spec["pictures"] == 6


def test_one_cutoff_for_all_is_the_best_of_the_mean_curve():
    net, (images, labels, ids) = tiny(), case(6)
    grid = (None, 4.0, 2.0, 1.0)
    fits = {name: fitted(net, method, [(images, labels, ids)], cutoffs=grid) for name, method in METHODS.items()}
    curves = np.mean([fit.table["mean"].to_numpy() for fit in fits.values()], 0)
    known = [None if math.isnan(c) else c for c in next(iter(fits.values())).table["cutoff"]]
    assert best_for_all(fits) == known[int(curves.argmax())]
    other = [(case(3, seed=8)[0], labels[:3], ["x", "y", "z"])]
    scores = evaluate(
        net, other, METHODS, {"F": SMALL["F"]}, fits=fits, arms=("shared",), controls=False, progress=False
    )
    assert {row["cutoff"] for row in scores.spec["rows"] if row["arm"] == "shared"} == {best_for_all(fits)}
    with pytest.raises(ValueError, match="shared_cutoff="):
        best_for_all({"Saliency": 2.0})


def test_a_shared_cutoff_without_fits_is_for_white_boxes():
    net, data = tiny(), case(2)
    scores = evaluate(
        net, [data], {"Saliency": Saliency(), "Occlusion": Occlusion(patch=4, stride=4)}, {"F": SMALL["F"]},
        shared_cutoff=2.0, arms=(), controls=False, progress=False,
    )  # fmt: skip
    assert [row["name"] for row in scores.spec["rows"]] == ["Saliency", "Saliency†", "Occlusion"]


@pytest.mark.parametrize("shape", ["disk", "square", "butterworth"])
def test_the_gaussian_arm_passes_as_much_of_white_noise(shape):
    fit = SimpleNamespace(cutoff=9.0, where="attribution", shape=shape)
    rows, _ = planned({"S": Saliency()}, {"S": fit}, ("gaussian",), None, controls=False, seed=0)
    one, other = rows[1].explain, rows[2].explain
    assert other.shape == "gaussian" and other.where == "attribution"
    powers = [low_pass_mask(101, 101, each.cutoff, each.shape).square().sum().item() for each in (one, other)]
    assert powers[1] == pytest.approx(powers[0], rel=0.12)  # a square of σ has (2σ + 1)² bins, not 4σ²


def test_object_masks():
    net, (images, labels, ids) = tiny(), case(5)
    masks = torch.rand(5, 9, 11, generator=torch.Generator().manual_seed(0)) > 0.6
    metrics = {"pointing": PointingGame(), "mass": RelevanceMass()}
    scores = evaluate(
        net, loader(images, labels, ids), METHODS, metrics, masks=masks, fits={"Saliency": 2.0}, progress=False
    )
    for name, method in METHODS.items():
        maps = method(net, images, labels, ids=ids)
        for key, metric in metrics.items():
            expected = metric(None, images, labels, maps, masks=masks)
            np.testing.assert_allclose(scores.values(name, "none", key), expected, atol=1e-6)
    with pytest.raises(ValueError, match="masks= of the objects for 'mass'"):
        evaluate(net, images, METHODS, {"mass": RelevanceMass()})
    with pytest.raises(ValueError, match="mask for each of 5 pictures, got 4"):
        evaluate(net, images, METHODS, metrics, masks=masks[:4], progress=False)


def test_spectra_of_the_maps():
    net, (images, labels, ids) = tiny(), case(5, size=(16, 13))
    scores = evaluate(
        net, loader(images, labels, ids), METHODS, {"F": SMALL["F"]}, fits={"Saliency": 2.0}, progress=False
    )
    slopes = scores.slopes.set_index(["attribution", "arm"])
    maps = {"none": Saliency()(net, images, labels), "forgrad": FORGrad(Saliency(), 2.0)(net, images, labels)}
    for arm, found in maps.items():
        expected = signature(found)
        if not expected.reason:
            assert slopes.loc[("Saliency", arm), "slope_nyquist"] == pytest.approx(expected.slope_nyquist, rel=0.01)
        assert slopes.loc[("Saliency", arm), "high_share"] == pytest.approx(expected.high_share, abs=1e-4)
    assert (
        slopes.loc[("white noise", "control"), "slope_nyquist"]
        > slopes.loc[("centre prior", "control"), "slope_nyquist"]
    )


def test_pictures_of_two_sizes_have_scores_but_no_common_spectrum():
    net, one, two = tiny(), case(2, size=(9, 11)), case(2, size=(12, 8), seed=4)
    scores = evaluate(net, [one, (*two[:2], ["q", "r"])], METHODS, {"F": SMALL["F"]}, controls=False, progress=False)
    assert len(scores.table) == 8 and set(scores.slopes["note"]) == {"maps of 2 sizes"}


def test_examples_are_kept():
    net, (images, labels, ids) = tiny(), case(5)
    net.mean, net.std = (0.5,), (0.25,)
    scores = evaluate(
        net, loader(images, labels, ids), METHODS, {"F": SMALL["F"]}, fits={"Saliency": 2.0}, examples=3, progress=False
    )
    assert [shown.picture for shown in scores.examples] == ids[:3]
    shown = scores.examples[2]
    assert shown.maps.keys() == {(row["attribution"], row["arm"]) for row in scores.spec["rows"]}
    np.testing.assert_allclose(shown.maps["Saliency", "none"], Saliency()(net, images[2:3], labels[2:3])[0], rtol=1e-4)
    np.testing.assert_allclose(shown.pixels, (images[2] * 0.25 + 0.5).clamp(0, 1), atol=1e-6)
    assert shown.label == labels[2] and shown.predicted == int(net(images[2:3]).argmax())


# ---- what a cutoff was chosen on, and for ----------------------------------------------------------


GRID = (None, 3.0, 1.0)


def test_pictures_of_the_selection_are_counted_where_they_are_allowed():
    net, (images, labels, ids) = tiny(), case(6)
    fits = {
        "Saliency": fitted(net, Saliency(), [(images[:4], labels[:4], ids[:4])], cutoffs=GRID),
        "GradientInput": fitted(net, GradientInput(), [(images[2:5], labels[2:5], ids[2:5])], cutoffs=GRID),
    }
    data = loader(images, labels, [*ids[:3], "renamed", *ids[4:]], 4)  # the fourth is known by its content alone
    methods = METHODS | {"own": FORGrad(Saliency(), fits["Saliency"]), "mine": FORGrad(Saliency(), 2.0)}
    with pytest.warns(UserWarning, match=r"5 of 6 pictures are among those that a cutoff was chosen on"):
        scores = evaluate(
            net, data, methods, {"F": SMALL["F"]}, fits=fits, arms=("abs", "gradient", "shared", "gaussian"),
            allow_selection=True, controls=False, progress=False,
        )  # fmt: skip
    counts = {(row["attribution"], row["arm"]): row["selection"] for row in scores.spec["rows"]}
    for name, n in {"Saliency": 4, "GradientInput": 3}.items():
        assert [counts[name, arm] for arm in ("none", "abs")] == [0, 0]
        assert [counts[name, arm] for arm in ("forgrad", "forgrad-gradient", "gaussian")] == [n, n, n]
        assert counts[name, "shared"] == 5  # chosen by both
    assert counts["own", "forgrad"] == 4 and counts["mine", "forgrad"] == 0
    notes = scores.summary().set_index(["attribution", "arm"])["note"]
    assert notes["Saliency", "forgrad"] == "cutoff chosen on 4 of these pictures" and notes["mine", "forgrad"] == ""
    assert "5 of them chosen on" in repr(scores)
    assert scores.spec["selection"] == 5


def test_none_of_the_selection_is_said_nowhere():
    net, (images, labels, ids) = tiny(), case(6)
    fit = fitted(net, Saliency(), [(images[:3], labels[:3], ids[:3])], cutoffs=GRID)
    scores = evaluate(
        net, [(images[3:], labels[3:], ids[3:])], {"Saliency": Saliency()}, {"F": SMALL["F"]}, fits={"Saliency": fit},
        controls=False, allow_selection=True, progress=False,
    )  # fmt: skip
    assert scores.spec["selection"] == 0 and "chosen" not in repr(scores) and set(scores.summary()["note"]) == {""}


@pytest.mark.parametrize("named", ["fit", "report", "neither", "iterator", "both, otherwise"])
def test_pictures_of_the_selection_are_known_by_their_content(named):
    net, (images, labels, ids) = tiny(), case(6)
    chosen = [(images[:3], labels[:3], ids[:3])] if named in ("fit", "both, otherwise") else (images[:3], labels[:3])
    fit = fitted(net, Saliency(), chosen, cutoffs=GRID)
    others = [f"x{k}" for k in range(4)]
    data = {
        "fit": (images[2:], labels[2:]), "neither": images[2:], "iterator": iter([(images[2:], labels[2:], others)]),
    }.get(named, [(images[2:], labels[2:], others)])  # fmt: skip
    engine = Engine(net, progress=False)
    with pytest.raises(ValueError, match="1 on which it was"):
        evaluate(engine, data, {"Saliency": Saliency()}, {"F": SMALL["F"]}, fits={"Saliency": fit})
    assert engine.forwards == engine.backwards == 0  # before any work


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images, labels, ids):
        self.images, self.labels, self.ids = images, labels, ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, k):
        return self.images[k], self.labels[k], self.ids[k]


def test_a_loaders_pictures_are_refused_before_any_work_but_not_those_that_it_leaves_out():
    net, (images, labels, ids) = tiny(), case(6)
    fit = fitted(net, Saliency(), [(images[4:], labels[4:], ids[4:])], cutoffs=GRID)
    pictures, engine = Pictures(images, labels, ids), Engine(net, progress=False)
    settings = {"fits": {"Saliency": fit}, "controls": False}
    with pytest.raises(ValueError, match="2 on which it was"):
        evaluate(engine, torch.utils.data.DataLoader(pictures, 2), {"Saliency": Saliency()}, SMALL, **settings)
    assert engine.forwards == 0
    parts = [
        torch.utils.data.DataLoader(pictures, 2, sampler=[0, 1, 2]),
        torch.utils.data.DataLoader(pictures, batch_sampler=[[0, 1], [2]]),
    ]
    for part in parts:
        assert evaluate(engine, part, {"Saliency": Saliency()}, {"F": SMALL["F"]}, **settings).pictures == (
            "p0",
            "p1",
            "p2",
        )


def test_fits_of_another_network_or_method_are_said():
    net, (images, labels, ids) = tiny(), case(4)
    chosen = [(case(3, seed=8)[0], labels[:3], ["a", "b", "c"])]
    fits = {
        "Saliency": fitted(tiny(seed=1), Saliency(), chosen, cutoffs=GRID),
        "GradientInput": fitted(net, Saliency(), chosen, cutoffs=GRID),
        "SmoothGrad": fitted(net, SmoothGrad(samples=2), chosen, cutoffs=GRID),
    }
    methods = METHODS | {"SmoothGrad": SmoothGrad(samples=2), "own": FORGrad(GradientInput(), fits["GradientInput"])}
    with pytest.warns(UserWarning) as caught:
        scores = evaluate(
            net, [(images, labels, ids)], methods, {"F": SMALL["F"]}, fits=fits, arms=("abs", "gaussian"),
            controls=False, progress=False,
        )  # fmt: skip
    said = [str(warning.message) for warning in caught]
    assert len(said) == 3 and all(warning.filename == __file__ for warning in caught)
    assert said[0].startswith("'Saliency': cutoff fitted for another network (Sequential ")
    assert said[1] == "'GradientInput': cutoff fitted for Saliency(), not GradientInput()."
    assert said[2] == "'own': cutoff fitted for Saliency(), not GradientInput()."
    rows = {(row["attribution"], row["arm"]): row for row in scores.spec["rows"]}
    assert {key for key, row in rows.items() if row["note"]} == {
        (name, arm) for name in METHODS for arm in ("forgrad", "gaussian")
    } | {("own", "forgrad")}
    assert rows["SmoothGrad", "forgrad"]["fit_metric"] == "Faithfulness(steps=4)"
    assert rows["SmoothGrad", "none"]["fit_metric"] == ""
    notes = scores.summary().set_index(["attribution", "arm"])["note"]
    assert notes["own", "forgrad"] == "cutoff fitted for Saliency(), not GradientInput()"


@pytest.mark.parametrize(
    "change", [{"metric": "Deletion()"}, {"where": "gradient"}, {"shape": "square"}, {"model": "N"}]
)
def test_one_cutoff_for_all_is_of_curves_that_can_be_averaged(change):
    net, (images, labels, ids) = tiny(), case(3)
    fit = fitted(net, Saliency(), [(images, labels, ids)], cutoffs=GRID)
    assert best_for_all({"a": fit, "b": replace(fit, attribution="b")}) == fit.argmax
    with pytest.raises(ValueError, match="Expected shared_cutoff="):
        best_for_all({"a": fit, "b": replace(fit, **change)})


def test_a_cutoff_that_was_not_found_is_missing_with_its_reason():
    net, data = tiny(), case(3)
    none = SpectralCutoff(None, how="knee", reason="no knee")
    with pytest.warns(UserWarning, match="'Saliency', arm '.*' is left out: no knee"):
        scores = evaluate(
            net, [data], METHODS, {"F": SMALL["F"]},
            fits={"Saliency": none, "GradientInput": SpectralCutoff(2.0, how="knee")},
            arms=("abs", "gradient", "gaussian"), shared_cutoff=2.0, controls=False, progress=False,
        )  # fmt: skip
    rows = [(row["attribution"], row["arm"]) for row in scores.spec["rows"]]
    assert rows[:3] == [("Saliency", "none"), ("Saliency", "abs"), ("Saliency", "shared")] and len(rows) == 9
    assert [found[:3] + found[4:] for found in scores.missing] == [
        ("Saliency", arm, "", "no knee") for arm in ("forgrad", "forgrad-gradient", "gaussian")
    ]


# ---- what raises, and ends -------------------------------------------------------------------------


def test_a_source_that_raises_is_asked_once_and_takes_its_arms_along():
    net, data, calls = tiny(), case(4), Counter()

    def explain(model, images, labels):
        calls["n"] += 1
        if calls["n"] > 1:
            raise RuntimeError("once")
        return images.mean(1)

    with pytest.warns(UserWarning, match="is left out after 2 pictures"):
        scores = evaluate(
            net, loader(*data), METHODS | {"late": explain}, {"F": SMALL["F"]}, fits={"late": 2.0, "Saliency": 2.0},
            arms=("abs", "gaussian"), controls=False, progress=False,
        )  # fmt: skip
    assert calls["n"] == 2
    assert [found[:2] for found in scores.missing] == [("late", arm) for arm in ("none", "abs", "forgrad", "gaussian")]
    counts = scores.table.groupby(["attribution", "arm"]).size().to_dict()
    assert {n for (name, _), n in counts.items() if name == "late"} == {2} and counts["Saliency", "forgrad"] == 4


def test_methods_of_one_stream_are_asked_apart_by_source_and_not_by_arm(monkeypatch):
    asked = []

    def spied(engine, attributions, *given):
        asked.append([type(found).__name__ for found in attributions.values()])
        if any(isinstance(found, VarGrad) for found in attributions.values()):
            raise MemoryError("of it")
        return maps_of(engine, attributions, *given)

    monkeypatch.setattr(collecting, "maps_of", spied)
    methods = {"S": SmoothGrad(samples=3), "V": VarGrad(samples=3)}
    with pytest.warns(UserWarning, match="'V', arm"):
        scores = evaluate(
            tiny(), loader(*case(4)), methods, {"F": SMALL["F"]}, fits={"S": 2.0, "V": 2.0}, arms=("abs", "gradient"),
            controls=False, progress=False,
        )  # fmt: skip
    assert asked[0] == ["SmoothGrad", "FORGrad", "VarGrad", "FORGrad"]
    assert asked[1:] == [["SmoothGrad"], ["FORGrad"], ["VarGrad"], ["FORGrad"], ["SmoothGrad", "FORGrad", "FORGrad"]]
    assert {(found.attribution, found.arm) for found in scores.missing} == {
        ("V", arm) for arm in ("none", "abs", "forgrad")
    }
    assert scores.table.groupby(["attribution", "arm"]).size()["S", "forgrad"] == 4


def test_a_filter_that_raises_is_left_out_alone(monkeypatch):
    def picky(maps, forgrad):
        if forgrad.cutoff is not None:
            raise MemoryError("of the filter")
        return maps.abs()

    monkeypatch.setattr(collecting, "_filtered", picky)
    engine = Engine(tiny(), progress=False)
    with pytest.warns(UserWarning, match="MemoryError: of the filter"):
        scores = evaluate(engine, loader(*case(4)), METHODS, {"F": SMALL["F"]}, fits={"Saliency": 2.0}, controls=False)
    assert [found[:2] for found in scores.missing] == [("Saliency", "forgrad")] and engine.backwards == 8
    assert scores.costs.set_index(["attribution", "arm"]).loc[("Saliency", "abs"), "n"] == 4


def ending(data, after, error):
    for k, batch in enumerate(loader(*data)):
        if k == after:
            raise error
        yield batch


def test_what_was_scored_outlives_a_batch_that_cannot_be_read():
    net, data = tiny(), case(6)
    whole = evaluate(net, loader(*data), METHODS, {"F": SMALL["F"]}, controls=False, progress=False)
    with pytest.warns(UserWarning, match="ends after 4 pictures: OSError: the disk"):
        scores = evaluate(
            net, ending(data, 2, OSError("the disk")), METHODS, {"F": SMALL["F"]}, controls=False, progress=False
        )
    assert scores.missing == (Missing("", "", "", 4, "OSError: the disk"),)
    assert scores.pictures == tuple(data[2][:4]) and scores.spec["pictures"] == scores.spec["labelled"] == 4
    found = as_dict(scores)
    assert len(found) == 8 and all(as_dict(whole)[key] == pytest.approx(value) for key, value in found.items())
    assert "4 pictures" in repr(scores) and "1 missing" in repr(scores)
    with pytest.raises(OSError, match="the disk"):
        evaluate(net, ending(data, 0, OSError("the disk")), METHODS, {"F": SMALL["F"]}, progress=False)


def test_a_batch_that_does_not_fit_ends_it_too():
    net, (images, labels, ids) = tiny(), case(6)
    fit = fitted(net, Saliency(), [(images[4:], labels[4:], ids[4:])], cutoffs=GRID)
    wrong = torch.tensor([0, 1, 0, 9, 1, 1])
    for given, settings, reason in (
        (labels, {"fits": {"Saliency": fit}}, "Expected pictures that the cutoff was not chosen on, got 2"),
        (wrong, {}, "labels from 0 to 3"),
    ):
        with pytest.warns(UserWarning, match="evaluate ends after"):
            scores = evaluate(
                net, iter(loader(images, given, ids)), {"Saliency": Saliency()}, {"F": SMALL["F"]}, examples=6,
                controls=False, progress=False, **settings,
            )  # fmt: skip
        assert reason in scores.missing[0].reason
        n = 4 if settings else 2
        assert scores.spec["pictures"] == len(scores.examples) == len(scores.pictures) == n


def test_stability_of_maps_with_channels():
    net, (images, labels, ids) = tiny(), case(3)
    metrics = {"Stability": Stability(samples=2), "F": SMALL["F"]}
    kept = GradientInput(channels="keep")
    scores = evaluate(
        net, loader(images, labels, ids), {"kept": kept}, metrics, fits={"kept": 2.0}, arms=("abs", "gradient"),
        controls=False, progress=False,
    )  # fmt: skip
    assert scores.missing == ()
    methods = {
        "none": kept, "abs": FORGrad(kept, None), "forgrad": FORGrad(kept, 2.0),
        "forgrad-gradient": FORGrad(kept, 2.0, "gradient"),
    }  # fmt: skip
    for arm, method in methods.items():
        expected = metrics["Stability"](net, images, labels, ids=ids, attribution=method)
        np.testing.assert_allclose(scores.values("kept", arm, "Stability"), expected, rtol=1e-4)
    whole = metrics["F"](net, images, labels, kept(net, images, labels).mean(1), ids=ids)
    np.testing.assert_allclose(scores.values("kept", "none", "F"), whole, atol=1e-5)


# ---- tables ----------------------------------------------------------------------------------------


def made(values, metrics=("Faithfulness",), lower=(), seed=0, costs=()):
    """Scores of given values: {(attribution, arm): {metric: [value per picture]}}."""
    rows = []
    for (attribution, arm), by_metric in values.items():
        for metric, numbers in by_metric.items():
            rows += [(f"p{k}", 0, attribution, arm, metric, float(v)) for k, v in enumerate(numbers)]
    table = pd.DataFrame(rows, columns=["picture", "label", "attribution", "arm", "metric", "value"])
    spec = {
        "model": "made", "pictures": table["picture"].nunique(), "accuracy": 0.75, "seed": seed,
        "rows": [
            {"attribution": a, "arm": arm, "base": "" if arm == "control" else a,
             "name": a + {"forgrad": "*", "abs": " (abs)"}.get(arm, ""),
             "family": "control" if arm == "control" else "white", "cutoff": 5.0 if arm == "forgrad" else None}
            for a, arm in values
        ],
        "metrics": {name: {"type": name, "higher_is_better": name not in lower} for name in metrics},
    }  # fmt: skip
    names = ["attribution", "arm", "seconds per 100", "filter per 100", "forwards", "backwards", "n"]
    return Scores(table, pd.DataFrame(list(costs), columns=names), pd.DataFrame(), (), (), spec)


def test_the_summary_by_hand():
    scores = made(
        {
            ("S", "none"): {"Faithfulness": [1, 2, 3, math.nan], "Deletion": [1, 1, 1, 1]},
            ("S", "forgrad"): {"Faithfulness": [2, 2, 2, 6], "Deletion": [0, 0, 2, 2]},
        },
        ("Faithfulness", "Deletion"), ("Deletion",), costs=[("S", "none", 0.5, 0.0, 1, 1, 4)],
    )  # fmt: skip
    found = scores.summary()
    assert found["name"].tolist() == ["S", "S*"] and math.isnan(found["cutoff"][0]) and found["cutoff"][1] == 5
    assert found["Faithfulness"].tolist() == [2, 3] and found["Faithfulness n"].tolist() == [3, 4]
    np.testing.assert_allclose(found["Faithfulness se"], [1 / math.sqrt(3), 1])
    assert found["Deletion"].tolist() == [1, 1] and found["Deletion se"][0] == 0
    assert found["seconds per 100"][0] == 0.5 and math.isnan(found["seconds per 100"][1])
    assert list(found.columns[:5]) == ["attribution", "arm", "name", "family", "cutoff"]


def test_gains_are_paired_differences():
    draw = np.random.default_rng(0)
    before, after, centre = draw.normal(size=(3, 30))
    after[4] = math.nan
    values = {
        ("S", "none"): {"Faithfulness": before, "Deletion": before},
        ("S", "abs"): {"Faithfulness": centre, "Deletion": centre},
        ("S", "forgrad"): {"Faithfulness": after + 0.5, "Deletion": after},
        ("G", "none"): {"Faithfulness": centre, "Deletion": centre},
        ("centre prior", "control"): {"Faithfulness": centre, "Deletion": centre},
    }
    scores = made(values, ("Faithfulness", "Deletion"), ("Deletion",), seed=2)
    gains = scores.gains()
    assert list(zip(gains["attribution"], gains["arm"], strict=True)) == [("S", "abs"), ("S", "forgrad")]
    expected = paired(after + 0.5, before, seed=2)
    row = gains.iloc[1]
    names = ("n", "missing", "mean", "se", "low", "high", "bf10", "effect")
    assert [row[name] for name in names] == pytest.approx([getattr(expected, name) for name in names])
    assert row["n"] == 29 and row["name"] == "S*" and row["against"] == "none"
    turned = scores.gains("Deletion").iloc[1]  # lower is better: a decrease is a gain
    assert turned["mean"] == pytest.approx(np.nanmean(before - after))
    over_abs = scores.gains(against="abs")
    assert over_abs[["attribution", "arm"]].to_numpy().tolist() == [["S", "forgrad"]]
    over_centre = scores.gains(against="centre prior")
    assert list(zip(over_centre["attribution"], over_centre["arm"], strict=True)) == [
        ("S", "none"), ("S", "abs"), ("S", "forgrad"), ("G", "none")
    ]  # fmt: skip
    assert over_centre["mean"][2] == pytest.approx(np.nanmean(after + 0.5 - centre))
    assert over_centre["mean"][3] == 0 and math.isnan(over_centre["bf10"][3])
    with pytest.raises(ValueError, match="metric among"):
        scores.gains("F")
    with pytest.raises(ValueError, match=r"compare with among \['none', 'abs', 'forgrad', 'centre prior'\]"):
        scores.gains(against="gradient")


def test_gains_go_by_the_pictures_and_not_by_their_order():
    scores = made({("S", "none"): {"Faithfulness": [1, 2, 3]}, ("S", "forgrad"): {"Faithfulness": [2, 4, 6]}})
    mixed = Scores(scores.table.sample(frac=1, random_state=3), *[getattr(scores, name) for name in
                   ("costs", "spectra", "missing", "examples", "spec")])  # fmt: skip
    assert mixed.gains()["se"][0] == pytest.approx(scores.gains()["se"][0])
    assert mixed.gains()["mean"][0] == 2


def test_the_ranking_of_table_2():
    """The paper's ResNet50: VarGrad leads before; after, its place goes by VarGrad*, and RISE keeps its own."""
    faithful = {
        ("VarGrad", "none"): (0.36, 0.46), ("VarGrad", "forgrad"): (0.35, 0.44), ("SquareGrad", "none"): (0.36, 0.45),
        ("SquareGrad", "forgrad"): (0.36, 0.46), ("SmoothGrad", "none"): (0.23, 0.45),
        ("SmoothGrad", "forgrad"): (0.37, 0.44), ("RISE", "none"): (0.41, 0.34), ("noise", "control"): (9, 9),
    }  # fmt: skip
    values = {key: {"Faithfulness": [f - 0.1, f + 0.1], "MuFidelity": [m, m]} for key, (f, m) in faithful.items()}
    ranking = made(values, ("Faithfulness", "MuFidelity")).ranking()
    assert ranking["rank"].tolist() == [1, 2, 3, 4]
    assert ranking["before"].tolist() == ["VarGrad", "SquareGrad", "RISE", "SmoothGrad"]
    assert ranking["after"].tolist() == ["SquareGrad*", "SmoothGrad*", "VarGrad*", "RISE"]
    np.testing.assert_allclose(ranking["before score"], [0.82, 0.81, 0.75, 0.68])
    np.testing.assert_allclose(ranking["after score"], [0.82, 0.81, 0.79, 0.75])
    np.testing.assert_allclose(ranking["before se"], 0.1)


def test_a_ranking_takes_metrics_that_are_there():
    scores = made({("S", "none"): {"Faithfulness": [1, 2]}, ("T", "none"): {"Faithfulness": [2, 3]}})
    with pytest.raises(ValueError, match="Faithfulness and MuFidelity to add"):
        scores.ranking()
    assert scores.ranking(["Faithfulness"])["before"].tolist() == ["T", "S"]


def test_bayes_factors_of_two_networks():
    draw = np.random.default_rng(1)
    scores, cells = {}, []
    for model in ("A", "B"):
        values = {}
        for method in ("S", "G", "V"):
            for arm, shift in (("none", 0), ("forgrad", 0.3)):
                numbers = draw.normal(shift, 0.2, size=8)
                values[method, arm] = {"Insertion": numbers, "Deletion": -numbers}
                cells.append((model, method, {"none": "before"}.get(arm, "after"), numbers.mean()))
        scores[model] = made(values, ("Deletion", "Insertion"), ("Deletion",))
    table = pd.DataFrame(cells, columns=["model", "method", "stage", "value"])
    wide = table.pivot(index=["model", "method"], columns="stage", values="value")
    found = bayes(scores).set_index(["metric", "test"])
    assert list(found.index.unique("metric")) == ["Insertion", "Deletion"]
    for metric in ("Insertion", "Deletion"):
        assert found.loc[(metric, "BIC, blocks"), "log10"] == pytest.approx(bic_bf10(table).log10)
        assert found.loc[(metric, "BIC, within"), "log10"] == pytest.approx(bic_bf10(table, within=True).log10)
        expected = jzs_bf10((wide["after"] - wide["before"]).to_numpy())
        assert found.loc[(metric, "JZS, paired"), "log10"] == pytest.approx(expected.log10)
        assert (found.loc[metric, "difference"] > 0).all()
    assert found.loc[("Insertion", "BIC, blocks"), ["n", "k0", "k1"]].tolist() == [12, 4, 5]
    assert "model + method as fixed blocks" in found.loc[("Insertion", "BIC, blocks"), "design"]
    alone = scores["A"].bayes(["Insertion"])
    assert alone["n"].tolist() == [6, 3, 3] and "value ~ method as fixed blocks" in alone["design"][0]
    with pytest.raises(ValueError, match="arms 'none' and 'abs'"):
        scores["A"].bayes(arm="abs")


def test_networks_side_by_side():
    one = made({("S", "none"): {"Faithfulness": [1, 2]}, ("C", "none"): {"Faithfulness": [5, 5]}})
    two = made({("S", "none"): {"Faithfulness": [3, 4]}, ("S", "forgrad"): {"Faithfulness": [3, 5]}})
    wide = side_by_side({"max": one, "mean": two})
    assert wide.index.get_level_values("name").tolist() == ["S", "C", "S*"]
    assert wide["max", "Faithfulness"].tolist()[:2] == [1.5, 5] and math.isnan(wide["max", "Faithfulness"].iloc[2])
    assert wide["mean", "Faithfulness"].iloc[2] == 4 and wide["mean", "accuracy"].iloc[0] == 0.75
    with pytest.raises(ValueError, match="at least one network"):
        side_by_side({})


def test_a_ranking_is_of_the_same_pictures():
    values = {
        ("S", "none"): [1, 9, 9, 9], ("S", "forgrad"): [3, 0, 0, 0], ("T", "none"): [2, 2, math.nan, 2],
        ("U", "none"): [1, 1, 1, math.nan], ("late", "none"): [7], ("empty", "none"): [math.nan] * 4,
    }  # fmt: skip
    scores = made({key: {"Faithfulness": numbers} for key, numbers in values.items()})
    scores = replace(scores, missing=(Missing("late", "none", "", 1, "lost"), Missing("", "", "", 4, "the disk")))
    found = scores.ranking(["Faithfulness"])
    assert found["n"].tolist() == [2] * 5  # p0 and p1
    assert found["before"].tolist() == ["S", "T", "U", "late", "empty"]
    assert found["before score"].tolist()[:3] == [5, 2, 1] and found["before score"][3:].isna().all()
    assert found["after"].tolist()[:3] == ["T", "S*", "U"] and found["after score"].tolist()[:3] == [2, 1.5, 1]
    assert found["before se"][0] == pytest.approx(4)


def with_bases(scores, bases):
    """The scores as if these rows were FORGrads given beside what they filter."""
    rows = [row | {"base": bases.get(row["attribution"], row["base"])} for row in scores.spec["rows"]]
    return replace(scores, spec=scores.spec | {"rows": rows})


def test_forgrads_of_ones_own_are_found_by_what_they_filter():
    draw = np.random.default_rng(3)
    numbers = {key: {"Faithfulness": draw.normal(shift, 0.3, size=9)} for key, shift in {
        ("S", "none"): 0, ("G", "none"): 0.1, ("V", "none"): 0.2, ("S smooth", "forgrad"): 1,
        ("S abs", "abs"): 0.5, ("G smooth", "forgrad-gradient"): 2, ("V", "forgrad"): 0.4, ("V other", "forgrad"): 9,
        ("lonely", "forgrad"): 5,
    }.items()}  # fmt: skip
    bases = {"S smooth": "S", "S abs": "S", "G smooth": "G", "V other": "V", "lonely": ""}
    scores = with_bases(made(numbers), bases)
    found = scores.ranking(["Faithfulness"])
    assert sorted(found["after"]) == ["G smooth* (gradient)", "S smooth*", "V*"]  # its own before one given beside it
    assert found["after"][0] == "G smooth* (gradient)"
    same = made({
        ("S", "none"): numbers["S", "none"], ("S", "forgrad"): numbers["S smooth", "forgrad"],
        ("V", "none"): numbers["V", "none"], ("V", "forgrad"): numbers["V", "forgrad"],
    })  # fmt: skip
    pd.testing.assert_frame_equal(scores.bayes(["Faithfulness"]), same.bayes(["Faithfulness"]))
    over = scores.gains(against="abs").set_index("attribution")
    assert set(over.index) == {"S smooth"}
    expected = numbers["S smooth", "forgrad"]["Faithfulness"] - numbers["S abs", "abs"]["Faithfulness"]
    assert over.loc["S smooth", "mean"] == pytest.approx(expected.mean())


def test_evaluated_forgrads_are_ranked_and_tested():
    methods = METHODS | {f"{name}, low": FORGrad(method, 2.0) for name, method in METHODS.items()}
    scores = evaluate(tiny(), [case(4)], methods, {"F": SMALL["F"]}, controls=False, progress=False)
    assert set(scores.ranking(["F"])["after"]) == {"Saliency, low*", "GradientInput, low*"}
    assert scores.bayes(["F"])["n"].tolist()[0] == 4


# ---- files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(
            tiny(),
            [case(4)],
            METHODS | {"broken": failing()},
            SMALL,
            fits={"Saliency": 2.0},
            examples=2,
            progress=False,
        )


def test_scores_come_back_from_their_folder(kept, tmp_path):
    back = Scores.load(kept.save(tmp_path / "deep" / "scores"))
    for name in ("table", "costs", "slopes", "spectra"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(kept, name))
    assert back.spec == kept.spec and back.missing == kept.missing and back.accuracy == kept.accuracy
    assert [shown.picture for shown in back.examples] == [shown.picture for shown in kept.examples]
    for one, other in zip(back.examples, kept.examples, strict=True):
        assert one.maps.keys() == other.maps.keys() and (one.label, one.predicted) == (other.label, other.predicted)
        assert all(np.array_equal(one.maps[key], other.maps[key]) for key in other.maps)
        assert np.array_equal(one.pixels, other.pixels)
    pd.testing.assert_frame_equal(back.summary(), kept.summary())
    pd.testing.assert_frame_equal(back.gains("F"), kept.gains("F"))
    assert {path.name for path in (tmp_path / "deep" / "scores").iterdir()} == {"spec.json", "units"}


def test_shards_joined_are_the_whole():
    images, labels, names = case(6)
    batches = [(images[part], labels[part], names[part]) for part in (slice(0, 1), slice(1, 3), slice(3, 6))]
    options = {"fits": {"Saliency": 2.0}, "examples": 1, "progress": False}
    whole = evaluate(tiny(), batches, METHODS, SMALL, **options)
    parts = [evaluate(tiny(), [batch], METHODS, SMALL, **options) for batch in batches]
    found = joined(parts)
    pd.testing.assert_frame_equal(found.table, whole.table)
    pd.testing.assert_frame_equal(found.slopes, whole.slopes)
    counts = ["attribution", "arm", "forwards", "backwards", "n"]
    pd.testing.assert_frame_equal(found.costs[counts], whole.costs[counts])
    seconds = sum(n * part.costs["seconds per 100"] for n, part in zip((1, 2, 3), parts, strict=True)) / 6
    assert found.costs["seconds per 100"].to_numpy() == pytest.approx(seconds.to_numpy())
    assert found.accuracy == pytest.approx(whole.accuracy) and len(found.examples) == 3
    assert found.spec["pictures"] == 6 and found.spec["rows"] == whole.spec["rows"]
    with pytest.raises(ValueError, match="'p0' in two"):
        joined([parts[0], parts[0]])
    with pytest.raises(ValueError, match=r"different \['seed', 'rows'\]"):
        joined([parts[0], evaluate(tiny(), [batches[1]], METHODS, SMALL, seed=1, **options)])
    with pytest.raises(ValueError, match=r"different \['rows'\]"):
        joined([parts[0], evaluate(tiny(), [batches[1]], METHODS, SMALL, **options | {"fits": {"Saliency": 3.0}})])
    with pytest.raises(ValueError, match="got none"):
        joined([])


def test_joined_scores_tell_where_something_was_left_out():
    images, labels, names = case(4)
    batches = [(images[k : k + 2], labels[k : k + 2], names[k : k + 2]) for k in (0, 2)]
    with pytest.warns(UserWarning, match="left out"):
        parts = [evaluate(tiny(), [b], METHODS | {"broken": failing()}, SMALL, progress=False) for b in batches]
    found = joined(parts)
    assert [missed.after for missed in found.missing] == [0, 2] and {m.attribution for m in found.missing} == {"broken"}


def test_the_spec_is_plain_json_with_settings_in_words(kept, tmp_path):
    folder = kept.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    about = json.loads(parquet.read_schema(file).metadata[b"PANDAS_ATTRS"])["about"]  # JSON, not a pickle
    spec = about["spec"]
    assert json.loads((folder / "spec.json").read_text())["kind"] == "scores"
    assert spec == json.loads(json.dumps(kept.spec)) and spec["metrics"]["D"]["higher_is_better"] is False
    assert spec["metrics"]["F"]["settings"] == "Faithfulness(steps=4)"
    assert spec["rows"][2]["name"] == "Saliency*" and spec["rows"][2]["cutoff"] == 2.0
    assert about["missing"][0][:3] == ["broken", "none", ""] and "/" not in json.dumps(spec["rows"])


@pytest.mark.parametrize("damage", ["spec.json", "units/*.parquet"])
def test_a_damaged_folder_is_named(kept, tmp_path, damage):
    folder = kept.save(tmp_path)
    (file,) = folder.glob(damage)
    file.unlink()
    with pytest.raises(ValueError, match=f"it has no {file.name}"):
        Scores.load(folder)
    file.write_text("{")
    with pytest.raises(ValueError, match=f"Cannot read .*{file.name}"):
        Scores.load(folder)


@pytest.mark.parametrize("part", ["table", "costs", "spectra", "examples"])
def test_scores_without_one_of_their_tables_are_named(kept, tmp_path, part):
    folder = kept.save(tmp_path)
    (file,) = folder.glob("units/*.parquet")
    parts, about = unpacked(pd.read_parquet(file))
    parts.pop(part)
    packed(parts, about).to_parquet(file)
    with pytest.raises(ValueError, match=f"Cannot read .*{file.name}: KeyError: '{part}'"):
        Scores.load(folder)


def test_another_kind_of_folder_is_refused(tmp_path):
    (tmp_path / "spec.json").write_text('{"kind": "audit", "format": 1}')
    with pytest.raises(ValueError, match="Expected scores of format 2"):
        Scores.load(tmp_path)


def test_a_spec_that_cannot_be_written_writes_nothing(kept, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        replace(kept, spec=kept.spec | {"seconds": math.inf}).save(tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("text", ['{"kind": "cutoff fit", "format": 1}', "[]", "{", '{"seed": 3}'])
def test_scores_are_not_written_over_something_else(kept, tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ValueError, match=r"a new folder or one of scores, got .* spec\.json is of something else"):
        kept.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
    assert (tmp_path / "spec.json").read_text() == text


def test_scores_are_written_over_scores(kept, tmp_path):
    replace(kept, examples=()).save(kept.save(tmp_path))
    assert Scores.load(tmp_path).examples == ()


def test_cutoffs_of_numpy_are_saved(tmp_path):
    scores = evaluate(
        tiny(), [case(2)], {"S": Saliency()}, {"F": SMALL["F"]}, fits={"S": np.float32(1.5)},
        shared_cutoff=np.int64(2), controls=False, progress=False,
    )  # fmt: skip
    cutoffs = [row["cutoff"] for row in Scores.load(scores.save(tmp_path)).spec["rows"]]
    assert cutoffs == [None, None, 1.5, 2.0]


def test_scores_show_themselves(kept):
    assert repr(kept).startswith("Scores(Sequential, 4 pictures, 9 rows, F, D, I, mu, accuracy")
    assert "Saliency*" in kept._repr_html_()


def test_settings_in_words():
    assert text_of(SmoothGrad(samples=8)) == "SmoothGrad(samples=8)" and text_of(Saliency()) == "Saliency()"
    assert text_of(failing()) == "explain"
    assert text_of(FORGrad(Saliency(), 3.0)).startswith("FORGrad(attribution=Saliency(), cutoff=3.0")
    assert " at 0x" not in text_of(stored(torch.rand(1, 2, 2), ["a"]))


@dataclass
class Setting:
    size: int = 3
    values: object = None
    cache: object = field(default_factory=dict, init=False)
    kept: object = field(default=None, repr=False)


def test_settings_in_words_hold_no_values_and_no_addresses():
    assert text_of(Setting(4, kept=torch.rand(2))) == "Setting(size=4)"
    assert text_of(Setting(values=torch.rand(2, 3))) == "Setting(values=Tensor(2, 3))"
    assert text_of(Setting(values={"a": np.zeros(2), "b": [torch.rand(1), 2]})) == (
        "Setting(values={'a': ndarray(2,), 'b': [Tensor(1,), 2]})"
    )
    assert text_of(Setting(values=(1, None))) == "Setting(values=(1, None))"
    assert text_of(Setting(values=(1,))) == "Setting(values=(1,))"
    assert text_of(partial(failing, torch.rand(3), after=2)) == "failing(Tensor(3,), after=2)"
    assert text_of(object()) == "object" and text_of(Saliency) == "Saliency" and text_of(tiny().eval) == "Module.eval"
    assert text_of(stored(torch.rand(1, 2, 2), ["a"])) == "Stored()"


def test_settings_are_worded_in_one_place():
    assert identity.text_of is text_of


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"attributions": {}, "fits": {}, "controls": False}, ValueError, "at least one attribution"),
        ({"attributions": [Saliency()]}, TypeError, "as mappings"),
        ({"attributions": {"S": Saliency}}, TypeError, "such as Saliency\\(\\) as 'S'"),
        ({"attributions": {"S": torch.rand(2, 9, 11)}}, TypeError, "adapters.stored"),
        ({"attributions": {" ": Saliency()}}, TypeError, "not empty"),
        ({"attributions": {"centre prior": Saliency()}}, ValueError, "other names than those of the controls"),
        ({"metrics": {}}, ValueError, "at least one metric"),
        ({"metrics": [Deletion()]}, TypeError, "metrics as a mapping"),
        ({"metrics": {"D": Deletion}}, TypeError, "such as Deletion\\(\\)"),
        ({"fits": {"T": 2.0}}, ValueError, "got \\['T'\\]"),
        ({"fits": {"S": "2"}}, TypeError, "CutoffFit or a cutoff for 'S'"),
        ({"fits": {"S": -1.0}}, ValueError, "0 cycles/image or more"),
        ({"fits": {"S": [2.0, 3.0]}}, ValueError, "one fit of 'S' for each where, got 2 of where='attribution'"),
        ({"fits": {"S": math.inf}}, ValueError, "finite cutoff, or None for no filter, got inf for 'S'"),
        ({"shared_cutoff": math.inf}, ValueError, "finite cutoff"),
        ({"attributions": {"T": FORGrad(Saliency(), math.inf)}}, ValueError, "got inf for 'T'"),
        ({"arms": ("none",)}, ValueError, "arms among"),
        ({"arms": ("shared",), "fits": {"S": 2.0}}, ValueError, "shared_cutoff="),
        ({"data": torch.rand(2, 3)}, ValueError, "\\(N, C, H, W\\)"),
        ({"data": (case(2)[0], torch.tensor([0, 9]))}, ValueError, "labels from 0 to 3"),
        ({"model": "resnet50"}, TypeError, "Expected a network"),
        ({"batch_size": 2, "model": Engine(tiny())}, ValueError, "beside an Engine"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes, error, match):
    given = {"model": tiny(), "data": case(2)[0], "attributions": {"S": Saliency()}, "progress": False} | changes
    model, data, attributions = (given.pop(name) for name in ("model", "data", "attributions"))
    with pytest.raises(error, match=match):
        evaluate(model, data, attributions, **given)

"""Sanity check and bias of metrics: known networks, slow versions, what each stage of the cascade randomises."""

import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from gradspec.attributions import GradientInput, Saliency
from gradspec.controls import centre_prior, metric_bias, random_maps, sanity
from gradspec.controls.likeness import gaussian_window, rank_likeness, structural_similarity
from gradspec.controls.sanity import OTHER, _cascade, likeness
from gradspec.engine import Engine
from gradspec.forgrad import FORGrad
from gradspec.metrics import Deletion, Faithfulness, Insertion, MuFidelity
from gradspec.statistics import paired
from gradspec.surgery import NothingToSwap, randomised


def case(n=3, channels=3, size=(13, 12), seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *size, generator=draw), torch.arange(n) % 2


def convolving(channels=3, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    net.mean, net.std = (0.4,) * channels, (0.2,) * channels
    return net.eval()


METHODS = {"Saliency": Saliency(), "Saliency σ 3": FORGrad(Saliency(), 3), "centre": centre_prior()}


# ---- how like two maps are -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 13), (11, 11), (12, 30)])
def test_ssim_equals_a_slow_loop(size):
    draw = np.random.default_rng(3)
    a, b = draw.random(size), 0.5 * draw.random(size) + 0.2
    place = np.arange(11) - 5
    one = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(one, one) / np.outer(one, one).sum()
    values = []
    for i in range(size[0] - 10):
        for j in range(size[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            covariance = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    found = structural_similarity(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(np.mean(values), rel=1e-10)
    assert found == pytest.approx(structural_similarity(torch.from_numpy(b), torch.from_numpy(a)), rel=1e-12)


def test_ssim_of_small_maps_takes_the_largest_odd_window():
    """A single place for a 3 x 4 window of 3: the means of two places."""
    a, b = torch.rand(3, 3, dtype=torch.float64), torch.rand(3, 3, dtype=torch.float64)
    w = gaussian_window(3)
    ma, mb = (w * a).sum(), (w * b).sum()
    top = (2 * ma * mb + 1e-4) * (2 * (w * (a - ma) * (b - mb)).sum() + 9e-4)
    below = (ma**2 + mb**2 + 1e-4) * ((w * (a - ma) ** 2).sum() + (w * (b - mb) ** 2).sum() + 9e-4)
    assert structural_similarity(a, b) == pytest.approx(float(top / below))
    assert structural_similarity(torch.ones(1, 1), torch.ones(1, 1)) == pytest.approx(1)
    assert structural_similarity(255 * a, 255 * b, 255.0) == pytest.approx(float(top / below))
    with pytest.raises(ValueError, match="of one shape"):
        structural_similarity(a, b[:2])


def test_likeness_is_spearman_of_maps_and_magnitudes():
    a, b = torch.randn(7, 9), torch.randn(7, 9)
    b[0, :5] = 0.25  # ties
    found = likeness(a, b)
    assert found["spearman"] == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert found["spearman_abs"] == pytest.approx(spearmanr(a.abs().flatten(), b.abs().flatten()).statistic)
    scaled = [(m.abs() - m.abs().min()) / (m.abs().max() - m.abs().min()) for m in (a, b)]
    assert found["ssim"] == pytest.approx(structural_similarity(*scaled), abs=1e-6)
    assert rank_likeness(a, a**3) == pytest.approx(1) and likeness(a, -5 * a)["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("other", [torch.full((7, 9), 2.0), torch.full((7, 9), torch.nan), torch.rand(6, 9)])
def test_likeness_to_what_is_no_explanation_is_not_defined(other):
    assert np.isnan(list(likeness(torch.randn(7, 9), other).values())).all()


# ---- sanity check --------------------------------------------------------------------------------


def test_each_stage_compares_with_the_network_randomised_so_far():
    net, (images, labels) = convolving(), case()
    found = sanity(net, (images, labels), METHODS, layers=["7", "3", "0"], seed=4).table
    stages = [(1, "7", ["7"]), (2, "3", ["7", "3"]), (3, "0", ["7", "3", "0"])]
    for number, layer, layers in stages:
        other, _ = randomised(net, layers, 4)
        for name, method in METHODS.items():
            before, after = method(net, images, labels), method(other, images, labels)
            rows = found[(found["stage"] == number) & (found["attribution"] == name)]
            assert rows["layer"].eq(layer).all() and len(rows) == 3
            expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(before, after, strict=True)]
            assert np.allclose(rows["spearman"], expected, atol=1e-5)
    sizes = {k: sum(t.numel() for t in net[k].state_dict().values() if t.is_floating_point()) for k in (0, 1, 3, 7)}
    shares = found.drop_duplicates("stage").set_index("stage")["share"]
    assert shares[2] == pytest.approx((sizes[7] + sizes[3]) / sum(sizes.values())) and shares[3] < 1


def test_what_knows_no_network_stays_and_a_gradient_does_not():
    found = sanity(convolving(), case(6), METHODS).summary().set_index(["attribution", "stage"])
    last = found.index.get_level_values("stage").max()
    assert found.loc[("centre", last), ["spearman", "ssim"]].eq(1).all()
    assert found.loc[("Saliency", last), "spearman"] < 0.6 and found.loc[("Saliency", last), "share"] == 1
    assert found.loc[("centre", 0), "spearman"] == 1  # so it is by chance: nothing to be seen in the 1 above


def test_chance_is_the_picture_before():
    net, (images, labels) = convolving(), case(4)
    found = sanity(net, [(images[:3], labels[:3]), (images[3:], labels[3:])], {"S": Saliency()}, stages=1).table
    rows = found[found["stage"] == 0]
    maps = Saliency()(net, images, labels).flatten(1)
    expected = [spearmanr(maps[k], maps[k - 1]).statistic for k in range(4)]
    assert rows["layer"].eq(OTHER).all() and np.allclose(rows["spearman"], expected, atol=1e-6)
    alone = sanity(net, (images[:1], labels[:1]), {"S": Saliency()}, stages=1).table
    assert alone["stage"].tolist() == [1]


def test_verdicts_compare_the_last_stage_with_another_picture():
    def guided(model, images, labels):  # of the picture alone, as guided backpropagation nearly is
        return images.mean(1)

    found = sanity(convolving(), case(12), {**METHODS, "guided": guided}, stages=2)
    rows = found.verdicts().set_index(["attribution", "measure"])
    assert rows.loc["guided", "verdict"].eq("fails").all() and rows.loc["guided", "likeness"].eq(1).all()
    assert rows.loc["centre", "verdict"].eq("alike").all()  # every picture's, so that nothing can be seen in it
    table = found.table[found.table["attribution"] == "Saliency"]
    table = table.pivot(index="picture", columns="stage", values="ssim").loc[table["picture"].unique()]
    by_hand = paired(table[2].to_numpy(), table[0].to_numpy())
    row = rows.loc[("Saliency", "ssim")]
    assert row["excess"] == by_hand.mean and (row["low"], row["high"]) == (by_hand.low, by_hand.high)
    assert row["verdict"] == ("fails" if by_hand.low > 0 else "passes") and row["n"] == 12
    alone = sanity(convolving(), case(1), {"S": Saliency()}, stages=1).verdicts()
    assert alone["verdict"].eq("undefined").all() and alone["n"].eq(0).all()


def test_the_cascade_runs_from_the_logits_in_the_order_of_execution():
    class Token(nn.Module):
        """Registered in another order than it runs; a parameter of its own, and one that attention uses unseen."""

        mean, std = (0.0,), (1.0,)

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.BatchNorm1d(8)
            self.patches = nn.Conv2d(1, 8, 2, stride=2)
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2) + self.token
            x = self.attention(x, x, x)[0]
            return self.head(self.norm(x.mean(1)))

    net = Token().eval()
    stages = _cascade(net, torch.randn(1, 1, 4, 6), None, 100)
    assert [stage.layer for stage in stages] == [
        "head", "norm", "attention.out_proj", "attention", "patches", "token",
    ]  # fmt: skip
    assert set(stages[1].names) == {"head.weight", "head.bias", "norm.weight", "norm.bias", "norm.running_mean",
                                    "norm.running_var"}  # fmt: skip
    assert set(stages[-1].names) == {n for n, t in net.state_dict().items() if t.is_floating_point()}
    few = _cascade(net, torch.randn(1, 1, 4, 6), None, 3)
    assert [stage.layer for stage in few] == ["head", "attention", "token"]
    found = sanity(net, torch.randn(2, 1, 4, 6), {"S": Saliency()}, stages=3)
    assert found.spec["layers"] == ["head", "attention", "token"]


def test_the_network_stays_and_batches_do_not_matter():
    net, (images, labels) = convolving().train(), case(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    whole = sanity(net, (images, labels), METHODS, stages=2).table
    parts = sanity(Engine(net), [(images[:2], labels[:2]), (images[2:], labels[2:])], METHODS, stages=2).table
    keys = ["picture", "attribution", "stage"]
    whole, parts = whole.set_index(keys), parts.set_index(keys).loc[whole.set_index(keys).index]
    assert np.allclose(whole[["spearman", "spearman_abs", "ssim"]], parts[["spearman", "spearman_abs", "ssim"]])
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert list(whole.index.get_level_values("attribution").unique()) == list(METHODS)


def test_the_class_that_is_explained_is_the_original_networks():
    net, (images, _) = convolving(seed=3), case(6)
    labels = net(images).argmax(1)
    predicted = sanity(net, images, {"S": Saliency()}, stages=2).table
    given = sanity(net, (images, labels), {"S": Saliency()}, stages=2).table
    assert predicted.equals(given) and given[given["stage"] == 2]["label"].tolist() == labels.tolist()


def test_cutoffs_share_their_explanation_in_every_stage(monkeypatch):
    engines = []

    class Counting(Engine):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            engines.append(self)

    monkeypatch.setattr(sys.modules["gradspec.controls.sanity"], "Engine", Counting)  # the function has its name
    methods = {"S": Saliency(), **{f"σ {s}": FORGrad(Saliency(), s) for s in (4, 3, 2, 1)}}
    sanity(Counting(convolving()), case(3), methods, stages=3)
    assert [engine.backwards for engine in engines] == [3] * 4


def test_summary_counts_what_is_defined():
    constant = {"flat": lambda model, images, labels: torch.ones(len(images), *images.shape[2:])}
    found = sanity(convolving(), case(3), constant, stages=1).summary()
    assert found["spearman_n"].eq(0).all() and found["ssim"].isna().all()
    table = sanity(convolving(), case(3), {"S": Saliency()}, stages=1)
    row, values = table.summary().iloc[-1], table.table[table.table["stage"] == 1]["ssim"]
    assert row["ssim"] == pytest.approx(values.mean()) and row["ssim_n"] == 3
    assert row["ssim_se"] == pytest.approx(values.std(ddof=1) / 3**0.5)


def test_sanity_says_what_it_does_not_take():
    images, labels = case(2)
    with pytest.raises(ValueError, match="attributions by name"):
        sanity(convolving(), (images, labels), {})
    with pytest.raises(NothingToSwap, match="No layer is called 'fc'"):
        sanity(convolving(), (images, labels), {"S": Saliency()}, layers=["fc"])
    with pytest.raises(ValueError, match="beside an Engine"):
        sanity(Engine(convolving()), (images, labels), {"S": Saliency()}, batch_size=2)
    with pytest.raises(NothingToSwap, match="no weights"):
        bare = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())
        sanity(bare, (images, labels), {"S": Saliency()})

    class Turning:
        def __init__(self):
            self.turn = 0

        def __iter__(self):
            self.turn += 1
            return iter([(images.roll(self.turn, 0), labels)])

    with pytest.raises(ValueError, match="same pictures in the same order"):
        sanity(convolving(), Turning(), {"S": Saliency()})


# ---- bias of metrics -----------------------------------------------------------------------------


def roughness(model, images, labels, maps):
    """A metric that is biased by construction."""
    return (maps - maps.roll(1, 2)).square().mean((1, 2))


def mass(model, images, labels, maps):
    """A metric that cannot be: a map and its twin have the same values."""
    return maps.double().sum((1, 2)).round(decimals=3).float()


def test_a_rough_metric_is_found_out_and_a_fair_one_is_not():
    found = metric_bias(convolving(), case(12), metrics={"rough": roughness, "mass": mass}).summary()
    rough, fair = found.to_dict("records")
    assert rough["favours"] == "high" and rough["bf10"] > 100 and rough["low"] > 0 and rough["n"] == 12
    assert fair["favours"] == "neither" and abs(fair["difference"]) < 1e-3 * fair["low_map"]
    assert rough["difference"] == pytest.approx(rough["high_map"] - rough["low_map"])


def test_values_are_the_metrics_own_and_differences_are_paired():
    net, (images, labels) = convolving(), case(5)
    metrics = {"D": Deletion(steps=4), "F": Faithfulness(steps=4), "μF": MuFidelity(grid=3, subsets=20)}
    result = metric_bias(net, [(images[:2], labels[:2]), (images[2:], labels[2:])], metrics=metrics,
                         attributions={"Saliency": Saliency()}, seed=3)  # fmt: skip
    wide = result.table.set_index(["metric", "map"])["value"].sort_index(kind="stable")
    values = {}
    for name, metric in metrics.items():
        for words, method in (("random low", random_maps("low", 3)), ("random high", random_maps("shuffled", 3)),
                              ("Saliency", Saliency())):  # fmt: skip
            values[words] = metric(net, images, labels, method(net, images, labels))
            assert np.allclose(wide[name, words], values[words], atol=1e-5)
        expected = paired(values["random high"], values["random low"])
        row = result.summary().set_index("metric").loc[name]
        for column in ("se", "low", "high", "bf10", "effect", "n"):
            assert row[column] == pytest.approx(getattr(expected, column), rel=1e-4, nan_ok=True)
    means = result.means().set_index(["map", "metric"])
    assert means.loc[("Saliency", "D"), "mean"] == pytest.approx(wide["D", "Saliency"].mean())
    assert means.loc[("Saliency", "D"), "n"] == 5


def test_a_lower_deletion_is_better():
    result = metric_bias(convolving(), case(12), metrics={"rough": Negative()})
    row = result.summary().iloc[0]
    assert row["difference"] > 0 and row["favours"] == "low" and result.spec["higher_is_better"] == {"rough": False}


class Negative:
    """A metric of which less is better."""

    higher_is_better = False

    def __call__(self, model, images, labels, maps):
        return roughness(model, images, labels, maps)


def test_draws_are_averaged_before_pictures_count():
    case_ = case(4)
    result = metric_bias(convolving(), case_, metrics={"rough": roughness}, draws=3)
    assert len(result.table) == 4 * 2 * 3 and result.summary()["n"].tolist() == [4]
    first = metric_bias(convolving(), case_, metrics={"rough": roughness}).table["value"].to_numpy()
    assert np.array_equal(first, result.table[result.table["draw"] == 0]["value"])
    low = result.table[result.table["map"] == "random low"].groupby("picture")["value"].mean().mean()
    assert result.summary()["low_map"].iloc[0] == pytest.approx(low)


def test_by_default_the_papers_metrics_share_their_curves():
    engine, (images, labels) = Engine(convolving()), case(2)
    result = metric_bias(engine, (images, labels))
    assert result.summary()["metric"].tolist() == [
        "Deletion", "Insertion", "Faithfulness", "MuFidelity", "MuFidelity, 17 cells",
    ]  # fmt: skip
    assert engine.forwards <= 2 * (2 * 2 * 9 + 2 * 200 + 1) + 1 and engine.backwards == 0
    area = result.table.pivot_table(index=["picture", "map"], columns="metric", values="value")
    assert np.allclose(area["Faithfulness"], area["Insertion"] - area["Deletion"], atol=1e-6)
    assert "0x" not in str(result.spec) and Insertion.higher_is_better


def test_metric_bias_says_what_it_does_not_take():
    with pytest.raises(ValueError, match="metrics by name"):
        metric_bias(convolving(), case(1), metrics={})
    with pytest.raises(ValueError, match="not called 'random low'"):
        metric_bias(convolving(), case(1), attributions={"random low": Saliency()})
    with pytest.raises(ValueError, match="draws as a whole number"):
        metric_bias(convolving(), case(1), draws=0)
    gradient_input = metric_bias(convolving(), case(2), metrics={"m": mass}, attributions={"GI": GradientInput()})
    assert set(gradient_input.table["map"]) == {"random low", "random high", "GI"}

"""Maps that know no network, and the Taylor test: by hand, by their laws, against a slow loop."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gradspec.attributions import Attribution, Saliency
from gradspec.controls import CentrePrior, RandomMaps, centre_prior, random_maps, taylor
from gradspec.controls import taylor as taylor_test
from gradspec.engine import Engine
from gradspec.forgrad import FORGrad
from gradspec.fourier import low_pass
from gradspec.targets import label_logit, label_probability

SIZES = [(8, 8), (7, 11), (13, 6)]
CONTROLS = [centre_prior(), random_maps("low"), random_maps("shuffled"), random_maps("white")]


def case(n=3, channels=3, size=(9, 7), dtype=torch.float32, seed=1):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, *size, generator=draw, dtype=torch.float64)
    return images.to(dtype), torch.arange(n) % 2


class Curved(nn.Module):
    """Logit k is k·(gᵀx + ½ Σ h x²), with g and h drawn once; `std` makes a pixel's unit half of the input's."""

    def __init__(self, size=(9, 7), channels=3, bend=1.0, std=0.5):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        shape = channels, *size
        self.g = nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64))
        self.h = nn.Parameter(bend * torch.rand(shape, generator=draw, dtype=torch.float64))
        self.mean, self.std = (0.0,) * channels, (std,) * channels

    def forward(self, x):
        value = (self.g * x + 0.5 * self.h * x**2).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(value), value], 1)


def convolving(channels=3, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    net.mean, net.std = (0.4,) * channels, (0.2,) * channels
    return net.eval()


# ---- maps that know no network -------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_controls_are_attributions_of_any_size_that_run_no_network(control, size, channels):
    images, labels = case(2, channels, size)
    net = nn.Linear(1, 1)  # fails on any picture
    maps = control(net, images, labels, ids=["a", "b"])
    assert isinstance(control, Attribution) and control.passes(*size) == 0
    assert maps.shape == (2, *size) and maps.dtype == torch.float32 and bool(maps.isfinite().all())
    assert torch.equal(maps, control(None, images, labels, ids=["a", "b"]))


def test_controls_do_not_look_at_pictures_labels_or_batches():
    images, labels = case(4)
    ids = ["a", "b", "c", "d"]
    for control in CONTROLS:
        maps = control(None, images, labels, ids=ids)
        assert torch.equal(maps, control(None, images + 1, 1 - labels, ids=ids))
        single = torch.cat([control(None, images[k : k + 1], labels[:1], ids=[ids[k]]) for k in (3, 1, 0, 2)])
        assert torch.equal(maps[[3, 1, 0, 2]], single)


def test_controls_within_an_engine_spend_no_passes():
    images, labels = case()
    engine = Engine(convolving())
    for control in CONTROLS:
        filtered = FORGrad(control, 2.0)(engine, images, labels)
        assert torch.allclose(filtered, low_pass(control(None, images, labels).abs(), 2.0).abs(), atol=1e-6)
    assert engine.forwards == engine.backwards == 0


def test_without_ids_a_map_is_made_of_the_picture():
    images, labels = case(2)
    maps = random_maps("low")(None, images, labels)
    assert not torch.equal(maps[0], maps[1])
    assert torch.equal(maps.flip(0), random_maps("low")(None, images.flip(0), labels))


@pytest.mark.parametrize("size", SIZES)
def test_the_centre_prior_is_one_centred_gaussian(size):
    height, width = size
    maps = centre_prior(0.2)(None, *case(2, 3, size))
    assert torch.equal(maps[0], maps[1])
    assert torch.allclose(maps[0], maps[0].flip(0)) and torch.allclose(maps[0], maps[0].flip(1))
    row, column, sd = 1, 2, 0.2 * min(size)
    squares = (row - (height - 1) / 2) ** 2 + (column - (width - 1) / 2) ** 2
    assert float(maps[0, row, column]) == pytest.approx(math.exp(-squares / (2 * sd**2)), rel=1e-6)


def test_the_shuffled_twin_has_the_blobs_values_elsewhere_and_its_power_high():
    images, labels = case(20, 1, (32, 32))
    low, high = (random_maps(kind)(None, images, labels) for kind in ("low", "shuffled"))
    assert torch.equal(low.flatten(1).sort(1).values, high.flatten(1).sort(1).values)
    shares = [((m - low_pass(m, 8)).square().sum() / (m - m.mean((1, 2), keepdim=True)).square().sum()).item()
              for m in (low, high)]  # fmt: skip
    assert shares[0] < 0.02 and shares[1] > 0.7


def test_blobs_are_anywhere_and_white_noise_is_white():
    images, labels = case(400, 1, (16, 16))
    peaks = random_maps("low")(None, images, labels).flatten(1).argmax(1)
    rows, columns = (peaks // 16).double(), (peaks % 16).double()
    assert abs(rows.mean() - 7.5) < 1 and abs(columns.mean() - 7.5) < 1 and rows.std() > 3.5 and columns.std() > 3.5
    noise = random_maps("white")(None, images, labels)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert not torch.equal(noise, random_maps("white", seed=1)(None, images, labels))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: centre_prior(0), "spread above 0"),
    (lambda: random_maps("low", spread=-1), "spread above 0"),
    (lambda: random_maps("high"), "'low', 'shuffled' or 'white', got 'high'"),
    (lambda: FORGrad(centre_prior(), 2, where="gradient"), "knows no network"),
])  # fmt: skip
def test_controls_say_what_they_do_not_take(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_controls_check_pictures_and_labels():
    images, labels = case()
    with pytest.raises(ValueError, match="N, C, H, W"):
        centre_prior()(None, images[0], labels)
    with pytest.raises(ValueError, match="one per image"):
        random_maps("low")(None, images, labels[:1])
    assert CentrePrior() == centre_prior() and RandomMaps("low") == random_maps("low")  # values, as other methods


# ---- Taylor test ---------------------------------------------------------------------------------


def test_a_quadratic_functions_residual_is_known_and_grows_with_the_square_of_the_radius():
    net, (images, labels) = Curved(bend=0.0), case(2, dtype=torch.float64)
    net.h.data.fill_(3.0)
    found = taylor(net, (images, torch.ones_like(labels)), radii=[0.01, 0.1, 1.0], draws=3, cutoffs=[], controls=False)
    table = found.table
    for radius, values in table.groupby("radius")["residual"]:
        expected = 0.5 * 3 * (radius / 0.5) ** 2  # ½ h ‖ε‖², in the input's units
        assert np.allclose(values, expected, rtol=1e-9, atol=1e-13)
    assert set(table["gradient"]) == {"no filter"} and found.spec["units"] == "pixels"


def test_a_linear_functions_residual_is_what_the_filter_took():
    net, (images, labels) = Curved(bend=0.0), case(2, dtype=torch.float64)
    found = taylor(net, (images, torch.ones_like(labels)), radii=[0.3], draws=4000, cutoffs=[1.5])
    rows = found.table.set_index("gradient")["residual"].groupby("gradient").mean()
    assert rows["no filter"] < 1e-12
    size, unit = net.g.numel(), 0.3 / 0.5
    for name, left in (
        ("σ = 1.5", net.g - low_pass(net.g, 1.5)),
        ("zero", net.g.detach()),
    ):  # to first order r²‖∇f − g‖²/d
        assert rows[name] == pytest.approx(unit * float(left.detach().norm()) / size**0.5, rel=0.05)
    for name in ("permuted", "Gaussian"):  # the gradient's norm, no relation to it
        assert rows[name] == pytest.approx(2**0.5 * unit * float(net.g.detach().norm()) / size**0.5, rel=0.2)
    assert rows["σ = 1.5"] < rows["zero"] < rows["permuted"] < rows["uniform"]


@pytest.mark.parametrize(("channels", "size", "shape"), [(3, (9, 7), "disk"), (1, (8, 8), "square")])
def test_taylor_equals_a_slow_loop(channels, size, shape):
    from gradspec.controls.taylor import _direction

    net, (images, labels) = convolving(channels), case(2, channels, size)
    found = taylor(net, [(images, labels, ["a", "b"])], cutoffs=[3, 1], radii=[0.5, 4], draws=3, shape=shape, seed=2)
    exact = convolving(channels).double()
    table = found.table.set_index(["picture", "gradient", "radius"])
    for name, image, label in zip("ab", images.double(), labels, strict=True):
        x = image.clone().requires_grad_()
        score = exact(x[None])[0, label]
        (gradient,) = torch.autograd.grad(score, x)
        score = score.detach()
        others = {"no filter": gradient, "zero": torch.zeros_like(gradient)}
        others |= {f"σ = {s}": low_pass(gradient, s, shape) for s in (3, 1)}
        for radius in (0.5, 4):
            steps = [radius / 0.2 * _direction(2, name, k, image.shape) for k in range(3)]
            with torch.no_grad():
                changes = [float(exact((image + step)[None])[0, label] - score) for step in steps]
            for which, other in others.items():
                slopes = [float((step * other).sum()) for step in steps]
                row = table.loc[(name, which, radius)]
                for column, sign in (("residual", 1), ("mirrored", -1)):
                    squares = [(c - sign * s) ** 2 for c, s in zip(changes, slopes, strict=True)]
                    assert row[column] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-7, abs=1e-12)
            assert row["score"] == pytest.approx(float(score), rel=1e-9) and row["label"] == int(label)


def test_controls_of_the_gradient_are_as_they_are_called():
    from gradspec.controls.taylor import _candidates, _plan

    gradient = torch.randn(3, 9, 7, dtype=torch.float64)
    found = dict(_candidates(gradient, _plan([2], [1.0], 1, label_logit, "disk", True, 0), "a"))
    named = {name: value for (name, _), value in found.items()}
    assert list(named) == ["no filter", "σ = 2", "zero", "permuted", "uniform", "Gaussian"]
    assert torch.equal(named["no filter"], gradient) and not named["zero"].any()
    permuted = named["permuted"].flatten(1)  # pixels, with their channels together
    assert sorted(map(tuple, permuted.T.tolist())) == sorted(map(tuple, gradient.flatten(1).T.tolist()))
    assert not torch.equal(named["permuted"], gradient)
    assert gradient.min() <= named["uniform"].min() and named["uniform"].max() <= gradient.max()
    assert torch.allclose(named["Gaussian"].norm(), gradient.norm()) and bool((named["Gaussian"] >= 0).all())
    assert torch.equal(named["Gaussian"][0], named["Gaussian"][2])


def test_the_scores_are_shared_by_all_gradients(monkeypatch):
    engines = []

    class Counting(Engine):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            engines.append(self)

    monkeypatch.setattr(sys.modules["gradspec.controls.taylor"], "Engine", Counting)  # the function has its name
    images, labels = case(2)
    for cutoffs in ([], [4, 3, 2, 1]):
        taylor(convolving(), (images, labels), cutoffs=cutoffs, radii=[0.1, 1], draws=5)
    assert [(e.forwards, e.backwards) for e in engines] == [(2 * (2 * 5 + 1 + 1), 2)] * 2


def test_taylor_leaves_the_network_and_knows_no_batches():
    net, (images, labels) = convolving().train(), case(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ids = list("abcde")
    settings = {"radii": [0.1, 1.0], "draws": 2, "cutoffs": [2]}
    whole = taylor(net, [(images, labels, ids)], **settings).table
    parts = taylor(Engine(net), [(images[:2], labels[:2], ids[:2]), (images[2:], labels[2:], ids[2:])], **settings)
    single = taylor(net, [(images, labels, ids)], batch_size=1, **settings).table
    for other in (parts.table, single):
        assert np.allclose(whole["residual"], other["residual"], rtol=1e-6, atol=1e-12)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in net.parameters())


def test_float64_sees_the_residuals_of_small_radii():
    """A network of rectifiers is linear nearby: what is left there is rounding, far below float32's 1e-7."""
    images, labels = case(3)
    found = taylor(convolving(), (images, labels), radii=[1e-7], draws=4, cutoffs=[2], controls=False).table
    floor = found[found["gradient"] == "no filter"]
    assert (floor["residual"] < 1e-14 * np.maximum(floor["score"].abs(), 1)).all()
    assert (found[found["gradient"] == "σ = 2"]["residual"] > 1e-11).all()


def test_labels_are_predicted_where_there_are_none_and_targets_are_free():
    net, (images, _) = convolving(), case(4)
    found = taylor(net, images, radii=[1.0], draws=1, cutoffs=[2], target=label_probability)
    labels = net(images).argmax(1)
    assert found.table.drop_duplicates("picture")["label"].tolist() == labels.tolist()
    scores = net(images).softmax(1)[torch.arange(4), labels].tolist()
    assert np.allclose(found.table.drop_duplicates("picture")["score"], scores, atol=1e-5)
    assert found.spec["target"] == "label_probability" and found.spec["model"] == "Sequential"


def test_ratios_and_their_logarithms():
    found = taylor(Curved(), case(3, dtype=torch.float64), radii=[0.1, 1], draws=2, cutoffs=[2])
    found.table["residual"] = np.arange(1.0, len(found.table) + 1)
    found.table["mirrored"] = 2.0
    values = found.values("unfiltered")
    base = values[values["gradient"] == "no filter"].set_index(["picture", "radius"])["residual"]
    for row in values.itertuples():
        assert row.value == row.residual / base[row.picture, row.radius]
    assert np.allclose(found.values("mirrored")["value"], found.table["residual"] / 2)
    summary = found.summary("residual").set_index(["gradient", "radius"])
    rows = found.table[(found.table["gradient"] == "σ = 2") & (found.table["radius"] == 1)]
    logs = np.log10(rows["residual"])
    assert summary.loc[("σ = 2", 1), "log10"] == pytest.approx(logs.mean())
    assert summary.loc[("σ = 2", 1), "se"] == pytest.approx(logs.std(ddof=1) / 3**0.5)
    assert summary["n"].eq(3).all() and summary.loc[("σ = 2", 1), "cutoff"] == 2


def test_the_zero_gradient_is_its_own_opposite_and_exact_predictions_are_left_out():
    images, labels = case(2, dtype=torch.float64)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(189, 2)).double()
    flat.mean, flat.std = (0.0,), (1.0,)
    nn.init.zeros_(flat[1].weight)
    found = taylor(flat, (images, labels), radii=[1.0], draws=2, cutoffs=[2])
    assert not found.table["residual"].any()
    assert found.values("unfiltered")["value"].isna().all() and found.summary("unfiltered")["n"].eq(0).all()
    curved = taylor(Curved(), (images, labels * 0 + 1), radii=[1.0], draws=2, cutoffs=[2]).values("mirrored")
    assert (curved[curved["gradient"] == "zero"]["value"] == 1).all()


def test_by_default_cutoffs_are_halves_of_the_pictures_own_side():
    found = taylor(convolving(), case(1, size=(32, 48)), radii=[1.0], draws=1, controls=False).table
    assert found["gradient"].tolist() == ["no filter", "σ = 16", "σ = 8", "σ = 4", "σ = 2", "σ = 1"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"radii": []}, "at least one radius"),
    ({"radii": [0.0]}, "radius above 0"),
    ({"draws": 0}, "draws as a whole number of 1"),
    ({"cutoffs": [-1]}, "cutoff of 0 cycles/image or more"),
    ({"shape": "round"}, "filter shape"),
])  # fmt: skip
def test_taylor_says_what_it_does_not_take(settings, words):
    with pytest.raises(ValueError, match=words):
        taylor_test(convolving(), case(), **{"radii": [1.0], "cutoffs": [2], "draws": 1} | settings)


def test_values_says_which_forms_there_are():
    found = taylor(convolving(), case(1), radii=[1.0], draws=1)
    with pytest.raises(ValueError, match="'residual', 'unfiltered' or 'mirrored'"):
        found.values("ratio")
    with pytest.raises(TypeError, match="Expected a network"):
        taylor(Saliency(), case(1))

"""Steps and attacks within a band: a linear network, of which everything is known by hand, and the laws of bands."""

import math

import pytest
import torch
from torch import nn

from gradspec.controls import Band, attack, flip_radii, power_share, taylor
from gradspec.controls.bands import answers, label_margin, pixel_gradients, random_directions, unit
from gradspec.engine import Engine
from gradspec.fourier import low_pass
from gradspec.targets import label_logit

SIZES = [(8, 8), (7, 11), (13, 6)]
BANDS = [Band(), Band("low", 1.5), Band("high", 1.5)]


class Line(nn.Module):
    """Logits (⟨w, x⟩ + b, 0): all along a direction is known; `std` makes a pixel's unit half of the input's."""

    def __init__(self, size=(9, 7), bias=1.0, bend=0.0):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(3, *size, generator=draw, dtype=torch.float64))
        self.bias, self.bend = bias, bend
        self.mean, self.std = (0.0,) * 3, (0.5,) * 3

    def forward(self, x):
        value = (self.w * x).flatten(1).sum(1)
        value = value + self.bend * value**2 + self.bias
        return torch.stack([value, torch.zeros_like(value)], 1)


def of_line(n=2, **settings):
    """A network whose margin is its bias at black pictures, its engine and them."""
    net = Line(**settings)
    engine = Engine(net, progress=False)
    zeros = torch.zeros(n, 3, *net.w.shape[-2:], dtype=torch.float64)
    pictures = next(engine.groups(zeros, torch.zeros(n, dtype=torch.long), [f"p{k}" for k in range(n)]))
    return net, engine, pictures


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0, 1, 2.5, 50, None])
def test_two_parts_of_a_band_are_orthogonal_and_add_up(size, cutoff):
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = Band("low", cutoff)(maps), Band("high", cutoff)(maps)
    assert torch.equal(Band()(maps), maps) and torch.allclose(low + high, maps, atol=1e-12)
    assert float((low * high).sum().abs()) < 1e-10
    shares = [power_share(maps, Band(part, cutoff)) for part in ("low", "high", "all")]
    assert torch.allclose(shares[0] + shares[1], shares[2]) and torch.equal(shares[2], torch.ones(2).double())
    if cutoff == 50 or cutoff is None:
        assert not high.any()


def test_power_share_of_two_waves_and_a_constant_by_hand():
    place = torch.arange(8) * torch.pi / 4
    maps = 1 + 2 * torch.cos(place).expand(8, 8) + 4 * torch.cos(3 * place).expand(8, 8)  # powers 1, 2 and 8
    shares = [float(power_share(maps[None], Band("high", cutoff))) for cutoff in (0, 1, 2.9, 3)]
    assert shares == pytest.approx([10 / 11, 8 / 11, 8 / 11, 0], abs=1e-6)
    assert power_share(torch.zeros(1, 4, 4), Band()).isnan().all()


def test_unit_has_norm_one_and_leaves_zero():
    maps = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1e-18)])
    assert unit(maps).flatten(1).norm(dim=1).tolist() == pytest.approx([1, 0, 1])


def test_margin_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -4.0, -2.0]])
    assert label_margin(logits, torch.tensor([1, 0])).tolist() == [-2, 1]


def test_what_the_network_answers_after_a_step_by_hand():
    net, engine, pictures = of_line()
    part = unit(Band("high", 1.5)(net.w.detach()))
    steps = torch.stack([0 * part, 0.7 * part, -3 * part])[None].expand(2, -1, -1, -1, -1)
    found = answers(engine, pictures, steps)
    along = float((net.w.detach() * part).sum()) / 0.5  # of a unit of pixels
    wanted = [1, 1 + 0.7 * along, 1 - 3 * along]
    assert found.logit[1].tolist() == pytest.approx(wanted) and torch.equal(found.logit, found.margin)
    assert found.probability[0].tolist() == pytest.approx([1 / (1 + math.exp(-value)) for value in wanted])
    assert found.flipped.tolist() == [[False, False, True]] * 2


@pytest.mark.parametrize("size", SIZES)
def test_flip_radii_of_a_linear_network_and_their_law(size):
    net, engine, pictures = of_line(size=size, bias=2.0)
    gradient = pixel_gradients(engine, pictures, label_logit)
    assert torch.allclose(gradient[0], net.w.detach() / 0.5)
    directions = -torch.stack([unit(band(gradient)) for band in BANDS], 1)
    radii = flip_radii(engine, pictures, directions, [2.0**k for k in range(-6, 6)], halvings=20)
    wanted = torch.stack([2.0 / band(gradient).flatten(1).norm(dim=1) for band in BANDS], 1)
    assert torch.allclose(radii, wanted, rtol=1e-5)
    flip_power = (radii[:, :1] / radii) ** 2  # share of each band in what flips the answer: its share of power
    assert torch.allclose(flip_power[:, 1] + flip_power[:, 2], torch.ones(2).double(), rtol=1e-4)
    assert flip_power[0].tolist() == pytest.approx([float(power_share(gradient[:1], band)) for band in BANDS], rel=1e-4)


def test_flip_radii_below_the_first_radius_beyond_the_last_and_where_it_is_flipped_already():
    net, engine, pictures = of_line(1, bias=2.0)
    down = -unit(net.w.detach())[None, None]
    exact = 2.0 * 0.5 / float(net.w.detach().norm())
    assert float(flip_radii(engine, pictures, down, [64 * exact], halvings=14)) == pytest.approx(exact, rel=0.01)
    assert flip_radii(engine, pictures, torch.cat([-down, 0 * down], 1), [1, 99]).isinf().all()
    assert flip_radii(engine, pictures, down, [exact / 2]).isinf().all()
    coarse = float(flip_radii(engine, pictures, down, [exact * 0.7, exact * 1.4], halvings=0))
    assert coarse == pytest.approx(1.4 * exact)
    other = pictures._replace(labels=pictures.labels + 1)  # what the network does not say
    assert float(flip_radii(engine, other, -down, [1.0], halvings=8)) < 0.01


def test_an_attack_on_a_linear_network_goes_straight_to_the_radius_within_its_band():
    net, engine, pictures = of_line()
    found = attack(engine, pictures, BANDS, [3.0, 0.2], steps=4)
    assert found.shape == (2, 3, 2, 3, 9, 7) and engine.backwards == 2 * (1 + 3 * 2 * 3)
    for b, band in enumerate(BANDS):
        for r, radius in enumerate((0.2, 3.0)):  # in order
            assert torch.allclose(found[1, b, r], -radius * unit(band(net.w.detach())), atol=1e-9)
    after = answers(engine, pictures, found.flatten(1, 2)).logit[0].view(3, 2)
    drop = torch.stack([band(net.w.detach()).norm() / 0.5 for band in BANDS])
    assert torch.allclose(1 - after, drop[:, None] * torch.tensor([0.2, 3.0]).double())


def test_an_attack_stays_in_its_band_and_ball_and_beats_one_step():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 8, 5)
    ).double()  # fmt: skip
    net.mean, net.std = (0.5,) * 3, (0.2,) * 3
    engine = Engine(net, progress=False)
    images = torch.rand(3, 3, 10, 12, dtype=torch.float64)
    pictures = next(engine.groups(images, engine.predictions(images)))
    many, one = (attack(engine, pictures, BANDS, [2.0], steps=steps) for steps in (8, 1))
    for b, band in enumerate(BANDS):
        assert torch.allclose(band(many[:, b]), many[:, b], atol=1e-12)
    assert many.flatten(3).norm(dim=3).max() <= 2 + 1e-9
    margins = [answers(engine, pictures, found[:, :, 0]).margin.mean() for found in (many, one)]
    assert margins[0] < margins[1]
    single = attack(Engine(net, batch_size=1, progress=False), pictures, BANDS[1:], [2.0], steps=8)
    assert torch.allclose(single, many[:, 1:], atol=1e-9)  # no matter which bands stand beside it


def test_random_directions_depend_on_the_name_alone_and_are_in_their_band():
    _, _, pictures = of_line(3)
    found = random_directions(pictures, BANDS[2], seed=4)
    assert torch.allclose(BANDS[2](found), found) and found.flatten(1).norm(dim=1).tolist() == pytest.approx([1] * 3)
    some = pictures._replace(images=pictures.images[1:2] + 7, ids=["p1"])
    assert torch.equal(random_directions(some, BANDS[2], seed=4)[0], found[1])
    assert not torch.equal(random_directions(some, BANDS[2], seed=5)[0], found[1])


def test_the_taylor_tests_linear_residual_is_the_power_of_what_is_missing():
    net, _, pictures = of_line(1)
    found = taylor(net, (pictures.images, pictures.labels), cutoffs=[1.5], radii=[0.1, 2.0], draws=4000).table
    rows = found.set_index(["gradient", "radius"])
    norm = 2.0 * float(net.w.detach().norm()) / 0.5 / net.w.numel() ** 0.5
    assert rows["linear"]["zero", 2.0] == pytest.approx(norm) and rows["linear"]["no filter", 2.0] == 0
    share = float(power_share(net.w.detach()[None], Band("high", 1.5)))
    assert rows["linear"]["σ = 1.5", 2.0] == pytest.approx(norm * share**0.5)
    assert rows["linear"]["σ = 1.5", 0.1] == pytest.approx(norm * share**0.5 / 20)
    others = found[found["gradient"] != "no filter"]
    assert (others["residual"] / others["linear"]).to_numpy() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda e, p: Band("middle", 1), "'middle'"),
        (lambda e, p: Band("low", -1), "cutoff"),
        (lambda e, p: attack(e, p, BANDS, []), "at least one radius"),
        (lambda e, p: attack(e, p, BANDS, [0.0]), "above 0"),
        (lambda e, p: attack(e, p, BANDS, [1.0], steps=0), "steps"),
        (lambda e, p: flip_radii(e, p, p.images[:, None], [-1.0]), "above 0"),
        (lambda e, p: flip_radii(e, p, p.images[:, None], [1.0], halvings=-1), "halvings"),
    ],
)
def test_bands_say_what_they_do_not_take(make, words):
    _, engine, pictures = of_line(1)
    with pytest.raises(ValueError, match=words):
        make(engine, pictures)


def test_low_is_forgrads_filter():
    maps = torch.rand(2, 3, 9, 7)
    assert torch.equal(Band("low", 2)(maps), low_pass(maps, 2))
    assert torch.equal(Band("low", 2, "gaussian")(maps), low_pass(maps, 2, "gaussian"))

"""Fused convolutions compute what the network computes, bit by bit, whatever its graph looks like."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradspec.engine import Engine
from gradspec.fusion import FusedConv2d, fused


class Net(nn.Module):
    """One block, whose way is given as a function of the module and its input, and a head."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.far = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.left, self.right = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=2)
        self.relu, self.leaky, self.six = nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.shift = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.way(self, x).mean((2, 3)))


def shortcut_changed_in_place(m, x):
    h = m.a(x)
    out = m.b(h)
    m.relu(h)  # after the convolution read it, before the sum does
    return functional.relu(out + h)


WAYS = {
    "chain": (lambda m, x: m.relu(m.b(m.leaky(m.a(x)))), 2),
    "six": (lambda m, x: m.six(9 * m.six(m.a(9 * x))), 1),
    "another activation of a sum": (lambda m, x: m.six(5 * x + m.a(x)), 0),
    "dilated and grouped": (lambda m, x: functional.relu(m.far(x)), 1),
    "method": (lambda m, x: m.a(x).relu(), 1),
    "residual": (lambda m, x: m.relu(m.b(m.relu(m.a(x))) + m.pool(x).expand(x.shape)), 2),
    "in place": (lambda m, x: m.relu(m.b(m.relu(m.a(x))).add_(m.relu(m.far(x)))), 3),
    "two convolutions": (lambda m, x: m.relu(m.left(x) + m.right(x)), 1),
    "broadcast": (lambda m, x: m.relu(m.a(x) + m.pool(m.far(x))), 1),
    "the same convolution twice": (lambda m, x: m.relu(m.a(m.relu(m.a(x)))), 2),
    "a weight is added": (lambda m, x: m.relu(m.a(x) + m.shift), 0),
    "sum with itself": (lambda m, x: (lambda h: m.relu(h + h))(m.a(x)), 0),
    "factor": (lambda m, x: m.relu(torch.add(m.a(x), x, alpha=3)), 0),
    "read twice": (lambda m, x: (lambda h: m.leaky(h) + h.sigmoid())(m.a(x)), 0),
    "sum read twice": (lambda m, x: (lambda h: m.leaky(h) + h.sigmoid())(m.a(x) + x.sin()), 0),
    "no activation": (lambda m, x: m.a(x) + m.b(x), 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(3, 4, 9, 14), (1, 4, 5, 5)])
def test_bit_by_bit(way, shape):
    torch.manual_seed(0)
    net, x = Net(WAYS[way][0]).eval().requires_grad_(False), torch.randn(shape)
    expected, given = net(x.clone()), x.clone()
    found = fused(net)
    assert (found is None) == (WAYS[way][1] == 0)
    if found is not None:
        assert sum(isinstance(module, FusedConv2d) for module in found.modules()) == WAYS[way][1]
        assert torch.allclose(found(given), expected, rtol=0, atol=1e-6)  # of means over up to 126 places
        assert torch.equal(given, x)
    assert torch.equal(net(x.clone()), expected)


def test_another_size_than_that_it_was_made_with():
    net = Net(WAYS["broadcast"][0]).eval().requires_grad_(False)
    found = fused(net)
    assert found is not None
    for shape in ((2, 4, 1, 1), (2, 4, 7, 12)):  # at one place nothing is broadcast
        x = torch.randn(shape)
        assert torch.allclose(found(x), net(x), rtol=0, atol=1e-6)


def test_what_is_not_fused():
    x = torch.randn(2, 4, 8, 8)
    assert fused(Net(lambda m, x: m.relu(m.a(x)) if x.mean() > 0 else x).eval()) is None  # cannot be traced
    assert fused(Net(WAYS["chain"][0]).double().eval()) is None
    hooked = Net(WAYS["chain"][0]).eval()
    hooked.a.register_forward_hook(lambda module, args, output: output + 1)
    assert fused(hooked) is None
    padded = Net(WAYS["method"][0]).eval().requires_grad_(False)
    padded.a = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
    assert fused(padded) is None and padded(x).shape == (2, 3)


def test_an_engine_measures_before_it_trusts():
    torch.manual_seed(0)
    x, labels = torch.randn(5, 4, 9, 9), torch.zeros(5, dtype=torch.int64)
    for way, form in ((WAYS["chain"][0], "activations fused"), (shortcut_changed_in_place, "channels-last")):
        net = Net(way).eval()
        engine = Engine(net)
        logits = engine.logits(next(engine.groups(x, labels)))
        assert torch.allclose(logits, net(x).detach(), rtol=0, atol=1e-6)
        assert engine.form.endswith(form), engine.form


def test_what_is_of_the_weights_alone_has_one_row():
    class Shifted(Net):
        def forward(self, x):
            return self.head(self.relu(self.b(x) * 1.0 + self.a(self.image)).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Shifted(None).eval(), torch.randn(3, 4, 9, 9)
    net.image = nn.Parameter(torch.randn(1, 4, 9, 9))
    engine = Engine(net)
    logits = engine.logits(next(engine.groups(x, torch.zeros(3, dtype=torch.int64))))
    assert torch.allclose(logits, net(x).detach(), rtol=0, atol=1e-6)
    assert "fused" not in engine.form


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "googlenet", "mobilenet_v2"])
def test_torchvision(name):
    import torchvision

    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=5, **settings).eval().requires_grad_(False)
    x = torch.randn(2, 3, 65, 48)
    for module in net.modules():  # so that folding has something to do
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    engine = Engine(net)
    pictures = next(engine.groups(x, torch.zeros(2, dtype=torch.int64)))
    found, logits = engine.logits(pictures), net(x)
    assert "activations fused" in engine.form
    assert (found - logits).abs().max() <= 1e-4 * logits.abs().max()  # BatchNorm folded: some roundings of each layer

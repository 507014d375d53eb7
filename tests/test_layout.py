"""Layouts: whatever a network does to the axes, `tap.maps` gives back the picture's map, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradspec.layout import Layout
from gradspec.taps import Tap, tapped


class Probe(nn.Module):
    """An operator that leaves values alone, so that the gradient on both sides is known."""

    def forward(self, x):
        return x * 1.0


class Chain(nn.Module):
    """Probes between rearrangements; each picture's output is the inner product with known weights."""

    def __init__(self, steps, weights) -> None:
        super().__init__()
        self.steps, self.probes, self.weights = steps, nn.ModuleList(Probe() for _ in range(len(steps) + 1)), weights

    def forward(self, x):
        x = self.probes[0](x)
        for probe, step in zip(self.probes[1:], self.steps, strict=True):
            x = probe(step(x))
        return (x * self.weights).sum((1, 2, 3))[:, None]


def windows(size):
    def partition(x):  # (N, H, W, C) -> (N windows, size², C), as Swin does
        n, h, w, c = x.shape
        x = x.view(n, h // size, size, w // size, size, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)

    return partition


def unwindow(size, h, w):
    def join(x):
        n = x.shape[0] // (h * w // size**2)
        return x.view(n, h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)

    return join


def with_tokens(before, behind):
    def add(x):
        extra = torch.zeros(1, before + behind, x.shape[2], dtype=x.dtype).expand(len(x), -1, -1)
        return torch.cat([x, extra] if behind else [extra, x], 1)

    return add


nhwc = lambda x: x.permute(0, 2, 3, 1)  # noqa: E731
nchw = lambda x: x.permute(0, 3, 1, 2)  # noqa: E731
tokens = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731


def grid(h, w):
    return lambda x: x.transpose(1, 2).unflatten(2, (h, w))


def heads(count):
    return lambda x: x.view(*x.shape[:2], count, -1).transpose(1, 2)


CHAINS = {
    "channels last": [nhwc, nchw],
    "tokens": [tokens, grid(6, 4)],
    "tokens by rows and columns of equal area": [tokens, lambda x: x.reshape(-1, 24, 4), grid(6, 4)],
    "class and register tokens": [tokens, with_tokens(3, 0), heads(2), lambda x: x.transpose(1, 2).flatten(2),
                                  lambda x: x[:, 3:], grid(6, 4)],
    "class token, then distillation token": [tokens, with_tokens(1, 0), with_tokens(1, 0), lambda x: x[:, 1:],
                                             lambda x: x[:, 1:], grid(6, 4)],
    "tokens behind": [tokens, with_tokens(0, 2), lambda x: x[:, :-2], grid(6, 4)],
    "windows": [nhwc, windows(2), heads(2), lambda x: x.transpose(1, 2).flatten(2), unwindow(2, 6, 4), nchw],
    "grid attention of MaxViT": [lambda x: x.view(-1, 4, 2, 3, 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(-1, 6, 4, 4),
                                 lambda x: x.view(-1, 3, 2, 2, 2, 4).permute(0, 5, 3, 1, 4, 2).reshape(-1, 4, 6, 4)],
    "split one way and then another": [lambda x: x.view(-1, 4, 2, 3, 4), lambda x: x.view(-1, 4, 3, 2, 4),
                                       lambda x: x.view(-1, 4, 6, 4)],
    "space to depth": [lambda x: x.view(-1, 4, 3, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 16, 3, 2),
                       lambda x: x.view(-1, 4, 2, 2, 3, 2).permute(0, 1, 4, 2, 5, 3).reshape(-1, 4, 6, 4)],
    "stacked and unbound": [lambda x: torch.stack([x, x], 1), lambda x: x.unbind(1)[0]],
    "rows and columns swapped": [lambda x: x.transpose(2, 3), lambda x: x.contiguous().mT],
    "squeezed": [lambda x: x[:, None, :, :, None], lambda x: x.squeeze(1).squeeze(3)],
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_maps_undo_every_rearrangement(name, batch):
    weights = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net, seen = Chain(CHAINS[name], weights), {}

    def receive(tap: Tap, gradient: torch.Tensor) -> None:
        if tap.call.operator == "Probe":
            seen[tap.call.name, tap.point] = tap.maps(gradient)

    with tapped(net, receive) as taps:
        taps.backward(net(torch.rand(batch, 4, 6, 4, dtype=torch.float64)).sum())
    assert len(seen) == 2 * len(net.probes)
    for key, maps in seen.items():
        if name == "stacked and unbound" and maps.shape[1] == 8:
            maps = maps.unflatten(1, (2, 4)).sum(1)  # the half that is dropped has no gradient
        assert torch.equal(maps, weights.expand(batch, -1, -1, -1)), key


def test_spatial_axes_survive_slicing_with_a_step_and_padding():
    class Net(nn.Module):
        def forward(self, x):
            x = nn.functional.pad(x, (0, 1, 0, 1))
            return torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1).mean((2, 3))

    seen = {}

    def receive(tap, gradient):
        if not tap.reason:
            seen[tap.call.name, tap.point] = tap.maps(gradient).shape

    with tapped(Net(), receive) as taps:
        taps.backward(taps._model(torch.rand(2, 3, 7, 9)).sum())
    assert seen[":constant_pad_nd", "output"] == (2, 3, 8, 10)
    assert seen[":cat", "output"] == (2, 6, 4, 5)
    assert (":slice", "input") in seen  # slicing with a step is an operator


def test_attention_matrices_and_vectors_are_no_maps():
    class Net(nn.Module):
        def forward(self, x):
            t = x.flatten(2).transpose(1, 2)
            a = (t @ t.transpose(1, 2)).softmax(-1)
            return (a @ t).mean(1)

    reasons, types = {}, {}
    with tapped(Net(), lambda tap, g: reasons.update({(tap.call.name, tap.point): tap.reason})) as taps:
        taps.backward(taps._model(torch.rand(2, 3, 4, 5)).sum())
    types = {c.name: c.type for c in taps.calls}
    assert types[":matmul"] == types[":softmax"] == types[":matmul#1"] == "attention"
    assert "attention matrix" in reasons[":softmax", "output"]
    assert reasons[":matmul#1", "output"] == ""
    assert "attention matrix" in taps.unseen[":softmax"]


def test_a_layout_that_cannot_be_followed_is_named_and_not_guessed():
    class Net(nn.Module):
        def forward(self, x):
            order = torch.arange(24).flip(0)
            return (x.flatten(2)[:, :, order].reshape(-1, 4, 8, 3) * 2).mean((2, 3))

    seen = []
    with tapped(Net(), lambda tap, g: seen.append((tap.call.name, tap.layout))) as taps:
        taps.backward(taps._model(torch.rand(2, 4, 6, 4)).sum())
    assert (":mul", None) in seen
    assert taps.unseen[":mul"] == "its layout cannot be told"


def test_maps_of_no_map_raise():
    layout = Layout.of_pictures((2, 3, 1, 1))
    assert layout.reason == "no spatial axes"
    assert (layout.channels, layout.height, layout.width) == (3, 1, 1)


def test_vit_by_hand():
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), class_token=True, reg_tokens=2, depth=2).eval()
    seen = {}
    with tapped(net, lambda tap, g: seen.update({(tap.call.name, tap.point): (g.clone(), tap)})) as taps:
        taps.backward(net(torch.rand(2, 3, 64, 96)).sum())
    gradient, tap = seen["blocks.0.attn.proj", "output"]
    by_hand = gradient[:, 3:].transpose(1, 2).reshape(2, 192, 4, 6)
    assert gradient.shape == (2, 27, 192)
    assert torch.equal(tap.maps(gradient), by_hand)
    gradient, tap = seen["blocks.0.attn:scaled_dot_product_attention", "output"]
    assert torch.equal(tap.maps(gradient), gradient[:, :, 3:].permute(0, 1, 3, 2).reshape(2, 192, 4, 6))


# ---- what must not be guessed ----------------------------------------------------------------


def told(net, x) -> dict:
    """Shape of the maps by (call, point); None where the layout cannot be told."""
    found = {}

    def receive(tap, gradient):
        found[tap.call.name, tap.point] = None if tap.layout is None else tap.reason or tuple(tap.maps(gradient).shape)

    with tapped(net, receive) as taps:
        taps.backward(net(x).real.sum())
    return found


class Do(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return (self.f(x) * 2).flatten(1).mean(1)


x_46 = torch.rand(2, 3, 4, 6)
PLACES_CHANGE = {
    "index": lambda x: x.flatten(2)[:, :, torch.arange(24).flip(0)],
    "index of pictures": lambda x: x[torch.tensor([1, 0])],
    "gather": lambda x: x.gather(2, torch.zeros(2, 3, 4, 6, dtype=torch.long)),
    "index_select": lambda x: x.index_select(3, torch.arange(6).flip(0)),
    "sort": lambda x: x.sort(-1).values,
    "flipped pictures": lambda x: x.flip(0),
    "pairs of tokens": lambda x: (x.flatten(2)[:, :, :, None] - x.flatten(2)[:, :, None]),
    "minor steps only": lambda x: x.view(2, 3, 2, 2, 6).mean(2, keepdim=True).expand(2, 3, 2, 2, 6),
    "attention over repeated windows": lambda x: nn.functional.scaled_dot_product_attention(
        x.view(2, 3, 4, 6)[:, :, :2].permute(0, 2, 3, 1).flatten(1, 2).repeat_interleave(2, 0),
        *[x.view(2, 3, 2, 2, 6).permute(0, 2, 3, 4, 1).reshape(4, 12, 3)] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES_CHANGE)
def test_values_put_elsewhere_are_not_maps(name):
    assert told(Do(PLACES_CHANGE[name]), x_46)[":mul", "input"] is None


def test_sum_of_a_map_and_its_transpose_is_no_map():
    found = told(Do(lambda x: x.transpose(2, 3) + x), torch.rand(2, 3, 5, 5))
    assert found[":add", "output"] is None


def test_fourier_layers_are_no_maps():
    found = told(Do(lambda x: torch.fft.irfft2(torch.fft.rfft2(x * 1.5))), torch.rand(2, 3, 8, 8))
    assert found[":mul", "output"] == (2, 3, 8, 8)
    assert found[":mul#1", "input"] is None and None in [v for k, v in found.items() if "fft" in k[0]]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_beside_its_mirror_image_is_not_told(batch):
    found = told(Do(lambda x: torch.cat([x, x.flip(3)], 0)), torch.rand(batch, 3, 4, 6))
    assert found[":mul", "input"] is None


def test_python_functions_go_by_their_shape_not_by_their_name():
    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    assert told(Do(Split.apply), x_46)[":split", "output"] == (2, 3, 4, 6)


def test_functional_names_are_the_users():
    found = told(
        Do(lambda x: nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), size=(4, 6), mode="bilinear")), x_46
    )
    assert {(":avg_pool2d", "input"), (":upsample_bilinear2d", "output")} <= set(found)


@pytest.mark.parametrize("shape", [(1, 3, 4, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("view", [lambda x: x[:, :2], lambda x: x.permute(0, 2, 3, 1), lambda x: x.flatten(2)])
def test_in_place_relu_on_a_view_is_seen(shape, view):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.conv(x)
            self.relu(view(x))
            return x.flatten(2).mean(2)

    net = Net()
    with tapped(net, lambda *_: None) as taps:
        taps.backward(net(torch.rand(shape)).sum())
    assert ("relu", "activation") in [(c.name, c.type) for c in taps.calls] or "relu" in taps.unseen


def test_hiera_by_its_own_unrolling():
    timm = pytest.importorskip("timm")
    net = timm.create_model("hiera_tiny_224").eval()
    seen = {}

    def receive(tap, gradient):
        if not tap.reason:
            seen[tap.call.name, tap.point] = (gradient.clone(), tap.maps(gradient))

    with tapped(net, receive, layers=["blocks.*.mlp.fc2"]) as taps:
        taps.backward(net(torch.rand(2, 3, 224, 224))[:, 0].sum())
    assert not [r for r in taps.unseen.values() if "told" in r]
    for block in (0, 1, 5, 11):
        gradient, maps = seen[f"blocks.{block}.mlp.fc2", "output"]
        by_hand = net.reroll(gradient, block)  # (N, H, W, C)
        assert torch.equal(maps, by_hand.permute(0, 3, 1, 2)), block

"""Taps against networks cut by hand, on a zoo of awkward ones; and the caller's model left as it was."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradspec.taps import Tap, logits_of, tapped

DOUBLE = {"atol": 1e-13, "rtol": 1e-11}  # float64: a few roundings of the same sums in another order
SINGLE = {"atol": 1e-6, "rtol": 1e-4}


def seeded(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3
    return net.eval()


def pictures(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def gradients(net: nn.Module, x: torch.Tensor, **options) -> tuple[dict, object]:
    """Every gradient by (call, point), of the sum of squares of the output."""
    found: dict[tuple[str, str], torch.Tensor] = {}

    def receive(tap: Tap, gradient: torch.Tensor) -> None:
        key = (tap.call.name, tap.point) if tap.part == 0 else (tap.call.name, f"{tap.point}{tap.part}")
        assert key not in found, f"{key} came twice"
        found[key] = gradient.clone()

    with tapped(net, receive, **options) as taps:
        taps.backward(net(x).square().sum())
    return found, taps


def cut(parts, x, at: int) -> torch.Tensor:
    """The gradient at the output of part `at - 1`, by running the rest of the network alone."""
    h = x
    for part in parts[:at]:
        h = part(h.clone())
    h = h.detach().clone().requires_grad_()
    out = h.clone()
    for part in parts[at:]:
        out = part(out)
    return torch.autograd.grad(out.square().sum(), h)[0]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_sequential_equals_the_network_cut_by_hand(inplace, dtype, close):
    parts = [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(5, 4, 3, stride=2, bias=False),
        nn.LeakyReLU(0.1, inplace=inplace),
        nn.AvgPool2d(2, ceil_mode=True),
    ]
    net = seeded(nn.Sequential(*parts).to(dtype))
    x = pictures(2, 3, 13, 18, dtype=dtype)
    found, _ = gradients(net, x)
    for i in range(len(parts)):
        torch.testing.assert_close(found[str(i), "output"], cut(parts, x, i + 1), **close)
        torch.testing.assert_close(found[str(i), "input"], cut(parts, x, i), **close)
    torch.testing.assert_close(found["input", "input"], cut(parts, x, 0), **close)
    assert len(found) == 2 * len(parts) + 1


class Residual(nn.Module):
    """One ReLU used three times, an in-place sum, a functional pool."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = self.relu(x)
        y = self.relu(self.conv1(x))
        y = self.conv2(y)
        y += x
        return F.max_pool2d(self.relu(y), 2)


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_block_by_hand(inplace):
    net, x = seeded(Residual(inplace).double()), pictures(2, 3, 7, 9)
    found, taps = gradients(net, x)
    x0 = x.clone().relu()
    y1 = net.conv1(x0)
    y2 = net.conv2(y1.relu())
    y3 = y2 + x0
    out = F.max_pool2d(y3.relu(), 2)

    def vjp(f, at, g):  # through one operator alone
        at = at.detach().requires_grad_()
        return torch.autograd.grad(f(at), at, g)[0]

    g_pool = vjp(lambda t: F.max_pool2d(t, 2), y3.relu(), 2 * out)
    g_sum = vjp(torch.relu, y3, g_pool)
    g_relu1 = vjp(net.conv2, y1.relu(), g_sum)
    g_conv1 = vjp(torch.relu, y1, g_relu1)
    through_conv1 = vjp(net.conv1, x0, g_conv1)
    expected = {
        (":max_pool2d", "input"): g_pool,
        ("relu#2", "output"): g_pool,
        ("relu#2", "input"): g_sum,
        (":add", "output"): g_sum,
        (":add", "input"): g_sum,
        (":add", "input1"): g_sum,
        ("conv2", "output"): g_sum,
        ("conv2", "input"): g_relu1,
        ("relu#1", "output"): g_relu1,
        ("relu#1", "input"): g_conv1,
        ("conv1", "output"): g_conv1,
        ("conv1", "input"): through_conv1,  # not the sum with the shortcut
        ("relu", "output"): through_conv1 + g_sum,
        ("relu", "input"): vjp(torch.relu, x, through_conv1 + g_sum),
    }
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, **DOUBLE, msg=lambda m, key=key: f"{key}: {m}")
    names = [call.name for call in taps.calls]
    assert names == ["input", "relu", "conv1", "relu#1", "conv2", ":add", "relu#2", ":max_pool2d"]


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class SharedSwish(nn.Module):
    """Swish of a tensor that the network itself reads too."""

    def __init__(self):
        super().__init__()
        self.act = Swish()

    def forward(self, x):
        y = x * 2
        return self.act(y) + y


def test_leaf_module_that_reads_its_input_twice_is_one_call_with_the_sum():
    net, x = nn.Sequential(nn.Identity(), Swish()), pictures(1, 2, 5, 4)
    found, taps = gradients(net, x)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad((leaf * torch.sigmoid(leaf)).square().sum(), leaf)[0]
    torch.testing.assert_close(found["1", "input"], expected, **DOUBLE)
    assert [c.type for c in taps.calls] == ["input", "activation"]


def test_leaf_that_reads_a_shared_tensor_twice_gets_its_own_share_only():
    x = pictures(1, 2, 5, 4)
    found, _ = gradients(SharedSwish(), x)
    y = (2 * x).requires_grad_()
    out = y * torch.sigmoid(y)
    expected = torch.autograd.grad(out, y, 2 * (out + y).detach())[0]
    torch.testing.assert_close(found["act", "input"], expected, **DOUBLE)


def test_concatenation_and_split():
    class Net(nn.Module):
        def forward(self, x):
            a, b = x.split([1, 2], dim=1)
            return torch.cat([b * 2, a * 3], dim=1)

    x = pictures(2, 3, 4, 6)
    found, _ = gradients(Net(), x)
    g = 2 * torch.cat([x[:, 1:] * 2, x[:, :1] * 3], 1)
    torch.testing.assert_close(found[":cat", "output"], g, **DOUBLE)
    torch.testing.assert_close(found[":cat", "input"], g[:, :2], **DOUBLE)
    torch.testing.assert_close(found[":cat", "input1"], g[:, 2:], **DOUBLE)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_frozen_parameters_and_inputs_without_gradient(frozen, needs_grad):
    net, x = seeded(Residual().double()), pictures(1, 3, 6, 6)
    expected, _ = gradients(net, x)
    net.requires_grad_(not frozen)
    given = x.clone().requires_grad_(needs_grad)
    found, _ = gradients(net, given)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **DOUBLE)
    assert all(p.grad is None for p in net.parameters())
    assert given.grad is None and given.requires_grad is needs_grad
    assert torch.equal(given, x)  # the in-place ReLU worked on a copy


def test_a_users_own_backward_streams_too():
    net, x = seeded(Residual().double()), pictures(1, 3, 6, 6).requires_grad_()
    expected, _ = gradients(net, x.detach())
    found = {}
    with tapped(net, lambda tap, g: found.update({(tap.call.name, tap.point): g.clone()}), layers=["conv1"]):
        net(x).square().sum().backward()
    torch.testing.assert_close(found["conv1", "input"], expected["conv1", "input"], **DOUBLE)
    torch.testing.assert_close(x.grad, expected["input", "input"], **DOUBLE)
    assert net.conv1.weight.grad is not None


class Blocks(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if self.reentrant is None else checkpoint(self.second, x, use_reentrant=self.reentrant)


def test_gradient_checkpointing():
    x = pictures(2, 2, 6, 8)
    expected, _ = gradients(seeded(Blocks().double()), x)
    found, taps = gradients(seeded(Blocks(reentrant=False).double()), x)
    assert found.keys() == expected.keys() and not taps.unseen
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **DOUBLE)


def test_reentrant_checkpointing_is_refused_in_a_sentence():
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients(seeded(Blocks(reentrant=True).double()), pictures(1, 2, 6, 6))


class Unseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux, self.spare = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.still, self.bias, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(1, 1), nn.Linear(2, 3)

    def forward(self, x):
        self.aux(x)
        with torch.no_grad():
            offset = self.still(x)
        shift = self.bias(torch.ones(1, 1, dtype=x.dtype))
        return self.fc((self.main(x) + offset + shift[0, 0]).mean((2, 3)))


def test_what_is_not_seen_is_named_with_a_reason():
    _, taps = gradients(seeded(Unseen().double()), pictures(1, 1, 4, 4))
    assert set(taps.unseen) == {"spare", "aux", "still", "bias", "fc"}
    assert taps.unseen["spare"] == "never called"
    assert "does not lead" in taps.unseen["aux"]
    assert "without gradient" in taps.unseen["still"]
    assert "does not lead" in taps.unseen["bias"]
    assert "no spatial axes" in taps.unseen["fc"]


def test_undefined_gradients_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.a(x), self.b(x)

    net = seeded(Net().double())
    with tapped(net, lambda *_: None) as taps:
        taps.backward(net(pictures(1, 1, 4, 4))[0].sum())  # nothing reaches b
    assert list(taps.unseen) == ["b"] and "no gradient arrived" in taps.unseen["b"]


@pytest.mark.parametrize(("mode", "name"), [(torch.inference_mode, "inference_mode"), (torch.no_grad, "no_grad")])
def test_inside_inference_mode_a_clear_error(mode, name):
    net = Residual()
    with pytest.raises(RuntimeError, match=name), mode(), tapped(net, lambda *_: None):
        net(torch.rand(1, 3, 6, 6))
    with torch.inference_mode():
        made_inside = Residual()
    with pytest.raises(RuntimeError, match="load the model outside"), tapped(made_inside, lambda *_: None):
        made_inside(torch.rand(1, 3, 6, 6))


def state_of(net: nn.Module) -> list:
    """Everything of a model that a pass could change: hooks, flags, gradients, values and in-place versions."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
             "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
             "_forward_pre_hooks_with_kwargs", "_state_dict_hooks")  # fmt: skip
    state: list = []
    for name, module in net.named_modules():
        state.append((name, module.training, sorted(vars(module)), type(module)))
        state.append([dict(getattr(module, h)) for h in hooks])
    for tensor in (*net.parameters(), *net.buffers()):
        grad = None if tensor.grad is None else tensor.grad.tolist()
        state.append((tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.detach().clone().tolist(), grad))
        state.append(tensor._backward_hooks)
    return state


@pytest.mark.parametrize("fails", ["nowhere", "receive", "forward", "block"])
def test_the_callers_model_is_as_before(fails):
    net = seeded(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), Residual(), nn.Dropout(0.5)).double())
    net[2].train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[1].weight.requires_grad_(False)
    own = net[2].register_forward_hook(lambda *_: None)
    before = state_of(net)

    def receive(tap, gradient):
        if fails == "receive" and tap.call.name == "2.conv1":
            raise ZeroDivisionError

    x = pictures(2, 5 if fails == "forward" else 3, 8, 8)
    try:
        with tapped(net, receive) as taps:
            out = net(x)
            if fails == "block":
                raise ZeroDivisionError
            taps.backward(out.sum())
    except (ZeroDivisionError, RuntimeError) as error:
        assert fails != "nowhere", error
    else:
        assert fails == "nowhere"
    assert state_of(net) == before
    own.remove()
    net[0].weight.grad = None


def test_after_an_exception_in_the_forward_pass_the_block_goes_on():
    net = seeded(Residual().double())
    found = []
    with tapped(net, lambda tap, _: found.append(tap.call.name)) as taps:
        with pytest.raises(RuntimeError):
            net(pictures(1, 2, 6, 6))
        taps.backward(net(pictures(1, 3, 6, 6)).sum())
    assert "conv1" in found


def test_nothing_keeps_the_graph_alive():
    net, kept = seeded(Residual(inplace=False).double()), []
    net.conv1.register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    gc.collect()
    gc.disable()  # reference counting alone must free it, or memory grows from batch to batch
    try:
        with tapped(net, lambda *_: None) as taps:
            for _ in range(2):
                taps.backward(net(pictures(1, 3, 6, 6)).sum())
            net(pictures(1, 3, 6, 6))  # a forward pass that is never differentiated
        assert [ref() is None for ref in kept] == [True, True, True]
    finally:
        gc.enable()


def test_models_that_cannot_be_tapped_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    compiled_inside = nn.Sequential(nn.Conv2d(1, 1, 1))
    compiled_inside[0].compile()
    refused = [torch.compile(net), nn.Sequential(torch.compile(net)), compiled_inside, nn.DataParallel(net)]
    for model in refused:
        with pytest.raises(TypeError, match=r"Cannot tap .*pass"), tapped(model, lambda *_: None):
            pass


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused():
    with pytest.raises(TypeError, match="TorchScript"), tapped(torch.jit.script(nn.ReLU()), lambda *_: None):
        pass


def test_selection_by_name_pattern_type_and_predicate():
    net, x = seeded(nn.Sequential(Residual(), Residual()).double()), pictures(1, 3, 12, 12)
    names = lambda layers: [c.name for c in gradients(net, x, layers=layers)[1].calls]  # noqa: E731
    assert names(["0.conv1"]) == ["0.conv1"]
    assert names(["1.relu"]) == ["1.relu", "1.relu#1", "1.relu#2"]
    assert names(["1.relu#1", "input"]) == ["input", "1.relu#1"]
    assert names(["*.conv?"]) == ["0.conv1", "0.conv2", "1.conv1", "1.conv2"]
    assert names(["max pooling"]) == ["0:max_pool2d", "1:max_pool2d"]
    assert names(lambda call: call.operator == "add") == ["0:add", "1:add"]
    with pytest.raises(ValueError, match=r"'0.convl'.*0\.conv1"):
        names(["0.convl"])


def test_a_container_by_its_name_is_one_operator():
    net, x = seeded(nn.Sequential(Residual(), Residual()).double()), pictures(2, 3, 12, 12)
    whole, _ = gradients(net, x, layers=["1"])
    single, _ = gradients(net, x)
    assert set(whole) == {("1", "output"), ("1", "input")}
    torch.testing.assert_close(whole["1", "input"], single["0:max_pool2d", "output"], **DOUBLE)
    torch.testing.assert_close(whole["1", "output"], single["1:max_pool2d", "output"], **DOUBLE)


def test_backward_refuses_what_it_cannot_do():
    net = Residual()
    with tapped(net, lambda *_: None) as taps:
        with pytest.raises(RuntimeError, match="call the model"):
            taps.backward(torch.zeros(1))
        net(torch.rand(1, 3, 6, 6))
        with pytest.raises(RuntimeError, match="do not depend on the pictures"):
            taps.backward(torch.zeros(1))
        with pytest.raises(RuntimeError, match="do not depend on the pictures"):
            taps.backward(net.conv1.weight.sum())
    with pytest.raises(RuntimeError, match="floating-point"), tapped(nn.Embedding(3, 2), lambda *_: None) as taps:
        taps._model(torch.zeros(1, dtype=torch.long))


def test_logits_of_every_kind_of_output():
    z = torch.rand(2, 5)

    class Output:
        logits = z

    for output in (z, (z, None), [z], {"logits": z, "loss": torch.zeros(())}, Output()):
        assert logits_of(output) is z
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\)"):
        logits_of(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="NoneType"):
        logits_of(None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    net, x = (
        seeded(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2))),
        pictures(1, 1, 8, 8, dtype=torch.float32),
    )
    expected, _ = gradients(net, x)
    found, _ = gradients(net.to(dtype), x.to(dtype))
    for key in expected:
        assert found[key].dtype == dtype
        torch.testing.assert_close(found[key].float(), expected[key], atol=0.3, rtol=0.1)  # 8 bits of mantissa


# ---- passes that do not run straight ---------------------------------------------------------


def test_an_interrupted_pass_leaves_nothing_in_the_sums():
    x, net, found = pictures(1, 2, 5, 4), SharedSwish(), {}
    expected, _ = gradients(net, x)
    with tapped(net, lambda tap, g: found.update({(tap.call.name, tap.point): g.clone()})) as taps:
        out = net(x)
        loss = out.square().sum()
        half = torch.autograd.grad(loss * 3, out, retain_graph=True)[0]
        stop = out.grad_fn.next_functions[0][0].next_functions[1][0].register_prehook(lambda g: 1 / 0)  # the sigmoid
        with pytest.raises(ZeroDivisionError):
            torch.autograd.grad(out, taps.inputs, half, retain_graph=True)
        stop.remove()
        taps.backward(loss)
    torch.testing.assert_close(found["act", "input"], expected["act", "input"], **DOUBLE)


def test_a_network_that_calls_itself():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x, deep=True):
            return self(x, False) + self(x.flip(3), False) if deep else self.conv(x)

    _, taps = gradients(seeded(Twice().double()), pictures(1, 3, 6, 7))
    assert [c.name for c in taps.calls] == ["input", "conv", "conv#1", ":add"]


def test_a_checkpoint_around_the_whole_network():
    net, x, found = seeded(Residual(inplace=False).double()), pictures(1, 3, 6, 6), {}
    expected, _ = gradients(net, x)
    with tapped(net, lambda tap, g: found.update({(tap.call.name, tap.point): g.clone()})) as taps:
        taps.backward(checkpoint(net, x, use_reentrant=False).square().sum())
    assert not taps.unseen
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], **DOUBLE)
    assert ("input", "input") in found


def test_scores_that_reach_only_one_of_two_outputs():
    class Pair(nn.Module):
        def forward(self, x):
            return x * 0.5, x + 1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            y = x * 2
            a, b = self.pair(y)
            return a, b, y

    net, found = Net(), {}
    with tapped(net, lambda tap, g: found.update({(tap.call.name, tap.point, tap.part): g.clone()})) as taps:
        taps.backward(net(pictures(1, 2, 4, 4))[0].sum())
    torch.testing.assert_close(found["pair", "input", 0], torch.full((1, 2, 4, 4), 0.5, dtype=torch.float64))
    assert not taps.unseen


def test_pictures_made_in_inference_mode():
    with torch.inference_mode():
        x = pictures(1, 3, 6, 6)
    found, _ = gradients(seeded(Residual().double()), x)
    assert ("input", "input") in found


def test_a_selection_that_selects_nothing_is_refused():
    class Iterated(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.ReLU(), nn.ReLU())

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    for layers in (["blocks"], [], lambda call: False):
        with pytest.raises(ValueError, match="No operator call"):
            gradients(Iterated(), pictures(1, 2, 4, 4), layers=layers)
    found, _ = gradients(Iterated(), pictures(1, 2, 4, 4), layers="blocks.1")  # one name
    assert {name for name, _ in found} == {"blocks.1"}


def test_parametrised_layers_keep_their_names():
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.ReLU()).double()
    _, taps = gradients(net, pictures(1, 2, 6, 6))
    assert [(c.name, c.operator) for c in taps.calls][1] == ("0", "ParametrizedConv2d")
    assert not taps.unseen

"""The engine: what it returns is what a plain loop over the caller's network returns, however it is batched."""

import copy
import warnings

import pytest
import torch
from torch import nn

import gradspec as gs
from gradspec import engine as engines
from gradspec.engine import Engine
from gradspec.inference import prepared
from gradspec.randomness import generator, integer
from gradspec.targets import label_logit, label_probability


def convolutional(classes=5, channels=3, seed=0):
    """Convolutions and BatchNorms with statistics, as after training."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, classes),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    return net.eval()


def case(n=5, height=13, width=10, channels=3, classes=5, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.rand(n, channels, height, width, dtype=dtype), torch.randint(classes, (n,))


def fading(pictures, variants):
    return lambda i, j: pictures.images[i] * (1 - j / variants)[:, None, None, None].to(pictures.images)


def faded_scores(engine, images, labels, variants=4, score=label_probability, ids=None):
    parts = [engine.scores(p, variants, fading(p, variants), score) for p in engine.groups(images, labels, ids)]
    return torch.cat(parts)


def gradients_of(engine, images, labels, variants=2):
    found = torch.zeros(len(images), variants, *images.shape[1:], dtype=torch.float64)
    start = 0
    for pictures in engine.groups(images, labels):
        for drawn in engine.gradients(pictures, variants, fading(pictures, variants), label_logit):
            found[start + drawn.pictures, drawn.variants] = drawn.gradients.double()
        start += len(pictures.images)
    return found


def slow_scores(net, images, labels, variants=4, score=label_probability):
    with torch.no_grad():
        return torch.stack([score(net(images * (1 - j / variants)), labels) for j in range(variants)], 1)


def slow_gradients(net, images, labels, variants=2):
    rows = []
    for j in range(variants):
        x = (images * (1 - j / variants)).requires_grad_()
        rows.append(torch.autograd.grad(label_logit(net(x), labels).sum(), x)[0])
    return torch.stack(rows, 1).double()


# ---- scores and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 13, 10), (1, 1, 17, 31), (70, 3, 9, 8)])
def test_scores_are_those_of_a_plain_loop(shape):
    n, channels, height, width = shape
    net, (images, labels) = convolutional(channels=channels), case(n, height, width, channels)
    engine = Engine(net)
    torch.testing.assert_close(faded_scores(engine, images, labels), slow_scores(net, images, labels))
    assert (engine.forwards, engine.backwards) == (4 * n, 0)
    assert engine.form.startswith("channels-last, BatchNorm folded")


@pytest.mark.parametrize("shape", [(5, 3, 13, 10), (1, 1, 17, 31), (70, 3, 9, 8)])
def test_gradients_are_those_of_a_plain_loop(shape):
    n, channels, height, width = shape
    net, (images, labels) = convolutional(channels=channels).double(), case(n, height, width, channels)
    engine, images = Engine(net), images.double()
    torch.testing.assert_close(gradients_of(engine, images, labels), slow_gradients(net, images, labels))
    assert (engine.forwards, engine.backwards) == (2 * n, 2 * n)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_the_batch_size_changes_nothing_but_the_batches(batch_size):
    net, (images, labels) = convolutional().double(), case(dtype=torch.float64)
    sizes = []
    net.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    found = faded_scores(Engine(net, batch_size=batch_size, as_loaded=True), images, labels)
    torch.testing.assert_close(found, slow_scores(net, images, labels), rtol=1e-12, atol=0)
    assert max(sizes[:-4]) == min(batch_size, 20)  # the last four are the slow loop's


def test_jobs_of_several_pictures_share_a_batch_in_the_order_of_the_pictures():
    seen = []
    engine = Engine(convolutional(), batch_size=3)
    for pictures in engine.groups(*case(2)):

        def make(i, j, pictures=pictures):
            seen.append(list(zip(i.tolist(), j.tolist(), strict=True)))
            return pictures.images[i]

        engine.scores(pictures, 4, make, label_logit)
    assert seen == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (1, 0), (1, 1)], [(1, 2), (1, 3)]]


def test_the_batch_size_goes_by_the_size_of_the_pictures():
    sizes = []
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    engine = Engine(net, as_loaded=True)
    for side, size in [(224, 16), (448, 4), (1000, 1), (8, 256)]:
        for pictures in engine.groups(torch.rand(2, 2, side, side), torch.zeros(2, dtype=torch.long)):
            sizes.clear()
            engine.scores(pictures, 130, lambda i, j, p=pictures: p.images[i], label_logit)
        assert max(sizes) == size


# ---- memory --------------------------------------------------------------------------------------


class _Small(nn.Module):
    """A network that runs out of memory with more than `room` pictures."""

    def __init__(self, room, error):
        super().__init__()
        self.net, self.room, self.error, self.sizes = convolutional(), room, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error
        return self.net(x)


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_FULL])
def test_a_batch_that_does_not_fit_is_done_as_two_and_the_size_is_kept(error):
    net, (images, labels) = _Small(3, error), case()
    engine = Engine(net, as_loaded=True)
    found = faded_scores(engine, images, labels)
    torch.testing.assert_close(found, slow_scores(net.net, images, labels))
    assert engine.forwards == 20
    net.sizes.clear()
    faded_scores(engine, images, labels)
    assert max(net.sizes) <= 3
    found = gradients_of(Engine(net, as_loaded=True), images, labels)
    torch.testing.assert_close(found, slow_gradients(net.net, images, labels))


def test_one_picture_that_does_not_fit_is_said():
    class Full(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x.mean((2, 3))

    engine = Engine(Full(), as_loaded=True)
    with pytest.raises(MemoryError, match=r"a single picture of 13 x 10: make it smaller"):
        faded_scores(engine, *case(classes=3))


def test_other_errors_of_the_network_are_not_taken_for_memory():
    engine = Engine(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(ValueError, match=r"fails on pictures \(3, 4, 4\)"):
        faded_scores(engine, torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))


# ---- the private copy ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batchnorm_is_folded_into_its_convolution(dtype):
    net, (images, _) = convolutional().to(dtype), case(dtype=dtype)
    found, logits = prepared(net, images[:1])
    assert found.folded == {"0", "4"} and not any(isinstance(m, nn.BatchNorm2d) for m in found.net.modules())
    torch.testing.assert_close(found.net(images), net(images))
    torch.testing.assert_close(logits, net(images[:1]))


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.norm, self.other):
            norm.running_mean.uniform_()
            norm.weight.data.uniform_(0.5, 2)

    def forward(self, x):
        return self.maps(x).square().mean((2, 3))


class _ReadTwice(_Net):
    def maps(self, x):
        y = self.conv(x)
        return self.norm(y) + y.relu()


class _CalledTwice(_Net):
    def maps(self, x):
        return self.norm(self.conv(self.conv(x)))


class _TwoNorms(_Net):
    def maps(self, x):
        y = self.conv(x)
        return self.norm(y) * self.other(y)


class _NotNext(_Net):
    def maps(self, x):
        return self.norm(self.conv(x).relu())


class _InPlaceBetween(_Net):
    def maps(self, x):
        return self.norm(self.conv(x).mul_(2))


class _BatchStatistics(_Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def maps(self, x):
        return self.norm(self.conv(x))


class _Tied(_Net):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.conv.weight

    def maps(self, x):
        return self.norm(self.conv(x)) + self.second(x)


@pytest.mark.parametrize(
    "kind", [_ReadTwice, _CalledTwice, _TwoNorms, _NotNext, _InPlaceBetween, _BatchStatistics, _Tied]
)
def test_a_batchnorm_that_is_no_part_of_its_convolution_stays(kind):
    net, (images, _) = kind().eval(), case()
    found, _ = prepared(net, images[:1])
    assert found.form == "channels-last" and found.folded == frozenset() and found.note == ""
    torch.testing.assert_close(found.net(images), net(images))


class _Rectified(_Net):
    """Rectifiers of which the first alone may overwrite what it reads."""

    def __init__(self):
        super().__init__()
        self.free, self.read_again, self.kept, self.first = nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6()
        self.twice = nn.ReLU()

    def maps(self, x):
        a, b = self.conv(self.first(x)), self.conv(x)
        y = self.free(self.norm(a)) + self.read_again(b) * b
        return self.twice(self.twice(self.kept(y.sigmoid()) - self.other(y)) + y)


def test_rectifiers_overwrite_what_nothing_else_needs():
    net, (images, labels) = _Rectified().double().eval(), case(classes=3, dtype=torch.float64)
    found, _ = prepared(net, images[:1])
    rectifiers = {name: module.inplace for name, module in found.net.named_modules() if hasattr(module, "inplace")}
    assert found.form == "channels-last"
    assert rectifiers == {"free": True, "read_again": False, "kept": False, "first": False, "twice": False}
    torch.testing.assert_close(found.net(images), net(images))
    torch.testing.assert_close(gradients_of(Engine(net), images, labels), slow_gradients(net, images, labels))


def test_a_network_that_reads_its_batchnorm_itself_is_not_folded():
    class Reads(_Net):
        def maps(self, x):
            return self.norm(self.conv(x)) * self.norm.weight.sum()

    found, _ = prepared(Reads().eval(), case()[0][:1])
    assert found.form == "channels-last" and "has no attribute 'weight'" in found.note


def test_a_network_that_uses_the_convolutions_weights_itself_is_not_folded():
    class Reads(_Net):
        def maps(self, x):
            return self.norm(self.conv(x)) * self.conv.weight.sum()

    found, _ = prepared(Reads().eval(), case()[0][:1])
    assert found.form == "channels-last" and found.note == "a copy computes something else"


def test_a_hooked_module_is_not_folded_and_its_hook_acts_in_the_copy():
    net, (images, _) = convolutional(), case()
    net[0].register_forward_hook(lambda module, args, output: 2 * output)
    found, _ = prepared(net, images[:1])
    assert found.folded == {"4"}
    torch.testing.assert_close(found.net(images), net(images))


def test_a_network_that_cannot_be_copied_runs_as_loaded():
    class Locked(_Net):
        def __init__(self):
            super().__init__()
            import threading

            self.lock = threading.Lock()

        def maps(self, x):
            return self.conv(x)

    net, (images, labels) = Locked().train(), case(classes=3)
    engine = Engine(net)
    torch.testing.assert_close(faded_scores(engine, images, labels), slow_scores(net.eval(), images, labels))
    assert engine.form == "as loaded" and engine.net is net


def test_timms_batchnorm_with_activation_is_folded():
    import timm

    net = timm.create_model("efficientnet_lite0", num_classes=5).eval()
    images = case(2, 64, 64)[0]
    found, _ = prepared(net, images[:1])
    assert len(found.folded) > 30
    with torch.no_grad():
        torch.testing.assert_close(found.net(images), net(images), rtol=1e-3, atol=1e-3 * net(images).abs().max())


def test_the_callers_network_is_as_before():
    net, (images, labels) = convolutional().train(), case()
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    for engine in (Engine(net), Engine(net, as_loaded=True)):
        faded_scores(engine, images, labels)
        gradients_of(engine, images, labels)
        with pytest.raises(ZeroDivisionError):
            faded_scores(engine, images, labels, score=lambda z, y: 1 / 0)
    assert [m.training for m in net.modules()] == flags
    assert all(p.requires_grad for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert bool((net[0].weight.grad == 1).all()) and net[4].weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_network_in_train_mode_is_used_as_in_eval_mode():
    net, (images, labels) = convolutional(), case()
    expected = faded_scores(Engine(net), images, labels)
    assert torch.equal(faded_scores(Engine(net.train()), images, labels), expected)
    as_loaded = faded_scores(Engine(net, as_loaded=True), images, labels)
    assert torch.equal(as_loaded, slow_scores(net.eval(), images, labels))


def test_new_weights_are_noticed():
    net, (images, labels) = convolutional(), case()
    engine = Engine(net)
    faded_scores(engine, images, labels)
    assert engine.fact("one", lambda: 1) == engine.fact("one", lambda: 2) == 1
    net.load_state_dict(convolutional(seed=3).state_dict())
    torch.testing.assert_close(faded_scores(engine, images, labels), slow_scores(net, images, labels))
    assert engine.fact("one", lambda: 2) == 2


def _doubled(net):
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(net.parameters()), net.parameters())


def _other_activation(net):
    net[2] = nn.GELU()


@pytest.mark.parametrize(
    "change",
    [
        _other_activation,
        lambda net: setattr(net[0].weight, "data", net[0].weight.data * 2),
        _doubled,
        lambda net: setattr(net[0], "stride", (1, 1)),
        lambda net: setattr(net[1], "eps", 1.0),
        lambda net: net[0].register_forward_hook(lambda module, args, output: 2 * output),
        lambda net: net.double(),
    ],
)
def test_a_changed_network_is_noticed(change):
    net, (images, labels) = convolutional(), case()
    engine = Engine(net)
    before = gradients_of(engine, images, labels)
    with torch.no_grad():
        change(net)
    found = gradients_of(engine, images, labels)
    assert torch.equal(found, gradients_of(Engine(net), images, labels)) and not torch.equal(found, before)


def test_a_network_that_counts_its_calls_is_prepared_once():
    class Counts(_Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.tensor(0))

        def maps(self, x):
            self.calls += 1
            return self.conv(x)

    net, (images, labels) = Counts().eval(), case(classes=3)
    engine = Engine(net)
    faded_scores(engine, images, labels)
    calls = int(net.calls)
    faded_scores(engine, images, labels)
    assert int(net.calls) == calls


def test_a_network_loaded_in_inference_mode_works():
    with torch.inference_mode():
        net = convolutional()
    images, labels = case()
    torch.testing.assert_close(faded_scores(Engine(net), images, labels), slow_scores(convolutional(), images, labels))


def test_large_pictures_are_held_fewer_at_a_time():
    engine = Engine(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    sizes = [len(part.images) for part in engine.groups(torch.rand(9, 3, 960, 960), torch.zeros(9, dtype=torch.long))]
    assert sizes == [3, 3, 3]  # 64 · (224 / 960)² = 3.5


def test_the_callers_modes_do_not_matter():
    net, (images, labels) = convolutional(), case()
    engine = Engine(net)
    scores, gradients = faded_scores(engine, images, labels), gradients_of(engine, images, labels)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            inputs = images.clone()  # in inference mode, an inference tensor
            assert torch.equal(faded_scores(Engine(net), inputs, labels), scores)
            assert torch.equal(gradients_of(Engine(net), inputs, labels), gradients)


# ---- bfloat16 ------------------------------------------------------------------------------------


def test_bfloat16_is_for_scores_alone():
    net, (images, labels) = convolutional(), case()
    engine = Engine(net, precision="bf16")
    scores, exact = faded_scores(engine, images, labels), slow_scores(net, images, labels)
    assert scores.dtype == torch.float32 and engine.form.endswith("bfloat16")
    assert 0 < (scores - exact).abs().max() < 0.02  # eight bits: 0.4 % of each activation
    assert torch.equal(gradients_of(engine, images, labels), gradients_of(Engine(net), images, labels))


def test_a_network_that_does_not_run_in_bfloat16_is_refused():
    class Single(_Net):
        def maps(self, x):
            return self.conv(x.float())

    with pytest.raises(ValueError, match=r"does not run in bfloat16 .*: use precision='float32'"):
        faded_scores(Engine(Single(), precision="bf16"), *case(classes=3))


# ---- units ---------------------------------------------------------------------------------------


def test_a_network_whose_results_depend_on_the_batch_or_on_chance_is_told_of():
    images, labels = case(classes=3)
    by_batch = gs.surgery.untrained(convolutional(), batch_statistics=True)[0]

    class ByTheMean(_Net):
        def maps(self, x):
            return self.conv((x - x.mean()) / x.std())

    class Drops(_Net):
        def maps(self, x):
            return nn.functional.dropout(self.conv(x))

    for net in (_BatchStatistics().eval(), by_batch, ByTheMean(), Drops()):
        with pytest.warns(UserWarning, match="other logits beside another one"):
            faded_scores(Engine(net), images, labels)


def test_outputs_of_which_a_softmax_says_nothing_are_told_of():
    images, labels = case()
    with pytest.raises(ValueError, match="two or more logits for a softmax probability, got one"):
        faded_scores(Engine(convolutional(1)), images, 0 * labels)
    faded_scores(Engine(convolutional(1)), images, 0 * labels, score=label_logit)
    engine = Engine(nn.Sequential(convolutional(), nn.Softmax(1)))
    with pytest.warns(UserWarning, match="look like probabilities"):
        faded_scores(engine, images, labels)
    faded_scores(engine, images, labels, score=label_logit)


def test_units_are_the_models():
    net = nn.Sequential(nn.Flatten())
    net.mean, net.std = (0.5, 0.25, 0.0), (0.5, 0.25, 0.1)
    engine = Engine(net)
    assert engine.scale(3).flatten().tolist() == [2, 4, 10] and engine.units == "pixels"
    assert engine.baseline("mean", 3).flatten().tolist() == [0, 0, 0]
    assert engine.baseline(1.0, 3).flatten().tolist() == [1, 3, 10]
    with pytest.raises(ValueError, match="pictures of 3 channels, as the model's mean and std have, got 1"):
        engine.scale(1)
    with pytest.raises(ValueError, match="'mean' or a pixel value, got 'black'"):
        engine.baseline("black", 3)


def test_buffers_of_a_network_that_normalises_itself_are_not_taken_for_its_units():
    net = nn.Sequential(nn.Flatten())
    net.register_buffer("mean", torch.zeros(1, 3, 1, 1))
    net.register_buffer("std", torch.full((1, 3, 1, 1), 0.2))
    assert Engine(net).units == "model input"
    with pytest.warns(UserWarning, match="no mean and std as lists of numbers"):
        assert Engine(net).scale(3).flatten().tolist() == [1, 1, 1]


def test_units_of_a_bare_network_are_its_inputs_and_that_is_said_once():
    engine = Engine(nn.Flatten())
    with pytest.warns(UserWarning, match="taken in the units of its input"):
        assert engine.scale(4).flatten().tolist() == [1, 1, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine.baseline(0.5, 4).flatten().tolist() == [0.5] * 4
    assert engine.units == "model input"


# ---- what is refused -----------------------------------------------------------------------------


def test_bad_input_is_answered_in_a_sentence():
    net, (images, labels) = convolutional(), case()
    refused = [
        (TypeError, "Expected a network", lambda: Engine("resnet50")),
        (ValueError, "precision 'float32' or 'bf16', got 'fp16'", lambda: Engine(net, precision="fp16")),
        (ValueError, "batch size of 1 or more, got 0", lambda: Engine(net, batch_size=0)),
        (TypeError, "compiled", lambda: Engine(nn.Sequential(torch.compile(net)))),
        (ValueError, "labels from 0 to 4, got", lambda: faded_scores(Engine(net), images, labels + 3)),
        (ValueError, "labels as a tensor of 5", lambda: faded_scores(Engine(net), images, labels[:2])),
        (TypeError, r"labels\.long", lambda: faded_scores(Engine(net), images, labels.float())),
        (ValueError, "finite images, got NaN", lambda: faded_scores(Engine(net), images / 0 * 0, labels)),
        (ValueError, r"images\[None\]", lambda: faded_scores(Engine(net), images[0], labels)),
        (ValueError, "an id for each of 5", lambda: faded_scores(Engine(net), images, labels, ids=["a", "b"])),
        (TypeError, "got 'abcde'", lambda: faded_scores(Engine(net), images, labels, ids="abcde")),
    ]
    masks = torch.ones(5, 13, 10, dtype=torch.bool)
    refused += [
        (TypeError, r"Expected labels \(N,\), got None", lambda: faded_scores(Engine(net), images, None)),
        (TypeError, r"got Tensor \(5, 13, 10\)", lambda: faded_scores(Engine(net), images, labels, ids=masks)),
        (TypeError, "settings go by name", lambda: faded_scores(Engine(net), images, labels, score=50)),
        (TypeError, "settings go by name", lambda: gs.attributions.SmoothGrad(50)(described(net), images, labels)),
        (TypeError, "settings go by name", lambda: gs.attributions.GradCAM(50)(described(net), images, labels)),
        (TypeError, "settings go by name", lambda: gs.metrics.Deletion(50)(net, images, labels, images)),
        (ValueError, "0..1 .128 of 255 is 0.5., got 128", lambda: Engine(described(net)).baseline(128, 3)),
        (ValueError, "a pixel value, got 'tensor", lambda: Engine(net).baseline(torch.zeros(3), 3)),
    ]
    for kind, words, attempt in refused:
        with pytest.raises(kind, match=words):
            attempt()


def described(net):
    net.mean, net.std = (0.0,), (1.0,)
    return net


def test_integers_are_names_like_their_digits():
    net, (images, labels) = described(convolutional()), case()
    method = gs.attributions.SmoothGrad(samples=2)
    found = method(net, images, labels, ids=torch.arange(5))
    assert torch.equal(found, method(net, images, labels, ids=list("01234")))


@pytest.mark.parametrize("late", [False, True])
def test_logits_that_are_not_finite_are_refused(late):
    class Breaks(_Net):
        def maps(self, x):
            return self.conv(x) / ((x.mean((1, 2, 3), True) > 0.1) if late else 0)  # late: the most faded

    images, labels = case(classes=3)
    with pytest.raises(ValueError, match="Expected finite logits"):
        faded_scores(Engine(Breaks()), images, labels, variants=50)
    with pytest.raises(ValueError, match="Expected finite logits"):
        gradients_of(Engine(Breaks()), images, labels, variants=50)


def test_wrapped_networks_are_unwrapped():
    net, (images, labels) = convolutional(), case()
    expected = faded_scores(Engine(net), images, labels)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        assert torch.equal(faded_scores(Engine(wrapped), images, labels), expected)


def test_a_network_that_detaches_its_pictures_has_no_gradient():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    class Detached(nn.Module):
        def forward(self, x):
            return net(x.detach())

    with pytest.raises(RuntimeError, match="do not depend on the pictures"):
        gradients_of(Engine(Detached()), *case(classes=3))


def test_a_score_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"a score for each picture \(20,\), got \(\)"):
        faded_scores(Engine(convolutional()), *case(), score=lambda z, y: z.sum())


# ---- the rest ------------------------------------------------------------------------------------


def test_predictions_are_the_largest_logits():
    net, (images, _) = convolutional(), case(70)
    assert torch.equal(Engine(net).predictions(images), net(images).argmax(1))


def test_one_bar_counts_the_passes_of_a_task(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **settings):
            self.settings, self.n = settings, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr(engines, "tqdm", Bar)
    engine = Engine(convolutional())
    with engine.task("outer", 40), engine.task("inner", 20):
        faded_scores(engine, *case())
        faded_scores(engine, *case())
    (outer,) = bars
    assert (outer.n, outer.settings["disable"]) == (40, None)
    assert [outer.settings[name] for name in ("total", "desc", "delay")] == [40, "outer", 2]
    with engine.task("next", 20):
        faded_scores(engine, *case())
    assert (bars[-1].n, bars[-1].settings["disable"]) == (20, None)
    with Engine(convolutional(), progress=False).task("hidden", 1):
        assert bars[-1].settings["disable"] is True


def test_draws_depend_on_all_that_names_them_and_on_nothing_else():
    def draw(*name):
        torch.manual_seed(int(torch.randint(1000, ())))
        return torch.rand(3, generator=generator(*name)).tolist()

    names = [(0, "noise", "a", 0), (1, "noise", "a", 0), (0, "mask", "a", 0), (0, "noise", "b", 0)]
    names += [(0, "noise", "a", 1), (0, "noise", "", 0), (0, "noise", "a/1", 0), (0, "noise", "1/a", 0)]
    assert [draw(*name) for name in names] == [draw(*name) for name in names]
    assert len({tuple(draw(*name)) for name in names}) == len(names)
    assert 0 <= integer(0, "design", "a") < 2**32 and integer(0, "design", "a") != integer(0, "design", "b")


def test_trained_networks_are_the_same_function_in_every_form():
    net = gs.load_model("demo:resnet_stride")
    pictures = gs.demo.pictures(8, seed=3)
    images = net.preprocess(pictures.images)
    exact = slow_scores(net, images, pictures.labels)
    engine = Engine(net)
    assert (faded_scores(engine, images, pictures.labels) - exact).abs().max() < 1e-5
    assert engine.form.startswith("channels-last, BatchNorm folded")
    half = faded_scores(Engine(net, precision="bf16"), images, pictures.labels)
    assert (half - exact).abs().max() < 0.1


def test_a_changed_mean_is_noticed():
    net, (images, labels) = convolutional(), case(2, 9, 11)
    net.mean, net.std = [0.5] * 3, [0.25] * 3
    engine = Engine(net)
    pictures = next(engine.groups(images, labels))
    before = engine.fact("colour", lambda: engine.baseline(0.5, 3))
    net.mean = [0.25] * 3
    engine.logits(pictures)
    assert not torch.equal(engine.fact("colour", lambda: engine.baseline(0.5, 3)), before)

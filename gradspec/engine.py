"""One batched engine for everything that asks a network about many variants of many pictures (SPEC §4, §6)."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from tqdm import tqdm

from gradspec._checks import check_images, check_labels
from gradspec.data import names_of
from gradspec.images import moments
from gradspec.inference import AS_LOADED, Prepared, for_forwards, in_bfloat16, prepared, same
from gradspec.passes import device_of, eval_mode, output_of, to_weights, unwrapped
from gradspec.surgery.copies import copied
from gradspec.taps import logits_of, refuse_unhookable
from gradspec.targets import Score, Target, label_probability

Make = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bf16"]
Baseline = float | Literal["mean"]
Result = TypeVar("Result")

GROUP = 64  # pictures held on the device at once, fewer of large ones: jobs of one group share batches
VALUES = 3 * 224 * 224  # of what is not yet a large one
PIXELS = {"cpu": 16 * 224 * 224, "cuda": 256 * 224 * 224}  # of a batch: 16 pictures of 224 px on a CPU
MOST = 256  # pictures in a batch, however small they are


class Pictures(NamedTuple):
    """Pictures x (N, C, H, W) on the network's device and in its precision, labels y (N,), and a name for each."""

    images: Tensor
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Gradients of one batch of jobs.

    Attributes:
        pictures: Which picture each job is of (B,).
        variants: Which variant of it (B,).
        inputs: What the network was given (B, C, H, W).
        gradients: The target's gradient there (B, C, H, W).
    """

    pictures: Tensor
    variants: Tensor
    inputs: Tensor
    gradients: Tensor


class Engine:
    """A network made ready for many passes, to be given to attributions and metrics in its place.

    Given the bare network, each call makes an engine of its own; one that is kept saves the preparation, remembers the
    batch size that fits, and counts. When the network's weights or modules change, it is prepared anew; writing into
    `.data` in place is not noticed. One thread at a time may use a network that is in train mode. Its `mean` and `std`,
    where it has them as lists of numbers, are those by which the given pictures were normalised, of pixels in 0..1.

    Args:
        model: A classifier whose output is logits (N, K) or holds them. It is not changed, and used as in eval mode.
        batch_size: Pictures per pass; None: by their size. Halved, and kept so, when memory runs out.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show a bar with the remaining time on stderr, if that is a terminal, for what takes over two seconds.
        as_loaded: Run the network itself instead of a faster copy of it.

    Attributes:
        forwards: Pictures that were passed through the network so far, but for the few of the preparation.
        backwards: Gradients that were computed so far, each with a forward pass, which counts too.

    Raises:
        TypeError: For compiled or TorchScript submodules and for what is no network.
        ValueError: For an unknown precision and a batch size under 1.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> engine = Engine(net)
        >>> pictures = next(engine.groups(torch.ones(3, 3, 2, 2), torch.tensor([0, 1, 1])))
        >>> halves = lambda i, j: pictures.images[i] * j[:, None, None, None] / 2
        >>> scores = engine.scores(pictures, 3, halves, lambda logits, labels: logits[:, 0])
        >>> scores.shape, engine.forwards
        (torch.Size([3, 3]), 9)
    """

    def __init__(
        self, model: nn.Module, *, batch_size: int | None = None, precision: Precision = "float32",
        device: str | torch.device | None = None, progress: bool = True, as_loaded: bool = False,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise TypeError(f"Expected a network (torch.nn.Module) or an Engine, got {type(model).__name__}.")
        if precision not in ("float32", "bf16"):
            raise ValueError(f"Expected precision 'float32' or 'bf16', got {precision!r}.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"Expected a batch size of 1 or more, got {batch_size}.")
        self.model = unwrapped(model)
        refuse_unhookable(self.model)
        if device is not None and torch.empty(0, device=device).device != device_of(self.model):  # "cuda" is "cuda:0"
            self.model = copied(self.model).to(device)
        elif any(p.is_inference() for p in self.model.parameters()):  # of which there are no gradients
            self.model = copied(self.model)
        self.precision: Precision = precision
        self.progress = progress
        self.forwards = self.backwards = 0
        self._as_loaded = as_loaded
        self._limit: dict[bool, int | None] = {False: batch_size, True: batch_size}  # by whether gradients are drawn
        self._classes = 0
        self._shares = False
        self._state: tuple[Any, ...] = ()
        self._net: Prepared | None = None
        self._forward_net: Prepared | None = None
        self._bar: Any = None
        self._warned = False
        self._facts: dict[Any, Any] = {}

    def __repr__(self) -> str:
        passes = f"{self.forwards} forwards, {self.backwards} backwards"
        return f"Engine({type(self.model).__name__}, {self.form or 'not prepared yet'}, {self.precision}, {passes})"

    # ---- what is known about the network -----------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return device_of(self.model)

    @property
    def form(self) -> str:
        """What runs: "channels-last, BatchNorm folded" or another form; "" before the first picture."""
        return self._forward_net.form if self._forward_net else ""

    @property
    def net(self) -> nn.Module:
        """The network that gradients are drawn from, after the first picture; its training flags are the caller's."""
        assert self._net is not None
        return self._net.net

    @property
    def units(self) -> str:
        """In which units noise and radii are: "pixels" in 0..1 where the model says its std, else "model input"."""
        return "model input" if moments(self.model) is None else "pixels"

    def scale(self, channels: int) -> Tensor:
        """Returns how much one unit of a pixel in 0..1 is in the network's input, by channel (C, 1, 1).

        Said by the model's `std`; a network that says none is taken to work on model-input units, which is warned of.

        Raises:
            ValueError: The std is of another number of channels.
        """
        known = moments(self.model)
        if known is None and not self._warned:
            self._warned = True
            warnings.warn(
                "The model says no mean and std as lists of numbers (gradspec.load_model's do): noise, radii and "
                "baselines are taken in the units of its input.",
                stacklevel=4,
            )
        return self._by_channel([1.0] if known is None else [1 / value for value in known[1]], channels)

    def baseline(self, value: Baseline, channels: int) -> Tensor:
        """Returns a colour in the network's input (C, 1, 1): "mean", its zero, or a pixel value in 0..1.

        Raises:
            ValueError: For anything else, and for a mean of another number of channels.
        """
        if value == "mean":
            return self._by_channel([0.0], channels)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"Expected a baseline 'mean' or a pixel value, got {str(value)[:40]!r}.")
        if self.units == "pixels" and not 0 <= value <= 1:
            raise ValueError(f"Expected a baseline as a pixel value in 0..1 (128 of 255 is 0.5), got {value}.")
        known, scale = moments(self.model), self.scale(channels)
        return (value - self._by_channel([0.0] if known is None else known[0], channels)) * scale

    def _by_channel(self, values: Sequence[float], channels: int) -> Tensor:
        if len(values) not in (1, channels):
            raise ValueError(
                f"Expected pictures of {len(values)} channels, as the model's mean and std have, got {channels}."
            )
        kind = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.tensor(values, dtype=kind, device=self.device).expand(channels)[:, None, None]

    def fact(self, key: Any, find: Callable[[], Result]) -> Result:
        """Returns what was found under this key before, or else finds it: what depends on the network alone."""
        if key not in self._facts:
            self._facts[key] = find()
        return self._facts[key]

    # ---- pictures ----------------------------------------------------------------------------

    def groups(self, images: Tensor, labels: Tensor, ids: Sequence[str] | None = None) -> Iterator[Pictures]:
        """Yields checked pictures on the network's device, so many at a time as are to be worked on together.

        Args:
            images: x (N, C, H, W), as the network expects them; one of any size, odd and non-square too.
            labels: y (N,), int64.
            ids: A name for each picture, of which its random numbers are made; None: a hash of the picture.

        Raises:
            TypeError: For anything but floating-point pictures and integer labels.
            ValueError: For pictures that are not finite or on which the network fails, labels that it has no class for
                or of another number, ids of another number.
        """
        images, labels, names = self._checked(images, labels, ids)
        at_once = max(1, min(GROUP, GROUP * VALUES // images[0].numel()))
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            x = self._input(images[part])
            yield Pictures(x, labels[part].to(x.device).long(), names[part])

    def _checked(self, images: Tensor, labels: Tensor, ids: Sequence[str] | None) -> tuple[Tensor, Tensor, list[str]]:
        check_images(images)
        if labels is None:
            raise TypeError("Expected labels (N,), got None; gradspec.explain takes the network's predictions.")
        labels = torch.as_tensor(labels)
        check_labels(labels, len(images))
        names = names_of(images, ids)
        self._prepare(images)
        check_labels(labels, len(images), self._classes)
        return images, labels, names

    def _input(self, images: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return to_weights(self.model, images.detach()).clone()  # of inference tensors, a plain one

    def predictions(self, images: Tensor) -> Tensor:
        """Returns the class that the network names for each picture (N,), on the pictures' device."""
        zeros = torch.zeros(len(images), dtype=torch.long)
        found = [self.logits(part).argmax(1) for part in self.groups(images, zeros, [""] * len(images))]
        return torch.cat(found).to(images.device)

    # ---- the network -------------------------------------------------------------------------

    def _prepare(self, images: Tensor) -> None:
        if self._net is not None and self._state == _state(self.model):
            return
        self._facts.clear()  # of other weights
        sample = self._input(images[:1])
        with self.running(self.model, gradients=False):
            if self._as_loaded:
                logits = logits_of(output_of(self.model, sample))
                net = Prepared(self.model, AS_LOADED)
            else:
                net, logits = prepared(self.model, sample)
            _check_finite(bool(logits.isfinite().all()))
            forward = for_forwards(net, sample)
            forward = in_bfloat16(forward, sample, logits) if self.precision == "bf16" else forward
            self._warn_of(net.net, sample, logits)
        self._net, self._forward_net, self._classes = net, forward, logits.shape[1]
        self._state = _state(self.model)

    def _warn_of(self, net: nn.Module, sample: Tensor, logits: Tensor) -> None:
        """Warns of networks for which the numbers do not mean what they seem to."""
        pair = torch.cat([sample, 0.5 * sample]) if self._limit[False] != 1 else sample
        both = _unless_full(lambda: logits_of(output_of(net, pair)))
        if both is not None and not same(both[:1], logits):
            warnings.warn(
                "The network gives a picture other logits beside another one or when asked again (it normalises by the "
                "batch, or draws at random): results depend on how pictures are batched.",
                stacklevel=6,
            )
        self._shares = both is not None and bool((both >= 0).all()) and bool(((both.sum(1) - 1).abs() < 1e-5).all())

    def check_score(self, score: Score) -> None:
        """Refuses what is no function, and refuses or warns, once, of a softmax of what is none of logits.

        Raises:
            TypeError: For what cannot be called.
            ValueError: For the probability of a single logit.
        """
        if not callable(score):
            raise TypeError(
                f"Expected a target or score (logits, labels) -> (N,), as gradspec.label_logit is, got {score!r}; "
                "settings go by name, as in SmoothGrad(samples=100)."
            )
        if score is not label_probability:
            return
        if self._classes == 1:
            raise ValueError(
                "Expected two or more logits for a softmax probability, got one: pass label_logit as score or target."
            )
        if self._shares:
            self._shares = False
            warnings.warn(
                "The network's outputs look like probabilities, whose softmax is nearly even: pass label_logit as "
                "score or target, or the network without its softmax.",
                stacklevel=6,
            )

    @contextmanager
    def running(self, net: nn.Module, *, gradients: bool) -> Iterator[None]:
        """Runs a network in eval mode, outside the caller's inference mode, autocast and no_grad."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(eval_mode(net))
            yield

    # ---- scores and gradients ----------------------------------------------------------------

    def scores(self, pictures: Pictures, variants: int, make: Make, score: Score) -> Tensor:
        """Returns the score of so many variants of each picture (N, V), in float32 or the network's float64.

        Jobs of different pictures and variants share a batch, in the order of the pictures.

        Args:
            pictures: Of `groups`.
            variants: V.
            make: (pictures (B,), variants (B,)), both indices, -> the network's inputs (B, C, H, W).
            score: (logits (B, K), labels (B,)) -> (B,).

        Raises:
            ValueError: Where logits are not finite.
            MemoryError: Where not even one picture fits.
        """
        self._prepare(pictures.images)
        self.check_score(score)
        found = self._asked(pictures, variants, make, lambda logits, i: _scored(score, logits, pictures.labels[i]))
        return found.view(len(pictures.images), variants)

    def logits(self, pictures: Pictures) -> Tensor:
        """Returns the logits of the pictures themselves (N, K); raises as `scores`."""
        return self._asked(pictures, 1, lambda i, j: pictures.images[i], lambda logits, i: logits)

    def _asked(self, pictures: Pictures, variants: int, make: Make, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What is read of the logits (B, K) of each batch and the places (B,) of its pictures, joined."""
        self._prepare(pictures.images)
        assert self._forward_net is not None
        net = self._forward_net.net

        def work(jobs: Tensor) -> tuple[Tensor, Tensor]:
            i, j = jobs // variants, jobs % variants
            with self.running(net, gradients=False):
                logits = _wide(logits_of(output_of(net, _channels_last(to_weights(net, make(i, j))))))
                return read(logits, i), logits.isfinite().all()

        parts, finite = [], []
        for values, fine in self._batches(pictures, variants, work, gradients=False):
            parts.append(values)
            finite.append(fine)
        _check_finite(bool(torch.stack(finite).all()))
        return torch.cat(parts)

    def gradients(
        self, pictures: Pictures, variants: int, make: Make, target: Target, rule: Callable[[Tensor], Any] | None = None
    ) -> Iterator[Drawn]:
        """Yields the target's gradient at so many variants of each picture, a batch at a time, as `scores`.

        Args:
            pictures: Of `groups`.
            variants: V.
            make: (pictures (B,), variants (B,)) -> the network's inputs (B, C, H, W).
            target: (logits (B, K), labels (B,)) -> (B,), what is differentiated.
            rule: Called with the logits before the backward pass, to change it by hooks on their graph.

        Raises:
            ValueError: Where logits are not finite.
            RuntimeError: Where the logits do not depend on the pictures.
        """
        self._prepare(pictures.images)
        self.check_score(target)
        net = self.net

        def work(jobs: Tensor) -> tuple[Drawn, Tensor]:
            i, j = jobs // variants, jobs % variants
            with self.running(net, gradients=True):
                inputs = make(i, j).detach().requires_grad_()
                logits = logits_of(output_of(net, _channels_last(inputs)))
                gradient = _gradient(_scored(target, _wide(logits), pictures.labels[i]), inputs, logits, rule)
            return Drawn(i, j, inputs.detach(), gradient), logits.detach().isfinite().all()

        finite = []
        for drawn, fine in self._batches(pictures, variants, work, gradients=True):
            finite.append(fine)
            yield drawn
        _check_finite(bool(torch.stack(finite).all()))

    def inside(
        self, pictures: Pictures, layer: str, target: Target, *, as_loaded: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what a layer gave in its last call (B, ...) and the target's gradient there, a batch at a time.

        The output is as the layer gave it, also where it is changed in place afterwards; the backward pass ends there.

        Args:
            pictures: Of `groups`.
            layer: Its name in the network; it returns one tensor that depends on the pictures.
            target: (logits (B, K), labels (B,)) -> (B,), what is differentiated.
            as_loaded: Run the network itself: for a layer that gives something else in a faster copy.

        Raises:
            ValueError: Where logits are not finite.
            RuntimeError: Where the scores do not depend on the layer.
        """
        self._prepare(pictures.images)
        self.check_score(target)
        net = self.model if as_loaded else self.net

        def work(jobs: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            with self.running(net, gradients=True), _last_output(net.get_submodule(layer)) as last:
                logits = logits_of(output_of(net, _channels_last(pictures.images[jobs].requires_grad_())))
                output, edge = last[0]
                gradient = _gradient(_scored(target, _wide(logits), pictures.labels[jobs]), edge, logits, None)
            return (output, gradient), logits.detach().isfinite().all()

        finite = []
        for found, fine in self._batches(pictures, 1, work, gradients=True):
            finite.append(fine)
            yield found
        _check_finite(bool(torch.stack(finite).all()))

    def _batches(
        self, pictures: Pictures, variants: int, work: Callable[[Tensor], Result], *, gradients: bool
    ) -> Iterator[Result]:
        """Yields the results of batches of jobs; one that does not fit in memory is done again as two."""
        total, start = len(pictures.images) * variants, 0
        height, width = pictures.images.shape[-2:]
        usual = max(1, min(MOST, PIXELS.get(self.device.type, PIXELS["cuda"]) // (height * width)))
        while start < total:
            size = min(self._limit[gradients] or usual, total - start)
            result = _unless_full(partial(work, torch.arange(start, start + size, device=self.device)))
            if result is None:
                if size == 1:
                    raise MemoryError(f"Out of memory with a single picture of {height} x {width}: make it smaller.")
                self._limit[gradients] = size // 2
                continue
            start += size
            self.forwards += size
            self.backwards += size if gradients else 0
            if self._bar is not None:
                self._bar.update(size)
            yield result

    @contextmanager
    def task(self, name: str, passes: int) -> Iterator[None]:
        """Shows the progress of so many passes under this name, unless it is part of a task that shows its own.

        What is computed inside needs no gradients, also where the caller asks for them, and is no inference tensor.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self._bar is None:
                stack.enter_context(self.counted_by(stack.enter_context(self.bar(name, passes))))
            yield

    def bar(self, name: str, passes: int | None) -> tqdm:
        """Returns a bar for so many passes, None: unknown; one that is never seen inside a task that shows its own."""
        hidden = True if self._bar is not None or not self.progress else None  # None: where stderr is no terminal
        return tqdm(total=passes, unit="pass", desc=name, delay=2, disable=hidden)

    @contextmanager
    def counted_by(self, bar: tqdm) -> Iterator[None]:
        """Lets a bar count the passes made inside, unless they are part of a task that counts them already."""
        before = self._bar
        self._bar = bar if before is None else before
        try:
            yield
        finally:
            self._bar = before


def engine_of(
    model: nn.Module | Engine, batch_size: int | None = None, precision: Precision = "float32",
    device: str | torch.device | None = None, progress: bool = True,
) -> Engine:  # fmt: skip
    """Returns the engine itself, or a new one with these settings for a network.

    Raises:
        ValueError: For settings beside an `Engine`, which has its own.
    """
    if not isinstance(model, Engine):
        return Engine(model, batch_size=batch_size, precision=precision, device=device, progress=progress)
    if (batch_size, precision, device) != (None, "float32", None):
        raise ValueError("Expected no batch_size, precision and device beside an Engine: it has its own.")
    return model


def _state(model: nn.Module) -> tuple[Any, ...]:
    """What changes when a network does: its tensors (held, so that none is taken for another) and simple attributes."""
    tensors = [*model.parameters(), *model.buffers()]
    facts = [(id(t), t.data_ptr(), t.dtype, t._version) for t in tensors]
    modules = [(name, id(module), type(module), _attributes(module)) for name, module in model.named_modules()]
    return facts, modules, repr(moments(model)), _Held([*tensors, *model.modules()])


class _Held(list[Any]):
    """Objects kept alive; any two such lists are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


def _attributes(module: nn.Module) -> dict[str, str]:
    simple = (int, float, str, tuple, type(None))
    found = {name: repr(value) for name, value in vars(module).items() if isinstance(value, simple)}
    return found | {"training": "", "hooks": repr([*module._forward_hooks, *module._forward_pre_hooks])}


def _unless_full(work: Callable[[], Result]) -> Result | None:
    """The result, or None where memory ran out; the exception holds the batch's tensors, so that it ends here."""
    try:
        return work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
    except ValueError as error:  # a sentence about what the network raised
        if "DefaultCPUAllocator" not in str(error):
            raise
    return None


@contextmanager
def _last_output(module: nn.Module) -> Iterator[list[tuple[Tensor, GradientEdge]]]:
    """What the module gave in its last call, and its place in the graph: neither changes with the tensor."""
    last: list[tuple[Tensor, GradientEdge]] = []

    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        last[:] = [(output.detach().clone(), get_gradient_edge(output))]

    handle = module.register_forward_hook(keep)
    try:
        yield last
    finally:
        handle.remove()


def _gradient(
    scores: Tensor, at: Tensor | GradientEdge, logits: Tensor, rule: Callable[[Tensor], Any] | None
) -> Tensor:
    if not scores.requires_grad:
        raise RuntimeError("The scores do not depend on the pictures: the model detaches them.")
    if rule is not None:
        rule(logits)
    places: Any = [at]
    (gradient,) = torch.autograd.grad(scores.sum(), places, allow_unused=True)
    if gradient is None:
        raise RuntimeError("The scores do not depend on the pictures.")
    return gradient.contiguous()


def _scored(score: Score, logits: Tensor, labels: Tensor) -> Tensor:
    scores = score(logits, labels)
    if scores.shape != (len(logits),):
        raise ValueError(f"Expected a score for each picture ({len(logits)},), got {tuple(scores.shape)}.")
    return scores


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError(
            "Expected finite logits, got NaN or infinite ones: check the model's weights and the pictures' scale."
        )

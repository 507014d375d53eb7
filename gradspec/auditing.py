"""The layer audit: every operator's gradient, on every picture, reduced to signatures while autograd works (SPEC
§1-2)."""

from __future__ import annotations

import copy
import math
import platform
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gradspec._checks import check_labels
from gradspec.data import Batch, Data, in_batches, number_of_pictures
from gradspec.graph import Call, Tap
from gradspec.passes import device_of, eval_mode, output_of, to_weights, unwrapped
from gradspec.reduction import Reduced, Sums, joined, reduce_sums, sum_spectra
from gradspec.results import EXAMPLE_PICTURES, Audit, Example, Key, table_of, zeros
from gradspec.spectra import Signature, power_share, rounding_floor
from gradspec.surgery import records
from gradspec.taps import Layers, ModeError, SelectionError, Taps, logits_of, tapped
from gradspec.targets import Target, label_logit, label_probability

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Audit", "Example", "audit"]

MOST_EXAMPLES = 8


def audit(
    model: nn.Module,
    data: Data,
    *,
    layers: Layers = None,
    target: Target = label_logit,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    channels: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Returns the audit of a network: the Fourier signature of the gradient at every operator's input and output.

    One forward and one backward pass per batch; each gradient is reduced to its signature inside the pass (paper §3,
    §4.3, figs. A.4-A.7). The model is used in eval mode and left as it was. What it answered is in the result's `spec`:
    `labels`, the classes it named (`predicted`), the labels' softmax `label_probability`, and whether the labels came
    with the data (`labelled`).

    Args:
        model: A classifier; its output is logits (N, K), or an object with `.logits`. DataParallel is unwrapped.
        data: (images, labels), images alone (labels = the model's prediction), or a re-iterable of (images, labels[,
        ids]);
            images (N, C, H, W) as the model expects them, all of one size.
        layers: Which calls, as for `gradspec.tapped`.
        target: What is differentiated, (logits, labels) -> (N,).
        batch_size: Pictures per pass; None: the loader's own, 8 for tensors. Halved when memory runs out.
        device: Where to work; None: where the model is. For another device a copy of the model is made.
        channels: Take at most that many channels of each gradient, drawn by `seed`; None takes all (exact).
        seed: Of the drawn channels; recorded.
        progress: Show a bar on stderr where that is a terminal.

    Raises:
        TypeError: For compiled or TorchScript models, and data of another form.
        ValueError: For pictures or labels that do not fit, pictures of several sizes, logits that are not finite.
        RuntimeError: Where the output does not depend on the pictures.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10))
        >>> result = audit(net.eval(), torch.rand(4, 3, 32, 32), progress=False)
        >>> result.culprits("type")["type"][0], len(result.signatures)
        ('max pooling', 6)
    """
    began = time.perf_counter()
    model = unwrapped(model)
    if device is not None and torch.device(device) != device_of(model):
        model = copy.deepcopy(model).to(device)
    recorder = _Recorder(channels, seed)
    bar = tqdm(total=number_of_pictures(data), unit="picture", desc="audit", disable=None if progress else True)
    with eval_mode(model), tapped(model, recorder.receive, layers=_with_input(layers)) as taps, bar:
        for batch in in_batches(data, batch_size):
            for done in _passes(model, taps, recorder, target, batch):
                bar.update(done)
        unseen = taps.unseen
    spec = _spec(model, target, layers, channels, seed, recorder, time.perf_counter() - began)
    return recorder.result(unseen, spec | {"skipped": dict(getattr(data, "skipped", {}))})


def _with_input(layers: Layers) -> Layers:
    """The selection and the network's input, on which the headline is."""
    if layers is None or callable(layers):
        return layers and (lambda call: call.type == "input" or bool(layers(call)))
    return [*([layers] if isinstance(layers, str) else layers), "input"]


# ---- one pass --------------------------------------------------------------------------------


def _passes(model: nn.Module, taps: Taps, recorder: _Recorder, target: Target, batch: Batch) -> Iterator[int]:
    """One forward and backward pass, or as many halves as memory takes; yields the pictures done."""
    try:
        _one_pass(model, taps, recorder, target, batch)
        yield len(batch.ids)
        return
    except torch.OutOfMemoryError:
        if len(batch.ids) == 1:
            raise
    half = len(batch.ids) // 2
    for part in (slice(None, half), slice(half, None)):
        labels = None if batch.labels is None else batch.labels[part]
        yield from _passes(model, taps, recorder, target, Batch(batch.images[part], labels, batch.ids[part]))


def _one_pass(model: nn.Module, taps: Taps, recorder: _Recorder, target: Target, batch: Batch) -> None:
    images = to_weights(model, batch.images)
    recorder.check_size(images.shape)
    logits = logits_of(output_of(model, images, ModeError, SelectionError))
    if not torch.isfinite(logits).all():
        raise ValueError(
            "Expected finite logits, got NaN or infinite ones: check the model's weights and the pictures' scale."
        )
    predicted = logits.detach().argmax(1)
    labels = predicted if batch.labels is None else batch.labels.to(logits.device).long()
    check_labels(labels, len(images), logits.shape[1])
    probability = label_probability(_wide(logits.detach()), labels)
    cotangent, scale = _cotangent(logits, labels, target)
    recorder.begin(taps)
    taps.backward(logits, cotangent)
    answers = {"labels": labels, "predicted": predicted, "label_probability": probability}
    recorder.commit(batch.ids, scale, answers, labelled=batch.labels is not None)


def _cotangent(logits: Tensor, labels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The target's gradient with respect to the logits, each picture's scaled to 1, and the scales.

    A saturated probability has gradients whose float32 squares are zero; a picture's gradients everywhere in the
    network scale with this one, so it is put back, in float64, once they are reduced.
    """
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        scores = target(_wide(leaf), labels)
    if scores.shape != (len(logits),):
        raise ValueError(f"Expected scores ({len(logits)},) from the target, got {tuple(scores.shape)}.")
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    scale = gradient.abs().amax(1, keepdim=True)
    return gradient / torch.where(scale > 0, scale, 1), scale[:, 0].double()


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


# ---- what is kept ----------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """What is kept of one (call, point)."""

    call: Call
    channels: int
    height: int
    width: int
    rings: list[np.ndarray]
    shares: list[np.ndarray]
    beyond: list[np.ndarray]
    pictures: list[str]
    maps: list[np.ndarray]
    logs: list[np.ndarray]
    infinite: int = 0


class _Recorder:
    """Takes gradients as they stream by and keeps ring amplitudes and shares of every picture."""

    def __init__(self, channels: int | None, seed: int) -> None:
        self.channels, self.seed = channels, seed
        self.rows: dict[Key, _Row] = {}
        self.pictures: list[str] = []
        self.largest_batch = 0
        self.times: Counter[str] = Counter()
        self.answers: dict[str, list[Any]] = {"labels": [], "predicted": [], "label_probability": []}
        self.labelled = True
        self.input_shape: tuple[int, ...] | None = None

    def check_size(self, shape: tuple[int, ...]) -> None:
        if self.input_shape is not None and tuple(shape[1:]) != self.input_shape:
            raise ValueError(
                f"Expected all pictures of one size, got {tuple(shape[1:])} after {self.input_shape}; audit each apart."
            )
        self.input_shape = tuple(shape[1:])

    # ---- one pass ----------------------------------------------------------------------------

    def begin(self, taps: Taps) -> None:
        """Plans a pass: which radii are asked of each gradient, and which gradients to keep as examples."""
        self.sums: dict[int, Sums] = {}
        self.parts: dict[Key, list[Tap]] = defaultdict(list)
        self.shown: dict[int, np.ndarray] = {}
        with_maps = [tap for tap in taps.taps if not tap.reason]
        sides: dict[Key, int] = {}
        for tap in with_maps:
            key = (tap.call.name, tap.point)
            sides[key] = max(sides.get(key, 0), _side(tap))
        radii: dict[int, set[float]] = defaultdict(set)  # by the maps' side
        for tap in with_maps:
            radii[_side(tap)] |= {_side(tap) / 4, sides.get((tap.call.name, "input"), _side(tap)) / 4}
        self.radii = {side: sorted(values) for side, values in radii.items()}
        self.input_sides = {name: side for (name, point), side in sides.items() if point == "input"}
        shrink = [name for name, side in self.input_sides.items() if 4 <= sides.get((name, "output"), 0) < side]
        self.shown_calls = {"input", *shrink[:MOST_EXAMPLES]}
        self.shown_ids = {tap.maps_id for tap in with_maps if tap.call.name in self.shown_calls and tap.part == 0}
        self.together = taps.parts
        self.scaled: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
        for maps_id, source in taps.scaled.items():
            if maps_id not in self.shown_ids and self.channels is None:
                self.scaled[source.maps_id].append((maps_id, source.scale))

    def receive(self, tap: Tap, gradient: Tensor) -> None:
        if tap.reason:
            return
        self.parts[tap.call.name, tap.point].append(tap)
        if tap.maps_id in self.sums:  # the same maps, seen from the other side
            return
        parts = [self.sums.get(part) for part in self.together.get(tap.maps_id, [])]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts) and self.channels is None and tap.maps_id not in self.shown_ids:
            self.sums[tap.maps_id] = joined(known)
            return
        maps, derived = tap.maps(gradient.detach()), self.scaled[tap.maps_id]
        found = sum_spectra(self._sampled(maps, tap), [scale for _, scale in derived])
        self.sums |= zip([tap.maps_id, *(maps_id for maps_id, _ in derived)], found, strict=True)
        room = EXAMPLE_PICTURES - len(self.pictures)
        if tap.maps_id in self.shown_ids and room > 0:
            self.shown[tap.maps_id] = maps[:room].float().mean(1).cpu().numpy()

    def _sampled(self, maps: Tensor, tap: Tap) -> Tensor:
        if self.channels is None or maps.shape[1] <= self.channels:
            return maps
        seed = zlib.crc32(f"{self.seed} {tap.call.name} {tap.part}".encode())
        chosen = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(seed))[: self.channels]
        return maps[:, chosen.sort().values.to(maps.device)]

    def commit(self, ids: list[str], scale: Tensor, answers: dict[str, Tensor], *, labelled: bool) -> None:
        """Adds a finished pass and what the network answered in it; an interrupted one leaves nothing behind."""
        scales = scale.cpu().numpy()
        ids = self._unique(ids)
        for key, taps in self.parts.items():
            largest = max(_side(tap) for tap in taps)
            self.parts[key] = [tap for tap in sorted(taps, key=lambda t: t.part) if _side(tap) == largest]
        reduced = self._reduced()
        for (_, point), taps in self.parts.items():
            self._add(taps, point, reduced[_ids(taps)], ids, scales)
        self.pictures += ids
        self.largest_batch = max(self.largest_batch, len(ids))
        for name, values in answers.items():
            self.answers[name] += values.tolist()
        self.labelled &= labelled  # one batch without labels: some are predictions

    def _reduced(self) -> dict[tuple[int, ...], Reduced]:
        """The numbers of all gradients of the pass, by the `maps_id` of their parts; those of one size together."""
        by_size: dict[tuple[int, int], dict[tuple[int, ...], Sums]] = defaultdict(dict)
        for taps in self.parts.values():
            found = joined([self.sums[i] for i in _ids(taps)])
            by_size[found.height, found.width][_ids(taps)] = found
        reduced: dict[tuple[int, ...], Reduced] = {}
        for size, found in by_size.items():
            reduced |= zip(found, reduce_sums(list(found.values()), self.radii[min(size)]), strict=True)
        return reduced

    def _unique(self, ids: list[str]) -> list[str]:
        """The ids, numbered where a picture comes again."""
        unique = []
        for name in ids:
            times = self.times[name]
            self.times[name] += 1
            unique.append(f"{name}#{times}" if times else name)
        return unique

    def _add(self, taps: list[Tap], point: str, found: Reduced, ids: list[str], scales: np.ndarray) -> None:
        call, layout = taps[0].call, taps[0].layout
        assert layout is not None
        channels = sum(tap.layout.channels for tap in taps if tap.layout)
        new = _Row(call, channels, layout.height, layout.width, [], [], [], [], [], [])
        row = self.rows.setdefault((call.name, point), new)
        if (row.height, row.width) != (layout.height, layout.width):
            sizes = f"{row.height} x {row.width} and {layout.height} x {layout.width}"
            raise ValueError(
                f"Expected maps of one size at {call.name!r}, got {sizes}: the model's path depends on the data."
            )
        rings = found.rings * scales[:, None]
        finite = np.asarray(np.isfinite(rings).all(1))
        row.infinite += int((~finite).sum())
        sums, side = self.sums[taps[0].maps_id], _side(taps[0])
        others = np.where(finite & (scales > 0), found.others, 0)  # so that the share is NaN
        floor = rounding_floor(sums.dtype, row.height, row.width)
        above = zip(self.radii[side], found.above, strict=True)
        shares = {radius: power_share(power, others, found.dc, floor) for radius, power in above}
        row.rings.append(np.where(finite[:, None], rings, 0))
        row.shares.append(shares[side / 4])
        row.beyond.append(shares[self.input_sides.get(call.name, side) / 4])
        row.pictures += ids
        if call.name in self.shown_calls and taps[0].part == 0:
            mean = sums.amplitude.double().view(len(ids), row.height, -1) / sums.channels
            row.logs.append(_logs(mean.cpu().numpy(), scales))
            shown = self.shown.get(taps[0].maps_id, np.zeros((0, row.height, row.width)))
            row.maps.append((shown * scales[: len(shown), None, None]).astype(np.float32))

    # ---- the result --------------------------------------------------------------------------

    def result(self, unseen: dict[str, str], spec: dict[str, Any]) -> Audit:
        order = sorted(self.rows, key=lambda key: (self.rows[key].call.index, key[0], key[1] == "output"))
        signatures = {key: self._signature(self.rows[key]) for key in order}
        unseen = unseen | zeros(signatures)
        examples = {key: self._example(self.rows[key]) for key in order if self.rows[key].logs}
        table = table_of(self._calls(order), signatures)
        return Audit(table, signatures, self._new_power(order), unseen, examples, tuple(self.pictures), spec)

    @staticmethod
    def _signature(row: _Row) -> Signature:
        return Signature(row.height, row.width, np.concatenate(row.rings), np.concatenate(row.shares))

    @staticmethod
    def _example(row: _Row) -> Example:
        logs = np.concatenate(row.logs)
        logs = logs[np.isfinite(logs).all((1, 2))]
        half = logs.mean(0) if len(logs) else np.full((row.height, row.width // 2 + 1), math.nan)
        return Example(np.concatenate(row.maps), _centred(half, row.width).astype(np.float32), len(logs))

    def _stage(self, row: _Row) -> int:
        assert self.input_shape is not None
        area = self.input_shape[1] * self.input_shape[2] / (row.height * row.width)
        return round(math.log2(area) / 2)

    def _calls(self, order: list[Key]) -> pd.DataFrame:
        import pandas as pd

        rows = [(key, self.rows[key]) for key in order]
        return pd.DataFrame(
            [
                {
                    "call": name, "operator": row.call.operator, "type": row.call.type, "stage": self._stage(row),
                    "point": point, "channels": row.channels, "height": row.height, "width": row.width,
                    "infinite": row.infinite,
                }
                for (name, point), row in rows
            ]
        )  # fmt: skip

    def _new_power(self, order: list[Key]) -> pd.DataFrame:
        import pandas as pd

        columns: dict[str, list[Any]] = {k: [] for k in ("call", "operator", "type", "stage", "image", "new_power")}
        for name, point in order:
            if point == "input" and (name, "output") in self.rows:
                after, before = self.rows[name, "input"], self.rows[name, "output"]
                values = np.concatenate(after.shares) - np.concatenate(before.beyond)
                for image, value in zip(after.pictures, values, strict=True):
                    facts = (name, after.call.operator, after.call.type, self._stage(before), image, value)
                    for column, fact in zip(columns.values(), facts, strict=True):
                        column.append(fact)
        return pd.DataFrame(columns)


def _ids(taps: list[Tap]) -> tuple[int, ...]:
    return tuple(tap.maps_id for tap in taps)


def _side(tap: Tap) -> int:
    assert tap.layout is not None
    return min(tap.layout.height, tap.layout.width)


def _logs(amplitude: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """log10 amplitude (N, H, W // 2 + 1) of each picture; a picture without gradient is NaN."""
    amplitude = amplitude * scales[:, None, None]
    peak = amplitude.max((1, 2), keepdims=True)
    amplitude = np.where(peak > 0, np.maximum(amplitude, 1e-12 * peak), math.nan)  # a bin may be exactly zero
    return np.log10(amplitude)


def _centred(half: np.ndarray, width: int) -> np.ndarray:
    """The full spectrum (H, W) with DC in the centre, from the half that rfft2 gives."""
    height = len(half)
    mirror = half[(-np.arange(height)) % height][:, 1 : (width + 1) // 2][:, ::-1]
    return np.fft.fftshift(np.concatenate([half, mirror], axis=1))


def _spec(
    model: nn.Module, target: Target, layers: Layers, channels: int | None, seed: int, recorder: _Recorder,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    spec = getattr(model, "spec", None)
    return {
        "model": str(spec.get("spec", type(model).__name__)) if isinstance(spec, dict) else type(model).__name__,
        "model_spec": spec if isinstance(spec, dict) else {},
        "surgery": [record.as_dict() for record in records(model)],
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_shape": list(recorder.input_shape or ()),
        "target": getattr(target, "__name__", None) or repr(target),
        "layers": layers if layers is None or not callable(layers) else getattr(layers, "__name__", repr(layers)),
        "channels": channels,
        "seed": seed,
        "batch_size": recorder.largest_batch,
        **recorder.answers,
        "labelled": recorder.labelled,
        "device": str(device_of(model)),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in ("gradspec", "torch", "numpy")}
        | {"python": platform.python_version()},
    }

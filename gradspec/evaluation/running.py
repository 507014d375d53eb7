"""The entrance: what is evaluated, checked, and gone through once."""

from __future__ import annotations

import numbers
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradspec.attributions.words import text_of
from gradspec.cutoffs import CutoffFit
from gradspec.data import Batch, Data, in_batches, names_of, number_of_pictures, picture_id
from gradspec.engine import GROUP, Engine, Precision, engine_of
from gradspec.evaluation.collecting import Collector, takes
from gradspec.evaluation.ledger import Key
from gradspec.evaluation.plan import Arm, Explain, Fits, listed, planned
from gradspec.evaluation.scores import Scores
from gradspec.evaluation.selection import Selection, misfits
from gradspec.images import described
from gradspec.metrics import Deletion, Faithfulness, Insertion, Metric, MuFidelity
from gradspec.surgery import records

Maps = Tensor | np.ndarray
HELD = 2**26  # values of maps that are held at once: a quarter of a gigabyte
DEFAULT_METRICS: Mapping[str, Metric] = {
    "Faithfulness": Faithfulness(), "Deletion": Deletion(), "Insertion": Insertion(), "MuFidelity": MuFidelity(),
}  # fmt: skip


def evaluate(
    model: nn.Module | Engine,
    data: Data,
    attributions: Mapping[str, Explain],
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    *,
    fits: Fits | None = None,
    arms: Iterable[Arm] = ("abs",),
    controls: bool = True,
    shared_cutoff: float | None = None,
    masks: Maps | None = None,
    examples: int = 0,
    allow_selection: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Scores:
    """Returns the scores of attributions on one network, without and with FORGrad, picture by picture (paper §5).

    Each attribution is scored as it is, arm "none"; one that `fits` names also through its filter, "forgrad" where the
    finished map is filtered and "forgrad-gradient" where the gradient is. Beside them stand `arms` that tell the
    filter's effect from its rivals, and maps that know no network, arm "control". A `FORGrad` among the attributions
    is a row of its own. All arms of an attribution share its one explanation; deletion, insertion and faithfulness of
    equal settings share their curves. What raises is left out from then on, with a warning and the reason in
    `Scores.missing`; where a batch cannot be read, what was scored by then is returned, with a warning too. A value of
    NaN stays one, and is counted.

    Args:
        model: A classifier, or an `Engine` made of one.
        data: (images, labels), images alone (labels = the model's prediction), or batches (images, labels[, ids]). It
            is gone through once, a batch at a time.
        attributions: By name: `gradspec.attributions`, `FORGrad`, adapters, or any (model, images, labels) -> maps.
        metrics: By name; None: faithfulness, deletion, insertion and μFidelity. `Stability` explains many noisy copies
            of every picture, for each arm anew; the pointing game and relevance mass need `masks`.
        fits: By an attribution's name a `CutoffFit`, a cutoff in cycles/image, or several fits, one for each `where`. A
            fit of another network or attribution is taken with a warning.
        arms: Of what `fits` names: "abs": its magnitude without a filter; "gradient": the first fit's cutoff in the
            gradient instead; "shared": one cutoff for all methods; "gaussian": a Gaussian that passes as much of white
            noise's power (the paper's † names neither). "shared" and "gaussian" filter where the first fit does.
        controls: Score maps that know no network: centre prior, white noise, random low and random high frequencies;
            also without any attribution.
        shared_cutoff: Of the arm "shared", which it adds; None: the best for all curves together, if they are of one
            grid. Without `fits` it is for every white-box attribution.
        masks: Pixels of the object in each picture (N, H, W), bool, in the order of the data.
        examples: Keep the maps of so many of the first pictures to look at.
        allow_selection: Score pictures that a fit was chosen on, which makes its score too good; they are counted in
            `Scores.spec`, `summary()` and a warning.
        seed: Of the random maps and of the bootstrap.
        batch_size: Pictures, changed ones too, in a pass through the network. None: by their size.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show one bar with the remaining time on stderr, if that is a terminal.

    Raises:
        TypeError: For what is no network, no attribution, no metric, or data of another form.
        ValueError: For pictures that a fit was chosen on; names, fits and arms that do not fit each other; masks of
            another number; an `Engine` with settings that it has already; and where nothing at all could be scored.

    Example:
        >>> from gradspec.attributions import GradientInput, Saliency
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(75, 2)).eval()
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> x, y = torch.rand(4, 3, 5, 5), torch.tensor([0, 1, 0, 1])
        >>> methods = {"Saliency": Saliency(), "GradientInput": GradientInput()}
        >>> scores = evaluate(net, (x, y), methods, {"F": Faithfulness()}, fits={"Saliency": 2.0}, controls=False)
        >>> scores.table.shape, list(scores.summary()["name"])
        ((16, 6), ['Saliency', 'Saliency (abs)', 'Saliency*', 'GradientInput'])
    """
    fits = {} if fits is None else fits
    chosen = _checked(dict(DEFAULT_METRICS) if metrics is None else metrics, masks)
    rows, left_out = planned(attributions, fits, arms, shared_cutoff, controls, seed)
    engine = engine_of(model, batch_size, precision, device, progress)
    given = [fit for value in fits.values() for fit in listed(value) if isinstance(fit, CutoffFit)]
    selection = Selection([*given, *(fit for row in rows for fit in row.fits)], allow_selection)
    collector = Collector(engine, rows, chosen, examples, selection)
    if selection.fits:
        selection.refuse(engine.model, *_known(data))
    notes = misfits(rows, engine.model)
    for attribution, note in dict.fromkeys((name, note) for (name, _), note in notes.items()):
        warnings.warn(f"{attribution!r}: {note}.", stacklevel=2)
    for key, reason in left_out.items():
        collector.miss(*key, "", ValueError(reason))
    began = time.perf_counter()
    _run(collector, data, masks)
    scores = collector.result(_spec(engine, chosen, collector, notes, seed, time.perf_counter() - began))
    if inside := scores.spec["selection"]:
        warnings.warn(
            f"{inside} of {collector.done} pictures are among those that a cutoff was chosen on: its scores are too "
            "good.",
            stacklevel=2,
        )
    if unscored := int(scores.table["value"].isna().sum()):
        warnings.warn(
            f"{unscored} of {len(scores.table)} scores are NaN (maps that are constant or not finite, or have no such "
            "score): summary() counts the others.",
            stacklevel=2,
        )
    return scores


def _run(collector: Collector, data: Data, masks: Maps | None) -> None:
    """Goes once through the data; the bar's total is what the pictures so far took, for all."""
    engine, count = collector.engine, number_of_pictures(data)
    if masks is not None and count is not None and len(masks) != count:
        raise ValueError(f"Expected a mask for each of {count} pictures, got {len(masks)}.")
    before = engine.forwards
    with engine.bar("evaluate", None) as bar:
        try:
            for batch in _batches(data, len(collector.rows)):
                with engine.counted_by(bar):
                    here = slice(collector.done, collector.done + len(batch.ids))
                    collector.add(batch, None if masks is None else masks[here])
                done, spent = collector.done, engine.forwards - before
                bar.total = None if count is None else spent * max(count, done) // done
        except Exception as error:
            if not collector.ledger.lines:
                raise
            collector.end(error)
            return
    if masks is not None and len(masks) != collector.done:
        raise ValueError(f"Expected a mask for each of {collector.done} pictures, got {len(masks)}.")


def _checked(metrics: Any, masks: Maps | None) -> dict[str, Callable[..., Any]]:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"Expected metrics as a mapping {{name: metric}}, got {type(metrics).__name__}.")
    if not metrics:
        raise ValueError("Expected at least one metric, got none.")
    for name, metric in metrics.items():
        if isinstance(metric, type) or not callable(metric):
            raise TypeError(f"Expected a metric such as Deletion() as {name!r}, got {metric!r}.")
        if masks is None and takes(metric, "masks"):
            raise ValueError(f"Expected masks= of the objects for {name!r}, got none.")
    return dict(metrics)


def _batches(data: Data, rows: int) -> Iterator[Batch]:
    """Batches of which the maps of all rows fit in memory."""
    tensors = isinstance(data, Tensor) or (isinstance(data, tuple) and bool(data) and isinstance(data[0], Tensor))
    for batch in in_batches(data, GROUP if tensors else None):
        pixels = int(batch.images.shape[-2] * batch.images.shape[-1])
        size = max(1, min(GROUP, HELD // (max(rows, 1) * pixels)))
        for start in range(0, len(batch.ids), size):
            part = slice(start, start + size)
            labels = None if batch.labels is None else batch.labels[part]
            yield Batch(batch.images[part], labels, batch.ids[part])


def _known(data: Any) -> tuple[list[str], list[str]]:
    """Names and contents of all pictures, as far as they are known before any is looked at."""
    images = data[0] if isinstance(data, tuple) and data else data
    if isinstance(images, Tensor):
        names = names_of(images) if images.ndim == 4 else []
        return names, names
    if isinstance(data, list):
        batches = [batch for batch in data if isinstance(batch, (tuple, list)) and batch]
        pictures = [batch[0] for batch in batches if isinstance(batch[0], Tensor) and batch[0].ndim == 4]
        names = [str(name) for batch in batches if len(batch) == 3 for name in _names(batch[2])]
        return names, [picture_id(image) for part in pictures for image in part]
    return _names(getattr(data, "ids", None)) or _of_dataset(data), []


def _of_dataset(loader: Any) -> list[str]:
    """The names of a loader's dataset, where it takes all of it: a sampler may leave some out."""
    ids = _names(getattr(getattr(loader, "dataset", None), "ids", None))
    sampler = getattr(loader, "sampler", None)
    whole = getattr(loader, "batch_size", None) is not None and not getattr(loader, "drop_last", False)
    return ids if whole and isinstance(sampler, Sized) and len(sampler) == len(ids) else []


def _names(ids: Any) -> list[str]:
    if not isinstance(ids, (list, tuple)):
        return []
    return [str(name) for name in ids if isinstance(name, (str, numbers.Integral))]


def _spec(
    engine: Engine, metrics: Mapping[str, Any], collector: Collector, notes: Mapping[Key, str], seed: int,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    count = collector.selection.count
    spec = described(engine.model, "spec")
    loaded = spec if isinstance(spec, dict) else {}
    return {
        "model": str(loaded.get("spec", type(engine.model).__name__)),
        "surgery": [record.as_dict() for record in records(engine.model)],
        "pictures": collector.done,
        "accuracy": collector.right / collector.labelled if collector.labelled else None,
        "labelled": collector.labelled,
        "selection": count(fit for row in collector.rows for fit in row.fits),
        "rows": [
            row.described() | {"selection": count(row.fits), "note": notes.get(row.key, "")} for row in collector.rows
        ],
        "metrics": {name: _about(metric) for name, metric in metrics.items()},
        "seed": seed,
        "precision": engine.precision,
        "form": engine.form,
        "units": engine.units,
        "device": str(engine.device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in ("gradspec", "torch", "numpy")}
        | {"python": platform.python_version()},
    }


def _about(metric: Any) -> dict[str, Any]:
    higher = bool(getattr(metric, "higher_is_better", True))
    return {"type": type(metric).__name__, "settings": text_of(metric), "higher_is_better": higher}

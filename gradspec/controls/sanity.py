"""Sanity check: do maps change as the network is randomised, from the logits down (Adebayo 2018; paper fig. A.12)?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradspec._checks import check_whole
from gradspec._showing import figure_of, html_of
from gradspec.attributions.base import Explain
from gradspec.controls.likeness import rank_likeness, structural_similarity
from gradspec.controls.runs import Labelled, labelled, name_of
from gradspec.data import Data
from gradspec.engine import Engine, Precision, engine_of
from gradspec.forgrad import maps_of
from gradspec.passes import eval_mode, output_of, to_weights
from gradspec.statistics import Paired, paired
from gradspec.surgery import NothingToSwap, randomised
from gradspec.surgery.copies import with_trial
from gradspec.surgery.resets import tensors

if TYPE_CHECKING:
    import pandas as pd

OTHER = "other picture"
MEASURES = ("spearman", "spearman_abs", "ssim")
ALIKE = 0.9  # maps of two pictures that are as like as that leave a randomised network nothing to change


@dataclass(frozen=True, eq=False)
class Sanity:
    """How like the original maps are to those of a network more and more randomised; made by `sanity`.

    Attributes:
        table: One row per picture, attribution and stage: `picture`, `label`, `attribution`, `stage` (1, 2, ...; 0 for
            chance), `layer` (the last made random, after all behind it; "other picture" for chance), `share` of the
            weights that are random, `spearman` of the maps, `spearman_abs` of their magnitudes, `ssim` of the
            magnitudes, each scaled to 0..1. NaN where a map is constant or not finite.
        spec: Model, layers, seed, as plain JSON.
    """

    table: pd.DataFrame
    spec: dict[str, Any]

    def summary(self) -> pd.DataFrame:
        """Returns, by attribution and stage, the mean over pictures of each measure, its standard error and number.

        Columns `spearman`, `spearman_se`, `spearman_n`, and so on. A method whose maps stay above the row of "other
        picture" after the last stage shows something that is not the network's.
        """
        keys = ["attribution", "stage", "layer", "share"]
        groups = self.table.groupby(keys, sort=False, dropna=False)
        ends = {"": "mean", "_se": "sem", "_n": "count"}
        return groups.agg(**{f"{m}{end}": (m, how) for m in MEASURES for end, how in ends.items()}).reset_index()

    def verdicts(self) -> pd.DataFrame:
        """Returns whether each attribution passes by each measure: is it more like itself than another picture's map?

        A row per attribution and measure: `likeness` after the last stage, `chance` (the other picture's), `excess` of
        the one over the other, paired over pictures, `se`, `low` and `high` (95 % interval), `bf10`, `n`, and the
        `verdict`: "fails" where the interval lies above 0, "alike" where it does not but the maps of two pictures are
        so alike (0.9 or more) that nothing can be told, "passes" elsewhere, "undefined" without pairs.
        """
        import pandas as pd

        rows = []
        groups: Any = self.table.groupby("attribution", sort=False)
        for name, part in groups:
            last = part[part["stage"] == part["stage"].max()].set_index("picture")
            other = part[part["stage"] == 0].set_index("picture").reindex(last.index)
            for measure in MEASURES:
                found = paired(last[measure].to_numpy(), other[measure].to_numpy())
                both = np.isfinite(last[measure] + other[measure])
                chance = other[measure][both].mean()
                rows.append({"attribution": name, "measure": measure, "likeness": last[measure][both].mean()})
                rows[-1] |= {"chance": chance, "excess": found.mean, "se": found.se, "low": found.low}
                rows[-1] |= {"high": found.high, "bf10": found.bf10, "n": found.n, "verdict": _verdict(found, chance)}
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """Returns how like the original maps stay as the network is randomised (`gradspec.plots.sanity`)."""
        return figure_of("controls.sanity", self)

    def __repr__(self) -> str:
        pictures = self.table["picture"].nunique()
        return f"Sanity({self.spec['model']}, {pictures} pictures, {self.table['attribution'].nunique()} methods)"

    def _repr_html_(self) -> str:
        alt = "How like the original maps stay as the network is randomised from the logits down, a curve per method."
        return html_of(self, self.verdicts(), alt)


def _verdict(excess: Paired, chance: float) -> str:
    if not math.isfinite(excess.low):
        return "undefined"
    return "fails" if excess.low > 0 else "alike" if chance >= ALIKE else "passes"


class _Stage(NamedTuple):
    layer: str  # the last that became random
    names: tuple[str, ...]  # of all tensors that are


class _Maps(NamedTuple):
    """The original maps of one picture by attribution (H, W), on the CPU."""

    picture: str
    label: int
    maps: dict[str, Tensor]


def sanity(
    model: nn.Module | Engine,
    data: Data,
    attributions: Mapping[str, Explain],
    *,
    layers: Sequence[str] | None = None,
    stages: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Sanity:
    """Returns how maps change as layer after layer gets fresh weights, for methods before and after FORGrad.

    Cascading randomisation: stage s has all layers from the logits down to its own drawn anew (`surgery.randomised`),
    while the class that is explained stays. Smooth maps are alike by chance, so that a filter alone raises the numbers:
    beside each method stands how like its original map is to that of the picture before ("other picture", stage 0).

    Args:
        model: A classifier, or an `Engine` made of one; not changed.
        data: (images, labels), images alone (labels = the model's prediction), or batches (images, labels[, ids]) that
            can be gone over again; all original maps are held in memory.
        attributions: By name, FORGrad of an attribution beside the bare one: they share their explanation.
        layers: Names of modules or patterns, from the logits down, a stage each; None: all layers in the order in which
            they run, the last alone and the rest cut into stages of about equally many.
        stages: How many there are where `layers` is None, or as many as there are layers.
        seed: Of the fresh weights.
        batch_size: Pictures per pass; None: by their size.
        precision: "bf16" for scores in bfloat16, that is everything but gradients.
        device: Where to work; None: where the model is.
        progress: Show bars with the remaining time on stderr, if that is a terminal.

    Raises:
        TypeError: For what is no network, no attribution, and data of another form.
        ValueError: No attributions, under one stage, layers that the network has not (`NothingToSwap`), and settings
            beside an `Engine`.

    Example:
        >>> from gradspec.attributions import Saliency
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> case = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> found = sanity(net, case, {"Saliency": Saliency()}, progress=False).summary()
        >>> found["layer"].tolist(), found["share"].round(2).tolist()
        (['other picture', '3', '0'], [0.0, 0.72, 1.0])
    """
    if not attributions:
        raise ValueError('Expected attributions by name, as {"Saliency": Saliency()}, got none.')
    check_whole(stages=stages)
    engine = engine_of(model, batch_size, precision, device, progress)
    net = engine.model
    originals: list[_Maps] = []
    rows: list[dict[str, Any]] = []
    cascade: list[_Stage] = []
    with labelled(engine, data, "original maps", 1) as batches:
        for batch in batches:
            cascade = cascade or _cascade(net, batch.images[:1], layers, stages)
            originals += _explained(engine, attributions, batch)
    rows += _chance(originals)
    sizes = {name: value.numel() for name, value in _weights(net).items()}
    for number, stage in enumerate(cascade, 1):
        new, _ = randomised(net, stage.names, seed)
        other = Engine(new, batch_size=batch_size, precision=engine.precision, progress=engine.progress)
        share = sum(sizes[name] for name in stage.names) / sum(sizes.values())
        about = {"stage": number, "layer": stage.layer, "share": share}
        rows += _compared(other, data, attributions, originals, about)
    import pandas as pd

    spec = {"control": "sanity", "model": name_of(net), "layers": [stage.layer for stage in cascade], "seed": seed}
    table = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(attributions)}
    return Sanity(table.sort_values("attribution", key=lambda c: c.map(order), kind="stable", ignore_index=True), spec)


def _explained(engine: Engine, attributions: Mapping[str, Explain], batch: Labelled) -> list[_Maps]:
    found = maps_of(engine, attributions, batch.images, batch.labels, batch.ids)
    flat = {name: (maps.mean(1) if maps.ndim == 4 else maps).cpu() for name, maps in found.items()}
    pairs = zip(batch.ids, batch.labels.tolist(), strict=True)
    return [_Maps(one, label, {name: maps[k] for name, maps in flat.items()}) for k, (one, label) in enumerate(pairs)]


def _compared(
    engine: Engine, data: Data, attributions: Mapping[str, Explain], originals: list[_Maps], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each picture and attribution; the labels are the original network's."""
    rows: list[dict[str, Any]] = []
    left = iter(originals)
    classes = [one.label for one in originals]
    with labelled(engine, data, f"random from {about['layer']}", 1, classes) as batches:
        for batch in batches:
            for after in _explained(engine, attributions, batch):
                before = next(left, None)
                if before is None or before.picture != after.picture:
                    raise ValueError("Expected the same pictures in the same order each time that data is gone over.")
                rows += _rows(before, before.maps, after.maps, about)
    return rows


def _chance(originals: list[_Maps]) -> list[dict[str, Any]]:
    """How like the maps of two pictures are: each with the one before, the first with the last."""
    about = {"stage": 0, "layer": OTHER, "share": 0.0}
    pairs = zip(originals, [*originals[-1:], *originals[:-1]], strict=True) if len(originals) > 1 else []
    return [row for one, other in pairs for row in _rows(one, one.maps, other.maps, about)]


def _rows(
    one: _Maps, before: Mapping[str, Tensor], after: Mapping[str, Tensor], about: dict[str, Any]
) -> list[dict[str, Any]]:
    start = {"picture": one.picture, "label": one.label}
    return [{**start, "attribution": name, **about, **likeness(before[name], after[name])} for name in before]


def likeness(one: Tensor, other: Tensor) -> dict[str, float]:
    """Returns the three measures of `Sanity.table` of two maps (H, W); NaN where one holds no explanation.

    Example:
        >>> map = torch.arange(6.0).view(2, 3) - 3
        >>> likeness(map, -map)["spearman"], likeness(map, -map)["spearman_abs"]
        (-1.0, 1.0)
    """
    if one.shape != other.shape or not all(bool(m.isfinite().all()) for m in (one, other)):
        return dict.fromkeys(MEASURES, math.nan)
    signed = rank_likeness(one, other)
    a, b = one.abs().double(), other.abs().double()
    values = signed, rank_likeness(a, b), structural_similarity(_scaled(a), _scaled(b))
    return dict(zip(MEASURES, values, strict=True))


def _scaled(values: Tensor) -> Tensor:
    """0..1; NaN where constant."""
    return (values - values.min()) / (values.max() - values.min())


# ---- which layers ------------------------------------------------------------------------------


def _cascade(net: nn.Module, sample: Tensor, layers: Sequence[str] | None, stages: int) -> list[_Stage]:
    weights = _weights(net)
    if not weights:
        raise NothingToSwap("The network has no weights to draw anew.")
    if layers is not None:
        found: list[_Stage] = []
        for layer in [layers] if isinstance(layers, str) else layers:
            names = tuple(name for name in weights if fnmatchcase(name, layer) or fnmatchcase(name, f"{layer}.*"))
            if not names:
                randomised(net, layer)  # raises with the nearest names
            found.append(_Stage(layer, tuple(dict.fromkeys((*(found[-1].names if found else ()), *names)))))
        return found
    units = _units(net, sample, weights)
    ends = sorted({round(end) for end in np.linspace(1, len(units), min(stages, len(units)))})
    return [_Stage(units[end - 1][0], tuple(n for _, own in units[:end] for n in own)) for end in ends]


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in tensors(net).items() if value.is_floating_point()}


def _units(net: nn.Module, sample: Tensor, weights: Mapping[str, Tensor]) -> list[tuple[str, list[str]]]:
    """Modules with weights of their own, and the names of these, the last to run first."""
    own: dict[str, list[str]] = {}
    for name in weights:
        own.setdefault(name.rpartition(".")[0], []).append(name)
    started = _starts(net, sample)

    def place(path: str) -> int:
        """When it first ran, or else the module that holds it: some use their parts' weights as functions."""
        while path and path not in started:
            path = path.rpartition(".")[0]
        return started.get(path, 0)

    order = sorted(own, key=place)  # stable: as registered where equal
    return [(path or own[path][0], own[path]) for path in reversed(order)]


def _starts(net: nn.Module, sample: Tensor) -> dict[str, int]:
    """In which order the modules start, in a copy that shares the weights."""
    _, trial, _ = with_trial(net)
    started: dict[str, int] = {}
    names = {module: path for path, module in trial.named_modules()}

    def note(module: nn.Module, _: Any) -> None:
        started.setdefault(names[module], len(started))

    handles = [module.register_forward_pre_hook(note) for module in names]
    try:
        with torch.inference_mode(False), torch.no_grad(), eval_mode(trial):
            output_of(trial, to_weights(trial, sample.detach()))
    finally:
        for handle in handles:
            handle.remove()
    return started

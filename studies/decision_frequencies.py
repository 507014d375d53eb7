"""Do the frequencies that FORGrad takes out carry the decision? (The paper's §7; "next check 3" of its summary.)

    python studies/decision_frequencies.py --model ../shared/nets/tiny_darknet.py:load \
        --weights ../shared/nets/tiny_darknet.safetensors --images ../shared/images --limit 32 --radii 0.0625 0.25 1 \
        --name decision_frequencies_tiny_darknet

The label is the network's own answer; lengths ‖ε‖ are of pixels in 0..1, over all of a picture, and nothing is clipped.
For each cutoff σ the gradient of the label's logit is split into the part that a low-pass filter keeps, and the part
that it takes. Of each picture:

- "step": equal lengths against the gradient, its parts, and random directions in the same bands: drop of logit and
  probability, whether the answer flips, and "efficiency": the drop over what the gradient says, r·‖part‖, 1 where the
  network is linear so far (at equal lengths the larger part goes further down, and sooner out of the linear);
- "line": the radius that flips the answer along each part, and "flip power": 1/radius² of a part over that of both. In
  a linear network it is the part's share of the gradient's power; 0 where the part flips nothing. Of a picture that
  neither part flips it is not defined (0/0): such pictures are left out, so that its means are those of the pictures
  that some part flips alone, and its n, smaller than that of the pictures, stands beside it;
- "attack": projected gradient descent on the margin whose gradient is filtered: whether it flips;
- "kept": the attack with all frequencies, of which one part is kept, at its own length or at the attack's;
- "share": of the gradient's power, and of the attack's;
- "F": faithfulness of Saliency with FORGrad at σ, and the gain over no filter.

Then all of it for pictures near the decision boundary and far from it, split at the median of the margin.

Writes NAME.csv (means with 95 % bootstrap intervals over pictures), NAME_paired.csv (high less low on the same
pictures; what a line does not flip counts as twice its end), NAME_margin.csv (near less far, Welch's interval),
NAME.png and NAME.json.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from study import Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec import attributions as a
from gradspec.controls import Band, attack, flip_radii, power_share
from gradspec.controls.bands import answers, pixel_gradients, random_directions, unit
from gradspec.engine import Pictures
from gradspec.forgrad import maps_of
from gradspec.metrics import Faithfulness
from gradspec.metrics.sharing import scored
from gradspec.statistics import bootstrap_interval, paired

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
KEYS = ["arm", "direction", "band", "cutoff", "radius", "measure"]
ENDS = -6, 6  # of the radii along a line: powers of two
NOWHERE = -1.0  # the cutoff of all frequencies and the radius of what has none, so that tables join


def command() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = parser(__doc__, name="decision_frequencies", limit=64)
    made.add_argument("--cutoffs", type=float, nargs="+", help="in cycles/image; by default n/4, n/8, n/16 and 2.5")
    made.add_argument("--radii", type=float, nargs="+", default=[0.25, 1.0, 4.0], help="of steps and attacks")
    made.add_argument("--steps", type=int, default=5, help="gradients of an attack")
    made.add_argument("--batch", type=int, default=4, help="pictures of a unit: what is lost when a run is stopped")
    made.add_argument("--grid", type=int, default=2, help="radii along a line are powers of 2^grid")
    return made


def bands_of(args: argparse.Namespace, size: Sequence[int]) -> list[Band]:
    """Returns all frequencies, and those up to and above each cutoff."""
    n = min(size[-2:])
    cutoffs = args.cutoffs or [n / 4, n / 8, n / 16, 2.5]
    return [Band(), *(Band(part, float(cutoff)) for cutoff in cutoffs for part in ("low", "high"))]


class Rows:
    """Values of one group of pictures, a row for each picture and measure."""

    def __init__(self, pictures: Pictures, margins: Tensor) -> None:
        self.ids, self.margins, self.parts = pictures.ids, margins.tolist(), []

    def add(self, arm: str, direction: str, band: Band, radius: float, **values: Tensor) -> None:
        """Adds measures (N,)."""
        cutoff = NOWHERE if band.cutoff is None else band.cutoff
        key = dict(zip(KEYS, (arm, direction, band.part, cutoff, radius), strict=False))
        for measure, found in values.items():
            told = {"picture": self.ids, "margin": self.margins, "value": found.double().tolist()}
            self.parts.append(pd.DataFrame({**key, "measure": measure.replace("_", " "), **told}))

    def table(self) -> pd.DataFrame:
        """Returns all of them."""
        return pd.concat(self.parts, ignore_index=True)


def one_unit(args: argparse.Namespace, engine: gs.Engine, batch: Any) -> pd.DataFrame:
    """Returns everything about one batch."""
    (pictures,) = engine.groups(batch[0], engine.predictions(batch[0]), batch[2])
    bands = bands_of(args, pictures.images.shape)
    before = answers(engine, pictures, torch.zeros_like(pictures.images)[:, None])
    rows = Rows(pictures, before.margin[:, 0])
    gradient = pixel_gradients(engine, pictures)
    norms = torch.stack([band(gradient).flatten(1).norm(dim=1) for band in bands], 1)
    for band in bands:
        rows.add("share", "gradient", band, NOWHERE, of_power=power_share(gradient, band))
    down = torch.stack([-unit(band(gradient)) for band in bands], 1)
    noise = torch.stack([random_directions(pictures, band, seed=args.seed) for band in bands], 1)
    for radius in args.radii:
        for direction, lines in (("gradient", down), ("random", noise)):
            after = answers(engine, pictures, radius * lines)
            for k, band in enumerate(bands):
                drop = before.logit[:, 0] - after.logit[:, k]
                told = {
                    "drop_of_logit": drop,
                    "drop_of_probability": before.probability[:, 0] - after.probability[:, k],
                }
                if direction == "gradient":
                    told["efficiency"] = drop / (radius * norms[:, k])
                rows.add("step", direction, band, radius, **told, flips=after.flipped[:, k])
    radii = [2.0**k for k in range(ENDS[0], ENDS[1] + 1, args.grid)]
    flips = flip_radii(engine, pictures, down, radii, halvings=5)
    shares = torch.stack([power_share(gradient, band) for band in bands], 1)
    for k, band in enumerate(bands):
        rows.add("line", "gradient", band, NOWHERE, flip_radius=flips[:, k], flips=flips[:, k].isfinite())
        if band.part != "all":
            other = flips[:, k - 1 if band.part == "high" else k + 1]  # the parts stand in pairs
            power = flips[:, k] ** -2 / (flips[:, k] ** -2 + other**-2)
            more = {"flip_power": power, "flip_power_less_share_of_power": power - shares[:, k]}
            rows.add("line", "gradient", band, NOWHERE, **more)
    attacks(args, engine, pictures, bands, rows)
    faithful(engine, pictures, bands, rows)
    return rows.table()


def attacks(args: argparse.Namespace, engine: gs.Engine, pictures: Pictures, bands: list[Band], rows: Rows) -> None:
    """Adds attacks within each band, and what the parts of the one with all frequencies do."""
    found = attack(engine, pictures, bands, args.radii, steps=args.steps)  # (N, B, R, C, H, W)
    for r, radius in enumerate(sorted(args.radii)):
        after = answers(engine, pictures, found[:, :, r])
        whole = found[:, 0, r]
        parts = torch.stack([band(whole) for band in bands], 1)
        own, equal = (answers(engine, pictures, steps) for steps in (parts, radius * unit(parts)))
        for k, band in enumerate(bands):
            rows.add("attack", "gradient", band, radius, flips=after.flipped[:, k])
            rows.add("kept", "own length", band, radius, flips=own.flipped[:, k])
            rows.add("kept", "equal length", band, radius, flips=equal.flipped[:, k])
            rows.add("share", "attack", band, radius, of_power=power_share(whole, band))


def faithful(engine: gs.Engine, pictures: Pictures, bands: list[Band], rows: Rows) -> None:
    """Adds faithfulness of Saliency, and what filtering its map gains."""
    method = a.Saliency()
    chosen = [band for band in bands if band.part == "low"]
    work = {Band(): method, **{band: gs.FORGrad(method, band.cutoff) for band in chosen}}
    maps = maps_of(engine, {repr(band): each for band, each in work.items()}, *pictures)
    values = scored(engine, Faithfulness(), *pictures, maps)
    for band in work:
        rows.add("F", "Saliency", band, NOWHERE, F=values[repr(band)])
        if band != Band():
            rows.add("F", "Saliency", band, NOWHERE, gain=values[repr(band)] - values[repr(Band())])


def summary(table: Frame) -> Frame:
    """Returns the mean of each measure over pictures with its 95 % interval, and the median (of radii)."""
    rows = []
    for key, rest in table.groupby(KEYS, sort=False):
        values = rest["value"].to_numpy()
        finite = values[np.isfinite(values)]
        if len(finite):
            low, high = bootstrap_interval(finite)
            rows.append([*key, finite.mean(), low, high, len(finite), np.nanmedian(values)])
    return pd.DataFrame(rows, columns=[*KEYS, "mean", "low", "high", "n", "median"])


def contrasts(table: Frame) -> Frame:
    """Returns what the part above a cutoff has more than the part below, on the same pictures; radii as logarithms."""
    rows, end = [], 2.0 ** (ENDS[1] + 1)
    for key, rest in table[table["band"] != "all"].groupby([k for k in KEYS if k != "band"], sort=False):
        wide = rest.pivot_table("value", "picture", "band", sort=False)
        if {"low", "high"} <= set(wide.columns):
            ratio = key[-1] == "flip radius"
            high, low = (np.log2(wide[part].clip(upper=end)) if ratio else wide[part] for part in ("high", "low"))
            found = paired(high.to_numpy(), low.to_numpy())
            rows.append([*key, found.mean, found.low, found.high, found.n, found.bf10])
    names = [k for k in KEYS if k != "band"]
    result = pd.DataFrame(rows, columns=[*names, "high less low", "low", "high", "n", "bf10"])
    return result.replace({"measure": {"flip radius": "flip radius, log2"}})


def by_margin(table: Frame) -> Frame:
    """Returns means of the half of the pictures of smaller margin, of the other half, and Welch's interval between."""
    margins = table.groupby("picture")["margin"].first()
    near = table["picture"].map(margins <= margins.median())
    rows = []
    for key, rest in table.groupby(KEYS, sort=False):
        halves = [
            part[np.isfinite(part)] for part in (rest["value"][near[rest.index] == side] for side in (True, False))
        ]
        if min(map(len, halves)) > 1:
            with warnings.catch_warnings():  # of equal values, whose interval is that value
                warnings.simplefilter("ignore")
                low, high = stats.ttest_ind(*halves, equal_var=False).confidence_interval()
            means = [part.mean() for part in halves]
            rows.append([*key, *means, means[0] - means[1], low, high, *map(len, halves)])
    names = ["near", "far", "near less far", "low", "high", "n near", "n far"]
    return pd.DataFrame(rows, columns=[*KEYS, *names])


def counted(means: Frame, cutoff: float) -> int:
    """Returns how many pictures flip power is the mean of: those that a part flips, at least one of both."""
    here = (means["measure"] == "flip power") & (means["band"] == "high") & (means["cutoff"] == cutoff)
    return int(means["n"][here].sum())


def facts(means: Frame, pairs: Frame, halves: Frame) -> dict[str, Any]:
    """Returns the numbers that decide, by cutoff."""

    def told(frame: Frame, arm: str, measure: str, column: str = "mean", **where: Any) -> Any:
        some = frame[(frame["arm"] == arm) & (frame["measure"] == measure)]
        for name, value in where.items():
            some = some[some[name] == value]
        rows = some[[column, "low", "high"]].round(3).to_numpy().tolist()
        radii = some["radius"].tolist()
        return rows[0] if len(rows) == 1 else dict(zip(map("{:g}".format, radii), rows, strict=True))

    last = "near less far"
    found: dict[str, Any] = {"mean, low, high": "95 % intervals over pictures; by radius where there are several"}
    for cutoff in sorted(c for c in means["cutoff"].unique() if c != NOWHERE):
        at: dict[str, Any] = {"cutoff": cutoff, "band": "high"}
        found[f"above σ = {cutoff:g}"] = {
            "share of the gradient's power": told(means, "share", "of power", direction="gradient", **at),
            "flip power": told(means, "line", "flip power", **at),
            "flip power less share of power": told(means, "line", "flip power less share of power", **at),
            "flip power: pictures": counted(means, cutoff),
            "flip radius, log2 of high over low": told(
                pairs, "line", "flip radius, log2", "high less low", cutoff=cutoff
            ),
            "efficiency": told(means, "step", "efficiency", **at),
            "efficiency, low": told(means, "step", "efficiency", cutoff=cutoff, band="low"),
            "efficiency, high less low": told(pairs, "step", "efficiency", "high less low", cutoff=cutoff),
            "attacks that flip": told(means, "attack", "flips", **at),
            "attacks that flip, low": told(means, "attack", "flips", cutoff=cutoff, band="low"),
            "share of the attack's power": told(means, "share", "of power", direction="attack", **at),
            "kept high part flips": told(means, "kept", "flips", direction="own length", **at),
            "kept low part flips": told(means, "kept", "flips", direction="own length", cutoff=cutoff, band="low"),
            "gain of F": told(means, "F", "gain", cutoff=cutoff),
            "near less far: share of power": told(halves, "share", "of power", last, direction="gradient", **at),
            "near less far: flip power": told(halves, "line", "flip power", last, **at),
            "near less far: efficiency": told(halves, "step", "efficiency", last, **at),
            "near less far: gain of F": told(halves, "F", "gain", last, cutoff=cutoff),
        }  # fmt: skip
    found["attacks that flip, all frequencies"] = told(means, "attack", "flips", band="all")
    return found


def draw(means: Frame, title: str, units: str) -> Figure:
    """Returns six panels: shares of power; efficiency; flips by steps, attacks, parts of attacks, random directions."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    axes = list(figure.subplots(2, 3).flat)
    shares = (
        ("share", "gradient", "of power", "of the gradient's power"),
        ("line", "gradient", "flip power", "flip power, of pictures that flip"),
    )
    for k, (arm, direction, measure, words) in enumerate(shares):
        rows = means[(means["arm"] == arm) & (means["direction"] == direction) & (means["measure"] == measure)]
        _errorbar(axes[0], rows[rows["band"] == "high"].sort_values("cutoff"), "cutoff", k, words)
    axes[0].set(xscale="log", xlabel="cutoff σ (cycles/image)", ylabel="share above σ", ylim=(0, None))
    panels = (
        ("step", "gradient", "efficiency", "drop of the logit over what the gradient says"),
        ("step", "gradient", "flips", "share of answers flipped by one step"),
        ("attack", "gradient", "flips", "share of answers flipped by attacks in the band"),
        ("kept", "own length", "flips", "share flipped by a part of the attack"),
        ("step", "random", "flips", "share flipped by random directions"),
    )
    cutoffs = sorted((c for c in means["cutoff"].unique() if c != NOWHERE), reverse=True)
    for axis, (arm, direction, measure, words) in zip(axes[1:], panels, strict=True):
        rows = means[(means["arm"] == arm) & (means["direction"] == direction) & (means["measure"] == measure)]
        for band in ("all", "low", "high"):
            for k, cutoff in enumerate(cutoffs if band != "all" else [NOWHERE]):
                some = rows[(rows["band"] == band) & (rows["cutoff"] == cutoff)].sort_values("radius")
                name = "all frequencies" if band == "all" else f"{'up to' if band == 'low' else 'above'} {cutoff:g}"
                _errorbar(axis, some, "radius", {"all": 0, "low": 1, "high": 2}[band], name, shade=k)
        axis.set(xscale="log", xlabel=f"radius ‖ε‖ ({units})", ylabel=words, ylim=(0, None))
        _ticks(axis, rows["radius"])
    _ticks(axes[0], cutoffs)
    axes[0].legend(fontsize=8, frameon=False)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _ticks(axis: Any, places: Any) -> None:
    """Writes plain numbers at the places that were measured."""
    axis.minorticks_off()
    axis.set_xticks(np.unique(places), [f"{place:g}" for place in np.unique(places)])


def _errorbar(axis: Any, rows: Frame, x: str, look: int, label: str, shade: int = 0) -> None:
    """Draws means with their intervals: a colour and line for each kind, a marker and shade for each cutoff."""
    reach = np.nan_to_num(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])).clip(min=0)
    style = {"color": ["0.2", "C0", "C3"][look], "ls": [":", "-", "--"][look], "marker": "osD^v<"[shade % 6]}
    axis.errorbar(rows[x], rows["mean"], reach, **style, alpha=1 - 0.18 * shade, ms=4, lw=1.1, capsize=2, label=label)


def main(argv: list[str] | None = None) -> None:
    """Measures, contrasts and writes."""
    smoke = {"limit": 4, "cutoffs": [8.0], "radii": [1.0, 4.0], "steps": 2, "batch": 2, "grid": 4}
    args = parsed(command(), argv, smoke=smoke, paper={"limit": 1000, "steps": 10})
    args.radii = sorted(args.radii)
    study = Study(args, __file__)
    net = study.model()
    engine = gs.Engine(net, progress=False)
    batches = enumerate(study.pictures(net, batch_size=args.batch))
    parts = [study.unit(f"pictures {k}", lambda b=b: one_unit(args, engine, b), engine) for k, b in batches]  # type: ignore[arg-type]
    table = pd.concat(parts, ignore_index=True)
    means, pairs, halves = summary(table), contrasts(table), by_margin(table)
    study.table(means)
    study.table(pairs, "_paired")
    study.table(halves, "_margin")
    margins: Any = table.groupby("picture")["margin"].first()
    title = f"{args.name}: {len(margins)} pictures, means and 95 % intervals"
    study.figure(draw(means, title, engine.units))
    for cutoff in sorted(set(means["cutoff"]) - {NOWHERE}):
        print(f"flip power at σ = {cutoff:g}: of {counted(means, cutoff)} of {len(margins)} pictures")
    study.finish(pictures=len(margins), median_margin=round(float(margins.median()), 3), units_of_radii=engine.units,
                 decided=facts(means, pairs, halves))  # fmt: skip


if __name__ == "__main__":
    main()

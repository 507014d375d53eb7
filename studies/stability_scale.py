"""Is stability a matter of scale, and does FORGrad improve it? The stability column of the slides and of paper table 3.

    python studies/stability_scale.py --model ../shared/nets/tiny_darknet.py:load --weights \
        ../shared/nets/tiny_darknet.safetensors --images ../shared/images --name stability_scale_tiny_darknet
    python studies/stability_scale.py --limit 32 --name stability_scale_vgg_max

The thirteen methods, each as it is ("none"), as its magnitude alone ("abs"), with FORGrad on the finished map ("map σ")
and, white-box ones, in the gradient ("gradient σ"): stability as it is defined, in units of the map ("raw"); over the
length of the picture's map ("scale-free"); and the same of the maps less their mean ("centred"), since a constant,
which a low-pass of a magnitude keeps, is perfectly stable and shows nothing. Beside them the maps' mean length. The
black-box methods have fewer passes (`study.REDUCED`) and are measured on --black pictures, of a folder spread on their
own, so not all among those of the others.

The noisy copies of a picture are explained once for all arms. Multiplying the maps by ten multiplies raw stability by
ten and leaves the scale-free as it is, which is measured too. A low-pass takes length away, so that raw stability
improves for that alone: the scale-free decides.

Writes NAME.csv (a row per method and arm), NAME_gains.csv (paired, FORGrad against none and against abs), NAME.png and
NAME.json, with the rank correlations over methods and what the printed table says by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from study import REDUCED, Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec import attributions as a
from gradspec.attributions import Attribution
from gradspec.data import names_of
from gradspec.engine import Pictures
from gradspec.forgrad import maps_of
from gradspec.metrics import Stability
from gradspec.statistics import bootstrap_interval, paired

FACTOR = 10.0
MEASURES = {"raw": "raw", "scale-free": "scale_free", "centred": "centred"}
# name: stability without and with FORGrad as printed (slides; paper table 3 has the same), μFidelity likewise
PRINTED = {
    "Saliency": (0.67, 0.53, 0.40, 0.39), "GuidedBackprop": (0.28, 0.22, 0.45, 0.45),
    "GradientInput": (0.42, 0.35, 0.36, 0.36), "IntegratedGradients": (0.72, 0.76, 0.39, 0.38),
    "SmoothGrad": (0.22, 0.21, 0.45, 0.44), "VarGrad": (0.003, 0.004, 0.46, 0.44),
    "SquareGrad": (0.003, 0.005, 0.45, 0.46), "GradCAM": (0.31,), "GradCAMPlusPlus": (0.34,), "Occlusion": (0.6,),
    "HSIC": (0.45,), "Sobol": (0.47,), "RISE": (0.55,),
}  # fmt: skip
PAIRS = {name: values for name, values in PRINTED.items() if len(values) == 4}


@dataclass
class Shared:
    """The maps of all arms of the pictures that were explained, which are explained once."""

    engine: gs.Engine
    arms: Mapping[str, Any]
    known: dict[tuple[str, ...], dict[str, Tensor]] = field(default_factory=dict)

    def maps(self, arm: str, pictures: Pictures) -> Tensor:
        """Returns the maps of an arm, or, of "ARM, centred", less their means, of "ARM, times 10", times 10."""
        name, _, change = arm.partition(", ")
        key = tuple(names_of(pictures.images))
        if key not in self.known:
            self.known[key] = maps_of(self.engine, self.arms, *pictures)
        maps = self.known[key][name]
        if change == "centred":
            return maps - maps.mean((-2, -1), keepdim=True)
        return FACTOR * maps if change else maps


@dataclass(frozen=True)
class Arm(Attribution):
    """One arm of those that share their explanations, for the metric."""

    shared: Shared
    arm: str

    def passes(self, height: int, width: int) -> int:
        """Returns 1: who asks first pays for all."""
        return 1

    def _maps(self, engine: gs.Engine, pictures: Pictures) -> Tensor:
        return self.shared.maps(self.arm, pictures)


def white(samples: int) -> dict[str, Any]:
    """Returns the white- and gray-box methods."""
    noisy: dict[str, Any] = {"samples": samples}
    return {
        "Saliency": a.Saliency(), "GuidedBackprop": a.GuidedBackprop(), "GradientInput": a.GradientInput(),
        "IntegratedGradients": a.IntegratedGradients(steps=samples), "SmoothGrad": a.SmoothGrad(**noisy),
        "VarGrad": a.VarGrad(**noisy), "SquareGrad": a.SquareGrad(**noisy), "GradCAM": a.GradCAM(),
        "GradCAMPlusPlus": a.GradCAMPlusPlus(),
    }  # fmt: skip


def arms(methods: Mapping[str, Any], cutoffs: Sequence[float]) -> dict[str, Any]:
    """Returns "METHOD: ARM" -> attribution."""
    found: dict[str, Any] = {}
    for name, method in methods.items():
        found |= {f"{name}: none": method, f"{name}: abs": gs.FORGrad(method, None)}
        for cutoff in cutoffs:
            found[f"{name}: map {cutoff:g}"] = gs.FORGrad(method, cutoff)
            if method.family == "white":
                found[f"{name}: gradient {cutoff:g}"] = gs.FORGrad(method, cutoff, where="gradient")
    return found


def distances(engine: gs.Engine, batch: Any, wanted: Mapping[str, Any], metric: Stability) -> pd.DataFrame:
    """Returns raw, scale-free and centred stability and the map's length of one picture, a row for each arm."""
    images, labels, ids = batch
    labels = engine.predictions(images) if labels is None else labels
    shared, rows = Shared(engine, wanted), []

    def found(arm: str) -> tuple[float, float]:
        both = metric.distances(engine, images, labels, ids=ids, attribution=Arm(shared, arm))
        return float(both.raw), float(both.scale_free)

    for arm in wanted:
        method, _, kind = arm.partition(": ")
        length = float(shared.maps(arm, Pictures(images, labels, ids)).double().norm())
        raw, free = found(arm)
        row = {"picture": ids[0], "method": method, "arm": kind, "raw": raw, "scale_free": free, "length": length}
        row["centred"] = found(f"{arm}, centred")[1]
        if kind == "none":
            times, same = found(f"{arm}, times 10")
            row |= {"raw times 10": times / raw if raw else math.nan, "scale_free times 10": same}
        rows.append(row)
    return pd.DataFrame(rows)


def measured(study: Study, engine: gs.Engine) -> pd.DataFrame:
    """Returns the distances of all pictures, a unit for each picture and family."""
    args, parts = study.args, []
    metric = Stability(samples=args.copies, seed=args.seed)
    families = {"white": (white(args.samples), args.limit), "black": (dict(REDUCED), args.black)}
    for family, (methods, count) in families.items():
        if not count:
            continue
        pictures: Iterable[Any] = study.pictures(engine.model, count, batch_size=1)
        wanted = arms(methods, args.cutoffs)
        for k, batch in enumerate(islice(pictures, count)):
            work = partial(distances, engine, batch, wanted, metric)
            parts.append(study.unit(f"{family} {k}", work, engine))
            parts[-1].attrs = {}
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the means over pictures of each method and arm, with their standard errors and intervals."""
    rows = []
    groups: Any = table.groupby(["method", "arm"], sort=False)
    for (method, arm), part in groups:
        row: dict[str, Any] = {"method": method, "arm": arm, "n": len(part)}
        for name, column in {**MEASURES, "length": "length"}.items():
            values: Any = part[column][np.isfinite(part[column])]
            low, high = bootstrap_interval(values.to_numpy())
            row |= {name: values.mean(), f"{name} se": values.sem(), f"{name} low": low, f"{name} high": high}
        row["printed"] = _printed(str(method), str(arm))
        rows.append(row)
    return pd.DataFrame(rows)


def _printed(method: str, arm: str) -> float:
    return PRINTED[method][0] if arm == "none" else math.nan


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Returns log2 ratios of stability, FORGrad over none and over abs, paired over pictures: below 0 is better."""
    rows = []
    for method, part in table.groupby("method", sort=False):
        for arm in dict.fromkeys(part["arm"]):
            for against in ("none", "abs"):
                if arm in ("none", against):
                    continue
                for name, column in MEASURES.items():
                    wide: Any = part.pivot(index="picture", columns="arm", values=column)
                    wide = np.log2(wide.where(wide > 0))
                    found = paired(wide[arm].to_numpy(), wide[against].to_numpy())
                    rows.append({"method": method, "arm": arm, "against": against, "measure": name})
                    rows[-1] |= {"log2 ratio": found.mean, "low": found.low, "high": found.high, "bf10": found.bf10}
                    rows[-1] |= {"n": found.n, "verdict": _verdict(found.low, found.high)}
    return pd.DataFrame(rows)


def _verdict(low: float, high: float) -> str:
    if not math.isfinite(low):
        return "undefined"
    if low == high == 0:
        return "same"
    return "better" if high < 0 else "worse" if low > 0 else "undecided"


def counted(table: pd.DataFrame) -> dict[str, Any]:
    """Returns how many white- and gray-box methods each arm makes better, worse or neither, by measure."""
    facts: dict[str, Any] = {}
    groups: Any = table[~table["method"].isin(list(REDUCED))].groupby(["arm", "against", "measure"], sort=False)
    for (arm, against, measure), part in groups:
        by = {verdict: rows["method"].tolist() for verdict, rows in part.groupby("verdict", sort=False)}
        few = {verdict: f"{len(names)} of {len(part)}" for verdict, names in by.items()}
        facts[f"{arm} over {against}, {measure}"] = few | {"worse are": by.get("worse", [])}
    return facts


def correlations(means: pd.DataFrame) -> dict[str, Any]:
    """Returns Spearman's correlations over methods as they are, with p and their number."""
    bare: Any = means[means["arm"] == "none"]
    slow = bare[~bare["method"].isin(list(REDUCED))]
    pairs = {
        "raw stability and length of the maps": ("raw", "length"),
        "raw and scale-free stability": ("raw", "scale-free"),
        "scale-free stability and length": ("scale-free", "length"),
        "printed stability and our raw": ("printed", "raw"),
        "printed stability and our maps' length": ("printed", "length"),
        "printed stability and our scale-free": ("printed", "scale-free"),
    }
    facts = {}
    for words, (one, other) in pairs.items():
        for kind, rows in (("all", bare), ("white and gray", slow)):
            found: Any = spearmanr(rows[one], rows[other])
            facts[f"{words}, {kind}"] = {"rho": _short(found.statistic), "p": _short(found.pvalue), "n": len(rows)}
    return facts


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def of_units(table: pd.DataFrame, means: pd.DataFrame) -> dict[str, Any]:
    """Returns what multiplying by ten does, and VarGrad beside SmoothGrad in all three ways and as printed."""
    bare: Any = means[means["arm"] == "none"].set_index("method")
    ratio = {name: bare.loc["VarGrad", name] / bare.loc["SmoothGrad", name] for name in (*MEASURES, "length")}
    found: Any = table.dropna(subset=["raw times 10"])
    moved = (found["scale_free times 10"] - found["scale_free"]).abs() / found["scale_free"]
    printed = PRINTED["VarGrad"][0] / PRINTED["SmoothGrad"][0]
    ends = found["raw times 10"].agg(["min", "max"]).round(6).tolist()
    return {
        "raw of maps times 10, over raw: least, most": ends,
        "scale-free of maps times 10: largest relative change": _short(float(moved.max())),
        "VarGrad over SmoothGrad": {name: _short(value) for name, value in {**ratio, "printed": printed}.items()},
    }


def of_the_printed() -> dict[str, Any]:
    """Returns how many of the seven methods the printed table itself has better, equal and worse with FORGrad."""
    stability = {name: values[1] - values[0] for name, values in PAIRS.items()}
    fidelity = {name: values[3] - values[2] for name, values in PAIRS.items()}
    return {
        "stability better": [name for name, change in stability.items() if change < 0],
        "stability worse": [name for name, change in stability.items() if change > 0],
        "μFidelity better": [name for name, change in fidelity.items() if change > 0],
        "μFidelity equal": [name for name, change in fidelity.items() if change == 0],
        "μFidelity worse": [name for name, change in fidelity.items() if change < 0],
    }


def draw(means: pd.DataFrame, gained: pd.DataFrame, title: str) -> Figure:
    """Returns raw stability over the maps' length by method; and what FORGrad changes, raw, scale-free and centred."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, *panels = figure.subplots(1, 4, width_ratios=(4, 3, 3, 3))
    bare: Any = means[means["arm"] == "none"]
    for k, row in enumerate(bare.to_dict("records")):
        reach = [[row["raw"] - row["raw low"]], [row["raw high"] - row["raw"]]]
        left.errorbar(row["length"], row["raw"], np.nan_to_num(reach).clip(0), fmt="osD^vP<>Xph*d"[k], ms=6, lw=0.8,
                      color=f"C{k % 10}", label=row["method"])  # fmt: skip
    ends = [bare["length"].min(), bare["length"].max()]
    left.plot(ends, ends, color="0.7", lw=0.8, zorder=0, label="raw = length")
    left.set(xscale="log", yscale="log", xlabel="mean length of the map ‖φ(x)‖₂", ylabel="raw stability, 95 % interval")
    left.legend(fontsize=7)
    part: Any = gained[gained["against"] == "none"]
    methods, names = list(dict.fromkeys(part["method"])), list(dict.fromkeys(part["arm"]))
    for axis, measure in zip(panels, MEASURES, strict=True):
        for k, arm in enumerate(names):
            rows = part[(part["arm"] == arm) & (part["measure"] == measure)]
            place = np.array([methods.index(m) for m in rows["method"]]) + 0.75 * ((k + 0.5) / len(names) - 0.5)
            reach = np.stack([rows["log2 ratio"] - rows["low"], rows["high"] - rows["log2 ratio"]])
            look: dict[str, Any] = {"marker": "osD^vP"[k % 6], "ls": "none", "ms": 4, "lw": 0.9, "color": f"C{k}"}
            axis.errorbar(rows["log2 ratio"], place, xerr=np.nan_to_num(reach).clip(0), label=arm, **look)
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_yticks(range(len(methods)), methods if axis is panels[0] else [""] * len(methods), fontsize=8)
        axis.set(title=measure, xlabel="log₂ of stability over\nthat without FORGrad (left: better)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    made = parser(__doc__, name="stability_scale", limit=16)
    made.add_argument("--cutoffs", type=float, nargs="+", default=[1.76, 10.0], help="in cycles/image")
    made.add_argument("--samples", type=int, default=8, help="gradients of the methods that draw several")
    made.add_argument("--copies", type=int, default=10, help="noisy copies of each picture")
    made.add_argument("--black", type=int, default=3, help="pictures for the black-box methods")
    smoke = {"limit": 3, "cutoffs": [2.0], "samples": 2, "copies": 2, "black": 0}
    args = parsed(made, argv, smoke=smoke, paper={"limit": 1280, "samples": 50, "copies": 20, "black": 1280})
    study = Study(args, __file__)
    engine = gs.Engine(study.model(), progress=False)
    table = measured(study, engine)
    means, gained = summary(table), gains(table)
    study.table(means)
    study.table(gained, "_gains")
    pictures = int(means["n"].to_numpy().max())
    title = f"{args.name}: {pictures} pictures (black-box methods: {args.black}), {args.copies} noisy copies each"
    study.figure(draw(means, gained, title))
    study.finish(
        pictures=pictures,
        over_methods=correlations(means),
        scale=of_units(table, means),
        improved=counted(gained),
        printed=of_the_printed(),
    )
    print(means.to_string(), gained.to_string(), correlations(means), of_units(table, means), sep="\n")


if __name__ == "__main__":
    main()

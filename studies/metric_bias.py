"""Do the metrics favour a frequency by themselves? Paper table 4 and fig. A.11, also as a dose and its response.

    python studies/metric_bias.py --model ../shared/nets/tiny_darknet.py:load --weights \
        ../shared/nets/tiny_darknet.safetensors --images ../shared/images --precision bf16 \
        --name metric_bias_tiny_darknet
    python studies/metric_bias.py --limit 256 --doses 64 --name metric_bias_vgg_max

Table 4: each picture gets a Gaussian at a random place (low frequencies) and the very same values at random places
(high frequencies); neither knows the network. Deletion, insertion, faithfulness and μFidelity of both, with Saliency as
the third row, and their paired difference. μFidelity with subsets of exactly 17 cells stands beside the usual one: the
maps are not negative, so that their sums count the cells of a subset, with which the drop grows, too.

Dose and response, on --doses pictures: F and μF of white noise low-passed at each cutoff; of FORGrad of white noise,
|low_pass(|noise|)|, whose gain over no filter is what FORGrad gives a map that explains nothing; of FORGrad of
Saliency; and of random Gaussians of several widths.

Writes NAME.csv (table 4 beside the paper's numbers), NAME_differences.csv, NAME_doses.csv, NAME.png, NAME_doses.png,
NAME_maps.png (fig. A.11, the maps alone) and NAME.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec.controls import MetricBias, metric_bias, random_maps
from gradspec.controls.bias import HIGH, LOW
from gradspec.metrics import Faithfulness, MuFidelity
from gradspec.statistics import bootstrap_interval, paired

AT_ONCE = 8  # pictures of a unit
DOSES = {"F": Faithfulness(), "μF": MuFidelity()}
NOISE, BLIND, SALIENCY, BLOB = "low-passed noise", "FORGrad of noise", "FORGrad of Saliency", "random Gaussian"
LOOKS = {NOISE: "s--", BLIND: "o-", SALIENCY: "D-.", BLOB: "^:"}
PRINTED = {  # paper table 4, over 1,000 maps, without errors
    "Saliency": {"Deletion": 0.127, "Insertion": 0.316, "Faithfulness": 0.189, "MuFidelity": 0.390},
    LOW: {"Deletion": 0.205, "Insertion": 0.187, "Faithfulness": -0.018, "MuFidelity": 0.140},
    HIGH: {"Deletion": 0.138, "Insertion": 0.179, "Faithfulness": 0.041, "MuFidelity": 0.310},
}
PRINTED_N = 1000


@dataclass(frozen=True)
class LowPassed:
    """White noise without what lies above a cutoff in cycles/image; None: as it is."""

    cutoff: float | None
    seed: int

    def __call__(self, model: Any, images: Tensor, labels: Tensor, *, ids: Sequence[str] | None = None) -> Tensor:
        """Returns the maps (N, H, W), signed."""
        return gs.low_pass(random_maps("white", self.seed)(None, images, labels, ids=ids), self.cutoff)


def cutoff_text(cutoff: float | None) -> str:
    """Returns a cutoff as the tables have it."""
    return "none" if cutoff is None else f"{cutoff:g}"


def doses(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the maps of the dose's response: "KIND @ DOSE" -> attribution."""
    cutoffs = [*args.cutoffs, None]
    white = random_maps("white", args.seed)
    makers = {
        NOISE: lambda cutoff: LowPassed(cutoff, args.seed),
        BLIND: lambda cutoff: gs.FORGrad(white, cutoff),
        SALIENCY: lambda cutoff: gs.FORGrad(gs.attributions.Saliency(), cutoff),
    }
    found = {f"{kind} @ {cutoff_text(c)}": make(c) for kind, make in makers.items() for c in cutoffs}
    return found | {f"{BLOB} @ {width:g}": random_maps("low", args.seed, width) for width in args.widths}


def measured(
    study: Study, engine: gs.Engine, name: str, count: int, attributions: dict[str, Any], metrics: Any
) -> MetricBias:
    """Returns `metric_bias` of so many pictures, a unit for each batch of them."""
    parts, spec = [], {}
    for k, batch in enumerate(study.pictures(engine.model, count, batch_size=AT_ONCE)):

        def work(batch: Any = batch) -> pd.DataFrame:
            found = metric_bias(engine, [batch], metrics=metrics, attributions=attributions, seed=study.args.seed)
            found.table.attrs["spec"] = found.spec
            return found.table

        table = study.unit(f"{name} {k}", work, engine)
        parts, spec = [*parts, table], table.attrs["spec"]
    for part in parts:
        part.attrs = {}
    return MetricBias(pd.concat(parts, ignore_index=True), spec)


def beside_printed(found: MetricBias) -> pd.DataFrame:
    """Returns table 4 with the paper's value of each number."""
    means = found.means()
    pairs = zip(means["map"], means["metric"], strict=True)
    means["paper"] = [PRINTED.get(name, {}).get(metric, math.nan) for name, metric in pairs]
    return means


def by_dose(found: MetricBias) -> pd.DataFrame:
    """Returns the mean of each map of the dose's response, and its paired gain over the same without a filter."""
    rows = []
    for metric, part in found.table.groupby("metric", sort=False):
        wide: Any = part.pivot(index="picture", columns="map", values="value")
        for name in dict.fromkeys(part["map"]):
            if " @ " not in name:
                continue
            kind, _, dose = name.partition(" @ ")
            values = wide[name].dropna()
            low, high = bootstrap_interval(values.to_numpy())
            row = {"metric": metric, "kind": kind, "dose": dose, "mean": values.mean(), "se": values.sem()}
            row |= {"low": low, "high": high, "n": len(values)}
            if kind != BLOB and dose != "none":
                gain = paired(wide[name].to_numpy(), wide[f"{kind} @ none"].to_numpy())
                row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "gain_bf10": gain.bf10}
            rows.append(row)
    return pd.DataFrame(rows)


def against_paper(found: MetricBias) -> dict[str, Any]:
    """Returns what the paper's difference of F would need to be chance, and how it would stand with our spread."""
    F: Any = found.table[found.table["metric"] == "Faithfulness"]
    wide = F.pivot(index="picture", columns="map", values="value")
    spread = float((wide[HIGH] - wide[LOW]).std())
    printed = PRINTED[HIGH]["Faithfulness"] - PRINTED[LOW]["Faithfulness"]
    return {
        "printed difference": round(printed, 4),
        "spread (SD) of a difference needed for an interval that holds 0 at n = 1000": round(
            printed * math.sqrt(PRINTED_N) / 1.96, 3
        ),
        "spread (SD) of a difference here": round(spread, 4),
        "standard errors from 0 at n = 1000 with the spread here": round(printed * math.sqrt(PRINTED_N) / spread, 1),
    }


def best_gain(table: pd.DataFrame) -> dict[str, Any]:
    """Returns for F and μF where FORGrad of noise and of Saliency gain most, and how much."""
    rows: Any = table[table["gain"].notna()]
    facts = {}
    for (metric, kind), part in rows.groupby(["metric", "kind"], sort=False):
        top = part.loc[part["gain"].idxmax()]
        facts[f"{metric}: {kind}"] = {key: _plain(top[key]) for key in ("dose", "gain", "gain_low", "gain_high", "n")}
    return facts


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else round(float(value), 4)


def draw_doses(table: pd.DataFrame, title: str) -> Figure:
    """Returns the means over the cutoff, and those of Gaussians over the cutoff at which they have fallen to 1/√e."""
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    for axis, metric in zip(figure.subplots(1, 2), DOSES, strict=True):
        part: Any = table[table["metric"] == metric]
        end = 2 * max(float(dose) for dose in part[part["kind"] != BLOB]["dose"] if dose != "none")
        for k, (kind, look) in enumerate(LOOKS.items()):
            rows = part[part["kind"] == kind]
            doses = [end if dose == "none" else float(dose) for dose in rows["dose"]]
            if kind == BLOB:  # exp(-x²/2w²) has the spectrum exp(-2π²w²f²): one standard deviation at 1/(2πw)
                doses = [1 / (2 * math.pi * width) for width in doses]
            reach = np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]).clip(min=0)
            place = np.asarray(doses) * 1.03 ** (k - 1.5)
            axis.errorbar(place, rows["mean"], reach, fmt=look, color=f"C{k}", ms=5, lw=1.2, capsize=2, label=kind)
        axis.axhline(0, color="0.6", lw=0.8)
        cutoffs = sorted({float(d) for d in part[part["kind"] != BLOB]["dose"] if d != "none"})
        axis.set_xscale("log")
        axis.set_xticks([*cutoffs, end], [*(f"{c:g}" for c in cutoffs), "none"])
        axis.minorticks_off()
        axis.set(xlabel="cutoff in cycles/image (Gaussians: SD of their spectrum)", ylabel=f"{metric}, 95 % interval")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_maps(args: argparse.Namespace, size: tuple[int, int], columns: int = 5) -> Figure:
    """Returns fig. A.11 without pictures: Gaussians, their shuffled twins, low-passed noise and FORGrad of noise."""
    blank, labels, ids = torch.zeros(columns, 3, *size), torch.zeros(columns).long(), [str(k) for k in range(columns)]
    middle = args.cutoffs[len(args.cutoffs) // 2]
    kinds = {
        "random low:\na Gaussian": random_maps("low", args.seed),
        "random high: the same\nvalues, shuffled": random_maps("shuffled", args.seed),
        f"noise below {args.cutoffs[0]:g}\ncycles/image": LowPassed(args.cutoffs[0], args.seed),
        f"noise below {middle:g}\ncycles/image": LowPassed(middle, args.seed),
        f"FORGrad of noise\nat {middle:g} cycles/image": gs.FORGrad(random_maps("white", args.seed), middle),
    }
    figure = Figure(figsize=(1.5 * columns + 1.6, 1.5 * len(kinds) + 0.5), layout="constrained")
    for axes, (name, make) in zip(figure.subplots(len(kinds), columns), kinds.items(), strict=True):
        for axis, values in zip(axes, _made(make, blank, labels, ids), strict=True):
            axis.imshow(values.numpy(), cmap="viridis", interpolation="none")
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(f"Random maps of {size[0]}×{size[1]} pixels, each on its own scale", fontsize=10)
    return figure


def _made(make: Any, images: Tensor, labels: Tensor, ids: list[str]) -> Tensor:
    """Maps of what knows no network; FORGrad asks for one."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 2)).eval()
    return make(net if isinstance(make, gs.FORGrad) else None, images, labels, ids=ids)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    made = parser(__doc__, name="metric_bias", limit=100)
    made.add_argument("--doses", type=int, default=40, help="pictures for the dose's response")
    made.add_argument("--cutoffs", type=float, nargs="+", default=[1, 2, 4, 8, 16, 32], help="in cycles/image")
    made.add_argument("--widths", type=float, nargs="+", default=[0.03, 0.06, 0.15, 0.3], help="of random Gaussians")
    made.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of scores")
    smoke = {"limit": 4, "doses": 2, "cutoffs": [2.0, 8.0], "widths": [0.15]}
    args = parsed(made, argv, smoke=smoke, paper={"limit": 1000, "doses": 200})
    study = Study(args, __file__)
    net = study.model()
    engine = gs.Engine(net, precision=args.precision)
    saliency = {"Saliency": gs.attributions.Saliency()}
    table4 = measured(study, engine, "table 4", args.limit, saliency, None)
    response = measured(study, engine, "doses", args.doses, doses(args), DOSES)
    means, differences, by_cutoff = beside_printed(table4), table4.summary(), by_dose(response)
    study.table(means)
    study.table(differences, "_differences")
    study.table(by_cutoff, "_doses")
    study.figure(gs.plots.metric_bias(table4))
    pictures = response.table["picture"].nunique()
    study.figure(draw_doses(by_cutoff, f"{args.name}: {pictures} pictures"), "_doses")
    size = next(iter(study.pictures(net, 1)))[0].shape[-2:]
    study.figure(draw_maps(args, (size[0], size[1])), "_maps")
    found = differences.set_index("metric")
    columns = ["difference", "low", "high", "bf10", "effect", "n", "favours"]
    study.finish(
        pictures=table4.table["picture"].nunique(),
        high_less_low={name: {key: _plain(found.loc[name, key]) for key in columns} for name in found.index},
        paper_faithfulness=against_paper(table4),
        largest_gain=best_gain(by_cutoff),
    )
    print(means.to_string(), differences.to_string(), by_cutoff.to_string(), against_paper(table4), sep="\n")


if __name__ == "__main__":
    main()

"""Fig. 4A, fig. A.2 and supplement C (figs. 7-9): how far f(x) + ⟨ε, ∇_σ f⟩ misses f(x + ε), with filtered gradients.

    python studies/first_order.py --model ../shared/nets/tiny_darknet.py:load \
        --weights ../shared/nets/tiny_darknet.safetensors --images ../shared/images --limit 16 \
        --name first_order_tiny_darknet

The residual ζ is a root mean square over directions ε, uniform on the sphere of a radius (the paper does not say how it
draws ε), in float64, of gradients filtered at n/2 ... n/32 and at 5 cycles of 224 px (the paper's least), and of four
without information: zero, permuted, uniform, a 2-D Gaussian. Of the label's logit and of its probability, which the
paper's Keras models give out. Two ratios: over the residual without a filter (4A), and over that of the opposite
gradient (A.2).

What the test can say: where f is linear, ζ(σ) is the root of the power that the filter took, whatever it is, and
predicted here from the gradient's spectrum alone; beyond, the root of that and the unfiltered residual, squared. So a
filtered gradient is nearer than the zero gradient for any signal. "white noise" in the tables is the same test of
linear networks whose gradient is white noise: the paper's criterion is met by them, too.

Writes NAME.csv (geometric means with 95 % bootstrap intervals over pictures, and the prediction), NAME_claims.csv
(controls over filtered gradients, by claim), NAME_power.csv (share of the gradient's power above each cutoff), NAME.png
and NAME_probability.png (all three forms), NAME_prediction.png and NAME.json.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import Study, parsed, parser
from torch import nn

import gradspec as gs
from gradspec.controls import Taylor, taylor
from gradspec.controls.taylor import CONTROLS, NO_FILTER
from gradspec.statistics import bootstrap_interval
from gradspec.targets import TARGETS

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
WHITE = "white noise"
NOISE_DRAWS = 64
LEAST = 5 / 224  # the paper's least cutoff, of the side
KEYS = ["target", "picture", "radius"]


def command() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = parser(__doc__, name="first_order", limit=16)
    made.add_argument("--radii", type=float, nargs="+", default=[10 ** (k / 2) for k in range(-6, 4)])
    made.add_argument("--draws", type=int, default=8, help="directions for each picture")
    made.add_argument("--targets", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    made.add_argument("--noises", type=int, default=16, help="linear networks whose gradient is white noise")
    made.add_argument("--batch", type=int, default=4, help="pictures of a unit: what is lost when a run is stopped")
    return made


def cutoffs_of(size: Any) -> list[float]:
    """Returns the cutoffs in cycles/image of pictures of a size."""
    n = min(size[-2:])
    return [*(n / 2**k for k in range(1, 6)), round(LEAST * n, 3)]


def one_unit(args: argparse.Namespace, net: Any, target: str, batch: Any, counted: Any) -> pd.DataFrame:
    """Returns the Taylor test of one batch, whose passes are counted."""
    found = taylor(
        net, [batch], cutoffs=cutoffs_of(batch[0].shape), radii=args.radii, draws=args.draws, target=TARGETS[target],
        seed=args.seed, progress=False,
    )  # fmt: skip
    counted.forwards += len(batch[0]) * (2 + len(args.radii) * args.draws)
    counted.backwards += len(batch[0])
    return found.table.assign(units=found.spec["units"])


def white_network(net: Any, shape: Any, seed: int) -> nn.Module:
    """Returns a linear network with the units of another, whose gradient is white noise."""
    made: Any = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 1, bias=False))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made[1].weight.copy_(torch.randn(made[1].weight.shape, generator=draw))
    made.mean, made.std = net.mean, net.std
    return made


def measured(study: Study, net: Any) -> Frame:
    """Returns all residuals: of the network by target, and of the networks of white noise."""
    args, counted = study.args, SimpleNamespace(forwards=0, backwards=0)
    every, batches = [], study.pictures(net, batch_size=args.batch)
    for target in args.targets:
        for k, batch in enumerate(batches):
            table = study.unit(
                f"{target} {k}", lambda t=target, b=batch: one_unit(args, net, t, b, counted), counted  # type: ignore[arg-type]
            )  # fmt: skip
            every.append(table.assign(target=target))
    shape = next(iter(batches))[0].shape[1:]
    for k in range(args.noises):
        table = study.unit(f"{WHITE} {k}", lambda k=k: one_noise(args, net, shape, k, counted), counted)  # type: ignore[arg-type]
        every.append(table.assign(target=WHITE))
    return pd.concat(every, ignore_index=True)


def one_noise(args: argparse.Namespace, net: Any, shape: Any, k: int, counted: Any) -> pd.DataFrame:
    """Returns the Taylor test of one linear network of white noise, at a grey picture."""
    seed = 1000 * args.seed + k
    batch = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long), [f"noise {seed}"]
    few = argparse.Namespace(**{**vars(args), "radii": args.radii[:1], "draws": NOISE_DRAWS})  # all radii are alike
    return one_unit(few, white_network(net, shape, seed), "logit", batch, counted)


def with_ratios(table: Frame) -> Frame:
    """Returns the table with what is predicted of spectrum and unfiltered residual, and all ratios."""

    def base(column: str, gradient: str) -> np.ndarray:
        rows = table[table["gradient"] == gradient].set_index(KEYS)[column]
        return rows.reindex(pd.MultiIndex.from_frame(table[KEYS])).to_numpy()

    unfiltered = base("residual", NO_FILTER)
    found = table.assign(predicted=np.hypot(unfiltered, table["linear"]))
    found["removed"] = np.square(table["linear"] / base("linear", "zero"))  # share of the gradient's power
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = base("residual", "zero")
        found["ratio to unfiltered"] = found["residual"] / unfiltered
        found["ratio to unfiltered, predicted"] = found["predicted"] / unfiltered
        found["ratio to zero"] = found["residual"] / zero
        found["ratio to zero, predicted"] = found["predicted"] / np.hypot(unfiltered, base("linear", "zero"))
        found["ratio to opposite"] = found["residual"] / found["mirrored"]
        found["measured over predicted"] = found["residual"] / found["predicted"]
    white = found["target"] == WHITE  # is linear: its unfiltered residual is rounding
    found.loc[white, ["ratio to unfiltered", "ratio to unfiltered, predicted"]] = np.nan
    return found.drop(columns=["predicted", "linear", "mirrored", "score", "label"])


def interval(values: Any) -> dict[str, float]:
    """Returns a geometric mean with its 95 % interval over pictures."""
    with np.errstate(divide="ignore"):
        logs = np.log10(np.asarray(values, float))
    logs = logs[np.isfinite(logs)]
    low, high = bootstrap_interval(logs)
    return {"mean": 10 ** logs.mean() if len(logs) else np.nan, "low": 10**low, "high": 10**high, "n": len(logs)}


def summary(found: Frame) -> Frame:
    """Returns geometric means of residuals and ratios by target, gradient and radius."""
    forms = ["residual", *(name for name in found.columns if "ratio" in name or "over" in name)]
    rows = []
    for key, rest in found.groupby(["target", "gradient", "cutoff", "radius"], sort=False, dropna=False):
        for form in forms:
            told = interval(rest[form])
            if told["n"]:
                rows.append([*key, form, *told.values()])
    return pd.DataFrame(rows, columns=["target", "gradient", "cutoff", "radius", "form", "mean", "low", "high", "n"])


def claims(found: Frame) -> Frame:
    """Returns how many times the residual of a filtered gradient that of each control is, in both forms."""
    rows = []
    for form in ("residual", "ratio to opposite"):
        wide = found.pivot_table(form, ["target", "radius", "picture"], "gradient", sort=False)
        for (target, radius), values in wide.groupby(level=["target", "radius"], sort=False):
            for name in (name for name in wide.columns if name.startswith("σ")):
                for control in CONTROLS:
                    ratio = values[control] / values[name]
                    told = {**interval(ratio), "nearer": float((ratio > 1).mean())}
                    rows.append([target, radius, form, name, control, *told.values()])
    columns = ["target", "radius", "form", "gradient", "control", "times", "low", "high", "n", "share nearer"]
    return pd.DataFrame(rows, columns=columns)


def power(found: Frame) -> Frame:
    """Returns the share of the gradient's power that each filter takes, the arithmetic mean over pictures."""
    rows = []
    some = found[found["cutoff"].notna() & (found["radius"] == found["radius"].min())]
    for (target, cutoff), rest in some.groupby(["target", "cutoff"], sort=False):
        low, high = bootstrap_interval(rest["removed"].to_numpy())
        rows.append([target, cutoff, rest["removed"].mean(), low, high, len(rest)])
    return pd.DataFrame(rows, columns=["target", "cutoff", "share of power removed", "low", "high", "n"])


def facts(means: Frame, times: Frame) -> dict[str, Any]:
    """Returns the numbers that decide the paper's claims, by target."""
    told: dict[str, Any] = {}
    for target in means["target"].unique():
        mine, over = means[means["target"] == target], times[times["target"] == target]
        filtered = mine[mine["cutoff"].notna()].set_index("form")
        least, near = over["gradient"].iloc[-1], over[over["form"] == "residual"]
        told[target] = {
            "most filtered": least,
            **{form: _ends(filtered["mean"].get(form, [])) for form in ("ratio to unfiltered", "ratio to zero")},
            "measured over predicted": _ends(filtered["mean"].get("measured over predicted", [])),
            "controls over any filtered gradient": _against(near),
            "controls over the most filtered": _against(near[near["gradient"] == least]),
            "the same of A.2": _against(over[(over["form"] != "residual") & (over["gradient"] == least)]),
        }  # fmt: skip
    return told


def _against(over: Frame) -> dict[str, Any]:
    """Of each control: least and most of all radii, and at how many the interval is above 1, 2 and 10."""
    told = {}
    for control, rows in over.groupby("control", sort=False):
        counts = [int((rows["low"] > bound).sum()) for bound in (1, 2, 10)]
        told[control] = {"least, most": _ends(rows["times"]), "surely above 1, 2, 10": counts, "of": len(rows)}
    return told


def _ends(values: Any) -> list[float]:
    return [round(float(np.min(values)), 3), round(float(np.max(values)), 3)] if np.size(values) else []


def draw_prediction(means: Frame, shares: Frame, title: str, units: str) -> Figure:
    """Returns both ratios of filtered gradients, measured and predicted, beside the power that the filters took."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    network = means[(means["target"] != WHITE) & means["cutoff"].notna()]
    mine = network[network["target"] == network["target"].iloc[0]]
    for axis, form in zip(axes, ("ratio to zero", "ratio to unfiltered"), strict=False):
        for k, (cutoff, rows) in enumerate(mine.groupby("cutoff")):
            seen, told = (rows[rows["form"] == name] for name in (form, f"{form}, predicted"))
            reach = np.stack([seen["mean"] - seen["low"], seen["high"] - seen["mean"]]).clip(min=0)
            look = {"fmt": "osD^v<"[k % 6], "ms": 4, "lw": 1, "color": f"C{k}", "label": f"σ = {cutoff:g}"}
            axis.errorbar(seen["radius"], seen["mean"], np.nan_to_num(reach), **look)
            axis.plot(told["radius"], told["mean"], color=f"C{k}", lw=1)
        axis.set(xscale="log", xlabel=f"radius ‖ε‖ ({units})", ylabel=f"residual, {form} gradient")
    axes[0].axhline(1, color="0.5", lw=0.8, ls=":")
    axes[1].set_yscale("log")
    axes[0].set_title("marks: measured; lines: predicted from the spectrum", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    for k, (target, rows) in enumerate(shares.groupby("target", sort=False)):
        reach = np.stack([rows["share of power removed"] - rows["low"], rows["high"] - rows["share of power removed"]])
        look = {"marker": "os^"[k % 3], "ls": ["-", "--", ":"][k % 3], "capsize": 2}
        axes[2].errorbar(rows["cutoff"], rows["share of power removed"], np.nan_to_num(reach).clip(min=0), **look,
                         label=f"gradient of the {target}" if target != WHITE else "white noise")  # fmt: skip
    axes[2].set(
        xscale="log", xlabel="cutoff σ (cycles/image)", ylabel="share of the gradient's power removed", ylim=(0, 1.02)
    )
    axes[2].minorticks_off()
    axes[2].set_xticks(shares["cutoff"].unique(), [f"{cutoff:g}" for cutoff in shares["cutoff"].unique()], rotation=45)
    axes[2].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Measures, predicts, decides and writes."""
    smoke = {"limit": 3, "radii": [0.01, 1.0], "draws": 2, "noises": 2, "batch": 2}
    args = parsed(command(), argv, smoke=smoke, paper={"limit": 1000, "draws": 16})
    study = Study(args, __file__)
    net = study.model()
    table = measured(study, net)
    units = str(table["units"].iloc[0])
    for target in args.targets:
        spec = {"model": args.name, "target": target, "units": units, "draws": args.draws}
        mine = table[table["target"] == target]
        study.figure(gs.plots.taylor(Taylor(mine, spec)), "" if target == args.targets[0] else f"_{target}")
    found = with_ratios(table)
    means, times, shares = summary(found), claims(found), power(found)
    study.table(means)
    study.table(times, "_claims")
    study.table(shares, "_power")
    pictures = table[table["target"] != WHITE]["picture"].nunique()
    title = (
        f"{args.name}: {pictures} pictures, {args.draws} directions each, {args.targets[0]}; {args.noises} white noises"
    )
    study.figure(draw_prediction(means, shares, title, units), "_prediction")
    study.finish(pictures=pictures, units_of_radii=units, decided=facts(means, times))
    print(shares.to_string(index=False))


if __name__ == "__main__":
    main()

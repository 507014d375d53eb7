"""What FORGrad gains in faithfulness, and over what: cutoffs chosen on some pictures, judged on others.

    python studies/forgrad_gain.py --model ../shared/nets/tiny_darknet.py:load --weights ... --images ... \
        --name forgrad_gain_tiny_darknet

Pictures are spread over the folder; every other one is for selection, the rest for the report (--pictures: both). For
each of four white-box methods and for both places of the filter, on the finished map and on the gradient, the cutoff of
largest mean F on the selection pictures, and the one-standard-error choice. On the report pictures: paired gains with
95 % intervals (bias-corrected and accelerated bootstrap over pictures) and JZS Bayes factors over no filter, over the
channel mean's absolute value alone ("abs only") and over one centred Gaussian that knows neither network nor picture.

With --halve the worse half of the cutoffs is dropped after so many selection pictures, as in a race.

The F of every picture (on the report pictures, of the chosen cutoffs alone) goes into figures/NAME_pictures.csv as it
is found; a run that is started again goes on from there. Then figures/NAME.csv (the gains), NAME_curves.csv, NAME.png
and NAME.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from study import commit

import gradspec as gs
from gradspec import attributions as a
from gradspec.attributions import Attribution
from gradspec.controls import centre_prior, random_maps
from gradspec.cutoffs import cutoff_grid
from gradspec.forgrad import maps_of
from gradspec.metrics import Faithfulness
from gradspec.metrics.sharing import scored
from gradspec.statistics import paired

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
AT_ONCE = 4  # pictures explained and scored together: what is lost when a run is stopped
PLACES = ("attribution", "gradient")
CONTROLS = {"centre prior": centre_prior(), "white noise": random_maps("white")}


def methods(samples: int) -> dict[str, Attribution]:
    """Returns the methods that are filtered."""
    return {
        "Saliency": a.Saliency(),
        "GradientInput": a.GradientInput(),
        "IntegratedGradients": a.IntegratedGradients(steps=samples),
        "SmoothGrad": a.SmoothGrad(samples=samples),
    }


def arm(place: str, cutoff: float) -> str:
    """Returns the name of the column of a filter."""
    return f"{place} {cutoff:.4g}"


def arms(method: Attribution, names: Sequence[str]) -> dict[str, Any]:
    """Returns a method as it is, its absolute value, and the filters of the named columns."""
    found: dict[str, Any] = {"none": method, "abs": gs.FORGrad(method, None)}
    for name in names:
        parts: Any = name.partition(" ")
        place, _, cutoff = parts
        if cutoff:
            found[name] = gs.FORGrad(method, float(cutoff), where=place)
    return found


def spread(args: argparse.Namespace, net: Any) -> tuple[Any, list[int], list[int]]:
    """Returns the folder and the places of both halves: every other one of pictures spread over it."""
    folder = gs.load_images(args.images, net, batch_size=AT_ONCE)
    spots = np.unique(np.linspace(0, len(folder) - 1, min(args.pictures, len(folder))).round().astype(int)).tolist()
    return folder, spots[::2], spots[1::2]


def measure(engine: gs.Engine, batches: Any, part: str, work: Mapping[str, Any], path: Path) -> Frame:
    """Returns F of each picture (rows, by method) under each arm (columns), from the file as far as it is there.

    Args:
        engine: What runs the network.
        batches: Of pictures, labels and ids.
        part: "selection" or "report".
        work: Name -> the arms, maps of one explanation.
        path: The file.
    """
    known = pd.read_csv(path) if path.exists() else pd.DataFrame({"half": [], "picture": [], "method": []})
    done = set(zip(known["picture"], known["method"], strict=True))
    began, count = time.perf_counter(), 0
    for x, y, ids in batches:
        for name, chosen in work.items():
            if all((picture, name) in done for picture in ids):
                continue
            values = scored(engine, Faithfulness(), x, y, ids, maps_of(engine, chosen, x, y, ids))
            columns = {arm: value.tolist() for arm, value in values.items()}
            rows = pd.DataFrame({"half": part, "picture": ids, "label": y.tolist(), "method": name, **columns})
            known = pd.concat([known, rows], ignore_index=True)
            known.to_csv(path, index=False, float_format="%.5g")
        count += len(ids)
        print(f"{part}: {count} pictures, {time.perf_counter() - began:.0f} s, {engine.forwards} passes", flush=True)
    return pd.read_csv(path)  # as it is rounded there, so that a run that was stopped finds the same


def check_same(args: argparse.Namespace, path: Path) -> None:
    """Refuses to go on from a file of other settings."""
    mine = {name: str(value) for name, value in vars(args).items() if name != "out"}
    beside = path.with_suffix(".json")
    if path.exists() and (not beside.exists() or json.loads(beside.read_text()) != mine):
        raise SystemExit(f"{path} is of other settings: remove it, or give another --name.")
    beside.write_text(json.dumps(mine, indent=1) + "\n")


def measured(args: argparse.Namespace, net: Any, engine: gs.Engine) -> Frame:
    """Returns F of the selection pictures under all arms, then of the report pictures under those chosen."""
    path = args.out / f"{args.name}_pictures.csv"
    check_same(args, path)
    folder, first, second = spread(args, net)
    size = next(iter(folder.subset(first[:1])))[0].shape[-2:]
    cutoffs: Any = cutoff_grid(*size, points=args.cutoffs)[1:]
    grid = [arm(place, cutoff) for place in PLACES for cutoff in cutoffs]
    work = {name: arms(method, grid) for name, method in methods(args.samples).items()}
    table = measure(engine, folder.subset(first[: args.halve]), "selection", work, path)
    if args.halve:
        for name, method in methods(args.samples).items():
            work[name] = arms(method, [column for place in PLACES for column in better_half(of(table, name), place)])
        table = measure(engine, folder.subset(first[args.halve :]), "selection", work, path)
    for name, method in methods(args.samples).items():
        work[name] = arms(method, [column for place in PLACES for column in choose(of(table, name), place)])
    return measure(engine, folder.subset(second), "report", {**work, "controls": CONTROLS}, path)


def columns_of(frame: Frame, place: str) -> dict[str, float]:
    """Returns the columns of a place's filters that hold numbers, with their cutoffs, the largest first."""
    names = [name for name in frame.columns if name.startswith(f"{place} ") and frame[name].notna().any()]
    return dict(sorted(((n, float(n.split()[1])) for n in names), key=lambda pair: -pair[1]))


def of(table: Frame, method: str) -> Frame:
    """Returns the selection pictures' rows of a method."""
    return table[(table["method"] == method) & (table["half"] == "selection")]


def better_half(selection: Frame, place: str) -> list[str]:
    """Returns the columns of the better half of a place's filters, which no filter is one of, by their means."""
    names = ["abs" if place == "attribution" else "none", *columns_of(selection, place)]
    means = selection[names].dropna().mean().sort_values(ascending=False)
    return [str(name) for name in means.index[: -(-len(names) // 2)] if name not in ("abs", "none")]


def choose(selection: Frame, place: str) -> tuple[str, str]:
    """Returns the columns of the best cutoff, and of the largest within one standard error of it; none is largest."""
    names = ["abs" if place == "attribution" else "none", *columns_of(selection, place)]
    counts = selection[names].notna().sum()
    complete = selection[[name for name in names if 2 * counts[name] > counts.max()]].dropna()
    best = str(complete.mean().idxmax())
    deficit = complete.rsub(complete[best], axis=0)
    within = deficit.mean() <= deficit.sem().fillna(0)
    return best, next(name for name in complete if within[name])


def gains(table: Frame) -> Frame:
    """Returns a row for each method, place and choice: paired gains on the report pictures."""
    report = table[table["half"] == "report"]
    centre = report[report["method"] == "controls"].set_index("picture")["centre prior"]
    rows = []
    for name in methods(2):
        selection = of(table, name)
        judged = report[report["method"] == name].set_index("picture")
        for place in PLACES:
            for choice, column in zip(("best", "one standard error"), choose(selection, place), strict=True):
                rows.append({"method": name, "where": place, "choice": choice, "cutoff": column.split()[-1]})
                rows[-1] |= {"selection n": len(selection), "F": judged[column].mean(), "F se": judged[column].sem()}
                against = {"none": judged["none"], "abs": judged["abs"], "centre prior": centre.reindex(judged.index)}
                for other, values in against.items():
                    found = paired(judged[column].to_numpy(), values.to_numpy())
                    facts = {"F": values.mean(), "gain": found.mean, "low": found.low, "high": found.high}
                    facts |= {"bf10": found.bf10, "n": found.n}
                    rows[-1] |= {f"{other}: {key}": value for key, value in facts.items()}
    return pd.DataFrame(rows)


def curves(table: Frame) -> Frame:
    """Returns the mean F under each arm on each half, and its paired gain over no filter on the same pictures."""
    arms = [name for name in table.columns if name not in ("half", "picture", "label", "method")]
    rows = []
    for (name, part), frame in table.groupby(["method", "half"]):
        for column in arms:
            values = frame[column].dropna()
            if len(values):
                place, _, cutoff = column.partition(" ") if column.startswith(PLACES) else (column, "", "")
                gain = (frame[column] - frame["none"]).dropna()
                facts = [values.mean(), values.sem(), gain.mean(), gain.sem(), len(values)]
                rows.append([name, part, place, cutoff, *facts])
    return pd.DataFrame(rows, columns=["method", "half", "arm", "cutoff", "mean", "se", "gain", "gain se", "n"])


def draw(found: Frame, gained: Frame, title: str, path: Path) -> None:
    """Draws the gains over no filter on both halves, a panel for each method."""
    names = list(methods(2))
    figure, axes = plt.subplots(1, len(names), figsize=(13, 3.9), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        mine = found[found["method"] == name]
        for place, colour in zip(PLACES, ("C0", "C1"), strict=True):
            curve = mine[mine["arm"] == place]
            whole = curve["n"] == curve["n"].max()
            chosen, dropped = curve["half"] == "report", ~whole & (curve["half"] == "selection")
            for part, form, words in (
                (whole & ~chosen, ".-", "selection pictures"),
                (dropped, "x", "dropped after the first selection pictures"),
                (chosen, "D", "chosen, report pictures"),
            ):
                some = curve[part]
                radius = (1.06 if form == "D" else 1.0) * some["cutoff"].astype(float)
                look = {"fmt": form, "ms": 5, "color": colour, "lw": 1.2, "alpha": 0.35 if form == "x" else 1}
                axis.errorbar(radius, some["gain"], some["gain se"], label=f"{place}: {words}", **look)
        judged = mine[mine["half"] == "report"].set_index("arm")
        axis.axhline(0, color="0.2", lw=1, label="no filter")
        axis.axhline(judged.loc["abs", "gain"], color="0.6", lw=1, label="abs only, report pictures")
        centre = gained[gained["method"] == name].iloc[0]
        over = centre["centre prior: F"] - centre["none: F"]
        axis.axhline(over, color="C3", lw=1, ls=":", label="centre prior, report pictures")
        axis.set(xscale="log", title=name, xlabel="cutoff σ in cycles/image")
    axes[0].set_ylabel("gain in faithfulness F over no filter,\nsame pictures, mean ± standard error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Measures, chooses, judges and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=200, help="half for selection, half for the report")
    parser.add_argument("--cutoffs", type=int, default=10)
    parser.add_argument("--halve", type=int, help="drop the worse half of the cutoffs after so many selection pictures")
    parser.add_argument("--samples", type=int, default=50, help="gradients of IntegratedGradients and SmoothGrad")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of scores")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures")
    args = parser.parse_args(argv)
    warnings.simplefilter("always")
    args.out.mkdir(parents=True, exist_ok=True)
    net = gs.load_model(args.model, args.weights)
    engine, began = gs.Engine(net, precision=args.precision), time.perf_counter()
    table = measured(args, net, engine)
    found, curve = gains(table), curves(table)
    found.to_csv(args.out / f"{args.name}.csv", index=False, float_format="%.4g")
    curve.to_csv(args.out / f"{args.name}_curves.csv", index=False, float_format="%.4g")
    parts = table.groupby("picture")["half"].first()
    title = f"{args.name}: {len(parts)} photographs, half for selection"
    draw(curve, found, title, args.out / f"{args.name}.png")
    about: dict[str, Any] = {
        "study": "forgrad_gain", **{name: str(getattr(args, name)) for name in ("model", "precision")},
        "cutoffs": args.cutoffs,
        "halved after": args.halve, "samples": args.samples, "form": engine.form, "forwards": engine.forwards,
        "backwards": engine.backwards, "seconds": round(time.perf_counter() - began), "commit": commit(),
        "versions": {"gradspec": gs.__version__, "torch": torch.__version__}, "threads": torch.get_num_threads(),
        "selection": list(parts[parts == "selection"].index), "report": list(parts[parts == "report"].index),
    }  # fmt: skip
    (args.out / f"{args.name}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(found.to_string())


if __name__ == "__main__":
    main()

"""What FORGrad does to maps: a row of cutoffs, white-box methods before and after (figures 5A, 5C, A.10).

    python studies/filtered_maps.py --name filtered_maps_vgg_max
    python studies/filtered_maps.py --model ../shared/nets/tiny_darknet.py:load \
        --weights ../shared/nets/tiny_darknet.safetensors --images ../shared/images --limit 16 --selection 24 \
        --name filtered_maps_tiny_darknet

The cutoff of each of the seven white-box methods is --cutoff, or found by a race on --selection other pictures
(`gs.fit_cutoff`, faithfulness). The maps of --limit pictures before ("none"), of their magnitude alone ("abs") and
after ("FORGrad") are measured: share of the positive relevance on the object (generated pictures, which have a mask;
"even map" is what a map without information has), slope per Nyquist, high share and faithfulness F, with standard
errors and paired differences to no filter and to the magnitude alone. F of so few pictures is anecdotal:
studies/forgrad_gain.py is where it is put on trial.

The pictures of the figures are the first --shown of them. Generated pictures stand beside their maps; photographs never
appear, their maps stand alone, and not at all where a smooth gradient times the picture would be the photograph (the
filter in the gradient of GradientInput and IntegratedGradients).

Writes NAME.csv, NAME_differences.csv, NAME_cutoffs.csv, NAME.png (seven methods before and after, A.10; SmoothGrad is
5C), NAME_row.png (GradientInput at a row of cutoffs, 5A; the filter in the gradient, as in the paper's text, of
generated pictures alone, and on the finished map) and NAME.json.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import EMBEDDED, Study, methods, parsed, parser, spread
from torch import Tensor

import gradspec as gs
from gradspec import metrics as m
from gradspec.attributions import Attribution
from gradspec.cutoffs.grid import cutoff_grid
from gradspec.forgrad.attribution import maps_of
from gradspec.fourier import identity_radius
from gradspec.images import pixels_of
from gradspec.metrics.sharing import scored
from gradspec.statistics import paired

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
Batch = tuple[Tensor, Tensor, list[str]]
ARMS = ("none", "abs", "FORGrad")
MEASURES = ("slope", "high share", "relevance mass", "F")
ROW = (
    0.7,
    0.5,
    0.28,
    0.14,
    0.063,
    0.032,
)  # of the radius that keeps all: at 224 px 111, 79, 44, 22, 10, 5 cycles/image
TIMES_INPUT = ("GradientInput", "IntegratedGradients")  # with a smooth gradient their maps are the picture itself
AT_ONCE = 4  # pictures explained together


def main(argv: list[str] | None = None) -> None:
    """Finds cutoffs, filters, measures and draws."""
    made = parser(__doc__, name="filtered_maps", limit=64)
    made.add_argument("--selection", type=int, default=64, help="other pictures, on which cutoffs are found")
    made.add_argument("--points", type=int, default=20, help="cutoffs that are tried beside no filter")
    made.add_argument("--cutoff", type=float, help="in cycles/image, for all methods; without it: found for each")
    made.add_argument("--where", default="attribution", choices=["attribution", "gradient"], help="what is filtered")
    made.add_argument("--samples", type=int, default=16, help="gradients of IG and noisy methods")
    made.add_argument("--shown", type=int, default=4, help="pictures in the figures")
    made.add_argument("--only", nargs="+", help="names of methods")
    smoke: dict[str, Any] = {"limit": 4, "selection": 12, "points": 4, "samples": 2, "shown": 2}
    smoke |= {"only": ["Saliency", "GradientInput", "SmoothGrad"]}
    paper = {"limit": 1280, "selection": 1280, "samples": 50}
    study = Study(parsed(made, argv, smoke=smoke, paper=paper), __file__)
    model = study.model()
    engine = gs.Engine(model)
    work = white(study)
    chosen, shown = divided(study, engine)
    rows = []
    for name in work:
        rows.append(
            study.unit(f"cutoff of {name}", lambda n=name: cutoff_row(study, engine, n, work[n], chosen), engine)
        )
    cutoffs = pd.concat(rows, ignore_index=True)
    found = dict(zip(cutoffs["method"], cutoffs["cutoff"], strict=True))
    rows = []
    for batch in shown:
        unit = f"maps of {batch[2][0]} to {batch[2][-1]}"
        rows.append(study.unit(unit, lambda b=batch: measured(study, engine, work, found, b), engine))
    values = pd.concat(rows, ignore_index=True)
    table, differences = summary(values), compared(values)
    for ending, frame in (("", table), ("_differences", differences), ("_cutoffs", cutoffs)):
        study.table(frame, ending)
    draw(study, engine, work, found, shown)
    study.finish(pictures=len(values["picture"].unique()), **facts(table, differences, cutoffs))


def white(study: Study) -> dict[str, Attribution]:
    """Returns the white-box methods."""
    found = methods(study.args.samples, reduced=True)
    wanted = study.args.only or [name for name, method in found.items() if method.family == "white"]
    return {name: found[name] for name in wanted}


def divided(study: Study, engine: gs.Engine) -> tuple[list[Batch], list[Batch]]:
    """Returns batches of pictures to find cutoffs on, and of others to filter, both spread over the folder."""
    both = study.args.limit + (0 if study.args.cutoff else study.args.selection)
    singles = [
        (x, engine.predictions(x) if y is None else y, list(ids))
        for x, y, ids in study.pictures(engine.model, both, batch_size=1)
    ]
    kept = set(spread(len(singles), study.args.limit))
    halves = [[one for i, one in enumerate(singles) if (i in kept) is report] for report in (False, True)]
    first, second = (
        [joined(half[start : start + AT_ONCE]) for start in range(0, len(half), AT_ONCE)] for half in halves
    )
    return first, second


def joined(parts: list[Batch]) -> Batch:
    """Returns single pictures as a batch."""
    return (
        torch.cat([x for x, _, _ in parts]),
        torch.cat([y for _, y, _ in parts]),
        [i for _, _, ids in parts for i in ids],
    )


# ---- numbers ---------------------------------------------------------------------------------


def cutoff_row(study: Study, engine: gs.Engine, name: str, method: Attribution, chosen: list[Batch]) -> Frame:
    """Returns a method's cutoff with the mean that it was chosen by."""
    if study.args.cutoff:
        return pd.DataFrame([{"method": name, "cutoff": study.args.cutoff, "one se": math.nan, "how": "given"}])
    place, height, width = study.args.where, *chosen[0][0].shape[-2:]
    tried = cutoff_grid(height, width, points=study.args.points)
    settings: dict[str, Any] = {"cutoffs": tried, "search": "race", "where": place, "seed": study.args.seed}
    with warnings.catch_warnings():  # of a flat curve: it stands in the table
        warnings.simplefilter("ignore", UserWarning)
        fit = gs.fit_cutoff(engine, method, chosen, **settings, progress=False)
    best = fit.table[fit.table["cutoff"].isna() if fit.cutoff is None else fit.table["cutoff"] == fit.cutoff].iloc[0]
    row = {"method": name, "cutoff": plain(fit.cutoff), "one se": plain(fit.one_se), "how": "race"}
    row |= {"F": best["mean"], "F se": best["se"], "n": int(best["n"]), "flat": fit.flat}
    return pd.DataFrame([row | {"pictures": len(fit.pictures)}])


def plain(cutoff: float | None) -> float:
    """Returns a cutoff as a number, NaN for no filter."""
    return math.nan if cutoff is None else cutoff


def arms_of(study: Study, work: Mapping[str, Attribution], cutoffs: Mapping[str, float]) -> dict[str, Any]:
    """Returns "method: arm" -> the attribution."""
    found: dict[str, Any] = {}
    for name, method in work.items():
        cutoff = None if math.isnan(cutoffs[name]) else cutoffs[name]
        found[f"{name}: none"], found[f"{name}: abs"] = method, gs.FORGrad(method, None)
        found[f"{name}: FORGrad"] = gs.FORGrad(method, cutoff, where=study.args.where)
    return found


def measured(
    study: Study, engine: gs.Engine, work: Mapping[str, Attribution], cutoffs: Mapping[str, float], batch: Batch
) -> Frame:
    """Returns a row for each method, arm and picture: its rings, high share, relevance mass and F."""
    x, y, ids = batch
    maps = maps_of(engine, arms_of(study, work, cutoffs), x, y, ids)
    scores = scored(engine, m.Faithfulness(), x, y, ids, maps)
    masks = masks_of(study, ids)
    rows = []
    for key, found in maps.items():
        name, _, arm = key.partition(": ")
        signature = gs.signature(found)
        mass = m.RelevanceMass()(None, x, y, found, masks=masks).tolist() if masks is not None else [math.nan] * len(x)
        columns = {"picture": ids, "rings": signature.per_image.tolist(), "high share": signature.high_shares.tolist()}
        columns |= {"relevance mass": mass, "F": scores[key].tolist()}
        columns |= {"even map": [math.nan] * len(x) if masks is None else masks.float().mean((1, 2)).tolist()}
        rows.append(pd.DataFrame({"method": name, "arm": arm, "side": x.shape[-1], **columns}))
    return pd.concat(rows, ignore_index=True)


def masks_of(study: Study, ids: list[str]) -> Tensor | None:
    """Returns the object masks (N, H, W) of generated pictures of the embedded networks' size, else None."""
    if study.args.images is not None or not study.args.model.startswith("demo:"):
        return None
    places = [int(name.rpartition("-")[2]) for name in ids]
    return gs.demo.pictures(max(places) + 1, EMBEDDED, study.args.seed).masks[places]


def per_picture(rows: Frame, measure: str) -> np.ndarray:
    """Returns a measure's value of each picture (N,); its mean is the measure, the slope that of the mean signature."""
    if measure != "slope":
        return rows[measure].to_numpy(float)
    side = int(rows["side"].iloc[0])
    found = gs.Signature(side, side, np.stack(list(rows["rings"])), rows["high share"].to_numpy(float))
    return found.slope_nyquist + found.slope_influences()


def summary(values: Frame) -> Frame:
    """Returns a row for each method and arm."""
    rows = []
    for (name, arm), mine in values.groupby(["method", "arm"], sort=False):
        row: dict[str, Any] = {"method": name, "arm": arm}
        for measure in MEASURES:
            found = per_picture(mine, measure)
            known = found[np.isfinite(found)]
            error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
            row |= {
                measure: known.mean() if len(known) else math.nan,
                f"{measure} se": error,
                f"{measure} n": len(known),
            }
        rows.append(row | {"even map": mine["even map"].mean()})
    return pd.DataFrame(rows)


def compared(values: Frame) -> Frame:
    """Returns the paired differences of FORGrad's maps from those without a filter and from their magnitudes."""
    rows = []
    for name, mine in values.groupby("method", sort=False):
        arms = dict(iter(mine.groupby("arm")))
        for against in ARMS[:2]:
            for measure in MEASURES:
                found = paired(*(per_picture(arms[arm], measure) for arm in ("FORGrad", against)))
                row = {"method": name, "measure": measure, "against": against, "difference": found.mean}
                rows.append(row | {"se": found.se, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def facts(table: Frame, differences: Frame, cutoffs: Frame) -> dict[str, Any]:
    """Returns what decides the claims."""
    chosen = {
        row["method"]: "no filter" if math.isnan(row["cutoff"]) else round(row["cutoff"], 2)
        for _, row in cutoffs.iterrows()
    }
    found: dict[str, Any] = {"cutoffs in cycles/image": chosen}
    for measure in MEASURES:
        lines = {
            name: " → ".join(
                f"{row[measure]:.3f} ± {row[f'{measure} se']:.3f} ({row['arm']})" for _, row in rows.iterrows()
            )
            for name, rows in table.groupby("method", sort=False)
            if rows[measure].notna().any()
        }
        counts = []
        for against, rows in differences[differences["measure"] == measure].groupby("against", sort=False):
            up, down = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
            counts.append(f"against {against}: up at {up}, down at {down} of {len(rows)} methods")
        if lines:
            found[measure] = {**lines, "FORGrad": "; ".join(counts)}
    if table["even map"].notna().any():
        found["relevance mass of an even map"] = round(float(table["even map"].mean()), 3)
    return {**found, "F": {"note": "of few pictures: anecdotal, see forgrad_gain", **found.get("F", {})}}


# ---- figures ---------------------------------------------------------------------------------


def draw(
    study: Study, engine: gs.Engine, work: dict[str, Attribution], cutoffs: dict[str, float], shown: list[Batch]
) -> None:
    """Draws the sheets of the first pictures."""
    whole = joined(shown[: -(-study.args.shown // AT_ONCE)])
    x, y, ids = whole[0][: study.args.shown], whole[1][: study.args.shown], whole[2][: study.args.shown]
    pixels = None if study.args.images is not None else pixels_of(engine.model, x)
    if study.args.images is not None and study.args.where == "gradient":
        work = {name: method for name, method in work.items() if name not in TIMES_INPUT}
    maps = maps_of(engine, arms_of(study, work, cutoffs), x, y, ids)
    heads = {name: f"{name}\nσ = {cutoffs[name]:.3g}" for name in work}
    before, after = ({heads[n]: maps[f"{n}: {arm}"] for n in work} for arm in (ARMS[0], ARMS[2]))
    rows = {"before": before, "FORGrad": after}
    study.figure(sheet(study, rows, pixels, ids, f"before and after FORGrad ({study.args.where})"))
    method, limit = work.get("GradientInput", next(iter(work.values()))), identity_radius(x.shape[-2], x.shape[-1])
    radii = [None, *(max(1.0, round(limit * part, 1)) for part in ROW)]
    row = {}
    for place in ("gradient", "attribution") if pixels is not None else ("attribution",):
        wanted: dict[str, Any] = {heading(radius): gs.FORGrad(method, radius, where=place) for radius in radii}
        row[f"filter: {place}"] = maps_of(engine, wanted, x, y, ids)
    title = f"{type(method).__name__} at a row of cutoffs σ, cycles/image"
    study.figure(sheet(study, row, pixels, ids, title), "_row")


def heading(radius: float | None) -> str:
    """Returns a cutoff as it stands above a column."""
    return "no filter" if radius is None else f"σ = {radius:g}"


def sheet(
    study: Study, rows: dict[str, dict[str, Tensor]], pixels: np.ndarray | None, ids: list[str], title: str
) -> Figure:
    """Returns a sheet: for each picture a line for each row, a column for each map, each map on a scale of its own."""
    columns = list(next(iter(rows.values())))
    beside = 0 if pixels is None else 1
    figure = Figure(
        figsize=(1.35 * (len(columns) + beside) + 0.9, 1.35 * len(ids) * len(rows) + 0.9), layout="constrained"
    )
    axes = figure.subplots(len(ids) * len(rows), len(columns) + beside, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for i, (name, line) in enumerate((name, line) for name in range(len(ids)) for line in rows):
        if pixels is not None:
            axes[i, 0].imshow(np.clip(np.moveaxis(pixels[name], 0, 2), 0, 1))
        axes[i, 0].set_ylabel(f"{Path(ids[name]).stem[:16]}\n{line}", fontsize=7)
        for j, column in enumerate(columns, beside):
            show(axes[i, j], rows[line][column][name].numpy())
            if i == 0:
                axes[i, j].set_title(column, fontsize=8)
    words = "red: positive, blue: negative; dark: large magnitude; each to its own 99th percentile"
    figure.suptitle(f"{study.args.name}: {title}\n{words}", fontsize=9)
    return figure


def show(axis: Any, values: np.ndarray) -> None:
    """Draws a map: red and blue where it has a sign, else from light to dark."""
    end = float(np.percentile(np.abs(values), 99)) or 1.0
    signed = bool((values < 0).any())
    low = -end if signed else 0.0
    axis.imshow(values, cmap="RdBu_r" if signed else "magma_r", vmin=low, vmax=end, interpolation="antialiased")


if __name__ == "__main__":
    main()

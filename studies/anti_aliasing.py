"""Anti-aliased downsampling in place of plain pooling: is there less for FORGrad to gain? (the summary's next check 2)

    python studies/anti_aliasing.py --name anti_aliasing_vgg_max
    python studies/anti_aliasing.py --model ../shared/nets/tiny_darknet.py:load --images ../shared/images \
        --weights ../shared/nets/tiny_darknet.safetensors --limit 32 --name anti_aliasing_tiny_darknet --twins

The network as it is, with average pooling (ordinary and wide), blurred pooling (blur alone, maximum then blur, blur
then maximum), each also with BatchNorm's statistics re-estimated, and --twins that were trained that way: slope and
share of high frequencies of the gradient at the input, accuracy, agreement with the first, the F of Saliency without a
filter and what FORGrad gains on it. The cutoff is chosen on --limit pictures, which recalibration sees too, and judged
on as many others. Surgery changes what is computed, and F is on the scale of the label's probability: so a gain also
stands as a share of the label's mean probability, and, against the first, on the pictures alone that both get right.

It writes NAME.csv (a row per variant: means, standard errors, n, intervals of the gain and of its difference from the
first's, paired by picture, BCa bootstrap), NAME_pictures.csv, NAME_claims.csv (rank correlations over variants),
NAME.png and NAME.json.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from study import Study, parsed, parser
from torch import nn

import gradspec as gs
from gradspec import attributions as a
from gradspec.controls import centre_prior
from gradspec.cutoffs.grid import cutoff_grid
from gradspec.metrics import Faithfulness
from gradspec.plots._style import VARIANTS
from gradspec.statistics import Paired, paired
from gradspec.surgery import NothingToSwap
from gradspec.variants import variant

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
AT_ONCE = 4  # pictures of a batch: every other batch is for selection
FEWEST_RACE = 24  # selection pictures; a quarter of the grid's passes shows fewer of them too few cutoffs
SWAPS = ("avgpool", "avgpool-wide", "blurpool", "maxblurpool", "blurmax")
NAMES = {"none": "F", "abs": "F_abs", "forgrad": "F_forgrad", "centre prior": "F_centre"}
MEASURES = ("slope", "high_share", "right", "agrees", "probability", *NAMES.values())


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    made = parser(__doc__, name="anti_aliasing", limit=64)
    made.add_argument("--twins", nargs="*", default=["demo:vgg_avg"], help="networks trained with other downsampling")
    made.add_argument("--swaps", nargs="*", default=list(SWAPS), help="variants, each with and without recalibration")
    made.add_argument("--cutoffs", type=int, default=10, help="tried, beside no filter")
    made.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of scores")
    return parsed(
        made, argv, smoke={"limit": 4, "cutoffs": 2, "swaps": ["avgpool"]}, paper={"limit": 1280, "cutoffs": 20}
    )


# ---- one variant -----------------------------------------------------------------------------


def measured(net: nn.Module, engine: Any, reference: nn.Module, selection: Any, report: Any, points: int) -> Frame:
    """Returns a row for each report picture: its gradient, what the network says, F under each arm."""
    audit = gs.audit(net, report, layers="input", progress=False)
    signature = audit.signatures["input", "input"]
    frame = pd.DataFrame({"picture": audit.pictures, "label": audit.spec["labels"]})
    frame["slope"] = signature.slopes_per_image() * min(signature.height, signature.width) / 2
    frame["high_share"] = signature.high_shares
    frame["right"] = np.equal(audit.spec["predicted"], audit.spec["labels"]).astype(float)
    frame["agrees"] = np.equal(audit.spec["predicted"], predicted(reference, report)).astype(float)
    frame["probability"] = audit.spec["label_probability"]
    options: dict[str, Any] = {"progress": False, "controls": False}
    side = min(signature.height, signature.width)
    tried: Any = cutoff_grid(signature.height, signature.width, points=points)
    search: Any = "race" if len(frame) >= FEWEST_RACE else "grid"
    methods: dict[str, Any] = {"Saliency": a.Saliency(), "centre prior": centre_prior()}
    with warnings.catch_warnings(record=True) as said:  # of flat curves, to be written down
        warnings.simplefilter("always")
        fit = gs.fit_cutoff(engine, methods["Saliency"], selection, cutoffs=tried, search=search, **options)
        fits = {"Saliency": fit}
        scores = gs.evaluate(engine, report, methods, {"F": Faithfulness()}, fits=fits, arms=("abs",), **options)
    frame = frame.merge(scored(scores.table), on="picture", how="left")
    frame.attrs |= {"cutoff": fit.cutoff, "one_se": fit.one_se, "side": side, "search": search}
    frame.attrs["notes"] = sorted({str(warning.message) for warning in said})
    return frame


def scored(table: Frame) -> Frame:
    """Returns the F of each picture (rows) under each arm and of the centre prior (columns)."""
    keys = table["arm"].where(table["attribution"] == "Saliency", table["attribution"])
    wide = table.assign(key=keys).pivot(index="picture", columns="key", values="value")
    return wide.rename(columns=NAMES).reindex(columns=list(NAMES.values())).reset_index()


@torch.no_grad()
def predicted(net: nn.Module, batches: Any) -> np.ndarray:
    """Returns the classes that a network names."""
    return torch.cat([net(images).argmax(1) for images, _, _ in batches]).numpy()


# ---- all of them -----------------------------------------------------------------------------


def measure(study: Study) -> tuple[Frame, Frame, list[str]]:
    """Returns every picture's numbers, the cutoffs by variant, and notes of what does not apply."""
    net, args = study.model(), study.args
    batches = list(study.pictures(net, 2 * args.limit, batch_size=min(AT_ONCE, args.limit)))
    selection, report = batches[::2], batches[1::2]
    names = ["trained", *args.twins, *(name + more for name in args.swaps for more in ("", "+recalibrated"))]
    frames, cutoffs, left = [], [], []
    for name in names:
        try:
            made = variant(net, name, selection, args.seed)
        except (NothingToSwap, ValueError) as reason:
            left.append(f"{name}: {reason}")
            continue
        engine = None if study.store.done(name) else gs.Engine(made, precision=args.precision, progress=False)
        work = partial(measured, made, engine, net, selection, report, args.cutoffs)
        found = study.unit(name, work, engine)
        cutoffs.append({"variant": name, **{key: found.attrs[key] for key in ("cutoff", "one_se", "side")}})
        left += [f"{name}: {note}" for note in found.attrs["notes"]]
        frames.append(found.assign(variant=name))
    frame: Frame = pd.concat(frames, ignore_index=True)
    frame["gain"] = frame["F_forgrad"] - frame["F"]
    frame["gain_centre"] = frame["F_forgrad"] - frame["F_centre"]
    return frame, pd.DataFrame(cutoffs), left


def table_of(frame: Frame, cutoffs: Frame) -> Frame:
    """Returns a row for each variant: means with standard errors, the gain, and its difference from the first's."""
    first = frame[frame["variant"] == frame["variant"].iloc[0]].set_index("picture")
    rows = []
    for row in cutoffs.to_dict("records"):
        mine = frame[frame["variant"] == row["variant"]].set_index("picture").reindex(first.index)
        for name in MEASURES:
            row |= {name: mine[name].mean(), f"{name}_se": mine[name].sem()}
        row |= told("gain", paired(mine["F_forgrad"].to_numpy(), mine["F"].to_numpy()))
        row |= told("gain_centre", paired(mine["F_forgrad"].to_numpy(), mine["F_centre"].to_numpy()))
        row |= {"gain_relative": mine["gain"].mean() / mine["probability"].mean()}
        row |= differences(mine, first) if rows else {}
        rows.append(row | {"n": int(mine["gain"].notna().sum())})
    return pd.DataFrame(rows)


def differences(mine: Frame, first: Frame) -> dict[str, float]:
    """Returns how a variant's gain and its F differ from the first's, on all pictures and on those both get right."""
    both = (mine["right"] == 1) & (first["right"] == 1)
    row = {}
    for name in ("gain", "F"):
        row |= told(f"{name}_less_first", paired(mine[name].to_numpy(), first[name].to_numpy()))
        row |= told(f"{name}_less_first_right", paired(mine[name][both].to_numpy(), first[name][both].to_numpy()))
    return row


def told(name: str, found: Paired) -> dict[str, float]:
    """Returns mean, standard error, interval, Bayes factor and n under that name."""
    facts = {"": found.mean, "_se": found.se, "_low": found.low, "_high": found.high, "_bf10": found.bf10}
    return {f"{name}{end}": value for end, value in facts.items()} | {f"{name}_n": found.n}


def claims(table: Frame) -> Frame:
    """Returns rank correlations over variants between the input gradient and the explanation's F and gain.

    They describe: the variants share pictures, and most of them weights, so that no p would mean anything.
    """
    rows = []
    for left in ("slope", "high_share"):
        for right, expected in (("F", "<0"), ("gain", ">0"), ("gain_relative", ">0"), ("cutoff", "")):
            known = table[[left, right]].astype(float)
            known["cutoff"] = known["cutoff"].fillna(table["side"]) if right == "cutoff" else 0.0
            known = known.dropna()
            enough = len(known) > 2 and known[left].nunique() > 1 and known[right].nunique() > 1
            found: Any = stats.spearmanr(known[left], known[right])[0] if enough else np.nan
            rows.append([f"{left} and {right} over variants", expected, found, len(known)])
    return pd.DataFrame(rows, columns=["quantity", "expected", "correlation", "n"])


def answers(table: Frame) -> dict[str, Sequence[str]]:
    """Returns which variants gain less from the filter than the first does, and which more, by their intervals."""
    others = table.iloc[1:]
    found = {}
    for name in ("gain_less_first", "gain_less_first_right", "F_less_first") if len(others) else ():
        less, more = others[f"{name}_high"] < 0, others[f"{name}_low"] > 0
        found |= {f"{name}: below 0": others["variant"][less].tolist()}
        found |= {f"{name}: above 0": others["variant"][more].tolist()}
    return found


def draw(table: Frame, title: str) -> Figure:
    """Returns F without and with the filter by variant, and the gain against the slope at the input."""
    figure = Figure(figsize=(12, 1.6 + 0.34 * max(8, len(table))), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.2, 1]})
    places = np.arange(len(table))[::-1]
    looks = {
        "F": ("o", "white", "no filter"),
        "F_forgrad": ("o", "#0173b2", "FORGrad"),
        "F_centre": ("|", "0.4", "centre prior"),
    }
    left.hlines(places, table["F"], table["F_forgrad"], color="0.7", linewidth=1)
    for name, (marker, face, label) in looks.items():
        points = {"fmt": marker, "color": "0.4" if name == "F_centre" else "#0173b2", "markerfacecolor": face}
        error = None if name == "F_centre" else table[f"{name}_se"]
        left.errorbar(table[name], places, xerr=error, markersize=6, linewidth=1, label=label, **points)
    told = [f"{row.variant} ({100 * row.right:.0f} %)" for row in table.itertuples()]
    left.set_yticks(places, told)
    left.set_xlabel("faithfulness F of Saliency, mean ± standard error (in brackets: accuracy)")
    left.legend(fontsize=8, frameon=False)
    for row, trace in zip(table.itertuples(), [*VARIANTS, *VARIANTS], strict=False):
        error = [[row.gain - row.gain_low], [row.gain_high - row.gain]]
        look = {"color": trace.colour, "marker": trace.marker, "markersize": 6, "linewidth": 0.8, "linestyle": "none"}
        right.errorbar(row.slope, row.gain, yerr=error, xerr=row.slope_se, label=row.variant, **look)
    right.axhline(0, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)))
    right.set_xlabel("slope of the gradient at the input\n(log₁₀ amplitude per Nyquist)")
    right.set_ylabel("gain in F by FORGrad (95 % interval)")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Measures, and writes what the study's docstring lists."""
    args = arguments(argv)
    study = Study(args, __file__)
    frame, cutoffs, left = measure(study)
    table = table_of(frame, cutoffs)
    study.table(table)
    study.table(frame, "_pictures")
    study.table(claims(table), "_claims")
    study.figure(draw(table, f"{args.name}: {table['n'].max()} pictures; cutoffs chosen on {args.limit} others"))
    study.finish(report_pictures=int(table["n"].max()), notes=left, answers=answers(table))
    shown = ["variant", "slope", "high_share", "right", "probability", "F", "F_forgrad", "F_centre", "cutoff", "gain"]
    shown += ["gain_less_first_low", "gain_less_first_high", "gain_relative"]
    print(table.reindex(columns=shown).to_string(index=False, float_format="%.3f"))
    print(claims(table).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()

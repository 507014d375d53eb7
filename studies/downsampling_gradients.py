"""What max-pooling and strides do to the gradient, and what average pooling does (figures 4B, A.3, A.4, A.7, A.8).

    python studies/downsampling_gradients.py --model ../shared/nets/resnet_pq.py:load \
        --weights ../shared/nets/resnet50_ktb.safetensors --images ../shared/images --limit 12 \
        --name downsampling_gradients_resnet50
    python studies/downsampling_gradients.py --name downsampling_gradients_vgg_max

Audits variants of a network on the same pictures with the same labels: as loaded, with weights drawn anew,
average-pooled, and average-pooled over whole multiples of the stride (whose adjoint does not alternate). Of the
gradient at the input and output of each operator that shrinks the map, at the input of the module that holds it, and
at convolutions; what was a strided convolution is compared and drawn at the module's input alone, since in the pooled
variants the pooling stands behind the convolution, whose adjoint its gradient has yet to pass:

- `high_share`: share of the power above half Nyquist; `slope_nyquist`: log10 amplitude per Nyquist;
- `rise`: log10 of the amplitude above 7/8 of Nyquist over that around half of it (3/8 to 5/8), above 0 where the
  signature rises;
- `tip`: amplitude of the last ring, at Nyquist, over the signature's least ring; 1 where it falls to the end, never
  less;
- `checkerboard`: share of the power within 2 cycles/image of Nyquist in rows, in columns or in both, as a multiple of
  white noise's share.

Writes NAME.csv (a row for each variant, call and point), NAME_claims.csv (paired differences between the first variant
and the others, operator by operator, with 95 % intervals over pictures; a variant with the numbers of one before it is
left out), NAME.png (signatures), NAME_gradients.png
(example gradients; never the pictures), NAME_numbers.png and NAME.json.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec.spectra import Signature, checkerboard_share, white_checkerboard_share
from gradspec.statistics import paired
from gradspec.taps import logits_of
from gradspec.variants import variant

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
Batches = list[tuple[Tensor, Tensor, list[str]]]
VARIANTS = ("trained", "untrained", "avgpool", "avgpool-wide")
DRAWN = 3  # variants in the figures of maps and signatures
CONVOLUTIONS = ("strided convolution", "convolution", "patch embedding", "patch merging")
REPLACED = "convolution, replaced"  # of a module that was a strided convolution, at its input
DOWNSAMPLING = ("max pooling", "strided convolution", "average pooling", "patch embedding", "patch merging")
WITHIN = 2.0  # cycles/image
LEAST = 4  # pixels of a map's side: a global mean leaves one
SURE = 1.96  # standard errors
DETAIL = 32  # pixels of a side that are shown of a large map
SPAN = 4.0  # decades of a spectrum that are shown
LOOKS = (("#0173b2", "o"), ("#222222", "s"), ("#d55e00", "^"), ("#cc78bc", "D"), ("#029e73", "v"), ("#949494", "P"))


def main(argv: list[str] | None = None) -> None:
    """Audits the variants, decides the claims and draws."""
    made = parser(__doc__, name="downsampling_gradients", limit=64)
    made.add_argument("--variants", nargs="+", default=list(VARIANTS), help="the first is what others are held against")
    smoke = {"limit": 4, "variants": ["trained", "avgpool", "avgpool-wide"]}
    study = Study(parsed(made, argv, smoke=smoke, paper={"limit": 1000}), __file__)
    model = study.model()
    batches = labelled(study, model)
    tables, audits = [], {}
    for name in study.args.variants:

        def net(name: str = name) -> Any:
            return variant(model, name, batches, study.args.seed)

        audits[name] = study.kept(f"audit {name}", gs.Audit, lambda net=net: audited(study, net(), batches))
        found = audits[name]
        tables.append(study.unit(name, lambda net=net, found=found, name=name: measured(name, net(), found, batches)))
    table = pd.concat(tables, ignore_index=True)
    claimed = claims(table)
    study.table(table.drop(columns=["high shares", "checkerboards"]))
    study.table(claimed, "_claims")
    draw(study, audits, table)
    study.finish(pictures=len(audits[study.args.variants[0]].pictures), **facts(table, claimed))


def labelled(study: Study, model: Any) -> Batches:
    """Returns the pictures with labels: theirs, or what the network as loaded predicts, the same for all variants."""
    engine = gs.Engine(model)
    found = [(x, engine.predictions(x) if y is None else y, ids) for x, y, ids in study.pictures(model)]
    return [(x, y, list(ids)) for x, y, ids in found]


# ---- numbers ---------------------------------------------------------------------------------


def audited(study: Study, net: Any, batches: Batches) -> gs.Audit:
    """Returns the audit of one variant."""
    return gs.audit(net, batches, seed=study.args.seed, progress=False)


def measured(name: str, net: Any, audit: gs.Audit, batches: Batches) -> Frame:
    """Returns the numbers of one variant."""
    places = places_of(audit.table)
    boards = checkerboards(net, batches, {call for call, _ in places})
    rows = [
        {"variant": name, **place, **numbers(audit.signatures[key], boards[key])}
        for key, place in places.items()
        if key in audit.signatures and key in boards
    ]
    return pd.DataFrame(rows)


def places_of(table: Frame) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns (call, point) -> what it is, of operators that shrink the map, convolutions and the network's input."""
    heights = {(row.call, row.point): row.height for row in table.itertuples()}
    shrinks = {
        call: DOWNSAMPLING.count(kind) and LEAST <= heights.get((call, "output"), 0) < heights.get((call, "input"), 0)
        for call, kind in zip(table["call"], table["type"], strict=True)
    }
    modules = {call.partition(":")[0] for call, yes in shrinks.items() if yes}
    first = {module: next(call for call in shrinks if call.partition(":")[0] == module) for module in modules}
    found = {}
    for row in table.itertuples():
        module = row.call.partition(":")[0]
        what = "downsampling" if shrinks[row.call] else row.type
        if shrinks[row.call] or row.type in ("convolution", "input") or first.get(module) == row.call:
            entrance = row.point == "input" and first.get(module) == row.call
            place = {"module": module, "call": row.call, "type": row.type, "role": what, "entrance": entrance}
            found[row.call, row.point] = {**place, "point": row.point, "height": row.height, "width": row.width}
    return found


def checkerboards(net: Any, batches: Batches, calls: set[str]) -> dict[tuple[str, str], np.ndarray]:
    """Returns each picture's checkerboard share (N,) of the gradient at these calls' points."""
    found = defaultdict(list)

    def receive(tap: gs.Tap, gradient: Tensor) -> None:
        if not tap.reason and tap.part == 0:
            found[tap.call.name, tap.point].append(checkerboard_share(tap.maps(gradient.detach()), WITHIN))

    with gs.tapped(net, receive, layers=lambda call: call.name in calls) as taps:
        for x, y, _ in batches:
            taps.backward(gs.label_logit(logits_of(net(x)), y))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def numbers(found: Signature, boards: np.ndarray) -> dict[str, Any]:
    """Returns the numbers of one point with standard errors over pictures."""
    half = min(found.height, found.width) // 2
    rise, rise_se = found.log_ratio(band(half, 7 / 8, 1), band(half, 3 / 8, 5 / 8))
    least = 1 + int(np.argmin(found.amplitude[1:])) if half >= LEAST and found.n else half + 1
    tip, tip_se = found.log_ratio(slice(half, half + 1), slice(least, least + 1))
    board = boards / white_checkerboard_share(found.height, found.width, WITHIN)
    known = board[np.isfinite(board)]
    return {
        "high_share": found.high_share, "high_share se": found.high_share_se, "excess": found.excess,
        "slope_nyquist": found.slope_nyquist, "slope_nyquist se": found.slope_nyquist_se,
        "rise": rise, "rise se": rise_se, "tip": 10**tip, "tip se": 10**tip * tip_se * math.log(10),
        "checkerboard": known.mean() if len(known) else math.nan, "checkerboard se": error(known), "n": found.n,
        "high shares": found.high_shares.tolist(), "checkerboards": board.tolist(),
    }  # fmt: skip


def band(half: int, low: float, high: float) -> slice:
    """Returns the rings between two fractions of Nyquist, `half` cycles/image."""
    return slice(math.ceil(low * half), math.floor(high * half) + 1)


def error(values: np.ndarray) -> float:
    """Returns the standard error of the mean, NaN of one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


# ---- claims ----------------------------------------------------------------------------------


def claims(table: Frame) -> Frame:
    """Returns, module by module, by how much the first variant has more than each other, on the same pictures."""
    reference, *others = table["variant"].unique()
    rows, left = [], same_numbers(table)
    for other in [name for name in others if name not in left]:
        for place in ("after the pooling", "at the module's input"):
            ours, theirs = (pooled(table, name, place) for name in (reference, other))
            for module in ours.index.intersection(theirs.index, sort=False):
                for measure, column in (("high share", "high shares"), ("checkerboard", "checkerboards")):
                    a, b = (np.array(frame.loc[module, column], float) for frame in (ours, theirs))
                    found = paired(a, b)
                    row = {"module": module, "type": ours.loc[module, "type"], "place": place, "measure": measure}
                    row |= {
                        "first": reference,
                        "other": other,
                        "first mean": np.nanmean(a),
                        "other mean": np.nanmean(b),
                    }
                    row |= {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n}
                    rows.append(row)
    return pd.DataFrame(rows)


def same_numbers(table: Frame) -> dict[str, str]:
    """Returns variant -> the one before it that has the same numbers, as if it were that one."""
    found: dict[str, str] = {}
    parts = {str(name): rows for name, rows in table.groupby("variant", sort=False)}
    for name, rows in parts.items():
        for other in [other for other in parts if other not in found]:
            if other == name:
                break
            if alike(rows, parts[other]):
                found[name] = other
    return found


def alike(one: Frame, other: Frame) -> bool:
    """Returns whether two variants have the same calls, and at them the same numbers of every picture."""
    if one[["call", "point"]].to_numpy().tolist() != other[["call", "point"]].to_numpy().tolist():
        return False
    pairs = ([np.concatenate(list(frame[name])) for frame in (one, other)] for name in ("high shares", "checkerboards"))
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-7, equal_nan=True) for a, b in pairs)


def convolving(table: Frame) -> set[str]:
    """Returns the modules that sample down and hold a convolution in the first variant."""
    rows = table[table["variant"] == table["variant"].iloc[0]]
    shrinking = rows["module"].isin(rows["module"][rows["role"] == "downsampling"])
    return set(rows["module"][shrinking & rows["type"].isin(CONVOLUTIONS)])


def pooled(table: Frame, name: str, place: str) -> Frame:
    """Returns a variant's rows by module.

    Args:
        table: Of all variants.
        name: The variant.
        place: "after the pooling": at the pooling's own input, of poolings alone; "at the module's input"; or "both":
            poolings at the one and convolutions at the other.
    """
    rows = table[(table["variant"] == name) & (table["point"] == "input")]
    shrinking, convolution = rows["role"] == "downsampling", rows["module"].isin(convolving(table))
    first = rows["entrance"] & rows["module"].isin(rows["module"][shrinking])
    wanted = {
        "after the pooling": shrinking & ~convolution,
        "at the module's input": first,
        "both": (shrinking & ~convolution) | (first & convolution),
    }
    return rows[wanted[place]].set_index("module")


def compared(table: Frame) -> Frame:
    """Returns the rows of all variants that are drawn side by side: see `pooled`, "both"."""
    return pd.concat([pooled(table, name, "both").reset_index() for name in table["variant"].unique()])


def facts(table: Frame, claimed: Frame) -> dict[str, Any]:
    """Returns what decides the claims."""
    found: dict[str, Any] = {"first variant more than the others": verdicts(claimed), "same as": same_numbers(table)}
    sampling, rest = compared(table), table[table["point"] == "input"]
    kinds = pooled(table, table["variant"].iloc[0], "both")["type"].to_dict()
    rest = rest[~rest["module"].isin(sampling["module"])]
    after: Frame = pd.concat([sampling.assign(type=sampling["module"].map(kinds).fillna(sampling["type"])), rest])
    rising = after.assign(rises=after["rise"] > SURE * after["rise se"], falls=after["rise"] < -SURE * after["rise se"])
    groups = rising[rising["rise"].notna()].groupby(["variant", "type"], sort=False)
    found["signature rises towards Nyquist, by what stands there in the first variant"] = {
        f"{name}: {kind}": f"rises at {int(rows['rises'].sum())}, falls at {int(rows['falls'].sum())} of {len(rows)}, "
        f"mean rise {rows['rise'].mean():+.3f}"
        for (name, kind), rows in groups
    }
    for measure in ("checkerboard", "tip"):
        found[f"{measure} after each operator"] = {
            name: {row["module"]: f"{row[measure]:.2f} ± {row[measure + ' se']:.2f}" for _, row in rows.iterrows()}
            for name, rows in sampling.groupby("variant", sort=False)
        }
    return found


def verdicts(claimed: Frame) -> dict[str, str]:
    """Returns at how many operators of a type the first variant has more, less, or what cannot be told."""
    groups = claimed.groupby(["measure", "other", "place", "type"], sort=False)
    return {
        f"{measure} than {other}, {place}, {kind}": f"more at {(rows['low'] > 0).sum()}, less at "
        f"{(rows['high'] < 0).sum()} of {len(rows)}, mean {rows['first mean'].mean():.3f} against "
        f"{rows['other mean'].mean():.3f}"
        for (measure, other, place, kind), rows in groups
    }


# ---- figures ---------------------------------------------------------------------------------


def draw(study: Study, audits: dict[str, gs.Audit], table: Frame) -> None:
    """Draws signatures, example gradients and the numbers."""
    drawn = dict(list(audits.items())[:DRAWN])
    placed = {name: relabelled(audit, pooled(table, name, "both")) for name, audit in drawn.items()}
    study.figure(gs.plots.signatures(placed, kinds=[*DOWNSAMPLING, REPLACED]))
    study.figure(stages_figure(drawn, table, study.args.name), "_gradients")
    study.figure(numbers_figure(table, study.args.name), "_numbers")


def relabelled(audit: gs.Audit, places: Frame) -> gs.Audit:
    """Returns the audit with the places that are compared as its only downsampling ones."""
    types, calls = audit.table["type"].copy(), audit.table["call"]
    types[types.isin(DOWNSAMPLING) & ~calls.isin(places["call"])] = "inside a module"
    here = calls.isin(places["call"]) & ~types.isin(DOWNSAMPLING)
    types[here] = REPLACED
    return replace(audit, table=audit.table.assign(type=types))


def stages_figure(audits: dict[str, gs.Audit], table: Frame, title: str) -> Figure:
    """Returns gradients with their spectra: a column for each size of map, prediction first, rows for each variant."""
    reference = pooled(table, next(iter(audits)), "both")
    modules = reference.reset_index().drop_duplicates("height")["module"].tolist()[::-1]  # last as the gradient flows
    figure = Figure(figsize=(1.75 * (len(modules) + 1) + 0.6, 3.5 * len(audits) + 0.6), layout="constrained")
    axes = figure.subplots(2 * len(audits), len(modules) + 1, squeeze=False)
    for i, (name, audit) in enumerate(audits.items()):
        kept = table[(table["variant"] == name) & (table["role"] == "downsampling") & (table["point"] == "input")]
        calls = kept.set_index("module")["call"].to_dict()  # audits keep no other examples
        inside = set(kept["module"][~kept["call"].isin(pooled(table, name, "both")["call"])])
        for j, module in enumerate([*modules, "input"]):
            found = audit.examples.get((calls.get(module, module), "input"))
            axes[0, j].set_title("network input, whole" if module == "input" else module, fontsize=8)
            for axis in axes[2 * i : 2 * i + 2, j]:
                axis.set(xticks=[], yticks=[])
            if found is not None:
                show(axes[2 * i, j], axes[2 * i + 1, j], found, whole=module == "input")
                if module in inside:
                    axes[2 * i, j].set_xlabel(axes[2 * i, j].get_xlabel() + ",\nbefore the convolution", fontsize=7)
        axes[2 * i, 0].set_ylabel(f"{name}\ngradient", fontsize=9)
        axes[2 * i + 1, 0].set_ylabel("log spectrum,\nDC in the centre", fontsize=8)
    count = len(next(iter(audits.values())).pictures)
    figure.suptitle(
        f"{title}: one picture's gradient after the operator, mean over channels; spectra of {count}", fontsize=10
    )
    return figure


def show(above: Any, below: Any, example: gs.Example, *, whole: bool) -> None:
    """Draws a gradient, of a large one the detail around its largest value, and its spectrum below."""
    picture = example.maps[0] if whole else detail(example.maps[0])
    end = float(np.percentile(np.abs(picture), 99)) or 1.0
    above.imshow(picture, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="antialiased" if whole else "nearest")
    above.set_xlabel(f"{picture.shape[0]} of {example.maps.shape[1]} pixels", fontsize=7)
    low, high = np.nanpercentile(example.spectrum, [1, 99.5])
    below.imshow(example.spectrum, cmap="viridis", vmin=max(low, high - SPAN), vmax=high, interpolation="antialiased")
    below.set_xlabel(f"log₁₀ {max(low, high - SPAN):.1f} to {high:.1f}", fontsize=7)


def detail(picture: np.ndarray) -> np.ndarray:
    """Returns the 32 x 32 pixels around a map's largest magnitude."""
    rows, columns = picture.shape
    row, column = np.unravel_index(np.abs(picture).argmax(), picture.shape)
    top, left = (max(0, min(int(at) - DETAIL // 2, side - DETAIL)) for at, side in ((row, rows), (column, columns)))
    return picture[top : top + DETAIL, left : left + DETAIL]


def numbers_figure(table: Frame, title: str) -> Figure:
    """Returns the numbers after each downsampling operator, from the prediction to the input."""
    rows = compared(table)
    modules = list(dict.fromkeys(rows["module"]))[::-1]
    panels = {
        "high_share": "share of power above half Nyquist\n(white noise: 0.80)",
        "rise": "log₁₀ amplitude near Nyquist\nover that at half of it",
        "tip": "amplitude at Nyquist over\nthe signature's least",
        "checkerboard": "power at checkerboard frequencies\nover white noise's",
    }
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (measure, words) in zip(axes, panels.items(), strict=True):
        for i, ((name, mine), (colour, form)) in enumerate(
            zip(rows.groupby("variant", sort=False), LOOKS, strict=False)
        ):
            x = [modules.index(module) + 0.13 * (i - 1) for module in mine["module"]]
            style = {"fmt": form, "ms": 5, "color": colour, "lw": 1.2, "label": name}
            axis.errorbar(x, mine[measure], SURE * mine[f"{measure} se"], **style)
        axis.axhline({"high_share": 0.804, "rise": 0}.get(measure, 1), color="0.5", lw=0.8, ls="--")
        axis.set_xticks(range(len(modules)), modules, rotation=60, ha="right", fontsize=7)
        axis.set_title(words, fontsize=9)
        if measure == "checkerboard":
            axis.set_yscale("log")
    axes[0].set_xlabel("downsampling operator, prediction → input\n(convolutions: at the module's input)", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LOOKS), frameon=False)
    figure.suptitle(f"{title}: gradient after each operator, {rows['n'].max()} pictures, mean and 95 % interval")
    return figure


if __name__ == "__main__":
    main()

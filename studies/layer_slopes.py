"""The slope of the gradient at every operator, from the prediction to the input (figures A.5, A.6; supplement B 2-6).

    python studies/layer_slopes.py --model ../shared/nets/resnet_pq.py:load \
        --weights ../shared/nets/resnet50_ktb.safetensors --images ../shared/images --name layer_slopes_resnet50

For the network as it was loaded, for one with weights drawn anew and for the average-pooled one: slope per Nyquist and
share of high frequencies of the gradient at the input and output of every operator call; on --looked pictures and
--channels channels of each gradient also the complexities of supplement B: the mean squared Laplacian, and the bytes as
PNG and as JPEG, all relative to white noise of the same size (0: a constant map, 1: white noise).

It writes NAME.csv (the profiles), NAME_operators.csv and NAME_types.csv (what each operator, and each kind, changes and
adds), NAME_stages.csv, NAME_complexity.csv, NAME_claims.csv (what the paper says, decided: `layer_slopes_claims.py`),
NAME.png (slopes), NAME_complexity.png and NAME.json. Claims: (a) downsampling operators jump, (b) blocks are stable
inside, (c) it accumulates towards the input, (d) convolutions smooth, (e) it is there after training (beside that: its
share of what it was before, and the plain differences, of which nothing is expected), (f) what attention and
activations do, (g) average pooling lowers it, (h) the complexities say the same. Standard errors and intervals are over
pictures (Student's t); under five pictures there is no verdict ("few").
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from layer_slopes_claims import (
    COMPLEXITIES,
    FILLED,
    Claim,
    claims_table,
    complexity_claims,
    downsampling_claims,
    grouped,
    interval,
    jump_claims,
    operators,
    stage_claims,
    stages,
    training_claims,
    variant_claims,
)
from matplotlib.figure import Figure
from study import Study, parsed, parser
from torch import Tensor, nn

import gradspec as gs
from gradspec.comparison import SamePictures
from gradspec.plots._style import VARIANTS
from gradspec.surgery import NothingToSwap
from gradspec.variants import variant

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
KEYS = ["variant", "call", "point"]
LEAST = 6  # pixels of a map's side: as a slope takes three rings, and smaller files are all header
POOLED = ("avgpool", "avgpool-patch")  # the second with --patch, where nothing else samples down


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    made = parser(__doc__, name="layer_slopes", limit=8)
    made.add_argument("--looked", type=int, default=3, help="pictures that complexities are measured on")
    made.add_argument("--channels", type=int, default=4, help="channels of each gradient, for the complexities")
    made.add_argument("--patch", action="store_true", help="where nothing else does: average-pool a patch embedding")
    return parsed(
        made, argv, smoke={"limit": 3, "looked": 2, "channels": 1}, paper={"limit": 1000, "looked": 100, "channels": 16}
    )


# ---- one variant -----------------------------------------------------------------------------


def audited(study: Study, name: str, net: nn.Module, data: Any) -> Frame:
    """Returns every picture's numbers of one variant; the audit itself is kept beside the units."""
    audit = gs.audit(net, data, progress=False)
    audit.save(study.store.folder / "audits" / name)
    return per_picture(audit, kinds(net))


def per_picture(audit: gs.Audit, kind: dict[str, str]) -> Frame:
    """Returns a row for each call, point and picture; see `layer_slopes_claims`."""
    table: Frame = audit.table
    new = audit.new_power.set_index(["call", "image"])["new_power"]
    parts = []
    for order, row in enumerate(table.itertuples(index=False)):
        signature = audit.signatures[row.call, row.point]
        values = {
            "call": row.call, "type": row.type, "kind": kind.get(module_of(row.call), row.type), "point": row.point,
            "order": order, "height": row.height, "picture": list(audit.pictures),
            "slope": signature.slopes_per_image() * min(signature.height, signature.width) / 2,
            "share": signature.high_shares, "excess": signature.high_shares - signature.white_share,
            "new_power": np.nan,
        }  # fmt: skip
        if row.point == "input" and (row.call, audit.pictures[0]) in new.index:
            values["new_power"] = new.loc[row.call].reindex(list(audit.pictures)).to_numpy()
        parts.append(pd.DataFrame(values))
    return pd.concat(parts, ignore_index=True)


def module_of(call: str) -> str:
    """Returns the module's path in the name of a call."""
    return call.partition("#")[0].partition(":")[0]


def kinds(net: nn.Module) -> dict[str, str]:
    """Returns, of convolutions that do not sample down, which are 1 x 1, which depthwise and which ordinary."""
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and set(module.stride) == {1}:
            depthwise, point = module.groups == module.in_channels > 1, set(module.kernel_size) == {1}
            found[name] = f"{'depthwise ' if depthwise else '1 x 1 ' if point else ''}convolution"
    return found


def looked_at(net: nn.Module, data: Any, channels: int) -> Frame:
    """Returns the complexities of every gradient: mean over a few of its channels, a row for each picture and point."""
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    known: dict[int, Frame] = {}
    names: list[str] = []

    def receive(tap: Any, gradient: Tensor) -> None:
        if tap.reason or tap.part or min(tap.maps(gradient).shape[-2:]) < LEAST:
            return
        if tap.maps_id not in known:  # the input of one operator is the output of the one before it
            known[tap.maps_id] = complexities(spread_channels(tap.maps(gradient.detach()), channels))
        for place, picture in enumerate(names):
            values = {name: known[tap.maps_id][name][place] for name in (*COMPLEXITIES, FILLED)}
            rows[tap.call.name, tap.point, picture] = values

    with gs.tapped(net, receive) as taps:
        for images, labels, ids in data:
            known.clear()
            names[:] = list(ids)
            taps.backward(gs.label_logit(net(images), labels).sum())
    keyed = [{"call": call, "point": point, "picture": who, **values} for (call, point, who), values in rows.items()]
    return pd.DataFrame(keyed)


def spread_channels(maps: Tensor, count: int) -> Tensor:
    """Returns at most so many of the channels of maps (N, C, H, W), evenly spread."""
    return maps[:, np.unique(np.linspace(0, maps.shape[1] - 1, min(count, maps.shape[1])).round().astype(int))]


def complexities(maps: Tensor) -> dict[str, np.ndarray]:
    """Returns each picture's complexities (N,), 0 for a flat map and 1 for white noise, and how much is not zero."""
    found = {FILLED: (maps != 0).float().mean((1, 2, 3)).cpu().numpy()}
    for name, values in measured(maps).items():
        zero, one = scale(*maps.shape[-2:])[name]
        known = np.isfinite(values)
        total = np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1)
        found[name] = np.where(known.any(1), (total - zero) / (one - zero), np.nan)
    return found


def measured(maps: Tensor) -> dict[str, np.ndarray]:
    """Returns the three complexities of every map."""
    coded = {coder: gs.kolmogorov_complexity(maps, coder) for coder in ("png", "jpeg")}
    return {"laplacian": gs.laplacian_complexity(maps), **coded}


@cache
def scale(height: int, width: int) -> dict[str, tuple[float, float]]:
    """Returns what the complexities are of a map that is nearly flat, and of white noise; constant maps have none."""
    noise = measured(torch.randn(8, height, width, generator=torch.Generator().manual_seed(0)))
    flat = torch.zeros(2, height, width)
    flat[0] = torch.linspace(0, 1, height)[:, None]
    flat[1, 0, 0] = 1  # one pixel: the fewest bytes as PNG
    floor = measured(flat) | {"laplacian": np.zeros(1)}
    return {name: (float(floor[name].min()), float(values.mean())) for name, values in noise.items()}


# ---- all of them -----------------------------------------------------------------------------


def measure(study: Study) -> tuple[Frame, dict[str, gs.Audit], list[str]]:
    """Returns all variants' numbers, complexities joined to them, their audits, and what surgery could not do."""
    net = study.model()
    pictures = study.pictures(net)
    first, other = ("loaded", "redrawn") if study.args.weights == "none" else ("trained", "untrained")
    wanted = {first: "trained", other: "untrained", **{name: name for name in POOLED}}
    frames, audits, left = [], {}, []
    for name, surgery in wanted.items():
        if name == POOLED[1] and (POOLED[0] in audits or not study.args.patch):
            continue
        try:
            made = variant(net, surgery, pictures, study.args.seed + 1)
        except NothingToSwap as reason:
            left.append(f"{name}: {reason}")
            continue
        same = SamePictures(pictures, audits[first]) if audits else pictures
        slopes = study.unit(name, lambda n=name, m=made, s=same: audited(study, n, m, s))
        audits[name] = gs.Audit.load(study.store.folder / "audits" / name)
        few = first_of(SamePictures(pictures, audits[first]), study.args.looked)
        complexity = study.unit(f"{name}, complexity", lambda m=made, f=few: looked_at(m, f, study.args.channels))
        frames.append(slopes.merge(complexity, on=["call", "point", "picture"], how="left").assign(variant=name))
    return pd.concat(frames, ignore_index=True), audits, left


def first_of(data: Any, count: int) -> list[tuple[Tensor, Tensor, list[str]]]:
    """Returns the first pictures, one at a time."""
    found = []
    for images, labels, ids in data:
        found += [(images[i : i + 1], labels[i : i + 1], ids[i : i + 1]) for i in range(len(images))]
        if len(found) >= count:
            break
    return found[:count]


def claims(frame: Frame, changes: Frame, names: list[str]) -> Iterator[Claim]:
    """Yields all claims; the first name is the reference, the second drawn anew, the third average-pooled."""
    for name in names:
        part, mine = (table[table["variant"] == name] for table in (frame, changes))
        for one in (*downsampling_claims(name, mine), *stage_claims(name, part, mine)):
            yield one if name in names[:2] else one._replace(expected="")  # the paper expects them of max-pooling
    if names[0] == "trained":  # not of a network that is drawn twice
        yield from training_claims(changes, names[0], names[1])
    yield from variant_claims("e", frame, names[0], names[1], "")
    for name in names[2:]:
        yield from variant_claims("g", frame, names[0], name, "<0")
        yield from jump_claims(changes, names[0], name)
    looked = frame[frame["laplacian"].notna()]
    yield from complexity_claims(looked, names[0], {names[1]: ""} | dict.fromkeys(names[2:], "<0"))


def jumps(by_operator: Frame) -> dict[str, str]:
    """Returns, for each variant, at how many downsampling operators the interval of the slope's change is above 0."""
    shrink = by_operator[by_operator["downsampling"]].dropna(subset=["slope_change_low"])
    above = shrink["slope_change_low"].gt(0).groupby(shrink["variant"], sort=False)
    return {str(name): f"{group.sum()} of {len(group)}" for name, group in above}


def complexity_table(frame: Frame) -> Frame:
    """Returns mean, standard error and number of pictures of each complexity at every point."""
    rows = []
    for key, points in frame[frame["laplacian"].notna()].groupby([*KEYS, "height"], sort=False):
        row: dict[str, Any] = dict(zip([*KEYS, "height"], key, strict=True))
        for name in (*COMPLEXITIES, FILLED):
            found = interval(points[name])
            row |= {name: found.mean, f"{name}_se": found.se}
        rows.append(row | {"n": len(points)})
    return pd.DataFrame(rows)


def stage_table(frame: Frame) -> Frame:
    """Returns the means and standard errors over pictures of `stages`, for each variant and map size."""
    rows = []
    for name, part in frame.groupby("variant", sort=False):
        for height, group in stages(part).groupby("height"):
            row: dict[str, Any] = {"variant": name, "height": height, "points": group["points"].max()}
            for what in ("slope", "share", "excess", "spread", "range", "drift"):
                found = interval(group[what])
                row |= {what: found.mean, f"{what}_se": found.se}
            rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def draw(frame: Frame, title: str) -> Figure:
    """Returns the complexities along the depth, a panel each."""
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    titles = ("mean squared Laplacian", "bytes as PNG", "bytes as JPEG")
    for ax, name, text in zip(axes, COMPLEXITIES, titles, strict=True):
        for (label, part), trace in zip(frame.groupby("variant", sort=False), VARIANTS, strict=False):
            points = part.groupby("order").agg(value=(name, "mean"), error=(name, "sem"), height=("height", "first"))
            points = points.dropna(subset=["value"]).sort_index(ascending=False)
            x, y = np.linspace(0, 1, len(points)), points["value"].to_numpy()
            shade, every = {"alpha": 0.15, "linewidth": 0}, max(1, len(x) // 12)
            ax.fill_between(x, y - points["error"], y + points["error"], color=trace.colour, **shade)
            ax.plot(x, y, color=trace.colour, linestyle=trace.style, marker=trace.marker, markevery=every, markersize=4,
                    linewidth=1.2, label=str(label))  # fmt: skip
            if label == frame["variant"].iloc[0]:
                mark_sizes(ax, x, points["height"].to_numpy(), named=ax is axes[0])
        ax.axhline(1, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set_ylabel(f"{text}\n(white noise = 1)")
    axes[-1].set_xlabel("operator points, from the prediction (0) to the network's input (1)")
    figure.suptitle(title, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def mark_sizes(ax: Any, x: np.ndarray, heights: np.ndarray, *, named: bool) -> None:
    """Marks where a stage begins: a map larger than all before it."""
    largest = np.maximum.accumulate(heights)
    last, lift = -1.0, 0
    for place in np.flatnonzero(np.diff(largest, prepend=0)):
        ax.axvline(x[place], color="0.8", linewidth=0.8, zorder=0)
        lift = lift + 9 if x[place] - last < 0.03 else 0
        last = x[place]
        if named:
            spot = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8, "color": "0.35"}
            ax.annotate(f"{largest[place]} px", (last, 1), (0, 2 + lift), ha="center", va="bottom", **spot)


def main(argv: list[str] | None = None) -> None:
    """Measures, and writes what the study's docstring lists."""
    args = arguments(argv)
    study = Study(args, __file__)
    frame, audits, left = measure(study)
    changes = operators(frame)
    decided = claims_table(claims(frame, changes, list(audits)))
    profiles: Frame = pd.concat([audit.table.assign(variant=name) for name, audit in audits.items()])
    study.table(profiles[PROFILE])
    operator_keys = ["variant", "call", "type", "kind", "downsampling", "from_height", "to_height"]
    by_operator = grouped(changes, operator_keys)
    study.table(by_operator, "_operators")
    by_type = grouped(changes, ["variant", "kind", "downsampling"])
    study.table(by_type.sort_values(["variant", "new_power"], ascending=[True, False]), "_types")
    study.table(stage_table(frame), "_stages")
    study.table(complexity_table(frame), "_complexity")
    study.table(decided, "_claims")
    study.figure(gs.plots.slope_profile(audits))
    looked = frame[frame["laplacian"].notna()]
    count = f"{looked['picture'].nunique()} pictures, {args.channels} channels each; bands: standard error"
    study.figure(draw(looked, f"Complexity of the gradient, {args.name}: {count}"), "_complexity")
    told: Frame = decided[decided["expected"] != ""].groupby(["claim", "holds"]).size().unstack(fill_value=0)
    facts = {"jumps above 0": jumps(by_operator), "verdicts": told.to_dict("index"), "not applicable": left}
    study.finish(pictures=len(next(iter(audits.values())).pictures), **facts)
    print(decided.drop(columns=["se"]).to_string(index=False, max_colwidth=70, float_format="%.3f"))


PROFILE = [
    "variant", "call", "operator", "type", "stage", "point", "height", "width", "slope_nyquist", "se_nyquist", "r2",
    "high_share", "se_share", "excess", "n", "note",
]  # fmt: skip

if __name__ == "__main__":
    main()

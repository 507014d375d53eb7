"""Does FORGrad change which methods pass the sanity check? Paper fig. A.12 (after Adebayo 2018), by numbers.

    python studies/sanity_check.py --model ../shared/nets/tiny_darknet.py:load --weights \
        ../shared/nets/tiny_darknet.safetensors --images ../shared/images --name sanity_check_tiny_darknet
    python studies/sanity_check.py --limit 64 --name sanity_check_vgg_max

The network's layers get fresh weights one after the other, from the logits down. Of the seven white-box methods and
GradCAM, each as it is, as its magnitude alone ("abs"), with FORGrad on the finished map ("map σ") and, white-box ones,
in the gradient ("gradient σ"), at each of --cutoffs: how like the maps of the fully randomised network are to the
original ones, by three measures (rank correlation, that of magnitudes, SSIM of magnitudes). Smooth maps are alike
whatever they show, so a method fails where its map is more like itself than the map of another picture is (the 95 %
interval of the paired excess lies above 0), and passes where it is not; "alike" says that the maps of two pictures have
0.9 in common, so that the check can see nothing. A fixed centred Gaussian, which knows no network, stands beside them.

Writes NAME.csv (verdicts), NAME_changes.csv (of each arm against the method as it is), NAME_stages.csv, NAME.png (what
is left over chance), NAME_stages.png and NAME_stages_forgrad.png (all stages), NAME_maps.png (fig. A.12: one picture's
maps; of a photograph without those of GradientInput and IntegratedGradients with the filter in the gradient, which
would be the photograph) and NAME.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from filtered_maps import TIMES_INPUT
from matplotlib.figure import Figure
from study import Study, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec import attributions as a
from gradspec.controls import Sanity, centre_prior, sanity
from gradspec.controls.sanity import MEASURES
from gradspec.forgrad import maps_of
from gradspec.statistics import paired

SHEET = 112  # pixels of a side of the sheet's maps, at most
CENTRE = "centre prior"
WORDS = {"spearman": "rank correlation", "spearman_abs": "rank correlation of magnitudes", "ssim": "SSIM"}
MARKERS = "osD^vP<>"


def groups(samples: int) -> dict[str, dict[str, Any]]:
    """Returns the methods by unit of work; those of a unit share their explanations where they can."""
    noisy: dict[str, Any] = {"samples": samples}
    return {
        "one gradient": {"Saliency": a.Saliency(), "GradientInput": a.GradientInput()},
        "guided": {"GuidedBackprop": a.GuidedBackprop()},
        "path": {"IntegratedGradients": a.IntegratedGradients(steps=samples)},
        "smooth": {
            "SmoothGrad": a.SmoothGrad(**noisy), "VarGrad": a.VarGrad(**noisy), "SquareGrad": a.SquareGrad(**noisy)
        },
        "layer": {"GradCAM": a.GradCAM()},
        "control": {CENTRE: centre_prior()},
    }  # fmt: skip


def arms(methods: Mapping[str, Any], cutoffs: Sequence[float]) -> dict[str, Any]:
    """Returns "METHOD: ARM" -> attribution; the control has no arms."""
    found: dict[str, Any] = {}
    for name, method in methods.items():
        found[f"{name}: none"] = method
        if name == CENTRE:
            continue
        found[f"{name}: abs"] = gs.FORGrad(method, None)
        for cutoff in cutoffs:
            found[f"{name}: map {cutoff:g}"] = gs.FORGrad(method, cutoff)
            if getattr(method, "family", "") == "white":
                found[f"{name}: gradient {cutoff:g}"] = gs.FORGrad(method, cutoff, where="gradient")
    return found


def chosen(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the groups with the methods of --only."""
    kept = {
        group: {name: method for name, method in methods.items() if not args.only or name in (*args.only, CENTRE)}
        for group, methods in groups(args.samples).items()
    }
    return {group: methods for group, methods in kept.items() if methods}


def measured(study: Study, engine: gs.Engine) -> Sanity:
    """Returns the sanity check of all methods and arms, a unit for each group."""
    args, parts, spec = study.args, [], {}
    pictures = study.pictures(engine.model)
    for group, methods in chosen(args).items():

        def work(methods: Any = methods) -> pd.DataFrame:
            found = sanity(engine, pictures, arms(methods, args.cutoffs), stages=args.stages, seed=args.seed)
            found.table.attrs["spec"] = found.spec
            return found.table

        table = study.unit(group, work, engine)
        spec = table.attrs["spec"]
        table.attrs = {}
        parts.append(table)
    return Sanity(pd.concat(parts, ignore_index=True), spec)


def shown(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arms of the sheet: none that would be a photograph, as a smooth gradient times the picture is."""
    found = {name: arm for methods in chosen(args).values() for name, arm in arms(methods, args.cutoffs[:1]).items()}
    hidden = tuple(f"{method}: gradient" for method in TIMES_INPUT) if args.images is not None else ()
    return {name: arm for name, arm in found.items() if not name.endswith(": abs") and not name.startswith(hidden)}


def sheet(study: Study, engine: gs.Engine) -> pd.DataFrame:
    """Returns the maps of one picture at all stages, a row for each arm and stage: `map` in rows of `width`."""
    args, made = study.args, shown(study.args)

    def work() -> pd.DataFrame:
        seen: list[dict[str, Tensor]] = []

        def watched(model: Any, images: Tensor, labels: Tensor, *, ids: Sequence[str] | None = None) -> Tensor:
            """The check calls it once for the network and once at each stage; what it returns is of no account."""
            seen.append(maps_of(gs.Engine(model, progress=False), made, images, labels, ids))
            return images.mean(1)

        data = study.pictures(engine.model, 1, batch_size=1)
        found = sanity(engine, data, {"watched": watched}, stages=args.stages, seed=args.seed)
        names = ["original", *found.spec["layers"]]
        rows = []
        for stage, (layer, maps) in enumerate(zip(names, seen, strict=True)):
            for arm, map in maps.items():
                small = _small(map[0])
                rows.append({"arm": arm, "stage": stage, "layer": layer, "width": small.shape[1]})
                rows[-1]["map"] = small.flatten().tolist()
        return pd.DataFrame(rows)

    table: Any = study.unit("sheet", work, engine)
    return table[table["arm"].isin(made)]


def _small(values: Tensor) -> Tensor:
    """Every second or third pixel and so on: means would be a low-pass of their own."""
    step = math.ceil(max(values.shape) / SHEET)
    return values[::step, ::step]


def verdicts(found: Sanity) -> pd.DataFrame:
    """Returns `Sanity.verdicts` with method and arm apart."""
    table = found.verdicts()
    apart: Any = table.pop("attribution").str.split(": ", expand=True)
    table.insert(0, "method", apart[0])
    table.insert(1, "arm", apart[1])
    return table


def changes(found: Sanity, judged: pd.DataFrame) -> pd.DataFrame:
    """Returns for each arm and measure the verdict before and after, and how the excess over chance moved."""
    verdict: Any = judged.set_index(["method", "arm", "measure"])["verdict"]
    excess = {measure: _excess(found, measure) for measure in MEASURES}
    rows = []
    for method, arm, measure in verdict.index:
        if arm == "none":
            continue
        after = verdict[(method, arm, measure)]
        wide = excess[measure]
        moved = paired(wide[f"{method}: {arm}"].to_numpy(), wide[f"{method}: none"].to_numpy())
        before = verdict[(method, "none", measure)]
        rows.append({"method": method, "arm": arm, "measure": measure, "before": before, "after": after})
        rows[-1] |= {"changed": before != after, "excess change": moved.mean, "low": moved.low, "high": moved.high}
        rows[-1] |= {"bf10": moved.bf10, "n": moved.n}
    return pd.DataFrame(rows)


def _excess(found: Sanity, measure: str) -> Any:
    """Likeness after the last stage less that of another picture: pictures in rows, attributions in columns."""
    table = found.table
    last, other = (
        table[table["stage"] == stage].pivot(index="picture", columns="attribution", values=measure)
        for stage in (table["stage"].max(), 0)
    )
    return last - other


def counted(table: pd.DataFrame) -> dict[str, Any]:
    """Returns how many verdicts changed, by measure and kind of arm, and which."""
    facts: dict[str, Any] = {}
    kinds = table["arm"].str.split(" ").str[0]
    for measure in MEASURES:
        for kind in dict.fromkeys(kinds):
            part: Any = table[(table["measure"] == measure) & (kinds == kind)]
            named = [f"{r.method} {r.arm}: {r.before} → {r.after}" for r in part[part["changed"]].itertuples()]
            facts[f"{measure}, {kind}"] = {"changed": len(named), "of": len(part), "which": named}
    return facts


def draw(judged: pd.DataFrame, title: str) -> Figure:
    """Returns what is left of the likeness over chance after the last stage, a panel for each measure."""
    methods, names = list(dict.fromkeys(judged["method"])), list(dict.fromkeys(judged["arm"]))
    figure = Figure(figsize=(12, 1.3 + 0.62 * len(methods)), layout="constrained")
    for axis, measure in zip(figure.subplots(1, 3, sharey=True), MEASURES, strict=True):
        for k, arm in enumerate(names):
            rows: Any = judged[(judged["arm"] == arm) & (judged["measure"] == measure)]
            place = np.array([methods.index(name) for name in rows["method"]]) + 0.75 * ((k + 0.5) / len(names) - 0.5)
            reach = np.stack([rows["excess"] - rows["low"], rows["high"] - rows["excess"]]).clip(min=0)
            look: dict[str, Any] = {"color": f"C{k}", "marker": MARKERS[k % len(MARKERS)], "ls": "none", "ms": 4.5}
            axis.errorbar(rows["excess"], place, xerr=np.nan_to_num(reach), lw=1, label=arm, **look)
            fails = rows["verdict"].eq("fails").to_numpy()
            axis.plot(rows["excess"][fails], place[fails], "o", ms=10, mfc="none", mec="0.2", mew=0.8)
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_xlabel(f"{WORDS[measure]} with the\nrandomised, less that with another picture")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(f"{title}; 95 % intervals, ringed: fails", fontsize=10)
    return figure


def draw_sheet(table: pd.DataFrame, title: str) -> Figure:
    """Returns fig. A.12: one picture's maps, an arm in each row, a stage in each column."""
    names, stages = list(dict.fromkeys(table["arm"])), sorted(set(table["stage"]))
    figure = Figure(figsize=(1.05 * len(stages) + 1.9, 1.05 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots(len(names), len(stages), squeeze=False)
    for row in table.to_dict("records"):
        axis = axes[names.index(row["arm"]), row["stage"]]
        map = np.asarray(row["map"], dtype=float).reshape(-1, int(row["width"]))
        bound = float(np.percentile(np.abs(map), 99)) or 1.0
        signed = bool((map < 0).any())
        axis.imshow(map, cmap="RdBu_r" if signed else "viridis", vmin=-bound if signed else 0, vmax=bound)
        axis.set(xticks=[], yticks=[])
        if row["arm"] == names[0]:
            axis.set_title(_shortened(str(row["layer"])), fontsize=7)
        if row["stage"] == 0:
            axis.set_ylabel(row["arm"].replace(": none", "").replace(": ", "\n"), rotation=0, ha="right", va="center")
            axis.yaxis.label.set_fontsize(8)
    figure.suptitle(f"{title}: random from the logits down to …", fontsize=9)
    return figure


def _shortened(name: str, length: int = 16) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def main(argv: list[str] | None = None) -> None:
    """Measures, judges, prints and writes."""
    made = parser(__doc__, name="sanity_check", limit=24)
    made.add_argument("--cutoffs", type=float, nargs="+", default=[1.76, 10.0], help="in cycles/image")
    made.add_argument("--stages", type=int, default=6)
    made.add_argument("--samples", type=int, default=8, help="gradients of the methods that draw several")
    made.add_argument("--only", nargs="+", help="names of methods")
    few = ["Saliency", "GuidedBackprop", "GradCAM"]
    smoke = {"limit": 5, "cutoffs": [2.0], "stages": 2, "samples": 2, "only": few}
    args = parsed(made, argv, smoke=smoke, paper={"limit": 200, "stages": 8, "samples": 50})
    study = Study(args, __file__)
    engine = gs.Engine(study.model())
    found = measured(study, engine)
    judged = verdicts(found)
    moved = changes(found, judged)
    study.table(judged)
    study.table(moved, "_changes")
    study.table(found.summary(), "_stages")
    pictures = found.table["picture"].nunique()
    title = f"{args.name}: {pictures} pictures, cutoffs in cycles/image"
    study.figure(draw(judged, title))
    for ending, arm in (("_stages", "none"), ("_stages_forgrad", f"map {args.cutoffs[0]:g}")):
        part: Any = found.table[found.table["attribution"].str.endswith(f": {arm}")]
        study.figure(gs.plots.sanity(Sanity(part, found.spec)), ending)
    study.figure(draw_sheet(sheet(study, engine), args.name), "_maps")
    verdict = judged[judged["arm"] == "none"].pivot(index="method", columns="measure", values="verdict")
    study.finish(
        pictures=pictures,
        layers=found.spec["layers"],
        verdicts_before={name: row.to_dict() for name, row in verdict.iterrows()},
        changed_verdicts=counted(moved),
        excess_moved=int(((moved["low"] > 0) | (moved["high"] < 0)).sum()),
        comparisons=len(moved),
    )
    print(judged.to_string(), moved[moved["changed"]].to_string(), sep="\n")


if __name__ == "__main__":
    main()

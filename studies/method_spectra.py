"""How much high frequency the maps of white-, gray- and black-box methods hold (figures 2, 3A, A.1, supplement B.1).

    python studies/method_spectra.py --full --name method_spectra_vgg_max
    python studies/method_spectra.py --model ../shared/nets/tiny_darknet.py:load \
        --weights ../shared/nets/tiny_darknet.safetensors --images ../shared/images --limit 24 \
        --name method_spectra_tiny_darknet

Thirteen methods explain the same pictures. Of each method's maps, unit = method: slope per Nyquist of the mean
signature, share of the power above half Nyquist and its excess over white noise, complexity by the squared Laplacian
and by PNG's bytes, each with its standard error over pictures. All four are larger where there is more high frequency.
Then what the paper says, "white > gray > black": differences of family means and of every pair of methods of two
families, with 95 % bootstrap intervals over pictures. A picture on which a method's map is constant is left out of
that method, and out of a difference with it; a method that leaves out more than half is left out of its family.

A black-box method's map is drawn on a grid of cells; a grid of g cells a side holds frequencies up to g/2 cycles/image,
so a steep slope is design. `beyond grid` is the share of the power above that. To show what the grid does, Occlusion
and RISE are repeated with finer and coarser grids on --grid-pictures pictures, spread over the folder on their own
(NAME_grid.csv).

Without --full the black-box methods have some hundred passes for each picture (studies/study.py), IntegratedGradients
and the three noisy methods 16 gradients. Writes NAME.csv, NAME_families.csv, NAME_pairs.csv, NAME_grid.csv, NAME.png
(signatures and slopes), NAME_extraction.png (a map, its spectrum, its signature), NAME_spectra.png, NAME_complexity.png
and NAME.json. No picture is in any of them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import Study, methods, parsed, parser
from torch import Tensor

import gradspec as gs
from gradspec import attributions as a
from gradspec.attributions import Attribution
from gradspec.forgrad.attribution import maps_of
from gradspec.statistics import bootstrap_interval

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
Found = dict[str, Tensor]  # by method its maps (N, H, W)
FAMILIES = ("white", "gray", "black")
COLOURS = {"white": "#d55e00", "gray": "#7a7a7a", "black": "#0173b2"}
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 4)))
MARKS = "osD^vP*"
MEASURES = ("slope", "high share", "laplacian", "kolmogorov")
WORDS = {
    "slope": "slope, log₁₀ amplitude per Nyquist", "high share": "share of power above half Nyquist",
    "laplacian": "mean squared Laplacian\n(white noise: 20)", "kolmogorov": "bytes of the map as PNG",
}  # fmt: skip
NOISY = ("SmoothGrad", "VarGrad", "SquareGrad")  # of one stream of draws


def main(argv: list[str] | None = None) -> None:
    """Explains, measures, decides and draws."""
    made = parser(__doc__, name="method_spectra", limit=64)
    made.add_argument("--full", action="store_true", help="full budgets of passes")
    made.add_argument("--samples", type=int, default=16, help="gradients of IG and noisy methods without --full")
    made.add_argument("--grid-pictures", type=int, default=8, help="pictures for other grids; 0: leave it out")
    made.add_argument("--only", nargs="+", help="names of methods")
    smoke = {"limit": 4, "samples": 2, "grid_pictures": 2}
    study = Study(parsed(made, argv, smoke=smoke, paper={"limit": 1000, "full": True}), __file__)
    model = study.model()
    engine = gs.Engine(model)
    work = chosen(study)
    maps = explained(study, engine, work, study.args.limit, "")
    size = next(iter(maps.values())).shape[-1]
    finer = grids(size, small=study.args.smoke) if study.args.grid_pictures else {}
    others = explained(study, engine, finer, study.args.grid_pictures, "grid: ") if finer else {}
    values = {name: per_picture(found) for name, found in maps.items()}
    table = summary(maps, work, values)
    families = {name: work[name].family for name in work}
    compared, pairs = contrasts(values, families), pair_table(values, families)
    grid = summary(others, finer, {name: per_picture(found) for name, found in others.items()})
    for ending, frame in (("", table), ("_families", compared), ("_pairs", pairs), ("_grid", grid)):
        study.table(frame, ending)
    draw(study, maps, table, grid)
    study.finish(pictures=len(next(iter(maps.values()))), **facts(table, compared, pairs, grid))


def chosen(study: Study) -> dict[str, Attribution]:
    """Returns the methods with their budgets."""
    found = methods(None if study.args.full else study.args.samples, reduced=not study.args.full)
    if study.args.smoke:
        found |= {"Occlusion": a.Occlusion(patch=16, stride=16), "RISE": a.RISE(masks=16)}
        found |= {"Sobol": a.Sobol(grid=4, designs=2), "HSIC": a.HSIC(grid=4, designs=32)}
    return {name: method for name, method in found.items() if not study.args.only or name in study.args.only}


def grids(size: int, *, small: bool = False) -> dict[str, Attribution]:
    """Returns black-box methods on coarse and on fine grids: Occlusion's patches, RISE's cells."""
    patches = [max(2, round(size / cells)) for cells in ((4, 8) if small else (7, 14, 28))]
    found: dict[str, Attribution] = {f"Occlusion, patch {p}": a.Occlusion(patch=p, stride=p) for p in patches}
    return found | {
        f"RISE, {cells} x {cells}": a.RISE(masks=16 if small else 200, grid=cells) for cells in (4, 7, 14, 28)
    }


# ---- maps ------------------------------------------------------------------------------------


def explained(study: Study, engine: gs.Engine, work: Mapping[str, Attribution], count: int, prefix: str) -> Found:
    """Returns the maps of so many pictures by method; a unit is a method, or three that share draws, on a batch."""
    groups = [[name for name in NOISY if name in work], *([name] for name in work if name not in NOISY)]
    parts: dict[str, list[Tensor]] = {name: [] for name in work}
    for x, y, ids in study.pictures(engine.model, count):
        labels = engine.predictions(x) if y is None else y
        for group in filter(None, groups):
            methods_here = {name: work[name] for name in group}
            unit = f"{prefix}{' '.join(group)}: {ids[0]} to {ids[-1]}"
            rows = study.unit(unit, lambda h=methods_here, c=(x, labels, ids): map_rows(engine, h, *c), engine)
            for row in rows.itertuples():
                values: Any = row  # pandas' rows are not typed
                parts[values.method].append(torch.frombuffer(bytearray(values.map), dtype=torch.float32))
                parts[values.method][-1] = parts[values.method][-1].view(*x.shape[-2:])
    return {name: torch.stack(found) for name, found in parts.items()}


def map_rows(engine: gs.Engine, work: Mapping[str, Attribution], x: Tensor, y: Tensor, ids: list[str]) -> Frame:
    """Returns a row for each method and picture with its map's float32 bytes."""
    with warnings.catch_warnings():  # a constant map is counted below; guided backpropagation says what it is
        warnings.simplefilter("ignore", UserWarning)
        maps = maps_of(engine, work, x, y, ids)
    return pd.DataFrame(
        {"method": name, "picture": picture, "map": values.cpu().contiguous().numpy().tobytes()}
        for name, found in maps.items()
        for picture, values in zip(ids, found, strict=True)
    )


# ---- numbers ---------------------------------------------------------------------------------


def per_picture(maps: Tensor) -> dict[str, np.ndarray]:
    """Returns each measure's values (N,), whose mean is the measure; NaN where a map is constant.

    The slope is that of the mean signature: a picture's value is the slope and how far the picture moves it.
    """
    found = gs.signature(maps)
    return {
        "slope": found.slope_nyquist + found.slope_influences(),
        "high share": found.high_shares,
        "laplacian": gs.laplacian_complexity(maps),
        "kolmogorov": gs.kolmogorov_complexity(maps),
    }


def cells_of(method: Attribution, size: int) -> float:
    """Returns how many cells a side a black-box method's grid has; NaN for the others."""
    if isinstance(method, a.Occlusion):
        return size / (method.stride if isinstance(method.stride, int) else method.stride[0])
    return float(getattr(method, "grid", math.nan))


def summary(maps: Found, work: Mapping[str, Attribution], values: Mapping[str, Mapping[str, np.ndarray]]) -> Frame:
    """Returns a row for each method."""
    rows = []
    for name, found in maps.items():
        size, method, signature = found.shape[-1], work[name], gs.signature(found)
        cells = cells_of(method, size)
        beyond = gs.high_share(found, above=cells / 2) if cells < size else np.full(len(found), math.nan)
        row = {"method": name, "family": method.family, "passes": method.passes(size, size), "grid": cells}
        row |= {key: part for measure in MEASURES for key, part in mean_of(measure, values[name][measure]).items()}
        row |= {"excess over white": signature.excess, "r2": signature.r2, **mean_of("beyond grid", beyond)}
        rows.append({**row, "n": signature.n, "constant maps": len(found) - signature.n})
    return pd.DataFrame(rows)


def mean_of(name: str, values: np.ndarray) -> dict[str, float]:
    """Returns the mean of finite values and its standard error."""
    known = values[np.isfinite(values)]
    error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan
    return {name: float(known.mean()) if len(known) else math.nan, f"{name} se": error}


def family_values(values: Mapping[str, Mapping[str, np.ndarray]], names: list[str], measure: str) -> np.ndarray:
    """Returns each picture's mean over a family's methods (N,), NaN where one of them has none."""
    columns = [values[name][measure] for name in names]
    kept = [column for column in columns if 2 * np.isfinite(column).sum() > len(column)]
    return np.mean(kept, axis=0) if kept else np.full(len(columns[0]), math.nan)


def contrasts(values: Mapping[str, Mapping[str, np.ndarray]], families: Mapping[str, Any]) -> Frame:
    """Returns family means of each measure and their differences, with intervals over pictures."""
    rows = []
    present = [family for family in FAMILIES if family in families.values()]
    for measure in MEASURES:
        means = {
            family: family_values(values, [name for name in values if families[name] == family], measure)
            for family in present
        }
        rows += [{"measure": measure, "first": family, "second": "", **interval(v)} for family, v in means.items()]
        for first, second in itertools.combinations(present, 2):
            row = {"measure": measure, "first": first, "second": second}
            rows.append(row | interval(means[first] - means[second]))
    return pd.DataFrame(rows)


def pair_table(values: Mapping[str, Mapping[str, np.ndarray]], families: Mapping[str, Any]) -> Frame:
    """Returns the difference of each measure for every two methods of two families."""
    rows = []
    for first, second in itertools.permutations(values, 2):
        if FAMILIES.index(families[first]) < FAMILIES.index(families[second]):
            kinds = f"{families[first]} > {families[second]}"
            for measure in MEASURES:
                row = {"measure": measure, "families": kinds, "first": first, "second": second}
                rows.append(row | interval(values[first][measure] - values[second][measure]))
    return pd.DataFrame(rows)


def interval(values: np.ndarray) -> dict[str, Any]:
    """Returns mean, standard error and the bootstrap interval of the finite values."""
    low, high = bootstrap_interval(values)
    known = mean_of("mean", values)
    return {
        "mean": known["mean"],
        "se": known["mean se"],
        "low": low,
        "high": high,
        "n": int(np.isfinite(values).sum()),
    }


def facts(table: Frame, compared: Frame, pairs: Frame, grid: Frame) -> dict[str, Any]:
    """Returns what decides the claims."""
    orders, counts, holds = {}, {}, {}
    for measure, rows in compared[compared["second"] == ""].groupby("measure", sort=False):
        mean = rows.set_index("first")["mean"].sort_values(ascending=False)
        orders[measure] = " > ".join(f"{family} {value:.4g}" for family, value in mean.items())
    differences = {
        f"{row.measure}, {row.first} - {row.second}": f"{row.mean:.3g} [{row.low:.3g}, {row.high:.3g}]"
        for row in compared[compared["second"] != ""].itertuples()
    }
    for (measure, kinds), rows in pairs.groupby(["measure", "families"], sort=False):
        as_said, reverse = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        counts[f"{measure}, {kinds}"] = f"{as_said} of {len(rows)} pairs as said, {reverse} the other way"
    for _, row in table[table["grid"].notna()].iterrows():
        words = f"{row['grid']:.3g} cells, up to {row['grid'] / 2:.3g} cycles/image"
        holds[row["method"]] = f"{words}; share of the power beyond: {row['beyond grid']:.3f}"
    moved = {
        row[
            "method"
        ]: f"slope {row['slope']:.2f} ± {row['slope se']:.2f} per Nyquist, high share {row['high share']:.4f} "
        f"± {row['high share se']:.4f}, beyond the grid {row['beyond grid']:.3f}"
        for _, row in grid.iterrows()
    }
    order = table.sort_values("slope", ascending=False)
    ranks = [f"{row['method']} ({row['family']}) {row['slope']:.2f}" for _, row in order.iterrows()]
    return {
        "order of family means": orders, "differences of family means": differences, "pairs": counts,
        "methods by slope": ranks, "grids of the masks": holds, "other grids": moved,
    }  # fmt: skip


# ---- figures ---------------------------------------------------------------------------------


def looks(table: Frame) -> dict[str, dict[str, Any]]:
    """Returns how each method is drawn: its family's colour, a line style and a marker of its own."""
    found = {}
    for family, rows in table.groupby("family", sort=False):
        for i, name in enumerate(rows["method"]):
            found[name] = {"color": COLOURS[str(family)], "ls": LINES[i], "marker": MARKS[i]}
    return found


def draw(study: Study, maps: Found, table: Frame, grid: Frame) -> None:
    """Draws the four figures."""
    title = f"{study.args.name}: {len(next(iter(maps.values())))} pictures"
    study.figure(signature_figure(maps, table, grid, title))
    name = next(iter(maps))
    study.figure(extraction_figure(name, maps[name]), "_extraction")
    study.figure(spectra_figure(maps, table, title), "_spectra")
    study.figure(complexity_figure(table, title), "_complexity")


def signature_figure(maps: Found, table: Frame, grid: Frame, title: str) -> Figure:
    """Returns signatures by method (figure 3A), slopes, and slopes by the masks' grid."""
    figure = Figure(figsize=(13.5, 5.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1.1, 1))
    look = looks(table)
    for name, found in maps.items():
        signature = gs.signature(found)
        if not signature.reason:
            x, y = signature.radius[1:] / (found.shape[-1] / 2), np.log10(signature.amplitude[1:])
            style = {key: look[name][key] for key in ("color", "ls")}
            family = table.set_index("method").loc[name, "family"]
            left.plot(x, y - y[0], lw=1.4, label=f"{name} ({family})", **style)
    left.set(xlabel="frequency (fraction of Nyquist)", ylabel="log₁₀ amplitude, less that of the first ring")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=8, ncols=5, frameon=False)
    for i, row in table.iloc[::-1].reset_index(drop=True).iterrows():
        style = {"color": look[row["method"]]["color"], "fmt": look[row["method"]]["marker"], "ms": 5}
        middle.errorbar(row["slope"], i, xerr=1.96 * row["slope se"], **style)
    middle.set_yticks(range(len(table)), table["method"].iloc[::-1], fontsize=8)
    middle.axvline(0, color="0.5", lw=0.8, ls="--")
    middle.set(xlabel=f"{WORDS['slope']}\n(mean, 95 % interval; 0: white noise)")
    grid_panel(right, grid)
    figure.suptitle(title)
    return figure


def grid_panel(axis: Any, grid: Frame) -> None:
    """Draws the slope by the number of cells of the masks."""
    if grid.empty:
        axis.set_axis_off()
        return
    for (name, rows), form in zip(
        grid.groupby(grid["method"].str.partition(",")[0], sort=False), ("o-", "s--"), strict=False
    ):
        rows = rows.sort_values("grid")
        axis.errorbar(rows["grid"], rows["slope"], 1.96 * rows["slope se"], fmt=form, ms=5, label=name)
    axis.set(xscale="log", xlabel="cells of the masks' grid, a side", ylabel=WORDS["slope"])
    axis.set_xticks([4, 7, 14, 28], ["4", "7", "14", "28"])
    axis.minorticks_off()
    axis.set_title(f"other grids, {int(grid['n'].max())} pictures", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def extraction_figure(name: str, maps: Tensor) -> Figure:
    """Returns how a signature is extracted (figure 2): a map, its log spectrum, the mean over rings, the line."""
    one, size = gs.signature(maps[:1]), maps.shape[-1]
    figure = Figure(figsize=(12.5, 4.1), layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)
    end = float(np.percentile(maps[0].abs(), 99)) or 1.0
    first.imshow(maps[0].numpy(), cmap="RdBu_r", vmin=-end, vmax=end)
    spectrum = gs.log_spectrum(maps[:1])
    image = second.imshow(spectrum, cmap="viridis", vmin=np.percentile(spectrum, 1), extent=[-1, 1, 1, -1])
    for part in (0.25, 0.5, 0.75, 1):
        around = np.linspace(0, 2 * np.pi, 200)
        second.plot(part * np.cos(around), part * np.sin(around), color="white", lw=0.6, ls=":")
    figure.colorbar(image, ax=second, shrink=0.7)
    second.set(xlabel="fraction of Nyquist", xlim=(-1, 1), ylim=(1, -1))
    third.plot(one.radius[1:], np.log10(one.amplitude[1:]), color="#0173b2", label="mean over each ring")
    line = one.fit()
    third.plot(one.radius[1:], line.intercept + line.slope * one.radius[1:], "k--", label=f"slope {line.slope:.3g}")
    third.set(xlabel="cycles/image")
    whole = gs.signature(maps)
    fourth.plot(whole.radius[1:], np.log10(whole.amplitude[1:]), color="#0173b2", label="mean over pictures")
    fitted = whole.fit()
    label = f"slope {fitted.slope:.3g} ± {fitted.se:.2g} per cycle/image,\n{whole.slope_nyquist:.3g} per Nyquist"
    fourth.plot(whole.radius[1:], fitted.intercept + fitted.slope * whole.radius[1:], "k--", label=label)
    fourth.set(xlabel="cycles/image")
    heads = (
        f"a map of {name}, {size} x {size}",
        "its log₁₀ amplitude",
        "its signature",
        f"signature of {whole.n} maps",
    )
    for axis, head in zip((first, second, third, fourth), heads, strict=True):
        axis.set_title(head, fontsize=9)
    first.set(xticks=[], yticks=[])
    for axis in (third, fourth):
        axis.set_ylabel("log₁₀ amplitude")
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def spectra_figure(maps: Found, table: Frame, title: str) -> Figure:
    """Returns each method's mean log spectrum (figure A.1), white-box methods above, the others below."""
    rows = [[name for name, kind in zip(table["method"], table["family"], strict=True) if (kind == "white") is white]
            for white in (True, False)]  # fmt: skip
    rows = [names for names in rows if names]
    wide = max(map(len, rows))
    figure = Figure(figsize=(1.75 * wide + 0.8, 2.1 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), wide, squeeze=False)
    spectra = {name: gs.log_spectrum(found) for name, found in maps.items()}
    spectra = {name: found - np.median(found) for name, found in spectra.items()}
    low, high = np.percentile(np.stack(list(spectra.values())), [1, 99.5])
    for axis in axes.flat:
        axis.set_axis_off()
    for names, line in zip(rows, axes, strict=True):
        for name, axis in zip(names, line, strict=False):
            axis.imshow(spectra[name], cmap="viridis", vmin=low, vmax=high)
            family = table.set_index("method").loc[name, "family"]
            axis.set_title(f"{name}\n({family})", fontsize=8)
    figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.7, label="log₁₀ amplitude, less its median")
    figure.suptitle(f"{title}; DC in the centre, edges at Nyquist", fontsize=10)
    return figure


def complexity_figure(table: Frame, title: str) -> Figure:
    """Returns both complexities and the high share of each method (supplement B, figure 1)."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    look = looks(table)
    for axis, measure in zip(figure.subplots(1, 3, sharey=True), MEASURES[1:], strict=True):
        for i, row in table.iloc[::-1].reset_index(drop=True).iterrows():
            style = {"color": look[row["method"]]["color"], "fmt": look[row["method"]]["marker"], "ms": 5}
            axis.errorbar(row[measure], i, xerr=1.96 * row[f"{measure} se"], **style)
        names = [f"{name} ({kind})" for name, kind in zip(table["method"], table["family"], strict=True)]
        axis.set_yticks(range(len(table)), names[::-1], fontsize=8)
        axis.set_xlabel(WORDS[measure])
        axis.grid(axis="y", color="0.9", lw=0.6)
        if measure == "laplacian":
            axis.set_xscale("log")
    figure.suptitle(f"{title}, mean and 95 % interval")
    return figure


if __name__ == "__main__":
    main()

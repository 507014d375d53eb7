"""What sets the best cutoff: the network, the pictures, or the method; and can the spectrum tell it beforehand?

    python studies/cutoff_sources.py --images ../shared/images --others \
        ../shared/nets/tiny_darknet.py:load@../shared/nets/tiny_darknet.safetensors demo:vit

The paper fits a cutoff for each network and method (§5, fig. 5D) on one set of pictures; the summary reads it as
"highly dependent on the dataset, perhaps more so than on the model itself". Here every network gets both kinds of
pictures, photographs and generated ones, and its own predictions as labels; one of the two is always unlike what it was
trained on. The cutoff of best mean F is found for each network, kind of pictures and method on one grid in
cycles/image. The variance of log2 σ* is split into the main effects of the three and the rest: ω², which takes off what
a factor of so many levels explains by chance, with intervals over redrawn pictures (the same for all networks and
methods) and the share that chance reaches in one of twenty shuffles. No filter counts as 64 cycles/image.

Beside it stands what `gradspec.cutoff_from` reads off the gradient's spectrum of the same network on the same
pictures, against its average-pooled twin and as a knee, with F there (at the next cutoff of the grid; on the pictures
that the fitted one was chosen on, which flatters that), and the rank correlation with the median of the methods'
cutoffs over networks and pictures. Networks are MODEL or MODEL@WEIGHTS.

Writes NAME.csv (a row per network, pictures and method), _shares.csv (what explains the cutoffs), NAME.png.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import study as frame
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import gradspec as gs
from gradspec import attributions as a
from gradspec.cutoffs import CutoffFit
from gradspec.images.folder import PictureFolder
from gradspec.surgery import NothingToSwap
from gradspec.variants import variant

CUTOFFS = (None, 32.0, 22.6, 16.0, 11.3, 8.0, 5.66, 4.0, 2.83, 2.0, 1.41, 1.0)
METHODS = {"Saliency": a.Saliency(), "GradientInput": a.GradientInput(), "SquareGrad": a.SquareGrad(samples=8)}
NO_FILTER = 64.0  # cycles/image that stand for it where a number is needed
AT = 128.0  # where it is drawn, above all others
FACTORS = ("network", "pictures", "method")
KINDS = ("photographs", "generated")
AUDITED = 8  # pictures whose spectrum is read
Data = list[tuple[Any, None, list[str]]]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = frame.parser(__doc__, name="cutoff_sources", limit=24)
    made.add_argument("--others", nargs="*", default=["demo:resnet_stride", "demo:vit"], help="further networks")
    made.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of scores")
    smoke = {"limit": 3, "others": ["demo:vit"]}
    return frame.parsed(made, argv, smoke=smoke, paper={"limit": 1280})


def networks(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the networks by a short name."""
    named = [f"{args.model}@{args.weights}", *args.others]
    parts = [name.partition("@") for name in named]
    return {_short(model): gs.load_model(model, weights or "default") for model, _, weights in parts}


def _short(model: str) -> str:
    return model.rsplit("/", 1)[-1].replace(".py:load", "")


def pictures(run: frame.Study, model: Any) -> dict[str, Data]:
    """Returns batches of both kinds of pictures, without labels."""
    kinds: dict[str, Any] = {"generated": frame.generated(model, run.args.limit, run.args.seed)}
    if run.args.images is not None:  # without labels: they are of classes that some of the networks do not know
        names = sorted(path.name for path in run.args.images.glob("*.jp*g"))
        chosen = tuple(names[place] for place in frame.spread(len(names), run.args.limit))
        kinds = {"photographs": PictureFolder(run.args.images, chosen, None, model.preprocess, 8), **kinds}
    return {kind: [(images, None, names) for images, _, names in batches] for kind, batches in kinds.items()}


def fitted(run: frame.Study, name: str, model: Any, cases: Mapping[str, Data]) -> dict[tuple[str, str, str], CutoffFit]:
    """Returns the fits of a network on both kinds of pictures."""
    engine = gs.Engine(model, precision=run.args.precision)
    return {
        (name, kind, method): run.kept(
            f"fit-{_short(name).replace(':', '-')}-{kind}-{method}",
            CutoffFit,
            lambda data=data, explain=explain: gs.fit_cutoff(engine, explain, data, cutoffs=CUTOFFS, controls=False),
            engine,
        )
        for (kind, data), (method, explain) in product(cases.items(), METHODS.items())
    }


def spectral(run: frame.Study, name: str, model: Any, cases: Mapping[str, Data]) -> pd.DataFrame:
    """Returns what the spectrum at the input suggests, for both kinds of pictures."""

    def read() -> pd.DataFrame:
        rows = []
        for kind, data in cases.items():
            few = data[0][0][:AUDITED]
            audit = gs.audit(model, few)
            try:
                twin = gs.audit(variant(model, "avgpool", few), (few, audit_labels(audit)))
                found = gs.cutoff_from(audit, twin)
            except NothingToSwap as error:
                found = gs.cutoff_from(audit)
                twin_reason = str(error)
            else:
                twin_reason = found.reason
            knee = gs.cutoff_from(audit)
            against = math.nan if found.how == "knee" else float(found)
            rows.append([name, kind, against, twin_reason, float(knee), knee.reason, *audit.input_slope])
        columns = ["network", "pictures", "twin", "why no twin", "knee", "why no knee", "slope", "slope se"]
        return pd.DataFrame(rows, columns=columns)

    return run.unit(f"spectrum of {name}", read)


def audit_labels(audit: gs.Audit) -> Any:
    """Returns the classes that the network named, which the twin's gradient is of, too."""
    return frame.torch.tensor(audit.spec["predicted"])


def rows(fits: Mapping[tuple[str, str, str], CutoffFit], spectra: pd.DataFrame, seed: int) -> Iterator[dict[str, Any]]:
    """Yields what was fitted and what the spectrum says, for each network, kind of pictures and method."""
    known = spectra.set_index(["network", "pictures"])
    for (name, kind, method), fit in fits.items():
        read, (low, high) = known.loc[(name, kind)], fit.interval(seed=seed)
        means = fit.table.set_index(fit.table["cutoff"].fillna(math.inf))["mean"]
        line = {"network": name, "pictures": kind, "method": method, "cutoff": fit.cutoff, "low": low, "high": high}
        line |= {"flat": fit.flat, "n": len(fit.pictures), "F": means.max(), "F, no filter": means[math.inf]}
        for how in ("twin", "knee"):
            line |= {how: read[how], f"F, {how}": means[_next(means.index, read[how])] if read[how] > 0 else math.nan}
        yield line | {"why no twin": read["why no twin"], "why no knee": read["why no knee"], "slope": read["slope"]}


def _next(cutoffs: Any, wanted: float) -> float:
    """The cutoff of the grid that is nearest in the logarithm."""
    finite = [cutoff for cutoff in cutoffs if math.isfinite(cutoff)]
    return min(finite, key=lambda cutoff: abs(math.log(cutoff / wanted)))


def shares(values: np.ndarray) -> np.ndarray:
    """Returns ω² of each axis' main effect, and what is left (axes + 1,); NaN where nothing varies.

    ω² is (SS − df·MS) / (SS of all + MS), with MS the mean square of what the main effects leave.

    Example:
        >>> shares(np.array([[0.0, 1.0], [2.0, 3.0]])).tolist()
        [0.8, 0.2, 0.0]
    """
    centred = values - values.mean()
    whole, axes = (centred**2).sum(), range(values.ndim)
    means = [centred.mean(tuple(other for other in axes if other != axis)) for axis in axes]
    squares = np.array([(mean**2).sum() * values.size / mean.size for mean in means])
    free = np.array(values.shape) - 1
    error = max(0.0, whole - squares.sum()) / (values.size - 1 - free.sum())
    found = (squares - free * error) / (whole + error or math.nan)
    return np.array([*found, 1 - found.sum()])


def explained(fits: Mapping[tuple[str, str, str], CutoffFit], seed: int, times: int = 500) -> pd.DataFrame:
    """Returns ω² of log2 σ* for each factor, the middle 95 % over redrawn pictures, and what chance gives."""
    names = [list(dict.fromkeys(key[k] for key in fits)) for k in range(3)]
    keys, levels = [(n, k, m) for n, k, m in product(*names)], [len(part) for part in names]
    logs = np.log2([_same_filter(cutoff) for cutoff in CUTOFFS])
    curves = [fits[key].per_image[fits[key].names].to_numpy(float) for key in keys]
    random = np.random.default_rng(seed)

    def best(picks: Mapping[str, np.ndarray] | None) -> np.ndarray:
        drawn = [curve if picks is None else curve[picks[key[1]]] for key, curve in zip(keys, curves, strict=True)]
        return np.array([logs[np.nanmean(part, 0).argmax()] for part in drawn]).reshape(levels)

    def redrawn() -> dict[str, np.ndarray]:
        n = len(curves[0])
        return {kind: random.integers(0, n, n) for kind in names[1]}

    found = best(None)
    drawn = [shares(best(redrawn())) for _ in range(times)]
    shuffled = [shares(random.permutation(found.ravel()).reshape(levels)) for _ in range(times)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # where all cutoffs are the same
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        chance = np.nanpercentile(shuffled, 95, axis=0)[:-1]
    columns = {"of": [*FACTORS, "rest"], "levels": [*levels, 0], "share": shares(found), "low": low, "high": high}
    return pd.DataFrame(columns | {"chance": [*chance, math.nan]})


def _same_filter(cutoff: float | None) -> float:
    """The radius of the outermost bin that a disk keeps, by which equal filters are told: 1.41 keeps what 1 does."""
    radii = np.hypot(*np.mgrid[:33, :33])
    return NO_FILTER if cutoff is None else float(radii[radii <= cutoff + 1e-9].max())


def draw(table: pd.DataFrame) -> Figure:
    """Draws the cutoffs by network, a colour for each kind of pictures, with those of the spectrum."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, len(METHODS), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(table["network"]))
    for ax, method in zip(axes, METHODS, strict=True):
        for k, (kind, mark) in enumerate(zip(KINDS, "os", strict=True)):
            part: Any = table[(table["method"] == method) & (table["pictures"] == kind)]
            x = np.array([names.index(name) for name in part["network"]]) + 0.2 * k - 0.1
            known = part[["cutoff", "low", "high"]].astype(float).fillna(np.inf).clip(upper=AT)
            y, low, high = known.to_numpy().T
            bars = [y - np.minimum(low, y), np.maximum(high, y) - y]
            ax.errorbar(x, y, bars, fmt=mark, ms=5, lw=1, label=f"fitted, {kind}")
            ax.plot(x, part["twin"], "x", color=f"C{k}", ms=6, label=f"spectrum against its twin, {kind}")
            ax.plot(x, part["knee"], "+", color=f"C{k}", ms=7, label=f"knee of the spectrum, {kind}")
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        ax.set_title(method)
        ax.axhline(AT, color="0.6", lw=0.8, ls=":")
        ax.annotate("no filter", (1, AT), xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=7)
    axes[0].set_ylabel("cutoff in cycles/image; bars: 95 %\nof redrawn pictures")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def predicted(table: pd.DataFrame) -> dict[str, Any]:
    """Returns the rank correlation of the spectrum's cutoffs with the fitted ones, and what F loses by them."""
    found: dict[str, Any] = {}
    for how in ("twin", "knee"):
        part: Any = table[table[how] > 0].assign(fitted=table["cutoff"].astype(float).fillna(NO_FILTER))
        cells = part.groupby(["network", "pictures"])[[how, "fitted"]].median()
        known = len(cells) > 3 and cells.nunique().min() > 1
        test = spearmanr(cells[how], cells["fitted"]) if known else (math.nan, math.nan)
        lost = (part["F"] - part[f"F, {how}"]).mean()
        kept = (part[f"F, {how}"] - part["F, no filter"]).mean()
        numbers = {"rank correlation": test[0], "p": test[1], "F lost to the fitted": lost, "F over no filter": kept}
        found[how] = {"networks and pictures": len(cells)} | {
            key: None if math.isnan(value) else round(float(value), 4) for key, value in numbers.items()
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Fits, reads the spectra, splits the squares and writes."""
    args = arguments(argv)
    run = frame.Study(args, __file__)
    fits: dict[tuple[str, str, str], CutoffFit] = {}
    spectra = []
    for name, model in networks(args).items():
        cases = pictures(run, model)
        fits |= fitted(run, name, model, cases)
        spectra.append(spectral(run, name, model, cases))
    table = pd.DataFrame(list(rows(fits, pd.concat(spectra, ignore_index=True), args.seed)))
    split = explained(fits, args.seed)
    run.table(table)
    run.table(split, "_shares")
    run.figure(draw(table))
    facts = split.set_index("of").round(3)
    flat = sum(fit.flat for fit in fits.values())
    run.finish(shares=facts.to_dict("index"), spectrum=predicted(table), fits=len(fits), flat=flat, cutoffs=CUTOFFS)


if __name__ == "__main__":
    main()

"""What the controls found: Taylor curves (paper 4A, A.2), sanity curves (A.12), bias of metrics (table 4), theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gradspec.plots._style import (
    FLAT,
    STYLES,
    VARIANTS,
    Trace,
    elide,
    legend_above,
    nothing,
    settle,
    shades_of,
    size_text,
    styled,
    traces,
)

if TYPE_CHECKING:
    from gradspec.controls import MetricBias, Sanity, Taylor
    from gradspec.controls.taylor import Form
    from gradspec.controls.theory import Convergence, KeptNoise, Recovery

_FORMS: dict[Form, str] = {
    "residual": "‖f(x+ε) − f(x) − ε∇f‖",
    "unfiltered": "over that without a filter (§4.2)",
    "mirrored": "over that of the opposite gradient (A.2)",
}
_MEASURES = {
    "spearman": "rank correlation",
    "spearman_abs": "rank correlation of magnitudes",
    "ssim": "SSIM of magnitudes",
}


@styled
def taylor(result: Taylor) -> Figure:
    """Return how far first-order predictions miss, by radius: the residual and its two ratios (paper 4A and A.2).

    A curve per gradient, the geometric mean over pictures with ± 1 standard error. Filtered gradients go from green (no
    filter) to blue (least cutoff), gradients without information are purple. A curve of residuals of 0 is missing.

    Args:
        result: of `gradspec.controls.taylor`.

    Example:
        >>> import torch
        >>> from gradspec import controls
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> net.mean, net.std = (0.0,), (1.0,)
        >>> found = controls.taylor(net, torch.rand(2, 3, 8, 8), radii=[1, 10], draws=2)
        >>> len(taylor(found).axes)
        3
    """
    found: dict[Form, pd.DataFrame] = {form: result.summary(form) for form in _FORMS}
    if not any(table["n"].any() for table in found.values()):
        return nothing("Nothing to draw: every prediction is exact.")
    looks = _gradient_looks(found["residual"])
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    for ax, (form, table) in zip(figure.subplots(1, 3), found.items(), strict=True):
        for name, look in looks.items():
            rows: Any = table[table["gradient"] == name]
            _draw_taylor(ax, rows, look)
        _decades(ax, "x")
        _decades(ax, "y")
        ax.set_xlabel(f"radius ‖ε‖ (units: {result.spec['units']})")
        ax.set_title(_FORMS[form])
        if form != "residual":
            ax.axhline(1, **FLAT, zorder=0)
    entries = [(Line2D([], [], **_line(look)), name) for name, look in looks.items()]
    filtered = [entry for entry in entries if entry[1].startswith(("σ", "no filter"))]
    legend_above(figure, [filtered, [entry for entry in entries if entry not in filtered]], columns=8)
    _say(figure, result.spec, result.table["picture"].nunique(), f"{result.spec['draws']} directions each")
    settle(figure)
    return figure


def _gradient_looks(table: pd.DataFrame) -> dict[str, Trace]:
    """Return how each gradient is drawn: filtered ones by cutoff, controls apart."""
    first: Any = table.drop_duplicates("gradient")
    filtered = first[first["cutoff"].notna()].sort_values("cutoff", ascending=False)["gradient"].tolist()
    controls = [name for name in first["gradient"] if name not in (*filtered, "no filter")]
    shades = shades_of(VARIANTS[0].colour)(np.linspace(0, 1, max(len(filtered), 1)))
    looks = {"no filter": Trace("#1b9e3c", "-", "o")}
    for k, name in enumerate(filtered):
        looks[name] = Trace(shades[k], "-", VARIANTS[1 + k % (len(VARIANTS) - 1)].marker)
    for k, name in enumerate(controls):
        looks[name] = Trace("#8e44ad", STYLES[1 + k % (len(STYLES) - 1)], "<>hp"[k % 4])
    return {name: looks[name] for name in looks if name in set(first["gradient"])}


def _draw_taylor(ax: Axes, rows: pd.DataFrame, look: Trace) -> None:
    middle, error = rows["log10"].to_numpy(), rows["se"].fillna(0).to_numpy()
    place: Any = rows["radius"].to_numpy()
    ax.plot(place, 10**middle, **_line(look), gid=str(rows["gradient"].iloc[0]))
    band: dict[str, Any] = {"color": look.colour, "alpha": 0.15, "linewidth": 0}
    ax.fill_between(place, 10 ** (middle - error), 10 ** (middle + error), **band)


def _decades(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with a label at up to eight powers of ten: matplotlib's own need its mathematics."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())


def _line(look: Trace) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.style, "marker": look.marker, "markersize": 4, "linewidth": 1.2}


@styled
def sanity(result: Sanity) -> Figure:
    """Return how like the original maps stay as the network is randomised from the logits down (paper A.12).

    A panel per measure, a curve per attribution, mean over pictures with ± 1 standard error. To the right stands how
    like the original maps of two different pictures are: what a method reaches that has left its own map behind.

    Args:
        result: of `gradspec.controls.sanity`.
    """
    table = result.summary()
    random: Any = table[table["stage"] > 0]
    stages = random.drop_duplicates("stage").sort_values("stage")
    if stages.empty:
        return nothing("Nothing to draw: no layer was randomised.")
    looks = traces(dict.fromkeys(table["attribution"]))
    last = len(stages) + 1
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    for ax, (measure, words) in zip(figure.subplots(1, 3), _MEASURES.items(), strict=True):
        for k, (name, look) in enumerate(looks.items()):
            rows: Any = table[table["attribution"] == name].set_index("stage")
            shift = 0.4 * (k - (len(looks) - 1) / 2) / max(len(looks), 1)
            for part, at in ((rows.reindex(stages["stage"]), np.arange(1, last)), (rows.reindex([0]), [last + 0.5])):
                style = _line(look) | {"gid": name, "capsize": 1.5, "elinewidth": 0.7}
                ax.errorbar(np.asarray(at) + shift, part[measure], yerr=part[f"{measure}_se"], **style)
        ax.axhline(0, **FLAT, zorder=0)
        ax.axvline(last - 0.25, color="#bbbbbb", linewidth=0.7)
        names = [elide(layer, 20) for layer in stages["layer"]]
        ax.set_xticks([*range(1, last), last + 0.5], [*names, "other picture"], rotation=60, ha="right")
        ax.set_title(words)
    legend_above(figure, [[(Line2D([], [], **_line(look)), elide(name, 40)) for name, look in looks.items()]])
    _say(figure, result.spec, result.table["picture"].nunique(), "random from the logits down to the named layer")
    settle(figure)
    return figure


@styled
def metric_bias(result: MetricBias) -> Figure:
    """Return what metrics give for random maps of low and of high frequencies (paper table 4, A.11).

    Left the means with their 95 % intervals, beside those of attributions where there are any; right the paired
    difference of high less low over pictures with its interval and JZS Bayes factor.

    Args:
        result: of `gradspec.controls.metric_bias`.
    """
    means, summary = result.means(), result.summary()
    metrics = summary["metric"].tolist()
    figure = Figure(figsize=(9.5, 1.6 + 0.55 * len(metrics)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = list(dict.fromkeys(means["map"]))
    looks = traces(names)
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        rows: Any = means[means["map"] == name].set_index("metric").reindex(metrics)
        places = np.arange(len(metrics)) + (k - (len(names) - 1) / 2) * height
        style: dict[str, Any] = {"color": looks[name].colour, "hatch": _HATCHES[k % len(_HATCHES)]}
        left.barh(places, rows["mean"], 0.9 * height, **style, edgecolor="white", label=name, gid=name)
        left.errorbar(rows["mean"], places, xerr=_reach(rows), linestyle="none", color="#222222", capsize=2)
    left.set_yticks(range(len(metrics)), [elide(metric, 28) for metric in metrics])
    left.set_ylim(len(metrics) - 0.4, -0.6)
    left.set_xlabel("mean over pictures, 95 % interval")
    _draw_differences(right, summary)
    for ax in (left, right):
        ax.axvline(0, **FLAT, zorder=0)
    legend_above(figure, [list(zip(*left.get_legend_handles_labels(), strict=True))])
    _say(figure, result.spec, result.table["picture"].nunique(), "")
    settle(figure)
    return figure


_HATCHES = ("", "////", "..", "xxxx", "\\\\\\\\", "++")


def _draw_differences(ax: Axes, summary: pd.DataFrame) -> None:
    places = np.arange(len(summary))
    rows = summary.rename(columns={"difference": "mean"})
    ax.errorbar(rows["mean"], places, xerr=_reach(rows), linestyle="none", marker="o", color="#222222", capsize=3)
    style: dict[str, Any] = {"va": "bottom", "ha": "center", "fontsize": 8, "color": "#555555"}
    for place, row in zip(places, summary.to_dict("records"), strict=True):
        words = f"BF₁₀ {row['bf10']:.2g}, n {row['n']}" if np.isfinite(row["bf10"]) else f"n {row['n']}"
        ax.annotate(words, (row["difference"], place), (0, 4), textcoords="offset points", **style)
    ax.margins(x=0.35)
    ax.set_xlabel("high less low, paired, 95 % interval")


def _reach(rows: pd.DataFrame) -> np.ndarray:
    """Return how far an interval reaches below and above its mean (2, n); 0 where it is not known."""
    ends = np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
    return np.nan_to_num(ends.clip(min=0))


@styled
def theory(recoveries: Mapping[float, Recovery], kept: KeptNoise, found: Convergence) -> Figure:
    """Return supplement A on trial: A.2's two parts of the error, A.3 and A.4 beside a simulation.

    Args:
        recoveries: by cutoff, of one gradient and its noise.
        kept: of `gradspec.controls.theory.kept_noise`.
        found: of `gradspec.controls.theory.convergence`.

    Example:
        >>> import torch
        >>> from gradspec.controls.theory import convergence, kept_noise, recovery
        >>> gradient, noise = torch.ones(8, 8), torch.randn(8, 8)
        >>> recoveries = {cutoff: recovery(gradient, noise, cutoff) for cutoff in range(5)}
        >>> figure = theory(recoveries, kept_noise(8, 8, 1), convergence([0.1, 0.2], 100))
        >>> figure.axes[2].get_xlabel()
        't (n = 100, 1×1 signs)'
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_recovery(left, recoveries)
    _draw_shares(middle, kept)
    _draw_bounds(right, found)
    for ax in (left, middle, right):
        ax.legend(loc="best")
    settle(figure)
    return figure


def _draw_recovery(ax: Axes, recoveries: Mapping[float, Recovery]) -> None:
    cutoffs = sorted(recoveries)
    looks = dict(zip(("error", "kept", "lost", "noise"), VARIANTS, strict=False))
    words = ("error of the filtered gradient", "noise that passes", "gradient that does not", "error without a filter")
    for (part, look), label in zip(looks.items(), words, strict=True):
        values = [float(getattr(recoveries[cutoff], part).mean()) for cutoff in cutoffs]
        ax.plot(cutoffs, values, **_line(look), label=label, gid=part)
    ax.set_xlabel("cutoff σ (cycles/image)")
    ax.set_ylabel("squared norm")
    ax.set_title("A.2: error = noise kept + gradient lost")


def _draw_shares(ax: Axes, kept: KeptNoise) -> None:
    """Draw densities per decade of the share: as printed, it is orders of magnitude too small."""
    shares, exact = np.asarray(kept.shares), kept.exact
    laws: Sequence[tuple[str, Any]] = [(f"printed, {v}", kept.printed(v)) for v in ("statement", "proof")]
    ends = [1 / law.ppf(1 - level) for _, law in laws for level in (1e-3, 0.999)]
    x = np.geomspace(min(shares.min(), *ends), max(shares.max(), *ends), 800)
    scale = x * np.log(10)  # from per unit to per decade
    bins: Any = np.geomspace(shares.min(), shares.max(), 30)
    weights = np.full(len(shares), 1 / len(shares) / np.log10(bins[1] / bins[0]))
    ax.hist(shares, bins, weights=weights, color="#cccccc", label=f"{len(shares)} simulated", gid="simulated")
    look = VARIANTS[1]
    ax.plot(x, exact.pdf(x) * scale, color=look.colour, linewidth=1.6, label="Beta(M/2, (HW − M)/2)", gid="exact")
    for (label, law), look in zip(laws, (VARIANTS[2], VARIANTS[3]), strict=True):
        density = law.pdf(1 / x) / x**2  # of the inverse
        ax.plot(x, density * scale, color=look.colour, linestyle=look.style, label=label, gid=label)
    _decades(ax, "x")
    ax.set_xlabel(f"share of white noise kept ({size_text(kept.height, kept.width)}, {kept.shape} σ = {kept.cutoff:g})")
    ax.set_title("A.3: density of the share per decade")


def _draw_bounds(ax: Axes, found: Convergence) -> None:
    """Draw down to what the simulation can see; the printed bound goes on far below, which the legend says."""
    sigma = int(np.abs(found.thresholds - found.n**-0.5).argmin())
    at = f"{found.printed[sigma]:.0e}".replace("-", "−") if found.printed[sigma] > 0 else "under 1e−308"
    curves = (
        ("simulated frequency", found.frequency, VARIANTS[1], ""),
        ("as printed", found.printed, VARIANTS[2], f" ({at} at t = {found.thresholds[sigma]:.2g})"),
        ("matrix Bernstein", found.bernstein, VARIANTS[0], ""),
    )
    for label, values, look, more in curves:
        shown = np.where(values > 0, np.clip(values, 1e-300, 1), np.nan)
        ax.plot(found.thresholds, shown, **_line(look), label=label + more, gid=label)
    _decades(ax, "y")
    ax.set_ylim(0.3 / found.repeats, 2)
    ax.set_xlabel(f"t (n = {found.n}, {size_text(*found.shape)} signs)")
    ax.set_title("A.4: P(‖SG − E SG‖ ≥ t)")


def _say(figure: Figure, spec: Mapping[str, Any], pictures: int, more: str) -> None:
    """Write, small and grey below the figure, what it shows."""
    words = [elide(str(spec["model"]), 50), f"{pictures} picture{'' if pictures == 1 else 's'}", more]
    figure.supxlabel(" · ".join(filter(None, words)), fontsize=8, color="#777777")

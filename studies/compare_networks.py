"""Networks side by side: tables 5 and 6, the cutoffs of fig. 5D, and Bayes factors with how they grow (A.6).

    python studies/compare_networks.py --runs judge_tiny_darknet judge_resnet50_ktb judge_demo_vgg_max

Each run is what `studies/judge_methods.py` wrote under that name into the same folder; nothing is computed on
pictures here, and runs that are not there are left out by name. Writes the table of all networks (NAME.csv, a row per
network, method and arm: table 5), the first five by F + μF of each (_ranking: table 6), Bayes factors before against
after with networks as blocks (_bayes), the factor of ever more pictures, methods and networks (_growth), the cutoffs by
network and method (_cutoffs), and figures of the last two. With --smoke the runs are made first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import judge_methods
import numpy as np
import pandas as pd
import study as frame
from matplotlib.figure import Figure

from gradspec.cutoffs import CutoffFit
from gradspec.evaluation import Scores, bayes
from gradspec.statistics import jzs_bf10, paired

METRICS = ("Faithfulness", "MuFidelity", "Insertion", "Deletion")
MARKS = "osD^vP*X"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = frame.parser(__doc__, name="compare_networks", limit=64)
    made.add_argument("--runs", nargs="+", default=["judge_methods"], help="names of runs of judge_methods.py")
    return frame.parsed(made, argv, smoke={"limit": 4}, paper={})


def found(args: argparse.Namespace) -> dict[str, Scores]:
    """Returns the scores of each run by its network's name; with --smoke the run is made."""
    scores = {}
    for name in args.runs:
        folder = args.out / ".units" / name / "scores"
        if args.smoke and not folder.exists():
            judge_methods.main(["--smoke", "--out", str(args.out), "--name", name, "--limit", str(args.limit)])
        if folder.exists():
            scores[_network(name)] = Scores.load(folder)
        else:
            print(f"{name} is left out: {folder} is not there", file=sys.stderr)
    return scores


def _network(run: str) -> str:
    return run.removeprefix("judge_")


def fits(args: argparse.Namespace) -> dict[str, dict[str, CutoffFit]]:
    """Returns the fits of each run by network and method."""
    return {
        _network(name): {
            path.name.removeprefix("fit-"): CutoffFit.load(path)
            for path in sorted((args.out / ".units" / name).glob("fit-*"))
            if not path.name.endswith("-gradient")
        }
        for name in args.runs
    }


def table(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Returns table 5 in long form."""
    parts = [one.summary().assign(network=name, accuracy=one.accuracy) for name, one in scores.items()]
    whole = pd.concat(parts, ignore_index=True)
    whole.insert(0, "network", whole.pop("network"))
    return whole


def rankings(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Returns the first five by F + μF of each network (table 6)."""
    return pd.concat([one.ranking().head(5).assign(network=name) for name, one in scores.items()], ignore_index=True)


def cutoffs(known: Mapping[str, Mapping[str, CutoffFit]], seed: int) -> Iterator[dict[str, Any]]:
    """Yields each network's and method's cutoff, and between which it lies when the pictures are drawn anew.

    Of a race that is not known: most cutoffs were dropped after few pictures.
    """
    for network, by_method in known.items():
        for method, fit in by_method.items():
            low, high = fit.interval(seed=seed) if fit.search == "grid" else (np.nan, np.nan)
            yield {
                "network": network, "method": method, "cutoff": fit.cutoff, "one standard error": fit.one_se,
                "low": low, "high": high, "search": fit.search, "n": len(fit.pictures),
            }  # fmt: skip


def growth(scores: Mapping[str, Scores], seed: int) -> Iterator[dict[str, Any]]:
    """Yields the Bayes factor of FORGrad's gain in F by ever more pictures (of each network), and methods, networks.

    Pairs of method and network count as independent, as in the paper's A.6: methods of one network share its pictures.
    """
    for name, one in scores.items():
        gained = _gains(one).sample(frac=1, random_state=seed)  # a folder may be in the order of the classes
        for n in sorted({*(2**k for k in range(2, 12) if 2**k < len(gained)), len(gained)}):
            part = gained.iloc[:n].mean(axis=1)  # over methods: a picture is what counts
            test = paired(part.to_numpy(), np.zeros(n))
            yield {"of": f"pictures of {name}", "n": n, "bf10": test.bf10, "gain": test.mean, "low": test.low,
                   "high": test.high}  # fmt: skip
    pairs = [_gains(one).mean() for one in scores.values()]
    for count in range(1, len(pairs) + 1):
        values = np.concatenate([part.to_numpy() for part in pairs[:count]])
        yield {"of": "pairs of network and method", "n": len(values), "bf10": float(jzs_bf10(values)),
               "gain": values.mean(), "low": np.nan, "high": np.nan}  # fmt: skip


def _gains(scores: Scores) -> pd.DataFrame:
    """Gain in F of each filtered method (columns) on each picture (rows)."""
    starred = [row["attribution"] for row in scores.spec["rows"] if row["arm"] == "forgrad"]
    return pd.DataFrame({name: scores.values(name, "forgrad") - scores.values(name) for name in starred}).dropna()


def draw_cutoffs(chosen: pd.DataFrame) -> Figure:
    """Draws fig. 5D: the cutoffs of each method by network, with the interval of redrawn pictures."""
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    ax = figure.add_subplot()
    networks = list(dict.fromkeys(chosen["network"]))
    methods = list(dict.fromkeys(chosen["method"]))
    top = chosen[["cutoff", "high"]].replace(np.inf, np.nan).max().max() * 2
    for k, method in enumerate(methods):
        part: Any = chosen[chosen["method"] == method]
        x = np.array([networks.index(name) for name in part["network"]]) + (k - (len(methods) - 1) / 2) * 0.11
        y = part["cutoff"].astype(float).fillna(np.inf).clip(upper=top)
        low, high = (part[name].astype(float).fillna(y).clip(upper=top) for name in ("low", "high"))
        ax.errorbar(x, y, [y - np.minimum(low, y), np.maximum(high, y) - y], fmt=MARKS[k], ms=6, lw=1, label=method)
    ax.axhline(top, color="0.6", lw=0.8, ls=":")
    ax.annotate("no filter", (1, top), xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=8)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks(range(len(networks)), networks, rotation=15)
    ax.set_ylabel("cutoff σ* in cycles/image;\nbars: 95 % of redrawn selection pictures, none for a race")
    ax.set_title("Cutoff of best mean F by network and method (fig. 5D)")
    figure.legend(fontsize=8, ncols=7, loc="outside lower center", frameon=False)
    return figure


def draw_growth(grown: pd.DataFrame) -> Figure:
    """Draws Bayes factors against the number of what was counted."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.add_subplot()
    for k, (name, part) in enumerate(grown.groupby("of", sort=False)):
        ax.plot(part["n"], part["bf10"].clip(upper=1e30), f"-{MARKS[k % len(MARKS)]}", label=name, lw=1.2, ms=5)
    for line, words in ((3, "3: moderate"), (10, "10: strong"), (1, "1: neither"), (11.33, "")):
        ax.axhline(line, color="0.7", lw=0.7, ls=":")
        ax.annotate(words, (0.995, line), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    ax.set(xscale="log", yscale="log", xlabel="number", ylabel="BF₁₀ (JZS, paired), above 1e30 drawn at 1e30")
    ax.set_title("Bayes factor of the mean change of F by FORGrad, by how much is counted")
    ax.legend(fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, compares and writes."""
    args = arguments(argv)
    scores, known = found(args), fits(args)
    run = frame.Study(args, __file__)
    run.table(table(scores))
    run.table(rankings(scores), "_ranking")
    tests = bayes(scores)
    run.table(tests, "_bayes")
    chosen, grown = pd.DataFrame(list(cutoffs(known, args.seed))), pd.DataFrame(list(growth(scores, args.seed)))
    run.table(chosen, "_cutoffs")
    run.table(grown, "_growth")
    run.figure(draw_cutoffs(chosen), "_cutoffs")
    run.figure(draw_growth(grown), "_growth")
    rows: Any = tests.itertuples()
    factors = {
        f"{row.metric}, {row.test}": {"bf10": float(f"{row.bf10:.4g}"), "better by": round(float(row.difference), 4)}
        for row in rows
    }
    pictures = {name: one.spec["pictures"] for name, one in scores.items()}
    run.finish(bayes=factors, pictures=pictures, missing={name: len(one.missing) for name, one in scores.items()})


if __name__ == "__main__":
    main()

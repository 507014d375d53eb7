"""All thirteen methods on trial, white-box ones before and after FORGrad (tables 1 to 3; figs. 1B, 3B, 5B, A.9, A.13).

    python studies/judge_methods.py --model ../shared/nets/tiny_darknet.py:load \
        --weights ../shared/nets/tiny_darknet.safetensors --images ../shared/images --name judge_tiny_darknet

Pictures are spread over the folder, every other one for selection, the rest for the report. The cutoff of each of the
seven white-box methods is the one with the best mean F on the selection pictures: one for the filter on the finished
map (*) and one for the filter in the gradient, unless --places has the first alone; then the gradient's filter gets the
map's cutoff, which is not its own. On the report pictures every method is scored as it is; those seven also by the
magnitude of the map alone, by both filters, and by the paper's undefined dagger read twice: one cutoff shared by all
methods, and a Gaussian that passes as much power. Maps that know no network stand below. A race (--search) saves three
quarters of the passes of the choice, but drops most cutoffs after few pictures: it has no curve to show.

Writes the table (NAME.csv), paired gains with 95 % intervals (_gains), the ranking by F + μF (_ranking), Bayes factors
(_bayes), the cutoffs with their curves (_cutoffs, _curves), and the figures _time (1B), _slope (3B and A.13), _curves
(5B and A.9) and _gains. Black-box methods get 145 to 200 passes by default, those that average gradients sixteen; all
get their full budgets with --paper, on 1,280 pictures for the choice and 1,280 for the report.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import study as frame
import torch

import gradspec as gs
from gradspec import plots
from gradspec.attributions import Attribution
from gradspec.cutoffs import CutoffFit, cutoff_grid
from gradspec.evaluation import Scores, joined

PLACES = ("attribution", "gradient")
ARMS: Any = ("abs", "gradient", "gaussian")
RIVALS = ("none", "abs", "centre prior")
METRICS = ("Faithfulness", "MuFidelity", "Insertion", "Deletion")
Batch = tuple[Any, Any, list[str]]
Fits = Mapping[str, Sequence[CutoffFit]]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    made = frame.parser(__doc__, name="judge_methods", limit=64)
    made.add_argument("--cutoffs", type=int, default=12, help="points of the grid, no filter among them")
    made.add_argument("--search", choices=["grid", "race"], default="grid")
    made.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES), help="filters with an own cutoff")
    made.add_argument("--samples", type=int, default=16, help="gradients of methods that average them; 0: their own")
    made.add_argument("--full", action="store_true", help="black-box methods with all of their passes")
    made.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of scores")
    made.add_argument("--shard", type=int, default=8, help="report pictures of a unit")
    made.add_argument("--only", nargs="+", help="names of methods")
    smoke = {"limit": 4, "cutoffs": 3, "samples": 2, "shard": 2, "search": "grid"}
    return frame.parsed(made, argv, smoke=smoke, paper={"limit": 2560, "samples": 0, "full": True, "cutoffs": 20})


def chosen(args: argparse.Namespace) -> dict[str, Attribution]:
    """Returns the methods that are on trial."""
    found = frame.methods(args.samples or None, reduced=not args.full)
    return {name: method for name, method in found.items() if name in (args.only or found)}


def halves(run: frame.Study, model: Any) -> tuple[list[Batch], list[Batch]]:
    """Returns batches of the selection and of the report pictures: every other one each."""
    places: list[Any] = [[], []]
    for images, labels, names in run.pictures(model):
        for k, name in enumerate(names):
            side = places[(len(places[0]) > len(places[1])) * 1]
            side.append((images[k], None if labels is None else labels[k], name))
    shard = run.args.shard
    first, second = ([_batch(side[k : k + shard]) for k in range(0, len(side), shard)] for side in places)
    return first, second


def _batch(pictures: Sequence[Any]) -> Batch:
    images, labels, names = zip(*pictures, strict=True)
    return torch.stack(images), None if labels[0] is None else torch.stack(labels), list(names)


def fitted(run: frame.Study, engine: gs.Engine, methods: Mapping[str, Attribution], data: list[Batch]) -> Fits:
    """Returns the fits of each white-box method on the selection pictures, that of the finished map first."""
    options: Any = {"search": run.args.search, "seed": run.args.seed}
    options["cutoffs"] = cutoff_grid(*data[0][0].shape[-2:], points=run.args.cutoffs)

    def fit(name: str, place: Any) -> CutoffFit:
        def search() -> CutoffFit:
            return gs.fit_cutoff(engine, methods[name], data, where=place, **options)

        return run.kept(f"fit-{name}" + "-gradient" * (place == "gradient"), CutoffFit, search, engine)

    white = [name for name, method in methods.items() if method.family == "white"]
    return {name: [fit(name, place) for place in PLACES if place in run.args.places] for name in white}


def shared(fits: Fits, search: str) -> dict[str, Any]:
    """Returns the arm of one cutoff for all: the best for all curves of a grid, of races their geometric mean."""
    if search == "grid":
        return {"arms": (*ARMS, "shared")}
    known = [first.cutoff for first, *_ in fits.values() if first.cutoff is not None]
    return {"arms": ARMS, "shared_cutoff": float(np.exp(np.mean(np.log(known))))} if known else {"arms": ARMS}


def judged(
    run: frame.Study, engine: gs.Engine, methods: Mapping[str, Attribution], fits: Any, data: list[Batch]
) -> Scores:
    """Returns the scores of the report pictures, a unit for each batch."""
    options = shared(fits, run.args.search)
    parts: list[Scores] = [
        run.kept(
            f"scores-{k:03d}",
            Scores,
            lambda batch=batch: gs.evaluate(engine, [batch], methods, fits=fits, seed=run.args.seed, **options),
            engine,
        )
        for k, batch in enumerate(data)
    ]
    return joined(parts)


def gains(scores: Scores) -> pd.DataFrame:
    """Returns paired gains in each metric over each rival."""
    parts = [scores.gains(metric, rival).assign(metric=metric) for metric in METRICS for rival in RIVALS]
    return pd.concat(parts, ignore_index=True)


def cutoffs(fits: Fits) -> Iterator[dict[str, Any]]:
    """Yields what was chosen for each method and place, and how sure that is; of a race that is not known."""
    for name, fit in ((name, fit) for name, found in fits.items() for fit in found):
        low, high = fit.interval() if fit.search == "grid" else (math.nan, math.nan)
        yield {
            "method": name, "where": fit.where, "cutoff": fit.cutoff, "low": low, "high": high,
            "one standard error": fit.one_se, "flat": fit.flat if fit.search == "grid" else "", "search": fit.search,
            "selection pictures": len(fit.pictures), "passes": fit.forwards, "gradients": fit.backwards,
        }  # fmt: skip


def curves(fits: Fits) -> pd.DataFrame:
    """Returns the mean F of each method at each cutoff; in a race each has pictures of its own."""
    parts = [fit.table.assign(method=name, where=fit.where) for name, found in fits.items() for fit in found]
    return pd.concat(parts, ignore_index=True)


def verdicts(scores: Scores, gained: pd.DataFrame) -> dict[str, Any]:
    """Returns the numbers that the paper's claims rest on."""
    found: dict[str, Any] = {}
    starred = gained[gained["arm"].isin(("forgrad", "forgrad-gradient"))]
    groups: Any = starred.groupby(["arm", "metric", "against"], sort=False)
    for (arm, metric, rival), rows in groups:
        counts = {"methods": len(rows), "better": int((rows["low"] > 0).sum()), "worse": int((rows["high"] < 0).sum())}
        found[f"{metric}: {arm} over {rival}"] = counts | {"mean gain": _rounded(rows["mean"].mean())}
    first = scores.ranking().head(5)
    found["top five by F + μF"] = {"before": list(first["before"]), "after": list(first["after"])}
    return found


def _selected(fits: Fits) -> list[str]:
    return sorted({name for found in fits.values() for fit in found for name in fit.pictures})


def _rounded(value: Any) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def write(run: frame.Study, scores: Scores, fits: Fits) -> None:
    """Writes tables, figures and the sidecar."""
    gained = gains(scores)
    run.table(scores.summary().merge(scores.slopes, on=["attribution", "arm"], suffixes=("", " of the spectrum")))
    run.table(gained, "_gains")
    run.table(scores.ranking(), "_ranking")
    run.table(scores.bayes(), "_bayes")
    run.table(pd.DataFrame(list(cutoffs(fits))), "_cutoffs")
    run.table(curves(fits), "_curves")
    points = plots.points_of(scores)
    foot = f"{scores.spec['model'].rsplit('/')[-1]}, {scores.spec['pictures']} pictures"
    budget = "" if run.args.full else "; black-box methods with reduced passes, see the table"
    run.figure(plots.faithfulness_time(points, foot=f"{foot}{budget}; seconds on shared cores"), "_time")
    run.figure(plots.slope_scatter(points, foot=foot), "_slope")
    if run.args.search == "grid":
        run.figure(plots.cutoff_curves({name: first for name, (first, *_) in fits.items()}), "_curves")
    run.figure(plots.gains(scores), "_gains")
    scores.save(run.store.folder / "scores")
    run.finish(
        **verdicts(scores, gained),
        pictures={"selection": _selected(fits), "report": list(scores.pictures)},
        methods={row["attribution"]: row["settings"] for row in scores.spec["rows"] if row["arm"] == "none"},
        accuracy=scores.accuracy,
        missing=[list(missed) for missed in scores.missing],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Fits, judges and writes."""
    args = arguments(argv)
    run = frame.Study(args, __file__)
    model = run.model()
    engine, methods = gs.Engine(model, precision=args.precision), chosen(args)
    selection, report = halves(run, model)
    fits = fitted(run, engine, methods, selection)
    write(run, judged(run, engine, methods, fits, report), fits)


if __name__ == "__main__":
    main()

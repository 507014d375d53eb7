"""What `gradspec fit` and `evaluate` show at the end: tables as text and CSV, figures, the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradspec as gs
from gradspec.commands.options import note
from gradspec.commands.running import Running, print_json

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.runs import Failure
    from gradspec.trials import Trials


def show(command: Running, out: Path, failed: Sequence[Failure]) -> None:
    """Writes tables, figures and the page of a run and prints what they say; the last line is the page.

    Args:
        command: The options.
        out: The run's folder.
        failed: Units that failed.

    Raises:
        RuntimeError: No method applies to any variant.
    """
    from gradspec.trials import Trials, failures

    trials = Trials.load(out)
    left = [dict(zip(("variant", "method", "reason"), one, strict=True)) for one in failures(trials)]
    if not trials.fitted and not trials.scored:
        if command.json:
            print_json(out, failed, {}, left_out=left)
        if failed:
            raise RuntimeError(f"No cutoff could be fitted: {failures(trials)[0][-1]}")
        return note(f"nothing to show yet: {failures(trials)[0][-1]}")  # another shard's turn
    tables = write_tables(trials, out)
    figures, page = draw(trials, out / "figures"), gs.report(out)  # before any print: a reader may close the pipe
    if command.json:
        found = {"page": str(page), "figures": [str(figure) for figure in figures]}
        return print_json(out, failed, tables, **found, left_out=left)
    print(told(trials))
    print("\nfigures (an SVG beside each):", *figures, sep="\n  ")
    print(f"\nfits saved to {out}, their page: {page}")
    return None


def write_tables(trials: Trials, out: Path) -> dict[str, pd.DataFrame]:
    """Returns the fits, and where there are scores gains and all means, written as CSV to read."""
    tables = {"fits": trials.table()}
    if trials.scored:
        tables |= {"gains": trials.gains(trials.before_after()[1]), "summary": trials.summary()}
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    return tables


def draw(trials: Trials, folder: Path) -> list[Path]:
    """Returns the paths of the figures drawn into the folder as PNG; an SVG lies beside each."""
    from gradspec import plots
    from gradspec.folders import numbered
    from gradspec.plots.cutoffs import cutoff_curves
    from gradspec.plots.scores import examples, faithfulness_time, gains, points_of, slope_scatter
    from gradspec.trials import FAITHFULNESS

    drawn = {}
    for number, trial in enumerate(trials.trials, 1):
        name = numbered(number, trial.variant)
        if trial.fits:
            spectral = None if math.isnan(trial.spectral) else trial.spectral
            drawn[f"cutoffs-{name}"] = cutoff_curves(trial.fits, spectral=spectral)
        if trial.scores is not None:
            metric = (
                FAITHFULNESS
                if FAITHFULNESS in trial.scores.spec["metrics"]
                else next(iter(trial.scores.spec["metrics"]))
            )
            points = points_of(trial.scores, metric)
            drawn[f"gains-{name}"] = gains(trial.scores, metric)
            drawn[f"slopes-{name}"] = slope_scatter(points, metric)
            drawn[f"time-{name}"] = faithfulness_time(points, metric)
            if trial.scores.examples:
                drawn[f"maps-{name}"] = examples(trial.scores)
    return [plots.save(figure, folder / name)[0] for name, figure in drawn.items()]


# ---- text ------------------------------------------------------------------------------------


def told(trials: Trials) -> str:
    """Returns the fits, a line each, what does not apply, and FORGrad before and after on other pictures."""
    from gradspec.trials import failures

    parts = []
    if trials.fitted:
        parts += [_fits_head(trials), _fits(trials.table())]
    if trials.scored:
        parts += ["", *_before_after(trials)]
    parts += [f"{variant}{', ' * bool(method)}{method}: {reason}" for variant, method, reason in failures(trials)]
    return "\n".join(parts)


def _fits_head(trials: Trials) -> str:
    counts = {len(fit.pictures) for trial in trials.trials for fit in trial.fits.values()}
    fit = next(fit for trial in trials.trials for fit in trial.fits.values())
    few = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"cutoffs in cycles/image ({fit.shape} in the {fit.where}) by {fit.metric} on {few} pictures; the gain over no "
        "filter, with its 95 % interval, is on the pictures that the cutoff was chosen on and flatters it"
    )


def _fits(table: pd.DataFrame) -> str:
    lines: Any = table[table["n"].notna()]
    columns = {
        "variant": lines["variant"],
        "method": lines["method"],
        "cutoff": [_cutoff(value) for value in lines["cutoff"]],
        "one-se": [_cutoff(value) for value in lines["one_se"]],
        "no filter": [_digits(value) for value in lines["unfiltered"]],
        "abs only": [_digits(value) for value in lines["abs"]],
        "best": [_digits(value) for value in lines["best"]],
        "gain": [_interval(row) for row in lines.to_dict("records")],
        "n": [f"{int(n)}" for n in lines["n"]],
        "flat": ["flat" if flat else "" for flat in lines["flat"]],
        "spectral": [_cutoff(value, none="-") for value in lines["spectral"]],
        "forwards": [f"{int(count)}" for count in lines["forwards"]],
        "accuracy": [_digits(value) for value in lines["accuracy"]],
    }
    return _aligned(columns)


def _before_after(trials: Trials) -> list[str]:
    """A table for each metric that the page would lead with, faithfulness where it was measured."""
    rows, metric = trials.before_after()
    if not rows:
        return [f"no attribution was scored with a fitted cutoff ({', '.join(trials.scored)})"]
    columns = {
        "variant": [row["variant"] for row in rows],
        "method": [row["method"] for row in rows],
        "cutoff": [_cutoff(row["cutoff"]) for row in rows],
        "no filter": [_digits(row.get("none")) for row in rows],
        "abs only": [_digits(row.get("abs")) for row in rows],
        "FORGrad": [_digits(row["filtered"]) for row in rows],
        "over no filter": [_interval(row.get("over none"), "mean") for row in rows],
        "over abs only": [_interval(row.get("over abs"), "mean") for row in rows],
        "over centre prior": [_interval(row.get("over centre prior"), "mean") for row in rows],
        "n": [f"{(row.get('over none') or {}).get('n', '-')}" for row in rows],
        "accuracy": [_digits(row["accuracy"]) for row in rows],
    }
    head = f"{metric} on other pictures, and what FORGrad gains with a 95 % interval"
    return [head, _aligned(columns)]


def _aligned(columns: dict[str, Any]) -> str:
    """Words to the left, numbers to the right; columns without anything are left out."""
    kept = {head: list(map(str, cells)) for head, cells in columns.items() if any(c not in ("", "-") for c in cells)}
    widths = {head: max(len(head), *map(len, cells)) for head, cells in kept.items()}
    words = ("variant", "method")

    def line(cells: dict[str, str]) -> str:
        padded = (
            text.ljust(widths[head]) if head in words else text.rjust(widths[head]) for head, text in cells.items()
        )
        return "  ".join(padded).rstrip()

    count = len(next(iter(kept.values())))
    rows = [{head: cells[k] for head, cells in kept.items()} for k in range(count)]
    return "\n".join([line({head: head for head in kept}), *map(line, rows)])


def _digits(value: Any) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _cutoff(value: float, none: str = "none") -> str:
    return none if math.isnan(value) else f"{value:.3g}"


def _interval(row: dict[Any, Any] | None, mean: str = "gain") -> str:
    if row is None or math.isnan(row[mean]):
        return "-"
    ends = "" if math.isnan(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row[mean]:+.3f}{ends}"

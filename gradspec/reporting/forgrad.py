"""The page's part on FORGrad: fitted cutoffs, and what they change on other pictures, in words, figures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradspec.cutoffs import CutoffFit
from gradspec.reporting import figures
from gradspec.reporting.figures import Picture
from gradspec.reporting.tables import Cell, Column, Row, Table, digits, text, whole, without_empty
from gradspec.reporting.text import MISSING, count, isolated, known, listed, number, percent, plain
from gradspec.reporting.words import Paragraph
from gradspec.trials import AGAINST, Trials, failures

_NAME = 1000  # letters of a name
GAINS = "What FORGrad gains"
_RIVALS = {"none": "no filter", "abs": "the magnitude alone", "centre prior": "the centre prior"}
_HEADS = {"none": "over no filter", "abs": "over abs only", "centre prior": "over centre prior"}


# ---- words -----------------------------------------------------------------------------------


def trial_words(trials: Trials) -> list[Paragraph]:
    """Returns what was fitted on which pictures, what the curves say, and what the filter gains on others."""
    found = [Paragraph("What was tried", _tried_words(trials))]
    if trials.fitted:
        found.append(Paragraph("The cutoffs", _cutoff_words(trials)))
    if trials.scored:
        found.append(Paragraph(GAINS, gain_words(trials)))
    return found


def gain_words(trials: Trials) -> str:
    """Returns over what FORGrad gains on pictures that no cutoff was chosen on, and over what not."""
    rows, metric = trials.before_after()
    if not rows:
        return "No attribution was scored with a fitted cutoff."
    numbers = sorted({row["over none"]["n"] for row in rows if row.get("over none")})
    pictures = count(numbers[-1], "picture") if numbers else "the pictures"
    n = f"{numbers[0]} to {pictures}" if len(numbers) > 1 else pictures
    sentences = [f"In {plain(metric, 60)}, on {n} that no cutoff was chosen on, 95 % intervals of paired differences."]
    sentences += [_against(rows, name) for name in AGAINST if any(row.get(f"over {name}") for row in rows)]
    return " ".join(filter(None, [*sentences, _most(rows)]))


def _tried_words(trials: Trials) -> str:
    fits = [fit for trial in trials.trials for fit in trial.fits.values()]
    methods = list(dict.fromkeys(method for trial in trials.trials for method in trial.fits))
    used = count(len([trial for trial in trials.trials if not trial.reason]), "variant")
    what = f"{used} of {isolated(model_of(trials), 200)}"
    sentences = []
    if fits:
        selected = sorted({len(fit.pictures) for fit in fits})
        on = f"{selected[0]} to {selected[-1]:,} pictures" if len(selected) > 1 else count(selected[0], "picture")
        how = dict.fromkeys(f"a {fit.shape} in the {fit.where} by {plain(fit.metric, 80)}" for fit in fits)
        sentences.append(
            f"Low-pass filters for {listed([isolated(name, 60) for name in methods], 13)} on {what}: the cutoff of "
            f"each was chosen on {on} ({listed(list(how), 3)})."
        )
    if trials.scored:
        scored = sorted({len(scores.pictures) for scores in trials.scored.values()})
        sentences.append(f"Maps without and with the filter were scored on {count(scored[-1], 'other picture')}.")
    if lost := failures(trials):
        sentences.append(f"{count(len(lost), 'case')} could not be tried; the reasons stand below.")
    return " ".join(sentences)


def _cutoff_words(trials: Trials) -> str:
    table = trials.table()
    fitted: Any = table[table["n"].notna()]
    flat = int(fitted["flat"].astype(bool).sum())
    chosen = [value for value in fitted["cutoff"] if known(value)]
    ends = " to ".join(dict.fromkeys(map(_cutoff, (min(chosen), max(chosen))))) if chosen else ""
    without = len(fitted) - len(chosen)
    best = f"best at {ends} cycles/image" if chosen else "best without a filter"
    sentences = [f"{count(len(fitted), 'curve')}, {best}."]
    if without and chosen:
        sentences.append(f"In {count(without, 'case')} the best is no filter.")
    if least := sum(fit.argmax == _least(fit) for trial in trials.trials for fit in trial.fits.values()):
        sentences.append(f"In {count(least, 'case')} it is the smallest that was tried.")
    if flat:
        sentences.append(
            f"{count(flat, 'curve')} {'is' if flat == 1 else 'are'} flat: which cutoff is chosen there is chance."
        )
    return " ".join(sentences)


def _least(fit: CutoffFit) -> float:
    return min((cutoff for cutoff in fit.cutoffs if cutoff is not None), default=math.inf)


def _against(rows: Sequence[Row], name: str) -> str:
    """In how many cases the interval of the gain lies above zero, below it, and on both sides."""
    found = [row[f"over {name}"] for row in rows if row.get(f"over {name}") and known(row[f"over {name}"]["mean"])]
    if not found:
        return ""
    better = sum(gain["low"] > 0 for gain in found)
    worse = sum(gain["high"] < 0 for gain in found)
    apart = len(found) - better - worse
    nothing = "" if better else " nothing is gained"
    cases = f"better in {better} of {count(len(found), 'case')}, worse in {worse}, not told apart in {apart}"
    return f"Over {_RIVALS[name]}{nothing}: {cases}."


def _most(rows: Sequence[Row]) -> str:
    """The largest gain over no filter that its interval tells from zero."""
    sure = [row for row in rows if row.get("over none") and row["over none"]["low"] > 0]
    if not sure:
        return ""
    row = max(sure, key=lambda row: row["over none"]["mean"])
    gain = row["over none"]
    return (
        f"Most over no filter: {isolated(row['method'], 60)} on {isolated(row['variant'], 60)}, {interval(gain)} "
        f"(n = {gain['n']:,})."
    )


def interval(gain: Mapping[Any, Any], mean: str = "mean") -> str:
    """Returns a gain with its interval.

    Example:
        >>> interval({"mean": 0.05, "low": -0.01, "high": 0.1})
        '+0.050 [−0.010,\xa0+0.100]'
    """
    if not known(gain[mean]):
        return MISSING
    if not (known(gain["low"]) and known(gain["high"])):
        return number(gain[mean], signed=True)
    ends = f"[{number(gain['low'], signed=True)},\N{NO-BREAK SPACE}{number(gain['high'], signed=True)}]"
    return f"{number(gain[mean], signed=True)} {ends}"


def model_of(trials: Trials) -> str:
    """Returns the network's name."""
    return plain(trials.spec.get("model", "a network"), _NAME)


def _cutoff(value: float) -> str:
    return f"{value:.3g}"


# ---- figures ---------------------------------------------------------------------------------


def curve_figures(trials: Trials) -> list[Picture]:
    """Returns the curves of every variant, all of its methods in one figure."""
    return [figures.cutoffs(trial, place) for place, trial in enumerate(trials.trials, 1) if trial.fits]


def score_figures(trials: Trials, *, in_full: bool) -> list[Picture]:
    """Returns the gains of every variant; on request also slopes, times and maps before and after."""
    metric = trials.before_after()[1]
    found = []
    for place, trial in enumerate(trials.trials, 1):
        if trial.scores is not None:
            found.append(figures.gains(trial, metric, place))
            if in_full:
                found += figures.scores(trial, metric, place)
    return found


# ---- tables ----------------------------------------------------------------------------------


def fits_table(trials: Trials) -> Table:
    """Returns a row for each fit."""
    columns = [Column("variant", "name"), Column("method")]
    columns += [Column(head, "number") for head in ("cutoff", "one-se cutoff", "no filter", "abs only", "best")]
    columns += [Column("gain over no filter", "interval"), Column("pictures", "number"), Column("curve")]
    columns += [Column(head, "number") for head in ("spectral cutoff", "forward passes", "accuracy")]
    table = trials.table()
    fitted: Any = table[table["n"].notna()]
    rows = [
        [
            text(row["variant"]), text(row["method"]), _radius(row["cutoff"]), _radius(row["one_se"]),
            digits(row["unfiltered"]), digits(row["abs"]), digits(row["best"]), _gain(row, "gain"), whole(row["n"]),
            text("flat" if row["flat"] else ""), _radius(row["spectral"], MISSING), whole(row["forwards"]),
            _share(row["accuracy"]),
        ]
        for row in fitted.to_dict("records")
    ]  # fmt: skip
    caption = (
        "Cutoffs in cycles/image with the best mean score, on the pictures that they were chosen on: the gain over no "
        "filter with its 95 % interval flatters them. One-se: the mildest filter within one standard error of the best."
    )
    return without_empty(Table("fits-table", caption, columns, rows))


def before_after_table(trials: Trials) -> Table:
    """Returns a row for each FORGrad on the pictures that no cutoff was chosen on."""
    rows, metric = trials.before_after()
    columns = [Column("variant", "name"), Column("method"), Column("filtered")]
    columns += [Column(head, "number") for head in ("cutoff", "no filter", "abs only", "FORGrad")]
    columns += [Column(head, "interval") for head in _HEADS.values()]
    columns += [Column("pictures", "number"), Column("accuracy", "number")]
    cells = [
        [
            text(row["variant"]), text(row["method"]), text("gradient" if "gradient" in row["arm"] else "map"),
            _radius(row["cutoff"]), digits(row.get("none", math.nan)), digits(row.get("abs", math.nan)),
            digits(row["filtered"]), *(_gain(row.get(f"over {name}")) for name in AGAINST),
            whole((row.get("over none") or {}).get("n")), _share(row["accuracy"]),
        ]
        for row in rows
    ]  # fmt: skip
    caption = (
        f"{plain(metric, 60)} on pictures that no cutoff was chosen on, mean without and with the filter, and paired "
        "gains with 95 % bootstrap intervals over no filter, the magnitude alone, and a fixed blob in the centre."
    )
    return without_empty(Table("before-after-table", caption, columns, cells))


def scores_table(trials: Trials) -> Table:
    """Returns a row for each attribution, arm and control with all metrics."""
    summary = trials.summary()
    metrics = list(dict.fromkeys(name for scores in trials.scored.values() for name in scores.spec["metrics"]))
    columns = [Column("variant", "name"), Column("maps", "name"), Column("family"), Column("cutoff", "number")]
    columns += [Column(plain(name, 60), "number", foreign=True) for name in metrics]
    columns += [Column("pictures", "number"), Column("s / 100 maps", "number"), Column("note", "prose")]
    rows = [
        [
            text(row["variant"]), text(row["name"]), text(row["family"]), _radius(row["cutoff"], ""),
            *(_measured(row, name) for name in metrics), whole(row.get(f"{metrics[0]} n")),
            digits(row["seconds per 100"], 2), text(row["note"]),
        ]
        for row in summary.to_dict("records")
    ]  # fmt: skip
    caption = (
        "All maps that were scored, mean over pictures ± standard error; * FORGrad with the fitted cutoff, † the arms "
        "beside it, and maps that know no network."
    )
    return without_empty(Table("scores-table", caption, columns, rows))


def failures_table(trials: Trials) -> Table:
    """Returns what could not be tried and why."""
    columns = [Column("variant", "name"), Column("method", "name"), Column("reason", "prose")]
    rows = [[text(variant), text(method), text(reason)] for variant, method, reason in failures(trials)]
    return Table("failures-table", "What could not be tried, and why.", columns, rows)


def spectral_table(trials: Trials) -> Table:
    """Returns the cutoff that results from each variant's spectrum, and how."""
    columns = [Column("variant", "name"), Column("cutoff", "number"), Column("how", "prose")]
    rows = [
        [text(trial.variant), _radius(trial.spectral, MISSING), text(trial.spectral_how)]
        for trial in trials.trials
        if trial.spectral_how
    ]
    return Table("spectral-table", "Cutoffs that result from the spectra alone, without a score.", columns, rows)


def used_pictures(trials: Trials, most: int = 1000) -> Table:
    """Returns the pictures, and what each was used for."""
    used: dict[str, str] = {}
    for trial in trials.trials:
        used |= {name: "to choose cutoffs" for fit in trial.fits.values() for name in fit.pictures}
    for scores in trials.scored.values():
        used |= dict.fromkeys(scores.pictures, "to report")
    rest = f"; {len(used) - most:,} more stand in the files" if len(used) > most else ""
    rows = [[whole(k), text(name), text(what)] for k, (name, what) in enumerate(list(used.items())[:most], 1)]
    columns = [Column("#", "number"), Column("picture", "name"), Column("used")]
    return Table("used-pictures-table", f"The pictures, and what each was used for{rest}.", columns, rows)


def _radius(value: Any, none: str = "none") -> Cell:
    return Cell(_cutoff(value), float(value)) if known(value) else Cell(none, math.inf if none == "none" else None)


def _gain(gain: Mapping[Any, Any] | None, mean: str = "mean") -> Cell:
    if gain is None or not known(gain[mean]):
        return Cell(MISSING)
    return Cell(interval(gain, mean), float(gain[mean]))


def _share(value: Any) -> Cell:
    return Cell(percent(value), float(value) if known(value) else None)


def _measured(row: Row, metric: str) -> Cell:
    value, error = row.get(metric), row.get(f"{metric} se")
    said = number(value) + (f" ± {number(error)}" if known(value) and known(error) else "")
    return Cell(said, float(value) if value is not None and known(value) else None)


# ---- caveats ---------------------------------------------------------------------------------


def trial_caveats(trials: Trials) -> list[str]:
    """Returns the sentences on what these numbers do not show, those that apply."""
    flat = any(fit.flat for trial in trials.trials for fit in trial.fits.values())
    elsewhere = "" if trials.scored else " `gradspec evaluate` gives them."
    lines = {
        f"Gains on the pictures that a cutoff was chosen on flatter it: read those on other pictures.{elsewhere}": bool(
            trials.fitted
        ),
        "A flat curve tells no cutoff from the others: its best one is chance.": flat,
        "A blob in the centre that knows no network is a rival: where objects lie in the centre, a gain over no filter "
        "that is none over the centre prior says little about the network.": bool(trials.scored),
        "Variants without retraining name fewer pictures rightly: read their scores beside their accuracy.": (
            len(trials.trials) > 1
        ),
        "Intervals are of single comparisons: of twenty, one leaves zero out by chance.": bool(trials.scored),
    }
    return [line for line, applies in lines.items() if applies]


def trial_terms() -> list[tuple[str, str]]:
    """Returns what the numbers mean."""
    return [
        ("cutoff", "Of the low-pass filter, in cycles per image: higher frequencies are taken out. None: no filter."),
        (
            "faithfulness",
            "Insertion less deletion: how much faster the label's probability rises when the pixels that a map calls "
            "important appear first than it falls when they go first. Higher is better.",
        ),
        ("abs only", "The map's channel mean and magnitude without a filter: what FORGrad does beside filtering."),
        ("centre prior", "One fixed blob in the centre of every picture, the same for every network."),
        ("spectral cutoff", "Where the spectrum of the gradient at the input leaves its average-pooled twin's."),
        ("[ , ]", "A 95 % bootstrap interval of the mean paired difference over pictures."),
    ]

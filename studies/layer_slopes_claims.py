"""What `layer_slopes.py` claims about a profile, as numbers of every picture: means, 95 % intervals and verdicts.

The frames have a row for each variant, operator call, point and picture: `variant`, `call`, `type`, `kind`, `point`,
`order` (of execution), `height`, `picture`, `slope` (log10 amplitude per Nyquist), `share` (of the power above half
Nyquist), `excess` (over white noise's share on the same grid), `new_power` (of the call, at its input).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

Frame = Any  # pandas.DataFrame, whose stubs do not follow a selection
MEASURES = ("slope", "share")
COMPLEXITIES = ("laplacian", "png", "jpeg")
FILLED = "filled"  # share of pixels that are not exactly zero: what a lossless coder sees first
SHRINKS = 1.5  # an operator whose input has so many times its output's height samples down
FEWEST = 5  # points of a stage that a spread or a rank correlation is taken of
PICTURES = 5  # that a verdict takes


class Interval(NamedTuple):
    """Mean, standard error and 95 % interval (Student's t) over `n` pictures."""

    mean: float
    se: float
    low: float
    high: float
    n: int


class Claim(NamedTuple):
    """A quantity of every picture, and the sign that the paper expects of it: ">0", "<0", or "" for none."""

    claim: str
    variant: str
    quantity: str
    expected: str
    values: Any


def interval(values: Any) -> Interval:
    """Returns the interval of the mean of what is finite.

    Example:
        >>> interval([1.0, 2.0, 3.0, math.nan]).n, round(interval([1.0, 2.0, 3.0]).low, 2)
        (3, -0.48)
    """
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    n, mean = len(found), float(found.mean()) if len(found) else math.nan
    se = float(found.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    half = float(special.stdtrit(n - 1, 0.975)) * se if n > 1 else math.nan
    return Interval(mean, se, mean - half, mean + half, n)


def verdict(expected: str, found: Interval) -> str:
    """Returns "yes" or "no" where the interval decides on the expected sign, else "undecided"; "" if none is expected.

    Of fewer than five pictures it returns "few", whatever the interval.

    Example:
        >>> [verdict(">0", Interval(1.0, 0.1, 0.8, 1.2, n)) for n in (8, 3)]
        ['yes', 'few']
    """
    if not expected or found.n < PICTURES:
        return "few" if expected else ""
    sign = (found.low > 0) - (found.high < 0)
    return "undecided" if sign == 0 else "yes" if {">0": 1, "<0": -1}[expected] == sign else "no"


def claims_table(claims: Iterator[Claim]) -> pd.DataFrame:
    """Returns the claims with their intervals and verdicts; what no picture has a number for is left out."""
    rows = []
    for one in claims:
        found = interval(one.values)
        if found.n:
            rows.append({**one._asdict(), **found._asdict(), "holds": verdict(one.expected, found)})
    columns = ["claim", "variant", "quantity", "expected", *Interval._fields, "holds"]
    return pd.DataFrame(rows, columns=columns)


# ---- operators -------------------------------------------------------------------------------


def operators(frame: Frame) -> Frame:
    """Returns a row for each variant, call and picture: how the gradient's slope and share change on the way through.

    `slope_change`, `share_change`: at the input less at the output; `downsampling`: whether the map shrinks there.
    """
    keys = ["variant", "call", "type", "kind", "picture"]
    ends = [frame[frame["point"] == point] for point in ("input", "output")]
    both = ends[0].merge(ends[1], on=keys, suffixes=("", "_output"))
    both["downsampling"] = both["height"] >= SHRINKS * both["height_output"]
    for measure in MEASURES:
        both[f"{measure}_change"] = both[measure] - both[f"{measure}_output"]
    columns = [*keys, "order", "height", "height_output", "downsampling", "new_power", "slope_change", "share_change"]
    return both[columns].rename(columns={"height_output": "from_height", "height": "to_height"})


def grouped(changes: Frame, by: list[str]) -> Frame:
    """Returns mean, standard error, interval and n over pictures of the three changes, for each group of calls.

    Args:
        changes: Of `operators`.
        by: Columns of it; the calls of a group are averaged in each picture first.
    """
    rows = []
    for key, group in changes.groupby(by, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, key, strict=True)) | {"calls": group["call"].nunique()}
        means = group.groupby("picture")[["new_power", "slope_change", "share_change"]].mean()
        for name in means:
            found = interval(means[name])
            row |= {f"{name}" if end == "mean" else f"{name}_{end}": value for end, value in found._asdict().items()}
        rows.append(row)
    return pd.DataFrame(rows)


def downsampling_claims(name: str, changes: Frame) -> Iterator[Claim]:
    """(a): downsampling operators against all others, in every picture; (d): what convolutions do to the slope."""
    for column in ("new_power", "slope_change", "share_change"):
        known = changes.dropna(subset=[column])
        shrink, other = known[known["downsampling"]], known[~known["downsampling"]]
        means = [part.groupby("picture")[column].mean() for part in (shrink, other)]
        yield Claim("a", name, f"{column} of downsampling operators", ">0", means[0])
        yield Claim("a", name, f"{column} of all others", "", means[1])
        yield Claim("a", name, f"{column}: downsampling less others", ">0", means[0] - means[1])
        most = [part.groupby("picture")[column].max() for part in (shrink, other)]
        yield Claim("a", name, f"{column}: largest of downsampling less largest of others", ">0", most[0] - most[1])
    inside = changes[~changes["downsampling"]]
    for kind, group in inside[inside["kind"].str.contains("convolution")].groupby("kind"):
        yield Claim("d", name, f"slope_change of {kind}s", "<0", group.groupby("picture")["slope_change"].mean())
    for kind, group in inside[inside["type"].isin(["attention", "activation"])].groupby("kind"):
        yield Claim("f", name, f"slope_change of {kind}s", "", group.groupby("picture")["slope_change"].mean())


# ---- stages ----------------------------------------------------------------------------------


def stages(frame: Frame) -> Frame:
    """Returns a row for each picture and map size, from the prediction on: mean, spread, range and drift of the slope.

    A stage is the points of one map size; its drift is the last slope less the first as the gradient goes.
    """
    rows = []
    ordered = frame.sort_values("order", ascending=False)
    for (picture, height), points in ordered.dropna(subset=["slope"]).groupby(["picture", "height"]):
        slope = points["slope"].to_numpy()
        facts: dict[str, Any] = {"picture": picture, "height": height, "points": len(points), "slope": slope.mean()}
        facts |= {"share": points["share"].mean(), "excess": points["excess"].mean()}
        if len(points) >= FEWEST:
            facts |= {"spread": slope.std(), "range": np.ptp(slope), "drift": slope[-1] - slope[0]}
        rows.append(facts)
    columns = ["picture", "height", "points", "slope", "share", "excess", "spread", "range", "drift"]
    return pd.DataFrame(rows, columns=columns)


def stage_claims(name: str, frame: Frame, changes: Frame) -> Iterator[Claim]:
    """(b): spread inside stages against jumps between; (c): the trend from the prediction to the input."""
    parts = stages(frame)
    jumps = changes[changes["downsampling"]].groupby("picture")["slope_change"].mean()
    for what in ("spread", "range", "drift"):
        yield Claim("b", name, f"{what} of the slope inside a stage", "", parts.groupby("picture")[what].mean())
    for what in ("spread", "range"):
        inside = parts.groupby("picture")[what].mean()
        yield Claim("b", name, f"slope jump at downsampling less {what} inside a stage", ">0", jumps - inside)
    for measure in ("slope", "excess"):
        if parts["height"].nunique() > 2:
            steps = parts.groupby("picture").apply(_trend, measure)
            yield Claim("c", name, f"{measure}: trend per doubling of the map, means of stages", ">0", steps)
        known = frame.dropna(subset=[measure])
        ranks = known.groupby("picture").apply(lambda points, m=measure: spearman(-points["order"], points[m]))
        yield Claim("c", name, f"{measure}: rank correlation with the way from the prediction", ">0", ranks)
        ends = known.groupby("picture").apply(_ends, measure)
        yield Claim("c", name, f"{measure}: last quarter of points less first", ">0", ends)


def _trend(parts: Frame, measure: str) -> float:
    return float(np.polyfit(np.log2(parts["height"].astype(float)), parts[measure], 1)[0])


def _ends(points: Frame, measure: str) -> float:
    values = points.sort_values("order", ascending=False)[measure].to_numpy()
    quarter = max(1, len(values) // 4)
    return float(values[-quarter:].mean() - values[:quarter].mean())


def spearman(first: Any, second: Any) -> float:
    """Returns the rank correlation of the pairs that are finite; NaN for fewer than three, or where one is constant.

    Example:
        >>> spearman([1, 2, 3, math.nan], [2, 4, 8, 0])
        1.0
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return round(float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]), 12)


# ---- variants --------------------------------------------------------------------------------


def beside(frame: Frame, first: str, other: str) -> Frame:
    """Returns the points that two variants have in common, in each picture, columns of the other ending in "_other"."""
    keys = ["call", "point", "picture"]
    left, right = (frame[frame["variant"] == name] for name in (first, other))
    return left.merge(right, on=keys, suffixes=("", "_other"))


def variant_claims(claim: str, frame: Frame, first: str, other: str, expected: str) -> Iterator[Claim]:
    """(e), (g): the profile of another variant beside the first's: how alike, and how much higher or lower."""
    both = beside(frame, first, other)
    if both.empty:
        return
    for measure in MEASURES:
        known = both.dropna(subset=[measure, f"{measure}_other"])
        alike = known.groupby("picture").apply(lambda points, m=measure: points[m].corr(points[f"{m}_other"]))
        yield Claim(claim, other, f"{measure}: correlation of the profile with {first}'s", ">0", alike)
        known = known.assign(gap=known[f"{measure}_other"] - known[measure])
        gap = known.groupby("picture")["gap"].mean()
        yield Claim(claim, other, f"{measure}: {other} less {first}, mean of all points", expected, gap)
        at_input = known[known["call"] == "input"].groupby("picture")["gap"].mean()
        yield Claim(claim, other, f"{measure}: {other} less {first}, at the network's input", expected, at_input)


def training_claims(changes: Frame, trained: str, untrained: str) -> Iterator[Claim]:
    """(e): what downsampling operators add after training, also as a share of what they add before it.

    The share is a ratio of means over pictures, its interval that of the linearised ratio (delta method); it is left
    out where the interval of the untrained network's own mean is not above 0.
    """
    shrink = changes[changes["downsampling"]].groupby(["variant", "picture"])
    for column in ("new_power", "slope_change"):
        means = shrink[column].mean().unstack("variant")
        if trained not in means:
            continue
        yield Claim("e", trained, f"{column} of downsampling operators, after training", ">0", means[trained])
        if untrained in means and interval(means[untrained].dropna()).low > 0:
            yield Claim(
                "e", trained, f"{column} of downsampling operators, as a share of {untrained}'s", "",
                ratio(means[trained], means[untrained]),
            )  # fmt: skip


def ratio(above: Any, below: Any) -> np.ndarray:
    """Returns values of each pair whose mean is the ratio of the means, and whose standard error is that ratio's.

    Example:
        >>> ratio([1, 2, 3], [2, 4, 6]), float(ratio([1, 3], [1, 1]).mean())
        (array([0.5, 0.5, 0.5]), 2.0)
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if not len(a):
        return a
    whole = a.mean() / b.mean()
    return whole + (a - whole * b) / b.mean()


def jump_claims(changes: Frame, first: str, other: str) -> Iterator[Claim]:
    """(g): what downsampling operators do in a variant, less what they do in the first."""
    shrink = changes[changes["downsampling"]].groupby(["variant", "picture"])
    for column in ("new_power", "slope_change", "share_change"):
        means = shrink[column].mean().unstack("variant")
        if {first, other} <= set(means):
            yield Claim(
                "g", other, f"{column} of downsampling: {other} less {first}", "<0", means[other] - means[first]
            )


def complexity_claims(frame: Frame, first: str, others: dict[str, str]) -> Iterator[Claim]:
    """(h): rank correlation over layers of slope and share with each complexity, and how variants differ by both.

    Args:
        frame: With columns `laplacian`, `png`, `jpeg` (relative to white noise of the same size).
        first: The reference.
        others: Variant -> the sign that the paper expects of its difference from the first.
    """
    inputs = frame[frame["point"] == "input"]  # each operator once
    for name, part in inputs.groupby("variant", sort=False):
        for measure in MEASURES:
            for complexity in COMPLEXITIES:
                quantity = f"rank correlation of {measure} and {complexity}"
                pairs = part.groupby("picture")
                ranks = pairs.apply(lambda points, m=measure, c=complexity: spearman(points[m], points[c]))
                yield Claim("h", str(name), f"{quantity} over layers", ">0", ranks)
                inside = part.groupby(["picture", "height"]).filter(lambda points: len(points) >= FEWEST)
                sizes = inside.groupby(["picture", "height"])
                ranks = sizes.apply(lambda points, m=measure, c=complexity: spearman(points[m], points[c]))
                yield Claim("h", str(name), f"{quantity}, mean inside stages", ">0", ranks.groupby("picture").mean())
        for complexity in COMPLEXITIES:
            ranks = part.groupby("picture").apply(lambda points, c=complexity: spearman(points[FILLED], points[c]))
            yield Claim("h", str(name), f"rank correlation of pixels that are not 0 and {complexity}", "", ranks)
    for other, expected in others.items():
        both = beside(inputs, first, other)
        for measure in (*MEASURES, *COMPLEXITIES, FILLED) if len(both) else ():
            gap = both.assign(gap=both[f"{measure}_other"] - both[measure]).groupby("picture")["gap"].mean()
            sign = "" if measure == FILLED else expected
            yield Claim("h", other, f"{measure}: {other} less {first}, same points and pictures", sign, gap)

"""How sure a difference is: paired bootstrap intervals and Bayes factors, each with its n and its design (SPEC §6).

BF10 is how many times likelier the data are where there is an effect. The paper calls 10 and more strong, 5 and more
substantial, under 0.5 a lack of effect (A.6). The BIC's (Masson 2011, Behavior Research Methods; Wagenmakers 2007)
needs no prior and turns on what is counted as n; the JZS factor (Rouder et al. 2009, Psychonomic Bulletin & Review)
stands beside it. The paper's own come with sampling errors, which the BIC has not, so neither can reproduce them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gradspec._checks import check_whole

if TYPE_CHECKING:
    import pandas as pd

Values = Tensor | np.ndarray | Sequence[float]

FEWEST_BCA = 10  # values of which acceleration and bias are estimated; under that many, percentiles
WIDTH = math.sqrt(2) / 2  # r of the JZS prior: the default of BayesFactor, JASP and pingouin


@dataclass(frozen=True)
class BayesFactor:
    """BF10, with what it was computed of.

    Attributes:
        log10: Its decimal logarithm, which does not overflow; NaN where it is not defined.
        design: What was compared with what, in words.
        n: How many observations count.
        k: Free parameters of the mean under the null and under the alternative.
        missing: Pairs or cells that were left out because one of their values is not finite or not there.

    Example:
        >>> float(BayesFactor(2.0, "by hand", 10, (0, 1))), BayesFactor(2.0, "by hand", 10, (0, 1)).verdict
        (100.0, 'strong')
    """

    log10: float
    design: str
    n: int
    k: tuple[int, int]
    missing: int = 0

    def __float__(self) -> float:
        return math.inf if self.log10 > 308 else 10.0**self.log10

    @property
    def bf10(self) -> float:
        """The factor itself, infinite above 1e308."""
        return float(self)

    @property
    def verdict(self) -> str:
        """The paper's word for it (A.6): "strong", "substantial", "no effect", else "undecided"."""
        if math.isnan(self.log10):
            return "undefined"
        words = (10, "strong"), (5, "substantial"), (0.5, "undecided")
        return next((word for least, word in words if float(self) >= least), "no effect")


@dataclass(frozen=True)
class Paired:
    """What differences between two values of the same pictures say.

    Attributes:
        n: Pairs of which both values are finite.
        mean: Of the differences a - b.
        se: Standard error of the mean, NaN for one pair.
        low: Lower end of the bootstrap interval of the mean.
        high: Upper end.
        bf10: JZS Bayes factor of a mean that is not zero, `jzs_bf10`.
        effect: Mean over standard deviation of the differences (Cohen's d_z).
        missing: Pairs that were left out.
        level: Of the interval.
        design: In words.
    """

    n: int
    mean: float
    se: float
    low: float
    high: float
    bf10: float
    effect: float
    missing: int
    level: float
    design: str


def paired(a: Values, b: Values, *, level: float = 0.95, samples: int = 2000, seed: int = 0) -> Paired:
    """Returns what the differences a − b of paired values say: mean, error, interval, Bayes factor, effect size.

    A pair of which one value is NaN or infinite is left out and counted.

    Args:
        a: One value for each picture (N,).
        b: The other values of the same pictures (N,), in the same order.
        level: Of the bootstrap interval (`bootstrap_interval`).
        samples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: For values of another shape, a level that is not between 0 and 1.

    Example:
        >>> found = paired([1.0, 2.0, 4.0, math.nan], [0.0, 1.0, 2.0, 3.0])
        >>> found.n, found.missing, round(found.mean, 3), round(found.se, 3)
        (3, 1, 1.333, 0.333)
    """
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise ValueError(f"Expected as many values as their twins, got {len(first)} and {len(second)}.")
    with np.errstate(invalid="ignore"):  # inf - inf
        differences = first - second
    kept = differences[np.isfinite(differences)]
    n = len(kept)
    mean, spread = (float(kept.mean()) if n else math.nan), _spread(kept)
    low, high = bootstrap_interval(kept, level=level, samples=samples, seed=seed)
    effect = math.nan if not spread > 0 else mean / spread
    design = f"paired differences of {n} pictures; {_interval_words(n, level)}; {_jzs_words(WIDTH)}"
    error = spread / math.sqrt(n) if n else math.nan
    bf10 = float(jzs_bf10(kept))
    return Paired(n, mean, error, low, high, bf10, effect, len(differences) - n, level, design)


def bootstrap_interval(
    values: Values, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the ends of a bootstrap interval of the mean: BCa (Efron 1987) of ten values or more, else percentiles.

    It is `scipy.stats.bootstrap`'s; resampling differences of pairs is the paired bootstrap. Percentiles, too, where
    bias and acceleration cannot be estimated. Of equal values it is that value twice, of a single one NaN.

    Args:
        values: One for each picture (N,); those that are not finite are left out.
        level: Between 0 and 1.
        samples: Bootstrap samples.
        seed: Of their draw.

    Raises:
        ValueError: For values of more dimensions, another level, fewer than two samples.

    Example:
        >>> bootstrap_interval([2.0, 2.0, 2.0]), bootstrap_interval([1.0])
        ((2.0, 2.0), (nan, nan))
    """
    check_whole(2, samples=samples)
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, got {level}.")
    found = _values(values)
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return math.nan, math.nan
    if (found == found[0]).all():
        return float(found[0]), float(found[0])
    ends = (math.nan, math.nan)
    if len(found) >= FEWEST_BCA:
        ends = _bootstrapped(found, "BCa", level, samples, seed)
    return ends if all(map(math.isfinite, ends)) else _bootstrapped(found, "percentile", level, samples, seed)


def _bootstrapped(values: np.ndarray, method: Any, level: float, samples: int, seed: int) -> tuple[float, float]:
    import warnings

    from scipy import stats

    bootstrap: Any = stats.bootstrap  # its `random_state` is called `rng` from scipy 1.15 on, and taken by both names

    with warnings.catch_warnings():  # of what cannot be estimated: the caller takes percentiles then
        warnings.simplefilter("ignore")
        found = bootstrap(
            (values,), np.mean, confidence_level=level, n_resamples=samples, method=method, vectorized=True,
            batch=max(1, 2**22 // len(values)), random_state=np.random.default_rng(seed),
        )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def jzs_bf10(differences: Values, r: float = WIDTH) -> BayesFactor:
    """Returns the JZS factor of a paired t test: a mean difference that is not zero against zero (Rouder 2009, eq. 1).

    Under the alternative the effect size has a Cauchy prior of width r, the variance Jeffreys's. The integral over g is
    done over ln g, where its integrand is smooth and falls off exponentially at both ends: the trapezoid rule is exact
    to rounding, also where the factor overflows.

    Args:
        differences: One for each pair (N,); those that are not finite are left out and counted.
        r: Width of the prior, above 0.

    Raises:
        ValueError: For another width.

    Example:
        >>> round(float(jzs_bf10([1.0, 2.0, 0.5, 1.5, 1.2])), 2), round(float(jzs_bf10([1.0, -1.0, 0.5, -0.5])), 3)
        (8.49, 0.428)
    """
    if not r > 0:
        raise ValueError(f"Expected a prior width r above 0, got {r}.")
    values = _values(differences)
    kept = values[np.isfinite(values)]
    n, spread = len(kept), _spread(kept)
    about = f"{n} paired differences against 0; {_jzs_words(r)}", n, (0, 1), len(values) - n
    if not spread > 0:  # one pair, or all alike: there is no t
        return BayesFactor(math.nan, *about)
    freedom, ratio = n - 1, float(kept.mean()) ** 2 / spread**2 * n  # t²
    log_g = np.linspace(-8, math.log1p(ratio / (n * r**2)) + 45, 20001)
    shrunk = np.log1p(n * r**2 * np.exp(log_g))
    log_data = (n / 2) * (math.log1p(ratio / freedom) - np.log1p(ratio / freedom * np.exp(-shrunk)))
    log_prior = -0.5 * (math.log(2 * math.pi) + log_g + np.exp(-log_g))  # of inverse chi² in ln g
    terms = log_data - shrunk / 2 + log_prior
    peak = float(terms.max())
    total = peak + math.log(np.exp(terms - peak).sum() * (log_g[1] - log_g[0]))
    return BayesFactor(total / math.log(10), *about)


def bic_bf10(
    table: pd.DataFrame, *, value: str = "value", factor: str = "stage", blocks: Sequence[str] = ("model", "method"),
    within: bool = False,
) -> BayesFactor:  # fmt: skip
    """Returns the BIC's factor of a fixed effect (Masson 2011): BF10 = exp(−ΔBIC / 2).

    ΔBIC = n ln(SSE1 / SSE0) + (k1 − k0) ln n, of least squares on dummies. Null: value ~ blocks; the alternative adds
    the factor. The paper takes models as a random term; here they are blocks like the methods. n are the values. With
    `within` each cell of the blocks is a subject of its own, measured once at each of c levels: n = cells · (c − 1).

    Args:
        table: A value for each cell of the blocks and each level of the factor. Cells that lack one or have one that is
            not finite are left out and counted.
        value: Column of the values.
        factor: Column of the factor, say before and after.
        blocks: Columns of what is held fixed.
        within: One subject for each cell, instead of a main effect for each block.

    Raises:
        ValueError: For columns that the table has not, no blocks, or several values in a cell.

    Example:
        >>> import pandas as pd
        >>> cells = [(m, s, v + 0.1 * (s == "after")) for v, m in enumerate("abc") for s in ("before", "after")]
        >>> table = pd.DataFrame(cells, columns=["method", "stage", "value"])
        >>> found = bic_bf10(table, blocks=["method"])
        >>> found.n, found.k, found.bf10  # the same gain in every cell leaves no error
        (6, (3, 4), inf)
    """
    cells, missing = _cells(table, value, factor, list(blocks))
    levels = cells.shape[1] if cells.size else 0
    observed = cells.to_numpy().ravel()
    n = len(cells) * (levels - 1) if within else len(observed)
    if within:
        counted = f"within subjects, n = {len(cells)} × {max(levels - 1, 0)}"
        design = f"{value} ~ {' × '.join(blocks)} as subjects, + {factor} (BIC, {counted})"
    else:
        design = f"{value} ~ {' + '.join(blocks)} as fixed blocks, + {factor} (BIC, n = {n} values)"
    if len(cells) < 2 or levels < 2:
        return BayesFactor(math.nan, design, n, (0, 0), missing)
    null = _dummies(cells.index.to_frame(index=False), levels, within)
    steps = np.tile(np.eye(levels), (len(cells), 1))
    (sse0, k0), (sse1, k1) = _fit(null, observed), _fit(np.hstack([null, steps]), observed)
    if sse0 == 0 or len(observed) <= k1:  # nothing to explain, or nothing left over
        return BayesFactor(math.nan, design, n, (k0, k1), missing)
    log = math.inf if sse1 == 0 else -(n * math.log(sse1 / sse0) + (k1 - k0) * math.log(n)) / 2
    return BayesFactor(log / math.log(10), design, n, (k0, k1), missing)


def _cells(table: pd.DataFrame, value: str, factor: str, blocks: list[str]) -> tuple[pd.DataFrame, int]:
    """The complete cells, a row each and a column for each level of the factor, and how many were left out."""
    lacking = [name for name in (value, factor, *blocks) if name not in table.columns]
    if lacking or not blocks:
        raise ValueError(f"Expected columns {[value, factor, *blocks]} with at least one block, got none of {lacking}.")
    rows: Any = table[[*blocks, factor, value]]
    if rows.duplicated([*blocks, factor]).any():
        raise ValueError(f"Expected one value for each {' × '.join([*blocks, factor])}, got several: give their means.")
    levels = list(dict.fromkeys(rows[factor]))
    wide = rows.set_index([*blocks, factor])[value].astype(float).unstack(factor)[levels]
    whole = wide[np.isfinite(wide).all(axis=1)]
    return whole, len(wide) - len(whole)


def _dummies(cells: pd.DataFrame, repeats: int, within: bool) -> np.ndarray:
    """Columns of zeros and ones for each block's levels, or for each cell, a row for each value."""
    if within:
        return np.repeat(np.eye(len(cells)), repeats, axis=0)
    columns = [np.ones(len(cells))]
    for name in cells.columns:
        columns += [(cells[name] == level).to_numpy(float) for level in cells[name].unique()]
    return np.repeat(np.stack(columns, 1), repeats, axis=0)


def _fit(columns: np.ndarray, observed: np.ndarray) -> tuple[float, int]:
    """Sum of squared errors of least squares, 0 where rounding alone is left, and the number of free parameters."""
    weights, _, rank, _ = np.linalg.lstsq(columns, observed, rcond=None)
    left = float(np.square(observed - columns @ weights).sum())
    spread = float(np.square(observed).sum())
    return (0.0 if left <= 1e-24 * spread else left), int(rank)


def _values(values: Values) -> np.ndarray:
    found = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if found.ndim != 1:
        raise ValueError(f"Expected one value for each picture (N,), got shape {found.shape}.")
    return found


def _spread(values: np.ndarray) -> float:
    """Standard deviation, exactly 0 of equal values; NaN of a single one."""
    if len(values) < 2:
        return math.nan
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1))


def _interval_words(n: int, level: float) -> str:
    return f"{100 * level:g} % {'BCa' if n >= FEWEST_BCA else 'percentile'} bootstrap interval of the mean"


def _jzs_words(r: float) -> str:
    return f"JZS factor, Cauchy prior r = {r:.3f}, two-sided"

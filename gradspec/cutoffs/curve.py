"""What the scores of the same pictures at several cutoffs say: the best, one as good that filters less, flatness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gradspec.cutoffs.grid import Cutoffs, size

LEVEL = 0.05  # of the test for a flat curve
FLIPS, SEED = 2000, 0  # drawn sign flips that calibrate it
FEW = 12  # pictures, up to which all flips are gone through


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of pictures at several cutoffs; in a race not every picture is scored at every cutoff.

    A picture of which any score that was asked for is NaN (a map that is constant there) is left out at all cutoffs, so
    that means are compared on the same pictures.

    Attributes:
        cutoffs: In cycles/image, None for no filter (K).
        values: (N, K), the higher, the better; NaN where there is no score.
        asked: Which scores were asked for (N, K), bool.

    Example:
        >>> scores = np.array([[0.1, 0.5, 0.2], [0.3, 0.4, 0.3], [0.0, 0.9, np.nan]])
        >>> curve = Curve((None, 8.0, 2.0), scores, np.ones((3, 3), bool))
        >>> curve.n.tolist(), curve.cutoffs[curve.best()], curve.unscored
        ([2, 2, 2], 8.0, 1)
    """

    cutoffs: Cutoffs
    values: np.ndarray
    asked: np.ndarray

    @cached_property
    def counted(self) -> np.ndarray:
        """Which scores count (N, K): those of pictures that have all they were asked for."""
        complete: Any = (np.isfinite(self.values) | ~self.asked).all(axis=1) & self.asked.any(axis=1)
        return self.asked & complete[:, None]

    @property
    def unscored(self) -> int:
        """How many pictures are left out."""
        return int((self.asked.any(1) & ~self.counted.any(1)).sum())

    @property
    def n(self) -> np.ndarray:
        """Pictures that count at each cutoff (K,)."""
        return self.counted.sum(0)

    @property
    def mean(self) -> np.ndarray:
        """Mean score at each cutoff (K,); NaN without a picture."""
        return np.array([_mean(self._column(k)) for k in range(len(self.cutoffs))])

    @property
    def se(self) -> np.ndarray:
        """Standard error of each mean (K,); NaN for fewer than two pictures."""
        return np.array([standard_error(self._column(k)) for k in range(len(self.cutoffs))])

    def _column(self, k: int) -> np.ndarray:
        return self.values[self.counted[:, k], k]

    def ranked(self, among: Sequence[int]) -> list[int]:
        """Returns places of cutoffs by falling mean over the pictures that count at all of them, of equals the largest
        cutoff first.

        Raises:
            ValueError: For no such picture.
        """
        common = self.counted[:, list(among)].all(1)
        if not common.any():
            raise ValueError(_nothing_scored(self))
        means = {k: float(self.values[common, k].mean()) for k in among}
        return sorted(among, key=lambda k: (-means[k], -size(self.cutoffs[k])))

    def best(self, among: Sequence[int] | None = None) -> int:
        """Returns the place of the cutoff with the highest mean; raises as `ranked`."""
        return self.ranked(range(len(self.cutoffs)) if among is None else among)[0]

    def interval(self, among: Sequence[int], level: float, samples: int, seed: int) -> tuple[float, float]:
        """Returns between which cutoffs the best of these places lies when the pictures are drawn anew (bootstrap).

        The least and the largest of the middle `level` of the samples' best cutoffs, no filter as infinity; of equals
        the largest cutoff. Over the pictures that count at all of the places.
        """
        places = sorted(among, key=lambda k: -size(self.cutoffs[k]))
        values = self.values[self.counted[:, places].all(1)][:, places]
        if not len(values):
            raise ValueError(_nothing_scored(self))
        picks = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
        best = np.sort(values[picks].mean(1).argmax(1))[::-1]  # of falling places the cutoffs rise
        cut = int((1 - level) / 2 * samples)
        low, high = (size(self.cutoffs[places[best[k]]]) for k in (cut, samples - 1 - cut))
        return float(low), float(high)

    def one_se(self, best: int) -> int:
        """Returns the place of the largest cutoff whose deficit from the best is within one standard error.

        Deficit and error are of the paired differences, on the pictures that count at both. Not considered are cutoffs
        with fewer than two such pictures, and in a race those with fewer than half of the best one's: the error of a
        handful is so large that what was dropped for being bad would pass.
        """
        return max((k for k in range(len(self.cutoffs)) if self._within(k, best)), key=lambda k: size(self.cutoffs[k]))

    def _within(self, k: int, best: int) -> bool:
        common = self.counted[:, k] & self.counted[:, best]
        deficits = self.values[common, best] - self.values[common, k]
        enough = len(deficits) > 1 and 2 * len(deficits) >= self.n[best]
        return k == best or (enough and float(deficits.mean()) <= standard_error(deficits))

    def flatness(self, rounds: Sequence[Sequence[int]] | None = None) -> tuple[bool, float, str]:
        """Returns whether the cutoffs are not told apart, the test's p, and the test in words.

        Friedman's statistic, that is how far the ranks of the cutoffs, summed over the pictures that count at all of
        them, lie from the middle; not with his χ², which takes any order of the cutoffs for equally likely, while the
        scores of neighbours are alike: it would tell 10 to 20 % of flat curves apart. Instead each picture's ranks are
        turned around or not (r -> K + 1 - r), as they may be where no cutoff is preferred, which leaves what
        neighbours share: in all ways for up to 12 pictures, else in 2000 seeded ones. Of two cutoffs the exact sign
        test. In a race of the cutoffs of each round, the smallest p times the number of rounds.

        Args:
            rounds: Places of the cutoffs that ran in each round; None: all in one.
        """
        groups = [range(len(self.cutoffs))] if rounds is None else rounds
        tests = [_test(self.values[self.counted[:, list(group)].all(1)][:, list(group)]) for group in groups]
        known = [found for found in tests if not math.isnan(found.p)]
        if not known:
            return True, math.nan, tests[0].words
        best = min(known, key=lambda found: found.p)
        p = min(1.0, best.p * len(known))
        among = f", the least of {len(known)} rounds and corrected for it" if len(known) > 1 else ""
        return not p < LEVEL, p, f"{best.words}, p = {p:.2g}{among}"


class _Test(NamedTuple):
    p: float
    words: str


def _test(scores: np.ndarray) -> _Test:
    n, k = scores.shape
    if n < 2:
        return _Test(math.nan, f"{n} picture{'s' * (n != 1)} scored at all {k} cutoffs, a test takes 2")
    on = f"over {k} cutoffs on {n} pictures"
    if k == 2:
        return _Test(_sign_test(scores), f"sign test {on}")
    flips = f"all {2**n} sign flips" if n <= FEW else f"{FLIPS} sign flips of seed {SEED}"
    return _Test(_rank_test(scores), f"Friedman-type rank test {on}, by {flips}")


def _sign_test(scores: np.ndarray) -> float:
    from scipy import stats

    first, second = int((scores[:, 0] > scores[:, 1]).sum()), int((scores[:, 0] < scores[:, 1]).sum())
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def _rank_test(scores: np.ndarray) -> float:
    """p of ‖Σ r‖² among ‖Σ ± r‖², r the ranks in each picture less their mean."""
    from scipy import stats

    n, k = scores.shape
    ranks = 2 * stats.rankdata(scores, axis=1) - (k + 1)  # twice, whole numbers with ties too: sums are exact
    found = np.square(ranks.sum(0)).sum()
    reached = [np.square(signs @ ranks).sum(1) >= found for signs in _flips(n)]
    as_far = np.concatenate([*reached, [True] * (n > FEW)])  # among those that are drawn counts the one that was found
    return float(as_far.mean())


def _flips(n: int) -> Iterator[np.ndarray]:
    """Signs of n pictures, (some, n) at a time: all up to a common one, or draws."""
    if n <= FEW:
        yield 1.0 - 2 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)
        return
    draw, most = np.random.default_rng(SEED), max(1, 2**22 // n)
    for start in range(0, FLIPS, most):
        yield 1.0 - 2 * draw.integers(0, 2, (min(most, FLIPS - start), n))


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of the mean of values (N,), NaN for fewer than two, exactly 0 for equal ones."""
    if len(values) < 2:
        return math.nan
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1) / math.sqrt(len(values)))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _nothing_scored(curve: Curve) -> str:
    asked: Any = curve.asked.any(axis=0)
    never = [c for k, c in enumerate(curve.cutoffs) if asked[k] and not np.isfinite(curve.values[:, k]).any()]
    where = f"at {never} no map is" if never else "each has a cutoff at which its map is not"
    return (
        f"Expected a picture that can be scored at all cutoffs, got none of {int(curve.asked.any(1).sum())}: {where} "
        "scored (constant or not finite); leave those cutoffs out."
    )

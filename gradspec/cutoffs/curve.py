"""What the scores of the same pictures at several cutoffs say: the best, one as good that filters less, flatness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gradspec.cutoffs.grid import Cutoffs, size

LEVEL = 0.05  # of the test for a flat curve


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

    def one_se(self, best: int) -> int:
        """Returns the place of the largest cutoff whose deficit from the best is within one standard error.

        Deficit and error are of the paired differences, on the pictures that count at both: in a race few for a cutoff
        that was dropped early. Cutoffs with fewer than two such pictures are not considered.
        """
        return max((k for k in range(len(self.cutoffs)) if self._within(k, best)), key=lambda k: size(self.cutoffs[k]))

    def _within(self, k: int, best: int) -> bool:
        common = self.counted[:, k] & self.counted[:, best]
        deficits = self.values[common, best] - self.values[common, k]
        return k == best or (len(deficits) > 1 and float(deficits.mean()) <= standard_error(deficits))

    def flatness(self, rounds: Sequence[Sequence[int]] | None = None) -> tuple[bool, float, str]:
        """Returns whether the cutoffs are not told apart, the test's p, and the test in words.

        Friedman's test on the ranks of the cutoffs in each picture that counts at all of them; of two cutoffs the sign
        test, which it is for two. In a race of the cutoffs of each round, the smallest p times the number of rounds.

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
    return _Test(_friedman(scores), f"{'Friedman' if k > 2 else 'sign'} test over {k} cutoffs on {n} pictures")


def _friedman(scores: np.ndarray) -> float:
    from scipy import stats

    if (scores == scores[:, :1]).all():  # nothing but ties, of which the statistic is 0 / 0
        return 1.0
    if scores.shape[1] == 2:
        differences = scores[:, 0] - scores[:, 1]
        return float(stats.binomtest(int((differences > 0).sum()), int((differences != 0).sum())).pvalue)
    return float(stats.friedmanchisquare(*scores.T).pvalue)


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

"""Supplement A.4: how fast SmoothGrad converges, as it should read and as printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradspec._checks import check_whole


def printed_bound(t: Any, n: int, variance: float, lipschitz: float, height: int, width: int) -> np.ndarray:
    """Returns A.4's bound of P(‖SG − E SG‖ ≥ t) as printed: (W + H)·exp(−(t²n²/2) / (V + 2Lt/3)).

    It takes V, the variance of the mean, where the matrix Bernstein inequality for sums has that of the sum, n²·V:
    it is far too small. Not clipped at 1.

    Args:
        t: Thresholds, a number or an array.
        n: Samples in the mean.
        variance: V(SG), of the mean.
        lipschitz: L, the largest norm of a sample.
        height: H.
        width: W.

    Example:
        >>> bool(printed_bound(0.1, 100, 0.01, 1, 1, 1) < 1e-282)  # of 100 draws of ±1
        True
    """
    t = np.asarray(t, dtype=float)
    return (width + height) * np.exp(-(t**2 * n**2 / 2) / (variance + 2 * lipschitz * t / 3))


def bernstein_bound(t: Any, n: int, variance: float, lipschitz: float, height: int, width: int) -> np.ndarray:
    """Returns the bound as it should read (Tropp 2015, theorem 6.1.1): (W + H)·exp(−(t²/2) / (V + 2Lt/(3n))).

    The mean is a sum of terms of norm at most 2L/n. Not clipped at 1.

    Args:
        t: Thresholds, a number or an array.
        n: Samples in the mean.
        variance: V(SG), of the mean.
        lipschitz: L, the largest norm of a sample.
        height: H.
        width: W.

    Example:
        >>> float(bernstein_bound(0.1, 100, 0.01, 1, 1, 1).round(2))
        1.25
    """
    t = np.asarray(t, dtype=float)
    return (width + height) * np.exp(-(t**2 / 2) / (variance + 2 * lipschitz * t / (3 * n)))


def simulated_deviations(n: int, height: int = 1, width: int = 1, *, repeats: int = 10_000, seed: int = 0) -> Tensor:
    """Returns ‖SG − E SG‖ in the spectral norm of the mean of n random matrices, so many times (repeats,), float64.

    The samples are diagonal matrices (H, W) of independent signs: each has norm L = 1, the expectation is 0, V(SG) is
    1/n, and the norm of the mean is the largest of its min(H, W) entries. With H = W = 1 it is the mean of n signs.

    Args:
        n: Samples in the mean.
        height: H.
        width: W.
        repeats: How often.
        seed: Of the signs.

    Example:
        >>> found = simulated_deviations(100)
        >>> abs(float((found >= 0.1).double().mean()) - 0.368) < 0.015  # the binomial's: 0.368
        True
    """
    check_whole(n=n, height=height, width=width, repeats=repeats)
    draw = np.random.default_rng(seed)
    sums = 2 * draw.binomial(n, 0.5, size=(repeats, min(height, width))) - n
    return torch.from_numpy(np.abs(sums).max(1) / n)


@dataclass(frozen=True, eq=False)
class Convergence:
    """How often the mean of n samples is t or more off, beside both bounds; made by `convergence`.

    Attributes:
        thresholds: t (T,).
        frequency: Of the simulation (T,).
        printed: A.4 as printed (T,).
        bernstein: As it should read (T,).
        n: Samples in the mean.
        repeats: Of the simulation.
        shape: H and W.
    """

    thresholds: np.ndarray
    frequency: np.ndarray
    printed: np.ndarray
    bernstein: np.ndarray
    n: int
    repeats: int
    shape: tuple[int, int]


def convergence(
    thresholds: Sequence[float], n: int, height: int = 1, width: int = 1, *, repeats: int = 10_000, seed: int = 0
) -> Convergence:
    """Returns A.4 on trial: simulated frequencies of `simulated_deviations` beside the two bounds, with L = 1, V = 1/n.

    Args:
        thresholds: t.
        n: Samples in the mean.
        height: H.
        width: W.
        repeats: Of the simulation.
        seed: Of the simulation.

    Example:
        >>> found = convergence([0.1], 100)
        >>> bool(found.printed[0] < found.frequency[0] <= found.bernstein[0])
        True
    """
    t = np.asarray(thresholds, dtype=float)
    off = simulated_deviations(n, height, width, repeats=repeats, seed=seed).numpy()
    frequency = (off[None] >= t[:, None]).mean(1)
    case = t, n, 1 / n, 1.0, height, width
    return Convergence(t, frequency, printed_bound(*case), bernstein_bound(*case), n, repeats, (height, width))

"""Supplement A.3: how much of white noise a low-pass filter keeps, as it should read and as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradspec._checks import check_whole
from gradspec.controls.theory.recovery import Hard, check_hard
from gradspec.fourier import low_pass, low_pass_mask

Version = Literal["statement", "proof"]

BATCH = 2**22  # values simulated at a time


def degrees_of_freedom(mask: Tensor) -> int:
    """Returns how many real numbers of a real map (H, W) pass a hard symmetric mask: as many as it has bins.

    A pair of bins (u, v) and (−u, −v) is one complex number, two real ones; DC and the bins at Nyquist that are their
    own mirror images are real, one each. So the M bins of the whole grid are M real numbers.

    Args:
        mask: Zeros and ones (H, W) in FFT order.

    Raises:
        ValueError: For another mask, and one that keeps a bin without its mirror image: the result would not be real.

    Example:
        >>> degrees_of_freedom(low_pass_mask(4, 4, 1)), degrees_of_freedom(low_pass_mask(4, 4, 2))  # 2 is Nyquist
        (5, 11)
    """
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("Expected a mask (H, W) of zeros and ones: smooth filters keep no whole numbers of bins.")
    if not torch.equal(mask, mask.flip(0, 1).roll((1, 1), (0, 1))):
        raise ValueError("Expected a mask that keeps with each bin (u, v) also (-u, -v), as that of real maps.")
    return int(mask.sum())


def kept_share(height: int, width: int, cutoff: float, shape: Hard = "square") -> Any:
    """Returns the distribution of the share of white noise's power that a filter keeps: Beta(M/2, (HW − M)/2).

    For real normal noise of any variance (A.3 as it should read): the M kept numbers and the HW − M others are
    independent normal numbers, whose sums of squares are chi-squared. Its mean is M/HW.

    Args:
        height: H in pixels.
        width: W in pixels.
        cutoff: σ in cycles/image.
        shape: "square" as in the supplement, or "disk".

    Returns:
        A frozen `scipy.stats.beta`: `.pdf`, `.cdf`, `.mean()`.

    Raises:
        ValueError: For a smooth filter, and a cutoff that keeps everything: the share is 1.

    Example:
        >>> kept_share(8, 8, 1).args  # 9 of 64 bins
        (4.5, 27.5)
    """
    from scipy.stats import beta

    check_hard(shape)
    kept = degrees_of_freedom(low_pass_mask(height, width, cutoff, shape))
    if kept == height * width:
        raise ValueError(f"Expected a cutoff that takes something of {height} x {width} maps, got {cutoff}.")
    return beta(kept / 2, (height * width - kept) / 2)


def printed_ratio(height: int, width: int, cutoff: float, version: Version = "statement") -> Any:
    """Returns A.3's distribution of R = ‖F(ε)‖² / ‖F(ε) ⊙ K‖², the inverse of the share, as printed.

    A generalised Beta prime: of (2HW, 4σ², 1, HW/4σ²) in the statement, (HW, 4σ², 1, HW/4σ²) in the proof. It cannot
    be: R is at least 1, since the one norm is part of the other, so that they are not independent; the mask has
    (2σ + 1)² bins; and its Gammas differ in scale, where every bin of white noise has the same, so that R comes out
    about squared. It is given to be shown beside `kept_share` and a simulation.

    Args:
        height: H in pixels.
        width: W in pixels.
        cutoff: σ in cycles/image, above 0.
        version: Which of the two.

    Returns:
        A frozen `scipy.stats.betaprime`.

    Example:
        >>> round(float(printed_ratio(32, 32, 4).mean())), round(float(1 / kept_share(32, 32, 4).mean()), 1)
        (520, 12.6)
    """
    from scipy.stats import betaprime

    if version not in ("statement", "proof"):
        raise ValueError(f"Expected version 'statement' or 'proof', got {version!r}.")
    if not cutoff > 0:
        raise ValueError(f"Expected a cutoff above 0, got {cutoff}.")
    size = height * width
    first = 2 * size if version == "statement" else size
    return betaprime(first, 4 * cutoff**2, scale=size / (4 * cutoff**2))


@dataclass(frozen=True, eq=False)
class KeptNoise:
    """How much of white noise a filter keeps, simulated; made by `kept_noise`.

    Attributes:
        shares: Of the power, of each map (draws,), float64.
        height: H in pixels.
        width: W in pixels.
        cutoff: σ in cycles/image.
        shape: "square" or "disk".
    """

    shares: Tensor
    height: int
    width: int
    cutoff: float
    shape: Hard

    @property
    def exact(self) -> Any:
        """The distribution that it has, `kept_share`."""
        return kept_share(self.height, self.width, self.cutoff, self.shape)

    def printed(self, version: Version = "statement") -> Any:
        """Returns the printed distribution of the share's inverse, `printed_ratio`."""
        return printed_ratio(self.height, self.width, self.cutoff, version)


def kept_noise(
    height: int, width: int, cutoff: float, shape: Hard = "square", *, draws: int = 1000, seed: int = 0
) -> KeptNoise:
    """Returns the share of its power that the filter keeps of each of so many maps of normal white noise (A.3).

    Args:
        height: H in pixels.
        width: W in pixels.
        cutoff: σ in cycles/image.
        shape: "square" as in the supplement, or "disk".
        draws: How many maps.
        seed: Of the noise.

    Example:
        >>> found = kept_noise(8, 8, 1, draws=4000)
        >>> abs(float(found.shares.mean()) - 9 / 64) < 0.005, bool(found.exact.mean() == 9 / 64)
        (True, True)
    """
    check_whole(draws=draws)
    check_hard(shape)
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, draws, step := max(1, BATCH // (height * width))):
        size = min(step, draws - start), height, width
        noise = torch.randn(size, dtype=torch.float64, generator=draw)
        kept = low_pass(noise, cutoff, shape)
        parts.append(kept.square().sum((1, 2)) / noise.square().sum((1, 2)))
    return KeptNoise(torch.cat(parts), height, width, cutoff, shape)

"""How like two maps are: rank correlation, and structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from gradspec.metrics.mufidelity import rank_correlation

WINDOW, SIGMA = 11, 1.5  # Wang 2004, §III-B
K1, K2 = 0.01, 0.03


def rank_likeness(one: Tensor, other: Tensor) -> float:
    """Returns Spearman's rank correlation of two maps (H, W) with average ranks for ties; NaN where one is constant."""
    return float(rank_correlation(one.reshape(1, -1), other.reshape(1, -1)))


def structural_similarity(one: Tensor, other: Tensor, span: float = 1.0) -> float:
    """Returns the mean SSIM of two maps (H, W), −1..1 (Wang 2004, eq. 13), in float64.

    Local means, variances and covariance under a Gaussian window of 11 x 11 pixels with σ = 1.5 that sums to one, at
    the places where it lies inside; for smaller maps the largest odd window that fits. C1 = (0.01·L)², C2 = (0.03·L)².

    Args:
        one: (H, W).
        other: (H, W).
        span: L, the range that values can have.

    Raises:
        ValueError: For maps of different shapes.

    Example:
        >>> map = torch.rand(16, 20)
        >>> round(structural_similarity(map, map), 12), structural_similarity(map, 1 - map) < 0.5
        (1.0, True)
    """
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"Expected two maps (H, W) of one shape, got {tuple(one.shape)} and {tuple(other.shape)}.")
    a, b = one.double(), other.double()
    size = min(WINDOW, *((side - 1) // 2 * 2 + 1 for side in a.shape))
    kernel = _profile(size).to(a.device)
    stack = torch.stack([a, b, a * a, b * b, a * b])[:, None]
    rows = conv2d(stack, kernel.view(1, 1, -1, 1))  # the window is a product: one side after the other
    mean_a, mean_b, square_a, square_b, product = conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return float((luminance * (2 * (product - mean_a * mean_b) + c2) / (variances + c2)).mean())


def gaussian_window(size: int) -> Tensor:
    """Returns the window (size, size), float64, of sum 1."""
    return torch.outer(_profile(size), _profile(size))


def _profile(size: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    one = torch.exp(-(place**2) / (2 * SIGMA**2))
    return one / one.sum()

"""The propositions of supplement A: what holds as printed, what holds instead, and simulations to show which.

A.2: what a low-pass filter leaves of the error of a noisy gradient. A.3: how much of white noise it keeps. A.4: how
fast SmoothGrad converges. The supplement's own symbols are kept in the docstrings.
"""

from .recovery import Recovery, band_limit, recovery
from .smoothing import Convergence, bernstein_bound, convergence, printed_bound, simulated_deviations
from .white_noise import KeptNoise, degrees_of_freedom, kept_noise, kept_share, printed_ratio

__all__ = [
    "Convergence",
    "KeptNoise",
    "Recovery",
    "band_limit",
    "bernstein_bound",
    "convergence",
    "degrees_of_freedom",
    "kept_noise",
    "kept_share",
    "printed_bound",
    "printed_ratio",
    "recovery",
    "simulated_deviations",
]

"""What puts FORGrad on trial: maps that know no network, Taylor test, sanity check, bias of metrics (SPEC §6).

The propositions of the paper's supplement are in `gradspec.controls.theory`.
"""

from .bands import Band, attack, flip_radii, power_share
from .bias import MetricBias, metric_bias
from .maps import CentrePrior, RandomMaps, centre_prior, random_maps
from .sanity import Sanity, sanity
from .taylor import Taylor, taylor

__all__ = [
    "Band",
    "CentrePrior",
    "MetricBias",
    "RandomMaps",
    "Sanity",
    "Taylor",
    "attack",
    "centre_prior",
    "flip_radii",
    "metric_bias",
    "power_share",
    "random_maps",
    "sanity",
    "taylor",
]

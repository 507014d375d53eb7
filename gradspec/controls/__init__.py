"""What puts FORGrad on trial: maps that know no network, Taylor test, sanity check, bias of metrics (SPEC §6).

The propositions of the paper's supplement are in `gradspec.controls.theory`.
"""

from .bias import MetricBias, metric_bias
from .maps import CentrePrior, RandomMaps, centre_prior, random_maps
from .sanity import Sanity, sanity
from .taylor import Taylor, taylor

__all__ = [
    "CentrePrior",
    "MetricBias",
    "RandomMaps",
    "Sanity",
    "Taylor",
    "centre_prior",
    "metric_bias",
    "random_maps",
    "sanity",
    "taylor",
]

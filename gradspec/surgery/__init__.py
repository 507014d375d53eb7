"""New networks from old ones: other downsampling, other weights, the original untouched (SPEC §3)."""

from gradspec.surgery.downsampling import average_pooled, blur_pooled
from gradspec.surgery.record import Change, NothingToSwap, Record, records
from gradspec.surgery.statistics import recalibrated
from gradspec.surgery.weights import randomised, untrained

__all__ = [
    "Change",
    "NothingToSwap",
    "Record",
    "average_pooled",
    "blur_pooled",
    "randomised",
    "recalibrated",
    "records",
    "untrained",
]

"""FORGrad: any attribution without its high frequencies, in its map or in every gradient it draws (paper §5)."""

from .attribution import Fit, FORGrad, Found, Where, maps_of
from .layers import LowPassGrad, low_passes

__all__ = ["FORGrad", "Fit", "Found", "LowPassGrad", "Where", "low_passes", "maps_of"]

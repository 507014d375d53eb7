"""Where FORGrad cuts: read off the spectra of an audit, or chosen by a metric on pictures kept for it (SPEC §5)."""

from .fit import fit_cutoff
from .grid import cutoff_grid
from .result import CutoffFit
from .spectral import SpectralCutoff, cutoff_from

__all__ = ["CutoffFit", "SpectralCutoff", "cutoff_from", "cutoff_grid", "fit_cutoff"]

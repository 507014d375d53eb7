"""Figures drawn from result objects only: of audits slope profile, signatures, gradient pictures and culprits; of a
comparison also the causal arms and the drift; of FORGrad the curves over cutoffs, gains and controls; and attribution
maps over their pictures.

Every function returns a plain ``matplotlib.figure.Figure`` that belongs to nobody: no pyplot state, no global style. A
reader who sees no colours still has markers, line styles, hatches and lightness. Names come from other people's models
and files, so no text is ever parsed as mathematics.
"""

from gradspec.plots._style import save
from gradspec.plots.atlas import atlas
from gradspec.plots.causes import causal
from gradspec.plots.controls import metric_bias, sanity, taylor, theory
from gradspec.plots.curves import signatures
from gradspec.plots.cutoffs import cutoff_curves
from gradspec.plots.overlay import Shown, contact_sheet, overlay
from gradspec.plots.profile import slope_profile
from gradspec.plots.ranking import culprits
from gradspec.plots.scores import examples, faithfulness_time, gains, points_of, slope_scatter
from gradspec.plots.sheet import gradient_pictures
from gradspec.plots.tradeoff import drift

__all__ = [
    "Shown",
    "atlas",
    "causal",
    "contact_sheet",
    "culprits",
    "cutoff_curves",
    "drift",
    "examples",
    "faithfulness_time",
    "gains",
    "gradient_pictures",
    "metric_bias",
    "overlay",
    "points_of",
    "sanity",
    "save",
    "signatures",
    "slope_profile",
    "slope_scatter",
    "taylor",
    "theory",
]

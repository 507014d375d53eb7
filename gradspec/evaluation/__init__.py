"""FORGrad on trial: attributions × metrics × pictures, before and after, with controls (paper §5, tables 1-3, 5, 6)."""

from .joining import joined, stacked
from .running import DEFAULT_METRICS, evaluate
from .scores import Missing, Pictured, Scores
from .tables import bayes, side_by_side

__all__ = ["DEFAULT_METRICS", "Missing", "Pictured", "Scores", "bayes", "evaluate", "joined", "side_by_side", "stacked"]

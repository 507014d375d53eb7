"""gradspec: where the high frequencies in a vision network's gradients come from, and how to take them out again.

Two pipelines: images + model -> taps capture every operator's gradient (`tapped`) -> spectra (`signature`) -> `audit`,
`compare` -> tables, figures, `report`; and images + model -> `attributions` -> `metrics`, both on one `Engine`. Names
are loaded when they are first used, so that `import gradspec` and the command line's help stay fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradspec import adapters, attributions, controls, demo, metrics, plots, presets, statistics, surgery
    from gradspec.auditing import audit
    from gradspec.comparison import Comparison, compare
    from gradspec.cutoffs import CutoffFit, cutoff_from, fit_cutoff
    from gradspec.engine import Engine
    from gradspec.evaluation import Scores, evaluate
    from gradspec.explaining import Explained, explain
    from gradspec.forgrad import FORGrad, LowPassGrad
    from gradspec.fourier import low_pass
    from gradspec.graph import Call, Tap
    from gradspec.images import load_images
    from gradspec.models import load_model
    from gradspec.reporting import report
    from gradspec.results import Audit, Example
    from gradspec.saved import load
    from gradspec.spectra import (
        Signature,
        high_share,
        kolmogorov_complexity,
        laplacian_complexity,
        log_spectrum,
        signature,
        white_share,
    )
    from gradspec.taps import tapped
    from gradspec.targets import label_logit, label_probability

try:
    __version__ = version("gradspec")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_HOME = {
    "Audit": "results",
    "Call": "graph",
    "Comparison": "comparison",
    "CutoffFit": "cutoffs",
    "Engine": "engine",
    "Example": "results",
    "Explained": "explaining",
    "FORGrad": "forgrad",
    "LowPassGrad": "forgrad",
    "Scores": "evaluation",
    "Signature": "spectra",
    "Tap": "graph",
    "audit": "auditing",
    "compare": "comparison",
    "cutoff_from": "cutoffs",
    "evaluate": "evaluation",
    "explain": "explaining",
    "fit_cutoff": "cutoffs",
    "high_share": "spectra",
    "kolmogorov_complexity": "spectra",
    "label_logit": "targets",
    "label_probability": "targets",
    "laplacian_complexity": "spectra",
    "load": "saved",
    "load_images": "images",
    "load_model": "models",
    "log_spectrum": "spectra",
    "low_pass": "fourier",
    "report": "reporting",
    "signature": "spectra",
    "tapped": "taps",
    "white_share": "spectra",
}
_MODULES = (
    "adapters", "attributions", "controls", "demo", "metrics", "plots", "presets", "statistics", "surgery",
)  # fmt: skip

__all__ = [
    "Audit",
    "Call",
    "Comparison",
    "CutoffFit",
    "Engine",
    "Example",
    "Explained",
    "FORGrad",
    "LowPassGrad",
    "Scores",
    "Signature",
    "Tap",
    "adapters",
    "attributions",
    "audit",
    "compare",
    "controls",
    "cutoff_from",
    "demo",
    "evaluate",
    "explain",
    "fit_cutoff",
    "high_share",
    "kolmogorov_complexity",
    "label_logit",
    "label_probability",
    "laplacian_complexity",
    "load",
    "load_images",
    "load_model",
    "log_spectrum",
    "low_pass",
    "metrics",
    "plots",
    "presets",
    "report",
    "signature",
    "statistics",
    "surgery",
    "tapped",
    "white_share",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gradspec.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'gradspec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradspec.{_HOME[name]}"), name)
    globals()[name] = value  # also where a submodule of the same name was put here by its import
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

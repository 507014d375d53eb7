"""Networks by name, with their weights, preprocessing and classes."""

from .loading import list_models, load_model
from .weights import ModelError, UnknownModelError, WeightsUnavailable

__all__ = ["ModelError", "UnknownModelError", "WeightsUnavailable", "list_models", "load_model"]

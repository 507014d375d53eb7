"""Runs that survive: units of work, each one file in a folder, done one after the other or by workers."""

from .store import Store, changed
from .units import Failure, Unit, run

__all__ = ["Failure", "Store", "Unit", "changed", "run"]

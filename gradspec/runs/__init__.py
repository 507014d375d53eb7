"""Runs that survive: units of work, each one file in a folder, done one after the other or by workers."""

from .plan import Span, names, spans, unit_name
from .store import MISSING, Store, changed, differences, kind_of, read_file
from .tables import as_arrays, as_rows, packed, unpacked
from .units import Failure, Unit, run, workers

__all__ = [
    "MISSING", "Failure", "Span", "Store", "Unit", "as_arrays", "as_rows", "changed", "differences", "kind_of", "names",
    "packed", "read_file", "run", "spans", "unit_name", "unpacked", "workers",
]  # fmt: skip

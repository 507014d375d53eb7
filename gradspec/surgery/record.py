"""What a surgery did: which operators it changed, which it left and why; every operated network carries its records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

_KEY = "_gradspec_surgery"  # in the module's __dict__, beside its description: no parameter, buffer or child


class NothingToSwap(ValueError):
    """A surgery that would change nothing: the network has no such operator, or the selection matches none."""


@dataclass(frozen=True)
class Change:
    """One operator, or one module's weights, that a surgery changed.

    Attributes:
        name: The call's name, as in an audit; for weights the module's path or the parameter's.
        type: The operator's type ("max pooling", "strided convolution", ...), or "weights", "statistics".
        before: What was there, in a few words.
        after: What is there now.
        calls: Names of all its calls, where the network calls it more than once.
    """

    name: str
    type: str
    before: str
    after: str
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What one surgery did to a network.

    Attributes:
        surgery: Name of the function, "average_pooled".
        settings: Its arguments, as plain JSON.
        changes: What was changed, in order of execution.
        left: Operators that shrink the map and were left: call's name -> reason.
        notes: What else a reader should know, in sentences.
    """

    surgery: str
    settings: dict[str, Any] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as plain JSON.

        Example:
            >>> record = Record("untrained", {"seed": 1}, (Change("head", "weights", "", "drawn anew"),))
            >>> Record.from_dict(record.as_dict()) == record
            True
        """
        return asdict(self) | {
            "changes": [asdict(change) | {"calls": list(change.calls)} for change in self.changes],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Record:
        """Returns the record that `as_dict` wrote."""
        changes = tuple(Change(**{**change, "calls": tuple(change.get("calls", ()))}) for change in record["changes"])
        return cls(record["surgery"], record["settings"], changes, record["left"], tuple(record["notes"]))


def records(model: nn.Module) -> tuple[Record, ...]:
    """Returns the records of the surgeries that made this network, the first one first; () for an untouched one."""
    return model.__dict__.get(_KEY, ())


def finish(model: nn.Module, record: Record) -> tuple[nn.Module, Record]:
    """Returns the operated network, which now carries the record, and the record."""
    model.__dict__[_KEY] = (*records(model), record)
    return model, record

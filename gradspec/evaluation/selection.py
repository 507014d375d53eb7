"""Pictures that a cutoff was chosen on, refused or counted; and cutoffs that were fitted for something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from gradspec.cutoffs import CutoffFit
from gradspec.cutoffs.identity import fingerprint, text_of
from gradspec.data import Batch, picture_id
from gradspec.evaluation.ledger import Key
from gradspec.evaluation.plan import SHARED, Row


@dataclass(eq=False)
class Selection:
    """The pictures that fits were chosen on, which tell too good a story of them.

    Attributes:
        fits: Each once.
        allowed: Count the pictures instead of refusing them.
        found: For each fit the places of such pictures among those that were scored.
    """

    fits: Sequence[CutoffFit]
    allowed: bool
    found: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.fits = list({id(fit): fit for fit in self.fits}.values())
        self.found = [set() for _ in self.fits]

    def refuse(self, model: nn.Module, ids: Sequence[str], contents: Sequence[str]) -> None:
        """Raises ValueError for pictures, by name or content, that a fit was chosen on, unless they are allowed."""
        for fit in self.fits if not self.allowed else ():
            fit.refuse(ids, model, contents)

    def places(self, model: nn.Module, batch: Batch) -> list[set[int]]:
        """Returns for each fit the places in the batch of pictures that it was chosen on; raises as `refuse`."""
        if not self.fits:
            return []
        contents = [picture_id(image) for image in batch.images]
        self.refuse(model, batch.ids, contents)
        named = list(enumerate(zip(batch.ids, contents, strict=True)))
        return [{k for k, names in named if not known.isdisjoint(names)} for known in self._known]

    def note(self, places: Iterable[set[int]], start: int) -> None:
        """Notes the places of a batch that was scored, of which the first is `start`."""
        for found, here in zip(self.found, places, strict=True):
            found.update(start + k for k in here)

    def count(self, fits: Iterable[CutoffFit]) -> int:
        """Returns how many pictures at least one of the fits was chosen on."""
        wanted = {id(fit) for fit in fits}
        found = [places for fit, places in zip(self.fits, self.found, strict=True) if id(fit) in wanted]
        return len(set().union(*found))

    @cached_property
    def _known(self) -> list[set[str]]:
        """Names and contents of each fit's pictures: one that had no name is named by its content."""
        return [{*fit.pictures, *fit.contents} for fit in self.fits]


def misfits(rows: Sequence[Row], model: nn.Module) -> dict[Key, str]:
    """Returns of each row whose cutoff was fitted for another network or attribution what it was fitted for."""
    here = fingerprint(model) if any(row.fits for row in rows) else ""
    found: dict[Key, str] = {}
    for row in rows:
        others = [f"another network ({fit.model})" for fit in row.fits if fit.model != here]
        if row.arm != SHARED:
            name = text_of(row.inner)
            others += [f"{fit.attribution}, not {name}" for fit in row.fits if fit.attribution != name]
        if others:
            found[row.key] = f"cutoff fitted for {' and for '.join(dict.fromkeys(others))}"
    return found

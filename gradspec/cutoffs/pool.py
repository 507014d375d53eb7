"""Pictures that are read more than once: by name, in any part, whatever they come as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradspec.data import Batch, Data, in_batches

AT_ONCE = 16  # pictures explained and scored together, each with a map for every cutoff


class Pool:
    """Pictures under their names.

    Args:
        data: Tensors, or batches that can be read again and again.

    Attributes:
        ids: The pictures' names, in their order.
        sizes: The (H, W) that occur, in the order of the pictures.
        labelled: Whether labels came with them.

    Raises:
        TypeError, ValueError: As `in_batches`; for data that can be read once alone, and a picture that comes twice.
    """

    def __init__(self, data: Data) -> None:
        if not isinstance(data, Tensor) and iter(data) is data:
            raise TypeError(
                f"Expected data that can be read more than once (tensors, a list, a loader), got {type(data).__name__}."
            )
        self.data = data
        self.ids: list[str] = []
        self.labelled = True
        sizes: dict[tuple[int, int], None] = {}
        for batch in in_batches(data):
            self.ids += batch.ids
            self.labelled &= batch.labels is not None
            sizes[int(batch.images.shape[-2]), int(batch.images.shape[-1])] = None
        self.sizes = list(sizes)
        if twice := [name for name in dict.fromkeys(self.ids) if self.ids.count(name) > 1]:
            raise ValueError(
                f"Expected each picture once, got {len(twice)} id(s) more than once, such as {twice[0]!r}: leave "
                "repetitions out, or name different pictures differently."
            )

    def take(self, wanted: Sequence[str]) -> Iterator[Batch]:
        """Yields the pictures of these names, in the order of the data, so many together as are of one kind.

        Raises:
            ValueError: The data no longer holds them.
        """
        names, held, found = set(wanted), _Held(), 0
        for batch in in_batches(self.data, AT_ONCE):
            places = [k for k, name in enumerate(batch.ids) if name in names]
            if not places:
                continue
            found += len(places)
            labels = None if batch.labels is None else batch.labels[places]
            part = Batch(batch.images[places], labels, [batch.ids[k] for k in places])
            if not held.takes(part):
                yield held.given()
            held.parts.append(part)
        if held.parts:
            yield held.given()
        if found != len(names):
            raise ValueError(
                f"Expected the same pictures each time the data is read, got {found} of {len(names)}: they need ids of "
                "their own where they are changed at random."
            )


class _Held:
    """Parts that are to be worked on together."""

    def __init__(self) -> None:
        self.parts: list[Batch] = []

    def takes(self, part: Batch) -> bool:
        """Whether a part fits those that are here."""
        if not self.parts:
            return True
        first, count = self.parts[0], sum(len(held.ids) for held in self.parts)
        alike = first.images.shape[1:] == part.images.shape[1:] and (first.labels is None) == (part.labels is None)
        return alike and count + len(part.ids) <= AT_ONCE

    def given(self) -> Batch:
        """All of them, which are here no longer."""
        parts, self.parts = self.parts, []
        labels = [part.labels for part in parts if part.labels is not None]
        return Batch(
            torch.cat([part.images for part in parts]),
            torch.cat(labels) if labels else None,
            [name for part in parts for name in part.ids],
        )

"""What every row took and got, batch by batch, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from gradspec.spectra import signature

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str]  # (attribution, arm)

_WORDS = ("attribution", "arm", "metric")
_COSTS = ("attribution", "arm", "seconds per 100", "filter per 100", "forwards", "backwards", "n")
_SPECTRA = ("attribution", "arm", "picture", "height", "width", "high_share", "rings")


class Cost(NamedTuple):
    """Seconds of an explanation, its passes, seconds of the filter behind it, and of how many pictures."""

    seconds: float
    forwards: int
    backwards: int
    filter: float = 0.0
    pictures: int = 0


class Line(NamedTuple):
    """One batch's values of one metric and row."""

    pictures: list[str]
    labels: np.ndarray
    attribution: str
    arm: str
    metric: str
    values: np.ndarray


@dataclass(eq=False)
class Ledger:
    """What was noted so far.

    Attributes:
        lines: Scores.
        costs: By row, of each batch.
        spectra: By row, a line of `Scores.spectra` for each map.
    """

    lines: list[Line] = field(default_factory=list)
    costs: dict[Key, list[Cost]] = field(default_factory=dict)
    spectra: dict[Key, list[tuple[Any, ...]]] = field(default_factory=dict)

    def charge(self, key: Key, cost: Cost) -> None:
        """Notes what a batch took."""
        self.costs.setdefault(key, []).append(cost)

    def note_spectra(self, key: Key, pictures: Sequence[str], maps: Tensor) -> None:
        """Notes the spectra of a batch's maps (N, H, W), but of those that are not finite."""
        sound = maps.flatten(1).isfinite().all(1)
        if sound.any():
            found, size = signature(maps[sound]), (int(maps.shape[1]), int(maps.shape[2]))
            names = [name for name, fine in zip(pictures, sound.tolist(), strict=True) if fine]
            lines = zip(names, found.high_shares, found.per_image.astype(np.float32), strict=True)
            self.spectra.setdefault(key, []).extend((*key, name, *size, share, rings) for name, share, rings in lines)

    def table(self, keys: Sequence[Key]) -> pd.DataFrame:
        """Returns `Scores.table`, rows in the order of the keys, then by metric and picture."""
        import pandas as pd

        order = {key: place for place, key in enumerate(keys)}
        lines = sorted(self.lines, key=lambda line: order[line.attribution, line.arm])  # stable
        counts = [len(line.values) for line in lines]
        columns = {
            "picture": [name for line in lines for name in line.pictures],
            "label": np.concatenate([line.labels for line in lines]),
            **{name: np.repeat([getattr(line, name) for line in lines], counts) for name in _WORDS},
            "value": np.concatenate([line.values for line in lines]),
        }
        return pd.DataFrame(columns)

    def cost_table(self, keys: Sequence[Key]) -> pd.DataFrame:
        """Returns `Scores.costs` of those keys that took anything."""
        import pandas as pd

        lines = []
        for key in keys:
            if key in self.costs:
                seconds, forwards, backwards, passing, n = map(sum, zip(*self.costs[key], strict=True))
                lines.append((*key, 100 * (seconds + passing) / n, 100 * passing / n, forwards / n, backwards / n, n))
        return pd.DataFrame(lines, columns=list(_COSTS))

    def spectra_table(self, keys: Sequence[Key]) -> pd.DataFrame:
        """Returns `Scores.spectra`, rows in the order of the keys."""
        import pandas as pd

        lines = [line for key in keys for line in self.spectra.get(key, ())]
        return pd.DataFrame(lines, columns=list(_SPECTRA))

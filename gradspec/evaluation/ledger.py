"""What every row took and got, batch by batch, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from gradspec.spectra import Signature, signature

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str]  # (attribution, arm)

_WORDS = ("attribution", "arm", "metric")
_COSTS = ("attribution", "arm", "seconds per 100", "filter per 100", "forwards", "backwards", "n")
_SLOPES = ("attribution", "arm", "slope_nyquist", "se", "high_share", "se_share", "n", "note")


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
        rings: By row and by (height, width) the signatures of its maps.
    """

    lines: list[Line] = field(default_factory=list)
    costs: dict[Key, list[Cost]] = field(default_factory=dict)
    rings: dict[Key, dict[tuple[int, int], list[Signature]]] = field(default_factory=dict)

    def charge(self, key: Key, cost: Cost) -> None:
        """Notes what a batch took."""
        self.costs.setdefault(key, []).append(cost)

    def note_spectrum(self, key: Key, maps: Tensor) -> None:
        """Notes the spectra of a batch's maps (N, H, W), but of those that are not finite."""
        sound = maps[maps.flatten(1).isfinite().all(1)]
        if len(sound):
            size = int(maps.shape[1]), int(maps.shape[2])
            self.rings.setdefault(key, {}).setdefault(size, []).append(signature(sound))

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

    def slopes(self, keys: Sequence[Key]) -> pd.DataFrame:
        """Returns `Scores.slopes`."""
        import pandas as pd

        return pd.DataFrame([(*key, *_spectrum(self.rings.get(key, {}))) for key in keys], columns=list(_SLOPES))


def _spectrum(sizes: Mapping[tuple[int, int], list[Signature]]) -> tuple[float, float, float, float, int, str]:
    """Slope and share of high frequencies of all maps, their errors, and why there is none."""
    if len(sizes) != 1:
        reason = f"maps of {len(sizes)} sizes" if sizes else "no finite map"
        return np.nan, np.nan, np.nan, np.nan, 0, reason
    ((height, width), parts), *_ = sizes.items()
    rings, shares = ([getattr(part, name) for part in parts] for name in ("per_image", "high_shares"))
    whole = Signature(height, width, np.concatenate(rings), np.concatenate(shares))
    if whole.reason:
        return np.nan, np.nan, np.nan, np.nan, whole.n, whole.reason
    return whole.slope_nyquist, whole.slope_nyquist_se, whole.high_share, whole.high_share_se, whole.n, ""

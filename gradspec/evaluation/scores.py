"""What an evaluation found: every picture's scores, and the paper's tables made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradspec._showing import figure_of, html_of
from gradspec.evaluation import tables
from gradspec.runs import Store, as_arrays, as_rows, packed

if TYPE_CHECKING:
    import pandas as pd

KIND = UNIT = "scores"


class Missing(NamedTuple):
    """Something that was left out.

    Attributes:
        attribution: Its key.
        arm: Its arm.
        metric: The metric that raised, "" where there are no maps; all three are "" where the evaluation ended.
        after: How many pictures were scored before.
        reason: Why.
    """

    attribution: str
    arm: str
    metric: str
    after: int
    reason: str


@dataclass(frozen=True, eq=False)
class Pictured:
    """A picture with its maps, to be looked at.

    Attributes:
        picture: Its name.
        label: The class that is explained.
        predicted: The network's class.
        pixels: (C, H, W), 0..1.
        maps: By (attribution, arm), (H, W).
    """

    picture: str
    label: int
    predicted: int
    pixels: np.ndarray
    maps: Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of attributions before and after FORGrad on one network; made by `gradspec.evaluate`.

    Attributes:
        table: One row per picture, attribution, arm and metric: `picture`, `label`, `attribution`, `arm`, `metric`,
            `value` (NaN where a map cannot be scored). A picture that comes again is numbered, `name#2`.
        costs: `attribution`, `arm`; `seconds per 100` explanations with their filter, of which `filter per 100` the
            filter's alone (that of "forgrad-gradient" is inside the explanation); `forwards` and `backwards` per
            picture; `n`. Arms of one attribution, and methods that draw the same noise, share their passes here; each
            is charged with all of them, as if it were alone.
        spectra: One row per picture, attribution and arm, of the map as it is scored: `picture`, `attribution`, `arm`,
            `height`, `width`, `high_share`, and `rings`, the amplitudes of its signature. Maps that are not finite have
            none.
        missing: What was left out, and why.
        examples: The first pictures with their maps, where they were asked for.
        spec: Rows, metrics, accuracy, seed, versions and settings, as plain JSON.
    """

    table: pd.DataFrame
    costs: pd.DataFrame
    spectra: pd.DataFrame
    missing: tuple[Missing, ...]
    examples: tuple[Pictured, ...]
    spec: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of the labelled pictures whose label the network names; NaN where labels are its predictions."""
        known = self.spec["accuracy"]
        return math.nan if known is None else float(known)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures' names, in order."""
        return tuple(dict.fromkeys(self.table["picture"]))

    @property
    def slopes(self) -> pd.DataFrame:
        """Spectrum of each row's maps as they are scored (figs. 3B, A.13).

        `attribution`, `arm`, `slope_nyquist` with `se`, `high_share` with `se_share`, `n`, and `note`: why there is
        none.
        """
        return tables.slopes(self)

    def summary(self) -> pd.DataFrame:
        """Returns the layout of the paper's tables 1, 3 and 5: a row per attribution and arm, a column per metric.

        `attribution`, `arm`, `name` (as there: * FORGrad, † the arms beside it), `family` (white, gray, black,
        control), `cutoff` (cycles/image; NaN for none); for each metric its mean over pictures under its own name, and
        behind it its standard error "... se" and "... n", NaN left out; then time per 100 explanations and passes per
        picture, as in `costs`, and a `note` of what is missing, of a cutoff that was fitted for something else, and of
        pictures that it was chosen on.
        """
        return tables.summary(self)

    def gains(
        self, metric: str = "Faithfulness", against: str = "none", *, level: float = 0.95, samples: int = 2000
    ) -> pd.DataFrame:
        """Returns what each arm gains on the same pictures: paired differences, positive where the arm is better.

        `attribution`, `arm`, `name`, `against`, `n`, `mean`, `se`, `low`, `high`, `bf10`, `effect`, `missing`, as
        `gradspec.statistics.paired` has them. For a metric of which lower is better the sign is turned.

        Args:
            metric: Its key.
            against: An arm, of the same attribution: "none", "abs", ...; or a control's name, for all rows.
            level: Of the bootstrap interval.
            samples: Bootstrap samples.

        Raises:
            ValueError: For a metric or something to compare with that there is none of.
        """
        return tables.gains(self, metric, against, level, samples)

    def ranking(self, metrics: Sequence[str] | None = None, *, arm: str = "forgrad") -> pd.DataFrame:
        """Returns the layout of the paper's tables 2 and 6: attributions by F + μF, before and after FORGrad.

        `rank`, `before` and `after` (names), with `score` and its standard error over pictures behind each, and `n`:
        all are of the same pictures, those on which everything that is ranked has all of the metrics. What was left out
        on the way, or has no score at all, comes last with NaN. An attribution without that arm keeps its place as it
        is; a FORGrad given among the attributions is the arm of what it filters, the first of several.

        Args:
            metrics: Keys of the metrics that are added; None: those of type `Faithfulness` and `MuFidelity`. One of
                which lower is better is subtracted.
            arm: What stands for "after"; where an attribution lacks "forgrad", "forgrad-gradient" does.

        Raises:
            ValueError: For metrics that there are none of.
        """
        return tables.ranking(self, metrics, arm)

    def bayes(self, metrics: Sequence[str] | None = None, *, arm: str = "forgrad") -> pd.DataFrame:
        """Returns Bayes factors of before against after, over methods: `gradspec.evaluation.bayes` of one network."""
        return tables.bayes({self.spec["model"]: self}, metrics, arm=arm)

    def values(self, attribution: str, arm: str = "none", metric: str = "Faithfulness") -> pd.Series:
        """Returns one row's values by picture, in order; empty where there are none."""
        import pandas as pd

        return self._by_row.get((attribution, arm, metric), pd.Series([], dtype=float, name="value"))

    @cached_property
    def _by_row(self) -> dict[tuple[str, str, str], pd.Series]:
        groups: Any = self.table.groupby(["attribution", "arm", "metric"], sort=False)
        return {key: part.set_index("picture")["value"] for key, part in groups}

    def __repr__(self) -> str:
        rows = len(self.spec["rows"])
        said = f"{self.spec['pictures']} pictures, {rows} rows, {', '.join(self.spec['metrics'])}"
        accuracy = "" if math.isnan(self.accuracy) else f", accuracy {self.accuracy:.3f}"
        chosen_on = self.spec.get("selection", 0)
        inside = f", {chosen_on} of them chosen on" if chosen_on else ""
        missing = f", {len(self.missing)} missing" if self.missing else ""
        return f"Scores({self.spec['model']}, {said}{accuracy}{inside}{missing})"

    def plot(self, metric: str | None = None) -> Any:
        """Returns what each arm gains over no filter, its magnitude and the centre prior (`gradspec.plots.gains`).

        Args:
            metric: Its key; None: faithfulness, or the first where that was not measured.
        """
        known = self.spec["metrics"]
        chosen = metric or ("Faithfulness" if "Faithfulness" in known else next(iter(known)))
        return figure_of("scores.gains", self, chosen)

    def _repr_html_(self) -> str:
        alt = "Paired gain of each filter, with its interval, over no filter, the magnitude alone and the centre prior."
        named = ["name", "cutoff", *(f"{name}{end}" for name in self.spec["metrics"] for end in ("", " se"))]
        table: Any = self.summary()[[*named, "seconds per 100", "note"]]
        return html_of(self, table, alt)

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the scores into a folder, made if need be, and returns it: `spec.json`, and one unit with the tables.

        Raises:
            ValueError: For a folder with a `spec.json` of something else, and a `spec` that JSON has no words for;
                nothing is written.
        """
        about = {name: self.spec[name] for name in ("model", "variant", "created", "versions") if name in self.spec}
        return Store.save(path, KIND, about, {UNIT: self.to_unit()})

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Returns the scores saved in a folder.

        Raises:
            ValueError: For a folder that holds no scores, or ones that are damaged, with the file's name.
        """
        return Store.load(path, KIND).result(UNIT, cls.from_unit)

    def to_unit(self) -> pd.DataFrame:
        """Returns everything as the table of a unit: parts `table`, `costs`, `spectra` and `examples`."""
        kept = [[one.picture, one.label, one.predicted, [list(key) for key in one.maps]] for one in self.examples]
        arrays: dict[str, Any] = {}
        for i, shown in enumerate(self.examples):
            arrays[f"pixels {i}"] = shown.pixels
            arrays |= {f"map {j} of {i}": found for j, found in enumerate(shown.maps.values())}
        parts = {"table": self.table, "costs": self.costs, "spectra": self.spectra, "examples": as_rows(arrays)}
        about = {"spec": self.spec, "missing": [list(found) for found in self.missing], "examples": kept}
        return packed(parts, about)

    @classmethod
    def from_unit(cls, parts: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Scores:
        """Returns the scores of `to_unit`'s tables, as `gradspec.runs.unpacked` gives them."""
        arrays = as_arrays(parts["examples"])
        examples = tuple(
            Pictured(
                picture, label, predicted, arrays[f"pixels {i}"],
                {(name, arm): arrays[f"map {j} of {i}"] for j, (name, arm) in enumerate(keys)},
            )
            for i, (picture, label, predicted, keys) in enumerate(about["examples"])
        )  # fmt: skip
        missing, spec = tuple(Missing(*found) for found in about["missing"]), dict(about["spec"])
        return cls(parts["table"], parts["costs"], parts["spectra"], missing, examples, spec)

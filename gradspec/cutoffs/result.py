"""A fitted cutoff with everything that it was chosen by, saved to and loaded from a folder of plain files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import nn

from gradspec._showing import figure_of, html_of
from gradspec.cutoffs.curve import Curve
from gradspec.cutoffs.grid import Cutoffs, names_of_cutoffs
from gradspec.cutoffs.identity import fingerprint
from gradspec.engine import Engine
from gradspec.forgrad import Where
from gradspec.fourier import FilterShape
from gradspec.runs import Store, packed
from gradspec.statistics import paired

if TYPE_CHECKING:
    import pandas as pd

Rule = Literal["argmax", "one_se"]

KIND, UNIT = "cutoff fit", "fit"
_CONTROL = "control: "


class Round(NamedTuple):
    """Pictures on which the same cutoffs were scored: rows of `per_image`, one round behind the other.

    Attributes:
        pictures: How many.
        cutoffs: Which; all of them but in a race.
    """

    pictures: int
    cutoffs: Cutoffs


@dataclass(frozen=True, eq=False, repr=False)
class CutoffFit:
    """A cutoff that was chosen by a metric on some pictures, not to be reported on the same (SPEC §5).

    Made by `gradspec.fit_cutoff`; `FORGrad(attribution, fit)` takes its cutoff, where and shape.

    Attributes:
        cutoffs: Which were tried, in cycles/image; None is no filter, that is `FORGrad(attribution, None, where)`.
        per_image: The curve of each picture: `picture`, `label`, `content` (a hash of its values), and a column for
            each cutoff (`names`); NaN where the map cannot be scored, and in a race where the cutoff was out by then.
        control_scores: `picture` and a column for each control: "no filter", the attribution as it is; "abs only", its
            magnitude; "centre prior", "white noise", which know no network. In a race of half of the pictures.
        rounds: Which rows of them were scored at which cutoffs.
        where: What is filtered, "attribution" or "gradient".
        shape: Of the filter.
        search: "grid" or "race".
        attribution: What was filtered, in words.
        metric: What was measured, in words.
        higher_is_better: Of the metric.
        model: The network's class and a hash of its weights and modules.
        forwards: Forward passes that were spent, explanations and controls too.
        backwards: Backward passes.
        spec: Settings, versions and time, plain JSON.
        rule: By which `cutoff` is chosen: "argmax", or "one_se" (`choose`).
    """

    cutoffs: Cutoffs
    per_image: pd.DataFrame
    control_scores: pd.DataFrame
    rounds: tuple[Round, ...]
    where: Where
    shape: FilterShape
    search: Literal["grid", "race"]
    attribution: str
    metric: str
    higher_is_better: bool
    model: str
    forwards: int
    backwards: int
    spec: dict[str, Any]
    rule: Rule = "argmax"

    # ---- the choice --------------------------------------------------------------------------

    @property
    def cutoff(self) -> float | None:
        """The chosen cutoff in cycles/image, None for no filter: the best, or that of one standard error (`choose`)."""
        return self.argmax if self.rule == "argmax" else self.one_se

    @property
    def argmax(self) -> float | None:
        """The cutoff with the best mean, of equals the largest; of a race its winner."""
        return self.cutoffs[self._best]

    @cached_property
    def one_se(self) -> float | None:
        """The largest cutoff whose paired deficit from the best is within one standard error of it; None is largest.

        In a race of the cutoffs alone that have seen half of the best one's pictures (`Curve.one_se`).
        """
        return self.cutoffs[self.curve.one_se(self._best)]

    def choose(self, rule: Rule) -> CutoffFit:
        """Returns the fit with another rule: "argmax", or "one_se", the mildest filter that is as good.

        Raises:
            ValueError: For another rule.
        """
        if rule not in ("argmax", "one_se"):
            raise ValueError(f"Expected the rule 'argmax' or 'one_se', got {rule!r}.")
        return replace(self, rule=rule)

    @cached_property
    def _best(self) -> int:
        return self.curve.best([self.cutoffs.index(cutoff) for cutoff in self.rounds[-1].cutoffs])

    @cached_property
    def curve(self) -> Curve:
        """The scores as `Curve`, the higher the better also for a metric of which low is good."""
        values = self.per_image[self.names].to_numpy(np.float64)
        asked = [np.isin(range(len(self.cutoffs)), list(map(self.cutoffs.index, part.cutoffs))) for part in self.rounds]
        counts = [part.pictures for part in self.rounds]
        return Curve(self.cutoffs, values if self.higher_is_better else -values, np.repeat(asked, counts, axis=0))

    # ---- what it rests on --------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The columns of `per_image`, one for each cutoff."""
        return names_of_cutoffs(self.cutoffs)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Ids of the pictures it was chosen on."""
        return tuple(self.per_image["picture"])

    @property
    def contents(self) -> tuple[str, ...]:
        """Hashes of these pictures' values (`gradspec.data.picture_id`), whatever they are called.

        Of a fit that was saved without them its ids, which are these hashes for pictures that came without a name.
        """
        return tuple(self.per_image["content" if "content" in self.per_image else "picture"])

    @property
    def unscored(self) -> int:
        """How many pictures are left out at all cutoffs, since at one their map cannot be scored."""
        return self.curve.unscored

    @cached_property
    def table(self) -> pd.DataFrame:
        """The curve: `cutoff` (NaN: no filter), `mean`, `se`, `n`, in the order of `cutoffs`; n differs in a race."""
        import pandas as pd

        curve, sign = self.curve, 1 if self.higher_is_better else -1
        numbers = [math.nan if cutoff is None else cutoff for cutoff in self.cutoffs]
        return pd.DataFrame({"cutoff": numbers, "mean": sign * curve.mean, "se": curve.se, "n": curve.n})

    @cached_property
    def controls(self) -> pd.DataFrame:
        """What the chosen cutoff gains over each control on the pictures of both: `control`, `mean`, `se`, `n` of it,
        and the paired `gain` (positive: the cutoff is better), its `gain_se`, and `low` to `high`, a 95 % bootstrap
        interval. In-sample: on the pictures that the cutoff was chosen on, so it flatters.
        """
        import pandas as pd

        sign = 1 if self.higher_is_better else -1
        chosen = self.per_image[self.names[self.cutoffs.index(self.cutoff)]].to_numpy(np.float64)
        rows = []
        for name in self.control_scores.columns[1:]:
            values = self.control_scores[name].to_numpy(np.float64)
            both = np.isfinite(values) & np.isfinite(chosen)
            alone, gain = paired(values[both], np.zeros(both.sum())), paired(sign * chosen[both], sign * values[both])
            rows.append((name, alone.mean, alone.se, gain.n, gain.mean, gain.se, gain.low, gain.high))
        return pd.DataFrame(rows, columns=["control", "mean", "se", "n", "gain", "gain_se", "low", "high"])

    @property
    def flat(self) -> bool:
        """Whether the curve is flat: at 0.05 no cutoff is told from the others by the ranks (`Curve.flatness`)."""
        return self._flatness[0]

    @property
    def flat_reason(self) -> str:
        """The test and its p in a sentence where the curve is flat, else ""."""
        flat, _, test = self._flatness
        return f"The curve is flat: no cutoff is told from the others ({test})." if flat else ""

    @cached_property
    def _flatness(self) -> tuple[bool, float, str]:
        return self.curve.flatness([list(map(self.cutoffs.index, part.cutoffs)) for part in self.rounds])

    def interval(self, *, level: float = 0.95, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Returns between which cutoffs the best lies when the pictures are drawn anew: how sure `argmax` is.

        A percentile bootstrap over pictures that have a score at every cutoff, infinite for no filter. Of a race among
        the cutoffs of its last round alone, so that it is too narrow where the right one was dropped.

        Args:
            level: Share of the samples between the two, 0..1.
            samples: How often the pictures are drawn anew.
            seed: Of the draws.
        """
        last = [self.cutoffs.index(cutoff) for cutoff in self.rounds[-1].cutoffs]
        return self.curve.interval(last, level, samples, seed)

    def refuse(self, ids: Iterable[str], model: nn.Module | Engine | None = None, contents: Iterable[str] = ()) -> None:
        """Raises where pictures that are to be reported on are among those the cutoff was chosen on.

        Args:
            ids: Of the pictures.
            model: The network they are for, to say whether it is the one of the fit.
            contents: `gradspec.data.picture_id` of the pictures, by which they are known under other ids too.

        Raises:
            ValueError: For at least one such picture.
        """
        known = {*ids, *contents}
        pairs = zip(self.pictures, self.contents, strict=True)
        both = [name for name, content in pairs if name in known or content in known]
        if not both:
            return
        other = model is not None and fingerprint(model) != self.model
        on = ", though for another network" if other else ""
        raise ValueError(
            f"Expected pictures that the cutoff was not chosen on, got {len(both)} on which it was{on}, such as "
            f"{both[0]!r}: report on others, or allow it with allow_selection=True."
        )

    def __repr__(self) -> str:
        chosen = names_of_cutoffs((self.cutoff,))[0]
        row = self.table.iloc[self.cutoffs.index(self.cutoff)]
        flat = ", flat" if self.flat else ""
        return (
            f"CutoffFit({chosen}, {self.rule} of {len(self.cutoffs)} cutoffs by {self.search}, {self.attribution}, "
            f"where={self.where!r}, {self.metric} {row['mean']:.3f} ± {row['se']:.3f}, {int(row['n'])} pictures{flat})"
        )

    def plot(self, spectral: float | None = None) -> Any:
        """Returns the curve with its interval, choices and controls (`gradspec.plots.cutoff_curves`).

        Args:
            spectral: A cutoff to be shown beside it, that of `cutoff_from`.
        """
        return figure_of("cutoffs.cutoff_curves", self, spectral=spectral)

    def _repr_html_(self) -> str:
        alt = "Mean score at each cutoff with its interval, the chosen cutoff, and the controls as lines across."
        return html_of(self, self.controls, alt)

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the fit into a folder, made if need be, and returns it: `spec.json`, and one unit with its tables.

        Raises:
            ValueError: For a folder whose `spec.json` is of anything but a cutoff fit; nothing is written.
        """
        return Store.save(path, KIND, {"model": self.model, "attribution": self.attribution}, {UNIT: self.to_unit()})

    @classmethod
    def load(cls, path: str | Path) -> CutoffFit:
        """Returns the fit saved in a folder.

        Raises:
            ValueError: For a folder that holds none, or one that is damaged, with the file's name.
        """
        return Store.load(path, KIND).result(UNIT, cls.from_unit)

    def to_unit(self) -> pd.DataFrame:
        """Returns everything as the table of a unit: part `per_image`, a row for each picture."""
        controls = self.control_scores.drop(columns="picture").add_prefix(_CONTROL)
        plain = {name: getattr(self, name) for name in _PLAIN} | {"rounds": [part._asdict() for part in self.rounds]}
        return packed({"per_image": self.per_image.join(controls)}, plain)

    @classmethod
    def from_unit(cls, parts: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> CutoffFit:
        """Returns the fit of `to_unit`'s table, as `gradspec.runs.unpacked` gives it.

        Raises:
            ValueError: For one whose parts do not belong together.
        """
        table = parts["per_image"]
        plain: dict[str, Any] = {name: about[name] for name in _PLAIN} | {"cutoffs": _cutoffs(about["cutoffs"])}
        rounds = tuple(Round(int(part["pictures"]), _cutoffs(part["cutoffs"])) for part in about["rounds"])
        names = ["picture", "label", *({"content"} & set(table.columns)), *names_of_cutoffs(plain["cutoffs"])]
        controls = [name for name in table.columns if name.startswith(_CONTROL)]
        if list(table.columns) != [*names, *controls] or sum(part.pictures for part in rounds) != len(table):
            raise ValueError("its cutoffs are not those of its pictures")
        of_cutoffs: Any = table[names]
        of_controls: Any = table[["picture", *controls]]
        of_controls.columns = ["picture", *(name.removeprefix(_CONTROL) for name in controls)]
        return cls(per_image=of_cutoffs, control_scores=of_controls, rounds=rounds, **plain)


_PLAIN = (
    "cutoffs", "where", "shape", "search", "attribution", "metric", "higher_is_better", "model", "forwards",
    "backwards", "spec", "rule",
)  # fmt: skip


def joined(parts: Iterable[CutoffFit]) -> CutoffFit:
    """Returns the fit on all pictures of several fits, of one network and method with the same settings.

    Args:
        parts: By a grid, in the order that the pictures shall have.

    Raises:
        ValueError: For none, a race (its rounds hang on all pictures), other networks or settings, a picture that is in
            two.
    """
    import pandas as pd

    found = list(parts)
    if len(found) < 2:
        if not found:
            raise ValueError("Expected fits to join, got none.")
        return found[0]
    first = found[0]
    differing = {name for part in found for name in _SAME if getattr(part, name) != getattr(first, name)}
    if differing or first.search != "grid":
        raise ValueError(f"Expected fits by a grid of one network and method, got different {sorted(differing)}.")
    per_image: Any = pd.concat([part.per_image for part in found], ignore_index=True)
    if twice := per_image["picture"][per_image["picture"].duplicated()].tolist():
        raise ValueError(f"Expected each picture in one part, got {twice[0]!r} in two.")
    forwards, backwards = (sum(getattr(part, name) for part in found) for name in ("forwards", "backwards"))
    specs = [part.spec for part in found]
    sizes = [list(size) for size in dict.fromkeys(tuple(size) for spec in specs for size in spec["sizes"])]
    spec = first.spec | {"pictures": len(per_image), "rounds": [len(per_image)], "sizes": sizes}
    spec["seconds"] = round(sum(spec["seconds"] for spec in specs), 2)
    spec["labelled"] = all(spec["labelled"] for spec in specs)
    return replace(
        first,
        per_image=per_image,
        control_scores=pd.concat([part.control_scores for part in found], ignore_index=True),
        rounds=(Round(len(per_image), first.cutoffs),),
        forwards=forwards,
        backwards=backwards,
        spec=spec,
    )


_SAME = ("cutoffs", "where", "shape", "search", "attribution", "metric", "higher_is_better", "model", "rule")


def _cutoffs(values: Sequence[float | None]) -> Cutoffs:
    return tuple(None if value is None else float(value) for value in values)

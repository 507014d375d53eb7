"""What an audit found: tables, signatures and example gradients, saved to and loaded from a folder of plain files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradspec._showing import figure_of, html_of
from gradspec.runs import Store, as_arrays, as_rows, names, packed
from gradspec.spectra import Signature

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str]
"""(call, point)."""

UNIT = KIND = "audit"
EXAMPLE_PICTURES = 2
_SAME = ("model", "surgery", "parameters", "input_shape", "target", "layers", "channels", "seed")  # of parts
_ANSWERS = ("labels", "predicted", "label_probability")


@dataclass(frozen=True, eq=False)
class Example:
    """Gradients to look at.

    Attributes:
        maps: The gradient of the first k pictures, mean over channels, (k, H, W) float32.
        spectrum: log10 amplitude, mean over channels and then over pictures, DC in the centre, (H, W) float32.
        n: Pictures that it is the mean of.
    """

    maps: np.ndarray
    spectrum: np.ndarray
    n: int = 1


@dataclass(frozen=True, eq=False)
class Audit:
    """How much high frequency each operator's gradient carries; made by `gradspec.audit`.

    Attributes:
        table: One row per operator call and point, in order of execution, the input before the output; the first row is
            the network's input. `call`, `operator`, `type`; `stage`: round(log2(input side / map side)); `point`;
            `channels`, `height`, `width`; `slope` (log10 amplitude per cycle/image; compare within one size only) with
            `se`, `slope_nyquist` (per Nyquist, comparable) with `se_nyquist`, `r2`; `high_share` of the power above
            half Nyquist with `se_share`, `excess` over white noise; `n` pictures; `note`: why a number is NaN;
            `infinite`: pictures whose gradient is not finite there.
        signatures: The signature at each (call, point), with every picture's own ring amplitudes.
        new_power: Per call and picture, how much larger the share of high frequencies is at the operator's input than
        at
            its output (SPEC §2): `call`, `operator`, `type`, `stage`, `image`, `new_power`.
        unseen: Modules and calls without maps of a gradient, with the reason.
        examples: Gradients to look at, at the network's input and around operators that shrink the map.
        pictures: The pictures' ids, in order.
        spec: Model, target, seed, versions and settings, as plain JSON.
    """

    table: pd.DataFrame
    signatures: dict[Key, Signature]
    new_power: pd.DataFrame
    unseen: dict[str, str]
    examples: dict[Key, Example]
    pictures: tuple[str, ...]
    spec: dict[str, Any]

    def culprits(self, by: Literal["call", "type"] = "call") -> pd.DataFrame:
        """Returns operator calls, or types of operators, ranked by the high frequencies that they add to the gradient.

        New power is a share of the gradient's power, so it saturates at white noise: an operator behind others that
        have
        already made the gradient white shows little. The ranking is a correlation; `calls` tells how many calls there
        are.

        Args:
            by: "call", or "type" for the mean over a type's calls.
        """
        if by not in ("call", "type"):
            raise ValueError(f'Expected by="call" or by="type", got {by!r}.')
        keys = ["call", "operator", "type", "stage"] if by == "call" else ["type"]
        known: Any = self.new_power.dropna(subset=["new_power"])
        per_image = known.groupby([*keys, "image"], sort=False)["new_power"].mean().reset_index()
        groups = per_image.groupby(keys, sort=False)["new_power"]
        ranked = groups.agg(new_power="mean", se="sem", n="count").reset_index()
        if by == "type":
            ranked.insert(1, "calls", ranked["type"].map(known.groupby("type")["call"].nunique()))
        return ranked.sort_values("new_power", ascending=False, kind="stable", ignore_index=True)

    def stages(self) -> pd.DataFrame:
        """Returns the stages from the network's input on: largest map, first and last call, number of calls."""
        groups = self.table.groupby("stage", sort=True)
        return groups.agg(
            height=("height", "max"),
            width=("width", "max"),
            first=("call", "first"),
            last=("call", "last"),
            calls=("call", "nunique"),
        ).reset_index()

    @property
    def input_slope(self) -> tuple[float, float]:
        """Slope per Nyquist at the network's input, with its standard error."""
        signature = self.signatures["input", "input"]
        return signature.slope_nyquist, signature.slope_nyquist_se

    def __repr__(self) -> str:
        slope, se = self.input_slope if ("input", "input") in self.signatures else (math.nan, math.nan)
        model, calls = self.spec.get("model", "?"), self.table["call"].nunique()
        pictures = len(self.pictures)
        return f"Audit({model}, {pictures} pictures, {calls} calls, input slope {slope:.3f} ± {se:.3f} per Nyquist)"

    def plot(self) -> Any:
        """Returns the slope of the gradient's spectrum along the depth (`gradspec.plots.slope_profile`)."""
        return figure_of("profile.slope_profile", self)

    def _repr_html_(self) -> str:
        alt = "Slope of the gradient's spectrum at every operator, from the prediction to the network's input."
        return html_of(self, self.culprits(), alt)

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the audit into a folder, made if need be, and returns it: `spec.json`, and one unit with its tables.

        Raises:
            ValueError: For a folder with a `spec.json` of anything else.
        """
        spec = {name: self.spec[name] for name in ("model", "created", "versions") if name in self.spec}
        return Store.save(path, KIND, spec, {UNIT: self.to_unit()})

    @classmethod
    def load(cls, path: str | Path) -> Audit:
        """Returns the audit saved in a folder, or of a run there.

        Raises:
            ValueError: For a folder that holds no audit or not all of it yet, or one that is damaged, with the file's
                name.
        """
        store = Store.load(path, KIND)
        variants = store.spec.get("variants", [""])
        if not isinstance(variants, list) or len(variants) != 1:
            raise ValueError(f"Expected the audit of one network in {path}, got variants {str(variants)[:200]}.")
        (variant,) = map(str, variants)
        found = kept(store, variant)
        more = {"command": store.spec["command"]} if "command" in store.spec else {}
        return replace(found, spec=found.spec | more)

    def to_unit(self) -> pd.DataFrame:
        """Returns everything as the table of a unit: parts `calls`, `signatures`, `new_power` and `examples`."""
        import pandas as pd

        rings = [
            (call, point, place, ring, share)
            for (call, point), found in self.signatures.items()
            for place, (ring, share) in enumerate(zip(found.per_image, found.high_shares, strict=True))
        ]
        shown = {f"maps {k}": example.maps for k, example in enumerate(self.examples.values())}
        shown |= {f"spectrum {k}": example.spectrum for k, example in enumerate(self.examples.values())}
        parts: dict[str, Any] = {
            "calls": self.table[list(_CALL)],
            "signatures": pd.DataFrame(rings, columns=["call", "point", "place", "rings", "high_share"]),
            "new_power": self.new_power,
            "examples": as_rows(shown),
        }
        examples = [[*key, example.n] for key, example in self.examples.items()]
        about = {"spec": self.spec, "pictures": list(self.pictures), "unseen": self.unseen, "examples": examples}
        return packed(parts, about)

    @classmethod
    def from_unit(cls, parts: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Audit:
        """Returns the audit of `to_unit`'s tables, as `gradspec.runs.unpacked` gives them."""
        calls: Any = parts["calls"]
        rows = dict(iter(parts["signatures"].groupby(["call", "point"], sort=False)))
        signatures = {}
        for call in calls.to_dict("records"):
            found: Any = rows[call["call"], call["point"]]
            shares = found["high_share"].to_numpy(float)
            rings = np.stack(list(found["rings"]))
            signatures[call["call"], call["point"]] = Signature(int(call["height"]), int(call["width"]), rings, shares)
        arrays = as_arrays(parts["examples"])
        examples = {
            (str(call), str(point)): Example(arrays[f"maps {k}"], arrays[f"spectrum {k}"], int(n))
            for k, (call, point, n) in enumerate(about["examples"])
        }
        table, pictures = table_of(calls, signatures), tuple(about["pictures"])
        unseen = dict(about["unseen"])
        return cls(table, signatures, parts["new_power"], unseen, examples, pictures, dict(about["spec"]))


def kept(store: Store, variant: str) -> Audit:
    """Returns the audit of a variant from the units of a run, or from that of an audit that was saved (variant "").

    Raises:
        ValueError: For units that are missing or damaged, with the file's name.
    """
    wanted = names(store.spec, UNIT, *filter(None, [variant]), pictures="pictures")
    if variant and (lacking := store.lacking(wanted)):
        raise ValueError(f"The audit in {store.folder} is not finished: {lacking}.")
    found = [store.result(name, Audit.from_unit) for name in wanted if not store.about(name).get("empty")]
    if not found:
        raise ValueError(f"Expected pictures in the audit in {store.folder}, but none of them could be read.")
    return joined(found)


# ---- tables ----------------------------------------------------------------------------------

_CALL = ("call", "operator", "type", "stage", "point", "channels", "height", "width", "infinite")


def table_of(calls: pd.DataFrame, signatures: Mapping[Key, Signature]) -> pd.DataFrame:
    """Returns `Audit.table`.

    Args:
        calls: `call`, `operator`, `type`, `stage`, `point`, `channels`, `height`, `width`, `infinite`.
        signatures: In the order of these rows.
    """
    import pandas as pd

    infinite = calls["infinite"].astype(int).tolist()
    notes = [f"NaN or infinite for {count} picture(s)" if count else "" for count in infinite]
    numbers = [
        {
            "slope": s.slope, "slope_nyquist": s.slope_nyquist, "r2": s.r2, "high_share": s.high_share,
            "excess": s.excess, "se": s.slope_se, "se_nyquist": s.slope_nyquist_se, "se_share": s.high_share_se,
            "n": s.n, "note": note or s.reason,
        }
        for s, note in zip(signatures.values(), notes, strict=True)
    ]  # fmt: skip
    return pd.concat([calls[list(_CALL[:-1])], pd.DataFrame(numbers)], axis=1).assign(infinite=infinite)


def zeros(signatures: Mapping[Key, Signature]) -> dict[str, str]:
    """Returns the calls with a gradient that is zero for every picture, at both points or at one, in words."""
    points: dict[str, list[str]] = {}
    for name, point in signatures:
        points.setdefault(name, []).append(point)
    reasons = {}
    for name, there in points.items():
        zero = [point for point in there if not signatures[name, point].per_image.any()]
        if zero:
            where = "" if len(zero) == len(there) else f" at the {zero[0]}"
            reasons[name] = f"its gradient{where} is zero for every picture"
    return reasons


# ---- parts -----------------------------------------------------------------------------------


def joined(parts: Iterable[Audit]) -> Audit:
    """Returns the audit of all pictures of several audits of one network with the same settings.

    Args:
        parts: In the order that the pictures shall have.

    Raises:
        ValueError: For none, other networks or settings, a picture that is in two.
    """
    import pandas as pd

    found = list(parts)
    if len(found) < 2:
        if not found:
            raise ValueError("Expected audits to join, got none.")
        return found[0]
    first = found[0]
    for part in found[1:]:
        differing = [name for name in _SAME if part.spec.get(name) != first.spec.get(name)]
        differing += ["calls"] * (list(part.signatures) != list(first.signatures))
        if differing:
            raise ValueError(f"Expected audits of one network with the same settings, got different {differing}.")
    pictures = tuple(name for part in found for name in part.pictures)
    if twice := sorted(name for name, count in Counter(pictures).items() if count > 1):
        raise ValueError(f"Expected each picture in one part, got {twice[0]!r} in two.")
    signatures = {key: _whole([part.signatures[key] for part in found]) for key in first.signatures}
    calls = first.table.assign(infinite=sum(part.table["infinite"].to_numpy() for part in found))
    order = {name: place for place, name in enumerate(dict.fromkeys(first.table["call"]))}
    powers: Any = pd.concat([part.new_power for part in found], ignore_index=True)
    powers = powers.sort_values("call", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    unseen = {
        name: why for part in found for name, why in part.unseen.items() if zeros(part.signatures).get(name) != why
    }
    examples = {key: _mean([part.examples[key] for part in found if key in part.examples]) for key in first.examples}
    spec = _spec([part.spec for part in found])
    return Audit(table_of(calls, signatures), signatures, powers, unseen | zeros(signatures), examples, pictures, spec)


def _whole(parts: list[Signature]) -> Signature:
    rings, shares = (np.concatenate([getattr(p, name) for p in parts]) for name in ("per_image", "high_shares"))
    return replace(parts[0], per_image=rings, high_shares=shares)


def _mean(parts: list[Example]) -> Example:
    """The first pictures' maps, and the spectrum of all."""
    maps = np.concatenate([part.maps for part in parts])[:EXAMPLE_PICTURES]
    known = [part for part in parts if part.n]
    n = sum(part.n for part in known)
    whole = sum(part.spectrum.astype(np.float64) * part.n for part in known) / n if n else parts[0].spectrum
    return Example(maps, np.asarray(whole, np.float32), n)


def _spec(specs: list[dict[str, Any]]) -> dict[str, Any]:
    whole = {name: [value for spec in specs for value in spec[name]] for name in _ANSWERS}
    counts = {"seconds": round(sum(spec["seconds"] for spec in specs), 2)}
    counts["batch_size"] = max(spec["batch_size"] for spec in specs)
    skipped = {name: reason for spec in specs for name, reason in spec.get("skipped", {}).items()}
    return specs[0] | whole | counts | {"labelled": all(s["labelled"] for s in specs), "skipped": skipped}

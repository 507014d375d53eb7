"""What an audit found: tables, signatures and example gradients, saved to and loaded from a folder of plain files."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradspec.spectra import Signature

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str]
"""(call, point)."""

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Example:
    """Gradients to look at.

    Attributes:
        maps: The gradient of the first k pictures, mean over channels, (k, H, W) float32.
        spectrum: log10 amplitude, mean over channels and then over pictures, DC in the centre, (H, W) float32.
    """

    maps: np.ndarray
    spectrum: np.ndarray


@dataclass(frozen=True, eq=False)
class Audit:
    """How much high frequency each operator's gradient carries; made by `gradspec.audit`.

    Attributes:
        table: One row per operator call and point, in order of execution, the input before the output; the first row is
            the network's input. `call`, `operator`, `type`; `stage`: round(log2(input side / map side)); `point`;
            `channels`, `height`, `width`; `slope` (log10 amplitude per cycle/image; compare within one size only) with
            `se`, `slope_nyquist` (per Nyquist, comparable) with `se_nyquist`, `r2`; `high_share` of the power above
            half Nyquist with `se_share`, `excess` over white noise; `n` pictures; `note`: why a number is NaN.
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

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self), quote=False)}</p>{self.culprits().head(10).to_html()}"

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the audit into a folder, made if need be, and returns it.

        `spec.json` (settings, versions, pictures, unseen), `table.csv`, `signatures.parquet` (every picture's rings),
        `new_power.parquet`, `examples.npz`.
        """
        import pandas as pd

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(folder / "table.csv", index=False)
        rows = [
            {
                "call": call,
                "point": point,
                "height": s.height,
                "width": s.width,
                "picture": i,
                "rings": rings,
                "high_share": share,
            }
            for (call, point), s in self.signatures.items()
            for i, (rings, share) in enumerate(zip(s.per_image, s.high_shares, strict=True))
        ]
        pd.DataFrame(rows).to_parquet(folder / "signatures.parquet", index=False)
        self.new_power.to_parquet(folder / "new_power.parquet", index=False)
        arrays = {}
        for i, example in enumerate(self.examples.values()):
            arrays[f"maps_{i}"], arrays[f"spectrum_{i}"] = example.maps, example.spectrum
        np.savez_compressed(folder / "examples.npz", **arrays)
        about = {
            "format": _FORMAT,
            "kind": "audit",
            **self.spec,
            "pictures": list(self.pictures),
            "unseen": self.unseen,
        }
        about["examples"] = [list(key) for key in self.examples]
        (folder / "spec.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Audit:
        """Returns the audit saved in a folder.

        Raises:
            ValueError: For a folder that holds no audit, or one that is damaged, with the file's name.
        """
        import pandas as pd

        folder = Path(path)
        spec = read_file(folder / "spec.json", lambda f: json.loads(f.read_text(encoding="utf-8")))
        if not isinstance(spec, dict) or spec.get("kind") != "audit" or spec.pop("format", None) != _FORMAT:
            raise ValueError(
                f"Expected an audit of format {_FORMAT} in {folder}, got something else: see its spec.json."
            )
        spec.pop("kind")
        text = {"note": str, "call": str, "operator": str, "type": str, "point": str}
        table = read_file(
            folder / "table.csv", lambda f: pd.read_csv(f, dtype=text, keep_default_na=False, na_values=_FLOATS)
        )
        rows = read_file(folder / "signatures.parquet", pd.read_parquet)
        signatures = {
            (str(call), str(point)): Signature(
                int(g["height"].iloc[0]),
                int(g["width"].iloc[0]),
                np.stack(list(g["rings"])),
                g["high_share"].to_numpy(),
            )
            for (call, point), g in rows.groupby(["call", "point"], sort=False)
        }
        arrays = read_file(folder / "examples.npz", lambda f: dict(np.load(f, allow_pickle=False)))
        keys = [(call, point) for call, point in spec.pop("examples")]
        examples = {key: Example(arrays[f"maps_{i}"], arrays[f"spectrum_{i}"]) for i, key in enumerate(keys)}
        new_power = read_file(folder / "new_power.parquet", pd.read_parquet)
        pictures, unseen = tuple(spec.pop("pictures")), spec.pop("unseen")
        return cls(table, signatures, new_power, unseen, examples, pictures, spec)


_FLOATS = {
    name: [""] for name in ("slope", "slope_nyquist", "r2", "high_share", "excess", "se", "se_nyquist", "se_share")
}


def read_file(path: Path, reader: Any, kind: str = "an audit") -> Any:
    """Returns what the reader makes of a result's file; a ValueError names the file that is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"Expected {kind} in {path.parent}, but it has no {path.name}.")
    try:
        return reader(path)
    except Exception as error:
        raise ValueError(f"Cannot read {path}: {type(error).__name__}: {error}") from error

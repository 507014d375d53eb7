"""An audit in a few lines of text and four figures: what a user sees first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gradspec import plots

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.results import Audit


def summary(audit: Audit) -> str:
    """Returns the slope at the network's input, what was not seen, and five culprits by call and by type."""
    first = audit.table.iloc[0]  # the network's input
    slope = first.note or f"{first.slope_nyquist:+.3f} ± {first.se_nyquist:.3f} per Nyquist (log10 amplitude)"
    share = f"{first.high_share:.3f} ± {first.se_share:.3f} ({first.excess:+.3f} against white noise)"
    lines = [
        f"gradient at the network's input, mean over {first.n} pictures ± standard error",
        f"  slope                     {slope}",
        f"  power above half Nyquist  {share}",
        *_unseen(audit.unseen),
        "",
        "culprits by call (share of power above half Nyquist that is new at the input)",
        _rows(audit.culprits("call"), ["call", "type"]),
        "",
        "culprits by type",
        _rows(audit.culprits("type"), ["type", "calls"]),
    ]
    return "\n".join(lines)


def draw(audit: Audit, folder: Path) -> list[Path]:
    """Returns the paths of the figures drawn into the folder as PNG; an SVG lies beside each."""
    figures = {
        "profile": plots.slope_profile,
        "signatures": plots.signatures,
        "gradients": plots.gradient_pictures,
        "culprits": plots.culprits,
    }
    return [plots.save(figure(audit), folder / name)[0] for name, figure in figures.items()]


def _unseen(reasons: Mapping[str, str], shown: int = 5) -> list[str]:
    """The modules and calls without a row, the first few with their reason; `spec.json` holds them all."""
    lines = [f"not seen: {len(reasons) or 'none'}"]
    lines += [f"  {name}: {reason}" for name, reason in list(reasons.items())[:shown]]
    return lines + [f"  and {len(reasons) - shown} more, see spec.json"] * (len(reasons) > shown)


def _rows(culprits: pd.DataFrame, names: list[str]) -> str:
    formats = {"new_power": "{:+.3f}".format, "se": "{:.3f}".format}
    return culprits.head(5).to_string(index=False, columns=[*names, *formats], formatters=formats)

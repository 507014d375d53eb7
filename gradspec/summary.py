"""An audit in a few lines of text and four figures: what a user sees first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradspec import plots

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.results import Audit

_POOR_FIT = 0.5  # r² below which the slope says little


def summary(audit: Audit) -> str:
    """Returns the slope at the network's input, what was not seen, and five culprits by call and by type."""
    lines = [
        *_headline(audit.table),
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


def _headline(table: pd.DataFrame) -> list[str]:
    """Slope and share at the network's input."""
    row: Any = table[(table["call"] == "input") & (table["point"] == "input")].iloc[0]
    several = row.n > 1
    poor = ": the line fits poorly, read the share" if row.r2 < _POOR_FIT else ""
    slope = f"{row.slope_nyquist:+.3f}{_error(row.se_nyquist, several)} per Nyquist (log10 amplitude), r² {row.r2:.2f}"
    share = f"{row.high_share:.3f}{_error(row.se_share, several)} ({row.excess:+.3f} against white noise)"
    of = f"mean over {row.n} pictures ± standard error" if several else f"{row.n} picture, no standard error"
    return [
        f"gradient at the network's input, {of}",
        f"  slope                     {row.note or slope + poor}",
        f"  power above half Nyquist  {share}",
    ]


def _error(error: float, several: bool) -> str:
    return f" ± {error:.3f}" if several else ""


def _unseen(reasons: Mapping[str, str], shown: int = 6) -> list[str]:
    """How many modules and calls have no numbers, by reason: zero gradients first, what was never called last."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    order = sorted(groups, key=lambda reason: (reason == "never called", "is zero" not in reason))
    lines = [f"not seen: {len(reasons) or 'none'}"]
    for reason in order[:shown]:
        names = groups[reason]
        lines.append(f"  {reason}: {len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})")
    return lines + [f"  and {len(order) - shown} more reasons, see spec.json"] * (len(order) > shown)


def _rows(culprits: pd.DataFrame, names: list[str]) -> str:
    formats = {"new_power": "{:+.3f}".format, "se": "{:.3f}".format}
    if culprits["se"].isna().all():  # of one picture
        del formats["se"]
    return culprits.head(5).to_string(index=False, columns=[*names, *formats], formatters=formats)

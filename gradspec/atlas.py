"""An atlas: many networks, a row each, on pictures of their own input size: how white is the gradient at the input?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.results import Audit

TOP = 3  # operators that are named


def entry(audit: Audit) -> pd.DataFrame:
    """Returns what an atlas says of one network: a table of one row.

    `parameters`, `height`, `width`, `n` pictures; `slope_nyquist` (log10 amplitude per Nyquist, 0 for white noise) and
    `high_share` (of the power above half Nyquist) of the gradient at the network's input, with `se_nyquist` and
    `se_share`; `excess` over white noise of that size; `calls` of operators, and how many were `unseen`; the `TOP`
    operator calls that add most: `culprits`, their `culprit_types` and `culprit_power` (new power, SPEC §2); and stage
    after stage from the input on `stages` (map sizes) with `stage_shares`, the mean high share over its points.

    Args:
        audit: Of the network.

    Example:
        >>> import torch, gradspec as gs
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), torch.nn.Flatten())
        >>> row = entry(gs.audit(net, (torch.rand(4, 3, 18, 18), torch.zeros(4).long()), progress=False)).iloc[0]
        >>> row["culprits"][0], row["stages"], int(row["calls"])
        ('1', ['18 x 18', '8 x 8'], 2)
    """
    import pandas as pd

    table: Any = audit.table
    most: Any = audit.culprits().head(TOP)
    at_input = table[(table["call"] == "input") & (table["point"] == "input")].iloc[0]
    shares = table.groupby("stage")["high_share"].mean()
    stages: Any = audit.stages()
    row = {
        "parameters": audit.spec["parameters"],
        **{name: at_input[name] for name in ("height", "width", "n", "slope_nyquist", "se_nyquist")},
        **{name: at_input[name] for name in ("high_share", "se_share", "excess")},
        "calls": table.loc[table["call"] != "input", "call"].nunique(),
        "unseen": len(audit.unseen),
        "culprits": list(most["call"]),
        "culprit_types": list(most["type"]),
        "culprit_power": list(most["new_power"]),
        "stages": [f"{int(h)} x {int(w)}" for h, w in zip(stages["height"], stages["width"], strict=True)],
        "stage_shares": [float(shares[stage]) for stage in stages["stage"]],
    }
    return pd.DataFrame([row])


def ranked(entries: Any) -> pd.DataFrame:
    """Returns the networks, that with the whitest gradient at its input first.

    Args:
        entries: Rows of `entry` with a column `network`.
    """
    order = ["network", *[name for name in entries if name != "network"]]
    return entries[order].sort_values("slope_nyquist", ascending=False, kind="stable", ignore_index=True)


def as_text(table: Any) -> pd.DataFrame:
    """Returns the table with its lists in words, as a CSV or a terminal shows them.

    Args:
        table: Of `ranked`, a row at least.
    """

    def said(row: Any) -> str:
        found = zip(row["culprits"], row["culprit_types"], row["culprit_power"], strict=True)
        return "; ".join(f"{call} ({kind}) {power:+.2f}" for call, kind, power in found)

    def shared(row: Any) -> str:
        return "; ".join(f"{size}: {share:.2f}" for size, share in zip(row["stages"], row["stage_shares"], strict=True))

    lists = ["culprits", "culprit_types", "culprit_power", "stages", "stage_shares"]
    told = {"culprits": table.apply(said, axis=1), "stages": table.apply(shared, axis=1)}
    return table.drop(columns=lists).assign(**told).replace({np.nan: None})

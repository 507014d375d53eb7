"""An atlas: many networks, a row each, on pictures of their own input size: how white is the gradient at the input?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.results import Audit

TOP, NAMED = 10, 3  # operators that are kept of an audit, and named of a network
_MEANS = ("slope_nyquist", "se_nyquist", "r2", "high_share", "se_share", "excess")  # over draws
_CULPRITS = ("culprits", "culprit_types", "culprit_power")


def entry(audit: Audit) -> pd.DataFrame:
    """Returns what an atlas says of one network: a table of one row.

    `parameters`, `height`, `width`, `n` pictures; `slope_nyquist` (log10 amplitude per Nyquist, 0 for white noise) and
    `high_share` (of the power above half Nyquist) of the gradient at the network's input, with `se_nyquist` and
    `se_share`; the `r2` of its line; `excess` over white noise of that size; `calls` of operators, and how many were
    `unseen`; the `TOP` operator calls that add most: `culprits`, their `culprit_types` and `culprit_power` (new power,
    SPEC §2); stage after stage from the input on `stages` (map sizes) with `stage_shares`, the mean high share over
    its points; and a `note`: why there is no slope.

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
        **{name: at_input[name] for name in ("r2", "high_share", "se_share", "excess", "note")},
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
    """Returns a row for each network, that with the whitest gradient at its input first.

    Of several rows of one network, draws of its weights, there are the means, how many `draws` they are, and the
    standard deviations over these, `sd_nyquist` and `sd_share` (NaN for one); `culprits` are the `NAMED` with the most
    new power, in the mean over draws.

    Args:
        entries: Rows of `entry` with a column `network`.
    """
    import pandas as pd

    rows = [_network(name, rows) for name, rows in entries.groupby("network", sort=False)]
    found: Any = pd.DataFrame(rows)
    order = ["network", "draws", *[name for name in found if name not in ("network", "draws")]]
    return found[order].sort_values("slope_nyquist", ascending=False, kind="stable", ignore_index=True)


def _network(name: Any, rows: Any) -> dict[str, Any]:
    first, several = rows.iloc[0].to_dict(), len(rows) > 1
    whole = first | {"network": name, "draws": len(rows)} | {each: rows[each].mean() for each in _MEANS if each in rows}
    whole |= {
        f"sd_{short}": rows[each].std(ddof=1) if several else math.nan
        for short, each in (("nyquist", "slope_nyquist"), ("share", "high_share"))
    }
    whole["stage_shares"] = np.mean([np.array(shares, float) for shares in rows["stage_shares"]], axis=0).tolist()
    powers: dict[tuple[str, str], float] = {}
    for row in rows.to_dict("records"):
        for call, kind, power in zip(*(row[each] for each in _CULPRITS), strict=True):
            powers[call, kind] = powers.get((call, kind), 0.0) + power / len(rows)
    most = sorted(powers.items(), key=lambda found: -found[1])[:NAMED]
    whole["culprits"], whole["culprit_types"] = ([key[place] for key, _ in most] for place in (0, 1))
    return whole | {"culprit_power": [power for _, power in most]}


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

    lists = [*_CULPRITS, "stages", "stage_shares"]
    told = {"culprits": table.apply(said, axis=1), "stages": table.apply(shared, axis=1)}
    return table.drop(columns=lists).assign(**told).replace({np.nan: None})

"""The causal arm: swap one operator, or all but one, and see what becomes of the gradient at the input (SPEC §2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from gradspec.spectra import Signature

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.surgery import Record

COLUMNS = (
    "call", "type", "arm", "slope_nyquist", "se_nyquist", "high_share", "se_share", "change", "se_change",
    "share_change", "se_share_change", "new_power", "note",
)  # fmt: skip
MOST_PERMUTED = 8  # operators; 40,320 orders


class OtherPictures(ValueError):
    """The data gave other pictures, or another order, than when they were gone through first."""


class Difference(NamedTuple):
    """How one signature differs from another of the same pictures, with standard errors over pictures."""

    slope_nyquist: float
    se_nyquist: float
    high_share: float
    se_share: float
    n: int  # pictures that count in both


def paired_difference(signature: Signature, base: Signature) -> Difference:
    """Returns `signature` less `base`, both of the same pictures, over those that count in both.

    The error of the slopes' difference is the delta method's, from what each picture moves both slopes
    (`Signature.slope_influences`): what pictures have in common cancels.

    Example:
        >>> rings = 10.0 ** -np.outer([0.1, 0.3, 0.2], np.arange(9))
        >>> steep = Signature(16, 16, rings * 10.0 ** (-0.05 * np.arange(9)), np.array([0.1, 0.2, 0.3]))
        >>> flat = Signature(16, 16, rings, np.array([0.2, 0.3, 0.4]))
        >>> [round(value, 6) for value in paired_difference(steep, flat)[2:]]
        [-0.1, 0.0, 3]
    """
    both = signature.counted & base.counted
    if not both.any():
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    new, old = (Signature(s.height, s.width, s.per_image[both], s.high_shares[both]) for s in (signature, base))
    shares = new.high_shares - old.high_shares
    se = _standard_error(new.slope_influences() - old.slope_influences())
    change = new.slope_nyquist - old.slope_nyquist
    return Difference(change, se, float(shares.mean()), _standard_error(shares), int(both.sum()))


def causal_effects(
    model: nn.Module,
    untouched: Signature,
    signature_of: Callable[[nn.Module], Signature],
    *,
    only: Sequence[str] | None,
    inputs: Tensor,
    new_power: Mapping[str, float],
    progress: bool,
) -> tuple[pd.DataFrame, Record]:
    """Returns the rows of `Comparison.causal`, and the record of swapping every operator.

    Args:
        model: The network; copies of it are operated.
        untouched: The signature at its input.
        signature_of: Network -> signature at its input, on the pictures of `untouched`.
        only: Names or patterns of the operators to take one by one; None: all.
        inputs: Pictures (N, C, H, W) to find the operators with.
        new_power: Call -> its new power, as the culprits rank it.
        progress: Show a bar on stderr where that is a terminal.

    Raises:
        NothingToSwap: The network has no operator that can be swapped, or none of `only`.
    """
    import pandas as pd

    from gradspec.surgery import average_pooled

    record = average_pooled(model, inputs=inputs)[1]
    operators = record.changes if only is None else average_pooled(model, only=only, inputs=inputs)[1].changes
    names = {change.name for change in record.changes}
    bar = tqdm(total=1 + 2 * len(operators), unit="arm", desc="causal", disable=None if progress else True)

    def measured(wanted: set[str], only: list[str] | None = None, except_: list[str] | None = None) -> Signature | str:
        try:
            operated, found = average_pooled(model, only=only, except_=except_, inputs=inputs)
            bound = {change.name for change in found.changes} ^ wanted
            return f"cannot be swapped apart from {', '.join(sorted(bound))}" if bound else signature_of(operated)
        except OtherPictures:
            raise
        except Exception as error:  # an arm that fails is a row that says why
            return reason_of(error)
        finally:
            bar.update()

    def others(name: str) -> Signature | str:
        if name not in names:  # a patch embedding that was asked for by its name
            return "swapped on request only, so it is not in the arm of all"
        return measured(names - {name}, except_=[name]) if len(names) > 1 else untouched

    with bar:
        everything, network = measured(names), {"call": "", "type": ""}
        rows = [network | _row("none", untouched), network | _row("all", everything, untouched)]
        for change in operators:
            name = change.name
            powers = [new_power[call] for call in change.calls or (name,) if call in new_power]
            about = {"call": name, "type": change.type, "new_power": sum(powers) if powers else math.nan}
            rows.append(about | _row("one", measured({name}, only=[name]), untouched))
            rows.append(about | _row("all but one", others(name), everything))
    return pd.DataFrame(rows, columns=list(COLUMNS)), record


def agreement(effects: pd.DataFrame) -> pd.DataFrame:
    """Returns the table that `Comparison.agreement` documents."""
    import pandas as pd

    rows = []
    for arm, sign in (("one", -1.0), ("all but one", 1.0)):
        known: Any = effects.dropna(subset=["new_power", "change"])
        known = known[known["arm"] == arm]
        rows.append({"arm": arm, **_rank_correlation(known["new_power"], sign * known["change"])})
    return pd.DataFrame(rows)


def reason_of(error: Exception) -> str:
    """Returns the first line of what an exception says; with its type where that is no sentence.

    Example:
        >>> reason_of(ValueError("Expected logits.")), reason_of(KeyError("fc"))
        ('Expected logits.', "KeyError: 'fc'")
    """
    text = str(error).strip().partition("\n")[0]
    told = text and isinstance(error, (ValueError, TypeError, RuntimeError))
    return text if told else f"{type(error).__name__}: {text}"


def _row(arm: str, found: Signature | str, base: Signature | str | None = None) -> dict[str, Any]:
    if isinstance(found, str):
        return {"arm": arm, "note": found}
    row: dict[str, Any] = {"arm": arm, "slope_nyquist": found.slope_nyquist, "se_nyquist": found.slope_nyquist_se}
    row |= {"high_share": found.high_share, "se_share": found.high_share_se, "note": found.reason}
    if isinstance(base, Signature):
        change = paired_difference(found, base)
        row |= {"change": change.slope_nyquist, "se_change": change.se_nyquist}
        row |= {"share_change": change.high_share, "se_share_change": change.se_share}
        if not found.reason and change.n < len(found.per_image):
            row["note"] = f"change over {change.n} of {len(found.per_image)} pictures"
    elif base is not None:
        row["note"] = "no change: the arm with all operators swapped failed"
    return row


def _rank_correlation(ranking: Any, effect: Any) -> dict[str, Any]:
    n = len(ranking)
    if n < 3:
        return {"correlation": math.nan, "p": math.nan, "n": n, "note": f"{n} operator(s), a ranking takes 3"}
    if ranking.nunique() == 1 or effect.nunique() == 1:
        return {"correlation": math.nan, "p": math.nan, "n": n, "note": "all the same: no ranking"}
    from scipy.stats import spearmanr

    found: Any = spearmanr(ranking, effect)
    p = _exact_p(ranking.rank(), effect.rank()) if n <= MOST_PERMUTED else float(found.pvalue)
    return {"correlation": float(found.statistic), "p": p, "n": n, "note": ""}


def _exact_p(ranks: Any, others: Any) -> float:
    """The share of all orders whose correlation is as far from 0: scipy's p supposes many operators."""
    centred, around = ranks.to_numpy() - ranks.mean(), others.to_numpy() - others.mean()
    orders = np.array(list(itertools.permutations(around)))
    return float((np.abs(orders @ centred) >= abs(around @ centred) - 1e-9).mean())


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan

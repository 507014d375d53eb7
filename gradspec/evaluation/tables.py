"""The paper's tables, and the statistics behind them, of scores picture by picture (SPEC §6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradspec.evaluation.ledger import Key
from gradspec.evaluation.plan import CONTROL, FORGRAD, GRADIENT, NONE, name_of
from gradspec.spectra import Signature
from gradspec.statistics import BayesFactor, bic_bf10, jzs_bf10, paired

if TYPE_CHECKING:
    import pandas as pd

    from gradspec.evaluation.scores import Scores

_SLOPES = ("attribution", "arm", "slope_nyquist", "se", "high_share", "se_share", "n", "note")
COST = ("seconds per 100", "filter per 100", "forwards", "backwards")


def summary(scores: Scores) -> pd.DataFrame:
    """Returns a row for each attribution and arm; see `Scores.summary`."""
    import pandas as pd

    groups: Any = scores.table.groupby(["attribution", "arm", "metric"], sort=False)["value"]
    known = groups.agg(["mean", "sem", "count"])
    costs = scores.costs.set_index(["attribution", "arm"])
    lines = []
    for row in scores.spec["rows"]:
        key = row["attribution"], row["arm"]
        line = {name: row[name] for name in ("attribution", "arm", "name", "family")}
        line["cutoff"] = math.nan if row["cutoff"] is None else float(row["cutoff"])
        for metric in scores.spec["metrics"]:
            there = (*key, metric) in known.index
            mean, error, n = known.loc[(*key, metric)] if there else (math.nan, math.nan, 0)
            line |= {metric: mean, f"{metric} se": error, f"{metric} n": int(n)}
        line |= {name: costs.loc[key, name] if key in costs.index else math.nan for name in COST}
        reasons = [row["note"]] if row.get("note") else []
        if chosen_on := row.get("selection"):
            reasons.append(f"cutoff chosen on {chosen_on} of these pictures")
        reasons += [f"{m.metric}: {m.reason}" if m.metric else m.reason for m in scores.missing if (m[0], m[1]) == key]
        lines.append(line | {"note": "; ".join(reasons)})
    return pd.DataFrame(lines)


def slopes(scores: Scores) -> pd.DataFrame:
    """Returns slope and high share of each row's maps; see `Scores.slopes`."""
    import pandas as pd

    known = len(scores.spectra) > 0
    groups: Any = scores.spectra.groupby(["attribution", "arm"], sort=False) if known else ()
    parts = dict(iter(groups))
    keys = [(row["attribution"], row["arm"]) for row in scores.spec["rows"]]
    return pd.DataFrame([(*key, *_spectrum(parts.get(key))) for key in keys], columns=list(_SLOPES))


def _spectrum(maps: pd.DataFrame | None) -> tuple[float, float, float, float, int, str]:
    """Slope and share of high frequencies of all maps, their errors, and why there is none."""
    nothing = math.nan, math.nan, math.nan, math.nan
    if maps is None:
        return *nothing, 0, "no finite map"
    sizes = sorted(set(zip(maps["height"], maps["width"], strict=True)))
    if len(sizes) > 1:
        return *nothing, 0, f"maps of {len(sizes)} sizes"
    height, width = map(int, sizes[0])
    whole = Signature(height, width, np.stack(list(maps["rings"])), maps["high_share"].to_numpy())
    if whole.reason:
        return *nothing, whole.n, whole.reason
    return whole.slope_nyquist, whole.slope_nyquist_se, whole.high_share, whole.high_share_se, whole.n, ""


def side_by_side(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Returns the layout of the paper's table 5: a row per attribution and arm, columns (network, number).

    Beside each network's numbers stands its accuracy, the same in every row: a variant that explains better may have
    forgotten what it knew.

    Args:
        scores: By the network's or variant's name.

    Raises:
        ValueError: For none.
    """
    import pandas as pd

    if not scores:
        raise ValueError("Expected the scores of at least one network, got none.")
    keys = ["attribution", "arm", "name", "family"]
    parts = {name: found.summary().set_index(keys).assign(accuracy=found.accuracy) for name, found in scores.items()}
    order = list(dict.fromkeys(key for part in parts.values() for key in part.index))
    wide = pd.concat(parts, axis=1)
    return wide.reindex(pd.MultiIndex.from_tuples(order, names=keys))


def gains(scores: Scores, metric: str, against: str, level: float, samples: int) -> pd.DataFrame:
    """Returns paired differences of each arm; see `Scores.gains`."""
    import pandas as pd

    sign = _sign(scores, metric)
    rows = scores.spec["rows"]
    control = any(row["arm"] == CONTROL and row["attribution"] == against for row in rows)
    if not control and against not in {row["arm"] for row in rows}:
        arms = dict.fromkeys(row["attribution"] if row["arm"] == CONTROL else row["arm"] for row in rows)
        raise ValueError(f"Expected something to compare with among {list(arms)}, got {against!r}.")
    lines = []
    for row in rows:
        key = row["attribution"], row["arm"]
        if row["arm"] in (CONTROL, against) or (not control and row["arm"] == NONE):
            continue
        mine = scores.values(*key, metric)
        others = [(against, CONTROL)] if control else _counterparts(scores, row["base"], against)
        base = scores.values(*(others or [("", "")])[0], metric)
        both: Any = pd.concat([mine, base], axis=1, keys=["mine", "base"])
        if not len(mine) or not len(base):
            continue
        a, b = (sign * both[name].to_numpy(float) for name in ("mine", "base"))
        found = paired(a, b, level=level, samples=samples, seed=scores.spec["seed"])
        lines.append(
            (*key, row["name"], against, found.n, found.mean, found.se, found.low, found.high, found.bf10,
             found.effect, found.missing)
        )  # fmt: skip
    names = ["attribution", "arm", "name", "against", "n", "mean", "se", "low", "high", "bf10", "effect", "missing"]
    return pd.DataFrame(lines, columns=names)


def ranking(scores: Scores, metrics: Sequence[str] | None, arm: str) -> pd.DataFrame:
    """Returns the attributions by the sum of their scores; see `Scores.ranking`."""
    import pandas as pd

    chosen = _of_type(scores, ("Faithfulness", "MuFidelity")) if metrics is None else list(metrics)
    keys = [(row["attribution"], NONE) for row in scores.spec["rows"] if row["arm"] == NONE]
    stages = {"before": keys, "after": [_after(scores, name, arm, chosen) or (name, NONE) for name, _ in keys]}
    sums = _summed(scores, dict.fromkeys([*keys, *stages["after"]]), chosen)
    columns = {}
    for name, of_stage in stages.items():
        found = [(name_of(*key), sums[key].mean(), sums[key].sem()) for key in of_stage]
        best = sorted(found, key=lambda entry: -np.inf if math.isnan(entry[1]) else entry[1], reverse=True)
        texts, means, errors = zip(*best, strict=True) if best else ((), (), ())
        columns |= {name: texts, f"{name} score": means, f"{name} se": errors}
    n = max((int(values.count()) for values in sums.values()), default=0)
    return pd.DataFrame({"rank": range(1, len(keys) + 1), **columns, "n": n})


def _summed(scores: Scores, keys: Iterable[Key], metrics: Sequence[str]) -> dict[Key, pd.Series]:
    """Rows' summed metrics on the pictures that all have; NaN for rows that were left out on the way."""
    import pandas as pd

    left_out = {(lost.attribution, lost.arm) for lost in scores.missing if lost.metric in ("", *metrics)}
    sums: dict[Key, Any] = {
        key: sum(_sign(scores, metric) * scores.values(*key, metric) for metric in metrics) for key in keys
    }
    ranked = [values for key, values in sums.items() if key not in left_out and values.notna().any()]
    common = pd.concat(ranked, axis=1).dropna().index if ranked else pd.Index([])
    return {key: values.reindex(common if key not in left_out else []) for key, values in sums.items()}


def _counterparts(scores: Scores, base: str, arm: str) -> list[Key]:
    """The rows that are an arm of the attribution of that key: its own, then FORGrads given that filter it."""
    rows = [row for row in scores.spec["rows"] if base and row["base"] == base and row["arm"] == arm]
    return sorted(((row["attribution"], arm) for row in rows), key=lambda key: key[0] != base)  # stable


def _after(scores: Scores, attribution: str, arm: str, metrics: Sequence[str]) -> Key | None:
    """The row that stands for FORGrad, None where there is none with scores."""
    arms = (arm, GRADIENT) if arm == FORGRAD else (arm,)
    found = [key for name in arms for key in _counterparts(scores, attribution, name)]
    return next((key for key in found if all(len(scores.values(*key, metric)) for metric in metrics)), None)


def bayes(
    scores: Mapping[str, Scores], metrics: Sequence[str] | None = None, *, arm: str = FORGRAD, against: str = NONE
) -> pd.DataFrame:
    """Returns Bayes factors of BEFORE-AFTER over methods and networks, as the paper's A.6, each with n and design.

    A value is the mean over pictures of one method on one network. For each metric three: the BIC's with networks and
    methods as fixed blocks (the paper takes networks as a random term), the BIC's with each pair as a subject, and the
    JZS paired factor. `model`, `metric`, `test`, `bf10`, `log10`, `verdict`, `n`, `k0`, `k1`, `difference` (mean of
    after − before, positive where better), `missing`, `design`. None takes pictures as observations: they share their
    network; for these see `Scores.gains`. A FORGrad given among the attributions is an arm of what it filters, the
    first of several.

    Args:
        scores: By the network's name, on whichever pictures.
        metrics: Keys; None: insertion and deletion apart, as in A.6, then faithfulness and μFidelity, as there are.
        arm: After.
        against: Before.

    Raises:
        ValueError: For no scores, metrics that one of them has not, no method with both.
    """
    import pandas as pd

    if not scores:
        raise ValueError("Expected the scores of at least one network, got none.")
    first = next(iter(scores.values()))
    wanted = ("Insertion", "Deletion", "Faithfulness", "MuFidelity")
    chosen = _present(first, wanted) if metrics is None else list(metrics)
    lines = []
    for metric in chosen:
        cells = _means(scores, metric, arm, against)
        if not len(cells):
            raise ValueError(f"Expected attributions with the arms {against!r} and {arm!r}, got none.")
        wide: Any = cells.pivot(index=["model", "method"], columns="stage", values="value")
        differences = (wide["after"] - wide["before"]).to_numpy()
        blocks = ["model", "method"] if len(scores) > 1 else ["method"]
        tests: dict[str, BayesFactor] = {
            "BIC, blocks": bic_bf10(cells, blocks=blocks),
            "BIC, within": bic_bf10(cells, blocks=blocks, within=True),
            "JZS, paired": jzs_bf10(differences),
        }
        gain = float(np.nanmean(differences))
        for test, found in tests.items():
            lines.append(
                (", ".join(scores), metric, test, float(found), found.log10, found.verdict, found.n, *found.k, gain,
                 found.missing, found.design)
            )  # fmt: skip
    names = ["model", "metric", "test", "bf10", "log10", "verdict", "n", "k0", "k1", "difference", "missing", "design"]
    return pd.DataFrame(lines, columns=names)


def _means(scores: Mapping[str, Scores], metric: str, arm: str, against: str) -> pd.DataFrame:
    """Mean over the pictures that both have, of each network, method and stage; positive is better."""
    import pandas as pd

    lines = []
    for model, found in scores.items():
        sign = _sign(found, metric)
        for name in dict.fromkeys(row["base"] for row in found.spec["rows"] if row["arm"] == against):
            keys = {"before": _counterparts(found, name, against), "after": _counterparts(found, name, arm)}
            stages = {stage: found.values(*(known or [("", "")])[0], metric) for stage, known in keys.items()}
            both: Any = pd.concat(stages, axis=1).dropna()
            if len(stages["after"]) and len(stages["before"]):
                lines += [(model, name, stage, sign * both[stage].mean()) for stage in stages]
    return pd.DataFrame(lines, columns=["model", "method", "stage", "value"])


def _sign(scores: Scores, metric: str) -> int:
    if metric not in scores.spec["metrics"]:
        raise ValueError(f"Expected a metric among {list(scores.spec['metrics'])}, got {metric!r}.")
    return 1 if scores.spec["metrics"][metric]["higher_is_better"] else -1


def _present(scores: Scores, types: Sequence[str]) -> list[str]:
    found = {about["type"]: name for name, about in reversed(scores.spec["metrics"].items())}
    return [found[kind] for kind in types if kind in found] or list(scores.spec["metrics"])


def _of_type(scores: Scores, types: Sequence[str]) -> list[str]:
    found = _present(scores, types)
    if len(found) != len(types):
        raise ValueError(f"Expected metrics of type {' and '.join(types)} to add, got {list(scores.spec['metrics'])}.")
    return found

"""Scores of parts of the pictures, put together again: what was evaluated in shards is as if it had been at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradspec.evaluation.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

_SAME = ("model", "surgery", "metrics", "seed", "precision", "units")  # what shards must have in common
_OF_ROWS = ("attribution", "arm", "base", "cutoff", "where", "shape", "settings")


def joined(parts: Iterable[Scores]) -> Scores:
    """Returns the scores of all pictures of several evaluations of one network with the same settings.

    Args:
        parts: What `gradspec.evaluate` found, in the order that the pictures shall have.

    Raises:
        ValueError: For none, other networks or settings, and a picture that is in two.
    """
    import pandas as pd

    found = list(parts)
    if not found:
        raise ValueError("Expected scores to join, got none.")
    _check(found)
    order = {(row["attribution"], row["arm"]): place for place, row in enumerate(found[0].spec["rows"])}
    tables = [_ordered(pd.concat([getattr(part, name) for part in found]), order) for name in ("table", "spectra")]
    costs = _ordered(pd.concat([part.costs for part in found]), order)
    starts = [sum(part.spec["pictures"] for part in found[:k]) for k in range(len(found))]
    missing = [
        missed._replace(after=missed.after + start)
        for part, start in zip(found, starts, strict=True)
        for missed in part.missing
    ]
    examples = tuple(shown for part in found for shown in part.examples)
    return Scores(tables[0], _averaged(costs), tables[1], tuple(missing), examples, _spec([p.spec for p in found]))


def stacked(parts: Iterable[Scores]) -> Scores:
    """Returns the scores of all attributions of several evaluations of one network on the same pictures.

    Args:
        parts: What `gradspec.evaluate` found, in the order that the attributions shall have.

    Raises:
        ValueError: For none, other networks, settings or pictures, and an attribution's arm that is in two.
    """
    import pandas as pd

    found = list(parts)
    if len(found) < 2:
        if not found:
            raise ValueError("Expected scores to stack, got none.")
        return found[0]
    first = found[0]
    for part in found[1:]:
        differing = [name for name in (*_SAME, "pictures") if part.spec.get(name) != first.spec.get(name)]
        differing += ["pictures"] * set(part.pictures).isdisjoint(first.pictures)
        if differing:
            raise ValueError(f"Expected scores of one network on the same pictures, got different {differing}.")
    rows = [row for part in found for row in part.spec["rows"]]
    keys = [(row["attribution"], row["arm"]) for row in rows]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ValueError(f"Expected each attribution in one part, got {twice[0]} in two.")
    tables = [
        pd.concat(
            [table for part in found if len(table := getattr(part, name))] or [getattr(first, name)], ignore_index=True
        )
        for name in _TABLES  # of empty ones (the controls cost nothing) the columns have no kind
    ]
    missing = dict.fromkeys(missed for part in found for missed in part.missing)
    examples = []
    for shown in first.examples:
        others = [one for part in found[1:] for one in part.examples if one.picture == shown.picture]
        maps = {key: found for one in (shown, *others) for key, found in one.maps.items()}
        examples.append(replace(shown, maps=maps))
    whole = {"rows": rows, "selection": max(part.spec["selection"] for part in found)}
    whole["seconds"] = round(sum(part.spec["seconds"] for part in found), 2)
    return Scores(tables[0], tables[1], tables[2], tuple(missing), tuple(examples), first.spec | whole)


_TABLES = ("table", "costs", "spectra")


def _check(parts: Sequence[Scores]) -> None:
    first = parts[0].spec
    rows = [{name: row[name] for name in _OF_ROWS} for row in first["rows"]]
    for part in parts[1:]:
        differing = [name for name in _SAME if part.spec.get(name) != first.get(name)]
        differing += ["rows"] * ([{name: row[name] for name in _OF_ROWS} for row in part.spec["rows"]] != rows)
        if differing:
            raise ValueError(f"Expected scores of one network with the same settings, got different {differing}.")
    seen: set[str] = set()
    for part in parts:
        if twice := seen.intersection(part.pictures):
            raise ValueError(f"Expected each picture in one part, got {sorted(twice)[0]!r} in two.")
        seen.update(part.pictures)


def _ordered(table: pd.DataFrame, order: dict[tuple[str, str], int]) -> pd.DataFrame:
    """Rows in the order of the attributions and arms, each in the order that it was in."""
    places = [order[key] for key in zip(table["attribution"], table["arm"], strict=True)]
    return table.assign(place=places).sort_values("place", kind="stable", ignore_index=True).drop(columns="place")


def _averaged(costs: pd.DataFrame) -> pd.DataFrame:
    """Costs of all parts, by their numbers of pictures."""
    keys, numbers = ["attribution", "arm"], [name for name in costs if name not in ("attribution", "arm", "n")]
    sums: Any = costs.assign(**{name: costs[name] * costs["n"] for name in numbers}).groupby(keys, sort=False).sum()
    return sums.assign(**{name: sums[name] / sums["n"] for name in numbers}).reset_index()[list(costs.columns)]


def _spec(specs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pictures, labelled = (sum(spec[name] for spec in specs) for name in ("pictures", "labelled"))
    right = sum(spec["accuracy"] * spec["labelled"] for spec in specs if spec["labelled"])
    counts = {"selection": sum(spec["selection"] for spec in specs)}
    counts |= {"seconds": round(sum(spec["seconds"] for spec in specs), 2)}
    rows = [row | {"selection": sum(r["selection"] for r in same)}
            for row, *same in zip(specs[0]["rows"], *(spec["rows"] for spec in specs), strict=True)]  # fmt: skip
    whole = {"pictures": pictures, "labelled": labelled, "accuracy": right / labelled if labelled else None}
    return specs[-1] | whole | counts | {"rows": rows}

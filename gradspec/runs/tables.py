"""The several tables of a result in one, as a unit's file holds them: a column says which table a row is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

PART = "part"


def packed(parts: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> pd.DataFrame:
    """Returns one table of several, with the column `part`; cells that a part does not have are empty.

    Args:
        parts: Name -> table. Columns of one name hold one kind of values in all of them.
        about: What else belongs to the result, as plain JSON; it goes into `attrs`.

    Raises:
        ValueError: For what JSON has no words for, and a table with a column `part` of its own.

    Example:
        >>> import pandas as pd
        >>> both = packed({"a": pd.DataFrame({"n": [1, 2]}), "b": pd.DataFrame({"word": ["x"]})}, {"seed": 0})
        >>> both["part"].tolist(), unpacked(both)[0]["a"]["n"].tolist(), unpacked(both)[1]
        (['a', 'a', 'b'], [1, 2], {'seed': 0})
    """
    import pandas as pd

    plain = json.loads(json.dumps(dict(about), allow_nan=False))
    if own := [name for name, part in parts.items() if PART in part]:
        raise ValueError(f"Expected tables without a column {PART!r} of their own, got one in {own[0]!r}.")
    columns = {name: {str(column): str(kind) for column, kind in part.dtypes.items()} for name, part in parts.items()}
    filled = [part.assign(**{PART: name}) for name, part in parts.items() if len(part)]
    whole = pd.concat([part.astype(object) for part in filled], ignore_index=True) if filled else pd.DataFrame()
    whole = pd.DataFrame({PART: whole.pop(PART) if filled else [], **whole.infer_objects()})
    whole.attrs = {"columns": columns, "about": plain}
    return whole


def unpacked(table: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Returns the tables of `packed` and what else belongs to them.

    Raises:
        ValueError: For a table that was made otherwise.
    """
    import pandas as pd

    try:
        found, about = table.attrs["columns"], table.attrs["about"]
        parts = {}
        for name, columns in found.items():
            rows: Any = table[table[PART] == name].reset_index(drop=True)
            empty = pd.Series([], dtype=object)  # of a part without rows
            parts[name] = pd.DataFrame(
                {column: (rows[column] if len(rows) else empty).astype(kind) for column, kind in columns.items()}
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected the tables of a unit, got something else ({type(error).__name__}: {error})"
        ) from error
    return parts, about


def as_rows(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Returns arrays of float32 as a table: `array`, `shape`, `values`."""
    import pandas as pd

    rows = [(name, list(each.shape), each.astype(np.float32).ravel()) for name, each in arrays.items()]
    return pd.DataFrame(rows, columns=["array", "shape", "values"])


def as_arrays(rows: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of `as_rows`.

    Raises:
        ValueError: For values that do not fill a shape.
    """
    found = {}
    for name, shape, values in zip(rows["array"], rows["shape"], rows["values"], strict=True):
        sides = [int(side) for side in shape]
        if min(sides, default=0) < 0:  # which numpy takes for "the rest"
            raise ValueError(f"expected sizes of 0 or more for the array {name!r}, got {sides}")
        found[str(name)] = np.asarray(values, np.float32).reshape(sides)
    return found

"""How numbers and foreign names are written on the page: one minus sign, one dash for what is missing."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

MISSING = "–"


def number(value: Any, digits: int = 3, *, signed: bool = False) -> str:
    """Returns a number with that many decimals and a real minus sign, or a dash where there is none.

    Example:
        >>> number(-0.97764), number(0.5, 1, signed=True), number(float("nan")), number(-0.0001)
        ('−0.978', '+0.5', '–', '0.000')
    """
    if not known(value):
        return MISSING
    value = round(float(value), digits) + 0.0  # no negative zero
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def with_error(value: Any, error: Any, digits: int = 3, *, signed: bool = False) -> str:
    """Returns a number ± its standard error; the number alone where it has none.

    Example:
        >>> with_error(0.3222, 0.00434), with_error(0.3222, float("nan"))
        ('0.322\\xa0±\\xa00.004', '0.322')
    """
    text = number(value, digits, signed=signed)
    return (
        f"{text}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(error, digits)}" if known(value) and known(error) else text
    )


def percent(value: Any, error: Any = math.nan) -> str:
    """Returns a fraction of pictures as a percentage.

    Example:
        >>> percent(0.9844), percent(0.5, 0.0884)
        ('98.4\\xa0%', '50.0\\xa0±\\xa08.8\\xa0%')
    """
    return (
        f"{with_error(100 * value, 100 * error if known(error) else error, 1)}\N{NO-BREAK SPACE}%"
        if known(value)
        else MISSING
    )


def known(value: Any) -> bool:
    """Returns whether this is a finite number."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def count(n: int, noun: str) -> str:
    """Returns a number of things, in the plural where it is not one.

    Example:
        >>> count(1, "picture"), count(1200, "picture")
        ('1 picture', '1,200 pictures')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def plain(value: Any, most: int | None = None) -> str:
    """Returns a text without control characters, surrogates and marks that turn the direction of writing.

    Args:
        value: A name from a model or a file; what is no text is turned into one.
        most: Length at which it is cut.

    Example:
        >>> plain("layer\\x00\\u202e1\\n2"), plain("abcdef", 4)
        ('layer��1 2', 'abc…')
    """
    text = value if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else " " if c in "\t\r\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def isolated(name: Any, most: int = 80) -> str:
    """Returns a name for use in a sentence: of bounded length, in isolates where it is written from right to left.

    Example:
        >>> isolated("conv1"), isolated("\\u05d0\\u05d1") == "\\u2068\\u05d0\\u05d1\\u2069"
        ('conv1', True)
    """
    text = plain(name, most)
    turned = any(unicodedata.bidirectional(letter) in {"R", "AL", "AN"} for letter in text)
    return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}" if turned else text


def listed(words: Sequence[str], most: int = 6) -> str:
    """Returns words as in a sentence; of many the first ones and how many more.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c"], 2)
        ('a', 'a, b and c', 'a, b and 1 more')
    """
    words = list(words) if len(words) <= most else [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

"""What mkdocstrings' reader of docstrings wants and ours say otherwise: `Example:` with a doctest below it."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples):$")


class Ours(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_google(obj.docstring.value)


def as_google(text: str) -> str:
    """Returns a docstring with `Examples:`, and with entries that go on without being indented made one.

    Args:
        text: The docstring.

    Example:
        >>> print(as_google("Args:\\n    a: One of\\n    them.\\n\\nExample:\\n    >>> 1"))
        Args:
            a: One of
                them.
        <BLANKLINE>
        Examples:
            >>> 1
    """
    lines, section = [], ""
    for line in text.split("\n"):
        line = "Examples:" if line == "Example:" else line
        if line and not line.startswith(" "):
            section = line if _SECTION.match(line) else ""
        goes_on = section in ("Args:", "Attributes:") and re.match(r"    \S", line) and ":" not in line
        lines.append(f"    {line}" if goes_on else line)
    return "\n".join(lines)

"""One self-contained HTML page about an audit or a comparison: words first, then tables and figures."""

from gradspec.reporting.page import report

__all__ = ["report"]

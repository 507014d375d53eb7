"""`gradspec models` and `gradspec report`: what there is, and the page about what was saved."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import gradspec as gs


@dataclass(frozen=True)
class ReportCommand:
    """Write the page, one self-contained HTML file, about a saved result."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder that `gradspec audit`, `fit` or `evaluate` wrote, or that `.save()` did."""
    out: Path | None = None
    """The page. Without it: report.html in the folder."""

    def run(self) -> None:
        """Writes the page and prints its path."""
        print(gs.report(self.run_folder, self.out))


@dataclass(frozen=True)
class ModelsCommand:
    """List the names that `gradspec audit` takes for networks with pretrained weights."""

    pattern: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*"
    """Part of a name, or a pattern with * and ?, as in 'resnet*'."""

    def run(self) -> None:
        """Prints one name a line."""
        from gradspec.models import list_models

        found = list_models(self.pattern if set(self.pattern) & set("*?[") else f"*{self.pattern}*")
        if not found:
            near = difflib.get_close_matches(self.pattern, list_models())
            raise ValueError(f"No model matches {self.pattern!r}; nearest: {', '.join(near) or 'none'}.")
        print("\n".join(found))

"""What mkdocs cannot do by itself: the command line's help, formulas without a CDN, and links that leave docs/.

The pages read well in the repository too: there ```math blocks are formulas, and ../figures/NAME.png are pictures.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import io
import os
import posixpath
import re
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WIDTH = 90  # columns of the help
HELP = "<!-- gradspec --help -->"
_NAMES = re.compile(r"<!-- names of ([\w.]+)(?: but ([\w ]+?))? -->")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_RULE = re.compile(r"[\s╰─╯-]*[─-]{9}[\s╰─╯-]*$")  # a line that draws a box and says nothing
_INK = "#0a0b0c"  # stands for the text's colour while a formula is drawn


# ---- called by mkdocs ----------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Makes ```math blocks formulas."""
    superfences = config["mdx_configs"].setdefault("pymdownx.superfences", {})
    superfences["custom_fences"] = [{"name": "math", "class": "formula", "format": _fence}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Takes the pictures that pages show from figures/ into the site."""
    from mkdocs.structure.files import File

    shown = {outside for page in DOCS.rglob("*.md") for image, outside in leaving(page) if image}
    for name in sorted(shown):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the help in its place, and turns links that leave docs/ into what a site can show."""
    markdown, here = filled(markdown), page.file.src_uri

    def turned(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        outside = _outside(here, target)
        if outside is None:
            return found[0]
        return f"![{text}]({posixpath.relpath(outside, posixpath.dirname(here) or '.')})" if image else text

    return _LINK.sub(turned, markdown)


# ---- what is made of the code ---------------------------------------------------------------------


def filled(markdown: str) -> str:
    """Returns a page with the help of all commands, and the public names of modules, in their places."""
    if HELP in markdown:
        markdown = markdown.replace(HELP, helps())
    return _NAMES.sub(lambda found: names_of(found[1], (found[2] or "").split()), markdown)


def names_of(module: str, but: list[str]) -> str:
    """Returns a module's public names for mkdocstrings, without those that another page has."""
    names = [name for name in importlib.import_module(module).__all__ if name not in but]
    return "\n".join(_identifier(module, name) for name in sorted(names, key=lambda name: (name.lower(), name)))


def _identifier(module: str, name: str) -> str:
    path = f"{module}.{name}"
    if importlib.util.find_spec(path) is None:
        return f"::: {path}"
    return f"::: {path}.{name}\n    options: {{heading: {path}}}"  # a function in a submodule of its own name


def commands() -> dict[str, type]:
    """Returns the subcommands by name, each with the dataclass of its options."""
    from gradspec import cli

    return {typing.get_args(each)[1].name: typing.get_args(each)[0] for each in typing.get_args(cli.Command)}


def helps() -> str:
    """Returns the help of every command as Markdown, a heading each."""
    return "\n\n".join(f"## gradspec {name}\n\n```text\n{help_of(name)}\n```" for name in commands())


def help_of(command: str) -> str:
    """Returns what `gradspec COMMAND --help` prints, without the boxes."""
    from gradspec import cli

    kept, out = dict(os.environ), io.StringIO()
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(out):
            cli.main([command, "--help"])
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return "\n".join(_plain(line) for line in out.getvalue().splitlines() if not _RULE.match(line)).strip()


def _plain(line: str) -> str:
    """A line of the help without the box around it, in whichever letters it was drawn."""
    heading = re.match(r"╭─+ (.+?) ─+╮$", line)
    return f"{heading[1]}:" if heading else line.strip("│").rstrip()


# ---- formulas ------------------------------------------------------------------------------------


def _fence(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    return f'<div class="{css_class}">{formula(source)}</div>'


def formula(source: str) -> str:
    """Returns a formula in TeX as SVG that takes the text's colour; its source is its title.

    Raises:
        ValueError: matplotlib cannot read it.
    """
    from matplotlib import mathtext, rc_context

    out, text = io.StringIO(), " ".join(source.split())
    style = {
        "svg.fonttype": "path",
        "svg.hashsalt": "gradspec",
        "mathtext.fontset": "stix",
        "savefig.facecolor": "none",
    }
    with rc_context(style):
        mathtext.math_to_image(f"${text}$", out, format="svg", color=_INK)
    drawn = out.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) / 9.5:.3f}em"', drawn, count=2)
    drawn = drawn.replace(_INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{html.escape(text)}" ')
    return drawn.replace("\n", " ").strip()


# ---- links that leave docs/ ----------------------------------------------------------------------


def leaving(page: Path) -> list[tuple[bool, str]]:
    """Returns the links of a page that leave docs/: whether it is a picture, and the path in the repository."""
    here = page.relative_to(DOCS).as_posix()
    found = ((bool(image), _outside(here, target)) for image, _, target in _LINK.findall(page.read_text("utf-8")))
    return [(image, outside) for image, outside in found if outside]


def _outside(page: str, target: str) -> str | None:
    """The path in the repository that a link of a page leads to, None for one within docs/ or to the web."""
    if ":" in target or target.startswith("#"):
        return None
    found = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target.partition("#")[0]))
    return None if found.startswith("docs/") else found

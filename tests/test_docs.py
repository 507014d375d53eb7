"""The documentation: its links lead somewhere, its commands are ones, its examples run and print what it shows."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import pytest
import tyro

import gradspec as gs
from gradspec import cli
from gradspec.names import method_named
from gradspec.variants import check_variant

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not (ROOT / "mkdocs.yml").exists():
    pytest.skip("the documentation is in the repository, not in its packages", allow_module_level=True)
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = loaded("hooks")


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def without_code(page):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))


# ---- pages and links -----------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    def entries(part):
        values = part if isinstance(part, list) else part.values() if isinstance(part, dict) else [part]
        return [part] if isinstance(part, str) else [entry for value in values for entry in entries(value)]

    yaml = pytest.importorskip("yaml")
    listed = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == [name_of(page) for page in PAGES]


def anchors(page):
    """The ends of links to a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for _, text, target in re.findall(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)", without_code(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_file() and other.is_relative_to(ROOT), f"[{text}]({target})"
        assert not anchor or anchor in anchors(other), f"[{text}]({target})"


def test_links_out_of_the_documentation_are_pictures_and_words_in_the_site():
    """They are links to files in the repository; a site has no such files, but for pictures, which are taken along."""

    class Page:
        class file:
            src_uri = "how-to/forgrad.md"

    text = "![A](../../figures/a.png) [B](../../README.md#b) [C](../method.md) [D](https://d.org) [E](#e)"
    turned = hooks.on_page_markdown(text, Page)
    assert turned == "![A](../figures/a.png) B [C](../method.md) [D](https://d.org) [E](#e)"
    assert hooks.leaving(DOCS / "index.md") == [(True, "figures/demo_profile.png")]


# ---- the command line ----------------------------------------------------------------------------


def statements():
    """Every command line of gradspec in a bash block, with its page."""
    for page in PAGES:
        for _, language, block in FENCE.findall(page.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
                if found := re.match(r"\s*gradspec (.+)", line):
                    yield pytest.param(shlex.split(found[1], comments=True), id=f"{name_of(page)}: {found[1][:60]}")


def skip_what_is_to_come(words):
    """Commands and options of runs that are documented before they are there; once they are, nothing is skipped."""
    known = hooks.commands()
    if words[0] in {"collect", "diff"} - set(known):
        pytest.skip(f"gradspec {words[0]} is still to come")
    lacking = {"scheduler", "shard", "threads", "json"} - {field.name for field in dataclasses.fields(known[words[0]])}
    if words[0] in {"audit", "fit", "evaluate"} and {f"--{name}" for name in lacking} & set(words):
        pytest.skip(f"gradspec {words[0]} has no {', '.join(sorted(lacking))} yet")


@pytest.mark.parametrize("words", list(statements()))
def test_every_command_is_one(words, capsys):
    skip_what_is_to_come(words)
    try:
        command = tyro.cli(cli.Command, prog="gradspec", args=words, config=(tyro.conf.DisallowNone,))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    for name in getattr(command, "method", ()):
        method_named(name)
    for name in getattr(command, "variants", None) or ():
        check_variant(name)


def test_the_check_of_commands_finds_a_wrong_one(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(cli.Command, prog="gradspec", args=["audit", "demo:vgg_max", "--limits", "3"])
    assert "--limits" in capsys.readouterr().err


def test_every_option_is_on_the_page_of_the_command_line():
    page = hooks.filled((DOCS / "reference/command-line.md").read_text("utf-8"))
    sections = dict(re.findall(r"^## gradspec (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = hooks.commands()
    assert sections.keys() == commands.keys() and len(commands) >= 8
    for command, kind in commands.items():
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            metadata = getattr(hints[field.name], "__metadata__", ())
            shown = next((each.metavar for each in metadata if getattr(each, "metavar", None)), None)
            positional = "Positional" in repr(metadata)
            wanted = shown if positional else f"--{field.name.replace('_', '-')}"
            assert re.search(rf"^ +{re.escape(str(wanted))}(?=[ ,\n])", sections[command], re.MULTILINE), (
                command,
                wanted,
            )
    assert not re.search("[╭╰│─]|-{9}", page) and "(default: 8)" in sections["atlas"]


# ---- the reference -------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text("utf-8") for page in DOCS.glob("reference/*.md"))
    told = re.findall(r"^(?:::: |<!-- names of )gradspec\.(\w+)", text, re.MULTILINE)
    assert set(gs.__all__) <= set(told)


def test_names_of_a_module_are_those_that_it_exports():
    found = hooks.names_of("gradspec.plots", ["save"])
    assert "::: gradspec.plots.slope_profile" in found.splitlines() and "save" not in found
    # the module and the function have one name: the function is meant
    assert "::: gradspec.plots.overlay.overlay\n    options: {heading: gradspec.plots.overlay}" in found
    assert found.count(":::") == len(gs.plots.__all__) - 1


def test_docstrings_are_read_as_google_wants_them():
    pytest.importorskip("griffe")
    text = "Returns it.\n\nArgs:\n    a: One of\n    them.\n    b: Two.\n\nExample:\n    >>> 1\n    1"
    wanted = "Returns it.\n\nArgs:\n    a: One of\n        them.\n    b: Two.\n\nExamples:\n    >>> 1\n    1"
    assert loaded("docstrings").as_google(text) == wanted


# ---- formulas ------------------------------------------------------------------------------------


def formulas():
    for page in PAGES:
        for _, language, block in FENCE.findall(page.read_text("utf-8")):
            if language == "math":
                yield block


def test_every_formula_can_be_drawn_in_the_colour_of_the_text():
    found = [hooks.formula(source) for source in formulas()]
    assert len(found) > 10
    assert all(each.startswith("<svg ") and each.count("currentColor") > 0 for each in found)
    fetched = [re.sub(r'xmlns[:\w]*="[^"]*"', "", each) for each in found]
    assert not any(wrong in each for each in fetched for wrong in ("#000000", "#ffffff", "\n", "://"))
    assert hooks.formula("x") == hooks.formula("x ") and 'aria-label="a &lt; b"' in hooks.formula("a < b")
    with pytest.raises(ValueError, match="Unknown symbol"):
        hooks.formula(r"\nosuchsymbol")


# ---- what the pages show is what happens ---------------------------------------------------------

NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?")


def agrees(shown, printed):
    """Whether two lines have the same words, and numbers that differ by no more than other rounding may make."""
    numbers = [[float(found.replace("−", "-")) for found in NUMBER.findall(line)] for line in (shown, printed)]
    words = [NUMBER.sub("0", line).split() for line in (shown, printed)]
    near = all(abs(a - b) <= 0.05 * max(1, abs(a)) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and len(numbers[0]) == len(numbers[1]) and near


def missing_lines(shown, printed):
    """The lines of a page that are not among the printed ones, in order; `...` stands for lines left out."""
    left, missing = iter(printed.splitlines()), []
    for line in shown.splitlines():
        if line.strip() and line.strip() != "..." and not any(agrees(line, other) for other in left):
            missing.append(line)
            left = iter(printed.splitlines())
    return missing


def test_lines_that_are_shown_but_not_printed_are_found():
    printed = "head\n  slope  -0.97 ± 0.02\n  n 16\nfoot"
    assert missing_lines("head\n...\n n 16\n", printed) == []
    assert missing_lines("slope -0.96 ± 0.02\nfoot", printed) == []
    assert missing_lines("slope +0.97 ± 0.02", printed) == ["slope +0.97 ± 0.02"]
    assert missing_lines("slope -0.97 ± 0.02 per Nyquist", printed) == ["slope -0.97 ± 0.02 per Nyquist"]
    assert missing_lines("foot\nhead", printed) == ["head"]


def output_of(language, block, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as notes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flat curve is warned of: the page says so
        if language == "python":
            exec(compile(block, "<page>", "exec"), names)
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            assert words[0] == "gradspec" and cli.main(words[1:]) == 0, f"{line}\n{notes.getvalue()}"
    return out.getvalue()


def runnable():
    return [page for page in PAGES if "<!-- run -->" in page.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(), ids=name_of)
def test_what_a_page_runs_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed, ran = {}, None, 0
    for run, language, block in FENCE.findall(page.read_text("utf-8")):
        if run:
            printed, ran = output_of(language, block, names), ran + 1
        elif language == "text" and printed is not None:
            assert missing_lines(block, printed) == [], printed
            printed = None
    assert ran == page.read_text("utf-8").count("<!-- run -->")


def test_the_factory_of_the_how_to_is_one(tmp_path):
    blocks = FENCE.findall((DOCS / "how-to/audit.md").read_text("utf-8"))
    [source] = [block for _, language, block in blocks if block.startswith("# my_net.py")]
    tmp_path.joinpath("my_net.py").write_text(source)
    model = gs.load_model(f"{tmp_path / 'my_net.py'}:load")
    assert model.classes == ["cat", "dog", "horse"] and model.mean == pytest.approx((0.48, 0.46, 0.41), abs=1e-4)


# ---- the site ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = {name: (site / f"{name}.html").read_text("utf-8") for name in ("index", "method", "reference/gradspec")}
    assert html["method"].count('<div class="formula"><svg') == html["method"].count('class="formula"') > 10
    assert (site / "figures/demo_profile.png").is_file() and 'src="figures/demo_profile.png"' in html["index"]
    assert 'id="gradspec.audit"' in html["reference/gradspec"] and "&gt;&gt;&gt;" in html["reference/gradspec"]
    for page in site.rglob("*.html"):
        fetching = r"<(?:script|link|img|iframe)[^>]+?(?:src|href)=.?(?:https?:)?//[^>]+>"
        assert re.findall(fetching, page.read_text("utf-8")) == [], page

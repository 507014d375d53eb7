"""The arrows between gradspec's modules point one way: a module imports only what stands before it in ORDER."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gradspec"
ORDER = [
    "_checks",
    "_showing",
    "fourier",
    "reduction",
    "spectra",
    "layout",
    "graph",
    "passes",
    "taps",
    "targets",
    "demo",
    "images",
    "models",
    "data",
    "surgery",
    "randomness",
    "fusion",
    "inference",
    "engine",
    "attributions",
    "metrics",
    "presets",
    "statistics",
    "forgrad",
    "names",
    "adapters",
    "controls",
    "explaining",
    "variants",
    "runs",
    "results",
    "auditing",
    "atlas",
    "causality",
    "folders",
    "comparison",
    "cutoffs",
    "evaluation",
    "trials",
    "saved",
    "differing",
    "plots",
    "summary",
    "explanations",
    "reporting",
    "__init__",  # the public names
    "commands",
    "cli",
    "__main__",
]
DRAWING = {"matplotlib", "seaborn"}


def imported(file: Path, package: Path) -> set[str]:
    """Absolute names of the modules and attributes that a file imports, anywhere in it."""
    names = set()
    above = ("gradspec", *file.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str | None:
    """The entry of ORDER that an imported name belongs to, None outside gradspec."""
    root, *rest = name.split(".")
    if root != "gradspec":
        return None
    return rest[0] if rest and rest[0] in ORDER else "__init__"


def component(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def upward_arrows(package: Path) -> list[str]:
    arrows = []
    for file in sorted(package.rglob("*.py")):
        importer = component(file, package)
        for name in sorted(imported(file, package)):
            target = module_of(name)
            if target and target != importer and ORDER.index(target) > ORDER.index(importer):
                arrows.append(f"{importer} -> {target}")
    return arrows


def test_no_import_points_upward():
    assert upward_arrows(PACKAGE) == []


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules <= set(ORDER), "give the new module its place in ORDER"


def test_only_plots_draws():
    files = [
        file for file in PACKAGE.rglob("*.py") if {name.split(".")[0] for name in imported(file, PACKAGE)} & DRAWING
    ]
    assert {component(file, PACKAGE) for file in files} <= {"plots"}


@pytest.mark.parametrize(
    ("line", "arrow"),
    [
        ("import gradspec.auditing", "taps -> auditing"),
        ("from gradspec.auditing import Audit", "taps -> auditing"),
        ("from gradspec import auditing", "taps -> auditing"),
        ("from gradspec import low_pass", "taps -> __init__"),
        ("import gradspec as gs", "taps -> __init__"),
        ("from . import auditing", "taps -> auditing"),
        ("from .auditing import Audit", "taps -> auditing"),
        ("def f():\n    from .auditing import Audit", "taps -> auditing"),
        ("from gradspec.fourier import low_pass\nimport torch, auditing", None),
    ],
)
def test_an_upward_import_is_found(tmp_path, line, arrow):
    tmp_path.joinpath("taps.py").write_text(line)
    assert upward_arrows(tmp_path) == ([arrow] if arrow else [])


def test_a_relative_import_out_of_a_subpackage_is_found(tmp_path):
    tmp_path.joinpath("demo").mkdir()
    tmp_path.joinpath("demo", "nets.py").write_text("from ..auditing import Audit\nfrom .shapes import disk")
    assert upward_arrows(tmp_path) == ["demo -> auditing"]


@pytest.mark.parametrize("statement", ["import gradspec", "from gradspec import cli; cli.main(['audit', '--help'])"])
def test_help_imports_nothing_heavy(statement):
    """What keeps `gradspec --help` fast, without a clock in the test."""
    heavy = "{'torch', 'torchvision', 'timm', 'numpy', 'pandas', 'scipy', 'matplotlib', 'PIL'}"
    code = f"import sys; {statement}; print('loaded:', sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"

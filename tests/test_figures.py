"""The account of the results: what it names is there, and every study has results at its default size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from studies import all_studies

ROOT = Path(all_studies.__file__).parents[1]
FIGURES = ROOT / "figures"
if not (FIGURES / "README.md").exists():
    pytest.skip("the figures are in the repository, not in its packages", allow_module_level=True)
ACCOUNT = (FIGURES / "README.md").read_text(encoding="utf-8")


def planned():
    """Names of the files of each study, with folders of networks and photographs."""
    commands = all_studies.commands(all_studies.arguments(["--nets", "nets", "--images", "photographs"]))
    return [
        (study, options[options.index("--name") + 1] if "--name" in options else study) for study, *options in commands
    ]


@pytest.mark.parametrize(("study", "name"), planned())
def test_every_study_of_the_plan_has_its_results(study, name):
    about = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    assert about["study"] == study and about["commit"] and about["seconds"] >= 0 and about["versions"]["torch"]
    table = pd.read_csv(FIGURES / f"{name}.csv")
    assert len(table) and (FIGURES / f"{name}.png").exists() | bool(list(FIGURES.glob(f"{name}_*.png")))


def test_the_account_names_studies_that_there_are():
    assert "@" not in ACCOUNT
    rows = [line.split("|")[1:-1] for line in ACCOUNT.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if len(row) == 4 and row[0].strip() != "claim"]
    named = {name for row in claims for name in re.findall(r"`(\w+)`", row[1])}
    assert len(claims) > 30 and named and all((ROOT / "studies" / f"{name}.py").exists() for name in named)
    assert all("**" in row[3] or row[0].strip().startswith("(ours)") for row in claims)  # each has a verdict


def test_the_readme_says_what_the_account_says():
    """The counts of the short table are those of the tables."""
    words = (ROOT / "README.md").read_text(encoding="utf-8")
    gained = lost = 0
    for name in [name for study, name in planned() if study == "judge_methods"]:
        gains = pd.read_csv(FIGURES / f"{name}_gains.csv")
        rows = gains[(gains["arm"] == "forgrad") & (gains["metric"] == "Faithfulness") & (gains["against"] == "none")]
        gained, lost = gained + int((rows["low"] > 0).sum()), lost + int((rows["high"] < 0).sum())
    assert f"{gained} of 49 pairs of network and method gain and {lost} lose" in words

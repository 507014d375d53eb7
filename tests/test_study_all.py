"""`make studies`: every study is in the plan with options that it takes; one runs as it would."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path

import pytest
import study

from studies import all_studies

FOLDER = Path(all_studies.__file__).parent
OTHERS = {  # what is no study of the paper: the frame, training, earlier scripts with a command line of their own
    "all_studies", "study", "train_embedded", "layer_slopes_claims", "compare_variants", "forgrad_gain",
    "score_methods", "speed_attributions", "speed_audit", "speed_forgrad", "surgery_coverage",
}  # fmt: skip


class Parsed(Exception):
    """Raised in the place of a study's work, with its arguments."""


def planned(*options):
    return list(all_studies.commands(all_studies.arguments(list(options))))


@pytest.mark.parametrize("options", [[], ["--nets", "nets", "--images", "photographs"], ["--paper"], ["--smoke"]])
def test_every_command_is_one_that_its_study_takes(options, monkeypatch, tmp_path):
    def stop(run):
        raise Parsed(run.args)

    monkeypatch.setattr(study.Study, "__post_init__", stop)
    monkeypatch.setattr("studies.compare_networks.found", lambda args: {})
    monkeypatch.setattr("studies.compare_networks.fits", lambda args: {})
    names = []
    for name, *given in planned(*options):
        with pytest.raises(Parsed) as caught:
            importlib.import_module(f"studies.{name}").main([*given, "--out", str(tmp_path)])
        args = caught.value.args[0]
        names.append(args.name)
        assert str(args.images) == "photographs" or args.images is None
        assert ("--paper" in given) == args.paper and ("--smoke" in given) == args.smoke
    assert len(set(names)) == len(names)  # none writes over another's files


def test_no_study_is_left_out():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - OTHERS
    assert {name for name, *_ in planned()} == scripts


def test_a_study_runs_and_a_failing_one_is_told_of(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(all_studies, "PLAN", (("propositions", "vgg_max", ""), ("propositions", "no_such_net", "")))
    with pytest.raises(SystemExit, match=r"failed:\n.*propositions.py .*demo:no_such_net"):
        all_studies.main(["--only", "propositions", "--smoke", "--out", str(tmp_path)])
    about = json.loads((tmp_path / "propositions_vgg_max.json").read_text())
    assert about["study"] == "propositions" and about["model"] == "demo:vgg_max"
    said = [line for line in capfd.readouterr().out.splitlines() if "propositions.py" in line]
    assert len(said) == 2 and "--smoke" in shlex.split(said[0])

"""The notebook: it runs as it is committed, shows its results, says what holds, and leaves nothing behind."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "studies" / "walkthrough.ipynb"
RESULTS = ("Audit", "Comparison", "CutoffFit", "Scores")
CLAIMS = {  # what the text cells say there is to see, as the kernel's own variables have it
    "max-pooling leads the types": "audit.culprits('type').loc[0, 'type'] == 'max pooling'",
    "convolutions smooth the gradient": "audit.culprits('type').set_index('type').loc['convolution', 'new_power'] < 0",
    "the untrained network's gradient is nearly white noise": "abs(drift['slope_nyquist']['untrained']) < 0.2",
    "training makes it less so": "drift['slope_nyquist']['trained'] < drift['slope_nyquist']['untrained'] - 0.5",
    "average pooling takes more away": "drift['slope_nyquist']['avgpool'] < drift['slope_nyquist']['trained'] - 0.2",
    "without retraining it computes other things": "drift['accuracy']['avgpool'] < 0.7 < drift['accuracy']['trained']",
    "the ranking's first is not the cause": "cause != accused",
    "their rank correlation is low": "(compared.agreement()['correlation'] < 0.5).all()",
    "the chosen cutoff is low": "fit.cutoff <= 2 and not fit.flat",
    "saliency's magnitude is the map itself": "abs(scores.gains().set_index('name')['mean']['Saliency (abs)']) < 1e-9",
    "the objects lie near the middle": "pictures.masks[:, 16:48, 16:48].sum() > 0.5 * pictures.masks.sum()",
    "the noise goes": "gs.signature(after[:, None]).high_share < 0.01 < gs.signature(before[:, None]).high_share",
    "chosen on some": "{*fit.contents} == {gs.data.picture_id(image) for image in some[0]}",
    "judged on others": "not {*fit.contents} & {gs.data.picture_id(image) for image in others[0]}",
}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs_and_noise(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert cell.metadata == {} and re.fullmatch("[a-z-]+", cell.id), cell.id  # ids that say what the cell is
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"  # what a diff is taken of


def test_its_text_types_in_no_result(notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(texts) >= 8 and sum("**Do not conclude**" in text for text in texts) >= 6
    for text in texts:
        assert not re.search(r"\d[.,]\d|\d\s*%|±", text), text


@pytest.mark.slow  # about a minute
def test_it_runs_anywhere_shows_its_results_and_leaves_nothing(notebook, tmp_path, monkeypatch):
    here, temporary, settings = (tmp_path / name for name in ("here", "temporary", "settings"))
    for folder in (here, temporary, settings):
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TORCHINDUCTOR_CACHE_DIR")
    for name in places:
        monkeypatch.setenv(name, str(settings))
    beside = sorted(NOTEBOOK.parents[1].glob("*")), sorted(NOTEBOOK.parent.glob("*.*"))
    asked = ", ".join(f"{claim!r}: bool({check})" for claim, check in CLAIMS.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{asked}}}))"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"execute_result", "stream"}  # no error, and nothing twice
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []  # no warning
    assert json.loads(cells[-1].outputs[0].text) == dict.fromkeys(CLAIMS, True)

    shown = {}
    for output in outputs:
        kind = output.get("data", {}).get("text/plain", "").partition("(")[0]
        if kind in RESULTS:
            page = output.data["text/html"]
            (source,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]{20,}"', page)
            shown[kind] = Image.open(io.BytesIO(base64.b64decode(source)))
            assert page.count("<table") == 1 and page.count("<tr") > 2, kind
    assert set(shown) == set(RESULTS)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(o.data["image/png"])))
        for o in outputs
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 2  # the causal arm; maps before and after
    for picture in [*shown.values(), *pictures]:
        low, high = picture.convert("L").getextrema()
        assert min(picture.size) > 200 and high - low > 200  # drawn, from dark to white

    assert (sorted(NOTEBOOK.parents[1].glob("*")), sorted(NOTEBOOK.parent.glob("*.*"))) == beside
    assert list(here.iterdir()) == [] and list(temporary.iterdir()) == []  # its folder went with the kernel

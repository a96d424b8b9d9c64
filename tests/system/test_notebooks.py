"""The notebooks in a real kernel, from the first cell to the last, as they stand; only installing is left out."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "outputs do not belong in the repository"
    (install,) = (cell for cell in code if "install" in cell.metadata.get("tags", ()))
    assert install.source.startswith('%pip install -q "/path/to/seqloom[plots]"  # a clone')
    notebook.cells.remove(install)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Error" not in printed, "a line with ! that fails ends no notebook"
    shown = [output.data for output in outputs if output.output_type == "execute_result"]
    assert sum("image/png" in data for data in shown) == {"one_sentence": 3, "your_own_text": 1}[path.stem]
    answers = [data["text/plain"] for data in shown if "image/png" not in data]
    assert answers[0] == {"one_sentence": "'2026-11-22'", "your_own_text": "['42', '607', '71436']"}[path.stem]
    assert (tmp_path / "walk.html").is_file()

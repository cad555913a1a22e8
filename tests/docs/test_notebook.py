"""The notebook of the documentation runs from its first cell to its last."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import u2seg

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_code_is_python():
    for cell in cells("code"):
        compile("".join(cell["source"]), NOTEBOOK.name, "exec")
        assert cell["execution_count"] is None and not cell["outputs"], "committed without outputs"


def test_the_pages_that_it_links_to_exist():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel")),
    reason="the packages nbclient and ipykernel are not installed",
)
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # The kernel is another process, and its directory another one.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(u2seg.__file__).parents[1]), *sys.path]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 3
    assert not [output for output in outputs if output.output_type == "error"]
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    assert (tmp_path / "quickstart/model/model_final.pth").is_file()

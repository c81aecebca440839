"""The notebook runs from top to bottom against a real checkpoint, and is committed without outputs."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "colabs" / "plot_rollouts.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_committed_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    nbformat.validate(notebook)


def test_runs_from_top_to_bottom(notebook, debug_run, monkeypatch):
    """Acts, imagines and plots: `debug_run` is a trained debug checkpoint."""
    monkeypatch.setenv("WAM_RUN", str(debug_run))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5  # actions, joint, inverse of the imagined video, forward, learning curves
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "cameras" in printed
    assert not [output for output in outputs if output.output_type == "error"]

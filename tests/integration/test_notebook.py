"""A researcher's cell in a real kernel."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.integration

FIXTURES = Path(__file__).parents[1] / "fixtures"
CELL = """
import sys; sys.path.insert(0, {fixtures!r})
import raymlops as rm
run = rm.train({{
    "project": {{"name": "tiny"}}, "recipe": {{"import": "tiny:Tiny"}},
    "train": {{"epochs": 3}}, "storage": {{"path": {storage!r}}},
}})
"""


def test_training_shows_one_display_that_is_updated_in_place(storage_path):
    """The cell ends with one output, the finished bar with its metrics; its record is a few lines in the next one."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell(CELL.format(fixtures=str(FIXTURES), storage=str(storage_path))))
    notebook.cells.append(nbformat.v4.new_code_cell("run"))
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = [output for output in notebook.cells[0].outputs if output["output_type"] == "display_data"]
    html = output["data"]["text/html"]
    assert "24/24" in html
    assert "loss" in html
    (shown,) = [output["data"] for output in notebook.cells[1].outputs]
    assert max(len(shown["text/plain"]), len(shown["text/html"])) < 1500
    assert shown["text/plain"].startswith("run_id ")
    assert "<th>run_id</th>" in shown["text/html"]

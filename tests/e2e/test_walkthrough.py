"""Sweeps as a researcher runs them, from notebooks: a kernel, and a cluster that outlives it."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import nbclient
import nbformat
import pytest
from shell_user import ROOT

if TYPE_CHECKING:
    from shell_user import User

pytestmark = [pytest.mark.e2e, pytest.mark.soak]

SCRIPT = ROOT / "examples" / "sweep_walkthrough.py"
CELL_TIMEOUT_S = 300


def cells_of(script: str) -> list[nbformat.NotebookNode]:
    """Return the cells of a percent script; its magics are magics again."""
    cells = []
    for part in re.split(r"^# %%(?= |$)", script, flags=re.MULTILINE)[1:]:
        kind, _, text = part.partition("\n")
        if "[markdown]" in kind:
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip()))
        else:
            cells.append(nbformat.v4.new_code_cell(re.sub(r"^# (?=%)", "", text, flags=re.MULTILINE).strip()))
    return cells


def test_the_walkthrough_runs_from_its_first_cell_to_its_last(cluster_user: User) -> None:
    """The recipe is written by its cell, the sweep is a job with one display, another handle registers its winner."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = cells_of(SCRIPT.read_text(encoding="utf-8"))
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(cluster_user.cwd)}},
    )
    client.execute(env=cluster_user.env)
    code = {cell.source.split("\n")[-1]: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert "gcs://" not in str(code["sweep"].outputs)  # what Ray says while it sends the folder
    waiting = code["record = sweep.wait()"]
    (display,) = [output for output in waiting.outputs if output["output_type"] == "display_data"]
    assert "8/8 trials" in display["data"]["text/html"]
    assert [output["output_type"] for output in waiting.outputs] == ["display_data"]
    (frame,) = code['sweep.trials().sort_values("value").head()'].outputs
    assert "train.lr" in frame["data"]["text/html"]
    (plot,) = code['sweep.plot("history")'].outputs
    assert "application/vnd.plotly.v1+json" in plot["data"]
    (version,) = [output for output in code["version"].outputs if output["output_type"] == "execute_result"]
    assert version["data"]["text/plain"].splitlines()[:2] == ["name       waves", "version    1"]
    (best,) = [output["data"]["text/plain"] for output in code["again.best"].outputs]
    assert best.startswith("number ")


BEGIN = """
import raymlops as rm
sweep = rm.sweep({
    "project": {"name": "tiny"}, "recipe": {"import": "tiny:Tiny"},
    "train": {"epochs": 40, "batch_size": 64, "metric": "validation/loss", "cpus_per_worker": 0.5},
    "sweep": {"num_trials": 12, "scheduler": "none", "space": {"train.lr": {"float": [0.001, 0.1], "log": True}}},
}, wait=False)
print(sweep.sweep_id)
"""
STOP = """
import sys, time
import raymlops as rm
sweep = rm.attach(sys.argv[1])
deadline = time.monotonic() + 120
while sweep.status().ended == 0:
    assert time.monotonic() < deadline, sweep.status()
print(sweep.stop().state)
"""
GO_ON = """
import sys
import raymlops as rm
before = set(rm.attach(sys.argv[1]).trials().query("status == 'complete'")["run_id"])
record = rm.sweep(resume=sys.argv[1], wait=False).wait(240, on_event=lambda event: None)
assert before <= {trial.run_id for trial in record.trials}
print(len(before), [trial.status for trial in record.trials], record.sweep_id)
"""


@pytest.mark.soak
def test_a_job_goes_on_without_its_kernel_and_is_stopped_from_another(cluster_user: User) -> None:
    """What one process began another stops, and a third resumes and waits for, each with a handle of its own."""
    user = cluster_user
    shutil.copy(ROOT / "tests" / "fixtures" / "tiny.py", user.cwd)
    sweep_id = user.run(sys.executable, "-c", BEGIN).stdout.split()[-1]
    assert user.run(sys.executable, "-c", STOP, sweep_id).stdout.split()[-1] == "killed"
    before, rest = user.run(sys.executable, "-c", GO_ON, sweep_id).stdout.splitlines()[-1].split(maxsplit=1)
    assert 0 < int(before) < 12
    assert rest == f"{['complete'] * 12} {sweep_id}"


@pytest.mark.soak
def test_what_is_wrong_fails_in_the_cell(cluster_user: User) -> None:
    """A recipe that the job cannot train: the error of the job, with the line of the recipe."""
    user = cluster_user
    (user.cwd / "mine.py").write_text(
        "from tiny import Tiny\n\n\nclass Mine(Tiny):\n    def loss(self, *_):\n        1 / 0\n"
    )
    shutil.copy(ROOT / "tests" / "fixtures" / "tiny.py", user.cwd)
    failed = user.run(sys.executable, "-c", BEGIN.replace("tiny:Tiny", "mine:Mine"), code=1).stderr
    assert "Mine.loss() raised ZeroDivisionError" in failed
    assert "mine.py:6" in failed

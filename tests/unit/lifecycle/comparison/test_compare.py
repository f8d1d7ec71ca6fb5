"""What differs between runs, trials and versions, read from an MLflow, and what the command prints of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from recorded_sweep import METRIC, project_in, recorded_sweep

import raymlops as rm
from raymlops.cli.main import main
from raymlops.errors import NotFoundError, UsageError
from raymlops.lifecycle.comparison.record import ComparedRun, Comparison
from raymlops.project import Project
from raymlops.records import BundleRef, DataRecord, ModelVersionRef
from raymlops.registry.versions import Registry
from raymlops.training.events import Event
from raymlops.training.runs.mlflow_run import open_run
from raymlops.training.runs.writer import RunWriter
from raymlops.tuning.mlflow.trial_runs import TrialRuns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from raymlops.tracking.client import Tracker

LOSSES = {"fast": (0.9, 0.4, 0.6), "slow": (0.95, 0.8, 0.7)}


@dataclass
class Recorded:
    """Two runs and a sweep with two trials, as they are left in MLflow."""

    tracker: Tracker
    fast: str
    slow: str
    sweep: str


@pytest.fixture
def recorded(storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv("RAYMLOPS_HOME", str(storage_path))
    project = project_in(storage_path)
    with recorded_sweep(project) as swept:
        ids = [run(swept.tracker, project, lr=lr, losses=LOSSES[name]) for name, lr in (("fast", 0.1), ("slow", 0.01))]
        children = TrialRuns(swept.tracker, experiment="tiny", parent_run_id=swept.sweep_id, tags={}, name="t")
        for number, status in enumerate(("complete", "pruned")):
            children.start(number, {"train.lr": 0.5 + number})
            children.log(number, epoch=1, metrics={METRIC: 0.3})
            children.log(number, epoch=2, metrics={METRIC: 0.2 + number})
            children.end(number, status, kept={METRIC: 0.2 + number / 10})  # type: ignore[arg-type]
        children.close()
        yield Recorded(swept.tracker, *ids, swept.sweep_id)


def run(
    tracker: Tracker, project: Project, *, lr: float, losses: tuple[float, ...], every_steps: int | None = None
) -> str:
    data = project.spec.to_dict()
    data["train"] |= {"lr": lr, "eval_every_steps": every_steps}
    data["gate"]["margin"] = lr
    run_id = open_run(tracker, Project.from_dict(data), DataRecord("v2:abc", {"train": 300}))
    writer = RunWriter(tracker, run_id)
    for epoch, loss in enumerate(losses, start=1):
        metrics = {METRIC: loss, "validation/rows": 101.0, "system/process_memory_gb": lr}
        done = epoch if every_steps is None else 1
        writer(Event("epoch", epoch=done, step=10 * epoch, metrics=metrics, timestamp_ms=epoch))
    writer.close("FINISHED", tags={f"raymlops.best.{METRIC}": repr(min(losses))}, kept={METRIC: min(losses)})
    return run_id


def test_runs_differ_in_what_shapes_them_and_in_their_kept_models(recorded: Recorded) -> None:
    """Equal settings, the gate and the machine's load are left out; curves are over steps."""
    found = rm.compare([recorded.fast, recorded.slow])
    assert found.settings == {"train.lr": ["0.1", "0.01"]}
    assert found.metrics == {METRIC: [0.4, 0.7]}
    assert [run.curves[METRIC] for run in found.runs] == [
        [(10, 0.9), (20, 0.4), (30, 0.6)],
        [(10, 0.95), (20, 0.8), (30, 0.7)],
    ]
    assert found.axis == "step"
    assert "train.lr" in found._repr_html_()


def test_trials_and_runs_are_compared_over_epochs(recorded: Recorded) -> None:
    """A trial has the sweep's settings but for its own; its state is that of the trial."""
    found = rm.compare([f"{recorded.sweep}/0", f"{recorded.sweep}/1", recorded.fast])
    assert found.settings["train.lr"] == ["0.5", "1.5", "0.1"]
    assert [run.state for run in found.runs] == ["complete", "pruned", "finished"]
    assert found.metrics[METRIC] == [0.2, pytest.approx(0.3), 0.4]
    assert found.axis == "epoch"
    assert [run.curves[METRIC] for run in found.runs] == [
        [(1, 0.3), (2, 0.2)],
        [(1, 0.3), (2, 1.2)],
        [(1, 0.9), (2, 0.4), (3, 0.6)],
    ]


def test_validations_by_steps_are_not_epochs(recorded: Recorded, storage_path: Path) -> None:
    """Three of them are in one epoch, and beside those of a trial they are counted."""
    project = project_in(storage_path)
    by_steps = run(recorded.tracker, project, lr=0.1, losses=LOSSES["fast"], every_steps=10)
    found = rm.compare([f"{recorded.sweep}/0", by_steps])
    assert found.axis == "report"
    assert found.runs[1].curves[METRIC] == [(1, 0.9), (2, 0.4), (3, 0.6)]
    assert found.plot().layout.xaxis.title.text == "report"


def test_a_version_is_the_run_that_it_was_registered_from(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = ModelVersionRef("tiny", 3, recorded.slow, BundleRef("x", "d"), aliases=("champion",))
    asked = {("tiny", "3"): ref, ("tiny", "@champion"): ref}
    monkeypatch.setattr(Registry, "get", lambda _self, name, which: asked[name, which])
    for name in ("tiny@3", "tiny@champion", ref):
        found = rm.compare([recorded.fast, name], curves=False)
        assert [run.run_id for run in found.runs] == [recorded.fast, recorded.slow]
        assert found.runs[1].label == "tiny@3"
        assert found.runs[1].curves == {}


def test_what_cannot_be_compared_says_why(recorded: Recorded) -> None:
    for runs, error, message in (
        ([recorded.fast], UsageError, "two runs at least"),
        (recorded.fast, UsageError, "two runs at least"),
        ([recorded.fast, recorded.sweep], UsageError, "is a sweep, not a run"),
        ([recorded.fast, f"{recorded.sweep}/7"], NotFoundError, "has no trial 7"),
        ([recorded.fast, f"{recorded.slow}/0"], UsageError, "is a run, not a sweep"),
        ([recorded.fast, "f" * 32], NotFoundError, "there is no run"),
        ([recorded.fast, "tiny@9"], NotFoundError, "there is no model 'tiny'"),
    ):
        with pytest.raises(error, match=message):
            rm.compare(runs)


def test_the_command_prints_tables_and_draws_a_file(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is refused before anything is read."""
    assert main(["compare", recorded.fast, recorded.slow]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train.lr", "0.1", "0.01"] in lines
    assert [METRIC, "0.4", "0.7"] in lines
    file = tmp_path / "curves.html"
    assert main(["compare", recorded.fast, recorded.slow, "--plot", str(file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["settings"], data["plot"]) == ({"train.lr": ["0.1", "0.01"]}, str(file))
    assert data["runs"][0]["curves"][METRIC] == [[10, 0.9], [20, 0.4], [30, 0.6]]
    assert recorded.fast in file.read_text()
    assert main(["compare", recorded.fast, recorded.slow, "--plot", "curves.gif"]) == 2
    assert main(["compare", recorded.fast, recorded.slow, "--plot", str(tmp_path / "no" / "x.html")]) == 5
    assert main(["compare", recorded.fast, "0" * 32]) == 3


def one(label: str, **fields: Any) -> ComparedRun:
    return ComparedRun(label, label, "finished", **{"settings": {}, "metrics": {}, **fields})


def test_nan_equals_nan_and_what_one_lacks_is_none() -> None:
    """Pure: no MLflow."""
    nan = float("nan")
    found = Comparison.of([one("a", metrics={"x": nan, "y": 1.0}), one("b", metrics={"x": float("nan")})])
    assert found.metrics == {"y": [1.0, None]}
    assert "settings: none differs" in found.text()


def test_one_figure_has_a_panel_for_each_metric_and_a_color_for_each_run() -> None:
    """A run without a metric is left out of its panel; one that no run has is an error."""
    both = {"m": [(1, 0.5), (2, 0.25)], "n": [(1, 2.0)]}
    found = Comparison.of([one("a", curves=both), one("b", curves={"n": [(1, 3.0)]})])
    drawn = found.plot()
    assert [(trace.name, trace.showlegend) for trace in drawn.data] == [("a", True), ("a", False), ("b", True)]
    assert len({trace.line.color for trace in drawn.data}) == 2
    assert [list(trace.y) for trace in found.plot("n").data] == [[2.0], [3.0]]
    with pytest.raises(UsageError, match="'other' was not reported"):
        found.plot("other")
    with pytest.raises(UsageError, match="no run has reported a metric yet"):
        replace(found, runs=(one("a"), one("b"))).plot()

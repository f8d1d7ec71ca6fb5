"""train(): one configuration, one MLflow run, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from saved_weights import load_weights
from tiny import Tiny

from raymlops.bundle.code import collect
from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.errors import DataRefusedError, NonFiniteError, RecipeError, StorageError, TrackingError, UsageError
from raymlops.project import Project, bind
from raymlops.records import DataRecord
from raymlops.tracking.client import Tracker, tracker
from raymlops.training.loop.evaluation import totals
from raymlops.training.run import train
from raymlops.training.runs.mlflow_run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.training.events import Event


@pytest.fixture
def project(tiny_project: Any, storage_path: Path) -> Project:
    return tiny_project(epochs=3, log_every_steps=2)


def runs(project: Project) -> list[Any]:
    client = tracker(project.spec).client
    experiment = client.get_experiment_by_name(project.spec.experiment)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_a_run_is_on_record(project: Project) -> None:
    """Configuration, data, code, packages, hardware and every metric by step are in one FINISHED MLflow run."""
    record = train(project, tags={"team": "blue"})
    client = tracker(project.spec)
    run = client.run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.01"
    assert run.data.params["recipe.config.train_rows"] == "300"
    tags = run.data.tags
    assert tags["raymlops.kind"] == "run"
    assert tags["raymlops.config_sha"] == project.spec.sha() == record.config_sha
    assert tags["raymlops.data_fingerprint"] == record.data.fingerprint
    assert tags["raymlops.weights_uri"] == record.weights_uri
    assert tags["team"] == "blue"
    assert tags["raymlops.code_sha"] == collect(project.recipe_class).sha()
    assert list(json.loads(client.read_text(record.run_id, "code/files.json"))) == ["tiny.py"]
    # 300 rows in batches of 64: 5 steps an epoch, 15 in all; logged every 2 steps, at each epoch's end, at the last.
    losses = client.client.get_metric_history(record.run_id, "train/loss")
    assert [point.step for point in losses][:9] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    curve = client.client.get_metric_history(record.run_id, "validation/auc")
    assert [point.step for point in curve][:3] == [5, 10, 15]
    assert {name: run.data.metrics[name] for name in record.metrics} == record.metrics
    assert bind(load_data(_yaml(client.read_text(record.run_id, "config/resolved.yaml")))).spec == project.spec
    assert "torch==" in client.read_text(record.run_id, "environment/packages.txt")
    assert json.loads(client.read_text(record.run_id, "environment/hardware.json"))["cpus"] >= 1


def test_a_setting_that_the_strategy_does_not_use_is_named(tiny_project: Any, storage_path: Path) -> None:
    """The memory that it was to save is held all the same."""
    events: list[Event] = []
    train(tiny_project(epochs=1, cpu_offload=True, find_unused_parameters=True), on_event=events.append)
    assert [event.message for event in events if "has no effect" in event.message] == [
        "train.cpu_offload has no effect with train.strategy ddp"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a process without a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_the_run_exists(tiny_project: Any, storage_path: Path) -> None:
    """Nothing is on record, and the data was not read."""
    project = tiny_project(gpus_per_worker=1)
    with pytest.raises(UsageError, match="sees no GPU") as caught:
        train(project)
    assert "train.gpus_per_worker=0" in str(caught.value.hint)
    assert runs(project) == []


def test_the_record_is_the_best_epoch(project: Project) -> None:
    """The weights that the record names give the metrics that it holds."""
    record = train(project)
    weights, state = load_weights(record.weights_uri)
    prepared = prepare(project, state=state)
    model = prepared.recipe.model()
    model.load_state_dict(weights)
    sums = totals(prepared.recipe, model.eval(), prepared.splits["validation"], batch_size=4096)
    assert prepared.recipe.finalize(sums)["auc"] == pytest.approx(record.metrics["validation/auc"])
    assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))).metrics == record.metrics


def test_events_tell_the_whole_run(project: Project) -> None:
    """The run's id, start, steps, epochs, end, in order; the end carries the best epoch's metrics."""
    events: list[Event] = []
    record = train(project, on_event=events.append)
    assert events[0].message == f"run {record.run_id}"
    kinds = [event.kind for event in events if event.kind != "message"]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert kinds.count("epoch") == 3
    assert events[-1].metrics == record.metrics


def test_ctrl_c_marks_the_run_killed(project: Project) -> None:
    """KeyboardInterrupt goes on to the caller, and MLflow knows."""

    def interrupt(event: Event) -> None:
        if event.kind == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(project, on_event=interrupt)
    assert [run.info.status for run in runs(project)] == ["KILLED"]


class DeafLoss(Tiny):
    """Interrupts its fifth training loss, the fourth step, and swallows that or makes an error of it."""

    calls = 0
    error: type[Exception] | None = None

    def loss(self, model: Any, batch: Any) -> Any:
        type(self).calls += model.training
        if model.training and self.calls == 5:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            if self.error is not None:
                raise self.error
        return super().loss(model, batch)


class DeafMetrics(Tiny):
    """Swallows an interrupt in its first metrics of the second epoch; the preflight asks for metrics three times."""

    calls = 0

    def metrics(self, model: Any, batch: Any) -> Any:
        type(self).calls += 1
        if self.calls == 3 + 2 + 1:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return super().metrics(model, batch)


class DeafData(Tiny):
    """Swallows an interrupt while it loads."""

    def datasets(self) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return super().datasets()


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_swallowed_ctrl_c_ends_the_run_within_a_step(
    tiny_project: Any, storage_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """Whatever the code that it struck makes of it, the run is KILLED and no step follows."""
    monkeypatch.setattr(DeafLoss, "calls", 0)
    monkeypatch.setattr(DeafLoss, "error", error)
    deaf = dataclasses.replace(tiny_project(), recipe_class=DeafLoss)
    with pytest.raises(KeyboardInterrupt):
        train(deaf)
    assert DeafLoss.calls == 5
    assert [run.info.status for run in runs(deaf)] == ["KILLED"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_swallowed_ctrl_c_ends_an_evaluation_within_a_batch(
    tiny_project: Any, storage_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """101 validation rows in batches of 64 are two batches an epoch: the second epoch's second one is not begun."""
    monkeypatch.setattr(DeafMetrics, "calls", 0)
    deaf = dataclasses.replace(tiny_project(eval_batch_size=64), recipe_class=DeafMetrics)
    with pytest.raises(KeyboardInterrupt):
        train(deaf)
    assert DeafMetrics.calls == 6
    (run,) = runs(deaf)
    assert run.info.status == "KILLED"


def test_a_ctrl_c_that_is_swallowed_before_the_run_leaves_none(tiny_project: Any, storage_path: Path) -> None:
    """Loading data takes minutes at times."""
    deaf = dataclasses.replace(tiny_project(), recipe_class=DeafData)
    with pytest.raises(KeyboardInterrupt):
        train(deaf)
    assert runs(deaf) == []


class Interrupted(Tracker):
    """Ctrl-C strikes in the middle of one call: right after the server made the run, or while it is filled."""

    call = "start_run"

    def start_run(self, experiment: str, **rest: Any) -> str:
        run_id = super().start_run(experiment, **rest)
        if self.call == "start_run":
            signal.raise_signal(signal.SIGINT)
        return run_id

    def log_text(self, run_id: str, text: str, path: str) -> None:
        super().log_text(run_id, text, path)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("call", ["start_run", "log_text"])
def test_ctrl_c_while_a_run_opens_marks_it_killed(project: Project, call: str) -> None:
    """No run is left RUNNING by a driver that is gone; a sweep's own run is opened the same way."""
    store = tracker(project.spec)
    interrupted = Interrupted(store.uri, artifacts=store.artifacts)
    interrupted.call = call
    with pytest.raises(KeyboardInterrupt):
        open_run(interrupted, project, DataRecord("f", {"train": 1}))
    assert [run.info.status for run in runs(project)] == ["KILLED"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["epoch", "end"])
def test_a_display_that_fails_ends_the_run_and_costs_no_metrics(project: Project, kind: str) -> None:
    """Whenever it fails, the run is closed, with the metrics of that very event."""

    def fail(event: Event) -> None:
        if event.kind == kind:
            raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        train(project, on_event=fail)
    (run,) = runs(project)
    assert run.info.status == "FAILED"
    assert "validation/auc" in run.data.metrics


def test_a_failure_is_on_record_with_its_reason(tiny_project: Any, storage_path: Path) -> None:
    """A training that ends in NaN is FAILED in MLflow, which says why."""
    broken = tiny_project(recipe="broken:Diverges")
    with pytest.raises(NonFiniteError):
        train(broken)
    run = runs(broken)[0]
    assert run.info.status == "FAILED"
    assert "NonFiniteError: the training loss is nan at epoch 1" in run.data.tags["raymlops.reason"]


def test_what_can_be_refused_leaves_no_run(tiny_project: Any, storage_path: Path) -> None:
    """A broken recipe, one that cannot be served and an unknown metric are refused before MLflow hears of a run."""
    for broken in (
        tiny_project(recipe="broken:Means"),
        tiny_project(recipe="broken:NoExample"),
        tiny_project(metric="validation/acc"),
    ):
        with pytest.raises(RecipeError):
            train(broken)
        assert runs(broken) == []


def test_what_is_found_in_the_data_is_told_and_on_record(tiny_project: Any, storage_path: Path) -> None:
    """Before the first step; where it refuses, there is no run. A resumed run had it checked."""
    few = {"validation_rows": 29}
    told: list[Event] = []
    record = train(tiny_project(epochs=1, config=few), on_event=told.append)
    line = "data check rows: the validation split has 29 rows, fewer than 30 (min_rows)"
    assert [event.message for event in told if event.message.startswith("data check")] == [line]
    project = tiny_project(config=few, more={"data": {"checks": {"severity": {"rows": "refuse"}}}})
    report = json.loads(tracker(project.spec).read_text(record.run_id, "data/checks.json"))
    assert [finding["check"] for finding in report["findings"]] == ["rows"]
    assert report["splits"]["train"]["read"] == 300
    with pytest.raises(DataRefusedError, match="the validation split has 29 rows"):
        train(project)
    assert len(runs(project)) == 1


def test_storage_is_tried_first(tiny_project: Any, tmp_path: Path) -> None:
    """A file in the way of storage.path is a StorageError."""
    (tmp_path / "storage").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        train(tiny_project())


def test_an_mlflow_that_is_down_is_said_at_once(tiny_project: Any) -> None:
    """Nobody listens on port 9 of loopback: no minutes of retries, no run, no worker."""
    with pytest.raises(TrackingError, match="does not answer"):
        train(tiny_project(more={"tracking": {"uri": "http://127.0.0.1:9"}}))


def test_training_in_this_process_loads_no_ray() -> None:
    """num_workers 0 needs no Ray at all."""
    code = "import sys, raymlops.training.run; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _yaml(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    data: dict[str, Any] = YAML(typ="safe").load(text)
    return data


def test_what_callbacks_log_is_on_record(tiny_project: Any, storage_path: Path) -> None:
    """Scalars of steps, evaluations and the end; an image a step under its key, tables with steps, figures' files."""
    project = tiny_project(recipe="watched:Logging")
    record = train(project)
    client = tracker(project.spec)
    run = client.run(record.run_id)
    steps = client.history(record.run_id, "watched/step")
    assert steps == [(step, float(step)) for step in range(1, 11)]
    assert client.history(record.run_id, "validation/watched") == [(5, 0.5), (10, 1.0)]
    assert run.data.metrics["end/test_auc"] == run.data.metrics["test/auc"]

    def files(folder: str) -> list[str]:
        return sorted(
            item.path.partition("+timestamp")[0] for item in client.client.list_artifacts(run.info.run_id, folder)
        )

    assert files("images") == ["images/weights~first layer+step+10"] * 2 + ["images/weights~first layer+step+5"] * 2
    assert files("plots") == ["plots/line-10.png", "plots/line-5.png"]
    assert files("tables") == ["tables/answers.json", "tables/end.parquet"]
    table = json.loads(client.read_text(record.run_id, "tables/answers.json"))
    assert [row[-1] for row in table["data"]] == [5, 5, 10, 10]


def test_an_interrupted_run_logs_the_rest_once(tiny_project: Any, storage_path: Path) -> None:
    """Stopped after seven steps and resumed: the artifacts and points of one run."""
    project = tiny_project(recipe="watched:Logging", log_every_steps=1)

    def interrupt(event: Event) -> None:
        if event.kind == "step" and event.step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(project, on_event=interrupt)
    (run,) = runs(project)
    client = tracker(project.spec)
    record = train(project, resume=run.info.run_id)
    assert client.history(record.run_id, "watched/step") == [(step, float(step)) for step in range(1, 11)]
    images = client.client.list_artifacts(record.run_id, "images")
    assert len(images) == 4
    assert len(json.loads(client.read_text(record.run_id, "tables/answers.json"))["data"]) == 4


def test_test_metrics_are_recorded_with_the_weights_they_are_of(project: Project) -> None:
    """As an artifact and as the run's metrics; they are none of the metrics of the record."""
    record = train(project)
    client = tracker(project.spec)
    found = json.loads(client.read_text(record.run_id, "evaluation/at_end.json"))
    assert found["weights_uri"] == record.weights_uri
    assert found["data_fingerprint"] == record.data.fingerprint
    assert found["rows"] == record.data.rows["test"]
    run = client.run(record.run_id)
    assert {name: run.data.metrics[name] for name in found["metrics"]} == found["metrics"]
    assert not [name for name in record.metrics if name.startswith("test/")]
    assert not [name for name in run.data.tags if name.startswith("raymlops.best.test/")]

"""What MLflow shows and orders by: the metrics of the model that is kept, where the best epoch is not the last."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from recorded_sweep import METRIC, project_in, recorded_sweep

from raymlops.training.run import train
from raymlops.tuning.execution.controller import SweepController
from raymlops.tuning.study.selection import select
from raymlops.tuning.sweep_stores import SweepStores
from raymlops.tuning.trial.actor import TrialActor

if TYPE_CHECKING:
    from pathlib import Path

    from raymlops.project import Project
    from raymlops.tracking.client import Tracker

RISING = {"epochs": 6, "batch_size": 16, "lr": 0.15, "metric": METRIC}
"""On so few rows the loss is lowest after a few epochs, and higher after the last."""
RATES = (0.15, 0.05, 0.4)


def rising(storage_path: Path, **train: Any) -> Project:
    space = {"train.lr": {"categorical": list(RATES)}}
    spec = project_in(storage_path, sampler="grid", scheduler="none", num_trials=3, space=space).spec.to_dict()
    spec["recipe"]["config"] |= {"train_rows": 96, "validation_rows": 60, "test_rows": 10}
    spec["train"] |= RISING | train
    from raymlops.project import Project

    return Project.from_dict(spec)


def ordered(tracker: Tracker, project: Project, kind: str) -> list[Any]:
    """Return the finished runs of a kind as MLflow orders them."""
    experiment = tracker.client.get_experiment_by_name(project.spec.experiment)
    wanted = f"attributes.status = 'FINISHED' and tags.`raymlops.kind` = '{kind}'"
    return list(tracker.client.search_runs([experiment.experiment_id], wanted, order_by=[f"metrics.`{METRIC}` ASC"]))


def history(tracker: Tracker, run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker.client.get_metric_history(run_id, METRIC)]


def test_runs_are_ordered_by_the_models_that_they_keep(storage_path: Path) -> None:
    """Whose last epoch is better but whose kept model is worse comes later; the history has every epoch."""
    from raymlops.tracking.client import tracker as tracker_of

    projects = [rising(storage_path, lr=rate) for rate in RATES]
    tracker = tracker_of(projects[0].spec)
    records = [train(project) for project in projects]
    best = min(records, key=lambda record: record.metrics[METRIC])
    assert best.best_epoch < best.epochs
    runs = ordered(tracker, projects[0], "run")
    assert [run.data.metrics[METRIC] for run in runs] == sorted(record.metrics[METRIC] for record in records)
    assert runs[0].info.run_id == best.run_id
    for record in records:
        shown = tracker.run(record.run_id).data.metrics
        assert record.metrics == {name: shown[name] for name in record.metrics}
        points = history(tracker, record.run_id)
        assert [step for step, _ in points][:6] == [6, 12, 18, 24, 30, 36]
        assert points[record.best_epoch - 1][1] == record.metrics[METRIC]
        assert points[6:] == ([] if record.best_epoch == 6 else [(36, record.metrics[METRIC])])
        assert shown["epoch"] == 6


def test_trials_are_ordered_as_the_sweep_ranks_them(storage_path: Path) -> None:
    """Without Ray: each trial trains here, and one that is pruned says so."""
    project = rising(storage_path)
    with recorded_sweep(project) as swept:
        stores = SweepStores.open(project, swept.parent, swept.study)
        controller = SweepController(stores, trials_uri=f"{storage_path}/trials", slots=lambda: 1)
        while (config := controller.next_trial()) is not None:
            number = config["number"]
            controller.started(number)
            actor = TrialActor.__new__(TrialActor)  # Tune's own constructor needs a running Ray
            actor.setup(config)
            try:
                while not (result := actor.step())["done"] and (number, result["epochs"]) != (2, 3):
                    controller.result(number, result)
                controller.result(number, result)
                controller.end(number, result["outcome"] or "pruned")
            finally:
                actor.cleanup()
        controller.close()
        stores.trial_runs.close()
        winner = select(stores.records(), objectives=project.spec.objectives)
        runs = ordered(swept.tracker, project, "trial")
        assert runs[0].data.tags["raymlops.trial"] == str(winner.number)
        assert [run.data.metrics[METRIC] for run in runs] == sorted(t.value for t in stores.records()[:2])
        assert winner.metrics == {name: runs[0].data.metrics[name] for name in winner.metrics}
        assert history(swept.tracker, runs[0].info.run_id)[5][1] > winner.value
        (pruned,) = swept.tracker.children_of(swept.sweep_id, tags={"raymlops.trial": "2"})
        assert (pruned.info.status, pruned.data.tags["raymlops.trial_status"]) == ("KILLED", "pruned")
        assert pruned.data.tags["mlflow.note.content"].startswith("Pruned: ")
        assert json.loads(pruned.data.params["train.lr"]) in RATES


def test_parameters_are_what_shapes_a_run(storage_path: Path) -> None:
    """How it is served, gated and tracked is in its resolved configuration alone; a sweep has its search as well."""
    project = rising(storage_path, epochs=1)
    with recorded_sweep(project) as swept:
        params = swept.tracker.run(swept.sweep_id).data.params
        assert {name.partition(".")[0] for name in params} == {"recipe", "train", "sweep", "data"}
        record = train(project)
        params = swept.tracker.run(record.run_id).data.params
        assert {name.partition(".")[0] for name in params} == {"recipe", "train", "data"}
        assert (params["data.fingerprint"], params["data.rows.train"]) == (record.data.fingerprint, "96")
        assert "serve:" in swept.tracker.read_text(record.run_id, "config/resolved.yaml")

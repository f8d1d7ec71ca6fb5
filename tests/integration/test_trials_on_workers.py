"""Trials under Ray Tune: on several workers each, on data that lies once on the node, and one that hangs."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import ray
import trial_recipes
from local_training import run_local
from ray import cloudpickle, tune
from ray.tune.search import Searcher
from slow import Slow
from tiny import Tiny

from raymlops.config.load import load_data
from raymlops.data.cache import DataCache
from raymlops.project import Project, bind
from raymlops.tuning.trial.actor import TrialActor, trainable

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def back(result):
    """Return the metrics of the epochs that a checkpoint brought back."""
    return {entry["epoch"]: entry["metrics"] for entry in json.loads(result["restored"])}


class Given(Searcher):
    """Suggests configurations in their order."""

    def __init__(self, configs):
        super().__init__()
        self.configs = list(configs)

    def suggest(self, trial_id):
        return self.configs.pop(0) if self.configs else Searcher.FINISHED

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass

    def __getstate__(self):
        return {}


class Noted(tune.Callback):
    """Keeps what comes in, and answers what to stop."""

    def __init__(self):
        self.results = defaultdict(list)
        self.errors = {}

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.results[trial.config["number"]].append(result)

    def on_trial_complete(self, iteration, trials, trial, **info):
        seen = self.results[trial.config["number"]]
        if not seen or seen[-1] is not trial.last_result:
            seen.append(trial.last_result)

    def on_trial_error(self, iteration, trials, trial, **info):
        self.errors[trial.config["number"]] = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())

    def __getstate__(self):
        return {}


def project_of(tmp_path, recipe=Tiny, *, train=None, sweep=None, config=None):
    rows = {"train_rows": 128, "validation_rows": 60, "test_rows": 10}
    data = {
        "project": {"name": "tiny"},
        "recipe": {"import": recipe, "config": rows | (config or {})},
        "train": {"epochs": 3, "batch_size": 64, "lr": 0.03, "threads_per_worker": 1, **(train or {})},
        "sweep": {"metric": "validation/auc", "mode": "max", "space": {"train.lr": {"float": [1e-4, 0.1]}}}
        | (sweep or {}),
        "storage": {"path": str(tmp_path / "storage")},
    }
    return bind(load_data(data))


def config_of(project, tmp_path, *, number=0, resume=False):
    return {
        "number": number,
        "project": json.dumps(project.to_dict()),
        "shared": json.dumps(None),
        "sys_path": json.dumps(sys.path),
        "cwd": str(Path.cwd()),
        "folder": str(tmp_path / "trials" / str(number)),
        "resume": resume,
    }


def run(configs, tmp_path, *, given=TrialActor, at_once=2, stop=None):
    """Run trials and return what came in."""
    noted = Noted()
    tuner = tune.Tuner(
        given,
        tune_config=tune.TuneConfig(
            search_alg=tune.search.ConcurrencyLimiter(Given(configs), max_concurrent=at_once),
            num_samples=len(configs),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(tmp_path / "tune"),
            callbacks=[noted],
            stop=stop,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    return noted


def left():
    """Return the classes of actors that are alive."""
    from ray.util.state import list_actors

    return [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({}, id="epochs", marks=pytest.mark.soak),
        pytest.param({"epochs": None, "max_steps": 6, "eval_every_steps": 2}, id="steps"),
    ],
)
def test_a_trial_on_two_workers_reports_each_epoch_from_its_own_placement_group(tmp_path, train):
    """Both CPUs are its workers'; the numbers are those of one process; its last report is known to be the last.

    The workers have no placement group of their own.
    """
    known = set(ray.util.placement_group_table())
    project = project_of(tmp_path, sweep={"workers_per_trial": 2}, train=train)
    (results,) = run([config_of(project, tmp_path)], tmp_path, at_once=1).results.values()
    assert [result["epochs"] for result in results] == [1, 2, 3]
    assert (results[-1]["outcome"], results[-1]["reason"]) == ("complete", "")
    alone = run_local(project)
    for result, metrics in zip(results, alone.history, strict=True):
        assert result["metrics"] == pytest.approx(metrics, rel=1e-3)
    assert (tmp_path / "trials" / "0" / "checkpoints" / "index.json").exists()
    assert "TrialActor" not in left()
    groups = {key: row for key, row in ray.util.placement_group_table().items() if key not in known}
    assert [(row["state"], len(row["bundles"])) for row in groups.values()] == [("REMOVED", 3)]


@pytest.mark.soak
def test_a_trial_on_workers_that_the_scheduler_stops_ends_them_and_goes_on_later(tmp_path):
    project = project_of(tmp_path, Slow, train={"epochs": 4}, sweep={"workers_per_trial": 2}, config={"step_s": 0.3})
    first = run([config_of(project, tmp_path)], tmp_path / "a", stop={"epochs": 1})
    assert [result["epochs"] for result in first.results[0]] == [1]
    assert not {"TrialActor", "RayTrainWorker", "Mailbox"} & set(left())
    config = {**config_of(project, tmp_path, resume=True)}
    (rest,) = run([config], tmp_path / "b").results.values()
    restored = back(rest[0])
    assert restored[1] == first.results[0][0]["metrics"]
    assert [result["epochs"] for result in rest][-1] == 4
    assert rest[-1]["outcome"] == "complete"
    assert len(restored) + len([result for result in rest if result["metrics"] is not None]) == 4


@pytest.mark.soak
def test_data_is_prepared_once_for_all_processes_of_a_node(tmp_path):
    """Two processes at once, six trials: the driver alone calls datasets() and fit()."""
    log = tmp_path / "calls"
    project = project_of(tmp_path, trial_recipes.Counting, config={"log": str(log)})
    cache = DataCache()
    cache.get(project)
    both = project.with_params({"recipe.config.processes": 2})
    configs = [
        config_of(both.with_params({"train.lr": 0.01 * number}), tmp_path, number=number) for number in range(1, 7)
    ]
    with trainable(cache.shared_data()) as given:
        reference_id = given.data._reference.hex()
        noted = run(configs, tmp_path, given=given)
    gc.collect()
    assert reference_id not in ray._private.worker.global_worker.core_worker.get_all_reference_counts()
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == {"datasets": 1, "fit": 1}
    assert len({results[-1]["pid"] for results in noted.results.values()}) == 2
    assert [results[-1]["outcome"] for results in noted.results.values()] == ["complete"] * 6
    alone = run_local(Project.from_dict(json.loads(configs[3]["project"])))
    assert [result["metrics"] for result in noted.results[4]] == alone.history

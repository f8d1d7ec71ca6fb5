"""train(): where a resumed run gets its configuration from, and what is refused before anything starts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from raymlops.errors import NotFoundError, RecipeImportError, RefusedError, UsageError
from raymlops.lifecycle.operations import collect, run_log, run_status
from raymlops.lifecycle.sources import known_tracker, stores_of
from raymlops.lifecycle.train import train
from raymlops.state.lease import lease
from raymlops.training.runs.mlflow_run import CONFIG

if TYPE_CHECKING:
    from pathlib import Path


def silent(_event: Any) -> None:
    """Show nothing."""


@pytest.fixture
def data(storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A configuration whose storage is relative, and where a user stands beside it."""
    monkeypatch.chdir(storage_path.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return {
        "project": {"name": "tiny"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 300, "validation_rows": 101}},
        "train": {"epochs": 3, "batch_size": 64, "lr": 0.01, "threads_per_worker": 1},
        "storage": {"path": storage_path.name},
    }


@pytest.fixture
def stopped(data: dict[str, Any]) -> str:
    """The id of a run that was stopped after its second epoch."""

    def stop(event: Any) -> None:
        if event.kind == "epoch" and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, on_event=stop)
    tracker = known_tracker(data)
    experiment = tracker.client.get_experiment_by_name("tiny")
    (run,) = tracker.client.search_runs([experiment.experiment_id])
    return str(run.info.run_id)


@pytest.fixture
def elsewhere(stopped: str, storage_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same id for a user who stands in another folder and has nothing but RAYMLOPS_HOME."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(storage_path))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return stopped


def test_a_run_goes_on_with_its_own_configuration(elsewhere: str, data: dict[str, Any], storage_path: Path) -> None:
    """By its id alone, from another folder, to the numbers that it would have had."""
    record = train(resume=elsewhere, on_event=silent)
    whole = train(data | {"storage": {"path": str(storage_path)}}, on_event=silent)
    assert (record.run_id, record.epochs, record.steps) == (elsewhere, 3, whole.steps)
    assert record.metrics == whole.metrics
    assert record.weights_uri.startswith(f"{storage_path}/runs/{elsewhere}/")
    assert run_status(elsewhere).state == "finished"


def test_overrides_apply_to_the_configuration_of_the_run(elsewhere: str) -> None:
    """What may change does, and what may not is refused with its values."""
    with pytest.raises(UsageError, match=r"train\.lr: was 0\.01, now 0\.5"):
        train(resume=elsewhere, overrides=["train.lr=0.5"], on_event=silent)
    assert train(resume=elsewhere, overrides=["train.epochs=4"], on_event=silent).epochs == 4


def test_a_recipe_that_is_not_here_is_said_to_be_where_the_run_was_started(
    elsewhere: str, storage_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that it was started in, the reason is what it says."""
    monkeypatch.setattr("sys.path", [path for path in sys.path if not path.endswith("fixtures")])
    monkeypatch.delitem(sys.modules, "tiny")
    with pytest.raises(RecipeImportError, match="there is no module 'tiny'") as caught:
        train(resume=elsewhere, on_event=silent)
    assert caught.value.hint == (
        f"The run was started in {storage_path.parent}: resume it from there, or put that folder on PYTHONPATH."
    )
    monkeypatch.chdir(storage_path.parent)
    with pytest.raises(RecipeImportError) as caught:
        train(resume=elsewhere, on_event=silent)
    assert "The run was started in" not in str(caught.value)


def test_a_configuration_is_compared_with_that_of_the_run(stopped: str, data: dict[str, Any]) -> None:
    """The same one goes on."""
    other = data | {"train": {**data["train"], "seed": 1}}
    with pytest.raises(UsageError, match=r"train\.seed: was 0, now 1"):
        train(other, resume=stopped, on_event=silent)
    assert train(data, resume=stopped, on_event=silent).epochs == 3


def test_a_run_that_is_trained_now_is_refused(elsewhere: str, storage_path: Path) -> None:
    """Before a cluster is connected or data is read."""
    with (
        lease(f"sqlite:///{storage_path}/state.db", elsewhere, purpose="training it"),
        pytest.raises(RefusedError, match=r"in use by .*training it"),
    ):
        train(resume=elsewhere, on_event=silent)


def test_files_that_are_gone_are_no_reason_to_begin_again(elsewhere: str, storage_path: Path) -> None:
    """They may be on another machine."""
    (storage_path / "runs" / elsewhere).rename(storage_path / "moved")
    with pytest.raises(UsageError, match="restore the folder"):
        train(resume=elsewhere, on_event=silent)


def test_an_overlay_needs_a_file_to_lie_over(elsewhere: str) -> None:
    """A run's own configuration is none: the overlay would have no effect."""
    with pytest.raises(UsageError, match=r"--env NAME lays a file over another one\n.*--config FILE"):
        train(resume=elsewhere, env="prod", on_event=silent)


def test_there_must_be_something_to_train() -> None:
    """A configuration or a run."""
    with pytest.raises(UsageError, match="nothing to train"):
        train()


def test_asking_for_a_run_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped home is said to be empty, and stays so."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for ask in (lambda: train(resume="x"), lambda: run_status("x"), lambda: next(run_log("x")), collect):
        with pytest.raises(NotFoundError, match="does not exist yet"):
            ask()
    assert not (tmp_path / "home").exists()


def test_where_things_are_can_be_said_without_a_file() -> None:
    """By overrides of the two sections that say it; an overlay needs a file."""
    assert stores_of(None, overrides=["storage.path=/x", "train.epochs=3"]).storage.path == "/x"
    with pytest.raises(UsageError, match="--config FILE"):
        stores_of(None, env="prod")


def test_the_log_of_a_run_ends_where_nobody_trains_it(elsewhere: str) -> None:
    """Following one that was stopped returns, with the line that says so last."""
    lines = list(run_log(elsewhere, follow=True))
    assert f'msg="run {elsewhere}"' in lines[0]
    assert "event=start" in lines[1]
    assert "event=closed status=KILLED" in lines[-1]


def test_collecting_asks_before_it_removes(elsewhere: str, storage_path: Path) -> None:
    """Whoever does not agree keeps everything."""
    left = storage_path / "runs" / elsewhere / "checkpoints" / "step-00000099-x-1"
    left.mkdir()

    def refuse(_found: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(agree=refuse)
    assert not collect(dry_run=True).removed
    assert left.exists()
    record = collect()
    assert record.removed
    assert [item.uri for item in record.waste] == [str(left)]
    assert not left.exists()


def test_collecting_takes_the_trials_of_a_finished_sweep_too(elsewhere: str, storage_path: Path) -> None:
    """Beside what a run left; the sweep keeps its report."""
    tracker = known_tracker(None)
    sweep_id = tracker.start_run("tiny", name="s", tags={"raymlops.kind": "sweep"})
    config = f"project: {{name: tiny}}\nrecipe: {{import: 'tiny:Tiny'}}\nstorage: {{path: {storage_path}}}\n"
    tracker.log_text(sweep_id, config, CONFIG)
    tracker.end_run(sweep_id, "FINISHED")
    trial = storage_path / "sweeps" / sweep_id / "trials" / "0"
    trial.mkdir(parents=True)
    (trial / "state.json").write_text("{}")
    left = storage_path / "runs" / elsewhere / "checkpoints" / "step-00000099-x-1"
    left.mkdir()
    record = collect()
    assert (record.failed, record.sweeps) == ((), 1)
    assert {item.uri for item in record.waste} == {str(left), str(trial.parent)}
    assert (left.exists(), trial.parent.exists(), trial.parent.parent.exists()) == (False, False, True)

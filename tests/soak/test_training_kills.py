"""kill -9 of a driver that trains, at a hundred random moments: every run ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_weights import load_weights

from raymlops.config.load import load_data
from raymlops.project import Project, bind
from raymlops.tracking.client import tracker
from raymlops.training.runs.lookup import look_up

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("KILLS", "100"))
SEED = int(os.environ.get("SEED", "1"))
PRELOADED = ["mlflow", "raymlops.training.run", "torch._dynamo", "tiny"]


def project(storage: Path) -> Project:
    return bind(
        load_data(
            {
                "project": {"name": "tiny"},
                "recipe": {"import": "tiny:Tiny", "config": {"dropout": 0.2, "train_rows": 4000}},
                # 63 steps an epoch and a checkpoint every third: a kill often strikes while one is written.
                "train": {
                    "epochs": 12,
                    "batch_size": 64,
                    "threads_per_worker": 1,
                    "log_every_steps": 5,
                    "checkpoint_every_steps": 3,
                },
                "storage": {"path": str(storage)},
            }
        )
    )


def _attempt(storage: str, resume: str | None) -> None:
    from raymlops.training.run import train

    train(project(Path(storage)), resume=resume, on_event=lambda _event: None)


def test_a_hundred_kills(tmp_path: Path, mlflow_database: Path) -> None:
    """Runs are killed at random moments and resumed until they are done; all that they give equals the whole run's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    moments = random.Random(SEED)

    def start(storage: Path, resume: str | None) -> Any:
        if not storage.exists():
            storage.mkdir()
            shutil.copy(mlflow_database, storage / "mlflow.db")
        process = context.Process(target=_attempt, args=(str(storage), resume), daemon=True)
        process.start()
        return process

    began = time.monotonic()
    whole = start(tmp_path / "whole", None)
    whole.join()
    took_s = time.monotonic() - began
    assert whole.exitcode == 0
    expected = _result(project(tmp_path / "whole"))

    kills = chains = 0
    while kills < KILLS:
        chains += 1
        storage = tmp_path / f"chain-{chains}"
        resume: str | None = None
        while True:
            process = start(storage, resume)
            process.join(timeout=moments.uniform(0.0, took_s / 2))
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
            else:
                assert process.exitcode == 0, f"chain {chains}, after {kills} kills"
            runs = _runs(project(storage))
            assert len(runs) <= 1
            resume = runs[0].info.run_id if runs else None
            if runs and runs[0].info.status == "FINISHED":
                break  # a kill may strike after the last line
        got = _result(project(storage))
        for name, value in expected.items():
            assert _equal(got[name], value), (chains, name, _difference(got[name], value))
    print(f"{kills} kills in {chains} runs, a whole one takes {took_s:.1f} s")


def _runs(of: Project) -> list[Any]:
    """Return the runs that were made; one whose driver died while it wrote the configuration has done nothing yet."""
    store = tracker(of.spec)
    experiment = store.client.get_experiment_by_name(of.spec.experiment)
    runs = [] if experiment is None else store.client.search_runs([experiment.experiment_id])
    return [run for run in runs if look_up(store, run.info.run_id).spec is not None]


def _result(of: Project) -> dict[str, Any]:
    (run,) = _runs(of)
    client = tracker(of.spec).client
    weights, _ = load_weights(run.data.tags["raymlops.weights_uri"])
    names = [name for name in run.data.metrics if name.startswith(("train/loss", "train/lr", "validation/", "epoch"))]
    history = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
    for name, points in history.items():
        steps = [step for step, _ in points]
        assert steps[:-1] == sorted(set(steps[:-1])), name  # the kept model's may come last, at the last step again
    return {"status": run.info.status, "weights": weights, "history": history}


def _equal(got: Any, expected: Any) -> bool:
    if isinstance(expected, dict) and all(isinstance(value, torch.Tensor) for value in expected.values()):
        return got.keys() == expected.keys() and all(torch.equal(got[name], value) for name, value in expected.items())
    return bool(got == expected)


def _difference(got: Any, expected: Any) -> Any:
    """Return what one has and the other lacks, to read."""
    if not isinstance(expected, dict):
        return got, expected
    return {
        key: (sorted(set(got.get(key, [])) - set(value)), sorted(set(value) - set(got.get(key, []))))
        for key, value in expected.items()
        if isinstance(value, list) and got.get(key) != value
    }


@pytest.fixture(autouse=True)
def _no_ray_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

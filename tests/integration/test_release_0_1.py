"""What raymlops 0.1 left behind is opened, migrated, shown and resumed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import release_0_1 as release

import raymlops as rm
from raymlops.bundle.load import load
from raymlops.config.load import load_data
from raymlops.lifecycle.overview import overview
from raymlops.project import bind
from raymlops.state.keys import list_keys
from raymlops.state.migrate import is_newest
from raymlops.state.store import State
from raymlops.state.versions import recorded
from raymlops.tracking.client import tracker
from raymlops.tuning.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Path]:
    """Return the folder, as the home that names MLflow and the state by default."""
    folder = tmp_path_factory.mktemp("store")
    release.restore(folder, mlflow_database)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAYMLOPS_HOME", str(folder))
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def config(store: Path) -> dict[str, Any]:
    """Return the configuration of that release."""
    return {
        "project": {"name": "tiny"},
        "recipe": {
            "import": "tiny:Tiny",
            "config": {"hidden": 4, "train_rows": 200, "validation_rows": 60, "test_rows": 60},
        },
        "train": {
            "epochs": 4,
            "batch_size": 64,
            "lr": 0.01,
            "num_workers": 0,
            "threads_per_worker": 1,
            "metric": "validation/auc",
            "mode": "max",
        },
        "sweep": {
            "num_trials": 4,
            "max_concurrent": 1,
            "sampler": "random",
            "scheduler": "none",
            "seed": 5,
            "checkpoint_every_s": 0,
            "space": {"train.lr": {"float": [0.001, 0.1], "log": True}},
        },
        "storage": {"path": str(store)},
        "tracking": {"uri": f"sqlite:///{store}/mlflow.db"},
    }


def test_its_state_is_migrated_and_shows_what_is_live(store: Path, config: dict[str, Any]) -> None:
    """Champion, verdict, key, audit and the state's id are what that release wrote."""
    with State.open(f"sqlite:///{store}/state.db") as state:
        with state.reading() as connection:
            assert is_newest(connection)
        assert state.owner().id == release.STATE_ID
        (item,) = state.deployments("tiny")
        assert (item.version, item.role, item.run_id) == (1, "champion", release.FINISHED)
        known = recorded(state, "tiny", 1)
        assert known is not None
        assert (known.bundle.digest, known.verdict) == (release.DIGEST, "passed")
        (key,) = list_keys(state)
        assert (key.id, key.name, key.revoked_at) == (release.KEY_ID, "shop", None)
        actions = [event.action for event in state.events("tiny")]
        assert actions == ["key.create", "deploy", "promote", "gate.pass", "register"]
    (shown,) = overview(config)
    assert (shown.name, shown.champion, shown.by, shown.why) == ("tiny", 1, "ada", "the first one")
    assert len(load(f"{store}/bundles/{release.DIGEST}", release.DIGEST).example) > 0


def test_its_run_is_resumed(store: Path, config: dict[str, Any]) -> None:
    """By its id alone, from its checkpoint, to the numbers of the run that nobody stopped."""
    seen = []
    record = rm.train(resume=release.STOPPED, on_event=seen.append)
    assert [event.epoch for event in seen if event.kind == "epoch"] == [3, 4]
    tracking = tracker(bind(load_data(config)).spec)
    whole = tracking.run(release.FINISHED).data.metrics
    for name in ("train/loss", "validation/loss", "validation/auc"):
        assert record.metrics[name] == pytest.approx(whole[name], rel=1e-4), name
    assert tracking.run(release.STOPPED).info.status == "FINISHED"


@pytest.mark.soak
@pytest.mark.usefixtures("ray_local")
def test_its_sweep_is_resumed(config: dict[str, Any]) -> None:
    """Complete trials stay as they are, the third goes on from its checkpoint, the fourth begins."""
    project = bind(load_data(config))
    before = json.loads(tracker(project.spec).read_text(release.SWEEP, "sweep/trials.json"))["trials"]
    seen: dict[int, int] = {}

    def note(event: Any) -> None:
        if event.kind == "epoch":
            (epoch,) = (row.epoch for row in event.rows if row.number == event.number)
            seen.setdefault(event.number, epoch)

    record = sweep(project, resume=release.SWEEP, on_event=note)
    assert [trial.status for trial in record.trials] == ["complete"] * 4
    complete = {trial["number"]: trial["value"] for trial in before if trial["status"] == "complete"}
    assert len(complete) == 2
    assert {number: record.trials[number].value for number in complete} == complete
    assert seen[2] >= 3  # of four; the last one may be trained again
    assert set(seen) == {2, 3}

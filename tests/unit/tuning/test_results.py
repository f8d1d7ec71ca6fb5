"""The end of a sweep: its winner, its files, its run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.config.load import load, load_data
from raymlops.errors import SweepError
from raymlops.project import bind
from raymlops.records import SpentRecord
from raymlops.tuning.results import conclude, difference
from raymlops.tuning.sweep_stores import SweepStores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recorded_sweep import RecordedSweep


@pytest.fixture
def sweep(storage_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedSweep]:
    """A sweep whose database's URL can be read at its start alone."""
    data = project_in(storage_path).to_dict()
    data["storage"]["optuna"] = {"env": "OPTUNA_URL"}
    monkeypatch.setenv("OPTUNA_URL", f"sqlite:///{storage_path}/optuna.db")
    with recorded_sweep(bind(load_data(data))) as made:
        monkeypatch.delenv("OPTUNA_URL")
        yield made


def concluded(sweep: RecordedSweep, **controller: Any) -> Any:
    runs: Any = SimpleNamespace(run_id=lambda number: f"run-{number}")
    stores = SweepStores(sweep.project, sweep.study, sweep.trials, runs, sweep.parent)
    driver: Any = SimpleNamespace(spent=SpentRecord(wall_s=7.0), notify=pytest.fail, **{"stopped": "", **controller})
    return conclude(stores, driver, storage="sqlite:///shown")


def test_a_sweep_ends_with_its_winner(sweep: RecordedSweep) -> None:
    """Its configuration is written, and the run says which trial it was; no secret is read again."""
    for value in (0.5, 0.25):
        sweep.run(value)
    record = concluded(sweep, stopped="reached its timeout_s of 60 s")
    assert (record.best.number, record.best.run_id, record.duration_s) == (1, "run-1", 7.0)
    assert (record.storage, record.stopped) == ("sqlite:///shown", "reached its timeout_s of 60 s")
    assert load(Path(record.best_config)).spec.train.lr == record.best.params["train.lr"]
    assert Path(record.report).stat().st_size > 0
    run = sweep.tracker.run(sweep.sweep_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["raymlops.best_trial"], run.data.tags["raymlops.stopped"]) == ("1", record.stopped)
    assert run.data.metrics["validation/loss"] == 0.25


def test_a_sweep_without_a_usable_trial_has_a_report(sweep: RecordedSweep) -> None:
    """Its run is ended by whoever catches the error."""
    sweep.run(0.5, "failed", reason="broke")
    with pytest.raises(SweepError, match="broke") as raised:
        concluded(sweep)
    run = sweep.tracker.run(sweep.sweep_id)
    assert run.info.status == "RUNNING"
    assert raised.value.__notes__ == [f"Report: {run.data.tags['raymlops.report']}"]


def test_a_budget_that_ends_before_a_trial_is_named(sweep: RecordedSweep) -> None:
    """With the command that goes on."""
    with pytest.raises(SweepError, match="reached its timeout_s of 1 s before its first trial ended") as raised:
        concluded(sweep, stopped="reached its timeout_s of 1 s")
    assert f"--resume {sweep.sweep_id} --extend" in str(raised.value.hint)


@pytest.mark.parametrize(("run", "said"), [(0.505, False), (0.52, True), (None, False)])
def test_a_winner_that_trains_to_another_value_is_said_so(run, said):
    """Two of a hundred is the noise of a reduction; 0.52 is 4% above."""
    text = difference("validation/loss", trial=0.5, run=run)
    assert bool(text) is said
    assert not said or "its trial had validation/loss 0.5, the run has 0.52" in text

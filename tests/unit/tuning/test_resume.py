"""What is checked before a resumed sweep writes to its study."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from recorded_sweep import project_in, recorded_sweep

from raymlops.errors import UsageError
from raymlops.records import SpentRecord
from raymlops.training.runs import resume
from raymlops.tuning.mlflow.sweep_run import sweep_of
from raymlops.tuning.sweep import _Opener

if TYPE_CHECKING:
    from pathlib import Path

TAGS = {"team": "b"}


@pytest.mark.parametrize(("used_s", "states"), [(60.0, ["FAIL"]), (59.0, ["FAIL", "WAITING"])])
def test_failed_trials_are_trained_again_only_where_the_sweep_is_resumed(
    storage_path: Path, monkeypatch: pytest.MonkeyPatch, used_s: float, states: list[str]
) -> None:
    """One that is refused leaves the study as it was; one whose last trial failed has something left to do."""
    monkeypatch.setattr(resume, "data_of", lambda *_: SimpleNamespace(notes=()))
    monkeypatch.setattr(resume, "check_data", lambda *_: None)
    told: list[str] = []
    with recorded_sweep(project_in(storage_path, timeout_s=60.0, num_trials=1)) as sweep:
        sweep.run(0.5, "failed", reason="ValueError: x")
        sweep.parent.end("FINISHED", {})
        opener = _Opener(sweep.project, sweep.tracker, sweep.study._storage, told.append)

        recorded, spent = sweep_of(sweep.tracker, sweep.sweep_id), SpentRecord(wall_s=used_s)
        refused = pytest.raises(UsageError, match="is finished: it reached its timeout_s of 60 s")
        with refused if used_s >= 60.0 else nullcontext():
            opener.resume(recorded, None, changes=[], unservable=(), spent=spent, retry=True, tags=TAGS)  # type: ignore[arg-type]
        tags = sweep_of(sweep.tracker, sweep.sweep_id).tags
        assert {name: tags.get(name) for name in TAGS} == ({"team": None} if used_s >= 60.0 else TAGS)
        assert told == ([] if used_s >= 60.0 else ["trains 1 failed trials again"])
        assert [trial.state.name for trial in sweep.study.get_trials()] == states

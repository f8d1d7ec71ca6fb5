"""Rows that are written in bulk are those that Optuna's own methods write."""

from __future__ import annotations

import math
import sqlite3
import time
from contextlib import closing
from datetime import datetime

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from optuna.trial import create_trial as frozen

from raymlops.records import Objective
from raymlops.tuning.study.bulk import _Rows, bulk, create_trial
from raymlops.tuning.study.storage import create_study, open_storage

LOSS = Objective("loss", "min")
DRAFT = frozen(
    state=TrialState.RUNNING,
    params={"b": 3, "a": 0.1, "c": True},
    distributions={
        "b": IntDistribution(1, 4),
        "a": FloatDistribution(0.01, 1, log=True),
        "c": CategoricalDistribution(["x", True, None]),
    },
    system_attrs={"fixed_params": {"b": 3}, "tpe:relative_params:0": "{}"},
)


@pytest.fixture
def elsewhere(monkeypatch):
    """A time zone other than the tables'."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "XYZ-9")
        time.tzset()
        yield
    time.tzset()


def write(storage, trial_id, *, state, values=None):
    storage.set_trial_param(trial_id, "d", 0.25, FloatDistribution(0, 1, step=0.25))
    for step, value in enumerate([0.5, math.nan, math.inf, -math.inf, 0.25]):
        storage.set_trial_intermediate_value(trial_id, step, value)
    storage.set_trial_intermediate_value(trial_id, 0, 0.75)
    storage.set_trial_system_attr(trial_id, "constraints:x", -1.0)
    storage.set_trial_user_attr(trial_id, "raymlops", {"history": {"1": {"loss": 0.5}}})
    storage.set_trial_user_attr(trial_id, "raymlops", {"history": {}})
    storage.set_trial_state_values(trial_id, state, values)


def tables(path):
    """Return all rows about trials, without the times."""
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(names)}
    rows["trials"] = [(*row[:-2], *(moment is not None for moment in row[-2:])) for row in rows["trials"]]
    # A value that is set twice is updated by Optuna where it is, and so has the same key.
    return {name: sorted(found) for name, found in rows.items() if name.startswith("trial")}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("state", "values"),
    [("COMPLETE", [0.5]), ("COMPLETE", [0.5, math.inf]), ("PRUNED", None), ("FAIL", None), ("WAITING", None)],
)
def test_the_tables_are_as_optuna_would_leave_them(tmp_path, state, values):
    for name in ("theirs", "ours"):
        with open_storage(f"sqlite:///{tmp_path}/{name}.db") as opened:
            study = create_study(opened, "s", objectives=[LOSS] * len(values or [0]))
            storage, study_id = study._storage, study._study_id
            for _ in range(2):
                if name == "ours":
                    trial_id, number = create_trial(storage, study_id, DRAFT)
                    with bulk(storage) as rows:
                        write(rows, trial_id, state=TrialState[state], values=values)
                else:
                    trial_id = storage.create_new_trial(study_id, template_trial=DRAFT)
                    write(storage, trial_id, state=TrialState[state], values=values)
            now = study.get_trials(deepcopy=False)
            assert [trial.number for trial in now] == [0, 1]
            started = [abs((trial.datetime_start - DRAFT.datetime_start).total_seconds()) for trial in now]
            assert max(started) < 1
            if state != "WAITING":
                ages = [abs((datetime.now() - trial.datetime_complete).total_seconds()) for trial in now]  # noqa: DTZ005
                assert max(ages) < 3600
    assert number == 1
    assert tables(tmp_path / "ours.db") == tables(tmp_path / "theirs.db")


def test_nothing_is_written_where_one_of_the_trials_has_ended(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/o.db") as opened:
        study = create_study(opened, "s", objectives=[LOSS])
        storage, study_id = study._storage, study._study_id
        one, other = (create_trial(storage, study_id, DRAFT)[0] for _ in range(2))
        storage.set_trial_state_values(other, TrialState.FAIL)
        before = tables(tmp_path / "o.db")
        with pytest.raises(UpdateFinishedTrialError), bulk(storage) as rows:
            [write(rows, trial_id, state=TrialState.COMPLETE, values=[0.5]) for trial_id in (one, other)]
        assert tables(tmp_path / "o.db") == before


def test_nothing_is_written_where_one_of_them_ends_meanwhile(tmp_path, monkeypatch):
    """SQLite locks nothing that is only read."""
    check = _Rows.check
    with open_storage(f"sqlite:///{tmp_path}/o.db") as opened:
        study = create_study(opened, "s", objectives=[LOSS])
        trial_id, _ = create_trial(study._storage, study._study_id, DRAFT)

        def meanwhile(rows, connection):
            check(rows, connection)
            study._storage.set_trial_state_values(trial_id, TrialState.FAIL)

        monkeypatch.setattr(_Rows, "check", meanwhile)
        with pytest.raises(UpdateFinishedTrialError), bulk(study._storage) as rows:
            write(rows, trial_id, state=TrialState.COMPLETE, values=[0.5])
        (trial,) = study.get_trials()
        assert (trial.state, trial.user_attrs) == (TrialState.FAIL, {})


def test_a_study_that_was_deleted_is_not_found(tmp_path):
    with open_storage(f"sqlite:///{tmp_path}/o.db") as opened:
        study = create_study(opened, "s", objectives=[LOSS])
        trial_id, _ = create_trial(study._storage, study._study_id, DRAFT)
        study._storage.delete_study(study._study_id)
        with pytest.raises(KeyError, match="Record does not exist"):
            create_trial(study._storage, study._study_id, DRAFT)
        with pytest.raises(KeyError, match="Record does not exist"), bulk(study._storage) as rows:
            rows.set_trial_user_attr(trial_id, "x", 1)


@pytest.mark.usefixtures("elsewhere")
def test_trials_are_read_as_optuna_reads_them(tmp_path):
    """Of this study alone, those of any state; again with those alone that may have changed."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    with open_storage(url) as storage:
        studies = [create_study(storage, name, objectives=[LOSS]) for name in ("one", "other")]
        for state, values in (("COMPLETE", [math.inf]), ("PRUNED", [0.5]), ("FAIL", None), ("WAITING", None)):
            for study in studies:
                trial_id, _ = create_trial(study._storage, study._study_id, DRAFT)
                write(storage, trial_id, state=TrialState[state], values=values)
        create_trial(studies[0]._storage, studies[0]._study_id, DRAFT)
        ours, theirs = storage, RDBStorage(url)
        study_id = studies[0]._study_id
        for known, greater in ((set(), -1), ({1, 7}, 6), ({1, 3}, 99), (set(range(1, 900)), 900)):
            found = [repr(vars(trial)) for trial in ours._get_trials(study_id, None, known, greater)]
            assert found == [repr(vars(trial)) for trial in theirs._get_trials(study_id, None, known, greater)]
        assert len(ours.get_all_trials(study_id, states=(TrialState.FAIL,))) == 1
        assert [trial.number for trial in studies[0].get_trials()] == [0, 1, 2, 3, 4]
        with pytest.raises(KeyError, match="Record does not exist"):
            ours._get_trials(9, None, set(), -1)
        theirs.engine.dispose()

"""Which trials of another program's study a sweep learns from, and that they count and win nowhere."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections import Counter
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from recorded_sweep import project_in
from sqlalchemy import URL

from raymlops.config.space import parse_distribution
from raymlops.errors import ConfigError, StorageError, SweepError, UsageError
from raymlops.tuning.budget import Tally
from raymlops.tuning.study.fork import add_carried, carry_over
from raymlops.tuning.study.import_study import IMPORTED, import_trials, point_of
from raymlops.tuning.study.ranking import candidates
from raymlops.tuning.study.selection import select, winner
from raymlops.tuning.study.storage import create_study, open_storage
from raymlops.tuning.study.trials import Trials
from raymlops.tuning.sweep import _Opener

SPACE = {
    key: parse_distribution(words)
    for key, words in {
        "train.lr": {"float": [1e-4, 1e-1], "log": True},
        "train.optimizer": {"categorical": ["sgd", "adamw"]},
        "train.momentum": {"float": [0.5, 0.99], "when": {"train.optimizer": "sgd"}},
    }.items()
}
SGD = {"train.lr": 0.01, "train.optimizer": "sgd", "train.momentum": 0.9}


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (SGD, {}),
        ({"lr": 0.01, "optimizer": "sgd", "momentum": 0.9}, {}),
        ({"step_size": 0.01, "optimizer": "sgd", "beta": 0.9}, {"step_size": "train.lr", "beta": "train.momentum"}),
    ],
)
def test_parameters_are_found_by_key_by_its_last_part_or_by_a_name_that_is_given(params, names):
    assert point_of(params, SPACE, names=names) == SGD


def test_a_last_part_that_two_keys_share_names_neither():
    space = {f"recipe.config.{part}.layers": parse_distribution({"int": [1, 4]}) for part in ("encoder", "decoder")}
    assert point_of({"layers": 2}, space, names={}) == "layers is not in the space"


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (SGD | {"dropout": 0.1}, "dropout is not in the space"),
        ({"train.lr": 0.01, "train.optimizer": "sgd"}, "train.momentum is missing"),
        (SGD | {"train.lr": 0.5}, "train.lr outside the space"),
        (SGD | {"train.optimizer": "lion"}, "train.optimizer outside the space"),
        (SGD | {"train.optimizer": "adamw"}, "train.momentum does not exist at its point"),
    ],
)
def test_what_is_no_point_of_the_space_says_why(params, reason):
    assert point_of(params, SPACE, names={}) == reason


@pytest.fixture
def url(tmp_path):
    """A database with a study of another program."""
    url = f"sqlite:///{tmp_path}/theirs.db"
    study = optuna.create_study(storage=url, study_name="theirs", sampler=optuna.samplers.RandomSampler(seed=1))
    for value in (0.3, 0.01, 0.2):
        trial = study.ask()
        trial.suggest_float("lr", 0.001, 0.1)
        study.tell(trial, value)
    for lr, state in ((0.9, TrialState.COMPLETE), (0.05, TrialState.PRUNED), (0.05, TrialState.FAIL)):
        distribution = optuna.distributions.FloatDistribution(0.001, 1.0)
        value = 0.1 if state == TrialState.COMPLETE else None
        made = {"params": {"lr": lr}, "distributions": {"lr": distribution}, "state": state, "value": value}
        study.add_trial(optuna.trial.create_trial(**made))
    study.ask()
    study._storage.remove_session()
    study._storage._backend.engine.dispose()
    return url


def opener(project, told):
    return _Opener(project, SimpleNamespace(), None, told.append)


def test_a_new_sweep_knows_them_and_says_what_is_left_out(tmp_path, url):
    """Only once, also where its driver dies in between; samplers see them, and no limit counts them."""
    project = project_in(tmp_path, sampler="tpe", startup_trials=1, import_study={"study": "theirs", "storage": url})
    spec, told = project.spec, []
    with open_storage(f"sqlite:///{tmp_path}/ours.db") as storage:
        study = create_study(storage, "ours", objectives=spec.objectives)
        found = opener(project, told)._imported()
        add_carried(study, dict(list(found[0].items())[:1]), mark="died in between")
        opener(project, told)._import(study, found)
        (said,) = told
        head, *left = said.split("; ")
        assert head == "imported 3 trials of the study theirs"
        reasons = ("train.lr outside the space", "pruned", "failed", "not finished")
        assert left == [f"1 left out: {reason}" for reason in reasons]
        assert study.user_attrs[IMPORTED]
        trials = Trials(study, section=spec.sweep, objectives=spec.objectives)
        assert [record.carried_from for record in trials.records] == [f"optuna:theirs/{number}" for number in range(3)]
        assert (trials.asked, trials.total) == (0, 4)
        drawn = trials.ask()
        assert (drawn.number, trials.asked) == (3, 1)
        trials.report(3, epoch=1, value=0.5, metrics={}, best_metrics={"validation/loss": 0.5})
        trials.tell(3, "complete")
        assert [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [0.3, 0.01, 0.2]
        records = trials.records
    # 0.01 is theirs, and there is no run of it.
    assert winner(records, objectives=spec.objectives).number == 3
    assert candidates(records, objective=spec.objectives[0], top=2) == [records[3]]
    assert Tally.of(records, mode="min").best == records[3]
    with pytest.raises(SweepError, match="the sweep ended before any trial started"):
        select(records[:3], objectives=spec.objectives)


def test_a_fork_knows_them_too(tmp_path, url):
    project = project_in(tmp_path, import_study={"study": "theirs", "storage": url})
    with open_storage(f"sqlite:///{tmp_path}/ours.db") as storage:
        study = create_study(storage, "ours", objectives=project.spec.objectives)
        opener(project, [])._import(study, opener(project, [])._imported())
        kept, left = carry_over(study, old_spec=project.spec, new_spec=project.spec, sweep_id="a")
    assert (list(kept), left) == ([f"optuna:theirs/{number}" for number in range(3)], Counter())


def test_a_study_that_is_not_there_is_named(tmp_path, url):
    project = project_in(tmp_path, import_study={"study": "other", "storage": url})
    with pytest.raises(UsageError, match=r"sweep\.import_study: there is no study other"):
        opener(project, [])._imported()


def test_another_direction_is_rejected(tmp_path):
    project = project_in(tmp_path, import_study={"study": "x"})
    with pytest.raises(
        UsageError, match=r"study x of sweep\.import_study optimizes max, and the sweep validation/loss min"
    ):
        import_trials(optuna.create_study(study_name="x", direction="maximize"), spec=project.spec)


def test_with_constraints_a_trial_must_say_how_it_keeps_them(tmp_path):
    project = project_in(tmp_path, constraints={"latency": {"max": 10.0}}, import_study={"study": "x"})
    study = optuna.create_study(study_name="x")
    for excess in (None, 1.0, -1.0):
        trial = study.ask()
        trial.suggest_float("lr", 0.001, 0.1)
        if excess is not None:
            trial.set_constraint("latency max", excess)
        study.tell(trial, 0.5)
    kept, left = import_trials(study, spec=project.spec)
    assert left == {"says nothing of sweep.constraints": 1}
    assert [trial.user_attrs["raymlops"]["feasible"] for trial in kept.values()] == [False, True]
    assert [trial.constraints for trial in kept.values()] == [{"latency max": 1.0}, {"latency max": -1.0}]
    again = project_in(tmp_path, constraints={"latency": {"max": 9.5}}).spec
    with open_storage(f"sqlite:///{tmp_path}/ours.db") as storage:
        ours = create_study(storage, "ours", objectives=project.spec.objectives)
        add_carried(ours, kept)
        forked, left = carry_over(ours, old_spec=project.spec, new_spec=again, sweep_id="a")
    assert (left, [trial.constraints["latency max"] for trial in forked.values()]) == (Counter(), [1.5, -0.5])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("user", "raymlops", "v1"),
        ("user", "raymlops", {"history": {"a": 1}}),
        ("user", "raymlops", {"orders": [1]}),
        ("system", "raymlops:report:a", {}),
        ("system", "raymlops:report:1", 5),
        ("user", "raymlops", {"history": {"1": {"loss": 10**400}}}),
        pytest.param("system", "constraints:latency max", 10**400, id="large"),
        ("system", "constraints", "abc"),
        ("system", "constraints", [1.0]),
        ("system", "constraints", {"latency max": "low"}),
    ],
)
def test_an_attribute_that_cannot_be_read_leaves_its_trial_alone_out(tmp_path, kind, name, value):
    """Other programs may write anything."""
    section = {"constraints": {"latency": {"max": 10.0}}} if name.startswith("constraints") else {}
    spec = project_in(tmp_path, **section, import_study={"study": "x"}).spec
    study = optuna.create_study(study_name="x")
    for odd in (True, False):
        trial = study.ask()
        trial.suggest_float("lr", 0.001, 0.1)
        if section:
            trial.set_constraint("latency max", 1.0)
        if odd:
            write = getattr(study._storage, f"set_trial_{kind}_attr")
            write(trial._trial_id, name, value)
        study.tell(trial, 0.5)
    kept, left = import_trials(study, spec=spec)
    assert [*kept][-1:] == ["optuna:x/1"]
    assert len(kept) + sum(left.values()) == 2
    assert all("cannot be read" in reason or "says nothing" in reason for reason in left)


def test_a_configuration_that_was_trained_again_is_one_measurement(tmp_path):
    spec = project_in(tmp_path).spec
    study = optuna.create_study(study_name="x")
    for repeat_of in (None, 0):
        trial = study.ask()
        trial.suggest_float("lr", 0.001, 0.1)
        if repeat_of is not None:
            trial.set_user_attr("raymlops:repeat_of", repeat_of)
        study.tell(trial, 0.5)
    kept, left = import_trials(study, spec=spec)
    assert (len(kept), left) == (1, {"trained again with another seed": 1})


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_other_database_is_left_as_it_is(tmp_path, url, journal, running):
    """Whatever its journal and its name are, also where its folder may not be written, or its program runs."""
    folder = tmp_path / "their 100% #1?"
    folder.mkdir()
    file = shutil.copy(tmp_path / "theirs.db", folder)
    theirs = sqlite3.connect(file)
    theirs.execute(f"PRAGMA journal_mode = {journal}")
    with theirs:
        theirs.execute("UPDATE trials SET state = 'FAIL' WHERE number = 2")
    if not running:
        theirs.close()
    before = contents(folder)
    storage = str(URL.create("sqlite", database=str(file)))
    kept, _ = opener(project_in(tmp_path, import_study={"study": "theirs", "storage": storage}), [])._imported()
    assert len(kept) == 2
    assert contents(folder) == before
    theirs.close()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def test_a_database_without_studies_is_named_and_gets_no_tables(tmp_path):
    file = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(file)) as app:
        app.execute("CREATE TABLE users (name TEXT)")
    before = contents(tmp_path)
    project = project_in(tmp_path, import_study={"study": "x", "storage": f"sqlite:///{file}"})
    with pytest.raises(StorageError, match="no such table") as raised:
        opener(project, [])._imported()
    assert raised.value.hint == "It holds no studies of Optuna: name the database of one."
    assert contents(tmp_path) == before


def test_a_name_for_what_is_not_in_the_space_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match=r"import_study\.params\.\w+: train\.momentum is not in the space"):
        project_in(tmp_path, import_study={"study": "x", "params": {"beta": "train.momentum"}})

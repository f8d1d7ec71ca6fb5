"""A sweep whose driver is killed: nothing is lost, nothing is done twice, and one driver alone goes on with it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import pytest
from shell_user import visiting
from sweep_driver import (
    Books,
    Driver,
    books,
    can_import_fixtures,
    check_whole,
    data,
    spec_of,
    write,
)

from raymlops.tuning.study.storage import open_storage, optuna_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shell_user import User

    from raymlops.config.schema import ProjectSpec

pytestmark = [pytest.mark.e2e, pytest.mark.soak]
TRIALS = 12
KILLED_AFTER_S = 4.0
"""From when a driver says its name, two seconds before its first trials run; more and drawn moments are a soak's."""


@dataclass(frozen=True)
class Killed:
    """A sweep that was killed and resumed, and its books when it had ended."""

    user: User
    spec: ProjectSpec
    sweep_id: str
    states: Counter[str]
    """How many trials were in each state after the kill."""
    books: Books

    def __str__(self) -> str:
        return self.sweep_id


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Killed]:
    """Yield a sweep whose driver was killed among its first trials, and resumed to its end while a second one tried."""
    with visiting(tmp_path_factory.mktemp("killed"), mlflow_database) as user:
        can_import_fixtures(user)
        config = write(user.cwd / "tiny.yaml", data(user.cwd / "home" / ".raymlops", sweep={"num_trials": TRIALS}))
        spec = spec_of(config)
        driver = Driver(user, "--config", config)
        sweep_id = driver.sweep_id()
        assert driver.killed_after(KILLED_AFTER_S), "a whole sweep takes longer than that"
        states = books(spec, sweep_id).states
        driver = Driver(user, "--resume", sweep_id)
        assert driver.sweep_id() == sweep_id
        second = user.raymlops("sweep", "--resume", sweep_id, code=4)
        assert f"process {driver.process.pid}" in second.stderr
        driver.end()
        assert user.processes() == []
        yield Killed(user, spec, sweep_id, states, books(spec, sweep_id))


def test_a_killed_sweep_is_as_if_nothing_had_happened(killed: Killed) -> None:
    """Every trial has its value and all its epochs, and one child run; nothing is RUNNING, the parent FINISHED."""
    check_whole(killed.books, trials=TRIALS)
    assert killed.states["COMPLETE"] < TRIALS


def test_optuna_dashboard_reads_the_study(killed: Killed) -> None:
    """The dashboard lists the study, and shows every trial of it."""
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    with open_storage(optuna_url(killed.spec)) as storage:
        application = optuna_dashboard.wsgi(storage)
        (study,) = (
            summary
            for summary in _asked(application, "/api/studies")["study_summaries"]
            if summary["study_name"] == f"killed-{killed.sweep_id}"
        )
        shown = _asked(application, f"/api/studies/{study['study_id']}", "after=0")
    assert study["directions"] == ["maximize"]
    assert len(shown["trials"]) >= TRIALS
    assert all(trial["state"] == "Complete" for trial in shown["trials"][:TRIALS])


def test_another_space_is_refused_at_a_resume_and_taken_by_a_fork(killed: Killed) -> None:
    """--resume says what differs and names --fork; the fork knows every trial that lies in the new space."""
    user = killed.user
    written = data(user.cwd / "home" / ".raymlops", sweep={"num_trials": TRIALS})
    written["sweep"]["space"]["recipe.config.x"] = {"float": [0.0, 0.5]}
    config = write(user.cwd / "narrow.yaml", written)

    refused = user.raymlops("sweep", "--resume", killed.sweep_id, "--config", config, code=2)
    assert "recipe.config.x" in refused.stderr
    assert f"--fork {killed.sweep_id}" in refused.stderr

    forked = json.loads(
        user.raymlops("sweep", "--fork", killed.sweep_id, "--config", config, "sweep.num_trials=3", "--json").stdout
    )
    assert (forked["forked_from"], forked["sweep_id"] == killed.sweep_id) == (killed.sweep_id, False)
    inside = {
        f"{killed.sweep_id}/{trial.number}": trial.value
        for trial in killed.books.trials
        if trial.params["recipe.config.x"] <= 0.5
    }
    carried = {trial["carried_from"]: trial["value"] for trial in forked["trials"] if trial["carried_from"]}
    assert carried == inside
    assert Counter(trial["status"] for trial in forked["trials"] if not trial["carried_from"]) == {"complete": 3}
    assert forked["best"]["value"] >= max(inside.values())


def _asked(application: Any, path: str, query: str = "") -> Any:
    """Return the JSON that a WSGI application answers a GET with."""
    environment: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "wsgi.input": BytesIO()}
    setup_testing_defaults(environment)
    statuses: list[str] = []
    body = b"".join(application(environment, lambda status, _headers, _error=None: statuses.append(status)))
    assert statuses[0].startswith("200"), (path, statuses, body[:500])
    return json.loads(body)

"""A judge that dies anywhere leaves each verdict with all that follows it, or without any of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from killed_judge import AT_ONCE, STEPS, DiedError, dying_at, errors_of_three, raised, rows, snapshots
from spread import EACH, at_most, spread

from raymlops.state.store import State

PROGRAM = Path(__file__).parents[3] / "fixtures/killed_judge.py"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Return a database as it is before each step and after the last one, each with the number of places to die."""
    return snapshots(tmp_path_factory.mktemp("steps"))


def test_one_judge_writes_what_is_expected(before):
    """Ten verdicts, eight incidents, three baselines; an event for each change, a message for what is told then."""
    found = rows(f"sqlite:///{before[-1][0]}")
    assert {name: len(there) for name, there in found.items()} == {
        "drift_windows": 10,
        "incidents": 8,
        "messages": 11,
        "drift_baselines": 3,
        "audit": 17,
    }


@at_most(28)
def test_an_error_at_any_statement_leaves_all_or_nothing(before, tmp_path, most):
    """Taken again each step leaves every row once, as if nothing had happened."""
    places = [(at, number) for at, (_, count) in enumerate(before[:-1]) for number in range(count)]
    assert len(places) > 60
    for at, number in spread(places, most):
        url = f"sqlite:///{shutil.copy(before[at][0], tmp_path / 'state.db')}"
        with State.open(url) as state:
            dying_at(state, number, raised)
            with pytest.raises(DiedError):
                STEPS[at](state)
        with State.open(url) as state:
            STEPS[at](state)
        assert rows(url) == rows(f"sqlite:///{before[at + 1][0]}"), (at, number)
        for file in tmp_path.glob("state.db*"):
            file.unlink()


@pytest.mark.parametrize("last", [1, EACH])
def test_a_kill_at_any_statement_leaves_all_or_nothing(tmp_path, last):
    """kill -9 of the process: the next one finds a file that it can use. Each commit; with soak each statement too."""
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(last)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[:-1] == []
    assert int(done.stdout.split()[-1]) >= len(STEPS)


def test_judges_at_once_write_each_row_once(before, tmp_path):
    """Three of them, each with a connection of its own; what is normal is said anew by no judge."""
    url, alone = (f"sqlite:///{shutil.copy(before[0][0], tmp_path / name)}" for name in ("three.db", "one.db"))
    assert errors_of_three(url) == []
    with State.open(alone) as state:
        for step in AT_ONCE:
            step(state)
    assert rows(url) == rows(alone)

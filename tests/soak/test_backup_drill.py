"""The drill: a machine that answers 30 requests a second beside a sweep is backed up, and comes up elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from backed_up import filled, spec_at
from backed_up import seen as seen_of
from killed_at import killed_at
from shell_user import ROOT, free_ports, visiting
from steady_load import steady_load

from raymlops.errors import NotFoundError
from raymlops.lifecycle.backup.restore import restore_backup
from raymlops.lifecycle.backup.save import backup

pytestmark = pytest.mark.soak

NAME = "iris-like"
ROW = [{"garden": "pond", "petal_cm": 1.4}]
RATE = 30.0
WAIT_S = 300.0


@contextmanager
def up(user):
    """Start what a user has, and yield the address of the endpoints."""
    ports = free_ports()
    flags = [text for name, port in ports.items() for text in (f"--{name}-port", port)]
    user.env |= json.loads(user.raymlops("up", "--num-cpus", 2, *flags, "--json").stdout)["env"]
    try:
        yield f"http://127.0.0.1:{ports['http']}"
    finally:
        user.raymlops("down")


def of(user, *words):
    return json.loads(user.raymlops(*words, "--json").stdout)


def seen(user):
    """Return what is live, the versions with their aliases, and the audit record, without places.

    What the controller could not reach for a moment, on a busy machine, is no change.
    """
    versions = of(user, "models", "list")["versions"]
    events = of(user, "audit", "--since", "2020-01-01")["events"]
    return {
        "versions": [(v["name"], v["version"], v["run_id"], v["bundle"]["digest"], v["aliases"]) for v in versions],
        "audit": [(e["id"], e["ts"], e["action"], e["subject"]) for e in events if e["action"] != "controller.error"],
    }


def trials_in(file):
    with closing(sqlite3.connect(file)) as connection:
        return set(connection.execute("SELECT trial_id, number, state FROM trials"))


def until(condition):
    """Wait for a condition, and return the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < WAIT_S
        time.sleep(0.25)
    return time.monotonic() - start


def test_the_drill(tmp_path, mlflow_database):
    """No request fails meanwhile; digests, aliases, audit and trials are those of the backup. Seconds are printed."""
    place = tmp_path / "place"
    with visiting(_new(tmp_path / "one"), mlflow_database) as one, up(one) as url:
        shutil.copytree(ROOT / "examples" / "own_recipe", one.cwd / "own")
        one.cwd /= "own"
        settings = ["--config", "config.yaml", "train.cpus_per_worker=0.5"]
        one.raymlops("pipeline", *settings, "sweep.num_trials=2", "--yes")
        before = seen(one)
        with steady_load(url, NAME, tmp_path / "load", rows=ROW, rate=RATE / 2, bare_rate=RATE / 2) as load:
            sweep = one.start("sweep", *settings, "train.epochs=4", "sweep.num_trials=200")
            studies = Path(one.env["HOME"]) / ".raymlops" / "optuna.db"
            until(lambda: len(trials_in(studies)) > 6)
            load.phase("backup")
            record = of(one, "backup", "--to", place)
            load.phase("after")
            assert sweep.poll() is None
            load.wait_for(lambda asked: sum(item.phase == "after" for item in asked) > RATE)
            load.stop()
            asked = load.asked()
        os.killpg(sweep.pid, 2)
        sweep.communicate(timeout=120)
        live = httpx.get(f"{url}/models/{NAME}", timeout=60).json()
        assert [item for item in asked if item.error is not None] == []
        assert seen(one) == before
        newer = trials_in(studies)
    (folder,) = (place / "backups").iterdir()
    copied = trials_in(_copy(folder / "optuna.db", tmp_path))
    assert {trial[:2] for trial in copied} <= {trial[:2] for trial in newer}

    with visiting(_new(tmp_path / "two"), mlflow_database) as two:
        began = time.monotonic()
        restored = of(two, "restore", "--from", place, "--yes")
        with up(two) as url:
            until(lambda: httpx.post(f"{url}/models/{NAME}/predict", json={"rows": ROW}, timeout=60).status_code == 200)
            answered_s = time.monotonic() - began
            about = httpx.get(f"{url}/models/{NAME}", timeout=60).json()
            after = seen(two)
            assert (about["digest"], about["run_id"]) == (live["digest"], live["run_id"])
            assert after["versions"] == before["versions"]
            assert [event for event in after["audit"] if event in before["audit"]] == before["audit"]
            added = [event[2] for event in after["audit"] if event not in before["audit"]]
            assert sorted(added) == ["cluster", "restore"]
            assert trials_in(Path(two.env["HOME"]) / ".raymlops" / "optuna.db") == copied
    during = sum(item.phase == "backup" for item in asked)
    print(
        f"backup {record['seconds']:.1f} s under load ({during} requests during it, {len(asked)} in all, 0 failed; "
        f"{len(copied)} trials), restore {restored['seconds']:.1f} s, first answer {answered_s:.1f} s after its start"
    )


def test_killed_at_each_change_of_a_file(tmp_path, mlflow_database, monkeypatch):
    """No half backup is ever a whole one, and a restore goes on from wherever it was killed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    machine, place = _machine(tmp_path / "machine", mlflow_database), tmp_path / "place"
    filled(machine)
    number = 0
    while killed_at(place, lambda: backup(machine, to=str(place)), number):
        with pytest.raises(NotFoundError):
            restore_backup(_machine(tmp_path / f"none{number}", mlflow_database), uri=str(place))
        number += 1
    print(f"a backup was killed at {number} changes")
    before, number, killed = seen_of(machine), 0, True
    while killed:
        home = tmp_path / f"home{number}"
        spec = _machine(home, mlflow_database)
        killed = killed_at(home, lambda spec=spec: restore_backup(spec, uri=str(place)), number)
        restore_backup(spec, uri=str(place))
        assert seen_of(spec) == before
        shutil.rmtree(home)
        number += 1
    print(f"a restore was killed at {number - 1} changes")


def _machine(folder, mlflow_database):
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return spec_at(folder)


def _new(folder):
    folder.mkdir()
    return folder


def _copy(file, folder):
    return Path(shutil.copy(file, folder / file.name))

"""kill -9 of a sweep's driver at random moments, and of the whole head of its cluster: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
import pytest
from shell_user import RAYMLOPS
from sweep_driver import (
    TRIALS,
    Driver,
    books,
    can_import_fixtures,
    check_whole,
    data,
    kill_tree,
    reports_of,
    spec_of,
    sweeps,
    wait_for,
    write,
)

from raymlops.cluster.auth import ensure_token
from raymlops.cluster.ports import answers, free_port
from raymlops.tuning.execution.schedulers import judged, scheduler_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shell_user import User

pytestmark = pytest.mark.soak
HOST = "127.0.0.2"
"""Of both nodes: loopback too, but of several nodes Ray wants none at 127.0.0.1."""
KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "1"))


def test_twenty_kills(user: User, mlflow_database: Path) -> None:
    """Sweeps are killed at any moment, also before they say their name, and resumed until they are done.

    Each gives the trials that the undisturbed one gives.
    """
    can_import_fixtures(user)
    moments = random.Random(SEED)

    def place(name: str) -> Path:
        storage = user.cwd / name
        storage.mkdir()
        shutil.copy(mlflow_database, storage)
        return write(user.cwd / f"{name}.yaml", data(storage))

    whole = place("whole")
    began = time.monotonic()
    Driver(user, "--config", whole).end()
    took_s = time.monotonic() - began
    (run,) = sweeps(spec_of(whole))
    expected = books(spec_of(whole), run.info.run_id)
    check_whole(expected)

    kills = chains = 0
    while kills < KILLS:
        chains += 1
        config = place(f"chain-{chains}")
        spec = spec_of(config)
        found: list = []
        while not (found and found[0].info.status == "FINISHED"):
            resume = ["--resume", found[0].info.run_id] if found else []
            # The last one is let go to its end, which it comes to by itself where the moments are late.
            seconds = moments.uniform(1.0, took_s) if kills < KILLS else 300.0
            kills += Driver(user, "--config", config, *resume).killed_after(seconds)
            found = sweeps(spec)
            assert len(found) <= 1, f"chain {chains}"
        got = books(spec, found[0].info.run_id)
        print(f"chain {chains}: {kills} kills so far, {dict(got.states)}", flush=True)
        check_whole(got)
        assert got.params == expected.params
        assert user.processes() == []
    print(f"{kills} kills in {chains} sweeps of {TRIALS} trials, a whole one takes {took_s:.1f} s")


def test_kills_among_repeats(user: User, mlflow_database: Path) -> None:
    """The driver is killed before the first repeat has ended, and after some: each is there once, and whole."""
    can_import_fixtures(user)
    storage = user.cwd / "repeats"
    storage.mkdir()
    shutil.copy(mlflow_database, storage)
    space = {"recipe.config.x": {"float": [0.0, 1.0]}, "recipe.config.epoch_s": {"categorical": [0.3]}}
    section = {
        "num_trials": 4,
        "scheduler": "asha",
        "grace_period": 6,
        "repeats": {"top": 2, "seeds": 4},
        "space": space,
    }
    config = write(user.cwd / "repeats.yaml", data(storage, sweep=section))
    spec = spec_of(config)

    def ended(sweep_id: str, least: int) -> bool | None:
        repeats = [trial for trial in books(spec, sweep_id).trials if "raymlops:repeat_of" in trial.user_attrs]
        return True if len(repeats) == 6 and sum(trial.state.is_finished() for trial in repeats) >= least else None

    driver = Driver(user, "--config", config)
    sweep_id = driver.sweep_id()
    for least in (0, 1, 3):
        wait_for(lambda least=least: ended(sweep_id, least))
        assert driver.killed_after(0.2)
        driver = Driver(user, "--config", config, "--resume", sweep_id)
    said = driver.end()
    got = books(spec, sweep_id)
    check_whole(got, trials=10)
    best = sorted(got.trials[:4], key=lambda trial: -trial.value)[:2]
    assert [
        (trial.user_attrs["raymlops:repeat_of"], trial.user_attrs["raymlops:seed"], trial.params)
        for trial in got.trials[4:]
    ] == [(trial.number, seed, trial.params) for seed in (1, 2, 3) for trial in best]
    # A seed changes nothing in these trials.
    assert f"repeats trial {best[0].number}: validation/score" in said
    assert "(4 seeds" in said


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_kills_of_sweeps_whose_trials_are_stopped(user: User, mlflow_database: Path, scheduler: str) -> None:
    """No resume stops a trial that was alive, before that has reported again; each sweep has its trials, once."""
    can_import_fixtures(user)
    moments = random.Random(f"{SEED} {scheduler}")
    kills = 0
    for chain in range(1, max(2, KILLS // 6) + 1):
        storage = user.cwd / f"storage-{chain}"
        storage.mkdir()
        shutil.copy(mlflow_database, storage)
        config = write(user.cwd / f"{chain}.yaml", data(storage, sweep={"scheduler": scheduler}))
        spec = spec_of(config)
        found: list = []
        alive: dict[int, int] = {}
        # Moments are counted in reports, so that a busy machine kills no driver before it has begun.
        ends = [moments.randrange(1, 60), moments.randrange(1, 60), None]
        while not (found and found[0].info.status == "FINISHED"):
            resume = ["--resume", found[0].info.run_id] if found else []
            driver = Driver(user, "--config", config, *resume)
            more = ends.pop(0)
            count = partial(reports_of, spec)
            killed = more is not None and driver.killed_when(count() + more, count, delay_s=moments.uniform(0.0, 0.3))
            if not killed:
                driver.end()
            found = sweeps(spec)
            kills += killed
            got = books(spec, found[0].info.run_id)
            for trial in got.trials:
                if trial.state.name == "PRUNED" and trial.number in alive:
                    assert len(trial.intermediate_values) > alive[trial.number], (chain, trial.number)
            numbers = [trial.number for trial in got.trials]
            stopped = scheduler_of(spec).replay(judged(spec, got.trials), trials=numbers)
            alive = {
                trial.number: len(trial.intermediate_values)
                for trial in got.trials
                if not trial.state.is_finished() and trial.number not in stopped
            }
        print(f"{scheduler}, sweep {chain}: {kills} kills so far, {dict(got.states)}", flush=True)
        assert numbers == list(range(TRIALS))
        assert set(got.states) <= {"COMPLETE", "PRUNED"}
        assert sorted(int(run.data.tags["raymlops.trial"]) for run in got.children) == numbers


def test_a_trial_without_end_to_its_memory_fails_alone(user: User, mlflow_database: Path) -> None:
    """Ray's memory monitor ends the one that takes 8 GB where 4 are free: FAILED with that reason, not tried again.

    In a Ray of its own, which is told of so little: what others take of this machine meanwhile counts, too.
    """
    can_import_fixtures(user)
    storage = user.cwd / "storage"
    storage.mkdir()
    shutil.copy(mlflow_database, storage)
    faults = ["none", "eats", "none", "none", "none"]
    sweep = {
        "num_trials": len(faults),
        "max_concurrent": 1,
        "enqueue": [{"recipe.config.fault": fault} for fault in faults],
        "space": {
            "recipe.config.x": {"float": [0.0, 1.0]},
            "recipe.config.fault": {"categorical": ["none", "eats"]},
        },
    }
    recipe = {"config": {"eats_gb": 8.0}}
    config = write(user.cwd / "config.yaml", data(storage, sweep=sweep, recipe=recipe))
    memory = psutil.virtual_memory()
    user.env["RAY_memory_usage_threshold"] = f"{(memory.total - memory.available + 4e9) / memory.total:.3f}"
    user.env["RAY_memory_monitor_refresh_ms"] = "100"
    record = json.loads(user.raymlops("sweep", "--config", config, "--json").stdout)

    assert [trial["status"] for trial in record["trials"]] == ["complete", "failed", "complete", "complete", "complete"]
    reason = record["trials"][1]["reason"]
    print(reason)
    assert reason.startswith("the trial ran out of memory")
    kept = books(spec_of(config), record["sweep_id"])
    assert kept.states == {"COMPLETE": 4, "FAIL": 1}
    assert sorted(run.info.status for run in kept.children) == ["FAILED", *["FINISHED"] * 4]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a node needs namespaces of its own")
@pytest.mark.skipif(shutil.which("initdb") is None, reason="no Postgres on this machine")
def test_the_head_of_a_cluster_is_lost_in_mid_sweep(user: User, mlflow_database: Path) -> None:
    """The head's machine is lost with the driver on it, three times; started again on its port and state, it goes on.

    Trials run on the other node, which stays. The study is in Postgres: a file lives on one node.
    """
    can_import_fixtures(user)
    storage = user.cwd / "shared"
    storage.mkdir()
    shutil.copy(mlflow_database, storage)
    moments = random.Random(SEED)

    with postgres(user.cwd / "postgres") as url, Cluster(user) as cluster:
        config = write(
            user.cwd / "config.yaml",
            data(
                storage,
                storage={"shared": True, "optuna": url},
                cluster={"address": cluster.address, "num_cpus": None},
            ),
        )
        spec = spec_of(config)
        cluster.start_head()
        cluster.start_node()
        driver = Driver(user, "--config", config, prefix=cluster.on_head)
        sweep_id = driver.sweep_id()
        for loss in range(3):
            if loss:
                driver = Driver(user, "--resume", sweep_id, "--config", config, prefix=cluster.on_head)
                driver.sweep_id()
            with pytest.raises(subprocess.TimeoutExpired):
                driver.process.wait(moments.uniform(1.0, 8.0))
            cluster.lose_head()
            assert driver.process.wait(30) != 0
            print(f"loss {loss + 1}: {dict(books(spec, sweep_id).states)}", flush=True)
            cluster.start_head()
        Driver(user, "--resume", sweep_id, "--config", config, prefix=cluster.on_head).end()
        check_whole(books(spec, sweep_id))
        assert cluster.sessions == 1, "the head took up the state that it had"


class Cluster:
    """A head and a node on loopback, each in a PID namespace of its own, so that one kill is the loss of a machine."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._folder = Path(tempfile.mkdtemp(prefix="rml-", dir="/tmp"))  # a socket's path has at most 107 bytes
        self._port = free_port()
        self.address = f"{HOST}:{self._port}"
        user.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(ensure_token(self._folder / "auth")),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(self._folder / "gcs"),
        }
        self._head: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for unshared in (self._node, self._head):
            if unshared is not None:
                kill_tree(unshared.pid)
                unshared.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def on_head(self) -> tuple[str, ...]:
        """Return what runs a command on the head's machine."""
        return ("nsenter", f"--target={self._first(self._head)}", "--pid", "--mount")

    @property
    def sessions(self) -> int:
        """Return how many clusters there were, as Ray counts them: a head with its old state has its old session."""
        return len([path for path in (self._folder / "ray").glob("session_2*") if path.is_dir()])

    def start_head(self) -> None:
        """Start the head on its port and state."""
        self._head = self._started(
            "head", "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={self._folder / 'ray'}",
        )  # fmt: skip

    def start_node(self) -> None:
        """Start the node that trials run on."""
        self._node = self._started("node", f"--address={self.address}", "--num-cpus=2")

    def lose_head(self) -> None:
        """Kill the first process of its namespace: the kernel kills all others with it."""
        assert self._head is not None
        os.kill(self._first(self._head), signal.SIGKILL)
        self._head.wait()

    def _started(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._user.cwd / f"{name}-{len(list(self._user.cwd.glob(f'{name}-*.log')))}.log"
        ray = [str(RAYMLOPS.with_name("ray")), "start", f"--node-ip-address={HOST}", "--block", *arguments]
        with log.open("w") as file:
            started = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *ray],
                env=self._user.env,
                cwd=self._user.cwd,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

        def says_so() -> bool | None:
            assert started.poll() is None, log.read_text()[-3000:]
            return True if "Ray runtime started." in log.read_text() else None

        wait_for(says_so)
        return started

    def _first(self, unshared: subprocess.Popen[bytes] | None) -> int:
        assert unshared is not None
        (child,) = psutil.Process(unshared.pid).children()
        return int(child.pid)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Yield the SQL URL of a Postgres of our own, which listens on loopback."""
    folder.mkdir()
    as_owner: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in list(folder.parents)[:4]:
            parent.chmod(parent.stat().st_mode | 0o011)
        as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    port, where = free_port(), str(folder / "data")
    made = [*as_owner, "initdb", "-D", where, "-U", "raymlops", "--auth=trust", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen(
        [*as_owner, "postgres", "-D", where, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers("127.0.0.1", port) or None)
        yield f"postgresql+psycopg://raymlops@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(20)

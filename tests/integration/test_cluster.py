"""A local cluster from start to end, in folders and on ports of its own, with nothing left behind.

The tests of the one cluster build on each other, in the order in which they stand here; the last one kills it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from raymlops.cluster import auth, local, services, upfile
from raymlops.cluster.ports import free_port, listeners
from raymlops.cluster.processes import belonging
from raymlops.errors import ClusterError, PortTakenError, StorageError, TrackingError, UsageError
from raymlops.tracking.client import Tracker

pytestmark = pytest.mark.integration

SERVICES = ("http_port", "dashboard_port", "mlflow_port", "ray_port")
PORTS = {name: free_port() for name in SERVICES}
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Hold one running cluster; its root is too long for sockets, so the short link is used too."""
    root = tmp_path_factory.mktemp("a-root-whose-path-is-longer-than-a-socket-allows")
    record = local.up(root=root, num_cpus=2, **PORTS)
    yield record
    local.down(root=root)
    assert belonging(record.cluster_id) == []


@pytest.fixture
def ports():
    """Return free ports for a cluster of a test's own."""
    return {name: free_port() for name in SERVICES}


def _shell(record, **extra):
    """Return the environment of a shell that has exported what ``up`` prints, and nothing else of Ray's."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "RAYMLOPS_"))}
    return {**clean, **record.env, **extra}


def test_every_service_answers_and_only_this_machine_reaches_them(cluster):
    """Nothing is deployed, so that no socket is bound to another address."""
    status = local.status(root=cluster.root)
    assert status.state == "up"
    assert status.services == {"ray": True, "mlflow": True, "serve": True}
    assert status.open_to_others == ()
    pids = {process.pid for process in belonging(cluster.cluster_id, cluster.processes)}
    assert set(PORTS.values()) <= {item.port for item in listeners(pids)}


def test_the_dashboard_refuses_without_the_token(cluster):
    """It would run anyone's code."""
    url = f"{cluster.dashboard_url}/api/jobs/"
    assert services.ask(url, token=None)[0] == 401
    assert services.ask(url, token=Path(cluster.token_path))[0] == 200


def test_mlflow_answers_its_owner_alone(cluster, monkeypatch):
    """It would read any file of its owner, and its assistant would run commands, which is not there at all."""
    for path in ("", "/api/2.0/mlflow/experiments/search", "/ajax-api/3.0/mlflow/assistant/config", "/get-artifact"):
        assert services.ask(cluster.mlflow_url + path, token=None)[0] == 401
    user = auth.mlflow_header(Path(cluster.root))
    assistant = f"{cluster.mlflow_url}/ajax-api/3.0/mlflow/assistant/config"
    assert httpx.get(assistant, headers={"Authorization": user}).status_code == 404
    monkeypatch.setattr(os, "environ", _shell(cluster))
    with pytest.raises(TrackingError, match="401"):
        Tracker(cluster.mlflow_url.replace("127.0.0.1", "localhost")).check()
    Tracker(cluster.mlflow_url).check()


def test_what_is_written_holds_no_token(cluster):
    """Neither the record, nor what is printed, nor the logs."""
    token, password = (Path(cluster.token_path).with_name(name).read_text() for name in ("token", "mlflow"))
    files = [upfile.path(Path(cluster.root)), *Path(cluster.root, "logs").iterdir()]
    written = [file.read_text(errors="replace") for file in files] + [upfile.exports(cluster)]
    assert not any(secret in text for secret in (token, password) for text in written)


def test_nobody_else_can_reach_into_its_folders(cluster):
    """Ray opens its own folder to everyone: the one around it must be closed, and the token's too."""
    closed = [Path(cluster.scratch).parent, Path(cluster.scratch).resolve().parent, Path(cluster.token_path).parent]
    assert [path.stat().st_mode & 0o777 for path in closed] == [0o700, 0o700, 0o700]


def test_a_second_up_says_that_it_is_up(cluster):
    """And starts nothing."""
    for asked in ({}, {**PORTS, "num_cpus": 2}):
        again = local.up(root=cluster.root, **asked)
        assert again.already_up
        assert again.processes == cluster.processes


def test_a_second_up_that_asks_for_something_else_is_refused(cluster):
    """It says what runs, and how to end it."""
    other = free_port()
    expected = f"Serve on port {PORTS['http_port']}, not {other}, Ray with 2 CPUs, not 3"
    with pytest.raises(UsageError, match=expected) as error:
        local.up(root=cluster.root, http_port=other, num_cpus=3)
    assert f"raymlops down --root {cluster.root}" in str(error.value)


@pytest.mark.soak
def test_an_mlflow_that_has_ended_is_started_again_alone(cluster):
    """Killed with what it had started: Ray and Serve are the same processes afterwards, and it has its database."""
    ray, mlflow = cluster.processes
    server = mlflow.find()
    for process in [server, *server.children(recursive=True)]:
        process.kill()
    server.wait()
    assert local.status(root=cluster.root).state == "broken"
    said = []
    again = local.up(root=cluster.root, on_step=said.append)
    assert "alone" in said[0]
    assert (again.cluster_id, again.processes[0], again.already_up) == (cluster.cluster_id, ray, False)
    assert again.mlflow_url == cluster.mlflow_url
    assert local.status(root=cluster.root).state == "up"
    assert local.up(root=cluster.root).processes == again.processes


@pytest.mark.soak
def test_a_job_runs_in_the_exported_environment(cluster, tmp_path):
    """It joins the cluster, and finds MLflow and our folder."""
    (tmp_path / "job.py").write_text(
        "import json, os, ray\n"
        "from raymlops.cluster.connect import connect\n"
        "from raymlops.config.schema import ProjectSpec\n"
        "spec = ProjectSpec.model_validate(\n"
        "    {'project': {'name': 'x'}, 'recipe': {'import': 'a:B'}, 'cluster': {'address': 'auto'}})\n"
        "with connect(spec) as connection:\n"
        "    there = ray.get(ray.remote(num_cpus=0.1)(lambda: os.environ['MLFLOW_TRACKING_URI']).remote())\n"
        "    print('RESULT', json.dumps({**connection.to_dict(), 'mlflow': there,\n"
        "                                'home': os.environ['RAYMLOPS_HOME']}))\n"
    )
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "job.py"]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=_shell(cluster), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert (result["address"], result["owned"]) == (f"127.0.0.1:{PORTS['ray_port']}", False)
    assert (result["mlflow"], result["home"]) == (cluster.mlflow_url, cluster.root)


def test_more_workers_than_the_cluster_holds_are_refused_with_the_holders(cluster):
    """A driver that only knows the home folder joins, holds a CPU, and asks for three more."""
    script = (
        "import ray\n"
        "from raymlops.cluster.capacity import check_fits\n"
        "from raymlops.cluster.connect import connect\n"
        "from raymlops.cluster.placement import WorkerRequest\n"
        "from raymlops.config.schema import ProjectSpec\n"
        "from raymlops.errors import InsufficientResourcesError\n"
        "spec = ProjectSpec.model_validate({'project': {'name': 'x'}, 'recipe': {'import': 'a:B'}})\n"
        "class Hold:\n"
        "    def here(self): return 1\n"
        "with connect(spec):\n"
        "    hold = ray.remote(num_cpus=1)(Hold).remote(); ray.get(hold.here.remote())\n"
        "    check_fits(WorkerRequest(1, 1, purpose='one'), wait_s=0)\n"
        "    for workers in (2, 3):\n"
        "        try: check_fits(WorkerRequest(workers, 1, purpose='train.num_workers'), wait_s=0)\n"
        "        except InsufficientResourcesError as error: print(error)\n"
        "assert not ray.is_initialized()\n"
    )
    env = {key: value for key, value in _shell(cluster).items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    busy, never = done.stdout.split("train.num_workers requests ")[1:]
    assert "room for 1 now, and for 2 when nothing else runs" in busy
    assert "holds at most 2 of them" in never
    assert "held by Hold of job " in never
    assert local.status(root=cluster.root).state == "up"


def test_a_partly_dead_cluster_is_ended_whole(cluster):
    """The head is killed: its workers have no parent any more, and MLflow still runs."""
    record = upfile.read(Path(cluster.root))
    head = psutil.Process(next(item.pid for item in record.processes if item.name == "ray"))
    head.kill()
    head.wait(30)  # a signal is not delivered at once on a busy machine
    assert local.status(root=record.root).state == "broken"
    done = local.down(root=record.root, grace_s=3)
    assert done is not None
    assert done.stopped > 0
    assert belonging(record.cluster_id) == []
    assert not Path(record.scratch).is_symlink()
    assert local.down(root=record.root) is None


def test_an_interrupted_start_leaves_nothing(tmp_path, ports):
    """Ctrl-C while MLflow makes its database, which SQLite would leave half migrated and unusable for ever."""

    def interrupt(step):
        if step.startswith("Ray answers"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.up(root=tmp_path, num_cpus=2, on_step=interrupt, **ports)
    assert upfile.read(tmp_path) is None
    assert not (tmp_path / "mlflow.db").exists()
    assert not [item for item in local.listeners() if item.port in ports.values()]


@pytest.mark.soak
def test_a_service_that_does_not_start_takes_the_others_with_it(tmp_path, ports):
    """MLflow cannot read its database; the message has its last lines."""
    (tmp_path / "mlflow.db").write_text("this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(ClusterError, match=r"MLflow ended with exit code \d+ while starting\n"):
        local.up(root=tmp_path, num_cpus=2, **ports)
    assert upfile.read(tmp_path) is None
    assert not [item for item in local.listeners() if item.port in ports.values()]


def test_a_taken_port_is_refused_before_anything_starts(tmp_path, ports):
    """It is named with its holder, and no record is left."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"MLflow: port {taken} is taken, .*pid {os.getpid()} "):
            local.up(root=tmp_path, **{**ports, "mlflow_port": taken})
    assert upfile.read(tmp_path) is None


def test_a_root_that_cannot_be_written_is_refused(tmp_path, ports):
    """A file is in its place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        local.up(root=tmp_path / "file" / "root", **ports)


_MORE_ENDS = ("normal", "error", "interrupt", "impatient")
_OWN = """
import os, signal, sys, threading
from raymlops.cluster.connect import connect
from raymlops.config.schema import ProjectSpec
import ray
how = sys.argv[1]
spec = ProjectSpec.model_validate(
    {"project": {"name": "x"}, "recipe": {"import": "a:B"}, "cluster": {"address": "local", "num_cpus": 2}}
)
if how == "starting":  # as soon as Ray's first process runs
    import psutil
    def watch():
        while not psutil.Process().children(): pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=watch, daemon=True).start()
def again():  # as soon as the clean-up holds signals
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler: pass
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT): os.kill(os.getpid(), number)
if how in {"terminate", "impatient"}:  # as our commands do
    signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with connect(spec) as connection:
        print(connection.owned, connection.address.partition(":")[0], ray.cluster_resources()["CPU"], flush=True)
        folder = os.path.dirname(os.path.dirname(connection.token_path))
        assert os.stat(folder).st_mode & 0o777 == 0o700
        print(folder, file=sys.stderr)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "impatient":
            threading.Thread(target=again).start()
            os.kill(os.getpid(), signal.SIGINT)
        if how == "error":
            raise ValueError(how)
except (KeyboardInterrupt, ValueError) as error:
    print(type(error).__name__, flush=True)
print(sorted(key for key in os.environ if key.startswith(("RAY_AUTH", "RAYMLOPS"))), ray.is_initialized(), flush=True)
"""


@pytest.mark.parametrize(
    "how",
    [*("terminate", "starting"), *(pytest.param(how, marks=pytest.mark.soak) for how in _MORE_ENDS)],
)
def test_a_cluster_of_our_own_ends_with_its_block(how, tmp_path):
    """However the block ends: no process, no folder, no variable and no token in the home folder is left."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYMLOPS_"))}
    # Everything that the program starts carries this name too, because it is its own child.
    env |= {"HOME": str(tmp_path), "MARK_OF_THIS_TEST": (name := f"{tmp_path.name}-{os.getpid()}")}
    done = subprocess.run(
        [sys.executable, "-c", _OWN, how], check=False, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = {
        "normal": ["True 127.0.0.1 2.0"],
        "error": ["True 127.0.0.1 2.0", "ValueError"],
        "interrupt": ["True 127.0.0.1 2.0", "KeyboardInterrupt"],
        "terminate": ["True 127.0.0.1 2.0", "KeyboardInterrupt"],
        "impatient": ["True 127.0.0.1 2.0", "KeyboardInterrupt"],
        "starting": ["KeyboardInterrupt"],
    }
    assert lines[:-1] == expected[how]
    assert lines[-1] == "[] False"
    assert not (tmp_path / ".ray").exists()
    assert not any(Path(folder).exists() for folder in done.stderr.split() if folder.startswith("/tmp/rml-"))
    left = [
        path
        for path in Path("/proc").glob("[0-9]*/environ")
        if _reads(path) and f"MARK_OF_THIS_TEST={name}".encode() in path.read_bytes()
    ]
    assert left == []


def _reads(path):
    try:
        path.read_bytes()
    except OSError:
        return False
    return True

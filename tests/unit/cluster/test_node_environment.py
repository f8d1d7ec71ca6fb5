"""What every node of a cluster starts with, whichever launcher starts it."""

from __future__ import annotations

import json
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
from certificates import certificate

from raymlops.cluster.endpoint.haproxy import LABEL, WRAPPER
from raymlops.cluster.endpoint.node_environment import RECONNECT_S, node_environment, run_on_node
from raymlops.cluster.endpoint.tls import TlsFiles
from raymlops.cluster.services import GUARD, SPEED
from raymlops.errors import UsageError
from raymlops.storage import clock


def test_every_node_has_the_token_the_guard_and_the_speed():
    """Behind either proxy; what is HAProxy's comes with it alone."""
    python, haproxy = (node_environment(proxy=proxy, scratch="/tmp/x") for proxy in ("python", "haproxy"))
    for found in (python, haproxy):
        assert {**GUARD, **SPEED}.items() <= found.items()
        assert (found["RAY_AUTH_MODE"], found["RAY_JOB_STOP_WAIT_TIME_S"]) == ("token", "30")
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in python
    assert haproxy["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert [name for name in haproxy if "gcs" in name.lower() or "REDIS" in name] == []


def test_replicas_are_hardly_nicer_than_what_computes_beside_ray(monkeypatch):
    """By default they are nicer by 15; what the operator says stays."""
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert node_environment(proxy="python", scratch="/tmp/x")["RAY_worker_niceness"] == "5"
    monkeypatch.setenv("RAY_worker_niceness", "0")
    assert node_environment(proxy="python", scratch="/tmp/x")["RAY_worker_niceness"] == "0"


def test_a_node_is_labelled_with_its_proxy(monkeypatch):
    """Beside the labels that it has, and in a variable that Ray reads."""
    from ray._private import ray_constants

    monkeypatch.setenv("RAY_OVERRIDE_LABELS", '{"zone": "a"}')
    python, haproxy = (node_environment(proxy=proxy, scratch="/tmp/x") for proxy in ("python", "haproxy"))
    secured = node_environment(proxy="haproxy", scratch="/tmp/x", tls=TlsFiles("/c", "/k"))
    labels = [json.loads(found[ray_constants.LABELS_ENVIRONMENT_VARIABLE]) for found in (python, haproxy, secured)]
    assert labels == [{"zone": "a", LABEL: kind} for kind in ("python", "haproxy", "haproxy-tls")]


@pytest.mark.parametrize("labels", ["zone=a", "[1]"])
def test_labels_that_ray_could_not_read_are_refused(monkeypatch, labels):
    """Here, where they are named."""
    monkeypatch.setenv("RAY_OVERRIDE_LABELS", labels)
    with pytest.raises(UsageError, match="RAY_OVERRIDE_LABELS is no JSON object"):
        node_environment(proxy="python", scratch="/tmp/x")


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (
            "redis://10.0.0.9:6379/a",
            {"RAY_REDIS_ADDRESS": "redis://10.0.0.9:6379", "RAY_external_storage_namespace": "a"},
        ),
        (
            "rediss://cache:6380/prod",
            {"RAY_REDIS_ADDRESS": "rediss://cache:6380", "RAY_external_storage_namespace": "prod"},
        ),
        ("rocksdb:///gcs", {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/gcs"}),
    ],
)
def test_a_head_that_is_started_again_resumes_its_cluster(storage, expected):
    """The head alone knows where its state is; every node waits for it."""
    waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S)}
    without = node_environment(proxy="python", scratch="/tmp/x")
    head = node_environment(proxy="python", scratch="/tmp/x", gcs_storage=storage)
    worker = node_environment(proxy="python", scratch="/tmp/x", gcs_storage=storage, head=False)
    assert head == {**without, **waits, **expected}
    assert worker == {**without, **waits}


@pytest.mark.parametrize(
    "storage",
    [
        *(
            "redis",
            "redis://cache",
            "redis://cache/a",
            "redis://cache:1",
            "redis://cache:1/",
            "rocksdb://gcs",
            "rocksdb",
        ),
        *("rocksdb://gcs", "rocksdb", "http://cache:1/a", "redis://:hunter2@cache:1/a"),
    ],
)
def test_another_storage_is_refused(storage):
    """With what is allowed, and without a password that it may have: also one that two clusters would share."""
    with pytest.raises(UsageError, match=r"redis://HOST:PORT") as raised:
        node_environment(proxy="python", scratch="/tmp/x", gcs_storage=storage)
    assert "hunter2" not in raised.value.message


def test_ray_reads_every_variable_of_its_head():
    """By these names, or it would keep its state in memory and nobody would notice."""
    import ray
    from ray._private import node

    source = Path(node.__file__).read_text()
    assert 'os.environ.get("RAY_REDIS_ADDRESS")' in source
    assert '"gcs_storage_path"' in source
    names = (
        *("RAY_external_storage_namespace", "RAY_gcs_rpc_server_reconnect_timeout_s"),
        *("RAY_gcs_storage", "RAY_gcs_storage_path"),
    )
    program = (Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server").read_bytes()
    assert [name for name in names if name.encode() not in program] == []


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Return what a process was replaced by: program, words, environment."""
    found = []
    for name in ("ray", "raymlops"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("os.environ", {**os.environ, "PATH": str(tmp_path), "RAY_AUTH_TOKEN": "secret"})
    monkeypatch.setattr("os.execve", lambda *arguments: found.append(arguments))
    monkeypatch.setattr("raymlops.cluster.endpoint.node_environment.SCRATCH", tmp_path)
    return found


def test_a_command_runs_with_it(started, monkeypatch, tmp_path):
    """What the node says for itself stays, but never without the token or the guard."""
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "")
    run_on_node(["ray", "start", "--head"], proxy="haproxy", gcs_storage="redis://cache:1/a")
    ((program, words, environment),) = started
    assert (program, words) == (str(tmp_path / "ray"), ["ray", "start", "--head"])
    assert environment["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert GUARD.items() <= environment.items()
    assert environment["RAY_REDIS_ADDRESS"] == "redis://cache:1"
    folder = Path(environment["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_file_of_variables_comes_before_the_environment(started, monkeypatch, tmp_path):
    """Also what this command itself reads; options come before both."""
    file = tmp_path / "node.env"
    file.write_text("A=b&c\nRAYMLOPS_GCS_STORAGE=redis://cache:1/file\nRAY_AUTH_MODE=disabled\n")
    file.chmod(0o600)
    monkeypatch.setenv("A", "other")
    monkeypatch.setenv("RAYMLOPS_GCS_STORAGE", "redis://cache:1/environment")
    named = {None: "file", "redis://cache:1/option": "option"}
    for storage in named:
        run_on_node(["ray", "--head"], proxy="python", gcs_storage=storage, env_file=str(file))
    for (_, _, environment), space in zip(started, named.values(), strict=True):
        assert (environment["A"], environment["RAY_AUTH_MODE"]) == ("b&c", "token")
        assert environment["RAY_external_storage_namespace"] == space


def test_no_node_has_the_credentials_of_the_state(started, tmp_path, monkeypatch):
    """Every process on it would have them; whoever reads the state, such as the controller's command, may."""
    file = tmp_path / "node.env"
    file.write_text("RAYMLOPS_STATE_URL=postgresql://u:hunter2@h/db\n")
    file.chmod(0o600)
    with pytest.raises(UsageError, match="every trial, worker and replica") as raised:
        run_on_node(["ray", "start"], proxy="python", env_file=str(file))
    assert "hunter2" not in str(raised.value)
    assert started == []
    run_on_node(["raymlops", "controller", "--restore"], proxy="python", env_file=str(file))
    assert len(started) == 1


def test_a_node_without_a_token_is_refused_and_told_how_to_make_one(started, monkeypatch, tmp_path):
    """Ray's own refusal is a traceback; what makes the token runs here too."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UsageError, match=f"no file {tmp_path}/token") as refused:
        run_on_node(["ray", "start", "--head"], proxy="python")
    assert "ray get-auth-token --generate" in refused.value.hint
    run_on_node(["ray", "get-auth-token", "--generate"], proxy="python")
    (tmp_path / "token").write_text("secret")
    run_on_node(["ray", "start", "--head"], proxy="python")
    assert len(started) == 2


def test_a_folder_is_made_for_haproxy_alone(started, tmp_path):
    """Neither for the Python proxy, nor for a command that starts no node, nor where nothing is started."""
    run_on_node(["ray", "start"], proxy="python")
    run_on_node(["raymlops", "controller", "--restore"], proxy="haproxy")
    with pytest.raises(UsageError):
        run_on_node(["ray", "start", "--head"], proxy="haproxy", gcs_storage="nowhere")
    assert (len(started), [*tmp_path.glob("rml-*")]) == (2, [])
    run_on_node(["ray", "start"], proxy="haproxy")
    assert len([*tmp_path.glob("rml-*")]) == 1


def test_sessions_of_ray_are_in_a_folder_of_ours_alone(started, monkeypatch, tmp_path):
    """Ray opens its own to everyone. One that is named stays, and a pod shares Ray's own with its autoscaler."""
    for _ in range(2):
        run_on_node(["ray", "start"], proxy="python")
    folder = tmp_path / f"raymlops-{os.getuid()}"
    assert [environment["RAY_TMPDIR"] for *_, environment in started] == [str(folder)] * 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with monkeypatch.context() as pod:
        pod.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        run_on_node(["ray", "start"], proxy="python")
    monkeypatch.setenv("RAY_TMPDIR", "/data/ray")
    run_on_node(["ray", "start"], proxy="python")
    assert [environment.get("RAY_TMPDIR") for *_, environment in started[2:]] == [None, "/data/ray"]


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_made_or_can_enter_is_refused(started, tmp_path, kind):
    """In /tmp anybody may have it first."""
    folder = tmp_path / f"raymlops-{os.getuid()}"
    if kind == "open":
        folder.mkdir(0o755)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.touch(0o700)
    with pytest.raises(UsageError) as refused:
        run_on_node(["ray", "start"], proxy="python")
    assert str(folder) in str(refused.value)
    assert started == []


class Redis:
    """A connection to one, which answers PING."""

    def __init__(self, address, answer):
        self.getpeername, self.recv = lambda: (address, 6379), lambda size: answer[:size]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def sendall(self, data):
        assert data == b"PING\r\n"


@pytest.mark.parametrize(
    ("address", "answer", "refused"),
    [
        ("10.0.0.9", b"+PONG\r\n", True),
        ("fd00::9", b"+PONG\r\n", True),
        ("10.0.0.9", b"-NOAUTH Authentication required.\r\n", False),
        ("127.0.0.1", b"+PONG\r\n", False),
        ("::1", b"+PONG\r\n", False),
    ],
)
def test_a_redis_that_anybody_may_write_to_is_refused(started, monkeypatch, address, answer, refused):
    """Who writes there runs code on each node; the head alone uses it."""
    monkeypatch.setattr("socket.create_connection", lambda place, timeout: Redis(address, answer))
    with pytest.raises(UsageError) if refused else nullcontext():
        run_on_node(["ray", "start", "--head"], proxy="python", gcs_storage="redis://cache:6379/a")
    run_on_node(["ray", "start"], proxy="python", gcs_storage="redis://cache:6379/a")
    assert len(started) == (1 if refused else 2)


def test_files_of_tls_are_checked_before_anything_starts(started, monkeypatch, tmp_path):
    """HAProxy would say so in a log of Serve, minutes later, and the Python proxy never."""
    cert, key = (Path(file) for file in certificate(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMLOPS_TLS_CERT", cert.name)
    with pytest.raises(UsageError, match="TLS needs both files"):
        run_on_node(["ray", "start"], proxy="haproxy")
    monkeypatch.setenv("RAYMLOPS_TLS_KEY", "none.key")
    with pytest.raises(UsageError, match=r"cannot read .*none\.key"):
        run_on_node(["ray", "start"], proxy="haproxy")
    monkeypatch.setenv("RAYMLOPS_TLS_KEY", key.name)
    with pytest.raises(UsageError, match="RAYMLOPS_TLS_KEY are HAProxy's") as raised:
        run_on_node(["ray", "start"], proxy="python")
    assert "serve.tls_cert" in raised.value.hint
    assert started == []
    run_on_node(["ray", "start"], proxy="haproxy")
    ((_, _, environment),) = started
    assert (environment["RAYMLOPS_TLS_CERT"], environment["RAYMLOPS_TLS_KEY"]) == (str(cert), str(key))


@pytest.mark.parametrize("named", ["RAY_SERVE_HAPROXY_BINARY_PATH", "RAYMLOPS_HAPROXY_BINARY"])
def test_a_binary_that_a_node_names_is_run_by_the_wrapper(started, monkeypatch, tmp_path, named):
    """Serve never starts it by itself, without TLS; nor does it start another proxy than the chosen one."""
    own = tmp_path / "haproxy"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o700)
    monkeypatch.setenv(named, str(own))
    cert, key = map(str, certificate(tmp_path))
    for proxy, enabled in (("haproxy", "1"), ("python", "0")):
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0" if enabled == "1" else "1")
        for name, file in (("RAYMLOPS_TLS_CERT", cert), ("RAYMLOPS_TLS_KEY", key)):
            monkeypatch.setenv(name, file if proxy == "haproxy" else "")
        run_on_node(["ray", "start"], proxy=proxy)
        assert started[-1][2]["RAY_SERVE_ENABLE_HA_PROXY"] == enabled
    environment = started[0][2]
    assert json.loads(environment["RAY_OVERRIDE_LABELS"]) == {LABEL: "haproxy-tls"}
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(WRAPPER)
    assert environment["RAYMLOPS_HAPROXY_BINARY"] == str(own)


def test_a_command_that_is_not_there_is_said(started):
    """Nothing is started."""
    with pytest.raises(UsageError, match="no command 'nothing'"):
        run_on_node(["nothing"], proxy="python")
    assert started == []


def test_nodes_of_a_replay_have_its_clock(monkeypatch):
    """Each of their processes reads it; without a replay there is none."""
    assert clock.FILE not in node_environment(proxy="python", scratch="/tmp/x")
    monkeypatch.setenv(clock.FILE, "/replay/clock")
    assert node_environment(proxy="python", scratch="/tmp/x")[clock.FILE] == "/replay/clock"

"""The three services of ``raymlops up``: Ray's head, the MLflow server and Serve's proxy.

Owns their command lines, environments and health checks. Knows nothing of the record of what runs,
and decides nothing about when to start or end.
"""

from __future__ import annotations

import atexit
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.cluster.auth import environment, headers
from raymlops.cluster.endpoint.haproxy import ENABLED, wrapper_environment
from raymlops.cluster.endpoint.inherited import inherited
from raymlops.cluster.ports import HOST, free_port, free_port_like
from raymlops.config.paths import sqlite_url
from raymlops.config.serve import grpc_options, tls_options
from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from raymlops.cluster.endpoint.tls import TlsFiles

STATS_PORT, METRICS_PORT = 8404, 9101
"""Of HAProxy, on loopback, where they are free."""
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}


GUARD = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raymlops.serving.proxy.middleware:middlewares",
    # Serve takes messages of 2 GB into memory before any model can say that it is too much; bodies are 8 MB by default.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 1024 * 1024),
    # A proxy that was killed is looked for each 10 s by default and away for 25: about a client's deadline.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
"""For the start of a cluster: Serve loads it by name into its servers, where it guards headers, addresses and sizes."""

SPEED = {
    # The Python proxy asks a replica by gRPC, with Ray's token, instead of by an actor call.
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    # What such a call may carry: a message of the size above, with what Serve puts around it. Its 4 MiB are less than a
    # body may have, and a larger one fails as the proxy's own error.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(72 * 1024 * 1024),
    # A replica's code runs on its one event loop, without handing each request to another thread and back. Ours keeps
    # that loop free: a batch of more than two milliseconds runs in a thread.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # Nothing wakes a router whose replicas are all full: it asks them again after pauses that grow to 0.5 s by default,
    # in which a free slot idles. It asks only while requests wait, by two tasks a replica (50 at most), each of which
    # asks two replicas: 80 calls a second of each replica, a few hundredths of a core beside one that is full.
    "RAY_SERVE_ROUTER_RETRY_MAX_BACKOFF_S": "0.05",
}
"""For the start of a cluster: what of Serve's throughput mode is a gain behind the Python proxy too.

Not the whole mode, which also opens a port for each replica, beside the proxy. Not its router on the caller's loop,
which is no gain and rejects calls from where there is no loop. Not its log buffer: at our level a line is a warning.
"""

MAX_HEADER_BYTES = "RAYMLOPS_MAX_HEADER_BYTES"
"""Variable that the guard reads when a process starts to listen, before any model is there that could say it."""

NODE_START_S = 600.0
"""How long a head waits for its node; `up` itself gives up before, and ends it."""

_outliving: list[subprocess.Popen[bytes]] = []
"""Services are meant to outlive this process; Python warns of a child that nothing refers to and nobody waited for."""


def serve_environment(
    *, scratch: str, stats_port: int | None = None, metrics_port: int | None = None, tls: TlsFiles | None = None
) -> dict[str, str]:
    """Return what makes Serve put HAProxy in front: several times the requests of the Python proxy.

    Its own ports are 8404 for statistics and 9101 for metrics by default, or free ones where these are taken. With
    ``tls``, HTTP and gRPC need it, and the files are read again when they change. Throughput mode runs a replica's
    code and router on its one event loop. HAProxy's files move to ``scratch`` from a folder of /tmp that every cluster
    of the machine would share; their names are short because Serve puts the node's id (56 bytes) before them and
    HAProxy takes a log socket's path of at most 97.

    Raises:
        ClusterError: HAProxy is not installed.
    """
    folder = f"{scratch}/h"
    return {
        **wrapper_environment(tls),
        ENABLED: "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # That mode holds a thousand log lines back; ours are warnings, which a killed replica would take with it.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # Without it a client may pause for an hour within its headers or its body.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # Without it a request to a replica that hangs waits for as long as its client does. More than a model may take:
        # its own deadline is kept in the replica.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "3600",
        # Its 4,096 count idle connections too, and the next caller waits until one of those ends by itself.
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        # Headers that do not fit are a bare 400 by HAProxy: with room for twice the guard's bound, that one answers.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "32768",
        # A line for each request to Serve's process beside HAProxy, which counts them in Python: 90 us of a request on
        # two cores. Replicas count their own, and HAProxy exports its own.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port or free_port_like(STATS_PORT)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port or free_port_like(METRICS_PORT)),
        # How long a replica that is stopping still answers. Its 30 s are for balancers on other machines.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # A Python proxy behind HAProxy, for requests that no replica can take; loopback, and 8500 of every cluster.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/c",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/a",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/s",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m",
    }


def max_connections(files: int) -> int:
    """Return how many connections HAProxy may hold where a process may open so many files.

    It needs 2.5 files a connection (its two ends, and half a pipe's to splice between them) and some of its own, and
    does not start without.
    """
    most = 16_384
    return most if files == resource.RLIM_INFINITY else max(64, min(most, 2 * (files - 512) // 5))


def start_head(
    *,
    scratch: str,
    token: Path,
    port: int,
    dashboard_port: int,
    num_cpus: int,
    variables: Mapping[str, str],
    log: Path,
) -> subprocess.Popen[bytes]:
    """Start Ray's head with its dashboard, guarded by the token, on loopback; ``variables`` are those of the node."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={port}", "--include-dashboard=true", f"--dashboard-host={HOST}"),
        *(f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={scratch}"),
    ]
    # The drain before a SIGTERM moves work to other nodes; this cluster has only one, and the drain would take 30 s.
    drain = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    # Ray Client is deprecated, yet `ray start` has no option to leave its server out.
    hook = {"RAY_START_HOOK": f"{__name__}.adapt_head"}
    return _start(command, log=log, variables={**drain, **hook, **variables, **environment(token)})


def adapt_head(parameters: Any, head: bool) -> None:  # noqa: ARG001 - Ray calls it with both
    """Leave out Ray Client's server, and wait longer for the node: called by ``ray start`` in the head that we start.

    Ray gives a node 30 seconds, which no variable changes, and a busy machine takes longer.
    """
    from ray._private import services

    parameters.ray_client_server_port = None
    get_node, deadline = services.get_node, time.monotonic() + NODE_START_S

    def get_node_late(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not up yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = get_node_late


def start_mlflow(*, root: Path, port: int, variables: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start the MLflow server on SQLite under ``root``, behind the password of ``mlflow.server``.

    Artifacts are not served but written by path: runs made through the server and runs made on the
    database directly then have the same artifact locations.
    """
    command = [
        *(sys.executable, "-m", "mlflow", "server", f"--host={HOST}", f"--port={port}", "--workers=1"),
        *(f"--backend-store-uri={sqlite_url(root / 'mlflow.db')}", "--no-serve-artifacts"),
        f"--default-artifact-root={(root / 'mlartifacts').as_uri()}",
        "--gunicorn-opts=--config=python:raymlops.cluster.mlflow.server",
    ]
    jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return _start(command, log=log, variables={**variables, **jobs})


def start_serve(
    dashboard_url: str,
    *,
    token: Path,
    port: int,
    timeout_s: float,
    grpc_port: int | None = None,
    tls: TlsFiles | None = None,
) -> None:
    """Start Serve's controller and its proxy on loopback, without any application; for gRPC only with a port for it.

    ``tls`` is for the Python proxy, which reads the files once; HAProxy has them from its environment.

    Raises:
        ClusterError: Ray rejected the request, or ended before it answered.
    """
    import httpx

    body: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": HOST, "port": port, **({} if tls is None else tls_options(*tls))},
        # A line for each request costs more than a small model's answer.
        "logging_config": {"enable_access_log": False},
        "applications": [],
    }
    if grpc_port is not None:
        body["grpc_options"] = grpc_options(grpc_port)
    url = f"{dashboard_url}/api/serve/applications/"
    try:
        with _client(timeout_s) as client:
            answer = client.put(url, json=body, headers=headers(token))
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ClusterError(f"Ray did not start Serve: {dashboard_url} gave no answer: {why}") from error
    if answer.status_code != 200:
        # A traceback, whose end is the error: what HAProxy said before it ended, such as of a port that is taken.
        said = [line[:300] for line in answer.text.splitlines() if line.strip()][-6:]
        raise ClusterError("\n".join([f"Ray did not start Serve: {answer.status_code}", *said]))


def stop_serve(dashboard_url: str, *, token: Path, timeout_s: float) -> None:
    """Let Serve stop its replicas, so that they answer what is in flight and write what they hold."""
    import httpx

    try:
        with _client(timeout_s) as client:
            client.delete(f"{dashboard_url}/api/serve/applications/", headers=headers(token))
    except httpx.HTTPError:
        return  # a head that no longer answers has no replicas to ask


def ray_ready(dashboard_url: str, *, token: Path) -> bool:
    """Return whether the dashboard answers with the token.

    Raises:
        ClusterError: it also answers without one.
    """
    url = f"{dashboard_url}/api/version"
    if _status(url, token=token) != 200:
        return False
    status = _status(url, token=None)
    if status is None:
        return False  # it ended between the two questions
    if status not in {401, 403}:
        raise ClusterError(
            f"Ray's dashboard at {dashboard_url} answered {status} without a token: it would run anyone's code",
            hint="unset RAY_AUTH_MODE and start again",
        )
    return True


def mlflow_ready(url: str) -> bool:
    """Return whether the MLflow server runs and asks for a password."""
    return _status(f"{url}/api/2.0/mlflow/experiments/search", token=None) == 401


def node_alive(dashboard_url: str, *, token: Path) -> bool:
    """Return whether a node of the cluster is up; the dashboard answers before that."""
    _, answer = ask(f"{dashboard_url}/nodes?view=hostNameList", token=token)
    return bool((answer.get("data") or {}).get("hostNameList"))


def serve_ready(dashboard_url: str, *, token: Path, serve_url: str) -> bool:
    """Return whether Serve calls its proxy healthy and the proxy answers HTTP.

    Its answer may be 503 while nothing is deployed.
    """
    _, details = ask(f"{dashboard_url}/api/serve/applications/", token=token)
    healthy = any(proxy.get("status") == "HEALTHY" for proxy in (details.get("proxies") or {}).values())
    return healthy and _status(f"{serve_url}/-/healthz", token=None) is not None


def wait_ready(
    name: str, check: Callable[[], bool], *, process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    """Wait until a service answers.

    Raises:
        ClusterError: its process ended, or it did not answer in time; with the last lines of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        check_alive(name, process, log=log)
        if time.monotonic() > deadline:
            raise ClusterError(f"{name} did not answer within {timeout_s:g} s\n{tail(log)}", hint=f"see {log}")
        time.sleep(0.2)


def check_alive(name: str, process: subprocess.Popen[bytes], *, log: Path, within_s: float = 0.0) -> None:
    """Raise ClusterError, with the last lines of its log, if a service that is starting has ended, or does by then."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=within_s)
    if (code := process.poll()) is not None:
        raise ClusterError(f"{name} ended with exit code {code} while starting\n{tail(log)}", hint=f"see {log}")


def ask(url: str, *, token: Path | None) -> tuple[int | None, dict[str, Any]]:
    """Return the status of a GET, None when nothing answers, and its JSON object, empty for any other body."""
    answer = _get(url, token=token)
    if answer is None:
        return None, {}
    try:
        body = answer.json()
    except ValueError:
        body = None
    return answer.status_code, body if isinstance(body, dict) else {}


def text(url: str) -> str | None:
    """Return the text that a GET answers with 200, None otherwise."""
    answer = _get(url, token=None)
    return answer.text.strip() if answer is not None and answer.status_code == 200 else None


def _get(url: str, *, token: Path | None) -> httpx.Response | None:
    import httpx

    try:
        with _client() as client:
            return client.get(url, headers=headers(token))
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


def tail(log: Path, *, lines: int = 12) -> str:
    """Return the last lines of a log that say something, indented."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line[:200]}" for line in [line for line in text if line.strip()][-lines:])


def _start(command: list[str], *, log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Job entry points say `python`: let it be the one that has raymlops, also where no venv is active.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter with arguments of our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited(), **_QUIET, **variables, "PATH": search},
            cwd=log.parent,
            start_new_session=True,  # a Ctrl-C in the terminal is for us to handle, and the services outlive it
        )
    if not _outliving:
        atexit.register(_leave)
    _outliving.append(process)
    return process


def _leave() -> None:
    """Let Python exit without a warning of the services: those that ended are collected, the others run on."""
    for process in _outliving:
        if process.poll() is None:
            process.returncode = 0


def _status(url: str, *, token: Path | None) -> int | None:
    return ask(url, token=token)[0]


def _client(timeout_s: float = 3.0) -> httpx.Client:
    import httpx

    # trust_env=False: a proxy of the environment must not carry requests to loopback. What is asked over TLS is whether
    # this machine's endpoint is there, without a key; its certificate has the names that callers know.
    return httpx.Client(timeout=timeout_s, trust_env=False, verify=False)  # noqa: S501

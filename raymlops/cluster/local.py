"""``raymlops up``, ``down`` and ``status``: one machine's cluster with everything that the framework needs.

Owns the order of starting and ending, and the promise that a start which fails or is interrupted leaves
nothing behind. Everything listens on loopback and keeps its state under one folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.cluster import services, upfile
from raymlops.cluster.auth import ensure_token
from raymlops.cluster.capacity import logical_cpus
from raymlops.cluster.driver_node import end_drivers
from raymlops.cluster.endpoint.haproxy import DIRECT_PORTS, chosen, raise_refusal, refusal
from raymlops.cluster.endpoint.node_environment import node_environment
from raymlops.cluster.endpoint.tls import TlsFiles, checked_files, valid_until
from raymlops.cluster.mlflow.restart import only_mlflow_ended, restart_mlflow
from raymlops.cluster.ports import HOST, check_free, free_port, free_port_like, listeners
from raymlops.cluster.processes import ProcessRecord, belonging, end
from raymlops.cluster.upfile import UpRecord
from raymlops.errors import ClusterError, RaymlopsError, StorageError, UsageError
from raymlops.records import Record
from raymlops.signals import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.cluster.endpoint.haproxy import Proxy
    from raymlops.cluster.ports import Listener

WORKER_PORTS = range(10_002, 20_000)
"""Ray's default for what its workers listen on; it does not start where one of its own ports is among them."""
PORTS = {"Serve": 8000, "Ray's dashboard": 8265, "MLflow": 5000, "Ray": 6379}
"""Default port of each service."""
OPENS = ("*:random one port for each replica: Serve's internal gRPC, which rejects calls without the token",)

_REPLICA, _FALLBACK = "ray::ServeReplica", "ray::ProxyActor"
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""Serve writes paths into HAProxy's configuration as they are, where a space ends one and # begins a comment."""
_LONGEST_RAY_FOLDER = 34
"""Bytes: with a session's name and the longest socket's behind it a path stays under the system's 107, HAProxy's 97."""


@dataclass(frozen=True)
class DownRecord(Record):
    """What ``raymlops down`` ended."""

    root: str
    stopped: int
    """Processes that ran before and do not now."""
    killed: int
    """Of these, how many did not leave by themselves."""


@dataclass(frozen=True)
class StatusRecord(Record):
    """What runs of a cluster."""

    root: str | None
    """Folder of a cluster that ``up`` started; None for another one."""
    state: str
    """``down``, ``starting``, ``up`` or ``broken`` (recorded as up, but something is missing)."""
    services: dict[str, bool]
    urls: dict[str, str]
    processes: int
    open_to_others: tuple[str, ...] = ()
    """Sockets of the cluster that other machines can reach, found now."""
    grpc_address: str | None = None
    """``HOST:PORT`` of the endpoints' gRPC; None where it is not open."""
    certificate: str | None = None
    """The certificate's file, and what the endpoints show, in words; None without TLS."""
    plain: tuple[str, ...] = ()
    """With TLS: listeners of replicas and of Serve's fallback proxy, which HAProxy asks without it."""
    refused: str | None = None
    """Why HAProxy was not started with what runs now: it still asks the previous replicas; None where it was."""


def up(
    *,
    root: Path | str | None = None,
    http_port: int | None = None,
    dashboard_port: int | None = None,
    mlflow_port: int | None = None,
    ray_port: int | None = None,
    proxy: Proxy | None = None,
    tls_cert: Path | str | None = None,
    tls_key: Path | str | None = None,
    grpc_port: int | None = None,
    num_cpus: float | None = None,
    timeout_s: float = 120.0,
    on_step: Callable[[str], None] | None = None,
) -> UpRecord:
    """Start Ray with its dashboard, the MLflow server and Serve, and return once each has answered.

    Where they already run, nothing is started and the record says ``already_up``. Where MLflow alone has ended, it
    alone is started again; what is left of a cluster that has lost more is ended first. Ports of None are 8000 for
    HTTP, 8265, 5000 and 6379; HAProxy is the default ``proxy`` where it is installed, and has its statistics on 8404
    and its metrics on 9101, or on free ports where these are taken or HTTP has another one than its default. Serve
    listens for gRPC only where ``grpc_port`` is given, and needs TLS where the files of a certificate and its key are.

    Raises:
        UsageError: they already run, on other ports or CPUs than requested, behind another proxy, or without gRPC or
            TLS; a port is one that Ray's workers take; the files of TLS cannot be used.
        PortTakenError: a port is held by another process; nothing was started.
        StorageError: ``root`` cannot be written; nothing was started.
        ClusterError: a service did not come up; what had been started now was ended.
    """
    say = on_step or (lambda _: None)
    folder = _folder(root)
    cpus = logical_cpus(num_cpus)
    asked = {"Serve": http_port, "Ray's dashboard": dashboard_port, "MLflow": mlflow_port, "Ray": ray_port}
    asked["gRPC"] = grpc_port
    tls = checked_files(tls_cert, tls_key)
    ports = PORTS | {name: port for name, port in asked.items() if port is not None}
    with _lock(folder):
        if (old := upfile.read(folder)) is not None:
            whole = old.state == "up" and all(record.find() for record in old.processes)
            if whole or only_mlflow_ended(old):
                asked_cpus = None if num_cpus is None else cpus
                found = old.differences(ports=asked, proxy=proxy, tls=tls, num_cpus=asked_cpus)
                if found:
                    raise UsageError(
                        f"already up in {folder}: {', '.join(found)}",
                        hint=f"use it as it is, or end it first: raymlops down --root {shlex.quote(str(folder))}",
                    )
                return replace(old, already_up=True) if whole else restart_mlflow(old, timeout_s=timeout_s, say=say)
            say("a previous cluster is partly dead; stopping the rest of it")
            _end(old, grace_s=10)
        if theirs := [f"{name}: {port}" for name, port in ports.items() if port in WORKER_PORTS]:
            raise UsageError(
                f"Ray's workers take ports {WORKER_PORTS.start} to {WORKER_PORTS.stop - 1}, got {', '.join(theirs)}",
                hint="choose others, such as from 20000 on",
            )
        haproxy = chosen(proxy) == "haproxy"
        check_free(ports)
        defaults = services.STATS_PORT, services.METRICS_PORT
        stats, metrics = (
            free_port_like(port, besides=ports.values()) if http_port is None else free_port() for port in defaults
        )
        if haproxy and http_port is None and (stats, metrics) != defaults:
            say(f"HAProxy has its statistics on port {stats} and its metrics on {metrics}: its own ports are taken")
        record = UpRecord(
            root=str(folder),
            cluster_id=uuid.uuid4().hex,
            state="starting",
            started_at=time.time(),
            ray_address=f"{HOST}:{ports['Ray']}",
            dashboard_url=f"http://{HOST}:" + str(ports["Ray's dashboard"]),
            mlflow_url=f"http://{HOST}:{ports['MLflow']}",
            serve_url=f"{'http' if tls is None else 'https'}://{HOST}:{ports['Serve']}",
            token_path=str(ensure_token(folder / "auth")),
            scratch=_scratch(folder),
            haproxy=haproxy,
            tls_cert=None if tls is None else tls.cert,
            tls_key=None if tls is None else tls.key,
            grpc_port=grpc_port,
            num_cpus=cpus,
            made_database=not (folder / "mlflow.db").exists(),
            opens=OPENS,
        )
        try:
            return _start(record, num_cpus=cpus, haproxy_ports=(stats, metrics), timeout_s=timeout_s, say=say)
        except BaseException:
            with undisturbed():
                say("ending what was started")
                _end(upfile.read(folder) or record, grace_s=5)
            raise


def down(*, root: Path | str | None = None, grace_s: float = 15.0) -> DownRecord | None:
    """End what ``up`` started and nothing else; None when nothing was up.

    Drivers are asked to leave first, then replicas to finish; after ``grace_s`` what is left is killed.

    Raises:
        ClusterError: a process of the cluster cannot be ended; it is named.
    """
    folder = upfile.home(root)
    if upfile.read(folder) is None:
        return None
    with _lock(folder), undisturbed():
        record = upfile.read(folder)
        return None if record is None else _end(record, grace_s=grace_s)


def status(*, root: Path | str | None = None) -> StatusRecord:
    """Check each service, and look at every process and socket of the cluster."""
    folder = upfile.home(root)
    record = upfile.read(folder)
    if record is None:
        return StatusRecord(str(folder), "down", {"ray": False, "mlflow": False, "serve": False}, {}, 0)
    found = answering(record)
    pids = {process.pid for process in belonging(record.cluster_id, record.processes)}
    state = record.state if record.state == "starting" or all(found.values()) else "broken"
    sockets = listeners(pids)
    reachable = tuple(str(item) for item in sockets if not item.loopback)
    plain: tuple[str, ...] = ()
    if record.tls_cert is not None:
        plain = tuple(str(item) for item in sockets if _asked_without_tls(item, haproxy=record.haproxy))
    return StatusRecord(
        str(folder),
        state,
        found,
        record.urls,
        len(pids),
        reachable,
        record.grpc_address,
        _certificate(record),
        plain,
        refusal(record.scratch),
    )


def answering(record: UpRecord) -> dict[str, bool]:
    """Return whether each service of a started cluster answers, by name."""
    token = Path(record.token_path)
    return {
        "ray": services.ray_ready(record.dashboard_url, token=token),
        "mlflow": services.mlflow_ready(record.mlflow_url),
        "serve": services.serve_ready(record.dashboard_url, token=token, serve_url=record.serve_url),
    }


def _certificate(record: UpRecord) -> str | None:
    """Return the certificate's file, and until when what the endpoint shows is valid or what is wrong with it."""
    if record.tls_cert is None:
        return None
    try:
        return f"{record.tls_cert}, valid until {valid_until(HOST, record.ports['Serve'], record.tls_cert)}"
    except RaymlopsError as error:
        return error.message


def _asked_without_tls(item: Listener, *, haproxy: bool) -> bool:
    if item.process.startswith(_FALLBACK):
        return haproxy and item.port not in WORKER_PORTS
    return item.process.startswith(_REPLICA) and item.port in DIRECT_PORTS


def _start(
    record: UpRecord, *, num_cpus: int, haproxy_ports: tuple[int, int], timeout_s: float, say: Callable[[str], None]
) -> UpRecord:
    root, token, ports, variables = Path(record.root), Path(record.token_path), record.ports, record.inherited
    tls = None if record.tls_cert is None or record.tls_key is None else TlsFiles(record.tls_cert, record.tls_key)
    stats_port, metrics_port = haproxy_ports
    node = node_environment(
        proxy="haproxy" if record.haproxy else "python",
        scratch=record.scratch,
        stats_port=stats_port,
        metrics_port=metrics_port,
        tls=tls,
    )
    ray_log, mlflow_log = root / "logs" / "ray.log", root / "logs" / "mlflow.log"
    for log in (ray_log, mlflow_log):
        log.unlink(missing_ok=True)

    say("starting Ray and MLflow")
    # Recorded before the first start, so that `down` finds the marked processes even after a kill -9 of this one.
    upfile.write(record)
    record.drivers.mkdir()  # not by a driver, which may be another user's: the next `up` could not remove it
    head = services.start_head(
        scratch=record.scratch,
        token=token,
        port=ports["Ray"],
        dashboard_port=ports["Ray's dashboard"],
        num_cpus=num_cpus,
        variables={**node, **variables},
        log=ray_log,
    )
    mlflow = services.start_mlflow(root=root, port=ports["MLflow"], variables=variables, log=mlflow_log)
    record = replace(record, processes=(ProcessRecord.of("ray", head.pid), ProcessRecord.of("mlflow", mlflow.pid)))
    upfile.write(record)

    def wait(name: str, check: Callable[[], bool], process: Any, log: Path) -> None:
        def ready() -> bool:
            services.check_alive("MLflow", mlflow, log=mlflow_log)  # its end is not only noticed when its turn comes
            return check()

        services.wait_ready(name, ready, process=process, log=log, timeout_s=timeout_s)

    def ray_ready() -> bool:
        answers = services.ray_ready(record.dashboard_url, token=token)
        return answers and services.node_alive(record.dashboard_url, token=token)

    wait("Ray", ray_ready, head, ray_log)
    say(f"Ray answers at {record.dashboard_url}, with the token only")
    try:
        services.start_serve(
            record.dashboard_url,
            token=token,
            port=ports["Serve"],
            grpc_port=record.grpc_port,
            tls=None if record.haproxy else tls,
            timeout_s=timeout_s,
        )
    except ClusterError:
        raise_refusal(record.scratch)  # the cause, where there is one: Serve's own answer is a traceback
        services.check_alive("Ray", head, log=ray_log, within_s=5)  # its dashboard ends a moment before it
        raise

    def serves() -> bool:
        raise_refusal(record.scratch)
        return services.serve_ready(record.dashboard_url, token=token, serve_url=record.serve_url)

    wait("Serve", serves, head, ray_log)
    say(f"Serve answers at {record.serve_url}")
    if (certificate := _certificate(record)) is not None:
        say(f"certificate {certificate}")
    wait("MLflow", lambda: services.mlflow_ready(record.mlflow_url), mlflow, mlflow_log)
    say(f"MLflow answers at {record.mlflow_url}, in a browser to raymlops with the password in {root}/auth/mlflow")
    record = replace(record, state="up")
    upfile.write(record)
    return record


def _end(record: UpRecord, *, grace_s: float) -> DownRecord:
    before = belonging(record.cluster_id, record.processes)
    end_drivers(record.drivers)
    if record.state == "up" and record.alive:
        services.stop_serve(record.dashboard_url, token=Path(record.token_path), timeout_s=grace_s)
    killed = end(record.cluster_id, record.processes, grace_s=grace_s)
    scratch = Path(record.scratch)
    if scratch.is_symlink() or scratch.parent.name.startswith("rml-"):
        shutil.rmtree(scratch.parent, ignore_errors=True)
    if record.state == "starting" and record.made_database:
        # SQLite does not undo MLflow's half-done migrations, and the server was never up to take a run.
        for file in Path(record.root).glob("mlflow.db*"):
            file.unlink()
    upfile.remove(Path(record.root))
    return DownRecord(record.root, len(before), len(killed))


def _folder(root: Path | str | None) -> Path:
    folder = upfile.home(root)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror or error}", hint="choose another folder with --root"
        ) from error
    return folder


def _scratch(root: Path) -> str:
    """Return a fresh folder of ours for Ray's sessions, by a path short enough for its sockets, and of plain words."""
    private = root / "ray"
    shutil.rmtree(private, ignore_errors=True)  # logs of the cluster before, kept until now for reading
    try:
        private.mkdir(mode=0o700)
    except OSError as error:  # another user wrote into it
        raise StorageError(
            f"cannot replace {private}: {error.strerror}", hint="remove it, or choose another folder with --root"
        ) from error
    ray = private / "s"  # Ray opens its folder to everyone, so it is placed in one that is ours alone
    (ray / "h").mkdir(parents=True)
    if len(os.fsencode(ray)) <= _LONGEST_RAY_FOLDER and _PLAIN.fullmatch(str(ray)):
        return str(ray)
    link = Path(tempfile.mkdtemp(prefix="rml-", dir="/tmp")) / "ray"  # private, while $TMPDIR may be long
    link.symlink_to(ray)
    return str(link)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold off another ``up`` or ``down`` of the same folder."""
    with (folder / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClusterError(
                f"another raymlops up or down is at work in {folder}", hint="wait for it, or choose another --root"
            ) from None
        yield

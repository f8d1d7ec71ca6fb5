"""Connecting to Ray: to the cluster that is there, or to one of our own for as long as it is needed.

Owns the order in which a cluster is looked for, and the promise that leaving ends what was started and
nothing else. Knows nothing of what runs on it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.cluster import auth, upfile
from raymlops.cluster.capacity import logical_cpus
from raymlops.cluster.driver_node import node_watched
from raymlops.cluster.endpoint.haproxy import chosen
from raymlops.cluster.endpoint.node_environment import node_environment
from raymlops.cluster.endpoint.tls import checked_files
from raymlops.cluster.ports import HOST, answers, free_port
from raymlops.cluster.processes import MARK, end
from raymlops.cluster.services import MAX_HEADER_BYTES
from raymlops.config.serve import is_loopback
from raymlops.errors import ClusterError
from raymlops.records import Record
from raymlops.signals import sigterm_kept, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from raymlops.config.schema import ProjectSpec

_log = logging.getLogger(__name__)

NAMESPACE = "raymlops"


@dataclass(frozen=True)
class Connection(Record):
    """A connected cluster."""

    address: str
    """host:port of Ray itself."""
    dashboard_url: str | None
    owned: bool
    """Whether leaving ends it."""
    token_path: str | None = None
    """File of the token that the dashboard requires."""


@contextmanager
def connect(spec: ProjectSpec, *, dashboard: bool = False) -> Iterator[Connection]:
    """Connect this process to Ray for the block.

    In this order: a Ray that this process is already connected to; ``cluster.address``; ``RAY_ADDRESS``, which is
    how jobs find theirs; what ``raymlops up`` started; a local one of our own, which ends with the block,
    however that ends. An address of ``auto`` never gets as far as a local one.
    ``dashboard`` starts one with our own; an existing cluster has it or not.

    Raises:
        ClusterError: a requested cluster does not answer or rejects us.
    """
    import ray

    if ray.is_initialized():
        yield _connection(spec.cluster.dashboard or _dashboard(), owned=False)
        return
    address, variables = find(spec)
    with ExitStack() as stack:
        stack.enter_context(sigterm_kept(default_too=True))
        stack.enter_context(_stdout_kept())
        if address is None:
            yield stack.enter_context(_own(spec, dashboard=dashboard))
        else:
            yield stack.enter_context(_join(spec, address, variables))


def find(spec: ProjectSpec) -> tuple[str | None, dict[str, str]]:
    """Return the address to join, or None to start a cluster of our own, and the environment that it needs.

    Raises:
        ClusterError: the address has a form that cannot be joined, or is ``auto`` and there is no cluster.
    """
    record = upfile.read()
    wanted = spec.cluster.address
    if wanted == "local":
        return None, {}
    if wanted in {None, "auto"}:
        named = os.environ.get("RAY_ADDRESS")
        if named in {None, "", "auto", "local"}:
            return _started(record, required=wanted == "auto")
        wanted = named
    assert wanted is not None
    if "://" in wanted:
        raise ClusterError(
            f"cannot join {wanted!r}: a cluster's address is host:port, such as 127.0.0.1:6379",
            hint="Ray Client (ray://) is deprecated; from another machine submit a job: ray job submit --address URL",
        )
    host, _, port = wanted.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"cannot join {wanted!r}: a cluster's address is host:port, local or auto")
    if record is not None and wanted == record.ray_address:
        return wanted, auth.environment(record.token_path)
    # Ray rewrites a loopback address to the outside one, where a cluster on true loopback does not listen.
    return wanted, {auth.LOOPBACK: "0"} if is_loopback(host) else {}


def can_join(spec: ProjectSpec) -> bool:
    """Return whether this process has joined a cluster, or there is one to join.

    Raises:
        ClusterError: as ``find``.
    """
    import ray

    return ray.is_initialized() or find(spec)[0] is not None


def _started(record: upfile.UpRecord | None, *, required: bool) -> tuple[str | None, dict[str, str]]:
    """Return what ``up`` started; where that is not there, None unless it is required."""
    missing = f"raymlops up has started none in {upfile.home()}"
    if record is not None and record.state == "up":
        if record.alive:
            return record.ray_address, auth.environment(record.token_path)
        missing = f"the cluster of raymlops up in {record.root} has died"
    if required:
        raise ClusterError(
            f"cluster.address is auto, RAY_ADDRESS names no cluster, and {missing}",
            hint="raymlops up starts one; cluster.address=local starts one for this command alone",
        )
    if record is not None and record.state == "up":
        _log.warning("%s; using a local one", missing)
    return None, {}


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Print on stderr what Ray (2.60) prints on stdout, that a worker died: stdout belongs to the answer."""
    from ray._private import worker

    before = worker.print_to_stdstream

    def to_stderr(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        before({**data, "is_err": True} if data.get("pid") == "raylet" else data, *args, **kwargs)

    worker.print_to_stdstream = to_stderr
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def _join(spec: ProjectSpec, address: str, variables: dict[str, str]) -> Iterator[Connection]:
    import ray

    host, _, port = address.rpartition(":")
    if not answers(host.strip("[]"), int(port)):
        raise ClusterError(
            f"no Ray cluster answers at {address}", hint="raymlops doctor says more; raymlops up starts one here"
        )
    # Ray's state API asks what the environment names, whatever this process is connected to.
    with auth.in_process({**variables, "RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": spec.cluster.dashboard}):
        try:
            with sigterm_kept(default_too=False):
                ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            with suppress(Exception):
                ray.shutdown()
            raise ClusterError(
                f"the Ray cluster at {address} rejected the connection: {error}",
                hint=f"set {auth.MODE}=token and {auth.TOKEN_PATH}; raymlops doctor says more",
            ) from error
        try:
            with node_watched(*_node_sockets(), drivers=_drivers(address)):
                yield _connection(spec.cluster.dashboard or _dashboard(), owned=False)
        finally:
            ray.shutdown()


@contextmanager
def _own(spec: ProjectSpec, *, dashboard: bool) -> Iterator[Connection]:
    import ray

    # A short path: a socket's has at most 107 bytes. mkdtemp makes it readable by us only.
    folder = Path(tempfile.mkdtemp(prefix="rml-", dir="/tmp"))
    cluster_id = uuid.uuid4().hex
    cleanup = ExitStack()
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        variables: dict[str, str | None] = {
            # HAProxy's own ports stay out of the way of a cluster's, which are known ones.
            **node_environment(
                proxy=chosen(spec.serve.proxy),
                scratch=str(folder),
                stats_port=free_port(),
                metrics_port=free_port(),
                tls=checked_files(spec.serve.tls_cert, spec.serve.tls_key),
            ),
            **auth.environment(auth.ensure_token(folder / "auth")),
            MAX_HEADER_BYTES: str(spec.serve.max_header_bytes),
        }
        # Workers inherit the environment, and Ray's state API (Train uses it) asks the cluster that these name;
        # without any it gives up as soon as another Ray runs on the machine.
        port = free_port()
        variables |= {"RAY_ADDRESS": None, "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{port}" if dashboard else None}
        cleanup.enter_context(auth.in_process(variables))
        options: dict[str, Any] = {
            "num_cpus": logical_cpus(spec.cluster.num_cpus),
            "include_dashboard": dashboard,
            "dashboard_host": HOST,
            "dashboard_port": port,
            "_temp_dir": str(folder / "ray"),  # Ray opens it to everyone; the one around it is ours alone
            "namespace": NAMESPACE,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        # Ray returns while some of its processes are leaving, and an interrupted start leaves all of them. Those that
        # take longer than a second to be killed it never collects.
        started: list[Popen[bytes]] = []
        cleanup.callback(lambda: [process.poll() for process in started])
        cleanup.callback(end, cluster_id, grace_s=5.0, signal_first=False)
        cleanup.callback(ray.shutdown)
        _start(options, cluster_id)
        started.extend(_node_processes())
        yield _connection(_dashboard() if dashboard else None, owned=True)
    finally:
        with undisturbed():
            cleanup.close()


def _start(options: dict[str, Any], cluster_id: str) -> None:
    """Start a local Ray whose processes carry the mark; this process's later children do not."""
    import ray

    try:
        with auth.variables_set({MARK: cluster_id}), sigterm_kept(default_too=False):
            ray.init(address="local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray did not start: {error}", hint="raymlops doctor looks for the cause") from error


def _connection(dashboard_url: str | None, *, owned: bool) -> Connection:
    import ray

    token = auth.current_token()
    address = ray.get_runtime_context().gcs_address
    return Connection(address, dashboard_url, owned=owned, token_path=str(token) if token else None)


def _node() -> Any:
    import ray

    return ray._private.worker.global_worker.node  # noqa: SLF001 - nothing public names its sockets and processes


def _node_processes() -> list[Popen[bytes]]:
    return [info.process for infos in _node().all_processes.values() for info in infos]


def _node_sockets() -> tuple[str, str]:
    node = _node()
    return str(node.raylet_socket_name), str(node.plasma_store_socket_name)


def _drivers(address: str) -> Path | None:
    """Return where ``raymlops down`` finds the drivers of the cluster at an address; None where it did not start it."""
    record = upfile.read()
    return record.drivers if record is not None and record.alive and record.ray_address == address else None


def _dashboard() -> str | None:
    import ray

    url = ray._private.worker.get_dashboard_url()  # noqa: SLF001 - public only as a return value of ray.init
    if not url:
        return None
    return url if "://" in url else f"http://{url}"

"""The environment in which the nodes of a cluster start, the same for every launcher.

Owns what it has: token authentication, the guard in front of Serve, its speed, HAProxy, how nice workers are, the time
in which a stopped job may end, the clock of a replay, and where Ray's head keeps its state (GCS). Ray and Serve read
all of it from the environment of ``ray start``, so that no job and no configuration can set it later. ``raymlops up``,
``raymlops env``, by which the launcher files of ``ray up`` start their nodes, and the clusters that a command starts
for itself, take it from here.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, urlsplit

from raymlops.cluster.auth import MODE, token_file
from raymlops.cluster.endpoint.env_file import read_env_file
from raymlops.cluster.endpoint.haproxy import ENABLED, LABEL, WITH_TLS, chosen, wrapper_environment
from raymlops.cluster.endpoint.haproxy_wrapper import TLS_CERT, TLS_KEY
from raymlops.cluster.endpoint.tls import checked_files
from raymlops.cluster.grace_period import STOP_WAIT_S, VARIABLE
from raymlops.cluster.services import GUARD, SPEED, serve_environment
from raymlops.config.credentials import redact
from raymlops.config.paths import STATE_FILE, STATE_URL
from raymlops.errors import UsageError
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.cluster.endpoint.haproxy import Proxy
    from raymlops.cluster.endpoint.tls import TlsFiles

GCS_STORAGE = "RAYMLOPS_GCS_STORAGE"
LABELS = "RAY_OVERRIDE_LABELS"
"""Variable with labels of a node as JSON; an autoscaler's launcher sets some of its own."""
NICENESS, NICE = "RAY_worker_niceness", "5"
"""Replicas and proxies are Ray's workers, whose default is 15: what computes beside them, such as a driver or a build,
would get 28 times their share of a core, and with 5 it gets three times. What the variable says already stays.
Trainings make themselves nicer (``training.priority``); Ray's own processes are at 0."""
RECONNECT_S = 600
"""How long a node waits for its head to come back; by default it ends after 60 s, and everything on it."""
SCRATCH = Path("/tmp")  # noqa: S108
"""Short, since sockets of HAProxy and of Ray lie in folders of it."""


def node_environment(
    *,
    proxy: Proxy,
    scratch: str,
    stats_port: int | None = None,
    metrics_port: int | None = None,
    tls: TlsFiles | None = None,
    gcs_storage: str | None = None,
    head: bool = True,
) -> dict[str, str]:
    """Return the variables for ``ray start`` on a node.

    ``scratch`` is a folder of the node for HAProxy's files, and ``tls`` its certificate: the Python proxy has that from
    Serve's own settings. ``gcs_storage`` is where the head keeps what Ray knows, so that a head that is started again
    resumes its cluster: ``redis://HOST:PORT/NAME`` (``rediss://`` with TLS), whose NAME each cluster of that Redis has
    for itself, or ``rocksdb:///FOLDER`` on a disk that the next head has too. None keeps it in memory: a cluster ends
    with its head.

    Raises:
        UsageError: ``gcs_storage`` is neither.
        ClusterError: HAProxy is named and not installed.
    """
    variables = {MODE: "token", "RAY_USAGE_STATS_ENABLED": "0", VARIABLE: str(STOP_WAIT_S), **GUARD, **SPEED}
    variables |= {NICENESS: os.environ.get(NICENESS, NICE), **clock.variables()}
    variables[LABELS] = _labels(proxy, tls=tls is not None)
    if proxy == "haproxy":
        variables |= serve_environment(scratch=scratch, stats_port=stats_port, metrics_port=metrics_port, tls=tls)
    if gcs_storage is not None:
        variables |= _fault_tolerance(gcs_storage, head=head)
    return variables


def run_on_node(
    command: Sequence[str], *, proxy: Proxy | None, gcs_storage: str | None = None, env_file: str | None = None
) -> NoReturn:
    """Replace this process by a command, ``ray start`` above all, in the environment of a node.

    Where ``--head`` is among its words, the node is the head. What the environment already has stays, except for the
    token, the guard and the proxy, and the variables of ``env_file`` replace it; a binary of HAProxy that it names is
    what the wrapper runs. RAYMLOPS_GCS_STORAGE is the default of ``gcs_storage``, and RAYMLOPS_TLS_CERT and
    RAYMLOPS_TLS_KEY name the files of HAProxy.

    Raises:
        UsageError: ``gcs_storage``, ``env_file``, the files of TLS or their proxy, there is no such command, a node has
            no token, or would have the state's credentials in its environment, and so every trial, worker and replica.
        ClusterError: HAProxy is named and not installed.
    """
    if env_file is not None:
        os.environ.update(read_env_file(env_file))
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"there is no command {command[0]!r} on this node")
    named = chosen(proxy)
    tls = _tls(named)
    if Path(program).name == "raymlops":
        named = "python"  # its commands start no node that has its proxy from here
    elif STATE_URL in os.environ:
        raise UsageError(
            f"{STATE_URL} is set: every trial, worker and replica of this node would have the state's credentials",
            hint="Write it into a file of the head, which the controller and jobs there read (storage.state: "
            f"{{file: PATH}}, or {STATE_FILE}=PATH), and leave the variable out.",
        )
    starts, head = (Path(program).name, *command[1:2]) == ("ray", "start"), "--head" in command
    if starts:
        _check_token()
    storage = gcs_storage or os.environ.get(GCS_STORAGE) or None
    scratch = SCRATCH / f"rml-{secrets.token_hex(4)}"  # made below, readable by us only, where none is
    variables = node_environment(
        proxy=named,
        scratch=str(scratch),
        tls=tls,
        gcs_storage=storage,
        head=head,
    )
    if starts and head and storage is not None and storage.startswith("redis"):
        _check_redis(urlsplit(storage))
    fixed = {name: variables[name] for name in (MODE, *GUARD, LABELS)} | {ENABLED: "0"}
    if "KUBERNETES_SERVICE_HOST" not in os.environ:  # a pod has one user, and KubeRay's autoscaler shares its /tmp/ray
        variables["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR") or _sessions()
    if named == "haproxy":
        # Serve would start a binary that the node names by itself, without TLS and with its own ports open.
        fixed |= wrapper_environment(tls) | {ENABLED: "1"}
        scratch.mkdir(mode=0o700)
    os.execve(program, list(command), {**variables, **os.environ, **fixed})  # noqa: S606 - what the user asked for


def _check_token() -> None:
    """Refuse a node without a token, which Ray would by a traceback."""
    file = token_file()
    if not os.environ.get("RAY_AUTH_TOKEN", "").strip() and not file.is_file():
        raise UsageError(
            f"this node has no token: RAY_AUTH_TOKEN is not set, and there is no file {file}",
            hint="`ray get-auth-token --generate` makes ~/.ray/auth_token, once for the cluster: copy it to every node "
            "and to where jobs are submitted from (chmod 600). RAY_AUTH_TOKEN_PATH names another file.",
        )


def _check_redis(url: SplitResult) -> None:
    """Refuse a Redis that answers without a password, other than on loopback; one that is away Ray reports."""
    with suppress(OSError), socket.create_connection((url.hostname or "", url.port or 0), 5) as connection:
        if url.scheme == "rediss":  # Ray checks the certificate
            connection = ssl._create_unverified_context().wrap_socket(connection)  # noqa: PLW2901, S323, SLF001
        connection.sendall(b"PING\r\n")
        if connection.recv(5) == b"+PONG" and not ipaddress.ip_address(connection.getpeername()[0]).is_loopback:
            raise UsageError(
                f"{url.geturl()} answers without a password: whoever reaches it runs code on every node",
                hint="Set requirepass there and start the head with --redis-password, or require client certificates.",
            )


def _sessions() -> str:
    """Return a folder that no one else can enter: Ray opens its sessions, with their logs and sockets, to everyone."""
    folder = SCRATCH / f"raymlops-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # a link's own mode is open
    if not folder.is_dir() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        why = f"{folder} is not a folder that its owner alone, this user, can enter"
        raise UsageError(why, hint="Remove it, or name another folder for Ray's sessions: RAY_TMPDIR.")
    return str(folder)


def _labels(proxy: Proxy, *, tls: bool) -> str:
    """Return a node's labels with that of its proxy."""
    kind = WITH_TLS if proxy == "haproxy" and tls else proxy
    try:
        return json.dumps({**json.loads(os.environ.get(LABELS) or "{}"), LABEL: kind})
    except (ValueError, TypeError):
        raise UsageError(f"{LABELS} is no JSON object, so that Ray could not read the labels of this node") from None


def _tls(proxy: Proxy) -> TlsFiles | None:
    """Return the files that the environment names, by absolute paths there too."""
    tls = checked_files(os.environ.get(TLS_CERT) or None, os.environ.get(TLS_KEY) or None)
    if tls is None:
        return None
    if proxy == "python":
        raise UsageError(
            f"{TLS_CERT} and {TLS_KEY} are HAProxy's, and this node starts with the Python proxy",
            hint="Unset them: the Python proxy has its files from serve.tls_cert and serve.tls_key.",
        )
    os.environ.update({TLS_CERT: tls.cert, TLS_KEY: tls.key})
    return tls


def _fault_tolerance(gcs_storage: str, *, head: bool) -> Mapping[str, str]:
    url = urlsplit(gcs_storage)
    waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S)}
    name = url.path.strip("/")
    if url.scheme in {"redis", "rediss"} and url.hostname and url.port and name and "@" not in url.netloc:
        kept = {"RAY_REDIS_ADDRESS": f"{url.scheme}://{url.netloc}", "RAY_external_storage_namespace": name}
    elif url.scheme == "rocksdb" and not url.netloc and name:
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": url.path}
    else:
        raise _not_a_storage(gcs_storage)
    return waits | kept if head else waits


def _not_a_storage(gcs_storage: str) -> UsageError:
    return UsageError(
        f"got {redact(gcs_storage)!r} as storage of Ray's state; allowed: redis://HOST:PORT/NAME, "
        "rediss://HOST:PORT/NAME, rocksdb:///FOLDER",
        hint="NAME is the cluster's own; Ray's, for one that was started without, is default. "
        "A password goes to `ray start --head --redis-password`, from a variable.",
    )

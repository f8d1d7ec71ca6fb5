"""``raymlops doctor``: diagnose this machine, and say how to fix it.

Owns the checks: each looks at one thing, with a short timeout, and returns a finding. Starts and changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from packaging.requirements import Requirement

from raymlops.cluster import auth, services, upfile
from raymlops.cluster.endpoint.haproxy import refusal
from raymlops.cluster.endpoint.tls import valid_until
from raymlops.cluster.kubernetes.pods import AGENT_PORT, HEALTH
from raymlops.cluster.local import PORTS, answering
from raymlops.cluster.mlflow.restart import only_mlflow_ended
from raymlops.cluster.ports import HOST, listeners
from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.config.platforms.databricks import is_databricks
from raymlops.errors import ClusterError, RaymlopsError, TrackingError
from raymlops.records import Record
from raymlops.tracking.client import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIB = 2**30
LEAST_DISK_GIB = 5.0
"""Ray warns at 95% of a disk and refuses objects; a sweep of the demo writes well under one."""
LEAST_MEMORY_GIB = 2.0
"""A head with its dashboard takes about one, each worker with torch half of one."""
LEAST_SHM_GIB = 0.5
"""Docker's default of 64 MB makes Ray fall back to files in /tmp, many times slower."""
_SHM = Path("/dev/shm")  # noqa: S108 - Ray's object store, looked at and not written


@dataclass(frozen=True)
class Finding(Record):
    """The result of one check. ``fix`` says what to do; empty when all is well."""

    name: str
    ok: bool
    message: str
    fix: str = ""


def diagnose(*, root: Path | str | None = None) -> list[Finding]:
    """Check packages, token, disk, memory, storage, ports, Ray and MLflow; never raises for what is wrong there.

    MLflow and Ray default to what the environment names, then to what ``raymlops up`` started under ``root``.
    """
    folder = upfile.home(root)
    record, up = up_record(folder)
    url = os.environ.get("RAY_API_SERVER_ADDRESS") or (record.dashboard_url if record else None)
    mlflow_url = record.mlflow_url if record else sqlite_url(folder / "mlflow.db")
    token = Path(record.token_path) if record else auth.current_token()
    existing = next(part for part in [folder, *folder.parents] if part.exists())
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(existing).free
    more_memory = "end other programs, or lower train.num_workers and sweep.max_concurrent"
    another_disk = f"free some, or move: export {upfile.HOME}=/another/disk"
    shm = [shutil.disk_usage(_SHM).free] if _SHM.is_dir() else []
    return [
        *packages(importlib.metadata.requires("raymlops") or []),
        *([token_file(token, ours=record is not None)] if token is not None else []),
        *stray_token(Path.home() / ".ray" / "auth_token", ours=token),
        *token_mode(os.environ.get(auth.MODE, ""), up=up.ok and record is not None, has_token=token is not None),
        enough("disk", disk, least_gib=LEAST_DISK_GIB, where=f"free at {folder}", fix=another_disk),
        enough("memory", memory, least_gib=LEAST_MEMORY_GIB, where="available", fix=more_memory),
        *(
            enough(
                "shared memory", free, least_gib=LEAST_SHM_GIB, where=f"free in {_SHM}", fix="in Docker: --shm-size=2g"
            )
            for free in shm
        ),
        writable(existing),
        up,
        *([] if record else ports_free()),
        *([] if record is None else haproxy(record)),
        *([] if record is None else certificate(record)),
        *(dashboard(url, token) if url else []),
        mlflow(os.environ.get("MLFLOW_TRACKING_URI") or mlflow_url),
    ]


def node(*, root: Path | str | None = None, agent_url: str = f"http://{HOST}:{AGENT_PORT}") -> list[Finding]:
    """Ask only whether the node of this machine works, as the health check of a container does, within seconds.

    That is what ``raymlops up`` started under ``root``, or a node of ``raymlops env ray start``, whose agent says
    whether its raylet works, on a head whether the GCS does too.
    """
    record, up = up_record(upfile.home(root))
    if record is None:
        status, _ = services.ask(f"{agent_url}{HEALTH}", token=None)
        got = "does not answer" if status is None else f"answered {status}"
        fix = "raymlops env ray start, or raymlops up, starts one; its log: /tmp/raymlops-UID/ray/session_latest/logs"
        return [_finding("node", status == 200, f"the agent of a Ray node at {agent_url} {got}", fix=fix)]
    fix, services_of = "raymlops doctor says more", answering(record).items()
    return [up, *(_finding(name, ok, "answers" if ok else "does not answer", fix=fix) for name, ok in services_of)]


def packages(requirements: list[str]) -> Iterator[Finding]:
    """Compare each installed package with a requirement of our own metadata; one with a marker belongs to an extra."""
    for wanted in map(Requirement, requirements):
        if wanted.marker is not None:
            continue
        allowed = str(wanted.specifier) or "any"
        version = _installed(wanted.name)
        ok = version is not None and wanted.specifier.contains(version, prereleases=True)
        message = f"{wanted.name} {version or 'is not installed'}, allowed {allowed}"
        yield _finding(f"package {wanted.name}", ok, message, fix=f"pip install '{wanted.name}{wanted.specifier}'")


def token_file(path: Path, *, ours: bool) -> Finding:
    """Check that the token's file is there, and that others can neither read nor change it; ``ours`` is that of up."""
    fix = (
        "raymlops down, then raymlops up writes a new token"
        if ours
        else f"write a token there that only you can read (chmod 600), or unset {auth.TOKEN_PATH}"
    )
    try:
        mode, folder_mode = (stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent))
    except OSError:
        return Finding("token", ok=False, message=f"the token file {path} is missing", fix=fix)
    if mode & 0o077 or folder_mode & 0o022:
        message = f"{path}, mode {mode:04o} in a folder of {folder_mode:04o}: others can read or change it"
        return Finding("token", ok=False, message=message, fix=fix)
    return Finding("token", ok=True, message=f"{path}, mode {mode:04o}")


def stray_token(path: Path, *, ours: Path | None) -> Iterator[Finding]:
    """Look for a token that is not the one in use: ``ray.init()`` writes it, and ``ray start`` uses it."""
    if path == ours or not path.exists():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    message = f"{path} exists, mode {mode:04o}: a plain `ray.init()` wrote it, and `ray start` will use it"
    yield _finding("stray token", not mode & 0o077, message, fix=f"chmod 600 {path}, or remove it")


def token_mode(mode: str, *, up: bool, has_token: bool) -> Iterator[Finding]:
    """Check that this shell authenticates as the cluster of ``raymlops up`` requires."""
    if mode.lower() not in {"", "token", "disabled"}:
        message = f"{auth.MODE}={mode}, allowed token or disabled"
        yield Finding("token mode", ok=False, message=message, fix=f"export {auth.MODE}=token")
    elif up and mode.lower() != "token":
        message = (
            f"raymlops up runs with a token, and this shell has {auth.MODE}={mode or 'unset'}: "
            "Ray's own commands, `ray job submit` among them, need what raymlops up exports"
        )
        # raymlops finds the token of `up` by itself, unless the mode says not to use one.
        yield Finding("token mode", ok=not mode, message=message, fix='eval "$(raymlops up)"')
    elif mode.lower() == "token" and not has_token:
        fix = f"export {auth.TOKEN_PATH}=PATH of the token"
        yield Finding("token mode", ok=False, message=f"{auth.MODE}=token and no token file", fix=fix)


def enough(name: str, free_bytes: int, *, least_gib: float, where: str, fix: str) -> Finding:
    """Compare free space with the least that is needed."""
    message = f"{free_bytes / _GIB:.1f} GiB {where}, wanted {least_gib:g}"
    return _finding(name, free_bytes >= least_gib * _GIB, message, fix=fix)


def writable(folder: Path) -> Finding:
    """Check that our folder, or the one that it will be created in, can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"raymlops")
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or error}"
        return Finding("storage", ok=False, message=message, fix=f"export {upfile.HOME}=FOLDER")
    return Finding("storage", ok=True, message=f"{folder} can be written")


def up_record(root: Path) -> tuple[upfile.UpRecord | None, Finding]:
    """Return the record of ``raymlops up``, and whether everything that it started still runs."""
    try:
        record = upfile.read(root)
    except ClusterError as error:
        return None, Finding("up", ok=False, message=error.message, fix=error.hint or "")
    if record is None:
        return None, Finding("up", ok=True, message="raymlops up has not been run, or raymlops down has")
    if record.state == "starting":
        message = "raymlops up was interrupted, or is at work"
        return record, Finding("up", ok=False, message=message, fix="raymlops down clears what it left")
    gone = [process.name for process in record.processes if process.find() is None]
    if not gone:
        return record, Finding("up", ok=True, message="raymlops up runs")
    alone = only_mlflow_ended(record)
    fix = "raymlops up restarts MLflow alone" if alone else "raymlops down, then raymlops up"
    return record, Finding("up", ok=False, message=f"raymlops up is partly dead: {', '.join(gone)} ended", fix=fix)


def haproxy(record: upfile.UpRecord) -> Iterator[Finding]:
    """Say why HAProxy was not started with what runs now, if it was not."""
    if (why := refusal(record.scratch)) is not None:
        message = f"not started with what runs now, so that it still sends requests to the previous replicas: {why}"
        yield Finding("haproxy", ok=False, message=message, fix="raymlops down, then raymlops up, once that is mended")


def certificate(record: upfile.UpRecord) -> Iterator[Finding]:
    """Check that the endpoint shows the certificate of its file, where it has one."""
    if record.tls_cert is None:
        return
    try:
        until = valid_until(HOST, record.ports["Serve"], record.tls_cert)
    except RaymlopsError as error:
        fix = "renew both files; behind the Python proxy raymlops down, then raymlops up"
        yield Finding("certificate", ok=False, message=error.message, fix=fix)
    else:
        yield Finding("certificate", ok=True, message=f"{record.tls_cert}, valid until {until}")


def ports_free() -> Iterator[Finding]:
    """Name each process that holds a port which ``raymlops up`` takes by default."""
    for holder in listeners():
        if holder.port in PORTS.values():
            fix = "end that process, or give raymlops up another port"
            yield Finding(f"port {holder.port}", ok=False, message=f"taken: {holder}", fix=fix)


def dashboard(url: str, token: Path | None) -> Iterator[Finding]:
    """Check that Ray's dashboard answers us, in our version, and nobody without a token."""
    address = f"{url.rstrip('/')}/api/version"
    status, answer = services.ask(address, token=token)
    yield ray(url, status, version=answer.get("ray_version"), installed=_installed("ray"))
    without_token, _ = services.ask(address, token=None)
    if without_token is not None:
        yield guarded(url, without_token)


def ray(url: str, status: int | None, *, version: str | None, installed: str | None) -> Finding:
    """Judge what the dashboard answered; a status of None is no answer."""
    if status is None:
        fix = "raymlops up, or unset RAY_API_SERVER_ADDRESS"
        return Finding("ray", ok=False, message=f"{url} does not answer", fix=fix)
    if status in {401, 403}:
        fix = f"export {auth.MODE}=token and {auth.TOKEN_PATH}=PATH of that cluster's token"
        return Finding("ray", ok=False, message=f"{url} rejects our token ({status})", fix=fix)
    if version != installed:
        message = f"{url} runs Ray {version}, this environment has {installed}: they cannot talk"
        fix = f"pip install 'ray=={version}', or start that cluster again from this environment"
        return Finding("ray", ok=False, message=message, fix=fix)
    return Finding("ray", ok=True, message=f"{url} answers, Ray {version}")


def guarded(url: str, status: int) -> Finding:
    """Judge what the dashboard answered without a token."""
    if status in {401, 403}:
        return Finding("token guard", ok=True, message=f"{url} rejects a request without a token")
    message = f"{url} answered {status} without a token: anyone who reaches it runs code as you"
    fix = f"end it and start it again with {auth.MODE}=token (raymlops up does)"
    return Finding("token guard", ok=False, message=message, fix=fix)


def mlflow(uri: str) -> Finding:
    """Check that a server answers in our major version, or that a SQLite file has the schema of the installed MLflow.

    A server with authentication is not asked for more than its health; other databases are not looked into. A
    Databricks workspace is asked as the client asks it.
    """
    shown, file = Tracker(uri).shown_uri, sqlite_path(uri)
    if file is not None:
        return _mlflow_file(uri, file)
    if is_databricks(uri):
        return _asked(uri, "answers, and accepts our credentials")
    if not uri.startswith(("http://", "https://")):
        return Finding("mlflow", ok=True, message=f"{shown.partition(':')[0]} database, not looked into")
    status, _ = services.ask(f"{uri.rstrip('/')}/health", token=None)
    if status != 200:
        got = "does not answer" if status is None else f"answered {status}"
        return Finding(
            "mlflow", ok=False, message=f"{shown} {got}", fix="start it (raymlops up), or change tracking.uri"
        )
    version, installed = services.text(f"{uri.rstrip('/')}/version"), _installed("mlflow")
    if version and installed and version.split(".")[0] != installed.split(".")[0]:
        message = f"{shown} runs MLflow {version}, this environment has {installed}"
        return Finding("mlflow", ok=False, message=message, fix=f"pip install 'mlflow=={version}'")
    return Finding("mlflow", ok=True, message=f"{shown} answers, MLflow {version or 'of unknown version'}")


def _mlflow_file(uri: str, file: Path) -> Finding:
    # MLflow would create its tables in a file that has none.
    found = False
    if file.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchone() is not None
    if not found:
        return Finding("mlflow", ok=True, message=f"{uri} will be created by the first run")
    return _asked(uri, "has the schema of the installed MLflow")


def _asked(uri: str, well: str) -> Finding:
    try:
        Tracker(uri).check()
    except TrackingError as error:
        return Finding("mlflow", ok=False, message=error.message, fix=error.hint or "change tracking.uri")
    return Finding("mlflow", ok=True, message=f"{uri} {well}")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finding(name: str, ok: bool, message: str, *, fix: str) -> Finding:
    return Finding(name, ok, message, "" if ok else fix)

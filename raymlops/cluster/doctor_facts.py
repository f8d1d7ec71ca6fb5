"""What ``doctor`` looks at on this machine, gathered without judging it.

Owns the probes: each is one question with a short timeout. Starts nothing and changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from raymlops.cluster import auth, services, upfile
from raymlops.cluster.ports import listeners
from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.errors import ClusterError

CHECKED_PACKAGES = ("ray", "torch", "mlflow", "optuna", "pyarrow", "pydantic", "numpy", "SQLAlchemy", "psutil")


@dataclass(frozen=True)
class TokenFacts:
    """One token file."""

    path: str
    exists: bool
    mode: int = 0
    folder_mode: int = 0


@dataclass(frozen=True)
class ServiceFacts:
    """What a service answered; None for what was not asked or did not answer."""

    url: str
    status: int | None = None
    status_without_token: int | None = None
    version: str | None = None
    schema: str | None = None
    expected_schema: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that was found."""

    python: tuple[int, int, int]
    requirements: tuple[str, ...]
    """As our own metadata states them: ``ray[serve]<2.61,>=2.60``."""
    installed: dict[str, str | None]
    auth_mode: str | None
    token: TokenFacts | None
    stray_token: TokenFacts
    root: str
    disk_free_bytes: int
    memory_available_bytes: int
    shm_free_bytes: int | None
    storage_error: str | None
    up_state: str
    """``none``, ``up``, ``starting``, ``broken`` or ``unreadable``."""
    up_detail: str = ""
    ports: dict[int, str] = field(default_factory=dict)
    """Ports that ``raymlops up`` wants and something else holds."""
    ray: ServiceFacts | None = None
    mlflow: ServiceFacts | None = None


def gather(*, root: Path, ports: tuple[int, ...], mlflow_uri: str | None, dashboard_url: str | None) -> Facts:
    """Look at everything once."""
    record, up_state, detail = _up(root)
    dashboard_url = dashboard_url or (record.dashboard_url if record else None)
    mlflow_uri = mlflow_uri or (record.mlflow_url if record else None)
    token = Path(record.token_path) if record else auth.current_token()
    shm = Path("/dev/shm")  # noqa: S108 - Ray's object store, looked at and not written
    return Facts(
        python=(int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1]), 0),
        requirements=tuple(importlib.metadata.requires("raymlops") or ()),
        installed={name: _version(name) for name in CHECKED_PACKAGES},
        auth_mode=os.environ.get(auth.MODE),
        token=_token(token) if token else None,
        stray_token=_token(Path.home() / ".ray" / "auth_token"),
        root=str(root),
        disk_free_bytes=shutil.disk_usage(_existing(root)).free,
        memory_available_bytes=psutil.virtual_memory().available,
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        storage_error=_storage(root),
        up_state=up_state,
        up_detail=detail,
        ports={} if record else _held(ports),
        ray=_ray(dashboard_url, token) if dashboard_url else None,
        mlflow=_mlflow(mlflow_uri) if mlflow_uri else _sqlite(root / "mlflow.db"),
    )


def _up(root: Path) -> tuple[upfile.UpRecord | None, str, str]:
    try:
        record = upfile.read(root)
    except ClusterError as error:
        return None, "unreadable", error.message
    if record is None:
        return None, "none", ""
    gone = [item.name for item in record.processes if item.find() is None]
    if record.state == "up" and gone:
        return record, "broken", f"{', '.join(gone)} ended"
    return record, record.state, ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _token(path: Path) -> TokenFacts:
    try:
        return TokenFacts(
            str(path),
            True,
            stat.S_IMODE(path.stat().st_mode),
            stat.S_IMODE(path.parent.stat().st_mode),
        )
    except OSError:
        return TokenFacts(str(path), False)


def _existing(path: Path) -> Path:
    return next(part for part in [path, *path.parents] if part.exists())


def _storage(root: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=_existing(root)) as file:
            file.write(b"raymlops")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _held(ports: tuple[int, ...]) -> dict[int, str]:
    return {item.port: str(item) for item in listeners() if item.port in ports}


def _ray(url: str, token: Path | None) -> ServiceFacts:
    address = f"{url.rstrip('/')}/api/version"
    status, body = services.ask(address, token=token)
    bare, _ = services.ask(address, token=None)
    return ServiceFacts(url, status, bare, body.get("ray_version"))


def _mlflow(uri: str) -> ServiceFacts:
    if (file := sqlite_path(uri)) is not None:
        return _sqlite(file)
    if urlsplit(uri).scheme not in {"http", "https"}:
        return ServiceFacts(uri)
    status, _ = services.ask(f"{uri.rstrip('/')}/health", token=None)
    version = services.text(f"{uri.rstrip('/')}/version")
    return ServiceFacts(uri, status, version=version)


def _sqlite(file: Path) -> ServiceFacts:
    found = None
    if file.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            found = row[0] if row else None
    return ServiceFacts(sqlite_url(file), schema=found, expected_schema=_mlflow_schema() if found else None)


def _mlflow_schema() -> str | None:
    """Return the newest schema that the installed MLflow knows, read without importing MLflow (2.5 s)."""
    from alembic.script import ScriptDirectory

    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    try:
        return ScriptDirectory(str(Path(spec.origin).parent / "store" / "db_migrations")).get_current_head()
    except Exception:
        return None

"""Ray's token and MLflow's password: their files, and the environment that makes Ray use its own.

Owns where they lie and who may read them. Neither leaves its file: what is printed, recorded and put into an
environment is a path.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODE = "RAY_AUTH_MODE"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the name of a variable
MLFLOW_AUTH = "raymlops"
"""The user of MLflow of ``raymlops up``, and the value of ``MLFLOW_TRACKING_AUTH`` that names our plugin of MLflow."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""``0`` makes Ray bind to 127.0.0.1; otherwise 2.60 rewrites a loopback address to the outside one."""


def ensure_token(folder: Path, name: str = "token") -> Path:
    """Return the file of a random token in ``folder``, created if missing, readable by its owner only.

    A file that others could read is replaced: its token may be known.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        if path.exists() and (stat.S_IMODE(path.stat().st_mode) & 0o077 or not path.read_text(encoding="utf-8")):
            path.unlink()
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_hex(32))
    except OSError as error:
        raise StorageError(
            f"cannot write the token file {path}: {error.strerror or error}", hint="choose another --root"
        ) from error
    return path


def environment(token: Path | str) -> dict[str, str]:
    """Return the variables with which a process takes part in a token-guarded cluster on true loopback."""
    return {MODE: "token", TOKEN_PATH: str(token), LOOPBACK: "0"}


def mlflow_header(root: Path) -> str:
    """Return the HTTP authorization that MLflow of ``raymlops up`` in ``root`` requires."""
    password = ensure_token(root / "auth", "mlflow").read_text(encoding="utf-8")
    return "Basic " + base64.b64encode(f"{MLFLOW_AUTH}:{password}".encode()).decode()


def headers(token: Path | str | None) -> dict[str, str]:
    """Return the HTTP headers that Ray's dashboard requires; empty without a token file."""
    if token is None:
        return {}
    try:
        return {"Authorization": f"Bearer {Path(token).read_text(encoding='utf-8').strip()}"}
    except OSError:
        return {}


def current_token() -> Path | None:
    """Return the token file that this process is to use, by Ray's own order of preference."""
    if os.environ.get(MODE, "token").lower() != "token":
        return None
    path = token_file()
    return path if os.environ.get(TOKEN_PATH) or path.exists() else None


def token_file() -> Path:
    """Return where Ray looks for the token of this process, whether or not there is one."""
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")


@contextmanager
def variables_set(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the block (None removes one), and restore them after it."""
    before = {key: os.environ.get(key) for key in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


@contextmanager
def in_process(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the block so that a loaded Ray sees them.

    Ray reads its authentication once and keeps it in C++, and reads the loopback switch at import: both
    would otherwise keep the values of the cluster that this process was connected to before.
    """
    try:
        with variables_set(variables):
            _reread()
            yield
    finally:
        _reread()


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _reread() -> None:
    if "ray" not in sys.modules:
        return
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    off = sys.platform in {"darwin", "win32"}
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(LOOPBACK, "0" if off else "1") in {"1", "true", "True"}

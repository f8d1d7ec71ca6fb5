"""Which databases a configuration means: those that a backup copies, and those that a restore fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymlops.config.base import resolve
from raymlops.config.credentials import redact
from raymlops.config.paths import sqlite_path, sqlite_url
from raymlops.config.platforms.databricks import is_databricks
from raymlops.errors import UsageError
from raymlops.lifecycle.backup.contents import MLFLOW, OPTUNA, STATE
from raymlops.storage.filesystem import absolute

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from raymlops.config.schema import ProjectSpec


@dataclass(frozen=True)
class Databases:
    """The SQL URLs of a configuration, with their passwords, and the folders that stored places begin with."""

    urls: Mapping[str, str]
    roots: Mapping[str, str]

    def file(self, name: str) -> Path | None:
        """Return the file of a SQLite database; None for a server's."""
        return sqlite_path(self.urls[name])

    def may_exist(self, name: str) -> bool:
        """Return whether a database can be there: a server's, or a file that is."""
        file = self.file(name)
        return file is None or file.exists()


def databases_of(spec: ProjectSpec) -> Databases:
    """Return the databases of a configuration.

    Raises:
        ConfigError: a reference cannot be read, or a URL is missing.
        UsageError: MLflow is a server whose database is unknown, or two of the three are one SQLite file.
    """
    from raymlops.state.database import state_url
    from raymlops.tuning.study.storage import optuna_url

    urls = {STATE: state_url(spec), MLFLOW: _mlflow_url(spec), OPTUNA: optuna_url(spec)}
    storage = absolute(spec.storage.path)
    file = sqlite_path(urls[MLFLOW])
    files = [found.absolute() for url in urls.values() if (found := sqlite_path(url)) is not None]
    if len(set(files)) < len(files):
        raise UsageError(
            "two of storage.state, storage.optuna and MLflow's database are one SQLite file",
            hint="Give each a file of its own.",
        )
    return Databases(urls, {"storage": storage, "mlflow": storage if file is None else str(file.absolute().parent)})


def _mlflow_url(spec: ProjectSpec) -> str:
    """Return the URL of MLflow's database, also where MLflow is asked by a server."""
    from raymlops.cluster import upfile
    from raymlops.tracking.client import tracking_uri

    uri = tracking_uri(spec)
    if is_databricks(uri):
        raise UsageError(
            f"MLflow is {uri}, whose database cannot be copied",
            hint="Databricks keeps runs and versions itself. Back up storage.state by the means of its server.",
        )
    if not uri.startswith(("http://", "https://")):
        return uri
    if spec.tracking.database is not None:
        return resolve(spec.tracking.database, "tracking.database")
    root = upfile.home()
    up = upfile.read(root)
    if up is not None and up.mlflow_url == uri.rstrip("/"):
        return sqlite_url(root / "mlflow.db")
    raise UsageError(
        f"MLflow is the server {redact(uri)}, whose database is not known here",
        hint="Name it: tracking.database, as {env: NAME} where its URL has a password.",
    )

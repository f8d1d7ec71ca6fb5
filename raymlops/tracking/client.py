"""MLflow by explicit URI: runs, metrics, artifacts, and every failure as a ``TrackingError``.

Owns the connection. Sets no global tracking URI, so that several stores live in one process. Knows nothing
of training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.credentials import redact
from raymlops.config.schema import SecretRef
from raymlops.errors import ConfigError, NotFoundError, Problem, StorageError, TrackingError
from raymlops.tracking.database import ensure_database
from raymlops.tracking.params import MAX_VALUE_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec

BATCH = 1000
"""Metrics in one request: MLflow's own limit."""
PARAM_BATCH = 100
MAX_TAG_CHARS = 5000
_PROBE_TIMEOUT_S = 5.0

MetricPoint = tuple[str, float, int, int | None]
"""Name, value, step, milliseconds since the epoch (None: now)."""


def tracker(spec: ProjectSpec) -> Tracker:
    """Return the tracker of a configuration.

    It is at ``tracking.uri``, else where ``MLFLOW_TRACKING_URI`` says, as everywhere in MLflow, else in a SQLite file
    under ``storage.path``.

    Raises:
        ConfigError: ``storage.path`` is a URI and ``tracking.uri`` is not set, or a credential cannot be read.
        StorageError: the folder of the SQLite file cannot be made.
    """
    for name, ref in (("username", spec.tracking.username), ("password", spec.tracking.password)):
        if ref is not None:
            # The only way MLflow's client takes them.
            os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = _secret(ref, f"tracking.{name}")
    uri = spec.tracking.uri
    if isinstance(uri, SecretRef):
        uri = _secret(uri, "tracking.uri")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return Tracker(uri)
    path = spec.storage.path
    if "://" in path and not path.startswith("file://"):
        problem = Problem("tracking.uri", f"is needed, because storage.path is {path!r}, where SQLite cannot live")
        raise ConfigError([problem], hint="Name an MLflow server or a PostgreSQL URL.")
    folder = Path(path.removeprefix("file://")).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage.path {str(folder)!r} cannot be made: {error}") from error
    return Tracker(f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "mlartifacts"))


class Tracker:
    """A client of one MLflow store. Picklable; connects at the first call.

    ``artifacts`` is given with a SQLite file of our own, which is made where there is none: the folder where its
    experiments keep their files. None leaves both to the server.
    """

    def __init__(self, uri: str, *, artifacts: str | None = None) -> None:
        self.uri = uri
        self.artifacts = artifacts
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def __repr__(self) -> str:
        return f"Tracker({self.shown_uri!r})"

    @property
    def shown_uri(self) -> str:
        """Return the URI without its password."""
        return redact(self.uri)

    @property
    def client(self) -> Any:
        """Return the ``MlflowClient``."""
        if self._client is None:
            _quiet()
            from mlflow import MlflowClient

            with self._errors():
                if self.artifacts is not None:
                    ensure_database(Path(self.uri.removeprefix("sqlite:///")), artifacts=self.artifacts)
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def check(self) -> None:
        """Make sure that the store answers, within seconds.

        Raises:
            TrackingError: it is down, refuses us, or its database has the schema of another MLflow.
        """
        if self.uri.startswith(("http://", "https://")):
            self._check_server()
        elif "://" in self.uri:
            self._check_schema()
        with self._errors():
            self.client.search_experiments(max_results=1)

    def start_run(
        self, experiment: str, *, name: str, tags: Mapping[str, str], parent_run_id: str | None = None
    ) -> str:
        """Create a run, and the experiment where it does not exist, and return the run's id."""
        with self._errors():
            experiment_id = self._experiment(experiment)
            all_tags = {key: _cut(value) for key, value in tags.items()}
            if parent_run_id is not None:
                all_tags["mlflow.parentRunId"] = parent_run_id
            run = self.client.create_run(experiment_id, tags=all_tags, run_name=name)
            return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters; MLflow refuses to change one later."""
        from mlflow.entities import Param

        items = [Param(_key(key), value[:MAX_VALUE_CHARS]) for key, value in params.items()]
        with self._errors():
            for start in range(0, len(items), PARAM_BATCH):
                self.client.log_batch(run_id, params=items[start : start + PARAM_BATCH])

    def log_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log metric values, a thousand in a request."""
        from mlflow.entities import Metric

        now = now_ms()
        items = [Metric(_key(key), value, timestamp or now, step) for key, value, step, timestamp in points]
        with self._errors():
            for start in range(0, len(items), BATCH):
                self.client.log_batch(run_id, metrics=items[start : start + BATCH])

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Write text as the artifact ``path``."""
        with self._errors():
            self.client.log_text(run_id, text, path)

    def log_file(self, run_id: str, local: str | Path, folder: str | None = None) -> None:
        """Copy a file or folder to the run's artifacts, below ``folder``."""
        with self._errors():
            self.client.log_artifact(run_id, str(local), folder)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        from mlflow.entities import RunTag

        with self._errors():
            self.client.log_batch(run_id, tags=[RunTag(key, _cut(value)) for key, value in tags.items()])

    def end_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Say how a run ended."""
        with self._errors():
            self.client.set_terminated(run_id, status)

    def run(self, run_id: str) -> Any:
        """Return MLflow's ``Run``.

        Raises:
            NotFoundError: there is none.
        """
        with self._errors(not_found=f"there is no run {run_id!r} in {self.shown_uri}"):
            return self.client.get_run(run_id)

    def read_text(self, run_id: str, path: str) -> str:
        """Return a text artifact.

        Raises:
            NotFoundError: there is no such run or artifact.
        """
        import tempfile

        with (
            tempfile.TemporaryDirectory() as folder,
            self._errors(not_found=f"run {run_id!r} has no artifact {path!r} in {self.shown_uri}"),
        ):
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else f"{self.artifacts}/{name}"
            from mlflow.exceptions import MlflowException

            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process was faster.
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} was deleted",
                hint=f"Restore it (mlflow experiments restore -x {found.experiment_id}) or set tracking.experiment.",
            )
        return str(found.experiment_id)

    def _check_server(self) -> None:
        import httpx

        credentials = tuple(os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
        auth: Any = credentials if credentials[0] else None
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = self.uri.rstrip("/") + "/api/2.0/mlflow/experiments/search"
        try:
            answer = httpx.post(
                url,
                json={"max_results": 1},
                auth=auth,
                headers=headers,
                timeout=_PROBE_TIMEOUT_S,
                follow_redirects=True,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TrackingError(
                f"MLflow at {self.shown_uri} does not answer: {error or type(error).__name__}",
                hint="Start it (`raymlops up`, `mlflow server`) or change tracking.uri.",
            ) from error
        if answer.status_code in {401, 403}:
            raise TrackingError(
                f"MLflow at {self.shown_uri} refuses us with HTTP {answer.status_code}",
                hint="Set tracking.username and tracking.password to {env: NAME} or {file: PATH}.",
            )
        if answer.status_code != 200:
            raise TrackingError(
                f"MLflow at {self.shown_uri} answers HTTP {answer.status_code}: {answer.text[:200]}",
                hint="Is it an MLflow server, and is its database upgraded?",
            )

    def _check_schema(self) -> None:
        """Refuse a database of another MLflow before its client opens it, which would upgrade it unasked."""
        import mlflow
        import sqlalchemy as sa
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        _quiet()
        with self._errors():
            engine = sa.create_engine(self.uri, poolclass=sa.NullPool)
            with engine.connect() as connection:
                names = set(sa.inspect(connection).get_table_names())
                if not names:
                    return
                found = ""
                if "alembic_version" in names:
                    found = str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())
            config = Config()
            config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
            expected = ScriptDirectory.from_config(config).get_current_head()
        if found != expected:
            raise TrackingError(
                f"the MLflow database {self.shown_uri} has the schema {found or 'unknown'}, "
                f"but MLflow {mlflow.__version__} needs {expected}",
                hint=f"Back it up, then run: mlflow db upgrade {self.shown_uri}",
            )

    @contextlib.contextmanager
    def _errors(self, *, not_found: str | None = None) -> Iterator[None]:
        """Turn whatever MLflow, SQL or HTTP raise into errors of ours."""
        try:
            yield
        except (TrackingError, NotFoundError):
            raise
        except Exception as error:
            code = getattr(error, "error_code", "")
            if not_found is not None and (code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, OSError)):
                raise NotFoundError(not_found) from error
            text = str(error)
            hint = None
            if "mlflow db upgrade" in text:
                hint = f"Back the database up, then run: mlflow db upgrade {self.shown_uri}"
            first = text.strip().splitlines()[0] if text.strip() else ""
            message = redact(f"MLflow at {self.uri}: {type(error).__name__}: {first}")
            raise TrackingError(message, hint=hint) from error


def now_ms() -> int:
    """Return milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)


def _secret(ref: SecretRef, path: str) -> str:
    try:
        return ref.read()
    except KeyError as error:
        raise ConfigError([Problem(path, f"the environment variable {ref.env} is not set")]) from error
    except (OSError, IndexError) as error:
        raise ConfigError([Problem(path, f"the file {ref.file} cannot be read: {error}")]) from error


def _key(name: str) -> str:
    """Return a name that MLflow takes: letters, digits, ``_ - . / :`` and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _cut(value: str) -> str:
    return value if len(value) <= MAX_TAG_CHARS else value[: MAX_TAG_CHARS - 3] + "..."


def _quiet() -> None:
    """Keep MLflow's migrations, bars and telemetry to themselves, and its retries to seconds instead of minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)

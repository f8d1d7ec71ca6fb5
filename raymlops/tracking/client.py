"""MLflow by explicit URI: runs, metrics, artifacts, and every failure as a ``TrackingError``.

Owns the connection. Sets no global tracking URI, so that several stores live in one process. Knows nothing
of training.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import posixpath
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymlops.config.base import resolve
from raymlops.config.credentials import redact
from raymlops.config.paths import local_path, sqlite_url
from raymlops.errors import ConfigError, NotFoundError, Problem, StorageError, TrackingError
from raymlops.tracking.database import database_file, ensure_database
from raymlops.tracking.params import MAX_VALUE_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec

METRIC_BATCH = 900
PARAM_BATCH = 100
"""Metrics, and parameters or tags, in one request: MLflow takes a thousand things, a hundred of them no metrics."""
RUN_PAGE = 1000
"""Runs in one answer."""
MAX_TAG_CHARS = 5000
ARTIFACTS = "mlartifacts"
"""Folder of runs' files, beside the SQLite file."""
_PROBE_TIMEOUT_S = 5.0
_START = "Start it (`raymlops up`, `mlflow server`) or change tracking.uri."
_PARENT = "mlflow.parentRunId"
_REFUSALS = {
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "INVALID_STATE"),
}

MetricPoint = tuple[str, float, int, int | None]
"""Name, value, step, milliseconds since the epoch (None: now)."""


def tracker(spec: ProjectSpec) -> Tracker:
    """Return the tracker of a configuration; the folder of its SQLite file is made.

    Raises:
        ConfigError: ``storage.path`` is a URI and ``tracking.uri`` is not set, or a credential cannot be read.
        StorageError: the folder cannot be made.
    """
    for name, value in (("username", spec.tracking.username), ("password", spec.tracking.password)):
        if value is not None:
            # The only way MLflow's client takes them.
            os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = resolve(value, f"tracking.{name}")
    uri = tracking_uri(spec)
    file, storage = database_file(uri), local_path(spec.storage.path)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {str(file.parent)!r} of MLflow's database cannot be made: {error}"
            ) from error
    # A database server keeps no files, and MLflow's own default is the working directory.
    return Tracker(uri, artifacts=str(storage / ARTIFACTS) if file is None and storage and _is_sql(uri) else None)


def tracking_uri(spec: ProjectSpec) -> str:
    """Return where MLflow is, with its credential.

    That is ``tracking.uri``, else where ``MLFLOW_TRACKING_URI`` says, as everywhere in MLflow, else a SQLite file under
    ``storage.path``.

    Raises:
        ConfigError: ``storage.path`` is a URI and ``tracking.uri`` is not set, or the credential cannot be read.
    """
    if spec.tracking.uri is not None:
        return resolve(spec.tracking.uri, "tracking.uri")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    folder = local_path(spec.storage.path)
    if folder is None:
        problem = Problem(
            "tracking.uri", f"is needed, because storage.path is {spec.storage.path!r}, where SQLite cannot live"
        )
        raise ConfigError([problem], hint="Name an MLflow server or a PostgreSQL URL.")
    return sqlite_url(folder / "mlflow.db")


class Tracker:
    """A client of one MLflow store. Picklable; connects at the first call.

    A SQLite file is made where there is none. ``artifacts`` is the folder where experiments that this tracker creates
    keep their files: by default one beside the SQLite file, and what the server says for any other store.
    """

    def __init__(self, uri: str, *, artifacts: str | None = None) -> None:
        self.uri = uri
        self._file = database_file(uri)
        self.artifacts = artifacts or (str(self._file.parent / ARTIFACTS) if self._file else None)
        self._client: Any = None
        self._experiment_ids: dict[str, str] = {}

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
        """Return the ``MlflowClient``; the schema of a database is checked before the first one is made.

        Raises:
            TrackingError: the database cannot be opened, or has the schema of another MLflow.
        """
        if self._client is None:
            _quiet()
            from mlflow import MlflowClient

            with self._errors():
                if self._file is not None and not self._file.exists():
                    ensure_database(self._file, artifacts=str(self.artifacts))
                elif _is_sql(self.uri):
                    self._check_schema()
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def check(self) -> None:
        """Make sure that the store answers, within seconds.

        Raises:
            TrackingError: it is down, refuses us, or its database has the schema of another MLflow.
        """
        if self.uri.startswith(("http://", "https://")):
            self._check_server()
        with self._errors():
            self.client.search_experiments(max_results=1)

    def start_run(
        self,
        experiment: str,
        *,
        name: str,
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        start_time_ms: int | None = None,
    ) -> str:
        """Create a run that began then (None: now), and the experiment where there is none, and return the run's id."""
        all_tags = {key: _cut(value) for key, value in tags.items()}
        if parent_run_id is not None:
            all_tags[_PARENT] = parent_run_id
        with self._errors():
            known = self._experiment_ids.get(experiment)
            experiment_id = known or self._experiment(experiment)
            try:
                run = self.client.create_run(experiment_id, start_time=start_time_ms, tags=all_tags, run_name=name)
            except Exception as error:
                if self._experiment_ids.pop(experiment, None) and getattr(error, "error_code", "") in _REFUSALS:
                    self._experiment(experiment)  # it may have been deleted since; this says so
                raise
            self._experiment_ids[experiment] = experiment_id
            return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters; MLflow refuses to change one later."""
        self.log_batch(run_id, (), {}, params=params)

    def log_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log metric values, hundreds in a request."""
        self.log_batch(run_id, points, {})

    def log_batch(
        self,
        run_id: str,
        points: Sequence[MetricPoint],
        tags: Mapping[str, str],
        *,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Log parameters and metric values and set tags: in one request where they fit, else in this order.

        MLflow's SQL stores take a point with the same name, step, value and timestamp once, however often it is sent
        (its primary key, 3.17), and a parameter with the value that it has: a request that is repeated doubles nothing
        as long as timestamps are given.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = now_ms()
        metrics = [Metric(metric_key(key), value, now if ms is None else ms, step) for key, value, step, ms in points]
        settings = [RunTag(key, _cut(value)) for key, value in tags.items()]
        values = [Param(metric_key(key), value[:MAX_VALUE_CHARS]) for key, value in (params or {}).items()]
        with self._errors():
            while metrics or settings or values:
                first = values[:PARAM_BATCH]
                # A hundred of both together still leave room for a full batch of metrics.
                room = PARAM_BATCH - len(first)
                last = settings[:room] if len(metrics) <= METRIC_BATCH and len(values) <= PARAM_BATCH else []
                self.client.log_batch(run_id, metrics=metrics[:METRIC_BATCH], params=first, tags=last)
                metrics, settings, values = metrics[METRIC_BATCH:], settings[len(last) :], values[len(first) :]

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Write text as the artifact ``path``."""
        with self._errors():
            self.client.log_text(run_id, text, path)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        self.log_batch(run_id, (), tags)

    def end_run(
        self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], *, end_time_ms: int | None = None
    ) -> None:
        """Say how a run ended, and when (None: now)."""
        with self._errors():
            self.client.set_terminated(run_id, status, end_time_ms)

    def reopen_run(self, run_id: str, *, without_tags: Sequence[str] = ()) -> None:
        """Mark a run as RUNNING again, and remove tags that spoke of its end.

        Its end time stays until it ends again: MLflow's store has no way to clear it (3.17).

        Raises:
            NotFoundError: there is no such run, or it was deleted.
        """
        run = self.run(run_id)
        if run.info.lifecycle_stage != "active":
            raise NotFoundError(
                f"the run {run_id!r} in {self.shown_uri} was deleted", hint=f"mlflow runs restore --run-id {run_id}"
            )
        with self._errors():
            self.client.update_run(run_id, "RUNNING")
            for tag in without_tags:
                if tag in run.data.tags:
                    self.client.delete_tag(run_id, tag)

    def last_steps(self, run_id: str) -> dict[str, int]:
        """Return the highest step of each metric that a run has, by MLflow's name of it (``metric_key``)."""
        return steps_of(self.run(run_id))

    def run(self, run_id: str) -> Any:
        """Return MLflow's ``Run``.

        Raises:
            NotFoundError: there is none.
        """
        with self._errors(not_found=f"there is no run {run_id!r} in {self.shown_uri}"):
            return self.client.get_run(run_id)

    def children_of(
        self, run_id: str, *, tags: Mapping[str, str] | None = None, page_size: int = RUN_PAGE
    ) -> list[Any]:
        """Return the runs, as MLflow's ``Run``, whose parent is ``run_id`` and that have ``tags``; the newest first.

        Deleted ones are left out. Looks in the parent's own experiment.

        Raises:
            NotFoundError: there is no such parent.
        """
        experiment_id = self.run(run_id).info.experiment_id
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {_PARENT: run_id, **(tags or {})}.items())
        found: list[Any] = []
        token: str | None = None
        with self._errors():
            while True:
                page = self.client.search_runs([experiment_id], wanted, max_results=page_size, page_token=token)
                found += page
                token = page.token
                if not token:
                    return found

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; MLflow can restore it until its next clean-up."""
        with self._errors():
            self.client.delete_run(run_id)

    def read_text(self, run_id: str, path: str) -> str:
        """Return a text artifact, to the byte as it was written.

        Raises:
            NotFoundError: there is no such run or artifact.
        """
        import tempfile

        missing = f"run {run_id!r} has no artifact {path!r} in {self.shown_uri}"
        with tempfile.TemporaryDirectory() as folder, self._errors(not_found=missing):
            # Each kind of artifact store has errors of its own for what is not there; all of them can list.
            if path not in {item.path for item in self.client.list_artifacts(run_id, path.rpartition("/")[0] or None)}:
                raise NotFoundError(missing)
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes().decode()

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
                hint=_START,
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

        engine = sa.create_engine(self.uri, poolclass=sa.NullPool)
        with engine.connect() as connection:
            names = set(sa.inspect(connection).get_table_names())
            if not names:
                return
            found = ""
            if "alembic_version" in names:
                found = str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())
        expected = _expected_schema()
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
            # No other OSError: requests' are such, a server that answers 503 and a refused permission too.
            if not_found is not None and (code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, FileNotFoundError)):
                raise NotFoundError(not_found) from error
            if (cause := _unheard(error)) is not None:
                raise TrackingError(f"MLflow at {self.shown_uri} does not answer: {cause}", hint=_START) from error
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


def steps_of(run: Any) -> dict[str, int]:
    """Return the highest step of each metric of MLflow's ``Run``, by MLflow's name of it (``metric_key``)."""
    # A run comes with the steps of its metrics, which `data.metrics` leaves out; a history each is a request each.
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}


def metric_key(name: str) -> str:
    """Return a name as MLflow takes it: letters, digits, ``_ - . / :`` and spaces, and no odd path."""
    name = re.sub(r"[^\w\-./: ]", "_", name)[:250]
    return posixpath.normpath("/" + name).lstrip("/") or "_"


def refused(error: TrackingError) -> bool:
    """Return whether MLflow answered and said no, so that asking again is of no use."""
    cause = error.__cause__
    return isinstance(cause, NotFoundError) or getattr(cause, "error_code", "") in _REFUSALS


def _unheard(error: BaseException) -> str | None:
    """Return why a server was not reached, as the system has it; None where it was, or where no server was asked."""
    cause: BaseException | None = error
    by_http = False
    while cause is not None:
        module = type(cause).__module__
        by_http = by_http or module.startswith(("requests.", "urllib3."))
        # Those of requests are OSErrors too, each with the text of all below it.
        if by_http and isinstance(cause, OSError) and module in {"builtins", "socket"}:
            return "timed out" if isinstance(cause, TimeoutError) else (cause.strerror or str(cause)).lower()
        cause = cause.__cause__ or cause.__context__
    return None


def _is_sql(uri: str) -> bool:
    return re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://", uri) is not None


@functools.cache
def _expected_schema() -> str:
    """Return the revision that the installed MLflow's tables have."""
    import mlflow
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return str(ScriptDirectory.from_config(config).get_current_head())


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
    # A line for each connection that fails, in the middle of a live display; what it leads to is told by an error.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

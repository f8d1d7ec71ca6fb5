"""MLflow by explicit URI: runs, metrics and artifacts; every failure is a ``TrackingError``, see ``failures``.

Owns the connection. Sets no global tracking URI, so that one process can use several stores. Knows nothing of training.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from raymlops.config.base import resolve
from raymlops.config.credentials import redact
from raymlops.config.paths import local_path, sqlite_under
from raymlops.config.platforms.databricks import is_databricks, registry_uri, unfit
from raymlops.errors import ConfigError, NotFoundError, Problem, TrackingError
from raymlops.tracking.database import check_schema, database_file, ensure_database
from raymlops.tracking.databricks import workspace
from raymlops.tracking.entities import metric_key, metrics_of, params_of, shortened, tags_of
from raymlops.tracking.failures import converted_errors
from raymlops.tracking.run_tables import RunTables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import MetricPoint
    from raymlops.tracking.run_tables import RunWrite

METRIC_BATCH = 900
PARAM_BATCH = 100
"""Metrics, and parameters or tags, per request: MLflow accepts 1,000 items, at most 100 of them other than metrics."""
ARTIFACTS = "mlartifacts"
"""Folder of the runs' artifacts, beside the SQLite file."""
_PROBE_TIMEOUT_S = 5.0
PARENT = "mlflow.parentRunId"
"""MLflow's tag: the id of the run that a run is a child of."""


class Latest(NamedTuple):
    """The point of a metric that MLflow shows, searches and orders by: the highest step, then time, then value."""

    step: int
    ms: int
    value: float

    @classmethod
    def of(cls, metric: Any) -> Self:
        """Convert MLflow's ``Metric``."""
        return cls(int(metric.step), int(metric.timestamp), float(metric.value))


def tracker(spec: ProjectSpec) -> Tracker:
    """Return the tracker of a configuration.

    Raises:
        ConfigError: as ``tracking_uri``; or what Databricks needs beside its URI is missing.
    """
    for name, value in (("username", spec.tracking.username), ("password", spec.tracking.password)):
        if value is not None:
            # MLflow's client reads them from nowhere else.
            os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = resolve(value, f"tracking.{name}")
    uri, storage, uc_schema = tracking_uri(spec), local_path(spec.storage.path), spec.tracking.uc_schema
    if found := list(unfit(uri, uc_schema=uc_schema, experiment=spec.tracking.experiment)):
        raise ConfigError([Problem(f"tracking.{field}", message) for field, message in found])
    # A database server stores no files, and MLflow's default is the working directory.
    needs_folder = _is_sql(uri) and database_file(uri) is None
    artifacts = str(storage / ARTIFACTS) if storage and needs_folder else None
    return Tracker(uri, artifacts=artifacts, uc_schema=uc_schema)


def tracking_uri(spec: ProjectSpec) -> str:
    """Return the URI of MLflow, with its credential.

    That is ``tracking.uri``, else ``MLFLOW_TRACKING_URI``, as everywhere in MLflow, else a SQLite file under
    ``storage.path``.

    Raises:
        ConfigError: ``storage.path`` is a URI and ``tracking.uri`` is not set, or the credential cannot be read.
    """
    if spec.tracking.uri is not None:
        return resolve(spec.tracking.uri, "tracking.uri")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    hint = "Name an MLflow server or a PostgreSQL URL."
    return sqlite_under(spec.storage.path, "mlflow.db", instead="tracking.uri", hint=hint)


class Tracker:
    """A client of one MLflow store. Picklable; connects at the first call.

    A missing SQLite file is created. ``artifacts`` is the folder for the artifacts of experiments that this tracker
    creates: by default one beside the SQLite file, and the server's choice for any other store. ``uc_schema`` is the
    schema of Unity Catalog that holds the models of a Databricks workspace.
    """

    def __init__(self, uri: str, *, artifacts: str | None = None, uc_schema: str | None = None) -> None:
        self.uri, self.uc_schema = uri, uc_schema
        self._file = database_file(uri)
        self.artifacts = artifacts or (str(self._file.parent / ARTIFACTS) if self._file else None)
        self._client: Any = None
        self._tables: RunTables | None = None
        self._experiment_ids: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_tables": None}

    def __repr__(self) -> str:
        return f"Tracker({self.shown_uri!r})"

    @property
    def shown_uri(self) -> str:
        """Return the URI without its password."""
        return redact(self.uri)

    @property
    def client(self) -> Any:
        """Return the ``MlflowClient``; check the schema of a database before creating the first one.

        Raises:
            TrackingError: the database cannot be opened, or has the schema of another MLflow.
        """
        if self._client is None:
            _quiet()
            from mlflow import MlflowClient

            with self.errors():
                if self._file is not None and not self._file.exists():
                    ensure_database(self._file, artifacts=str(self.artifacts))
                elif _is_sql(self.uri):
                    check_schema(self.uri)
                elif is_databricks(self.uri):
                    workspace(self.uri)
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=registry_uri(self.uri))
        return self._client

    def check(self) -> None:
        """Make sure that the store answers, within seconds.

        Raises:
            TrackingError: it is down, denies access, or its database has the schema of another MLflow.
        """
        with self.errors():
            if not is_databricks(self.uri) and not self.uri.startswith(("http://", "https://")):
                self.client.search_experiments(max_results=1)
                return
            _quiet()
            from mlflow.utils.rest_utils import http_request_safe

            # The client would wait and retry for minutes.
            http_request_safe(
                self._credentials(),
                "/api/2.0/mlflow/experiments/search",
                "POST",
                json={"max_results": 1},
                timeout=_PROBE_TIMEOUT_S,
                max_retries=0,
                retry_timeout_seconds=_PROBE_TIMEOUT_S,
            )

    def _credentials(self) -> Any:
        """Return MLflow's credentials of a server, or of a workspace that answers."""
        if not is_databricks(self.uri):
            from mlflow.utils.credentials import get_default_host_creds

            return get_default_host_creds(self.uri)
        import requests
        from mlflow.utils.databricks_utils import get_databricks_host_creds

        if (host := workspace(self.uri)) is not None:
            # Databricks' SDK asks the same, for five minutes where nobody answers (0.162).
            requests.get(f"{host.rstrip('/')}/.well-known/databricks-config", timeout=_PROBE_TIMEOUT_S)
        return get_databricks_host_creds(self.uri)

    def start_run(
        self,
        experiment: str,
        *,
        name: str,
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        start_time_ms: int | None = None,
    ) -> str:
        """Create a run, and its experiment if it is missing; return the run's id."""
        all_tags = shortened(tags) | ({} if parent_run_id is None else {PARENT: parent_run_id})
        with self.errors():
            # Forgotten if creating the run fails: the experiment may have been deleted.
            experiment_id = self._experiment_ids.pop(experiment, None) or self._experiment(experiment).experiment_id
            run = self.client.create_run(experiment_id, start_time=start_time_ms, tags=all_tags, run_name=name)
            self._experiment_ids[experiment] = experiment_id
            return str(run.info.run_id)

    def log_batch(
        self,
        run_id: str,
        points: Sequence[MetricPoint] = (),
        tags: Mapping[str, str] | None = None,
        *,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Log parameters and metrics and set tags: in one request if they fit, else in this order.

        MLflow's SQL stores keep one point per name, step, value and timestamp (their primary key, 3.17), and accept a
        parameter again with the same value, so a repeated request changes nothing.
        """
        metrics, settings, values = metrics_of(points), tags_of(tags or {}), params_of(params or {})
        with self.errors():
            while metrics or settings or values:
                first = values[:PARAM_BATCH]
                # Params and tags together must not exceed 100, or a full batch of metrics would not fit.
                room = PARAM_BATCH - len(first)
                last = settings[:room] if len(metrics) <= METRIC_BATCH and len(values) <= PARAM_BATCH else []
                self.client.log_batch(run_id, metrics=metrics[:METRIC_BATCH], params=first, tags=last)
                metrics, settings, values = metrics[METRIC_BATCH:], settings[len(last) :], values[len(first) :]

    @property
    def takes_many(self) -> bool:
        """Return whether ``write_runs`` can be used. Asks no database."""
        _quiet()
        return RunTables.is_supported(self.uri)

    def write_runs(self, writes: Sequence[RunWrite]) -> set[str]:
        """Write many runs at once, each whole or not at all; a repeated call changes nothing.

        Return the ids of those that were written; the client says why, where the others are written by it.
        """
        with self.errors():
            if self._tables is None:
                assert self.client is not None  # it checks the schema, which the store may change otherwise
                self._tables = RunTables(self.uri)
            return self._tables.write(writes, experiment=self._experiment)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Write text as the artifact ``path``."""
        with self.errors():
            self.client.log_text(run_id, text, path)

    def end_run(
        self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], *, end_time_ms: int | None = None
    ) -> None:
        """End a run with its final status."""
        with self.errors():
            self.client.set_terminated(run_id, status, end_time_ms)

    def reopen_run(self, run_id: str, *, without_tags: Sequence[str] = ()) -> Any:
        """Mark a run as RUNNING again and remove the tags of its end; return MLflow's ``Run`` as it was before.

        Its end time stays until it ends again: MLflow's store cannot clear it (3.17).

        Raises:
            NotFoundError: there is no such run, or it was deleted.
        """
        run = self.run(run_id)
        if run.info.lifecycle_stage != "active":
            raise NotFoundError(
                f"the run {run_id!r} in {self.shown_uri} was deleted", hint=f"mlflow runs restore --run-id {run_id}"
            )
        with self.errors():
            self.client.update_run(run_id, "RUNNING")
            for tag in without_tags:
                if tag in run.data.tags:
                    self.client.delete_tag(run_id, tag)
        return run

    def run(self, run_id: str) -> Any:
        """Return MLflow's ``Run``.

        Raises:
            NotFoundError: there is no such run.
        """
        with self.errors(not_found=f"there is no run {run_id!r} in {self.shown_uri}"):
            return self.client.get_run(run_id)

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """Return the value of a metric at each step, in order.

        Where a step has several, it is the first: the last step has the value of the model that is kept, too.
        """
        with self.errors():
            points = self.client.get_metric_history(run_id, metric_key(name))
        ordered = sorted(points, key=lambda point: (point.step, point.timestamp), reverse=True)
        return sorted({point.step: float(point.value) for point in ordered}.items())

    def children_of(self, run_id: str, *, tags: Mapping[str, str] | None = None) -> list[Any]:
        """Return the child runs of a run that have ``tags``, as MLflow's ``Run``, the newest first.

        Deleted ones are left out. Only the parent's experiment is searched.

        Raises:
            NotFoundError: there is no such parent.
        """
        from mlflow.utils import get_results_from_paginated_fn

        experiment_id = self.run(run_id).info.experiment_id
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {PARENT: run_id, **(tags or {})}.items())

        with self.errors():
            search = functools.partial(self.client.search_runs, [experiment_id], wanted)
            pages = get_results_from_paginated_fn(lambda size, token: search(max_results=size, page_token=token), 1000)
            return list(pages)

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; MLflow can restore it until its next clean-up."""
        with self.errors():
            self.client.delete_run(run_id)

    def read_text(self, run_id: str, path: str) -> str:
        """Return a text artifact exactly as it was written.

        Raises:
            NotFoundError: there is no such run or artifact.
        """
        import tempfile

        missing = f"run {run_id!r} has no artifact {path!r} in {self.shown_uri}"
        with tempfile.TemporaryDirectory() as folder, self.errors(not_found=missing):
            # Each kind of artifact store raises its own error for a missing file; all of them can list.
            if path not in {item.path for item in self.client.list_artifacts(run_id, path.rpartition("/")[0] or None)}:
                raise NotFoundError(missing)
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes().decode()

    def errors(self, *, not_found: str | None = None) -> AbstractContextManager[None]:
        """Convert the errors of MLflow, SQL and HTTP."""
        return converted_errors(self.uri, not_found=not_found)

    def _experiment(self, name: str) -> Any:
        """Return MLflow's ``Experiment`` of a name, which is active; create it if it is missing."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else f"{self.artifacts}/{name}"
            try:
                return self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process has just created it.
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} was deleted",
                hint=f"Restore it (mlflow experiments restore -x {found.experiment_id}) or set tracking.experiment.",
            )
        return found


def now_ms() -> int:
    """Return milliseconds since the epoch, MLflow's unit of time."""
    return int(time.time() * 1000)


def latest_of(run: Any) -> dict[str, Latest]:
    """Return the latest point of each metric of MLflow's ``Run``, by its name in MLflow (``metric_key``)."""
    # `data.metrics` leaves out the steps that came with the run; a metric's history would cost a request each.
    return {metric.key: Latest.of(metric) for metric in run.data.to_proto().metrics}


def steps_of(run: Any) -> dict[str, int]:
    """Return the highest step of each metric of MLflow's ``Run``, by its name in MLflow."""
    return {key: point.step for key, point in latest_of(run).items()}


def _is_sql(uri: str) -> bool:
    return re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://", uri) is not None


def _quiet() -> None:
    """Silence MLflow's migrations, progress bars and telemetry, and limit its retries to seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", "60")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # They print a traceback per failed statement, a line per failed connection, into a live display; each failure
    # becomes an error anyway.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

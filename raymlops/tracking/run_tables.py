"""Runs in the tables of MLflow's database: any number of them in one transaction, each whole or not at all.

A request of MLflow's client costs milliseconds of its caller's CPU, a row some microseconds. The rows are those that
MLflow's store writes (3.17), by its own models, session and validation. Whoever sends checks ``is_supported`` first,
and sends by the client what ``write`` leaves out.

A repeated write changes nothing: runs have the ids that the caller gave them, what is there already stays, and the
latest value of a metric is the latest of all.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from raymlops.tracking.entities import metrics_of, params_of, shortened, tags_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import MetricPoint

_COLUMNS = {
    "runs": {
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time"),
        *("end_time", "deleted_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id"),
    },
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "metrics": {"run_uuid", "key", "value", "timestamp", "step", "is_nan"},
    "latest_metrics": {"run_uuid", "key", "value", "timestamp", "step", "is_nan"},
}
"""The tables of a run and their columns. An MLflow with others is written to by its client."""


class NewRun(NamedTuple):
    """What a run is created with."""

    run_id: str
    """Chosen by the caller: 32 hexadecimal digits, as MLflow's own."""
    experiment: str
    name: str
    tags: Mapping[str, str]
    started_ms: int


class RunWrite(NamedTuple):
    """What is written of one run."""

    run_id: str
    new: NewRun | None = None
    """Creates the run, unless an earlier write has."""
    points: Sequence[MetricPoint] = ()
    tags: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    """Of a new run only: MLflow rejects another value of a parameter, and this does not look for one."""
    ending: tuple[str, int] | None = None
    """The final status, and its time in milliseconds since the epoch."""


class _Rows(NamedTuple):
    """The rows of one run by table."""

    write: RunWrite
    tags: list[dict[str, Any]]
    params: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    latest: list[dict[str, Any]]


class RunTables:
    """Writer to the tables of one database, which has MLflow's schema."""

    def __init__(self, uri: str) -> None:
        import sqlalchemy as sa
        from mlflow.store.db.utils import _get_latest_schema_revision
        from mlflow.store.tracking.dbmodels import models
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from sqlalchemy.dialects import postgresql, sqlite

        # The engine is that of MLflow's client. No experiment is created here, so there is no artifact to place.
        self._store = SqlAlchemyStore(uri, ".")
        self._revision = _get_latest_schema_revision()
        runs, tags, params, metrics, latest = (
            model.__table__
            for model in (models.SqlRun, models.SqlTag, models.SqlParam, models.SqlMetric, models.SqlLatestMetric)
        )
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self._store.engine.dialect.name]
        self._revisions = sa.text("SELECT version_num FROM alembic_version")
        self._create = insert(runs).on_conflict_do_nothing()
        self._live = (
            sa.select(runs.c.run_uuid)
            .where(runs.c.run_uuid.in_(sa.bindparam("ids", expanding=True)), runs.c.lifecycle_stage == "active")
            .order_by(runs.c.run_uuid)
            .with_for_update()
        )
        self._add_params = insert(params).on_conflict_do_nothing()
        self._add_metrics = insert(metrics).on_conflict_do_nothing()
        tag = insert(tags)
        key = ["key", "run_uuid"]
        self._set_tags = tag.on_conflict_do_update(index_elements=key, set_={"value": tag.excluded.value})
        new = insert(latest)
        order = ("step", "timestamp", "value")
        self._set_latest = new.on_conflict_do_update(
            index_elements=key,
            set_={name: new.excluded[name] for name in (*order, "is_nan")},
            where=sa.tuple_(*(new.excluded[name] for name in order)) > sa.tuple_(*(latest.c[name] for name in order)),
        )
        self._end = (
            sa.update(runs)
            .where(runs.c.run_uuid == sa.bindparam("run"))
            .values(status=sa.bindparam("final"), end_time=sa.bindparam("ended_ms"))
        )

    @staticmethod
    def is_supported(uri: str) -> bool:
        """Return whether this module knows the tables of the installed MLflow in the database ``uri``."""
        if not uri.startswith(("sqlite", "postgresql")):
            return False
        from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
        from mlflow.store.tracking.dbmodels import models

        known = models.Base.metadata.tables
        return not MLFLOW_ENABLE_WORKSPACES.get() and all(
            {column.name for column in known[table].columns} == columns for table, columns in _COLUMNS.items()
        )

    def write(self, writes: Sequence[RunWrite], *, experiment: Callable[[str], Any]) -> set[str]:
        """Write runs in one transaction; return the ids of those that were written.

        The others are as they were: MLflow rejects part of them, they do not exist or were deleted, or the database has
        another schema by now. ``experiment`` returns MLflow's ``Experiment`` of a name, which is active.
        """
        # In one order everywhere, so that no two writers wait for each other's rows.
        ordered = sorted(writes, key=lambda write: write.run_id)
        valid = [rows for rows in map(self._rows, ordered) if rows is not None]
        new = [rows.write.new for rows in valid if rows.write.new is not None]
        experiments = {name: experiment(name) for name in {run.experiment for run in new}}
        created = [_run_row(run, experiments[run.experiment]) for run in new]
        with self._store.ManagedSessionMaker(read_only=False) as session:
            if session.execute(self._revisions).scalars().all() != [self._revision]:
                return set()
            _execute(session, self._create, created)
            live = set(session.execute(self._live, {"ids": [rows.write.run_id for rows in valid]}).scalars())
            written = [rows for rows in valid if rows.write.run_id in live]
            _execute(session, self._add_params, [row for rows in written for row in rows.params])
            _execute(session, self._add_metrics, [row for rows in written for row in rows.metrics])
            _execute(session, self._set_latest, [row for rows in written for row in rows.latest])
            _execute(session, self._set_tags, [row for rows in written for row in rows.tags])
            ended = [
                {"run": run_id, "final": ending[0], "ended_ms": ending[1]}
                for run_id, ending in ((rows.write.run_id, rows.write.ending) for rows in written)
                if ending is not None
            ]
            _execute(session, self._end, ended)
        return live

    def _rows(self, write: RunWrite) -> _Rows | None:
        """Return the rows of a run; None if MLflow rejects part of them."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
        from mlflow.utils.validation import _validate_batch_log_data, _validate_param_keys_unique

        tags = {**(write.new.tags if write.new else {}), **write.tags}
        if MLFLOW_RUN_NAME in tags:
            return None  # it renames the run, or contradicts its name
        if write.new is not None:
            tags[MLFLOW_RUN_NAME] = write.new.name
        with suppress(MlflowException):
            metrics, params, settings = _validate_batch_log_data(
                metrics_of(write.points), params_of(write.params), tags_of(tags)
            )
            _validate_param_keys_unique(params)
            of = write.run_id
            points = [self._metric_row(of, metric) for metric in metrics]
            latest: dict[str, dict[str, Any]] = {}
            for point in points:
                if (last := latest.get(point["key"])) is None or _order(point) > _order(last):
                    latest[point["key"]] = point
            return _Rows(
                write,
                tags=[{"run_uuid": of, "key": tag.key, "value": tag.value} for tag in settings],
                params=[{"run_uuid": of, "key": param.key, "value": param.value} for param in params],
                metrics=points,
                latest=list(latest.values()),
            )
        return None

    def _metric_row(self, run_id: str, metric: Any) -> dict[str, Any]:
        is_nan, value = self._store.sanitize_metric_value(metric.value)
        return {
            "run_uuid": run_id,
            "key": metric.key,
            "value": value,
            "timestamp": metric.timestamp,
            "step": metric.step,
            "is_nan": is_nan,
        }


def _run_row(new: NewRun, experiment: Any) -> dict[str, Any]:
    from mlflow.utils.mlflow_tags import MLFLOW_USER
    from mlflow.utils.uri import append_to_uri_path

    return {
        "run_uuid": new.run_id,
        "name": new.name,
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "user_id": shortened(new.tags).get(MLFLOW_USER, "unknown"),
        "status": "RUNNING",
        "start_time": new.started_ms,
        "end_time": None,
        "deleted_time": None,
        "source_version": "",
        "lifecycle_stage": "active",
        "artifact_uri": append_to_uri_path(experiment.artifact_location, new.run_id, "artifacts"),
        "experiment_id": int(experiment.experiment_id),
    }


def _order(metric: dict[str, Any]) -> tuple[int, int, float]:
    return metric["step"], metric["timestamp"], metric["value"]


def _execute(session: Any, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.connection().execute(statement, rows)

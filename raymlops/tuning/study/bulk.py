"""Write trials to Optuna's SQL tables in few statements, where its own methods take several for each value.

Owns what is known of these tables. They are Optuna's own models (5.0), and a storage that opens has their version;
``tests/unit/tuning/study/test_bulk.py`` compares what is written. Other storages are written to by their own methods.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

_DIALECTS = ("sqlite", "postgresql")
_NOT_FOUND = "Record does not exist."
"""Optuna's message for a study or a trial that was deleted."""


def create_trial(storage: Any, study_id: int, draft: Any) -> tuple[int, int]:
    """Write a new running trial (``FrozenTrial``) in one transaction; return its id and its number."""
    if (engine := _engine(storage)) is None:
        trial_id = int(storage.create_new_trial(study_id, template_trial=draft))
        return trial_id, storage.get_trial(trial_id).number
    statements, rows = _Statements.of(engine.dialect.name), _Rows(engine.dialect.name)
    row = {"study_id": study_id, "state": draft.state, "datetime_start": _stored(draft.datetime_start)}
    with engine.begin() as connection:
        if connection.execute(statements.lock, {"of_study": study_id}).first() is None:
            raise KeyError(_NOT_FOUND)
        trial_id, number = connection.execute(statements.create, row | {"of_study": study_id}).one()
        for name, distribution in draft.distributions.items():
            rows.set_trial_param(trial_id, name, distribution.to_internal_repr(draft.params[name]), distribution)
        for key, value in draft.system_attrs.items():
            rows.set_trial_system_attr(trial_id, key, value)
        rows.insert(connection)
    return trial_id, number


@contextmanager
def bulk(storage: Any) -> Iterator[Any]:
    """Yield what takes the place of a storage in writes about trials: one transaction at the end of the block.

    Raises:
        UpdateFinishedTrialError: at its end, where another process has ended one of them; nothing was written.
    """
    if (engine := _engine(storage)) is None:
        yield storage
        return
    rows = _Rows(engine.dialect.name)
    yield rows
    with engine.begin() as connection:
        rows.check(connection)
        rows.insert(connection)
        rows.update(connection)


class _Rows:
    """The rows of one transaction; its methods are those of Optuna's storage."""

    def __init__(self, dialect: str) -> None:
        self._statements = _Statements.of(dialect)
        self._rows: dict[Any, dict[Any, dict[str, Any]]] = {}
        """By table, each by its key: of several writes the last one counts."""
        self._states: dict[int, Any] = {}
        self._trials: set[int] = set()

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        from optuna.distributions import distribution_to_json
        from optuna.storages._rdb import models

        value = {"param_value": param_value_internal, "distribution_json": distribution_to_json(distribution)}
        self._put(models.TrialParamModel, {"trial_id": trial_id, "param_name": param_name}, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        from optuna.storages._rdb import models

        row = {"trial_id": trial_id, "key": key}
        self._put(models.TrialSystemAttributeModel, row, {"value_json": json.dumps(value)})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        from optuna.storages._rdb import models

        row = {"trial_id": trial_id, "key": key}
        self._put(models.TrialUserAttributeModel, row, {"value_json": json.dumps(value)})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        from optuna.storages._rdb import models

        table = models.TrialIntermediateValueModel
        stored, kind = table.intermediate_value_to_stored_repr(intermediate_value)
        value = {"intermediate_value": stored, "intermediate_value_type": kind}
        self._put(table, {"trial_id": trial_id, "step": step}, value)

    def set_trial_state_values(self, trial_id: int, state: Any, values: Sequence[float] | None = None) -> None:
        from optuna.storages._rdb import models

        for objective, value in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": objective}
            self._put(models.TrialValueModel, row, {"value": stored, "value_type": kind})
        self._states[trial_id] = state
        self._trials.add(trial_id)

    def check(self, connection: Connection) -> None:
        """Check that no trial has ended."""
        from optuna.exceptions import UpdateFinishedTrialError

        states = connection.execute(self._statements.states, {"ids": sorted(self._trials)}).scalars().all()
        if len(states) < len(self._trials):
            raise KeyError(_NOT_FOUND)
        if any(state.is_finished() for state in states):
            raise UpdateFinishedTrialError

    def insert(self, connection: Connection) -> None:
        """Write all values; one that is there already is replaced."""
        for model, rows in self._rows.items():
            connection.execute(self._statements.upsert[model], list(rows.values()))

    def update(self, connection: Connection) -> None:
        """Set the states of trials."""
        from optuna.exceptions import UpdateFinishedTrialError

        for trial_id, state in self._states.items():
            row = {"of_trial": trial_id, "state": state}
            if state.is_finished():
                row["datetime_complete"] = _stored(datetime.now())  # noqa: DTZ005 - as Optuna's
            if not connection.execute(self._statements.end, row).rowcount:
                raise UpdateFinishedTrialError

    def _put(self, model: Any, key: dict[str, Any], value: dict[str, Any]) -> None:
        self._trials.add(key["trial_id"])
        self._rows.setdefault(model, {})[tuple(key.items())] = key | value


class _Statements:
    """The statements in one dialect of SQL: to make one takes longer than SQLite takes to execute it."""

    def __init__(self, dialect: str) -> None:
        from optuna.storages._rdb import models
        from optuna.trial import TrialState
        from sqlalchemy import bindparam, func, insert, select, update
        from sqlalchemy.dialects import postgresql, sqlite

        studies, trials = models.StudyModel.__table__, models.TrialModel.__table__
        of_study: Any = bindparam("of_study")
        count = select(func.count(trials.c.trial_id)).where(trials.c.study_id == of_study).scalar_subquery()
        ids = trials.c.trial_id.in_(bindparam("ids", expanding=True))
        ours = (trials.c.trial_id == bindparam("of_trial")) & trials.c.state.in_(
            (TrialState.RUNNING, TrialState.WAITING)
        )
        self.lock = select(studies.c.study_id).where(studies.c.study_id == of_study).with_for_update()
        self.create = insert(trials).values(number=count).returning(trials.c.trial_id, trials.c.number)
        self.states = select(trials.c.state).where(ids).with_for_update()
        self.end = update(trials).where(ours)
        into = sqlite.insert if dialect == "sqlite" else postgresql.insert
        self.upsert = {}
        for model, keys, values in (
            (models.TrialParamModel, ("trial_id", "param_name"), ("param_value", "distribution_json")),
            (models.TrialSystemAttributeModel, ("trial_id", "key"), ("value_json",)),
            (models.TrialUserAttributeModel, ("trial_id", "key"), ("value_json",)),
            (
                models.TrialIntermediateValueModel,
                ("trial_id", "step"),
                ("intermediate_value", "intermediate_value_type"),
            ),
            (models.TrialValueModel, ("trial_id", "objective"), ("value", "value_type")),
        ):
            made = into(model.__table__)
            rest = {name: made.excluded[name] for name in values}
            self.upsert[model] = made.on_conflict_do_update(index_elements=keys, set_=rest)

    @classmethod
    @cache
    def of(cls, dialect: str) -> Self:
        """Return those of a dialect."""
        return cls(dialect)


def _engine(storage: Any) -> Any:
    """Return the SQL engine of an Optuna storage; None where its tables are not written to directly."""
    engine = getattr(getattr(storage, "_backend", None), "engine", None)
    known = engine is not None and engine.dialect.name in _DIALECTS and engine.dialect.insert_returning
    return engine if known else None


def _stored(moment: datetime) -> datetime:
    """Return a local time as Optuna's tables have it."""
    return moment.astimezone(UTC).replace(tzinfo=None)

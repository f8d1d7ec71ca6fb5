"""The trials of a sweep that any process runs, read from its study.

Owns reading alone: nothing here writes to the study. Reading an open one again is cheap, as Optuna caches ended trials.
Knows nothing of Ray or of the process that runs the sweep.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.tuning.mlflow.sweep_run import study_of
from raymlops.tuning.reporting.progress import STATES, Board, TrialView
from raymlops.tuning.study.ranking import ranking
from raymlops.tuning.study.records import (
    ATTRIBUTE,
    STARTED,
    added,
    counted,
    in_order_of_end,
    last_value,
    record_of,
    refused,
    repeat_of,
)
from raymlops.tuning.study.reruns import repeats_left
from raymlops.tuning.study.selection import select, winner
from raymlops.tuning.study.storage import open_recorded, optuna_url, storage_errors, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import Objective, RepeatRecord, TrialRecord
    from raymlops.training.runs.lookup import Recorded


@dataclass(frozen=True, slots=True)
class OpenView(TrialView):
    """A trial that has not ended."""

    before_s: float = 0.0
    """Seconds it took before the sweep was interrupted."""
    started: datetime | None = None
    """When it started or resumed, local time; None while it waits."""
    repeat_of: int | None = None
    """The trial whose configuration it trains with another seed."""
    enqueued: bool = False
    """Whether another program has enqueued it, and no driver has taken it from the queue yet."""


@dataclass(frozen=True)
class Snapshot:
    """The trials of a sweep at one moment. ``best`` is None before any gave a usable value."""

    ended: tuple[TrialRecord, ...] = ()
    open: tuple[OpenView, ...] = ()
    best: TrialRecord | None = None
    by_end: tuple[TrialRecord, ...] = ()
    """Those that have ended, first the one that ended first."""
    refused: int = 0
    """How many points the recipe rejected."""
    repeats: tuple[RepeatRecord, ...] = ()
    """The configurations that were trained with several seeds, best mean first."""
    repeats_left: int = 0
    """How many repeats have not ended."""

    @property
    def carried(self) -> int:
        """Return how many trials were carried over from the forked sweep."""
        return sum(1 for record in self.ended if record.carried_from) - self.imported

    @property
    def imported(self) -> int:
        """Return how many trials were imported from a study of another program."""
        return sum(1 for record in self.ended if record.imported)

    @property
    def num_repeats(self) -> int:
        """Return how many trials are to train a configuration again with another seed, once one has been added."""
        added = any(trial.repeat_of is not None for trials in (self.ended, self.open) for trial in trials)
        return self.repeats_ended + self.repeats_left if added else 0

    @property
    def repeats_ended(self) -> int:
        """Return how many of them have ended."""
        return sum(trial.repeat_of is not None for trial in self.ended)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many of the search's own trials are in each state."""
        states: list[str] = [trial.status for trial in self.ended if not trial.carried_from and trial.repeat_of is None]
        states += [view.state for view in self.open if view.repeat_of is None]
        return {state: states.count(state) for state in STATES}

    def board(self) -> Board:
        """Return what a display shows of the trials, repeats too, without carried ones."""
        board = Board()
        for record in self.ended:
            if not record.carried_from:
                board.put(TrialView.of(record, record.status), best=record == self.best)
        for view in self.open:
            board.put(view)
        board.choose(self.repeats, self.ended)
        return board


class OpenStudy:
    """The study of one sweep, open."""

    def __init__(self, study: Any, *, spec: ProjectSpec, storage: str) -> None:
        self.study = study
        self.storage = storage
        """The URL of its database, without credentials."""
        self.objectives = spec.objectives
        self.user_attrs = spec.sweep.user_attrs
        self._spec = spec
        self._ended: dict[int, TrialRecord] = {}

    def snapshot(self) -> Snapshot:
        """Return the trials as they are now.

        Raises:
            StorageError, UnreachableError: the database cannot be read.
        """
        with storage_errors(f"Optuna's study {self.study.study_name}"):
            found = self.study.get_trials(deepcopy=False)
        trials = counted(found)
        opened = []
        for trial in trials:
            if not trial.state.is_finished():
                opened.append(_open(trial))
            elif trial.number not in self._ended:
                self._ended[trial.number] = record_of(trial, objectives=self.objectives)
        ended = tuple(self._ended[trial.number] for trial in trials if trial.state.is_finished())
        by_end = tuple(self._ended[trial.number] for trial in in_order_of_end(trials))
        constraints = self._spec.sweep.constraints
        return Snapshot(
            ended,
            tuple(opened),
            winner(ended, objectives=self.objectives, constraints=constraints),
            by_end,
            refused=sum(refused(trial) for trial in found if repeat_of(trial) is None),
            repeats=ranking(ended, objectives=self.objectives, constraints=constraints),
            repeats_left=repeats_left(found, spec=self._spec),
        )

    def best(self) -> TrialRecord:
        """Return the best trial of those that have ended.

        Raises:
            SweepError: no trial has a usable value yet; the message says how each failed.
        """
        return select(self.snapshot().ended, objectives=self.objectives, constraints=self._spec.sweep.constraints)


@contextmanager
def open_study(recorded: Recorded) -> Iterator[OpenStudy]:
    """Open the study of a sweep for the block.

    Raises:
        NotFoundError: the study does not exist, or not yet.
        StorageError, UnreachableError, ConfigError: its database cannot be opened.
    """
    spec = recorded.spec
    assert spec is not None
    url = optuna_url(spec)
    with open_recorded(url, study_of(recorded)) as study:
        yield OpenStudy(study, spec=spec, storage=without_credentials(url))


def _open(trial: Any) -> OpenView:
    waits = trial.state.name == "WAITING" or not trial.system_attrs.get(STARTED, True)
    kept = trial.user_attrs.get(ATTRIBUTE, {})
    return OpenView(
        number=trial.number,
        params=dict(trial.params),
        state="waiting" if waits else "running",
        epoch=int(trial.last_step or 0),
        value=last_value(trial),
        before_s=float(kept.get("duration_s", 0.0)),
        started=None if waits else trial.datetime_start,
        repeat_of=repeat_of(trial),
        enqueued=added(trial),
    )


def frame(snapshot: Snapshot, *, objectives: Sequence[Objective], now: datetime, user_attrs: Sequence[str] = ()) -> Any:
    """Return all trials as a pandas ``DataFrame``, by number, with a column for each parameter.

    With one objective its values are in ``value``, with several in a column each, named by metric. ``user_attrs`` are
    further metrics with a column each, which of running trials are not known. ``now`` is local time without a zone, as
    Optuna stores the start of a trial.
    """
    import pandas as pd

    names = [objective.metric for objective in objectives] if len(objectives) > 1 else ["value"]
    further = [name for name in user_attrs if name not in names]
    params = dict.fromkeys(key for record in snapshot.ended for key in record.params)
    params |= dict.fromkeys(key for view in snapshot.open for key in view.params)
    lines = []
    for record in snapshot.ended:
        values = record.values or (record.value,)  # noqa: PD011 - a record's
        lines.append(
            {"number": record.number, "status": record.status}
            | dict(zip(names, values, strict=False))
            | {name: record.metrics.get(name) for name in further}
            | record.params
            | {"epochs": record.epochs, "duration_s": record.duration_s, "reason": record.reason}
            | {"run_id": record.run_id, "carried_from": record.carried_from}
            | {"repeat_of": record.repeat_of}
        )
    for view in snapshot.open:
        taken_s = view.before_s + ((now - view.started).total_seconds() if view.started else 0.0)
        lines.append(
            {
                "number": view.number,
                "status": view.state,
                names[0]: view.value,
                "carried_from": "",
                "repeat_of": view.repeat_of,
            }
            | dict(view.params)
            | {"epochs": view.epoch, "duration_s": taken_s, "reason": "", "run_id": None}
        )
    some = ["carried_from"] if snapshot.carried or snapshot.imported else []
    some += ["repeat_of"] if any(line["repeat_of"] is not None for line in lines) else []
    columns = ["number", "status", *names, *further, *params, "epochs", "duration_s", "reason", "run_id", *some]
    built = pd.DataFrame(sorted(lines, key=lambda line: line["number"]), columns=columns)
    # Where no trial has a value yet, pandas would keep None as an object.
    types = dict.fromkeys([*names, *further], "float64") | ({"repeat_of": "Int64"} if "repeat_of" in some else {})
    return built.astype(types)

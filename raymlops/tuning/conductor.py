"""What happens in a sweep, event by event: a trial is wanted, an epoch is reported, a trial ends, the sweep is halted.

Owns the order in which the study, the child runs and the progress hear of it, and that every trial that was opened
ends or is put back. Knows nothing of Ray Tune, whose hooks (``hooks``) call it, so that it can be tested by calling it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from raymlops.errors import UsageError
from raymlops.records import SpentRecord
from raymlops.training.storage import join
from raymlops.tuning import budget
from raymlops.tuning.checks import metric_of, mode_of, num_own_trials
from raymlops.tuning.fate import fate
from raymlops.tuning.progress import Board, SweepEvent, TrialView
from raymlops.tuning.reasons import describe
from raymlops.tuning.results import TRIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raymlops.project import Project
    from raymlops.records import TrialRecord, TrialStatus
    from raymlops.tuning.children import Children
    from raymlops.tuning.progress import EventKind
    from raymlops.tuning.trials import OpenTrial, Trials

Halt = Literal["interrupted", "used up", "good enough", "broken"]

SHORT_S = 2.0
"""Trials that take no longer are drawn one ahead: drawing one would be a good part of the time that it takes."""
_DURATIONS = 20
SPENT_EVERY_S = 10.0
HEARTBEAT_EVERY_S = 30.0
STEP = "step"
"""Beside an epoch's metrics in the study: what schedulers may count."""


class Conductor:
    """The one place that trials, runs and progress are told of what happened."""

    def __init__(
        self,
        project: Project,
        *,
        trials: Trials,
        children: Children,
        sweep_uri: str,
        max_concurrent: int,
        before: SpentRecord | None = None,
        shared: Mapping[str, Any] | None = None,
        on_event: Callable[[SweepEvent], None] | None = None,
        note: Callable[[Mapping[str, str]], None] = lambda _tags: None,
        discard: Callable[[int], None] = lambda _number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.halt: Halt | None = None
        self.stopped = ""
        """Which budget ended the sweep, in words; empty where none did."""
        self.error: BaseException | None = None
        self._project = project
        self._section = project.spec.sweep
        self._trials = trials
        self._children = children
        self._sweep_uri = sweep_uri
        self.max_concurrent = max_concurrent
        self._before = before or SpentRecord()
        self._on_event = on_event
        self._note = note
        self._discard = discard
        self._saved: set[int] = set()
        """Trials that have a checkpoint."""
        self._clock = clock
        self._started = clock()
        self._metric, self._mode = metric_of(project.spec), mode_of(project.spec)
        self._total = num_own_trials(project.spec)
        # A recipe need not be installed: what this process can import, a trial's process on this machine can.
        self._common = {
            "shared": json.dumps(shared),  # what the driver found out of the data
            "sys_path": json.dumps([str(Path(entry).absolute()) for entry in sys.path]),
            "cwd": str(Path.cwd()),
        }
        self._board = Board()
        self._views: dict[int, TrialView] = {}
        """Those of open trials."""
        self._opened: dict[int, OpenTrial] = {}
        self._waiting: deque[OpenTrial] = deque()
        """Trials that go on, once there is room."""
        self._drawn: OpenTrial | None = None
        self._configs: dict[int, str] = {}
        """The configurations of trials that were drawn and are not handed out yet."""
        self._running: dict[int, float] = {}
        """Since when each of them runs."""
        self._restarts: dict[int, int] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._trial_s = 0.0
        """Seconds of trials that run no more."""
        self._best: TrialRecord | None = None
        self._since_best = 0
        self._ended = 0
        self._handed_out = False
        self._spent_s = self._heartbeat_s = self._started
        self._closed = False
        for record in trials.records:
            self._judge(record)
            if not record.carried_from:
                self._board.put(_view(record), best=self._best is record)
        self._ended_before = self._ended

    @property
    def wanted(self) -> int:
        """Return how many more trials are to be drawn."""
        return 0 if self.halt else max(0, self._total - self._trials.asked)

    @property
    def done(self) -> bool:
        """Return whether no trial is left to be handed out, now or later."""
        return self.halt is not None or (self.wanted == 0 and not self._trials.open)

    @property
    def halting(self) -> bool:
        """Return whether every trial is to stop now."""
        if self.halt is None and (why := budget.used_up(self._section, self.spent)):
            self.halt, self.stopped = "used up", why
        return self.halt is not None

    @property
    def spent(self) -> SpentRecord:
        """Return what the sweep took so far, over all its resumes."""
        now = self._clock()
        trial_s = self._trial_s + sum(now - since for since in self._running.values())
        return budget.spent(self._before, wall_s=now - self._started, trial_s=trial_s, spec=self._project.spec)

    def goes_on(self, opened: OpenTrial) -> None:
        """Take in a trial that was open when the sweep was resumed."""
        self._see(TrialView(opened.number, dict(opened.params), "waiting", opened.epochs, opened.value))
        self._waiting.append(opened)

    def next_trial(self) -> dict[str, Any] | None:
        """Return what the process of the next trial needs, or None while as many run as may."""
        if self.halt is not None:
            return None
        if len(self._running) >= self.max_concurrent:
            # Nobody waits for us now, unless one was handed out just before and is not on its way yet.
            if not self._handed_out:
                self._ahead()
            return None
        going_on = bool(self._waiting)
        opened = self._waiting.popleft() if going_on else self._drawn or self._draw()
        if opened is None:
            self._trials.flush()
            return None
        if not going_on:
            self._drawn = None
        self._handed_out = True
        self._opened[opened.number] = opened
        self._running[opened.number] = self._clock()
        self._children.start(opened.number, opened.params)
        self._see(TrialView(opened.number, dict(opened.params), "running", opened.epochs, opened.value))
        self._emit("started", opened.number)
        # As text: Tune looks for search spaces of its own in what it is given.
        return {
            **self._common,
            "number": opened.number,
            "project": self._configs.pop(opened.number, None) or self._config(opened),
            "folder": join(self._sweep_uri, TRIALS, str(opened.number)),
            "goes_on": going_on,
        }

    def between_steps(self) -> None:
        """Do what can wait: whatever else is to happen has been set going."""
        self._handed_out = False
        for text in self._children.news():
            self.tell(text)
        now = self._clock()
        if now - self._spent_s >= SPENT_EVERY_S:
            self._spent_s = now
            self._trials.flush()
            self._note({"raymlops.spent": _json(self.spent)})
        if now - self._heartbeat_s >= HEARTBEAT_EVERY_S:
            self._heartbeat_s = now
            self._trials.heartbeat()

    def result(self, number: int, result: Mapping[str, Any]) -> None:
        """Record what a trial's process reported: epochs that its checkpoint brought back, and the one it trained."""
        if self._closed or number not in self._views:
            return  # its process had not heard yet
        if result["saved"]:
            self._saved.add(number)
        for epoch, metrics in sorted(result["restored"].items()):
            self._children.log(number, epoch=epoch, metrics=metrics)
        if result["metrics"] is None:
            return
        epoch, value = result["epochs"], result["value"]
        self._trials.report(
            number,
            epoch=epoch,
            value=value,
            metrics={**result["metrics"], STEP: float(result["step"])},
            best_metrics=result["best_metrics"],
        )
        self._children.log(number, epoch=epoch, metrics=result["metrics"])
        self._see(TrialView(number, self._views[number].params, "running", epoch, value))
        self._emit("epoch", number)

    def end(self, number: int, status: TrialStatus, *, reason: str = "") -> None:
        """Record the end of a trial, with the status it deserves."""
        if self._closed or number not in self._views:
            return
        self._stops_running(number)
        record = self._trials.tell(number, status, reason=reason, run_id=self._children.run_id(number, wait_s=0))
        self._children.end(number, record.status, reason=record.reason)
        del self._views[number]
        self._opened.pop(number, None)
        if number in self._saved:
            self._saved.discard(number)
            self._discard(number)
        better = self._judge(record)
        self._board.put(_view(record), best=better)
        self._emit("ended", number)
        value = None if self._best is None else self._best.value
        if self.halt is None and (
            why := budget.good_enough(self._section, mode=self._mode, best=value, since_best=self._since_best)
        ):
            self.halt, self.stopped = "good enough", why

    def died(self, number: int, error: BaseException | None) -> None:
        """Take in that a trial's process is gone: the trial failed, or goes on in another one from its checkpoint."""
        if self._closed or number not in self._views:
            return
        decision = fate(error, restarts=self._restarts.get(number, 0), max_restarts=self._section.max_restarts)
        if not decision.again:
            self.end(number, "failed", reason=decision.reason)
            return
        self._stops_running(number)
        self._restarts[number] = self._restarts.get(number, 0) + decision.counts
        self.tell(f"trial {number} goes on: {decision.reason}")
        self._waiting.append(self._opened.pop(number))
        view = self._views[number]
        self._see(TrialView(number, view.params, "waiting", view.epoch, view.value))

    def close(self) -> None:
        """Leave no trial open.

        Where a budget ended the sweep, each is pruned, or failed where it has no value; where it was interrupted or
        broke off, each is put back, to go on when the sweep is resumed.
        """
        if self._closed:
            return
        for number in self._trials.open:
            view = self._views.get(number)
            if view is not None and self.stopped:
                self.end(number, "pruned", reason=f"the sweep {self.stopped}")
                continue
            self._stops_running(number)
            self._trials.suspend(number)
            if view is not None:  # else it was drawn ahead, and nobody has heard of it
                self._children.suspend(number)
                self._see(TrialView(number, view.params, "waiting", view.epoch, view.value))
        self._trials.flush()
        self._closed = True
        self._note({"raymlops.spent": _json(self.spent)})
        self._emit("end", None)

    def failed(self, error: BaseException) -> None:
        """Keep an error that a hook ran into, and stop the sweep: Tune would turn it into text."""
        self.error = self.error or error
        self.halt = self.halt or "broken"

    def tell(self, message: str) -> None:
        """Say something to whoever watches."""
        self._emit("message", None, message=message)

    def _draw(self) -> OpenTrial | None:
        """Draw the next trial whose configuration the recipe takes; the others fail."""
        while self.wanted > 0:
            opened = self._trials.ask()
            try:
                self._configs[opened.number] = self._config(opened)
            except UsageError as error:
                # Each value is in its range, but the recipe refuses the combination.
                self._children.start(opened.number, opened.params)
                self._see(TrialView(opened.number, dict(opened.params), "running"))
                self.end(opened.number, "failed", reason=describe(error))
            else:
                return opened
        return None

    def _config(self, opened: OpenTrial) -> str:
        return json.dumps(self._project.with_params(opened.params).to_dict())

    def _ahead(self) -> None:
        """Write what waits, and draw the next trial ahead where several short ones run at a time."""
        self._trials.flush()
        short = bool(self._durations) and median(self._durations) <= SHORT_S
        if short and self.max_concurrent > 1 and self._drawn is None and not self._waiting:
            self._drawn = self._draw()

    def _stops_running(self, number: int) -> None:
        since = self._running.pop(number, None)
        if since is not None:
            took_s = self._clock() - since
            self._trial_s += took_s
            self._durations.append(took_s)

    def _judge(self, record: TrialRecord) -> bool:
        """Take in a trial that ended; return whether it is the best so far."""
        self._ended += not record.carried_from
        if record.status == "failed":
            return False
        self._since_best += not record.carried_from
        if record.status != "complete" or record.value is None or not record.feasible:
            return False
        sign = 1.0 if self._mode == "min" else -1.0
        if self._best is not None and self._best.value is not None and sign * self._best.value <= sign * record.value:
            return False
        self._best, self._since_best = record, 0
        return True

    def _see(self, view: TrialView) -> None:
        self._views[view.number] = view
        self._board.put(view)

    def _emit(self, kind: EventKind, number: int | None, *, message: str = "") -> None:
        if self._on_event is None:
            return
        elapsed_s = self._clock() - self._started
        rate = (self._ended - self._ended_before) / elapsed_s if elapsed_s > 0 else 0.0
        event = SweepEvent(
            kind=kind,
            number=number,
            counts=self._board.counts,
            rows=self._board.rows(),
            total=self._total,
            metric=self._metric,
            best=self._board.best,
            elapsed_s=self._before.wall_s + elapsed_s,
            eta_s=(self._total - self._ended) / rate if rate else None,
            message=message,
            cost=budget.words(self.spent) if self._section.price.cpu_hour or self._section.price.gpu_hour else "",
        )
        try:
            self._on_event(event)
        except Exception:
            self._on_event = None  # once is enough: the trials that are open are still to be ended
            raise


def _view(record: TrialRecord) -> TrialView:
    return TrialView(record.number, dict(record.params), record.status, record.epochs, record.value)


def _json(spent: SpentRecord) -> str:
    return json.dumps(spent.to_dict())

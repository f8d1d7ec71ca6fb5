"""The controller of a sweep: it hands out trials and handles their epochs, their ends and the end of the sweep.

Owns the order in which the study, the child runs and the progress display are updated, and that every open trial ends
or is suspended. Knows nothing of Ray Tune, whose hooks call it, so that a test can call it too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raymlops.cluster.import_paths import own_paths
from raymlops.errors import LeaseLostError, UnreachableError
from raymlops.records import SpentRecord
from raymlops.storage.filesystem import join
from raymlops.tuning import budget
from raymlops.tuning.budget import Meter, Tally
from raymlops.tuning.execution.failures import FailureStreak, death, decide_restart
from raymlops.tuning.execution.outage import Outage
from raymlops.tuning.execution.slots import Slots, StallDetector
from raymlops.tuning.execution.sweep_events import SweepEvents
from raymlops.tuning.execution.trial_queue import TrialQueue
from raymlops.tuning.mlflow.sweep_run import SPENT
from raymlops.tuning.reporting.progress import Board, TrialView
from raymlops.tuning.trial.reported_values import STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.records import TrialStatus
    from raymlops.tuning.execution.slots import Explain
    from raymlops.tuning.reporting.progress import SweepEvent
    from raymlops.tuning.study.open_trial import OpenTrial
    from raymlops.tuning.sweep_stores import SweepStores

_Drawn = TypeVar("_Drawn")
Halt = Literal["interrupted", "used up", "good enough", "broken"]

SPENT_EVERY_S = 10.0
RENEW_EVERY_S = 5.0


class SweepController:
    """Drives the study, the child runs and the progress display from one event at a time."""

    def __init__(
        self,
        stores: SweepStores,
        *,
        trials_uri: str,
        slots: Callable[[], int],
        explain: Explain | None = None,
        before: SpentRecord | None = None,
        renew: Callable[[], None] = lambda: None,
        shared: Mapping[str, Any] | None = None,
        on_event: Callable[[SweepEvent], None] | None = None,
        discard: Callable[[int], None] = lambda _number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.halt: Halt | None = None
        self.stopped = ""
        """Which budget ended the sweep, in words; empty where none did."""
        self.error: BaseException | None = None
        self._section = section = stores.project.spec.sweep
        self._trials = trials = stores.trials
        self._trial_runs = stores.trial_runs
        self._trials_uri = trials_uri
        self._discard = discard
        self._saved: set[int] = set()
        """Trials that have a checkpoint."""
        self._obsolete: list[int] = []
        """Those of them that have ended; their checkpoints are deleted once the study has the end."""
        self._slots = Slots(slots, clock=clock)
        self._renew = renew
        self._stalls = StallDetector(explain, clock=clock)
        self._meter = Meter(section, before=before or SpentRecord(), clock=clock)
        self._common = {"shared": json.dumps(shared), **own_paths()}
        """The data that the driver has found, and what it can import."""
        self._queue = TrialQueue(stores.project, trials, meter=self._meter, on_refused=self._refuse)
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._failures = FailureStreak(self._section.max_failures)
        self._tally = Tally(trials.objectives[0].mode)
        self._board = Board()
        self._board.restore(trials, tally=self._tally)
        self._events = SweepEvents(self._board, trials, section=section, meter=self._meter, on_event=on_event)
        self._outage = Outage(notify=self.notify, clock=clock)
        self._noted_s = self._renewed_s = clock()
        self._repeating = False
        """Whether the search has ended, and the best are trained again with other seeds."""
        self._suspended = False
        """Whether a trial resumes with the sweep, from its checkpoint."""
        self._closed = False
        """Whether the study has all that happened."""
        self._judge_enough()

    @property
    def wanted(self) -> int:
        """Return how many more trials to draw."""
        return 0 if self.halting or self._repeating else self._trials.total - self._trials.asked

    @property
    def done(self) -> bool:
        """Return whether no trial is left to hand out, now or later."""
        return self.halting or (self.wanted == 0 and not self._trials.open)

    @property
    def more(self) -> bool:
        """Return whether a trial is left to hand out."""
        return bool(self.wanted or self._queue)

    @property
    def ready(self) -> bool:
        """Return whether a trial can be handed out now."""
        return self.more and self._meter.busy < self._slots.now

    @property
    def surplus(self) -> list[int]:
        """Return the trials to withdraw, the last ones first: they have no process, and no slot any more.

        Otherwise each would take a process that becomes free before another sweep gets its share.
        """
        if (extra := self._meter.busy - self._slots.now) <= 0:
            return []
        return [waiter.number for waiter in self._meter.waiters][: -extra - 1 : -1]

    @property
    def halting(self) -> bool:
        """Return whether every trial must stop now."""
        if self.halt is None and (why := budget.used_up(self._section, self.spent)):
            self.halt, self.stopped = "used up", why
        return self.halt is not None

    @property
    def all_ended(self) -> bool:
        """Return whether every trial has ended and the study has it, so that none resumes from its checkpoint."""
        return self._closed and not self._suspended and self.error is None and self.halt != "interrupted"

    @property
    def spent(self) -> SpentRecord:
        """Return the resources used so far, over all resumes of the sweep."""
        return self._meter.spent

    def requeue(self, opened: OpenTrial) -> None:
        """Queue a trial that was open when the sweep was resumed."""
        self._see(opened, "waiting")
        self._queue.pending.append(opened)

    def repeat(self, repeats: Sequence[OpenTrial]) -> None:
        """Continue after the end of the search with these trials alone, whether or not it ended early."""
        if self.halt == "good enough":
            self.halt = None
        self._closed, self._repeating = False, True
        self._queue.clear()
        self._failures = FailureStreak(self._section.max_failures)
        for opened in repeats:
            self.requeue(opened)

    def end_stopped(self, opened: OpenTrial) -> None:
        """End an open trial that the scheduler had stopped: the driver died in between."""
        self._see(opened, "waiting")
        self._trial_runs.start(opened.number, opened.params)
        self.end(opened.number, "pruned")

    def next_trial(self) -> dict[str, Any] | None:
        """Return the next trial's configuration for its process; None while all slots are taken."""
        if self.halting or self._meter.busy >= self._slots.now:
            return None
        ready = self._queue.resumed()
        resumed = ready is not None
        if (ready := ready or self._draw(self._queue.draw)) is None:
            self._end_last_failures()  # the recipe may have rejected the last point
            return None
        opened, config = ready
        number = opened.number
        self._meter.hand_out(number)
        self._trial_runs.start(number, opened.settings, repeat_of=opened.repeat_of)
        self._see(opened, "waiting")
        self._events.emit("waiting", number)
        # As text: Tune would search nested data for search spaces of its own.
        return {
            **self._common,
            "number": number,
            "project": config,
            "folder": join(self._trials_uri, str(number)),
            "resume": resumed,
            "before_s": opened.before_s,
        }

    def started(self, number: int) -> None:
        """Record that a trial has its process."""
        self._stalls.moved()
        self._meter.start(number)
        if (opened := self._trials.open.get(number)) is not None:
            self._trials.start(number)
            self._see(opened, "running")
            self._events.emit("started", number)

    def withdrawn(self, number: int) -> None:
        """Queue a trial that has lost its slot before it had a process."""
        if (opened := self._trials.open.get(number)) is not None:
            self._meter.withdraw(number)
            self._queue.pending.appendleft(opened)

    def tick(self) -> None:
        """Do periodic work between Tune's steps: recount slots, report a stall, write to study and MLflow."""
        self._slots.recount()
        if not self.halting and not self.ready:
            self._prefetch()  # there is time now: each trial that was handed out is on its way
        stall = self._stalls.look(self._meter.waiters, busy=self._meter.busy)
        for text in filter(None, (*self._trial_runs.news(), stall)):
            self.notify(text)
        now = self._meter.clock()
        if now - self._renewed_s >= RENEW_EVERY_S:
            self._renewed_s = now
            self._flush()  # another driver may have taken over
            self._renew()
        if now - self._noted_s >= SPENT_EVERY_S:
            self._noted_s = now
            self._flush()
            self._note_spent()

    def result(self, number: int, result: Mapping[str, Any]) -> None:
        """Record a report of a trial's process: the epochs that its checkpoint restored, and the one it trained."""
        if number not in self._trials.open:
            return  # its process reported after the trial had ended
        self._stalls.moved()
        if result["saved"]:
            self._saved.add(number)
        # Tune asks no scheduler about a result that ends a trial.
        self._restore(number, json.loads(result["restored"]), judged=result.get("outcome") is None)
        self._trials.open[number].fingerprint = result["fingerprint"]
        if result["metrics"] is None:
            return
        epoch, value = result["epochs"], result["value"]
        metrics = {**result["metrics"], STEP: float(result["step"])}
        best, judged = result["best_metrics"], "resource" in result
        self._trials.report(number, epoch=epoch, value=value, metrics=metrics, best_metrics=best, judged=judged)
        self._trial_runs.log(number, epoch=epoch, metrics=result["metrics"])
        self._see(self._trials.open[number], "running")
        self._events.emit("epoch", number)

    def end(self, number: int, status: TrialStatus, *, reason: str = "", diverged: bool = False) -> None:
        """Record the end of a trial. One that failed, unless it ``diverged``, may have failed with all others."""
        if number not in self._trials.open or number in self._failures.trials:
            return
        self._stalls.moved()
        self._stop(number)
        of_all = status == "failed" and not diverged
        if not (of_all and self._failures.continues(reason)):
            self._end_failures()
        if not of_all:
            self._end(number, status, reason=reason)
            return
        self._failures.add(number, reason)
        self._see(self._trials.open[number], "waiting")  # whether it has failed is open
        if (error := self._failures.error) is not None:
            self.fail(error)
        self._end_last_failures()

    def _end_last_failures(self) -> None:
        """Record the end of the trials that have failed in a row, where no trial is left that could end otherwise."""
        if not (self.error or self._meter.busy or self.more):
            self._end_failures()

    def _end_failures(self) -> None:
        """Record the end of the trials that have failed in a row."""
        failed, self._failures.trials = self._failures.trials, {}
        for number, reason in failed.items():
            self._end(number, "failed", reason=reason)

    def _end(self, number: int, status: TrialStatus, *, reason: str) -> None:
        opened = self._trials.open[number]
        record = self._trials.tell(number, status, reason=reason, run_id=self._trial_runs.run_id(number))
        self._trial_runs.end(number, record.status, reason=record.reason, kept=record.metrics, history=opened.history)
        if number in self._saved:
            self._obsolete.append(number)
        self._board.put(TrialView.of(record, record.status), best=self._tally.take(record))
        if ranked := self._trials.ranked:
            self._board.choose(ranked, self._trials.records)
        self._judge_enough()
        self._events.emit("ended", number)

    def process_died(self, number: int, error: BaseException | None) -> None:
        """Fail a trial whose process died, or queue it to be resumed from its checkpoint."""
        if (opened := self._trials.open.get(number)) is None:
            return
        of = death(error)
        previous = self._deaths[number, of.kind]
        decision = decide_restart(of, previous=previous, max_restarts=self._section.max_restarts)
        if not decision.restart:
            self.end(number, "failed", reason=decision.reason)
            return
        self._stop(number)
        self._deaths[number, of.kind] += 1
        self.notify(f"trial {number} resumes in another process: {decision.reason}")
        self.requeue(opened)

    def _stop(self, number: int) -> None:
        self._meter.end(number)
        self._trials.stop(number)

    def close(self) -> None:
        """Suspend every open trial: it resumes with the sweep."""
        if self._closed:
            return
        if isinstance(self.error, LeaseLostError):
            raise self.error
        for number, opened in list(self._trials.open.items()):
            self._suspended = True
            self._stop(number)
            self._trials.suspend(number)
            self._trial_runs.suspend(number)
            self._see(opened, "waiting")
        self._trials.flush()
        self._discard_obsolete()
        self._closed = True
        self._note_spent()
        self._events.emit("end", None)

    def _note_spent(self) -> None:
        self._trial_runs.set_parent({SPENT: json.dumps(self.spent.to_dict())})

    def fail(self, error: BaseException) -> None:
        """Keep an error of a hook, and stop the sweep: Tune would turn the error into text."""
        self.error = self.error or error
        self.halt = self.halt or "broken"

    def notify(self, message: str) -> None:
        """Emit a message to the progress display."""
        self._events.emit("message", None, message=message)

    def _draw(self, draw: Callable[[Callable[[], int]], _Drawn]) -> _Drawn | None:
        try:
            return draw(lambda: self.wanted)
        except UnreachableError as error:
            self._outage.no_answer(error)
            return None

    def _refuse(self, opened: OpenTrial, reason: str) -> None:
        self._board.drop(opened.number)
        if reason:
            self.notify(f"the recipe rejects the point of trial {opened.number}, another one is drawn: {reason}")

    def _prefetch(self) -> None:
        """Flush to the study, and draw the next trial in advance where several short ones run at a time."""
        written = self._flush()
        if written and self._meter.short and self._slots.now > 1:
            self._draw(self._queue.draw_ahead)

    def _flush(self) -> bool:
        """Write pending reports to the study; return False while its database is unreachable."""
        try:
            self._trials.flush()
            self._trials.heartbeat()
        except UnreachableError as error:
            self._outage.no_answer(error)
            return False
        self._outage.answered()
        self._discard_obsolete()
        return True

    def _discard_obsolete(self) -> None:
        for number in self._obsolete:
            self._discard(number)
        self._obsolete.clear()

    def _restore(self, number: int, restored: Sequence[Mapping[str, Any]], *, judged: bool) -> None:
        """Record the epochs that a checkpoint restored: the previous driver may have died before it wrote them."""
        metrics = {entry["epoch"]: entry["metrics"] for entry in restored}
        known = self._trials.open[number].reports
        for entry in restored:
            epoch = entry["epoch"]
            if epoch not in known and entry["best"]:
                best = metrics[entry["best"]]
                self._trials.report(
                    number,
                    epoch=epoch,
                    value=entry["value"],
                    metrics=entry["metrics"],
                    best_metrics=best,
                    judged=judged,
                )
            self._trial_runs.log(number, epoch=epoch, metrics=entry["metrics"])

    def _judge_enough(self) -> None:
        """Halt where no more trials are needed."""
        if self.halt is None and not self._repeating and (why := budget.good_enough(self._section, self._tally)):
            self.halt, self.stopped = "good enough", why

    def _see(self, opened: OpenTrial, state: str) -> None:
        self._board.put(TrialView.of(opened, state))

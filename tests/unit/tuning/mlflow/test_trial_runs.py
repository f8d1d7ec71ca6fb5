"""What MLflow is told of the trials of a sweep, also when it does not answer for a while, or the sweep is killed."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from spread import at_most, spread

from raymlops.errors import TrackingError
from raymlops.records import TrialRecord
from raymlops.tracking.client import Tracker
from raymlops.tracking.sender import FLUSH_EVERY_S
from raymlops.tuning.mlflow.trial_runs import TrialRuns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARAMS = {"train.lr": 0.1, "train.optimizer": "sgd"}
TEXTS = {"train.lr": "0.1", "train.optimizer": "sgd"}
HISTORY = {1: {"validation/loss": 0.5}, 2: {"validation/loss": 0.4}}
RUN_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "waiting": "KILLED"}
CREATE, BATCH, END, TOGETHER = "start_run", "log_batch", "end_run", "write_runs"


class Line:
    """A tracker behind a line that can break: at the ``breaks_at``-th request, or from then on (``for_good``).

    ``late``: the request is carried out, and its answer is lost. ``takes_many``: runs are written together.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        breaks_at: int | None = None,
        late: bool = False,
        for_good: bool = False,
        takes_many: bool = False,
    ) -> None:
        self.sent: list[str] = []
        """Requests that were carried out."""
        self.down = False
        self.count = 0
        self.dead = False
        self._tracker = tracker
        self._breaks_at = breaks_at
        self._late = late
        self._for_good = for_good
        self.takes_many = takes_many
        self.shown_uri = tracker.shown_uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*args: Any, **kwargs: Any) -> Any:
            breaks = self.count == self._breaks_at
            self.count += 1
            if not (self.down or self.dead) and (self._late or not breaks):
                answer = getattr(self._tracker, name)(*args, **kwargs)
                self.sent.append(name)
                if not breaks:
                    return answer
            self.dead = self.dead or (breaks and self._for_good)
            raise TrackingError("MLflow is down")

        return request


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(storage_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{storage_path}/mlflow.db")


@pytest.fixture
def parent(store: Tracker) -> str:
    return store.start_run("e", name="sweep", tags={})


@pytest.fixture
def line(store: Tracker) -> Line:
    return Line(store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def children(line: Line, parent: str, clock: Clock) -> TrialRuns:
    return over(line, parent, clock=clock)


def over(line: Line | Tracker, parent: str, **options: Any) -> TrialRuns:
    """Return the children of a sweep over a line; what fails is tried again almost at once."""
    tags = {"team": "a"}
    options = {"retry_s": 0.001, **options}
    return TrialRuns(line, experiment="e", parent_run_id=parent, tags=tags, name="trial", **options)  # type: ignore[arg-type]


def run(children: TrialRuns, number: int, status: Any = "complete", *, reason: str = "") -> None:
    children.start(number, PARAMS)
    for epoch, metrics in HISTORY.items():
        children.log(number, epoch=epoch, metrics=metrics)
    children.end(number, status, reason=reason)


def created(children: TrialRuns, number: int) -> str:
    """Wait for the run of a trial, and return its id."""
    until(lambda: children.run_id(number))
    return str(children.run_id(number))


def record(number: int, status: Any = "complete", *, reason: str = "", **fields: Any) -> TrialRecord:
    return TrialRecord(number, PARAMS, status, 0.4, epochs=2, reason=reason, **fields)


def child(store: Tracker, parent: str, number: int) -> Any:
    """Return the one run of a trial."""
    (found,) = store.children_of(parent, tags={"raymlops.trial": str(number)})
    return found


def points(store: Tracker, found: Any) -> list[tuple[int, float]]:
    """Return each point of the loss that a run has."""
    history = store.client.get_metric_history(found.info.run_id, "validation/loss")
    return sorted((point.step, point.value) for point in history)


def complete(store: Tracker, parent: str, number: int, status: str) -> None:
    """Make sure that a trial's one run has all there is to know of it, once."""
    found = child(store, parent, number)
    assert (found.info.status, found.data.tags["raymlops.trial_status"]) == (RUN_STATUS[status], status)
    assert found.data.params == TEXTS
    assert points(store, found) == [(1, 0.5), (2, 0.4)]


def test_a_short_trial_takes_three_requests(store: Tracker, line: Line, parent: str, children: TrialRuns) -> None:
    """Its run has its parameters, its metrics by epoch, and the tags of the sweep."""
    run(children, 3)
    children.close()
    assert line.sent == [CREATE, BATCH, END, "children_of"]
    complete(store, parent, 3, "complete")
    found = child(store, parent, 3)
    assert found.info.run_name == "trial-3"
    assert {"team": "a", "raymlops.kind": "trial", "raymlops.trial": "3"}.items() <= found.data.tags.items()


def test_short_trials_are_written_together_to_a_database(store: Tracker, parent: str, clock: Clock) -> None:
    """The first one at once, the others with the next; their runs are known by the ids that they will have."""
    line = Line(store, takes_many=True)
    children = over(line, parent, clock=clock)
    for number in range(30):
        run(children, number)
    ids = [children.run_id(number) for number in range(30)]
    children.close()
    assert line.sent.count(TOGETHER) <= 2
    assert set(line.sent) == {TOGETHER, "children_of"}
    for number in range(30):
        complete(store, parent, number, "complete")
    assert [child(store, parent, number).info.run_id for number in range(30)] == ids


@pytest.mark.parametrize("status", ["complete", "pruned", "failed"])
def test_a_run_ends_as_its_trial_did(store: Tracker, parent: str, children: TrialRuns, status: str) -> None:
    """With the reason where there is one."""
    run(children, 0, status, reason="why")
    children.close()
    complete(store, parent, 0, status)
    assert child(store, parent, 0).data.tags["raymlops.reason"] == "why"


def test_the_id_of_a_run_is_known_once_it_is_open_and_stays_known(
    store: Tracker, parent: str, children: TrialRuns
) -> None:
    """While it runs, and when it has been forgotten but for that."""
    children.start(0, PARAMS)
    found = created(children, 0)
    children.end(0, "complete")
    children.close()
    assert found == children.run_id(0) == child(store, parent, 0).info.run_id
    assert children.run_id(1) is None


def test_a_long_trial_is_told_of_while_it_runs(
    store: Tracker, line: Line, parent: str, children: TrialRuns, clock: Clock
) -> None:
    """Parameters and metrics are gathered for a few seconds, and sent without its end."""
    children.start(0, PARAMS)
    children.log(0, epoch=1, metrics=HISTORY[1])
    created(children, 0)
    assert line.sent == [CREATE]
    clock.now += FLUSH_EVERY_S
    children.log(0, epoch=2, metrics=HISTORY[2])
    until(lambda: BATCH in line.sent)
    found = child(store, parent, 0)
    assert (found.info.status, found.data.params) == ("RUNNING", TEXTS)
    assert points(store, found) == [(1, 0.5), (2, 0.4)]
    children.close()


def until(true: Callable[[], Any]) -> None:
    """Wait for another thread."""
    tick = threading.Event()
    for _ in range(6000):
        if true():
            return
        tick.wait(0.01)
    raise AssertionError("never came true")


def test_a_point_has_the_time_at_which_it_came(store: Tracker, parent: str, children: TrialRuns) -> None:
    """Not that of the request; an epoch that is logged again is left out."""
    children.start(0, PARAMS)
    children.log(0, epoch=1, metrics={"loss": 1.0}, at_ms=1000)
    children.log(0, epoch=1, metrics={"loss": 1.0}, at_ms=2000)
    children.end(0, "complete")
    children.close()
    history = store.client.get_metric_history(child(store, parent, 0).info.run_id, "loss")
    assert [(point.step, point.timestamp) for point in history] == [(1, 1000)]


def test_what_the_history_has_more_is_written_at_the_end(store: Tracker, parent: str, children: TrialRuns) -> None:
    """Epochs that nobody logged."""
    children.start(0, PARAMS)
    children.log(0, epoch=1, metrics=HISTORY[1])
    children.end(0, "complete", history=HISTORY)
    children.close()
    complete(store, parent, 0, "complete")


def test_tags_of_the_sweep_are_gathered(store: Tracker, line: Line, parent: str, children: TrialRuns) -> None:
    """The last value of each is sent, at the latest at the end."""
    children.set_parent({"a": "0"})
    until(lambda: line.sent == [BATCH])
    for value in range(1, 100):
        children.set_parent({"a": str(value), "b": "x"})
    children.close()
    assert line.sent == [BATCH, BATCH, "children_of"]
    assert {"a": "99", "b": "x"}.items() <= store.run(parent).data.tags.items()


def test_an_outage_loses_and_repeats_nothing_and_is_told_once(store: Tracker, line: Line, parent: str) -> None:
    """Whole trials may run while MLflow is away, and nobody waits for it."""
    children = over(line, parent)
    line.down = True
    run(children, 0)
    run(children, 1, "pruned")
    until(lambda: line.count > 5)
    assert children.run_id(0) is None
    (away,) = children.news()
    assert "MLflow is down" in away
    line.down = False
    run(children, 2, "failed")
    children.close()
    (back,) = children.news()
    assert "again" in back
    for number, status in enumerate(("complete", "pruned", "failed")):
        complete(store, parent, number, status)


def test_an_outage_to_the_end_is_an_error_at_the_end_and_not_before(line: Line, parent: str) -> None:
    """It says how many trials MLflow lacks, and that a resume makes it good."""
    children = over(line, parent)
    run(children, 0)
    until(lambda: END in line.sent)
    line.down = True
    run(children, 1)
    run(children, 2)
    with pytest.raises(TrackingError, match=r"MLflow is down; 2 runs are incomplete in MLflow") as raised:
        children.close(wait_s=0.05, patient=False)
    assert "Resume" in str(raised.value.hint)


def test_a_server_that_does_not_answer_delays_no_trial(store: Tracker, parent: str) -> None:
    """Not even its own start, and the sweep ends without it."""
    held = threading.Event()

    class Hanging(Line):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            held.wait(60)
            return super().__getattr__(name)

    line = Hanging(store)
    line.down = True
    children = over(line, parent)
    for number in range(500):
        children.start(number, PARAMS)
        assert children.run_id(number) is None
        children.end(number, "failed")
    with pytest.raises(TrackingError, match="500 runs are incomplete in MLflow"):
        children.close(wait_s=0.01)
    held.set()


def test_what_waits_is_bounded_and_the_end_brings_it_again(store: Tracker, line: Line, parent: str) -> None:
    """Points that have no room are dropped from the last one on; a trial's history fills the gap when there is room."""
    children = over(line, parent, max_pending=1)
    line.down = True
    run(children, 0)
    run(children, 1)
    children.start(2, PARAMS)
    children.log(2, epoch=1, metrics=HISTORY[1])
    assert any("no more are kept" in news for news in children.news()[:2])
    line.down = False
    until(lambda: line.sent.count(END) == 2)
    children.end(2, "complete", history=HISTORY)
    children.close()
    assert child(store, parent, 0).data.tags["raymlops.dropped_points"] == "1"
    assert points(store, child(store, parent, 0)) == [(1, 0.5)]
    assert points(store, child(store, parent, 1)) == []
    complete(store, parent, 2, "complete")
    again = over(line, parent)
    again.adopt()
    for number in range(3):
        again.mirror(record(number), HISTORY)
    again.close()
    for number in range(3):
        complete(store, parent, number, "complete")


def test_a_run_that_somebody_deleted_stops_nothing(store: Tracker, line: Line, parent: str) -> None:
    """It is said, nothing more is written to it, and the others go on."""
    children = over(line, parent)
    children.start(0, PARAMS)
    store.delete_run(created(children, 0))
    children.log(0, epoch=1, metrics=HISTORY[1])
    run(children, 1)
    children.end(0, "complete")
    children.close()
    assert any("trial 0 was deleted in MLflow" in news for news in children.news())
    complete(store, parent, 1, "complete")
    assert [found.data.tags["raymlops.trial"] for found in store.children_of(parent)] == ["1"]


def test_what_mlflow_refuses_stops_nothing_and_is_an_error_at_the_end(store: Tracker, line: Line, parent: str) -> None:
    """A parameter that a run has with another value: the rest of it arrives, and the other trials."""
    children = over(line, parent)
    children.start(0, PARAMS)
    store.log_batch(created(children, 0), params={"train.lr": "7"})
    children.end(0, "complete", history=HISTORY)
    run(children, 1)
    with pytest.raises(TrackingError, match="Changing param values"):
        children.close()
    complete(store, parent, 1, "complete")
    found = child(store, parent, 0)
    assert (found.info.status, points(store, found)) == ("FINISHED", [(1, 0.5), (2, 0.4)])


def test_a_suspended_trial_goes_on_in_its_run(store: Tracker, line: Line, parent: str, children: TrialRuns) -> None:
    """Killed and waiting meanwhile; then the same run goes on, without the points that it has."""
    children.start(0, PARAMS)
    children.log(0, epoch=1, metrics=HISTORY[1])
    children.suspend(0)
    children.close()
    found = child(store, parent, 0)
    assert (found.info.status, found.data.tags["raymlops.trial_status"]) == ("KILLED", "waiting")

    resumed = over(line, parent)
    resumed.adopt()
    run(resumed, 0)
    assert resumed.run_id(0) == found.info.run_id
    resumed.close()
    complete(store, parent, 0, "complete")


def test_a_trial_that_goes_on_is_running_again(store: Tracker, parent: str, children: TrialRuns) -> None:
    """Without what was said of its end."""
    run(children, 0, "failed", reason="why")
    children.close()
    resumed = over(store, parent)
    resumed.adopt()
    resumed.start(0, PARAMS)
    until(lambda: child(store, parent, 0).info.status == "RUNNING")
    until(lambda: "raymlops.reason" not in child(store, parent, 0).data.tags)
    assert "raymlops.trial_status" not in child(store, parent, 0).data.tags
    resumed.close()


def test_a_trial_that_mlflow_has_all_of_costs_no_request(line: Line, parent: str, children: TrialRuns) -> None:
    """Whatever its status; a trial that another sweep ran has its run there."""
    for number, status in enumerate(("complete", "pruned", "failed")):
        run(children, number, status)
    children.close()
    line.sent.clear()
    resumed = over(line, parent)
    resumed.adopt()
    for number, status in enumerate(("complete", "pruned", "failed")):
        resumed.mirror(record(number, status), HISTORY)
    resumed.mirror(record(3, carried_from="other/0"), HISTORY)
    assert line.sent == ["children_of"]
    resumed.close()
    assert line.sent == ["children_of", "children_of"]


def test_a_trial_without_a_run_is_given_one(store: Tracker, line: Line, parent: str, children: TrialRuns) -> None:
    """As long as the trial was, ended as it did."""
    children.adopt()
    children.mirror(record(7, "failed", reason="why", duration_s=90.0), HISTORY)
    children.close()
    complete(store, parent, 7, "failed")
    found = child(store, parent, 7)
    assert found.info.end_time - found.info.start_time == 90_000
    assert line.sent.count(CREATE) == 1


def test_a_run_that_a_killed_driver_had_not_written_gets_the_id_that_the_study_has(store: Tracker, parent: str) -> None:
    """Another one where that run was deleted."""
    killed = over(Line(store, takes_many=True, breaks_at=0, for_good=True), parent)
    run(killed, 0)
    known, deleted = str(killed.run_id(0)), store.start_run("e", name="trial-1", tags={})
    killed.abandon()
    store.delete_run(deleted)
    children = over(Line(store, takes_many=True), parent)
    children.adopt()
    children.mirror(record(0, run_id=known), HISTORY)
    children.mirror(record(1, run_id=deleted), HISTORY)
    children.close()
    for number in range(2):
        complete(store, parent, number, "complete")
    assert child(store, parent, 0).info.run_id == known
    assert child(store, parent, 1).info.run_id != deleted


def test_the_run_of_a_repeat_names_the_trial_that_it_repeats(store: Tracker, parent: str, children: TrialRuns) -> None:
    """Whether it is told of while it runs, or at a resume."""
    children.adopt()
    children.start(8, PARAMS | {"train.seed": 1}, repeat_of=3)
    children.end(8, "complete")
    children.mirror(record(9, repeat_of=3, seed=2), HISTORY)
    children.close()
    for number, seed in ((8, "1"), (9, "2")):
        data = child(store, parent, number).data
        assert (data.tags["raymlops.repeat_of"], data.params["train.seed"]) == ("3", seed)


def test_a_pruned_run_says_what_stopped_it(store: Tracker, parent: str, children: TrialRuns) -> None:
    """The scheduler, or a limit of its own."""
    run(children, 0, "pruned")
    run(children, 1, "pruned", reason="stopped after 60 s (sweep.trial_timeout_s)")
    children.close()
    notes = [child(store, parent, number).data.tags["mlflow.note.content"] for number in range(2)]
    assert notes[0].startswith("Pruned: the scheduler stopped this trial early.")
    assert notes[1].startswith("Pruned: stopped after 60 s (sweep.trial_timeout_s).")


def test_of_doubled_runs_the_one_that_was_written_to_stays(store: Tracker, parent: str, children: TrialRuns) -> None:
    """Not the oldest: of a request that MLflow's client repeated, the last answer is known."""
    tags = {"raymlops.trial": "0"}
    store.start_run("e", name="trial-0", tags=tags, parent_run_id=parent)
    run(children, 0)
    until(lambda: children.run_id(0) is not None)
    store.start_run("e", name="trial-0", tags=tags, parent_run_id=parent)
    children.close()
    complete(store, parent, 0, "complete")

    store.start_run("e", name="trial-0", tags=tags, parent_run_id=parent, start_time_ms=1)
    resumed = over(store, parent)
    resumed.adopt()
    complete(store, parent, 0, "complete")


def test_no_run_is_said_to_run_when_the_sweep_has_ended(store: Tracker, line: Line, parent: str) -> None:
    """A killed sweep left one, and the resumed one was interrupted before that trial went on."""
    killed = over(Line(store), parent)
    killed.start(0, PARAMS)
    created(killed, 0)
    resumed = over(line, parent)
    resumed.adopt()
    resumed.close()
    found = child(store, parent, 0)
    assert (found.info.status, found.data.tags["raymlops.trial_status"]) == ("KILLED", "waiting")


def whole_sweep(children: TrialRuns) -> None:
    """Run two trials to their ends, and one that is interrupted."""
    run(children, 0)
    run(children, 1, "failed", reason="why")
    children.start(2, PARAMS)
    children.log(2, epoch=1, metrics=HISTORY[1])
    children.suspend(2)


def resumed_sweep(children: TrialRuns) -> None:
    """Bring the ended trials up to date, and go on with the one that was interrupted."""
    children.adopt()
    children.mirror(record(0), HISTORY)
    children.mirror(record(1, "failed", reason="why"), HISTORY)
    run(children, 2)


def killed_at(
    store: Tracker, parent: str, work: Callable[[TrialRuns], None], *, request: int, late: bool, takes_many: bool
) -> bool:
    """Let a sweep work until its process is killed at a request; return whether it came so far."""
    line = Line(store, breaks_at=request, late=late, for_good=True, takes_many=takes_many)
    children = over(line, parent, retry_s=60.0)

    def live() -> None:
        with contextlib.suppress(TrackingError):
            work(children)
            children.close(wait_s=5.0)
            ended.set()

    ended = threading.Event()
    threading.Thread(target=live, daemon=True).start()
    until(lambda: line.dead or ended.is_set())
    return line.dead


def breaks(store: Tracker, most: int) -> list[tuple[Callable[[TrialRuns], None], bool, bool, int]]:
    """Return what a sweep does, whether its runs are written together, whether a request is carried out, and which."""
    found = []
    for work, takes_many, late in product((whole_sweep, resumed_sweep), (False, True), (False, True)):
        line = Line(store, takes_many=takes_many)
        children = over(line, store.start_run("e", name="sweep", tags={}))
        work(children)
        children.close()
        assert line.count >= (2 if takes_many else 8)
        found += [(work, takes_many, late, request) for request in range(line.count + 2)]  # a resume may send more
    return spread(found, most)


@at_most()
def test_killed_at_any_request_a_sweep_leaves_nothing_that_a_resume_does_not_make_good(
    store: Tracker, most: int
) -> None:
    """One run a trial, with its status and parameters, and each point once; for each request at which it is killed."""
    for work, takes_many, late, request in breaks(store, most):
        parent = store.start_run("e", name="sweep", tags={})
        if work is resumed_sweep:
            # A sweep that was killed once before, half-way.
            killed_at(store, parent, whole_sweep, request=4, late=late, takes_many=False)
        killed_at(store, parent, work, request=request, late=late, takes_many=takes_many)
        resumed = over(store, parent)
        resumed_sweep(resumed)
        resumed.close()
        for number, status in enumerate(("complete", "failed", "complete")):
            complete(store, parent, number, status)


@at_most()
def test_whatever_request_fails_a_living_sweep_makes_it_good_itself(store: Tracker, most: int) -> None:
    """Also one whose answer alone was lost: no run is made twice, not even for a while."""
    for work, takes_many, late, request in breaks(store, most):
        parent = store.start_run("e", name="sweep", tags={})
        # Nothing runs before adopt.
        line = Line(store, breaks_at=request + (work is resumed_sweep), late=late, takes_many=takes_many)
        children = over(line, parent)
        work(children)
        children.close()
        for number, status in enumerate(("complete", "failed")):
            complete(store, parent, number, status)
        assert child(store, parent, 2).data.tags["raymlops.trial_status"] in {"waiting", "complete"}
        assert line.sent.count(CREATE) == (0 if takes_many else 3)
        assert "delete_run" not in line.sent


def test_two_sweeps_write_to_one_database_at_once(storage_path: Path) -> None:
    """While a third party holds its lock now and then: each waits, and each trial has its run."""
    uri = f"sqlite:///{storage_path}/mlflow.db"
    sweeps = []
    for _ in range(2):
        store = Tracker(uri)
        parent = store.start_run("e", name="sweep", tags={})
        sweeps.append((store, parent, over(store, parent)))
    for number in range(0, 60, 20):
        with contextlib.closing(sqlite3.connect(storage_path / "mlflow.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            for _, _, children in sweeps:
                for index in range(number, number + 20):
                    run(children, index)
    for _, _, children in sweeps:
        children.close()
        assert children.news() == []
    for store, parent, _ in sweeps:
        found = store.children_of(parent)
        assert sorted(int(one.data.tags["raymlops.trial"]) for one in found) == list(range(60))
        assert {one.info.status for one in found} == {"FINISHED"}


KILLED = """
import sys
from raymlops.tracking.client import Tracker
from raymlops.tuning.mlflow.trial_runs import TrialRuns

children = TrialRuns(Tracker(sys.argv[1]), experiment="e", parent_run_id=sys.argv[2], tags={}, name="trial")
for number in range(10_000):
    children.start(number, {"train.lr": 0.1, "train.optimizer": "sgd"})
    children.log(number, epoch=1, metrics={"validation/loss": 0.5})
    children.log(number, epoch=2, metrics={"validation/loss": 0.4})
    children.end(number, "complete")
children.close()
"""


def test_a_sweep_killed_between_two_transactions_leaves_whole_runs(
    store: Tracker, parent: str, storage_path: Path
) -> None:
    """kill -9 of the process: what is in MLflow is complete, and a resume writes the rest."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, store.uri, parent])

    def written() -> int:
        with contextlib.closing(sqlite3.connect(storage_path / "mlflow.db")) as database:
            return database.execute("SELECT count(*) FROM tags WHERE key = 'raymlops.trial'").fetchone()[0]

    until(lambda: written() > 20)
    process.kill()
    process.wait()
    found = store.children_of(parent)
    assert 20 < len(found) < 10_000
    for one in found[:20]:
        complete(store, parent, int(one.data.tags["raymlops.trial"]), "complete")
    last = max(int(one.data.tags["raymlops.trial"]) for one in found)
    resumed = over(store, parent)
    resumed.adopt()
    for number in (0, last, last + 1):
        resumed.mirror(record(number), HISTORY)
    resumed.close()
    assert len(store.children_of(parent)) == len(found) + 1
    complete(store, parent, last + 1, "complete")

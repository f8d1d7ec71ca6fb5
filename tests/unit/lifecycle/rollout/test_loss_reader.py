"""When the log is read, with readings that end when a test says so and time as an argument."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from canary_worlds import judged

from raymlops.errors import StorageError
from raymlops.lifecycle.rollout.loss_reader import LogLosses, LossReader, LossReport, Window, in_thread
from raymlops.predictions.counts import Losses

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = Window(START, None)
SOME = {1: judged(1), 2: judged(0, 1)}


def at(seconds):
    return START + timedelta(seconds=seconds)


class Log:
    """A log whose readings begin when they are asked for, and end when ``finish`` is called."""

    def __init__(self):
        self.begun = []
        self.reader = LossReader(
            self.read, start=lambda work, what: self.begun.append((what, work)), clock=lambda: self.passed_s
        )
        self.passed_s = self.takes_s = 0.0
        self.error = None
        self.labels = False
        self.losses = SOME

    def read(self, _name, windows, *, labelled):
        self.passed_s += self.takes_s
        if self.labels:
            labelled()
        if self.error is not None:
            raise self.error
        return LogLosses(dict.fromkeys(windows, self.losses))

    def report(self, seconds, *, name="m", rollout_id="r", needed=1000):
        """Ask at a second of which a reading that begins then covers all of two seconds before."""
        return self.reader.report(name, rollout_id, [WINDOW], now=at(seconds + 2), needed=at(needed), flush_s=0.0)

    def finish(self):
        self.begun.pop(0)[1]()

    def begins(self, seconds, **options):
        """Return whether a reading begins at a second; it ends at once."""
        self.report(seconds, **options)
        begins = bool(self.begun)
        if begins:
            self.finish()
        return begins


@pytest.fixture
def log():
    return Log()


def test_whoever_asks_gets_what_the_last_reading_found(log):
    """Nothing until the first has ended; then its losses, with the time that they cover, while the next one runs."""
    assert (log.report(0), log.report(1), len(log.begun)) == (LossReport(), LossReport(), 1)
    log.finish()
    report = log.report(2)
    assert (report.covers, report.tried, report.unknown) == (at(0), at(0), "")
    assert report.of(2, WINDOW, before=Losses()) == SOME[2]
    assert log.report(40).covers == at(0)
    log.finish()
    assert log.report(41).covers == at(40)


def test_losses_of_a_window_that_was_not_read_are_those_from_before(log):
    """A step that has ended since; but a version without any label in one that was read has none."""
    before = judged(3, 4)
    report = LossReport({WINDOW: {1: SOME[1]}})
    assert report.of(1, Window(START, at(9)), before=before) == before
    assert report.of(2, WINDOW, before=before) == Losses()
    assert LossReport({WINDOW: {None: SOME[1]}}).of(2, WINDOW, before=before) == SOME[1]


def test_the_log_is_read_twice_a_minute_and_where_it_is_needed(log):
    """At 0, 30 and, since all before 45 are needed, 45; not at 60 again, nor because they are needed still."""
    seconds = (0, 1, 29, 30, 44, 45, 46, 74, 75)
    assert [second for second in seconds if log.begins(second, needed=45)] == [0, 30, 45, 75]


def test_a_log_that_takes_long_to_read_is_read_less_often(log):
    """At most a fifth of the time: 50 s, and then 200 s of rest; what a step needs is read at once all the same."""
    log.takes_s = 50.0
    assert [second for second in (0, 30, 249, 250) if log.begins(second)] == [0, 250]
    log.takes_s = 1.0
    assert [second for second in (279, 280, 309, 310) if log.begins(second, needed=280)] == [280, 310]


def test_a_reading_that_failed_is_tried_again_after_five_seconds(log):
    """What was known stays known, and since when newer losses are not; a success ends that."""
    log.begins(0)
    log.error = StorageError("s3://logs cannot be used: timeout")
    assert [second for second in (30, 31, 35, 36, 40) if log.begins(second)] == [30, 35, 40]
    report = log.report(41)
    assert report.unknown == (
        "losses unknown since 2026-01-01T00:00:32+00:00: StorageError: s3://logs cannot be used: timeout"
    )
    assert (report.covers, report.tried) == (at(0), at(40))
    assert report.of(2, WINDOW, before=Losses()) == SOME[2]
    with pytest.raises(StorageError, match="losses unknown since"):
        report.check()
    log.error = None
    assert log.begins(45)
    report = log.report(46)
    assert (report.unknown, report.covers) == ("", at(45))
    report.check()
    log.error = OSError("gone")
    log.begins(75)
    assert "since 2026-01-01T00:01:17+00:00: OSError: gone" in log.report(76).unknown


def test_that_there_are_labels_is_known_before_a_reading_ends(log):
    """It finds them, and then fails."""
    log.labels, log.error = True, StorageError("a file cannot be read")
    log.begins(0)
    report = log.report(1)
    assert (report.labelled, report.covers) == (True, None)


def test_of_each_model_one_reading_is_under_way(log):
    """One that does not end is told of after a minute and holds no other model's; the next rollout waits for its end.

    What it finds is of a rollout that has ended by then, and says nothing of the new one.
    """
    assert (log.report(0).unknown, log.report(60).unknown) == ("", "")
    assert log.report(61).unknown == (
        "losses unknown since 2026-01-01T00:00:02+00:00: the prediction log is still being read"
    )
    log.report(62, name="n")
    assert [what for what, _ in log.begun] == ["m", "n"]
    log.report(63, rollout_id="s")
    assert len(log.begun) == 2
    log.finish()
    assert log.report(64, rollout_id="s") == LossReport()
    assert [what for what, _ in log.begun] == ["n", "m"]


def test_a_clock_that_is_set_back_keeps_nothing_from_being_read(log):
    """What was read at ten o'clock is read again at nine."""
    assert log.begins(3600)
    assert log.begins(0)
    assert log.report(1).covers == at(0)


def test_a_thread_that_cannot_be_started_is_a_reading_that_failed():
    """The process has too many: told of, and tried again."""
    tries = []

    def full(work, what):
        tries.append(what)
        raise RuntimeError("can't start new thread")

    reader = LossReader(lambda *_, **__: LogLosses(), start=full)
    for seconds in (0, 1, 5):
        report = reader.report("m", "r", [WINDOW], now=at(seconds), needed=at(9), flush_s=0.0)
    assert (len(tries), "can't start new thread" in report.unknown) == (2, True)


def test_a_thread_keeps_nobody_waiting():
    """It has begun, and ends when it is told to."""
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        end.wait(30)
        ended.set()

    in_thread(work, "m")
    assert begun.wait(30)
    assert not ended.is_set()
    end.set()
    assert ended.wait(30)


def test_a_report_is_json_without_the_losses():
    """Times as texts; the steps hold the losses."""
    assert LossReport({WINDOW: SOME}, labelled=True, covers=START).to_dict() == {
        "covers": "2026-01-01T00:00:00+00:00",
        "tried": None,
        "labelled": True,
        "unknown": "",
        "off": "",
        "left_out": "",
    }

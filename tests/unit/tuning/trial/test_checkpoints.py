"""A trial's checkpoints are written by the clock and by orders, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from snapshots import IDENTITY, snapshot

from raymlops.config.train import TrainSection
from raymlops.training.checkpoints.latest import recall
from raymlops.training.loop.rank_sync import Agreement
from raymlops.tuning.trial.checkpoints import TrialSaver, section_of

TRAIN = TrainSection(metric="loss", patience=3, checkpoint_every_steps=5, keep_checkpoints=4, keep_best=3)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def saver(tmp_path, clock):
    return TrialSaver(
        section_of(TRAIN), str(tmp_path / "checkpoints"), every_s=30.0, token="aaa", identity=IDENTITY, clock=clock
    )


def steps(tmp_path):
    folder = tmp_path / "checkpoints"
    return sorted(int(path.name[5:13]) for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def offer(saver, step, *, last=False, best=True, **more):
    saver.save(snapshot(step, losses=[0.5], report=True, **more), best=best, last=last)
    saver.wait()


def test_none_is_written_before_its_time_however_good_the_report(saver, clock, tmp_path):
    clock.now_s = 29.9
    offer(saver, 1)
    assert (steps(tmp_path), saver.saved, saver.busy) == ([], False, True)


def test_one_is_written_each_so_many_seconds_and_the_newest_alone_is_kept(saver, clock, tmp_path):
    for now_s, step in ((30, 1), (59, 2), (60, 3), (61, 4)):
        clock.now_s = now_s
        offer(saver, step)
    assert (steps(tmp_path), saver.saved) == ([3], True)


def test_an_order_writes_one_at_once(saver, tmp_path):
    offer(saver, 1, last=True)
    assert steps(tmp_path) == [1]


def test_a_training_that_ends_by_itself_leaves_none(saver, clock, tmp_path):
    clock.now_s = 100
    offer(saver, 1, last=True, finished=True)
    assert (steps(tmp_path), saver.finished) == ([], True)


def test_with_no_time_between_them_every_one_is_written(tmp_path):
    saver = TrialSaver(section_of(TRAIN), str(tmp_path / "checkpoints"), every_s=0.0, token="aaa", identity=IDENTITY)
    for step in (1, 2, 3):
        saver.save(snapshot(step), best=False, last=False)
    saver.wait()
    assert steps(tmp_path) == [3]


def test_who_trains_asks_at_every_step_and_hears_when_it_is_time(saver, clock):
    """The loop's own clock starts anew at each offer, taken or not; a trial's does not."""
    section = section_of(TRAIN)
    agreement = Agreement(
        lambda: "", every_minutes=section.checkpoint_every_minutes, ready=lambda: not saver.busy, clock=clock
    )
    due = []
    for now_s in (10, 20, 30, 31):
        clock.now_s = now_s
        due.append(agreement.at_step(now_s).due)
        offer(saver, now_s)
        agreement.saved()
    assert due == [False, False, True, False]


def test_what_decides_a_result_stays_as_it_is():
    section = section_of(TRAIN)
    changed = {name for name in TrainSection.model_fields if getattr(section, name) != getattr(TRAIN, name)}
    assert changed == {"checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints", "keep_best"}


def test_it_hides_from_the_training_which_weights_are_kept(saver, clock, tmp_path):
    """Otherwise the best report of all, whose weights were not written, would be forgotten with the patience spent."""
    clock.now_s = 30
    saver.save(snapshot(4, losses=[0.1, 0.5, 0.6], report=True), best=False, last=False)
    saver.wait()
    assert (saver.kept, saver.last_uri) == (None, None)
    found = recall(str(tmp_path / "checkpoints"), metric="loss", mode="min", repair=False)
    assert [metrics["loss"] for metrics in found.state.history] == [0.1, 0.5, 0.6]
    assert Path(found.uri).name.startswith("step-00000004")

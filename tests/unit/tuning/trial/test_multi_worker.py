"""What workers report becomes epochs, each once, and a trial's folder is a run's place."""

from __future__ import annotations

import pytest

from raymlops.config.load import load_data
from raymlops.errors import InsufficientResourcesError, PlacesLostError
from raymlops.project import bind
from raymlops.training.events import Event, words
from raymlops.training.loop.outcome import Outcome
from raymlops.tuning.trial import multi_worker
from raymlops.tuning.trial.multi_worker import EpochWriter


@pytest.fixture
def passed():
    return []


@pytest.fixture
def writer(passed):
    def on_epoch(number, metrics, *, step, last):
        passed.append((number, metrics, step, last))
        return False

    return EpochWriter(on_epoch, after=1)


def epoch(number, loss):
    return Event("epoch", epoch=number, report=number, step=10 * number, steps=30, metrics={"loss": loss})


def test_each_epoch_is_passed_on_once_however_often_the_workers_began_again(writer, passed):
    for event in (epoch(1, 9.0), epoch(2, 0.2), words("a worker died"), epoch(2, 0.2), epoch(3, 0.3)):
        writer(event)
    assert [each[:3] for each in passed] == [(2, {"loss": 0.2}, 20), (3, {"loss": 0.3}, 30)]


def test_the_report_of_the_last_step_is_the_last_one(writer, passed):
    """Also where reports are by steps: a scheduler must not stop a trial that is over."""
    for number in (2, 3):
        writer(epoch(number, 0.1))
    assert [last for *_, last in passed] == [False, True]


def test_the_last_step_of_a_loop_of_its_own_is_not_known(passed):
    def on_epoch(number, metrics, *, step, last):
        passed.append(last)
        return False

    EpochWriter(on_epoch, ends_by_steps=False)(epoch(3, 0.1))
    assert passed == [False]


def test_epochs_whose_events_were_lost_come_from_the_history(writer, passed):
    writer(epoch(3, 0.3))
    writer.close(Outcome(history=[{"loss": 0.1}, {"loss": 0.2}, {"loss": 0.3}, {"loss": 0.4}], steps=40))
    assert [(number, metrics["loss"]) for number, metrics, *_ in passed] == [(3, 0.3), (2, 0.2), (4, 0.4)]


def test_want_of_room_is_waiting_and_no_failure(monkeypatch):
    """A node with some of its workers was lost: the trial waits a while for Ray to place them again."""
    asked, epochs = [], []
    outcomes = [InsufficientResourcesError("no room"), InsufficientResourcesError("no room"), None]

    def fit(request):
        asked.append((request.placement_group, request.room.count(without=["a"]), request.room.may_grow(2)))
        if (error := outcomes[len(asked) - 1]) is not None:
            raise error
        return Outcome(history=[{"loss": 0.5}], steps=10), "uri"

    monkeypatch.setattr(multi_worker.supervisor, "fit", fit)
    monkeypatch.setattr(multi_worker, "has_unused_parameters", lambda *_: False)
    group = object()
    monkeypatch.setattr(multi_worker.ray.util, "get_current_placement_group", lambda: group)
    data = {"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny"}, "sweep": {"workers_per_trial": 2}}
    project = bind(load_data(data))

    def on_epoch(number, metrics, **_more):
        epochs.append((number, metrics))
        return False

    given = {"folder": "f", "after": 0, "on_epoch": on_epoch, "stopping": lambda: False}
    multi_worker.train_on_workers(project, None, **given)
    assert asked == [(group, 2, False)] * 3
    assert epochs == [(1, {"loss": 0.5})]
    asked.clear()
    multi_worker.train_on_workers(project, None, **{**given, "stopping": lambda: bool(asked)})
    assert len(asked) == 1
    asked.clear()
    outcomes[:] = [InsufficientResourcesError("no room")] * 9
    with pytest.raises(PlacesLostError):  # it asks for other places, and gives up those that are left
        multi_worker.train_on_workers(project, None, **given)
    assert len(asked) == 3

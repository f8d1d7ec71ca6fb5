"""Counts of a replica and their way to the controller, with a clock and a controller in memory."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.predictions.served import Served
from raymlops.serving.tally import Tally
from raymlops.serving.traffic import Share, Traffic

CANARY = Traffic(epoch="r.0", canaries=(Share(2, 0.1),), canary_timeout_s=1.0)
COLUMNS = {"x": np.ones(1)}


def served(route="champion", *, version=1, status=200, code="", model_seconds=0.01, seconds=0.02, **fields):
    fields = {"columns": COLUMNS, **fields}
    return Served("id", 0.0, version, route, "native", status, code, 1, 10, seconds, model_seconds, **fields)


class Controller:
    """The way to a controller, which is there or not."""

    def __init__(self):
        self.now = 0.0
        self.there = True
        self.looked = 0
        self.reports = []

    def find(self):
        self.looked += 1
        return (lambda *report: self.reports.append(report)) if self.there else None

    def tally(self, traffic):
        self.traffic = traffic
        return Tally(
            name="m",
            replica="a",
            traffic=lambda: self.traffic,
            slow_s=lambda: 0.25,
            find=self.find,
            clock=lambda: self.now,
        )


@pytest.fixture
def controller():
    return Controller()


def rows(tally, epoch="r.0"):
    return {row: {k: v for k, v in counts.items() if v} for row, counts in tally.report()[epoch].items()}


def test_each_version_is_counted_by_what_fell_to_it(controller):
    """Of four requests to the canary one was late, one erred, both answered by the champion, and one was slow."""
    tally = controller.tally(CANARY)
    tally.take(
        [
            served(),
            served(status=500, model_seconds=0.0),
            served("canary", version=2),
            served("canary", version=2, model_seconds=0.5),
            served(fallback_from=2, seconds=1.1),
            served(fallback_from=2, seconds=0.2),
        ]
    )
    assert rows(tally) == {
        "champion": {"requests": 2, "errors": 1, "seconds_sum": 0.01},
        "2": {"requests": 4, "errors": 1, "slow": 1, "late": 1, "seconds_sum": 0.51},
    }


def test_what_says_nothing_of_a_version_is_not_counted(controller):
    """Refused, pinned, a copy for a shadow, turned away under load; but an answer that is no number is an error."""
    tally = controller.tally(CANARY)
    tally.take(
        [
            served(status=422, code="invalid_rows", columns=None),
            served(status=503, code="overloaded"),
            served("pinned", version=2),
            served("shadow", version=2, status=500),
            served(status=422, code="not_finite"),
        ]
    )
    assert rows(tally) == {"champion": {"requests": 1, "errors": 1, "seconds_sum": 0.01}}


def test_nothing_is_counted_or_looked_for_while_traffic_is_not_shared(controller):
    """Which is most of the time."""
    tally = controller.tally(Traffic())
    tally.take([served()])
    assert (tally.report(), controller.looked) == ({}, 0)


def test_totals_are_sent_once_a_second_with_a_rising_number(controller):
    """The second report holds all of the first."""
    tally = controller.tally(CANARY)
    for now in (0.0, 0.5, 1.0, 1.5):
        controller.now = now
        tally.take([served()])
    assert [(name, replica, number) for name, replica, number, _ in controller.reports] == [
        ("m", "a", 1),
        ("m", "a", 2),
    ]
    assert [report["r.0"]["champion"]["requests"] for *_, report in controller.reports] == [1, 3]
    tally.close()
    assert controller.reports[-1][3]["r.0"]["champion"]["requests"] == 4


def test_a_missing_controller_is_looked_for_every_five_seconds(controller):
    """And told everything once it is there."""
    controller.there = False
    tally = controller.tally(CANARY)
    for now in (0.0, 1.0, 4.9):
        controller.now = now
        tally.take([served()])
    assert controller.looked == 1
    controller.there, controller.now = True, 5.0
    tally.take([served()])
    assert controller.reports[0][3]["r.0"]["champion"]["requests"] == 4


def test_a_controller_that_raises_costs_nothing(controller):
    """It is looked for again; what is counted stays."""

    def find():
        controller.looked += 1
        return fail if controller.looked == 1 else lambda *report: controller.reports.append(report)

    def fail(*_report):
        raise ConnectionError

    controller.find = find
    tally = controller.tally(CANARY)
    tally.take([served()])
    controller.now = 5.0
    tally.take([served()])
    assert controller.reports[0][3]["r.0"]["champion"]["requests"] == 2


def test_epochs_are_kept_apart_and_the_old_ones_forgotten(controller):
    """Ten changes of the weights leave the last eight; weights that come back are counted anew."""
    tally = controller.tally(CANARY)
    for epoch in (*"0123456789", "3"):
        controller.traffic = Traffic(epoch=epoch, canaries=CANARY.canaries)
        tally.take([served(), served()])
    assert sorted(tally.report()) == list("23456789")
    controller.traffic = Traffic(epoch="5", canaries=CANARY.canaries)
    tally.take([served()])
    assert tally.report()["5"]["champion"]["requests"] == 1

"""Counts of a replica and their way to the controller, with a clock and a controller in memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from raymlops.predictions.served import RequestRecord
from raymlops.serving.telemetry.rollout_counts import RolloutCounts, sending
from raymlops.serving.traffic import Share, Traffic

CANARY = Traffic(epoch="r.0", canaries=(Share(2, 0.1),), canary_timeout_s=1.0)
COLUMNS = {"x": np.ones(1)}


def served(route="champion", *, version=1, status=200, code="", model_seconds=0.01, seconds=0.02, **fields):
    fields = {"columns": COLUMNS, "epoch": "r.0", **fields}
    return RequestRecord("id", 0.0, version, route, "native", status, code, 1, 10, seconds, model_seconds, **fields)


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

    def counts(self, traffic):
        self.traffic = traffic
        return RolloutCounts(
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


def rows(counts, epoch="r.0"):
    return {row: {k: v for k, v in counts.items() if v} for row, counts in counts.report()[epoch].items()}


def test_each_version_is_counted_by_what_fell_to_it(controller):
    """Of four requests to the canary one was late, one erred, both answered by the champion, and one was slow.

    The champion took its time over the second: that is no lateness of the canary.
    """
    counts = controller.counts(CANARY)
    counts.take(
        [
            served(),
            served(status=500, model_seconds=0.0),
            served("canary", version=2),
            served("canary", version=2, model_seconds=0.5),
            served(fallback_from=2, fallback_code="late"),
            served(fallback_from=2, fallback_code="error", seconds=1.1),
        ]
    )
    assert rows(counts) == {
        "champion": {"requests": 2, "errors": 1, "seconds_sum": 0.01},
        "2": {"requests": 4, "errors": 1, "slow": 1, "late": 1, "seconds_sum": 0.51},
    }


def test_a_champion_that_does_not_answer_in_time_is_slow(controller):
    """As a canary is: the same stall is no error of one and lateness of the other."""
    counts = controller.counts(CANARY)
    counts.take([served(status=504, code="timeout", model_seconds=0.0)])
    assert rows(counts) == {"champion": {"requests": 1, "slow": 1}}


def test_rows_that_a_recipe_refuses_are_answers_of_both(controller):
    """Both answer 422, and neither failed: that one rejects more of them than the other shows."""
    counts = controller.counts(CANARY)
    refused = {"status": 422, "code": "invalid_rows", "model_seconds": 0.0}
    counts.take([served(**refused), served("canary", version=2, **refused)])
    assert rows(counts) == {"champion": {"requests": 1, "refused": 1}, "2": {"requests": 1, "refused": 1}}


def test_overload_is_left_out_for_both(controller):
    """A canary that turns requests away under load is no worse than a champion that does."""
    counts = controller.counts(CANARY)
    counts.take([served(fallback_from=2, fallback_code="overloaded"), served(status=503, code="overloaded")])
    assert counts.report() == {}


def test_a_caller_that_leaves_was_kept_waiting(controller):
    """By the canary, while the champion stood in for it, or by the champion."""
    counts = controller.counts(CANARY)
    left = {"status": 499, "code": "disconnected", "model_seconds": 0.0}
    counts.take(
        [
            served("canary", version=2, **left),
            served(fallback_from=2, fallback_code="late", **left),
            served(**left),
            served(columns=None, **left),
        ]
    )
    assert rows(counts) == {"2": {"requests": 2, "late": 2}, "champion": {"requests": 1, "slow": 1}}


def test_a_request_counts_where_it_was_chosen(controller):
    """The step went on while it was answered, or the rollout ended."""
    counts = controller.counts(replace(CANARY, epoch="r.1"))
    counts.take([served("canary", version=2), served("canary", version=2, epoch="r.1")])
    assert (rows(counts)["2"]["requests"], rows(counts, "r.1")["2"]["requests"]) == (1, 1)
    controller.traffic = Traffic()
    counts.take([served("canary", version=2, epoch="r.1")])
    assert rows(counts, "r.1")["2"]["requests"] == 2


def test_a_replaced_controller_is_looked_for_again(controller):
    """Its handle takes reports for ever; that the first one was lost is known when it is looked at."""
    handles = iter(["old", "new"])

    def find():
        controller.looked += 1
        handle = next(handles)

        def arrived(ref):
            if ref[0] == "old":
                raise ConnectionError
            return True

        return sending(lambda *report: controller.reports.append((handle, report)) or (handle, report), arrived)

    controller.find = find
    counts = controller.counts(CANARY)
    for now in (0.0, 1.0, 5.0):
        controller.now = now
        counts.take([served()])
    assert [handle for handle, _ in controller.reports] == ["old", "new"]
    assert controller.reports[-1][1][3]["r.0"]["champion"]["requests"] == 3


def test_what_says_nothing_of_a_version_is_not_counted(controller):
    """Refused, pinned, a copy for a shadow, turned away under load; but an answer that is no number is an error."""
    counts = controller.counts(CANARY)
    counts.take(
        [
            served(status=422, code="invalid_rows", columns=None),
            served(status=503, code="overloaded"),
            served("pinned", version=2),
            served("pinned", status=422, code="not_finite"),
            served("shadow", version=2, status=500),
            served(status=422, code="not_finite"),
        ]
    )
    assert rows(counts) == {"champion": {"requests": 1, "errors": 1, "seconds_sum": 0.01}}


def test_nothing_is_counted_or_looked_for_while_traffic_is_not_shared(controller):
    """Which is most of the time."""
    counts = controller.counts(Traffic())
    counts.take([served(epoch="")])
    assert (counts.report(), controller.looked) == ({}, 0)


def test_totals_are_sent_once_a_second_with_a_rising_number(controller):
    """The second report holds all of the first."""
    counts = controller.counts(CANARY)
    for now in (0.0, 0.5, 1.0, 1.5):
        controller.now = now
        counts.take([served()])
    assert [(name, replica, number) for name, replica, number, _ in controller.reports] == [
        ("m", "a", 1),
        ("m", "a", 2),
    ]
    assert [report["r.0"]["champion"]["requests"] for *_, report in controller.reports] == [1, 3]
    counts.close()
    assert controller.reports[-1][3]["r.0"]["champion"]["requests"] == 4


def test_a_missing_controller_is_looked_for_every_five_seconds(controller):
    """And told everything once it is there."""
    controller.there = False
    counts = controller.counts(CANARY)
    for now in (0.0, 1.0, 4.9):
        controller.now = now
        counts.take([served()])
    assert controller.looked == 1
    controller.there, controller.now = True, 5.0
    counts.take([served()])
    assert controller.reports[0][3]["r.0"]["champion"]["requests"] == 4


def test_a_controller_that_raises_costs_nothing(controller):
    """It is looked for again; what is counted stays."""

    def find():
        controller.looked += 1
        return fail if controller.looked == 1 else lambda *report: controller.reports.append(report)

    def fail(*_report):
        raise ConnectionError

    controller.find = find
    counts = controller.counts(CANARY)
    counts.take([served()])
    controller.now = 5.0
    counts.take([served()])
    assert controller.reports[0][3]["r.0"]["champion"]["requests"] == 2


def test_epochs_are_kept_apart_and_the_old_ones_forgotten(controller):
    """Ten changes of the weights leave the last eight; weights that come back are counted anew."""
    counts = controller.counts(CANARY)
    for epoch in (*"0123456789", "3"):
        controller.traffic = Traffic(epoch=epoch, canaries=CANARY.canaries)
        counts.take([served(epoch=epoch)] * 2)
    assert sorted(counts.report()) == list("23456789")
    controller.traffic = Traffic(epoch="5", canaries=CANARY.canaries)
    counts.take([served(epoch="5")])
    assert counts.report()["5"]["champion"]["requests"] == 1


def test_a_lookup_that_blocks_delays_neither_counting_nor_closing(controller):
    """As in a cluster without its head: the replica goes on, and the thread ends with the process."""
    found = threading.Event()
    controller.find = lambda: found.wait(60) and None
    counts = controller.counts(CANARY)
    ended = threading.Thread(target=lambda: (counts.take([served()]), counts.take([served()]), counts.close()))
    ended.start()
    ended.join(20)
    assert not ended.is_alive()
    found.set()
    assert rows(counts)["champion"]["requests"] == 2

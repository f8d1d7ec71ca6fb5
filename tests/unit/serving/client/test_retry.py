"""Outcomes, pauses and the deadline of a call, driven by tenacity with a clock of its own."""

from __future__ import annotations

import random

import pytest
from tenacity import Retrying

from raymlops.serving.client.retry import RETRIES, Budget, Failure, Reply, Tokens, is_transient

OURS = b'{"error": {"code": "model_error", "message": "it raised"}}'
BUSY = Reply(503, b"busy")
DONE = Reply(200, b"{}")


class Highest(random.Random):
    """Draws the upper bound, so that a pause is known."""

    def uniform(self, a, b):
        return b


class Call:
    """One call whose attempts end with the next outcome after ``took_s``; remembers timeouts and pauses."""

    def __init__(self, outcomes, *, took_s=0.0, timeout_s=30.0, rng=None, **options):
        self.now, self.pauses, self.timeouts = 100.0, [], []
        budget = Budget(timeout_s, clock=lambda: self.now, rng=rng or Highest(), **options)
        left = list(outcomes)

        def send():
            self.timeouts.append(budget.attempt_s())
            self.now += took_s
            return left.pop(0)

        self.outcome = Retrying(sleep=self._sleep, **budget.options())(send)

    def _sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
@pytest.mark.parametrize("body", [b"", OURS], ids=["text", "ours"])
def test_what_passes_is_asked_again(status, body):
    """A busy or unreachable endpoint, whoever says so."""
    assert is_transient(Reply(status, body))


@pytest.mark.parametrize("status", [404, 500])
def test_only_what_serve_says_by_itself_is_asked_again(status):
    """Serve answers for a lost replica and for a proxy without routes in a text; a model's own word is final."""
    assert is_transient(Reply(status, b"Internal Server Error"))
    assert not is_transient(Reply(status, OURS))


@pytest.mark.parametrize("status", [200, 202, 307, 400, 401, 403, 405, 409, 413, 415, 422, 431, 501])
def test_an_answer_is_an_answer(status):
    """What the caller has to mend is not asked again."""
    assert not is_transient(Reply(status, b""))


@pytest.mark.parametrize(
    ("kind", "again"), [("unreachable", True), ("disconnected", True), ("timeout", True), ("invalid", False)]
)
def test_a_connection_may_fare_better(kind, again):
    """What could not be sent as it was never will."""
    assert is_transient(Failure(kind, "")) == again


def test_pauses_double_up_to_a_bound():
    """0.1 * 2**n, at most 2 s."""
    call = Call([BUSY] * 8, retries=7)
    assert call.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert (call.outcome, len(call.timeouts)) == (BUSY, 8)


def test_pauses_are_drawn_from_the_whole_range():
    """Full jitter: of 2,000 first pauses one in ten is below a tenth of the bound, and the mean is half of it."""
    rng = random.Random(3)
    drawn = [Call([BUSY, DONE], rng=rng).pauses[0] for _ in range(2000)]
    assert 0 <= min(drawn) < 0.001
    assert 0.099 < max(drawn) <= 0.1
    # standard error of the mean: 0.1 / sqrt(12 * 2000) = 0.00065
    assert sum(drawn) / len(drawn) == pytest.approx(0.05, abs=0.003)


def test_an_answer_ends_it():
    """The second attempt succeeds, the third is not made."""
    call = Call([BUSY, DONE, BUSY], retries=5)
    assert (call.outcome, len(call.timeouts), len(call.pauses)) == (DONE, 2, 1)


def test_retry_after_is_waited_for():
    """And the jitter is added to it, so that not all clients come back in the same second."""
    assert Call([Reply(429, b"", {"retry-after": "3"}), DONE]).pauses == [3.1]


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "", "٣", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_is_ignored(text):
    """It may come from a proxy."""
    assert Call([Reply(503, b"", {"retry-after": text}), DONE]).pauses == [0.1]


def test_a_pause_beyond_the_deadline_is_not_begun():
    """An endpoint that asks for a minute is not waited for by a caller who has ten seconds."""
    late = Reply(503, b"", {"retry-after": "60"})
    call = Call([late], timeout_s=10.0)
    assert (call.pauses, call.outcome) == ([], late)


def test_the_deadline_is_over_all_attempts():
    """10 s, attempts of 4 s: 10 is left, then 10 - 4 - 0.1, then 1.7; a fourth would begin after the end."""
    failures = [Failure("disconnected", "")] * 4
    call = Call(failures, took_s=4.0, timeout_s=10.0, retries=9, attempt_timeout_s=10.0)
    assert call.timeouts == pytest.approx([10.0, 5.9, 1.7])


def test_by_default_it_is_retried_until_the_deadline():
    """30 s of a busy endpoint: the pauses' bounds are 0.1, 0.2, ..., 2, 2, ..., so that 18 pauses fit in.

    0.1 + 0.2 + 0.4 + 0.8 + 1.6 = 3.1, and 13 pauses of 2 s end at 29.1; the next would end after 30.
    """
    call = Call([BUSY] * 100)
    assert sum(call.pauses) == pytest.approx(29.1)
    assert (call.outcome, len(call.timeouts)) == (BUSY, 19)


@pytest.mark.parametrize(("timeout_s", "attempt_s"), [(30.0, 10.0), (3.0, 1.0), (1.5, 1.0), (0.5, 0.5)])
def test_by_default_an_attempt_has_a_third_of_the_deadline(timeout_s, attempt_s):
    """At least a second, and never more than is left: another replica may answer when one hangs."""
    call = Call([Failure("timeout", ""), DONE], took_s=attempt_s, timeout_s=timeout_s)
    assert call.timeouts[0] == attempt_s
    assert (call.outcome is DONE) == (timeout_s > attempt_s + 0.1)


def test_an_attempt_may_have_a_timeout_of_its_own():
    """The last gets what is left."""
    call = Call([Failure("timeout", "")] * 3, took_s=2.0, timeout_s=5.0, retries=2, attempt_timeout_s=2.0)
    assert call.timeouts == pytest.approx([2.0, 2.0, 0.7])


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b"\xff", b'{"error": "text"}', b'{"error": {"message": "no code"}}']
)
def test_what_is_not_our_form_has_no_error(body):
    """Whatever listens there may answer anything."""
    assert Reply(500, body).error == {}


def test_below_v2_the_facts_are_beside_the_text():
    """As clients of the Open Inference Protocol expect it."""
    body = b'{"error": "it raised", "code": "model_error", "message": "it raised"}'
    assert Reply(500, body).error["code"] == "model_error"


def test_the_calls_of_a_client_share_a_bound_of_retries():
    """A hundred at first, of which one call uses 18; then one for ten answers."""
    tokens = Tokens()
    calls = [Call([BUSY] * 100, tokens=tokens) for _ in range(10)]
    assert [len(call.pauses) for call in calls] == [18] * 5 + [10] + [0] * 4
    assert sum(len(call.pauses) for call in calls) == RETRIES
    for _ in range(11):
        Call([DONE], tokens=tokens)
    assert len(Call([BUSY] * 100, tokens=tokens).pauses) == 1

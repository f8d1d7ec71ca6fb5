import random

import pytest

from raymlops.serving.client.retry import Failure, Pause, Policy, Reply, Send, attempts, passes

OURS = b'{"error": {"code": "model_error", "message": "it raised"}}'
BUSY = Reply(503, b"busy")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Highest(random.Random):
    """Draws the upper bound, so that a pause is known."""

    def uniform(self, a, b):
        return b


def drive(outcomes, *, took_s=0.0, timeout_s=30.0, rng=None, **policy):
    """Let each attempt end with the next outcome after ``took_s``; return what was asked for and how it ended."""
    clock, asked = Clock(), []
    steps = attempts(Policy(**policy), timeout_s=timeout_s, clock=clock, rng=rng or Highest())
    outcome = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as last:
            return asked, last.value
        asked.append(step)
        if isinstance(step, Pause):
            clock.now += step.seconds
            outcome = None
        else:
            clock.now += took_s
            outcome = outcomes.pop(0)


def pauses(asked):
    return [step.seconds for step in asked if isinstance(step, Pause)]


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
@pytest.mark.parametrize("body", [b"", OURS], ids=["text", "ours"])
def test_what_passes_is_asked_again(status, body):
    """A busy or unreachable endpoint, whoever says so."""
    assert passes(Reply(status, body))


@pytest.mark.parametrize("status", [404, 500])
def test_only_what_serve_says_by_itself_is_asked_again(status):
    """Serve answers for a lost replica and for a proxy without routes in a text; a model's own word is final."""
    assert passes(Reply(status, b"Internal Server Error"))
    assert not passes(Reply(status, OURS))


@pytest.mark.parametrize("status", [200, 202, 307, 400, 401, 403, 405, 409, 413, 415, 422, 431, 501])
def test_an_answer_is_an_answer(status):
    """What the caller has to mend is not asked again."""
    assert not passes(Reply(status, b""))


@pytest.mark.parametrize(("kind", "again"), [("refused", True), ("broken", True), ("late", True), ("unsent", False)])
def test_a_connection_may_fare_better(kind, again):
    """What could not be sent as it was never will."""
    assert passes(Failure(kind, "")) == again


def test_pauses_double_up_to_a_bound():
    """0.1 * 2**n, at most 2 s."""
    asked, ended = drive([BUSY] * 8, retries=7)
    assert pauses(asked) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert (ended.outcome, ended.attempts) == (BUSY, 8)


def test_pauses_are_drawn_from_the_whole_range():
    """Full jitter: of 2,000 first pauses one in ten is below a tenth of the bound, and the mean is half of it."""
    rng = random.Random(3)
    drawn = [pauses(drive([BUSY, Reply(200, b"")], rng=rng)[0])[0] for _ in range(2000)]
    assert 0 <= min(drawn) < 0.001
    assert 0.099 < max(drawn) <= 0.1
    # standard error of the mean: 0.1 / sqrt(12 * 2000) = 0.00065
    assert sum(drawn) / len(drawn) == pytest.approx(0.05, abs=0.003)


def test_an_answer_ends_it():
    """The second attempt answers, the third is not made."""
    asked, ended = drive([BUSY, Reply(200, b"{}"), BUSY], retries=5)
    assert [type(step) for step in asked] == [Send, Pause, Send]
    assert (ended.outcome.status, ended.attempts) == (200, 2)


def test_retry_after_is_waited_for():
    """And the jitter comes on top of it, so that not all come back in the same second."""
    asked, _ = drive([Reply(429, b"", {"retry-after": "3"}), Reply(200, b"")])
    assert pauses(asked) == [3.1]


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "", "٣", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_is_passed_over(text):
    """It comes from whoever stands between."""
    asked, _ = drive([Reply(503, b"", {"retry-after": text}), Reply(200, b"")])
    assert pauses(asked) == [0.1]


def test_what_would_come_too_late_is_not_waited_for():
    """An endpoint that asks for a minute is not waited for by a caller who has ten seconds."""
    late = Reply(503, b"", {"retry-after": "60"})
    asked, ended = drive([late], timeout_s=10.0)
    assert (pauses(asked), ended.outcome) == ([], late)


def test_the_deadline_is_over_all_attempts():
    """10 s, attempts of 4 s: 10 is left, then 10 - 4 - 0.1, then 1.7; a fourth would begin after the end."""
    failures = [Failure("broken", "")] * 4
    asked, ended = drive(failures, took_s=4.0, timeout_s=10.0, retries=9, attempt_timeout_s=10.0)
    sent = [step.timeout_s for step in asked if isinstance(step, Send)]
    assert sent == pytest.approx([10.0, 5.9, 1.7])
    assert ended.attempts == 3


def test_by_default_it_is_asked_until_the_deadline():
    """30 s of an endpoint that is busy: the pauses' bounds are 0.1, 0.2, ..., 2, 2, ..., so that 18 attempts fit in.

    0.1 + 0.2 + 0.4 + 0.8 + 1.6 = 3.1, and 13 pauses of 2 s end at 29.1; the next would end after 30.
    """
    asked, ended = drive([BUSY] * 100)
    assert sum(pauses(asked)) == pytest.approx(29.1)
    assert (ended.outcome, ended.attempts) == (BUSY, 19)


@pytest.mark.parametrize(("timeout_s", "attempt_s"), [(30.0, 10.0), (3.0, 1.0), (1.5, 1.0), (0.5, 0.5)])
def test_by_default_an_attempt_has_a_third_of_the_deadline(timeout_s, attempt_s):
    """At least a second, and never more than is left: a replica that hangs is left for another one."""
    asked, _ = drive([Failure("late", ""), Reply(200, b"")], took_s=attempt_s, timeout_s=timeout_s)
    assert asked[0] == Send(attempt_s)
    assert (Send in [type(step) for step in asked[1:]]) == (timeout_s > attempt_s + 0.1)


def test_a_hung_replica_is_left_while_there_is_time():
    """The first attempt takes its third, the second answers."""
    asked, ended = drive([Failure("late", ""), Reply(200, b"{}")], took_s=10.0)
    assert [type(step) for step in asked] == [Send, Pause, Send]
    assert ended.outcome.status == 200


def test_one_attempt_may_be_given_less():
    """So that another replica is asked when one hangs; the last gets what is left."""
    asked, _ = drive([Failure("late", "")] * 3, took_s=2.0, timeout_s=5.0, retries=2, attempt_timeout_s=2.0)
    assert [step.timeout_s for step in asked if isinstance(step, Send)] == pytest.approx([2.0, 2.0, 0.7])


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

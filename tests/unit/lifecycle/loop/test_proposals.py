from dataclasses import replace
from datetime import timedelta

import pytest
from looped import SKILL, judged, live
from stored import put

import raymlops as rm
from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.lifecycle.loop.decision import decide_due
from raymlops.lifecycle.loop.freeze import freeze, thaw
from raymlops.lifecycle.loop.proposals import accept, proposals, reject
from raymlops.lifecycle.loop.status import loop_lines, loop_status
from raymlops.state.freezes import freeze_of
from raymlops.state.loop import advance, retraining_of, still_at
from raymlops.state.store import Change

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """Let the environment name the state of ``url``."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))


@pytest.fixture
def proposal(state):
    live(state, **SKILL)
    now = state.now() + HOUR
    return decide_due(state, "flights", now=now, actor="me", quality=judged(now - HOUR))


def test_a_proposal_is_listed_with_its_evidence(proposal):
    """What triggered it, the numbers, and what it would train on."""
    (found,) = proposals("flights").proposals
    assert (found, proposals().proposals) == (proposal, (proposal,))
    text = proposals().text()
    assert f"{proposal.id} of flights: proposed" in text
    for part in ("version 3 (run run-3)", "skill: 0.050 of skill lost", "lost 0.05", "the last 90 days", "scratch"):
        assert part in text


def test_an_accepted_one_goes_on(state, proposal):
    """Its next stage is on record with who accepted it and why; it waits for nobody any more."""
    done = accept(proposal.id, why="labels look right")
    assert (done.stage, done.is_open, proposals().proposals) == ("checking", True, ())
    (event, *_) = state.events("flights")
    assert (event.action, event.why) == ("retrain.checking", "labels look right")
    with pytest.raises(RefusedError, match="it is no proposal: retraining"):
        accept(proposal.id, why="again")


def test_one_that_went_on_is_rejected_until_its_version_has_traffic(state, proposal):
    """Also where it is up and waits for its first share, as a freeze makes it: a rollback takes back what is live then.

    Once it has a share, a rollback takes that back, and what has ended is over.
    """
    one = accept(proposal.id, why="labels look right")
    one = advance(state, one, one.at("rolling_out", now=state.now(), version=4), why="on")
    up = replace(state.deployments("flights")[0], version=4, role="warm", weight=0.1)
    put(state, "flights", [*state.deployments("flights"), up])
    with pytest.raises(RefusedError, match="version 4 of flights has traffic, or is on its way to it"):
        reject(proposal.id, why="too late")
    put(state, "flights", [state.deployments("flights")[0], replace(up, weight=0.0)])
    outdated = one
    assert reject(proposal.id, why="not now").stage == "rejected"
    with pytest.raises(RefusedError, match="changed by another process a moment ago: it is rejected"):
        state.change("flights", lambda model: Change(model, "x", "y"), given=still_at(outdated))
    with pytest.raises(RefusedError, match="it is no proposal"):
        reject(proposal.id, why="again")


def test_a_retraining_that_runs_is_ended_by_a_person(state, proposal):
    """Before its version has traffic."""
    accept(proposal.id, why="labels look right")
    assert reject(proposal.id, why="a strike").stage == "rejected"


def test_a_rejected_one_is_over(state, proposal):
    """The same evidence does not trigger another retraining."""
    assert reject(proposal.id, why="a strike").stage == "rejected"
    assert retraining_of(state, proposal.id).note == "a strike"
    now = state.now() + 99 * HOUR
    again = decide_due(state, "flights", now=now, quality=judged(proposal.evidence_at))
    assert again.kind == "no trigger"
    assert "the same led to retraining" in again.why


def test_a_frozen_model_is_not_accepted_but_may_be_rejected(proposal):
    """The freeze says until when."""
    freeze("flights", why="holidays", until="3d")
    with pytest.raises(RefusedError, match=r"frozen since .*: holidays"):
        accept(proposal.id, why="now")
    assert reject(proposal.id, why="not now").stage == "rejected"


def test_an_answer_has_a_reason(proposal):
    """Empty ones are refused, and unknown ids are not found."""
    with pytest.raises(UsageError, match="why is empty"):
        accept(proposal.id, why=" ")
    with pytest.raises(NotFoundError):
        accept("abc", why="x")


def test_a_freeze_holds_until_its_time_or_until_it_is_thawed(state):
    """An ISO time, a duration, or none; one in the past and an unreadable one are refused."""
    live(state)
    assert "until 2098-12-31 22:00 UTC" in freeze("flights", why="x", until="2099-01-01T00:00+02:00").text()
    assert "until it is thawed: holidays" in freeze("flights", why="holidays").text()
    assert freeze_of(state, "flights", now=state.now() + 999 * HOUR).why == "holidays"
    assert thaw("flights", why="over").text() == "flights is not frozen any more"
    for until, match in (("2020-01-01", "not in the future"), ("soon", "is no time"), ("999999999d", "is no time")):
        with pytest.raises(UsageError, match=match):
            freeze("flights", why="x", until=until)
    with pytest.raises(UsageError, match="why is empty"):
        freeze("flights", why="")
    with pytest.raises(NotFoundError, match="digits was never deployed"):
        freeze("digits", why="x")


def test_a_person_retrains_by_the_name_alone(state):
    """``rm.retrain``: what is written says who goes on with it."""
    live(state)
    record = rm.retrain("flights", why="a new fleet")
    assert record.retraining == retraining_of(state, record.retraining.id)
    assert "checking since" in record.text()
    with pytest.raises(RefusedError, match="one at a time"):
        rm.retrain("flights", why="again")
    with pytest.raises(UsageError, match="why is empty"):
        rm.retrain("flights", why=" ")


def test_status_says_what_the_loop_waits_for(state):
    """Nothing where nothing is configured; else the trigger, the open retraining, the last one and the freeze."""
    live(state)
    assert loop_status(state, "flights", now=state.now()) is None
    live(state, triggers={"every_days": 3650})
    assert loop_lines(loop_status(state, "flights", now=state.now())).startswith("propose: every_days: due at 20")
    begun = rm.retrain("flights", why="a new fleet").retraining
    assert loop_lines(loop_status(state, "flights", now=state.now())) == begun.text()
    freeze("flights", why="holidays")
    (first, second) = loop_lines(loop_status(state, "flights", now=state.now())).splitlines()
    assert first.startswith("flights is frozen since")
    assert second == begun.text()

from dataclasses import asdict, replace
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from looped import SKILL, judged, live
from retrained import NOW, frozen, moved
from stored import put

from raymlops.errors import RefusedError
from raymlops.lifecycle.loop.decision import Decisions, decide_due, retrain_by_person
from raymlops.monitor.retraining import Waiting
from raymlops.monitor.skill.clusters import Moments
from raymlops.monitor.skill.expected import Window
from raymlops.monitor.skill.verdict import Verdict
from raymlops.state.freezes import freeze
from raymlops.state.loop import advance, retraining_of, retrainings_of
from raymlops.state.schema import deployments
from raymlops.state.store import State
from raymlops.state.watch.incidents import Filed, Incident, record_window
from raymlops.state.watch.messages import messages_of
from raymlops.state.watch.windows import JudgedWindow

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def decided(state, *, later=HOUR, outcome="worse", **fields):
    now = state.now() + later
    return decide_due(state, "flights", now=now, actor="me", quality=judged(now - HOUR, outcome), **fields)


@pytest.mark.parametrize(
    ("autonomy", "stage", "is_open", "told"),
    [
        (
            "observe",
            "decided",
            False,
            "Would be retrained, if retrain.autonomy were not observe: skill: 0.050 of",
        ),
        ("propose", "proposed", True, "A retraining is proposed, and waits for a person: skill: 0.050 of skill lost."),
        ("act", "decided", True, "Retraining begins: skill: 0.050 of skill lost."),
    ],
)
def test_what_is_decided_is_written_by_the_autonomy(state, autonomy, stage, is_open, told):
    """It is observed, proposed or begun, and somebody is told of it, with one audit event."""
    live(state, autonomy=autonomy, **SKILL)
    found = decided(state)
    assert (found.stage, found.is_open, found.trigger, found.champion) == (stage, is_open, "skill", 3)
    assert (found.champion_run_id, found.settings["autonomy"], found.actor) == ("run-3", autonomy, "me")
    assert found.reasons["lost"] == 0.05
    (message,) = messages_of(state, "flights")
    assert message.body.startswith(told)
    assert message.title == f"flights: retraining of version 3 (retraining {found.id})"
    assert [event.action for event in state.events("flights")][:-1] == [f"retrain.{stage}"]


def test_two_states_never_share_a_retraining(state, tmp_path):
    """Of one window: their runs are in one MLflow, and each one's are found by its id."""
    at, ids = state.now(), set()
    with State.open(f"sqlite:///{tmp_path}/other.db") as other:
        for each in (state, other):
            live(each, autonomy="act", **SKILL)
            ids.add(decide_due(each, "flights", now=at + HOUR, actor="me", quality=judged(at)).id)
    assert len(ids) == 2


def test_what_was_observed_is_not_told_again_each_hour(state):
    """The cool-down counts from it, and later other evidence may be decided on."""
    live(state, autonomy="observe", **SKILL)
    first = decided(state)
    waits = decided(state, later=3 * HOUR)
    assert (waits.kind, len(messages_of(state, "flights"))) == ("cool-down", 1)
    assert decided(state, later=2 * DAY).id != first.id


def test_without_a_reason_nothing_is_written(state):
    """What it waits for is returned."""
    live(state, **SKILL)
    found = decided(state, outcome="as before")
    assert found == Waiting("no trigger", "skill: as before (0.050 of skill lost)")
    assert retrainings_of(state) == []


def test_without_a_trigger_quality_is_not_asked_for(state):
    """By default nothing is read or decided."""
    live(state)
    assert decide_due(state, "flights", now=state.now(), quality=None).kind == "off"
    assert decide_due(state, "digits", now=state.now(), quality=None).kind == "not live"


def window(state, day, *, outcome="alarm", influence=0.4, kind="drift"):
    start = state.now() + day * DAY
    columns = [{"column": "hour", "flagged": True, "influence": influence}, {"column": "dest", "flagged": False}]
    return JudgedWindow(
        "flights", "inputs", kind, 0, start, start + DAY, 3, outcome, "why", 1_000, start, details={"columns": columns}
    )


def opening(id_, **fields):
    incident = Incident(id_, "flights", "inputs", "drift", 0, NOW, NOW, 1, "hour")
    return lambda _known: [Filed(replace(incident, **fields))]


def test_alarms_of_drift_count_by_the_columns_that_led_to_them(state):
    """Two windows are alarms for a column that matters: decided; one for a column that does not: not."""
    live(state, triggers={"drift_alarms": 2})
    for day, influence in ((0, 0.4), (1, 0.01), (2, 0.4)):
        assert record_window(state, window(state, day, influence=influence), lambda _known: [])
    found = decided(state, later=4 * DAY)
    assert (found.trigger, found.reasons["alarms"], found.reasons["columns"]) == ("drift", 2, ["hour"])


def test_what_a_person_said_is_normal_is_no_alarm(state):
    """The incident that the window belongs to was acknowledged."""
    live(state, triggers={"drift_alarms": 1})
    alarm = window(state, 0)
    at = {"opened_at": alarm.start, "last_at": alarm.start, "acknowledged_at": alarm.stop, "closed_at": alarm.stop}
    assert record_window(state, alarm, opening("i", **at))
    assert decided(state, later=4 * DAY).why.startswith("drift_alarms: 0 of 1")


def test_nothing_is_decided_while_what_is_served_is_broken(state):
    """An incident of a bound is open, acknowledged or not."""
    live(state, **SKILL)
    assert record_window(state, window(state, 0, kind="quality"), opening("i", kind="quality"))
    found = decided(state)
    assert (found.kind, found.why[:30]) == ("incident", "nothing during an incident: in")


def test_a_frozen_model_is_left_alone(state):
    """The reason is that of the freeze."""
    live(state, **SKILL)
    freeze(state, frozen(made_at=state.now()))
    found = decided(state)
    assert found.kind == "frozen"
    assert "holidays" in found.why
    assert retrainings_of(state) == []


def test_a_proposal_about_a_version_that_is_live_no_more_is_stopped(state):
    """Otherwise it would keep the loop from deciding on the new one."""
    live(state, **SKILL)
    proposal = decided(state)
    live(state, version=4, **SKILL)
    assert decided(state, later=2 * HOUR).kind == "cool-down"
    stopped = retraining_of(state, proposal.id)
    assert (stopped.stage, stopped.note) == ("stopped", "version 4 is live now")
    assert [one.what for one in messages_of(state, "flights")] == ["stopped", "proposed"]


def test_of_two_controllers_one_writes(state):
    """The one that read before the other one wrote finds its reading outdated."""
    live(state, autonomy="observe", **SKILL)
    now = state.now() + HOUR

    def slow(*arguments, **more):
        decide_due(state, "flights", now=now, actor="other", quality=judged(now - 2 * HOUR))
        return judged(now - HOUR)(*arguments, **more)

    found = decide_due(state, "flights", now=now, actor="me", quality=slow)
    assert found == Waiting("open", "another controller decided meanwhile")
    assert [one.actor for one in retrainings_of(state)] == ["other"]


def test_a_person_begins_whatever_the_autonomy_is(state):
    """Neither a trigger nor the cool-down is asked; a second one is refused with the reason."""
    live(state, autonomy="observe")
    now = state.now()
    found = retrain_by_person(state, "flights", now=now, why="a new fleet", actor="ada")
    assert (found.stage, found.trigger, found.why, found.actor) == ("checking", "person", "a new fleet", "ada")
    assert found.is_open
    with pytest.raises(RefusedError, match=r"not retrained now: one at a time: .* \(person, for version 3\)"):
        retrain_by_person(state, "flights", now=now, why="again", actor="ada")
    advance(state, *moved(found, "stopped"), why="x")
    assert retrain_by_person(state, "flights", now=now + HOUR, why="again", actor="ada").is_open


def test_a_person_is_refused_what_is_frozen_or_not_live(state):
    """With the reason, and nothing is written."""
    live(state)
    freeze(state, frozen(made_at=state.now()))
    with pytest.raises(RefusedError, match=r"not retrained now: flights is frozen since .*: holidays"):
        retrain_by_person(state, "flights", now=state.now(), why="x", actor="ada")
    put(state, "flights", [], action="remove")
    with pytest.raises(RefusedError, match="no version of flights is live"):
        retrain_by_person(state, "flights", now=state.now(), why="x", actor="ada")
    assert retrainings_of(state) == []


def test_each_model_is_decided_on_and_a_failure_holds_up_no_other(state):
    """What failed is recorded once, and the next model's schedule is due."""
    live(state, "broken", triggers={"skill": True})
    with state.writing() as connection:
        broken = {"cool_down_h": -1, "triggers": {"every_days": "soon"}, "window": {"kind": "growing"}}
        connection.execute(sa.update(deployments).values(retrain=broken))
    live(state, triggers={"every_days": 1})
    decide = Decisions(state)
    for hours in (1, 2):
        decide(state.now() + 30 * DAY + hours * HOUR)
    assert [(one.name, one.trigger) for one in retrainings_of(state)] == [("flights", "schedule")]
    failed = [event for event in state.events("broken") if event.action == "controller.error"]
    assert [event.why.partition(":")[0] for event in failed] == ["it was not decided whether to retrain it"]


def test_worse_answers_are_no_reason_to_wait(state):
    """Their incident is what retraining is for."""
    live(state, **SKILL)
    assert record_window(state, window(state, 0, kind="skill"), opening("i", kind="skill", side="outputs", version=3))
    assert decided(state).trigger == "skill"


@pytest.mark.parametrize(("trigger", "bound"), [("skill", True), ("min_skill", 0.2)])
def test_the_windows_that_were_judged_by_their_labels_decide(state, trigger, bound):
    """As the controller stored them: since the promotion, of the live version, by the metric that is configured."""
    live(state, triggers={trigger: bound})
    now = state.now() + 6 * DAY
    for day in range(5):
        assert record_window(state, labelled(state, day), lambda _known: [])
    found = decide_due(state, "flights", now=now, actor="me")
    assert (found.trigger, found.reasons["labelled_rows"]) == (trigger, 2_000)
    assert found.evidence_at == state.deployments("flights")[0].created_at.replace(microsecond=0) + 5 * DAY
    live(state, version=4, triggers={trigger: bound})
    assert decide_due(state, "flights", now=now, actor="me").kind in {"open", "no trigger"}


def labelled(state, day, *, skill=0.05):
    """Return a window of 400 labelled requests as it is stored: worse than before, of this skill."""
    start = state.deployments("flights")[0].created_at.replace(microsecond=0) + day * DAY
    losses = Moments.of(np.random.default_rng(day).uniform(0.0, 0.5 * (1 - skill), 400))
    sums = Window(float(losses.estimate().value), 0.25, 0.2, losses, losses=losses)
    verdict = Verdict("worse", "0.050 of skill lost", 0.05, 0.03, 0.07, 400.0, 200.0, 133.0)
    details = {
        "window": sums.to_dict(),
        "metric": "loss",
        "reference": "base_rate",
        "verdict": asdict(verdict),
        "coverage": {"half_lag_s": 60.0},
    }
    times = (start, start + DAY)
    return JudgedWindow("flights", "outputs", "skill", 3, *times, 3, "alarm", "worse", 400, start, details=details)

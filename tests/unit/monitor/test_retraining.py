from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.config.retrain import RetrainSection
from raymlops.monitor.retraining import Alarm, Decision, Facts, Waiting, decide, decide_by_person
from raymlops.monitor.skill.clusters import Moments
from raymlops.monitor.skill.expected import Window
from raymlops.monitor.skill.verdict import Verdict
from raymlops.state.freezes import Freeze
from raymlops.state.loop import Retraining, retraining_id

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
PROMOTED = datetime(2026, 1, 1, tzinfo=UTC)
NOW = PROMOTED + 20 * DAY
SKILL = {"triggers": {"skill": True}}


def policy(**fields):
    return RetrainSection.model_validate(fields)


def verdict(outcome="worse", lost=0.05):
    return Verdict(outcome, f"{lost:.3f} of skill lost", lost, lost - 0.02, lost + 0.02, 500.0, 200.0, 133.0)


def known(**fields):
    facts = Facts("m", 3, "run-3", PROMOTED, verdict(), (), NOW - 2 * DAY, 6_000)
    return replace(facts, **fields)


def past(trigger="skill", evidence="an earlier one", *, made=NOW - 5 * DAY, ended=NOW - 4 * DAY, **fields):
    one = Retraining(
        retraining_id("state", "m", trigger, evidence),
        "m",
        3,
        "run-3",
        trigger,
        evidence,
        made,
        "why",
        {},
        "me",
        "stopped" if ended else "training",
        made,
        made,
        ended_at=ended,
    )
    return replace(one, **fields)


def alarm(day, **columns):
    return Alarm(PROMOTED + day * DAY, columns or {"hour": 0.4})


def decided(facts=None, *, now=NOW, **fields):
    found = decide(facts or known(), policy(**(fields or SKILL)), now=now)
    assert isinstance(found, Decision), found
    return found


def waits(facts=None, *, now=NOW, **fields):
    found = decide(facts or known(), policy(**(fields or SKILL)), now=now)
    assert isinstance(found, Waiting), found
    return found


def test_without_a_trigger_only_a_person_decides():
    """The default: whatever the facts are, nothing is retrained by itself."""
    found = decide(known(), RetrainSection(), now=NOW)
    assert (found.kind, found.why) == ("off", "retrain.triggers has none: a person decides, by raymlops retrain")


def test_what_is_not_live_is_not_retrained():
    """Nor does a person retrain it."""
    assert waits(Facts("m")).kind == "not live"
    assert decide_by_person(Facts("m"), now=NOW, why="x", actor="ada").why == "no version of m is live"


def test_skill_that_is_lost_is_a_reason():
    """Its numbers are those of the verdict; its evidence is the version and the newest window."""
    found = decided()
    assert (found.trigger, found.why, found.evidence_at) == ("skill", "skill: 0.050 of skill lost", NOW - 2 * DAY)
    assert found.evidence == "version 3 until 2026-01-19T00:00:00+00:00"
    numbers = {"labelled_rows": 6_000, "lost": 0.05, "low": 0.03, "high": 0.07, "evidence": 200.0}
    assert found.reasons == pytest.approx(numbers)


@pytest.mark.parametrize("outcome", ["as before", "not enough labels", "no verdict"])
def test_other_verdicts_are_none(outcome):
    """What the verdict says is what the loop waits for."""
    found = waits(known(verdict=verdict(outcome, 0.0)))
    assert (found.kind, found.why) == ("no trigger", f"skill: {outcome} (0.000 of skill lost)")
    assert waits(known(verdict=None)).why == "skill: no window was judged yet"


def windows(*skills, requests=400):
    """Return windows of so many labelled requests: the reference predictor's loss is 0.25, the model's by its skill."""
    found = []
    for skill in skills:
        losses = Moments.of(np.random.default_rng(1).uniform(0.0, 0.5 * (1 - skill), requests))
        found.append(Window(float(losses.estimate().value), 0.25, 0.2, Moments.none(), losses=losses))
    return tuple(found)


@pytest.mark.parametrize(
    ("skills", "is_reason"),
    [((0.05,) * 5, True), ((0.3, 0.05, 0.05, 0.05), True), ((0.3,) * 5, False), ((0.2,), False)],
)
def test_skill_below_a_bound_is_a_reason_where_that_is_sure(skills, is_reason):
    """0.05 is below 0.2 since some window; 0.3 is above it, and what is at it is not below it."""
    found = decide(known(windows=windows(*skills)), policy(triggers={"min_skill": 0.2}), now=NOW)
    assert isinstance(found, Decision) == is_reason
    assert f"{windows(*skills)[-1].skill:.3f} in the last window, 0.2 is the bound" in found.why
    if is_reason:
        assert (found.trigger, found.reasons["bound"], found.evidence_at) == ("min_skill", 0.2, NOW - 2 * DAY)
    assert waits(triggers={"min_skill": 0.2}).why == "min_skill: no window was judged yet"


@pytest.mark.parametrize(
    ("alarms", "counted"),
    [
        ([], 0),
        ([alarm(3)], 1),
        ([alarm(3), alarm(4)], 2),
        ([alarm(3), alarm(4, dest=0.01)], 1),  # the output hardly depends on it
        ([alarm(3), alarm(4, dest=0.01, hour=0.05)], 2),
        ([alarm(3), alarm(4, dest=None)], 2),  # it may depend on it
        ([alarm(0), alarm(4)], 1),  # the window ended with the promotion
    ],
)
def test_so_many_alarms_for_columns_that_matter_are_a_reason(alarms, counted):
    """Two are wanted, since the promotion; the reason names the columns."""
    found = decide(known(alarms=tuple(alarms)), policy(triggers={"drift_alarms": 2}), now=NOW)
    assert isinstance(found, Decision) == (counted == 2)
    assert found.why.startswith(f"drift_alarms: {counted} of 2 windows since 2026-01-01 00:00 UTC are an alarm")
    if counted == 2:
        assert (found.evidence_at, found.reasons["alarms"]) == (PROMOTED + 4 * DAY, 2)


def test_alarms_count_from_the_last_retraining():
    """What led to one is not counted again."""
    alarms = (alarm(3), alarm(4), alarm(16))
    last = past("drift", made=PROMOTED + 5 * DAY, ended=PROMOTED + 6 * DAY)
    assert "1 of 2" in waits(known(alarms=alarms, retrainings=(last,)), triggers={"drift_alarms": 2}).why
    more = (*alarms, alarm(17))
    assert decided(known(alarms=more, retrainings=(last,)), triggers={"drift_alarms": 2}).reasons["alarms"] == 2


def test_a_schedule_counts_from_the_promotion_or_the_last_retraining():
    """Due at 20 days it is a reason then, and not before; after one it is due 20 days later."""
    every = {"triggers": {"every_days": 20}}
    assert waits(now=NOW - HOUR, **every).why == "every_days: due at 2026-01-21 00:00 UTC"
    found = decided(now=NOW, **every)
    assert (found.trigger, found.evidence_at, found.reasons["days"]) == ("schedule", NOW, 20)
    last = past("schedule", made=NOW + HOUR, ended=NOW + 2 * HOUR)
    assert (
        waits(known(retrainings=(last,)), now=NOW + 10 * DAY, **every).why == "every_days: due at 2026-02-10 01:00 UTC"
    )


def test_new_labels_count_from_the_promotion_or_the_last_retraining():
    """5,000 are wanted: 6,000 are enough, 4,000 since the last one are not."""
    labels = {"triggers": {"new_labels": 5_000}}
    assert decided(**labels).reasons == {"labelled_rows": 6_000, "new_labels": 6_000}
    last = past(reasons={"labelled_rows": 2_000})
    found = waits(known(retrainings=(last,)), **labels)
    assert found.why == "new_labels: 4,000 of 5,000 rows got a label since 2026-01-16 00:00 UTC"
    before = past(reasons={"labelled_rows": 9_000}, made=PROMOTED - DAY, ended=PROMOTED - HOUR)
    assert decided(known(retrainings=(before,)), **labels).reasons["new_labels"] == 6_000


def test_the_most_telling_trigger_is_named():
    """Skill before a schedule, where both are due."""
    assert decided(triggers={"every_days": 1, "skill": True}).trigger == "skill"
    both = {"every_days": 1, "skill": True}
    assert decided(known(verdict=verdict("as before", 0.0)), triggers=both).trigger == "schedule"


def test_the_same_evidence_is_not_tried_again():
    """What was stopped on it waits for a newer window, and says so."""
    same = past(evidence=decided().evidence, note="the gate refused it")
    found = waits(known(retrainings=(same,)))
    assert found.kind == "no trigger"
    assert "the same led to retraining" in found.why
    assert "the gate refused it" in found.why
    assert decided(known(retrainings=(same,), judged_until=NOW - DAY)).evidence != same.evidence


@pytest.mark.parametrize(
    ("facts", "kind", "why"),
    [
        (known(retrainings=(past(ended=None),)), "open", "one at a time: retraining"),
        (known(freeze=Freeze("m", "holidays", "ada", PROMOTED)), "frozen", "m is frozen since"),
        (known(incidents=("incident 1: no row",)), "incident", "nothing during an incident: incident 1: no row"),
        (known(rollout="version 4 is being rolled out"), "rollout", "one at a time: version 4 is being"),
        (known(retrainings=(past(ended=NOW - HOUR),)), "cool-down", "cool-down of 24 h until 2026-01-21 23:00 UTC"),
    ],
)
def test_what_holds_a_retraining_is_said_with_what_triggers_it(facts, kind, why):
    """The reason for it is named too."""
    found = waits(facts)
    assert found.kind == kind
    assert found.why.startswith(why)
    assert found.why.endswith("; then: skill: 0.050 of skill lost")


def test_a_freeze_that_is_over_holds_nothing():
    """It held until an hour ago."""
    assert decided(known(freeze=Freeze("m", "holidays", "ada", PROMOTED, NOW))).trigger == "skill"


def test_cool_down_and_budget_are_of_no_interest_while_nothing_triggers():
    """What a trigger waits for is said then."""
    facts = known(verdict=verdict("as before", 0.0), retrainings=(past(ended=NOW - HOUR),))
    assert waits(facts).kind == "no trigger"


def test_the_budget_is_over_a_span():
    """Two within ten days: used until the older of both is ten days old."""
    made = [NOW - 4 * DAY, NOW - 9 * DAY, NOW - 11 * DAY]
    facts = known(retrainings=tuple(past(f"e{at}", made=at, ended=at + HOUR) for at in made))
    found = waits(facts, budget=2, budget_days=10, **SKILL)
    assert (found.kind, found.until) == ("budget", NOW + DAY)
    assert found.why.startswith("2 retrainings within 10 days, and 2 are the budget: used until 2026-01-22 00:00 UTC")
    assert decided(facts, now=NOW + DAY, budget=2, budget_days=10, **SKILL).trigger == "skill"


def test_a_person_is_held_by_what_is_open_and_frozen_alone():
    """Neither cool-down nor budget nor an incident does it, which is kept as one that was there."""
    busy = known(retrainings=(past(ended=NOW - HOUR),) * 9, incidents=("incident 1: no row",))
    found = decide_by_person(busy, now=NOW, why="a new fleet", actor="ada")
    assert (found.trigger, found.why, found.reasons["during"]) == ("person", "a new fleet", ["incident 1: no row"])
    for facts in (known(retrainings=(past(ended=None),)), known(freeze=Freeze("m", "no", "bob", PROMOTED))):
        assert isinstance(decide_by_person(facts, now=NOW, why="x", actor="ada"), Waiting)


STEPS = st.lists(
    st.tuples(
        st.floats(0.5, 80.0),
        st.sampled_from(
            ["", "freeze", "thaw", "break", "mend", "worse", "as before", "alarm", "end", "end", "promote"]
        ),
    ),
    min_size=1,
    max_size=60,
)
POLICIES = st.fixed_dictionaries(
    {
        "cool_down_h": st.sampled_from([0.0, 6.0, 72.0]),
        "budget": st.integers(1, 3),
        "budget_days": st.sampled_from([1.0, 7.0, 30.0]),
        "triggers": st.fixed_dictionaries(
            {
                "skill": st.booleans(),
                "drift_alarms": st.sampled_from([None, 1, 2]),
                "every_days": st.sampled_from([None, 0.2, 5.0]),
                "new_labels": st.sampled_from([None, 100]),
            }
        ),
    }
)


@settings(max_examples=200, deadline=None)
@given(STEPS, POLICIES)
def test_whatever_happens_the_bounds_hold(steps, fields):
    """Never two at a time, never the same evidence, not in the cool-down, beyond the budget, frozen or broken."""
    section, facts, now = policy(**fields), known(verdict=None, judged_until=None, labelled_rows=0), PROMOTED
    for hours, event in steps:
        now += hours * HOUR
        facts = happened(facts, event, now)
        found = decide(facts, section, now=now)
        if isinstance(found, Waiting):
            assert found.why
            continue
        before = facts.retrainings
        assert all(not one.is_open for one in before)
        assert facts.freeze is None
        assert not facts.incidents
        assert all(one.ended_at + section.cool_down_h * HOUR <= now for one in before)
        assert sum(one.made_at > now - section.budget_days * DAY for one in before) < section.budget
        assert retraining_id("state", "m", found.trigger, found.evidence) not in {one.id for one in before}
        new = past(found.trigger, found.evidence, made=now, ended=None, reasons=found.reasons)
        facts = replace(facts, retrainings=(new, *before))


def happened(facts, event, now):
    facts = replace(facts, labelled_rows=facts.labelled_rows + 10, judged_until=now)
    if event == "freeze":
        return replace(facts, freeze=Freeze("m", "x", "ada", now))
    if event == "thaw":
        return replace(facts, freeze=None)
    if event in {"break", "mend"}:
        return replace(facts, incidents=("incident",) if event == "break" else ())
    if event in {"worse", "as before"}:
        return replace(facts, verdict=verdict(event))
    if event == "alarm":
        return replace(facts, alarms=(*facts.alarms, Alarm(now, {"hour": 0.4})))
    if event == "promote":
        return replace(facts, champion=facts.champion + 1, promoted_at=now, labelled_rows=0, alarms=())
    if event == "end" and facts.retrainings and facts.retrainings[0].is_open:
        ended = replace(facts.retrainings[0], stage="stopped", ended_at=now)
        return replace(facts, retrainings=(ended, *facts.retrainings[1:]))
    return facts

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from canary_worlds import World, even, judged, run, sticky

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.rollout.loss_reader import LossReport
from raymlops.lifecycle.rollout.policy import StepEvidence, after, decide, evidence_of, next_weight
from raymlops.predictions.counts import Counts, Losses
from raymlops.records import to_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BAKE_S, MAX_WAIT_S = 600, 3600
GOOD = StepEvidence(0.1, Counts(3000, 3, 30), Counts(27_000, 27, 270))
FEW = StepEvidence(0.1, Counts(12, 0, 0), Counts(108, 0, 1))


def rollout(step=0, *, steps=(10.0, 50.0, 100.0), **fields):
    settings = RolloutSection(steps=steps, bake_s=BAKE_S, max_wait_s=MAX_WAIT_S, **fields)
    return replace(begin(rollout_id="r", name="m", version=2, champion=1, settings=settings, now=NOW), step=step)


def asked(evidence, seconds, *, which=None):
    evidence = [evidence] if isinstance(evidence, StepEvidence) else evidence
    return decide(which or rollout(), evidence, now=NOW + timedelta(seconds=seconds))


def test_a_step_waits_until_it_has_baked():
    """However good the numbers are."""
    decision = asked(GOOD, 599)
    assert (decision.action, decision.reason) == ("wait", "step 1 of 3 at 10 percent: 599 of 600 s")


def test_a_good_step_is_followed_by_the_next_and_the_last_by_the_promotion():
    """10 and 50 percent are baked; 100 is the promotion itself, with nobody left to compare with."""
    assert asked(GOOD, 600).action == "advance"
    assert next_weight(rollout(0)) == 0.5
    half = StepEvidence(0.5, Counts(15_000, 15, 150), Counts(15_000, 15, 150))
    assert asked([GOOD, half], 600, which=rollout(1)).action == "promote"
    assert next_weight(rollout(1)) is None


def test_steps_may_end_below_100_or_be_100_alone():
    """The first promote when the last one passed, the second at once."""
    assert asked(GOOD, 600, which=rollout(steps=(10.0,))).action == "promote"
    assert asked([], 0, which=rollout(steps=(100.0,))).action == "promote"


def test_a_canary_that_always_fails_is_stopped_at_its_fourth_request():
    """Errors and late answers alike: a second of 50 requests; three of either are no proof yet."""
    for counts in (Counts(4, errors=4), Counts(4, late=4)):
        decision = asked(StepEvidence(0.1, counts, Counts(36)), 1)
        assert decision.action == "abort"
    assert "errors" not in decision.reason
    assert "slow answers 100.00% of 4 against 0.00% of 36 requests" in decision.reason
    assert asked(StepEvidence(0.1, Counts(3, errors=3), Counts(27)), 1).action == "wait"


def test_a_canary_that_rejects_what_the_champion_answers_is_stopped():
    """Its callers get no answer, though it never fails; where both reject as many, it passes."""
    rejects = StepEvidence(0.1, Counts(40, refused=40), Counts(360, refused=18))
    assert asked(rejects, 1).action == "abort"
    assert "errors and rejected requests 100.00% of 40 against 5.00% of 360" in asked(rejects, 1).reason
    half = StepEvidence(0.1, Counts(3000, refused=450), Counts(27_000, refused=1350))
    assert asked(half, 600).action == "abort"
    alike = StepEvidence(0.1, Counts(3000, errors=3, refused=150), Counts(27_000, errors=27, refused=1350))
    assert asked(alike, 600).action == "advance"


def test_evidence_of_all_steps_counts_together():
    """Neither step is proof by itself; both are."""
    first = StepEvidence(0.1, Counts(100, errors=4), Counts(900, errors=3))
    second = StepEvidence(0.5, Counts(100, errors=9), Counts(100, errors=0))
    assert asked([first], 1).action == "wait"
    assert asked([StepEvidence(0.1), second], 1, which=rollout(1)).action == "wait"
    assert asked([first, second], 1, which=rollout(1)).action == "abort"


def test_harm_too_small_to_matter_stops_nothing():
    """0.1% against 0.4% in a million requests is sure, but 0.3 points are below a tenth of the margin of 5."""
    sure = StepEvidence(0.1, Counts(100_000, errors=400), Counts(900_000, errors=900))
    decision = asked(sure, 600)
    assert decision.numbers["questions"]["errors"]["evidence"] > decision.numbers["questions"]["errors"]["limit"]
    assert decision.action == "advance"
    assert asked(sure, 600, which=rollout(error_margin=0.02)).action == "abort"


def test_too_little_traffic_is_held_until_there_is_a_verdict():
    """The reason says what there was, and what would have been allowed; enough of it is a verdict at any time."""
    assert [asked(FEW, seconds).action for seconds in (600, 3599, 3600, 360_000)] == ["wait"] * 4
    reason = asked(FEW, 3600).reason
    assert "held: no verdict after 3,600 s: too few requests, 12 of the canary and 108 of the champion" in reason
    assert "held" not in asked(FEW, 3599).reason
    assert asked(GOOD, 360_000).action == "advance"
    assert asked(StepEvidence(0.1, Counts(9, errors=9), Counts(81)), 360_000).action == "abort"


def test_too_little_traffic_is_aborted_where_that_is_asked_for():
    """At the end of the wait, and not before."""
    which = rollout(on_no_verdict="abort")
    assert [asked(FEW, seconds, which=which).action for seconds in (600, 3599, 3600)] == ["wait", "wait", "abort"]
    assert "percent: no verdict after 3,600 s: too few requests" in asked(FEW, 3600, which=which).reason
    assert asked([], 3600, which=which).action == "abort"


def test_a_rollout_of_a_release_that_knew_no_hold_is_held():
    """Its settings lack the field."""
    which = rollout()
    old = replace(which, settings={key: value for key, value in which.settings.items() if key != "on_no_verdict"})
    assert asked(FEW, 3600, which=old).action == "wait"


def test_a_bake_longer_than_the_wait_is_waited_for():
    """A step may pass when it has baked, whatever the wait is."""
    long = rollout(on_no_verdict="abort")
    long = replace(long, settings=long.settings | {"bake_s": 7200.0})
    assert [asked(GOOD, seconds, which=long).action for seconds in (3600, 7199, 7200)] == ["wait", "wait", "advance"]
    assert [asked(FEW, seconds, which=long).action for seconds in (7199, 7200)] == ["wait", "abort"]


def test_a_higher_loss_is_found_where_there_are_labels():
    """0.4 against 0.1 of 200 and 1,800 labelled requests."""
    worse = replace(GOOD, canary_losses=judged(120, 80), champion_losses=judged(1620, 180))
    decision = asked(worse, 60)
    assert decision.action == "abort"
    assert "mean loss 0.4 of 200 against 0.1 of 1,800 labelled requests" in decision.reason


def test_evidence_of_worse_answers_outlives_the_step_that_showed_it():
    """The next step has no label yet, and is aborted by those of the first; with good ones it waits for its own."""
    worse = replace(GOOD, canary_losses=judged(120, 80), champion_losses=judged(1620, 180))
    half = StepEvidence(0.5, Counts(15_000, 15, 150), Counts(15_000, 15, 150))
    assert asked([worse, half], 1, which=rollout(1)).action == "abort"
    good = replace(GOOD, canary_losses=judged(200), champion_losses=judged(1800))
    assert [asked([good, half], seconds, which=rollout(1)).action for seconds in (600, 3600)] == ["wait", "wait"]
    more = replace(half, canary_losses=judged(900), champion_losses=judged(900))
    assert asked([good, more], 3600, which=rollout(1)).action == "promote"


def test_labels_too_few_for_a_verdict_hold_a_step():
    """As too few requests do: a version that is worse by its answers would pass on them."""
    few = replace(GOOD, canary_losses=judged(1, 1), champion_losses=judged(9, 9))
    assert [asked(few, seconds).action for seconds in (600, 3599, 3600)] == ["wait", "wait", "wait"]
    assert "held: no verdict after 3,600 s: too few labelled requests, 2 of the canary" in asked(few, 3600).reason
    ends = rollout(on_no_verdict="abort")
    assert [asked(few, seconds, which=ends).action for seconds in (3599, 3600)] == ["wait", "abort"]
    without = rollout(quality_margin=None)
    assert asked(few, 600, which=without).action == "advance"


def test_labels_that_come_hours_later_are_waited_for():
    """Where they arrive for the model at all: of this step's answers there is none yet."""
    current = LossReport(covers=NOW + timedelta(days=1), tried=NOW + timedelta(days=1), labelled=True)

    def decided(evidence, seconds):
        return decide(rollout(), [evidence], now=NOW + timedelta(seconds=seconds), losses=current)

    assert [decided(GOOD, seconds).action for seconds in (600, 3600, 4 * 3600)] == ["wait", "wait", "wait"]
    assert "too few labelled requests, 0 of the canary and 0 of the champion" in decided(GOOD, 600).reason
    known = replace(GOOD, canary_losses=judged(200), champion_losses=judged(1800))
    assert decided(known, 5 * 3600).action == "advance"
    worse = replace(GOOD, canary_losses=judged(120, 80), champion_losses=judged(1620, 180))
    assert decided(worse, 5 * 3600).action == "abort"
    none = Losses(note="labels such as 'x' cannot be compared")
    incomparable = replace(GOOD, canary_losses=none, champion_losses=none)
    assert decided(incomparable, 600).action == "wait"
    assert decided(incomparable, 600).reason.endswith("; quality: labels such as 'x' cannot be compared")


def test_garbage_beside_a_good_champion_is_harm():
    """Every one of its errors is beyond the scale, of the champion's one in twenty: 1.0 against 0.43."""
    usual = Losses.of([0.4] * 1710 + [1.0] * 90, [0.5] * 1800, clipped=90)
    decision = asked(replace(GOOD, canary_losses=judged(0, 200, clipped=200), champion_losses=usual), 60)
    assert decision.action == "abort"
    assert "mean loss 1 of 200 against 0.43 of 1,800" in decision.reason


@pytest.mark.parametrize("canary", [judged(0, 2000, clipped=2000), judged(1800, 200)])
def test_where_most_losses_are_clipped_there_is_no_verdict(canary):
    """Errors beyond the champion's own scale are all alike: nothing passes, and nothing is harm, by them."""
    clipped = Losses.of([0.3] * 800 + [1.0] * 1200, [0.5] * 2000, clipped=1200)
    step = replace(GOOD, canary_losses=canary, champion_losses=clipped)
    assert asked(step, 600).action == "wait"
    quality = asked(step, 600).numbers["questions"]["quality"]
    assert (quality["harmful"], quality["passed"]) == (False, False)
    assert "no verdict on quality: most losses of the" in asked(step, 3600).reason
    assert "are clipped at 1" in asked(step, 3600).reason


def test_a_canary_whose_losses_are_mostly_clipped_does_not_pass():
    """It is worse by no more than the margin, as far as clipped losses can say, which is not far."""
    both = replace(
        GOOD,
        canary_losses=Losses.of([0.9] * 4500 + [1.0] * 5500, [1.0] * 10_000, clipped=5500),
        champion_losses=Losses.of([0.92] * 5500 + [1.0] * 4500, [1.0] * 10_000, clipped=4500),
    )
    assert asked(both, 600).action == "wait"
    assert "most losses of the canary are clipped" in asked(both, 600).reason
    unclipped = replace(both, canary_losses=replace(both.canary_losses, clipped=0))
    assert asked(unclipped, 600).action == "advance"


def test_quality_that_cannot_be_asked_is_said_at_every_decision():
    """It holds no step, and is among the questions with its reason."""
    none = Losses(note="'price' is a number, and no scale of its errors was kept")
    step = replace(GOOD, canary_losses=none, champion_losses=none)
    for seconds, action in ((60, "wait"), (600, "advance")):
        decision = asked(step, seconds)
        assert decision.action == action
        assert decision.reason.endswith(f"; quality not judged: {none.note}")
        assert decision.numbers["questions"]["quality"] == {
            "question": "quality",
            "asked": False,
            "reason": none.note,
        }
    assert asked(GOOD, 600).reason.endswith("; no labels")


def test_what_failed_in_asking_is_said_beside_the_verdict():
    failed = judged(1800, note="Mine.loss_of() raised KeyError: 'y'")
    good = replace(GOOD, canary_losses=judged(2000), champion_losses=failed)
    assert asked(good, 600).reason.endswith("; quality: Mine.loss_of() raised KeyError: 'y'")


BAKED = NOW + timedelta(seconds=BAKE_S)
LABELLED = replace(GOOD, canary_losses=judged(200), champion_losses=judged(1800))
AWAY = "losses unknown since 12:00: the storage is away"


@pytest.mark.parametrize(
    ("losses", "evidence", "actions", "reason"),
    [
        (LossReport(covers=BAKED, tried=BAKED), GOOD, "advance", "; no labels"),
        (
            LossReport(covers=NOW, tried=NOW),
            GOOD,
            "wait wait wait",
            "held: no verdict after 3,600 s: the prediction log",
        ),
        (LossReport(), GOOD, "wait wait wait", "held: no verdict after 3,600 s: the prediction log is being read for"),
        (LossReport(covers=NOW, tried=NOW), LABELLED, "wait wait wait", "held: no verdict after 3,600 s: the predict"),
        (LossReport(off="the log is off"), GOOD, "advance", "; quality not judged: the log is off"),
        (LossReport(tried=BAKED, unknown=AWAY), GOOD, "wait wait wait", f"held: no verdict after 3,600 s: {AWAY}"),
        (LossReport(tried=NOW, unknown=AWAY), GOOD, "wait wait wait", f"held: no verdict after 3,600 s: {AWAY}"),
        (LossReport(tried=BAKED, unknown=AWAY, labelled=True), GOOD, "wait wait wait", f"is allowed; {AWAY}"),
        (LossReport(tried=BAKED, unknown=AWAY), LABELLED, "wait wait wait", f"held: no verdict after 3,600 s: {AWAY}"),
        (LossReport(covers=BAKED, tried=BAKED, unknown=AWAY), LABELLED, "advance", "; at most "),
    ],
    ids=[
        *("read, no label", "read too early", "being read", "read too early, labelled", "off", "away"),
        *("away too early", "away, labels seen", "away, labelled", "away since"),
    ],
)
def test_a_step_passes_on_losses_of_its_whole_bake(losses, evidence, actions, reason):
    """Or where there is no log, which the reason says; what one holds that cannot be read nobody knows."""
    found = [
        decide(rollout(), [evidence], now=NOW + timedelta(seconds=seconds), losses=losses)
        for seconds in (BAKE_S, MAX_WAIT_S - 1, MAX_WAIT_S)
    ]
    expected = actions.split()
    assert [decision.action for decision in found] == expected * (3 // len(expected))
    assert reason in found[-1].reason
    assert losses.covers == NOW or found[0].numbers["losses"]["unknown"] == losses.unknown


def test_a_log_that_is_being_read_is_waited_for_after_a_long_bake():
    """For five minutes, where the bake has taken all of ``max_wait_s``."""
    long = replace(rollout(), settings=rollout().settings | {"bake_s": 7200.0, "on_no_verdict": "abort"})

    def action(evidence, seconds):
        return decide(long, [evidence], now=NOW + timedelta(seconds=seconds), losses=LossReport()).action

    assert [action(GOOD, seconds) for seconds in (7200, 7499, 7500)] == ["wait", "wait", "abort"]


def test_what_was_left_out_of_the_labels_is_said():
    """With the verdict that rests on the others, and where a step is held for want of them."""
    few = LossReport(covers=BAKED, tried=BAKED, labelled=True, left_out="those of one in 8 rows are read")
    for evidence in (LABELLED, GOOD):
        assert decide(rollout(), [evidence], now=BAKED, losses=few).reason.endswith("; those of one in 8 rows are read")


def test_harm_is_judged_by_the_losses_that_are_known():
    """However old they are."""
    worse = replace(GOOD, canary_losses=judged(120, 80), champion_losses=judged(1620, 180))
    old = LossReport(covers=NOW, tried=BAKED, unknown=AWAY)
    assert decide(rollout(), [worse], now=NOW + timedelta(seconds=599), losses=old).action == "abort"


def test_a_clock_that_is_set_back_makes_a_step_longer():
    """It waits, and proof is proof at any time."""
    assert asked(GOOD, -3600).action == "wait"
    assert asked(StepEvidence(0.1, Counts(9, errors=9), Counts(81)), -3600).action == "abort"


def test_counts_that_vanish_with_a_replica_harm_nobody():
    """What is left is judged; nothing at all, less than nothing and more errors than requests are no crash."""
    half = StepEvidence(0.1, Counts(1500, 2, 15), Counts(13_500, 13, 135))
    assert asked([half], 600).action == "advance"
    assert asked([StepEvidence(0.1)], 600).action == "wait"
    assert asked([StepEvidence(0.1, Counts(-5, -1, -1), Counts(-50, 3))], 600).action == "wait"
    assert asked([StepEvidence(0.1, Counts(0, 9, 9), Counts(100, 300))], 600).action == "wait"


def test_evidence_of_a_step_that_is_not_there_yet_is_none():
    """A controller that lost its memory goes on with what it has."""
    assert asked([GOOD], 600, which=rollout(1)).action == "wait"
    assert asked([GOOD, GOOD], 600).action == "advance"  # a step that comes later does not count


def test_the_record_follows_the_decisions():
    """Step and clock move with an advance, an end has its time and status, and the evidence comes back from JSON."""
    evidence = [replace(GOOD, canary_losses=judged(999), champion_losses=judged(999))]
    later = NOW + timedelta(seconds=600)
    moved = after(rollout(), decide(rollout(), evidence, now=later), evidence=evidence, now=later)
    assert (moved.step, moved.step_started_at, moved.status) == (1, later, "running")
    assert evidence_of(replace(moved, evidence=json.loads(json.dumps(moved.evidence)))) == evidence
    bad = [*evidence, StepEvidence(0.5, Counts(20, errors=20), Counts(20))]
    ended = after(moved, decide(moved, bad, now=later), evidence=bad, now=later)
    assert (ended.status, ended.ended_at, ended.step) == ("aborted", later, 1)
    assert "errors and rejected requests 100.00% of 20" in ended.reason
    assert decide(ended, bad, now=later).action == "wait"


def test_numbers_are_json():
    """Also where the evidence is beyond any float."""
    decision = asked(StepEvidence(0.1, Counts(10**6, errors=10**6), Counts(9 * 10**6)), 1)
    assert json.loads(to_json(decision.to_dict()))["numbers"]["questions"]["errors"]["evidence"] == pytest.approx(1e12)


def test_settings_of_another_version_of_raymlops_are_read():
    """What this one does not know is left out."""
    which = rollout()
    assert asked(GOOD, 600, which=replace(which, settings=which.settings | {"colour": "red"})).action == "advance"


SHORT = RolloutSection(bake_s=40.0)


def test_equally_good_versions_are_rarely_stopped():
    """With a fifth allowed, of 300 rollouts that are looked at every second, over two steps, at most a fifth are."""
    settings = SHORT.model_copy(update={"alpha": 0.2})
    world = World(errors=0.05, slow=0.02)
    steps = even(world, world, settings=settings, rps=100)
    assert 0 < run(steps, settings=settings, count=300, seed=1, until_s=120).share("abort") <= 0.2


def test_five_points_more_errors_are_found_within_a_minute():
    """In 99 of 100 rollouts at 50 requests a second, a tenth of them the canary's."""
    steps = even(World(), World(errors=0.05), settings=SHORT, rps=50)
    assert run(steps, settings=SHORT, count=200, seed=2, until_s=60).within(60) >= 0.99


def test_callers_of_unequal_weight_do_not_stop_an_equal_version():
    """A hundred that keep to a version, the first sending a fifth of all requests, which may be the canary's."""
    steps = sticky(settings=SHORT, rps=50, callers=100, unlike=False, count=200, seed=3)
    assert run(steps, settings=SHORT, count=200, seed=4, until_s=40).share("abort") <= 0.01

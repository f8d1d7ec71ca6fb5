"""What a rollout can show is said before it begins, by the numbers with which it will be decided."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from canary_worlds import judged

from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.rollout.policy import decide
from raymlops.lifecycle.rollout.power import RecentTraffic, expected, forecast, in_words
from raymlops.lifecycle.rollout.significance import StepEvidence
from raymlops.predictions.counts import Counts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = RolloutSection()
SOME = RecentTraffic(3600.0, slow=0.01, labelled=None)


def test_a_step_shows_what_its_bounds_leave_open():
    """A request a second for 600 s at a half: 300 of each version without an error.

    Of the upper bound of a share without any event only the Beta-binomial mixture is left:
    B(0.5, 300.5) / B(0.5, 0.5) = 0.0326, times alpha / 4 = 0.0025 is (1 - p)^300, so that p = 3.08%.
    """
    found = forecast(SOME, RolloutSection(steps=(50.0, 100.0)))
    assert [step.weight for step in found] == [0.5]
    assert found[0].shows["errors"] == pytest.approx(0.0308, abs=0.0002)
    assert found[0].shows["slow"] > found[0].shows["errors"]
    assert "quality" not in found[0].shows


@pytest.mark.parametrize("requests", [120.0, 3600.0, 36_000.0])
@pytest.mark.parametrize("labelled", [None, 0.5])
def test_a_verdict_comes_when_it_is_forecast(requests, labelled):
    """The rollout passes on the expected counts at that time, and did not an eighth earlier."""
    traffic = RecentTraffic(requests, slow=0.02, answers=judged(80, 20))
    traffic = replace(traffic, labelled=None if labelled is None else labelled * requests)
    (step, _) = forecast(traffic, SETTINGS)
    rollout = begin(rollout_id="r", name="m", version=2, champion=1, settings=SETTINGS, now=NOW)

    def action(seconds):
        canary, champion = (
            (
                Counts(round(n), 0, round(n * 0.02)),
                judged(80, 20).times(n * (labelled or 0) / 100),
            )
            for n in (requests * seconds / 3600 * part for part in (0.1, 0.9))
        )
        evidence = StepEvidence(0.1, canary[0], champion[0], canary[1], champion[1])
        evidence = evidence if labelled else StepEvidence(0.1, canary[0], champion[0])
        return decide(rollout, [evidence], now=NOW + timedelta(seconds=seconds)).action

    if step.verdict_s is None:
        assert action(30 * 86_400) == "wait"
        return
    assert action(step.verdict_s * 1.02) == "advance"
    assert step.verdict_s == SETTINGS.bake_s or action(step.verdict_s * 0.875) == "wait"


def test_more_traffic_and_larger_shares_show_smaller_differences():
    little, much = (forecast(replace(SOME, requests=number), SETTINGS) for number in (1000, 10_000))
    for question in ("errors", "slow"):
        shown = [step.shows[question] for step in (little[0], little[1], much[0], much[1])]
        assert shown[0] > shown[1] > shown[3]
        assert shown[0] > shown[2] > shown[3]


def test_a_worse_version_is_expected_to_be_found():
    """Five points more errors, of 3,600 requests at a half."""
    errors, slow = expected(3600, SOME, weight=0.5, settings=SETTINGS, worse=0.05)
    assert errors.harmful
    assert slow.harmful
    assert not any(finding.harmful for finding in expected(3600, SOME, weight=0.5, settings=SETTINGS))


def test_the_outlook_says_traffic_share_time_and_difference():
    first, second = in_words(replace(SOME, requests=36_000, slow=0.0), SETTINGS)
    assert first == (
        "step 1 of 3: at 36,000 requests an hour and 10% canary, 10 min can show a difference of 1.6% in errors "
        "(margin 5.0%), 1.7% in slow answers (margin 10.0%); an equally good version passes after about 10 min"
    )
    assert second.startswith("step 2 of 3: at 36,000 requests an hour and 50% canary, ")


def test_the_outlook_says_where_a_step_will_be_held():
    """Or where the rollout will be aborted; a step at 100 percent compares nothing."""
    little = RecentTraffic(120.0)
    assert in_words(little, SETTINGS)[0].endswith("; a verdict takes about 15 h, and after 60 min the step is held")
    assert in_words(little, RolloutSection(on_no_verdict="abort"))[0].endswith("60 min the rollout is aborted")
    assert in_words(RecentTraffic(0.0), SETTINGS) == (
        "no request in the last hour: without traffic there is no verdict, and the step is held",
    )
    assert in_words(RecentTraffic(0.0), RolloutSection(steps=(100.0,))) == ()
    labels = in_words(RecentTraffic(3600.0, labelled=0.0), SETTINGS)
    assert "no difference in quality; a verdict takes more than 30 days" in labels[0]
    assert labels[-1].startswith("labels arrived in the last seven days, and none in the last hour")
    assert len(in_words(RecentTraffic(3600.0, labelled=None), SETTINGS)) == 2


def test_what_labels_cannot_decide_is_said_beforehand():
    """A weak signal takes longer than a strong one; of one that gains nothing only a better version passes."""
    times = []
    for answers in (judged(90, 10), judged(60, 40)):
        traffic = RecentTraffic(3600.0, labelled=3600.0, answers=answers)
        step, _ = forecast(traffic, SETTINGS)
        times.append(step.verdict_s)
    assert times[0] < times[1]
    assert "no difference in quality; a verdict takes about" in in_words(traffic, SETTINGS)[0]
    much = replace(traffic, labelled=360_000.0, requests=360_000.0)
    assert "% of what the champion gains over a blind predictor (margin 50%)" in in_words(much, SETTINGS)[0]
    nothing = in_words(RecentTraffic(3600.0, labelled=3600.0, answers=judged(50, 50)), SETTINGS)
    assert "a verdict takes more than 30 days" in nothing[0]
    assert "50 labelled answers" in in_words(RecentTraffic(3600.0, labelled=9.0, answers=judged(20, 30)), SETTINGS)[-1]
    unknown = in_words(RecentTraffic(3600.0, labelled=3600.0), SETTINGS)
    assert "none of their rows was found" in unknown[-1]
    assert "quality" not in unknown[0]

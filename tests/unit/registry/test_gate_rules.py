"""The gate's arithmetic, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.config.schema import GateSection
from raymlops.config.sweep import Threshold
from raymlops.errors import UsageError
from raymlops.registry.gate_rules import ChampionEvaluation, decide


def mean(totals):
    """Return the finalized mean loss."""
    return {"loss": float(totals["loss"]) / float(totals["count"])}


def blocks_of(losses, *, rows: float = 10.0):
    """Return one block for each loss, of so many rows that lost so much each."""
    return [{"loss": np.array(loss * rows), "count": np.array(rows)} for loss in losses]


def ask(ours, theirs, *, metric="test/loss", mode="min", metrics=None, finalize=mean, blocks_are="blocks", **gate):
    """Ask the gate about two models with these losses by block."""
    champion = None
    if theirs is not None:
        champion = ChampionEvaluation(3, blocks_of(theirs), finalize, trained_on_share=gate.pop("share", None))
    return decide(
        GateSection(**gate),
        metrics={"test/loss": 0.5, "test/auc": 0.7} if metrics is None else metrics,
        metric=metric,
        mode=mode,
        candidate_blocks=blocks_of(ours),
        candidate_finalize=finalize,
        champion=champion,
        blocks_are=blocks_are,
    )


def test_few_days_are_refused_however_good_the_candidate():
    """Four days of .4 against .5 show nothing for certain, five do."""
    few = ask([0.4] * 4, [0.5] * 4, blocks_are="days").checks[-1]
    assert (few.passed, few.got) == (False, None)
    assert "4 days" in few.detail
    assert ask([0.4] * 5, [0.5] * 5, blocks_are="days").passed


def test_of_models_that_are_alike_one_in_twenty_passes_by_few_days():
    """Ten days whose differences are normal, 300 times: 5% and twice its standard error of 1.3%."""
    rng = np.random.default_rng(0)
    found = [ask(0.5 + 0.1 * rng.normal(size=10), [0.5] * 10, blocks_are="days", resamples=400) for _ in range(300)]
    assert np.mean([decision.passed for decision in found]) <= 0.076


def test_the_bound_of_few_blocks_has_students_quantile():
    """Ten days of .08 and .12 in turns: t is 1.833 for 1.645, and resamples lack a tenth of the variance."""
    losses = 0.5 - 0.1 - 0.02 * np.tile([-1.0, 1.0], 5)
    got = ask(losses, [0.5] * 10, blocks_are="days", resamples=20_000).checks[-1].got
    assert got == pytest.approx(0.1 - 1.833 * 0.02 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("bounds", "passed"),
    [({"min": 0.7}, True), ({"min": 0.71}, False), ({"max": 0.7}, True), ({"max": 0.69}, False)],
)
def test_a_threshold_is_kept_or_not(bounds, passed):
    """The bound itself passes; the name may be written with or without its split."""
    for name in ("auc", "test/auc"):
        decision = ask([], None, thresholds={name: Threshold(**bounds)})

        assert decision.passed is passed
        assert decision.checks[0].name == "test/auc"
        assert decision.checks[0].got == 0.7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_metric_that_is_no_number_fails_its_threshold(value):
    """Whichever bound is asked for; the record holds no NaN, which JSON lacks."""
    for bounds in ({"min": 0.0}, {"max": 1.0}):
        decision = ask([], None, metrics={"test/loss": 1, "test/auc": value}, thresholds={"auc": Threshold(**bounds)})

        assert not decision.passed
        assert decision.checks[0].got is None


def test_a_metric_that_was_not_reported_is_a_mistake_of_the_configuration():
    """Named with those that were, and the nearest."""
    with pytest.raises(UsageError, match=r"'acu'.*reported: test/auc, test/loss\n.*test/auc"):
        ask([], None, thresholds={"acu": Threshold(min=0.5)})
    with pytest.raises(UsageError, match="'accuracy'"):
        ask([], None, metric="accuracy")


def test_without_a_champion_thresholds_decide_alone():
    """The first version has nothing to be compared with."""
    decision = ask([], None)

    assert decision.passed
    assert decision.champion_version is None
    assert decision.notes == ("There is no other champion to compare with.",)


def test_few_blocks_that_differ_show_no_better_model():
    """Three of 200 blocks are better by 1: mean .015, and three more that are as much worse would leave none of it."""
    theirs = np.ones(200)
    ours = np.where(np.arange(200) < 3, 0.0, 1.0)
    found = ask(ours, theirs, confidence=0.95).checks[-1]

    assert not found.passed
    assert found.detail.endswith("; as few as 3.0 blocks carry the difference, so that it is lowered by 0.015")
    assert ask(ours, theirs, margin=0.02).passed  # nobody is worse by that
    assert ask(np.where(np.arange(200) < 12, 0.0, 1.0), theirs).passed


def test_of_few_blocks_unequal_ones_are_ordinary_and_one_alone_is_few():
    """28 quarters of days: gains by Student's t with four degrees of freedom are carried by five."""
    theirs = np.ones(28)
    gains = np.random.default_rng(16).standard_t(4, size=28) / 100 + 0.01
    assert (gains**2).sum() ** 2 / (gains**4).sum() < 5
    assert "carry the difference" not in ask(theirs - gains, theirs, confidence=0.95).checks[-1].detail

    one = np.where(np.arange(28) < 1, 0.0, 1.0)
    assert "as few as 1.0 blocks" in ask(one, theirs, confidence=0.95).checks[-1].detail


@pytest.mark.parametrize(("events", "passed"), [(1, False), (5, False), (0, True)])
def test_a_model_that_never_expects_a_rare_event_is_not_better_for_few_of_them(events, passed):
    """It gains .01 on each block, and loses 1 where the event is; without one nothing shows it here."""
    theirs = np.ones(200)
    ours = theirs - 0.01 + (np.arange(200) < events)

    assert ask(ours, theirs).passed is passed


def test_the_same_model_again_differs_by_nothing_and_passes():
    """Whatever the confidence, with no margin."""
    losses = np.random.default_rng(0).normal(size=30)

    decision = ask(losses, losses, confidence=0.999)

    assert decision.passed
    assert decision.checks[0].got == 0.0


def test_a_model_better_by_the_same_everywhere_has_that_for_its_bound():
    """Every resample differs by exactly 0.25, so the bound is 0.25: by -0.25 for the loss, which is to fall."""
    ours, theirs = np.full(20, 0.5), np.full(20, 0.75)

    assert ask(ours, theirs).checks[0].got == 0.25
    assert ask(theirs, ours).checks[0].got == -0.25
    assert not ask(theirs, ours, margin=0.24).passed
    assert ask(theirs, ours, margin=0.25).passed
    assert ask(theirs, ours, mode="max").checks[0].got == 0.25


def test_the_bound_agrees_with_scipy():
    """The percentile bootstrap of a mean of differences, one-sided at 90%: quantile 0.1 of 4,000 resamples.

    Blocks of one size make the metric the mean over blocks. The difference has a spread of 0.1 over 50
    blocks; two bootstraps of 4,000 agree to about 0.1 / sqrt(50) * 1.7 / sqrt(4000) = 0.0004, times 4.
    """
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    theirs = rng.normal(1.0, 0.3, size=50)
    ours = theirs - rng.normal(0.03, 0.1, size=50)
    expected = bootstrap(
        (theirs - ours,), np.mean, n_resamples=4000, confidence_level=0.9, alternative="greater", method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval.low  # fmt: skip

    check = ask(ours, theirs, confidence=0.9, resamples=4000).checks[0]

    assert check.got == pytest.approx(expected, abs=0.0016)
    assert f"{ours.mean():.5g} against {theirs.mean():.5g}" in check.detail


def test_sums_of_any_shape_are_resampled_before_they_are_finalized():
    """AUC of summed histograms is no mean of the blocks' AUCs, most of which would have no value here."""

    def auc(totals):
        positives, negatives = totals["histogram"]
        below = np.cumsum(negatives) - negatives
        return {"auc": float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))}

    def blocks(top):
        # One row a block: positives in bin `top`, negatives in bin 0, in turn.
        one = np.zeros((40, 2, 3))
        one[0::2, 0, top] = one[1::2, 1, 0] = 1
        return [{"histogram": histogram, "count": np.array(1.0)} for histogram in one]

    decision = decide(
        GateSection(),
        metrics={"test/auc": 1.0},
        metric="test/auc",
        mode="max",
        candidate_blocks=blocks(2),
        candidate_finalize=auc,
        champion=ChampionEvaluation(1, blocks(0), auc),
    )

    # 1 against ties everywhere, in every resample that has both classes.
    assert decision.checks[0].got == 0.5
    assert "auc 1 against 0.5, better by +0.5" in decision.checks[0].detail


def simulate(*, margin: float, better_by: float, trials: int = 200) -> float:
    """Return the share of candidates that pass when it is truly better by so much, with a spread of 1 a block."""
    rng = np.random.default_rng(7)
    passed = 0
    for _ in range(trials):
        theirs = rng.normal(size=60)
        ours = theirs - rng.normal(better_by, 1.0, size=60)
        passed += ask(ours, theirs, margin=margin, confidence=0.9, resamples=200).passed
    return passed / trials


def test_without_a_margin_a_model_that_is_only_as_good_seldom_passes():
    """At 90% confidence 1 in 10; 200 trials scatter by 0.021, and the percentile bootstrap is a little generous."""
    assert simulate(margin=0.0, better_by=0.0) == pytest.approx(0.10, abs=0.06)


def test_a_model_worse_by_the_margin_seldom_passes_and_one_as_good_mostly_does():
    """The spread of the difference is 1 / sqrt(60) = 0.129. With a margin of 0.4 a model as good passes with
    probability Phi(0.4 / 0.129 - 1.28) = Phi(1.82) = 0.966; one that is worse by 0.4 with 0.1.
    """
    assert simulate(margin=0.4, better_by=0.0) == pytest.approx(0.966, abs=0.04)
    assert simulate(margin=0.4, better_by=-0.4) == pytest.approx(0.10, abs=0.06)


def test_the_same_numbers_get_the_same_decision():
    """The resamples are seeded; another generator may be handed in."""
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(size=(2, 25))

    assert ask(ours, theirs) == ask(ours, theirs)


def test_fewer_than_two_blocks_cannot_pass():
    """One block says nothing about chance."""
    decision = ask([0.1], [0.9])

    assert not decision.passed
    assert "fewer than 2" in decision.checks[0].detail


def test_a_champion_that_cannot_answer_refuses_and_says_why():
    """Nobody knows whether the candidate is worse: a person decides."""
    decision = decide(
        GateSection(),
        metrics={"test/loss": 0.5},
        metric="loss",
        mode="min",
        candidate_blocks=blocks_of([0.5, 0.5]),
        candidate_finalize=mean,
        champion=ChampionEvaluation(3, None, None, reason="it lacks the column colour"),
    )

    assert not decision.passed
    assert decision.champion_version == 3
    assert decision.notes == ("Champion version 3 could not answer the test rows: it lacks the column colour",)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_metric_that_is_nan_cannot_pass(side):
    """Neither the candidate's nor the champion's."""
    losses = {"ours": np.full(20, 0.1), "theirs": np.full(20, 0.9)}
    losses[side] = np.full(20, np.nan)

    decision = ask(losses["ours"], losses["theirs"])

    assert not decision.passed
    assert decision.checks[0].got is None


def test_blocks_of_other_rows_are_a_mistake():
    """A comparison is paired or worthless."""
    with pytest.raises(UsageError, match="3 of 30 rows, 2 of 20 rows"):
        ask([1, 1, 1], [1, 1])


@pytest.mark.parametrize(
    ("share", "note"),
    [(None, "is not known"), (float("nan"), "is not known"), (0.0, "on none"), (0.25, "on 25.0% of these rows")],
)
def test_the_decision_says_whether_the_champion_was_trained_on_the_test_rows(share, note):
    """Its figures are then too good, which the reader must know."""
    decision = ask([1.0, 2.0], [1.0, 2.0], share=share)

    assert note in decision.notes[0]


@pytest.mark.parametrize("far", [1e6, 1e9, 1e12])
def test_a_label_that_is_far_off_does_not_let_a_worse_version_pass(far):
    """It makes the whole metric; what one block is beyond that is said."""
    rng = np.random.default_rng(1)
    truth = rng.normal(100, 30, 200)
    answers = truth + rng.normal(0, 10, 200)
    truth[90] = far

    decision = ask((np.zeros(200) - truth) ** 2, (answers - truth) ** 2)

    assert not decision.passed
    assert "one block makes 100% of loss: look for a label that is far off" in decision.checks[-1].detail


def test_losses_may_be_small():
    """What is rounding goes by the size of the metric, whatever unit that has."""
    losses = np.random.default_rng(1).uniform(0.5, 1.5, 200) * 1e-9
    assert not ask(losses * 10, losses).passed
    assert ask(losses * (1 + 1e-8), losses).passed


def test_what_is_rounding_of_a_ratio_goes_by_the_whole():
    """Labels that are nearly alike within each block make 1 - SSE / variance of a block as far below 0 as one likes."""
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.normal(0, 100, 40), 250) + rng.normal(0, 1e-3, 10_000)

    def blocks(answers):
        parts = zip(np.array_split(truth, 200), np.array_split(answers, 200), strict=True)
        return [
            {"count": len(y), "sse": float(((y - p) ** 2).sum()), "y": float(y.sum()), "yy": float((y * y).sum())}
            for y, p in parts
        ]

    def r2(sums):
        return {"r2": 1 - sums["sse"] / (sums["yy"] - sums["y"] ** 2 / sums["count"])}

    decision = decide(
        GateSection(),
        metrics={"test/r2": 0.0},
        metric="test/r2",
        mode="max",
        candidate_blocks=blocks(np.full(len(truth), truth.mean())),
        candidate_finalize=r2,
        champion=ChampionEvaluation(1, blocks(truth + rng.normal(0, 5, len(truth))), r2),
    )
    assert not decision.passed


def test_what_is_rounding_is_no_difference_where_most_blocks_lose_nothing():
    """As of a hinge loss: the same version passes beside itself."""
    rng = np.random.default_rng(1)
    losses = rng.uniform(0.5, 1.5, 200) * (rng.random(200) < 0.1)
    assert ask(losses * (1 + rng.normal(0, 1e-8, 200)), losses).passed


def test_one_block_of_ordinary_rows_is_not_said():
    """Also where the metric is near 0, and blocks have both signs."""
    rng = np.random.default_rng(1)
    skill = rng.normal(0.01, 1, 200)
    assert "one block" not in ask(skill, skill + 0.1).checks[-1].detail

"""What keeps a challenger back that was asked what the champion was asked."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.answer_loss import AnswerLoss
from raymlops.monitor.replayed import (
    Bounds,
    Neighbours,
    Replayed,
    decisions,
    judge,
    known_ranges,
    neighbours,
)
from raymlops.predictions.labelled_rows import Rows
from raymlops.profiles.count import profile_of
from raymlops.profiles.reference import Chunk, reference_of

WHOLE = Replayed(read=100, rows=100.0)


def check(replayed, name, **bounds):
    found = judge(replayed, champion=1, bounds=Bounds(**bounds))
    return next(each for each in found.checks if each.name == name)


def timed(ours, theirs):
    return WHOLE + Replayed(seconds=np.array(ours), champion_seconds=np.array(theirs))


def of_losses(champion, challenger, *, callers=("a", "b"), contradicted=0):
    """Return labelled requests of callers by turns, labelled a minute later; the first few are contradicted."""
    number = len(champion)
    asked, at = np.zeros(number), np.arange(number)
    columns = {"champion": champion, "challenger": challenger, "requests": at, "weights": np.ones(number)}
    columns |= {"asked": asked, "received": asked + 60, "contradicted": at < contradicted}
    columns["callers"] = np.array(callers, dtype=object)[at % len(callers)]
    return WHOLE + Replayed(labelled=Rows(columns))


def test_pieces_add_up():
    """Two pieces of 100 rows, 1 and 3 of which failed for two reasons: 4 of 200."""
    one = Replayed(read=100, rows=100, failed=1, failures=("a",), notes=("n",))
    both = one + Replayed(read=100, rows=100, failed=3, failures=("a", "b"), notes=("n",))

    assert (both.read, both.rows, both.failed, both.failures, both.notes) == (200, 200, 4, ("a", "b"), ("n",))
    assert check(both, "answers logged requests").got == 0.02


@pytest.mark.parametrize(("failed", "passed"), [(1.0, True), (1.1, False)])
def test_failed_rows_are_allowed_up_to_a_share(failed, passed):
    """One of 1,000 is allowed."""
    assert check(Replayed(read=1000, rows=1000.0, failed=failed), "answers logged requests").passed is passed


def test_one_that_takes_three_times_as_long_is_refused():
    """Medians of 20 batches, 6 ms a row against 2: the 99th percentile needs 100 batches."""
    found = check(timed([0.006] * 20, [0.002] * 20), "not slower than the champion")

    assert (found.passed, found.got) == (False, pytest.approx(3.0))
    assert found.detail == "p50 6 ms a row against 2, in 20 batches"


def test_a_long_tail_is_seen_in_many_batches():
    """98 of 100 batches take as long, two take ten times: the 99th percentile lies between the last two, 20 ms."""
    found = check(timed([0.002] * 98 + [0.02] * 2, [0.002] * 100), "not slower than the champion")

    assert (found.passed, found.got) == (False, pytest.approx(10.0))


def test_nobody_waits_for_less_than_a_millisecond():
    """.9 ms a row against .1: nine times as long, and quick."""
    assert check(timed([0.0009] * 20, [0.0001] * 20), "not slower than the champion").passed


def test_few_batches_say_nothing_of_time():
    """A note says how many are needed."""
    found = judge(timed([1.0] * 19, [0.001] * 19), champion=1)

    assert found.passed
    assert "19 batches were timed, 20 are needed" in found.notes[0]


def test_losses_are_in_units_of_the_champions():
    """Losses of .2 and .3 in 500 requests: half of the champion's mean loss is lost, for certain."""
    found = check(of_losses(np.full(500, 0.2), np.full(500, 0.3)), "not worse on labelled requests")

    assert (found.passed, found.got) == (False, pytest.approx(0.5))


def test_a_better_one_passes_by_its_labels():
    """The other way round, a third of the champion's loss is gained."""
    found = check(of_losses(np.full(500, 0.3), np.full(500, 0.2)), "not worse on labelled requests")

    assert (found.passed, found.got) == (True, pytest.approx(-1 / 3))
    assert found.detail.startswith("better: -0.333 lost by the challenger")


def test_one_caller_decides_nothing_where_it_is_bounded():
    """Of 3 in 4 labels, all false, as many count as of all others, which say the opposite."""
    lie = np.arange(2000) % 20 < 15
    champion, challenger = np.where(lie, 0.2, 0.3), np.where(lie, 0.3, 0.2)
    given = of_losses(champion, challenger, callers=("evil",) * 15 + ("a", "b", "c", "d", "e"))
    assert not check(given, "not worse on labelled requests").passed
    found = check(given, "not worse on labelled requests", max_caller_share=0.5)
    assert (found.passed, found.got) == (True, pytest.approx(0.0))
    assert found.detail.endswith("; 1,000 labels of callers with more than 50% of all are left out")


def test_contradicted_labels_do_not_count():
    """Four of 100 are left out; of six nothing is made."""
    losses = np.append(np.full(4, 0.9), np.full(96, 0.2)), np.append(np.full(4, 0.1), np.full(96, 0.2))
    found = check(of_losses(*losses, contradicted=4), "not worse on labelled requests")
    assert found.got == 0
    assert found.detail.endswith("; left out: 4 labels contradict each other")
    assert "6% of the labels do not count" in judge(of_losses(*losses, contradicted=6), champion=1).notes[-1]


RNG = np.random.default_rng(20_130_101)
NUMBERS = {
    "normal": RNG.normal(10, 1, 4000),
    "exponential": RNG.exponential(1, 4000),
    "zeros": np.where(RNG.random(4000) < 0.6, 0.0, RNG.exponential(1, 4000)),
}
CLASSES = np.array(["no", "yes"])[(RNG.random(4000) < 0.2).astype(int)]
SHARES = RNG.dirichlet([2, 1, 1], 4000)
TENTH = RNG.random(4000) < 0.1
NUMBER = AnswerLoss("number", "y", scale=1.0)


def compared(champion, challenger, *, rule=NUMBER, trained_on=None):
    """Return the names of the checks that refuse a challenger by the answers of both."""
    known = champion if trained_on is None else trained_on
    reference = reference_of(lambda: [Chunk({"y": known}, len(known))], rows=len(known)).profile
    layout = reference.layout.widened
    before, after = ({"y": side} for side in (champion, challenger))
    found = Replayed(
        read=len(champion),
        rows=float(len(champion)),
        before=profile_of(before, layout),
        after=profile_of(after, layout),
        known=known_ranges(reference),
        neighbours=neighbours(before, after, rule),
    )
    return {check.name for check in judge(found, champion=1).checks if not check.passed}


@pytest.mark.parametrize("world", NUMBERS)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: 100 * x,
        lambda x: x / 100,
        lambda x: x + 10,
        lambda x: -x,
        lambda x: 2 * x.mean() - x,
        lambda x: np.full_like(x, np.median(x)),
        lambda x: np.where(TENTH, 1e9, x),
    ],
    ids=["percent", "fractions", "shifted", "sign", "mirrored", "constant", "a tenth huge"],
)
def test_gross_defects_of_numbers_are_refused(world, wrong):
    """Also where most answers of the champion are one number, or none of those it was tested on."""
    numbers = NUMBERS[world]
    assert compared(numbers, wrong(numbers))
    assert compared(numbers, wrong(numbers), trained_on=numbers / 5)


@pytest.mark.parametrize("rows", [30, 50, 300, 4000])
def test_a_model_that_is_honestly_another_one_passes(rows):
    """However few rows there are: twice the answers of positive numbers, and half a deviation of noise at others."""
    exponential, normal = NUMBERS["exponential"][:rows], NUMBERS["normal"][:rows]
    noise = RNG.normal(0, 0.5, rows)

    assert compared(exponential, 2 * exponential, trained_on=NUMBERS["exponential"]) == set()
    assert compared(normal, normal + noise, trained_on=NUMBERS["normal"]) == set()
    assert compared(normal, normal + 1, trained_on=NUMBERS["normal"]) == set()


def test_answers_that_are_missing_are_refused():
    """All of them, where the champion has a number; of what it has no number for nothing is said."""
    numbers, none = NUMBERS["normal"], np.full(4000, np.nan)
    assert compared(numbers, none) == {"answers as the champion's"}
    assert compared(none, none, trained_on=numbers) == set()


def test_hours_of_similar_requests_may_be_answered_otherwise():
    """The champion answers .05 to .08 here, of 0 to .99: twice as much is a change of the world, .5 more a defect."""
    known = RNG.beta(1.2, 4, 4000)
    few = known[(known > 0.05) & (known < 0.08)]
    rule = AnswerLoss("probability", None, ("y",))
    assert compared(few, 2 * few, rule=rule, trained_on=known) == set()
    assert "answers as the champion's" in compared(few, few + 0.5, rule=rule, trained_on=known)


def test_one_class_for_all_is_refused():
    """The champion says yes to one of five, the challenger never: four fifths are decided alike."""
    assert compared(CLASSES, np.full(4000, "no"), rule=AnswerLoss("class", "y")) == {"tells rows apart"}
    assert compared(CLASSES, np.roll(CLASSES, 1), rule=AnswerLoss("class", "y")) == set()


def test_exchanged_classes_are_seen_among_many():
    """Of 200 classes each is one of 200 rows; the challenger knows the other half of them."""
    classes = np.array([f"c{number:03d}" for number in RNG.integers(0, 100, 4000)])
    others = np.array([f"d{number:03d}" for number in RNG.integers(0, 100, 4000)])
    known = np.append(classes, others)
    assert compared(classes, others, rule=AnswerLoss.none("classes"), trained_on=known) == {"answers as the champion's"}


def test_vectors_are_compared_by_all_elements():
    """Shares of three classes: the same for all, exchanged ones, a hundred times as large, and the same again."""
    rule = AnswerLoss("vector", None, ("y",))
    assert "tells rows apart" in compared(SHARES, np.tile(SHARES[:1], (4000, 1)), rule=rule)
    assert "answers of the champion's size" in compared(
        SHARES, np.where(TENTH[:, None], 100 * SHARES, SHARES), rule=rule
    )
    assert compared(SHARES, SHARES.astype(np.float32), rule=rule) == set()
    rolled = np.roll(SHARES.astype(np.float32), 1, axis=0)  # means of one third, rounded otherwise
    assert compared(SHARES.astype(np.float32), rolled / rolled.sum(axis=1, keepdims=True), rule=rule) == set()


def test_texts_are_told_apart():
    """Each text is there once: others of the same length pass, one text for all does not."""
    texts = np.array([f"answer {number * 7919 % 4000:04d}" for number in range(4000)], dtype=object)
    rule = AnswerLoss.none("texts")
    assert compared(texts, texts[::-1], rule=rule) == set()
    assert compared(texts, np.full(4000, "answer 0000", dtype=object), rule=rule) == {"tells rows apart"}


def test_the_sizes_of_answers_are_said_in_numbers():
    """One in ten of the challenger's is 1e9."""
    numbers = np.linspace(0, 1, 4000)
    layout = reference_of(lambda: [Chunk({"y": numbers}, 4000)], rows=4000).layout.widened
    huge = np.where(np.arange(4000) % 10 == 0, 1e9, numbers)
    both = (profile_of({"y": side}, layout) for side in (numbers, huge))
    found = check(
        Replayed(read=4000, rows=4000.0, before=next(both), after=next(both)), "answers of the champion's size"
    )

    assert (found.passed, found.got, found.allowed) == (False, pytest.approx(0.1), "<= 0.05")
    assert found.detail == (
        "y: 10.0% of its answers are further than 0.98 outside the champion's range of 0.01 to 0.99"
    )


def test_neighbours_of_pieces_add_up():
    """Numbers rise, fall and stay: 1 2 1 1 against 5 4 4 6; three pairs, of which the first is ordered otherwise."""
    columns = {"y": np.array([1.0, 2, 1, 1])}, {"y": np.array([5.0, 4, 4, 6])}
    one = neighbours(*columns, NUMBER)

    assert one == Neighbours(apart=2, alike=1, ordered=1, reversed=1)
    assert one + one == Neighbours(apart=4, alike=2, ordered=2, reversed=2)


def test_rows_in_lists_and_without_an_answer_are_told_apart():
    """Lists of different lengths, tensors, and nothing."""
    lists = np.empty(4, dtype=object)
    lists[:] = [[1, 2], [1, 2], [1], None]
    tensors = np.empty(4, dtype=object)
    tensors[:] = [np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3)]

    assert neighbours({"y": lists}, {"y": tensors}, AnswerLoss.none("lists")) == Neighbours(apart=2, alike=1)


def test_decisions_are_what_is_more_likely():
    """A chance above one half, the largest of several chances in one column or in three, and a class itself."""
    chance = AnswerLoss("probability", None, ("p",))
    assert decisions({"p": np.array([0.4, 0.5])}, chance).tolist() == [False, True]
    vector = AnswerLoss("vector", None, ("p",))
    assert decisions({"p": np.array([[0.1, 0.9], [0.8, 0.2]])}, vector).tolist() == [1, 0]
    columns = AnswerLoss("vector", None, ("a", "b"))
    assert decisions({"a": np.array([0.1, 0.8]), "b": np.array([0.9, 0.2])}, columns).tolist() == [1, 0]
    assert decisions({"c": np.array(["x", "y"])}, AnswerLoss("class", "c")).tolist() == ["x", "y"]


def test_numbers_are_no_decisions():
    """And neither are chances that are missing."""
    assert decisions({"n": np.array([1.0])}, AnswerLoss("number", "n", scale=1.0)) is None
    assert decisions({"p": np.array([None, 0.5], dtype=object)}, AnswerLoss("probability", None, ("p",))) is None

import numpy as np
import pytest

from raymlops.errors import DataRefusedError
from raymlops.monitor.training_rows import Fault, choose
from raymlops.predictions.labelled_rows import Rows
from raymlops.registry.later_rows import Times, later, order_of

HOUR, DAY = 3600.0, 86400.0


def logged(days=100, *, a_day=10, lag=DAY, share=1.0, callers=("a", "b")):
    """Return rows, so many a day, of callers by turns; the first ``share`` of each ten gets its label after a lag."""
    number = days * a_day
    asked = np.arange(number) * (DAY / a_day)
    has = np.arange(number) % 10 < 10 * share
    received = np.where(has, asked + lag, np.nan)
    return Rows(
        {
            "asked": asked,
            "received": received,
            "known_at": received,
            "callers": np.array(callers, dtype=object)[np.arange(number) % len(callers)],
            "requests": (np.arange(number) * 0.381966) % 1,
            "weights": np.ones(number),
            "contradicted": np.zeros(number, dtype=np.bool_),
        }
    )


def chosen(rows, *, unseen=(), stop=100 * DAY, faults=(), min_coverage=0.5, max_caller_share=0.9):
    bounds = {"min_coverage": min_coverage, "max_caller_share": max_caller_share}
    return choose(rows, unseen=np.isin(np.arange(len(rows)), unseen), stop_s=stop, faults=faults, **bounds)


def test_the_newest_rows_test_and_the_oldest_are_trained_on():
    """990 of 1,000 have their label by the end, of which 198 test. Of the 792 before, 10 had it too late.

    The first test row is of day 79.2, and rows of the day before were labelled after that; 782 / 8 rows validate.
    """
    found = chosen(logged())
    sizes = {part: len(places) for part, places in found.parts.items()}
    assert sizes == {"train": 684, "validation": 98, "test": 198}
    assert found.numbers["known_late"] == 10
    places = np.concatenate(list(found.parts.values()))
    assert (np.diff(places) > 0).all()
    assert "10 rows are left out whose label came in after the first test row was asked" in found.notes


def test_nothing_trained_on_was_known_after_the_test_began():
    """With labels of a week, too: the first test row is asked after the last label of train and validation."""
    rows = logged(lag=7 * DAY)
    parts = chosen(rows).parts
    begins = rows["asked"][parts["test"]].min()
    assert max(rows["received"][parts[part]].max() for part in ("train", "validation")) < begins


def test_what_was_labelled_before_the_last_training_label_tests_nothing():
    """Row 800 of 1,000 is the first one of the test. Its label's clock is ten minutes behind, which is admitted.

    That of a row before was known five minutes before row 800 was asked; of the other 99 of a hundred none is so close.
    """
    rows = logged(lag=0.0)
    begins = rows["asked"][800]
    rows["received"][800], rows["received"][700] = begins - HOUR / 6, begins - HOUR / 12
    found = chosen(rows)
    assert (found.numbers["test"], found.numbers["known_early"]) == (199, 1)
    assert 800 not in found.parts["test"]
    assert "1 rows are left out of the test whose label came in before the last one of the others" in found.notes


def test_what_is_cut_is_later_by_the_question_of_the_gate():
    """Fifty rows a second, labelled at once, or minutes later: many labels share a second, and none is out of order."""
    rng = np.random.default_rng(0)
    number = 40_000
    asked = 1_767_225_600 + np.sort(rng.random(number)) * number / 50
    labelled = asked + np.where(rng.random(number) < 0.1, rng.uniform(10, 400, number), 0.05)
    parts = chosen(
        Rows({**logged(days=number // 10).columns, "asked": asked, "received": labelled, "known_at": labelled}),
        stop=asked[-1] + DAY,
    ).parts
    train, test = (
        Times(
            *(
                np.rint(times[parts[part]] * 1e6).astype(np.int64).astype("datetime64[us]")
                for times in (asked, labelled)
            )
        )
        for part in ("train", "test")
    )
    assert later(order_of([train], [test])).passed


def test_too_few_labels_are_refused_with_their_share():
    """4 of 10 rows ever get one, and half is needed; that the newest rows have none yet is not held against them."""
    with pytest.raises(DataRefusedError, match=r"40\.0% of the 1,000 rows in the log get a label, .* 0\.5: 396 have"):
        chosen(logged(share=0.4))
    half = chosen(logged(share=0.5, lag=10 * DAY), min_coverage=0.49)
    assert half.numbers["coverage"] == pytest.approx(0.5, abs=0.002)
    assert any("of the rows get no label" in note for note in half.notes)


def test_no_row_and_no_label_are_refused():
    """Each says what there is."""
    with pytest.raises(DataRefusedError, match="has no row of the window"):
        chosen(logged(days=0))
    with pytest.raises(DataRefusedError, match=r"0\.0% of the 1,000 rows"):
        chosen(logged(share=0.0), min_coverage=0.0)


def test_a_part_with_too_few_rows_is_refused():
    """Labels of 60 days in a log of 100: the newest of 400 were asked on day 32, before any label came in."""
    with pytest.raises(DataRefusedError, match=r"there are 0 for train, 0 for validation, and 30 are needed"):
        chosen(logged(lag=60 * DAY))


def test_spans_of_faults_are_left_out():
    """240 rows of 24 days; they are neither trained on nor counted for the coverage."""
    fault = Fault("incident 1", 10 * DAY, 34 * DAY)
    found = chosen(logged(), faults=[fault])
    asked = np.concatenate(list(found.parts.values())) * (DAY / 10)
    assert not ((asked >= 10 * DAY) & (asked < 34 * DAY)).any()
    assert found.numbers["of_faults"] == 240
    assert "240 rows of 576 h are left out: what was served was broken (incident 1)" in found.notes


def test_one_caller_gives_no_more_than_its_share():
    """Of three callers by turns, a has half of the labels: 990 / 2 are brought down to what the others have."""
    rows = logged(callers=("a", "b", "a", "c"))
    found = chosen(rows, max_caller_share=0.4)
    kept = np.concatenate(list(found.parts.values()))
    share = (rows["callers"][kept] == "a").mean()
    assert 0.35 < share < 0.45
    assert any("labels of callers with more than 40% of all are left out" in note for note in found.notes)


def test_a_flood_of_one_caller_is_refused():
    """It sent 90% of the labels, and two callers cannot each give less than 20%."""
    rows = logged(callers=("flood",) * 9 + ("b",))
    with pytest.raises(DataRefusedError, match=r"the key flood sent 90% of the labels, and one may send at most 20%"):
        chosen(rows, max_caller_share=0.2)


def test_labels_that_do_not_count_are_left_out():
    """Of 990 labelled rows 10 are contradicted, 5 more came before their answer and 5 more are of no known class."""
    rows = logged()
    rows["contradicted"][:10] = True
    rows["received"][15:20] = rows["asked"][15:20] - DAY
    found = chosen(rows, unseen=range(10, 15))
    assert (found.numbers["do_not_count"], found.numbers["kept"]) == (20, 970)
    assert min(map(min, found.parts.values())) == 20
    assert (
        "left out: 10 labels contradict each other, 5 labels came before their answer, 5 labels are of "
        "another kind, or of a class that the reference has no row of"
    ) in found.notes


def test_many_labels_that_do_not_count_are_refused():
    """60 of 990 contradict each other: what remains is somebody's choice."""
    rows = logged()
    rows["contradicted"][:60] = True
    with pytest.raises(DataRefusedError, match=r"6% of the labels do not count, at most 5% may: left out: 60 labels"):
        chosen(rows)


def test_callers_without_a_key_are_told():
    """They sent 90%."""
    rows = logged(callers=("",) * 9 + ("b",))
    with pytest.raises(DataRefusedError, match="callers without a key sent 90% of the labels, and one may send"):
        chosen(rows, max_caller_share=0.2)


def test_a_single_caller_is_believed_and_said():
    """There is nobody else to ask, as where one product sends everything."""
    found = chosen(logged(callers=("",)), max_caller_share=0.2)
    assert "all labels are of one caller: without a key" in found.notes


def test_labels_that_came_in_after_the_decision_are_not_there_yet():
    """With the end at day 50 those of day 49 count for nothing."""
    rows = logged(days=50)
    assert chosen(rows, stop=50 * DAY).numbers["labelled"] == 490

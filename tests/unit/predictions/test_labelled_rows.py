import numpy as np
import pytest

from raymlops.predictions.labelled_rows import Rows, admit

ANY = {"most": None}


def rows(number=40, callers=("a",), **changes):
    """Return good labels of requests of one row, of callers by turns."""
    columns = {
        "asked": np.full(number, 1000.0),
        "received": np.full(number, 2000.0),
        "contradicted": np.zeros(number, dtype=bool),
        "callers": np.array([*callers], dtype=object)[np.arange(number) % len(callers)],
        "requests": np.random.default_rng(0).permutation(number),
        "weights": np.ones(number),
    }
    return Rows(columns | changes)


def kept(found, of):
    """Return the weight of each caller's labels that count."""
    left = of.where(found.rows)
    return {name: float(left["weights"][left["callers"] == name].sum()) for name in np.unique(of["callers"])}


def test_good_labels_count():
    """All of them, and nothing is said; nor is anything of no label at all."""
    found = admit(rows(), **ANY)
    assert found.rows.all()
    assert (found.note, found.refused) == ("", "")
    assert admit(rows(0), most=0.5).refused == ""


def test_labels_of_a_class_never_seen_are_left_out():
    """Two of forty."""
    found = admit(rows(), **ANY, seen=np.arange(40) > 1)
    assert found.rows.sum() == 38
    assert found.note == "left out: 2 labels are of another kind, or of a class that the reference has no row of"
    assert not found.refused


def test_contradicting_labels_and_those_before_their_answer_are_left_out():
    """A clock that is ten minutes behind is none of these."""
    given = rows()
    given["contradicted"][0] = True
    given["received"][:3] = 0.0, 399.0, 400.0
    found = admit(given, **ANY)
    assert np.flatnonzero(~found.rows).tolist() == [0, 1]
    assert [*found.left_out.values()] == [1, 1, 0]


def test_much_that_does_not_count_is_no_verdict():
    """3 of 40 are 7.5%."""
    given = rows()
    given["contradicted"][:3] = True
    assert admit(given, **ANY).refused.startswith("8% of the labels do not count, at most 5% may")


def test_of_a_request_id_the_first_answer_counts():
    """With all its rows, in whatever order they are read; a repetition is no label that is left out."""
    given = rows(4, requests=np.array([7, 7, 7, 8]), asked=np.array([5.0, 3.0, 3.0, 9.0]))
    found = admit(given, **ANY)
    assert found.rows.tolist() == [False, True, True, True]
    assert (found.note, found.refused) == ("", "")


def test_keys_below_the_bound_keep_their_rows():
    """Five keys of a fifth each, allowed a fifth."""
    found = admit(rows(20, callers="abcde"), most=0.2)
    assert found.rows.all()
    assert not found.refused


def test_a_key_above_the_bound_is_brought_down_to_it():
    """50 of 100, the others one each: .2 x 50 / .8 = 12.5, a fifth of 62.5; its 12 requests of the least numbers."""
    given = rows(100, callers=["a"] * 50 + [f"k{at}" for at in range(50)])
    found = admit(given, most=0.2)
    assert (found.rows[:50].sum(), found.rows[50:].sum(), found.bounded) == (12, 50, 38)
    assert given["requests"][:50][found.rows[:50]].max() < given["requests"][:50][~found.rows[:50]].min()
    assert found.note == "38 labels of callers with more than 20% of all are left out"
    assert not found.refused


def test_rows_count_by_their_weight():
    """20 rows that stand for 4 each are 80 of 120, and half of 80 may be theirs: 10 rows."""
    given = rows(60, callers="abb", weights=np.where(np.arange(60) % 3, 1.0, 4.0))
    assert kept(admit(given, most=0.5), given) == {"a": 40.0, "b": 40.0}


def test_several_keys_above_the_bound_come_to_one_level():
    """60, 30 and ten of one: with L = .3 (2 L + 10) both have 7.5 of 25."""
    given = rows(100, callers=["a"] * 60 + ["b"] * 30 + [f"k{at}" for at in range(10)])
    found = kept(admit(given, most=0.3), given)
    assert (found["a"], found["b"], found["k0"]) == (7, 7, 1)


def test_one_key_takes_its_own_labels_from_the_verdict_and_no_others():
    """Ten of a tester's 25 contradict each other: its other 15 go too. As two of four keys they are no verdict."""
    given = rows(100, callers=["main", "tester", "main", "main"])
    given["contradicted"][1:40:4] = True
    found = admit(given, **ANY)
    assert kept(found, given) == {"main": 75.0, "tester": 0.0}
    assert found.note == (
        "left out: 10 labels contradict each other, 15 labels are others of the key tester, too many of which do not "
        "count"
    )
    assert not found.refused
    given["callers"][1:40:8] = "another"
    assert admit(given, **ANY).refused.startswith("10% of the labels do not count, at most 5% may")


def test_a_key_with_half_of_the_labels_is_not_left_out():
    """What remains would be the choice of the other one."""
    given = rows(100, callers="ab")
    given["contradicted"][::10] = True
    assert admit(given, **ANY).refused.startswith("10% of the labels do not count, at most 5% may")


def test_no_key_has_more_than_its_share_of_a_part():
    """Of 90 labels of one version it has a third, and 9 of 10 of the other: of these two are left."""
    given, part = rows(100, callers=[*"abc" * 30, *"a" * 9, "b"]), np.arange(100) >= 90
    assert admit(given, most=0.5).rows.all()
    found = admit(given, most=0.5, within=part)
    assert (found.rows[:90].sum(), found.rows[90:].sum(), found.refused) == (90, 2, "")


def test_a_key_that_sends_nearly_all_has_its_share_and_no_more():
    """90 of 100: a fifth would be 2.5, and 12 are left, by which to judge."""
    given = rows(100, callers=["mallory"] * 90 + [f"k{at}" for at in range(10)])
    found = admit(given, most=0.2)
    assert (found.rows.sum(), found.bounded, found.refused) == (12, 88, "")


def test_too_few_keys_cannot_keep_to_a_bound():
    """Three of at most a fifth are not a whole."""
    assert admit(rows(5, callers="aaabc"), most=0.2).refused.endswith("which 3 keys cannot keep to")


@pytest.mark.parametrize("name", ["a", ""])
def test_one_key_alone_may_send_all(name):
    """There is nobody else to believe."""
    found = admit(rows(5, callers=[name]), most=0.2)
    assert found.rows.all()
    assert not found.refused

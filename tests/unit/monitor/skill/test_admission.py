import numpy as np
import pytest

from raymlops.monitor.skill.admission import admit, bound_keys, contradictions


def rows(number=40):
    """Return good labels of two classes."""
    return {
        "codes": np.arange(number) % 2,
        "known": [True, True, False],
        "asked": np.full(number, 1000.0),
        "received": np.full(number, 2000.0),
        "contradicted": np.zeros(number, dtype=bool),
    }


def test_good_labels_count():
    """All of them, and nothing is said."""
    found = admit(**rows())
    assert found.rows.all()
    assert (found.note, found.refused) == ("", "")


def test_labels_of_a_class_never_seen_are_left_out():
    """One that is no class at all, and one of a class that the reference has no row of."""
    given = rows()
    given["codes"][:2] = -1, 2
    found = admit(**given)
    assert found.rows.sum() == 38
    assert found.note == "left out: 2 labels are of another kind, or of a class that the reference has no row of"
    assert not found.refused


def test_contradicting_labels_and_those_before_their_answer_are_left_out():
    """A clock that is ten minutes behind is none of these."""
    given = rows()
    given["contradicted"][0] = True
    given["received"][:3] = 0.0, 399.0, 400.0
    found = admit(**given)
    assert np.flatnonzero(~found.rows).tolist() == [0, 1]
    assert [*found.left_out.values()] == [1, 1, 0]


def test_much_that_does_not_count_is_no_verdict():
    """3 of 40 are 7.5%."""
    given = rows()
    given["contradicted"][:3] = True
    assert admit(**given).refused.startswith("8% of the labels do not count, at most 5% may")


def test_no_label_is_nothing_left_out():
    """An empty window has no share."""
    assert admit(**rows(0)).refused == ""


def test_a_row_whose_labels_differ_is_contradicted():
    """Row 5 was said to be 1 and 0, row 2 twice 1."""
    assert contradictions([5, 2, 5, 2, 7], [1, 1, 0, 1, 0]).tolist() == [True, False, True, False, False]


def test_keys_below_the_bound_keep_their_weights():
    """Five keys of a fifth each, allowed a fifth."""
    weights, refused = bound_keys(np.repeat(np.arange(5), 4), most=0.2)
    assert (weights == 1).all()
    assert refused == ""


def test_a_key_above_the_bound_is_brought_down_to_it():
    """50 of 100, the others one each: .2 x 50 / .8 = 12.5, a fifth of 62.5."""
    weights, refused = bound_keys(np.append(np.zeros(50), np.arange(1, 51)), most=0.2)
    assert weights[:50] == pytest.approx(0.25)
    assert (weights[50:] == 1).all()
    assert weights[:50].sum() / weights.sum() == pytest.approx(0.2)
    assert refused == ""


def test_several_keys_above_the_bound_come_to_one_level():
    """60, 30 and ten of one: with L = .3 (2 L + 10) both have 7.5 of 25."""
    keys = np.concatenate([np.zeros(60), np.ones(30), np.arange(2, 12)])
    weights, _ = bound_keys(keys, most=0.3)
    assert weights[:60].sum() == pytest.approx(7.5)
    assert weights[60:90].sum() == pytest.approx(7.5)


def test_a_key_that_sends_nearly_all_is_no_verdict():
    """90 of 100: a fifth would be 2.5, and 12.5 of 100 are left."""
    weights, refused = bound_keys(np.append(np.full(90, "mallory"), [f"k{at}" for at in range(10)]), most=0.2)
    assert weights.sum() == pytest.approx(12.5)
    assert refused == (
        "the key mallory sent 90% of the labels, and one may send at most 20%; bounded, 12% of their weight is left"
    )


def test_too_few_keys_cannot_keep_to_a_bound():
    """Three of at most a fifth are not a whole."""
    _, refused = bound_keys(np.array(["a", "a", "a", "b", "c"]), most=0.2)
    assert refused.endswith("which 3 keys cannot keep to")


def test_one_key_alone_may_send_all_where_that_is_allowed():
    """A deployment with a single key."""
    weights, refused = bound_keys(np.zeros(5), most=1.0)
    assert (weights == 1).all()
    assert refused == ""

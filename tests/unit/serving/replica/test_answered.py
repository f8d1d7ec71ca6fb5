"""What feedback is checked by: the requests that this replica answered lately."""

import pytest

from raymlops.errors import InvalidRowsError
from raymlops.predictions.labels import Label
from raymlops.serving.replica.answered import Answered
from raymlops.serving.request import Exchange


def answered(*requests, most=100):
    """Return what is known of requests: id, caller, rows."""
    known = Answered(most=most)
    for request_id, caller, rows in requests:
        known.add(Exchange({}, request_id, 1, caller=caller, rows=rows))
    return known


def test_labels_of_other_callers_and_of_no_row_are_refused():
    """Each with its place and the reason; of those that are not known here the places are told."""
    known = answered(("a", "shop", 2), ("b", "bank", 1), ("c", None, 1))
    labels = [Label("a", 0, "1"), Label("b", 0, "1"), Label("a", 2, "1"), Label("c", 0, "1"), Label("x", 7, "1")]
    with pytest.raises(InvalidRowsError) as refused:
        known.check(labels, caller="shop")
    (first, second) = refused.value.problems
    assert (first.row, first.field, second.row, second.field) == (1, "request_id", 2, "row")
    assert first.message.startswith("another caller's key asked for this")
    assert second.message == "the request had 2 rows, counted from 0"
    assert known.check([labels[0], *labels[3:]], caller="shop") == [2]
    assert known.check(labels[:2], caller=None) == []


def test_an_id_that_two_callers_chose_may_be_labelled_by_both():
    """With as many rows as the longest had: the log knows which is whose."""
    known = answered(("1", "shop", 1), ("1", "bank", 3))
    for caller in ("shop", "bank"):
        assert known.check([Label("1", 2, "1")], caller=caller) == []


def test_the_newest_requests_are_kept():
    """One that is repeated is new again."""
    known = answered(("a", None, 1), ("b", None, 1), ("a", None, 1), ("c", None, 1), most=2)
    assert known.check([Label(request_id, 0, "1") for request_id in "abc"], caller=None) == [1]

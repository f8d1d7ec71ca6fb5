"""Bounds of inputs against a signature."""

from __future__ import annotations

import pytest

from raymlops.arrays import Column
from raymlops.config.data import ChecksSection
from raymlops.errors import UsageError
from raymlops.signature import Signature
from raymlops.training.data_checks.named import check_bounded

SIGNATURE = Signature(
    (
        Column("hour", "int"),
        Column("late", "bool"),
        Column("carrier", "string"),
        Column("at", "datetime"),
        Column("pixels", "float", shape=(4,)),
    ),
    (Column("y", "float"),),
)


def check(**columns):
    check_bounded(ChecksSection(columns=columns), SIGNATURE)


def test_bounds_that_values_can_have_are_none_to_refuse():
    """An integer equals 1.0, and a truth value 1; an array has a least and a largest number; all may be missing."""
    check(
        hour={"min": 0, "values": [1, 2.0]},
        late={"values": [True, 0]},
        carrier={"values": ["AA"], "max_nulls": 0.1},
        at={"max_nulls": 0.0},
        pixels={"max": 1},
    )


@pytest.mark.parametrize(
    ("column", "bounds", "told"),
    [
        ("carrier", {"min": 0}, "data.checks.columns.carrier: min and max are of numbers; the signature says string"),
        ("at", {"max": 5}, "data.checks.columns.at: min and max are of numbers; the signature says datetime"),
        ("carrier", {"values": ["AA", 1]}, "data.checks.columns.carrier.values: got 1; the signature says string"),
        ("hour", {"values": [True]}, "data.checks.columns.hour.values: got True; the signature says int"),
        ("pixels", {"values": [1.0]}, "inputs with a single value a row; the signature says float of shape (4,)"),
    ],
)
def test_bounds_that_no_value_can_have_are_refused(column, bounds, told):
    """They would never be compared, or with nothing that equals them."""
    with pytest.raises(UsageError) as failed:
        check(**{column: bounds})
    assert told in failed.value.message

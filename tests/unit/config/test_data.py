"""What is checked of data, as it is configured."""

import pytest

from raymlops.config.data import CHECKS, ChecksSection
from raymlops.config.load import load_data
from raymlops.errors import ConfigError

BASE = {"project": {"name": "a"}, "recipe": {"import": "any:Recipe"}}


def load(**checks):
    return load_data(BASE | {"data": {"checks": checks}}).spec


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"severity": {"leakag": "refuse"}}, "severity: got 'leakag'; one of rows, .* or all; did you mean leakage?"),
        ({"severity": {"rows": "of"}}, "severity.rows: got 'of'; one of 'off', 'warn' or 'refuse'"),
        ({"max_leakage": 2}, "max_leakage: got 2; at most 1"),
        ({"rows": 0}, "rows: got 0"),
        ({"columns": {"temp": {"min": 3, "max": 1}}}, "columns.temp: min 3 is above max 1"),
    ],
)
def test_a_mistake_says_what_is_allowed(checks, message):
    """With the place, as for every other field."""
    with pytest.raises(ConfigError, match=message):
        load(**checks)


def test_a_severity_by_name_is_before_that_of_all():
    """Without either, what is wrong for certain refuses; none of it decides a result."""
    section = ChecksSection(severity={"all": "off", "leakage": "refuse"})
    assert {check: section.severity_of(check) for check in CHECKS if section.severity_of(check) != "off"} == {
        "leakage": "refuse"
    }
    assert [check for check in CHECKS if ChecksSection().severity_of(check) == "refuse"] == [
        "same_rows",
        "label_values",
        "label_as_input",
        "columns",
    ]
    assert load(rows="all").sha() == load(rows=100).sha()

"""The checks of later rows on real splits, and on the sketch that a bundle would have of its training rows."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from seasons import Seasons

from raymlops.bundle.trained_rows import sketch
from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.lifecycle.registration.later_rows import later_rows
from raymlops.project import bind
from raymlops.splits import Splits


class Late(Seasons):
    """Labels come a week later."""

    def label_times(self, columns):
        return columns["at"] + np.timedelta64(7, "D")


class Same(Seasons):
    """Tests on what it is trained on."""

    def datasets(self, window=None):
        found = super().datasets(window)
        return Splits(found.train, found.validation, found.train)


class Reversed(Seasons):
    """Tests on the oldest rows, and so on days on which no row is trained on."""

    def datasets(self, window=None):
        found = super().datasets(window)
        return Splits(found.test, found.validation, found.train)


class Shuffled(Seasons):
    """Tests on every other row."""

    def datasets(self, window=None):
        table = super().datasets(window).train
        odd, even = ({name: values[first::2] for name, values in table.items()} for first in (0, 1))
        return Splits(odd, even, even)


@pytest.fixture
def checked(tmp_path):
    """Return a function that checks the splits of a recipe."""

    def check(recipe, *, most=0.01):
        data = {"project": {"name": "seasons"}, "recipe": {"import": "seasons:Seasons"}}
        project = bind(load_data({**data, "storage": {"path": str(tmp_path)}}), recipe=recipe)
        prepared = prepare(project)
        hashes = sketch(np.concatenate(list(prepared.splits["train"].hashes())))
        found, until = later_rows(SimpleNamespace(row_hashes=hashes, hashed_share=1.0), prepared, most=most)
        check.until = until
        return {check.name: check for check in found}

    return check


def test_rows_of_the_last_weeks_are_later_and_others(checked):
    """The last 15% of 1,200 rows, none of which is trained on."""
    found = checked(Seasons)

    assert [check.passed for check in found.values()] == [True, True]
    assert found["tested on later rows"].detail.startswith(
        "of 180 test rows 0 were not labelled after all training rows"
    )
    assert found["tested on rows of its own"].detail == (
        "0 of 180 test rows that were looked up are training rows too: 0.00%"
    )


def test_rows_are_ordered_by_when_their_labels_were_known(checked):
    """The last training row is of 11 February, and was known on the 18th."""
    check = checked(Late)["tested on later rows"]

    assert check.passed
    assert "their last label was known at 2026-02-18T" in check.detail


def test_what_a_version_is_trained_on_and_chosen_by_ends_with_the_validation_rows(checked):
    """The last of the rows that choose the epoch is of 20 February, and was labelled on the 27th."""
    checked(Late)

    arose, known = checked.until
    assert (arose[:10], known[:10]) == ("2026-02-20", "2026-02-27")
    assert (datetime.fromisoformat(known) - datetime.fromisoformat(arose)).days == 7


def test_days_of_their_own_are_enough(checked):
    """They are older, and on days of which no row is trained on."""
    assert checked(Reversed)["tested on later rows"].passed


def test_rows_between_training_rows_are_refused(checked):
    """Every day has some of both."""
    check = checked(Shuffled)["tested on later rows"]

    assert not check.passed
    assert "419 were not labelled after all training rows" in check.detail


def test_training_rows_that_are_tested_on_are_counted(checked):
    """All of them."""
    check = checked(Same)["tested on rows of its own"]
    assert (check.passed, check.got) == (False, 1.0)

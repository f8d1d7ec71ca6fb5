"""A version that bakes beside the one before it: a real log, labels and bundles, answered in this process."""

from __future__ import annotations

import shutil
from datetime import timedelta

import numpy as np
import pytest
from echoed_log import bundle, label, log
from echoes import Inverted
from labelled_answers import NOW

from raymlops.lifecycle.batch.replay import here
from raymlops.lifecycle.retraining.compare import compared
from raymlops.records import ModelVersionRef
from raymlops.state.store import Deployment
from raymlops.state.versions import record_version
from raymlops.state.watch.incidents import record_window
from raymlops.state.watch.windows import JudgedWindow

HOUR = timedelta(hours=1)


@pytest.fixture
def judged(state, tmp_path):
    """Return what compares version 1, which answers what it is asked, with version 2 before it, its contrary."""
    log(tmp_path, np.tile([0.1, 0.9], 30))
    before = bundle(tmp_path, Inverted)
    record_version(state, ModelVersionRef("m", 2, "run-2", before), why="a test", now=NOW)

    def found(*, unbelieved="", **log_settings):
        start, details = NOW - 2 * HOUR, {"unbelieved": unbelieved}
        window = JudgedWindow("m", "outputs", "skill", 1, start, NOW, 1, "ok", "", 60, NOW, details=details)
        record_window(state, window, lambda _known: [])
        settings = {"log": {"enabled": True, **log_settings}}
        champion = Deployment("m", 1, bundle(tmp_path), "run-1", "champion", settings)
        return compared(state, champion, 2, since=NOW - 2 * HOUR, until=NOW, answer=here)

    found.before = before
    return found


def test_what_the_labels_say_decides(judged, tmp_path):
    """60 requests that the version answers right: it loses (.1)^2 each, the one before (.9)^2."""
    label(tmp_path, [False, True] * 30)
    found = judged()

    assert (found.outcome, found.rows, found.until) == ("not worse", 60, NOW.isoformat())
    assert found.reason.startswith("version 1 beside version 2 on the same 60 labelled rows: -0.988 of the loss")


def test_one_that_the_one_before_beats_is_worse(judged, tmp_path):
    """The same answers, and the labels are the contrary; 20 of 60 requests without a label are left out."""
    label(tmp_path, [True, False] * 20 + [True, True])
    found = judged()

    assert (found.outcome, found.rows) == ("worse", 42)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"redact": ["x"]}, "version 2 does not answer again: serve.log.redact leaves x out of the log"),
        ({"unbelieved": "labels of other answers"}, "no window has labels that are to be believed"),
        ({}, "version 2 does not answer again: the log has none of these requests any more"),
    ],
)
def test_what_cannot_be_compared_says_why(judged, how, why):
    """An input is not in the log; labels that are refused; no row has a label."""
    found = judged(**how)

    assert (found.is_known, found.reason[: len(why)]) == (False, why)


def test_a_bundle_that_is_gone_is_no_failure(judged, tmp_path):
    """The version before was removed from the storage."""
    label(tmp_path, [False, True] * 30)
    shutil.rmtree(judged.before.uri)
    found = judged()

    assert not found.is_known
    assert found.reason.startswith("version 2 does not answer again: ")

"""A state that adopted a version judges, trains, replays and compares by what it logged itself.

Another state has the log beside the bundle, with rows and labels that say the contrary.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from echoed_log import bundle, label, log
from echoes import Inverted
from labelled_answers import NOW
from labelled_days import DAY, FIRST, answer_day, label_day
from labelled_days import live as live_flights
from retrained import retraining
from stored import put
from tiny import Tiny
from tiny_log import live, log_days
from tiny_log import retraining as tiny_retraining

from raymlops.config.load import load_data
from raymlops.config.retrain import RetrainSection
from raymlops.lifecycle.batch import replay
from raymlops.lifecycle.loop.training_data import tables_of
from raymlops.lifecycle.quality.facts import quality_facts
from raymlops.lifecycle.quality.judge import QualityJudge
from raymlops.lifecycle.retraining.compare import compared
from raymlops.lifecycle.retraining.tasks import retraining_job
from raymlops.predictions.owner import mark_owner, own_storage
from raymlops.records import ModelVersionRef
from raymlops.state.loop import begin, retraining_of
from raymlops.state.store import Deployment
from raymlops.state.versions import record_version
from raymlops.state.watch.incidents import record_window
from raymlops.state.watch.windows import JudgedWindow
from raymlops.storage.store import Store

HOUR = timedelta(hours=1)


@pytest.fixture
def own(state, tmp_path):
    """Return the folder of this state's logs: those beside the bundles are another state's."""
    for name in ("flights", "tiny", "m"):
        mark_owner(Store(str(tmp_path)), name, "another")
    return Path(own_storage(str(tmp_path), state.owner().id))


def test_a_version_is_judged_by_the_own_log(state, tmp_path, own):
    """As before here, and worthless in the other state."""
    live_flights(state, tmp_path)
    for folder, slope in ((own, 1.5), (tmp_path, -1.5)):
        for day in range(12):
            label_day(folder, day, answer_day(folder, day, slope=slope), after=2 * HOUR)
    QualityJudge(state)(FIRST + 14 * DAY)
    facts = quality_facts(state, "flights", now=FIRST + 14 * DAY)
    assert (facts.verdict.outcome, facts.labelled_rows) == ("as before", 3_600)


def test_a_retraining_has_the_rows_of_the_own_log(state, tmp_path, own):
    """30 days of 40 rows here, 40 in the other state; the tables lie where the bundles do."""
    champion = live(state, tmp_path, window={"days": 40})
    log_days(own, 30)
    log_days(tmp_path, 40)
    found = tables_of(state, tiny_retraining(champion), champion, Tiny)
    assert found.numbers["rows"] == 1_200
    assert Path(found.uri).parent == tmp_path / "data"


def test_the_own_log_is_replayed(state, tmp_path, own, monkeypatch):
    """50 requests here, 100 in the other state."""
    log(own, np.linspace(0, 1, 50))
    log(tmp_path, np.linspace(0, 1, 100))
    first = bundle(tmp_path)
    record_version(state, ModelVersionRef("m", 2, "run-2", first), why="a test", now=NOW)
    put(state, "m", [Deployment("m", 1, first, "run-1", "champion", {"log": {"enabled": True}})])
    one = retraining(name="m", settings=RetrainSection().model_dump(mode="json"), stage="replaying", version=2)
    begin(state, one)
    monkeypatch.setattr("raymlops.cluster.connect.connect", lambda _spec: nullcontext())
    monkeypatch.setattr(replay, "on_workers", lambda _spec: replay.here)
    monkeypatch.setattr(type(state), "now", lambda _self: NOW)
    data = {"project": {"name": "m"}, "recipe": {"import": "echoes:Echo"}}
    retraining_job(load_data({**data, "storage": {"path": str(tmp_path), "state": state.url}}).spec, one.id, "replay")
    answered, *_ = retraining_of(state, one.id).found["replaying"]["checks"]
    assert answered["detail"] == "0 of 50 rows that the champion answered failed"


def test_versions_are_compared_on_the_own_log(state, tmp_path, own):
    """The champion is right here, and wrong in the other state."""
    for folder, truths in ((own, [False, True]), (tmp_path, [True, False])):
        log(folder, np.tile([0.1, 0.9], 30))
        label(folder, truths * 30)
    record_version(state, ModelVersionRef("m", 2, "run-2", bundle(tmp_path, Inverted)), why="a test", now=NOW)
    window = JudgedWindow("m", "outputs", "skill", 1, NOW - 2 * HOUR, NOW, 1, "ok", "", 60, NOW, details={})
    record_window(state, window, lambda _known: [])
    champion = Deployment("m", 1, bundle(tmp_path), "run-1", "champion", {"log": {"enabled": True}})
    found = compared(state, champion, 2, since=NOW - 2 * HOUR, until=NOW, answer=replay.here)
    assert (found.outcome, found.rows) == ("not worse", 60)

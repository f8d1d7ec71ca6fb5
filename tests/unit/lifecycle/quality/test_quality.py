"""``quality`` answers from what was kept, and from what is due and not kept yet."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from labelled_days import DAY, FIRST, answer_day, label_day, labelled_bundle, live
from served_days import deploy, references
from stored import put
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.config.schema import MonitorSection
from raymlops.errors import NotFoundError, UsageError
from raymlops.lifecycle.quality.judge import QualityJudge
from raymlops.lifecycle.quality.model import unjudged
from raymlops.lifecycle.quality.quality import judged_quality
from raymlops.lifecycle.watch.drift import reported
from raymlops.lifecycle.watch.status import quality_line, quality_status
from raymlops.monitor.skill.expected import Window
from raymlops.state.store import Deployment
from raymlops.state.watch.windows import judged_windows

HOUR = timedelta(hours=1)
LATER = FIRST + 7 * DAY


def test_what_was_kept_and_what_is_due_is_shown(state, tmp_path):
    """Two windows were kept, one is due, one waits, and of that the loss is estimated by what answers say."""
    live(state, tmp_path, labels_within_h=48)
    for day in range(3):
        label_day(tmp_path, day, answer_day(tmp_path, day), after=HOUR)
    QualityJudge(state)(FIRST + 4 * DAY)
    answer_day(tmp_path, 3)
    found = judged_quality(state, "flights", now=FIRST + 5 * DAY + HOUR, since=FIRST)
    assert [one.rows for one in found.windows] == [300, 300, 300]
    assert len(judged_windows(state, "flights", kind="skill")) == 2
    assert (found.waiting, found.worse) == (1, False)  # and nobody asked on the newest day
    found = judged_quality(state, "flights", now=FIRST + 4 * DAY + HOUR)
    assert (len(found.windows), found.waiting) == (1, 2)
    assert found.estimated.rows == 300
    assert found.estimated.low < found.estimated.before < found.estimated.high
    assert "before labels, " in found.text()
    assert "2 windows that ended wait for labels" in found.text()
    assert re.search(r": loss 0\.\d+, skill 0\.\d+, lost [+-]", found.text())
    nothing_new = judged_quality(state, "flights", now=FIRST + 3 * DAY, since=FIRST + 2 * DAY)
    assert nothing_new.windows == ()
    assert "has ended yet" not in nothing_new.text()
    json.dumps(found.to_dict(), allow_nan=False)


def test_status_has_a_line(state, tmp_path):
    """Of the newest verdict and its labels."""
    live(state, tmp_path)
    assert quality_status(state, "flights", 3) is None
    label_day(tmp_path, 0, answer_day(tmp_path, 0), after=HOUR)
    QualityJudge(state)(LATER)
    told = quality_line(quality_status(state, "flights", 3))
    assert told.startswith("not enough labels until ")
    assert told.endswith("100% of its last window's rows have a label, half of these within 13 h")


def test_a_bundle_of_an_earlier_release_says_what_to_do(state, tmp_path):
    """It keeps no test rows."""
    deploy(state, write_bundle(tmp_path, tiny_contents(loss={"kind": "class", "output": "yes"})))
    with pytest.raises(NotFoundError, match="keeps no test rows") as caught:
        judged_quality(state, "flights", now=LATER)
    assert "Train and register" in caught.value.hint
    (version,) = state.deployments("flights")
    assert unjudged(version) == ()  # nobody asked for it
    assert "keeps no test rows" in unjudged(replace(version, monitor={"skill": {"min": 0.1}}))[0]
    assert "keeps no test rows" in unjudged(replace(version, retrain={"triggers": {"skill": True}}))[0]


def test_a_metric_that_answers_do_not_have_is_refused(state, tmp_path):
    """AUC is of a probability of two classes."""
    deploy(state, labelled_bundle(tmp_path), monitor={"skill": {"metric": "auc"}})
    section = MonitorSection.model_validate({"skill": {"metric": "log_loss"}}).skill
    assert judged_quality(state, "flights", now=LATER, section=section).metric == "log_loss"
    bundle = write_bundle(tmp_path, tiny_contents(loss={"kind": "class", "output": "yes"}))
    deploy(state, bundle, version=4, monitor={"skill": {"metric": "auc"}})
    with pytest.raises(UsageError, match=r"monitor\.skill\.metric is auc") as caught:
        judged_quality(state, "flights", now=LATER)
    assert caught.value.hint == "They have loss."
    (version,) = (one for one in state.deployments("flights") if one.version == 4)
    assert unjudged(version) == ("monitor.skill.metric is auc, and its answers have loss",)


def test_the_report_has_quality_over_time(state, tmp_path):
    """Its figure has a mark for each window, and its table a row."""
    bundle = labelled_bundle(tmp_path, references=references())
    deploy(state, bundle)
    for day in range(4):
        label_day(tmp_path, day, answer_day(tmp_path, day), after=HOUR)
    QualityJudge(state)(LATER)
    html = reported(state, "flights", now=LATER, only_stored=True)
    section = html.partition('<section id="skill"')[2].partition("</section>")[0]
    assert section.count("<circle") == 8
    assert section.count("300 of 300") == 4


def test_what_is_kept_of_a_window_is_bounded(state, tmp_path):
    """Sums alone, whatever the rows: a few kilobytes, from which the verdict comes again."""
    live(state, tmp_path)
    label_day(tmp_path, 0, answer_day(tmp_path, 0, number=3000), after=HOUR)
    QualityJudge(state)(LATER)
    (kept,) = judged_windows(state, "flights", kind="skill")
    assert len(json.dumps(kept.details)) < 4000
    assert Window.from_dict(kept.details["window"]).lost.clusters == 3000


def test_a_sampled_log_counts_by_weight(state, tmp_path):
    """One in four requests of half of the traffic was logged."""
    live(state, tmp_path)
    for seed, weight in ((1, 1.0), (2, 4.0)):
        rows = answer_day(tmp_path, 0, seed=seed, weight=weight)
        label_day(tmp_path, 0, rows, after=HOUR, seed=seed, chosen=np.full(300, seed == 1))
    QualityJudge(state)(LATER)
    (kept,) = judged_windows(state, "flights", kind="skill")
    assert kept.details["coverage"]["labelled"] == pytest.approx(0.2)


@pytest.mark.parametrize(("slope", "outcome"), [(1.5, "no worse"), (-1.5, "worse")])
def test_a_shadow_is_compared_on_the_same_labelled_requests(state, tmp_path, slope, outcome):
    """Version 4 answers copies of what version 3 answers: as it does, or for labels that depend the other way."""
    live(state, tmp_path)
    champion, bundle = state.deployments("flights")[0], labelled_bundle(tmp_path)
    put(state, "flights", [champion, Deployment("flights", 4, bundle, "run", "warm", {}, shadow=1.0)])
    for day in range(2):
        rows = answer_day(tmp_path, day, number=1000)
        answer_day(tmp_path, day, number=1000, version=4, route="shadow", answered_as=slope, writer="shadow")
        label_day(tmp_path, day, rows, after=HOUR)
    (found,) = judged_quality(state, "flights", now=LATER).beside
    assert (found.version, found.outcome, found.rows) == (4, outcome, 2000)
    assert "of skill lost by the challenger" in found.text()

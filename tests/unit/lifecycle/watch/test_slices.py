"""Rows with one value of an input are judged too, where the whole shows nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import served_days
from judged_days import TODAY, inputs
from served_days import bundle_of, deploy, references

from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.acknowledge import acknowledge
from raymlops.lifecycle.watch.drift import drift
from raymlops.profiles.slices import Slice
from raymlops.state.watch.incidents import incidents_of

A_DAY = 400
SLICES = (Slice("carrier", "AA"), Slice("carrier", "UA"))
CARRIERS = np.array(["AA"] * 200 + ["UA"] * 200, dtype=object)
MOVED = "distance[carrier=AA]"


def one_way_and_the_other(seed=5, *, shift=0.45):
    """Return distances that are up where the carrier is AA and down where it is UA: the whole has the mean it had."""
    return np.random.default_rng(seed).normal(np.where(CARRIERS == "AA", shift, -shift), 0.9)


@pytest.fixture(scope="module")
def sliced():
    return references(today=TODAY, a_day=A_DAY, slices=SLICES[:1])


@pytest.fixture
def state(project, tmp_path, sliced):
    with state_of(project) as opened:
        deploy(opened, bundle_of(tmp_path, sliced))
        yield opened


def test_what_moved_in_a_slice_is_an_alarm_that_names_it(state, watch, tmp_path):
    """In the verdict, what is stored of it, the incident, the line, and in the report by the hour."""
    assert inputs(watch([0] * 5, number=A_DAY)).outcome == "ok"
    moved = {"carrier": CARRIERS, "distance": one_way_and_the_other()}
    stored = inputs(watch([0] * 2, until=TODAY + 2 * served_days.DAY, number=A_DAY, **moved))
    assert stored.outcome == "alarm"
    assert [one["column"] for one in stored.details["columns"] if one["flagged"]] == [MOVED]
    (incident,) = incidents_of(state)
    assert incident.column == MOVED
    assert MOVED in inputs(drift("flights").windows).text()


def test_the_report_has_the_hours_of_a_slice(state, watch, tmp_path):
    """Under its name, as those of a whole column."""
    moved = {"carrier": CARRIERS, "distance": one_way_and_the_other()}
    watch([0] * 4, until=TODAY - 2 * served_days.DAY, number=A_DAY)
    watch([0] * 2, number=A_DAY, **moved)
    drift("flights", report=str(tmp_path / "drift.html"))
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert MOVED in page
    assert "median and quartiles by the hour" in page


def test_an_acknowledged_slice_has_a_baseline_of_its_own(state, watch):
    """Its column as a whole is judged as before."""
    moved = {"carrier": CARRIERS, "distance": one_way_and_the_other()}
    watch([0] * 5, number=A_DAY)
    watch([0] * 2, until=TODAY + 2 * served_days.DAY, number=A_DAY, **moved)
    (incident,) = incidents_of(state)
    acknowledge("flights", incident.id, why="the timetable of AA")
    found = inputs(watch([0], until=TODAY + 3 * served_days.DAY, number=A_DAY, **moved))
    assert (found.outcome, found.details["refused"]) == ("ok", {MOVED: "its baseline has 1 of 26 windows"})
    assert "distance" in {one["column"] for one in found.details["columns"]}
    shifted = {"carrier": CARRIERS, "distance": one_way_and_the_other() + 0.6}
    found = inputs(watch([0] * 2, until=TODAY + 5 * served_days.DAY, number=A_DAY, **shifted))
    assert (found.outcome, [one["column"] for one in found.details["columns"] if one["flagged"]]) == (
        "alarm",
        ["distance"],
    )


def test_an_acknowledged_column_is_so_in_its_slices(state, watch):
    """What moved as a whole moved in each of them."""
    watch([0] * 5, number=A_DAY)
    watch([0.4] * 2, until=TODAY + 2 * served_days.DAY, number=A_DAY)
    (incident,) = incidents_of(state)
    assert incident.column == "distance"
    acknowledge("flights", incident.id, why="new sensors")
    found = inputs(watch([0.4], until=TODAY + 3 * served_days.DAY, number=A_DAY))
    assert (found.outcome, list(found.details["refused"])) == ("ok", ["distance"])


def test_a_slice_of_few_rows_is_not_judged_and_says_so(state, watch):
    """60 of 120 rows are AA's, and a day of training has 200."""
    found = inputs(watch([0] * 4, number=120, carrier=np.array(["AA", "UA"] * 60, dtype=object)))
    assert found.outcome == "ok"
    assert found.details["refused"] == {"carrier=AA": "60 rows in this window, 100 are needed"}
    assert "not judged: carrier=AA: 60 rows in this window, 100 are needed" in inputs(drift("flights").windows).text()


def test_answers_are_judged_by_the_inputs_of_a_slice(state, watch, tmp_path):
    """The one output as a whole, and of the rows of AA."""
    found = watch([0] * 4, number=A_DAY)
    outputs = next(one for one in found if (one.side, one.kind) == ("outputs", "drift"))
    assert {one["column"] for one in outputs.details["columns"]} == {"late", "late[carrier=AA]"}


def test_a_bundle_of_an_earlier_release_says_that_its_slices_are_not_judged(state, watch, tmp_path, sliced):
    """It has one profile of each, and no blocks of them."""
    older = {side: replace(reference, slice_blocks={}) for side, reference in sliced.items()}
    deploy(state, bundle_of(tmp_path / "older", older), version=4)
    found = inputs(watch([0] * 4, number=A_DAY, version=4))
    assert found.outcome == "ok"
    why = "registered before slices were kept by block: register its run again"
    assert found.details["refused"] == {"slices": why}


def test_a_slice_that_training_hardly_has_is_listed(state, watch, tmp_path):
    """A value that is misspelt is in no row of training, and in none to come."""
    few = references(today=TODAY, a_day=A_DAY, slices=(*SLICES[:1], Slice("carrier", "aa")))
    deploy(state, bundle_of(tmp_path / "few", few), version=4)
    found = inputs(watch([0] * 4, number=A_DAY, version=4))
    assert (found.outcome, list(found.details["refused"])) == ("ok", ["carrier=aa"])
    assert "not judged: carrier=aa: training has too few rows of it" in inputs(drift("flights").windows).text()

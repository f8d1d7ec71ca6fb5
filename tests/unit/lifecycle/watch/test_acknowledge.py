"""What a person says to be normal is, from then on: by a real state, a real log and the profiles of a real bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from judged_days import TODAY, inputs, today
from served_days import DAY, bundle_of, deploy, references, serve

from raymlops.cli.app import main
from raymlops.errors import NotFoundError, RefusedError, UsageError
from raymlops.lifecycle.named_model import named
from raymlops.lifecycle.overview import overview
from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.acknowledge import acknowledge, rebaseline
from raymlops.lifecycle.watch.drift import drift
from raymlops.lifecycle.watch.live_model import live_model
from raymlops.lifecycle.watch.windows import place_of
from raymlops.state.watch.incidents import Baseline, Filed, add_baselines, baselines_of, incidents_of
from raymlops.state.watch.messages import messages_of

YESTERDAY = TODAY - DAY
"""When it ended it was judged, an hour later, and that is past whatever the hour: people act after it."""


@pytest.fixture(scope="session")
def trained():
    return references(today=TODAY)


@pytest.fixture
def state(project, tmp_path, trained):
    """Return the state of a project whose model flights is live."""
    with state_of(project) as opened:
        deploy(opened, bundle_of(tmp_path, trained))
        yield opened


def test_an_acknowledged_drift_is_normal_once_there_are_windows_enough(state, watch, capsys):
    """Its column is left out until 20 windows show what is normal now; what goes back is drift then."""
    watch([0] * 6 + [0.6] * 3, until=YESTERDAY)
    (incident,) = incidents_of(state)
    assert main(["drift", "flights", "--fail-on-drift"]) == 6
    assert f"incident {incident.id}: inputs, distance, since " in capsys.readouterr().out
    assert main(["drift", "flights", "--acknowledge", incident.id, "--why", "new sensors", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"closed incident {incident.id}" in said
    since = f"{incident.opened_at:%Y-%m-%d %H:%M} UTC"
    assert f"inputs: distance: not judged until there are 26 windows since {since}" in said
    assert main(["drift", "flights", "--fail-on-drift"]) == 0  # stored as an alarm, which somebody knows
    assert "against training: alarm, acknowledged: two windows running" in capsys.readouterr().out
    (baseline,) = baselines_of(state, "flights")
    assert (baseline.side, baseline.version, baseline.columns) == ("inputs", 0, ("distance",))
    assert baseline.start == incident.opened_at
    assert [one.what for one in messages_of(state, "flights")] == ["closed", "opened"]
    event = next(one for one in state.events("flights") if one.action == "incident.acknowledge")
    assert (event.why, event.before[incident.id]["closed_at"]) == ("new sensors", None)
    found = inputs(watch([0.6], until=YESTERDAY + DAY))
    assert (found.outcome, found.against) == ("ok", "training")
    assert found.details["refused"] == {"distance": "its baseline has 2 of 26 windows"}
    found = inputs(watch([0.6] * 23, until=YESTERDAY + 24 * DAY))
    assert found.details["refused"] == {"distance": "its baseline has 25 of 26 windows"}
    found = inputs(watch([0.6] * 4, until=YESTERDAY + 28 * DAY))
    assert (found.outcome, found.details["refused"]) == ("ok", {})
    since = f"the windows served since {incident.opened_at:%Y-%m-%d %H:%M}"
    assert found.against == f"training, and of distance {since}"
    found = inputs(watch([0.0] * 2, until=YESTERDAY + 30 * DAY))
    assert found.outcome == "alarm"
    assert [one.column for one in incidents_of(state, open_only=True)] == ["distance"]


def test_each_fault_is_told_and_each_decision_takes_what_it_names_only(state, watch, capsys):
    """While the distance drifts, carriers do too: both are told, and count until a person answers both."""
    watch([0] * 4 + [0.6] * 3, until=YESTERDAY - 2 * DAY)
    carriers = np.array(["AA"] * 102 + ["UA"] * 18, dtype=object)
    watch([0.6] * 2, until=YESTERDAY, carrier=carriers)
    carrier, distance = incidents_of(state, open_only=True)
    assert (carrier.column, distance.column) == ("carrier", "distance")
    assert [one.what for one in messages_of(state, "flights")] == ["opened", "opened"]

    def decide(option, incident):
        return main(["drift", "flights", option, incident.id, "--why", "a test", "--yes"])

    drifts = ["drift", "flights", "--fail-on-drift"]
    assert (decide("--acknowledge", distance), main(drifts)) == (0, 6)
    assert [one.column for one in incidents_of(state, open_only=True)] == ["carrier"]
    assert (decide("--known", carrier), main(drifts)) == (0, 0)
    assert [one.columns for one in baselines_of(state, "flights")] == [("distance",)]
    assert (decide("--revoke", distance), main(drifts)) == (0, 6)
    assert baselines_of(state, "flights") == []
    assert (decide("--acknowledge", distance), decide("--revoke", carrier), main(drifts)) == (0, 0, 6)
    assert decide("--revoke", carrier) == 4
    capsys.readouterr()


@pytest.mark.soak
def test_what_nobody_acknowledged_is_judged_as_before(state, watch):
    """Another column that moved meanwhile stays an alarm once the acknowledged one has a baseline of its own."""
    watch([0] * 6 + [0.6] * 3)
    (incident,) = incidents_of(state)
    acknowledge("flights", incident.id, why="new sensors")
    watch([0.6] * 2, until=TODAY + 2 * DAY)
    carriers = np.array(["AA"] * 102 + ["UA"] * 18, dtype=object)
    for days in (20, 29, 36):
        found = inputs(watch([0.6] * (days - 2 if days == 20 else 9), until=TODAY + days * DAY, carrier=carriers))
        assert found.outcome == "alarm"
        assert [one["column"] for one in found.details["columns"] if one["flagged"]] == ["carrier"]
    assert found.against == f"training, and of distance the windows served since {incident.opened_at:%Y-%m-%d %H:%M}"
    (still,) = incidents_of(state, open_only=True)
    assert still.column == "carrier"
    found = inputs(watch([0.0] * 2, until=TODAY + 38 * DAY, carrier=carriers))
    assert {one["column"] for one in found.details["columns"] if one["flagged"]} == {"carrier", "distance"}


def test_an_acknowledged_column_without_its_windows_is_no_window_that_is_ok(state, watch, tmp_path):
    """Hours beyond the retention are gone: its windows wait for a person, while an alarm of others is one."""
    watch([0] * 6 + [0.6] * 3, until=YESTERDAY)
    acknowledge("flights", incidents_of(state)[0].id, why="new sensors")
    found = inputs(watch([0.6] * 30, until=YESTERDAY + 30 * DAY))
    assert found.outcome == "ok", found.reason
    for day in range(-9, 27):
        shutil.rmtree(
            tmp_path / f"predictions/flights/version=3/date={YESTERDAY + day * DAY:%Y-%m-%d}", ignore_errors=True
        )
    found = inputs(watch([3.0], until=YESTERDAY + 31 * DAY))
    assert (found.outcome, list(found.details["refused"])) == ("waiting", ["distance"])
    assert "distance: its baseline has 0 of " in found.reason
    assert "gets no more: --rebaseline takes the newest ones" in found.reason
    found = inputs(watch([3.0] * 2, until=YESTERDAY + 33 * DAY, carrier=np.array(["AA"] * 120, dtype=object)))
    assert (found.outcome, list(found.details["refused"])) == ("alarm", ["distance"])


def test_an_incident_is_acknowledged_once(state, watch):
    """A second person is told who was first; an id that is none names those that are open."""
    watch([0] * 4 + [0.6] * 2)
    (incident,) = incidents_of(state)
    with pytest.raises(NotFoundError, match="no incident other") as raised:
        acknowledge("flights", "other", why="a test")
    assert incident.id in (raised.value.hint or "")
    with pytest.raises(UsageError, match="why is empty"):
        acknowledge("flights", incident.id, why=" ")
    assert acknowledge("flights", incident.id, why="a test").incidents[0].acknowledged_why == "a test"
    with pytest.raises(RefusedError, match=r"was closed at .* acknowledged by"):
        acknowledge("flights", incident.id, why="me too")
    assert len(baselines_of(state, "flights")) == 1


def test_skew_that_is_acknowledged_is_only_closed(state, watch):
    """What is served in its columns is compared with what was served first anyway."""
    watch([0.9] * 4)
    (incident,) = incidents_of(state)
    assert ": inputs, skew, distance, since " in incident.text()
    assert " UTC, by the first windows of version 3" in incident.text()
    assert "not judged" not in acknowledge("flights", incident.id, why="known").text()
    assert (incidents_of(state, open_only=True), baselines_of(state, "flights")) == ([], [])
    assert list(inputs(watch([0.9], until=TODAY + DAY)).details["refused"]) == ["distance"]
    assert incidents_of(state, open_only=True) == []


def test_the_newest_windows_are_taken_for_normal(state, watch, capsys):
    """Of inputs and outputs, four weeks at most; the incident is over, and the next window is judged by them."""
    day = today()
    watch([0] * 10 + [0.6] * 28, until=day)
    assert [one.column for one in incidents_of(state, open_only=True)] == ["distance"]
    assert main(["drift", "flights", "--rebaseline", "--why", "since May", "--yes"]) == 0
    assert "inputs: 28 windows are normal from now on" in capsys.readouterr().out
    assert incidents_of(state, open_only=True) == []
    assert [one.start for one in baselines_of(state, "flights")] == [day - 28 * DAY] * 2
    actions = [one.action for one in state.events("flights")]
    assert actions.count("drift.rebaseline") == 2
    found = inputs(watch([0.6], until=day + DAY))
    assert (found.outcome, found.against) == ("ok", f"the windows served since {day - 28 * DAY:%Y-%m-%d %H:%M}")


def test_too_few_windows_are_not_taken_for_normal(state, watch):
    """Nothing would be judged for weeks; the next window is judged as before."""
    with pytest.raises(UsageError, match="has not answered anybody yet"):
        rebaseline("flights", why="a test")
    watch([0] * 3)
    with pytest.raises(RefusedError, match="3 windows of 24 h can be normal so far, and 26 are needed"):
        rebaseline("flights", why="a test")
    assert baselines_of(state, "flights") == []
    assert inputs(watch([2.0], until=TODAY + DAY)).outcome == "alarm"


def test_what_is_said_of_a_drift_that_is_older_than_the_version_holds_for_it(state, watch, tmp_path, trained):
    """It began under version 3, and version 4 was not trained on it; what was said before version 4 is void."""
    watch([0] * 4 + [0.6] * 10)
    (incident,) = incidents_of(state)
    deploy(state, bundle_of(tmp_path / "4", trained), version=4)
    for day in (1, 2, 3):
        found = inputs(watch([0, 0.6, 0.6][day - 1 : day], until=TODAY + day * DAY, version=4))
    assert found.outcome == "alarm"
    assert [one.id for one in incidents_of(state)] == [incident.id]
    said = Baseline("flights", "inputs", 0, incident.opened_at, ("distance",), "known", "me", TODAY - DAY)
    add_baselines(state, [said], Filed)
    assert live_model(state, "flights").sides[0].baselines == ()
    add_baselines(state, [replace(said, made_at=TODAY + 4 * DAY)], Filed)
    (baseline,) = live_model(state, "flights").sides[0].baselines
    assert baseline.start == TODAY
    found = inputs(watch([0.6], until=TODAY + 4 * DAY, version=4))
    assert found.outcome == "ok"
    assert list(found.details["refused"]) == ["distance"]


def test_a_baseline_whose_hours_were_removed_moves_not_on_by_itself(state, watch, tmp_path):
    """Hours beyond the retention are gone; what was served since may have drifted, so a person says what is normal."""
    watch([0.9] * 4, until=TODAY - 40 * DAY)
    found = inputs(watch([0.9] * 40))
    assert found.outcome == "ok"
    assert found.against.startswith("training, and of distance the windows served since ")
    for day in range(10, 60):
        shutil.rmtree(tmp_path / f"predictions/flights/version=3/date={TODAY - day * DAY:%Y-%m-%d}", ignore_errors=True)
    found = inputs(watch([0.9], until=TODAY + DAY))
    assert found.outcome == "waiting"
    assert "has 0 of 26 windows, and gets no more: --rebaseline takes the newest ones" in found.reason


@pytest.mark.parametrize("judged", [True, False])
def test_what_a_person_said_moves_not_on_either(state, watch, tmp_path, judged):
    """Four weeks are normal, of which the controller judged one, or none ever ran; then their hours are removed."""
    now = today()
    if judged:
        watch([0.6] * 28, until=now)
    else:
        serve(tmp_path, [0.6] * 28, until=now)
        compact_predictions("flights", named("flights"))
    rebaseline("flights", why="since May")
    serve(tmp_path, [3.0] * 2, until=now + 21 * DAY, seed=3)
    LogMaintenance(state, state.url, then=lambda _now: None).run(now + 21 * DAY + timedelta(hours=1))
    for day in range(1, 29):
        shutil.rmtree(tmp_path / f"predictions/flights/version=3/date={now - day * DAY:%Y-%m-%d}", ignore_errors=True)
    model = live_model(state, "flights")
    assert [one.start for side in model.sides for one in side.baselines] == [now - 28 * DAY] * 2
    at = place_of(now + 20 * DAY, model.window_s)
    (found,) = model.sides[0].drifts(at, at, skewed=())
    assert found.outcome == "waiting"
    assert "gets no more: --rebaseline takes the newest ones" in found.waiting


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--why", "x"], "--why is of --acknowledge ID, --known ID, --revoke ID or --rebaseline"),
        (["--rebaseline"], "--why is missing"),
        (["--rebaseline", "--acknowledge", "i", "--why", "x"], "stand alone"),
        (["--rebaseline", "--since", "7d", "--why", "x"], "stand alone"),
        (["--rebaseline", "--why", "x"], "Add --yes"),
    ],
)
def test_options_that_say_nothing_together_are_refused(state, words, said, capsys):
    """And so is a change that nobody confirmed."""
    assert main(["drift", "flights", *words]) == 2
    assert said in capsys.readouterr().err
    assert baselines_of(state, "flights") == []


def test_status_has_the_newest_verdicts_and_open_incidents(state, watch):
    """Each side with its own windows, and why there is no verdict; nothing before anything was judged."""
    assert overview()[0].drift is None
    watch([0] * 4 + [0.6] * 2)
    text = overview()[0].text()
    assert "inputs alarm until" in text
    assert "by 80 own windows" in text
    assert f"incident {incidents_of(state)[0].id}: inputs" in text
    watch([0], until=TODAY + DAY, number=3)
    assert "inputs waiting until" in overview()[0].text()
    assert "fewer than 100 rows" in overview()[0].text()


def test_verdicts_are_read_where_they_were_stored(state, watch, tmp_path):
    """Not one hour is read again: the files may be gone. A window that nobody judged yet is told beside the newest."""
    watch([0] * 4 + [0.6] * 2, until=TODAY - DAY)
    before = drift("flights", since="30d").windows
    for profile in (tmp_path / "predictions").rglob("profile.counts"):
        profile.unlink()
    assert drift("flights", since="30d").windows == before
    newest = inputs_of(drift("flights"))
    assert [(one.outcome, one.start) for one in newest] == [("alarm", TODAY - 2 * DAY)]
    serve(tmp_path, [0.6], until=TODAY)
    assert [one.outcome for one in inputs_of(drift("flights"))] == ["alarm", "waiting"]
    compact_predictions("flights", named("flights"))
    assert [(one.outcome, one.start) for one in inputs_of(drift("flights"))] == [("alarm", TODAY - DAY)]


def inputs_of(record):
    return [one for one in record.windows if (one.side, one.kind) == ("inputs", "drift")]

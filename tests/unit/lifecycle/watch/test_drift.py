"""Whether a live model's newest traffic is unlike what is normal, by a real log and a real bundle."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import served_days
from html_page import Page
from judged_days import TODAY, today
from served_days import ROWS

from raymlops.cli.app import main
from raymlops.errors import NotFoundError, StorageError, UsageError
from raymlops.lifecycle.prediction_log import compact_predictions
from raymlops.lifecycle.sources import state_of
from raymlops.lifecycle.watch.drift import DriftRecord, drift
from raymlops.lifecycle.watch.judge import Judge
from raymlops.lifecycle.watch.quality import TrafficQuality
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.state.watch.incidents import Incident
from raymlops.state.watch.windows import judged_windows


def serve(tmp_path, shifts, **changes):
    """Log one request a day with ``ROWS`` rows, the last of them yesterday, at noon; with each day's shift."""
    served_days.serve(tmp_path, shifts, until=TODAY, **changes)


def test_two_windows_running_that_moved_are_an_alarm_that_names_the_column(spec, tmp_path, capsys):
    """A day unlike those of training warns at most; the second one makes it an alarm, exit code 6 where asked for."""
    serve(tmp_path, [0, 0, 0, 0, 0.45, 0.45])
    compact_predictions("flights", spec)
    *_, before, one, two = (found for found in drift("flights", since="5d").windows if found.side == "inputs")
    assert [found.outcome for found in (before, one, two)] == ["ok", "warn", "alarm"]
    assert (two.side, two.against, two.rows) == ("inputs", "training", ROWS)
    assert two.verdict is not None
    assert two.verdict.flagged == ("distance",)
    assert [column.influence for column in two.verdict.columns] == [0.75, None]
    assert "0.75" in two.text()
    outputs = drift("flights").windows[-1]
    assert (outputs.side, outputs.outcome) == ("outputs", "ok")
    assert main(["drift", "flights"]) == 0
    assert "two windows running" in capsys.readouterr().out
    assert main(["drift", "flights", "--json", "--fail-on-drift"]) == 6


def test_a_change_between_columns_is_judged_where_asked_for(spec, tmp_path, capsys):
    """Each of two columns stays as it is, and now one decides the other; what is stored is of columns alone."""
    served_days.serve(tmp_path, [0] * 4, until=TODAY - timedelta(days=2))
    distance = np.random.default_rng(5).normal(size=ROWS)
    carrier = np.where(distance > np.median(distance), "AA", "UA").astype(object)
    serve(tmp_path, [0, 0], distance=distance, carrier=carrier, seed=3)
    compact_predictions("flights", spec)
    with state_of(spec) as state:
        Judge(state)(TODAY + timedelta(hours=1))
    assert [one.outcome for one in drift("flights").windows if one.kind == "drift"] == ["ok", "ok"]
    inputs = next(one for one in drift("flights", between_columns=True).windows if one.kind == "drift")
    assert inputs.outcome == "alarm"
    assert inputs.verdict.flagged == ("distance and carrier=AA",)
    assert "correlation" in inputs.text()
    since = [one for one in drift("flights", since="4d", between_columns=True).windows if one.side == "inputs"]
    assert [one.outcome for one in since if one.kind == "drift"][-1] == "alarm"
    assert main(["drift", "flights", "--between-columns", "--fail-on-drift"]) == 6
    assert "distance and carrier=AA" in capsys.readouterr().out


def test_the_controller_judges_changes_between_columns_where_configured(spec, tmp_path):
    """With ``monitor.between_columns`` its verdicts are those that are asked for."""
    day = today()
    with state_of(spec) as state:
        bundle = served_days.bundle_of(tmp_path, served_days.references(today=day))
        served_days.deploy(state, bundle, monitor={"between_columns": True})
        served_days.serve(tmp_path, [0] * 3, until=day)
        compact_predictions("flights", spec)
        Judge(state)(day + timedelta(hours=1))
        (stored, *_) = (one for one in judged_windows(state, "flights") if one.side == "inputs" and one.kind == "drift")
    assert "distance and carrier=AA" in {column["column"] for column in stored.details["columns"]}
    (inputs, *_) = (one for one in drift("flights").windows if one.side == "inputs" and one.kind == "drift")
    assert "distance and carrier=AA" in {column.column for column in inputs.verdict.columns}


def test_a_bundle_that_keeps_nothing_of_pairs_says_so(spec, tmp_path):
    references = served_days.references(today=TODAY)
    references["features"] = reference_of(lambda: [Chunk({"distance": np.arange(400.0)}, 400)], rows=400)
    with state_of(spec) as state:
        served_days.deploy(state, served_days.bundle_of(tmp_path, references), version=4)
    assert "register its run again" in drift("flights", between_columns=True).text()
    assert "register its run again" not in drift("flights").text()


def test_the_report_has_every_window_and_the_hours_of_what_moved(spec, tmp_path, capsys):
    """Whatever is asked for; the answer is the newest window of each side, or those since a time."""
    serve(tmp_path, [0, 0, 0, 0, 0.45, 0.45])
    compact_predictions("flights", spec)
    file = tmp_path / "drift.html"
    assert main(["drift", "flights", "--report", str(file)]) == 0
    assert f"report     {file}" in capsys.readouterr().out
    written = Page(file.read_text(encoding="utf-8"))
    assert written.open == []
    assert "inputs-drift" in written.sections
    assert "1 alarm" in written.words
    assert "median and quartiles by the hour" in written.words
    record = drift("flights", report=str(file))
    assert [(one.side, one.kind) for one in record.windows] == [
        *(("inputs", "skew"), ("inputs", "drift")),
        *(("outputs", "skew"), ("outputs", "drift")),
    ]
    assert 'class="drift"' in record._repr_html_()


def test_a_report_that_cannot_be_written_is_refused_by_its_name(spec, tmp_path):
    """No folder is made for a path that was mistyped, and no setting of the storage is to blame."""
    for place in (tmp_path / "none" / "drift.html", tmp_path):
        with pytest.raises(UsageError, match="the report '") as raised:
            drift("flights", report=str(place))
        assert "--report" in (raised.value.hint or "")
    assert not (tmp_path / "none").exists()
    with pytest.raises(StorageError) as failed:
        drift("flights", report="nosuch://bucket/drift.html")
    assert "--report" in (failed.value.hint or "")
    assert "storage.path" not in str(failed.value)


def test_a_reference_that_is_too_short_says_what_takes_over(spec, tmp_path):
    """Nobody can lengthen the validation split afterwards, nor need to: the first windows served are enough."""
    with state_of(spec) as state:
        short, number = served_days.references(today=TODAY, days=10), 10 * ROWS
        times = TODAY.timestamp() - 86400.0 * 100 + np.arange(number) * (86400.0 / ROWS)
        answers = Chunk({"late": np.random.default_rng(4).random(number)}, number, times)
        short["predictions"] = reference_of(lambda: [answers], rows=number)
        served_days.deploy(state, served_days.bundle_of(tmp_path, short), version=4)
    serve(tmp_path, [0.0] * 4, version=4)
    compact_predictions("flights", spec)
    inputs, outputs = [one.text() for one in drift("flights").windows if one.kind == "drift"]
    waits = "take over by themselves: its baseline has 2 of 26 windows"
    assert ": take a longer reference; the windows served since " in inputs
    assert inputs.endswith(waits)
    assert "a longer reference; the reference of outputs is the validation split; the windows served" in outputs
    assert outputs.endswith(waits)


def test_windows_that_get_no_serving_baseline_are_said(spec, tmp_path):
    """A week's takes 22 weeks of the log, which keeps 90 days."""
    with state_of(spec) as state:
        served_days.deploy(state, served_days.bundle_of(tmp_path, served_days.references(today=TODAY)), version=4)
        assert drift("flights").notes == ()
        weeks = {"window_h": 168}
        served_days.deploy(
            state, served_days.bundle_of(tmp_path, served_days.references(today=TODAY)), version=5, monitor=weeks
        )
    (note,) = drift("flights").notes
    assert "takes 155 days of the log, and serve.log.retention_days keeps 90" in note


def test_what_drifted_never_becomes_what_is_normal(spec, tmp_path):
    """Training was right for 15 days; 45 days of drift later the newest window still is an alarm."""
    serve(tmp_path, [0] * 15 + [0.5] * 45)
    compact_predictions("flights", spec)
    skew, now, *_ = drift("flights").windows
    assert (skew.outcome, now.outcome, now.against) == ("ok", "alarm", "training")


def test_skew_alone_ends_no_command_with_6(spec, tmp_path, capsys):
    """It was there from the beginning, and would be for ever."""
    serve(tmp_path, [0.9] * 3)
    compact_predictions("flights", spec)
    assert main(["drift", "flights", "--fail-on-drift"]) == 0
    assert "skew" in capsys.readouterr().out


def test_every_window_since_a_time_is_listed(spec, tmp_path):
    """Those that are not counted too; where there is none, that is said."""
    serve(tmp_path, [0, 0, 0])
    compact_predictions("flights", spec)
    max((tmp_path / "predictions/flights/version=3").glob("**/profile.counts")).unlink()
    found = [one for one in drift("flights", since="30d").windows if one.side == "inputs" and one.kind == "drift"]
    assert [one.outcome for one in found].count("waiting") == 2  # that one, and the first, in which traffic began
    assert len(found) == 3
    assert "no window has begun and ended since" in drift("flights", since="1h").text()


def test_when_the_first_verdict_comes_is_said(spec, tmp_path):
    """Traffic began today at noon: today's window is not judged, tomorrow's is."""
    tomorrow = today() + timedelta(days=1)
    served_days.serve(tmp_path, [0], until=tomorrow)
    judged_at = tomorrow + timedelta(days=1)
    assert f"the first that is judged ends at {judged_at:%Y-%m-%d} 00:00 UTC" in drift("flights").text()


def test_hours_that_nobody_counted_yet_are_named(spec, tmp_path):
    """No verdict comes from half a window."""
    assert "no window of traffic has ended yet" in drift("flights").text()
    serve(tmp_path, [0, 0])
    waiting = drift("flights").windows[0]
    assert waiting.waiting.startswith("1 of its hours are not counted on the columns of version 3")
    with pytest.raises(NotFoundError, match="other was never deployed according to the state here"):
        drift("other")


def test_a_model_that_the_state_here_does_not_know_is_told_with_where_states_are(tmp_path, monkeypatch):
    """In a notebook as on the command line: the usual reason is another state."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match="flights was never deployed according to the state here") as raised:
        drift("flights")
    assert "in Python config=; or set RAYMLOPS_HOME" in str(raised.value.hint)


def test_a_bound_that_somebody_knows_of_is_no_drift_and_every_other_one_is():
    """Missing values of one column are muted; those of another, and silence, count."""
    missing, other, silent = "carrier (max_nulls)", "distance (max_nulls)", "max_silence_h"
    known = Incident("i", "flights", "inputs", "quality", 0, TODAY, TODAY, 1, missing)
    said = replace(known, acknowledged_at=TODAY)
    for beyond, incidents, drifted in (
        ((missing,), (known,), True),
        ((missing, other), (said,), True),
        ((missing,), (said,), False),
        ((missing, silent), (said,), True),
        ((missing,), (replace(said, closed_at=TODAY),), True),
    ):
        quality = TrafficQuality((), 0.0, beyond=beyond)
        assert DriftRecord("flights", 3, 24.0, (), incidents=incidents, quality=quality).drifted == drifted

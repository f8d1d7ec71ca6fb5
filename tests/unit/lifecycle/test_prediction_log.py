"""Erasing one person's rows while a model is live."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from killed_store import KilledError
from served_requests import SIGNATURE, served
from stored import put
from tiny_bundle import tiny_contents

from raymlops.bundle.profiles import references_of
from raymlops.bundle.write import write_bundle
from raymlops.errors import LeaseLostError, RefusedError, StorageError
from raymlops.lifecycle.prediction_log import (
    StoredLog,
    changing,
    compact_predictions,
    erase_predictions,
    other_storages,
    remove_old,
)
from raymlops.lifecycle.sources import state_of, stores_of
from raymlops.predictions.compact import compact
from raymlops.predictions.hourly import hourly_profiles
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import LogSettings
from raymlops.predictions.where import Where
from raymlops.profiles.reference import Chunk, reference_of
from raymlops.profiles.slices import Slice
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.store import Deployment
from raymlops.state.versions import record_version
from raymlops.storage.store import Store

ANNA = Where.parse(["features.carrier=anna"])


def write(uri, request_id, person, *, ago=timedelta()):
    log = PredictionLog(LogSettings(enabled=True, uri=str(uri)), name="flights", signature=SIGNATURE, writer="w")
    columns = {"distance": np.ones(1), "carrier": np.array([person], dtype=object)}
    log.take([served(request_id, ts=(datetime.now(UTC) - ago).timestamp(), columns=columns)])
    log.close()


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Return a configuration whose model is live, and answers from two storages, the second one before it moved."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    spec = stores_of(None)
    bundle = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)
    with state_of(spec) as state:
        put(state, "flights", [Deployment("flights", 1, bundle, "run", "champion", {"log": {"flush_s": 3.0}})])
    return spec


def test_a_live_model_is_searched_once_more_after_its_replicas_wrote(spec, tmp_path):
    """A replica still held a row of hers; it writes it within flush_s and a moment."""
    write(tmp_path, "a", "anna")
    write(tmp_path, "b", "bob")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        write(tmp_path, "c", "anna")

    record = erase_predictions("flights", spec, ANNA, sleep=sleep)
    assert (waits, record.rows, record.searched) == ([5.0], 2, 2)
    assert [row for batch in Reading(str(tmp_path), "flights") for row in batch["request_id"].to_pylist()] == ["b"]


def test_labels_that_have_just_arrived_are_waited_for(spec, tmp_path):
    """Their file may still grow; where it does so after the wait too, the row stays for the next call."""
    write(tmp_path, "a", "anna")
    labels = LabelLog(str(tmp_path), name="flights", writer="w")
    labels.add([Label("a", 0, "1")]).result(timeout=30)
    labels.close()
    waits = []
    record = erase_predictions("flights", spec, ANNA, sleep=waits.append)
    assert (waits, record.rows, record.labels, record.open_labels) == ([5.0, 36.0], 0, 0, 1)
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 1


def test_a_row_goes_whose_label_became_older_while_its_replicas_were_waited_for(spec, tmp_path):
    """It had arrived days before; its label was held in a file that nobody writes to any more after that wait."""
    write(tmp_path, "a", "anna", ago=timedelta(days=2))
    labels = LabelLog(str(tmp_path), name="flights", writer="w")
    labels.add([Label("a", 0, "1")]).result(timeout=30)
    labels.close()

    def sleep(_seconds):
        for file in (tmp_path / "labels").rglob("*.parquet"):
            began, _, rest = file.name.partition("-")
            file.rename(file.with_name(f"{int(began) - 60_000}-{rest}"))

    record = erase_predictions("flights", spec, ANNA, sleep=sleep)
    assert (record.rows, record.labels, record.open_labels) == (1, 1, 0)
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 0


def test_it_waits_for_no_other_process_that_changes_the_files(spec, tmp_path):
    """It is refused and nothing is changed or recorded."""
    write(tmp_path, "a", "anna")
    with state_of(spec) as state:
        before = len(state.events())
        with changing(state.url, "flights", purpose="compaction"), pytest.raises(RefusedError, match="in use by"):
            erase_predictions("flights", spec, ANNA)
        assert len(state.events()) == before
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 1


def test_who_does_not_agree_keeps_everything(spec, tmp_path):
    """What was found is shown before."""
    write(tmp_path, "a", "anna")
    found = []

    def refuse(record):
        found.append((record.rows, record.erased))
        raise RefusedError("no")

    with pytest.raises(RefusedError):
        erase_predictions("flights", spec, ANNA, since=datetime.now(UTC) - timedelta(days=1), agree=refuse)
    assert found == [(1, False)]
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 1


def test_a_process_that_lost_its_lease_changes_nothing_more(spec, tmp_path):
    """As where a state database restarts, and another process merges the same files meanwhile."""
    write(tmp_path, "a", "anna")
    write(tmp_path, "b", "bob")

    def lose(_found):
        (tmp_path / "leases/predictions-flights.lock").unlink()
        with state_of(spec) as state, changing(state.url, "flights", purpose="compaction") as open_store:
            later = datetime.now(UTC) + timedelta(hours=2)
            assert compact(str(tmp_path), "flights", now=later, open_store=open_store).merged == 2

    with pytest.raises(LeaseLostError, match="the erasure of flights was interrupted"):
        erase_predictions("flights", spec, ANNA, agree=lose)
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 2
    assert erase_predictions("flights", spec, ANNA, sleep=lambda _s: None).rows == 1
    assert sum(map(len, Reading(str(tmp_path), "flights"))) == 1


def test_a_storage_that_is_gone_is_named_and_keeps_no_other_from_being_searched(spec, tmp_path):
    """An earlier version was written to a bucket that does not exist any more. Where that is all, it is an error."""
    write(tmp_path, "a", "anna")
    with state_of(spec) as state:
        gone = ModelVersionRef("flights", 0, "run", BundleRef("no-such-scheme://x/bundles/d", "d" * 64), ())
        record_version(state, gone, why="", now=datetime.now(UTC))
    record = erase_predictions("flights", spec, ANNA, sleep=lambda _s: None)
    assert (record.rows, record.damaged) == (1, ("no-such-scheme://x",))
    shutil.rmtree(tmp_path / "predictions")
    with pytest.raises(StorageError, match="no-such-scheme"):
        erase_predictions("flights", spec, ANNA, sleep=lambda _s: None)


@pytest.mark.parametrize("live", [True, False])
def test_labels_go_that_came_after_their_model_had_moved_to_another_storage(spec, tmp_path, live):
    """They are beside the rows of the version that is live by then, or was last; days old in both places."""
    with state_of(spec) as state:
        ref = ModelVersionRef("flights", 0, "run", BundleRef(f"{tmp_path}/old/bundles/{'e' * 64}", "e" * 64), ())
        record_version(state, ref, why="", now=datetime.now(UTC))
        if not live:
            put(state, "flights", [], action="remove")
    write(tmp_path / "old", "a", "anna", ago=timedelta(days=3))
    write(tmp_path, "b", "bob")
    labels = LabelLog(str(tmp_path), name="flights", writer="w", now=lambda: time.time() - 2 * 86_400)
    labels.add([Label("a", 0, "1"), Label("b", 0, "1")]).result(timeout=30)
    labels.close()
    record = erase_predictions("flights", spec, ANNA, sleep=lambda _s: None)
    assert (record.rows, record.labels) == (1, 1)
    reading = Reading(str(tmp_path), "flights")
    assert [(row["request_id"], row["label"]) for batch in reading for row in batch.to_pylist()] == [("b", "1")]
    assert reading.unknown_labels().num_rows == 0


def test_an_erasure_that_is_killed_between_its_searches_is_completed_by_the_next(spec, tmp_path):
    """Her row is in the storage that the model left, its label in the new one; what ended is on the record once."""
    with state_of(spec) as state:
        ref = ModelVersionRef("flights", 0, "run", BundleRef(f"{tmp_path}/old/bundles/{'e' * 64}", "e" * 64), ())
        record_version(state, ref, why="", now=datetime.now(UTC))
    write(tmp_path / "old", "a", "anna", ago=timedelta(days=3))
    write(tmp_path, "b", "bob")
    labels = LabelLog(str(tmp_path), name="flights", writer="w", now=lambda: time.time() - 2 * 86_400)
    labels.add([Label("a", 0, "1"), Label("b", 0, "1")]).result(timeout=30)
    labels.close()

    def die(_seconds):
        raise KilledError

    with pytest.raises(KilledError):
        erase_predictions("flights", spec, ANNA, sleep=die)
    erase_predictions("flights", spec, ANNA, sleep=lambda _s: None)
    for folder, left in ((tmp_path, ["b"]), (tmp_path / "old", [])):
        reading = Reading(str(folder), "flights")
        assert [row for batch in reading for row in batch["request_id"].to_pylist()] == left
        assert reading.unknown_labels().num_rows == 0
    with state_of(spec) as state:
        assert [event.action for event in state.events("flights")].count("predictions.erased") == 1


def test_rows_are_read_although_a_storage_that_the_model_left_is_gone(spec, tmp_path):
    """It is named, as one that has rows is; the search goes on in the configured one."""
    write(tmp_path / "elsewhere", "a", "anna")
    with state_of(spec) as state:
        for number, uri in enumerate((f"{tmp_path}/elsewhere", "no-such-scheme://x", f"{tmp_path}/empty"), start=2):
            ref = ModelVersionRef("flights", number, "run", BundleRef(f"{uri}/bundles/{'e' * 64}", "e" * 64), ())
            record_version(state, ref, why="", now=datetime.now(UTC))
    gone, other = other_storages("flights", spec)
    assert gone.startswith("flights may have rows in another storage too: 'no-such-scheme://x")
    assert other == f"flights also has rows in {tmp_path}/elsewhere: read them with storage.path={tmp_path}/elsewhere"


def test_hours_that_were_removed_before_a_failure_are_on_the_record(spec, tmp_path):
    """The event counts them, although the next storage cannot be used."""
    write(tmp_path, "a", "anna")
    log = StoredLog("flights", (str(tmp_path), "no-such-scheme://x"), 1.0)
    with state_of(spec) as state:
        with pytest.raises(StorageError):
            remove_old(state, log, before=datetime.now(UTC) + timedelta(hours=2))
        assert state.events()[0].why.startswith("1 hours and days before")
    assert not list((tmp_path / "predictions").rglob("*.parquet"))


def test_past_hours_are_counted_on_what_their_bundles_were_trained_on(spec, tmp_path):
    """On the layouts of a version's bundle and, of features, of those that are live: those alone without a bundle.

    So are the rows of slices, by those of all that are live.
    """
    values = {"distance": np.arange(100.0), "carrier": np.array(["AA", "anna"] * 50, object)}
    refs = []
    for number, scale, value in ((3, 1.0, "AA"), (4, 2.0, "anna")):
        features = {**values, "distance": values["distance"] * scale}
        found = {
            "features": reference_of(
                lambda features=features: [Chunk(features, 100)], rows=100, slices=[Slice("carrier", value)]
            ),
            "predictions": reference_of(lambda: [Chunk({"late": values["distance"]}, 100)], rows=100),
        }
        refs.append(write_bundle(tmp_path, tiny_contents(references=found)))
        with state_of(spec) as state:
            version = ModelVersionRef("flights", number, "run", refs[-1], ())
            record_version(state, version, why="a test", now=datetime.now(UTC))
    past = (datetime.now(UTC) - timedelta(days=1)).timestamp()
    log = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="flights", signature=SIGNATURE, writer="w")
    log.take([served("a", ts=past), served("b", ts=past, version=4), served("c", ts=past, version=5)])
    log.close()
    with state_of(spec) as state:
        put(state, "flights", [Deployment("flights", 4, refs[1], "run", "champion", {})])
    assert compact_predictions("flights", spec).profiled == 3
    layouts = {side: reference.layout for side, reference in references_of(refs[1].uri, refs[1].digest).items()}
    hours = list(hourly_profiles(Store(str(tmp_path)), "flights", layouts))
    assert [(hour.version, sorted(hour.profiles)) for hour in hours] == [
        (3, ["features", "predictions"]),
        (4, ["features", "predictions"]),
        (5, ["features"]),
    ]
    assert sum(hour.profiles["features"].rows for hour in hours) == 3
    live = {"features[carrier=anna]": layouts["features"]}
    sliced = hourly_profiles(Store(str(tmp_path)), "flights", live)
    assert [(hour.version, sorted(hour.profiles)) for hour in sliced] == [(each, [*live]) for each in (3, 4, 5)]
    assert compact_predictions("flights", spec).profiled == 0

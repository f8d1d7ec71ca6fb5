"""Two states that serve one model from one storage keep a log each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from served_requests import SIGNATURE, served
from stored import put

from raymlops.errors import StorageError
from raymlops.lifecycle.live import log_owner
from raymlops.lifecycle.live.log_owner import claim, claim_before_deploy, own_storages, read_from, unclaimed
from raymlops.lifecycle.prediction_log import stored_log
from raymlops.lifecycle.rollout.log_maintenance import LogMaintenance
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.owner import mark_owner, owner_of
from raymlops.predictions.paths import label_days, prediction_hours
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.store import Deployment, State
from raymlops.state.versions import record_verdict, record_version
from raymlops.storage.store import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def states(url, tmp_path):
    """Return the state that made a version, and one that adopted it, each with it live."""
    ref = ModelVersionRef("m", 3, "run", BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64), ())
    with State.open(url) as maker, State.open(f"sqlite:///{tmp_path}/guest.db") as guest:
        record_version(maker, ref, why="", now=NOW)
        record_verdict(guest, ref, seen=None, passed=True, decision={}, why="", now=NOW)
        for state, days in ((maker, 90.0), (guest, 2.0)):
            item = Deployment("m", 3, ref.bundle, "run", "champion", {"log": {"retention_days": days}})
            put(state, "m", [item])
        yield maker, guest


def write(folder, state, request_id, *, ago=timedelta(hours=3)):
    settings = LogSettings(enabled=True, uri=str(folder), state=state.owner().id)
    log = PredictionLog(settings, name="m", signature=SIGNATURE, writer=request_id)
    columns = {"distance": np.ones(1), "carrier": np.array(["AA"], dtype=object)}
    log.take([served(request_id, ts=(NOW - ago).timestamp(), version=3, columns=columns)])
    log.close()
    assert log.spool.written == 1


def hours(uri):
    return len(prediction_hours(Store(str(uri)), "m"))


@pytest.mark.parametrize("first", ["maker", "guest"])
def test_a_state_that_adopted_a_bundle_keeps_a_log_of_its_own(states, tmp_path, first):
    """Whichever comes first: its replicas write below ``states``, and its two days remove none of the 90."""
    _maker, guest = states
    for state in states if first == "maker" else states[::-1]:
        claim_before_deploy(state, "m", f"{tmp_path}/bundles/{'d' * 64}")
    own = tmp_path / "states" / guest.owner().id
    for state in states:
        write(tmp_path, state, "old", ago=timedelta(days=5))
        write(tmp_path, state, "new")
    labels = LabelLog(str(tmp_path), name="m", writer="r", state=guest.owner().id)
    labels.add([Label("new", 0, "1")]).result(timeout=30)
    labels.close()
    assert (hours(tmp_path), hours(own)) == (2, 2)
    assert [len(label_days(Store(str(uri)), "m")) for uri in (tmp_path, own)] == [0, 1]
    for state in states:
        LogMaintenance(state, state.url).run(NOW)
    assert (hours(tmp_path), hours(own)) == (2, 1)
    assert [stored_log(state, "m").uris for state in states] == [(str(tmp_path),), (str(own),)]


def test_a_log_of_an_earlier_release_stays_with_the_state_that_made_the_versions(states, tmp_path):
    """Nobody marked it. The guest's controller leaves it alone, and names it as one that it did not search."""
    maker, guest = states
    write(tmp_path, maker, "old", ago=timedelta(days=5))
    assert len(unclaimed(guest, "m", [str(tmp_path)])) == 1
    LogMaintenance(guest, guest.url).run(NOW)
    assert hours(tmp_path) == 1
    assert owner_of(Store(str(tmp_path)), "m") is None
    LogMaintenance(maker, maker.url).run(NOW)
    assert owner_of(Store(str(tmp_path)), "m").state == maker.owner().id
    assert unclaimed(guest, "m", [str(tmp_path)]) == []


def test_of_two_states_that_made_versions_in_one_storage_the_first_one_has_the_log(url, tmp_path):
    """The other one keeps its own; what a person marks for it is its too, beside what it wrote meanwhile."""
    with State.open(url) as one, State.open(f"sqlite:///{tmp_path}/other.db") as other:
        for state, version in ((one, 3), (other, 4)):
            bundle = BundleRef(f"{tmp_path}/bundles/{version}", str(version) * 64)
            record_version(state, ModelVersionRef("m", version, "run", bundle, ()), why="", now=NOW)
            put(state, "m", [Deployment("m", version, bundle, "run", "champion", {})])
            claim(state, "m", [str(tmp_path)])
        own = f"{tmp_path}/states/{other.owner().id}"
        assert [stored_log(state, "m").uris for state in (one, other)] == [(str(tmp_path),), (own,)]
        Store(str(tmp_path)).remove("log-owners/m")
        mark_owner(Store(str(tmp_path)), "m", other.owner().id)
        assert stored_log(other, "m").uris == (str(tmp_path), own)


def test_a_state_that_finds_rows_before_its_first_deploy_leaves_them(states, url, tmp_path):
    """They cannot be its own, although it made a version there. What it logs is read by its configuration."""
    maker, _guest = states
    write(tmp_path, maker, "a")
    with State.open(f"sqlite:///{tmp_path}/new.db") as new:
        bundle = BundleRef(f"{tmp_path}/bundles/{'e' * 64}", "e" * 64)
        record_version(new, ModelVersionRef("m", 4, "run", bundle, ()), why="", now=NOW)
        claim_before_deploy(new, "m", bundle.uri)
        put(new, "m", [Deployment("m", 4, bundle, "run", "champion", {})])
        LogMaintenance(new, new.url).run(NOW)
        own = f"{tmp_path}/states/{new.owner().id}"
        assert read_from("m", str(tmp_path), lambda: new.owner().id) == own  # where nothing is yet
        write(tmp_path, new, "b")
        assert (stored_log(new, "m").uris, hours(own), hours(tmp_path)) == ((own,), 1, 1)
        assert len(unclaimed(new, "m", [str(tmp_path)])) == 1
        assert read_from("m", str(tmp_path), lambda: new.owner().id) == own
    LogMaintenance(maker, url).run(NOW)
    assert stored_log(maker, "m").uris == (str(tmp_path),)


def test_one_storage_by_two_names_is_read_once(url, tmp_path):
    """A version's bundle was written by a link; both are searched, one is counted."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with State.open(url) as state:
        for version, root in ((3, "a"), (4, "b")):
            bundle = BundleRef(f"{tmp_path}/{root}/bundles/{version}", str(version) * 64)
            record_version(state, ModelVersionRef("m", version, "run", bundle, ()), why="", now=NOW)
        put(state, "m", [Deployment("m", 4, bundle, "run", "champion", {})])
        claim(state, "m", [f"{tmp_path}/b", f"{tmp_path}/a"])
        log = stored_log(state, "m")
    assert log.uris == (f"{tmp_path}/b", f"{tmp_path}/a")
    assert log.distinct == (f"{tmp_path}/b",)


def test_a_deploy_is_refused_where_its_rows_would_get_into_the_log_of_another_state(states, tmp_path):
    """The guest cannot mark its own folder: a file is in the way. The maker's controller marks its log later."""
    maker, guest = states
    (tmp_path / "states").write_text("")
    (tmp_path / "log-owners").write_text("")
    uri = f"{tmp_path}/bundles/{'d' * 64}"
    with pytest.raises(StorageError, match="another state's"):
        claim_before_deploy(guest, "m", uri)
    (warning,) = claim_before_deploy(maker, "m", uri)
    assert warning.startswith("the controller marks the log of m")


def test_of_two_states_that_find_a_log_unmarked_the_first_to_mark_it_has_it(tmp_path, monkeypatch):
    """The other one, which looked before and writes after, has its own before its deploy goes on."""
    first, second = (State.open(f"sqlite:///{tmp_path}/{name}.db") for name in ("first", "second"))
    with first, second:
        for at, state in enumerate((first, second)):
            bundle = BundleRef(f"{tmp_path}/bundles/{at}", "d" * 64)
            record_version(state, ModelVersionRef("m", at + 1, "run", bundle, ()), why="", now=NOW)
        looked = log_owner._is_anothers

        def while_the_other_marks(state, name, root):
            found = looked(state, name, root)
            monkeypatch.setattr(log_owner, "_is_anothers", looked)
            claim(first, name, [root])
            write(tmp_path, first, "early")
            return found

        monkeypatch.setattr(log_owner, "_is_anothers", while_the_other_marks)
        claim(second, "m", [str(tmp_path)])
        write(tmp_path, second, "late")
        own = f"{tmp_path}/states/{second.owner().id}"
        assert owner_of(Store(str(tmp_path)), "m").state == first.owner().id
        assert [[uri for uri, _ in own_storages(state, "m", str(tmp_path))] for state in (first, second)] == [
            [str(tmp_path)],
            [own],
        ]
        assert (hours(tmp_path), hours(own)) == (1, 1)

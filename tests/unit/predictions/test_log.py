import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_requests import SIGNATURE, at, served

from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog, pieces
from raymlops.predictions.read import Reading
from raymlops.predictions.settings import LogSettings, unknown_redactions
from raymlops.storage.store import Store


def make(uri, **changes):
    settings = LogSettings(**{"enabled": True, "uri": str(uri)} | changes)
    return PredictionLog(settings, name="flights", signature=SIGNATURE, writer="replica-1")


def ids(uri):
    return [value for batch in Reading(str(uri), "flights") for value in batch["request_id"].to_pylist()]


def test_what_is_closed_is_complete(tmp_path):
    """One file for each version and hour, of the stated names, and nothing beside them."""
    log = make(tmp_path)
    log.take([served("a", rows=2), served("b", version=4, route="shadow"), served("c", outputs=None)])
    log.take([served("d", ts=at(61))])
    log.close()
    assert (log.spool.written, log.spool.dropped) == (4, 0)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert [path.rpartition("/")[0] for path in files] == [
        "predictions/flights/version=3/date=2026-11-25/hour=12",
        "predictions/flights/version=3/date=2026-11-25/hour=13",
        "predictions/flights/version=4/date=2026-11-25/hour=12",
    ]
    assert pq.read_table(tmp_path / files[0], partitioning=None)["request_id"].to_pylist() == ["a", "a"]


@pytest.mark.parametrize(("folder", "file"), [(None, 0o660), (0o755, 0o600), (0o700, 0o600), (0o2775, 0o660)])
def test_what_callers_sent_is_read_by_those_who_share_the_folder_alone(tmp_path, folder, file):
    """Their rows and their labels, where nobody has made the folder too; the umask may take more away."""
    root = tmp_path / "log"
    if folder is not None:
        root.mkdir()
        root.chmod(folder)
    log, labels = make(root), LabelLog(str(root), name="flights", writer="replica-1")
    log.take([served("a")])
    log.close()
    labels.add([Label("a", 0, "true")]).result(timeout=30)
    labels.close()
    modes = [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.parquet")]
    assert len(modes) == 2
    assert all(mode & 0o707 == 0o600 and mode | file == file for mode in modes)


def test_a_request_that_does_not_fit_is_dropped_alone(tmp_path):
    """The others of its batch are written."""
    log = make(tmp_path)
    odd = served("odd", columns={"distance": np.zeros(7), "carrier": np.array([1], dtype=object)})
    log.take([served("a"), odd, served("b", rows=3)])
    log.close()
    assert (log.spool.written, log.spool.dropped) == (4, 1)
    assert ids(tmp_path) == ["a", "b", "b", "b"]


def test_large_requests_are_converted_a_few_at_a_time():
    """Small ones all at once: 2,048 rows are what may keep the interpreter."""
    rows = [1500, 548, 1, 3000, *[1] * 1000]
    batch = [served(f"r{index}")._replace(rows=count) for index, count in enumerate(rows)]
    cut = list(pieces(batch))
    assert [len(piece) for piece in cut] == [2, 1, 1, 1000]
    assert [one for piece in cut for one in piece] == batch


def test_settings_change_in_place(tmp_path):
    """Switched off, on again, without a field, and to another place."""
    log = make(tmp_path / "one", enabled=False)
    log.take([served("never")])
    log.configure(LogSettings(enabled=True, uri=str(tmp_path / "two"), redact=("carrier",)))
    log.take([served("a")])
    log.close()
    (batch,) = Reading(str(tmp_path / "two"), "flights")
    assert batch.to_pylist()[0]["features"] == {"distance": 0.5}
    assert not (tmp_path / "one").exists()


def test_what_the_storage_does_not_take_in_time_is_dropped_and_counted(tmp_path):
    """A file where the folder should be; what comes after the end counts too."""
    (tmp_path / "predictions").write_text("")
    log = make(tmp_path)
    log.take([served(rows=5)])
    log.close(timeout_s=0)
    log.take([served(rows=2)])
    assert (log.spool.written, log.spool.dropped) == (0, 7)


def test_a_storage_that_hangs_does_not_hold_up_the_end(tmp_path, caplog):
    """What it has not taken is counted and told; its write ends with the process, or after all."""
    go_on, began = threading.Event(), threading.Event()

    class Hanging(Store):
        def write(self, path, data):
            began.set()
            go_on.wait(30)
            super().write(path, data)

    settings = LogSettings(enabled=True, uri=str(tmp_path), flush_s=0.05)
    log = PredictionLog(settings, name="flights", signature=SIGNATURE, writer="replica-1", open_store=Hanging)
    log.take([served(rows=5)])
    assert began.wait(30)
    log.close(timeout_s=0)
    assert log.spool.dropped == 5
    assert "5 rows were lost" in caplog.text
    go_on.set()
    log._thread.join(30)
    assert not log._thread.is_alive()


@pytest.mark.parametrize("changed", [False, True], ids=["at the start", "in place"])
def test_a_misspelt_field_to_redact_keeps_all_of_them_out(tmp_path, caplog, changed):
    """Nobody can say which was meant: until it is mended requests are logged without values, and an error says why."""
    log = make(tmp_path, redact=() if changed else ("carier",))
    if changed:
        log.configure(LogSettings(enabled=True, uri=str(tmp_path), redact=("carier",)))
    log.take([served("a")])
    log.close()
    (batch,) = Reading(str(tmp_path), "flights")
    assert not {"features", "output"} & set(batch.schema.names)
    assert batch["request_id"].to_pylist() == ["a"]
    assert "carier" in caplog.text


def test_names_to_redact_are_checked_against_inputs_and_outputs():
    """Those that are neither are named."""
    assert unknown_redactions(("late", "carrier"), SIGNATURE) == []
    assert unknown_redactions(("Late", "carrier", "airline"), SIGNATURE) == ["Late", "airline"]


def test_a_scheme_that_nobody_knows_harms_nobody():
    """It is told as an outage of the storage is."""
    log = make("nowhere://x")
    log.take([served()])
    log.close(timeout_s=0)
    assert log.spool.dropped == 1


def test_an_object_store_holds_whole_files(s3):
    """One upload a file; while it refuses, rows wait."""
    uri = s3.uri("bucket/base")
    s3.refuse = lambda method, _path: method == "PUT"
    log = make(uri, flush_s=60.0)
    log.take([served("a", rows=3)])
    log.spool.step(Store(uri), force=True)
    assert log.spool.pending_rows == 3
    s3.refuse = lambda _method, _path: False
    log.close()
    assert (log.spool.written, log.spool.dropped) == (3, 0)
    assert len([key for key in s3.objects if key.endswith(".parquet")]) == 1
    assert ids(uri) == ["a", "a", "a"]


@pytest.mark.parametrize("data", [{}, {"enabled": True, "uri": "/x", "redact": ["a"], "new": 1}])
def test_settings_travel_as_plain_data(data):
    """Defaults for what is missing; what a newer version wrote is ignored."""
    settings = LogSettings.from_dict(data)
    assert LogSettings.from_dict(settings.to_dict()) == settings
    assert settings.redact == tuple(data.get("redact", ()))

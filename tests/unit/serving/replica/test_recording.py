"""What of a request reaches which sink, and that the end of a replica has one deadline."""

from __future__ import annotations

import threading

import pytest
from serving_fakes import ROW, make_front, predict

from raymlops.predictions.settings import LogSettings
from raymlops.serving.replica.recording import Recording
from raymlops.serving.settings import Settings


@pytest.fixture
def recorded(tmp_path):
    """Return a front, its recording, and what each of the recorders was given; they are closed in the end."""
    settings = Settings(
        log=LogSettings(enabled=True, uri=str(tmp_path / "storage")),
        otlp_endpoint="http://127.0.0.1:1",
    )
    front = make_front(settings=settings)
    recording = Recording(front.handler, replica="r1", folder=tmp_path)
    recording.configure(settings)
    front.handler.record = recording.add
    yield front, recording
    recording.close(0.0)
    front.handler.close()


def test_only_the_prediction_log_is_handed_values(recorded):
    """The others' queues are bounded by requests, which may have megabytes each; they learn that rows were asked."""
    front, recording = recorded
    given = {}
    for name in ("_light", "_kept", "_traces"):
        recorder = getattr(recording, name)
        recorder.close()
        recorder.add = given.setdefault(name, []).append
    predict(front, [ROW])
    predict(front, b"{")
    ((answered,), light, traced) = given["_kept"], given["_light"], given["_traces"]
    assert answered.columns["distance"].tolist() == [2.0]
    for first, second in (light, traced):
        assert (first.columns, first.outputs, first.rows) == ({}, None, 1)
        assert (second.columns, second.status) == (None, 400)


def test_labels_go_where_the_log_goes(recorded, tmp_path):
    """The same log of labels as long as there is one; none where predictions are not logged."""
    _, recording = recorded
    labels = recording.labels
    recording.configure(Settings(log=LogSettings(enabled=True, uri=str(tmp_path / "other"))))
    assert recording.labels is labels
    recording.configure(Settings(log=LogSettings(enabled=False)))
    assert recording.labels is None


def test_the_end_has_one_deadline(recorded, caplog):
    """Two sinks that hang cost it once, and what they have not seen is counted."""
    front, recording = recorded
    gate, hanging = threading.Event(), [threading.Event(), threading.Event()]

    def hang_as(event):
        def hang(_batch):
            event.set()
            gate.wait(30)

        return hang

    recording._log.take, recording._tracing.take = map(hang_as, hanging)
    assert all(event.wait(30) for event in hanging)
    predict(front, [ROW])
    recording.close(0.0)
    assert (recording._kept.dropped, recording._traces.dropped) == (1, 1)
    assert caplog.text.count("did not end within") >= 2
    gate.set()

"""What of a request reaches which sink, and that the end of a replica has one deadline."""

from __future__ import annotations

import threading

import pytest
from serving_fakes import ROW, make_front, predict

from raymlops.predictions.settings import LogSettings, in_sample
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


def test_a_sample_of_the_requests_is_logged_with_its_weight(recorded, tmp_path):
    """Of 400 requests about a quarter, each with the weight 4; metrics and the access log see all of them."""
    front, recording = recorded
    settings = Settings(log=LogSettings(enabled=True, uri=str(tmp_path / "storage"), sample=0.25, state="s"))
    recording.configure(settings)
    front.handler.configure(settings)
    given = {}
    for name in ("_light", "_kept"):
        recorder = getattr(recording, name)
        recorder.close()
        recorder.add = given.setdefault(name, []).append
    record = front.handler.begin([]).served(200, "")._replace(columns={}, outputs={}, rows=1)
    for number in range(400):
        recording.add(record._replace(request_id=str(number)))
    assert len(given["_light"]) == 400
    assert {kept.weight for kept in given["_kept"]} == {4.0}
    assert 60 <= len(given["_kept"]) <= 140
    assert [kept.request_id for kept in given["_kept"]] == [
        str(n) for n in range(400) if in_sample(str(n), 0.25, salt="s")
    ]


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

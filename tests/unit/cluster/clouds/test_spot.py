"""The notice that a spot machine is taken away, as each cloud's metadata service gives it."""

from __future__ import annotations

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raymlops.cluster.clouds.spot import Notice, node_of, notice, wait
from raymlops.errors import ClusterError

NOW = dt.datetime(2026, 11, 29, 12, 0, tzinfo=dt.UTC)
AWS = "/latest/meta-data/spot/instance-action"
GCP = "/computeMetadata/v1/instance/preempted"
AT = "2026-11-29T12:02:00Z"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
PREEMPT = {"EventType": "Preempt", "NotBefore": "Sun, 29 Nov 2026 12:00:30 GMT", "Resources": ["vm"]}


@pytest.fixture
def metadata():
    """The answers of a metadata service by path, which wants what the clouds' services want of a request."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer("token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

        def do_GET(self):
            known = {AWS: "X-aws-ec2-metadata-token", GCP: "Metadata-Flavor", AZURE: "Metadata", AZURE_NAME: "Metadata"}
            wanted = {AWS: "token", GCP: "Google", AZURE: "true", AZURE_NAME: "true"}
            allowed = self.headers.get(known.get(self.path, "")) == wanted.get(self.path)
            self.answer(answers.get(self.path) if allowed else None)

        def answer(self, text):
            data = (text or "").encode()
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        answers[AZURE_NAME] = "vm"
        answers["base"] = f"http://127.0.0.1:{server.server_port}"
        yield answers
        server.shutdown()


def events(*rows):
    return json.dumps({"Events": rows})


@pytest.mark.parametrize(
    ("path", "before", "then", "found"),
    [
        (AWS, None, json.dumps({"action": "terminate", "time": AT}), Notice(120, f"AWS: terminate at {AT}")),
        (GCP, "FALSE", "TRUE", Notice(30, "Google Cloud: preempted")),
        (AZURE, events({"EventType": "Reboot"}), events(PREEMPT), Notice(30, "Azure: Preempt")),
        (AZURE, events(), events({**PREEMPT, "NotBefore": ""}), Notice(30, "Azure: Preempt")),
    ],
)
def test_a_notice_is_told_from_none(metadata, path, before, then, found):
    """With the time that is left; a machine that is restarted is not taken away."""
    cloud = {AWS: "aws", GCP: "gcp", AZURE: "azure"}[path]
    metadata[path] = before
    assert notice(cloud, now=NOW, base=metadata["base"]) is None
    metadata[path] = then
    assert notice(cloud, now=NOW, base=metadata["base"]) == found


def test_on_azure_the_eviction_of_another_machine_is_none(metadata):
    """All of a scale set hear of each; of several events the one counts that has this machine's name."""
    others = {**PREEMPT, "NotBefore": "", "Resources": ["set_1", "set_30"]}
    metadata |= {AZURE_NAME: "Set_3", AZURE: events(others)}
    assert notice("azure", now=NOW, base=metadata["base"]) is None
    metadata[AZURE] = events(others, {**PREEMPT, "NotBefore": "Sun, 29 Nov 2026 12:01:00 GMT", "Resources": ["set_3"]})
    assert notice("azure", now=NOW, base=metadata["base"]) == Notice(60, "Azure: Preempt")


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_machine_of_no_cloud_says_so(metadata, cloud):
    """Nobody answers there, or something else does."""
    metadata.update({AWS: "", GCP: "<html>", AZURE: "[]"})
    for base in ("http://127.0.0.1:9", metadata["base"]):
        with pytest.raises(ClusterError, match=f"does not answer as {cloud}'s does") as no:
            notice(cloud, now=NOW, base=base)
        assert "--net=host" in no.value.hint


def test_a_notice_is_waited_for_over_an_outage_that_is_told_once():
    """Whatever the metadata service does in between."""
    down, told = ClusterError("down"), []
    answers = [down, down, None, down, Notice(120, "AWS")]

    def ask():
        found = answers.pop(0)
        if isinstance(found, ClusterError):
            raise found
        return found

    slept = []
    assert wait(ask, sleep=slept.append, note=told.append) == Notice(120, "AWS")
    assert (told, slept) == (["down", "down"], [5.0] * 4)


def test_the_node_is_that_of_this_machine_or_the_one_that_is_named():
    """An id that no node has would be drained in words alone."""
    alive = {"a1": "10.0.0.1", "b2": "10.0.0.2", "c3": "10.0.0.2"}
    assert node_of(alive, here="10.0.0.1", node_id=None) == "a1"
    assert node_of(alive, here="10.0.0.1", node_id="b2") == "b2"
    with pytest.raises(ClusterError, match="no node 'b' runs; these do: a1, b2, c3"):
        node_of(alive, here="10.0.0.1", node_id="b")
    with pytest.raises(ClusterError, match=r"2 nodes run at 10\.0\.0\.2: b2, c3"):
        node_of(alive, here="10.0.0.2", node_id=None)
    with pytest.raises(ClusterError, match="no node of Ray runs at"):
        node_of(alive, here="10.0.0.3", node_id=None)

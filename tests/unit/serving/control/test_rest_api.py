from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from raymlops.cluster.endpoint.haproxy import LABEL
from raymlops.cluster.processes import session_runs_here
from raymlops.errors import ClusterError, DeployError
from raymlops.serving.control.rest_api import ServeApi, last_lines, ray_token

TOKEN = "s3cret-token-value"
NODE = "node" + "Ab12" * 14
"""The type that Ray's monitor gives a node where nothing scales."""


def serving(status: int, text: str = "{}"):
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, text=text)

    return ServeApi("http://127.0.0.1:8265/", TOKEN, transport=httpx.MockTransport(handle)), seen


def test_the_token_goes_with_each_call():
    """As a bearer token, to Serve's path, and not as a browser."""
    api, (seen) = serving(200)
    api.get()
    api.put({"applications": []})
    assert [request.headers["authorization"] for request in seen] == [f"Bearer {TOKEN}"] * 2
    assert seen[1].url == "http://127.0.0.1:8265/api/serve/applications/"
    assert not seen[0].headers["user-agent"].startswith("Mozilla")


@pytest.mark.parametrize(
    ("status", "method", "error"),
    [(401, "get", ClusterError), (403, "put", ClusterError), (500, "get", ClusterError), (400, "put", DeployError)],
)
def test_refusals_have_a_type_and_no_token(status, method, error):
    """Each status becomes an error that a caller can tell apart, and none repeats the token."""
    api, _ = serving(status, "something is wrong")
    with pytest.raises(error) as caught:
        api.get() if method == "get" else api.put({})
    assert TOKEN not in str(caught.value)


def test_a_dashboard_that_is_down_is_a_cluster_error():
    """Port 1 answers nobody."""
    with pytest.raises(ClusterError, match="does not answer"):
        ServeApi("http://127.0.0.1:1").get()


def answering(answers):
    """Return an API whose dashboard gives these answers by path, and the paths that were asked for."""
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json=answers[request.url.path])

    return ServeApi("http://127.0.0.1:8265/", TOKEN, transport=httpx.MockTransport(handle)), seen


def rows(*found):
    return {"result": True, "data": {"result": {"result": list(found)}}}


def test_the_proxy_of_a_cluster_is_its_heads_label():
    """Not a worker's, and unknown where nodes have no label."""
    head, worker = ({"is_head_node": is_head, "labels": {LABEL: "haproxy-tls"}} for is_head in (True, False))
    for found, expected in (
        ([worker, head], "haproxy-tls"),
        ([worker, {"is_head_node": True, "labels": None}], None),
        ([worker], None),
    ):
        api, seen = answering({"/api/v0/nodes": rows(*found)})
        assert [api.proxy_to_start(), api.proxy_to_start()] == [expected, expected]
        assert len(seen) == (1 if len(found) == 2 else 2)  # a head that is found is asked for once


@pytest.mark.parametrize(
    ("url", "session", "local"),
    [
        ("http://127.0.0.1:8265", None, True),
        ("http://[::1]:1", None, True),
        ("http://localhost", None, True),
        ("http://127.0.0.1:8265", "session_of_nobody_here", False),  # forwarded from another machine
        ("http://head:1", None, False),
    ],
)
def test_a_cluster_of_this_machine(url, session, local):
    """By the address of its dashboard, and by a process of its session, which is looked for once."""
    asked = []

    def handle(request):
        asked.append(request.url.path)
        return httpx.Response(200, json={"session_name": session} if session else {})

    api = ServeApi(url, TOKEN, transport=httpx.MockTransport(handle))
    assert [api.is_local, api.is_local] == [local, local]
    assert len(asked) <= 1


def test_a_session_of_this_machine():
    """Known by an argument of its processes."""
    command = [sys.executable, "-c", "input()", "--session-name=session_of_a_test"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert session_runs_here("session_of_a_test")
        process.communicate(b"\n")
    assert not session_runs_here("session_of_a_test")


def test_who_holds_resources_is_said_by_name():
    """Placement groups, tasks, applications and actors, as Ray's tables have them; jobs by their commands."""
    replica = {"name": "SERVE_REPLICA::shop--v1#front#a", "required_resources": {"CPU": 0.5}, "job_id": "02000000"}
    bundles = [{"bundle_id": {"bundle_index": index}, "unit_resources": {"CPU": 1.0}} for index in range(2)]
    group = {"placement_group_id": "a1b2c301000000", "name": "", "state": "CREATED", "bundles": bundles}
    inside = {"name": "", "class_name": "RayTrainWorker", "placement_group_id": "a1b2c301000000", "job_id": "01000000"}
    task = {"name": "prepare", "required_resources": {"CPU": 1.0}, "job_id": "01000000"}
    api, _ = answering(
        {
            "/api/v0/actors": rows(replica, inside),
            "/api/v0/tasks": rows(task),
            "/api/v0/placement_groups": rows(group),
            "/api/v0/jobs": rows({"job_id": "01000000", "entrypoint": "python train.py"}),
        }
    )
    assert [str(holder) for holder in api.holders()] == [
        "placement group of job 01000000 (python train.py): RayTrainWorker in 2 bundles: 2 CPU",
        "task prepare of job 01000000 (python train.py): 1 CPU",
        "Serve application shop--v1: 0.5 CPU",
    ]


def test_how_a_replica_died_is_asked_for_once():
    """Serve says only that its health check failed; Ray keeps the reason."""
    front = {"message": "A replica's health check failed.", "recent_dead_replicas": [{"actor_id": "a1"}]}
    cause = {"actor_died_error_context": {"error_message": "killed, since the node was low on memory"}}
    api, seen = answering(
        {
            "/api/serve/applications/": {"applications": {"m--v1": {"deployments": {"front": front}}}},
            "/api/v0/actors": rows({"death_cause": cause}),
        }
    )
    for _ in range(2):
        (said,) = api.get()["applications"]["m--v1"]["deployments"].values()
        assert said["message"] == "A replica's health check failed.\nkilled, since the node was low on memory"
    assert seen.count("/api/v0/actors") == 1


def test_the_token_is_where_ray_looks_for_it(monkeypatch, tmp_path):
    """The variable first, then the file that a variable names, then the one at home; none where it is off."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert ray_token() == "home"
    (tmp_path / "file").write_text("file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert ray_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert ray_token() == "variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert ray_token() is None


def test_the_end_of_a_long_message_is_kept():
    """What happened stands at the end of a traceback."""
    assert last_lines("a\n\nb\nc\n", 2) == "...\nb\nc"
    assert last_lines("a\nb", 2) == "a\nb"


@pytest.mark.parametrize(
    ("types", "grows"),
    [([NODE], False), (["ray.worker.gpu", NODE], True), ([], None)],
    ids=["nothing to scale", "an autoscaler's types", "not told"],
)
def test_the_room_of_a_cluster_is_its_nodes_and_actors(types, grows):
    """Rows as Ray's state API gives them, and whether an autoscaler may add nodes, as far as that is reported."""

    def answer(request):
        if request.url.path == "/api/cluster_status":
            report = {"autoscalerReport": {"activeNodes": dict.fromkeys(types, 1)}}
            return httpx.Response(200, json={"data": {"clusterStatus": report}})
        assert request.url.params["filter_values"] == "ALIVE"
        rows = {"nodes": [{"node_id": "ab12", "resources_total": {"CPU": 2.0}}], "actors": [{"name": "a"}]}
        found = {"result": rows[request.url.path.rsplit("/", 1)[1]]}
        return httpx.Response(200, json={"result": True, "data": {"result": found}})

    room = ServeApi("http://dashboard:8265", "t", transport=httpx.MockTransport(answer)).room()
    assert room.nodes[0]["resources_total"] == {"CPU": 2.0}
    assert room.actors == [{"name": "a"}]
    assert room.grows is grows

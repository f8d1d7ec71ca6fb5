"""What the proxies in force are, by what Ray and they themselves say."""

from __future__ import annotations

import pytest

from raymlops.config.serve import ServeSection
from raymlops.errors import UsageError
from raymlops.serving.control.address import Listening
from raymlops.serving.control.proxies import proxies_in_force, refuse_other_proxy, shortcomings

GUARDED = {"guard": {"max_header_bytes": 16_384}}


class Cluster:
    """A cluster with a proxy on each of these nodes."""

    def __init__(self, *nodes, kind="ProxyActor", local=False, routes=("/models/m",)):
        self.is_local = local
        self.kind = kind
        rows = {node: {"node_ip": node, "actor_id": f"on {node}", "status": "HEALTHY"} for node in nodes}
        applications = {route: {"deployed_app_config": self._config(route)} for route in routes}
        self.details = {"proxies": rows, "applications": applications}

    def _config(self, route):
        return {"import_path": "raymlops.serving.apps:model_app", "route_prefix": route}

    def actor_classes(self):
        return {row["actor_id"]: self.kind for row in self.details["proxies"].values()}

    def look(self, answers=None, *, host="0.0.0.0", tls=False):
        """Return the proxies, and the URLs that were asked."""
        asked = []

        def ask(url):
            asked.append(url)
            return (answers or {}).get(url)

        return proxies_in_force(self.details, Listening(host, 8000, tls=tls), api=self, ask=ask), sorted(asked)


def test_every_node_is_asked_at_its_own_address():
    """One of two was started without the guard; Serve's own answer has none."""
    cluster = Cluster("10.0.0.1", "10.0.0.2")
    first, second = (f"http://10.0.0.{number}:8000/-/guard" for number in (1, 2))
    found, asked = cluster.look({first: GUARDED, second: {}})
    assert asked == [first, second]
    assert [(one.kind, one.guarded, one.max_header_bytes) for one in found] == [
        ("python", True, 16_384),
        ("python", False, None),
    ]
    (said,) = shortcomings(found)
    assert said.startswith("the proxy on 10.0.0.2 runs without the guard")
    assert said.endswith("Start every node by `raymlops env ray start`")


@pytest.mark.parametrize("kind", ["ProxyActor", "HAProxyManager"])
def test_a_node_that_was_started_without_the_certificate_is_named(kind):
    """It answers in the clear; nobody asks the others so, and one that answers nobody is not called plain."""
    cluster = Cluster("10.0.0.1", "10.0.0.2", "10.0.0.3", kind=kind, routes=("/",))
    found, asked = cluster.look(
        {"https://10.0.0.1:8000/-/guard": GUARDED, "http://10.0.0.2:8000/-/guard": GUARDED}, tls=True
    )
    assert [(one.guarded, one.plain) for one in found] == [(True, False), (True, True), (None, False)]
    assert "http://10.0.0.1:8000/-/guard" not in asked
    (said,) = shortcomings(found)
    assert said.startswith("the proxy on 10.0.0.2 answers without TLS")
    assert "RAYMLOPS_TLS_CERT" in said


@pytest.mark.parametrize(("routes", "path"), [(("/models/m", "/"), ""), (("/models/m",), "/models/m"), ((), None)])
def test_haproxy_is_asked_through_a_model(routes, path):
    """The guard is in the replicas; without any there is nothing to be guarded."""
    cluster = Cluster("10.0.0.1", kind="HAProxyManager", routes=routes)
    url = f"http://10.0.0.1:8000{path}/-/guard"
    found, asked = cluster.look({url: GUARDED})
    assert asked == sorted(["http://10.0.0.1:8000/-/routes", *([] if path is None else [url])])
    assert [(one.kind, one.guarded) for one in found] == [("haproxy", None if path is None else True)]


def test_haproxy_of_a_node_that_was_started_otherwise_is_found():
    """It lists routes, which our wrapper takes away; its replicas may be elsewhere, behind the guard."""
    cluster = Cluster("10.0.0.1", "10.0.0.2", kind="HAProxyManager")
    urls = [f"http://10.0.0.{number}:8000" for number in (1, 2)]
    answers = {f"{url}/models/m/-/guard": GUARDED for url in urls}
    answers |= {f"{urls[0]}/-/routes": {"error": {"code": "not_found"}}, f"{urls[1]}/-/routes": {"/models/m": "m--v1"}}
    found, _ = cluster.look(answers)
    assert [one.guarded for one in found] == [True, False]
    (said,) = shortcomings(found)
    assert said.startswith("the proxy on 10.0.0.2 runs without the guard")


def test_haproxy_says_nothing_of_the_guard_before_a_replica_is_up():
    """Its own text is no answer of a model; one of a model without the guard is."""
    cluster = Cluster("10.0.0.1", kind="HAProxyManager")
    url = "http://10.0.0.1:8000/models/m/-/guard"
    answers = ({}, {"error": {"code": "not_found"}})
    assert [cluster.look({url: answer})[0][0].guarded for answer in answers] == [None, False]


@pytest.mark.parametrize(("local", "asked"), [(True, ["http://127.0.0.1:8000/-/guard"]), (False, [])])
def test_another_machines_loopback_is_not_asked(local, asked):
    """What would answer here is somebody else's."""
    found, seen = Cluster("127.0.0.1", local=local).look(host="127.0.0.1")
    assert seen == asked
    assert [one.guarded for one in found] == [None]
    assert shortcomings(found) == ()


def test_a_proxy_of_another_ray_is_named_as_such():
    """And is refused by nothing."""
    found, _ = Cluster("10.0.0.1", kind="NewProxy").look()
    assert str(found[0]) == "another proxy on 10.0.0.1, not asked for the guard from here"
    refuse_other_proxy(found, ServeSection(proxy="haproxy"))


def test_haproxy_is_refused_where_the_python_proxy_runs():
    """Only where it is named: no deploy can start it."""
    python, _ = Cluster("10.0.0.1").look()
    haproxy, _ = Cluster("10.0.0.1", kind="HAProxyManager").look()
    with pytest.raises(UsageError, match=r"runs the Python proxy, on 10\.0\.0\.1") as raised:
        refuse_other_proxy(python, ServeSection(proxy="haproxy"))
    assert "raymlops env ray start" in raised.value.hint
    refuse_other_proxy(haproxy, ServeSection(proxy="haproxy"))
    refuse_other_proxy(python, ServeSection())


def test_another_bound_of_headers_than_the_configured_is_said():
    """It counts at a cluster's start, for all models."""
    found, _ = Cluster("10.0.0.1").look({"http://10.0.0.1:8000/-/guard": GUARDED})
    assert shortcomings(found, ServeSection()) == ()
    (said,) = shortcomings(found, ServeSection(max_header_bytes=32_768))
    assert "RAYMLOPS_MAX_HEADER_BYTES=32768" in said
    assert shortcomings(found) == ()


def test_a_cluster_without_serve_has_no_proxies():
    """Nobody is asked."""
    assert Cluster().look() == ((), [])

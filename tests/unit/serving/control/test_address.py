"""Where Serve can be reached, and what keys it means by default."""

from __future__ import annotations

import socket

import pytest
from fake_serve import FakeServe
from states import converge, deploy

from raymlops.config.serve import ServeSection
from raymlops.errors import ClusterError, UsageError
from raymlops.serving.control import address
from raymlops.serving.control.address import Listening, listening, started_otherwise

HERE, THERE = FakeServe(), FakeServe(dashboard_url="http://dashboard:8265")
GRPC = {"port": 9000, "grpc_servicer_functions": ["a:b"]}


def details(host="127.0.0.1", grpc=None):
    return FakeServe(host=host, grpc=grpc).get()


def otherwise(there, section, api):
    return started_otherwise(there, listening(there, api), serve=section, api=api)


def asks(serve, name="m"):
    """Return whether callers of a model need a key, by its own replicas and by the index."""
    (options,) = serve.live[f"{name}--v1"]["deployments"]
    (index,) = serve.live["raymlops"]["deployments"]
    listed = next(model for model in index["user_config"]["models"] if model["name"] == name)
    assert options["user_config"]["access"] == listed["access"]
    return listed["access"]["required"]


@pytest.mark.parametrize(
    ("host", "grpc", "expected"),
    [
        ("127.0.0.1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("10.1.2.3", None, True),
        ("127.0.0.1", {"port": 9000, "grpc_servicer_functions": []}, False),
        ("127.0.0.1", GRPC, True),  # of a cluster elsewhere, whose sockets cannot be seen
    ],
)
def test_keys_are_asked_for_by_default_where_others_reach_serve(state, host, grpc, expected):
    """By the address that Serve listens on already; the section says loopback in each case."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", host=host, grpc=grpc)
    done = deploy(state, serve)
    assert asks(serve) is expected
    assert done.warnings == ()


def test_a_section_that_is_on_the_network_asks_for_none_where_serve_is_not(state):
    """It runs on loopback already, and the section's host counts for nothing."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    deploy(state, serve, section=ServeSection(ready_timeout_s=2, host="0.0.0.0"))
    assert asks(serve) is False


def test_what_was_said_explicitly_stays_and_is_warned_of(state):
    """An open model on every address, at each deploy; on loopback there is nothing to warn of."""
    section = ServeSection(ready_timeout_s=2, auth="open")
    serve = FakeServe(dashboard_url="http://dashboard:8265", host="0.0.0.0")
    for _ in range(2):
        (warning,) = deploy(state, serve, section=section).warnings
        assert warning.startswith("m answers without an API key, and Serve listens on 0.0.0.0:21050")
        assert asks(serve) is False
    here = FakeServe(dashboard_url="http://dashboard:8265")
    assert deploy(state, here, section=section).warnings == ()


def test_a_serve_that_begins_to_listen_elsewhere_asks_for_keys_from_then_on(state):
    """It was ended, and started again on every address: a step of the controller sends it."""
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    deploy(state, serve)
    assert asks(serve) is False
    serve.host = "0.0.0.0"
    converge(state, serve)
    assert asks(serve) is True


def test_where_grpc_is_bound_is_looked_up_on_this_machine():
    """Serve has no option for it; what nobody listens on is not reached, and elsewhere the worse is assumed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        grpc = {**GRPC, "port": server.getsockname()[1]}
        found = listening(details(grpc=grpc), HERE)
        assert (found.grpc_host, found.reach, found.exposed) == ("127.0.0.1", "127.0.0.1", None)
        elsewhere = listening(details(grpc=grpc), THERE)
        assert (elsewhere.reach, elsewhere.exposed) == ("[::]", f"[::]:{grpc['port']} by gRPC")
    with socket.create_server(("", 0)) as server:
        grpc = {**GRPC, "port": server.getsockname()[1]}
        assert listening(details(grpc=grpc), HERE).exposed == f"0.0.0.0:{grpc['port']} by gRPC"
    assert listening(details(grpc=grpc), HERE).exposed is None
    assert listening({"applications": {}}, HERE) is None
    assert Listening("0.0.0.0", 8000, "127.0.0.1", 9000).reach == "0.0.0.0"


def test_a_cluster_elsewhere_is_reached_at_its_node():
    """Its wildcard is not this machine; a loopback of its own stays what it is, and is reached from there alone."""
    proxies = {"node": {"node_ip": "10.0.0.7"}}
    assert listening({**details("0.0.0.0"), "proxies": proxies}, THERE).base_url == "http://10.0.0.7:21050"
    assert listening({**details("0.0.0.0"), "proxies": proxies}, HERE).base_url == "http://127.0.0.1:21050"
    assert listening({**details(), "proxies": proxies}, THERE).base_url == "http://127.0.0.1:21050"


def test_tls_is_seen_on_this_machine_and_in_serves_own_options(monkeypatch):
    """HAProxy's is unknown to Serve: the listener is asked, on its port."""
    asked = []
    monkeypatch.setattr(address, "speaks_tls", lambda *where: asked.append(where) or True)
    behind = listening(details(host="0.0.0.0"), HERE)
    assert (behind.base_url, asked) == ("https://127.0.0.1:21050", [("127.0.0.1", 21050)])
    assert not listening(details(), THERE).tls
    python = details()
    python["http_options"]["ssl_certfile"] = "/c"
    assert listening(python, THERE).tls
    assert len(asked) == 1


def test_a_section_that_serve_was_not_started_with_is_told(monkeypatch):
    """A certificate that is not shown is refused, since keys would travel in the clear."""
    monkeypatch.setattr(address, "speaks_tls", lambda *_: False)
    section = ServeSection(proxy_location="every_node")
    there = {**details(), "proxy_location": "HeadOnly"}
    (told,) = otherwise(there, section, HERE)
    assert "with a proxy on the head only" in told
    assert otherwise({**there, "proxy_location": "EveryNode"}, section, HERE) == []
    secured = ServeSection(tls_cert="/c", tls_key="/k")
    with pytest.raises(UsageError, match=r"answers at http://127\.0\.0\.1:21050 without TLS"):
        otherwise(there, secured, HERE)
    with pytest.raises(UsageError, match="nothing shows from here"):
        otherwise(there, secured, THERE)
    behind = FakeServe(dashboard_url="http://dashboard:8265", proxy="haproxy-tls")
    assert otherwise(there, secured, behind) == []
    assert listening(there, behind).base_url.startswith("https://")


def test_a_cluster_elsewhere_is_asked_for_tls_where_it_is_reached(monkeypatch):
    """At its node; without a label, as HAProxy that somebody else has set up."""
    elsewhere = FakeServe(dashboard_url="http://dashboard:8265", host="0.0.0.0")
    there = {**elsewhere.get(), "proxies": {"node": {"node_ip": "10.0.0.7"}}}
    secured, asked = ServeSection(tls_cert="/c", tls_key="/k"), []
    monkeypatch.setattr(address, "speaks_tls", lambda *where: asked.append(where) or True)
    assert otherwise(there, secured, elsewhere) == []
    assert asked == [("10.0.0.7", 21050)]


@pytest.mark.parametrize(
    ("proxy", "named", "expected"),
    [
        ("python", None, {"ssl_certfile": "/c", "ssl_keyfile": "/k"}),
        ("python", "haproxy", {"ssl_certfile": "/c", "ssl_keyfile": "/k"}),
        (None, "python", {"ssl_certfile": "/c", "ssl_keyfile": "/k"}),
        ("haproxy-tls", None, {}),
        ("haproxy-tls", "python", {}),
        ("haproxy", None, "HAProxy without a certificate"),
        ("haproxy", "python", "HAProxy without a certificate"),
        (None, None, "nothing shows which proxy"),
        (None, "haproxy", "HAProxy without a certificate"),
    ],
)
def test_serve_is_started_with_tls_or_not_at_all(state, monkeypatch, proxy, named, expected):
    """By the proxy that the cluster starts, whatever this machine has; a refusal changes nothing."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    serve = FakeServe(dashboard_url="http://dashboard:8265", host="0.0.0.0", started_up=False, proxy=proxy)
    section = ServeSection(ready_timeout_s=2, host="0.0.0.0", tls_cert="/c", tls_key="/k", proxy=named)
    if isinstance(expected, str):
        with pytest.raises(ClusterError, match=expected):
            deploy(state, serve, section=section)
        assert (serve.sent, state.deployments()) == ([], [])
        return
    deploy(state, serve, section=section)
    assert {name: value for name, value in serve.sent[0]["http_options"].items() if "ssl" in name} == expected


def test_no_change_asks_this_machine_for_haproxy(state, monkeypatch):
    """It is the cluster that has it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    serve = FakeServe(dashboard_url="http://dashboard:8265")
    for version in (1, 2):
        deploy(state, serve, version=version, section=ServeSection(ready_timeout_s=2, proxy="haproxy"))
    assert "m--v2" in serve.live

import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from raymlops.cluster import ports, services
from raymlops.cluster.endpoint.haproxy import WRAPPER, chosen, find_binary, raise_refusal
from raymlops.cluster.endpoint.tls import TlsFiles
from raymlops.cluster.services import GUARD, MAX_HEADER_BYTES, SPEED, max_connections, serve_environment
from raymlops.config.serve import grpc_options
from raymlops.errors import ClusterError
from raymlops.serving.proxy import connections


def test_a_cluster_starts_with_a_guard_that_exists():
    """Serve loads the guard by its name, which the cluster cannot check by importing it: the rooms are siblings."""
    module, _, name = GUARD["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(("files", "expected"), [(4096, 1433), (20_000, 7795), (1_048_576, 16_384), (-1, 16_384)])
def test_haproxy_can_open_what_its_connections_need(files, expected):
    """2.5 files each and some of its own, or it does not start; -1 is without a limit."""
    assert max_connections(files) == expected
    assert files < 0 or 2.5 * expected + 100 < files


def test_the_siblings_mean_the_same():
    """Each says for itself which variable has the bound of headers."""
    assert connections.VARIABLE == MAX_HEADER_BYTES


def test_the_servicer_of_grpc_is_there():
    """Serve loads it by its name."""
    (servicer,) = grpc_options(9000)["grpc_servicer_functions"]
    module, _, name = servicer.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_variable_is_one_that_serve_reads():
    """A name that Serve has given up would be without effect, and nobody would notice."""
    from ray.serve._private import constants

    source = inspect.getsource(constants)
    ours = {**GUARD, **SPEED, **serve_environment(scratch="/tmp/x")}
    assert [name for name in ours if name.startswith("RAY_") and f'"{name}"' not in source] == []


def test_haproxys_own_ports_are_free_ones_where_the_defaults_are_taken(monkeypatch):
    """Nothing outside needs to know them; what is named stays."""
    monkeypatch.setattr(ports, "_free", lambda port: port != 8404)
    found = serve_environment(scratch="/tmp/x")
    assert found["RAY_SERVE_HAPROXY_STATS_PORT"] != "8404"
    assert found["RAY_SERVE_HAPROXY_METRICS_PORT"] == "9101"
    assert serve_environment(scratch="/tmp/x", stats_port=8404)["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"


def test_haproxy_is_the_proxy_where_it_is_installed(monkeypatch, tmp_path):
    """Named where it is not, it is refused; the variable of a cluster's own wrapper is not taken for HAProxy."""
    assert chosen(None) == chosen("haproxy") == "haproxy"
    assert chosen("python") == "python"
    found = find_binary()
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(WRAPPER))
    assert find_binary() == found
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "missing"))
    assert chosen(None) == "python"
    with pytest.raises(ClusterError, match="HAProxy is not installed"):
        serve_environment(scratch="/tmp/x")


def test_what_kept_haproxy_from_its_start_is_raised(tmp_path):
    """The wrapper writes it beside the folders of HAProxy's files; nothing is there where it was started."""
    raise_refusal(str(tmp_path))
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "refused").write_text("no such line\n")
    with pytest.raises(ClusterError, match="HAProxy was not started: no such line"):
        raise_refusal(str(tmp_path))


def test_tls_is_in_the_environment_of_haproxy_alone():
    """Behind it, replicas stay plain; without it nothing names a certificate."""
    secured = serve_environment(scratch="/tmp/x", tls=TlsFiles("/c", "/k"))
    plain = serve_environment(scratch="/tmp/x")
    assert {key: secured[key] for key in secured.keys() - plain.keys()} == {
        "RAYMLOPS_TLS_CERT": "/c",
        "RAYMLOPS_TLS_KEY": "/k",
    }


@pytest.fixture
def dashboard():
    """Answer as Ray's dashboard does, and keep what was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.answer)

        def do_PUT(self):
            server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(server.answer)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.status, server.answer = [], 200, b""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_starts_serve_is_sent_to_it(tmp_path, dashboard):
    """Loopback, and gRPC only where it has a port."""
    url = f"http://127.0.0.1:{dashboard.server_port}"
    for port, tls in ((None, None), (9000, TlsFiles("/c", "/k"))):
        services.start_serve(url, token=tmp_path / "token", port=8000, grpc_port=port, tls=tls, timeout_s=5)
    without, with_grpc = dashboard.bodies
    assert with_grpc["http_options"].items() >= {"ssl_certfile": "/c", "ssl_keyfile": "/k"}.items()
    assert without["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert "grpc_options" not in without
    assert with_grpc["grpc_options"]["port"] == 9000


def test_why_serve_was_not_started_is_said(tmp_path, dashboard):
    """It is the end of a traceback: what HAProxy said, such as of a port that is taken."""
    url = f"http://127.0.0.1:{dashboard.server_port}"
    lines = [f'  File "/x/{number}.py", line {number}' for number in range(40)]
    dashboard.status = 500
    dashboard.answer = "\n".join(["Traceback:", *lines, "RuntimeError: HAProxy: cannot bind", ""]).encode()
    with pytest.raises(ClusterError, match=r"500\n(.*\n)+RuntimeError: HAProxy: cannot bind$"):
        services.start_serve(url, token=tmp_path / "token", port=8000, timeout_s=5)


def test_a_head_that_ends_before_it_started_serve_is_an_error_of_the_cluster(tmp_path):
    """As one does whose node was not up in time: its dashboard has answered, and is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def end():
            listening.accept()[0].close()

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(ClusterError, match=rf"Ray did not start Serve: {url} gave no answer: \S"):
            services.start_serve(url, token=tmp_path / "token", port=8000, timeout_s=5)
        ending.join()


def test_a_dashboard_that_answers_is_no_node(tmp_path, dashboard):
    """It does before there is one, and Serve cannot start then."""
    url = f"http://127.0.0.1:{dashboard.server_port}"
    for names, expected in (([], False), (["here"], True)):
        dashboard.answer = json.dumps({"data": {"hostNameList": names}}).encode()
        assert services.node_alive(url, token=tmp_path / "token") is expected


def test_a_head_waits_longer_for_its_node_than_ray_does(monkeypatch):
    """Ray asks by the name that is replaced; without Ray Client."""
    from ray._private import node
    from ray._private import services as of_ray

    assert "ray._private.services.get_node(" in inspect.getsource(node)
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"nodeId": "a"}])

    def get_node(address, node_id):
        if isinstance(found := next(answers), RuntimeError):
            raise found
        return found

    monkeypatch.setattr(of_ray, "get_node", get_node)
    parameters = SimpleNamespace(ray_client_server_port=10001)
    services.adapt_head(parameters, True)
    assert of_ray.get_node("127.0.0.1:6379", "a") == {"nodeId": "a"}
    assert parameters.ray_client_server_port is None


def test_a_process_that_started_services_exits_without_a_warning(tmp_path):
    """Neither for one that was ended since, which somebody else waited for, nor for one that runs on."""
    script = f"""
from pathlib import Path
import psutil
from raymlops.cluster.services import start_mlflow
root = Path({str(tmp_path)!r})
ended, left = (start_mlflow(root=root, port=1, variables={{}}, log=root / "log").pid for _ in range(2))
psutil.Process(ended).kill()
psutil.Process(ended).wait()
print(left)
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.stderr == ""

"""HAProxy itself, started by the wrapper with a configuration as Ray Serve writes it, in front of a small server."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from certificates import certificate

from raymlops.cluster.endpoint import haproxy_wrapper
from raymlops.cluster.endpoint.haproxy import WRAPPER, find_binary, wrapper_environment
from raymlops.cluster.endpoint.haproxy_wrapper import NoMatchError, completed
from raymlops.cluster.endpoint.tls import TlsFiles, speaks_tls, trusting
from raymlops.cluster.ports import HOST, free_port, listeners

pytestmark = pytest.mark.skipif(find_binary() is None, reason="HAProxy is not installed")


@pytest.fixture(scope="module")
def backend():
    """Yield the port of a server that answers like a replica with its health check."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


class Serve:
    """The part of Ray Serve that starts HAProxy: Serve's own template, with one application and gRPC."""

    def __init__(self, folder, backend, *, host=HOST):
        from ray.serve._private.common import RequestProtocol
        from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
        from ray.serve.config import HTTPOptions, gRPCOptions

        self.folder = folder / "n"
        self.ports = {name: free_port() for name in ("http", "grpc", "stats", "metrics")}
        servicers = ["raymlops.serving.protocols.grpc_messages:add_servicer"]
        server = ServerConfig(name="replica", host=HOST, port=backend)
        grpc = {"protocol": RequestProtocol.GRPC, "app_name": "raymlops"}
        self.api = HAProxyApi(
            HAProxyConfig(
                socket_path=str(self.folder / "a"),
                server_state_base=str(self.folder),
                server_state_file=str(self.folder / "s"),
                metrics_socket_path=str(self.folder / "m"),
                stats_port=self.ports["stats"],
                metrics_port=self.ports["metrics"],
                maxconn=100,
                http_options=HTTPOptions(host=host, port=self.ports["http"]),
                grpc_options=gRPCOptions(port=self.ports["grpc"], grpc_servicer_functions=servicers),
                is_head=True,
                pass_health_checks=True,
            ),
            {
                "http-m": BackendConfig("http-m", "/models/m", servers=[server], app_name="m"),
                "grpc-m": BackendConfig("grpc-m", "/", servers=[server], **grpc),
            },
            config_file_path=str(self.folder / "c"),
        )
        self.api.cfg.has_received_routes = True

    def config(self):
        """Write the configuration, and return it."""
        self.api._generate_config_file_internal()
        return (self.folder / "c").read_text()

    @contextmanager
    def running(self, tls=None):
        """Start HAProxy as Serve does, by the wrapper; yield the process."""
        self.config()
        environment = {**os.environ, **wrapper_environment(tls)}
        process = subprocess.Popen(
            [str(WRAPPER), "-db", "-f", str(self.folder / "c"), "-dR"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _until(lambda: self.listens() or process.poll() is not None)
            yield process
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.ports["http"])) == 0


@pytest.fixture
def serve(tmp_path, backend):
    """Return Serve in front of the backend."""
    return Serve(tmp_path, backend)


def _until(check, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_address_has_a_half_of_all_connections(serve):
    """Of a hundred; the next one is closed, and another address is answered."""

    def connected(address):
        return socket.create_connection((HOST, serve.ports["http"]), timeout=20, source_address=(address, 0))

    with serve.running():
        _until(lambda: httpx.get(f"http://{HOST}:{serve.ports['http']}/models/m").status_code == 200)
        held = [connected("127.0.0.3") for _ in range(50)]
        for one in held:
            one.sendall(b"GET /models/m HTTP/1.1\r\nhost: x\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.1 200"
        with suppress(ConnectionResetError), connected("127.0.0.3") as more:
            assert more.recv(1) == b""
        with connected("127.0.0.2") as other:
            other.sendall(b"GET /models/m HTTP/1.1\r\nhost: x\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        for one in held:
            one.close()


def test_a_compressed_grpc_call_ends_at_haproxy(serve):
    """Replicas are asked over connections that clients share, which many refusals would end."""
    with (
        serve.running(),
        grpc.insecure_channel(f"{HOST}:{serve.ports['grpc']}", compression=grpc.Compression.Gzip) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(bytes(1_000), timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "uncompressed" in refused.value.details()


def test_a_length_beyond_what_haproxy_counts_is_refused(serve):
    """It takes 2^64 + 1 for 1, and would pass on what was sent."""
    head = b"POST /models/m HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551617\r\n\r\n{"
    with serve.running(), socket.create_connection((HOST, serve.ports["http"]), timeout=20) as one:
        one.sendall(head)
        assert one.recv(12) == b"HTTP/1.1 400"
    assert serve.config().count("option forwardfor") == 0
    assert completed(serve.config()).count("option forwardfor") == 2


def test_a_connection_carries_one_request_at_a_time(serve):
    """HTTP/2 by its preface, without TLS: a hundred requests would count as one connection. gRPC's port speaks it."""

    def answer(port):
        with socket.create_connection((HOST, serve.ports[port]), timeout=20) as client:
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")  # with empty settings
            return client.recv(9)

    with serve.running():
        assert answer("http") == b"HTTP/1.1 "
        assert answer("grpc")[3] == 4  # a frame with its settings


def test_its_own_ports_are_loopbacks_and_routes_are_not_listed(tmp_path, backend):
    """The endpoint listens where it was told, everywhere here; statistics, metrics and control are for this user."""
    serve = Serve(tmp_path, backend, host="0.0.0.0")
    with serve.running() as process:
        _until(lambda: len(found := listeners([process.pid])) == 4 or not found)
        hosts = {item.port: item.loopback for item in listeners([process.pid])}
        assert hosts == {port: name in {"stats", "metrics"} for name, port in serve.ports.items()}
        _until(lambda: httpx.get(f"http://{HOST}:{serve.ports['http']}/models/m").status_code == 200)
        routes = httpx.get(f"http://{HOST}:{serve.ports['http']}/-/routes")
        assert (routes.status_code, routes.json()["error"]["code"]) == (404, "not_found")
        assert routes.json().keys() == {"error", "request_id"}
        assert httpx.get(f"http://{HOST}:{serve.ports['metrics']}/metrics").status_code == 200
        assert (serve.folder / "a").stat().st_mode & 0o777 == 0o600
        # Serve finds its processes by this argument, and asks the control socket for this id.
        assert str(serve.folder / "c") in psutil.Process(process.pid).cmdline()
        assert psutil.Process(process.pid).exe() == find_binary()


def test_until_haproxy_knows_the_applications_callers_are_to_try_again(serve):
    """Serve tells them just after the start: a model is not unknown, neither over HTTP nor over gRPC."""
    serve.api.set_backend_configs({})
    with serve.running():
        answer = httpx.post(f"http://{HOST}:{serve.ports['http']}/models/m/predict", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json().keys() == {"error", "request_id"}
        assert answer.json()["error"]["code"] == "not_ready"
        assert httpx.get(f"http://{HOST}:{serve.ports['http']}/").status_code == 404  # the list of no models
        for metadata in ((), (("application", "m"),)):
            with grpc.insecure_channel(f"{HOST}:{serve.ports['grpc']}") as channel:
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary("/x/y")(b"", metadata=metadata, timeout=10)
                assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_slow_headers_are_cut(serve, monkeypatch):
    """By the limit for the whole of them, which Serve's template lacks."""
    text = serve.config()
    assert "timeout http-request" not in text.partition("\ndefaults\n")[2].partition("\nfrontend ")[0]
    assert "\ndefaults\n    mode http\n    timeout http-request 10s\n" in completed(text)


@pytest.mark.parametrize(
    "line",
    [
        "    mode http\n",
        "    bind :",
        "  bind *:",
        " mode 666 ",
        '" if routes\n',
        " if is_list_applications\n",
    ],
)
def test_a_template_that_has_changed_is_not_started(serve, line, capsys):
    """Neither with a rule left out nor in silence; what was there before is named."""
    text = serve.config()
    assert line in text
    with pytest.raises(NoMatchError, match="instead of one"):
        completed(text.replace(line, line.replace(line.strip(), "changed")))
    config = serve.folder / "c"
    config.write_text(text.replace(line, line.replace(line.strip(), "changed")))
    with pytest.raises(SystemExit, match="does not start HAProxy"):
        haproxy_wrapper.main(["-f", str(config)])
    assert "instead of one" in (serve.folder.parent / "refused").read_text()


def test_a_request_is_not_logged_by_haproxy(serve):
    """Replicas do, and HAProxy says whom it found up or down."""
    serve.api.cfg.metrics_enabled = False  # as the cluster's environment has it
    sections = completed(serve.config()).split("\nfrontend ")
    frontends = {section.split("\n")[0]: section.partition("\nbackend ")[0] for section in sections[1:]}
    for name in ("http_frontend", "grpc_frontend"):
        assert "\n    no log\n" in frontends[name]
        assert "\n    log " not in frontends[name]


def test_what_is_complete_stays_as_it_is(serve):
    """Serve may start HAProxy twice with one file."""
    once = completed(serve.config(), certificate="/x/tls.pem")
    assert completed(once, certificate="/x/tls.pem") == once


def test_tls_guards_http_and_grpc_and_a_new_certificate_ends_no_connection(serve, tmp_path, monkeypatch):
    """Old TLS and plain HTTP get nothing; callers keep their connections while the certificate is renewed."""
    files = TlsFiles(*map(str, certificate(tmp_path)))
    port, url = serve.ports["http"], f"https://localhost:{serve.ports['http']}/models/m"
    with serve.running(files) as process:
        old = trusting(files.cert)
        with httpx.Client(verify=ssl.create_default_context(cafile=files.cert)) as client:
            _until(lambda: client.get(url).status_code == 200)
            assert speaks_tls(HOST, port)
            assert speaks_tls(HOST, serve.ports["grpc"])
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://{HOST}:{port}/models/m")
            context = trusting(files.cert)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            assert _negotiated(port, context)[0].startswith("ECDHE-ECDSA-")
            assert _negotiated(serve.ports["grpc"], context, alpn="h2")[1] == "h2"
            assert (serve.folder / "tls.pem").stat().st_mode & 0o777 == 0o600

            certificate(tmp_path)
            new, asked = trusting(files.cert), 0
            deadline = time.monotonic() + 30
            while not _accepts(port, new):
                assert client.get(url).status_code == 200  # over the connection of before
                asked += 1
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert asked > 1
            assert client.get(url).status_code == 200
            assert not _accepts(port, old)
            assert _accepts(serve.ports["grpc"], new)
            assert process.poll() is None
        (renewal,) = [child for child in psutil.Process(process.pid).children() if "--renew" in child.cmdline()]
    _until(lambda: not renewal.is_running() or renewal.status() == psutil.STATUS_ZOMBIE)


def test_a_certificate_that_does_not_fit_its_key_is_not_started_with(serve, tmp_path):
    """Nor with a key that others can read; the reason is where ``up`` looks for it."""
    cert, key = certificate(tmp_path)
    _, other = certificate(tmp_path, name="other")
    key.chmod(0o644)
    for one, says in ((other, "are not a certificate and its key"), (key, "others can read or change the key")):
        with serve.running(TlsFiles(str(cert), str(one))) as process:
            assert process.wait(30) == 1
            assert says in process.stderr.read()
        assert says in (tmp_path / "refused").read_text()


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Return the folder of a certificate that the environment names."""
    cert, key = certificate(tmp_path)
    monkeypatch.setenv(haproxy_wrapper.TLS_CERT, str(cert))
    monkeypatch.setenv(haproxy_wrapper.TLS_KEY, str(key))
    return tmp_path


def test_a_certificate_that_is_renewed_while_haproxy_starts_is_handed_to_it(named, monkeypatch):
    """After it was read for HAProxy, and before its renewal has begun to look."""
    pem = haproxy_wrapper._certificate(named)
    before = pem.read_bytes()
    certificate(named)
    said, alive = [], iter([1, 1, 0])
    monkeypatch.setattr(haproxy_wrapper, "RENEWAL_S", 0.0)
    monkeypatch.setattr(haproxy_wrapper, "_say", lambda _, command, **__: said.append(command))
    monkeypatch.setattr("os.getppid", lambda: next(alive))
    haproxy_wrapper.renew(pem, "socket", 1)
    after = pem.read_bytes()
    assert after != before
    assert said == [f"set ssl cert {pem} <<\n{after.decode()}\n", f"commit ssl cert {pem}\n"]


def test_what_is_written_is_what_was_checked(named, monkeypatch):
    """Although the files are renewed between two readings: the previous certificate stays."""
    pem = haproxy_wrapper._certificate(named)
    before, read = pem.read_bytes(), Path.read_bytes

    def renewed(file):
        found = read(file)
        if file.name == Path(os.environ[haproxy_wrapper.TLS_CERT]).name:
            certificate(named)
        return found

    monkeypatch.setattr(Path, "read_bytes", renewed)
    assert haproxy_wrapper._certificate(named) == pem
    monkeypatch.undo()
    assert pem.read_bytes() == before
    assert {file.name for file in named.glob("tls.*")} == {"tls.crt", "tls.key", "tls.pem"}


SPOILED = {
    "is away": lambda cert, key: key.unlink(),
    "others can read it": lambda cert, key: key.chmod(0o644),
    "is damaged": lambda cert, key: cert.write_text("-----BEGIN CERTIFICATE-----\n"),
    "is another one": lambda cert, key: certificate(cert.parent, name="other")[1].replace(key),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_bad_renewal_keeps_haproxy_from_no_replica(named, spoil, capsys):
    """A reload for other replicas takes the previous certificate; without one there is no start."""
    pem = haproxy_wrapper._certificate(named)
    before = pem.read_bytes()
    spoil(*(Path(os.environ[name]) for name in (haproxy_wrapper.TLS_CERT, haproxy_wrapper.TLS_KEY)))
    assert haproxy_wrapper._certificate(named) == pem
    assert pem.read_bytes() == before
    assert "the previous certificate is used" in capsys.readouterr().err
    pem.unlink()
    with pytest.raises((OSError, ValueError)):
        haproxy_wrapper._certificate(named)


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_bad_renewal_is_not_handed_to_haproxy(named, spoil, monkeypatch, capsys):
    """Not even one whose key is right, and open to others: the next start would refuse it."""
    pem = haproxy_wrapper._certificate(named)
    before = pem.read_bytes()
    certificate(named)
    spoil(*(Path(os.environ[name]) for name in (haproxy_wrapper.TLS_CERT, haproxy_wrapper.TLS_KEY)))
    said, alive = [], iter([1, 1, 0])
    monkeypatch.setattr(haproxy_wrapper, "RENEWAL_S", 0.0)
    monkeypatch.setattr(haproxy_wrapper, "_say", lambda *given, **_: said.append(given))
    monkeypatch.setattr("os.getppid", lambda: next(alive))
    haproxy_wrapper.renew(pem, "socket", 1)
    assert (said, pem.read_bytes()) == ([], before)
    assert "was not renewed" in capsys.readouterr().err


def test_text_around_a_certificate_is_left_out(named):
    """In whatever encoding, as openssl and authorities write it."""
    pem = haproxy_wrapper._certificate(named)
    expected, cert = pem.read_bytes(), Path(os.environ[haproxy_wrapper.TLS_CERT])
    cert.write_bytes("subject=O = Müller GmbH\r\n\r\n".encode("latin-1") + cert.read_bytes().replace(b"\n", b"\r\n"))
    assert haproxy_wrapper._certificate(named).read_bytes() == expected


def _negotiated(port, context, *, alpn=None):
    if alpn:
        context.set_alpn_protocols([alpn])
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain) as secured:
        return secured.cipher()[0], secured.selected_alpn_protocol()


def _accepts(port, context):
    try:
        return bool(_negotiated(port, context))
    except ssl.SSLError:
        return False

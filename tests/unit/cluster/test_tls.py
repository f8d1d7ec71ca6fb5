"""The files of a certificate, and what a listener shows of it."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from certificates import certificate, chain

from raymlops.cluster.endpoint import tls
from raymlops.cluster.endpoint.tls import checked_files, speaks_tls, valid_until
from raymlops.cluster.ports import HOST, free_port
from raymlops.errors import ClusterError, UsageError


@pytest.fixture
def files(tmp_path):
    """Return a certificate and its key."""
    return certificate(tmp_path)


def test_files_are_taken_by_absolute_paths(files, monkeypatch):
    """None are none; one alone is a mistake."""
    cert, key = files
    monkeypatch.chdir(cert.parent)
    assert checked_files(cert.name, key.name) == (str(cert), str(key))
    assert checked_files(None, None) is None
    for one in ((cert, None), (None, key)):
        with pytest.raises(UsageError, match="both files"):
            checked_files(*one)


def test_a_key_that_others_can_read_is_refused(files):
    """Also where it may only be changed."""
    cert, key = files
    for mode in (0o604, 0o602, 0o644):
        key.chmod(mode)
        with pytest.raises(UsageError, match=f"others can read or change the key .* mode {mode:04o}"):
            checked_files(cert, key)


def test_what_is_no_pair_is_refused(files, tmp_path):
    """Another key, a file that is no certificate, and one that is missing."""
    cert, key = files
    _, other = certificate(tmp_path, name="other")
    text = tmp_path / "text"
    text.write_text("no certificate")
    for one, two, says in (
        (cert, other, "not a certificate and its key"),
        (text, key, "not a certificate and its key"),
        (tmp_path / "missing", key, "cannot read"),
        (cert, tmp_path / "missing", "cannot read"),
    ):
        with pytest.raises(UsageError, match=says):
            checked_files(one, two)


def test_what_a_listener_shows_is_said(files, tmp_path):
    """The certificate of the file, another one than that, or no TLS at all."""
    cert, key = files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with listening(context, times=3) as port, socket.create_server((HOST, 0)) as plain:

        def answer():
            with plain.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert valid_until(HOST, port, str(cert)).endswith(" GMT")
        other, _ = certificate(tmp_path, name="other")
        with pytest.raises(ClusterError, match="is not what the endpoint shows"):
            valid_until(HOST, port, str(other))
        assert speaks_tls(HOST, port)
        assert not speaks_tls(HOST, plain.getsockname()[1])
        thread.join()
    nobody = free_port()
    with pytest.raises(ClusterError, match="does not answer over TLS"):
        valid_until(HOST, nobody, str(cert))
    with pytest.raises(OSError):
        speaks_tls(HOST, nobody)


def test_of_a_chain_the_first_certificate_alone_is_trusted(tmp_path):
    """The authority behind it signed the one before too, which a proxy that was not restarted shows."""
    old, new = chain(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*old)
    with listening(context, times=2) as port:
        assert valid_until(HOST, port, str(old[0])).endswith(" GMT")
        with pytest.raises(ClusterError, match="is not what the endpoint shows"):
            valid_until(HOST, port, str(new[0]))


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_a_file_that_is_no_certificate_any_more_is_named(files, content):
    """It was renewed badly, or is gone, whether the endpoint answers or not."""
    cert, _ = files
    cert.unlink()
    if content is not None:
        cert.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read a certificate"):
        valid_until(HOST, free_port(), str(cert))


@contextmanager
def listening(context, *, times):
    """Yield the port of a server that shakes hands so often."""

    def answer():
        for _ in range(times):
            with server.accept()[0] as connection, suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_a_listener_that_hangs_up_says_nothing_of_tls(files, monkeypatch):
    """As a proxy that is just being replaced: it is asked again, and what it says then is remembered for a while."""
    now = [0.0]
    monkeypatch.setattr(tls, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(tls, "_found", {})  # another test may have asked at this port, by the real clock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]

        def answer():
            with server.accept()[0] as connection:
                connection.recv(9)
            with server.accept()[0] as connection:
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError):
            speaks_tls(HOST, port)
        assert speaks_tls(HOST, port)
        thread.join()
    assert speaks_tls(HOST, port)
    now[0] += tls.KNOWN_S + 1
    with pytest.raises(ConnectionRefusedError):
        speaks_tls(HOST, port)

"""Run in place of HAProxy by Ray Serve: complete the configuration that Serve has written, then become HAProxy.

Owns every line of that configuration that Serve (2.60) has no option for, and the renewal of the certificate. A line
that is not where it is expected ends the start, with the reason in the file ``refused`` beside the configuration's
folder: a proxy that lacks one of these rules must not listen. Runs by path, with the standard library alone and without
site-packages, so that a reload of HAProxy costs milliseconds; knows nothing of the rest of raymlops.

Its environment: ``RAYMLOPS_HAPROXY_BINARY`` is HAProxy itself, ``RAYMLOPS_TLS_CERT`` and ``RAYMLOPS_TLS_KEY`` are PEM
files, both or none.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

BINARY = "RAYMLOPS_HAPROXY_BINARY"
TLS_CERT = "RAYMLOPS_TLS_CERT"
TLS_KEY = "RAYMLOPS_TLS_KEY"
REFUSED = "refused"
"""File with the reason why HAProxy was not started."""
HEADERS_S = 10
"""How long a client may take for the whole of its headers, TLS handshake excluded."""
RENEWAL_S = 5.0
"""How often the files of the certificate are looked at."""
MARK = "# completed by raymlops\n"
_ERROR = '{"error":{"code":"%s","message":"%s","field":null,"problems":[]},"request_id":"%%[uuid]"}'
NO_ROUTES = _ERROR % ("not_found", "routes are not listed; GET / lists the models that the caller may see")
"""The guard's own answer, which it gives in the Python proxy."""
_WAIT = "no model is up here yet; try again"
_NOT_READY = (
    f"    http-request return status 503 content-type application/json lf-string '{_ERROR % ('not_ready', _WAIT)}' "
    "hdr retry-after 1 if { path_beg /models/ /v2/ }"
)
_GRPC_NOT_READY = (
    f'    http-request return status 200 content-type application/grpc hdr grpc-status 14 hdr grpc-message "{_WAIT}"'
)
FORWARD = "    option forwardfor"
"""The client's address, after what the client says itself: replicas log it."""
LENGTH = (
    "    http-request return status 400 content-type application/json lf-string "
    f"'{_ERROR % ('bad_request', 'the content-length is not a number of bytes')}' "
    "if { req.hdr(content-length) -m len gt 18 }"
)
"""HAProxy takes the length modulo 2^64, and passes it on as it was sent."""
COMPRESSED = (
    "    http-request return status 200 content-type application/grpc hdr grpc-status 12 "
    'hdr grpc-message "send messages uncompressed" '
    "if { req.hdr(grpc-encoding) -m found } !{ req.hdr(grpc-encoding) identity }"
)
"""A replica refuses them too, but many refusals end the connection, which HAProxy shares between clients."""
_PART = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
# Mozilla's intermediate recommendation, without the ciphers that need a file of Diffie-Hellman parameters.
_CIPHERS = ":".join(
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for kind in ("ECDSA", "RSA")
)
_TLS_GLOBAL = f"""\
    ssl-default-bind-options prefer-client-ciphers ssl-min-ver TLSv1.2 no-tls-tickets
    ssl-default-bind-ciphers {_CIPHERS}
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
"""


class NoMatchError(Exception):
    """Serve writes another configuration than the one that is completed here."""


def completed(config: str, *, certificate: str | None = None) -> str:
    """Return the configuration with our lines; with the path of a ``certificate``, HTTP and gRPC need TLS.

    Raises:
        NoMatchError: a line that has to be changed is not there, or is there more than once.
    """
    if config.startswith(MARK):
        return config
    text = config
    # The control socket can stop HAProxy. Its folder is private, and so is it.
    text = _replace(text, r"^    stats socket (\S+) mode 666 ", r"    stats socket \1 mode 600 ")
    # A limit for the whole of the headers. Serve has none, so that as many clients as HAProxy holds, sending a byte a
    # second, would keep all others out. That of a body is the guard's, in the replica.
    text = _replace(
        text, r"^defaults\n    mode http$", f"defaults\n    mode http\n    timeout http-request {HEADERS_S}s"
    )
    # Statistics and metrics are for this machine.
    text = _replace(text, r"^frontend prometheus\n    bind :(\d+)$", r"frontend prometheus\n    bind 127.0.0.1:\1")
    text = _replace(text, r"^listen stats\n  bind \*:(\d+)$", r"listen stats\n  bind 127.0.0.1:\1")
    # The list of all applications, also of those that require a key.
    routes = f"    http-request return status 404 content-type application/json lf-string '{NO_ROUTES}' if routes"
    text = _replace(text, r"^    http-request return status \d+ content-type \S+ string \".*\" if routes$", routes)
    # Serve tells HAProxy the applications just after its start, also after one that was killed. Until then no model is
    # unknown: by the 404 that is in the template, callers would give up.
    if "\n    use_backend http-" not in text:
        text = _replace(text, r"^backend default_backend$", f"backend default_backend\n{_NOT_READY}")
    # A line for each request to a port of syslog cost 25 us; replicas write and count theirs.
    # And no HTTP/2, to which its preface takes a connection otherwise: one of `maxconn`, and one of an address, would
    # be a hundred requests at a time. gRPC has a frontend of its own.
    text = _replace(
        text,
        r"^(frontend http_frontend\n    bind \S+:\d+)$",
        rf"\1\n    no log\n    option disable-h2-upgrade\n{FORWARD}\n{LENGTH}",
    )
    # HAProxy ends no idle connection for a new one: a single address could keep all others out.
    if (most := re.search(r"^    maxconn (\d+)$", text, flags=re.MULTILINE)) is None:
        raise NoMatchError("Ray Serve's configuration of HAProxy has no maxconn")
    table = "    stick-table type ipv6 size 100k expire 1m store conn_cur"
    track = "    tcp-request connection track-sc0 src table http_frontend"
    reject = f"    tcp-request connection reject if {{ sc0_conn_cur gt {int(most[1]) // 2} }}"
    text = _replace(text, r"^(frontend http_frontend)$", f"\\1\n{table}\n{track}\n{reject}")
    has_grpc = "\nfrontend grpc_frontend\n" in text
    if has_grpc:
        quiet = rf"\1    no log\n{FORWARD}\n{COMPRESSED}"
        text = _replace(text, r"^(    bind \S+:\d+ proto h2\n    mode http\n)    log global$", quiet)
        text = _replace(text, r"^(frontend grpc_frontend)$", f"\\1\n{track}\n{reject}")
        status = 'hdr grpc-status 7 hdr grpc-message "applications are not listed"'
        denied = f"    http-request return status 200 content-type application/grpc {status} if is_list_applications"
        listed = r"^    (?:use_backend grpc_fallback_backend|http-request return [^\n]*) if is_list_applications$"
        text = _replace(text, listed, denied)
        if "\n    use_backend grpc-" not in text:
            text = _replace(text, r"^backend default_grpc_backend$", f"backend default_grpc_backend\n{_GRPC_NOT_READY}")
    if certificate is not None:
        tls = f"ssl crt '{certificate}' alpn"
        text = _replace(text, r"^global$", f"global\n{_TLS_GLOBAL.rstrip()}")
        text = _replace(
            text,
            r"^(frontend http_frontend\n(?:    (?:stick|tcp).*\n)*)    bind (\S+:\d+)$",
            rf"\1    bind \2 {tls} http/1.1",
        )
        if has_grpc:
            text = _replace(text, r"^    bind (\S+:\d+) proto h2$", rf"    bind \1 proto h2 {tls} h2")
    return MARK + text


def _replace(text: str, pattern: str, new: str) -> str:
    found, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        raise NoMatchError(f"Ray Serve's configuration of HAProxy has {count} lines like {pattern!r} instead of one")
    return found


def main(arguments: list[str]) -> None:
    """Complete the configuration that the arguments name, and become HAProxy."""
    config = Path(arguments[arguments.index("-f") + 1])
    refused = config.parent.parent / REFUSED
    try:
        certificate = _certificate(config.parent)
        text = config.read_text(encoding="utf-8")
        _write(config, completed(text, certificate=None if certificate is None else str(certificate)).encode())
        binary = os.environ.get(BINARY) or shutil.which("haproxy") or "haproxy"
        refused.unlink(missing_ok=True)
        if certificate is not None:
            _start_renewal(certificate, text)
        os.execv(binary, [binary, *arguments])  # noqa: S606 - it takes the place of this process, whose id Serve knows
    except (NoMatchError, OSError, ValueError) as error:
        _write(refused, f"{error}\n".encode())
        sys.exit(f"raymlops does not start HAProxy: {error}")


def _certificate(folder: Path) -> Path | None:
    """Return the file with certificate and key as HAProxy reads them; None without TLS.

    Where they cannot be used, since they are renewed badly or just now, it is the one before: HAProxy is reloaded for
    replicas, and would go on with those that have ended.
    """
    names = os.environ.get(TLS_CERT), os.environ.get(TLS_KEY)
    if not any(names):
        return None
    if not all(names):
        message = f"{TLS_CERT} and {TLS_KEY} are set both or not at all"
        raise ValueError(message)
    file = folder / "tls.pem"
    try:
        _write(file, _joined(folder, *map(str, names)))
    except (OSError, ValueError) as error:
        if not file.exists():
            raise
        _warn(f"the previous certificate is used: {error}")
    return file


def open_to_others(key: str) -> int | None:
    """Return the mode of a key's file that others than its owner can read or change, None for another.

    One of root's may be readable by its group, as a secret that Kubernetes mounts.
    """
    found = Path(key).stat()
    mode = stat.S_IMODE(found.st_mode)
    return mode if mode & ~(0o740 if found.st_uid == 0 else 0o700) else None


def _joined(folder: Path, cert: str, key: str) -> bytes:
    """Return a certificate with its chain and its key as one PEM, without what is between its parts.

    What is returned was checked, by way of a file in the private ``folder``: the two files may change at any time.

    Raises:
        OSError: a file cannot be read.
        ValueError: the key is not that of the certificate, others can read it, or one of them is damaged.
    """
    import ssl

    if (mode := open_to_others(key)) is not None:
        message = f"others can read or change the key {key}, mode {mode:04o}"
        raise ValueError(message)
    parts = [part[0] for name in (cert, key) for part in _PART.finditer(Path(name).read_bytes())]
    pem = b"".join(line.strip() + b"\n" for part in parts for line in part.splitlines() if line.strip())
    check = folder / f"tls.{os.getpid()}.check"
    _write(check, pem)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(check, password="")
    except ssl.SSLError as error:
        message = f"{cert} and {key} are not a certificate and its key: {error.reason or 'no PEM'}"
        raise ValueError(message) from error
    finally:
        check.unlink()
    return pem


def _start_renewal(certificate: Path, config: str) -> None:
    control = re.search(r"^    stats socket (\S+) ", config, flags=re.MULTILINE)
    assert control is not None
    command = [sys.executable, "-IS", __file__, "--renew", str(certificate), control[1], str(os.getpid())]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=True)  # noqa: S603 - this program, with paths of Serve's


def renew(certificate: Path, control: str, parent: int) -> None:
    """Hand a changed certificate to HAProxy over its control socket, which ends no connection, until it has ended."""
    names = os.environ[TLS_CERT], os.environ[TLS_KEY]
    # Not what is there by now: HAProxy was started with what was there before this process.
    seen: list[tuple[int, int, int] | None] | None = None
    told = b""
    while os.getppid() == parent:
        time.sleep(RENEWAL_S)
        if (found := _versions(names)) == seen:
            continue
        try:
            pem = _joined(certificate.parent, *names)
            if pem != told:
                _say(control, f"set ssl cert {certificate} <<\n{pem.decode()}\n", expected="transaction")
                _say(control, f"commit ssl cert {certificate}\n", expected="Success")
                _write(certificate, pem)
            seen, told = found, pem
        except (OSError, ValueError) as error:  # half renewed, or HAProxy is just being replaced: look again
            _warn(f"the certificate was not renewed: {error}")


def _warn(message: str) -> None:
    sys.stderr.write(f"raymlops: {message}\n")
    sys.stderr.flush()


def _versions(names: tuple[str, str]) -> list[tuple[int, int, int] | None]:
    """Return what tells whether a file is another one than before; None where it is not there."""
    found: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            now = Path(name).stat()
            found.append((now.st_ino, now.st_mtime_ns, now.st_size))
        except OSError:
            found.append(None)
    return found


def _say(control: str, command: str, *, expected: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(control)
        connection.sendall(command.encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")
    if expected.lower() not in answer.lower():
        message = f"HAProxy answered {answer.strip()[:300]!r}"
        raise ValueError(message)


def _write(file: Path, data: bytes) -> None:
    """Replace a file by one that only we can read."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_bytes(data)
    draft.replace(file)


if __name__ == "__main__":
    if sys.argv[1] == "--renew":
        renew(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(sys.argv[1:])

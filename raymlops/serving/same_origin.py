"""Refusal of requests that a web page makes a browser send to a model without keys on loopback.

Such a model is open to the programs of its machine, and a browser is one of them. A page of any site can make it send a
request (the browser then names that site), and read the answer where the page's own host name resolves to loopback (DNS
rebinding: the request then has that name as its host). Pure. Programs other than browsers send neither header.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from raymlops.config.serve import is_loopback
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN_SITES = frozenset({b"same-origin", b"none"})


def refuse_web_pages(headers: Mapping[bytes, bytes], *, hosts: tuple[str, ...], method: str) -> None:
    """Refuse a request that may come from a page of another site; ``hosts`` are allowed names besides loopback's.

    Raises:
        Refusal: 403; a request that only reads may come from a link of any page.
    """
    host = headers.get(b"host")
    if host is not None and not _is_own(host, hosts):
        got = host[:80].decode("latin-1")
        how = "call it at 127.0.0.1 or localhost, add the name to serve.allowed_hosts, or require keys"
        raise Refusal(
            403, "other_host", f"this model answers without a key on this machine alone, not at {got!r}; {how}"
        )
    if method in {"GET", "HEAD"}:
        return
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    other_origin = origin is not None and origin.partition(b"://")[2] != host
    if site not in _OWN_SITES if site is not None else other_origin:
        raise Refusal(
            403, "cross_origin", "a web page of another origin sent this request; require keys for such pages"
        )


def has_other_host(headers: Mapping[bytes, bytes], *, hosts: tuple[str, ...]) -> bool:
    """Return whether a request names a host that is neither loopback nor allowed."""
    host = headers.get(b"host")
    return host is not None and not _is_own(host, hosts)


@functools.lru_cache(maxsize=64)
def _is_own(host: bytes, hosts: tuple[str, ...]) -> bool:
    text = host.decode("latin-1").lower()
    name = text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
    return is_loopback(name) or name.endswith(".localhost") or name in hosts

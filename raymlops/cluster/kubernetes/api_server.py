"""Kubernetes' API server, as far as raymlops asks it: by HTTP, with the pod's own account.

Owns how it is found and the errors of its answers. Knows no object. Outside of a cluster ``kubectl proxy`` stands in
front of it, which has the caller's own rights: RAYMLOPS_KUBERNETES names it.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from raymlops.errors import ApiServerAwayError, ClusterError, NotFoundError, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PROXY, NAMESPACE = "RAYMLOPS_KUBERNETES", "RAYMLOPS_NAMESPACE"
APPLY = "application/apply-patch+yaml"
TIMEOUT_S = 15.0
QUIET_S = 60.0
_LINE_END = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")


@dataclass(frozen=True)
class ApiServer:
    """An API server, and the namespace that is asked about."""

    url: str
    namespace: str
    account: Path | None = None
    """Folder with the account's ``token``, which Kubernetes renews, and the server's ``ca.crt``."""
    quiet_s: float = QUIET_S
    """After which a stream counts as lost: a connection that something in between forgot ends with no word."""

    @classmethod
    def found(cls, namespace: str | None = None) -> Self:
        """Return the one that the environment names, or that of this pod's cluster.

        Raises:
            UsageError: there is neither, or no namespace is named.
        """
        proxy, host = os.environ.get(PROXY), os.environ.get("KUBERNETES_SERVICE_HOST")
        inside = (ACCOUNT / "namespace").read_text() if (ACCOUNT / "namespace").exists() else None
        named = namespace or os.environ.get(NAMESPACE) or inside
        if named is None:
            raise UsageError("no namespace of Kubernetes is named", hint=f"Set {NAMESPACE}.")
        if proxy:
            return cls(proxy.rstrip("/"), named)
        if host is None:
            raise UsageError(
                "this is no pod of a Kubernetes cluster, and no API server is named",
                hint=f"Run `kubectl proxy`, and set {PROXY}=http://127.0.0.1:8001.",
            )
        at = f"[{host}]" if ":" in host else host
        return cls(f"https://{at}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}", named, ACCOUNT)

    def get(self, path: str, **params: str) -> dict[str, Any]:
        """Return what is at a path.

        Raises:
            NotFoundError, RefusedError, ClusterError: as ``_checked``.
        """
        return self._call("GET", path, params=params)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; raises as ``get``, and ``RefusedError`` where there is one of that name.

        A field that its kind has not is refused too, which the server would leave out.
        """
        return self._call("POST", path, json=body, params={"fieldValidation": "Strict"})

    def apply(self, path: str, body: Mapping[str, Any], *, manager: str) -> dict[str, Any]:
        """Apply fields as their manager, by server-side apply.

        Fields of other managers stay. One that another manager has is not taken from it.

        Raises:
            NotFoundError, ClusterError: as ``get``.
            RefusedError: another manager has one of these fields, or there is another object of that name.
        """
        return self._call("PATCH", path, json=body, params={"fieldManager": manager}, content_type=APPLY)

    def lines(self, path: str, **params: str) -> Iterator[str]:
        """Yield the lines of an answer as they come, until it ends, is cut, or is quiet; raises as ``get``.

        Each with its line end, which the last one may lack. Only who asks knows whether there will be more of it.
        """
        with (
            self._client(timeout=httpx.Timeout(TIMEOUT_S, read=self.quiet_s)) as client,
            self._errors(),
            suppress(httpx.ReadTimeout),
            client.stream("GET", path, params=params) as response,
        ):
            if response.is_error:
                response.read()
            _checked(response, self.url)
            yield from lines_of(_until_cut(response))

    def _call(
        self, method: str, path: str, *, content_type: str = "application/json", **options: Any
    ) -> dict[str, Any]:
        with self._client(timeout=TIMEOUT_S) as client, self._errors():
            response = client.request(method, path, headers={"content-type": content_type}, **options)
        _checked(response, self.url)
        found: dict[str, Any] = response.json()
        return found

    def _client(self, *, timeout: httpx.Timeout | float) -> httpx.Client:
        headers = {"user-agent": "raymlops"}
        if self.account is None:  # certificates would be read for each request, of which there are none without TLS
            encrypted = self.url.startswith("https:")
            return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=encrypted, trust_env=False)
        import ssl

        try:
            headers["authorization"] = f"Bearer {(self.account / 'token').read_text().strip()}"
            trusted = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        except OSError as error:
            raise ClusterError(
                f"this pod's account cannot be read: {error.filename}: {error.strerror}",
                hint="automountServiceAccountToken must not be false for what asks Kubernetes.",
            ) from error
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=trusted, trust_env=False)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ApiServerAwayError(
                f"Kubernetes' API server at {self.url} does not answer: {type(error).__name__}"
            ) from error


def lines_of(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in pieces, each with its end; a carriage return ends one, too.

    So that a progress bar is seen. A line feed behind it belongs to it, also where that is in the next piece.
    """
    rest: list[str] = []
    held = ""
    for chunk in chunks:
        text = held + chunk
        held = "\r" if text.endswith("\r") else ""
        *lines, last = _LINE_END.split(text[: len(text) - len(held)])
        for line in lines:
            yield "".join([*rest, line])
            rest.clear()
        rest.append(last)
    if last := "".join([*rest, held]):
        yield last


def _until_cut(response: httpx.Response) -> Iterator[str]:
    with suppress(httpx.TransportError):
        yield from response.iter_text()


def _checked(response: httpx.Response, url: str) -> None:
    """Raise what an answer that is an error comes to.

    Raises:
        NotFoundError: there is no such object, or no such kind of objects.
        RefusedError: an object that is there, a field of another manager, or an object that is not valid.
        ClusterError: the account may not do that.
        ApiServerAwayError: the server fails, has too much to do, or another write came in between.
    """
    if not response.is_error:
        return
    try:
        said = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text.strip()[:300]
    code = response.status_code
    between = code == httpx.codes.CONFLICT and "the object has been modified" in said
    if code == httpx.codes.NOT_FOUND:
        raise NotFoundError(f"Kubernetes at {url}: {said}")
    refused = {httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.BAD_REQUEST}
    if code in refused and not between:
        raise RefusedError(f"Kubernetes at {url} refuses: {said}")
    if code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise ClusterError(
            f"Kubernetes at {url} does not let this account do that: {said}",
            hint="Head and controller have the Role NAME-reconciler of `raymlops render kubernetes`; who submits needs "
            "NAME-submitter, by a RoleBinding of its own.",
        )
    passes = between or code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error
    kind = ApiServerAwayError if passes else ClusterError
    raise kind(f"Kubernetes at {url} answered {code}: {said}")

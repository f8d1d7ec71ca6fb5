"""Blocking Python client of served models: connection reuse, a deadline per call, safe retries.

Owns how requests are sent and awaited in a blocking way. ``calls`` describes the requests, ``retry`` when one is sent
again. Knows nothing of Ray; imports no numpy or torch.
"""

from __future__ import annotations

import logging
import numbers
import os
import random
import re
import ssl
import time
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying

from raymlops.config.credentials import holds_credential
from raymlops.errors import UsageError
from raymlops.serving.client import calls
from raymlops.serving.client.calls import Accepted, Answer
from raymlops.serving.client.retry import Budget, Failure, Reply, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.serving.client.calls import Call, Rows

__all__ = ["Accepted", "Answer", "Client"]

logger = logging.getLogger(__name__)

KEY = "RAYMLOPS_API_KEY"
URL = "RAYMLOPS_URL"
CA_FILE = "RAYMLOPS_CA_FILE"
DEFAULT_URL = "http://127.0.0.1:8000"
LONGEST_S = 1_000_000
"""11 days: sockets reject numbers that are too large."""
CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=128, keepalive_expiry=5.0)
"""One per concurrent call; an idle one is closed before any server of ours would close it."""

T = TypeVar("T")
Transport = TypeVar("Transport")
Pause = TypeVar("Pause")


class BaseClient(Generic[Transport, Pause]):
    """What both clients share: the endpoint and its key, the deadline and the retries."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int | None = None,
        attempt_timeout_s: float | None = None,
        ca_file: str | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Pause] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not isinstance(base_url, str | None):
            raise UsageError(f"base_url is {base_url!r}; expected a string", hint="Give http://host:port, or https://.")
        url = (base_url or os.environ.get(URL) or DEFAULT_URL).rstrip("/")
        if holds_credential(url):
            raise UsageError("the endpoint's URL holds a credential", hint=f"Give a key as api_key, or set {KEY}.")
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", url):
            raise UsageError(f"{url!r} is not the URL of an endpoint", hint="Give http://host:port, or https://.")
        if retries is not None and (type(retries) is not int or retries < 0):
            raise UsageError(f"retries is {retries!r}; expected an integer of at least 0", hint="0 sends once.")
        self.base_url = url
        self._retries = retries
        self._timeout_s = checked_seconds("timeout_s", timeout_s)
        self._attempt_timeout_s = (
            None if attempt_timeout_s is None else checked_seconds("attempt_timeout_s", attempt_timeout_s)
        )
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()  # noqa: S311 - spreads load
        self._tokens = Tokens()
        self._headers = {"user-agent": "raymlops", "accept": "application/json"}
        key = os.environ.get(KEY, "").strip() if api_key is None else api_key
        if key:
            # httpx shows this header's value in no repr and no log.
            self._headers["authorization"] = f"Bearer {calls.header_value('the API key', key)}"
            _warn_of_plain_text(url)
        self._verify = _authorities(ca_file or os.environ.get(CA_FILE))
        self._connect(transport)

    @property
    def with_key(self) -> bool:
        """Return whether requests carry an API key."""
        return "authorization" in self._headers

    def predict_url(self, name: str) -> str:
        """Return the URL to which a model's rows are posted."""
        return f"{self.base_url}{calls.model_path(name)}/predict"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _connect(self, transport: Transport | None) -> None:
        """Make the connection pool."""
        raise NotImplementedError

    def _budget(self, timeout_s: float | None) -> Budget:
        total_s = self._timeout_s if timeout_s is None else checked_seconds("timeout_s", timeout_s)
        return Budget(
            total_s,
            retries=self._retries,
            attempt_timeout_s=self._attempt_timeout_s,
            clock=self._clock,
            rng=self._rng,
            tokens=self._tokens,
        )

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], *, timeout_s: float) -> httpx.Request:
        headers = dict(call.headers) if call.body is None else {**call.headers, "content-type": "application/json"}
        url = self.base_url + call.path
        return http.build_request(call.method, url, content=call.body, headers=headers, timeout=timeout_s)


class Client(BaseClient[httpx.BaseTransport, None]):
    """Client of the models of one endpoint. A context manager; may be used from several threads.

    ``base_url`` is ``http://host:port``, with whatever prefix a gateway adds; by default ``RAYMLOPS_URL``, else this
    machine's port 8000. The key is ``api_key``, else ``RAYMLOPS_API_KEY``.

    ``timeout_s`` is the deadline of a call, its retries and the pauses between them included. Until then a call is
    retried when the connection breaks, a replica is lost, or the endpoint is busy (408, 429, 502, 503, 504), no sooner
    than ``Retry-After``: where that is later than the deadline, the call fails at once. ``retries`` limits them
    further, 0 sends once. Every attempt carries the same ``x-request-id``. That is safe: predictions change nothing,
    and feedback counts once. An attempt ends after ``attempt_timeout_s``, so that another replica answers when one
    hangs: by default after a third of ``timeout_s`` and at least a second. A model that itself takes longer than that
    needs a longer one.

    ``ca_file``, else ``RAYMLOPS_CA_FILE``, has the certificates (PEM) by which that of ``https://`` is checked instead
    of the public authorities. ``transport`` is httpx's: proxies, client certificates, or a fake in a test. Proxy
    variables of the environment are not used.

    Raises:
        UsageError: the URL holds a credential, a number is out of range, or ``ca_file`` has no certificate.
    """

    def predict(
        self,
        name: str,
        rows: Rows,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        session: str | None = None,
        version: int | str | None = None,
    ) -> Answer:
        """Predict rows: a list of dicts, a pandas DataFrame or a pyarrow Table, in which NaN is a missing value.

        Bytes and images (PNG, JPEG) are given as ``bytes``, times as ``datetime``, in UTC where they have no offset.

        ``session`` keeps a caller on one version where traffic is split by it. ``version`` selects one of the live
        versions, for which a key needs the scope ``pin``. All rows go in one request.

        Raises:
            InvalidRowsError: the rows do not fit the signature; each problem names row and field.
            NotFoundError: no model has this route.
            RefusedError: a key is missing, unknown or lacks the scope.
            OverloadedError: the endpoint is busy, or the key's rate limit exceeded, until the deadline or last retry.
            EndpointUnreachableError: nothing accepts connections there.
            EndpointTimeoutError: no answer within the deadline.
            EndpointDisconnectedError: the connection or the replica was lost, at each attempt.
            UsageError: the rows cannot be sent or are too many, an argument is invalid, or this client is closed.
            RaymlopsError: the model failed.
        """
        call = calls.predict_call(name, rows, request_id=request_id, session=session, version=version)
        return self._call(call, timeout_s)

    def feedback(
        self,
        name: str,
        labels: Sequence[Mapping[str, Any]],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Accepted:
        """Send the true labels of earlier predictions; return how many were accepted, and which match nothing yet.

        A label is ``{"request_id": ..., "row": 0, "label": ...}``; with ``"correction": True`` it replaces an earlier
        one.

        Raises:
            RaymlopsError: as ``predict``.
        """
        return self._call(calls.feedback_call(name, labels, request_id=request_id), timeout_s)

    def describe(self, name: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a model's version, digest, run, signature and limits.

        Raises:
            RaymlopsError: as ``predict``.
        """
        return self._call(calls.describe_call(name), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return ``name``, ``version``, ``digest`` and ``path`` of each live model.

        Raises:
            RaymlopsError: as ``predict``.
        """
        return self._call(calls.models_call(), timeout_s)

    def close(self) -> None:
        """Close the idle connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, transport: httpx.BaseTransport | None) -> None:
        self._http = httpx.Client(
            headers=self._headers, transport=transport, limits=CONNECTIONS, trust_env=False, verify=self._verify
        )

    def _call(self, call: Call[T], timeout_s: float | None) -> T:
        budget = self._budget(timeout_s)
        retrying = Retrying(sleep=self._sleep or time.sleep, **budget.options())
        outcome = retrying(self._send, call, budget)
        attempts = retrying.statistics["attempt_number"]
        return calls.result(call, outcome, attempts=attempts, base_url=self.base_url, timeout_s=budget.timeout_s)

    def _send(self, call: Call[Any], budget: Budget) -> Reply | Failure:
        timeout_s = budget.attempt_s()
        until = self._clock() + timeout_s
        try:
            request = self._request(self._http, call, timeout_s=timeout_s)
            response = self._http.send(request, stream=True)
            try:
                parts = []
                # httpx bounds each read, not all of them: an answer that drips would never end.
                for part in response.iter_bytes():
                    parts.append(part)
                    if self._clock() > until:
                        return Failure("timeout", "the response is too slow")
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            return failure_of(error, self._http)
        return reply_of(response, b"".join(parts))


def _warn_of_plain_text(url: str) -> None:
    """Warn of a key that leaves this machine without TLS."""
    from raymlops.config.serve import is_loopback

    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        logger.warning("the API key is sent to %s without TLS, so that others on its way can read it", parts.netloc)


def _authorities(ca_file: str | None) -> ssl.SSLContext | bool:
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"{ca_file} has no certificates: {error.strerror or error}", hint="Give a PEM file."
        ) from error


def checked_seconds(what: str, value: Any) -> float:
    """Return a length of time.

    Raises:
        UsageError: the value is not a number of seconds, or out of range.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LONGEST_S:
        raise UsageError(
            f"{what} is {value!r}; expected a number of seconds above 0, at most {LONGEST_S:,}",
            hint="Leave it out for the default.",
        )
    return float(value)


def reply_of(response: httpx.Response, body: bytes) -> Reply:
    """Return httpx's response as ``retry`` and ``calls`` know it."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, body, headers, response.reason_phrase)


def failure_of(error: Exception, http: httpx.Client | httpx.AsyncClient) -> Failure:
    """Return why there is no response.

    Raises:
        UsageError: the client is closed, maybe by another thread.
        Exception: the error itself, which is not one of a request.
    """
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return Failure("timeout", type(error).__name__)
        case httpx.ConnectError():
            return Failure("unreachable", str(error))
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
            return Failure("invalid", str(error))
        case httpx.HTTPError():
            return Failure("disconnected", type(error).__name__)
    if http.is_closed:
        hint = "Create another one, or use it within its `with` block, which closes it."
        raise UsageError("this client is closed", hint=hint) from error
    raise error

"""Asking served models from Python: one connection that is kept, a deadline, repeats where they are safe.

Owns how requests are sent and waited for in a blocking way; what is asked is ``calls``', when it is asked again is
``retrying``'s. Knows nothing of Ray; imports no numpy or torch.
"""

from __future__ import annotations

import numbers
import os
import random
import re
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from raymlops.config.credentials import holds_credential
from raymlops.errors import UsageError
from raymlops.serving.client import calls
from raymlops.serving.client.calls import Answer
from raymlops.serving.client.retry import Failure, Pause, Policy, Reply, attempts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.serving.client.calls import Call, Rows

__all__ = ["Answer", "Client"]

KEY = "RAYMLOPS_API_KEY"
URL = "RAYMLOPS_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
LONGEST_S = 1_000_000
"""11 days: nobody waits for longer, and sockets take no number of any size."""
CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=128, keepalive_expiry=5.0)
"""As many as its callers' threads ask for; an idle one is closed before any server of ours would do so."""

T = TypeVar("T")


class Settings:
    """What both clients are told: where to ask, as whom, for how long and how often."""

    def __init__(
        self,
        base_url: str | None,
        *,
        api_key: str | None,
        timeout_s: float,
        retries: int | None,
        attempt_timeout_s: float | None,
    ) -> None:
        if not isinstance(base_url, str | None):
            raise UsageError(f"base_url is {base_url!r}", hint="It is a text, http://host:port, or https://.")
        url = (base_url or os.environ.get(URL) or DEFAULT_URL).rstrip("/")
        if holds_credential(url):
            raise UsageError("the endpoint's URL holds a credential", hint=f"Give a key as api_key, or set {KEY}.")
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", url):
            raise UsageError(f"{url!r} is no URL of an endpoint", hint="It is http://host:port, or https://.")
        if retries is not None and (type(retries) is not int or retries < 0):
            raise UsageError(f"retries is {retries!r}; expected a whole number of at least 0", hint="0 asks once.")
        self.base_url = url
        self.timeout_s = checked_seconds("timeout_s", timeout_s)
        each_s = None if attempt_timeout_s is None else checked_seconds("attempt_timeout_s", attempt_timeout_s)
        self.policy = Policy(retries, each_s)
        self.headers = {"user-agent": "raymlops", "accept": "application/json"}
        key = os.environ.get(KEY, "").strip() if api_key is None else api_key
        if key:
            # httpx shows this header's value in no repr and no log.
            self.headers["authorization"] = f"Bearer {calls.header_value('the API key', key)}"

    @property
    def with_key(self) -> bool:
        """Return whether requests carry an API key."""
        return "authorization" in self.headers

    def deadline_s(self, timeout_s: float | None) -> float:
        """Return how long one call may take, which may say so itself.

        Raises:
            UsageError: it says no length of time.
        """
        return self.timeout_s if timeout_s is None else checked_seconds("timeout_s", timeout_s)


class Client:
    """Ask the models of one endpoint. A context manager; may be used from several threads.

    ``base_url`` is ``http://host:port``, with whatever prefix a gateway adds; by default ``RAYMLOPS_URL``, else this
    machine's port 8000. The key is ``api_key``, else ``RAYMLOPS_API_KEY``.

    ``timeout_s`` bounds a call as a whole, its repeats and the pauses between them included. Until then a call is
    repeated when the connection breaks, a replica is lost, or the endpoint is busy (408, 429, 502, 503, 504), no sooner
    than ``Retry-After`` asks: where that is later than the deadline, the call fails at once. ``retries`` bounds the
    repeats further, 0 asks once. Every attempt carries the same ``x-request-id``. That is safe: predictions change
    nothing, and feedback counts once. An attempt is given up after ``attempt_timeout_s``, so that another replica is
    asked when one hangs: by default after a third of ``timeout_s`` and at least a second. A model that itself takes
    longer than that needs a longer one.

    ``transport`` is httpx's: proxies, certificates, or a fake in a test. Proxy variables of the environment are not
    used.

    Raises:
        UsageError: the URL holds a credential, or a number is none or out of range.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int | None = None,
        attempt_timeout_s: float | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = Settings(
            base_url, api_key=api_key, timeout_s=timeout_s, retries=retries, attempt_timeout_s=attempt_timeout_s
        )
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()  # noqa: S311 - spreads load
        self._http = httpx.Client(
            headers=self._settings.headers, transport=transport, limits=CONNECTIONS, trust_env=False
        )

    @property
    def base_url(self) -> str:
        """Return where it asks."""
        return self._settings.base_url

    @property
    def with_key(self) -> bool:
        """Return whether it sends an API key."""
        return self._settings.with_key

    def predict_url(self, name: str) -> str:
        """Return the URL that a model's rows are sent to."""
        return f"{self.base_url}{calls.model_path(name)}/predict"

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
        """Ask a model for these rows: a list of dicts, a pandas DataFrame or a pyarrow Table; NaN is missing.

        ``session`` keeps callers to one version where traffic is split by it. ``version`` asks for that one of the live
        versions, which a key needs the right for. All rows go in one request.

        Raises:
            InvalidRowsError: the rows do not fit the signature; each problem names row and field.
            NotFoundError: no model has this route.
            RefusedError: a key is missing, unknown or has not the right.
            OverloadedError: the endpoint is busy, or the key's rate used up, and was until the deadline or last retry.
            ClusterError: nothing listens there, or it did not answer in time.
            UsageError: the rows cannot be sent, or are too many, an argument is none of its kind, or this is closed.
            RaymlopsError: the model failed.
        """
        call = calls.predict_call(name, rows, request_id=request_id, session=session, version=version)
        return self._ask(call, timeout_s)

    def feedback(
        self,
        name: str,
        labels: Sequence[Mapping[str, Any]],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Tell what really happened, and return how many labels were accepted.

        A label is ``{"request_id": ..., "row": 0, "label": ...}`` of an answer given before; with
        ``"correction": True`` it replaces one that was told.

        Raises:
            RaymlopsError: as ``predict``.
        """
        return self._ask(calls.feedback_call(name, labels, request_id=request_id), timeout_s)

    def describe(self, name: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what a model is: version, digest, run, signature and limits.

        Raises:
            RaymlopsError: as ``predict``.
        """
        return self._ask(calls.describe_call(name), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return ``name``, ``version``, ``digest`` and ``path`` of each model that is live.

        Raises:
            ClusterError: as ``predict``.
        """
        return self._ask(calls.models_call(), timeout_s)

    def close(self) -> None:
        """Close the connections that were kept."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _ask(self, call: Call[T], timeout_s: float | None) -> T:
        settings = self._settings
        total_s = settings.deadline_s(timeout_s)
        steps = attempts(settings.policy, timeout_s=total_s, clock=self._clock, rng=self._rng)
        outcome: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as last:
                return calls.result(call, last.value, base_url=settings.base_url, timeout_s=total_s)
            if isinstance(step, Pause):
                self._sleep(step.seconds)
                outcome = None
            else:
                outcome = self._send(call, step.timeout_s)

    def _send(self, call: Call[Any], timeout_s: float) -> Reply | Failure:
        check_open(self._http)
        until = self._clock() + timeout_s
        try:
            request = request_of(self._http, call, base_url=self.base_url, timeout_s=timeout_s)
            response = self._http.send(request, stream=True)
            try:
                parts = []
                # httpx bounds each read, not all of them: an answer that drips would never end.
                for part in response.iter_bytes():
                    parts.append(part)
                    if self._clock() > until:
                        return Failure("late", "it answered too slowly")
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return failure_of(error)
        except RuntimeError:
            check_open(self._http)  # it was closed meanwhile, by another thread
            raise
        return reply_of(response, b"".join(parts))


def checked_seconds(what: str, value: Any) -> float:
    """Return a length of time.

    Raises:
        UsageError: it is none that can be waited for.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LONGEST_S:
        raise UsageError(
            f"{what} is {value!r}; expected a number of seconds above 0, at most {LONGEST_S:,}",
            hint="Leave it out for the default.",
        )
    return float(value)


def check_open(http: httpx.Client | httpx.AsyncClient) -> None:
    """Refuse to ask with a client that was closed.

    Raises:
        UsageError: it was.
    """
    if http.is_closed:
        raise UsageError(
            "this client is closed",
            hint="Make another one, or ask within its `with` block, which closes it at the end.",
        )


def request_of(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], *, base_url: str, timeout_s: float
) -> httpx.Request:
    """Return a call as httpx sends it."""
    headers = dict(call.headers) if call.body is None else {**call.headers, "content-type": "application/json"}
    return http.build_request(call.method, base_url + call.path, content=call.body, headers=headers, timeout=timeout_s)


def reply_of(response: httpx.Response, body: bytes) -> Reply:
    """Return httpx's response as ``retrying`` and ``calls`` know it."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, body, headers, response.reason_phrase)


def failure_of(error: Exception) -> Failure:
    """Return why there is no answer."""
    if isinstance(error, httpx.TimeoutException):
        return Failure("late", type(error).__name__)
    if isinstance(error, httpx.ConnectError):
        return Failure("refused", str(error))
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL):
        return Failure("unsent", str(error))
    return Failure("broken", type(error).__name__)

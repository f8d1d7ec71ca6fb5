"""Asking a served model from Python.

Owns two HTTP calls and the errors they can end in. Knows nothing of Ray; imports no numpy or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from raymlops.errors import ClusterError, InvalidRowsError, NotFoundError, RaymlopsError, RowProblem, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered: one output a row, in order."""

    outputs: list[dict[str, Any]]
    model_version: str
    request_id: str


def predict(
    url: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    timeout_s: float = 30.0,
    request_id: str | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Answer:
    """Ask the model at ``url`` (``http://host:port/models/NAME/predict``) for these rows.

    Asks a second time when the connection breaks: a prediction changes nothing.

    Raises:
        InvalidRowsError: the rows do not fit the signature; each problem names row and field.
        NotFoundError: no model has this route.
        ClusterError: nothing listens there, or it did not answer in time.
        RaymlopsError: the model failed, or too much was sent.
    """
    headers = {"x-request-id": request_id} if request_id else {}
    body = orjson.dumps({"rows": list(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN is sent as null: missing
    data = _send("POST", url, body=body, headers=headers, timeout_s=timeout_s, transport=transport)
    return Answer(data["outputs"], data["model_version"], data["request_id"])


def describe(url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> dict[str, Any]:
    """Return what the model at ``url`` (``http://host:port/models/NAME``) is: version, digest, run and signature.

    Raises:
        NotFoundError, ClusterError: as ``predict``.
    """
    return _send("GET", url, body=None, headers={}, timeout_s=timeout_s, transport=transport)


def models(base_url: str, *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
    """Return ``name``, ``version``, ``digest`` and ``path`` of each model live at ``base_url`` (``http://host:port``).

    Raises:
        ClusterError: nothing listens there.
    """
    response = _request("GET", f"{base_url}/", body=None, headers={}, timeout_s=timeout_s, transport=None)
    try:
        found: list[dict[str, Any]] = response.json()["models"]
    except (ValueError, KeyError, TypeError):
        return []  # without deployments there is no index either, and Serve answers with a text of its own
    return found


def _send(
    method: str,
    url: str,
    *,
    body: bytes | None,
    headers: dict[str, str],
    timeout_s: float,
    transport: httpx.BaseTransport | None,
) -> dict[str, Any]:
    response = _request(method, url, body=body, headers=headers, timeout_s=timeout_s, transport=transport)
    try:
        data = response.json()
    except ValueError:
        data = {}
    if response.is_success and isinstance(data, dict) and "model_version" in data:
        return data
    error = data.get("error", {}) if isinstance(data, dict) else {}
    # What is no JSON of ours comes from a proxy, or from something else that listens there.
    message = error.get("message") or f"{response.reason_phrase}, not an answer of a model"
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY and error.get("problems"):
        raise InvalidRowsError([RowProblem(**problem) for problem in error["problems"]])
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFoundError(f"no model answers at {url}", hint="`raymlops status` lists what is live.")
    if response.status_code in {502, 503, 504}:
        raise ClusterError(f"{url} answered {response.status_code}: {message}", hint="Try again in a moment.")
    raise RaymlopsError(f"{url} answered {response.status_code}: {message}")


def _request(
    method: str,
    url: str,
    *,
    body: bytes | None,
    headers: dict[str, str],
    timeout_s: float,
    transport: httpx.BaseTransport | None,
) -> httpx.Response:
    with httpx.Client(timeout=timeout_s, transport=transport, trust_env=False) as client:
        for last in (False, True):
            try:
                return client.request(
                    method, url, content=body, headers={"content-type": "application/json", **headers}
                )
            except httpx.TimeoutException as error:
                raise ClusterError(f"{url} did not answer within {timeout_s:g} s") from error
            except httpx.ConnectError as error:
                raise ClusterError(
                    f"nothing listens at {url}", hint="`raymlops status` shows whether the endpoint is up."
                ) from error
            except httpx.UnsupportedProtocol as error:
                raise UsageError(
                    f"{url!r} is no URL of an endpoint", hint="It starts with http:// or https://."
                ) from error
            except httpx.HTTPError as error:
                if last:
                    raise ClusterError(f"{url} broke off: {type(error).__name__}") from error
    raise AssertionError  # the second turn returns or raises

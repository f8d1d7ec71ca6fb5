"""The calls of an endpoint: each as one HTTP request, and its response as a value or an error.

Owns paths, headers, bodies and the meaning of statuses. Sends nothing (see ``client``), and imports no numpy: rows of
pandas and Arrow are recognized by their methods.
"""

from __future__ import annotations

import binascii
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import orjson

from raymlops.errors import (
    MAX_PROBLEMS,
    EndpointDisconnectedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    InvalidRowsError,
    NotFoundError,
    OverloadedError,
    RaymlopsError,
    RefusedError,
    RowProblem,
    UsageError,
)
from raymlops.serving.client.retry import Failure, Reply

T = TypeVar("T")

Rows = Any
"""A sequence of mappings from field to value, a pandas ``DataFrame`` or a pyarrow ``Table``."""

_SENDABLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
"""Text that a header can carry unchanged."""
_EXACT = 2**53
"""Below it every integer is exact as a float."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's prediction: one output a row, in order."""

    outputs: list[dict[str, Any]]
    model_version: str
    request_id: str
    attempts: int = 1
    """How often the request was sent."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Labels that are stored."""

    accepted: int
    unmatched: tuple[int, ...] = ()
    """Places of those whose requests the replica that took them did not answer lately. Another one may have, or it is
    long ago: they count once the log has such a request of this caller, else never, as with a misspelt id."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. ``read`` makes a value of the response's JSON and the number of attempts, or raises ``KeyError``."""

    method: str
    path: str
    read: Callable[[dict[str, Any], int], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    absent: T | None = None
    """The value where the path does not exist; None for an error."""


def predict_call(
    name: str, rows: Rows, *, request_id: str | None, session: str | None, version: int | str | None
) -> Call[Answer]:
    """Return the request for predictions.

    Raises:
        UsageError: the rows are of no known type or cannot be written as JSON, or a header cannot carry an argument.
        InvalidRowsError: they hold infinity, which JSON would carry as null, like a missing value.
    """
    headers = _headers(request_id, {"x-session-id": session, "x-raymlops-version": version})
    sent = _rows(rows)
    _check_finite(sent)
    return Call(
        "POST",
        f"{model_path(name)}/predict",
        lambda data, attempts: Answer(data["outputs"], data["model_version"], data["request_id"], attempts),
        headers,
        _json({"rows": sent}, "rows"),
    )


def feedback_call(name: str, labels: Sequence[Mapping[str, Any]], *, request_id: str | None) -> Call[Accepted]:
    """Return the request that sends labels.

    Raises:
        UsageError: they are not a list, or a label cannot be written as JSON.
    """
    if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__iter__"):
        raise UsageError(
            f"labels are a {type(labels).__name__}", hint='Give a list of {"request_id": ..., "row": 0, "label": ...}.'
        )
    body = _json({"labels": list(labels)}, "labels")
    headers = _headers(request_id, {})
    return Call("POST", f"{model_path(name)}/feedback", _accepted, headers, body)


def _accepted(data: dict[str, Any], _attempts: int) -> Accepted:
    return Accepted(int(data["accepted"]), tuple(data.get("unmatched") or ()))  # earlier endpoints do not say which


def describe_call(name: str) -> Call[dict[str, Any]]:
    """Return the request for a model's description."""
    path, headers = model_path(name), _headers(None, {})
    return Call("GET", path, lambda data, _: {"model_version": data["model_version"], **data}, headers)


def models_call() -> Call[list[dict[str, Any]]]:
    """Return the request for the live models; where nothing has been deployed, there is no index to answer it."""
    return Call("GET", "/", lambda data, _: [dict(model) for model in data["models"]], _headers(None, {}), absent=[])


def model_path(name: str) -> str:
    """Return the path of a model's route.

    Raises:
        UsageError: the name is invalid.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or not name.isprintable():
        raise UsageError(f"{name!r} is not the name of a model", hint="models() lists the live ones.")
    return f"/models/{quote(name, safe='')}"


def header_value(what: str, value: Any) -> str:
    """Return a value as the text of a header.

    Raises:
        UsageError: a header cannot carry it; the message does not repeat it, as it may be a secret.
    """
    text = str(value)
    if not _SENDABLE.fullmatch(text):
        raise UsageError(f"{what} cannot be sent", hint="Use printable ASCII characters, without spaces around them.")
    return text


def result(call: Call[T], outcome: Reply | Failure, *, attempts: int, base_url: str, timeout_s: float) -> T:
    """Return the value of a call, from the outcome of its last attempt.

    Raises:
        RaymlopsError: the subclass that fits the failure or the status.
    """
    url = base_url + call.path
    tries = "" if attempts == 1 else f" ({attempts} attempts)"
    if isinstance(outcome, Failure):
        raise _failed(outcome, url=url, timeout_s=timeout_s, tries=tries)
    if HTTPStatus.OK <= outcome.status < HTTPStatus.MULTIPLE_CHOICES:
        try:
            return call.read(outcome.data, attempts)
        except (KeyError, TypeError, ValueError) as error:
            raise RaymlopsError(f"{url} answered {outcome.status}, but not as a raymlops endpoint does") from error
    if outcome.status == HTTPStatus.NOT_FOUND and call.absent is not None:
        return call.absent
    raise _refused(outcome, url=url, tries=tries)


def _failed(failure: Failure, *, url: str, timeout_s: float, tries: str) -> RaymlopsError:
    match failure.kind:
        case "invalid":
            return UsageError(f"the request to {url} cannot be sent: {failure.reason}")
        case "unreachable":
            return EndpointUnreachableError(
                f"cannot connect to {url}{tries}: {failure.reason}",
                hint="`raymlops status` shows whether the endpoint is up.",
            )
        case "timeout":
            return EndpointTimeoutError(f"{url} did not answer within {timeout_s:g} s{tries}")
        case "disconnected":
            return EndpointDisconnectedError(f"{url} closed the connection without an answer: {failure.reason}{tries}")


_LIVE = "`raymlops status` lists what is live."


def _refused(reply: Reply, *, url: str, tries: str) -> RaymlopsError:
    status, error = reply.status, reply.error
    problems = [_problem(entry) for entry in error.get("problems") or ()]
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and problems:
        return InvalidRowsError(problems)
    # A response without an error of ours comes from a proxy, or from something else that listens there.
    reason = error.get("message") or f"{reply.reason}, not from a model"
    message = f"{url} answered {status}{tries}: {reason}"
    if error.get("code") == "unknown_version":  # from the model, which names the versions that are up
        return NotFoundError(f"{url}: {reason}", hint=_LIVE)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(f"no model answers at {url}{tries}: {reason}", hint=_LIVE)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return RefusedError(message, hint="Set RAYMLOPS_API_KEY, or the client's api_key.")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        after = reply.retry_after_s
        when = "in a moment" if after is None else f"in {after:g} s"
        return OverloadedError(message, hint=f"Try again {when}.", retry_after_s=after)
    if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT}:
        return EndpointTimeoutError(message, hint="Try again in a moment.")
    if status == HTTPStatus.BAD_GATEWAY:
        return EndpointDisconnectedError(message, hint="Try again in a moment.")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return UsageError(message, hint="Send fewer rows at a time; describe(name)['limits'] has the limit.")
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UsageError(message)
    return RaymlopsError(message)


def _problem(entry: Mapping[str, Any]) -> RowProblem:
    return RowProblem(entry.get("row"), entry.get("field"), str(entry.get("message", "")))


def _headers(request_id: str | None, more: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of every attempt; the shared request id groups them in the server's log."""
    given = {"x-request-id": str(uuid.uuid4()) if request_id is None else request_id, **more}
    return {name: header_value(name, value) for name, value in given.items() if value is not None}


def _json(data: Any, what: str) -> bytes:
    try:
        # NaN is sent as null, for missing; a time without an offset as UTC.
        return orjson.dumps(data, default=plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC)
    except TypeError as error:
        raise UsageError(f"the {what} cannot be sent as JSON: {error.__cause__ or error}") from error


def plain(value: Any) -> Any:
    """Convert what JSON does not know: pandas' missing values, bytes, times, and arrays that are not contiguous.

    Raises:
        TypeError: it is something else.
    """
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        return binascii.b2a_base64(value, newline=False).decode()
    if isinstance(value, datetime):  # also pandas' Timestamp
        return (value.replace(tzinfo=UTC) if value.tzinfo is None else value).isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    msg = f"a value of type {type(value).__name__}"
    raise TypeError(msg)


def _rows(rows: Rows) -> list[Any]:
    if hasattr(rows, "column_names") and hasattr(rows, "to_pylist"):
        return _transposed(rows.column_names, [column.to_pylist() for column in rows.columns])
    if hasattr(rows, "columns") and hasattr(rows, "iloc"):
        return _transposed(rows.columns, [rows.iloc[:, index].tolist() for index in range(len(rows.columns))])
    if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__iter__"):
        raise UsageError(
            f"rows are a {type(rows).__name__}", hint="Give a list of dicts, a pandas DataFrame or a pyarrow Table."
        )
    return list(rows)


def _check_finite(rows: Sequence[Any]) -> None:
    problems = [
        RowProblem(index, str(name), "infinity cannot be sent; NaN and None are missing values")
        for index, row in enumerate(rows)
        if isinstance(row, Mapping)
        for name, value in row.items()
        if _infinite(value)
    ]
    if problems:
        raise InvalidRowsError(problems[:MAX_PROBLEMS])


def _infinite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isinf(value)
    if isinstance(value, list | tuple):
        return any(map(_infinite, value))
    kind = getattr(getattr(value, "dtype", None), "kind", "O")  # numpy's letter; tensors of others have none
    if kind == "f":
        return bool((abs(value) == math.inf).any())
    return kind == "O" and hasattr(value, "tolist") and _infinite(value.tolist())


def _transposed(names: Any, lists: list[list[Any]]) -> list[dict[str, Any]]:
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise UsageError(f"two columns have the same name: {', '.join(texts)}")
    columns = [_whole(values) for values in lists]
    return [dict(zip(texts, values, strict=True)) for values in zip(*columns, strict=True)]


def _whole(values: list[Any]) -> list[Any]:
    """Return a column's values; integers with gaps, which pandas and Arrow hold as floats, as integers again.

    A float column accepts integers too, and those below 2**53 are the same numbers.
    """
    present = [value for value in values if type(value) is float and not math.isnan(value)]
    gaps = len(present) < len(values)
    if gaps and all(abs(value) < _EXACT and value.is_integer() for value in present):
        return [int(value) if type(value) is float and not math.isnan(value) else value for value in values]
    return values

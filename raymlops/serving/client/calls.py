"""What can be asked of an endpoint: each question as one HTTP request, its answer as a value or an error.

Owns paths, headers, bodies and the meaning of statuses. Sends nothing (see ``client``), and imports no numpy: rows of
pandas and Arrow are taken by what they can do.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import orjson

from raymlops.errors import (
    MAX_PROBLEMS,
    ClusterError,
    InvalidRowsError,
    NotFoundError,
    OverloadedError,
    RaymlopsError,
    RefusedError,
    RowProblem,
    UsageError,
)
from raymlops.serving.client.retry import Ended, Failure, Reply

T = TypeVar("T")

Rows = Any
"""A sequence of mappings from field to value, a pandas ``DataFrame`` or a pyarrow ``Table``."""

_SENDABLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
"""Text that a header carries as it is."""
_EXACT = 2**53
"""Below it every whole number is a float of its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered: one output a row, in order."""

    outputs: list[dict[str, Any]]
    model_version: str
    request_id: str
    attempts: int = 1
    """How often it was asked until it answered."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One question. ``read`` makes a value of the answer's JSON and the number of attempts, or raises ``KeyError``."""

    method: str
    path: str
    read: Callable[[dict[str, Any], int], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    absent: T | None = None
    """The answer where the path is not known; None: an error."""


def predict_call(
    name: str, rows: Rows, *, request_id: str | None, session: str | None, version: int | str | None
) -> Call[Answer]:
    """Return the question for a model's outputs.

    Raises:
        UsageError: the rows are of no known kind or hold what JSON cannot say, or a header cannot carry an argument.
        InvalidRowsError: they hold infinity, which would be sent as null, as what is missing is.
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


def feedback_call(name: str, labels: Sequence[Mapping[str, Any]], *, request_id: str | None) -> Call[int]:
    """Return the message of what really happened.

    Raises:
        UsageError: they are no list, or a label is no JSON.
    """
    if isinstance(labels, str | bytes | Mapping) or not hasattr(labels, "__iter__"):
        raise UsageError(
            f"labels are a {type(labels).__name__}", hint='Give a list of {"request_id": ..., "row": 0, "label": ...}.'
        )
    body = _json({"labels": list(labels)}, "labels")
    headers = _headers(request_id, {})
    return Call("POST", f"{model_path(name)}/feedback", lambda data, _: int(data["accepted"]), headers, body)


def describe_call(name: str) -> Call[dict[str, Any]]:
    """Return the question what a model is."""
    return Call("GET", model_path(name), _description, _headers(None, {}))


def models_call() -> Call[list[dict[str, Any]]]:
    """Return the question what is live; where nothing has been deployed, there is no index to answer it."""
    return Call("GET", "/", lambda data, _: [dict(model) for model in data["models"]], _headers(None, {}), absent=[])


def model_path(name: str) -> str:
    """Return the path of a model's route.

    Raises:
        UsageError: it is no name.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or not name.isprintable():
        raise UsageError(f"{name!r} is no name of a model", hint="models() lists those that are live.")
    return f"/models/{quote(name, safe='')}"


def header_value(what: str, value: Any) -> str:
    """Return a value as the text of a header.

    Raises:
        UsageError: no header can carry it; the message does not repeat it, as it may be a secret.
    """
    text = str(value)
    if not _SENDABLE.fullmatch(text):
        raise UsageError(f"{what} cannot be sent", hint="It needs printable ASCII characters, with no space around.")
    return text


def result(call: Call[T], ended: Ended, *, base_url: str, timeout_s: float) -> T:
    """Return what a question was answered.

    Raises:
        InvalidRowsError, NotFoundError, RefusedError, UsageError, OverloadedError, ClusterError, RaymlopsError: by what
            was answered instead.
    """
    url = base_url + call.path
    outcome = ended.outcome
    tries = "" if ended.attempts == 1 else f" ({ended.attempts} attempts)"
    if isinstance(outcome, Failure):
        raise _failed(outcome, url=url, timeout_s=timeout_s, tries=tries)
    if HTTPStatus.OK <= outcome.status < HTTPStatus.MULTIPLE_CHOICES:
        try:
            return call.read(outcome.data, ended.attempts)
        except (KeyError, TypeError, ValueError) as error:
            raise RaymlopsError(f"{url} answered {outcome.status}, but not as a model of raymlops does") from error
    if outcome.status == HTTPStatus.NOT_FOUND and call.absent is not None:
        return call.absent
    raise _refused(outcome, url=url, tries=tries)


def _failed(failure: Failure, *, url: str, timeout_s: float, tries: str) -> RaymlopsError:
    if failure.kind == "unsent":
        return UsageError(f"{url} cannot be asked: {failure.reason}")
    if failure.kind == "refused":
        return ClusterError(
            f"cannot connect to {url}{tries}: {failure.reason}",
            hint="`raymlops status` shows whether the endpoint is up.",
        )
    if failure.kind == "late":
        return ClusterError(f"{url} did not answer within {timeout_s:g} s{tries}")
    return ClusterError(f"{url} broke off: {failure.reason}{tries}")


def _refused(reply: Reply, *, url: str, tries: str) -> RaymlopsError:
    status, error = reply.status, reply.error
    problems = [_problem(entry) for entry in error.get("problems") or ()]
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and problems:
        return InvalidRowsError(problems)
    # What has no error of ours comes from a proxy, or from something else that listens there.
    said = error.get("message") or f"{reply.reason}, not an answer of a model"
    message = f"{url} answered {status}{tries}: {said}"
    if error.get("code") == "unknown_version":  # the model does answer, and names the versions that are up
        return NotFoundError(f"{url}: {said}", hint="`raymlops status` lists what is live.")
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(f"no model answers at {url}{tries}: {said}", hint="`raymlops status` lists what is live.")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return RefusedError(message, hint="A key is RAYMLOPS_API_KEY, or the client's api_key.")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        after = reply.retry_after_s
        when = "in a moment" if after is None else f"in {after:g} s"
        return OverloadedError(message, hint=f"Try again {when}.", retry_after_s=after)
    if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}:
        return ClusterError(message, hint="Try again in a moment.")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return UsageError(message, hint="Send fewer rows at a time; describe(name)['limits'] says how many it takes.")
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UsageError(message)
    return RaymlopsError(message)


def _description(data: dict[str, Any], _attempts: int) -> dict[str, Any]:
    return {"model_version": data["model_version"], **data}


def _problem(entry: Mapping[str, Any]) -> RowProblem:
    return RowProblem(entry.get("row"), entry.get("field"), str(entry.get("message", "")))


def _headers(request_id: str | None, more: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of every attempt: the id is the same, so that the server's log shows they belong together."""
    given = {"x-request-id": str(uuid.uuid4()) if request_id is None else request_id, **more}
    return {name: header_value(name, value) for name, value in given.items() if value is not None}


def _json(data: Any, what: str) -> bytes:
    try:
        return orjson.dumps(data, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)  # NaN is sent as null: missing
    except TypeError as error:
        raise UsageError(f"the {what} cannot be sent as JSON: {error.__cause__ or error}") from error


def _plain(value: Any) -> Any:
    """Return what orjson does not know: pandas' missing values, and arrays that are no single block of memory."""
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
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
        RowProblem(index, str(name), "infinity is no number that can be sent; NaN and None are missing values")
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
        raise UsageError(f"two columns have one name: {', '.join(texts)}")
    columns = [_whole(values) for values in lists]
    return [dict(zip(texts, values, strict=True)) for values in zip(*columns, strict=True)]


def _whole(values: list[Any]) -> list[Any]:
    """Return a column's values; whole numbers with gaps, which pandas and Arrow hold as floats, as the integers.

    A float column takes integers too, and those below 2**53 are the same numbers.
    """
    present = [value for value in values if type(value) is float and not math.isnan(value)]
    gaps = len(present) < len(values)
    if gaps and all(abs(value) < _EXACT and value.is_integer() for value in present):
        return [int(value) if type(value) is float and not math.isnan(value) else value for value in values]
    return values

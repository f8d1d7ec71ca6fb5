"""Recognise transient failures of the environment: a throttling store, a network, a GPU.

Looks at the chain of exceptions down to the root, whatever recipe or library has wrapped them; where the chain was lost
on its way to the driver, at the message. Pure: exceptions or text in, a reason in words out.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from raymlops.errors import RaymlopsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST_LINKS = 16
_LASTING = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENODEV, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENOTSUP, errno.ENXIO, errno.EPERM,
    errno.EROFS, errno.ESPIPE, errno.EXDEV,
}  # fmt: skip
"""Errors that persist at the next attempt: a wrong path, a missing permission, a full disk."""
_PASSING_STATUS = {408, 425, 429}
"""HTTP beside 500 and above: request timeout, too early, too many requests."""
_CONNECTION = re.compile(
    r"^(Connection\w*Error|\w*Time(d)?Out(Error)?|BrokenPipeError|gaierror|herror|(Transport|Network|Connect|Protocol)Error"
    r"|HTTPClientError|\w*ConnectionError|\w*Connect(ion)?TimeoutError|MaxRetryError|IncompleteRead|RemoteDisconnected"
    r"|SSLEOFError|SSLZeroReturnError|ServiceUnavailable|TooManyRequests|DeadlineExceeded|InternalServerError"
    r"|BadGateway|GatewayTimeout)$",
    re.IGNORECASE,
)
"""Types of Python, urllib3, requests, httpx, aiohttp, botocore and Google's clients; by name, as few are installed."""
_STORE = re.compile(
    r"slow_?down|throttl|too many requests|reduce your request rate|service.?unavailable|bad gateway|gateway time-?out"
    r"|internal.?(server.?)?(error|failure)|\bHTTP\D{0,20}(429|5\d\d)\b|timed?.?out|broken pipe|remote end closed"
    r"|connection (was )?(closed|reset|refused|aborted)|temporar(y failure|ily unavailable)|resolve host"
    r"|name (resolution|or service not known)|network.?(connection|(is )?(unreachable|down))"
    r"|curlCode: (6|7|18|28|35|52|56)\b|stale file handle|input/output error",
    re.IGNORECASE,
)
"""How stores word it: pyarrow's errors for S3 and GCS have neither a code nor a type of their own."""
_CARD = re.compile(
    r"CUDA (driver )?error|cuda failure|uncorrectable ECC|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error|NCCL error|HIP error"
    r"|unhandled (cuda|system) error",
    re.IGNORECASE,
)
_CARD_BUG = re.compile(
    r"device-side assert|no kernel image|invalid device function|driver version is insufficient|not compiled with",
    re.IGNORECASE,
)
"""GPU errors caused by the recipe, such as an index out of range, or by what is installed."""
_RAISED = re.compile(r"(?:raised|failed:) (\w+): (.*)", re.DOTALL)
_PLACE = re.compile(r" at \S+:\d+\s*$")
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_STATUS = re.compile(r"^(?:HTTP Error )?([45]\d\d)\b")


@dataclass(frozen=True)
class Link:
    """One exception of a chain, as plain data: its class and those that it inherits from, the nearest first."""

    types: tuple[str, ...]
    message: str
    code: int | None = None
    """``errno``, if it has one."""
    status: int | None = None
    """Of HTTP."""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Describe an exception."""
        types = tuple(kind.__name__ for kind in type(error).__mro__ if kind not in {BaseException, object})
        number = getattr(error, "errno", None)
        return cls(types, str(error), number if isinstance(number, int) else None, _status_of(error))

    @classmethod
    def in_text(cls, error_type: str, message: str) -> Self:
        """Parse a message, ``... raised TYPE: MESSAGE at FILE:LINE``, or describe the error itself."""
        raised = _RAISED.search(message)
        name, text = (raised[1], raised[2]) if raised else (error_type, message)
        text = _PLACE.sub("", text.partition("\n")[0])
        code, status = _ERRNO.search(text), _STATUS.match(text) if "HTTP" in name else None
        return cls((name,), text, int(code[1]) if code else None, int(status[1]) if status else None)


def chain_of(error: BaseException) -> tuple[Link, ...]:
    """Return the exceptions behind one, the root first, without those of raymlops, unless one is the root."""
    found = list(_behind(error))
    root = found[-1]
    if isinstance(root, RaymlopsError):
        return (Link.in_text(type(root).__name__, root.message),)
    return tuple(Link.of(each) for each in reversed(found) if not isinstance(each, RaymlopsError))


def passing(chain: Sequence[Link]) -> str:
    """Return the transient failure of the environment in words; empty if there was none."""
    return next(filter(None, map(_passing, chain)), "")


def _passing(link: Link) -> str:
    if link.status is not None:
        return f"HTTP {link.status}" if link.status in _PASSING_STATUS or link.status >= 500 else ""
    if any(_CONNECTION.match(name) for name in link.types):
        return "a connection"
    # A text alone names one type, and ``[Errno N]`` says of which kind that is.
    system = "OSError" in link.types or len(link.types) == 1
    if link.code is not None and system:
        return "" if link.code in _LASTING else errno.errorcode.get(link.code, f"error {link.code}")
    store = {"OSError", "StorageError"} & set(link.types) or "HTTP" in link.types[0]
    if store and (match := _STORE.search(link.message)):
        return match[0]
    cards = {"AcceleratorError", "RuntimeError"} & set(link.types) and "OutOfMemoryError" not in link.types
    if cards and not _CARD_BUG.search(link.message) and (match := _CARD.search(link.message)):
        return match[0]
    return ""


def _behind(error: BaseException) -> Iterator[BaseException]:
    current: Any = error
    for _ in range(_MOST_LINKS):
        yield current
        behind = (getattr(current, name, None) for name in ("cause", "base_exc", "__cause__", "reason"))
        current = next((each for each in behind if isinstance(each, BaseException) and each is not current), None)
        if current is None:
            return


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an exception of any client."""
    if isinstance(error, SystemExit):
        return None
    with suppress(Exception):  # whatever a client's attributes do
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        for holder in (response, error):
            # A recipe's own exception may carry a code that means something else.
            speaks_http = holder is response or "HTTP" in type(holder).__name__ or isinstance(holder, OSError)
            for name in ("status_code", "status", "code") if speaks_http else ("status_code",):
                value = getattr(holder, name, None)
                if isinstance(value, int) and 400 <= value < 600:
                    return int(value)
    return None

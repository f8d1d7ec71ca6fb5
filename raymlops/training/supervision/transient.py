"""Tell failures of the environment and of the hardware from those of the recipe, by the exception at the root.

Looks at the chain of exceptions, whatever recipe or library has wrapped them; where the chain was lost on its way to
the driver, at the message. Pure: exceptions or text in, a kind and the reason in words out.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from raymlops.errors import RaymlopsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Class = Literal["environment", "gpu", "hardware", "memory", "card_bug", ""]
_MOST_LINKS = 16
_LASTING = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENODEV, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENOTSUP, errno.ENXIO, errno.EPERM,
    errno.EROFS, errno.ESPIPE, errno.EXDEV,
}  # fmt: skip
"""Errors that persist at the next attempt: a wrong path, a missing permission, a full disk."""
_PASSING_STATUS = {408, 425, 429, *range(500, 600)} - {501, 505}
"""HTTP: request timeout, too early, too many requests, and a server's own errors, but for what it does not support."""
_CONNECTION = re.compile(
    r"^(Connection\w*Error|\w*Time(d)?Out(Error)?|BrokenPipeError|gaierror|herror|(Transport|Network|Connect|Protocol)Error"
    r"|HTTPClientError|\w*ConnectionError|\w*Connect(ion)?TimeoutError|MaxRetryError|IncompleteRead(Error)?"
    r"|RemoteDisconnected|ServerDisconnectedError|ClientPayloadError|ChunkedEncodingError|ResponseStreamingError"
    r"|Service(Request|Response)Error|SSLEOFError|SSLZeroReturnError|ServiceUnavailable|\w*UnavailableError"
    r"|TooManyRequests|DeadlineExceeded|InternalServerError|BadGateway|GatewayTimeout)$",
    re.IGNORECASE,
)
"""Types of Python, urllib3, requests, httpx, aiohttp, botocore, Azure's and Google's clients; by name, as few are
installed."""
_ADDRESS = {"UnsupportedProtocol", "LocalProtocolError", "SSLCertVerificationError"}
"""Types that look like those, but are of a wrong address or a wrong certificate."""
_PROCESS = re.compile(
    r"^(BrokenProcessPool|BrokenThreadPool|ObjectLostError|RayActorError|WorkerCrashedError|NodeDiedError|ActorDiedError)$"
)
_LOADER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly)")
_STORE = re.compile(
    r"slow_?down|throttl|too many requests|reduce your request rate|service.?unavailable|bad gateway|gateway time-?out"
    r"|internal.?(server.?)?(error|failure)|\bHTTP\D{0,20}(429|5\d\d)\b|timed?.?out|broken pipe|remote end closed"
    r"|connection.{0,40}(closed|reset|refused|aborted|failed)|server closed the connection|server.?(is )?busy"
    r"|temporar(y failure|ily unavailable)|resolve host|name (resolution|or service not known)"
    r"|network.?(connection|(is )?(unreachable|down))|curlCode: (6|7|18|28|35|52|56)\b"
    r"|\b(Status\(|StatusCode\.)(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL)\b"
    r"|stale file handle|input/output error|database is locked",
    re.IGNORECASE,
)
"""How stores and databases word it: pyarrow's errors for S3, GCS and Azure have neither a code nor a type of their
own."""
_STORES = {"OSError", "StorageError", "OperationalError", "InterfaceError", "RpcError"}
_CARD = re.compile(
    r"CUDA (driver )?error|CUDA out of memory|cuda failure|uncorrectable ECC|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error"
    r"|NCCL error|HIP (error|out of memory)|unhandled (cuda|system) error",
    re.IGNORECASE,
)
_CARD_TYPES = {"AcceleratorError", "RuntimeError", "DistBackendError", "OutOfMemoryError"}
_HARDWARE = re.compile(
    r"\bECC error|NVLink|hardware (stack )?error|unspecified launch failure|fallen off the bus|GPU is lost|\bXid\b",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
_CARD_BUG = re.compile(
    r"device-side assert|no kernel image|invalid device (function|ordinal)|driver version is insufficient"
    r"|not compiled with|(CUBLAS|CUDNN)_STATUS_(INVALID_VALUE|BAD_PARAM|NOT_SUPPORTED)|invalid usage|duplicate GPU",
    re.IGNORECASE,
)
"""GPU errors caused by the recipe, such as an index out of range, or by what is installed."""
_OF_CARD: tuple[tuple[Class, re.Pattern[str]], ...] = (
    ("memory", _MEMORY),
    ("card_bug", _CARD_BUG),
    ("hardware", _HARDWARE),
)
_THROTTLED = re.compile(
    r"throttl|slow_?down|too_?many|limit_?exceeded|request_?timeout$|internal_?error", re.IGNORECASE
)
_SPEAKS_HTTP = re.compile(r"http|response", re.IGNORECASE)
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
    found = list(behind(error, implied=True))
    root = found[-1]
    if isinstance(root, RaymlopsError):
        return (Link.in_text(type(root).__name__, root.message),)
    return tuple(Link.of(each) for each in reversed(found) if not isinstance(each, RaymlopsError))


def behind(error: BaseException, *, implied: bool = False) -> Iterator[BaseException]:
    """Yield an exception and its causes, the root last, also through the wrappers of Ray.

    ``implied`` are those that were being handled when it was raised without ``from``: libraries often do.
    """
    current: Any = error
    seen: set[int] = set()
    for _ in range(_MOST_LINKS):
        seen.add(id(current))
        yield current
        names = ["cause", "base_exc", "_base_exc", "__cause__", "reason"]
        if implied and not current.__suppress_context__:
            names.append("__context__")
        causes = (getattr(current, name, None) for name in names)
        current = next((each for each in causes if isinstance(each, BaseException) and id(each) not in seen), None)
        if current is None:
            return


def classify(chain: Sequence[Link]) -> tuple[Class, str]:
    """Return what failed and the reason in words, by the first link that tells, the root first.

    ``environment`` may pass; so may ``gpu``, in another process; so may ``hardware``, which a node may also keep.
    ``memory`` and ``card_bug`` are GPU errors that the recipe causes. Empty where no link tells.
    """
    return next((found for found in map(_classified, chain) if found[0]), ("", ""))


def _classified(link: Link) -> tuple[Class, str]:
    # Ray's own error of a host without memory has the name of torch's.
    if _CARD_TYPES & set(link.types) and "RayError" not in link.types:
        if lost := _LOADER.search(link.message):
            return "environment", lost[0]
        if failed := _CARD.search(link.message):
            return next(
                ((kind, match[0]) for kind, pattern in _OF_CARD if (match := pattern.search(link.message))),
                ("gpu", failed[0]),
            )
    reason = _passing(link)
    return ("environment", reason) if reason else ("", "")


def _passing(link: Link) -> str:
    if link.status is not None:
        return f"HTTP {link.status}" if link.status in _PASSING_STATUS else ""
    if _ADDRESS & set(link.types) or "CERTIFICATE_VERIFY_FAILED" in link.message:
        return ""
    if any(_CONNECTION.match(name) for name in link.types):
        return "a connection"
    if any(_PROCESS.match(name) for name in link.types):
        return "a process"
    # A text alone names one type, and ``[Errno N]`` says of which kind that is.
    system = "OSError" in link.types or len(link.types) == 1
    if link.code is not None and system:
        return "" if link.code in _LASTING else errno.errorcode.get(link.code, f"error {link.code}")
    store = _STORES & set(link.types) or "HTTP" in link.types[0]
    match = _STORE.search(link.message) if store else None
    return match[0] if match else ""


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an exception of any client."""
    if isinstance(error, SystemExit):
        return None
    with suppress(Exception):  # whatever a client's attributes do
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore; AWS says some throttling with status 400
            throttled = _THROTTLED.search(str(response.get("Error", {}).get("Code", "")))
            return 429 if throttled else int(response["ResponseMetadata"]["HTTPStatusCode"])
        for holder in (response, error):
            # A recipe's own exception may carry a code that means something else.
            speaks_http = (
                holder is response or _SPEAKS_HTTP.search(type(holder).__name__) or isinstance(holder, OSError)
            )
            for name in ("status_code", "status", "code") if speaks_http else ("status_code",):
                value = getattr(holder, name, None)
                if isinstance(value, int) and 400 <= value < 600:
                    return int(value)
    return None

"""What fails in MLflow, in its database or on the way to its server, as a ``TrackingError`` that says what to do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymlops.config.credentials import redact
from raymlops.config.platforms.databricks import is_databricks
from raymlops.errors import NotFoundError, TrackingError

if TYPE_CHECKING:
    from collections.abc import Iterator

_START = "Start it (`raymlops up`, `mlflow server`) or change tracking.uri."
_CREDENTIALS = "Set tracking.username and tracking.password to {env: NAME} or {file: PATH}."
_DATABRICKS = "Run `databricks auth login`, or set DATABRICKS_HOST and DATABRICKS_TOKEN, on each node that asks."
_REFUSALS = {
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "INVALID_STATE"),
}


@contextmanager
def converted_errors(uri: str, *, not_found: str | None = None) -> Iterator[None]:
    """Convert the errors of MLflow, SQL and HTTP; ``not_found`` is the message where something does not exist.

    Raises:
        NotFoundError: it does not exist, and there is a message for that.
        TrackingError: anything else.
    """
    try:
        yield
    except (TrackingError, NotFoundError):
        raise
    except Exception as error:
        code = getattr(error, "error_code", "")
        # No other OSError: those of requests, a server's 503 and a denied permission are OSErrors, too.
        if not_found is not None and (code == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, FileNotFoundError)):
            raise NotFoundError(not_found) from error
        if (cause := _unheard(error)) is not None:
            raise TrackingError(f"MLflow at {redact(uri)} does not answer: {cause}", hint=_START) from error
        credentials = _DATABRICKS if is_databricks(uri) else _CREDENTIALS
        hint = credentials if code in {"UNAUTHENTICATED", "PERMISSION_DENIED"} else None
        first = str(error).strip().partition("\n")[0]
        raise TrackingError(redact(f"MLflow at {uri}: {type(error).__name__}: {first}"), hint=hint) from error


def refused(error: TrackingError) -> bool:
    """Return whether MLflow answered and rejected the request, so that a retry is useless."""
    cause = error.__cause__
    return isinstance(cause, NotFoundError) or getattr(cause, "error_code", "") in _REFUSALS


def said(error: Exception) -> str:
    """Return the start of an error's message, for a notice."""
    return error.message[:300] if isinstance(error, TrackingError) else repr(error)[:300]


def _unheard(error: BaseException) -> str | None:
    """Return the system's reason why a server was not reached; None if it was, or if there is no server."""
    cause: BaseException | None = error
    by_http = False
    while cause is not None:
        module = type(cause).__module__
        by_http = by_http or module.startswith(("requests.", "urllib3."))
        # The errors of requests are OSErrors, too, each with the text of all its causes.
        if by_http and isinstance(cause, OSError) and module in {"builtins", "socket"}:
            return "timed out" if isinstance(cause, TimeoutError) else (cause.strerror or str(cause)).lower()
        cause = cause.__cause__ or cause.__context__
    return None

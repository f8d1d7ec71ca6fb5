"""What of the environment failed, by the exception at the root."""

from __future__ import annotations

import errno
import json
import ssl
import urllib.error
from email.message import Message
from typing import TYPE_CHECKING, Any

import pytest
import requests
import torch

from raymlops.errors import RaymlopsError, RecipeError, StorageError, TrainingError
from raymlops.recipe import call_recipe
from raymlops.training.supervision.transient import Link, chain_of, classify

if TYPE_CHECKING:
    from collections.abc import Sequence


def http(status: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://hub/data", status, "what", Message(), None)


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for url: http://hub", response=response)


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__("An error occurred (SlowDown)")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


PASSES: list[tuple[BaseException, str]] = [
    (OSError(errno.EIO, "Input/output error"), "EIO"),
    (OSError(errno.ESTALE, "Stale file handle"), "ESTALE"),
    (OSError(errno.EHOSTUNREACH, "No route to host"), "EHOSTUNREACH"),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a connection"),
    (TimeoutError("timed out"), "a connection"),
    (requests.ConnectionError("refused"), "a connection"),
    (requests.ReadTimeout("slow"), "a connection"),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "a connection"),
    (urllib.error.URLError(ConnectionRefusedError(111, "refused")), "a connection"),
    (urllib.error.URLError("[Errno -3] Temporary failure in name resolution"), "Temporary failure"),
    (http(503), "HTTP 503"),
    (answered(429), "HTTP 429"),
    (answered(500), "HTTP 500"),
    (ClientError(503), "HTTP 503"),
    (OSError("When reading 'x': AWS Error SLOW_DOWN during GetObject: Please reduce your request rate"), "SLOW_DOWN"),
    (OSError("AWS Error NETWORK_CONNECTION during GetObject: curlCode: 28"), "NETWORK_CONNECTION"),
    (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject"), "HTTP status 503"),
    (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "ECC error"),
    (RuntimeError("CUDA error: unspecified launch failure"), "unspecified launch failure"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cuDNN error"),
    (torch.distributed.DistBackendError("NCCL error in: NCCLUtils.hpp:317, unhandled system error"), "NCCL error"),
]


def passing(chain: Sequence[Link]) -> str:
    """Return what of the environment or of the hardware failed."""
    kind, reason = classify(chain)
    return reason if kind in {"environment", "gpu", "hardware"} else ""


def coded(error: Any, code: int) -> BaseException:
    """Return an exception with a number that is no status of HTTP."""
    error.code = code
    return error


LASTS: list[BaseException] = [
    FileNotFoundError(errno.ENOENT, "No such file", "data.parquet"),
    FileNotFoundError("no data here"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
    OSError("image file is truncated (3 bytes not processed)"),
    OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    http(404),
    answered(403),
    requests.JSONDecodeError("Expecting value", "<html>", 0),
    json.JSONDecodeError("Expecting value", "<html>", 0),
    ssl.SSLCertVerificationError(1, "certificate verify failed"),
    SystemExit(503),
    ValueError("CUDA error: it is only said so"),
    ValueError("bad shape"),
    coded(ValueError("a recipe's own code"), 500),
    KeyError("timeout"),
    RuntimeError("size mismatch at 500"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
]


def wrapped(error: BaseException) -> RecipeError:
    """Return what becomes of an exception of the recipe's."""

    def raises() -> Any:
        raise error

    with pytest.raises(RecipeError) as caught:
        call_recipe("Net.datasets()", raises)
    return caught.value


def behind(outer: BaseException, error: BaseException) -> BaseException:
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(("error", "reason"), PASSES, ids=str)
def test_what_may_pass_is_found_at_the_root(error: Any, reason: str) -> None:
    """As it is raised, and where a recipe or raymlops has wrapped it."""
    assert passing(chain_of(error)) == reason
    assert passing(chain_of(wrapped(error))) == reason
    assert passing(chain_of(behind(StorageError("row group 7 cannot be read"), error))) == reason
    assert passing(chain_of(wrapped(behind(LookupError("the loader gave up"), error)))) == reason


@pytest.mark.parametrize("error", LASTS, ids=str)
def test_what_would_be_the_same_again_is_not(error: Any) -> None:
    """A wrong path, a missing right, a full disk, damaged bytes, a bug, whatever words are in it."""
    assert passing(chain_of(error)) == ""
    assert passing(chain_of(wrapped(error))) == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RecipeError("Net.loss() raised AcceleratorError: CUDA error: uncorrectable ECC error at x.py:3"),
            "ECC error",
        ),
        (RecipeError("Net.datasets() raised HTTPError: 503 Service Unavailable at x.py:3"), "HTTP 503"),
        (RecipeError("Net.datasets() raised HTTPError: HTTP Error 404: Not Found at x.py:3"), ""),
        (RecipeError("Net.datasets() raised HTTPStatusError: Server error '503 Service Unavailable'"), "Service Unav"),
        (
            RecipeError("Net.datasets() raised ConnectionResetError: [Errno 104] reset by peer at x.py:3"),
            "a connection",
        ),
        (RecipeError("Net.datasets() raised OSError: [Errno 5] Input/output error at x.py:3"), "EIO"),
        (RecipeError("Net.datasets() raised OSError: [Errno 28] No space left on device at x.py:3"), ""),
        (RecipeError("Net.loss() raised ValueError: bad shape at /home/timeout/CUDA error/recipe.py:3"), ""),
        (RecipeError("Net.loss() returned a vector"), ""),
        (StorageError("row group 7 of s3://b/x cannot be read: AWS Error SLOW_DOWN during GetObject"), "SLOW_DOWN"),
        (StorageError("'/data' cannot be used: [Errno 28] No space left on device"), ""),
        (StorageError("x.parquet changed since the run was prepared"), ""),
        (TrainingError("the checkpoint of step 5 failed: TypeError: not JSON serializable"), ""),
    ],
    ids=str,
)
def test_where_the_chain_is_lost_the_text_tells(error: RaymlopsError, reason: str) -> None:
    """An exception that travels keeps no cause; the place at the end of a message is no part of it."""
    assert passing(chain_of(error)).startswith(reason)
    assert bool(passing(chain_of(error))) == bool(reason)


def test_a_chain_ends() -> None:
    """Whoever made it a circle."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert passing(chain_of(first)) == ""


def test_a_link_is_what_travels() -> None:
    """Plain data: the exception itself may not survive pickling."""
    assert Link.of(PermissionError(13, "no")) == Link(("PermissionError", "OSError", "Exception"), "[Errno 13] no", 13)
    assert Link.of(answered(503)).status == 503

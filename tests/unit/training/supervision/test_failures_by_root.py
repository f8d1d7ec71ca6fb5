"""From what a rank raised to what is done about it, with the exceptions of the libraries that raise them.

Each as it is raised, and as it arrives: wrapped by recipe, raymlops and Ray, and pickled.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import errno
import importlib
import json
import pickle
import socket
import ssl
import warnings
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import httpx
import pyarrow as pa
import pytest
import ray.exceptions
import requests
import sqlalchemy.exc
import torch
import urllib3.exceptions
from mlflow.exceptions import MlflowException
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from yarl import URL

from raymlops.errors import RaymlopsError, RecipeError, StorageError, TrackingError
from raymlops.recipe import call_recipe
from raymlops.training.supervision.failure_policy import Decision, Raised, cause, decide

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for a package that nobody needs
    google: Any = importlib.import_module("google.api_core.exceptions")

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = httpx.Request("GET", "http://hub/data")


def response(status: int) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    return made


def aiohttp_answer(status: int) -> aiohttp.ClientResponseError:
    info = aiohttp.RequestInfo(URL("http://hub"), "GET", {}, URL("http://hub"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status, message="what")


def httpx_answer(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(f"'{status}' for url", request=REQUEST, response=httpx.Response(status))


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code}) when calling the GetObject operation: no")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class RpcError(grpc.RpcError):
    """As the one that a call raises."""

    def __str__(self) -> str:
        return '<_InactiveRpcError of RPC that terminated with: status = StatusCode.UNAVAILABLE, details = "no">'


def while_handling(first: BaseException, second: BaseException) -> BaseException:
    """Return an exception as one that was raised in an ``except`` without ``from``."""
    second.__context__ = first
    return second


def of(second: BaseException, first: BaseException) -> BaseException:
    second.__cause__ = first
    return second


WRONG_CERTIFICATE = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

ENVIRONMENT: list[BaseException] = [
    # a store
    OSError(
        "When reading information for key 'x': AWS Error SLOW_DOWN during GetObject: Please reduce your request rate"
    ),
    OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Couldn't resolve host name"),
    OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted in GetObjectMetadata)"),
    OSError("GetProperties failed. Azure Error: [ServerBusy] 503 The server is busy."),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    ClientError("SlowDown", 503),
    ClientError("ThrottlingException", 400),
    ClientError("RequestTimeout", 400),
    # HTTP
    requests.HTTPError("503", response=response(503)),
    requests.HTTPError("429", response=response(429)),
    requests.exceptions.ChunkedEncodingError("Connection broken: IncompleteRead(3 bytes read)"),
    while_handling(urllib3.exceptions.ProtocolError("Connection aborted."), RuntimeError("no data")),
    httpx_answer(502),
    httpx.ReadTimeout("slow", request=REQUEST),
    httpx.RemoteProtocolError("Server disconnected without sending a response.", request=REQUEST),
    aiohttp_answer(503),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("Response payload is not completed"),
    google.ServiceUnavailable("no"),
    RpcError(),
    # a network
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    socket.gaierror(-3, "Temporary failure in name resolution"),
    TimeoutError("timed out"),
    concurrent.futures.TimeoutError(),
    # a process or an actor that others depend on
    concurrent.futures.process.BrokenProcessPool("A process in the process pool was terminated abruptly"),
    RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
    ray.exceptions.ObjectLostError("ab", None, "cd"),  # type: ignore[no-untyped-call]
    # a database or MLflow
    sqlalchemy.exc.OperationalError("select 1", {}, Exception("server closed the connection unexpectedly")),
    while_handling(requests.ConnectionError("refused"), MlflowException("API request to http://hub failed")),
    # a GPU
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    torch.distributed.DistBackendError("NCCL error in: NCCLUtils.hpp:317, unhandled system error"),
]

HARDWARE: list[BaseException] = [
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable NVLink error detected during the execution"),
    RuntimeError("CUDA error: unspecified launch failure"),
    torch.distributed.DistBackendError("NCCL error: unhandled cuda error, CUDA error: uncorrectable ECC error"),
]

STOPS: list[BaseException] = [
    # the recipe's
    ValueError("503 rows, 429 columns: Service Unavailable"),
    ValueError("bad shape at /home/ncclteam/recipe.py:3"),
    KeyError("timeout"),
    json.JSONDecodeError("Expecting value", "<html>503</html>", 0),
    while_handling(KeyError("timeout"), ValueError("503")),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    # memory
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.distributed.DistBackendError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
    # what is asked of a store or a server is wrong
    FileNotFoundError(errno.ENOENT, "No such file or directory", "train.parquet"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    pa.ArrowInvalid("Parquet magic bytes not found in footer"),
    ClientError("NoSuchKey", 404),
    requests.HTTPError("404", response=response(404)),
    httpx_answer(401),
    aiohttp_answer(403),
    httpx.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol.", request=REQUEST),
    while_handling(WRONG_CERTIFICATE, requests.exceptions.SSLError(f"Max retries exceeded: {WRONG_CERTIFICATE}")),
    google.NotFound("no"),
    sqlalchemy.exc.OperationalError("select 1", {}, Exception("no such table: rows")),
]


def as_recipes(error: BaseException) -> BaseException:
    def raises() -> Any:
        raise error

    with pytest.raises(RecipeError) as caught:
        call_recipe("Net.loss()", raises)
    return caught.value


def as_storages(error: BaseException) -> BaseException:
    return of(StorageError("row group 7 of 's3://b/x.parquet' cannot be read"), error)


def by_ray(error: BaseException) -> BaseException:
    return ray.exceptions.RayTaskError("work", "Traceback ...", error)  # type: ignore[no-untyped-call]


def by_train(error: BaseException) -> BaseException:
    return UserExceptionWithTraceback(error, "Traceback ...")  # type: ignore[no-untyped-call]


def decided(error: BaseException) -> Decision:
    """Return what the driver does, to which a rank sends what it knows by pickle."""
    raised = pickle.loads(pickle.dumps(Raised.by(error)))
    return decide(
        cause({0: raised}, {}, nodes={0: "n"}, step=3),
        rules=[],
        max_restarts=3,
        restarts_without_progress=0,
        restart_ages_s=[],
        failed_nodes={"n"},
    )


WRAPPERS: list[Callable[[BaseException], BaseException]] = [
    as_recipes,
    as_storages,
    by_ray,
    by_train,
    lambda error: by_ray(as_recipes(error)),
    lambda error: as_recipes(of(LookupError("the loader gave up"), error)),
]


@pytest.mark.parametrize("error", ENVIRONMENT, ids=lambda error: f"{type(error).__name__}: {error}"[:60])
def test_the_environment_is_given_time(error: BaseException) -> None:
    """Wherever it surfaces: 5 s, then more, and no more than max_restarts times."""
    for raised in [error, *(wrap(error) for wrap in WRAPPERS)]:
        found = decided(raised)
        assert (found.action, found.delay_s) == ("retry", 5), raised
        assert found.reason.startswith("the environment failed, not the recipe; retrying in 5 s, restart 1 of 3")


@pytest.mark.parametrize("error", HARDWARE, ids=str)
def test_hardware_is_tried_elsewhere_when_it_fails_again(error: BaseException) -> None:
    """Here the node has failed before."""
    for raised in [error, *(wrap(error) for wrap in WRAPPERS)]:
        assert decided(raised).action == "exclude_node", raised


@pytest.mark.parametrize("error", STOPS, ids=lambda error: f"{type(error).__name__}: {error}"[:60])
def test_what_the_recipe_raises_is_not_tried_again(error: BaseException) -> None:
    """A bug, whatever words are in it; too little memory; a wrong path, address or permission."""
    assert decided(as_recipes(error)).action == "stop"
    assert decided(by_ray(as_recipes(error))).action == "stop"


@pytest.mark.parametrize(
    "error",
    [one for one in STOPS if isinstance(one, torch.AcceleratorError | torch.OutOfMemoryError)],
    ids=str,
)
def test_a_gpu_error_of_the_recipe_is_so_in_the_backward_pass_too(error: BaseException) -> None:
    """No method of the recipe is called there."""
    assert decided(error).action == "stop"


def test_memory_says_what_to_lower() -> None:
    """In the words of the configuration."""
    assert "lower train.batch_size" in decided(torch.OutOfMemoryError("CUDA out of memory. Tried")).reason


def test_mlflow_that_does_not_answer_a_rank_is_given_time() -> None:
    """``TrackingError`` and ``ClusterError`` say that a service does not answer, whatever is behind them."""
    assert decided(TrackingError("MLflow does not answer")).delay_s == 5


def test_an_own_error_is_delivered_as_it_is() -> None:
    """Not what was being handled when it was raised."""
    handled: RaymlopsError = StorageError("no")
    assert Raised.by(while_handling(handled, ValueError("bug"))).own is None

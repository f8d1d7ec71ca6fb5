"""The front of one model version: an ASGI application that parses, routes, asks the model and answers.

Owns the HTTP interface of a model: its routes, statuses, headers and JSON. Knows nothing of Ray or Serve (see
``apps``), so that its tests need neither. It never answers 5xx for what a client sent.

====================== =====================================================================
``POST /predict``      ``{"rows": [...]}`` to ``{"outputs": [...], "model_version", ...}``
``GET /``              version, digest, run and signature
``GET /openapi.json``  the interface with the model's real fields; ``GET /docs`` as a page
``GET /healthz``       the process lives; ``GET /readyz``: the model answered its own example
====================== =====================================================================
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from raymlops.errors import NonFiniteError
from raymlops.serving.asgi import HTML, JSON, make_reply, read_body, request_id_of, send_reply, wanted_headers
from raymlops.serving.batcher import Batcher
from raymlops.serving.openapi import docs_page, openapi_document
from raymlops.serving.reading import Limits, Refusal, parse_body
from raymlops.serving.render import route_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.serving.asgi import Receive, Reply, Scope, Send
    from raymlops.signature import Columns, Signature

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

LARGE_BODY_BYTES = 200_000
"""Bodies above this are parsed in a thread: 5,000 rows take tens of milliseconds, in which others would wait."""


class Model(Protocol):
    """What the front asks of a loaded bundle."""

    @property
    def signature(self) -> Signature:
        """Return what the model takes and gives."""

    @property
    def example(self) -> list[dict[str, Any]]:
        """Return rows that the model takes."""

    def predict(self, columns: Columns) -> Columns:
        """Return output columns for input columns."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which version answers."""

    name: str
    version: int
    digest: str
    run_id: str


class Front:
    """Answer the requests of one model version.

    Use from one event loop. ``warm_up`` must have returned before ``/readyz`` says ready.
    """

    def __init__(self, model: Model, *, identity: Identity, limits: Limits | None = None) -> None:
        self.identity = identity
        self.limits = limits or Limits()
        self.ready = False
        self._model = model
        self._batcher = Batcher(model.predict, max_rows=self.limits.max_batch_rows)
        self._version = str(identity.version)
        self._route = route_of(identity.name)
        self._example_answer: list[dict[str, Any]] = []
        self._headers = ((b"x-model-version", self._version.encode()),)

    def warm_up(self, *, rounds: int = 5) -> None:
        """Answer the bundle's own example a few times, which also measures the model.

        Raises:
            Exception: what the model raised, or rows that its own signature refuses.
        """
        for _ in range(rounds):
            columns = self._model.signature.parse_rows(self._model.example)
            outputs = self._batcher.measure(columns, rows=len(self._model.example))
            self._example_answer = orjson.loads(_encode(_rows(outputs)))
        self.ready = True

    def configure(self, limits: Limits) -> None:
        """Change the limits; requests in flight keep theirs."""
        self.limits = limits
        self._batcher.max_rows = limits.max_batch_rows

    @property
    def stuck(self) -> bool:
        """Return whether a batch has been running for more than twice a request's deadline."""
        return self._batcher.running_s > 2 * self.limits.timeout_s

    def close(self) -> None:
        """Let the worker thread end."""
        self._batcher.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        await send_reply(await self.reply(scope, receive), send)

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return the answer to one HTTP request; never raises for what a client or the model did."""
        headers = wanted_headers(scope)
        request_id = request_id_of(headers.get(b"x-request-id"))
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                body, kind = await self._answer(scope, receive, headers, request_id)
            return make_reply(200, body, request_id, kind=kind, extra=self._headers)
        except Refusal as refusal:
            return self._refuse(refusal, request_id)
        except TimeoutError:
            late = Refusal(504, "timeout", f"no answer within {self.limits.timeout_s:g} s")
            return self._refuse(late, request_id)
        except NonFiniteError as error:
            # The model answered its own example before it was ready: values this far out are what it was asked.
            far_out = Refusal(422, "not_finite", f"no finite answer to these rows: {error.message}")
            return self._refuse(far_out, request_id)
        except Exception as error:
            logger.exception("request %s: the model raised", request_id)
            failed = Refusal(500, "model_error", f"the model raised {type(error).__name__}; the replica's log has it")
            return self._refuse(failed, request_id)

    async def _answer(
        self, scope: Scope, receive: Receive, headers: Mapping[bytes, bytes], request_id: str
    ) -> tuple[bytes, bytes]:
        # Serve says where the route is mounted, but not to a replica that has just lost it: behind HAProxy requests go
        # on arriving there for a moment, and are answered.
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root).removeprefix(self._route).strip("/")
        prefix = root if root.endswith(self._route) else root + self._route
        if path == "predict":
            _allow(scope, "POST")
            body = await read_body(scope, receive, headers, limit=self.limits.max_body_bytes)
            return await self._predict(body, request_id), JSON
        page = {
            "": self._describe,
            "openapi.json": self._openapi,
            "docs": self._docs,
            "healthz": self._healthz,
            "readyz": self._readyz,
        }.get(path)
        if page is None:
            raise Refusal(404, "not_found", f"no route {scope['path'][:200]!r}; POST predict, GET docs or openapi.json")
        _allow(scope, "GET")
        return page(prefix), HTML if path == "docs" else JSON

    async def _predict(self, body: bytes, request_id: str) -> bytes:
        signature, max_rows = self._model.signature, self.limits.max_rows
        if len(body) > LARGE_BODY_BYTES:
            columns, rows = await asyncio.to_thread(parse_body, body, signature, max_rows=max_rows)
        else:
            columns, rows = parse_body(body, signature, max_rows=max_rows)
        outputs = await self._batcher.submit(columns, rows=rows)
        return _encode(
            {
                "outputs": _rows(outputs),
                "model": self.identity.name,
                "model_version": self._version,
                "request_id": request_id,
            }
        )

    def _describe(self, prefix: str) -> bytes:
        return _encode(
            {
                "model": self.identity.name,
                "model_version": self._version,
                "digest": self.identity.digest,
                "run_id": self.identity.run_id,
                "signature": self._model.signature.to_dict(),
                "limits": {
                    "max_rows": self.limits.max_rows,
                    "max_body_bytes": self.limits.max_body_bytes,
                    "timeout_s": self.limits.timeout_s,
                },
                "links": {page: f"{prefix}/{page}" for page in ("predict", "docs", "openapi.json")},
            }
        )

    def _document(self, prefix: str) -> dict[str, Any]:
        return openapi_document(
            self._model.signature,
            identity=asdict(self.identity),
            prefix=prefix,
            example=self._model.example,
            answer=self._example_answer,
            max_rows=self.limits.max_rows,
        )

    def _openapi(self, prefix: str) -> bytes:
        return _encode(self._document(prefix))

    def _docs(self, prefix: str) -> bytes:
        return docs_page(self._document(prefix), self._model.signature).encode()

    def _healthz(self, _prefix: str) -> bytes:
        return b'{"status":"alive"}'

    def _readyz(self, _prefix: str) -> bytes:
        if not self.ready or self.stuck:
            raise Refusal(503, "not_ready", "the model is stuck" if self.ready else "the model is not loaded yet")
        return b'{"status":"ready"}'

    def _refuse(self, refusal: Refusal, request_id: str) -> Reply:
        error: dict[str, Any] = {
            "code": refusal.code,
            "message": refusal.message,
            "problems": [asdict(problem) for problem in refusal.problems],
        }
        allow = ((b"allow", refusal.allow.encode()),) if refusal.allow else ()
        body = _encode({"error": error, "request_id": request_id})
        return make_reply(refusal.status, body, request_id, extra=(*self._headers, *allow))


def _allow(scope: Scope, method: str) -> None:
    if scope["method"] == method or (method == "GET" and scope["method"] == "HEAD"):
        return
    raise Refusal(405, "method_not_allowed", f"got {scope['method'][:20]}; expected {method}", allow=method)


def _rows(outputs: Columns) -> list[dict[str, Any]]:
    """Return rows that orjson can write: it writes NaN as null and arrays as lists."""
    names = list(outputs)
    lists = [array.tolist() for array in outputs.values()]
    if len(names) == 1:
        return [{names[0]: value} for value in lists[0]]
    return [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]


def _encode(data: Any) -> bytes:
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

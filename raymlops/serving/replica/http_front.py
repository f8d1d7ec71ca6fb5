"""HTTP front of one model version: routes, statuses, headers and pages.

Owns the HTTP interface of a model, and the bodies of ``POST /feedback``, which is answered once the labels are durable.
Knows nothing of Ray or Serve (see ``apps``), so that its tests need neither; ``handler`` handles the requests. It never
answers 5xx for a client's mistake.

================================== ==========================================================
``POST /predict``                  native: ``{"rows": [...]}`` to ``{"outputs": [...], ...}``
``POST /invocations``, ``/ping``   MLflow's scoring protocol
``/v2/...``                        Open Inference Protocol: metadata, health, ``POST .../infer``
``POST /feedback``                 labels of earlier requests, by request id
``GET /``                          version, digest, run and signature
``GET /openapi.json``, ``/docs``   the interface with the model's real fields; as a page
``GET /healthz``, ``/readyz``      the process is alive; the model answered its own example
================================== ==========================================================
"""

from __future__ import annotations

import functools
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from raymlops.errors import StorageError
from raymlops.predictions.label_type import LabelType
from raymlops.predictions.labels import parse_feedback
from raymlops.serving.arrival import ARRIVED, Ages, refuse_late
from raymlops.serving.asgi import BODY, HTML, JSON, PRIVATE, BodyReader, make_reply, send_reply
from raymlops.serving.docs.openapi import openapi_document
from raymlops.serving.docs.page import docs_page, key_page, page_headers
from raymlops.serving.json_scan import MAX_LABEL_VALUES
from raymlops.serving.names import route_of
from raymlops.serving.protocols import native, oip
from raymlops.serving.protocols.base import Encoded
from raymlops.serving.protocols.json_body import read_json
from raymlops.serving.protocols.mlflow import PROTOCOL as MLFLOW
from raymlops.serving.refusal import INTERNAL, Refusal, error_body, refusal_headers
from raymlops.serving.replica.storing import Storing
from raymlops.serving.replica.warm_up import warm_up
from raymlops.serving.request import request_id_of
from raymlops.serving.same_origin import refuse_web_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column
    from raymlops.predictions.labels import Label
    from raymlops.serving.asgi import Receive, Reply, Scope, Send
    from raymlops.serving.auth import Caller
    from raymlops.serving.protocols.base import Protocol as Form
    from raymlops.serving.replica.handler import RequestHandler
    from raymlops.serving.replica.warm_up import WarmUp
    from raymlops.serving.request import Exchange


class Labels(Protocol):
    """The storage of labels."""

    def add(self, labels: Sequence[Label], *, key_id: str | None = None, caller: str | None = None) -> Future[None]:
        """Store labels of a caller's requests, or of anybody's; the future is done once they are durable."""


def _parsed(body: bytes, kind: LabelType) -> list[Label]:
    data = read_json(body, expected='{"labels": [{...}]}', max_values=MAX_LABEL_VALUES)
    return parse_feedback(data, kind=kind)


SMALL_LABELS_BYTES = 4_000
"""A body of labels this small is parsed faster than it is handed to a thread."""

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log


class Front:
    """Answer the HTTP requests of one model version.

    Use from one event loop. ``warm_up`` must have returned before ``/readyz`` says ready.
    """

    def __init__(self, handler: RequestHandler, *, labels: Labels | None = None) -> None:
        self.handler = handler
        self.labels = labels
        self.label_type = LabelType()
        self.storing = Storing()
        self.ages = Ages()
        self._bodies = BodyReader()
        self.ready = False
        identity = handler.identity
        self._name = identity.name
        self._version = str(identity.version)
        self._route = route_of(identity.name)
        self._example_answer: list[dict[str, Any]] = []
        self._warm_up: WarmUp | None = None
        self._posts: dict[str, Form] = {
            "predict": native.PROTOCOL,
            "invocations": MLFLOW,
            f"v2/models/{self._name}/infer": oip.PROTOCOL,
        }
        self._model = model = f"v2/models/{self._name}"
        self._versioned = f"{model}/versions/"
        self._pages: dict[str, Callable[[str], Encoded]] = {
            "": self._describe,
            "openapi.json": lambda prefix: _json(self._document(prefix)),
            "docs": self._docs,
            "v2": lambda _prefix: _json(oip.server_metadata()),
        }
        self._health = {  # without a key; whether the model has to be ready
            "healthz": (False, {"status": "alive"}),
            "readyz": (True, {"status": "ready"}),
            "ping": (True, {"status": "ready"}),
            "v2/health/live": (False, oip.server_live()),
            "v2/health/ready": (True, oip.server_ready()),
        }

    def warm_up(self) -> None:
        """Predict the bundle's own example, and batches of its rows of the sizes that requests form.

        Raises:
            InsufficientResourcesError: a batch does not fit into the replica's memory.
            Exception: the model raised, or its signature refuses its own example.
        """
        model, settings = self.handler.model, self.handler.settings
        columns = model.signature.parse_rows(model.example)
        outputs, self._warm_up = warm_up(
            self.handler.batcher, columns, timeout_s=settings.limits.timeout_s, memory_bytes=settings.memory_bytes
        )
        rows = native.output_rows(outputs, model.signature)
        self._example_answer = orjson.loads(orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY))
        self.ready = True

    def expect_labels(self, loss: AnswerLoss | None, column: Column | None) -> None:
        """Accept labels of the recipe's ``label_type``, or else those that the example's answer can be compared with.

        Call after ``warm_up``.
        """
        self.label_type = LabelType(column, loss, self.handler.model.signature.outputs, self._example_answer[0])

    @property
    def stuck(self) -> bool:
        """Return whether a batch has been running for more than twice a request's deadline."""
        return self.handler.batcher.running_s > 2 * self.handler.settings.limits.timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application.

        Raises:
            ValueError: it is not an HTTP request, such as the server's lifespan events.
        """
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await send_reply(await self.reply(scope, receive), send)

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return the response to one HTTP request; never raises for a client's or the model's error."""
        try:
            reply = await self._handle(scope, receive)
        except Exception:
            request_id = request_id_of(None)
            logger.exception("request %s: the front itself raised", request_id)
            reply = make_reply(500, error_body(INTERNAL, request_id, path=self._path(scope)), request_id)
        return replace(reply, body=b"") if scope["method"] == "HEAD" else reply

    async def _handle(self, scope: Scope, receive: Receive) -> Reply:
        handler = self.handler
        exchange = handler.begin(scope["headers"])
        left_s = handler.settings.limits.timeout_s - self.ages.age_s(scope.get(ARRIVED))
        work = self._dispatch(scope, receive, exchange, late=left_s <= 0)
        handled = await handler.handle(exchange, work, left_s=left_s)
        extra: tuple[tuple[bytes, bytes], ...] = ()
        if isinstance(handled, Refusal):
            status, encoded, extra = handled.status, self._refused(handled, scope, exchange), refusal_headers(handled)
        else:
            status, encoded = handled
        if status != 401:  # whoever has no key learns nothing of the model
            extra = (*extra, (b"x-model-version", str(exchange.version).encode()))
        extra = (*extra, *encoded.headers)
        return make_reply(status, encoded.body, exchange.request_id, kind=encoded.kind, extra=extra)

    def _path(self, scope: Scope) -> str:
        """Return the path below the model's route, with a slash before it."""
        # Serve passes the route's prefix, but not to a replica that has just lost the route: behind HAProxy requests
        # still arrive there for a moment, and are answered.
        path: str = scope["path"]
        return "/" + path.removeprefix(scope.get("root_path", "")).removeprefix(self._route).strip("/")

    def _refused(self, refusal: Refusal, scope: Scope, exchange: Exchange) -> Encoded:
        path = self._path(scope)
        if refusal.status == 401 and path == "/docs" and b"text/html" in exchange.headers.get(b"accept", b""):
            return Encoded(key_page().encode(), HTML, page_headers())  # a browser cannot send a key by itself
        return Encoded(error_body(refusal, exchange.request_id, path=path))

    async def _dispatch(self, scope: Scope, receive: Receive, exchange: Exchange, *, late: bool) -> tuple[int, Encoded]:
        handler = self.handler
        path, version = self._path(scope).removeprefix("/"), None
        if path.startswith(self._versioned):
            version, slash, rest = path.removeprefix(self._versioned).partition("/")
            path = self._model + slash + rest
        limit = handler.settings.limits.max_body_bytes
        form = self._posts.get(path)
        if form is not None:
            exchange.protocol, exchange.named = form.name, version
            _allow(scope, "POST")
            refuse_late(late)
            caller = self._admit(scope, exchange)  # before the body is read from the process that accepted it
            handler.expect(exchange, caller)
            body = await self._read(scope, receive, exchange, limit=limit)
            return 200, await handler.predict(exchange, form, body, caller=caller)
        if path == "feedback":
            exchange.protocol = "feedback"
            _allow(scope, "POST")
            refuse_late(late)
            self._admit(scope, exchange, right="feedback")
            self.storing.require_room(self._most_storing)
            body = await self._read(scope, receive, exchange, limit=limit)
            return 202, _json(await self._store_labels(body, exchange))
        page, health = self._pages.get(path), self._health.get(path)
        if page is None and health is None and path not in {self._model, f"{self._model}/ready"}:
            raise self._unknown(scope["path"])
        _allow(scope, "GET")
        if health is not None:
            needs_model, answer = health
            if needs_model:
                self._require_ready()
            return 200, _json(answer)
        if path == f"{self._model}/ready":
            try:
                live = handler.routing.named(version)
            except Refusal:  # which lists the live versions
                self._admit(scope, exchange)
                raise
            # Another version is live because it came up and is desired. Serve checks the health of its replicas.
            if live == handler.identity.version:
                self._require_ready()
            return 200, _json(oip.model_ready(self._name))
        self._admit(scope, exchange)
        if page is None:
            return 200, _json(await handler.metadata(handler.routing.named(version), exchange.headers))
        root = scope.get("root_path", "")
        return 200, page(root if root.endswith(self._route) else root + self._route)

    async def _store_labels(self, body: bytes, exchange: Exchange) -> dict[str, Any]:
        """Store the labels of a request and return its answer; more than a few are parsed outside the event loop.

        Raises:
            InvalidRowsError: they are not of the model's ``label_type``, or of another caller's requests.
            Refusal: they cannot be read, this endpoint stores none, or its storage fails or hangs.
        """
        handler, labels, kind = self.handler, self.labels, self.label_type
        exchange.body_bytes = len(body)
        small = len(body) <= SMALL_LABELS_BYTES
        found = _parsed(body, kind) if small else await handler.parsing.run(_parsed, body, kind)
        if labels is None:
            raise Refusal(409, "no_log", "this endpoint keeps no prediction log, so labels cannot be stored")
        unmatched = handler.answered.check(found, caller=exchange.labels_of)
        exchange.rows = len(found)
        store = functools.partial(labels.add, found, key_id=exchange.key_id, caller=exchange.labels_of)
        try:
            stored = store() if small else await handler.parsing.run(store)
            exchange.end_turn()
            await self.storing.wait(stored, most=self._most_storing)
        except StorageError as error:
            logger.warning("request %s: the labels were not stored: %s", exchange.request_id, error.message)
            message = "the labels were not stored; send them again, the replica's log has the reason"
            raise Refusal(503, "storage_unavailable", message, retry_after_s=5) from error
        return {"accepted": exchange.rows, "unmatched": unmatched, "request_id": exchange.request_id}

    @property
    def _most_storing(self) -> int:
        """Return how many requests may wait for a storage that hangs: a quarter of the replica's slots."""
        return max(1, self.handler.settings.limits.max_ongoing_requests // 4)

    async def _read(self, scope: Scope, receive: Receive, exchange: Exchange, *, limit: int) -> bytes:
        """Return the body of a request that has its turn: a large one before it is fetched from who accepted it."""
        guarded = BODY not in scope and ARRIVED in scope
        if guarded:
            await self.handler.take_turn(exchange, large=True)
        body = await self._bodies.read(scope, receive, exchange.headers, limit=limit)
        if not guarded:
            await self.handler.take_turn(exchange, large=self.handler.is_large(body))
        return body

    def _admit(self, scope: Scope, exchange: Exchange, *, right: str = "predict") -> Caller:
        hosts = self.handler.settings.access.hosts
        if hosts is not None:
            refuse_web_pages(exchange.headers, hosts=hosts, method=scope["method"])
        return self.handler.admit(exchange, scope=right)

    def _unknown(self, path: str) -> Refusal:
        there = (
            f"POST predict, invocations, feedback and {self._model}/infer; GET docs, openapi.json, v2, {self._model}, "
            "ping, readyz and healthz"
        )
        return Refusal(404, "not_found", f"no route {path[:200]!r}; routes: {there}")

    def _describe(self, prefix: str) -> Encoded:
        limits = self.handler.settings.limits
        identity = self.handler.identity
        return _json(
            {
                "model": identity.name,
                "model_version": self._version,
                "digest": identity.digest,
                "run_id": identity.run_id,
                "signature": self.handler.model.signature.to_dict(),
                "limits": {key: getattr(limits, key) for key in ("max_rows", "max_body_bytes", "timeout_s")},
                "warm_up": self._warm_up and self._warm_up.to_dict(),
                "links": {page: f"{prefix}/{page}" for page in ("predict", "docs", "openapi.json", "v2")},
            }
        )

    def _document(self, prefix: str) -> dict[str, Any]:
        return openapi_document(
            self.handler.model.signature,
            identity=asdict(self.handler.identity),
            prefix=prefix,
            example=self.handler.model.example,
            answer=self._example_answer,
            max_rows=self.handler.settings.limits.max_rows,
            label_schema=self.label_type.schema(),
            label=self.label_type.example,
            key_required=self.handler.settings.access.required,
        )

    def _docs(self, prefix: str) -> Encoded:
        page = docs_page(self._document(prefix), self.handler.model.signature)
        return Encoded(page.encode(), HTML, page_headers())

    def _require_ready(self) -> None:
        if not self.ready or self.stuck:
            why = "the model is stuck" if self.ready else "the model is not loaded yet"
            raise Refusal(503, "not_ready", why, retry_after_s=1.0)


def _allow(scope: Scope, method: str) -> None:
    allowed = ("GET", "HEAD") if method == "GET" else (method,)
    if scope["method"] not in allowed:
        message = f"got {scope['method'][:20]}; expected {method}"
        raise Refusal(405, "method_not_allowed", message, allow=", ".join(allowed))


def _json(data: Any) -> Encoded:
    return Encoded(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY), JSON, PRIVATE)

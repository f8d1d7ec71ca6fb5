"""Pages of the application at ``/``: the list of models with links, and the host-level ``/v2`` routes.

Owns these routes. Knows nothing of models beyond the list in its settings, nor of Serve; ``gateway`` forwards what is
for a model. A model that requires a key is listed only to callers with a key for it.

================================== ==========================================================
``GET /``, ``/models``             the models with links (a page for a browser at ``/``)
``GET /healthz``                   the process is alive
``GET /v2``, ``/v2/health/...``    the Open Inference Protocol's server metadata and health
``GET /v2/models``                 the names of the models
``/v2/models/NAME...``             forwarded to the model NAME, at the cost of a second hop
================================== ==========================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.asgi import HTML, PRIVATE, make_reply
from raymlops.serving.auth import NOBODYS, Access, Guard, secret_of
from raymlops.serving.docs.page import models_page, page_headers
from raymlops.serving.protocols import oip
from raymlops.serving.refusal import Refusal
from raymlops.serving.request import headers_of, request_id_of
from raymlops.serving.same_origin import has_other_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from raymlops.serving.asgi import Reply, Scope

_MODELS = "/v2/models/"
_ROUTES = "/models/"
_SHOWN = ("name", "version", "digest", "path")


class Index:
    """The models of a host, and its own pages."""

    def __init__(self) -> None:
        self._models: tuple[tuple[dict[str, Any], Guard, Access], ...] = ()

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Apply the list of champions: ``name``, ``version``, ``digest``, ``path``, and ``access`` unless it is open.

        May be called from any thread while requests are answered.
        """
        accesses = [Access.from_dict(model.get("access", {})) for model in models]
        self._models = tuple(
            ({key: model[key] for key in _SHOWN}, Guard(access), access)
            for model, access in zip(models, accesses, strict=True)
        )

    def guard(self, name: str) -> Guard | None:
        """Return the guard of a model, None if there is no such model."""
        return next((guard for model, guard, _ in self._models if model["name"] == name), None)

    def guards(self) -> Iterator[Guard]:
        """Return the guards of all models."""
        return (guard for _, guard, _ in self._models)

    @property
    def requires_key(self) -> bool:
        """Return whether all models require a key."""
        return bool(self._models) and all(access.required for *_, access in self._models)

    def visible(self, headers: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
        """Return the models that a caller may see: the open ones, at their own hosts alone, and those of its key."""
        secret = secret_of(headers)
        return [
            model
            for model, guard, access in self._models
            if _knows(guard, secret) and (access.hosts is None or not has_other_host(headers, hosts=access.hosts))
        ]

    def unknown_model(self, name: str, headers: Mapping[bytes, bytes]) -> Refusal:
        """Return the refusal of an unknown model: the same as of one that is hidden from the caller, where one is."""
        secret = secret_of(headers)
        if any(access.required and not _knows(guard, secret) for _, guard, access in self._models):
            try:
                NOBODYS.identify(secret)
            except Refusal as hidden:
                return hidden
        return Refusal(404, "not_found", f"no model {name[:80]!r}; models: {_known(self.visible(headers))}")

    def reply(self, scope: Scope) -> Reply:
        """Return the response to one host-level HTTP request.

        Raises:
            Refusal: 404 for another path, 405 for another method, 503 for a model's route while no version has it.
        """
        path = path_of(scope)
        headers = headers_of(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id"))
        models = self.visible(headers)
        pages: dict[str, Callable[[], dict[str, Any]]] = {
            "": lambda: {"models": described(models)},
            "/models": lambda: {"models": described(models)},
            "/healthz": lambda: {"status": "alive"},
            "/v2": oip.server_metadata,
            "/v2/health/live": oip.server_live,
            "/v2/health/ready": oip.server_ready,
            "/v2/models": lambda: {"models": [model["name"] for model in models]},
        }
        page = pages.get(path)
        if page is None:
            below = path.removeprefix(_ROUTES).partition("/")[0] if path.startswith(_ROUTES) else None
            if below is not None:
                if (guard := self.guard(below)) is None:
                    raise self.unknown_model(below, headers)
                guard.identify(secret_of(headers))
                # Serve's proxies compare bytes: an equal path in other bytes never reaches a model.
                if (scope.get("raw_path", b"") + b"/").startswith(f"{_ROUTES}{below}/".encode()):
                    raise model_away(below)
            raise Refusal(404, "not_found", f"no route {scope['path'][:200]!r}; models: {_known(models)}")
        if scope["method"] not in {"GET", "HEAD"}:
            message = f"got {scope['method'][:20]}; expected GET"
            raise Refusal(405, "method_not_allowed", message, allow="GET, HEAD")
        if path == "" and b"text/html" in headers.get(b"accept", b""):
            html = models_page(models, hidden=len(models) < len(self._models))
            return make_reply(200, html.encode(), request_id, kind=HTML, extra=page_headers())
        return make_reply(200, orjson.dumps(page()), request_id, extra=PRIVATE)


def model_of(path: str) -> str | None:
    """Return the model that a request at this path is for, None for a page of the host."""
    return path.removeprefix(_MODELS).partition("/")[0] if path.startswith(_MODELS) else None


def model_away(name: str) -> Refusal:
    """Return the refusal of requests for a model while no version has its route."""
    message = f"no version of {name} answers now, as while one replaces another"
    return Refusal(503, "not_ready", message, retry_after_s=5.0)


def described(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the models, each with its links."""
    pages = ("predict", "docs", "openapi.json", "v2")
    return [{**model, "links": {page: f"{model['path']}/{page}" for page in pages}} for model in models]


def path_of(scope: Scope) -> str:
    """Return the path of a request below the route of this application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


def _known(models: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(model["path"] for model in models) or "none"


def _knows(guard: Guard, secret: str | None) -> bool:
    try:
        guard.identify(secret)
    except Refusal:
        return False
    return True

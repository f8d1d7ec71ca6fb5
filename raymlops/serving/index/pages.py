"""Pages of the application at ``/``: the list of models with links, and the host-level ``/v2`` routes.

Owns these routes. Knows nothing of models beyond the list in its settings, nor of Serve: the function that forwards a
request to a model is an argument. A model that requires a key is listed only to callers with a key for it.

================================== ==========================================================
``GET /``, ``/models``             the models with links (a page for a browser at ``/``)
``GET /healthz``                   the process is alive
``GET /v2``, ``/v2/health/...``    the Open Inference Protocol's server metadata and health
``GET /v2/models``                 the names of the models
``/v2/models/NAME...``             forwarded to the model NAME, at the cost of a second hop
================================== ==========================================================
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.asgi import HTML, header_map, make_reply, request_id_of, send_reply
from raymlops.serving.auth import Access, Guard, secret_of
from raymlops.serving.protocols import oip
from raymlops.serving.refusal import INTERNAL, Refusal, error_body, refusal_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from raymlops.serving.asgi import Receive, Reply, Scope, Send

    Forward = Callable[["Target", Scope, Receive], Awaitable[Reply]]

logger = logging.getLogger("ray.serve.raymlops")  # below Serve's logger, so that it reaches the replica's log

_MODELS = "/v2/models/"
_SHOWN = ("name", "version", "digest", "path")
_KEYS = (b"authorization", b"x-api-key")


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a host-level request is for, and the path at its own front."""

    name: str
    root_path: str
    path: str

    @property
    def is_readiness(self) -> bool:
        """Return whether the path is a readiness check of the model or of a version, which needs no key."""
        what = self.path.removeprefix(f"{self.root_path}{_MODELS}{self.name}/")
        parts = what.split("/")
        return parts == ["ready"] or (len(parts) == 3 and parts[0] == "versions" and parts[2] == "ready")

    def scope(self, scope: Scope) -> dict[str, Any]:
        """Return the scope of the request for the model's front."""
        return {**scope, "path": self.path, "raw_path": self.path.encode(), "root_path": self.root_path}


class Index:
    """Answer host-level requests, and forward those for one model.

    ``forward(target, scope, receive)`` returns the model's answer to ``target.scope(scope)``; it may raise ``Refusal``.
    """

    def __init__(self, forward: Forward | None = None) -> None:
        self._models: tuple[tuple[dict[str, Any], Guard], ...] = ()
        self._forward = forward

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Apply the list of champions: ``name``, ``version``, ``digest``, ``path``, and ``access`` unless it is open.

        May be called from any thread while requests are answered.
        """
        self._models = tuple(
            ({key: model[key] for key in _SHOWN}, Guard(Access.from_dict(model.get("access", {})))) for model in models
        )

    def guard(self, name: str) -> Guard | None:
        """Return the guard of a model, None if there is no such model."""
        return next((guard for model, guard in self._models if model["name"] == name), None)

    def visible(self, headers: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
        """Return the models that a caller may see: the open ones, and those of its key."""
        secret = secret_of(headers)
        return [model for model, guard in self._models if _knows(guard, secret)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as an ASGI application."""
        await send_reply(await self.answer(scope, receive), send)

    async def answer(self, scope: Scope, receive: Receive) -> Reply:
        """Return the response to one HTTP request, from the model if it is for one."""
        try:
            target = None if self._forward is None else self._target(scope)
            if target is not None and self._forward is not None:
                reply = await self._forward(target, scope, receive)
            else:
                reply = self.reply(scope)
        except Refusal as refusal:
            reply = _refused(refusal, scope)
        except Exception:
            logger.exception("request %s: the index itself raised", _request_id(scope))
            reply = _refused(INTERNAL, scope)
        return replace(reply, body=b"") if scope["method"] == "HEAD" else reply

    def reply(self, scope: Scope) -> Reply:
        """Return the response to one host-level HTTP request."""
        request_id = _request_id(scope)
        path = _path(scope)
        models = self.visible(header_map(scope, _KEYS))
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
            message = f"no route {scope['path'][:200]!r}; models: {_known(models)}"
            return _refused(Refusal(404, "not_found", message), scope)
        if scope["method"] not in {"GET", "HEAD"}:
            message = f"got {scope['method'][:20]}; expected GET"
            return _refused(Refusal(405, "method_not_allowed", message, allow="GET, HEAD"), scope)
        if path == "" and any(b"text/html" in value for name, value in scope["headers"] if name == b"accept"):
            page_text = page_of(models, hidden=len(models) < len(self._models))
            return make_reply(200, page_text.encode(), request_id, kind=HTML)
        return make_reply(200, orjson.dumps(page()), request_id)

    def _target(self, scope: Scope) -> Target | None:
        path = _path(scope)
        target = target_of(path, [model for model, _ in self._models])
        if target is None and path.startswith(_MODELS):
            name = path.removeprefix(_MODELS).partition("/")[0]
            raise unknown_model(name, self.visible(header_map(scope, _KEYS)))
        return target


def target_of(path: str, models: Sequence[Mapping[str, Any]]) -> Target | None:
    """Return the model of a path below ``/v2/models/``, None for another path."""
    if not path.startswith(_MODELS):
        return None
    name = path.removeprefix(_MODELS).partition("/")[0]
    for model in models:
        if model["name"] == name:
            return Target(name, model["path"], model["path"] + path)
    return None


def unknown_model(name: str, visible: Sequence[Mapping[str, Any]]) -> Refusal:
    """Return the refusal of an unknown model, with those that the caller may see."""
    return Refusal(404, "not_found", f"no model {name[:80]!r}; models: {_known(visible)}")


def described(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the models, each with its links."""
    pages = ("predict", "docs", "openapi.json", "v2")
    return [{**model, "links": {page: f"{model['path']}/{page}" for page in pages}} for model in models]


def page_of(models: Sequence[Mapping[str, Any]], *, hidden: bool = False) -> str:
    """Return the list of models as a page; ``hidden``: there are others, which need a key."""
    note = "<p>Models that require an API key are listed to callers with one.</p>" if hidden else ""
    rows = "".join(
        f'<tr><td><a href="{escape(model["path"])}/docs">{escape(model["name"])}</a></td>'
        f"<td>{model['version']}</td><td><code>{escape(model['digest'][:12])}</code></td></tr>"
        for model in models
    )
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Models</title></head>
<body style="font: 15px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto">
<h1>Models</h1><table cellpadding="6"><tr><th>Name</th><th>Version</th><th>Bundle</th></tr>{rows}</table>{note}
</body></html>
"""


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


def _request_id(scope: Scope) -> str:
    return request_id_of(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))


def _known(models: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(model["path"] for model in models) or "none"


def _knows(guard: Guard, secret: str | None) -> bool:
    try:
        guard.identify(secret)
    except Refusal:
        return False
    return True


def _refused(refusal: Refusal, scope: Scope) -> Reply:
    request_id = _request_id(scope)
    return make_reply(
        refusal.status, error_body(refusal, request_id, path=_path(scope)), request_id, extra=refusal_headers(refusal)
    )

"""What is at ``/``: the list of models with links, and the liveness of the host.

Owns three routes. Knows nothing of models beyond the list it was given, nor of Serve.
"""

from __future__ import annotations

import uuid
from html import escape
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.front import HTML, JSON, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.serving.front import Receive, Scope, Send


class Index:
    """Answer ``GET /`` (JSON, or a page for a browser), ``/models`` and ``/healthz``; all else is 404."""

    def __init__(self) -> None:
        self._models: list[dict[str, Any]] = []

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Take the list of champions: ``name``, ``version``, ``digest``, ``path``."""
        self._models = [dict(model) for model in models]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Serve one request as an ASGI application."""
        reply = self.reply(scope)
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
        await send({"type": "http.response.body", "body": reply.body})

    def reply(self, scope: Scope) -> Reply:
        """Return the answer to one HTTP request."""
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        if path not in {"", "/models", "/healthz"}:
            known = ", ".join(model["path"] for model in self._models) or "none"
            message = f"no route {scope['path'][:200]!r}; models: {known}"
            return _json(404, {"error": {"code": "not_found", "message": message, "problems": []}})
        if scope["method"] not in {"GET", "HEAD"}:
            message = f"got {scope['method'][:20]}; expected GET"
            error = {"error": {"code": "method_not_allowed", "message": message, "problems": []}}
            return _json(405, error, extra=((b"allow", b"GET"),))
        if path == "/healthz":
            return _json(200, {"status": "alive"})
        if path == "" and any(b"text/html" in value for name, value in scope["headers"] if name == b"accept"):
            return _finish(200, self._page().encode(), HTML)
        return _json(200, {"models": [{**model, "links": _links(model)} for model in self._models]})

    def _page(self) -> str:
        rows = "".join(
            f'<tr><td><a href="{escape(model["path"])}/docs">{escape(model["name"])}</a></td>'
            f"<td>{model['version']}</td><td><code>{escape(model['digest'][:12])}</code></td></tr>"
            for model in self._models
        )
        return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Models</title></head>
<body style="font: 15px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto">
<h1>Models</h1><table cellpadding="6"><tr><th>Name</th><th>Version</th><th>Bundle</th></tr>{rows}</table></body></html>
"""


def _links(model: Mapping[str, Any]) -> dict[str, str]:
    return {page: f"{model['path']}/{page}" for page in ("predict", "docs", "openapi.json")}


def _json(status: int, data: Mapping[str, Any], *, extra: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return _finish(status, orjson.dumps(data), JSON, extra=extra)


def _finish(status: int, body: bytes, kind: bytes, *, extra: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    headers = ((b"content-type", kind), (b"content-length", str(len(body)).encode()), *extra)
    return Reply(status, body, str(uuid.uuid4()), headers)

"""What is at ``/``: the list of models with links, and the liveness of the host.

Owns three routes. Knows nothing of models beyond the list it was given, nor of Serve.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.asgi import HTML, make_reply, request_id_of, send_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.serving.asgi import Receive, Reply, Scope, Send


class Index:
    """Answer ``GET /`` (JSON, or a page for a browser), ``/models`` and ``/healthz``; all else is 404."""

    def __init__(self) -> None:
        self._models: list[dict[str, Any]] = []

    def configure(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Take the list of champions: ``name``, ``version``, ``digest``, ``path``."""
        self._models = [dict(model) for model in models]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Serve one request as an ASGI application."""
        await send_reply(self.reply(scope), send)

    def reply(self, scope: Scope) -> Reply:
        """Return the answer to one HTTP request."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = request_id_of(given)
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        if path not in {"", "/models", "/healthz"}:
            known = ", ".join(model["path"] for model in self._models) or "none"
            message = f"no route {scope['path'][:200]!r}; models: {known}"
            return _refuse(404, "not_found", message, request_id)
        if scope["method"] not in {"GET", "HEAD"}:
            message = f"got {scope['method'][:20]}; expected GET"
            return _refuse(405, "method_not_allowed", message, request_id, extra=((b"allow", b"GET"),))
        if path == "/healthz":
            return make_reply(200, orjson.dumps({"status": "alive"}), request_id)
        if path == "" and any(b"text/html" in value for name, value in scope["headers"] if name == b"accept"):
            return make_reply(200, self._page().encode(), request_id, kind=HTML)
        models = [{**model, "links": _links(model)} for model in self._models]
        return make_reply(200, orjson.dumps({"models": models}), request_id)

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


def _refuse(
    status: int, code: str, message: str, request_id: str, *, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> Reply:
    body = {"error": {"code": code, "message": message, "problems": []}, "request_id": request_id}
    return make_reply(status, orjson.dumps(body), request_id, extra=extra)

"""HTML pages: a model's OpenAPI document with a form that sends its example, and the list of models.

Owns the values of the pages; ``*.html.jinja`` are the pages, in which every value is escaped. Pure; they load nothing
from other hosts.
"""

from __future__ import annotations

import functools
import json
import re
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from raymlops.serving.asgi import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment

    from raymlops.arrays import Column
    from raymlops.signature import Signature


def docs_page(document: Mapping[str, Any], signature: Signature) -> str:
    """Return the document as one HTML page with a form that sends the example."""
    info = document["info"]
    predict, feedback = (document["paths"][path]["post"] for path in ("/predict", "/feedback"))
    responses = predict["responses"]
    return _render(
        "model.html.jinja",
        title=f"{info['title']} version {info['version']}",
        description=info["description"],
        prefix=document["servers"][0]["url"].rstrip("/"),
        signature=signature,
        example=_example(predict["requestBody"]),
        answer=_example(responses["200"]),
        feedback=feedback["summary"],
        labels=_example(feedback["requestBody"]),
        errors={status: response["description"] for status, response in responses.items() if status != "200"},
    )


def key_page() -> str:
    """Return the page for a browser without a key: it prompts for one and loads the docs with it.

    It reveals nothing of the model. The key stays in the page's memory.
    """
    return _render("key.html.jinja")


def models_page(models: Sequence[Mapping[str, Any]], *, hidden: bool) -> str:
    """Return the list of models as a page; ``hidden``: there are others, which need a key."""
    return _render("models.html.jinja", models=models, hidden=hidden)


@functools.cache
def page_headers() -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of every page: it runs the scripts of these templates alone, and no other page frames it.

    The policy is one for all, since the page that takes a key replaces itself by the docs.
    """
    loader, names = _templates().loader, _templates().list_templates()
    assert loader is not None
    sources = [loader.get_source(_templates(), name)[0] for name in names if name.endswith(".jinja")]
    scripts = [script for source in sources for script in re.findall(r"<script>(.*?)</script>", source, re.DOTALL)]
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return ((b"content-security-policy", policy.encode()), (b"referrer-policy", b"no-referrer"), *PRIVATE)


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(name).render(values)


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("raymlops.serving.docs", "")
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["pretty"] = functools.partial(json.dumps, indent=2, ensure_ascii=False)
    templates.filters["type_text"] = _type_text
    return templates


def _example(body: Mapping[str, Any]) -> Any:
    return body["content"]["application/json"]["example"]


def _type_text(column: Column) -> str:
    dims = f" of shape ({', '.join('any' if size is None else str(size) for size in column.shape)})"
    written = f" ({column.info.noun})" if column.info.read is not None else ""
    text = column.type + (dims if column.shape else "") + written + (" or null" if column.nullable else "")
    if column.categories:
        shown = ", ".join(column.categories[:12]) + (" ..." if len(column.categories) > 12 else "")
        text += f"; known: {shown}"
    return text

"""What a model's interface looks like to others: an OpenAPI 3.1 document and a page that shows it.

Owns the description of the routes of ``front``, made from the signature, so that it names the model's real
fields. Pure; the page needs no network.
"""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.signature import Column, Signature

_ERRORS = {
    "400": "the body is empty, not JSON, not UTF-8, or gives a key twice",
    "413": "more rows or bytes than one request may have",
    "415": "a compressed body",
    "422": "rows that do not fit the signature; `problems` names row and field",
    "500": "the model raised",
    "503": "too many requests are waiting, or no replica is ready",
    "504": "no answer within the deadline",
}


def openapi_document(
    signature: Signature,
    *,
    identity: Mapping[str, Any],
    prefix: str,
    example: Sequence[Mapping[str, Any]],
    answer: Sequence[Mapping[str, Any]],
    max_rows: int,
) -> dict[str, Any]:
    """Return the OpenAPI document of one model version.

    ``example`` are rows that the model takes, ``answer`` what it answered to them.
    """
    version = str(identity["version"])
    request = {
        "type": "object",
        "required": ["rows"],
        "additionalProperties": False,
        "properties": {"rows": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": _ref("Row")}},
    }
    response = {
        "type": "object",
        "required": ["outputs", "model", "model_version", "request_id"],
        "properties": {
            "outputs": {"type": "array", "items": _ref("Output")},
            "model": {"type": "string", "const": identity["name"]},
            "model_version": {"type": "string"},
            "request_id": {"type": "string"},
        },
    }
    answered = {
        "outputs": list(answer),
        "model": identity["name"],
        "model_version": version,
        "request_id": "7f6f2c1e-0000-4000-8000-000000000000",
    }
    schemas = {
        "Row": _object(signature.inputs, strict=True),
        "Output": _object(signature.outputs, strict=False),
        "Request": request,
        "Response": response,
        "Error": _error_schema(),
    }
    refused = {
        status: {"description": text, "content": {"application/json": {"schema": _ref("Error")}}}
        for status, text in _ERRORS.items()
    }
    predict = {
        "summary": f"Ask {identity['name']} version {version}",
        "operationId": "predict",
        "parameters": [
            {
                "name": "x-request-id",
                "in": "header",
                "required": False,
                "description": "kept in the answer; 1 to 128 printable characters",
                "schema": {"type": "string", "maxLength": 128},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("Request"), "example": {"rows": list(example)}}},
        },
        "responses": {
            "200": {
                "description": "one output a row, in order",
                "content": {"application/json": {"schema": _ref("Response"), "example": answered}},
            },
            **refused,
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": identity["name"],
            "version": version,
            "description": f"Bundle {identity['digest']}, run {identity['run_id']}.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {
            "/predict": {"post": predict},
            "/": {"get": _page("describe", "Version, digest, run and signature")},
            "/healthz": {"get": _page("healthz", "The process lives")},
            "/readyz": {"get": _page("readyz", "The model answers")},
        },
        "components": {"schemas": schemas},
    }


def docs_page(document: Mapping[str, Any], signature: Signature) -> str:
    """Return the document as one HTML page with a form that sends the example."""
    info = document["info"]
    prefix = document["servers"][0]["url"].rstrip("/")
    operation = document["paths"]["/predict"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answered = operation["responses"]["200"]["content"]["application/json"]["example"]
    text = json.dumps(example, indent=2, ensure_ascii=False)
    refused = "".join(
        f"<tr><td>{status}</td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
        if status != "200"
    )
    title = f"{info['title']} version {info['version']}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #d5dbe3; padding: .3rem .6rem; text-align: left; vertical-align: top }}
pre, textarea {{ background: #f4f6f9; border: 1px solid #d5dbe3; border-radius: 4px; padding: .6rem; width: 100%;
  box-sizing: border-box; font: 13px/1.4 ui-monospace, monospace; overflow: auto; margin: .4rem 0 }}
button {{ font: inherit; padding: .3rem 1rem }}
</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(info["description"])} <a href="{escape(prefix)}/openapi.json">openapi.json</a></p>
<h2>Inputs</h2>{_table(signature.inputs)}
<h2>Outputs</h2>{_table(signature.outputs)}
<h2>POST {escape(prefix)}/predict</h2>
<label for="body">One object a row:</label>
<textarea id="body" rows="14">{escape(text)}</textarea>
<button id="send">Send</button>
<pre id="answer" aria-live="polite">{escape(json.dumps(answered, indent=2, ensure_ascii=False))}</pre>
<h2>Refusals</h2><table><tr><th>Status</th><th>Reason</th></tr>{refused}</table>
<script>
document.getElementById("send").onclick = async () => {{
  const body = document.getElementById("body").value, answer = document.getElementById("answer");
  try {{
    const response = await fetch({json.dumps(prefix)} + "/predict", {{
      method: "POST", headers: {{"content-type": "application/json"}}, body}});
    answer.textContent = response.status + "\\n" + JSON.stringify(await response.json(), null, 2);
  }} catch (error) {{ answer.textContent = String(error); }}
}};
</script></body></html>
"""


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(columns: Sequence[Column], *, strict: bool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {column.name: column.json_schema() for column in columns},
        "required": [column.name for column in columns if not (strict and column.nullable)],
        "additionalProperties": not strict,
    }


def _error_schema() -> dict[str, Any]:
    problem = {
        "type": "object",
        "properties": {
            "row": {"type": ["integer", "null"], "description": "counted from 0"},
            "field": {"type": ["string", "null"]},
            "message": {"type": "string"},
        },
    }
    error = {
        "type": "object",
        "required": ["code", "message", "problems"],
        "properties": {
            "code": {"type": "string"},
            "message": {"type": "string"},
            "problems": {"type": "array", "items": problem},
        },
    }
    return {
        "type": "object",
        "required": ["error", "request_id"],
        "properties": {"error": error, "request_id": {"type": "string"}},
    }


def _page(operation: str, summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": operation,
        "responses": {"200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}},
    }


def _table(columns: Sequence[Column]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(column.name)}</code></td><td>{escape(_type_text(column))}</td>"
        f"<td>{escape(column.description)}</td></tr>"
        for column in columns
    )
    return f"<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{rows}</table>"


def _type_text(column: Column) -> str:
    dims = f" of shape ({', '.join('any' if size is None else str(size) for size in column.shape)})"
    text = column.type + (dims if column.shape else "") + (" or null" if column.nullable else "")
    if column.categories:
        shown = ", ".join(column.categories[:12]) + (" ..." if len(column.categories) > 12 else "")
        text += f"; known: {shown}"
    return text

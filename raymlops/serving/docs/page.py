"""HTML page of a model's OpenAPI document, with a form that sends its example.

Owns the HTML. Pure; the page loads nothing from other hosts.
"""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column
    from raymlops.signature import Signature


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
    feedback = document["paths"]["/feedback"]["post"]
    labels = feedback["requestBody"]["content"]["application/json"]["example"]
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
<label for="body">One object per row:</label>
<textarea id="body" rows="14">{escape(text)}</textarea>
<label for="key">API key, where one is required:</label>
<input id="key" type="password" autocomplete="off" size="40">
<button id="send">Send</button>
<pre id="answer" aria-live="polite">{escape(json.dumps(answered, indent=2, ensure_ascii=False))}</pre>
<h2>POST {escape(prefix)}/feedback</h2>
<p>{escape(feedback["summary"])}, rows counted from 0. The answer has status 202:</p>
<pre>{escape(json.dumps(labels, indent=2, ensure_ascii=False))}</pre>
<h2>Other protocols</h2>
<p>POST {escape(prefix)}/invocations is MLflow's scoring protocol, {escape(prefix)}/v2 the Open Inference Protocol.</p>
<h2>Errors</h2><table><tr><th>Status</th><th>Reason</th></tr>{refused}</table>
<script>
const key = document.getElementById("key");
key.value = window.apiKey || "";
document.getElementById("send").onclick = async () => {{
  const headers = {{"content-type": "application/json", ...(key.value && {{"x-api-key": key.value}})}};
  const body = document.getElementById("body").value, answer = document.getElementById("answer");
  try {{
    const response = await fetch({json.dumps(prefix)} + "/predict", {{
      method: "POST", headers, body}});
    answer.textContent = response.status + "\\n" + JSON.stringify(await response.json(), null, 2);
  }} catch (error) {{ answer.textContent = String(error); }}
}};
</script></body></html>
"""


def key_page() -> str:
    """Return the page for a browser without a key: it prompts for one and loads the docs with it.

    It reveals nothing of the model. The key stays in the page's memory.
    """
    return """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>API key</title></head>
<body style="font: 15px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto">
<h1>This model requires an API key</h1>
<form id="form"><label for="key">API key:</label> <input id="key" type="password" autocomplete="off" size="40">
<button>Show the docs</button></form><p id="answer" aria-live="polite"></p>
<script>
document.getElementById("form").onsubmit = async (event) => {
  event.preventDefault();
  window.apiKey = document.getElementById("key").value;
  try {
    const response = await fetch(location.href, {headers: {"x-api-key": window.apiKey}});
    const text = await response.text();
    if (response.ok) { document.open(); document.write(text); document.close(); }
    else document.getElementById("answer").textContent = response.status + ": no key for this model";
  } catch (error) { document.getElementById("answer").textContent = String(error); }
};
</script></body></html>
"""


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

"""``predict``: rows of a file at an endpoint, or Parquet on the cluster without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, given, note
from raymlops.cli.source import Chosen, NamedArgument, choose
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.serving.client.client import Client

TIMEOUT_S = 30.0

_USAGE = "raymlops predict NAME --file ROWS, or raymlops predict NAME --batch IN --out OUT"


def predict(
    words: NamedArgument = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Rows: .json, .csv or .parquet.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where Serve answers.  [default: RAYMLOPS_URL, else what up started]")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(min=0.01, help=f"Seconds for each answer, retries included.  [default: {TIMEOUT_S:g}]"),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="A live version's number; with --batch any, or @alias.  [@champion]"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", metavar="IN", help="Parquet file, folder or URI, or a Delta table, instead of --file."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="OUT", help="Folder, URI or Delta table (delta+URI) of --batch's output."),
    ] = None,
    config: OptionalConfig = None,
    env: EnvOption = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", metavar="COLUMN", help="A column of IN to copy to OUT.  [default: those the model does not take]"
        ),
    ] = None,
) -> Answer:
    """Predict every row of a file at the endpoint; with --batch predict Parquet on the cluster, without an endpoint.

    `predict NAME -f rows.json` prints one JSON object per row; the API key comes from RAYMLOPS_API_KEY.
    `predict NAME --batch IN --out OUT` writes Parquet, or adds to a Delta table.
    """
    asking = {"--file": file, "--url": url, "--timeout-s": timeout_s}
    batching = {"--batch": batch, "--out": out, "--config": config, "--env": env, "--keep": keep}
    if mixed := given(asking if batch is not None else batching):
        place = "with" if batch is not None else "without"
        raise UsageError(f"{', '.join(mixed)} cannot be used {place} --batch", hint=_USAGE)
    if batch is not None:
        if out is None:
            raise UsageError("--batch needs --out", hint=_USAGE)
        return _predict_batch(choose(words, config=config, env=env, version=version), batch, out, keep=keep)
    if words is None or len(words) != 1 or file is None:
        raise UsageError("predict needs NAME and --file, or --batch", hint=_USAGE)
    return _ask(words[0], file, url=url, timeout_s=timeout_s or TIMEOUT_S, version=version)


def _ask(name: str, file: Path, *, url: str | None, timeout_s: float, version: str | None) -> Answer:
    from raymlops.lifecycle.predict_file import ask_file
    from raymlops.serving.client.client import Client

    # At a terminal a dead endpoint is reported at once; a program waits for one that restarts.
    with Client(url, timeout_s=timeout_s, retries=2) if url else _of_up(timeout_s) as client:
        result = ask_file(client, name, file, version=version)
    note(result.curl)
    if len(result.model_versions) > 1:
        note(f"the route changed meanwhile: versions {', '.join(result.model_versions)} answered")
    data = {"outputs": result.outputs, "model_versions": result.model_versions, "request_ids": result.request_ids}
    return Answer(data, "\n".join(map(json.dumps, result.outputs)))


def _predict_batch(chosen: Chosen, batch: str, out: str, *, keep: list[str] | None) -> Answer:
    from raymlops.lifecycle.batch.predict import batch_predict

    record = batch_predict(chosen.spec, batch, out, version=chosen.version or "@champion", keep=keep or None)
    per_s = record.rows / max(record.duration_s, 1e-3)
    text = (
        f"{record.rows:,} rows by {record.name} version {record.version}, {record.duration_s:.1f} s "
        f"({per_s:,.0f} rows/s)\n{record.output}"
    )
    if record.table_version is not None:
        text += f"@v{record.table_version}"
    if record.repeated:
        text = f"{record.output}@v{record.table_version} has the {record.rows:,} rows already; nothing was written"
    return Answer(record.to_dict(), text)


def _of_up(timeout_s: float) -> Client:
    """Return a client of what ``up`` started, unless the environment names another endpoint."""
    import os

    import httpx

    from raymlops.cluster.endpoint.tls import trusting
    from raymlops.cluster.upfile import read
    from raymlops.serving.client.client import CONNECTIONS, URL, Client

    record = None if os.environ.get(URL) else read()
    if record is None or record.tls_cert is None:
        return Client(record.serve_url if record else None, timeout_s=timeout_s, retries=2)
    transport = httpx.HTTPTransport(verify=trusting(record.tls_cert), limits=CONNECTIONS)
    return Client(record.serve_url, timeout_s=timeout_s, retries=2, transport=transport)

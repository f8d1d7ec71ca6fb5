"""``pipeline``, ``deploy``, ``promote``, ``rollback``, ``predict``, ``audit`` and ``demo``: what is live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raymlops.cli.output import (
    ConfigOption,
    EnvOption,
    JsonFlag,
    Overrides,
    VersionOption,
    YesFlag,
    answer,
    confirm,
    note,
    table,
)
from raymlops.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(demo)
    app.command()(pipeline)
    app.command()(deploy)
    app.command()(promote)
    app.command()(rollback)
    app.command()(predict)
    app.command()(audit)


def demo(
    *,
    root: Annotated[str, typer.Option("--root", metavar="DIR", help="Folder of the demo's files.")] = "raymlops-demo",
    keep: Annotated[bool, typer.Option("--keep", help="Keep it serving afterwards.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the sweep.  [default: the file's]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """From real flights to a live endpoint: sweep, train on 2 workers, register, gate, deploy, ask."""
    from raymlops.lifecycle.demo import demo as run_demo

    record = run_demo(root=root, keep=keep, trials=trials, on_step=note)
    answer(record.to_dict(), record.text(), as_json=as_json)


def pipeline(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Sweep, train the winner, register it, ask the gate and make it live."""
    from raymlops.lifecycle.pipeline import pipeline as run_pipeline

    confirm("This may change what is live. Go on?", yes=yes)
    record = run_pipeline(config, overrides=overrides or (), env=env, on_step=note)
    answer(record.to_dict(), _live(record.deployment), as_json=as_json)


def deploy(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    version: Annotated[
        str | None, typer.Option("--version", metavar="VERSION", help="A number or @alias.  [default: @challenger]")
    ] = None,
    env: EnvOption = None,
    beside: Annotated[bool, typer.Option("--beside", help="Bring it up without giving it the route.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take down every version of the model instead.")] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring every model back instead, as after down and up.")
    ] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring a version up beside what is live, check it, then give it the route."""
    from raymlops.lifecycle import live

    if remove:
        if version is not None or beside or restore:
            raise UsageError(
                "--remove takes down every version of the model; it goes with no --version, --beside or --restore",
                hint="To take one version from the route, make another live: promote or rollback.",
            )
        confirm("This takes the endpoint down. Go on?", yes=yes)
        versions = live.remove(config, overrides=overrides or (), env=env)
        answer({"removed": versions}, f"removed {len(versions)} versions", as_json=as_json)
        return
    if restore:
        if version is not None or beside:
            raise UsageError(
                "--restore brings back what should be live; it goes with neither --version nor --beside",
                hint="To bring up a version, leave --restore out.",
            )
        confirm("This brings Serve to what should be live, of every model. Go on?", yes=yes)
        desired = live.restore(config, overrides=overrides or (), env=env)
        names = sorted({item.name for item in desired})
        answer(
            {"deployments": [item.to_dict() for item in desired]},
            f"live: {', '.join(names) or 'nothing'}",
            as_json=as_json,
        )
        return
    version = version or "@challenger"
    if not beside:
        confirm(f"This makes {version} live. Go on?", yes=yes)
    record = live.deploy(config, version, overrides=overrides or (), env=env, promote=not beside)
    answer(record.to_dict(), _live(record), as_json=as_json)


def promote(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    version: VersionOption = "@challenger",
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a version champion; where the model is served, it takes the route."""
    from raymlops.lifecycle import live

    confirm(f"This makes {version} champion. Go on?", yes=yes)
    record = live.promote(config, version, overrides=overrides or (), env=env)
    answer(record.to_dict(), _live(record), as_json=as_json)


def rollback(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give the route back to the version that was live before."""
    from raymlops.lifecycle import live

    confirm("This gives the route back to the previous version. Go on?", yes=yes)
    record = live.rollback(config, overrides=overrides or (), env=env)
    answer(record.to_dict(), _live(record), as_json=as_json)


def predict(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    *,
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="Rows: .json, .csv or .parquet.")],
    url: Annotated[str | None, typer.Option(help="Where Serve answers.  [default: what up started]")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.01, help="Seconds to wait for an answer.")] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask the endpoint for every row of a file; prints one JSON object a row."""
    from raymlops.lifecycle.asking import ask_file

    endpoint = f"{(url or _serve_url()).rstrip('/')}/models/{name}/predict"
    result = ask_file(endpoint, file, timeout_s=timeout_s)
    note(result.curl)
    if len(result.model_versions) > 1:
        note(f"the route changed meanwhile: versions {', '.join(result.model_versions)} answered")
    text = "\n".join(json.dumps(row) for row in result.outputs)
    answer(
        {"outputs": result.outputs, "model_versions": result.model_versions, "request_ids": result.request_ids},
        text,
        as_json=as_json,
    )


def audit(
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """Print who changed what, when and why, newest last."""
    from raymlops.lifecycle.live import events

    rows: list[Any] = [event.to_dict() for event in events(config, overrides=overrides or (), env=env)]
    columns = {**dict.fromkeys(("ts", "actor", "action", "subject")), "why": _first_line}
    answer({"events": rows}, table(rows, columns), as_json=as_json)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _serve_url() -> str:
    from raymlops.cluster.upfile import read

    record = read()
    return record.serve_url if record else "http://127.0.0.1:8000"


def _live(record: Any) -> str:
    for warning in record.warnings:
        note(f"warning: {warning}")
    took = record.url is not None and record.previous_version is not None
    before = f", version {record.previous_version} kept warm" if took else ""
    where = f" at {record.url}" if record.url else ", not served" if record.role == "champion" else ", without a route"
    return f"{record.name} version {record.version} is {record.role}{where}{before}"

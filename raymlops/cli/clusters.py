"""``up``, ``down``, ``status`` and ``doctor``: the cluster on this machine. ``status RUN_ID`` is in ``operations``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raymlops.cli.operations import run_answer
from raymlops.cli.output import Answer, EnvOption, OptionalConfig, error_data, note
from raymlops.display import table
from raymlops.errors import RaymlopsError, StorageError, UsageError

if TYPE_CHECKING:
    from raymlops.lifecycle.overview import ModelOverview


RootOption = Annotated[
    str | None, typer.Option("--root", metavar="DIR", help="Folder of its state.  [default: ~/.raymlops]")
]


def _port(about: str) -> Any:
    return typer.Option(min=1, max=65535, help=about)


def up(
    *,
    root: RootOption = None,
    http_port: Annotated[int | None, _port("Port of the endpoints.  [default: 8000]")] = None,
    dashboard_port: Annotated[int | None, _port("Port of Ray's dashboard and job API.  [default: 8265]")] = None,
    mlflow_port: Annotated[int | None, _port("Port of MLflow.  [default: 5000]")] = None,
    ray_port: Annotated[int | None, _port("Port of Ray itself.  [default: 6379]")] = None,
    grpc_port: Annotated[int | None, _port("gRPC port of the endpoints.  [default: not opened]")] = None,
    num_cpus: Annotated[float | None, typer.Option(min=1, help="CPUs that Ray may use.  [default: all]")] = None,
    proxy: Annotated[
        Literal["haproxy", "python"] | None,
        typer.Option(help="In front of the endpoints.  [default: haproxy, the faster one, if it is installed]"),
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate of the endpoints, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
) -> Answer:
    """Start a Ray head with dashboard, an MLflow server and Serve on loopback, with token authentication."""
    from raymlops.cluster.local import up as start
    from raymlops.cluster.upfile import exports
    from raymlops.lifecycle.overview import answering, wanted

    record = start(
        root=root,
        http_port=http_port,
        dashboard_port=dashboard_port,
        mlflow_port=mlflow_port,
        ray_port=ray_port,
        num_cpus=num_cpus,
        proxy=proxy,
        tls_cert=tls_cert,
        tls_key=tls_key,
        grpc_port=grpc_port,
        on_step=note,
    )
    if record.already_up:
        note("was up already")
    for name, url in record.urls.items():
        note(f"{name:<8} {url}")
    if record.grpc_address is not None:
        note(f"{'grpc':<8} {record.grpc_address}")
    for port in record.opens:
        note(f"reachable by other machines: {port}")
    with suppress(RaymlopsError):  # a busy endpoint does not mean that nothing is live
        if (models := wanted(record.root)) and not answering(record.serve_url, models):
            note(_waiting(len(models)))
    note("to use it from this shell, export:")
    return Answer({**record.to_dict(), "env": record.env, "urls": record.urls}, exports(record))


def down(*, root: RootOption = None) -> Answer:
    """Stop what `up` started, and nothing else."""
    from raymlops.cluster.local import down as stop

    record = stop(root=root)
    if record is None:
        return Answer({"down": None}, "nothing was up")
    text = f"stopped {record.stopped} processes ({record.killed} had to be killed)"
    return Answer({"down": record.to_dict()}, text)


def status(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN_ID]", help="A run or a sweep; default: the cluster.")
    ] = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    root: RootOption = None,
) -> Answer:
    """Show what `up` started and which models are live, or the progress of a run, a sweep or a trial."""
    if run_id is not None:
        if root is not None:
            raise UsageError("--root is a cluster's folder; a run is found by its id alone")
        return run_answer(run_id, config=config, env=env)
    if config is not None and root is not None:
        raise UsageError("--config and --root both say where the state is", hint="Leave one of them out.")
    from raymlops.cluster.local import status as look
    from raymlops.lifecycle.overview import answering, overview
    from raymlops.lifecycle.unauthenticated import exposure

    record = look(root=root)
    seen = exposure(config, root=root, env=env)
    problem: RaymlopsError | None = None
    models: list[ModelOverview] = []
    try:
        models = overview(config, root=root, env=env, reach=seen.reach if seen is not None else None)
    except StorageError as error:  # a damaged database hides nothing else
        problem = error
    names = [model.name for model in models]
    live = answering(record.urls["serve"], names) if record.services["serve"] else []
    rows = [
        {"service": name, "answers": "yes" if answers else "no", "url": record.urls.get(name, "")}
        for name, answers in record.services.items()
    ]
    lines = [f"{record.state}, {record.processes} processes, state in {record.root}"]
    if record.state != "down":
        lines.append(table(rows, {"service": None, "answers": None, "url": None}))
        lines += [f"grpc at {record.grpc_address}"] if record.grpc_address is not None else []
        lines += [f"certificate {record.certificate}"] if record.certificate is not None else []
        lines += [f"without TLS behind HAProxy: {socket}" for socket in record.plain]
        lines += [f"reachable by other machines: {socket}" for socket in record.open_to_others]
        lines += ["", table(live, dict.fromkeys(("name", "version", "path")))] if live else ["no model is live"]
        lines += [_waiting(len(models))] if models and record.services["serve"] and not live else []
    lines += [line for model in models for line in ("", model.text())]
    exposed = seen.warning if seen is not None else None
    lines += ["", f"warning: {exposed}"] if exposed is not None else []
    data: dict[str, Any] = {"models": live, "desired": [model.to_dict() for model in models], "exposed": exposed}
    if problem is not None:
        lines += ["", f"what should be live is unknown: {problem}"]
        data |= {"desired": None, "error": error_data(problem)}
    return Answer(record.to_dict() | data, "\n".join(lines), exit_code=problem.exit_code if problem is not None else 0)


def _waiting(models: int) -> str:
    return f"{models} model{'' if models == 1 else 's'} should be live: raymlops deploy --restore"


def doctor(*, root: RootOption = None) -> Answer:
    """Diagnose this machine and say how to fix it (exit code 1 if something is wrong)."""
    from raymlops.cluster.doctor import diagnose
    from raymlops.lifecycle.unauthenticated import finding

    findings = [*diagnose(root=root), *filter(None, [finding(root=root)])]
    lines = [
        f"{'ok  ' if f.ok else 'FAIL'}  {f.name}: {f.message}" + ("" if f.ok else f"\n      {f.fix}") for f in findings
    ]
    data = {"findings": [finding.to_dict() for finding in findings]}
    return Answer(data, "\n".join(lines), exit_code=0 if all(finding.ok for finding in findings) else 1)

"""``up``, ``down``, ``env``, ``drain``, ``status`` and ``doctor``: clusters. ``status RUN_ID`` is in ``operations``."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raymlops.cli.operations import run_answer
from raymlops.cli.output import (
    Answer,
    ConfigOption,
    EnvOption,
    OptionalConfig,
    Overrides,
    YesFlag,
    confirm,
    error_data,
    note,
)
from raymlops.cli.source import split_words
from raymlops.display import table
from raymlops.errors import RaymlopsError, UsageError

if TYPE_CHECKING:
    from raymlops.cluster.local import StatusRecord
    from raymlops.cluster.upfile import UpRecord
    from raymlops.lifecycle.overview import ModelOverview
    from raymlops.lifecycle.running_serve import NamedCluster, RunningServe

UNREACHABLE = 5
"""Exit code where a cluster that was named does not answer, or lacks something."""

RootOption = Annotated[
    str | None, typer.Option("--root", metavar="DIR", help="Folder of its state.  [default: ~/.raymlops]")
]
ProxyOption = Annotated[
    Literal["haproxy", "python"] | None,
    typer.Option("--proxy", help="In front of the endpoints.  [default: haproxy, the faster one, if it is installed]"),
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
    proxy: ProxyOption = None,
    haproxy: Annotated[bool, typer.Option("--haproxy", hidden=True, help="--proxy haproxy, as it was called.")] = False,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate of the endpoints, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
) -> Answer:
    """Start a Ray head with dashboard, an MLflow server and Serve on loopback, with token authentication."""
    from raymlops.cluster.local import up as start
    from raymlops.cluster.upfile import exports
    from raymlops.lifecycle.overview import wanted

    if haproxy and proxy == "python":
        raise UsageError("--haproxy and --proxy python name different proxies")
    record = start(
        root=root,
        http_port=http_port,
        dashboard_port=dashboard_port,
        mlflow_port=mlflow_port,
        ray_port=ray_port,
        num_cpus=num_cpus,
        proxy="haproxy" if haproxy else proxy,
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
    if models := wanted(record.root):
        _resume(record, models)
    note("to use it from this shell, export:")
    return Answer({**record.to_dict(), "env": record.env, "urls": record.urls}, exports(record))


def env(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Such as: ray start --head --port=6379")],
    *,
    proxy: ProxyOption = None,
    gcs_storage: Annotated[
        str | None,
        typer.Option(
            "--gcs-storage",
            metavar="URI",
            help="Where a head keeps Ray's state over its restart: redis://HOST:PORT/NAME or rocksdb:///FOLDER.  "
            "[default: RAYMLOPS_GCS_STORAGE, or nowhere]",
        ),
    ] = None,
    env_file: Annotated[
        str | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Variables of the node, literal lines NAME=VALUE; readable by its owner alone.",
        ),
    ] = None,
) -> None:
    """Run `ray start` in the environment that every node of a cluster needs; what it lacks cannot be set later."""
    from raymlops.cluster.endpoint.node_environment import run_on_node

    run_on_node(command, proxy=proxy, gcs_storage=gcs_storage, env_file=env_file)


def drain(
    *,
    on_notice: Annotated[
        Literal["aws", "gcp", "azure"] | None,
        typer.Option("--on-notice", help="Wait until that cloud says that this spot machine is taken away."),
    ] = None,
    within_s: Annotated[
        int, typer.Option("--within", metavar="SECONDS", min=0, help="When the machine ends, where no cloud says it.")
    ] = 120,
    node: Annotated[
        str | None, typer.Option("--node", metavar="ID", help="Of `ray list nodes`.  [default: that of this machine]")
    ] = None,
    yes: YesFlag = False,
) -> Answer:
    """Drain the Ray node of this machine before it ends: it gets no new work, and what runs on it goes elsewhere."""
    import datetime as dt
    import time

    from raymlops.cluster.clouds import spot

    reason = "raymlops drain"
    if on_notice is not None:
        found = spot.wait(lambda: spot.notice(on_notice, now=dt.datetime.now(dt.UTC)), sleep=time.sleep, note=note)
        within_s, reason = found.within_s, found.by
        note(reason)
    chosen = spot.find(node)
    alone = "" if chosen.others else " No other node runs: all work waits until one joins."
    if on_notice is None:
        confirm(f"Drain node {chosen.node_id}? It gets no work again until Ray is restarted on it.{alone}", yes=yes)
    spot.drain(chosen, reason=reason, within_s=within_s)
    data = {"node_id": chosen.node_id, "reason": reason, "within_s": within_s, "other_nodes": chosen.others}
    return Answer(data, f"node {chosen.node_id} is drained; it ends in {within_s} s ({reason}).{alone}")


def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="VERB...", help="The command to run, for example: train, or deploy --yes.")
    ],
    *,
    context: typer.Context,
    config: ConfigOption,
    env: EnvOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the RayJob. If the same one already runs, its log is followed.  [default: generated]",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="Existing RayCluster to run on.  [default: a new one for train and sweep, else that of the endpoint]",
        ),
    ] = None,
) -> Answer:
    """Submit a command to Kubernetes as a RayJob and follow its log until it ends."""
    from raymlops.cluster.kubernetes.api_server import ApiServer
    from raymlops.cluster.kubernetes.checks import checked
    from raymlops.cluster.kubernetes.submit import submit as submit_job
    from raymlops.config.load import load

    _check_verb(context.find_root().command, command)
    spec = load(config, env=env).spec
    server = ApiServer.found(checked(spec, env=env, release="").namespace)
    job = submit_job(spec, command, server=server, env=env, name=name, cluster=cluster, write=note)
    said = f": {job.message}" if job.message else ""
    return Answer(job.to_dict(), f"{job.name}  {job.status}{said}", exit_code=0 if job.succeeded else 1)


def _check_verb(verb: Any, words: list[str]) -> None:
    """Raise UsageError unless words begin with a verb that reads a configuration: nodes come up before it is parsed."""
    named: list[str] = []
    while isinstance(verbs := getattr(verb, "commands", None), dict):
        named = words[: len(named) + 1]
        if len(named) > len(words) or (verb := verbs.get(named[-1])) is None:
            raise UsageError(f"there is no command {' '.join(named)!r}", hint=f"One of: {', '.join(sorted(verbs))}.")
    if named == ["submit"] or not any("--config" in option.opts for option in verb.params):
        raise UsageError(f"a job runs what reads a configuration; {' '.join(named)} does not", hint="Run it here.")


def down(*, root: RootOption = None) -> Answer:
    """Stop what `up` started, and nothing else."""
    from raymlops.cluster.local import down as stop

    record = stop(root=root)
    if record is None:
        return Answer({"down": None}, "nothing was up")
    text = f"stopped {record.stopped} processes ({record.killed} had to be killed)"
    return Answer({"down": record.to_dict()}, text)


def status(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_ID|NAME] [KEY.PATH=VALUE]...",
            help="A run, a sweep or a live model; default: the cluster. Then values that replace the file's.",
        ),
    ] = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    root: RootOption = None,
) -> Answer:
    """Show what `up` started and which models are live, or one model, or the progress of a run, a sweep or a trial."""
    named, overrides = split_words(words)
    if len(named) > 1:
        raise UsageError(f"status takes one id, of a run, a sweep, a trial or a model, or none; got {', '.join(named)}")
    if named:
        if root is not None:
            raise UsageError("--root is a cluster's folder; a run is found by its id alone")
        return _named(named[0], overrides, config=config, env=env)
    if config is not None and root is not None:
        raise UsageError("--config and --root both say where the state is", hint="Leave one of them out.")
    from raymlops.cluster.local import status as look
    from raymlops.lifecycle.overview import overview
    from raymlops.lifecycle.running_serve import named_cluster

    record, cluster = look(root=root), named_cluster(config, root=root, overrides=overrides, env=env)
    serve = cluster.serve if cluster is not None else None
    if cluster is not None and cluster.dashboard_url.rstrip("/") != record.urls.get("ray"):
        record = _elsewhere(cluster)
    problem: RaymlopsError | None = None
    models: list[ModelOverview] = []
    try:
        reach = serve.reach if serve is not None else None
        models = overview(config, root=root, overrides=overrides, env=env, reach=reach)
    except RaymlopsError as error:  # a damaged or unreachable database hides nothing else
        problem = error
    live = _live(record, serve, [model.name for model in models])
    rows = [
        {"service": name, "answers": "yes" if answers else "no", "url": record.urls.get(name, "")}
        for name, answers in record.services.items()
    ]
    lines = [f"{record.state}, {record.processes} processes, state in {record.root}"]
    if record.root is None:
        lines = [f"{record.state}, the cluster of the dashboard {record.urls['ray']}"]
        lines += [cluster.problem] if cluster is not None and cluster.problem else []
    if record.state != "down":
        lines.append(table(rows, {"service": None, "answers": None, "url": None}))
        lines += [f"grpc at {record.grpc_address}"] if record.grpc_address is not None else []
        lines += [f"certificate {record.certificate}"] if record.certificate is not None else []
        lines += [str(proxy) for proxy in serve.proxies] if serve is not None else []
        lines += [f"HAProxy was not started with what runs now: {record.refused}"] if record.refused else []
        lines += [f"without TLS behind HAProxy: {socket}" for socket in record.plain]
        lines += [f"reachable by other machines: {socket}" for socket in record.open_to_others]
        lines += ["", table(live, dict.fromkeys(("name", "version", "path")))] if live else ["no model is live"]
        lines += [_coming_back(models)] if models and record.services["serve"] and not live else []
    lines += [line for model in models for line in ("", model.text())]
    warnings = list(serve.warnings) if serve is not None else []
    lines += [line for warning in warnings for line in ("", f"warning: {warning}")]
    data: dict[str, Any] = {"models": live, "desired": [model.to_dict() for model in models], "warnings": warnings}
    data["exposed"] = serve.exposed if serve is not None else None
    data["proxies"] = [proxy.to_dict() for proxy in serve.proxies] if serve is not None else []
    code = UNREACHABLE if record.root is None and record.state != "up" else 0
    if problem is not None:
        lines += ["", f"what should be live is unknown: {problem}"]
        data |= {"desired": None, "error": error_data(problem)}
        code = problem.exit_code
    return Answer(record.to_dict() | data, "\n".join(lines), exit_code=code)


def _named(name: str, overrides: list[str], *, config: str | None, env: str | None) -> Answer:
    """Return the status of the model of this name, if one should be live, else that of a run, a sweep or a trial."""
    from raymlops.lifecycle.overview import overview

    if re.fullmatch("[0-9a-f]{32}", name) is None:
        for model in overview(config, overrides=overrides, env=env):
            if model.name == name:
                return Answer(model.to_dict(), model.text())
    return run_answer(name, overrides, config=config, env=env)


def _live(record: StatusRecord, serve: RunningServe | None, names: list[str]) -> list[dict[str, Any]]:
    """Return the models that answer; on a cluster elsewhere, whose endpoint may not be reached, those that run."""
    from raymlops.lifecycle.overview import answering

    if record.root is None:
        return serve.models() if serve is not None else []
    return answering(record.urls["serve"], names) if record.services["serve"] else []


def _elsewhere(cluster: NamedCluster) -> StatusRecord:
    """Return the status of a cluster that `up` did not start."""
    from raymlops.cluster.local import StatusRecord

    serve, urls = cluster.serve, {"ray": cluster.dashboard_url}
    if serve is not None:
        urls["serve"] = serve.listens.base_url
    healthy = serve is not None and serve.healthy
    state = "down" if cluster.problem else "up" if healthy else "broken"
    grpc = None if serve is None else serve.grpc_address
    services = {"ray": cluster.problem is None, "serve": healthy}
    return StatusRecord(None, state, services, urls, 0, grpc_address=grpc)


def _resume(record: UpRecord, models: list[str]) -> None:
    """Bring back what should be live, unless it answers; a failure is noted, since the cluster is up all the same."""
    from raymlops.cluster.auth import in_process
    from raymlops.lifecycle.named_model import nameless
    from raymlops.lifecycle.overview import answering
    from raymlops.lifecycle.restore import resume

    with suppress(RaymlopsError):  # a busy endpoint does not mean that nothing is live
        if answering(record.serve_url, models):
            return
    try:
        with in_process(record.env):
            resume(nameless())
        note(
            f"its controller brings back what should be live: {', '.join(models)}; raymlops status shows how far it is"
        )
    except RaymlopsError as error:
        note(f"{_waiting(len(models))} ({error.message})")


def _coming_back(models: list[ModelOverview]) -> str:
    """Return what is done about models that do not answer; why it takes long is said with each."""
    if models[0].moved_by is None:
        return _waiting(len(models))
    return f"the controller brings back what should be live: {', '.join(model.name for model in models)}"


def _waiting(models: int) -> str:
    return f"{models} model{'' if models == 1 else 's'} should be live: raymlops deploy --restore"


def doctor(
    overrides: Overrides = None,
    *,
    root: RootOption = None,
    node: Annotated[
        bool, typer.Option("--node", help="Ask only whether this machine's node works: a container's health check.")
    ] = False,
    cloud: Annotated[
        Literal["aws", "gcp", "azure"] | None,
        typer.Option("--cloud", help="Ask only what `ray up` needs to start machines there."),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher", metavar="FILE", help="File of `ray up`.  [default: cluster.yaml, that of the cloud]"
        ),
    ] = None,
    config: OptionalConfig = None,
    env: EnvOption = None,
) -> Answer:
    """Diagnose this machine and say how to fix it (exit code 1 if something is wrong).

    With --cloud, storage.path of --config and --env is asked for too.
    """
    from raymlops.cluster import doctor as checks

    if cloud is None and (launcher or config or env or overrides):
        raise UsageError("--launcher, --config with its overrides and --env are for --cloud")
    if cloud is not None:
        from raymlops.cluster.clouds.doctor import diagnose
        from raymlops.lifecycle.sources import spec_of

        path = None if config is None else spec_of(config, overrides=overrides or (), env=env).storage.path
        findings = diagnose(cloud, launcher=launcher, bucket_uri=path)
    elif node:
        findings = checks.node(root=root)
    else:
        from raymlops.lifecycle.running_serve import findings as of_endpoints

        findings = [*checks.diagnose(root=root), *of_endpoints(root=root)]
    lines = [
        f"{'ok  ' if f.ok else 'FAIL'}  {f.name}: {f.message}" + ("" if f.ok else f"\n      {f.fix}") for f in findings
    ]
    data = {"findings": [finding.to_dict() for finding in findings]}
    return Answer(data, "\n".join(lines), exit_code=0 if all(finding.ok for finding in findings) else 1)

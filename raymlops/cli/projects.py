"""``init``, ``validate``, ``config`` and ``render``: verbs that need no cluster."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, note
from raymlops.display import table
from raymlops.errors import UsageError

FileAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE] [KEY.PATH=VALUE]...",
        help="Configuration file, unless --config names it, and values that replace the file's.",
    ),
]


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the project and its folder.")],
    *,
    ci: Annotated[
        Literal["github", "jenkins", "airflow", "kubeflow", "argo-workflows"] | None,
        typer.Option(
            "--ci",
            metavar="SYSTEM",
            help="Add a delivery pipeline for this system: github, jenkins, airflow, kubeflow or argo-workflows.",
        ),
    ] = None,
) -> Answer:
    """Create a project: recipe, configuration, contract test, requirements, CI workflow, README."""
    from raymlops.cli.scaffold import scaffold

    folder, files = scaffold(name, ci=ci)
    text = f"{folder}: {', '.join(files)}\n\ncd {folder} && raymlops train --config config.yaml"
    return Answer({"folder": str(folder), "files": files}, text)


def validate(words: FileAndOverrides = None, *, config: OptionalConfig = None, env: EnvOption = None) -> Answer:
    """Check a file, its recipe's section, the columns that it names and its sweep, without a cluster or data."""
    from raymlops.config.load import load
    from raymlops.lifecycle.loop.training_data import unretrainable
    from raymlops.lifecycle.watch.monitor_text import too_short_log
    from raymlops.project import bind
    from raymlops.training.data_checks.named import check_named
    from raymlops.tuning.advice import warnings_of
    from raymlops.tuning.checks import check

    file, overrides = _split(words or [], config=config)
    loaded = load(file, overrides=overrides, env=env)
    project = bind(loaded)
    told = (
        check_named(project),
        unretrainable(project),
        too_short_log(project.spec.monitor, project.spec.serve.log),
    )
    warnings = [text for text in told if text is not None]
    if project.spec.sweep.space:
        check(project)
        warnings += warnings_of(project.spec.sweep)
    for warning in warnings:
        note(f"warning: {warning}")
    name = project.spec.project.name
    data = {"file": file, "ok": True, "project": name, "config_sha": project.spec.sha(), "warnings": warnings}
    return Answer(data, f"{file}: ok ({name}, recipe {project.reference})")


def show(
    words: FileAndOverrides = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
) -> Answer:
    """Print the resolved configuration; with --origin each value with the line, overlay, override or default."""
    from raymlops.config.load import dump, load
    from raymlops.config.shape import walk

    file, overrides = _split(words or [], config=config)
    loaded = load(file, overrides=overrides, env=env)
    if not origin:
        return Answer({"config": loaded.spec.to_dict()}, dump(loaded.spec).rstrip())
    values = {".".join(map(str, path)): value for path, value in walk(loaded.spec.to_dict())}
    rows = [
        {"path": path, "value": values.get(path), "kind": where.kind, "place": where.place}
        for path, where in loaded.origins.items()
    ]
    text = table(
        [{**row, "from": f"{row['kind']} {row['place']}".strip()} for row in rows],
        {"path": None, "value": lambda value: json.dumps(value, default=str), "from": None},
    )
    return Answer({"values": rows}, text)


def schema() -> Answer:
    """Print the JSON Schema of configuration files, for editors."""
    from raymlops.config.load import json_schema

    found = json_schema()
    note("In VS Code: # yaml-language-server: $schema=configs/schema.json as the first line of a file.")
    return Answer(found, json.dumps(found, indent=2))


def kubernetes(
    words: FileAndOverrides = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    to: Annotated[
        str, typer.Option("--to", metavar="DIR", help="Output directory. It is created if it does not exist.")
    ] = "deploy/kubernetes",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were edited by hand.")] = False,
) -> Answer:
    """Generate the KubeRay manifests of a project: a folder for each environment, and jobs."""
    from raymlops.cluster.kubernetes.render import render_kubernetes

    file, overrides = _split(words or [], config=config)
    found = render_kubernetes(file, to=to, env=env, overrides=overrides, force=force)
    return Answer(found.to_dict(), found.text())


def _split(words: list[str], *, config: str | None) -> tuple[str, list[str]]:
    """Return the file, which either --config or the first word names, and the overrides."""
    if config is None and not words:
        raise UsageError("no configuration file is named", hint="Give FILE, or --config FILE.")
    if config is None:
        return words[0], words[1:]
    if words and "=" not in words[0]:
        raise UsageError(f"{words[0]} and --config {config} both name a file", hint="Leave one of the two out.")
    return config, words

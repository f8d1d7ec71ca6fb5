"""``init``, ``validate`` and ``config``: verbs that need no cluster."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raymlops.cli.output import EnvOption, JsonFlag, Overrides, answer, note, table, write


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(init)
    app.command()(validate)
    group = typer.Typer(help="Inspect a configuration.", no_args_is_help=True)
    group.command()(show)
    group.command()(schema)
    app.add_typer(group, name="config")


FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="Configuration file.")]


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the project and its folder.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Create a project: recipe, configuration, contract test, requirements, CI workflow, README."""
    from raymlops.cli.scaffold import scaffold

    folder, files = scaffold(name)
    answer(
        {"folder": str(folder), "files": files},
        f"{folder}: {', '.join(files)}\n\ncd {folder} && raymlops train --config config.yaml",
        as_json=as_json,
    )


def validate(
    file: FileArgument, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """Check a file, its recipe's section and its search space, without a cluster."""
    from raymlops.config.load import load
    from raymlops.project import bind

    loaded = load(file, overrides=overrides or (), env=env)
    project = bind(loaded)
    answer(
        {"file": file, "ok": True, "project": project.spec.project.name, "config_sha": project.spec.sha()},
        f"{file}: ok ({project.spec.project.name}, recipe {project.reference})",
        as_json=as_json,
    )


def show(
    file: FileArgument,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the resolved configuration; with --origin each value with the line, overlay, override or default."""
    from raymlops.config.load import dump, load
    from raymlops.config.shape import walk

    loaded = load(file, overrides=overrides or (), env=env)
    if not origin:
        answer({"config": loaded.spec.to_dict()}, dump(loaded.spec).rstrip(), as_json=as_json)
        return
    values = {".".join(map(str, path)): value for path, value in walk(loaded.spec.to_dict())}
    rows = [
        {"path": path, "value": values.get(path), "kind": where.kind, "place": where.place}
        for path, where in loaded.origins.items()
    ]
    text = table(
        [{**row, "from": f"{row['kind']} {row['place']}".strip()} for row in rows],
        {"path": None, "value": lambda value: json.dumps(value, default=str), "from": None},
    )
    answer({"values": rows}, text, as_json=as_json)


def schema(*, as_json: JsonFlag = False) -> None:  # noqa: ARG001 - it is JSON with the flag and without
    """Print the JSON Schema of configuration files, for editors."""
    from raymlops.config.load import json_schema

    write(f"{json.dumps(json_schema(), indent=2)}\n")
    note("In VS Code: # yaml-language-server: $schema=configs/schema.json as the first line of a file.")

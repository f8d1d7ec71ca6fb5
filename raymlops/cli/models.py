"""``models``: register, gate and list model versions."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlops.cli.output import ConfigOption, EnvOption, JsonFlag, Overrides, VersionOption, answer, command_of, table
from raymlops.records import GateDecision, ModelVersionRef


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    group = typer.Typer(help="Registered model versions.", no_args_is_help=True)
    group.command()(register)
    group.command()(gate)
    group.command("list")(list_versions)
    app.add_typer(group, name="models")


def register(
    config: ConfigOption,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A finished run of train.")],
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a run on its test split, write its bundle and register it as candidate."""
    from raymlops.lifecycle.registration.register import register as register_run

    ref = register_run(config, run_id, overrides=overrides or (), env=env)
    following = command_of("models gate", "--version", ref.version, config=config, overrides=overrides, env=env)
    answer(ref.to_dict(), f"{_line(ref)}\nnext  {following}", as_json=as_json)


def gate(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    version: VersionOption = "@candidate",
    adopt: Annotated[
        str | None,
        typer.Option(
            "--adopt", metavar="DIGEST", help="Of a version registered from another state: run its code and record it."
        ),
    ] = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask the gate; a version that passes becomes challenger (exit code 4 when refused)."""
    from raymlops.lifecycle.registration.gate import gate as ask_gate

    ref, decision = ask_gate(config, version, adopt=adopt, overrides=overrides or (), env=env)
    data = {"version": ref.to_dict(), "decision": decision.to_dict()}
    following = command_of("deploy", config=config, overrides=overrides, env=env)
    answer(data, f"{_line(ref)}\n{checks(decision)}\nnext  {following}", as_json=as_json)


def list_versions(
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """List the versions of the project's model."""
    from raymlops.lifecycle.sources import spec_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    spec = spec_of(config, overrides=overrides or (), env=env)
    store = tracker(spec)
    store.check()  # a server that is down is said at once: the registry's own question is repeated for half a minute
    refs = Registry(store).list(spec.project.name)
    rows = [{**ref.to_dict(), "aliases": ", ".join(ref.aliases), "digest": ref.bundle.digest[:12]} for ref in refs]
    columns = dict.fromkeys(("name", "version", "aliases", "run_id", "digest"))
    answer({"versions": [ref.to_dict() for ref in refs]}, table(rows, columns), as_json=as_json)


def checks(decision: GateDecision) -> str:
    """Return the gate's questions and answers as text."""
    rows = [
        {"ok": "pass" if c.passed else "FAIL", "check": c.name, "got": c.got, "allowed": c.allowed}
        for c in decision.checks
    ]
    lines = (
        [table(rows, {"ok": None, "check": None, "got": _number, "allowed": None})]
        if rows
        else ["no checks configured"]
    )
    return "\n".join([*lines, *decision.notes])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _line(ref: ModelVersionRef) -> str:
    aliases = f" ({', '.join(ref.aliases)})" if ref.aliases else ""
    return f"{ref.name} version {ref.version}{aliases}, run {ref.run_id}, digest {ref.bundle.digest[:12]}"

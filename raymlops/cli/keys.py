"""``keys``: who may call the endpoints. A secret is printed once, as the answer, and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import ConfigOption, EnvOption, JsonFlag, Overrides, YesFlag, answer, confirm, note, table
from raymlops.config.durations import parse_duration

if TYPE_CHECKING:
    from raymlops.lifecycle.keys import KeyChange
    from raymlops.state.keys import KeyRecord

KeyArgument = Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="A key, by its id or by its holder's name.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    group = typer.Typer(help="API keys of the endpoints.", no_args_is_help=True)
    group.command()(create)
    group.command("list")(list_keys)
    group.command()(revoke)
    group.command()(rotate)
    app.add_typer(group, name="keys")


def create(
    config: ConfigOption,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who holds it, such as checkout-app.")],
    overrides: Overrides = None,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A model that it opens, or *.  [default: the project's]"),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", metavar="SCOPE", help="predict, feedback or pin (choose a version).  [default: the first two]"
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", help="Requests a second, a replica.  [default: no limit]")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="How long it is good, such as 90d.  [default: always]"),
    ] = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key; its secret is printed this once."""
    from raymlops.lifecycle import keys

    change = keys.create(
        config,
        name,
        models=model or (),
        scopes=scope or ("predict", "feedback"),
        rate_per_s=rate,
        expires_in_s=None if expires is None else parse_duration(expires),
        overrides=overrides or (),
        env=env,
    )
    if change.open_models:
        note(f"{', '.join(change.open_models)}: open, answers without a key too; serve.auth: keys asks for keys")
    _tell_new(change, as_json=as_json)


def list_keys(
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """List every key, also those that are over."""
    from raymlops.lifecycle.keys import keys

    now = datetime.now(UTC)
    found = keys(config, overrides=overrides or (), env=env)
    data = [{**key.to_dict(), "status": key.status(now)} for key in found]
    columns = {
        **dict.fromkeys(("id", "name", "status")),
        "models": ",".join,
        "scopes": ",".join,
        "rate_per_s": lambda rate: "-" if rate is None else f"{rate:g}",
        "created_at": _day,
        "expires_at": _day,
    }
    answer({"keys": data}, table(data, columns), as_json=as_json)


def revoke(
    config: ConfigOption,
    key: KeyArgument,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """End a key at once and for good (exit code 1 when the cluster did not take it)."""
    from raymlops.lifecycle import keys

    confirm("Whoever holds this key is refused from now on. Go on?", yes=yes)
    change = keys.revoke(config, key, overrides=overrides or (), env=env)
    answer(change.to_dict(), f"{_line(change.key)} is revoked", as_json=as_json)
    _tell_live(change)


def rotate(
    config: ConfigOption,
    key: KeyArgument,
    overrides: Overrides = None,
    *,
    grace: Annotated[str, typer.Option("--grace", metavar="TIME", help="How long the old one is still good.")] = "24h",
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key in the place of another; its secret is printed this once."""
    from raymlops.lifecycle import keys

    change = keys.rotate(config, key, grace_s=parse_duration(grace), overrides=overrides or (), env=env)
    if change.old is not None and change.old.expires_at is not None:
        note(f"{_line(change.old)} is good until {change.old.expires_at:%Y-%m-%d %H:%M:%S} UTC")
    _tell_new(change, as_json=as_json)


def _tell_new(change: KeyChange, *, as_json: bool) -> None:
    note(f"{_line(change.key)}: this is its secret, which is not kept and cannot be shown again:")
    answer(change.to_dict(), change.secret or "", as_json=as_json)
    _tell_live(change)


def _tell_live(change: KeyChange) -> None:
    for warning in change.warnings:
        note(f"warning: {warning}")
    if change.note:
        note(f"warning: {change.note}" if change.failed else change.note)
    if change.failed:
        raise typer.Exit(1)


def _line(key: KeyRecord) -> str:
    return f"key {key.id} of {key.name}"


def _day(text: Any) -> str:
    return "-" if text is None else str(text)[:16].replace("T", " ")

"""``keys``: who may call the endpoints. A secret is printed once, as the answer, or written to a file instead."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, Overrides, YesFlag, confirm, note
from raymlops.cli.source import choose
from raymlops.cluster.grace_period import JOB
from raymlops.config.durations import parse_duration
from raymlops.display import table
from raymlops.errors import UsageError
from raymlops.storage.filesystem import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.keys import KeyChange
    from raymlops.state.keys import KeyRecord

KeyArgument = Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="A key, by its id or by its holder's name.")]
ToOption = Annotated[Path | None, typer.Option("--to", metavar="FILE", help="New file for the secret, mode 0600.")]


def create(
    holder: Annotated[str, typer.Argument(metavar="HOLDER", help="Who holds it, such as checkout-app.")],
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
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
        float | None,
        typer.Option("--rate", metavar="N", help="Requests per second and replica.  [default: unlimited]"),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="Lifetime, such as 90d.  [default: never expires]"),
    ] = None,
    to: ToOption = None,
    env: EnvOption = None,
) -> Answer:
    """Create a key; its secret is printed this once. Needs --config or --model."""
    from raymlops.lifecycle import keys

    if config is None and not model:
        raise UsageError("neither a model nor its configuration is named", hint="Give --model NAME, or --config FILE.")
    _check(to)
    change = keys.create(
        _source(overrides, config=config, env=env, models=model or ()),
        holder,
        models=model or (),
        scopes=scope or ("predict", "feedback"),
        rate_per_s=rate,
        expires_in_s=None if expires is None else parse_duration(expires),
    )
    if change.open_models:
        note(f"{', '.join(change.open_models)}: open, answers without a key too; serve.auth: keys requires keys")
    return _new_key(change, to)


def list_keys(overrides: Overrides = None, *, config: OptionalConfig = None, env: EnvOption = None) -> Answer:
    """List every key, expired and revoked ones too."""
    from raymlops.lifecycle.keys import keys
    from raymlops.storage import clock

    now = clock.now()
    found = keys(_source(overrides, config=config, env=env))
    data = [{**key.to_dict(), "status": key.status(now)} for key in found]
    columns = {
        **dict.fromkeys(("id", "name", "status")),
        "models": ",".join,
        "scopes": ",".join,
        "rate_per_s": lambda rate: "-" if rate is None else f"{rate:g}",
        "created_at": _day,
        "expires_at": _day,
    }
    return Answer({"keys": data}, table(data, columns))


def revoke(
    key: KeyArgument,
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Revoke a key immediately and for good (exit code 1 if the cluster did not take it)."""
    from raymlops.lifecycle import keys

    source = _source(overrides, config=config, env=env)
    confirm(f"Revoke key {key}? Requests with it are rejected from then on.", yes=yes)
    change = keys.revoke(source, key)
    return _changed(change, f"{_line(change.key)} is revoked")


def rotate(
    key: KeyArgument,
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    grace: Annotated[str, typer.Option("--grace", metavar="TIME", help="How long the old key stays valid.")] = "24h",
    to: ToOption = None,
    env: EnvOption = None,
) -> Answer:
    """Replace a key by a new one; its secret is printed this once."""
    from raymlops.lifecycle import keys

    _check(to)
    change = keys.rotate(_source(overrides, config=config, env=env), key, grace_s=parse_duration(grace))
    if change.old is not None and change.old.expires_at is not None:
        note(f"{_line(change.old)} is valid until {change.old.expires_at:%Y-%m-%d %H:%M:%S} UTC")
    return _new_key(change, to)


def _source(
    overrides: list[str] | None, *, config: str | None, env: str | None, models: Sequence[str] = ()
) -> ProjectSpec:
    """Return the project of ``--config``, of the first named model, or what the environment says."""
    from raymlops.lifecycle.named_model import named, nameless

    if config is not None or overrides or env is not None:
        return choose(overrides, config=config, env=env).spec
    first = next((name for name in models if name != "*"), None)
    return nameless() if first is None else named(first)


def _check(to: Path | None) -> None:
    """Raise UsageError where a new secret would be known to others, or could not be written."""
    if JOB in os.environ and (to is None or not to.is_absolute()):
        raise UsageError(
            "a job's log is kept, and its working directory is not: neither is a place for a secret",
            hint="Name a new file by its whole path: --to ~/HOLDER.key. It is on the node where the job's driver runs.",
        )
    if to is not None and (to.exists() or not os.access(to.parent, os.W_OK)):
        raise UsageError(f"{to} exists, or cannot be created", hint="--to takes a new file.")


def _new_key(change: KeyChange, to: Path | None) -> Answer:
    if to is not None:
        write_bytes(to, (change.secret or "").encode(), mode=0o600, new=True)
        note(f"{_line(change.key)}: its secret is in this file alone:")
        return _changed(replace(change, secret=None), str(to))
    found = _changed(change, change.secret or "")
    note(f"{_line(change.key)}: its secret follows; it is not stored and cannot be shown again:")
    return found


def _changed(change: KeyChange, text: str) -> Answer:
    """Return the answer to a change, and print whether what is served took it."""
    for warning in change.warnings:
        note(f"warning: {warning}")
    if change.note:
        note(f"warning: {change.note}" if change.failed else change.note)
    return Answer(change.to_dict(), text, exit_code=1 if change.failed else 0)


def _line(key: KeyRecord) -> str:
    return f"key {key.id} of {key.name}"


def _day(text: Any) -> str:
    return "-" if text is None else str(text)[:16].replace("T", " ")

"""``backup`` and ``restore``: what a machine knows, to another place and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, Overrides, YesFlag, confirm, note
from raymlops.display import file_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.lifecycle.backup.contents import Saved


def backup(
    overrides: Overrides = None,
    *,
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Folder or URI of the backups.", show_default=False)],
    config: OptionalConfig = None,
    env: EnvOption = None,
) -> Answer:
    """Copy state, MLflow's and Optuna's databases and bundles to another place, while everything runs."""
    from raymlops.lifecycle.backup.save import backup as save

    record = save(config, to=to, overrides=overrides or (), env=env, on_step=note)
    head = (
        f"backup {record.id} in {record.to}: {_rows(record.databases)}, {file_size(record.size_bytes)}, "
        f"{record.bundles} bundles ({record.new_bundles} of them new), {record.seconds:.1f} s"
    )
    lines = [
        head,
        *(f"left out  {text}" for text in record.left_out),
    ]
    for text in record.not_in_it:
        note(f"never in a backup: {text}")
    return Answer(record.to_dict(), "\n".join(lines))


def restore(
    overrides: Overrides = None,
    *,
    from_: Annotated[str, typer.Option("--from", metavar="URI", help="Where `backup --to` wrote.", show_default=False)],
    backup_id: Annotated[
        str | None, typer.Option("--backup", metavar="ID", help="One of them.  [default: the newest]")
    ] = None,
    as_copy: Annotated[
        bool, typer.Option("--as-copy", help="Give the state an id of its own: the original still runs elsewhere.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Dry run: check all of it, write nothing.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Restore a backup on a machine where nothing is yet; then `up` brings back what was live."""
    from raymlops.lifecycle.backup.restore import restore_backup

    if not dry_run:
        confirm(f"Restore from {from_} into empty databases?", yes=yes)
    record = restore_backup(
        config,
        uri=from_,
        backup_id=backup_id,
        as_copy=as_copy,
        dry_run=dry_run,
        overrides=overrides or (),
        env=env,
        on_step=note,
    )
    done = "is whole, and nothing is in the way" if dry_run else "is restored"
    lines = [
        f"backup {record.id} {done}: {_rows(record.databases)}, {record.bundles} bundles, {record.seconds:.1f} s",
        *(f"the backup lacks  {text}" for text in record.left_out),
        *(f"unfinished, and not used  {name}" for name in record.unfinished),
    ]
    if not dry_run:
        note("next: raymlops up (on a cluster: raymlops controller --restore) brings back what was live")
    return Answer(record.to_dict(), "\n".join(lines))


def _rows(databases: Mapping[str, Saved]) -> str:
    return ", ".join(f"{name} {saved.rows} rows" for name, saved in databases.items())

"""``logs``, ``gc``, ``status RUN_ID``, ``backup`` and ``restore``: operating on runs and on what is kept of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raymlops.cli.output import (
    Answer,
    EnvOption,
    JsonFlag,
    OptionalConfig,
    Overrides,
    YesFlag,
    confirm,
    has_terminal,
    note,
    write,
)
from raymlops.display import file_size, number_of, table
from raymlops.records import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.lifecycle.backup.contents import Saved
    from raymlops.training.runs.garbage import CollectRecord


def logs(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run.")],
    overrides: Overrides = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the run ends.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the log of a run; with --json one object per line."""
    from raymlops.lifecycle.operations import run_log

    for line in run_log(run_id, config, follow=follow, overrides=overrides or (), env=env):
        write(f"{to_json({'run_id': run_id, 'line': line}) if as_json else line}\n")


def gc(
    overrides: Overrides = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Dry run: list, delete nothing.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Remove checkpoints of runs and trials that are no longer needed, under storage.path."""
    from raymlops.lifecycle.operations import collect

    def agree(found: CollectRecord) -> None:
        if not yes:
            note(_waste(found))
        confirm(f"Remove {_count(found)}, {file_size(found.size_bytes)}?", yes=yes)

    record = collect(config, dry_run=dry_run, overrides=overrides or (), env=env, agree=agree)
    what = f"{_count(record)}, {file_size(record.size_bytes)}"
    if not record.waste:
        lines = [f"nothing to remove: {record.runs} runs and trials of {record.sweeps} sweeps in {_place(record)}"]
    elif record.removed and not yes:
        lines = [f"removed {what}"]
    else:
        lines = [_waste(record), f"{'removed' if record.removed else 'would remove'} {what}"]
    lines += [f"left alone  {spared.run_id}: {spared.reason}" for spared in record.spared]
    lines += [f"not removed  {problem}" for problem in record.failed]
    data = {**record.to_dict(), "size_bytes": record.size_bytes}
    return Answer(data, "\n".join(lines), exit_code=1 if record.failed else 0)


def backup(
    overrides: Overrides = None,
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="URI", help="Folder or URI to write the backup to.", show_default=False)
    ],
    config: OptionalConfig = None,
    env: EnvOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also read the bundles that earlier backups wrote.")] = False,
) -> Answer:
    """Back up the state, the databases of MLflow and Optuna, and the bundles, while everything runs."""
    from raymlops.lifecycle.backup.save import backup as save

    record = save(config, to=to, overrides=overrides or (), env=env, verify=verify, on_step=note)
    head = (
        f"backup {record.id} in {record.to}: {_rows(record.databases)}, {file_size(record.size_bytes)}, "
        f"{number_of(record.bundles, 'bundle')} ({record.new_bundles} new), {record.seconds:.1f} s"
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
    from_: Annotated[
        str,
        typer.Option("--from", metavar="URI", help="Folder or URI that `backup --to` wrote to.", show_default=False),
    ],
    backup_id: Annotated[
        str | None,
        typer.Option(
            "--backup",
            metavar="ID",
            help="ID of the backup to restore.  [default: the newest, if all are of one state]",
        ),
    ] = None,
    as_copy: Annotated[
        bool, typer.Option("--as-copy", help="Give the restored state its own ID, because the original still runs.")
    ] = False,
    state_only: Annotated[
        bool, typer.Option("--state-only", help="Restore a lost state beside an MLflow that goes on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify the backup without writing anything.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Restore a backup into empty databases; `up` then brings back what was live."""
    from raymlops.lifecycle.backup.contents import origin
    from raymlops.lifecycle.backup.restore import restore_backup

    where = "beside MLflow as it is" if state_only else "into empty databases"
    if not (dry_run or has_terminal()):
        confirm(f"Restore from {from_} {where}?", yes=yes)  # before a backup is read for nothing
    record = restore_backup(
        config,
        uri=from_,
        backup_id=backup_id,
        as_copy=as_copy,
        state_only=state_only,
        dry_run=dry_run,
        overrides=overrides or (),
        env=env,
        agree=lambda which: confirm(f"Restore {which}, {where}?", yes=yes),
        on_step=note,
    )
    done = "is whole, and nothing is in the way" if dry_run else "is restored"
    held = f"{_rows(record.databases)}, {number_of(record.bundles, 'bundle')}"
    which = f"backup {record.id} of {origin(record.original_id, record.made_by, record.made_at)}"
    lines = [
        f"{which}, {done}: {held}, {record.seconds:.1f} s",
        *(f"the backup lacks  {text}" for text in record.left_out),
        *(f"unfinished, and not used  {name}" for name in record.unfinished),
    ]
    if not dry_run:
        note("next: raymlops up (on a cluster: raymlops controller --restore) brings back what was live")
    return Answer(record.to_dict(), "\n".join(lines))


def run_answer(run_id: str, overrides: Sequence[str], *, config: str | None, env: str | None) -> Answer:
    """Return the status of a run, a trial or a sweep."""
    from raymlops.lifecycle.operations import run_status

    status = run_status(run_id, config, overrides=overrides, env=env)
    return Answer(status.to_dict(), status.text())


def _waste(record: CollectRecord) -> str:
    prefix = f"{_place(record)}/"
    rows = [
        {"size": file_size(item.size_bytes), "what": _plain(item.uri).removeprefix(prefix), "why": item.reason}
        for item in record.waste
    ]
    return table(rows, dict.fromkeys(("size", "what", "why")))


def _count(record: CollectRecord) -> str:
    return f"{len(record.waste)} {'folder' if len(record.waste) == 1 else 'folders'} in {_place(record)}"


def _place(record: CollectRecord) -> str:
    """Return the folder that runs and sweeps are in."""
    return _plain(record.runs_uri).rpartition("/")[0]


def _plain(uri: str) -> str:
    """Return a URI without its options, such as an endpoint."""
    return uri.partition("?")[0].rstrip("/")


def _rows(databases: Mapping[str, Saved]) -> str:
    return ", ".join(f"{name} {number_of(saved.rows, 'row')}" for name, saved in databases.items())

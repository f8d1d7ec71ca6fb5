"""``logs``, ``gc`` and ``status RUN_ID``: operating on runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import (
    EnvOption,
    JsonFlag,
    OptionalConfig,
    Overrides,
    YesFlag,
    answer,
    confirm,
    note,
    table,
    write,
)
from raymlops.records import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.training.runs.garbage import CollectRecord
    from raymlops.training.runs.status import RunStatus
    from raymlops.tuning.reporting.status import SweepStatus

_SHOWN_RESTARTS = 5


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(logs)
    app.command()(gc)


def logs(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the run ends.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the log of a run; with --json one object per line."""
    from raymlops.lifecycle.operations import run_log

    for line in run_log(run_id, config, follow=follow, env=env):
        write(f"{to_json({'run_id': run_id, 'line': line}) if as_json else line}\n")


def gc(
    overrides: Overrides = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Dry run: list, delete nothing.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove checkpoints of runs and trials that are no longer needed, under storage.path."""
    from raymlops.lifecycle.operations import collect

    def agree(found: CollectRecord) -> None:
        if not yes:
            note(_waste(found))
        confirm(f"Remove {_count(found)}, {_size(found.size_bytes)}?", yes=yes)

    record = collect(config, dry_run=dry_run, overrides=overrides or (), env=env, agree=agree)
    what = f"{_count(record)}, {_size(record.size_bytes)}"
    if not record.waste:
        lines = [f"nothing to remove: {record.runs} runs and trials of {record.sweeps} sweeps in {_place(record)}"]
    elif record.removed and not yes:
        lines = [f"removed {what}"]
    else:
        lines = [_waste(record), f"{'removed' if record.removed else 'would remove'} {what}"]
    lines += [f"left alone  {spared.run_id}: {spared.reason}" for spared in record.spared]
    lines += [f"not removed  {problem}" for problem in record.failed]
    answer({**record.to_dict(), "size_bytes": record.size_bytes}, "\n".join(lines), as_json=as_json)
    if record.failed:
        raise typer.Exit(1)


def show_run(run_id: str, *, config: str | None, env: str | None, as_json: bool) -> None:
    """Print the status of a run or a sweep."""
    from raymlops.lifecycle.operations import run_status
    from raymlops.training.runs.status import RunStatus

    status = run_status(run_id, config, env=env)
    text = run_text(status) if isinstance(status, RunStatus) else sweep_text(status)
    answer(status.to_dict(), text, as_json=as_json)


def run_text(status: RunStatus) -> str:
    """Return a run's status as text."""
    rows: dict[str, str | None] = {
        status.kind or "run": " ".join(filter(None, [status.run_id, f"({status.name})" if status.name else ""])),
        "state": f"{status.state}: {status.detail}" if status.detail else status.state,
        "progress": _progress(status),
        "trials": ", ".join(f"{count} {state}" for state, count in sorted(status.trials.items())),
        "metrics": _metrics(status),
        "workers": None if status.workers is None else str(status.workers or "this process"),
        "restarts": _restarts(status),
        "changed": "\n".join(_changed(entry) for entry in status.resumed_with_changes),
        "skipped": _skipped(status),
        "checkpoint": _checkpoint(status),
        "weights": status.weights_uri,
        "files": status.files_uri if status.kind == "run" else None,
        "log": status.log_uri and f"{status.log_uri}, or raymlops logs {status.run_id}",
        "resume": status.resume if status.kind == "run" else None,
    }
    return _lines(rows)


def sweep_text(status: SweepStatus) -> str:
    """Return a sweep's status as text."""
    from raymlops.tuning.reporting.status import rows

    return _lines(rows(status))


def _lines(rows: Mapping[str, str | None]) -> str:
    lines = []
    for name, text in rows.items():
        for index, line in enumerate((text or "").splitlines()):
            lines.append(f"{name if index == 0 else '':<11}{line}")
    return "\n".join(lines)


def _progress(status: RunStatus) -> str | None:
    if status.step is None:
        return None
    counts = {"epoch": (status.epoch, status.epochs), "step": (status.step, status.steps)}
    parts = [f"{name} {done}" + (f" of {all_}" if all_ else "") for name, (done, all_) in counts.items() if done]
    parts += [f"{status.percent:g}%"] if status.percent is not None else []
    parts += [f"{_duration(status.eta_s)} left"] if status.eta_s is not None else []
    parts += [f"{status.rows_per_s:,.0f} rows/s"] if status.rows_per_s and status.state == "running" else []
    return ", ".join(parts) + (f" (at {clock(status.seen_at)})" if status.seen_at else "")


def _metrics(status: RunStatus) -> str | None:
    if not status.metrics:
        return None
    of = f"epoch {status.best_epoch}, the best: " if status.best_epoch else "newest: "
    return of + ", ".join(f"{name} {value:.5g}" for name, value in sorted(status.metrics.items()))


def _restarts(status: RunStatus) -> str | None:
    if not status.restart_count:
        return None
    shown = status.restarts[-_SHOWN_RESTARTS:]
    newest = f", the newest {len(shown)}:" if len(shown) < status.restart_count else ":"
    lines = [f"{status.restart_count}{newest}" if shown else str(status.restart_count)]
    for entry in shown:
        workers = entry.get("workers")
        on = f" with {workers} worker{'s' if workers != 1 else ''}" if workers else ""
        lines.append(f"{clock(entry.get('at'))} from step {entry.get('step')}{on}: {entry.get('reason')}")
    return "\n".join(lines)


def _changed(entry: dict[str, Any]) -> str:
    return f"{clock(entry.get('at'))} {'; '.join(map(str, entry.get('changes') or []))}"


def _skipped(status: RunStatus) -> str | None:
    steps = status.skipped_steps
    if not steps:
        return None
    more = f" and {len(steps) - 10} more" if len(steps) > 10 else ""
    return f"{len(steps)} steps with a non-finite loss or gradient: {', '.join(map(str, steps[:10]))}{more}"


def _checkpoint(status: RunStatus) -> str | None:
    last = status.checkpoint
    if last is None:
        return None
    age = f", {_duration(last.age_s)} old" if last.age_s is not None else ""
    best = f"; best {status.best_checkpoint}" if status.best_checkpoint not in {None, last.name} else ""
    return f"{last.name} of step {last.step}{age}, {_size(last.size_bytes)}{best}"


def _waste(record: CollectRecord) -> str:
    prefix = f"{_place(record)}/"
    rows = [
        {"size": _size(item.size_bytes), "what": _plain(item.uri).removeprefix(prefix), "why": item.reason}
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


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def clock(text: Any) -> str:
    """Return a stored time in short form, in UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError):
        return "?"

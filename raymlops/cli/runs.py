"""``train`` and ``sweep``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raymlops.cli.output import EnvOption, JsonFlag, OptionalConfig, Overrides, answer, table
from raymlops.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(train)
    app.command()(sweep)


def train(
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN_ID", help="Go on with this run, where its newest checkpoint is."),
    ] = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one configuration, or go on with a run of before; one MLflow run in either case."""
    from raymlops.lifecycle.runs import train as run_training

    if config is None and resume is None:
        raise UsageError(
            "missing option '--config'", hint="raymlops train --config FILE, or raymlops train --resume RUN_ID."
        )
    record = run_training(config, resume=resume, overrides=overrides or (), env=env)
    lines = [
        f"run        {record.run_id}",
        *(f"{name:<10} {value:.5g}" for name, value in sorted(record.metrics.items())),
        f"epochs     {record.epochs} (best {record.best_epoch}), {record.steps} steps, {record.duration_s:.1f} s",
        f"weights    {record.weights_uri}",
        f"next       raymlops models register --config {config or 'FILE'} {record.run_id}",
    ]
    answer(record.to_dict(), "\n".join(lines), as_json=as_json)


def sweep(
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="SWEEP_ID", help="Go on with this sweep, however it was stopped.")
    ] = None,
    extend: Annotated[
        list[str] | None,
        typer.Option("--extend", metavar="KEY=+N", help="Of the resumed sweep: num_trials=+20, timeout_s=+3600, ..."),
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork", metavar="SWEEP_ID", help="Start a new sweep that knows this one's trials, where they fit."
        ),
    ] = None,
    env: EnvOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search sweep.space for a better configuration; one MLflow run a trial under one parent."""
    from raymlops.lifecycle.sweeping import run_sweep
    from raymlops.tuning.budget import words

    if config is None and resume is None and fork is None:
        raise UsageError(
            "missing option '--config'", hint="raymlops sweep --config FILE, or raymlops sweep --resume SWEEP_ID."
        )
    record = run_sweep(config, resume=resume, extend=extend or (), fork=fork, overrides=overrides or (), env=env)
    best = record.best
    rows: list[dict[str, Any]] = [
        {"trial": trial.number, "status": trial.status, record.metric: trial.value, "epochs": trial.epochs}
        for trial in record.trials
    ]
    rows.sort(
        key=lambda row: (row[record.metric] is None, (row[record.metric] or 0) * (1 if record.mode == "min" else -1))
    )
    counted = len(record.trials) - sum(bool(trial.carried_from) for trial in record.trials)
    lines = [
        table(rows[:10], {"trial": None, "status": None, record.metric: _number, "epochs": None}),
        *([f"... and {len(rows) - 10} more"] if len(rows) > 10 else []),
        "",
        f"sweep   {record.sweep_id}, {counted} trials in {record.duration_s:.1f} s",
        *([f"ended   it {record.stopped}"] if record.stopped else []),
        f"best    trial {best.number}: {record.metric} {_number(best.value)} with {_params(best.params)}",
        *([f"front   trials {', '.join(map(str, record.pareto))}"] if record.pareto else []),
        f"config  {record.best_config}",
        *([f"report  {record.report}"] if record.report else []),
        f"next    raymlops train --config {record.best_config}",
        f"cost    {words(record.spent)}",
    ]
    answer(record.to_dict(), "\n".join(lines), as_json=as_json)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _params(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )

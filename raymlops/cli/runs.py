"""``train`` and ``sweep``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raymlops.cli.output import ConfigOption, EnvOption, JsonFlag, OptionalConfig, Overrides, answer, table
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
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """Search sweep.space for a better configuration; one MLflow run a trial under one parent."""
    from raymlops.lifecycle.runs import sweep as run_sweep

    record = run_sweep(config, overrides=overrides or (), env=env)
    best = record.best
    rows: list[dict[str, Any]] = [
        {"trial": trial.number, "status": trial.status, record.metric: trial.value, "epochs": trial.epochs}
        for trial in record.trials
    ]
    rows.sort(
        key=lambda row: (row[record.metric] is None, (row[record.metric] or 0) * (1 if record.mode == "min" else -1))
    )
    lines = [
        table(rows[:10], {"trial": None, "status": None, record.metric: _number, "epochs": None}),
        *([f"... and {len(rows) - 10} more"] if len(rows) > 10 else []),
        "",
        f"sweep   {record.sweep_id}, {len(record.trials)} trials in {record.duration_s:.1f} s",
        f"best    trial {best.number}: {record.metric} {_number(best.value)} with {_params(best.params)}",
        f"config  {record.best_config}",
        f"next    raymlops train --config {record.best_config}",
    ]
    answer(record.to_dict(), "\n".join(lines), as_json=as_json)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _params(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )

"""``train``, ``sweep`` and ``compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, Overrides, number
from raymlops.cli.source import split_words
from raymlops.display import table
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.records import SweepRecord, TrialRecord

_SHOWN = 10
"""Trials of a sweep that are printed."""


def train(
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN_ID", help="Resume this run from its newest checkpoint."),
    ] = None,
    env: EnvOption = None,
) -> Answer:
    """Train one configuration, or resume an earlier run; one MLflow run in either case."""
    from raymlops.lifecycle.train import train as run_training

    if config is None and resume is None:
        raise UsageError(
            "missing option '--config'", hint="raymlops train --config FILE, or raymlops train --resume RUN_ID."
        )
    record = run_training(config, resume=resume, overrides=overrides or (), env=env)
    lines = [
        f"run        {record.run_id}",
        *(f"{name:<10} {value:.5g}" for name, value in sorted(record.metrics.items())),
        f"epochs     {record.epochs} (best: {record.best_at}), {record.steps} steps, {record.duration_s:.1f} s",
        f"weights    {record.weights_uri}",
        f"next       raymlops models register {record.run_id}",
    ]
    return Answer(record.to_dict(), "\n".join(lines))


def sweep(
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="SWEEP_ID", help="Resume this sweep, however it was stopped.")
    ] = None,
    extend: Annotated[
        list[str] | None,
        typer.Option(
            "--extend", metavar="KEY=+N", help="When resuming, more of KEY: num_trials=+20, timeout_s=+3600, ..."
        ),
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork",
            metavar="SWEEP_ID",
            help="Start a new sweep that takes over this one's trials where they fit, "
            "without --config also its configuration.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="When resuming, train the failed trials again.")
    ] = False,
    env: EnvOption = None,
) -> Answer:
    """Search sweep.space for a better configuration; one MLflow run per trial under one parent."""
    from raymlops.lifecycle.sweeps.run import run_sweep, sweep_request

    if config is None and resume is None and fork is None:
        raise UsageError(
            "missing option '--config'", hint="raymlops sweep --config FILE, or raymlops sweep --resume SWEEP_ID."
        )
    request = sweep_request(
        config,
        resume=resume,
        extend=extend or (),
        fork=fork,
        retry_failed=retry_failed,
        overrides=overrides or (),
        env=env,
    )
    record = run_sweep(request)
    return Answer(record.to_dict(), sweep_text(record))


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN... [KEY.PATH=VALUE]...",
            help="RUN_ID, SWEEP_ID/TRIAL, NAME@VERSION or NAME@ALIAS. Then values that replace the file's.",
        ),
    ],
    *,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the curves into FILE.html or FILE.png.")
    ] = None,
    config: OptionalConfig = None,
    env: EnvOption = None,
) -> Answer:
    """Show the settings and metrics that differ between runs, trials or versions."""
    from raymlops.lifecycle.comparison.compare import compare as compare_runs
    from raymlops.lifecycle.comparison.curves import check_file, write

    if plot is not None:
        check_file(plot)
    named, overrides = split_words(runs)
    found = compare_runs(named, config, curves=plot is not None, overrides=overrides, env=env)
    if plot is None:
        return Answer(found.to_dict(), found.text())
    write(found.plot(), plot)
    return Answer({**found.to_dict(), "plot": plot}, f"{found.text()}\n\nplot  {plot}")


def sweep_text(record: SweepRecord) -> str:
    """Return the result of a sweep as text: its best trials, its winner, and the next command."""
    from raymlops.tuning.budget import words
    from raymlops.tuning.study.ranking import verdict
    from raymlops.tuning.study.selection import failures

    repeats = sum(trial.repeat_of is not None for trial in record.trials)
    counted = sum(not trial.carried_from for trial in record.trials) - repeats
    more = f" and {repeats} repeats" if repeats else ""
    lines = [
        _trials(record),
        *([f"... and {len(record.trials) - _SHOWN} more"] if len(record.trials) > _SHOWN else []),
        *failures(record.trials),
        "",
        f"sweep   {record.sweep_id}, {counted} trials{more} in {record.duration_s:.1f} s",
        *([f"ended   it {record.stopped}"] if record.stopped else []),
        _winner(record),
        *([f"repeats {verdict(record.repeats, metric=record.metric)}"] if record.repeats else []),
        *([f"front   trials {', '.join(map(str, record.pareto))}"] if record.pareto else []),
        f"config  {record.best_config}",
        *([f"report  {record.report}"] if record.report else []),
        f"next    raymlops train --config {record.best_config}",
        f"cost    {words(record.spent)}",
    ]
    return "\n".join(lines)


def _trials(record: SweepRecord) -> str:
    """Return the best trials as a table, the front before the others, each by the first objective."""
    sign = 1 if record.mode == "min" else -1

    def rank(trial: TrialRecord) -> tuple[bool, bool, float]:
        return trial.number not in record.pareto, trial.value is None, sign * (trial.value or 0)

    columns: dict[str, Any] = {"trial": None, "status": None}
    columns |= {"front": None} if record.pareto else {}
    columns |= dict.fromkeys(_metrics(record), number) | {"epochs": None}
    columns |= {"from": None} if any(trial.carried_from for trial in record.trials) else {}
    columns |= {"repeats": None} if record.repeats else {}
    rows = [
        {
            "trial": trial.number,
            "status": trial.status,
            "front": "*" if trial.number in record.pareto else "",
            **_values(record, trial),
            "epochs": trial.epochs,
            "from": trial.carried_from,
            "repeats": "" if trial.repeat_of is None else trial.repeat_of,
        }
        for trial in sorted(record.trials, key=rank)[:_SHOWN]
    ]
    return table(rows, columns)


def _winner(record: SweepRecord) -> str:
    best = record.best
    values = ", ".join(f"{metric} {number(value)}" for metric, value in _values(record, best).items())
    found = f"{values} with {_params(best.settings)}"
    if record.pareto:
        return f"chosen  trial {best.number} (best in {record.metric} of the front): {found}"
    return f"best    trial {best.number}: {found}"


def _metrics(record: SweepRecord) -> list[str]:
    return [objective.metric for objective in record.objectives] or [record.metric]


def _values(record: SweepRecord, trial: TrialRecord) -> dict[str, float | None]:
    metrics = _metrics(record)
    return dict.fromkeys(metrics) | dict(zip(metrics, trial.values or (trial.value,), strict=False))


def _params(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )

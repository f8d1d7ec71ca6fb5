"""``demo``, ``pipeline``, ``controller`` and ``audit``: the path to an endpoint, its controller and its history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raymlops.cli.output import (
    Answer,
    ConfigOption,
    EnvOption,
    OptionalConfig,
    Overrides,
    YesFlag,
    confirm,
    note,
)
from raymlops.cli.source import NamedArgument, choose, choose_if_named
from raymlops.cli.traffic import deployment_text
from raymlops.display import table

NEWEST = 200
"""Events of the audit record that are printed unless one says since when."""
DASHBOARD_S = 60.0
"""Longest wait for the dashboard of a cluster whose head has just been started."""


def demo(
    *,
    root: Annotated[str, typer.Option("--root", metavar="DIR", help="Folder of the demo's files.")] = "raymlops-demo",
    keep: Annotated[bool, typer.Option("--keep", help="Keep it serving afterwards.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the sweep.  [default: the file's]")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Replay 13 weeks: labels a week late, a fault, retraining, promotion.")
    ] = False,
) -> Answer:
    """From real flights to a live endpoint: sweep, train on 2 workers, register, gate, deploy, ask."""
    from raymlops.lifecycle.demo import demo as run_demo

    if watch:
        from raymlops.lifecycle.replay.watch import watch_demo

        watched = watch_demo(root=root, keep=keep, on_step=note)
        return Answer(watched.to_dict(), watched.text())
    record = run_demo(root=root, keep=keep, trials=trials, on_step=note)
    return Answer(record.to_dict(), record.text())


def pipeline(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Sweep, train the winner, register it, ask the gate and make it live."""
    from raymlops.lifecycle.pipeline import pipeline as run_pipeline

    chosen = choose(overrides, config=config, env=env)
    confirm(f"Train {chosen.name}, and make it live if it passes its gate?", yes=yes)
    record = run_pipeline(chosen.source, on_step=note)
    return Answer(record.to_dict(), deployment_text(record.deployment))


def controller(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="As after a restart of the cluster: it brings back what should be live."),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="On Kubernetes: start it again whenever it is gone, until interrupted.")
    ] = False,
    heartbeat: Annotated[
        Path | None, typer.Option("--heartbeat", metavar="FILE", help="With --keep: touched while that works.")
    ] = None,
) -> Answer:
    """Start the controller on the cluster if none runs; deploy and rollback do that by themselves."""
    from raymlops.lifecycle.named_model import nameless
    from raymlops.lifecycle.restore import resume
    from raymlops.lifecycle.rollout.actor import start_controller

    chosen = choose_if_named(words, config=config, env=env)
    spec = nameless() if chosen is None else chosen.spec
    if keep:
        from raymlops.lifecycle.rollout.keeper import keep_controller

        keep_controller(spec, heartbeat=heartbeat)
    record = resume(spec, wait_s=DASHBOARD_S) if restore else start_controller(spec)
    if record is None:
        return Answer({"controller": None}, "nothing should be live, so that no controller is needed")
    return Answer(record.to_dict(), f"controller  running: {record.holder}")


def audit(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help=f"All since then, as 7d or an ISO time.  [default: the newest {NEWEST}]"),
    ] = None,
) -> Answer:
    """Print who changed what, when and why, newest last; of one model, or of all."""
    from raymlops.lifecycle.overview import events

    chosen = choose_if_named(words, config=config, env=env)
    found = events(None if chosen is None else chosen.spec, since=since, limit=None if since else NEWEST + 1)
    if since is None and len(found) > NEWEST:
        note(f"the newest {NEWEST} events; older ones with --since WHEN, as --since 7d or --since 2026-01-01")
        found = found[-NEWEST:]
    rows: list[Any] = [event.to_dict() for event in found]
    shown = [{**row, "action": _action(row), "why": _why(row)} for row in rows]
    columns = dict.fromkeys(("ts", "actor", "action", "subject", "why"))
    return Answer({"events": rows}, table(shown, columns))


def _action(event: dict[str, Any]) -> str:
    """Return an action with the side of a model that it was about, as of drift."""
    states = (state for state in (event["after"], event["before"]) if isinstance(state, dict) and "side" in state)
    side = next((state["side"] for state in states), None)
    return event["action"] if side is None else f"{event['action']} ({side})"


def _why(event: dict[str, Any]) -> str:
    """Return the first line of why, and how its model is watched and retrained otherwise since then."""
    from raymlops.lifecycle.loop.policy_text import policy_changes
    from raymlops.lifecycle.watch.monitor_text import monitor_changes

    first = event["why"].splitlines()[0] if event["why"] else ""
    sides = event["before"], event["after"]
    return "; ".join(part for part in (first, monitor_changes(*sides), policy_changes(*sides)) if part)

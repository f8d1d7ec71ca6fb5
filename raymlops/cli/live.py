"""``pipeline``, ``deploy``, ``promote``, ``rollback``, ``controller``, ``audit`` and ``demo``: what is live."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import (
    ConfigOption,
    EnvOption,
    JsonFlag,
    OptionalConfig,
    Overrides,
    YesFlag,
    answer,
    confirm,
    note,
    table,
)
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.lifecycle.rollout.canary import TrafficRecord
    from raymlops.lifecycle.sources import Source


BreakingFlag = Annotated[
    bool, typer.Option("--breaking", help="Also where it takes or gives something else than what is live.")
]
OneVersion = Annotated[
    str | None, typer.Option("--version", metavar="VERSION", help="A number or @alias.  [default: @challenger]")
]
Named = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME[@VERSION]] [KEY.PATH=VALUE]...",
        help="Without --config: a model that was deployed before, served as it was then. Then values to replace.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's verbs."""
    app.command()(demo)
    app.command()(pipeline)
    app.command()(deploy)
    app.command()(promote)
    app.command()(rollback)
    app.command()(controller)
    app.command()(audit)


def demo(
    *,
    root: Annotated[str, typer.Option("--root", metavar="DIR", help="Folder of the demo's files.")] = "raymlops-demo",
    keep: Annotated[bool, typer.Option("--keep", help="Keep it serving afterwards.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the sweep.  [default: the file's]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """From real flights to a live endpoint: sweep, train on 2 workers, register, gate, deploy, ask."""
    from raymlops.lifecycle.demo import demo as run_demo

    record = run_demo(root=root, keep=keep, trials=trials, on_step=note)
    answer(record.to_dict(), record.text(), as_json=as_json)


def pipeline(
    config: ConfigOption,
    overrides: Overrides = None,
    *,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Sweep, train the winner, register it, ask the gate and make it live."""
    from raymlops.lifecycle.pipeline import pipeline as run_pipeline

    confirm("This may change what is live. Go on?", yes=yes)
    record = run_pipeline(config, overrides=overrides or (), env=env, on_step=note)
    answer(record.to_dict(), _live(record.deployment), as_json=as_json)


def deploy(
    words: Named = None,
    *,
    config: OptionalConfig = None,
    version: OneVersion = None,
    env: EnvOption = None,
    beside: Annotated[bool, typer.Option("--beside", help="Bring it up without giving it the route.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the model down instead; with --version that one alone.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring every model back instead, as after down and up.")
    ] = False,
    canary: Annotated[
        float | None, typer.Option("--canary", metavar="PERCENT", help="Let it answer so many of the requests.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="P,P,...", help="Let that rise, and promote it or stop by itself.")
    ] = None,
    bake: Annotated[
        str | None, typer.Option("--bake", metavar="TIME", help="How long a step lasts at least, such as 10m.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option("--shadow", metavar="PERCENT", help="Send it copies of so many of the requests.")
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="First end a rollout that runs.")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Follow the rollout to its end; alone: the one that runs (exit code 4: aborted)."),
    ] = False,
    breaking: BreakingFlag = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="With --restore: let an older backup count.")] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring a version up beside what is live, check it, then give it the route, or a share of the traffic."""
    from raymlops.config.durations import parse_duration
    from raymlops.lifecycle import deploy as live

    if takeover and (remove or not restore):
        raise UsageError(
            "--takeover lets a state database that is an older backup count, and goes with --restore alone",
            hint="What another state deployed is not taken over: change it where that state is.",
        )
    shared = {"--canary": canary, "--steps": steps, "--bake": bake, "--shadow": shadow}
    sharing = [option for option, value in shared.items() if value is not None]
    if wait and steps is None and bake is None:
        if sharing or beside or remove or restore or breaking or abort:
            raise UsageError("--wait follows a rollout", hint="Begin one with --steps or --bake, or leave --wait out.")
        source, overrides, version = _source(config, words, version=version)
        running = live.running_rollout(source, version, overrides=overrides, env=env)
        _follow(source, running, overrides=overrides, env=env, as_json=as_json)
        return
    if (remove or restore or beside) and (sharing or abort or wait or breaking):
        raise UsageError(
            "--remove, --restore and --beside move no traffic; they go with no "
            + ", ".join(sharing or ["--abort, --wait or --breaking"])
        )
    if restore and not remove:
        options = {"beside": beside, "takeover": takeover}
        _restore(config, words, version=version, **options, env=env, yes=yes, as_json=as_json)
        return
    source, overrides, version = _source(config, words, version=version)
    if remove:
        if beside or restore:
            raise UsageError("--remove takes down what is up; it goes with no --beside or --restore")
        if version is not None:
            _remove_one(source, version, overrides=overrides, env=env, yes=yes, as_json=as_json)
            return
        confirm("This takes the endpoint down. Go on?", yes=yes)
        versions = live.remove(source, overrides=overrides, env=env)
        answer({"removed": versions}, f"removed {len(versions)} versions", as_json=as_json)
        return
    version = version or "@challenger"
    if sharing:
        confirm(f"This gives {version} a share of the traffic. Go on?", yes=yes)
    elif not beside:
        confirm(f"This makes {version} live. Go on?", yes=yes)
    record = live.deploy(
        source,
        version,
        overrides=overrides,
        env=env,
        promote=not beside,
        canary=canary,
        steps=None if steps is None else _percents(steps),
        bake_s=None if bake is None else parse_duration(bake),
        shadow=shadow,
        abort=abort,
        breaking=breaking,
    )
    rollout_id = getattr(record, "rollout_id", None)
    if wait and rollout_id is not None:
        note(_live(record))
        _follow(source, rollout_id, overrides=overrides, env=env, as_json=as_json)
        return
    answer(record.to_dict(), _live(record), as_json=as_json)


def promote(
    words: Named = None,
    *,
    config: OptionalConfig = None,
    version: OneVersion = None,
    env: EnvOption = None,
    breaking: BreakingFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a version champion; where the model is served, it takes the route."""
    from raymlops.lifecycle import deploy as live

    source, overrides, version = _source(config, words, version=version)
    version = version or "@challenger"
    confirm(f"This makes {version} champion. Go on?", yes=yes)
    record = live.promote(source, version, overrides=overrides, env=env, breaking=breaking)
    answer(record.to_dict(), _live(record), as_json=as_json)


def rollback(
    words: Named = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take a canary's share away; where there is none, give the route back to the version that was live before."""
    from raymlops.lifecycle import deploy as live

    source, overrides, version = _source(config, words)
    if version is not None:
        raise UsageError(
            f"rollback goes to what was live before, not to {version}", hint="promote or deploy takes a version."
        )
    what = "takes back the canary, or the last change of the route"
    if not yes and sys.stdin.isatty():
        what = live.rollback_target(source, overrides=overrides, env=env)
    confirm(f"This {what}. Go on?", yes=yes)
    record = live.rollback(
        source,
        overrides=overrides,
        env=env,
        on_live=lambda version: note(f"version {version} answers; setting the alias"),
    )
    answer(record.to_dict(), _live(record), as_json=as_json)


def controller(
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """Start the controller on the cluster where none runs; deploy and rollback do that by themselves."""
    from raymlops.lifecycle.rollout.actor import start_controller

    record = start_controller(config, overrides=overrides or (), env=env)
    answer(record.to_dict(), f"controller  runs: {record.holder}", as_json=as_json)


def audit(
    config: ConfigOption, overrides: Overrides = None, *, env: EnvOption = None, as_json: JsonFlag = False
) -> None:
    """Print who changed what, when and why, newest last."""
    from raymlops.lifecycle.deploy import events

    rows: list[Any] = [event.to_dict() for event in events(config, overrides=overrides or (), env=env)]
    columns = {**dict.fromkeys(("ts", "actor", "action", "subject")), "why": _first_line}
    answer({"events": rows}, table(rows, columns), as_json=as_json)


def _source(
    config: str | None, words: Sequence[str] | None, *, version: str | None = None
) -> tuple[Source, Sequence[str], str | None]:
    """Return what says where things are and how to serve, what is left to replace in it, and the version."""
    words = words or ()
    if config is not None:
        return config, words, version
    if not words or "=" in words[0]:
        raise UsageError("neither a model nor its configuration is named", hint="Give NAME, or --config FILE.")
    from raymlops.lifecycle.by_name import named

    spec, found = named(words[0], overrides=words[1:])
    if found is not None and version is not None:
        raise UsageError(f"{words[0]} and --version {version} both name a version", hint="Leave one of them out.")
    return spec, (), found or version


def _restore(
    config: str | None,
    words: Sequence[str] | None,
    *,
    version: str | None,
    beside: bool,
    takeover: bool,
    env: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring every model back. It is of no single model, so that nothing needs to be named."""
    from raymlops.lifecycle import deploy as live

    source: Source | None = None
    overrides: Sequence[str] = ()
    if config is not None or words:
        source, overrides, version = _source(config, words, version=version)
    if version is not None or beside:
        raise UsageError(
            "--restore brings back what should be live; it goes with neither --version nor --beside",
            hint="To bring up a version, leave --restore out.",
        )
    confirm("This brings Serve to what should be live, of every model. Go on?", yes=yes)
    desired = live.restore(
        source, overrides=overrides, env=env, takeover=takeover, on_warning=lambda text: note(f"warning: {text}")
    )
    names = sorted({item.name for item in desired})
    answer(
        {"deployments": [item.to_dict() for item in desired]}, f"live: {', '.join(names) or 'nothing'}", as_json=as_json
    )


def _remove_one(
    source: Source, version: str, *, overrides: Sequence[str], env: str | None, yes: bool, as_json: bool
) -> None:
    """Take down one version that stands beside the champion."""
    from raymlops.lifecycle.remove_version import number_of, remove_version
    from raymlops.lifecycle.sources import spec_of

    number = number_of(version)
    spec = spec_of(source, overrides=overrides, env=env)
    name = spec.project.name
    confirm(f"This takes version {number} of {name} down. Go on?", yes=yes)
    remove_version(spec, number)
    brings = f"raymlops deploy {name} --version {number} brings it up again"
    answer({"removed": [number]}, f"removed version {number} of {name}; {brings}", as_json=as_json)


def _follow(source: Source, rollout_id: str, *, overrides: Sequence[str], env: str | None, as_json: bool) -> None:
    from raymlops.lifecycle.overview import follow_rollout, line_of

    ended = follow_rollout(source, rollout_id, on_line=note, overrides=overrides, env=env)
    answer(ended.to_dict(), line_of(ended), as_json=as_json)
    if ended.status != "promoted":
        raise typer.Exit(4)


def _percents(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--steps is a list of percentages such as 10,50,100; got {text[:60]!r}") from None


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _live(record: Any) -> str:
    from raymlops.lifecycle.rollout.canary import TrafficRecord

    for warning in record.warnings:
        note(f"warning: {warning}")
    if isinstance(record, TrafficRecord):
        return _share(record)
    took = record.url is not None and record.previous_version is not None
    before = f", version {record.previous_version} kept warm" if took else ""
    where = f" at {record.url}" if record.url else ", not served" if record.role == "champion" else ", without a route"
    return f"{record.name} version {record.version} is {record.role}{where}{before}"


def _share(record: TrafficRecord) -> str:
    champion = f"version {record.previous_version}"
    copies = f", copies of {100 * record.shadow:g}%" if record.shadow else ""
    if record.rollout_id is not None and record.weight:
        return (
            f"{record.name} version {record.version} answers {100 * record.weight:g}%{copies}, {champion} the rest; "
            f"rollout {record.rollout_id} goes on by itself: raymlops status"
        )
    if record.weight:
        return f"{record.name} version {record.version} answers {100 * record.weight:g}%{copies}, {champion} the rest"
    took = record.changed or record.rollout_id is not None
    ever = copies or (" any more" if took else ", as before")
    return f"{record.name} version {record.version} answers nothing{ever}; {champion} has all requests"

"""``deploy``, ``promote`` and ``rollback``: which version is live, and who gets which share of the traffic."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, YesFlag, confirm, given, has_terminal, note
from raymlops.cli.source import Chosen, NamedArgument, VersionOption, choose, choose_if_named
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from raymlops.lifecycle.rollout.canary import TrafficRecord

CHALLENGER = "@challenger"

BreakingFlag = Annotated[
    bool, typer.Option("--breaking", help="Accept that it takes or gives something else than what is live.")
]


AgainFlag = Annotated[bool, typer.Option("--again", help="Bring back a version that a rollback or an abort took back.")]


def deploy(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    version: VersionOption = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="DIGEST", help="Refuse a version whose bundle has another one.")
    ] = None,
    env: EnvOption = None,
    beside: Annotated[bool, typer.Option("--beside", help="Bring it up without giving it the route.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the model down instead; with --version that version alone.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring every model back instead, as after down and up.")
    ] = False,
    canary: Annotated[
        float | None, typer.Option("--canary", metavar="PERCENT", help="Route this share of the requests to it.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", metavar="P,P,...", help="Raise the share step by step; promote or abort automatically."
        ),
    ] = None,
    bake: Annotated[
        str | None, typer.Option("--bake", metavar="TIME", help="Minimum duration of a step, such as 10m.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option("--shadow", metavar="PERCENT", help="Send it copies of this share of the requests.")
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="First abort a running rollout.")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Follow the rollout to its end; alone: the running one (exit code 4: aborted)."),
    ] = False,
    breaking: BreakingFlag = False,
    again: AgainFlag = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="With --restore: let an older backup count.")] = False,
    yes: YesFlag = False,
) -> Answer:
    """Bring a version up beside what is live, check it, then give it the route, or a share of the traffic."""
    from raymlops.config.durations import parse_duration
    from raymlops.lifecycle import deploy as live
    from raymlops.lifecycle.rollout.follow import running_rollout

    shares = given({"--canary": canary, "--steps": steps, "--bake": bake, "--shadow": shadow})
    flags = {"--beside": beside, "--remove": remove, "--restore": restore, "--abort": abort, "--wait": wait}
    follow = wait and steps is None and bake is None
    _check_options(
        shares,
        given({**flags, "--breaking": breaking, "--again": again, "--digest": digest, "--takeover": takeover}),
        follow=follow,
    )
    percents, seconds = (None if steps is None else _percents(steps)), (None if bake is None else parse_duration(bake))
    if restore:
        found = choose_if_named(words, config=config, env=env, version=version, deployed=True)
        return _restore(found, takeover=takeover, yes=yes)
    chosen = choose(words, config=config, env=env, version=version, deployed=True)
    if follow:
        return _follow(chosen, running_rollout(chosen.spec, chosen.version))
    if remove:
        return _remove(chosen, yes=yes)
    version = chosen.version or CHALLENGER
    asks = shares and not yes and has_terminal()
    if asks:
        for line in live.rollout_outlook(chosen.spec, canary=canary, steps=percents, bake_s=seconds):
            note(line)
    if shares:
        confirm(f"Give {_target(chosen, version, yes=yes)} a share of the traffic?", yes=yes)
    elif not beside:
        _confirm(f"Make {_target(chosen, version, yes=yes)} live?", chosen, version, yes=yes)
    with _says_what_is_live(chosen):
        record = live.deploy(
            chosen.spec,
            version,
            digest=digest,
            promote=not beside,
            canary=canary,
            steps=percents,
            bake_s=seconds,
            shadow=shadow,
            abort=abort,
            breaking=breaking,
            again=again,
        )
    for line in () if asks else getattr(record, "outlook", ()):
        note(line)
    rollout_id = getattr(record, "rollout_id", None)
    if not wait or rollout_id is None:
        return _answer(record)
    note(deployment_text(record))
    return _follow(chosen, rollout_id)


def promote(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    version: VersionOption = None,
    env: EnvOption = None,
    breaking: BreakingFlag = False,
    again: AgainFlag = False,
    yes: YesFlag = False,
) -> Answer:
    """Make a version champion; if the model is served, it takes the route."""
    from raymlops.lifecycle import deploy as live

    chosen = choose(words, config=config, env=env, version=version, deployed=True)
    version = chosen.version or CHALLENGER
    _confirm(f"Make {_target(chosen, version, yes=yes)} champion?", chosen, version, yes=yes)
    with _says_what_is_live(chosen):
        record = live.promote(chosen.spec, version, breaking=breaking, again=again)
    return _answer(record)


def rollback(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Take back a version on its way or a canary's share; without one, give the route to the previous champion."""
    from raymlops.lifecycle import rollback as live

    chosen = choose(words, config=config, env=env, deployed=True)
    if chosen.version is not None:
        raise UsageError(
            f"rollback goes to the previous champion, not to {chosen.version}",
            hint="promote or deploy takes a version.",
        )
    what = f"takes back the canary of {chosen.name}, or the last change of its route"
    if not yes and has_terminal():
        what = live.rollback_target(chosen.spec)
    _confirm(f"This {what}. Continue?", chosen, None, yes=yes)
    with _says_what_is_live(chosen):
        record = live.rollback(
            chosen.spec, on_live=lambda version: note(f"version {version} is live; setting the alias")
        )
    return _answer(record)


def _confirm(question: str, chosen: Chosen, version: str | None, *, yes: bool) -> None:
    """Ask for confirmation; also without a question it is said that nobody answers while a version is replaced."""
    from raymlops.lifecycle.overview import outage_line

    line = outage_line(chosen.spec, version)
    if yes and line is not None:
        note(line)
    confirm(f"{line}.\n{question}" if line else question, yes=yes)


def _answer(record: Any) -> Answer:
    return Answer(record.to_dict(), deployment_text(record))


def deployment_text(record: Any) -> str:
    """Return who answers now, in a line; print the record's warnings."""
    from raymlops.lifecycle.rollout.canary import TrafficRecord

    for warning in record.warnings:
        note(f"warning: {warning}")
    if isinstance(record, TrafficRecord):
        return _share(record)
    took = record.url is not None and record.previous_version is not None
    old = f"version {record.previous_version}"
    kept = f"{old} kept warm" if record.away_s is None else f"{old} ended; nobody answered for {record.away_s:.0f} s"
    before = f", {kept}" if took else ""
    where = f" at {record.url}" if record.url else ", not served" if record.role == "champion" else ", without a route"
    return f"{record.name} version {record.version} is {record.role}{where}{before}"


def _check_options(shares: Sequence[str], flags: Collection[str], *, follow: bool) -> None:
    """Reject options of ``deploy`` that exclude each other.

    Raises:
        UsageError: naming them.
    """
    instead = [flag for flag in ("--remove", "--restore", "--beside") if flag in flags]
    if "--takeover" in flags and instead != ["--restore"]:
        raise UsageError(
            "--takeover lets a state database that is an older backup count, and goes with --restore alone",
            hint="What another state deployed is not taken over: change it where that state is.",
        )
    if follow and (shares or set(flags) - {"--wait"}):
        raise UsageError("--wait follows a rollout", hint="Begin one with --steps or --bake, or leave --wait out.")
    moving = [*shares, *sorted({"--abort", "--wait", "--breaking"} & set(flags))]
    moving += [flag for flag in ("--again", "--digest") if flag in flags and instead != ["--beside"]]
    if moving and instead:
        raise UsageError(f"--remove, --restore and --beside move no traffic; they go with no {', '.join(moving)}")
    if "--remove" in flags and len(instead) > 1:
        raise UsageError("--remove takes down what is up; it goes with no --beside or --restore")
    if len(instead) > 1:
        raise _restores_all()


def _restores_all() -> UsageError:
    return UsageError(
        "--restore brings back what should be live; it goes with neither --version nor --beside",
        hint="To bring up a version, leave --restore out.",
    )


def _restore(chosen: Chosen | None, *, takeover: bool, yes: bool) -> Answer:
    """Bring every model back, so that nothing needs to be named."""
    from raymlops.lifecycle.named_model import nameless, shown_state
    from raymlops.lifecycle.restore import restore

    if chosen is not None and chosen.version is not None:
        raise _restores_all()
    spec = nameless() if chosen is None else chosen.spec
    state = shown_state(spec)
    confirm(f"Bring back every model that should be live according to {state}?", yes=yes)
    note(f"restoring from the state {state}")
    desired = restore(spec, takeover=takeover, on_warning=lambda text: note(f"warning: {text}"))
    names = sorted({item.name for item in desired})
    return Answer({"deployments": [item.to_dict() for item in desired]}, f"live: {', '.join(names) or 'nothing'}")


def _remove(chosen: Chosen, *, yes: bool) -> Answer:
    """Take a model down, or one version that runs beside the champion."""
    from raymlops.lifecycle.remove import number_of, remove, remove_version

    if chosen.version is None:
        confirm(f"Take {chosen.name} down, with all its versions?", yes=yes)
        versions = remove(chosen.spec)
        return Answer({"removed": versions}, f"removed {len(versions)} versions of {chosen.name}")
    number = number_of(chosen.version)
    confirm(f"Take version {number} of {chosen.name} down?", yes=yes)
    remove_version(chosen.spec, number)
    text = f"removed version {number} of {chosen.name}; {chosen.command('deploy', '--version', number)} brings it back"
    return Answer({"removed": [number]}, text)


def _follow(chosen: Chosen, rollout_id: str) -> Answer:
    from raymlops.lifecycle.rollout.follow import follow_rollout, line_of

    ended = follow_rollout(chosen.spec, rollout_id, on_line=note)
    return Answer(ended.to_dict(), line_of(ended), exit_code=0 if ended.status == "promoted" else 4)


def _target(chosen: Chosen, version: str, *, yes: bool) -> str:
    """Return the model and the version by its number where a terminal shows the question."""
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    if yes or not has_terminal() or version.isdigit():
        return f"{chosen.name} version {version}"
    store = tracker(chosen.spec)
    store.check()
    return f"{chosen.name} version {Registry(store).get(chosen.name, version).version} ({version})"


@contextmanager
def _says_what_is_live(chosen: Chosen) -> Iterator[None]:
    """Note on an interrupt which version is live: it may have come after the change."""
    from raymlops.lifecycle.overview import champion_line

    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(champion_line(chosen.spec))
        raise


def _percents(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--steps is a list of percentages such as 10,50,100; got {text[:60]!r}") from None


def _share(record: TrafficRecord) -> str:
    version, champion = f"{record.name} version {record.version}", f"version {record.previous_version}"
    copies = f", copies of {100 * record.shadow:g}%" if record.shadow else ""
    if record.weight:
        rollout = f"; rollout {record.rollout_id} continues by itself: raymlops status" if record.rollout_id else ""
        return f"{version} answers {100 * record.weight:g}%{copies}, {champion} the rest{rollout}"
    took = record.changed or record.rollout_id is not None
    ever = copies or (" any more" if took else ", as before")
    rest = f"{champion} has all requests" if record.previous_version is not None else "no version is live"
    return f"{version} answers nothing{ever}; {rest}"

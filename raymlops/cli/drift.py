"""``drift``: whether the traffic of a model is unlike what is normal."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, YesFlag, confirm
from raymlops.cli.source import NamedArgument, choose
from raymlops.errors import UsageError

DRIFTED = 6
"""Exit code of ``--fail-on-drift``."""
_DECISIONS = "--acknowledge ID, --known ID, --revoke ID or --rebaseline"


def drift(
    words: NamedArgument = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Every window since then, as 7d or an ISO time.  [default: the newest one]"),
    ] = None,
    between_columns: Annotated[
        bool, typer.Option("--between-columns", help="Judge the correlation of each two inputs too.")
    ] = False,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the report, one HTML file: the newest 120 windows over time."),
    ] = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="End with exit code 6 on an alarm that nobody acknowledged.")
    ] = False,
    acknowledge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Acknowledge an incident, and again for another one: its column is normal from its first window on.",
        ),
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Mute an incident until it is over; what is normal stays as it is."),
    ] = None,
    revoke: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Take --acknowledge or --known back: the incident is open, told and counted."),
    ] = None,
    rebaseline: Annotated[
        bool, typer.Option("--rebaseline", help="Say that the newest windows are normal, up to four weeks of them.")
    ] = False,
    why: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the audit record.")] = None,
    test_message: Annotated[
        bool, typer.Option("--test-message", help="Send a message to all that monitor.notify names, and end.")
    ] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Compare a live model's newest traffic, inputs and outputs, with what is normal for it."""
    from raymlops.lifecycle.watch import acknowledge as decide
    from raymlops.lifecycle.watch.drift import drift as found

    chosen = choose(words, config=config, env=env, deployed=True)
    name = chosen.name
    if chosen.version is not None:
        raise UsageError(
            f"drift is of a model, not of its version {chosen.version}",
            hint=f"raymlops drift {name} compares what the champion gets.",
        )
    if test_message:
        from raymlops.lifecycle.watch.messaging.messengers import send_test

        sent = send_test(chosen.spec)
        return Answer(sent.to_dict(), sent.text(), exit_code=sent.exit_code)
    decided = {"acknowledge": acknowledge, "known": known, "revoke": revoke, "rebaseline": rebaseline}
    decided = {option: value for option, value in decided.items() if value}
    if not decided:
        if why is not None:
            raise UsageError(f"--why is of {_DECISIONS}")
        record = found(name, since=since, between_columns=between_columns, report=report, config=chosen.spec)
        text = record.text() if report is None else f"{record.text()}\nreport     {report}"
        return Answer(record.to_dict(), text, exit_code=DRIFTED if fail_on_drift and record.drifted else 0)
    if len(decided) > 1 or since is not None or report is not None or fail_on_drift or between_columns:
        raise UsageError(f"{_DECISIONS} stand alone, each with --why TEXT")
    if why is None:
        raise UsageError("--why is missing", hint="The audit record keeps why: --why TEXT.")
    if rebaseline:
        confirm(
            f"Say that the newest windows of {name} are normal? What is unlike them is drift from then on.", yes=yes
        )
        done = decide.rebaseline(name, why=why, config=chosen.spec)
        return Answer(done.to_dict(), done.text())
    ((option, ids),) = ((option, [*(acknowledge or known or revoke or ())]) for option in decided)
    question, do = {
        "acknowledge": ("Acknowledge {}? Its column is normal from its first window on.", decide.acknowledge),
        "known": ("Mute {} until it is over?", decide.mute),
        "revoke": ("Take back what was said of {}?", decide.revoke),
    }[option]
    confirm(question.format(f"{', '.join(ids)} of {name}"), yes=yes)
    done = do(name, *ids, why=why, config=chosen.spec)
    return Answer(done.to_dict(), done.text())

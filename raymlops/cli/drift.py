"""``drift``: whether the traffic of a model is unlike what is normal."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, YesFlag, confirm
from raymlops.cli.source import NamedArgument, choose
from raymlops.errors import UsageError

DRIFTED = 6
"""Exit code of ``--fail-on-drift``."""


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
        bool, typer.Option("--fail-on-drift", help="End with exit code 6 where a window is an alarm.")
    ] = False,
    acknowledge: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Acknowledge an incident. What drifted is normal from its first window on; a bound stays as it is, "
            "and its incident open.",
        ),
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
    from raymlops.lifecycle.watch.acknowledge import acknowledge as accept
    from raymlops.lifecycle.watch.acknowledge import rebaseline as accept_newest
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
    if acknowledge is None and not rebaseline:
        if why is not None:
            raise UsageError("--why is of --acknowledge ID or --rebaseline")
        record = found(name, since=since, between_columns=between_columns, report=report, config=chosen.spec)
        text = record.text() if report is None else f"{record.text()}\nreport     {report}"
        return Answer(record.to_dict(), text, exit_code=DRIFTED if fail_on_drift and record.drifted else 0)
    asked = since is not None or report is not None or fail_on_drift or between_columns
    if (acknowledge is not None and rebaseline) or asked:
        raise UsageError("--acknowledge ID and --rebaseline stand alone, each with --why TEXT")
    if why is None:
        raise UsageError("--why is missing", hint="The audit record keeps why: --why TEXT.")
    if acknowledge is None:
        confirm(
            f"Say that the newest windows of {name} are normal? What is unlike them is drift from then on.", yes=yes
        )
        done = accept_newest(name, why=why, config=chosen.spec)
    else:
        confirm(
            f"Acknowledge incident {acknowledge} of {name}? What drifted is normal from its first window on; a bound "
            "of monitor.quality stays as it is, and its incident open.",
            yes=yes,
        )
        done = accept(name, acknowledge, why=why, config=chosen.spec)
    return Answer(done.to_dict(), done.text())

"""``quality``: how good the answers of a model are by their labels."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlops.cli.drift import DRIFTED
from raymlops.cli.output import Answer, EnvOption, OptionalConfig
from raymlops.cli.source import NamedArgument, choose
from raymlops.errors import UsageError


def quality(
    words: NamedArgument = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Every window since then, as 7d or an ISO time.  [default: the newest one]"),
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report of drift and quality, one HTML file.")
    ] = None,
    fail_on_worse: Annotated[
        bool, typer.Option("--fail-on-worse", help="End with exit code 6 where the newest verdict is an alarm.")
    ] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
) -> Answer:
    """Compare a live model's labelled answers with its test rows: is it worse than it was at its promotion?"""
    from raymlops.lifecycle.quality.quality import quality as found

    chosen = choose(words, config=config, env=env, deployed=True)
    if chosen.version is not None:
        raise UsageError(
            f"quality is of a model, not of its version {chosen.version}",
            hint=f"raymlops quality {chosen.name} compares what the champion answers.",
        )
    record = found(chosen.name, since=since, report=report, config=chosen.spec)
    text = record.text() if report is None else f"{record.text()}\nreport     {report}"
    return Answer(record.to_dict(), text, exit_code=DRIFTED if fail_on_worse and record.worse else 0)

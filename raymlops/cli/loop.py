"""``retrain``, ``freeze`` and ``proposals``: what a person decides of a model's loop, and what the loop submits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raymlops.cli.output import Answer, ConfigOption, EnvOption, OptionalConfig, Overrides, YesFlag, confirm
from raymlops.cli.source import Chosen, NamedArgument, choose, choose_if_named
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.config.schema import ProjectSpec

WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for the audit record.", show_default=False)]
ProposalArgument = Annotated[str, typer.Argument(metavar="ID", help="A proposal, as proposals list names it.")]


def retrain(
    words: NamedArgument = None,
    *,
    why: WhyOption,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Retrain a live model now, whatever triggers it otherwise; the controller promotes it if it passes."""
    from raymlops.lifecycle.loop.retrain import retrain as begin

    chosen = _model(words, "retrain", config=config, env=env)
    confirm(f"Retrain {chosen.name}, and promote the new version if it passes?", yes=yes)
    done = begin(chosen.name, why=why, config=chosen.spec)
    return Answer(done.to_dict(), done.text())


def freeze(
    words: NamedArgument = None,
    *,
    why: WhyOption,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="When it ends by itself, as 12h or an ISO time.  [default: by --thaw]"),
    ] = None,
    thaw: Annotated[bool, typer.Option("--thaw", help="End the freeze.")] = False,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Pause automatic retraining and promotion of a model; rollbacks stay possible."""
    from raymlops.lifecycle.loop.freeze import freeze as begin
    from raymlops.lifecycle.loop.freeze import thaw as end

    chosen = _model(words, "freeze", config=config, env=env)
    if thaw:
        if until is not None:
            raise UsageError("--thaw ends a freeze now, and --until ends one later", hint="Leave one of them out.")
        confirm(f"Thaw {chosen.name}? The loop resumes.", yes=yes)
        done = end(chosen.name, why=why, config=chosen.spec)
    else:
        confirm(f"Freeze {chosen.name}? Its automatic retraining and promotion are paused.", yes=yes)
        done = begin(chosen.name, why=why, until=until, config=chosen.spec)
    return Answer(done.to_dict(), done.text())


def list_proposals(words: NamedArgument = None, *, config: OptionalConfig = None, env: EnvOption = None) -> Answer:
    """Print the retrainings that wait for a person, with their evidence; of one model, or of all."""
    from raymlops.lifecycle.loop.proposals import proposals

    chosen = choose_if_named(words, config=config, env=env, deployed=True)
    found = proposals() if chosen is None else proposals(chosen.name, config=chosen.spec)
    return Answer(found.to_dict(), found.text())


def accept(
    proposal: ProposalArgument,
    overrides: Overrides = None,
    *,
    why: WhyOption,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Accept a proposal: the model is retrained, and the new version promoted if it passes."""
    from raymlops.lifecycle.loop.proposals import accept as answer

    confirm(f"Accept {proposal}? The model is retrained, and the new version promoted if it passes.", yes=yes)
    done = answer(proposal, why=why, config=_source(overrides, config=config, env=env))
    return Answer(done.to_dict(), done.text())


def reject(
    proposal: ProposalArgument,
    overrides: Overrides = None,
    *,
    why: WhyOption,
    config: OptionalConfig = None,
    env: EnvOption = None,
    yes: YesFlag = False,
) -> Answer:
    """Reject a proposal; the same evidence does not trigger another retraining."""
    from raymlops.lifecycle.loop.proposals import reject as answer

    confirm(f"Reject {proposal}? The same evidence does not trigger another retraining.", yes=yes)
    done = answer(proposal, why=why, config=_source(overrides, config=config, env=env))
    return Answer(done.to_dict(), done.text())


def watch(words: NamedArgument = None, *, config: OptionalConfig = None, env: EnvOption = None) -> Answer:
    """Start the controller that watches a live model, unless it runs, and print what its loop waits for."""
    from raymlops.lifecycle.retraining.watch import watch as begin

    done = begin(_model(words, "watch", config=config, env=env).spec)
    return Answer(done.to_dict(), done.text())


def retraining_job(
    retraining_id: Annotated[str, typer.Argument(metavar="ID", help="The retraining.")],
    task: Annotated[
        Literal["train", "gate", "replay", "compare"],
        typer.Argument(metavar="TASK", help="train, gate, replay or compare."),
    ],
    config: ConfigOption,
) -> Answer:
    """Run a task of a retraining, in the job that the controller submitted."""
    from raymlops.lifecycle.retraining.tasks import retraining_job as run_task

    record: Any = run_task(config, retraining_id, task)
    return Answer(record.to_dict(), f"{record.task}  {record.result}")


def _model(words: list[str] | None, verb: str, *, config: str | None, env: str | None) -> Chosen:
    chosen = choose(words, config=config, env=env, deployed=True)
    if chosen.version is not None:
        raise UsageError(
            f"{verb} is of a model, not of its version {chosen.version}", hint=f"raymlops {verb} {chosen.name}"
        )
    return chosen


def _source(overrides: list[str] | None, *, config: str | None, env: str | None) -> ProjectSpec | None:
    """Return the configuration that says where the state is; None for the environment's."""
    from raymlops.lifecycle.sources import stores_of

    return None if config is None and not overrides else stores_of(config, overrides=overrides or (), env=env)

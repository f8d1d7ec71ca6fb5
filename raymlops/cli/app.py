"""The verbs in one place: what each returns is printed, and errors become exit codes.

Inside a Ray job the last line of stdout is ``RAYMLOPS_RESULT {json}``, whatever the outcome.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from raymlops.cli import (
    clusters,
    drift,
    keys,
    live,
    loop,
    models,
    operations,
    output,
    predict,
    predictions,
    projects,
    quality,
    runs,
    traffic,
)
from raymlops.cli.output import Answer, JsonFlag, error_data, report_error
from raymlops.cluster.driver_node import reporting_by
from raymlops.cluster.grace_period import JOB
from raymlops.errors import UsageError
from raymlops.version import __version__

Verb = Callable[..., Answer | None]

VERBS: tuple[Verb, ...] = (
    *(projects.init, projects.validate, runs.train, runs.sweep, runs.compare, operations.logs, operations.gc),
    *(operations.backup, operations.restore),
    *(live.demo, live.pipeline, live.controller, live.audit, traffic.deploy, traffic.promote, traffic.rollback),
    *(
        predict.predict,
        predictions.predictions,
        drift.drift,
        loop.retrain,
        loop.freeze,
        loop.watch,
        quality.quality,
        clusters.up,
        clusters.down,
        clusters.drain,
        clusters.status,
        clusters.doctor,
    ),
)
GROUPS: dict[str, tuple[str, dict[str, Verb]]] = {
    "config": ("Inspect a configuration.", {"show": projects.show, "schema": projects.schema}),
    "render": ("Generate files for other tools.", {"kubernetes": projects.kubernetes}),
    "models": (
        "Registered model versions.",
        {"register": models.register, "gate": models.gate, "own": models.own, "list": models.list_versions},
    ),
    "proposals": (
        "Retrainings that wait for a person.",
        {"list": loop.list_proposals, "accept": loop.accept, "reject": loop.reject},
    ),
    "keys": (
        "API keys of the endpoints.",
        {"create": keys.create, "list": keys.list_keys, "revoke": keys.revoke, "rotate": keys.rotate},
    ),
}


class _InterruptedError(BaseException):
    """Carries an interrupt and its notes past typer, which turns a KeyboardInterrupt into a bare exit code."""

    def __init__(self, by: KeyboardInterrupt) -> None:
        super().__init__()
        self.by = by


def command(verb: Verb) -> Verb:
    """Return a verb with ``--json`` that prints the answer of ``verb``.

    A verb that prints its answer itself, as it comes, has a parameter ``as_json`` of its own and returns None.
    """
    signature = inspect.signature(verb, eval_str=True)
    prints_itself = "as_json" in signature.parameters
    flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag)
    parameters = {**signature.parameters, "as_json": flag}

    @functools.wraps(verb)
    def run(*, as_json: bool, **options: Any) -> Answer | None:
        try:
            found = verb(**options, as_json=as_json) if prints_itself else verb(**options)
            if found is not None:
                output.answer(found, as_json=as_json)
        except KeyboardInterrupt as error:
            raise _InterruptedError(error) from error
        return found

    # typer reads both.
    run.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


app = typer.Typer(
    name="raymlops",
    help="From a PyTorch model to a live endpoint on one Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    app.command()(command(verb))
app.command(hidden=True)(command(loop.retraining_job))
# Its words are another command's: options of that one come after them.
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(clusters.env)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(
    command(clusters.submit)
)
for name, (about, verbs) in GROUPS.items():
    group = typer.Typer(help=about, no_args_is_help=True)
    for word, verb in verbs.items():
        group.command(word)(command(verb))
    app.add_typer(group, name=name)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """From a PyTorch model to a live endpoint on one Ray cluster."""


def main(arguments: list[str], *, result: bool = False) -> int:
    """Run one command and return its exit code; with ``result``, and inside a Ray job, end with a result line."""
    if arguments == ["--version"]:
        sys.stdout.write(f"raymlops {__version__}\n")
        return 0
    # Each full garbage collection walks all of torch, Ray and MLflow: seven of them took a quarter of a verb's start.
    gc.set_threshold(*gc.get_threshold()[:2], 200)
    # The console script puts its own folder first; recipes are imported from the working directory.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    result = result or (JOB in os.environ and not as_json)

    def end(data: Mapping[str, Any], code: int) -> int:
        if result:
            output.print_result(arguments[0] if arguments else "", data, code)
        return code

    def fail(error: BaseException) -> int:
        return end({"error": error_data(error)}, report_error(error, as_json=as_json))

    with reporting_by(fail):
        try:
            # With standalone_mode=False typer returns what the verb does, the code of typer.Exit, or raises.
            found = app(arguments, standalone_mode=False)
        except typer.Abort:
            return fail(KeyboardInterrupt())
        except _InterruptedError as interrupted:
            return fail(interrupted.by)
        except TyperException as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                output.note(error.format_message())
                return end({}, UsageError.exit_code)
            hint = "Commands: raymlops --help. Options: raymlops COMMAND --help."
            return fail(UsageError(error.format_message(), hint=hint))
        except BrokenPipeError:
            output.discard_stdout()
            return end({}, 0)
        # A recipe may call sys.exit, and Ray does when it is stopped while it starts.
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            return fail(error)
        return end(found.data, found.exit_code) if isinstance(found, Answer) else end({}, found or 0)


def _interrupt(_number: int, _frame: FrameType | None) -> Any:
    # SIGTERM (a job is stopped, a container ends) is handled like Ctrl-C: everything is cleaned up.
    raise KeyboardInterrupt

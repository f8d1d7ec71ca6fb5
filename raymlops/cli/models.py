"""``models``: register, gate and list model versions."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlops.cli.output import Answer, EnvOption, OptionalConfig, Overrides, number
from raymlops.cli.source import NamedArgument, VersionOption, choose, choose_if_named
from raymlops.display import table
from raymlops.errors import UsageError
from raymlops.records import GateDecision, ModelVersionRef


def register(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A finished run of train.")],
    overrides: Overrides = None,
    *,
    config: OptionalConfig = None,
    repaired: Annotated[
        bool, typer.Option("--repaired", help="Its code changed since it was registered: make another version of it.")
    ] = False,
    env: EnvOption = None,
) -> Answer:
    """Evaluate a run on its test split, write its bundle and register it as candidate."""
    from raymlops.lifecycle.named_model import of_run
    from raymlops.lifecycle.registration.register import register as register_run

    chosen = None if config is None else choose(overrides, config=config, env=env)
    if chosen is None and (overrides or env is not None):
        raise UsageError("values replace those of a file", hint="Name it with --config FILE.")
    ref = register_run(of_run(run_id) if chosen is None else chosen.spec, run_id, repaired=repaired)
    gating = f"raymlops models gate {ref.name}" if chosen is None else chosen.command("models gate")
    return Answer(ref.to_dict(), f"{_line(ref)}\nnext  {gating} --version {ref.version}")


def gate(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    version: VersionOption = None,
    adopt: Annotated[
        str | None,
        typer.Option(
            "--adopt", metavar="DIGEST", help="Of a version registered from another state: run its code and record it."
        ),
    ] = None,
    env: EnvOption = None,
) -> Answer:
    """Run the gate; a version that passes becomes challenger (exit code 4 if refused).

    The rules are those of --config; with a NAME those that the version was registered with. Default: @candidate.
    """
    from raymlops.lifecycle.named_model import was_deployed
    from raymlops.lifecycle.registration.gate import gate as ask_gate

    chosen = choose(words, config=config, env=env, version=version)
    ref, decision = ask_gate(chosen.spec, chosen.version or "@candidate", adopt=adopt, own_rules=chosen.named)
    data = {"version": ref.to_dict(), "decision": decision.to_dict()}
    which = () if "challenger" in ref.aliases else ("--version", ref.version)  # another state owns the aliases
    by_name = chosen.named and not was_deployed(chosen.name)  # whose serve settings are in its configuration alone
    of_file = " ".join(map(str, ("raymlops deploy --config FILE", *which)))
    following = of_file if by_name else chosen.command("deploy", *which)
    return Answer(data, f"{_line(ref)}\n{checks(decision)}\nnext  {following}")


def own(
    words: NamedArgument = None,
    *,
    config: OptionalConfig = None,
    env: EnvOption = None,
) -> Answer:
    """Let MLflow's aliases of a model follow this state, where several share an MLflow; the first to deploy has them.

    They name what is live here from then on. The state that had them leaves them alone, and its status says so.
    """
    from raymlops.lifecycle.registration.aliases import own_aliases

    chosen = choose(words, config=config, env=env)
    version = own_aliases(chosen.spec)
    named = "no version yet" if version is None else f"version {version}"
    return Answer({"name": chosen.name, "champion": version}, f"{chosen.name}: champion names {named}")


def list_versions(words: NamedArgument = None, *, config: OptionalConfig = None, env: EnvOption = None) -> Answer:
    """List the versions of one model, or of all."""
    from raymlops.lifecycle.sources import stores_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    chosen = choose_if_named(words, config=config, env=env)
    store = tracker(stores_of(None if chosen is None else chosen.spec))
    store.check()  # a server that is down is reported at once: the registry's own client retries for half a minute
    refs = Registry(store).list(None if chosen is None else chosen.name)
    rows = [
        {
            **ref.to_dict(),
            "aliases": ", ".join(ref.aliases),
            "digest": ref.bundle.digest[:12],
            "code": f"changed since its training: {ref.code_sha[:12]}" if ref.code_sha else "",
        }
        for ref in refs
    ]
    columns = dict.fromkeys(("name", "version", "aliases", "run_id", "digest", "code"))
    return Answer({"versions": [ref.to_dict() for ref in refs]}, table(rows, columns))


def checks(decision: GateDecision) -> str:
    """Return the gate's checks as a table."""
    rows = [
        {"ok": "pass" if c.passed else "FAIL", "check": c.name, "got": c.got, "allowed": c.allowed}
        for c in decision.checks
    ]
    columns = {"ok": None, "check": None, "got": number, "allowed": None}
    return "\n".join([table(rows, columns) if rows else "no checks configured", *decision.notes])


def _line(ref: ModelVersionRef) -> str:
    aliases = f" ({', '.join(ref.aliases)})" if ref.aliases else ""
    code = ", its code changed since its training" if ref.code_sha else ""
    return f"{ref.name} version {ref.version}{aliases}, run {ref.run_id}, digest {ref.bundle.digest[:12]}{code}"

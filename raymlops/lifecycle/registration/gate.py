"""From candidate to challenger: evaluate the gate, and record its decision.

The decision itself is pure, in ``registry.gate``; this module gathers its inputs and acts on it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.config.messages import check
from raymlops.config.schema import ProjectSpec
from raymlops.config.yaml import dotted
from raymlops.errors import (
    ConfigError,
    GateRefusedError,
    Problem,
    RaymlopsError,
    RecipeError,
    RecipeImportError,
    RefusedError,
    UnreachableError,
)
from raymlops.lifecycle.registration.admission import CHAMPION, adoptable, as_recorded, live_champion
from raymlops.lifecycle.registration.register import written_sources
from raymlops.lifecycle.registration.request_path import answers_requests, rows_of
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.project import Project
from raymlops.registry.lineage import GATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.bundle.load import LoadedModel
    from raymlops.data.prepare import Prepared
    from raymlops.records import GateDecision, ModelVersionRef
    from raymlops.registry.gate_rules import ChampionEvaluation
    from raymlops.registry.versions import Registry
    from raymlops.state.store import State
    from raymlops.state.versions import VersionRecord
    from raymlops.tracking.client import Tracker

CHALLENGER = "challenger"


def gate(
    source: Source,
    version: str = "@candidate",
    *,
    adopt: str | None = None,
    own_rules: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
) -> tuple[ModelVersionRef, GateDecision]:
    """Ask the gate about a version; a version that passes gets the alias ``challenger``.

    The version must answer requests: its example rows and rows of its validation split go the way of a request through
    its own code. The thresholds and the margin are those of ``source``, with ``own_rules`` those of the configuration
    in the version's bundle. The champion, if there is one, answers the same
    test rows, with its own code; a champion that cannot is no proof that the version is not worse, so the gate refuses
    then. The decision is first in the state, with its audit event, then on the version as a tag, passed or not. A kill
    in between is mended by the same call again. A version that is refused is challenger no more.

    The version's code runs here. So its digest must be the one that this state recorded at its registration. For a
    version that was registered from another state, ``adopt`` names the digest in full: with its verdict it is recorded
    here, and counts from then on.

    Raises:
        NotFoundError: there is no such version.
        GateRefusedError: the gate refused it; the message carries the numbers.
        RefusedError: the data is no longer what the version was tested on; this state has no record of the version, or
            MLflow says otherwise, and ``adopt`` does not name what it says.
        BundleError: the version's files do not match their digest.
        StorageError, UnreachableError: the audit record cannot be written, or the tracking server does not answer.
    """
    from raymlops.bundle.load import load
    from raymlops.registry.gate_rules import decide
    from raymlops.registry.versions import Registry
    from raymlops.state.database import state_url
    from raymlops.state.store import State
    from raymlops.state.versions import recorded
    from raymlops.tracking.client import tracker as tracker_of

    here = spec_of(source, overrides=overrides, env=env)
    tracker = tracker_of(here)
    registry = Registry(tracker)
    ref = registry.get(here.project.name, version)
    with State.open(state_url(here)) as state:
        record = recorded(state, ref.name, ref.version)
        ref = adoptable(ref, record, adopt=adopt)
        candidate = load(ref.bundle.uri, ref.bundle.digest)
        project = _project_of(candidate, here)
        rules = project.spec.gate if own_rules else here.gate
        metric = rules.metric or f"test/{project.spec.train.metric.removeprefix('validation/')}"
        live = live_champion(state, ref.name)
        current = live or registry.by_alias(ref.name, CHAMPION)
        if current is not None and current.version == ref.version:
            current = None
        prepared, note = _prepared(candidate, project, ref, tracker=tracker, needed=current is not None)
        rows = rows_of(candidate, None if prepared is None else prepared.splits["validation"])
        answers = answers_requests(candidate, rows, batch_size=project.spec.train.eval_batch_size)
        blocks, champion = _compare(
            candidate,
            project,
            ref=ref,
            current=current,
            live=live is not None,
            num_blocks=rules.blocks,
            metric=metric,
            prepared=prepared,
            state=state,
        )
        decision = decide(
            rules,
            metrics=candidate.evaluation["metrics"],
            metric=metric,
            mode=rules.mode or project.spec.train.mode,
            candidate_blocks=blocks,
            candidate_finalize=candidate.recipe.finalize,
            champion=champion,
            answers=answers,
        )
        decision = replace(decision, notes=(*decision.notes, *([note] if note else [])))
        _record(decision, ref, seen=record, registry=registry, state=state)
    if not decision.passed:
        raise GateRefusedError(
            f"{ref.name} version {ref.version} is no challenger: {decision.reason}", hint=_way_on(ref, champion)
        )
    return replace(ref, aliases=registry.get(ref.name, str(ref.version)).aliases), decision


def _project_of(candidate: LoadedModel, here: ProjectSpec) -> Project:
    """Return the candidate's own project, placed where ``here`` says things are.

    Its data is looked for by the recipe as it is installed here, because files beside a recipe do not travel with its
    code; where it is not, the code in the bundle has to do.
    """
    from ruamel.yaml import YAML

    data = YAML(typ="safe").load(candidate.config_yaml)
    data |= {key: here.to_dict()[key] for key in ("tracking", "storage", "cluster")}
    try:
        return Project.from_dict(data)
    except (RecipeImportError, ConfigError):
        spec, findings = check(ProjectSpec, data, lenient=True)
        if spec is None:
            problems = [Problem(dotted(finding.path), finding.message, "config.yaml") for finding in findings]
            raise ConfigError(
                problems, hint="The bundle's configuration is not one that this version can read."
            ) from None
        return Project(spec, type(candidate.recipe), candidate.recipe.config)


def _prepared(
    candidate: LoadedModel, project: Project, ref: ModelVersionRef, *, tracker: Tracker, needed: bool
) -> tuple[Prepared | None, str | None]:
    """Return the candidate's data; None with a note where it cannot be had and nothing but its requests needs it."""
    from raymlops.data.prepare import prepare

    try:
        sources = written_sources(tracker, ref.run_id)
        return prepare(project, state=candidate.recipe.state, sources=sources), None
    except RaymlopsError as error:
        if needed or isinstance(error, UnreachableError):
            raise
        return None, f"Of its data only the example rows were asked, as it cannot be read here: {error.message}"


def _compare(
    candidate: LoadedModel,
    project: Project,
    *,
    ref: ModelVersionRef,
    current: ModelVersionRef | None,
    live: bool,
    num_blocks: int,
    metric: str,
    prepared: Prepared | None,
    state: State,
) -> tuple[list[dict[str, Any]], ChampionEvaluation | None]:
    """Return both versions' sums over the same blocks of the candidate's test rows.

    A ``current`` champion that is not ``live`` here is only MLflow's word, and must be what this state recorded.
    """
    from raymlops.bundle.load import load
    from raymlops.registry.gate_rules import ChampionEvaluation, overlap
    from raymlops.state.versions import recorded
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.loop.evaluation import block_totals

    if current is None or prepared is None:
        return [], None
    then, rows = candidate.evaluation["data_fingerprint"], candidate.evaluation["rows"]
    if prepared.data_as(then, rows={"test": rows}).fingerprint != then:
        raise RefusedError(
            f"the data is no longer what {ref.name} version {ref.version} was tested on, so its champion cannot "
            "predict the same rows",
            hint="Restore the data, or train and register again on what is there now.",
        )
    test, device = prepared.splits["test"], local_device(project.spec.train)

    def sums(model: LoadedModel) -> list[dict[str, Any]]:
        rows = test.for_recipe(model.recipe)
        size = project.spec.train.eval_batch_size
        with on_device(model.model, device):
            return block_totals(model.recipe, model.model, rows, blocks=num_blocks, batch_size=size, device=device)

    blocks = sums(candidate)
    try:
        if not live:
            current = as_recorded(current, recorded(state, current.name, current.version))
        champion = load(current.bundle.uri, current.bundle.digest)
        theirs = sums(champion)
        _check_finalize(champion, theirs, metric)
        share = overlap(champion.row_hashes, test.row_hashes())
    except UnreachableError:
        raise  # the storage is away for now, which says nothing of the champion
    except Exception as error:
        # Its bundle is gone or damaged, or its code does not run here any more: whatever it is, it is the champion's.
        reason = f"{type(error).__name__}: {error}"
        return blocks, ChampionEvaluation(version=current.version, blocks=None, finalize=None, reason=reason)
    return blocks, ChampionEvaluation(
        version=current.version, blocks=theirs, finalize=champion.recipe.finalize, trained_on_share=share
    )


def _check_finalize(champion: LoadedModel, blocks: list[dict[str, Any]], metric: str) -> None:
    """Call the champion's ``finalize`` on all rows, so that its trouble is found as the champion's."""
    whole = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    found = champion.recipe.finalize(whole)
    key = metric.removeprefix("test/")
    if key not in found:
        raise RecipeError(f"its finalize() returns {', '.join(found)}, and no {key}")


def _record(
    decision: GateDecision, ref: ModelVersionRef, *, seen: VersionRecord | None, registry: Registry, state: State
) -> None:
    from raymlops.state.versions import record_verdict

    record_verdict(
        state,
        ref,
        seen=seen,
        passed=decision.passed,
        decision=decision.to_dict(),
        why=decision.reason,
        now=datetime.now(UTC),
    )
    registry.tag(
        ref.name,
        ref.version,
        {
            GATE: "passed" if decision.passed else "refused",
            "raymlops.gate_decision": json.dumps(decision.to_dict(), default=str)[:4900],
        },
    )
    if decision.passed:
        registry.set_alias(ref.name, CHALLENGER, ref.version)
    elif (challenger := registry.by_alias(ref.name, CHALLENGER)) and challenger.version == ref.version:
        registry.delete_alias(ref.name, CHALLENGER)


def _way_on(ref: ModelVersionRef, champion: ChampionEvaluation | None) -> str | None:
    if champion is None or champion.blocks is not None:
        return None
    return (
        f"Champion version {champion.version} could not be asked: {champion.reason}\n"
        "  Restore what it lacks, or make another version that has passed champion (raymlops promote), or take the "
        f"alias champion of {ref.name} away in MLflow, then ask again."
    )

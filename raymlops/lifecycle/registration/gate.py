"""From candidate to challenger: evaluate the gate, and record its decision.

The decision itself is pure, in ``registry.gate``; this module gathers its inputs and acts on it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

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
from raymlops.lifecycle.registration.aliases import CHALLENGER, other_owner
from raymlops.lifecycle.registration.both_classes import both_classes
from raymlops.lifecycle.registration.later_rows import blocks_of, later_rows
from raymlops.lifecycle.registration.register import fixed_sources
from raymlops.lifecycle.registration.request_path import answers_requests, rows_of
from raymlops.lifecycle.registration.served_answers import compare_served
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.project import Project
from raymlops.registry.lineage import GATE
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from raymlops.bundle.load import LoadedModel
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.records import GateCheck, GateDecision, ModelVersionRef
    from raymlops.registry.gate_rules import BlocksAre, ChampionEvaluation
    from raymlops.registry.versions import Registry
    from raymlops.state.store import State
    from raymlops.state.versions import VersionRecord
    from raymlops.tracking.client import Tracker


def gate(
    source: Source,
    version: str = "@candidate",
    *,
    adopt: str | None = None,
    own_rules: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
) -> tuple[ModelVersionRef, GateDecision]:
    """Run the gate on a version; a version that passes gets the alias ``challenger``.

    The version must answer requests: its example rows and rows of its validation split take the path of a request
    through its own code, and its answers to test rows must follow their labels where its metric does. Thresholds and
    margin are those of ``source``, with ``own_rules`` those of the configuration in the version's bundle. The champion,
    if any, predicts the same test rows with its own code; if it cannot, nothing shows that the version is not worse,
    and the gate rejects it. With ``gate.later_rows`` the test rows must be later than the training rows. The decision
    is recorded in the state first, with its audit event, then as a tag of the version. After a kill in between, the
    same call completes it. A rejected version loses the alias ``challenger``. Where another state owns the model's
    aliases, they stay as they are, and the champion is the one that is live here, if any.

    The version's code runs here. So its digest must be the one that this state recorded at its registration. For a
    version that was registered from another state, ``adopt`` names the full digest: it is recorded here together with
    the verdict.

    Raises:
        NotFoundError: there is no such version.
        GateRefusedError: the gate rejected it; the message has the numbers.
        RefusedError: the data is no longer what the version was tested on; this state has no record of the version, or
            MLflow contradicts it, and ``adopt`` does not name MLflow's digest.
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
        recipe, metrics = candidate.recipe, candidate.evaluation["metrics"]
        project = _project_of(candidate, here)
        rules = project.spec.gate if own_rules else here.gate
        metric = rules.metric or f"test/{project.spec.train.metric.removeprefix('validation/')}"
        live = live_champion(state, ref.name)
        other = other_owner(registry, state.owner(), ref.name)
        current, alone = _rival(ref, live, other, registry=registry, state=state)
        needed = current is not None or bool(rules.later_rows)
        prepared, note = _prepared(candidate, project, ref, tracker=tracker, needed=needed)
        rows = rows_of(candidate, None if prepared is None else prepared.splits["validation"])
        mode = rules.mode or project.spec.train.mode
        test = prepared.splits["test"] if prepared is not None and rules.compare_answers else None
        served, notes = _served(candidate, rows, test, metric=metric, mode=mode, section=project.spec.train)
        tested: list[GateCheck] = []
        until: tuple[str, str] | None = None
        if prepared is not None and rules.later_rows:
            tested, until = later_rows(candidate, prepared, most=rules.max_same_rows)
        blocks: list[dict[str, Any]] = []
        champion = None
        blocks_are: BlocksAre = "blocks"
        if current is not None and prepared is not None:
            test = _tested_split(candidate, prepared, ref)
            parts, blocks_are = blocks_of(test, prepared.recipe, number=rules.blocks)
            sums = partial(_block_sums, test=test, section=project.spec.train, blocks=parts)
            tested += both_classes(candidate, test)
            blocks = sums(candidate)
            del candidate  # one model in memory at a time
            champion = _champion(current, sums, live=live is not None, test=test, metric=metric, state=state)
        decision = decide(
            rules,
            metrics=metrics,
            metric=metric,
            mode=mode,
            candidate_blocks=blocks,
            candidate_finalize=recipe.finalize,
            champion=champion,
            served=[*served, *tested],
            blocks_are=blocks_are,
        )
        rows_until, labels_until = until or (None, None)
        decision = replace(
            decision,
            notes=(*decision.notes, *notes, *([note] if note else []), *alone),
            rows_until=rows_until,
            labels_until=labels_until,
        )
        _record(decision, ref, seen=record, registry=registry, state=state, named=other is None)
    if not decision.passed:
        raise GateRefusedError(
            f"{ref.name} version {ref.version} is no challenger: {decision.reason}",
            hint=_way_on(ref, champion, served=served),
        )
    return replace(ref, aliases=registry.get(ref.name, str(ref.version)).aliases), decision


def _rival(
    ref: ModelVersionRef, live: ModelVersionRef | None, other: str | None, *, registry: Registry, state: State
) -> tuple[ModelVersionRef | None, list[str]]:
    """Return the champion to compare with, and a note where MLflow names one that is none of this state's.

    That is the one that is live here; where none is, MLflow's if this state recorded it and no other has the aliases,
    or if nobody has them: then it may be live somewhere, and ``models own`` says that it does not concern this state.
    """
    from raymlops.state.versions import recorded

    said = live or registry.by_alias(ref.name, CHAMPION)
    if said is None or said.version == ref.version:
        return None, []
    if live is not None:
        return live, []
    if other is None and (recorded(state, said.name, said.version) is not None or not registry.owner(ref.name)):
        return said, []
    whose = f"is of {other}" if other else f"version {said.version} was not registered from this state"
    return None, [f"No version is live here to compare with: MLflow's champion {whose}"]


def _project_of(candidate: LoadedModel, here: ProjectSpec) -> Project:
    """Return the candidate's own project, with the tracking, storage and cluster of ``here``.

    Its data is loaded by the recipe as it is installed here, because files beside a recipe are not part of the bundle;
    if it is not installed, by the code in the bundle.
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
    """Return the candidate's data; None with a note if it cannot be loaded and is not needed for a comparison."""
    from raymlops.data.prepare import prepare

    try:
        sources = fixed_sources(tracker, ref.run_id)
        return prepare(project, state=candidate.recipe.state, sources=sources), None
    except RaymlopsError as error:
        if needed or isinstance(error, UnreachableError):
            raise
        return None, f"Only the example rows of its data were predicted, since it cannot be read here: {error.message}"


def _tested_split(candidate: LoadedModel, prepared: Prepared, ref: ModelVersionRef) -> SplitData:
    """Return the test split, which must still be the data of the candidate's evaluation."""
    then, rows = candidate.evaluation["data_fingerprint"], candidate.evaluation["rows"]
    if prepared.data_as(then, rows={"test": rows}).fingerprint != then:
        raise RefusedError(
            f"the data is no longer what {ref.name} version {ref.version} was tested on, so its champion cannot "
            "predict the same rows",
            hint="Restore the data, or train and register again on what is there now.",
        )
    return prepared.splits["test"]


def _served(
    candidate: LoadedModel,
    rows: list[dict[str, Any]],
    test: SplitData | None,
    *,
    metric: str,
    mode: Literal["min", "max"],
    section: TrainSection,
) -> tuple[list[GateCheck], list[str]]:
    """Return the checks of what callers get, and notes: does the candidate answer requests, and what is measured?

    They run on the device that it was trained on, if this process has one.
    """
    from raymlops.training.inprocess import local_device, on_device

    device = local_device(section)
    with on_device(candidate.model, device):
        there = replace(candidate, device=device)
        checks = [answers_requests(there, rows, batch_size=section.eval_rows)]
        if test is None or not checks[0].passed:
            return checks, []
        found = compare_served(there, test, metric=metric, mode=mode, batch_size=section.eval_rows)
    if isinstance(found, str):
        return checks, [f"Its answers were not compared with labels: {found}"]
    return [*checks, found], []


def _block_sums(
    model: LoadedModel, *, test: SplitData, section: TrainSection, blocks: Sequence[npt.NDArray[np.int64]]
) -> list[dict[str, Any]]:
    """Return a model's metric sums over blocks of the test rows."""
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.loop.evaluation import block_totals

    rows, device, size = test.for_recipe(model.recipe), local_device(section), section.eval_rows
    with on_device(model.model, device):
        return block_totals(model.recipe, model.model, rows, blocks=blocks, batch_size=size, device=device)


def _champion(
    current: ModelVersionRef,
    sums: Callable[[LoadedModel], list[dict[str, Any]]],
    *,
    live: bool,
    test: SplitData,
    metric: str,
    state: State,
) -> ChampionEvaluation:
    """Return the champion's ``sums``, or the reason why it has none.

    A champion that is not ``live`` here is only claimed by MLflow, and must be what this state recorded.
    """
    from raymlops.bundle.load import load
    from raymlops.bundle.trained_rows import overlap
    from raymlops.registry.gate_rules import ChampionEvaluation
    from raymlops.state.versions import recorded

    try:
        if not live:
            current = as_recorded(current, recorded(state, current.name, current.version))
        champion = load(current.bundle.uri, current.bundle.digest)
        blocks = sums(champion)
        _check_finalize(champion, blocks, metric)
        share = overlap(champion.row_hashes, test.hashes(), hashed_share=champion.hashed_share).share
    except UnreachableError:
        raise  # the storage does not answer now, which says nothing about the champion
    except Exception as error:
        # Its bundle is missing or damaged, or its code no longer runs here: whatever it is, it is the champion's.
        reason = f"{type(error).__name__}: {error}"
        return ChampionEvaluation(version=current.version, blocks=None, finalize=None, reason=reason)
    finalize = champion.recipe.finalize
    return ChampionEvaluation(version=current.version, blocks=blocks, finalize=finalize, trained_on_share=share)


def _check_finalize(champion: LoadedModel, blocks: list[dict[str, Any]], metric: str) -> None:
    """Call the champion's ``finalize`` on all rows, so that its errors are attributed to the champion."""
    whole = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    found = champion.recipe.finalize(whole)
    key = metric.removeprefix("test/")
    if key not in found:
        raise RecipeError(f"its finalize() returns {', '.join(found)}, and no {key}")


def _record(
    decision: GateDecision,
    ref: ModelVersionRef,
    *,
    seen: VersionRecord | None,
    registry: Registry,
    state: State,
    named: bool,
) -> None:
    """Record a decision in the state, as a tag, and where the aliases may be ``named`` here by ``challenger``."""
    from raymlops.state.versions import record_verdict

    record_verdict(
        state,
        ref,
        seen=seen,
        passed=decision.passed,
        decision=decision.to_dict(),
        why=decision.reason,
        now=clock.now(),
    )
    registry.tag(
        ref.name,
        ref.version,
        {
            GATE: "passed" if decision.passed else "refused",
            "raymlops.gate_decision": json.dumps(decision.to_dict(), default=str)[:4900],
        },
    )
    if not named:
        return
    if decision.passed:
        registry.set_alias(ref.name, CHALLENGER, ref.version)
    elif (challenger := registry.by_alias(ref.name, CHALLENGER)) and challenger.version == ref.version:
        registry.delete_alias(ref.name, CHALLENGER)


def _way_on(ref: ModelVersionRef, champion: ChampionEvaluation | None, *, served: Sequence[GateCheck]) -> str | None:
    if not all(check.passed for check in served):
        return (
            "Repair encode(), predict() or decode(); then this makes another version of the same weights:\n"
            f"  raymlops models register {ref.run_id} --repaired"
        )
    if champion is None or champion.blocks is not None:
        return None
    return (
        f"Champion version {champion.version} could not be evaluated: {champion.reason}\n"
        "  Restore what it lacks, or make another version that has passed champion (raymlops promote), or remove the "
        f"alias champion of {ref.name} in MLflow, then run the gate again."
    )

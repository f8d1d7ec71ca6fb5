"""From candidate to challenger: the gate asked with real numbers, its decision put on the record.

The decision itself is pure and stands in ``registry.gate``; this module gathers what it needs and acts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.errors import ConfigError, GateRefusedError, RaymlopsError, RecipeImportError, RefusedError
from raymlops.lifecycle.source import Source, spec_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.bundle.load import LoadedModel
    from raymlops.config.schema import ProjectSpec
    from raymlops.project import Project
    from raymlops.records import GateDecision, ModelVersionRef
    from raymlops.registry.gate import ChampionEvaluation

GATE_TAG = "raymlops.gate"
"""Tag of a version: ``passed`` or ``refused``."""


def gate(
    source: Source, version: str = "@candidate", *, overrides: Sequence[str] = (), env: str | None = None
) -> tuple[ModelVersionRef, GateDecision]:
    """Ask the gate about a version; a version that passes gets the alias ``challenger``.

    The thresholds and the margin are those of ``source``. The champion, if there is one, answers the same test rows,
    with its own code. The decision is on the version as a tag and in the audit record, passed or not.

    Raises:
        NotFoundError: there is no such version.
        GateRefusedError: the gate refused it; the message carries the numbers.
        RefusedError: the data is no longer what the version was tested on.
        BundleError: the version's files, or the champion's, do not match their digest.
    """
    from raymlops.bundle.load import load
    from raymlops.registry.gate import decide
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker as tracker_of

    here = spec_of(source, overrides=overrides, env=env)
    registry = Registry(tracker_of(here))
    ref = registry.get(here.project.name, version)
    candidate = load(ref.bundle.uri, ref.bundle.digest)
    project = _project_of(candidate, here)
    metric = here.gate.metric or f"test/{project.spec.train.metric.removeprefix('validation/')}"
    current = registry.by_alias(ref.name, "champion")
    blocks, champion = _compare(candidate, project, current, ref=ref, spec=here)
    decision = decide(
        here.gate,
        metrics=candidate.evaluation["metrics"],
        metric=metric,
        mode=here.gate.mode or project.spec.train.mode,
        candidate_blocks=blocks,
        candidate_finalize=candidate.recipe.finalize,
        champion=champion,
    )
    _record(decision, ref, registry=registry, spec=here)
    if not decision.passed:
        raise GateRefusedError(f"{ref.name} version {ref.version} stays candidate: {decision.reason}")
    return registry.get(ref.name, str(ref.version)), decision


def _project_of(candidate: LoadedModel, here: ProjectSpec) -> Project:
    """Return the candidate's own project, placed where ``here`` says things are.

    Its data is looked for by the recipe as it is installed here, because files beside a recipe do not travel with its
    code; where it is not, the code in the bundle has to do.
    """
    from ruamel.yaml import YAML

    from raymlops.config.load import load_data
    from raymlops.project import bind

    data = YAML(typ="safe").load(candidate.config_yaml)
    data |= {key: here.to_dict()[key] for key in ("tracking", "storage", "cluster")}
    try:
        return bind(load_data(data))
    except (RecipeImportError, ConfigError):
        return bind(load_data(data), recipe=type(candidate.recipe))


def _compare(
    candidate: LoadedModel,
    project: Project,
    current: ModelVersionRef | None,
    *,
    ref: ModelVersionRef,
    spec: ProjectSpec,
) -> tuple[list[dict[str, Any]], ChampionEvaluation | None]:
    """Return both versions' sums over the same blocks of the candidate's test rows."""
    from raymlops.bundle.load import load
    from raymlops.registry.gate import ChampionEvaluation, overlap
    from raymlops.training.data import prepare
    from raymlops.training.evaluate import block_totals

    if current is None or current.version == ref.version:
        return [], None
    prepared = prepare(project, state=candidate.recipe.state)
    if prepared.data.fingerprint != candidate.evaluation["data_fingerprint"]:
        raise RefusedError(
            f"the data is no longer what {ref.name} version {ref.version} was tested on, so its champion cannot be "
            "asked for the same rows",
            hint="Restore the data, or train and register again on what is there now.",
        )
    test = prepared.splits["test"]

    def sums(model: LoadedModel) -> list[dict[str, Any]]:
        rows = test.for_recipe(model.recipe)
        size = project.spec.train.eval_batch_size
        return block_totals(model.recipe, model.model, rows, blocks=spec.gate.blocks, batch_size=size)

    blocks = sums(candidate)
    champion = load(current.bundle.uri, current.bundle.digest)
    try:
        theirs = sums(champion)
    except RaymlopsError as error:
        return blocks, ChampionEvaluation(version=current.version, blocks=None, finalize=None, reason=str(error))
    return blocks, ChampionEvaluation(
        version=current.version,
        blocks=theirs,
        finalize=champion.recipe.finalize,
        trained_on_share=overlap(champion.row_hashes, test.row_hashes()),
    )


def _record(decision: GateDecision, ref: ModelVersionRef, *, registry: Any, spec: ProjectSpec) -> None:
    from raymlops.state.store import State, state_url

    registry.tag(
        ref.name,
        ref.version,
        {
            GATE_TAG: "passed" if decision.passed else "refused",
            "raymlops.gate_decision": json.dumps(decision.to_dict(), default=str)[:4900],
        },
    )
    if decision.passed:
        registry.set_alias(ref.name, "challenger", ref.version)
    with State.open(state_url(spec)) as state:
        state.record(
            action="gate.pass" if decision.passed else "gate.refuse",
            subject=f"{ref.name}/{ref.version}",
            after=decision.to_dict(),
            why=decision.reason,
        )

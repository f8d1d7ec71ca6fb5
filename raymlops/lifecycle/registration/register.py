"""From a finished run to a registered version: evaluate once, write the bundle, register it as candidate.

Owns the order and the contents of a bundle. The files belong to ``bundle``, the versions to ``registry``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raymlops.errors import BundleError, NotFoundError, RefusedError
from raymlops.lifecycle.registration.admission import as_recorded
from raymlops.lifecycle.registration.code_changes import check_repair, code_change, trained_model
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.training.runs.lookup import EVALUATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from raymlops.bundle.write import BundleContents
    from raymlops.config.schema import ProjectSpec
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.project import Project
    from raymlops.records import BundleRef, ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import Tracker


def register(
    source: Source, run_id: str, *, repaired: bool = False, overrides: Sequence[str] = (), env: str | None = None
) -> ModelVersionRef:
    """Register a finished run as a model version with the alias ``candidate``.

    ``source`` locates tracking and storage; recipe and training come from the run's own resolved configuration. The
    recipe's code must still be the code of the training, or be shown to give the same model: see ``code_changes``. The
    test split is evaluated once and the result stored with the run. Registering a run again returns the same version;
    with ``repaired``, code that changed since is another version.

    The state records the version by the digest of the bundle that is written here. A version that MLflow has and this
    state does not, because a registration was killed or made from another state, is recorded if the bundle written here
    is the same.

    Raises:
        NotFoundError: there is no such run.
        RefusedError: the run has not finished, is not a training, is of another project, or its data or code has
            changed since; or MLflow contradicts this state about its version.
        BundleError, StorageError, TrackingError: nothing is registered.
    """
    from ruamel.yaml import YAML

    from raymlops.bundle.write import write_bundle
    from raymlops.data.prepare import prepare
    from raymlops.project import Project
    from raymlops.registry.lineage import lineage_tags
    from raymlops.registry.versions import Registry
    from raymlops.state.database import state_url
    from raymlops.state.store import State
    from raymlops.state.versions import record_version
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.training.checkpoints.format import trained
    from raymlops.training.runs.mlflow_run import CONFIG

    here = spec_of(source, overrides=overrides, env=env)
    tracker = tracker_of(here)
    tags = _training_tags(tracker, run_id, project=here.project.name)
    registry = Registry(tracker)
    versions = registry.of_run(here.project.name, run_id)
    known = versions[-1] if versions and not repaired else None
    if known is not None and (whole := _recorded_whole(known, here)) is not None:
        return _mirrored(known, whole, registry=registry)
    project = Project.from_dict(YAML(typ="safe").load(tracker.read_text(run_id, CONFIG)))
    change = code_change(project, tracker, run_id=run_id, tags=tags)
    if repaired:
        now = change.now if change else ""
        known = next((version for version in versions if version.code_sha == now), None)
        if known is not None and (whole := _recorded_whole(known, here)) is not None:
            return _mirrored(known, whole, registry=registry)
    lineage = lineage_tags(run_id=run_id, run_tags=tags) | (change.tags() if change else {})
    with trained(tags["raymlops.weights_uri"]) as weights:
        prepared = prepare(project, state=weights.fit, sources=written_sources(tracker, run_id))
        _check_data(prepared, tags, run_id=run_id)
        model = trained_model(prepared, weights, change=change)
    if change is not None:
        check_repair(change, project.spec.train, prepared, model=model, step=weights.step, tags=tags)
    contents = _contents(project, prepared, model, tracker=tracker, run_id=run_id, lineage=lineage)
    contents = replace(contents, trained_with=_trained_with(tracker, run_id))
    if change is None:
        contents = replace(contents, left_out=_left_out(tracker, run_id))
    bundle = write_bundle(here.storage.path, contents)
    if known is None:
        known = registry.register(
            here.project.name,
            run_id=run_id,
            bundle=bundle,
            tags={**here.project.tags, **lineage},
            description=here.project.description,
        )
    bundle = _same_bundle(known, bundle)
    with State.open(state_url(here)) as journal:
        why = f"run {run_id} requested" + (f"; its code changed since its training ({change.what})" if change else "")
        record_version(journal, replace(known, bundle=bundle), why=why, now=datetime.now(UTC))
    return _mirrored(known, bundle, registry=registry)


def _check_data(prepared: Prepared, tags: Mapping[str, str], *, run_id: str) -> None:
    from raymlops.data.prepare import SEED_IT
    from raymlops.training.runs.mlflow_run import FINGERPRINT, ROWS

    then = tags[FINGERPRINT]
    now = prepared.data_as(then, rows=json.loads(tags.get(ROWS, "{}"))).fingerprint
    if now != then:
        raise RefusedError(
            f"the data is no longer what run {run_id} was trained on: fingerprint {now[:12]}, then {then[:12]}",
            hint=f"Restore the data, or train again on what is there now. {SEED_IT}",
        )


def written_sources(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Return the stored splits of a run that were written from Ray Data, whose pipelines do not run again."""
    from raymlops.data.prepare import SOURCES, written

    try:
        return written(json.loads(tracker.read_text(run_id, SOURCES)))
    except NotFoundError:
        return {}


def _trained_with(tracker: Tracker, run_id: str) -> dict[str, str]:
    """Return the distributions that were installed for the training, by name; empty where the run does not say."""
    from raymlops.training.runs.mlflow_run import PACKAGES

    try:
        lines = tracker.read_text(run_id, PACKAGES).split()
    except NotFoundError:
        return {}
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def _left_out(tracker: Tracker, run_id: str) -> list[str] | None:
    """Return the files that the training found beside its code; None where the run does not say.

    What a package's folder gathers later, such as outputs, must not make another bundle of the same run.
    """
    from raymlops.training.runs.mlflow_run import CODE_LEFT_OUT

    try:
        return list(json.loads(tracker.read_text(run_id, CODE_LEFT_OUT)))
    except NotFoundError:
        return None


def _training_tags(tracker: Tracker, run_id: str, *, project: str) -> dict[str, str]:
    """Return the tags of a finished training of a project.

    Raises:
        RefusedError: it has no weights, has not finished, or is of another project, whose model it would not be.
    """
    run = tracker.run(run_id)
    tags = dict(run.data.tags)
    kind = tags.get("raymlops.kind")
    if kind not in {"run", "trial"} or "raymlops.weights_uri" not in tags:
        raise RefusedError(
            f"run {run_id} holds no trained weights (its kind is {kind or 'not raymlops'})",
            hint="Register a run of `raymlops train`; a sweep's best configuration is trained first.",
        )
    if run.info.status != "FINISHED":
        raise RefusedError(f"run {run_id} is {run.info.status}", hint="Only a FINISHED run can be registered.")
    if (found := tags.get("raymlops.project", project)) != project:
        raise RefusedError(
            f"run {run_id} is of project {found}, not of {project}",
            hint=f"Register it without --config, or with the configuration of {found}.",
        )
    return tags


def _recorded_whole(known: ModelVersionRef, here: ProjectSpec) -> BundleRef | None:
    """Return the bundle of a version that this state recorded, None if it has not or the bundle is damaged.

    Raises:
        RefusedError: MLflow contradicts the record.
    """
    from raymlops.state.database import state_url
    from raymlops.state.store import State
    from raymlops.state.versions import recorded

    with State.open(state_url(here)) as journal:
        record = recorded(journal, known.name, known.version)
    if record is None:
        return None
    as_recorded(replace(known, bundle=replace(known.bundle, uri=record.bundle.uri)), record)
    return record.bundle if _is_whole(record.bundle) else None


def _is_whole(bundle: BundleRef) -> bool:
    from raymlops.bundle.verify import verify

    try:
        verify(bundle.uri, bundle.digest)
    except BundleError:
        return False
    return True


def _same_bundle(known: ModelVersionRef, written: BundleRef) -> BundleRef:
    """Return the bundle of a version: MLflow's, or if that is lost, the one that was ``written`` again."""
    if known.bundle == written:
        return written
    whole = _is_whole(known.bundle)
    if written.digest != known.bundle.digest:
        lost = "" if whole else f" is lost ({known.bundle.uri}), and"
        raise BundleError(
            f"the bundle of {known.name} version {known.version}{lost} is not what run {known.run_id} makes here: "
            f"registered with digest {known.bundle.digest}, written with {written.digest}",
            hint="Another release of raymlops, changed code or a changed tag makes the difference. Restore the bundle "
            "from a copy; or register the code as it is now as another version: raymlops models register "
            f"{known.run_id} --repaired. If {known.bundle.digest} is what it was registered with: raymlops models gate "
            f"--config FILE --version {known.version} --adopt {known.bundle.digest}",
        )
    return known.bundle if whole else written


def _mirrored(known: ModelVersionRef, bundle: BundleRef, *, registry: Registry) -> ModelVersionRef:
    """Return a version with its bundle, and record the bundle's place in MLflow."""
    from raymlops.registry.lineage import bundle_tags

    if known.bundle != bundle:
        registry.tag(known.name, known.version, bundle_tags(bundle))
    return replace(known, bundle=bundle)


def _contents(
    project: Project,
    prepared: Prepared,
    model: nn.Module,
    *,
    tracker: Tracker,
    run_id: str,
    lineage: dict[str, str],
) -> BundleContents:
    """Return what a run's bundle contains."""
    from raymlops.bundle.write import BundleContents
    from raymlops.lifecycle.registration.profiles import profiles
    from raymlops.training.checkpoints.host_copies import model_state
    from raymlops.training.example import example_rows
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.runs.mlflow_run import CONFIG
    from raymlops.training.split_predictions import answer_loss

    recipe, section = prepared.recipe, project.spec.train
    example, batch_size = example_rows(prepared), section.eval_batch_size
    device = local_device(section)
    with on_device(model, device):
        profile = profiles(prepared, model, batch_size=batch_size, device=device)
        loss = answer_loss(prepared, model, batch_size=batch_size, device=device)
        evaluation = _evaluation(tracker, run_id, prepared, model=model, batch_size=batch_size, device=device)
    return BundleContents(
        weights=model_state(model),
        state=recipe.state,
        signature=recipe.signature(),
        example=example,
        recipe_class=project.recipe_class,
        recipe_config=project.recipe_config.model_dump(mode="json"),
        seed=section.seed,
        config_yaml=tracker.read_text(run_id, CONFIG),
        profile=profile,
        evaluation=evaluation,
        row_hashes=_sketch(prepared.splits["train"]),
        lineage=lineage,
        loss=loss.to_dict(),
    )


def _evaluation(
    tracker: Tracker, run_id: str, prepared: Prepared, *, model: nn.Module, batch_size: int, device: str
) -> dict[str, Any]:
    """Return the test metrics of a run: computed the first time, read from the run afterwards."""
    from raymlops.tracking.client import now_ms
    from raymlops.training.loop.evaluation import totals

    try:
        recorded: dict[str, Any] = json.loads(tracker.read_text(run_id, EVALUATION))
    except NotFoundError:
        pass
    else:
        return recorded
    split = prepared.splits["test"]
    sums = totals(prepared.recipe, model, split, batch_size=batch_size, device=device)
    values = prepared.recipe.finalize(sums)
    evaluation: dict[str, Any] = {
        "metrics": {f"test/{name}": float(value) for name, value in values.items()},
        "rows": split.rows,
        "data_fingerprint": prepared.data.fingerprint,
    }
    tracker.log_batch(run_id, [(name, value, 0, now_ms()) for name, value in evaluation["metrics"].items()])
    tracker.log_text(run_id, json.dumps(evaluation, indent=1, sort_keys=True), EVALUATION)
    return evaluation


def _sketch(split: SplitData) -> Any:
    """Return the sketch of a split's row hashes, computed in one pass in constant memory."""
    import numpy as np

    from raymlops.bundle.trained_rows import sketch

    kept = np.empty(0, dtype=np.uint64)
    for chunk in split.hashes():
        kept = sketch(np.concatenate([kept, chunk]))
    return kept

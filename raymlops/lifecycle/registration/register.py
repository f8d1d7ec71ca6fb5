"""From a finished run to a registered version: evaluate once, write the bundle, register it as candidate.

Owns the order. What is in a bundle belongs to ``bundle_contents``, its files to ``bundle``, versions to ``registry``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raymlops.errors import BundleError, NotFoundError, RefusedError
from raymlops.lifecycle.registration.admission import as_recorded
from raymlops.lifecycle.registration.bundle_contents import bundle_contents
from raymlops.lifecycle.registration.code_changes import check_repair, code_change, trained_model
from raymlops.lifecycle.registration.progress import StageProgress
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.storage import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.data.prepare import Prepared
    from raymlops.records import BundleRef, ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import Tracker


def register(
    source: Source,
    run_id: str,
    *,
    repaired: bool = False,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> ModelVersionRef:
    """Register a finished run as a model version with the alias ``candidate``.

    ``source`` locates tracking and storage; recipe and training come from the run's own resolved configuration. The
    recipe's code must still be the code of the training, or be shown to give the same model: see ``code_changes``. The
    test split is evaluated once and the result stored with the run. Registering a run again returns the same version;
    with ``repaired``, code that changed since is another version. ``on_line`` gets the progress of one that takes long,
    by default stderr.

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
    progress = StageProgress(on_line)
    lineage = lineage_tags(run_id=run_id, run_tags=tags) | (change.tags() if change else {})
    with trained(tags["raymlops.weights_uri"]) as weights:
        progress.stage("reading the data")
        prepared = prepare(project, state=weights.fit, sources=fixed_sources(tracker, run_id))
        for split in prepared.splits.values():
            split.on_progress = progress.alive
        _check_data(prepared, tags, run_id=run_id)
        progress.stage("reading the weights")
        model = trained_model(prepared, weights, change=change)
    if change is not None:
        progress.stage("evaluating the repaired code on the validation split")
        check_repair(change, project.spec.train, prepared, model=model, step=weights.step, tags=tags)
    contents = bundle_contents(
        project,
        prepared,
        model,
        tracker=tracker,
        run_id=run_id,
        weights_uri=tags["raymlops.weights_uri"],
        lineage=lineage,
        code_changed=change is not None,
        progress=progress,
    )
    progress.stage("writing the bundle")
    bundle = write_bundle(here.storage.path, contents)
    if known is None:
        progress.stage("logging the bundle to MLflow")
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
        record_version(journal, replace(known, bundle=bundle), why=why, now=clock.now())
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


def fixed_sources(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Return the splits of a run that are read as it read them, without asking ``datasets()``."""
    from raymlops.data.prepare import SOURCES, fixed

    try:
        return fixed(json.loads(tracker.read_text(run_id, SOURCES)))
    except NotFoundError:
        return {}


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

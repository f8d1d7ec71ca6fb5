"""From a finished run to a registered version: evaluate once, write the bundle, register it as candidate.

Owns the order and what goes into a bundle. The files are ``bundle``'s, the versions ``registry``'s.
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
    from collections.abc import Callable, Sequence

    from torch import nn

    from raymlops.bundle.write import BundleContents
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.project import Project
    from raymlops.records import BundleRef, ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import Tracker


def register(source: Source, run_id: str, *, overrides: Sequence[str] = (), env: str | None = None) -> ModelVersionRef:
    """Register a finished run as a model version with the alias ``candidate``.

    ``source`` says where tracking and storage are; recipe and training come from the run's own resolved
    configuration. The recipe's code must still be what the run was trained with, or be shown to be the same model: see
    ``repairs``. The test split is evaluated once and the result kept on the run. Registering a run again returns the
    same version, wherever from.

    The state records the version by the digest of the bundle that is written here. A version that MLflow knows and this
    state does not, since a registration was killed or was made from another state, is recorded once the bundle written
    here is the same.

    Raises:
        NotFoundError: there is no such run.
        RefusedError: the run did not finish, is no training or of another project, or its data or code is no longer
            what it was trained on; or MLflow says otherwise of its version than this state.
        BundleError, StorageError, TrackingError: nothing is registered.
    """
    from raymlops.bundle.write import write_bundle
    from raymlops.data.prepare import SEED_IT, prepare
    from raymlops.registry.lineage import lineage_tags
    from raymlops.registry.versions import Registry
    from raymlops.state.database import state_url
    from raymlops.state.store import State
    from raymlops.state.versions import record_version, recorded
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.training.checkpoints.format import load_weights
    from raymlops.training.runs.mlflow_run import CONFIG, FINGERPRINT, ROWS

    here = spec_of(source, overrides=overrides, env=env)
    tracker = tracker_of(here)
    tags = _training_tags(tracker, run_id)
    _check_project(tags.get("raymlops.project"), here.project.name, run_id=run_id)
    registry = Registry(tracker)
    known = registry.of_run(here.project.name, run_id)
    with State.open(state_url(here)) as journal:
        record = None if known is None else recorded(journal, known.name, known.version)
    if known is not None and record is not None:
        as_recorded(replace(known, bundle=replace(known.bundle, uri=record.bundle.uri)), record)
        if _is_whole(record.bundle):
            return _mirrored(known, record.bundle, registry=registry)
    config_yaml = tracker.read_text(run_id, CONFIG)
    project = _project_of_run(config_yaml)
    change = code_change(project, tracker, run_id=run_id, tags=tags)
    weights, state = load_weights(tags["raymlops.weights_uri"])
    prepared = prepare(project, state=state, sources=written_sources(tracker, run_id))
    then = tags[FINGERPRINT]
    now = prepared.data_as(then, rows=json.loads(tags.get(ROWS, "{}"))).fingerprint
    if now != then:
        raise RefusedError(
            f"the data is no longer what run {run_id} was trained on: fingerprint {now[:12]}, then {then[:12]}",
            hint=f"Restore the data, or train again on what is there now. {SEED_IT}",
        )
    lineage = lineage_tags(run_id=run_id, run_tags=tags)
    if change is not None:
        check_repair(change, project, prepared, weights=weights, tags=tags)
        lineage |= change.tags()
    contents = _contents(
        project,
        prepared,
        weights=weights,
        config_yaml=config_yaml,
        evaluation=lambda model, device: _evaluation(
            project, prepared, model=model, device=device, tracker=tracker, run_id=run_id
        ),
        lineage=lineage,
    )
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
        why = f"run {run_id} requested"
        record_version(journal, replace(known, bundle=bundle), why=why, now=datetime.now(UTC))
    return _mirrored(known, bundle, registry=registry)


def written_sources(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Return where the splits of a run are that were written from Ray Data, whose pipelines are not run again."""
    from raymlops.data.prepare import SOURCES, written

    try:
        return written(json.loads(tracker.read_text(run_id, SOURCES)))
    except NotFoundError:
        return {}


def _training_tags(tracker: Tracker, run_id: str) -> dict[str, str]:
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
    return tags


def _check_project(found: str | None, wanted: str, *, run_id: str) -> None:
    """Refuse a run of another project: its bundle would become a version of a model that it has nothing to do with.

    Raises:
        RefusedError: it is one.
    """
    if found is not None and found != wanted:
        raise RefusedError(
            f"run {run_id} is of project {found}, not of {wanted}",
            hint=f"Register it without --config, or with the configuration of {found}.",
        )


def _is_whole(bundle: BundleRef) -> bool:
    from raymlops.bundle.verify import verify

    try:
        verify(bundle.uri, bundle.digest)
    except BundleError:
        return False
    return True


def _project_of_run(config_yaml: str) -> Project:
    """Return the project that a run wrote down; keys that another version of raymlops wrote are ignored."""
    from ruamel.yaml import YAML

    from raymlops.project import Project

    return Project.from_dict(YAML(typ="safe").load(config_yaml))


def _same_bundle(known: ModelVersionRef, written: BundleRef) -> BundleRef:
    """Return where the bundle of a version is: as MLflow says, or where that is lost, as it was ``written`` again."""
    if known.bundle == written:
        return written
    whole = _is_whole(known.bundle)
    if written.digest != known.bundle.digest:
        lost = "" if whole else f" is lost ({known.bundle.uri}), and"
        raise BundleError(
            f"the bundle of {known.name} version {known.version}{lost} is not what run {known.run_id} makes here: "
            f"registered with digest {known.bundle.digest}, written with {written.digest}",
            hint="Another release of raymlops or a changed tag makes the difference. Restore the bundle from a copy, "
            f"or train again. If {known.bundle.digest} is what it was registered with: raymlops models gate "
            f"--config FILE --version {known.version} --adopt {known.bundle.digest}",
        )
    return known.bundle if whole else written


def _mirrored(said: ModelVersionRef, bundle: BundleRef, *, registry: Registry) -> ModelVersionRef:
    """Return a version with its bundle, and let MLflow say where that is."""
    from raymlops.registry.lineage import bundle_tags

    if said.bundle != bundle:
        registry.tag(said.name, said.version, bundle_tags(bundle))
    return replace(said, bundle=bundle)


def _contents(
    project: Project,
    prepared: Prepared,
    *,
    weights: dict[str, Any],
    config_yaml: str,
    evaluation: Callable[[Any, str], dict[str, Any]],
    lineage: dict[str, str],
) -> BundleContents:
    from raymlops.bundle.write import BundleContents
    from raymlops.lifecycle.registration.profiles import profiles
    from raymlops.training.example import example_rows
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.split_predictions import answer_loss

    recipe, section = prepared.recipe, project.spec.train
    example = example_rows(prepared)
    model, device = trained_model(prepared, weights), local_device(section)
    with on_device(model, device):
        profile = profiles(prepared, model, batch_size=section.eval_batch_size, device=device)
        loss = answer_loss(prepared, model, batch_size=section.eval_batch_size, device=device)
        evaluated = evaluation(model, device)
    return BundleContents(
        weights=weights,
        state=recipe.state,
        signature=recipe.signature(),
        example=example,
        recipe_class=project.recipe_class,
        recipe_config=project.recipe_config.model_dump(mode="json"),
        seed=section.seed,
        config_yaml=config_yaml,
        profile=profile,
        evaluation=evaluated,
        row_hashes=_sketch(prepared.splits["train"]),
        lineage=lineage,
        loss=loss.to_dict(),
    )


def _evaluation(
    project: Project, prepared: Prepared, *, model: nn.Module, device: str, tracker: Tracker, run_id: str
) -> dict[str, Any]:
    """Return the test metrics of a run; computed the first time, read back ever after."""
    from raymlops.tracking.client import now_ms
    from raymlops.training.loop.evaluation import totals

    try:
        recorded: dict[str, Any] = json.loads(tracker.read_text(run_id, EVALUATION))
    except NotFoundError:
        pass
    else:
        return recorded
    split = prepared.splits["test"]
    sums = totals(prepared.recipe, model, split, batch_size=project.spec.train.eval_batch_size, device=device)
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
    """Return the sketch of a split's row hashes, which one pass of any length finds in little memory."""
    import numpy as np

    from raymlops.bundle.trained_rows import sketch

    kept = np.empty(0, dtype=np.uint64)
    for chunk in split.hashes():
        kept = sketch(np.concatenate([kept, chunk]))
    return kept

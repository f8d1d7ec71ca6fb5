"""From a finished run to a registered version: evaluate once, write the bundle, register it as candidate.

Owns the order and what goes into a bundle. The files are ``bundle``'s, the versions ``registry``'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.errors import BundleError, NotFoundError, RecipeError, RefusedError
from raymlops.lifecycle.source import Source, spec_of
from raymlops.recipe import call_recipe
from raymlops.training.lookup import EVALUATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from raymlops.bundle.write import BundleContents
    from raymlops.project import Project
    from raymlops.records import BundleRef, ModelVersionRef
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import Tracker
    from raymlops.training.data import Prepared, SplitData

EXAMPLE_ROWS = 2
PROFILE_ROWS = 50_000


def register(source: Source, run_id: str, *, overrides: Sequence[str] = (), env: str | None = None) -> ModelVersionRef:
    """Register a finished run as a model version with the alias ``candidate``.

    ``source`` says where tracking and storage are; recipe and training come from the run's own resolved
    configuration, and the recipe's code must still be what the run was trained with. The test split is evaluated
    once and the result kept on the run. Registering a run again returns the same version, wherever from.

    Raises:
        NotFoundError: there is no such run.
        RefusedError: the run did not finish, is no training, or its data or code is no longer what it was trained on.
        BundleError, StorageError, TrackingError: nothing is registered.
    """
    from raymlops.bundle.write import write_bundle
    from raymlops.registry.lineage import lineage_tags
    from raymlops.registry.versions import Registry
    from raymlops.state.store import State, state_url
    from raymlops.tracking.client import tracker as tracker_of
    from raymlops.training.data import prepare
    from raymlops.training.record import CONFIG
    from raymlops.training.run import load_weights

    here = spec_of(source, overrides=overrides, env=env)
    tracker = tracker_of(here)
    tags = _training_tags(tracker, run_id)
    registry = Registry(tracker)
    known = registry.of_run(here.project.name, run_id)
    if known is not None and _is_whole(known.bundle):
        return known
    config_yaml = tracker.read_text(run_id, CONFIG)
    project = _project_of_run(config_yaml)
    _refuse_other_code(project, tracker, run_id=run_id, tags=tags)
    weights, state = load_weights(tags["raymlops.weights_uri"])
    prepared = prepare(project, state=state, sources=written_sources(tracker, run_id))
    if prepared.data.fingerprint != tags["raymlops.data_fingerprint"]:
        raise RefusedError(
            f"the data is no longer what run {run_id} was trained on: fingerprint {prepared.data.fingerprint[:12]}, "
            f"then {tags['raymlops.data_fingerprint'][:12]}",
            hint="Restore the data, or train again on what is there now.",
        )
    lineage = lineage_tags(run_id=run_id, run_tags=tags)
    contents = _contents(
        project,
        prepared,
        weights=weights,
        config_yaml=config_yaml,
        evaluation=lambda model: _evaluation(project, prepared, model=model, tracker=tracker, run_id=run_id),
        lineage=lineage,
    )
    bundle = write_bundle(here.storage.path, contents)
    if known is not None:
        return _with_bundle_again(known, bundle, registry=registry)
    ref = registry.register(
        here.project.name,
        run_id=run_id,
        bundle=bundle,
        tags={**here.project.tags, **lineage},
        description=here.project.description,
    )
    with State.open(state_url(here)) as journal:
        journal.record(
            action="register", subject=f"{ref.name}/{ref.version}", after=ref.to_dict(), why=f"run {run_id} asked for"
        )
    return ref


def written_sources(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Return where the splits of a run are that were written from Ray Data, whose pipelines are not run again."""
    from raymlops.training.data import SOURCES, written

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


def _refuse_other_code(project: Project, tracker: Tracker, *, run_id: str, tags: Mapping[str, str]) -> None:
    """Refuse to put today's code beside yesterday's weights."""
    from raymlops.bundle.code import collect
    from raymlops.training.record import CODE_FILES, CODE_SHA

    code = collect(project.recipe_class)
    if tags.get(CODE_SHA) == code.sha():
        return
    if CODE_SHA not in tags:
        raise RefusedError(
            f"run {run_id} does not say which code of {project.reference} it was trained with",
            hint="Train again: the code of a bundle must be that of its weights.",
        )
    then, now = json.loads(tracker.read_text(run_id, CODE_FILES)), code.digests()
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if code.files:
        commit = tags.get("raymlops.git_commit")
        what = f"changed: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}"
        back = f"Check out commit {commit[:12]}" if commit else "Restore the files"
        if tags.get("raymlops.git_dirty") == "true":
            back += " with the changes in the run's artifact code/uncommitted.diff"
    else:
        old = ", ".join(f"{name} {then[name]}" for name in changed if name in then) or "a recipe of one's own"
        what = f"{', '.join(f'{name} {version}' for name, version in now.items())} now, {old} then"
        back = "Install that version"
    raise RefusedError(
        f"the code of {project.reference} is no longer what run {run_id} was trained with ({what})",
        hint=f"{back} and register there, or train again with the code as it is.",
    )


def _with_bundle_again(known: ModelVersionRef, bundle: BundleRef, *, registry: Registry) -> ModelVersionRef:
    """Return a version whose lost bundle was written again; it may stand in another place than before."""
    from raymlops.registry.lineage import bundle_tags

    if bundle.digest != known.bundle.digest:
        raise BundleError(
            f"the bundle of {known.name} version {known.version} is lost ({known.bundle.uri}), and what was written "
            f"again is not the same: digest {bundle.digest[:12]}, registered {known.bundle.digest[:12]}",
            hint="Restore the bundle from a copy, or train again.",
        )
    registry.tag(known.name, known.version, bundle_tags(bundle))
    return registry.get(known.name, str(known.version))


def _contents(
    project: Project,
    prepared: Prepared,
    *,
    weights: dict[str, Any],
    config_yaml: str,
    evaluation: Callable[[Any], dict[str, Any]],
    lineage: dict[str, str],
) -> BundleContents:
    from raymlops.bundle.write import BundleContents
    from raymlops.training.answers import answer_loss

    recipe = prepared.recipe
    model = recipe.model()
    model.load_state_dict(weights)
    model.eval()
    return BundleContents(
        weights=weights,
        state=recipe.state,
        signature=recipe.signature(),
        example=_example(prepared),
        recipe_class=project.recipe_class,
        recipe_config=project.recipe_config.model_dump(mode="json"),
        seed=project.spec.train.seed,
        config_yaml=config_yaml,
        profile=_profiles(prepared, model),
        evaluation=evaluation(model),
        row_hashes=_sketch(prepared.splits["train"]),
        lineage=lineage,
        loss=answer_loss(prepared, model, batch_size=project.spec.train.eval_batch_size).to_dict(),
    )


def _evaluation(project: Project, prepared: Prepared, *, model: Any, tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Return the test metrics of a run; computed the first time, read back ever after."""
    from raymlops.training.evaluate import totals

    try:
        recorded: dict[str, Any] = json.loads(tracker.read_text(run_id, EVALUATION))
    except NotFoundError:
        pass
    else:
        return recorded
    split = prepared.splits["test"]
    sums = totals(prepared.recipe, model, split, batch_size=project.spec.train.eval_batch_size)
    values = prepared.recipe.finalize(sums)
    evaluation: dict[str, Any] = {
        "metrics": {f"test/{name}": float(value) for name, value in values.items()},
        "rows": split.rows,
        "data_fingerprint": prepared.data.fingerprint,
    }
    tracker.log_metrics(run_id, [(name, value, 0, None) for name, value in evaluation["metrics"].items()])
    tracker.log_text(run_id, json.dumps(evaluation, indent=1, sort_keys=True), EVALUATION)
    return evaluation


def _example(prepared: Prepared) -> list[dict[str, Any]]:
    """Return request rows that work: the recipe's own, or the first complete validation rows of a table."""
    import torch

    recipe = prepared.recipe
    rows: list[dict[str, Any]] | None = call_recipe(f"{type(recipe).__name__}.example()", recipe.example)
    if rows is None:
        split = prepared.splits["validation"]
        columns = split.take(torch.arange(min(EXAMPLE_ROWS, split.rows)))
        if columns is None:
            raise RecipeError(
                f"{type(recipe).__name__}.example() is needed: its splits are torch datasets, whose items are no rows",
                hint="Return a list with one request row that works.",
            )
        signature = recipe.signature()
        rows = signature.rows({column.name: columns[column.name] for column in signature.inputs})
    recipe.signature().parse_rows(rows)
    return rows


def _profiles(prepared: Prepared, model: Any) -> dict[str, Any]:
    """Return reference profiles of features and predictions; what drift is measured against later.

    A split that is streamed is profiled by an even sample of its rows, which has to fit into memory.
    """
    import torch

    from raymlops.monitor.profile import profile

    recipe = prepared.recipe
    inputs = [column.name for column in recipe.signature().inputs]
    profiles: dict[str, Any] = {}
    for name in ("train", "validation"):
        split = prepared.splits[name]
        sample = split.sample(about_rows=PROFILE_ROWS)
        if sample is None:
            continue
        columns = sample if split.columns is None else split.columns
        with torch.inference_mode():
            predictions = recipe.decode(recipe.predict(model, recipe.encode({key: sample[key] for key in inputs})))
        profiles[name] = {
            "features": profile({key: columns[key] for key in inputs}),
            "predictions": profile(predictions),
        }
    return profiles


def _sketch(split: SplitData) -> Any:
    """Return the sketch of a split's row hashes, which one pass of any length finds in little memory."""
    import numpy as np

    from raymlops.bundle.sketch import sketch

    kept = np.empty(0, dtype=np.uint64)
    for chunk in split.hashes():
        kept = sketch(np.concatenate([kept, chunk]))
    return kept

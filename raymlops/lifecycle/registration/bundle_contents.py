"""What a run's bundle contains: profiles, answers, test metrics, and what the run recorded of its environment.

Everything but the metrics is a function of the run, so that registering it again writes the same bundle. The model is
asked in batches, on the device of the run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymlops.errors import NotFoundError
from raymlops.training.runs.lookup import AT_END, EVALUATION, read_json

if TYPE_CHECKING:
    from torch import nn

    from raymlops.bundle.write import BundleContents
    from raymlops.data.prepare import Prepared, SplitData
    from raymlops.lifecycle.registration.progress import StageProgress
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker


def bundle_contents(
    project: Project,
    prepared: Prepared,
    model: nn.Module,
    *,
    tracker: Tracker,
    run_id: str,
    weights_uri: str,
    lineage: dict[str, str],
    code_changed: bool,
    progress: StageProgress,
) -> BundleContents:
    """Return what a run's bundle contains; ``model`` has the weights of ``weights_uri``, on the CPU, to evaluate."""
    from raymlops.bundle.write import BundleContents
    from raymlops.lifecycle.registration.profiles import references
    from raymlops.lifecycle.registration.quality import quality_reference
    from raymlops.training.checkpoints.host_copies import model_state
    from raymlops.training.example import example_rows
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.runs.mlflow_run import CONFIG
    from raymlops.training.split_predictions import answer_loss

    recipe, section = prepared.recipe, project.spec.train
    example, batch_size = example_rows(prepared), section.eval_rows
    device = local_device(section)
    with on_device(model, device):
        progress.stage("profiling the model's inputs and answers")
        found = references(
            prepared,
            model,
            batch_size=batch_size,
            device=device,
            slices=project.spec.monitor.slices,
            window_h=project.spec.monitor.window_h,
            before_batch=progress.tick,
        )
        progress.stage("comparing its answers with labels")
        loss = answer_loss(prepared, model, batch_size=batch_size, device=device, before_batch=progress.tick)
        quality = quality_reference(
            prepared,
            model,
            loss,
            batch_size=batch_size,
            device=device,
            slices=project.spec.monitor.slices,
            before_batch=progress.tick,
        )
        evaluation = _evaluation(
            tracker,
            run_id,
            prepared,
            model=model,
            weights_uri=None if code_changed else weights_uri,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    progress.stage("hashing the training rows")
    row_hashes, hashed_share = _sketch(prepared.splits["train"])
    return BundleContents(
        weights=model_state(model),
        state=recipe.state,
        signature=recipe.signature(),
        example=example,
        recipe_class=project.recipe_class,
        recipe_config=project.recipe_config.model_dump(mode="json"),
        seed=section.seed,
        config_yaml=tracker.read_text(run_id, CONFIG),
        references=found,
        evaluation=evaluation,
        row_hashes=row_hashes,
        hashed_share=hashed_share,
        lineage=lineage,
        loss=loss.to_dict(),
        quality=None if quality is None else quality.to_dict(),
        trained_with=_trained_with(tracker, run_id),
        left_out=None if code_changed else _left_out(tracker, run_id),
    )


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


def _evaluation(
    tracker: Tracker,
    run_id: str,
    prepared: Prepared,
    *,
    model: nn.Module,
    weights_uri: str | None,
    batch_size: int,
    device: str,
    progress: StageProgress,
) -> dict[str, Any]:
    """Return the test metrics of a run: recorded the first time, read from the run afterwards.

    They are those that its workers had at its end, with the weights of ``weights_uri`` and the same data, or else are
    computed.
    """
    from raymlops.tracking.client import now_ms
    from raymlops.training.loop.evaluation import named_values, totals

    recorded: dict[str, Any] | None = read_json(tracker, run_id, EVALUATION)
    if recorded is not None:
        return recorded
    split, fingerprint = prepared.splits["test"], prepared.data.fingerprint
    at_end = read_json(tracker, run_id, AT_END) or {}
    if {"weights_uri": weights_uri, "data_fingerprint": fingerprint}.items() <= at_end.items():
        metrics = at_end["metrics"]
    else:
        progress.stage("evaluating the test split", batches=-(-split.rows // batch_size))
        sums = totals(prepared.recipe, model, split, batch_size=batch_size, device=device, before_batch=progress.tick)
        metrics = named_values(prepared.recipe, sums, split="test")
    evaluation: dict[str, Any] = {"metrics": metrics, "rows": split.rows, "data_fingerprint": fingerprint}
    tracker.log_batch(run_id, [(name, value, 0, now_ms()) for name, value in evaluation["metrics"].items()])
    tracker.log_text(run_id, json.dumps(evaluation, indent=1, sort_keys=True), EVALUATION)
    return evaluation


def _sketch(split: SplitData) -> tuple[Any, float]:
    """Return the sketch of a split's row hashes, computed in constant memory, and the share of rows that it is of."""
    import numpy as np

    from raymlops.bundle.trained_rows import SKETCH_ROWS, sketch

    hashes, share = split.some_hashes(at_least=SKETCH_ROWS)
    kept = np.empty(0, dtype=np.uint64)
    for chunk in hashes:
        kept = sketch(np.concatenate([kept, chunk]))
    return kept, share

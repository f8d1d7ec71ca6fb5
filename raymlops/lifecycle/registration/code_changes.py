"""Code that changed after a training: rejected with its weights, unless it is shown to give the same model.

A mistake in the serving half of a recipe must not cost the training. The evidence is what the training stored: the
weights that ``model()`` must accept, the data, and the metrics on validation that must come out again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import NotFoundError, RaymlopsError, RecipeError, RefusedError
from raymlops.recipe import Progress
from raymlops.registry.lineage import CODE_CHANGE, CODE_NOW, CODE_THEN
from raymlops.training.runs.lookup import BEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from raymlops.bundle.code import Code
    from raymlops.config.train import TrainSection
    from raymlops.data.prepare import Prepared
    from raymlops.project import Project
    from raymlops.tracking.client import Tracker
    from raymlops.training.checkpoints.format import Trained

_VALIDATION = "validation/"
_TOLERANCES = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Relative: other devices, batch sizes and numbers of workers round differently."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodeChange:
    """How a recipe's code differs from the code of a run's training."""

    run_id: str
    reference: str
    then: str
    """Digest of the code of the training; ``unknown`` where the run does not say."""
    now: str
    what: str
    """The change in words."""
    back: str
    """How to undo it."""
    edited: tuple[str, ...] = ()
    """Files that are newer than this process, which may have imported them as they were before."""

    def tags(self) -> dict[str, str]:
        """Return the tags of a version that is registered with the changed code."""
        return {CODE_NOW: self.now, CODE_THEN: self.then, CODE_CHANGE: self.what}

    def refusal(self, why: str) -> RefusedError:
        """Return the error: what changed, and why it cannot be accepted."""
        return RefusedError(
            f"the code of {self.reference} is no longer what run {self.run_id} was trained with ({self.what}), "
            f"and {why}",
            hint=f"{self.back} and register there, or train again with the code as it is.",
        )


def code_change(project: Project, tracker: Tracker, *, run_id: str, tags: Mapping[str, str]) -> CodeChange | None:
    """Return how the current code differs from the code of a run's training; None if it is the same.

    Raises:
        RecipeError: the current code cannot be bundled.
    """
    from raymlops.bundle.code import collect
    from raymlops.training.runs.mlflow_run import CODE_FILES, CODE_SHA

    code = collect(project.recipe_class)
    if tags.get(CODE_SHA) == code.sha():
        return None
    try:
        then: dict[str, str] = json.loads(tracker.read_text(run_id, CODE_FILES))
    except NotFoundError:
        then = {}
    now = code.digests()
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    back = "Restore the files"
    if not then:
        what = "the run does not say what that was"
    elif code.files:
        what = f"changed: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}"
        commit = tags.get("raymlops.git_commit")
        back = f"Check out commit {commit[:12]}" if commit else back
        if tags.get("raymlops.git_dirty") == "true":
            back += " with the changes in the run's artifact code/uncommitted.diff"
    else:
        old = ", ".join(f"{name} {then[name]}" for name in changed if name in then) or "a recipe of one's own"
        what = f"{', '.join(f'{name} {version}' for name, version in now.items())} now, {old} then"
        back = "Install that version"
    return CodeChange(
        run_id, project.reference, tags.get(CODE_SHA) or "unknown", code.sha(), what, back, edited=_edited(code)
    )


def check_repair(
    change: CodeChange,
    section: TrainSection,
    prepared: Prepared,
    *,
    model: nn.Module,
    step: int,
    tags: Mapping[str, str],
) -> None:
    """Accept changed code that still is the trained model: its model took the weights and gives the recorded metrics.

    ``prepared`` holds the data of the training, as its fingerprint has shown. ``step`` is that of the weights, by which
    what ``metrics`` draws is seeded.

    Raises:
        RefusedError: naming what differs.
    """
    if change.edited:
        raise change.refusal(
            f"{', '.join(change.edited[:3])} changed after this process had started, which may have imported the code "
            "as it was before: ask again in a new process, where the code that travels is the code that is tried"
        )
    recorded = {
        name.removeprefix(BEST): float(value) for name, value in tags.items() if name.startswith(BEST + _VALIDATION)
    }
    if not recorded:
        raise change.refusal("the run has no metrics on validation to compare with")
    try:
        found = _evaluated(section, prepared, model, step=step, world=max(1, int(tags.get("raymlops.workers", 0))))
    except RaymlopsError as error:
        raise change.refusal(f"cannot be evaluated: {error}") from error
    other = differing(recorded, found, tolerance=_TOLERANCES[section.precision])
    if other:
        shown = ", ".join(f"{name} is {found.get(name, math.nan):.6g}, then {recorded[name]:.6g}" for name in other[:3])
        raise change.refusal(f"does not evaluate as it did: {shown}")
    _log.warning(
        "the code of %s is no longer what run %s was trained with (%s); it takes the weights and gives the same %s, "
        "so it is registered as it is now, with both digests on record",
        change.reference,
        change.run_id,
        change.what,
        ", ".join(sorted(recorded)),
    )


def differing(recorded: Mapping[str, float], found: Mapping[str, float], *, tolerance: float) -> Sequence[str]:
    """Return the names whose values are not equal within a relative ``tolerance``; NaN equals NaN."""
    return sorted(
        name
        for name, value in recorded.items()
        if not (
            math.isclose(value, found.get(name, math.nan), rel_tol=tolerance, abs_tol=1e-6)
            or (math.isnan(value) and math.isnan(found.get(name, 0.0)))
        )
    )


def trained_model(prepared: Prepared, weights: Trained, *, change: CodeChange | None) -> nn.Module:
    """Return the recipe's model with the weights of a training, on the CPU, in evaluation mode.

    Raises:
        RecipeError: ``model()`` raises, or builds another model.
        RefusedError: it does since the code's ``change``.
    """
    import torch

    from raymlops.recipe import model_of

    try:
        with torch.random.fork_rng(devices=[]):
            model = model_of(prepared.recipe)
        weights.load_into(model)
    except (RecipeError, RuntimeError) as error:
        if change is not None:
            raise change.refusal(f"cannot use its weights: {error}") from error
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"the weights do not fit {type(prepared.recipe).__name__}.model(), which builds another model than it did "
            f"for the training: {error}"
        ) from error
    return model.eval()


def _evaluated(
    section: TrainSection, prepared: Prepared, model: nn.Module, *, step: int, world: int
) -> dict[str, float]:
    """Return the metrics on validation, as an evaluation in the training computes them: each rank's rows and draws."""
    import torch

    from raymlops.data.order import EVALUATION, seed_all
    from raymlops.data.random_streams import Stream
    from raymlops.training.inprocess import local_device, on_device
    from raymlops.training.loop.evaluation import add, named_values, spread_rows, totals

    device, split, recipe = local_device(section), prepared.splits["validation"], prepared.recipe
    recipe.progress = _progress(section, prepared, step=step)
    sums = None
    with on_device(model, device), Stream(0).drawn_from():
        for rank in range(world):
            seed_all(section.seed, step, rank, EVALUATION, device=torch.device(device))
            share = totals(
                recipe,
                model,
                split,
                batch_size=section.eval_rows,
                rank=rank,
                world=world,
                device=device,
                indices=spread_rows(split, section),
                spec=section,
            )
            sums = add(sums, share)
    assert sums is not None
    found = named_values(recipe, sums, split="validation")
    recipe.progress = Progress()
    return found


def _progress(section: TrainSection, prepared: Prepared, *, step: int) -> Progress:
    from raymlops.data.sampler import epoch_rows
    from raymlops.training.loop.optimizer import total_steps

    rows = epoch_rows(prepared.splits["train"], seed=section.seed)
    steps_an_epoch = total_steps(section.model_copy(update={"epochs": 1, "max_steps": None}), rows=rows)
    return Progress(step, max(1, -(-step // steps_an_epoch)), total_steps(section, rows=rows))


def process_start_s() -> float:
    """Return when this process started, by the clock of files: not later, and by some 10 ms earlier at most."""
    import psutil

    if sys.platform != "linux":
        return float(psutil.Process().create_time())
    # psutil counts from the boot, whose time Linux tells in whole seconds: a file saved just before would be newer.
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _edited(code: Code) -> tuple[str, ...]:
    """Return the files of imported modules that are newer than this process."""
    started_s, found = process_start_s(), []
    for path in code.files:
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).exists() and Path(file).stat().st_mtime > started_s:
            found.append(path)
    return tuple(found)

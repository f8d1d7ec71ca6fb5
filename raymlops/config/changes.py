"""What may differ when a run goes on: which fields decide its result, and how two configurations differ.

Pure. Owns the list of fields; a new one belongs to those that decide until it is put among those that do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec

MAY_CHANGE = (
    "project.description",
    "project.tags",
    # How far it goes, and who decides that it is enough.
    "train.epochs",
    "train.max_steps",
    "train.patience",
    # What it runs on. A batch is the same however many workers share it; dropout draws and batch normalisation counts
    # on each worker by itself, so that with these another number of workers makes a difference, as chance does.
    "train.num_workers",
    "train.cpus_per_worker",
    "train.gpus_per_worker",
    "train.threads_per_worker",
    "train.eval_batch_size",
    "train.shard_min_params",
    "train.compile",
    "train.activation_checkpointing",
    # What is kept, what happens when something fails, and what is said.
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.on_checkpoint_error",
    # Until something is not finite no number depends on it; a run that ended so goes on without the batch.
    "train.on_non_finite",
    "train.on_failure",
    "train.max_restarts",
    "train.hang_timeout_s",
    "train.stop_grace_s",
    "train.grow_after_s",
    "train.peak_tflops",
    "train.log_every_steps",
    # No business of one training.
    "sweep",
    "gate",
    "serve",
    "tracking",
    "cluster",
    "storage.shared",
    "storage.optuna",
    "storage.state",
)
"""Fields, and sections with all their fields, that may be others when a run goes on."""

_APART = ("train.strategy", "recipe.import")
"""Fields that may not change either, and stand in the identity by themselves."""

_EFFECTS = {
    "train.num_workers": "dropout and batch normalisation depend on the number of workers",
    **dict.fromkeys(
        (
            "train.cpus_per_worker",
            "train.gpus_per_worker",
            "train.threads_per_worker",
            "train.compile",
            "train.activation_checkpointing",
        ),
        "rounding may differ",
    ),
}
_LENGTH = ("train.epochs", "train.max_steps")


@dataclass(frozen=True)
class Change:
    """One field that differs. A field that one of the two lacks has None there."""

    path: str
    old: Any
    new: Any
    allowed: bool
    lr_by_length: bool = False
    """Whether the learning rate at a step depends on how many steps there are to be."""

    @property
    def effect(self) -> str:
        """Return what it does to the numbers from here on; empty where that is nothing, or where it may not be."""
        if not self.allowed:
            return ""
        if self.path in _LENGTH:
            return "the learning rate follows the new length from here on" if self.lr_by_length else ""
        return _EFFECTS.get(self.path, "")

    def __str__(self) -> str:
        return f"{self.path}: was {_shown(self.old)}, now {_shown(self.new)}"


def identity(spec: ProjectSpec) -> dict[str, str]:
    """Return what a checkpoint must share with the run that goes on from it: recipe, strategy, a digest of the rest.

    Where the run is and what it is called is not in the digest: a copied folder stays the same checkpoint. Neither are
    fields of ``train`` at their default, so that a field which a later version adds changes no digest.
    """
    defaults = {f"train.{name}": field.default for name, field in type(spec.train).model_fields.items()}
    decides = {
        path: value
        for path, value in _leaves(spec.to_dict())
        if path.startswith(("train.", "recipe."))
        and not _may_change(path)
        and path not in _APART
        and value != defaults.get(path, ...)
    }
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return {
        "recipe": spec.recipe.import_,
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "strategy": spec.train.strategy,
    }


def differences(old: ProjectSpec, new: ProjectSpec) -> list[Change]:
    """Return every field whose value differs, and whether it may."""
    before, after = (dict(_leaves(_comparable(spec))) for spec in (old, new))
    by_length = new.train.schedule != "constant" or new.train.warmup_fraction > 0
    return [
        Change(path, before.get(path), after.get(path), _may_change(path), lr_by_length=by_length)
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def refuse_forbidden(changes: Sequence[Change], *, run_id: str) -> None:
    """Refuse to go on with a configuration that would give another result.

    Raises:
        UsageError: naming each such field with both values, and what may change.
    """
    forbidden = [change for change in changes if not change.allowed]
    if not forbidden:
        return
    lines = "\n".join(f"  {change}" for change in forbidden)
    what = "differs in what decides its result" if any(_decides(change) for change in forbidden) else "differs"
    raise UsageError(
        f"run {run_id} cannot go on with this configuration, which {what}:\n{lines}",
        hint="Put these back, or start a new run with `raymlops train`. What may change when a run goes on: how far it "
        "goes (epochs, max_steps, patience), what it runs on (workers, resources, compile), checkpoints, failure "
        "policies and logging.",
    )


def _decides(change: Change) -> bool:
    return change.path.startswith(("train.", "recipe."))


def _may_change(path: str) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in MAY_CHANGE)


def _comparable(spec: ProjectSpec) -> dict[str, Any]:
    data = spec.to_dict()
    # ~/x, file:///home/me/x and /home/me/x are one folder.
    folder = local_path(spec.storage.path)
    data["storage"]["path"] = spec.storage.path.rstrip("/") if folder is None else str(folder)
    return data


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(data, Mapping):
        yield path, data
        return
    for key, value in data.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""What may differ when a run or a sweep goes on: which fields decide its result, and how two configurations differ.

Pure. Owns the lists of fields; a new one belongs to those that decide until it is put among those that do not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from raymlops.config.paths import local_path
from raymlops.config.sweep import SweepSection
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

EXTENDABLE = ("num_trials", "timeout_s", "max_cpu_hours", "max_gpu_hours", "max_cost")
"""Limits of a sweep that ``--extend`` raises."""

SWEEP_MAY_CHANGE = (
    *(
        field
        for field in MAY_CHANGE
        # Trials are compared: each is as long as the others, and batches that one may leave out the others may too.
        # ``train.num_workers`` stays: a trial has ``sweep.workers_per_trial``, which decides as a run's own does not,
        # because one trial is held against another.
        if field
        not in {
            "train.epochs",
            "train.max_steps",
            "train.patience",
            "train.on_non_finite",
            "sweep",
        }
    ),
    *(f"sweep.{field}" for field in EXTENDABLE),
    "sweep.max_concurrent",
    "sweep.max_restarts",
    "sweep.checkpoint_every_s",
    "sweep.price",
    "sweep.target",
    "sweep.patience",
)
"""Fields, and sections with all their fields, that may be others when a sweep goes on."""

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
    effect: str = ""
    """What it does to the numbers from here on; empty where that is nothing, or where it may not be."""

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
        and not _among(path, MAY_CHANGE)
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
    effects = dict(_EFFECTS)
    if new.train.schedule != "constant" or new.train.warmup_fraction > 0:
        effects |= dict.fromkeys(_LENGTH, "the learning rate follows the new length from here on")
    paths = [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]
    return _changes(paths, before, after, may=MAY_CHANGE, effects=effects)


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


def sweep_changes(old: ProjectSpec, new: ProjectSpec) -> list[Change]:
    """Return every field whose value differs from what a sweep is recorded with, and whether it may at its resume."""
    before, after = _of_sweep(old), _of_sweep(new)
    paths = [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]
    if any(path.startswith("sweep.space.") for path in paths):
        paths = [path for path in paths if path != "sweep.space"]  # its order alone is said where nothing else is
    effects = {path: effect for path, effect in _EFFECTS.items() if path != "train.num_workers"}
    return _changes(paths, before, after, may=SWEEP_MAY_CHANGE, effects=effects)


def refuse_sweep_changes(changes: Sequence[Change], *, sweep_id: str) -> None:
    """Refuse to go on with a configuration whose trials could not be compared with those that there are.

    Raises:
        UsageError: naming each such field with both values, what may change, and how to search anew from what is known.
    """
    forbidden = [change for change in changes if not change.allowed]
    if not forbidden:
        return
    lines = "\n".join(f"  {change}" for change in forbidden)
    raise UsageError(
        f"sweep {sweep_id} cannot go on with this configuration, which differs in what its trials are:\n{lines}",
        hint=f"Put these back, or begin a new sweep that knows this one's trials: raymlops sweep --fork {sweep_id} "
        "--config FILE. What may change when a sweep goes on: num_trials, budgets, target, patience, max_concurrent, "
        "max_restarts, and of train resources, checkpoints and logging. Without --config the sweep keeps what it was "
        "started with.",
    )


def extended(spec_data: Mapping[str, Any], extensions: Sequence[str]) -> list[str]:
    """Return the overrides that raise a sweep's limits: ``num_trials=+20``, with 30 so far, is ``sweep.num_trials=50``.

    ``spec_data`` is a configuration as plain data. A number without a sign is the new limit itself.

    Raises:
        UsageError: no such limit, no number, one that is no larger than before, or nothing to add to.
    """
    section = spec_data.get("sweep") or {}
    now = {name: section.get(name, SweepSection.model_fields[name].default) for name in EXTENDABLE}
    overrides: dict[str, str] = {}
    for text in extensions:
        written, equals, value = (part.strip() for part in text.partition("="))
        name = written.removeprefix("sweep.")
        if not equals or name not in EXTENDABLE:
            near = get_close_matches(name, EXTENDABLE, n=1)
            advice = f"did you mean {near[0]}=+N? Write" if near and near[0] != name else "write"
            raise UsageError(
                f"got --extend {text!r}; {advice} NAME=+N or NAME=N with one of {', '.join(EXTENDABLE)}",
                hint="For example --extend num_trials=+20.",
            )
        now[name] = _raised(name, now[name], value)
        overrides[name] = f"sweep.{name}={now[name]}"
    return list(overrides.values())


def _raised(name: str, before: float | None, value: str) -> float:
    try:
        number = int(value) if name == "num_trials" else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = "a whole number" if name == "num_trials" else "a number"
        raise UsageError(f"got --extend {name}={value}; {what}, such as {name}=+20")
    if before is None:
        raise UsageError(
            f"sweep.{name} has no limit, so that there is nothing to extend",
            hint=f"It stays without one. To set one write sweep.{name}={number:g} as an override.",
        )
    after = before + number if value.startswith("+") else number
    if after <= before:
        raise UsageError(
            f"got --extend {name}={value}, which makes it {after:g}; more than it is now, {before:g}",
            hint=f"To lower it write sweep.{name}={after:g} as an override."
            if 0 < after < before
            else f"For example --extend {name}=+{before:g}.",
        )
    return int(after) if float(after).is_integer() else after


def _changes(
    paths: Sequence[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    may: Sequence[str],
    effects: Mapping[str, str],
) -> list[Change]:
    return [
        Change(path, before.get(path), after.get(path), allowed, effects.get(path, "") if allowed else "")
        for path in paths
        for allowed in (_among(path, may),)
    ]


def _decides(change: Change) -> bool:
    return change.path.startswith(("train.", "recipe."))


def _among(path: str, fields: Sequence[str]) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _comparable(spec: ProjectSpec) -> dict[str, Any]:
    data = spec.to_dict()
    # ~/x, file:///home/me/x and /home/me/x are one folder.
    folder = local_path(spec.storage.path)
    data["storage"]["path"] = spec.storage.path.rstrip("/") if folder is None else str(folder)
    return data


def _of_sweep(spec: ProjectSpec) -> dict[str, Any]:
    """Return every field, with a distribution as one value, and what has an order as a list."""
    data = _comparable(spec)
    space = data["sweep"].pop("space")
    # The first objective is the one that is reported, and points in a seeded order follow the order of the space.
    data["sweep"]["objectives"] = [f"{metric}: {mode}" for metric, mode in data["sweep"]["objectives"].items()]
    return {**dict(_leaves(data)), "sweep.space": list(space), **{f"sweep.space.{key}": space[key] for key in space}}


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

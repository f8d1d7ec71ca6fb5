"""Compare two configurations: what differs, and whether a run or a sweep may be resumed with it.

Pure. Each field's annotation says what may change (see ``base.Resume``); this module compares by it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from raymlops.config import shape
from raymlops.config.base import Resume
from raymlops.config.paths import local_path
from raymlops.config.schema import ProjectSpec
from raymlops.config.sweep import SweepSection
from raymlops.config.yaml import dotted
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from raymlops.config.yaml import KeyPath

    Values = dict[KeyPath, Any]

EXTENDABLE = tuple(
    name
    for name, field in SweepSection.model_fields.items()
    if any(isinstance(mark, Resume) and mark.extendable for mark in field.metadata)
)
"""Limits of a sweep that ``--extend`` raises."""

_NAMED = ("train.strategy", "recipe.import")
"""Fixed fields that the identity names, beside the digest of the others."""
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


@functools.lru_cache(maxsize=4096)
def rule(path: KeyPath) -> Resume:
    """Return what a field allows at a resume: what it says itself, else what its section says, else nothing."""
    found = Resume()
    annotation: Any = ProjectSpec
    for key in path:
        section = shape.section(annotation)
        field = shape.fields(section).get(str(key)) if section else None
        if field is None:
            break
        found = next((mark for mark in field.metadata if isinstance(mark, Resume)), found)
        annotation = field.annotation
    return found


def identity(spec: ProjectSpec) -> dict[str, str]:
    """Return what a checkpoint must share with the run that resumes from it: recipe, strategy, a digest of the rest.

    Where the run is and what it is called is not in the digest: a copied folder stays the same checkpoint. Neither are
    fields of ``train`` at their default, so that a field which a later version adds changes no digest.
    """
    unset = type(spec.train)().model_dump(mode="json", by_alias=True)
    defaults: Values = {("train", *path): value for path, value in shape.leaves(unset)}
    digested = {
        dotted(path): value
        for path, value in _values(spec.to_dict()).items()
        if path[0] in {"train", "recipe"} and not rule(path).run and value != defaults.get(path, ...)
    }
    named = {path: value for path, value in digested.items() if path not in _NAMED}
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return {
        "recipe": spec.recipe.import_,
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "strategy": spec.train.strategy,
    }


def differences(old: ProjectSpec, new: ProjectSpec) -> list[Change]:
    """Return every field whose value differs, and whether a run may be resumed with it."""
    keeps_pace = new.train.schedule == "constant" and new.train.warmup_fraction == 0
    return [
        Change(path, before, after, mark.run, "" if path in _LENGTH and keeps_pace else mark.run_effect)
        for path, before, after, mark in _differing(_values(_comparable(old)), _values(_comparable(new)))
    ]


def refuse_forbidden(changes: Sequence[Change], *, run_id: str) -> None:
    """Refuse to resume a run with a configuration that would give another result.

    Raises:
        UsageError: naming each such field with both values, and what may change.
    """
    decides = any(change.path.startswith(("train.", "recipe.")) for change in changes if not change.allowed)
    _refuse(
        changes,
        f"run {run_id} cannot be resumed with this configuration, which differs"
        + (" in what decides its result" if decides else ""),
        hint="Restore these, or start a new run with `raymlops train`. What may change at a resume: the length "
        "(epochs, max_steps, patience), what it runs on (workers, resources, compile), checkpoints, failure policies "
        "and logging.",
    )


def sweep_changes(old: ProjectSpec, new: ProjectSpec) -> list[Change]:
    """Return every field whose value differs from what a sweep is recorded with, and whether it may at its resume."""
    found = list(_differing(_of_sweep(old), _of_sweep(new)))
    if any(path.startswith("sweep.space.") for path, *_ in found):
        found = [each for each in found if each[0] != "sweep.space"]  # the order is named where it alone differs
    return [Change(path, before, after, mark.sweep, mark.sweep_effect) for path, before, after, mark in found]


def refuse_sweep_changes(changes: Sequence[Change], *, sweep_id: str) -> None:
    """Refuse to resume a sweep with a configuration whose trials could not be compared with the existing ones.

    Raises:
        UsageError: naming each such field with both values, what may change, and how to fork the sweep.
    """
    _refuse(
        changes,
        f"sweep {sweep_id} cannot be resumed with this configuration, which differs in what its trials are",
        hint=f"Restore these, or start a new sweep that knows this one's trials: raymlops sweep --fork {sweep_id} "
        "--config FILE. What may change at a resume: num_trials, budgets, target, patience, max_concurrent, "
        "max_restarts, and of train resources, checkpoints and logging. Without --config the sweep keeps what it was "
        "started with.",
    )


def _refuse(changes: Sequence[Change], message: str, *, hint: str) -> None:
    if forbidden := [f"\n  {change}" for change in changes if not change.allowed]:
        raise UsageError(f"{message}:{''.join(forbidden)}", hint=hint)


def extended(spec_data: Mapping[str, Any], extensions: Sequence[str]) -> list[str]:
    """Return the overrides that raise a sweep's limits: ``num_trials=+20``, with 30 so far, is ``sweep.num_trials=50``.

    ``spec_data`` is a configuration as plain data. A number without a sign is the new limit itself.

    Raises:
        UsageError: unknown limit, not a number, not larger than the current limit, or the limit is unset.
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
            f"sweep.{name} is not set, so there is no limit to extend",
            hint=f"To set a limit write sweep.{name}={number:g} as an override.",
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


def _differing(before: Values, after: Values) -> Iterator[tuple[str, Any, Any, Resume]]:
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            yield dotted(path), before.get(path), after.get(path), rule(path)


def _comparable(spec: ProjectSpec) -> dict[str, Any]:
    data = spec.to_dict()
    # ~/x, file:///home/me/x and /home/me/x are one folder.
    folder = local_path(spec.storage.path)
    data["storage"]["path"] = spec.storage.path.rstrip("/") if folder is None else str(folder)
    return data


def _of_sweep(spec: ProjectSpec) -> Values:
    """Return every field, with a distribution as one value, and what has an order as a list."""
    data = _comparable(spec)
    space = data["sweep"].pop("space")
    # The first objective is the one that is reported, and points in a seeded order follow the order of the space.
    data["sweep"]["objectives"] = [f"{metric}: {mode}" for metric, mode in data["sweep"]["objectives"].items()]
    distributions: Values = {("sweep", "space", key): space[key] for key in space}
    return {**_values(data), ("sweep", "space"): list(space), **distributions}


def _values(data: Mapping[str, Any]) -> Values:
    return {path: value for path, value in shape.leaves(data) if value != {}}


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."

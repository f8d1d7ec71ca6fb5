"""Check a search space against the fields that it searches: bounds, choices and conditions.

Pure. Without a recipe's ``Config`` only ``train`` fields are checked, so that a file can be checked before its recipe
is imported.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from raymlops.config import shape
from raymlops.config.messages import Finding, check, got
from raymlops.config.space import Interval, can_meet
from raymlops.config.sweep import words
from raymlops.config.train import TrainSection

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pydantic import BaseModel

    from raymlops.config.space import Distribution, Scalar
    from raymlops.config.yaml import KeyPath

    Models = dict[str, tuple[type[BaseModel], dict[str, Any]]]

RECIPE = "recipe.config."
_COMPARED = "cannot be searched: it decides how trials are compared, which is the same for all"
_UNSEARCHABLE = {
    "train.metric": _COMPARED,
    "train.mode": _COMPARED,
    "train.num_workers": "cannot be searched: every trial has sweep.workers_per_trial workers",
}


def check_space(
    space: Mapping[str, Distribution],
    *,
    train: Mapping[str, Any],
    config: type[BaseModel] | None = None,
    config_data: Mapping[str, Any] | None = None,
    unread: Collection[str] = (),
) -> list[Finding]:
    """Return the findings about a search space, one for each bound, choice and condition.

    ``unread`` are keys whose distribution is wrong itself: conditions may name them.

    Both bounds of a range and every choice must be valid for the field together with the given ``train`` and
    ``config_data``; rules between several fields are left to the trial, which may vary the others too.
    """
    models: Models = {"train.": (TrainSection, dict(train))}
    if config is not None:
        models[RECIPE] = (config, dict(config_data or {}))
    return [
        *(finding for key, searched in space.items() for finding in _ends(key, searched, models)),
        *(finding for key in space for finding in _conditions(key, space, unread)),
        *_cycles(space),
    ]


def _ends(key: str, searched: Distribution, models: Models) -> Iterator[Finding]:
    path: KeyPath = ("sweep", "space", key)
    wrong = _UNSEARCHABLE.get(key) or _unknown(key, models)
    if wrong:
        yield Finding(path, wrong, at_key=True)
        return
    if (pair := _equal_choices(searched)) is not None:
        yield Finding(path, f"choices {got(pair[0])} and {got(pair[1])} are equal, which Optuna takes for one choice")
    names = ("low", "high") if searched.kind != "categorical" else ("choice",) * len(searched.choices)
    for name, value in zip(names, searched.ends(), strict=True):
        message = _refusal(key, value, models)
        if message:
            yield Finding(
                path, f"{name}: {message}" if message.startswith("got ") else f"{name} {got(value)}: {message}"
            )


def _equal_choices(searched: Distribution) -> tuple[Scalar, Scalar] | None:
    """Return two choices that Python takes for the same, such as 1 and ``true``."""
    choices = searched.choices
    return next(((one, other) for i, one in enumerate(choices) for other in choices[i + 1 :] if one == other), None)


def _unknown(key: str, models: Models) -> str | None:
    """Return the message for an unknown key; None where the key is known, or cannot be checked."""
    section = next((prefix for prefix in models if key.startswith(prefix)), None)
    if section is not None:
        try:
            shape.key_path(models[section][0], key.removeprefix(section))
        except shape.UnknownKeyError as error:
            return str(error)
    return None


def _refusal(key: str, value: Any, models: Models) -> str | None:
    """Return why a field rejects a value; None where it accepts it, or cannot be checked."""
    section = next((prefix for prefix in models if key.startswith(prefix)), None)
    if section is None:
        return None
    model, data = models[section]
    path = shape.key_path(model, key.removeprefix(section))
    _, findings = check(model, shape.with_value(data, path, value))
    return next((finding.message for finding in findings if finding.path[: len(path)] == path), None)


def _conditions(key: str, space: Mapping[str, Distribution], unread: Collection[str]) -> Iterator[Finding]:
    path: KeyPath = ("sweep", "space", key)
    for other, condition in space[key].when.items():
        if other in unread:
            continue
        if other not in space:
            others = [name for name in (*space, *unread) if name != key]
            near = get_close_matches(other, others, n=1, cutoff=0.85)
            holds = f"beside {key} it holds {', '.join(others) or 'nothing'}"
            advice = f"did you mean {near[0]!r}?" if near else holds
            yield Finding(path, f"when: {other!r} is not in the space; {advice}")
            continue
        for one in (condition,) if isinstance(condition, Interval) else [(value,) for value in condition]:
            if not can_meet(space[other], one):
                shown = one if isinstance(one, Interval) else got(one[0])
                yield Finding(path, f"when: {other} is never {shown}; it is {words(space[other])}")


def _cycles(space: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Yield cycles of conditions, whose parameters could never be drawn, at their first keys.

    One that shares a key with another is reported once that is mended.
    """
    left = list(space)
    while left:
        found = [key for key in left if not space[key].when.keys() & set(left)]
        if not found:  # each waits for another one
            chain = [left[0]]
            while chain[-1] not in chain[:-1]:
                chain.append(next(other for other in space[chain[-1]].when if other in left))
            found = chain[chain.index(chain[-1]) : -1]
            message = f"when: goes in a circle: {' -> '.join([*found, found[0]])}"
            yield Finding(("sweep", "space", found[0]), message)
        left = [key for key in left if key not in found]

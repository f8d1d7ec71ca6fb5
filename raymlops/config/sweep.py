"""What the fields of a sweep must hold together, beyond what each holds by itself.

Pure. Looks at the section alone: what depends on ``train``, on the recipe or on a cluster is judged elsewhere. Each
broken rule has the path below ``sweep`` of the field to change, so that a file's reader can say in which line it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from raymlops.config.schema import SweepSection
    from raymlops.config.space import Distribution, Scalar

HALVING = ("asha", "hyperband")
"""Schedulers that need to know how much a whole trial takes."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that does not hold. With ``got`` the message says only what is allowed instead of that value."""

    path: tuple[str | int, ...]
    message: str
    got: Any = ...


def broken(sweep: SweepSection) -> Iterator[Broken]:
    """Yield what does not hold."""
    yield from _objectives(sweep)
    yield from _limits(sweep)
    if sweep.sampler == "grid":
        yield from _endless(sweep.space)
    for index, point in enumerate(sweep.enqueue):
        yield from _start_point(index, point, sweep.space)


def exists(distribution: Distribution, params: Mapping[str, Scalar]) -> bool:
    """Say whether a parameter exists beside others: each that its ``when`` names does, with one of the values given."""
    return all(parent in params and _among(params[parent], values) for parent, values in distribution.when.items())


def words(distribution: Distribution) -> str:
    """Return what a parameter may be."""
    if distribution.kind == "categorical":
        shown = [_shown(choice) for choice in distribution.choices]
        return f"one of {', '.join(shown)}" if len(shown) > 1 else shown[0]
    ends = f"{distribution.low} to {distribution.high}"
    if distribution.step is not None:
        return f"{ends} in steps of {distribution.step}"
    return f"a whole number from {ends}" if distribution.kind == "int" else ends


def _objectives(sweep: SweepSection) -> Iterator[Broken]:
    if not sweep.objectives:
        return
    if len(sweep.objectives) == 1:
        ((metric, mode),) = sweep.objectives.items()
        instead = f"{{metric: {metric}, mode: {mode}}}"
        yield Broken(("objectives",), f"got one metric; at least two, or instead of objectives {instead}")
        return
    for field in ("metric", "mode"):
        if getattr(sweep, field) is not None:
            yield Broken((field,), "stands beside objectives, which say both of each metric; write one or the other")
    if sweep.scheduler != "none":
        advice = "a scheduler stops trials by one metric, and there are several objectives"
        yield Broken(("scheduler",), f"got {sweep.scheduler!r}; none: {advice}")
    for field in ("target", "patience"):
        if getattr(sweep, field) is not None:
            yield Broken((field,), "stands beside objectives; it asks which trial is best, and of several none is")


def _limits(sweep: SweepSection) -> Iterator[Broken]:
    if sweep.max_cost is not None and not (sweep.price.cpu_hour or sweep.price.gpu_hour):
        yield Broken(("max_cost",), "needs a price above 0: write for example price: {cpu_hour: 0.04, gpu_hour: 2.5}")
    counted = sweep.resource in {"epoch", "step"}
    if not counted and sweep.scheduler in HALVING and sweep.max_resource is None:
        yield Broken(
            ("resource",),
            f"got {sweep.resource!r}; {sweep.scheduler} needs max_resource with it, how much of it a whole trial takes",
        )
    if len(sweep.enqueue) > sweep.num_trials:
        yield Broken(("enqueue",), f"got {len(sweep.enqueue)} start points; at most num_trials, {sweep.num_trials}")


def _endless(space: Mapping[str, Distribution]) -> Iterator[Broken]:
    for key, searched in space.items():
        if searched.kind == "float" and searched.step is None and searched.low != searched.high:
            yield Broken(
                ("space", key),
                f"float: [{searched.low}, {searched.high}] is continuous, which sampler grid cannot go through; "
                "write a step, an int range or categorical: [...]",
            )


def _start_point(index: int, point: Mapping[str, Any], space: Mapping[str, Distribution]) -> Iterator[Broken]:
    place = ("enqueue", index)
    if not point:
        yield Broken(place, "is empty; write at least one key of the space with its value")
    for key, value in point.items():
        if key not in space:
            near = get_close_matches(key, space, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(space) or 'none'}"
            yield Broken((*place, key), f"is not in the space; {advice}")
        elif not space[key].can_be(value):
            yield Broken((*place, key), words(space[key]), got=value)
        else:
            for parent, values in space[key].when.items():
                if parent in space and not (parent in point and _among(point[parent], values)):
                    needed = " or ".join(map(_shown, values))
                    now = f"is {_shown(point[parent])}" if parent in point else "is left out, which leaves it to chance"
                    yield Broken((*place, key), f"exists only where {parent} is {needed}; here it {now}")


def _among(value: Scalar, allowed: tuple[Scalar, ...]) -> bool:
    # Python holds True equal to 1; in a configuration they are different values. 2 and 2.0 are the same number.
    return any(value == other and isinstance(value, bool) is isinstance(other, bool) for other in allowed)


def _shown(value: Scalar) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else repr(value)

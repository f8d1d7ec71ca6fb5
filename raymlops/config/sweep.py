"""The ``sweep`` section of a configuration, and the rules between its fields.

Pure. Looks at the section alone: what depends on ``train``, on the recipe or on a cluster is checked elsewhere. Each
violation has the path below ``sweep`` of the field to change, so that a problem has its line.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raymlops.config.base import Free, FreeInRun, Limit, Spec, UriOrRef
from raymlops.config.messages import got
from raymlops.config.space import Distribution, Interval, meets, parse_distribution
from raymlops.config.train import MAX_WORKERS, TrainSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def _space_key(key: str) -> str:
    """Check the name of a searched field; the recipe's own fields are known to ``project`` alone."""
    section, field = (*key.split(".", 2), "")[:2]
    if section == "train":
        if field not in TrainSection.model_fields:
            near = get_close_matches(field, TrainSection.model_fields, n=1)
            advice = f"did you mean 'train.{near[0]}'?" if near else f"known: {', '.join(TrainSection.model_fields)}"
            msg = f"{field!r} is not a field of train; {advice}"
            raise ValueError(msg)
    elif not re.fullmatch(r"recipe\.config(\.\w+)+", key):
        msg = f"{key!r} cannot be searched; a key is train.FIELD or recipe.config.FIELD"
        raise ValueError(msg)
    return key


SpaceKey = Annotated[str, AfterValidator(_space_key)]

SAMPLERS = ("tpe", "gp", "random", "grid", "qmc", "nsga2")
_IMPORT = r"[^\W\d]\w*(\.[^\W\d]\w*)*[:.][^\W\d]\w*"


def _sampler(name: str) -> str:
    if name not in SAMPLERS and not re.fullmatch(_IMPORT, name):
        near = get_close_matches(name, SAMPLERS, n=1)
        allowed = f"{', '.join(SAMPLERS)}, or the import string of an Optuna sampler, package.module:Class"
        msg = f"got {name!r}; {allowed}" + (f"; did you mean {near[0]}?" if near else "")
        raise ValueError(msg)
    return name


Sampler = Annotated[
    str,
    AfterValidator(_sampler),
    WithJsonSchema({"anyOf": [{"enum": list(SAMPLERS)}, {"type": "string", "pattern": f"^{_IMPORT}$"}]}),
]


class Threshold(Spec):
    """A bound that a test metric must keep."""

    min: float | None = Field(None, description="smallest value that passes")
    max: float | None = Field(None, description="largest value that passes")

    @model_validator(mode="after")
    def _some(self) -> Threshold:
        if self.min is None and self.max is None:
            msg = "write min, max or both"
            raise ValueError(msg)
        if self.min is not None and self.max is not None and self.min > self.max:
            msg = f"min {self.min} is above max {self.max}"
            raise ValueError(msg)
        return self


class PriceSection(Spec):
    """What an hour of what a sweep reserves costs."""

    cpu_hour: float = Field(0.0, ge=0, description="price of one CPU for an hour")
    gpu_hour: float = Field(0.0, ge=0, description="price of one GPU for an hour")
    currency: str = Field("USD", min_length=1, max_length=8, description="shown beside amounts")


class RepeatsSection(Spec):
    """The best configurations of a search, trained again with other seeds."""

    top: int = Field(3, ge=1, description="how many of the best configurations")
    seeds: int = Field(1, ge=1, description="seeds of each, with train.seed, that of the search; 1: no repeats")


class ImportSection(Spec):
    """An Optuna study whose complete trials a new sweep's sampler learns from."""

    study: str = Field("", description="its name; empty: none is imported")
    storage: UriOrRef | None = Field(None, description="SQL URL of its database; default: that of this sweep")
    params: dict[str, SpaceKey] = Field(
        default_factory=dict, description="its name of a parameter: key of the space; default: the key or its last part"
    )


Mode = Literal["min", "max"]


class SweepSection(Spec):
    """A search for a better configuration."""

    metric: FreeInRun[str | None] = Field(None, description="to optimise; default: train.metric")
    mode: FreeInRun[Mode | None] = Field(
        None, description="default: train.mode; needed where metric is not train.metric"
    )
    objectives: FreeInRun[dict[str, Mode]] = Field(
        default_factory=dict, description="metric: min or max, of several at once, instead of metric and mode"
    )
    constraints: FreeInRun[dict[str, Threshold]] = Field(
        default_factory=dict, description="metric: {min, max} that a winner must keep; samplers learn from them"
    )
    num_trials: Limit[int] = Field(16, ge=1, description="configurations to try")
    max_concurrent: Free[int | None] = Field(
        None, ge=1, description="trials at a time; default: what the cluster holds"
    )
    workers_per_trial: FreeInRun[int] = Field(
        1, ge=1, le=MAX_WORKERS, description="1: a trial trains in a process that is kept warm; more: on Ray Train"
    )
    max_restarts: Free[int] = Field(1, ge=0, description="of a trial whose process died; lost nodes do not count")
    max_failures: Free[int | None] = Field(
        10, ge=1, description="trials that may fail in a row for one reason; then the sweep halts and can be resumed"
    )
    checkpoint_every_s: Free[float] = Field(
        30.0, ge=0, description="seconds of training between checkpoints of a trial"
    )
    sampler: FreeInRun[Sampler] = Field(
        "tpe", description=f"how trials are drawn: {', '.join(SAMPLERS)}, or the import string of an Optuna sampler"
    )
    sampler_args: FreeInRun[dict[str, Any]] = Field(
        default_factory=dict, description="arguments of the sampler's class, such as {n_ei_candidates: 48} of tpe"
    )
    startup_trials: FreeInRun[int] = Field(
        8, ge=1, description="random trials before tpe or gp model anything; of nsga2 a generation, by default 50"
    )
    seed: FreeInRun[int] = Field(0, ge=0, lt=2**32, description="seeds the sampler")
    enqueue: FreeInRun[list[dict[SpaceKey, Any]]] = Field(
        default_factory=list, description="start points, tried first; keys that a point leaves out are drawn"
    )
    scheduler: FreeInRun[Literal["asha", "hyperband", "median", "none"]] = Field(
        "asha",
        description="stops poor trials early; hyperband is the asynchronous one; default with objectives, gp or nsga2: "
        "none",
    )
    resource: FreeInRun[str] = Field(
        "epoch", min_length=1, description="what schedulers count: epoch, step or a reported metric"
    )
    grace_period: FreeInRun[float] = Field(
        1.0, gt=0, description="of the resource, that every trial gets before it is stopped"
    )
    max_resource: FreeInRun[float | None] = Field(
        None, gt=0, description="of the resource, that a whole trial takes; default: train.epochs, train.max_steps"
    )
    reduction_factor: FreeInRun[int] = Field(
        3, ge=2, description="asha and hyperband keep one in this many at each rung"
    )
    timeout_s: Limit[float | None] = Field(None, gt=0, description="seconds of sweeping, over all resumes, at most")
    max_cpu_hours: Limit[float | None] = Field(None, gt=0, description="CPU-hours reserved by trials, at most")
    max_gpu_hours: Limit[float | None] = Field(None, gt=0, description="GPU-hours reserved by trials, at most")
    max_cost: Limit[float | None] = Field(None, gt=0, description="money, by price, at most")
    price: Free[PriceSection] = Field(PriceSection(), description="{cpu_hour, gpu_hour, currency}, for max_cost")
    trial_timeout_s: FreeInRun[float | None] = Field(
        None, gt=0, description="seconds of a trial, at most; then it is stopped, and has the value that it has"
    )
    user_attrs: Free[list[str]] = Field(
        default_factory=list, description="reported metrics that are user attributes of their Optuna trial too"
    )
    target: Free[float | None] = Field(None, description="stop once a trial reaches this value of the metric")
    patience: Free[int | None] = Field(None, ge=1, description="stop after this many ended trials without a better one")
    import_study: FreeInRun[ImportSection] = Field(
        ImportSection(), description="{study, storage, params}: an Optuna study whose complete trials the sampler knows"
    )
    repeats: Free[RepeatsSection] = Field(
        RepeatsSection(), description="{top, seeds}: the best are trained again with other seeds, and the mean decides"
    )
    space: Annotated[
        FreeInRun[dict[SpaceKey, Annotated[Distribution, BeforeValidator(parse_distribution)]]],
        Field(description="key.path: {float|int|categorical: ...}; keys are fields of train or recipe.config"),
    ] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _suited(cls, data: Any) -> Any:
        """Fill in the defaults that follow from other fields, so that a recorded sweep has them written out.

        No scheduler with several objectives, where an explicit one is rejected, with a sampler that learns from
        complete trials alone, or with an imported one, which may. A generation of ``nsga2`` has as many trials as
        Optuna's own.
        """
        if not isinstance(data, dict):
            return data
        suited: dict[str, Any] = {}
        if data.get("objectives") or data.get("sampler", "tpe") not in LEARNS_FROM_STOPPED:
            suited["scheduler"] = "none"
        if data.get("sampler") == "nsga2":
            suited["startup_trials"] = 50
        return {**suited, **data}

    @model_validator(mode="after")
    def _together(self) -> SweepSection:
        errors = list(_broken_rules(self))
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors, hide_input=True)
        return self


_WITHOUT_ARGS = ("random", "grid", "qmc")
LEARNS_FROM_COMPLETE = ("gp", "nsga2")
"""Samplers that ignore trials which a scheduler has stopped."""
LEARNS_FROM_STOPPED = tuple(name for name in SAMPLERS if name not in LEARNS_FROM_COMPLETE)
"""The others of ours, which learn from them too, or not at all."""
HALVING = ("asha", "hyperband")
"""Schedulers that need to know the resource of a whole trial."""


_COLUMNS = {"number", "status", "value", "epochs", "duration_s", "reason", "run_id", "carried_from", "repeat_of"}
"""Columns of ``sweep.trials()`` that are no metric's."""


def _broken(path: tuple[str | int, ...], message: str, *, got: Any = ...) -> InitErrorDetails:
    """Return the error of a broken rule. With ``got`` the message says only what is allowed instead of that value."""
    kind = "value_error" if got is ... else "wrong_type"
    return InitErrorDetails(type=PydanticCustomError(kind, "{error}", {"error": message}), loc=path, input=got)


def _broken_rules(sweep: SweepSection) -> Iterator[InitErrorDetails]:
    yield from _objectives(sweep)
    yield from _limits(sweep)
    if sweep.repeats.seeds > 1 and sweep.objectives:
        yield _broken(("repeats", "seeds"), "cannot be combined with objectives: there is no single mean to choose by")
    if sweep.repeats.seeds > 1 and "train.seed" in sweep.space:
        yield _broken(("repeats", "seeds"), "train.seed is in the space, so that it cannot be varied too; remove one")
    if sweep.sampler == "grid":
        yield from _endless(sweep.space)
    if sweep.sampler_args and sweep.sampler in _WITHOUT_ARGS:
        yield _broken(("sampler_args",), f"sampler {sweep.sampler} takes none")
    if "seed" in sweep.sampler_args:
        yield _broken(("sampler_args",), "a sampler is seeded by sweep.seed; remove seed")
    for index, name in enumerate(sweep.user_attrs):
        if name.startswith("raymlops"):
            yield _broken(
                ("user_attrs", index), f"{name} is an attribute of raymlops' own; give the metric another name"
            )
        if name in _COLUMNS or name in sweep.space:
            yield _broken(("user_attrs", index), f"{name} is a column of sweep.trials(); give the metric another name")
    for name, key in sweep.import_study.params.items():
        if key not in sweep.space:
            yield _broken(("import_study", "params", name), f"{key} is not in the space")
    for index, point in enumerate(sweep.enqueue):
        yield from _start_point(index, point, sweep.space)


def words(distribution: Distribution) -> str:
    """Return the values of a parameter in words."""
    if distribution.kind == "categorical":
        shown = [got(choice) for choice in distribution.choices]
        return f"one of {', '.join(shown)}" if len(shown) > 1 else shown[0]
    ends = f"{distribution.low} to {distribution.high}"
    if distribution.step is not None:
        return f"{ends} in steps of {distribution.step}"
    return f"a whole number from {ends}" if distribution.kind == "int" else ends


def _objectives(sweep: SweepSection) -> Iterator[InitErrorDetails]:
    if not sweep.objectives:
        return
    if len(sweep.objectives) == 1:
        ((metric, mode),) = sweep.objectives.items()
        instead = f"{{metric: {metric}, mode: {mode}}}"
        yield _broken(("objectives",), f"got one metric; at least two, or instead of objectives {instead}")
        return
    for field in ("metric", "mode"):
        if getattr(sweep, field) is not None:
            yield _broken((field,), "cannot be combined with objectives, which set both; write one or the other")
    if sweep.scheduler != "none":
        advice = "a scheduler stops trials by one metric, and there are several objectives"
        yield _broken(("scheduler",), f"got {sweep.scheduler!r}; none: {advice}")
    for field in ("target", "patience"):
        if getattr(sweep, field) is not None:
            yield _broken((field,), "cannot be combined with objectives: there is no single best trial")


def _limits(sweep: SweepSection) -> Iterator[InitErrorDetails]:
    if sweep.max_cost is not None and not (sweep.price.cpu_hour or sweep.price.gpu_hour):
        yield _broken(("max_cost",), "needs a price above 0: write for example price: {cpu_hour: 0.04, gpu_hour: 2.5}")
    counted = sweep.resource in {"epoch", "step"}
    if not counted and sweep.scheduler in HALVING and sweep.max_resource is None:
        yield _broken(
            ("resource",),
            f"got {sweep.resource!r}; {sweep.scheduler} needs max_resource with it, how much of it a whole trial takes",
        )
    if len(sweep.enqueue) > sweep.num_trials:
        yield _broken(("enqueue",), f"got {len(sweep.enqueue)} start points; at most num_trials, {sweep.num_trials}")


def _endless(space: Mapping[str, Distribution]) -> Iterator[InitErrorDetails]:
    for key, searched in space.items():
        if searched.kind == "float" and searched.step is None and searched.low != searched.high:
            yield _broken(
                ("space", key),
                f"float: [{searched.low}, {searched.high}] is continuous, which sampler grid cannot enumerate; "
                "write a step, an int range or categorical: [...]",
            )


def _start_point(index: int, point: Mapping[str, Any], space: Mapping[str, Distribution]) -> Iterator[InitErrorDetails]:
    place = ("enqueue", index)
    if not point:
        yield _broken(place, "is empty; write at least one key of the space with its value")
    for key, value in point.items():
        if key not in space:
            near = get_close_matches(key, space, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(space) or 'none'}"
            yield _broken((*place, key), f"is not in the space; {advice}")
        elif not space[key].can_be(value):
            yield _broken((*place, key), words(space[key]), got=value)
        else:
            for parent, condition in space[key].when.items():
                if parent in space and not (parent in point and meets(point[parent], condition)):
                    needed = condition if isinstance(condition, Interval) else " or ".join(map(got, condition))
                    now = f"is {got(point[parent])}" if parent in point else "is left out, which leaves it to chance"
                    yield _broken((*place, key), f"exists only where {parent} is {needed}; here it {now}")

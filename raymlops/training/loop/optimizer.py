"""The optimizer and the schedule of its learning rate: from configuration, or the recipe's own."""

from __future__ import annotations

import inspect
import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from raymlops.config.train import SCHEDULES
from raymlops.errors import RecipeError, UsageError
from raymlops.recipe import call_recipe, described

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from torch import nn

    from raymlops.config.train import TrainSection
    from raymlops.recipe import RecipeBase

_OURS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
_LENGTHS = ("total_steps", "T_max", "total_iters", "milestones", "_milestones", "step_size")
"""What torch's schedulers keep of the length that they were built for."""
_SCHEDULED = ("lr", "momentum", "betas")
"""What torch's schedulers set in a group."""


def total_steps(spec: TrainSection, *, rows: int) -> int:
    """Return the number of optimizer steps of a run that is not stopped early.

    Raises:
        UsageError: it has none, since its only batch is not full.
    """
    if spec.drop_last and rows < spec.batch_size:
        raise UsageError(
            f"train.drop_last leaves no batch: the training split has {rows} rows, train.batch_size is "
            f"{spec.batch_size}",
            hint="Lower train.batch_size, or leave train.drop_last out.",
        )
    steps = (rows // spec.batch_size if spec.drop_last else math.ceil(rows / spec.batch_size)) * spec.last_epoch
    return int(steps if spec.max_steps is None else min(steps, spec.max_steps))


def lr_factor(spec: TrainSection, step: int, *, steps: int) -> float:
    """Return the share of the peak learning rate at ``step``, counted from 0.

    It rises linearly over the warm-up's steps, the last of which has the peak, then stays
    (``constant``) or falls along a line or a half cosine, to ``lr_floor`` at step ``steps``, which is not taken.
    """
    warmup = spec.warmup_steps or round(steps * spec.warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    if spec.schedule == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    left = 1 - progress if spec.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return spec.lr_floor + (1 - spec.lr_floor) * left


def build_optimizer(recipe: RecipeBase, model: nn.Module, spec: TrainSection) -> torch.optim.Optimizer:
    """Return the recipe's optimizer, or ``spec``'s over the parameters that take a gradient.

    Raises:
        RecipeError: ``optimizer()`` raises, or returns anything but an optimizer over parameters of the model.
        UsageError: torch has no such optimizer, or it does not take these arguments.
    """
    where = f"{type(recipe).__name__}.optimizer()"
    own = call_recipe(where, lambda: recipe.optimizer(model, spec))
    if own is None:
        return _configured(model, spec)
    if not isinstance(own, torch.optim.Optimizer):
        raise RecipeError(f"{where} returned {described(own)}; return a torch.optim.Optimizer, or None for train's")
    _refuse_closure(type(own), where=where)
    known = set(model.parameters())
    strangers = [tuple(value.shape) for group in own.param_groups for value in group["params"] if value not in known]
    if strangers:
        raise RecipeError(
            f"{where} holds {len(strangers)} parameters that are not the model's, of shapes {strangers[:3]}",
            hint="Build it over parameters of the model that it is given, not of a copy or of another model.",
        )
    return own


class Schedule:
    """Sets the learning rate of every group before each step: as a function of the step, or by torch's scheduler.

    A function of the step has no state. A group's own rate is its peak.
    """

    def __init__(self, recipe: RecipeBase, optimizer: torch.optim.Optimizer, spec: TrainSection, *, steps: int) -> None:
        """Build the recipe's scheduler, or ``spec``'s.

        Raises:
            RecipeError: ``scheduler()`` raises, or returns anything but a scheduler of this optimizer.
            UsageError: torch has no such scheduler, or it does not take these arguments.
        """
        self._optimizer, self._spec, self._steps = optimizer, spec, steps
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._scheduler = _scheduler_of(recipe, optimizer, spec, steps=steps)
        # It warns where it is stepped before the optimizer was, which a skipped step or a scaler's search does.
        optimizer.__dict__["_opt_called"] = True

    @property
    def lr(self) -> float:
        """Return the learning rate of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def before_step(self, step: int) -> None:
        """Set the rates of ``step``, counted from 0."""
        if self._scheduler is None:
            factor = lr_factor(self._spec, step, steps=self._steps)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor

    def after_step(self) -> None:
        """Count a step, also one that was skipped."""
        if self._scheduler is not None and not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()

    def after_report(self, value: float) -> None:
        """Tell a scheduler that waits for a plateau the metric of a report."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state; empty without one."""
        if self._scheduler is None:
            return {}
        return {
            "class": type(self._scheduler).__name__,
            "steps": self._steps,
            "state": self._scheduler.state_dict(),
            "groups": [
                {key: group[key] for key in _SCHEDULED if key in group} for group in self._optimizer.param_groups
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the scheduler's state.

        Raises:
            RecipeError: another scheduler wrote it.
            UsageError: it is one that is built for a length, and the training has another length now.
        """
        wrote = state.get("class", "")
        this = "" if self._scheduler is None else type(self._scheduler).__name__
        if wrote != this:
            raise RecipeError(
                f"the checkpoint holds the state of scheduler {wrote or 'none'}, this run has {this or 'none'}"
            )
        if self._scheduler is None:
            return
        saved, built = dict(state["state"]), self._scheduler.state_dict()
        if state["steps"] != self._steps and any(saved.get(key) != built.get(key) for key in _LENGTHS):
            raise UsageError(
                f"{this} was built for {state['steps']} steps and cannot be changed to {self._steps}",
                hint="Resume with the epochs and max_steps of the start, or start a new run with train.init_from.",
            )
        self._scheduler.load_state_dict(saved)
        # Sharded checkpoints hold no groups.
        for group, values in zip(self._optimizer.param_groups, state["groups"], strict=True):
            group.update(values)


def _configured(model: nn.Module, spec: TrainSection) -> torch.optim.Optimizer:
    """Return ``train.optimizer`` over the parameters that take a gradient; arguments that it does not know are left."""
    kind = _torch_class(_OURS.get(spec.optimizer, spec.optimizer), torch.optim, torch.optim.Optimizer, "optimizer")
    _refuse_closure(kind, where=f"train.optimizer {spec.optimizer}")
    settings: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.optimizer == "sgd":
        settings["momentum"] = spec.momentum
    elif spec.optimizer in _OURS:
        settings["betas"] = (spec.momentum, 0.999)
    known = inspect.signature(kind).parameters
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.optimizer_args.items()}
    arguments = {key: value for key, value in settings.items() if key in known} | given
    groups: Any = _groups(model, spec) if "weight_decay" in arguments else _trainable(model)
    built: torch.optim.Optimizer = _built("optimizer", kind, lambda: kind(groups, **arguments))
    return built


def _groups(model: nn.Module, spec: TrainSection) -> list[Any]:
    trainable = _trainable(model)
    if spec.weight_decay_on == "all":
        return trainable
    matrices = [value for value in trainable if value.ndim >= 2]
    others = [value for value in trainable if value.ndim < 2]
    groups: list[Any] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _scheduler_of(
    recipe: RecipeBase, optimizer: torch.optim.Optimizer, spec: TrainSection, *, steps: int
) -> LRScheduler | None:
    where = f"{type(recipe).__name__}.scheduler()"
    own = call_recipe(where, lambda: recipe.scheduler(optimizer, spec, steps=steps))
    if own is not None:
        if not isinstance(own, LRScheduler) or own.optimizer is not optimizer:
            got = described(own) if not isinstance(own, LRScheduler) else "a scheduler of another optimizer"
            raise RecipeError(f"{where} returned {got}; return a torch scheduler of the optimizer that it is given")
        return own
    if spec.schedule in SCHEDULES:
        return None
    kind = _torch_class(spec.schedule, torch.optim.lr_scheduler, LRScheduler, "schedule")
    # What follows from the rest of the section need not be said again.
    known = inspect.signature(kind).parameters
    peaks = [group["lr"] for group in optimizer.param_groups]
    values: dict[str, Any] = {"max_lr": peaks, "total_steps": steps, "T_max": steps, "total_iters": steps}
    if kind is ReduceLROnPlateau:
        values["mode"] = spec.mode
    implied = {key: value for key, value in values.items() if key in known}
    built: LRScheduler = _built("schedule", kind, lambda: kind(optimizer, **{**implied, **spec.schedule_args}))
    return built


def _torch_class(name: str, module: ModuleType, base: type, field: str) -> Any:
    names = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)]
    found = getattr(module, name, None)
    if name not in names or found is base:
        near = get_close_matches(name, names, n=1)
        meant = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(set(names) - {base.__name__}))}"
        raise UsageError(f"train.{field} is {name}, which {module.__name__} does not have; {meant}")
    return found


def _built(field: str, kind: Any, build: Any) -> Any:
    try:
        return build()
    except (TypeError, ValueError, KeyError) as error:
        known: Iterable[str] = [
            name for name in inspect.signature(kind).parameters if name not in {"params", "optimizer"}
        ]
        raise UsageError(
            f"train.{field}_args do not fit {kind.__name__}: {error}",
            hint=f"It takes {', '.join(known)}.",
        ) from error


def _refuse_closure(kind: type, *, where: str) -> None:
    closure = inspect.signature(kind.step).parameters.get("closure")  # type: ignore[attr-defined]
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"{where}: {kind.__name__} evaluates the loss several times a step, through a closure, which the default "
            "loop has not",
            hint="Use another optimizer, or define train_loop on the recipe.",
        )

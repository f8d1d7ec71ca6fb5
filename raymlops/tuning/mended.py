"""What Ray Tune (2.60) does wrong, put right for the time of a sweep.

Owns the two methods of Tune that are replaced; each says what is wrong with the original.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def mended_tune() -> Iterator[None]:
    """Replace the methods, and put them back."""
    failed, reuse = RayActorManager._actor_task_failed, TuneController._maybe_reuse_cached_actor  # noqa: SLF001

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        # A process that the memory monitor killed raises neither of the two that Tune expects, which ends the sweep.
        if not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(None, str(exception))
        failed(self, tracked_actor_task, exception)

    def maybe_reuse_cached_actor(self: Any, trial: Any) -> bool:
        # A trial whose own process is starting would take a free one and end its own, the next trial likewise: one
        # process would then run all trials of a sweep, as long as they are shorter than a start.
        starting = trial in self._trial_to_actor and trial not in self._resetting_trials
        return False if starting else bool(reuse(self, trial))

    RayActorManager._actor_task_failed = actor_task_failed  # noqa: SLF001
    TuneController._maybe_reuse_cached_actor = maybe_reuse_cached_actor  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed  # noqa: SLF001
        TuneController._maybe_reuse_cached_actor = reuse  # noqa: SLF001

"""What Ray Tune (2.60) does wrong, put right for the time of a sweep.

Owns the three methods of Tune that are replaced; each says what is wrong with the original.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from raymlops.tuning.execution.tune_hooks import SweepSearcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOM_S = 3.0
"""How long a trial waits for a process of its own, and takes no free one: Ray needs about a second to reserve what is
free."""


@contextmanager
def mended_tune(*, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Replace the methods, and put them back."""
    failed = RayActorManager._actor_task_failed  # noqa: SLF001
    reuse, cleanup = TuneController._maybe_reuse_cached_actor, TuneController._cleanup_cached_actors  # noqa: SLF001
    asked_s: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        # A process that the memory monitor killed raises neither of the two that Tune expects, which ends the sweep.
        if not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(None, str(exception))
        failed(self, tracked_actor_task, exception)

    def maybe_reuse_cached_actor(self: Any, trial: Any) -> bool:
        # A trial whose own process is starting would take a free one and end its own, the next trial likewise: one
        # process would then run all trials of a sweep, as long as they are shorter than a start. One whose process
        # waits for room must take it: others may hold that room for ever, and Tune keeps free processes for it.
        own = self._trial_to_actor.get(trial)
        if own is None:
            asked_s[trial] = clock()  # it gets a free process now, or asks for one
        elif trial not in self._resetting_trials:
            soon = clock() - asked_s.get(trial, -ROOM_S) < ROOM_S
            if soon or self._actor_manager.is_actor_started(own):
                return False
        return bool(reuse(self, trial))

    def cleanup_cached_actors(self: Any, force_all: bool = False) -> None:
        # One idle process is kept as long as any trial runs, although none may be left that could take it.
        searcher = getattr(self._search_alg, "searcher", None)
        if isinstance(searcher, SweepSearcher):
            self._actor_cache._may_keep_one = searcher.conductor.more  # noqa: SLF001
        cleanup(self, force_all=force_all)

    RayActorManager._actor_task_failed = actor_task_failed  # noqa: SLF001
    TuneController._maybe_reuse_cached_actor = maybe_reuse_cached_actor  # noqa: SLF001
    TuneController._cleanup_cached_actors = cleanup_cached_actors  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed  # noqa: SLF001
        TuneController._maybe_reuse_cached_actor = reuse  # noqa: SLF001
        TuneController._cleanup_cached_actors = cleanup  # noqa: SLF001

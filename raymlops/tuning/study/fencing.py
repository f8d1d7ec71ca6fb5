"""Keep a driver that lost its lease from writing to its study: the driver that took over has left its token there.

A server that restarts, fails over or closes an idle connection releases a lease whose holder still runs.
"""

from __future__ import annotations

import math
import secrets
import time
from typing import TYPE_CHECKING, Any

from raymlops.errors import LeaseLostError
from raymlops.tuning.study.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER = "raymlops.driver"
"""User attribute of a study: the token of the driver that may write."""
CHECK_EVERY_S = 5.0


class Fence:
    """The token of one driver, checked before it writes."""

    def __init__(self, study: Any, *, every_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the study over; check it at most each ``every_s`` seconds.

        Raises:
            StorageError, UnreachableError: the database cannot be written.
        """
        self._study = study
        self._token = secrets.token_hex(8)
        self._every_s = every_s
        self._clock = clock
        self._checked_s = -math.inf
        self._lost = False
        with storage_errors(f"Optuna's study {study.study_name}"):
            study.set_user_attr(DRIVER, self._token)

    def check(self) -> None:
        """Check that no other driver has taken the study over.

        Raises:
            LeaseLostError: one has; from then on each call raises.
            StorageError, UnreachableError: the database cannot be read.
        """
        if not self._lost:
            now_s = self._clock()
            if now_s - self._checked_s < self._every_s:
                return
            with storage_errors(f"Optuna's study {self._study.study_name}"):
                # Not from the study's own cache.
                attributes = self._study._storage.get_study_user_attrs(self._study._study_id)  # noqa: SLF001
            self._checked_s = now_s
            self._lost = attributes.get(DRIVER) != self._token
        if self._lost:
            raise LeaseLostError(
                f"another driver has taken over Optuna's study {self._study.study_name}: this one lost its lease",
                hint="Nothing is lost: the other driver runs its trials. A database server that was restarted, or that "
                "closes idle connections, releases leases.",
            )

"""Draw the trials of a sweep from its study in memory, in the background where a draw takes long.

Owns that a draw is a function of the trials before it and of the trial's number alone.
"""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from optuna.samplers import RandomSampler

from raymlops.errors import StorageError
from raymlops.tuning.search_space import draw, draw_order
from raymlops.tuning.study.samplers import sampler_of
from raymlops.tuning.study.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.config.space import Scalar
    from raymlops.config.sweep import SweepSection
    from raymlops.records import Objective
    from raymlops.tuning.study.view import StudyView


class Draws:
    """The next trial of a study, drawn when it is asked for or before."""

    def __init__(self, study: Any, view: StudyView, *, section: SweepSection, objectives: Sequence[Objective]) -> None:
        self._study = study
        self._view = view
        self._section = section
        self._objectives = objectives
        self._order = draw_order(section.space)
        self._drawing: Future[Any] | None = None
        self._took_s = 0.0
        """How long the last draw took."""

    def quick(self, within_s: float) -> bool:
        """Return whether a draw takes no longer, as the last one did."""
        return self._drawing is None and self._took_s <= within_s

    def prepare(self, number: int, fixed: Mapping[str, Scalar], *, wait_s: float) -> bool:
        """Draw the next trial in the background; return whether it is drawn within ``wait_s``."""
        if self._drawing is None:
            self._drawing = Future()
            # A daemon: a draw whose trial nobody asks for keeps no process alive.
            arguments = (self._drawing, number, fixed)
            threading.Thread(target=self._draw_into, args=arguments, name="raymlops-draw", daemon=True).start()
        return bool(wait([self._drawing], timeout=wait_s).done)

    def next(self, number: int, fixed: Mapping[str, Scalar]) -> Any:
        """Return the trial (``FrozenTrial``) of this number; it is not in the database yet.

        Raises:
            StorageError: Optuna ignored what is ``fixed``: a grid would silently be random.
        """
        drawing, self._drawing = self._drawing, None
        return self._draw(number, fixed) if drawing is None else drawing.result()

    def complete(self, trial_id: int, *, number: int) -> dict[str, Scalar]:
        """Return the parameters of a trial of the view; draw those that are missing with the sampler for its number."""
        from optuna.trial import Trial

        # A copy has its own cache of ended trials, which is valid for one draw.
        study = copy.copy(self._study)
        study._storage = self._view  # noqa: SLF001
        repeats = self._view.repeats
        if number in repeats:
            study.sampler = RandomSampler()  # nothing is left to draw, and a model costs time
        else:
            place = number - sum(repeat < number for repeat in repeats)  # as if there had been no repeats
            study.sampler = sampler_of(self._section, objectives=self._objectives, number=place)
        return draw(Trial(study, trial_id), self._section.space, order=self._order)

    def _draw_into(self, drawing: Future[Any], number: int, fixed: Mapping[str, Scalar]) -> None:
        try:
            drawing.set_result(self._draw(number, fixed))
        except BaseException as error:
            drawing.set_exception(error)

    def _draw(self, number: int, fixed: Mapping[str, Scalar]) -> Any:
        began_s = time.monotonic()
        with quiet_optuna(), self._view.draft(number, fixed) as draft:
            params = self.complete(draft, number=number)
            drawn = self._view.get_trial(draft)
        self._took_s = time.monotonic() - began_s
        if wrong := [key for key, value in fixed.items() if params.get(key) != value]:
            raise StorageError(
                f"Optuna drew another value than the one that trial {number} was given for {', '.join(wrong)}",
                hint="This release of Optuna does not take fixed parameters as the one that raymlops was tested with.",
            )
        return drawn

"""How long after their answers labels arrive, and whether the log still has the rows by then.

Owns what is read for that: the keys of rows, the newest hours first, until half of the labels that arrived lately have
found theirs. Who removes rows is ``log_maintenance``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import numpy.typing as npt

    from raymlops.predictions.labelled import Labels
    from raymlops.storage.store import Store

_DAY_S = 86_400.0


@dataclass(frozen=True)
class LateLabels(Record):
    """Labels half of which, or more, arrive after their rows are removed."""

    retention_days: float
    """How long the log keeps rows."""
    lag_days: float | None
    """The median time from an answer to its label; None where it is longer than ``retention_days``, and not known."""

    def sentence(self) -> str:
        """Return what becomes of them, and what to do."""
        lag, kept = self.lag_days, f"{self.retention_days:g}"
        late = f"more than {kept} d" if lag is None else f"at least {lag:.3g} d"
        return (
            f"half of the labels of the last hour arrived {late} after their answers, but serve.log.retention_days is "
            f"{kept}: labels of removed rows say nothing about quality; raise serve.log.retention_days, or set "
            "serve.rollout.quality_margin to null"
        )


def late_labels(
    store: Store,
    name: str,
    labels: Labels,
    *,
    fresh: npt.NDArray[np.bool_],
    retention_days: float,
    now: datetime,
    is_over: Callable[[], bool],
) -> LateLabels | None:
    """Return that those of ``labels`` that are ``fresh`` come too late; None where they do not.

    Nor is it said where ``is_over`` returns true before it is known, or of labels without rows in a log that does not
    reach back for half of the retention: their rows may never have been written.

    Raises:
        StorageError: the log cannot be read.
    """
    from raymlops.predictions.partition import Faults, read_folder
    from raymlops.predictions.paths import prediction_hours
    from raymlops.predictions.read import KEY

    lags, half, faults = list[float](), -(-int(fresh.sum()) // 2), Faults()
    received = np.asarray(labels.received.cast(pa.int64()))
    hours = prediction_hours(store, name)
    for hour in reversed(hours):
        for batch in read_folder(store, hour.path, faults, columns=[*KEY, "ts"]):
            places = labels.places(batch)
            mine = np.flatnonzero(places >= 0)
            mine = mine[fresh[places[mine]]]
            arrived = np.asarray(batch["ts"].cast(pa.int64()))[mine]
            lags += ((received[places[mine]] - arrived) / 1e6).tolist()
        if len(lags) >= half:
            lag_days = sorted(lags)[half - 1] / _DAY_S
            return LateLabels(retention_days, lag_days) if lag_days > retention_days else None
        if is_over():
            return None
    whole = bool(hours) and now - hours[0].start >= timedelta(days=retention_days) / 2
    return LateLabels(retention_days, None) if whole else None

"""Two versions' losses on the same labelled rows, in units of one of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymlops.monitor.skill.verdict import Paired

if TYPE_CHECKING:
    from raymlops.predictions.labelled_rows import Rows


def paired(rows: Rows) -> Paired | None:
    """Return the losses ``champion`` and ``challenger`` in units of the champion's mean; None where that is none."""
    mean = float(np.average(rows["champion"], weights=rows["weights"])) if len(rows) else 0.0
    if not mean > 0:
        return None
    weights = None if (rows["weights"] == 1).all() else rows["weights"]
    return Paired.of(rows["champion"], rows["challenger"], clusters=rows["requests"], reference=mean, weights=weights)

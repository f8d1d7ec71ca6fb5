"""What evidently says of windows; run by a Python that has it, for `drift_calibration_peers.py`.

Prints a number for each window, the largest of its columns: what the test that evidently chooses for a column came to,
over its limit, so that 1 is drift. Only the tests of its data drift preset run, without the plots, which take most of
the time. An empty column, which it refuses with an error, counts as drift.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType


def main():
    warnings.simplefilter("ignore")
    rows = np.load(Path(sys.argv[1]) / "rows.npz")
    categories = set(rows["categories"].tolist())
    reference = [_column(values, at in categories) for at, values in enumerate(rows["reference"].T)]
    for window in rows["windows"]:
        columns = enumerate(zip(reference, window.T, strict=True))
        print(max(_score(known, values, at in categories) for at, (known, values) in columns), flush=True)


def _column(values, is_category):
    held = pd.Series(values).dropna()
    return held.astype(int).astype(str) if is_category else held


def _score(reference, values, is_category):
    now = _column(values, is_category)
    if now.empty:
        return np.inf
    kind = ColumnType.Categorical if is_category else ColumnType.Numerical
    test = get_stattest(reference, now, kind, None)
    found = test(reference, now, kind, None)
    is_p_value = "p_value" in test.display_name
    value = max(found.drift_score, 1e-300)
    return found.actual_threshold / value if is_p_value else value / found.actual_threshold


if __name__ == "__main__":
    main()

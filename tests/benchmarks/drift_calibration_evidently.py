"""Whether evidently flags windows without drift; run by a Python that has evidently, for `drift_calibration.py`."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset


def main():
    rows = np.load(Path(sys.argv[1]) / "rows.npz")
    names = [f"c{at}" for at in range(rows["reference"].shape[1])]
    reference = pd.DataFrame(rows["reference"], columns=names)
    for window in rows["windows"]:
        report = Report([DataDriftPreset()]).run(pd.DataFrame(window, columns=names), reference)
        drifted = next(
            m["value"]["count"] for m in report.dict()["metrics"] if "DriftedColumnsCount" in m["metric_name"]
        )
        print(drifted > 0, flush=True)


if __name__ == "__main__":
    main()

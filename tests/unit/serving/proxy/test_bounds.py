"""What scans a body, by the path and headers of its request."""

from __future__ import annotations

import pytest

from raymlops.serving.csv_scan import CsvScan
from raymlops.serving.proxy.bounds import Bounds, scan_of
from raymlops.serving.refusal import Refusal

BOUNDS = Bounds(10.0, 1000, max_values=7)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_slash_at_the_end_of_the_path_changes_nothing(end):
    """A model's front takes both."""
    csv = scan_of(f"/models/m/invocations{end}", {b"content-type": b"text/csv"}, BOUNDS)
    assert isinstance(csv, CsvScan)
    values = b"[1,2,3,4,5,6,7,8,9]"
    scan_of(f"/models/m/feedback{end}", {}, BOUNDS).add(values)
    with pytest.raises(Refusal, match="more than 7 values"):
        scan_of(f"/models/m/predict{end}", {}, BOUNDS).add(values)

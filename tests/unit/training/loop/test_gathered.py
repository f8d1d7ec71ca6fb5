"""A loss over the rows of all workers is the loss of one worker with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
from loop_jobs import trained
from ranks import ranks


@pytest.mark.parametrize(("rows", "batch_size"), [(32, 8), (33, 8), (35, 11)])
def test_every_row_is_a_negative_of_every_other_on_any_number_of_workers(
    tiny_project: Any, rows: int, batch_size: int
) -> None:
    """Also where workers hold different numbers of rows, or a single one holds any, and in evaluation."""
    project = tiny_project(
        recipe="two_views:TwoViews",
        config={"train_rows": rows},
        batch_size=batch_size,
        epochs=2,
        metric="validation/agreement",
        mode="max",
    ).to_dict()
    ((alone, weights),) = ranks().run(1, trained, project)
    for found, shared in ranks().run(2, trained, project):
        assert found == pytest.approx(alone, abs=1e-5)
        for name, values in weights.items():
            assert [pytest.approx(row, abs=1e-5) for row in values] == shared[name]

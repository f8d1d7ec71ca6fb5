"""What becomes of a batch that gives NaN."""

from __future__ import annotations

import pytest

from raymlops.training.guards import on_non_finite


@pytest.mark.parametrize(
    ("policy", "checkpoint", "expected"),
    [
        ("stop", "step-10", "stop"),
        ("skip", "step-10", "skip"),
        ("rollback", "step-10", "rollback"),
        ("rollback", None, "skip"),  # there is nothing to go back to
    ],
)
def test_the_policy_decides(policy: str, checkpoint: str | None, expected: str) -> None:
    """Each policy does what it is called, as far as it can."""
    decision = on_non_finite(12, policy=policy, skipped=[], checkpoint=checkpoint)
    assert decision.action == expected
    assert decision.reason


def test_a_run_that_diverges_is_stopped() -> None:
    """Steps 11 to 20 were left out: the next one would be the eleventh of the last hundred. Step 121 is far away."""
    skipped = list(range(11, 21))
    stopped = on_non_finite(21, policy="skip", skipped=skipped, checkpoint="step-10")
    assert (stopped.action, stopped.reason) == ("stop", "10 of the last 100 batches were left out already")
    assert on_non_finite(121, policy="skip", skipped=skipped, checkpoint="step-10").action == "skip"

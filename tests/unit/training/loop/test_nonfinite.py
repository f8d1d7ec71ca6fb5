"""What becomes of a batch that gives NaN."""

from __future__ import annotations

import pytest

from raymlops.training.loop.nonfinite import on_non_finite


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
    decision = on_non_finite(12, policy=policy, faults=[], checkpoint=checkpoint)
    assert decision.action == expected
    assert decision.reason


def test_a_run_that_diverges_is_stopped() -> None:
    """Steps 11 to 20 were faults: the next one would be the eleventh of the last hundred. Step 121 is far away."""
    faults = list(range(11, 21))
    stopped = on_non_finite(21, policy="skip", faults=faults, checkpoint="step-10")
    assert (stopped.action, stopped.reason) == ("stop", "it happened 10 times in the last 100 steps already")
    assert on_non_finite(121, policy="skip", faults=faults, checkpoint="step-10").action == "skip"

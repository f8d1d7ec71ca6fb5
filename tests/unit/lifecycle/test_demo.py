"""What the demo says at its end."""

from __future__ import annotations

from raymlops.lifecycle.demo import DemoRecord


def record(*, kept: bool) -> DemoRecord:
    return DemoRecord(
        auc=0.73,
        auc_error=0.01,
        rows=300,
        test_metrics={"test/auc": 0.73, "test/loss": 0.5},
        baselines={},
        answers="/demo/answers.json",
        seconds={"sweep": 1.0},
        urls={"endpoint": "http://127.0.0.1:8000"},
        curl="curl",
        kept=kept,
        root="/demo/state",
        config="flights.yaml",
        env={"RAYMLOPS_HOME": "/demo/the state"},
    )


def test_a_demo_that_is_kept_says_how_commands_reach_it() -> None:
    """As lines for a shell; one that ended has nothing to reach."""
    lines = record(kept=True).text().splitlines()
    assert "export RAYMLOPS_HOME='/demo/the state'" in lines
    assert "export" not in record(kept=False).text()

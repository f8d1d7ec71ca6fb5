from __future__ import annotations

from dataclasses import dataclass

import pytest

from raymlops.cluster.jobs import parse_result, print_result, submission_id
from raymlops.records import SCHEMA_VERSION, Record


@dataclass(frozen=True)
class _Result(Record):
    run_id: str
    loss: float


def test_a_printed_result_is_the_last_line_and_reads_back(capsys):
    """What a job prints, whoever submitted it can read from the log."""
    print_result(_Result("r1", 0.5))
    log = capsys.readouterr().out
    assert log == f'RAYMLOPS_RESULT {{"schema_version": {SCHEMA_VERSION}, "run_id": "r1", "loss": 0.5}}\n'
    assert parse_result(f"noise\n{log}") == {"schema_version": SCHEMA_VERSION, "run_id": "r1", "loss": 0.5}


def test_the_last_result_counts():
    """A job may run several things; the last line is its own."""
    assert parse_result('RAYMLOPS_RESULT {"a": 1}\nRAYMLOPS_RESULT {"a": 2}\nbye') == {"a": 2}


@pytest.mark.parametrize("log", ["", "no result", 'RAYMLOPS_RESULT {"a": ', "RAYMLOPS_RESULT 3", "RAYMLOPS_RESULTS {}"])
def test_a_log_without_a_whole_result_has_none(log):
    """Ray truncates long logs in the middle of a line."""
    assert parse_result(log) is None


def test_nan_is_refused_rather_than_written():
    """It is not JSON, and whoever reads the line would fail later."""
    with pytest.raises(ValueError, match="JSON"):
        print_result({"loss": float("nan")})


def test_the_submission_id_comes_from_ray(monkeypatch):
    """None outside a job, and where Ray wrote none."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission_id() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert submission_id() == "raysubmit_1"

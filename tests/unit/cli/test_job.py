from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from raymlops.cli.job import run_job
from raymlops.errors import ClusterError
from raymlops.records import BundleRef, TrialRecord

def work(args):
    print("progress", file=sys.stderr)
    match getattr(args, "resume", None) or args.config:
        case "run1":
            return BundleRef(str(args.config), args.resume)
        case "good":
            return BundleRef(args.env, args.overrides[0])
        case "nan":
            return TrialRecord(0, {}, "complete", float("nan"), metrics={"loss": float("inf")})
        case "unreachable":
            raise ClusterError("nobody answers", hint="start one")
        case "defect":
            return {}["missing"]
        case "left":
            sys.exit(0)
        case "stopped":
            os.kill(os.getpid(), signal.SIGTERM)

run_job(sys.argv.pop(1), work)
"""


@pytest.fixture
def job(tmp_path):
    """Run a job script; return its exit code and its log's last line, which must be its only result."""

    def run(*arguments, verb="train"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, verb, *arguments],
            cwd=tmp_path,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RAYMLOPS_RESULT ")]
        assert lines == done.stdout.splitlines()[-1:], done.stdout
        return done.returncode, json.loads(lines[0].partition(" ")[2])

    return run


def test_a_finished_job_ends_its_log_with_the_result(job):
    """The arguments have come through."""
    code, result = job("--config", "good", "--env", "prod", "train.lr=1")
    assert code == 0
    assert result == {"schema_version": 1, "verb": "train", "uri": "prod", "digest": "train.lr=1"}


def test_a_metric_that_is_no_number_does_not_fail_a_finished_job(job):
    """JSON has no NaN; it is null."""
    code, result = job("--config", "nan")
    assert (code, result["value"], result["metrics"]) == (0, None, {"loss": None})


@pytest.mark.parametrize(
    ("config", "code", "kind", "message"),
    [
        ("unreachable", 5, "ClusterError", "nobody answers"),
        ("defect", 1, "KeyError", "'missing'"),
        ("left", 1, "SystemExit", "0"),
        ("stopped", 130, "KeyboardInterrupt", ""),
    ],
)
def test_a_failed_job_says_why_and_exits_with_its_code(job, config, code, kind, message):
    """Also one that was stopped, or whose recipe called sys.exit."""
    got, result = job("--config", config)
    assert (got, result["exit_code"], result["verb"]) == (code, code, "train")
    assert (result["error"]["type"], result["error"]["message"]) == (kind, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the following arguments is required: --config, --resume"),
        (["--config", "good", "--colour"], "unrecognized arguments: --colour"),
        (["--config", "good", "--version", "3"], "unrecognized arguments: --version"),
    ],
)
def test_a_job_that_is_called_wrongly_ends_with_a_result_too(job, arguments, message):
    """The usage is the hint."""
    code, result = job(*arguments)
    assert (code, result["exit_code"], result["error"]["type"]) == (2, 2, "UsageError")
    assert message in result["error"]["message"]
    assert result["error"]["hint"].startswith("usage: jobs/train.py")


@pytest.mark.parametrize(("more", "config"), [([], "None"), (["--config", "good"], "good")])
def test_a_training_goes_on_with_or_without_a_configuration(job, more, config):
    """The run knows its own."""
    code, result = job("--resume", "run1", *more)
    assert (code, result["digest"], result["uri"]) == (0, "run1", config)


def test_only_a_training_is_resumed(job):
    """Any other job needs its configuration."""
    code, result = job("--resume", "run1", verb="deploy")
    assert (code, result["error"]["message"]) == (2, "the following arguments are required: --config")


def test_only_deploy_takes_a_version(job):
    """What is deployed by default is in its help."""
    assert job("--config", "unreachable", "--version", "3", verb="deploy")[0] == 5

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from raymlops.cluster.grace_period import JOB

SCRIPT = """
import os, signal, sys
from raymlops.cli.app import app, command, main
from raymlops.cli.job import run_job
from raymlops.cli.output import Answer, ConfigOption, Overrides, YesFlag, confirm
from raymlops.errors import ClusterError

def stub(config: ConfigOption, overrides: Overrides = None, *, yes: YesFlag = False):
    print("progress", file=sys.stderr)
    confirm("Sure?", yes=yes)
    match config:
        case "good":
            return Answer({"overrides": overrides}, "text")
        case "nan":
            return Answer({"value": float("nan"), "metrics": {"loss": float("inf")}}, "text")
        case "drifted":
            return Answer({"windows": []}, "text", exit_code=6)
        case "unreachable":
            raise ClusterError("nobody answers", hint="start one")
        case "defect":
            return {}["missing"]
        case "left":
            sys.exit(0)
        case "stopped":
            os.kill(os.getpid(), signal.SIGTERM)

app.registered_commands = [found for found in app.registered_commands if found.callback.__name__ != "deploy"]
app.command("deploy")(command(stub))
"""
AS_SCRIPT = f"{SCRIPT}\nrun_job('deploy')"
AS_VERB = f"{SCRIPT}\nsys.exit(main(['deploy', *sys.argv[1:]]))"


def run(code, *arguments, cwd, env=None):
    """Run a script; return its exit code and the lines of its log."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=env,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(params=["script", "verb"])
def job(request, tmp_path):
    """Run a job, as a script of ``jobs/`` and as the verb itself; return its exit code and its result."""

    def run_it(*arguments):
        code, lines = (
            run(AS_SCRIPT, *arguments, cwd=tmp_path)
            if request.param == "script"
            else run(AS_VERB, "--yes", *arguments, cwd=tmp_path, env={JOB: "{}"})
        )
        results = [line for line in lines if line.startswith("RAYMLOPS_RESULT ")]
        assert results == lines[-1:], lines
        return code, json.loads(results[0].partition(" ")[2])

    return run_it


def test_a_finished_job_ends_its_log_with_the_result(job):
    """The arguments have come through, and nobody was asked."""
    code, result = job("--config", "good", "train.lr=1")
    assert code == 0
    assert result == {"schema_version": 1, "verb": "deploy", "overrides": ["train.lr=1"]}


def test_a_metric_that_is_no_number_does_not_fail_a_finished_job(job):
    """JSON has no NaN; it is null."""
    code, result = job("--config", "nan")
    assert (code, result["value"], result["metrics"]) == (0, None, {"loss": None})


def test_an_answer_that_is_no_success_says_its_exit_code(job):
    """Ray's own command ends with 1 whatever the code of a job is."""
    assert job("--config", "drifted") == (6, {"schema_version": 1, "verb": "deploy", "windows": [], "exit_code": 6})


@pytest.mark.parametrize(
    ("config", "code", "kind", "message"),
    [
        ("unreachable", 5, "ClusterError", "nobody answers"),
        ("defect", 1, "KeyError", "'missing'"),
        ("left", 1, "SystemExit", "0"),
        ("stopped", 130, "KeyboardInterrupt", "interrupted"),
    ],
)
def test_a_failed_job_says_why_and_exits_with_its_code(job, config, code, kind, message):
    """Also one that was stopped, or whose recipe called sys.exit."""
    got, result = job("--config", config)
    assert (got, result["exit_code"], result["verb"]) == (code, code, "deploy")
    assert (result["error"]["type"], result["error"]["message"]) == (kind, message)


@pytest.mark.parametrize("arguments", [[], ["--config", "good", "--colour"]])
def test_a_job_that_is_called_wrongly_ends_with_a_result_too(job, arguments):
    """As any other error."""
    code, result = job(*arguments)
    assert (code, result["exit_code"], result["error"]["type"]) == (2, 2, "UsageError")


def test_a_script_takes_the_same_yes_as_the_verb(tmp_path):
    """It is said by submitting the job; saying it again is no mistake."""
    for more in ([], ["--yes"], ["-y"]):
        assert run(AS_SCRIPT, "--config", "good", *more, cwd=tmp_path)[0] == 0


def test_json_in_a_job_is_the_object_alone(tmp_path):
    """A job's shell may read the answer."""
    code, lines = run(AS_VERB, "--yes", "--config", "good", "--json", cwd=tmp_path, env={JOB: "{}"})
    assert (code, json.loads(lines[-1])["overrides"]) == (0, None)

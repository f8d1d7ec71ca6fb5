from __future__ import annotations

import json
import os
import subprocess

import pytest
from shell_user import RAYMLOPS

from raymlops.cli.output import confirm, error_data, report_error
from raymlops.errors import RefusedError, TrainingError


def test_a_second_interrupt_keeps_what_the_first_one_says(capsys):
    """It comes while the first one cleans up."""
    first = KeyboardInterrupt()
    first.add_note("it resumes")
    second = KeyboardInterrupt()
    second.__context__ = first
    assert report_error(second, as_json=False) == 130
    assert capsys.readouterr().err.splitlines() == ["interrupted", "it resumes"]


@pytest.mark.parametrize(("error", "code"), [(TrainingError("rank 1 died"), 1), (KeyboardInterrupt(), 130)])
def test_what_was_added_to_an_error_is_shown(error, code, capsys):
    """Such as how the run that it stopped goes on."""
    error.add_note("raymlops train --resume r1")
    assert report_error(error, as_json=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].strip() == "raymlops train --resume r1"
    assert error_data(error)["notes"] == ["raymlops train --resume r1"]


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interrupt_is_an_object_too(as_json, capsys):
    """With --json, as every other outcome."""
    assert report_error(KeyboardInterrupt(), as_json=as_json) == 130
    out, err = capsys.readouterr()
    assert err == "interrupted\n"
    assert out == ("" if not as_json else out)
    if as_json:
        assert json.loads(out)["error"] == {"type": "KeyboardInterrupt", "message": "interrupted"}


def test_no_is_a_refusal(monkeypatch):
    """Nobody was interrupted."""
    monkeypatch.setattr("raymlops.cli.output.has_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_question, **_options: False)
    with pytest.raises(RefusedError, match="nothing was changed"):
        confirm("Do it?", yes=False)


@pytest.mark.parametrize(
    ("redirect", "code", "message"),
    [
        ("<&-", 2, "there is no terminal to ask on"),
        (">&- --yes", 5, "stdout is closed"),
        ("> /dev/full", 5, "No space left on device"),
    ],
)
def test_streams_that_are_closed_or_full_are_no_defect(redirect, code, message, tmp_path):
    """Of stdin, that nobody can be asked; of stdout, that the answer has no place."""
    verb = "keys revoke nobody" if "<" in redirect else "config schema"
    command = f"{RAYMLOPS} {verb} {redirect.removesuffix(' --yes')}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "RAYMLOPS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "defect" in done.stderr) == (code, False)
    assert message in done.stderr


def test_an_error_without_notes_has_none():
    """No empty list in its JSON."""
    assert "notes" not in error_data(TrainingError("rank 1 died"))

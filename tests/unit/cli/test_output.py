from __future__ import annotations

import pytest

from raymlops.cli.output import describe, report_error
from raymlops.errors import TrainingError


@pytest.mark.parametrize(("error", "code"), [(TrainingError("rank 1 died"), 1), (KeyboardInterrupt(), 130)])
def test_what_was_added_to_an_error_is_shown(error, code, capsys):
    """Such as how the run that it stopped goes on."""
    error.add_note("raymlops train --resume r1")
    assert report_error(error, as_json=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].strip() == "raymlops train --resume r1"
    assert describe(error)["notes"] == ["raymlops train --resume r1"]


def test_an_error_without_notes_has_none():
    """No empty list in its JSON."""
    assert "notes" not in describe(TrainingError("rank 1 died"))

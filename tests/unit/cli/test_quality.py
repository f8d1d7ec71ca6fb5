from __future__ import annotations

import json
from datetime import timedelta

import pytest
from labelled_days import DAY, FIRST, answer_day, label_day, live

from raymlops.cli.main import main
from raymlops.config.load import load_data
from raymlops.lifecycle.quality.judge import QualityJudge
from raymlops.lifecycle.sources import state_of


@pytest.fixture
def worse(tmp_path, monkeypatch):
    """A model is live whose labels stopped to depend on what it looks at."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    spec = load_data({"project": {"name": "flights"}, "recipe": {"import": "any:Recipe"}}).spec
    with state_of(spec) as state:
        live(state, tmp_path)
        for day in range(3):
            label_day(tmp_path, day, answer_day(tmp_path, day, slope=-1.5), after=timedelta(hours=1))
        QualityJudge(state)(FIRST + 6 * DAY)


@pytest.mark.usefixtures("worse")
def test_answers_that_are_worse_end_with_6_where_that_is_asked(capsys):
    """Otherwise with 0; JSON has every window, and the verdict."""
    assert main(["quality", "flights"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("flights, version 3 since ")
    assert "\n  worse: " in text
    assert "outputs, worse by their labels, " in text
    assert main(["quality", "flights", "--fail-on-worse", "--since", "2020-01-01", "--json"]) == 6
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"]["outcome"], len(found["windows"])) == ("worse", 3)


def test_it_is_of_a_model_and_not_of_a_version(tmp_path, monkeypatch, capsys):
    """Exit code 2, or 3 of one that nobody knows."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    assert main(["quality"]) == 2
    assert main(["quality", "nobody"]) == 3
    assert "nobody" in capsys.readouterr().err

from __future__ import annotations

import json

import pytest
from looped import live

from raymlops.cli.main import main
from raymlops.state.freezes import freeze_of
from raymlops.state.loop import retrainings_of

WHY = ["--why", "a new fleet", "--yes"]


@pytest.fixture(autouse=True)
def home(tmp_path, state, monkeypatch):
    """Let the environment name the state of ``url``, by which flights is live."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    live(state)


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_retrain_begins_one_and_refuses_the_next(state, capsys):
    """Exit code 4, with the reason, while one is open; 3 for a model that nobody knows."""
    assert main(["retrain", "flights", *WHY, "--json"]) == 0
    (found,) = retrainings_of(state)
    assert said(capsys)["retraining"]["id"] == found.id
    assert main(["retrain", "flights", *WHY]) == 4
    assert "one at a time: retraining" in capsys.readouterr().err
    assert main(["retrain", "digits", *WHY]) == 3
    assert main(["retrain", "flights@3", *WHY]) == 2


def test_why_is_needed(capsys):
    """As for every change that the audit record keeps."""
    assert main(["retrain", "flights", "--yes"]) == 2
    assert "--why" in capsys.readouterr().err


def test_a_frozen_model_is_not_retrained_until_it_is_thawed(state, capsys):
    """--thaw ends it; together with --until it is a contradiction."""
    assert main(["freeze", "flights", *WHY, "--until", "2h"]) == 0
    assert "flights is frozen since" in capsys.readouterr().out
    assert main(["retrain", "flights", *WHY]) == 4
    assert main(["freeze", "flights", *WHY, "--thaw", "--until", "2h"]) == 2
    assert main(["freeze", "flights", *WHY, "--thaw"]) == 0
    assert freeze_of(state, "flights", now=state.now()) is None
    assert main(["freeze", "flights", *WHY, "--thaw"]) == 4


def test_proposals_are_listed_and_answered(state, capsys):
    """Those of one model, or of all; one that is not there is not found."""
    live(state, triggers={"every_days": 1e-9})
    from raymlops.lifecycle.loop.decision import decide_due

    found = decide_due(state, "flights", now=state.now())
    assert main(["proposals", "list", "flights"]) == 0
    assert f"{found.id} of flights: proposed" in capsys.readouterr().out
    assert main(["proposals", "list", "--json"]) == 0
    assert [one["id"] for one in said(capsys)["proposals"]] == [found.id]
    assert main(["proposals", "reject", found.id, *WHY]) == 0
    assert "rejected" in capsys.readouterr().out
    assert main(["proposals", "accept", found.id, *WHY]) == 4
    assert main(["proposals", "accept", "abc", *WHY]) == 3


def test_status_of_a_model_says_what_its_loop_waits_for(state, capsys):
    """By its name alone; another word is a run's id."""
    live(state, triggers={"every_days": 3650})
    assert main(["status", "flights"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("flights\n")
    assert "loop" in out
    assert "every_days: due at 20" in out
    assert main(["retrain", "flights", *WHY]) == 0
    capsys.readouterr()
    assert main(["status", "flights"]) == 0
    assert "no controller of this state is running" in capsys.readouterr().out
    assert main(["status", "digits"]) == 3

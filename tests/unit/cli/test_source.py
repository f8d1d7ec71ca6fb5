"""A verb about a model takes its name or its configuration alike."""

from __future__ import annotations

import json

import pytest
from stored import put

from raymlops.cli.live import NEWEST
from raymlops.cli.main import main
from raymlops.cli.source import choose
from raymlops.errors import UsageError
from raymlops.records import BundleRef
from raymlops.state.store import Deployment, State


@pytest.fixture
def config(tmp_path, monkeypatch, mlflow_database):
    """Return the configuration of ``m``, whose home has two audit events and an empty MLflow."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        state.record(action="register", subject="m/1")
        state.record(action="register", subject="other/1")
    file = tmp_path / "m.yaml"
    file.write_text(f"project: {{name: m}}\nrecipe: {{import: 'a:B'}}\nstorage: {{path: {tmp_path}}}\n")
    return str(file)


def test_the_audit_is_of_a_model_or_of_all(config, capsys):
    """By name, by configuration, or with neither."""
    for arguments, subjects in (
        (["m"], ["m/1"]),
        (["--config", config], ["m/1"]),
        ([], ["m/1", "other/1"]),
    ):
        assert main(["audit", *arguments, "--json"]) == 0
        events = json.loads(capsys.readouterr().out)["events"]
        assert [event["subject"] for event in events] == subjects


def test_the_newest_events_are_printed_and_older_ones_since_a_time(config, tmp_path, capsys):
    """Of a year of retrainings nobody reads all at once; what is left out is said, in JSON too."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        for number in range(NEWEST):
            state.record(action="gate.pass", subject=f"m/{number}")
    assert main(["audit", "m", "--json"]) == 0
    said = capsys.readouterr()
    assert [one["subject"] for one in json.loads(said.out)["events"]] == [f"m/{number}" for number in range(NEWEST)]
    assert f"the newest {NEWEST} events; older ones with --since WHEN" in said.err
    assert main(["audit", "m", "--since", "1h", "--json"]) == 0
    said = capsys.readouterr()
    assert (len(json.loads(said.out)["events"]), said.err) == (NEWEST + 1, "")
    assert main(["audit", "m", "--since", "2100-01-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == []
    assert main(["audit", "m", "--since", "yesterday"]) == 2
    assert "'yesterday' is no time" in capsys.readouterr().err


def test_a_model_of_which_nothing_was_recorded_has_no_audit(config, tmp_path, capsys):
    """Keys are for every model, and say nothing of one that is not there."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        state.record(action="key.create", subject="api-key:1")
    assert main(["audit", "nosuch"]) == 3
    assert "the audit record has nothing of nosuch" in capsys.readouterr().err


def test_events_of_two_sides_are_told_apart(config, tmp_path, capsys):
    """A baseline is of the inputs or of the outputs; JSON has the action as it was recorded."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        for side in ("inputs", "outputs"):
            state.record(action="drift.rebaseline", subject="m", after={"side": side}, why="a new clinic")
    assert main(["audit", "m"]) == 0
    said = capsys.readouterr().out
    assert "drift.rebaseline (inputs)" in said
    assert "drift.rebaseline (outputs)" in said
    assert main(["audit", "m", "--json"]) == 0
    assert [one["action"] for one in json.loads(capsys.readouterr().out)["events"]][1:] == ["drift.rebaseline"] * 2


@pytest.mark.parametrize("verb", [["models", "gate"], ["predict", "--batch", "rows.parquet", "--out", "out"]])
def test_a_model_without_versions_is_not_found_by_either(config, verb, tmp_path, monkeypatch, capsys):
    """Both ways lead to the same question to the registry."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").touch()
    messages = []
    for arguments in (["m"], ["--config", config]):
        code = main([*verb, *arguments])
        messages.append((code, capsys.readouterr().err))
    assert messages[0] == messages[1]


def test_versions_are_listed_by_name_or_all(config, capsys):
    for arguments in (["m"], ["--config", config], []):
        assert main(["models", "list", *arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["versions"] == []


@pytest.mark.parametrize("verb", [["controller"], ["deploy", "--remove", "--yes", "m"], ["keys", "list"]])
def test_verbs_need_no_configuration(config, verb, capsys):
    """What is missing is never the file."""
    assert main(verb) in {0, 3, 5}
    assert "--config FILE`" not in capsys.readouterr().err


def test_a_key_is_made_for_a_model_by_its_name(config, capsys):
    """Without --config the model has to be named."""
    assert main(["keys", "create", "shop"]) == 2
    assert "--model NAME" in capsys.readouterr().err
    assert main(["keys", "create", "shop", "--model", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"]["models"] == ["m"]


def test_the_next_command_is_about_the_same_project(config):
    """The overlay and the values that replaced the file's are repeated, for a shell."""
    chosen = choose(["serve.min_replicas=2", "project.tags={a: b}"], config=config, env=None)
    assert chosen.command("models gate", "--version", 3) == (
        f"raymlops models gate --config {config} serve.min_replicas=2 'project.tags={{a: b}}' --version 3"
    )
    assert choose(["m@3"], config=None, env=None).command("deploy") == "raymlops deploy m"


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {}, "neither a model nor"),
        (["a=b"], {}, "neither a model nor"),
        (["m@3"], {"version": "4"}, "both name a version"),
        (["m"], {"env": "prod"}, "lays a file over another"),
    ],
)
def test_what_names_no_project_is_refused(config, words, options, message):
    """With what to give instead."""
    with pytest.raises(UsageError, match=message):
        choose(words, **{"config": None, "env": None, **options})


def test_a_name_and_a_file_of_another_model_contradict(config):
    """The same model in both is no mistake."""
    assert choose(["m@3"], config=config, env=None).version == "3"
    with pytest.raises(UsageError, match="is the configuration of m, not of other"):
        choose(["other"], config=config, env=None)


def test_a_pipeline_names_the_line_of_a_wrong_recipe_setting(tmp_path, capsys):
    """The recipe's section is checked with the file's places."""
    file = tmp_path / "m.yaml"
    file.write_text("project: {name: m}\nrecipe:\n  import: 'tiny:Tiny'\n  config:\n    no_such: 3\n")
    assert main(["pipeline", "--config", str(file), "--yes"]) == 2
    assert "m.yaml:5:14: recipe.config.no_such" in capsys.readouterr().err


def test_a_change_of_how_a_model_is_watched_is_told(config, tmp_path, capsys):
    """A deploy of the same version changes nothing else; both settings are in JSON as they were."""
    bundle = BundleRef("file:///b", "d" * 64)
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        for monitor in ({}, {"window_h": 6}):
            put(state, "m", [Deployment("m", 3, bundle, "run", "champion", monitor=monitor)], why="version 3 requested")
    assert main(["audit", "m"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if "version 3 requested" in line]
    assert [line.partition("version 3 requested")[2] for line in lines] == ["", "; monitor.window_h: 24 -> 6"]

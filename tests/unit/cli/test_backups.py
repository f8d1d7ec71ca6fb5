"""``backup`` and ``restore``: what they refuse before anything is written, with the exit codes of all verbs."""

import json

import pytest

from raymlops.cli.main import main


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["backup", "--to", "{folder}/place"], 3, "there is nothing to back up: {folder}/home/state.db"),
        (["backup", "--to", "https://me:hunter2@host/x"], 2, "the place of backups holds a credential"),
        (["restore", "--from", "{folder}/place", "--yes"], 3, "there is no backup in {folder}/place"),
        (["restore", "--from", "{folder}/place"], 2, "there is no terminal to ask on"),
        (["restore", "--from", "{folder}/place", "--backup", "x", "--dry-run"], 3, "there is no backup x in"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch, capsys, *, words, code, says):
    """No database, no folder, no password."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([word.format(folder=tmp_path) for word in words] + ["--json"]) == code
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert says.format(folder=tmp_path) in message
    assert "hunter2" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_database_is_unknown_is_named(tmp_path, monkeypatch, capsys):
    """With the field that names it."""
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert main(["backup", "--to", str(tmp_path), "--json"]) == 2
    assert "tracking.database" in json.loads(capsys.readouterr().out)["error"]["hint"]

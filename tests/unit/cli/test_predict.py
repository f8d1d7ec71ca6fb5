from __future__ import annotations

import json

import pytest

from raymlops.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs NAME and --file, or --batch"),
        (["flights"], "needs NAME and --file, or --batch"),
        (["-f", "rows.json"], "needs NAME and --file, or --batch"),
        (["a", "b", "-f", "rows.json"], "needs NAME and --file, or --batch"),
        (["flights", "-f", "rows.json", "--out", "o"], "--out cannot be used without --batch"),
        (["flights", "-f", "r.json", "-c", "a.yaml", "--keep", "id"], "--config, --keep cannot be used without"),
        (["--out", "o", "-c", "a.yaml"], "--out, --config cannot be used without --batch"),
        (["--batch", "i", "--out", "o", "-c", "a.yaml", "-f", "rows.json"], "--file cannot be used with --batch"),
        (
            ["--batch", "i", "--out", "o", "-c", "a.yaml", "--url", "u", "--timeout-s", "3"],
            "--timeout-s cannot be used with --batch",
        ),
        (["--batch", "i", "--out", "o"], "neither a model nor its configuration is named"),
        (["--batch", "i"], "--batch needs --out"),
    ],
)
def test_the_two_kinds_are_not_mixed(arguments, message, capsys):
    """Someone who gives options of both has misread one of them."""
    assert main(["predict", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_what_up_started_is_asked_unless_the_environment_says_otherwise(tmp_path, monkeypatch, capsys):
    """Nobody listens at either; the message says who was asked."""
    file = tmp_path / "rows.json"
    file.write_text("[]")
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    monkeypatch.setenv("RAYMLOPS_URL", "http://127.0.0.1:1")
    assert main(["predict", "flights", "-f", str(file), "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"].startswith("cannot connect to http://127.0.0.1:1/models/flights")
    assert main(["predict", "flights", "-f", str(file), "--url", "http://127.0.0.1:2", "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"].startswith("cannot connect to http://127.0.0.1:2/models/flights")


def test_a_batch_is_predicted_by_a_configuration(tmp_path, capsys):
    """Its overrides and overlay are read as those of any other command."""
    file = tmp_path / "a.yaml"
    file.write_text("project: {name: m}\nrecipe: {import: 'any:Recipe'}\n")
    given = ["predict", "--batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "-c", str(file)]
    assert main([*given, "train.lr=fast"]) == 2
    assert "train.lr" in capsys.readouterr().err
    assert main(given) == 2
    assert "has no Parquet file" in capsys.readouterr().err

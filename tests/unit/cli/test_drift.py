from __future__ import annotations

import json

import pytest
from receiver import receiver

from raymlops.cli.main import main

CONFIG = """
project: {name: flights}
recipe: {import: "tiny:Tiny"}
monitor: {notify: {file: who}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the arguments that name a configuration, whose messengers are in the file ``who`` beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return ["--config", "config.yaml"]


def test_a_test_message_is_sent_before_anything_is_deployed(config, tmp_path, capsys):
    """Exit code 5 where one messenger does not have it; what is printed names no URL."""
    with receiver() as messenger:
        who = tmp_path / "who"
        who.write_text(messenger.url("tok3n"))
        assert main(["drift", *config, "--test-message"]) == 0
        who.write_text(f"{messenger.url('tok3n')}\n{messenger.url('away')}")
        messenger.answers["away"] = 503
        assert main(["drift", *config, "--test-message", "--json"]) == 5
        assert messenger.titles("tok3n") == ["flights: test message"] * 2
    out, err = capsys.readouterr()
    text, _, data = out.partition("\n")
    assert (text, err) == ("URL 1 (JSON): sent", "")
    errors = {one["number"]: one["error"] for one in json.loads(data)["deliveries"]}
    assert errors == {1: None, 2: "answered 503"}
    assert "tok3n" not in out


def test_without_the_file_the_field_is_named(config, capsys):
    """Exit code 2, as for any configuration."""
    assert main(["drift", *config, "--test-message"]) == 2
    assert "monitor.notify: the file who cannot be read: No such file" in capsys.readouterr().err


def test_a_url_that_nothing_knows_is_a_mistake_of_the_configuration(config, tmp_path, capsys):
    """Exit code 2, whatever became of the others: no waiting helps."""
    with receiver() as messenger:
        messenger.answers["away"] = 503
        (tmp_path / "who").write_text(f"slak://secret\n{messenger.url('away')}")
        assert main(["drift", *config, "--test-message"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "URL 1: unknown to apprise, or incomplete",
        "URL 2 (JSON): answered 503",
    ]

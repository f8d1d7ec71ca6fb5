"""``submit`` on the command line: what it runs is what the command line takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from raymlops.cli.app import app
from raymlops.cli.main import main
from raymlops.cluster.kubernetes.checks import checked
from raymlops.cluster.kubernetes.ray import ray_job
from raymlops.config.load import load

FLIGHTS = Path(__file__).resolve().parents[3] / "configs" / "flights.yaml"
ROOT = typer.main.get_command(app)


def leaves():
    """Yield each verb that reads a configuration, with what it needs."""
    for name, sub in ROOT.commands.items():
        if sub.hidden or name == "submit":
            continue
        for word, leaf in getattr(sub, "commands", {"": sub}).items():
            if any("--config" in one.opts for one in leaf.params):
                needed = [one for one in leaf.params if one.required and "--config" not in one.opts]
                given = [[one.opts[-1], "1"] if one.opts[0].startswith("-") else ["1"] for one in needed]
                yield [name, *filter(None, [word]), *(word for words in given for word in words)]


def parsed(argv):
    """Return the verb that the command line takes them for, and its options."""
    context, command = ROOT.make_context("raymlops", list(argv)), ROOT
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return command, context.params


@pytest.mark.parametrize("words", list(leaves()), ids=" ".join)
@pytest.mark.parametrize("end", [["--json"], ["--"], []], ids=["option", "end", "none"])
def test_every_verb_is_run_with_the_configuration_of_the_cluster(words, end):
    """Those of two words too."""
    place = checked(load(FLIGHTS, env="prod").spec, env="prod", release="1.2.3")
    argv = shlex.split(ray_job(place, [*words, *end], ray_version="2.60.0")["spec"]["entrypoint"])
    command, options = parsed(argv[argv.index("raymlops") + 1 :])
    assert command.name in words
    assert options["config"] == "/etc/raymlops/project.yaml"


@pytest.mark.parametrize("words", [["trian"], ["models"], ["models", "x"], ["down"], ["submit"]])
def test_what_no_job_can_run_is_said_before_there_is_one(words, capsys):
    """With what is meant: its nodes would come up for that."""
    assert main(["submit", "--config", str(FLIGHTS), "--env", "prod", *words]) == 2
    assert words[-1] in capsys.readouterr().err


def test_a_verb_refuses_a_configuration_that_is_not_its_jobs(tmp_path, monkeypatch, capsys):
    """Where it is another one for as long as a kubelet may be late."""
    (tmp_path / "digest").write_text("b" * 16)
    monkeypatch.setenv("RAYMLOPS_CONFIG_DIGEST", "a" * 16)
    monkeypatch.setattr("raymlops.cluster.kubernetes.applied.LATE_S", -1.0)
    assert main(["config", "show", "--config", str(tmp_path / "project.yaml")]) == 4
    assert "was made of another configuration (digest aaaa" in capsys.readouterr().err

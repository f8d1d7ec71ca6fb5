import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import typer

from raymlops.cli.app import GROUPS, VERBS, _InterruptedError, app, command
from raymlops.cli.main import main

ROOT = Path(__file__).resolve().parents[3]


def verbs():
    """Every command with its groups, as the user types it."""
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():
        yield from (f"{name} {leaf}" for leaf in sub.commands) if hasattr(sub, "commands") else (name,)


def test_every_verb_is_documented():
    """A command without a line in the documents does not exist for its users."""
    readme = (ROOT / "docs" / "commands.md").read_text()
    assert [verb for verb in verbs() if f"`{verb}" not in readme] == []


def test_every_verb_explains_itself():
    """Each command has a sentence of help."""
    command = typer.main.get_command(app)
    leaves = [
        leaf
        for sub in command.commands.values()
        for leaf in (sub.commands.values() if hasattr(sub, "commands") else [sub])
    ]
    assert [leaf.name for leaf in leaves if not leaf.help] == []


def test_version(capsys):
    """--version prints the name and the number."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("raymlops 0.")


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["validate"], ["train", "--config"]])
def test_bad_usage_exits_2(arguments, capsys):
    """An unknown verb or a missing argument is the caller's mistake, said on stderr alone."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["up", "--http-port", "x"], ["train", "--colour"]])
def test_bad_usage_as_json(arguments, capsys):
    """With --json stdout is one object, whatever went wrong."""
    assert main([*arguments, "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["schema_version"] == 1
    assert data["error"]["type"] == "UsageError"
    assert data["error"]["message"]


def test_every_verb_takes_json():
    """As the documents say; what `env` prints is another command's."""
    command = typer.main.get_command(app)
    leaves = [
        leaf
        for sub in command.commands.values()
        for leaf in (sub.commands.values() if hasattr(sub, "commands") else [sub])
    ]
    assert [leaf.name for leaf in leaves if not any("--json" in option.opts for option in leaf.params)] == ["env"]


@pytest.mark.parametrize("more", [["--beside"], ["--restore"]])
def test_remove_brings_nothing_up(more, capsys):
    """Someone who asks for both means something else."""
    assert main(["deploy", "--config", "a.yaml", "--remove", "--yes", *more]) == 2
    assert "goes with no --beside or --restore" in capsys.readouterr().err


def test_errors_as_json(tmp_path, capsys):
    """With --json an error is one object with every problem of the file."""
    file = tmp_path / "bad.yaml"
    file.write_text("project: {name: x}\nrecipe: {import: 'a:B'}\ntrain: {lr: fast, epoch: 3}\n")
    assert main(["validate", str(file), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "ConfigError"
    assert {problem["path"] for problem in error["problems"]} == {"train.lr", "train.epoch"}


@pytest.mark.parametrize("verb", [["validate"], ["config", "show"]])
def test_a_file_is_named_as_other_verbs_do_too(verb, tmp_path, capsys):
    """By --config or alone, but not by both, nor by neither."""
    file = tmp_path / "a.yaml"
    file.write_text("project: {name: x}\nrecipe: {import: 'raymlops.recipes.digits:Digits'}\n")
    for words in ([str(file)], ["--config", str(file)], ["-c", str(file)]):
        assert main([*verb, *words, "train.epochs=3"]) == 0, words
    capsys.readouterr()
    assert main([*verb, str(file), "--config", str(file)]) == 2
    assert "both name a file" in capsys.readouterr().err
    assert main(verb) == 2
    assert "--config FILE" in capsys.readouterr().err


SWEEP = """
project: {name: x}
recipe: {import: 'plain_recipe:Plain'}
sweep: {space: {train.lr: {float: [0.1, 0.2]}, train.seed: {int: [0, 9]}}, SETTINGS}
"""


def test_validate_refuses_what_a_sweep_would(tmp_path, capsys):
    """All of it at once: no mode for another metric, and a rung that no trial reaches (train.epochs is 5)."""
    file = tmp_path / "a.yaml"
    file.write_text(SWEEP.replace("SETTINGS", "metric: validation/auc, grace_period: 6"))
    assert main(["validate", str(file)]) == 2
    err = capsys.readouterr().err
    assert "sweep.mode is not set" in err
    assert "sweep.grace_period is 6, longer than a whole trial" in err


def test_validate_warns_of_what_is_hardly_meant(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(SWEEP.replace("SETTINGS", "sampler: gp, scheduler: asha"))
    assert main(["validate", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    warnings = json.loads(out)["warnings"]
    assert [warning.partition(" ")[0] for warning in warnings] == ["sweep.sampler", "train.seed"]
    assert all(warning in err for warning in warnings)


NAMED = """
project: {name: x}
recipe: {import: 'plain_recipe:RECIPE'}
data: {checks: {columns: {COLUMN: {min: 0}}}}
"""


def test_validate_knows_the_inputs_of_the_recipe(tmp_path, capsys):
    """Bounds and slices of what is no input, as a run would refuse them; no data is read."""
    file = tmp_path / "a.yaml"
    file.write_text(NAMED.replace("RECIPE", "Plain").replace("COLUMN", "x"))
    assert main(["validate", str(file)]) == 0
    assert main(["validate", str(file), "monitor.slices={z: [1.0]}"]) == 2
    assert "monitor.slices names 'z'" in capsys.readouterr().err
    file.write_text(NAMED.replace("RECIPE", "Plain").replace("COLUMN", "y"))
    assert main(["validate", str(file)]) == 2
    assert "data.checks.columns names 'y', no input of the signature" in capsys.readouterr().err


def test_validate_knows_the_types_of_inputs(tmp_path, capsys):
    """A value that no row can have, or a slice by one, would be found after the data was read, if at all."""
    file = tmp_path / "a.yaml"
    file.write_text(NAMED.replace("RECIPE", "Plain").replace("COLUMN", "x"))
    assert main(["validate", str(file), "data.checks.columns.x.values=[1, 2.5]"]) == 0
    assert main(["validate", str(file), "data.checks.columns.x.values=[1, a]"]) == 2
    assert "data.checks.columns.x.values: got 'a'; the signature says float" in capsys.readouterr().err
    assert main(["validate", str(file), "monitor.slices={x: [a]}"]) == 2
    assert "monitor.slices.x: got 'a'; the signature says float" in capsys.readouterr().err


def test_validate_warns_of_windows_that_get_no_serving_baseline(tmp_path, capsys):
    """The log keeps less than they take."""
    file = tmp_path / "a.yaml"
    file.write_text(NAMED.replace("RECIPE", "Plain").replace("COLUMN", "x"))
    assert main(["validate", str(file), "monitor.window_h=168", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert "takes 155 days of the log" in warning


def test_validate_says_that_a_signature_needs_the_data(tmp_path, capsys):
    """What only a run can check is no error, and not passed over in silence."""
    file = tmp_path / "a.yaml"
    file.write_text(NAMED.replace("RECIPE", "Fitted").replace("COLUMN", "y"))
    assert main(["validate", str(file), "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("data.checks.columns is not checked here; a run checks before it starts: ")
    assert "Fitted.signature()" in warning


def test_every_verb_with_a_configuration_takes_values_that_replace_its_own():
    """As docs/commands.md says."""
    verbs = [*VERBS, *(verb for _, verbs in GROUPS.values() for verb in verbs.values())]
    takes = {"words", "overrides", "runs"}
    names = {verb.__name__: {*signature(verb).parameters} for verb in verbs}
    assert [verb for verb, there in names.items() if "config" in there and not there & takes] == []


def test_missing_file_exits_2(capsys):
    """A configuration that is not there is named."""
    assert main(["validate", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_origin_of_each_value(tmp_path, capsys):
    """``config show --origin`` names the line, the override and the default that values come from."""
    file = tmp_path / "a.yaml"
    file.write_text("project:\n  name: x\nrecipe: {import: 'a:B'}\ntrain:\n  lr: 1e-2\n")
    assert main(["config", "show", str(file), "train.epochs=3", "--origin", "--json"]) == 0
    values = {row["path"]: row for row in json.loads(capsys.readouterr().out)["values"]}
    assert values["train.lr"]["value"] == 0.01
    assert values["train.lr"]["place"].endswith("a.yaml:5:7")
    assert values["train.epochs"]["kind"] == "override"
    assert values["train.seed"]["kind"] == "default"


def test_changes_need_yes_without_a_terminal(tmp_path, monkeypatch, capsys):
    """What changes the live endpoint asks, and refuses where nobody can answer."""
    file = tmp_path / "a.yaml"
    file.write_text("project: {name: x}\nrecipe: {import: 'a:B'}\n")
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["rollback", "--config", str(file)]) == 2
    assert "--yes" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_noted_on_it():
    """typer makes a bare exit code of it; how the work goes on would be lost."""
    app = typer.Typer()

    def one():
        error = KeyboardInterrupt()
        error.add_note("it resumes with two")
        raise error

    app.command()(command(one))
    with pytest.raises(_InterruptedError) as raised:
        app([], standalone_mode=False)
    assert raised.value.by.__notes__ == ["it resumes with two"]


def test_without_arguments_the_help_is_shown(capsys):
    """It is no error of anybody's."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.lstrip().startswith("Usage: ")


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interrupt_during_the_imports_ends_with_its_code(as_json, tmp_path):
    """No traceback of imports, which may take a second on a busy machine."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    arguments = ["status", *(["--json"] if as_json else [])]
    code = f"import sys; sys.argv[1:] = {arguments}; import raymlops.cli.main as m; m.run()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    if as_json:
        assert json.loads(done.stdout)["error"]["message"] == "interrupted"
    else:
        assert done.stdout == ""

import re

import pytest

pytestmark = pytest.mark.e2e


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_recipe_trains_and_is_registered_from_python(user, repository):
    """The README's recipe, its configuration and its Python lines work as they stand."""
    text = (repository / "README.md").read_text()
    recipe, script, *_ = blocks(text, "python")
    (config,) = blocks(text, "yaml")
    (user.cwd / "line.py").write_text(recipe)
    (user.cwd / "config.yaml").write_text(config)
    (user.cwd / "script.py").write_text(f"{script}\nprint(decision.passed, version.aliases)\n")
    user.raymlops("validate", "config.yaml")
    assert "True ('candidate', 'challenger')" in user.run("python", "script.py").stdout
    assert user.processes() == []


def test_commands_of_the_readme_exist(user, repository):
    """Every ``raymlops`` line of a shell block names a verb with a help page."""
    lines = [line for block in blocks((repository / "README.md").read_text(), "sh") for line in block.splitlines()]
    verbs = {match.group(1) for line in lines if (match := re.search(r"raymlops (\w+)", line))}
    assert {"init", "train", "up", "down"} <= verbs
    for verb in verbs:
        assert "Usage" in user.raymlops(verb, "--help").stdout

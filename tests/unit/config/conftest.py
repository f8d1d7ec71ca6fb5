import textwrap

import pytest

from raymlops.config.load import load
from raymlops.errors import ConfigError

HEAD = """\
project: {name: demo}
recipe: {import: "plain_recipe:Plain"}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Places in messages are relative to where the user stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(tmp_path):
    """Write files: ``write("a.yaml", text)``; with ``head`` the two sections that every file needs come first."""

    def write_file(name, text, *, head=False):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((HEAD if head else "") + textwrap.dedent(text), encoding="utf-8")
        return name

    return write_file


@pytest.fixture
def problems():
    """Load a file that must fail, and return its problems as printed."""

    def load_badly(path="a.yaml", **options):
        with pytest.raises(ConfigError) as caught:
            load(path, **options)
        return [str(problem) for problem in caught.value.problems]

    return load_badly

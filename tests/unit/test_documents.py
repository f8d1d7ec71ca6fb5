"""What the documents show works: commands parse, configurations validate, Python compiles, links lead somewhere."""

import re
from pathlib import Path

import pytest
from command_lines import commands_in, understood
from ruamel.yaml import YAML

from raymlops.config.load import load_data

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BASE = {"project": {"name": "line"}, "recipe": {"import": "line:Line"}}


def blocks(document, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def named(language):
    found = [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document, language))
    ]
    assert found
    return found


@pytest.mark.parametrize("block", named("sh"))
def test_every_command_line_is_understood(block, monkeypatch):
    """Each ``raymlops`` line of a shell block parses: its verb, its options and their values."""
    for line in block.replace("\\\n", " ").splitlines():
        for words in commands_in(line):
            assert understood(words, monkeypatch).params is not None


@pytest.mark.parametrize("block", named("yaml"))
def test_every_configuration_is_valid(block):
    """A block may show a part of a file: what it lacks is a project and a recipe."""
    assert load_data({**BASE, **YAML(typ="safe").load(block)}).spec.project.name == "line"


@pytest.mark.parametrize("block", named("python"))
def test_every_python_block_compiles(block):
    """They run in ``tests/e2e/test_readme.py`` and ``tests/integration``, with what they need."""
    compile(block, "document", "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_links_lead_somewhere(document):
    """Paths of this repository in code quotes, and links between documents."""
    text = document.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:configs|jobs|tests|examples|docs|raymlops)/[\w./]*)`", text))
    links = {target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    assert [link for link in sorted(links) if not leads_somewhere(document, link)] == []


def leads_somewhere(document, link):
    """Return whether the file of a link exists, and has the heading that it names."""
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not target.exists() or not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_bound_has_the_test_that_is_named_for_it():
    """The table of bounds names tests; one that was renamed or removed would leave a bound that nothing shows."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


def test_the_readme_is_short():
    """What does not fit on three screens belongs to ``docs/``."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150

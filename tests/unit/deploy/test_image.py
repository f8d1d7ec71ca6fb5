"""The image: what its Dockerfile says, and its lock files against pyproject.toml. Building it is a soak test."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from raymlops.cli.app import app
from raymlops.cluster.kubernetes.place import HOME, USER
from raymlops.version import __version__

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/image"
LOCK = runpy.run_path(str(FOLDER / "lock.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TORCH = {"cpu": FOLDER / "torch-cpu.txt", "cuda": FOLDER / "torch-cuda.txt"}


def instructions():
    """Return the stages of the Dockerfile, the last one last: lists of an instruction with its text."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages = [[]]
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest.strip()))
    return stages


def said(stage, word):
    return [rest for instruction, rest in stage if instruction == word]


def locked(*names, python=LOCK["PYTHON"]):
    """Return the version and the digests of each package of lock files for a Python on Linux."""
    found = {}
    environment = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    for name in names:
        lock = "".join(LOCK["entries"]((FOLDER / name).read_text()).values())
        for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]:
            line = Requirement(entry.partition("\\")[0])
            if line.marker is None or line.marker.evaluate(environment):
                (version,) = (each.version for each in line.specifier)
                assert line.name not in found
                found[line.name] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry))
    return found


def wanted(*more):
    """Return what the image is made for, requirements and the extras that it has, and ``more`` extras."""
    extras = [line for extra in (*LOCK["EXTRAS"], *more) for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *extras) if not line.startswith("raymlops")]


def missing(requirements, lock):
    """Return the requirements that a lock file does not hold, or at a version that they do not allow."""
    return [
        str(each)
        for each in requirements
        if (name := canonicalize_name(each.name)) not in lock
        or not each.specifier.contains(lock[name][0], prereleases=True)
    ]


@pytest.mark.parametrize("torch", ["torch-cpu.txt", "torch-cuda.txt"])
def test_the_lock_holds_what_the_project_requires(torch):
    """At a version that pyproject.toml allows, each by the digests of its files; no package is in two of them."""
    lock = locked("requirements.txt", torch)
    assert missing(wanted(), lock) == []
    assert [name for name, (_, digests) in lock.items() if not digests] == []
    assert set(locked("requirements.txt")) & set(locked(torch)) == set()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_tests_have_one_lock_for_every_python(python):
    """The image's versions, and what the tests need beyond them."""
    lock = locked("requirements.txt", "torch-cuda.txt", "dev.txt", python=python)
    assert missing(wanted("dev", "delta"), lock) == []
    assert [name for name, (_, digests) in lock.items() if not digests] == []
    assert python in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_every_requirement_is_bounded_by_what_was_tested(line):
    """A release that nobody ran the tests with is not installed by itself."""
    assert {each.operator for each in Requirement(line).specifier} >= {">=", "<"}


def test_both_builds_of_torch_are_of_one_release():
    """What is tested without a card is what runs on one."""
    assert locked("torch-cpu.txt")["torch"][0] == f"{locked('torch-cuda.txt')['torch'][0]}+cpu"


def test_the_lock_is_complete():
    """Of each package that is installed here in the locked version, the lock has what that requires, extras included.

    Without a network no other version's requirements are known; `pip check` asks all of them when the image is built.
    """
    lock = locked("requirements.txt", "torch-cpu.txt")
    todo, seen = wanted(), set()
    while todo:
        each = todo.pop()
        for extra in each.extras or {""}:
            name = canonicalize_name(each.name)
            if (name, extra) in seen or name not in lock or installed(name) != lock[name][0]:
                continue
            seen.add((name, extra))
            lines = importlib.metadata.requires(name) or []
            needed = [Requirement(line) for line in lines]
            needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
            assert missing(needed, lock) == [], name
            todo += needed
    assert ("ray", "serve") in seen or installed("ray") != lock["ray"][0]


def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def test_a_lock_is_split_into_entries():
    """A package's digests and what requires it stay with it."""
    text = "# head\na==1 \\\n    --hash=sha256:x\n    # via b\nb-c==2 \\\n    --hash=sha256:y\n"
    assert LOCK["entries"](text) == {
        "a": "a==1 \\\n    --hash=sha256:x\n    # via b\n",
        "b-c": "b-c==2 \\\n    --hash=sha256:y\n",
    }


def test_the_image_is_small_and_nobody_in_it_is_root():
    """The last stage copies what the others made; its user is the one that Kubernetes' manifests name."""
    *_, image = instructions()
    assert said(image, "USER") == [f"{USER}:{USER}"]
    made = [each for each in image if each[0] in {"RUN", "COPY", "ADD", "WORKDIR"}]
    assert len(made) <= 6
    assert all(copy.startswith("--from=") for copy in said(image, "COPY"))
    (accounts,) = said(image, "RUN")
    assert f"--uid {USER} --gid {USER} --create-home" in accounts
    assert f"-m 700 {HOME}/.raymlops" in accounts
    assert not re.search(r"apt|pip|curl|wget", accounts)


def test_every_base_is_named_by_a_release():
    """One argument names it, so that it can be given by its digest; Python is one that the project allows."""
    head, *stages = instructions()
    (base,) = said(head, "ARG")
    assert base == "BASE=docker.io/library/python:3.11-slim-bookworm"
    known = {"${BASE}", "scratch"}
    for stage in stages:
        source, *name = stage[0][1].split(" AS ")
        assert source in known
        known |= set(name)
    assert "latest" not in (FOLDER / "Dockerfile").read_text()
    assert LOCK["PYTHON"] in base
    assert f">={LOCK['PYTHON']}" in PROJECT["requires-python"]


def test_everything_that_is_installed_is_locked():
    """Each call of pip checks digests, or takes files that such a call has checked, and no source but one is built."""
    calls = [
        call
        for stage in instructions()
        for run in said(stage, "RUN")
        for call in run.split("&&")
        if re.search(r"pip (install|wheel)", call)
    ]
    assert len(calls) == 6
    for call in calls:
        words = shlex.split(call)
        assert "--no-deps" in words
        assert ("--require-hashes" in words) is ("--no-index" not in words)
        assert "--no-index" in words or "--only-binary" in words


def test_nothing_secret_and_nothing_else_of_the_checkout_is_copied():
    """Copied is what the package is made of; the context has no more, and no argument or variable is a credential."""
    sources = [
        word
        for stage in instructions()
        for copy in said(stage, "COPY")
        if not copy.startswith("--from=")
        for word in copy.split()[:-1]
    ]
    assert all(list(ROOT.glob(source)) for source in sources)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    assert {source.partition("/")[0] for source in sources} == admitted
    named = {name for stage in instructions() for word in ("ARG", "ENV") for text in said(stage, word)
             for name in re.findall(r"(\w+)=", text)}  # fmt: skip
    assert [name for name in named if re.search("token|secret|password|key|credential", name, re.IGNORECASE)] == []


def test_the_health_check_is_a_command_of_ours():
    """And it parses, as does what the image runs by default."""
    *_, image = instructions()
    for text in (*said(image, "HEALTHCHECK"), *said(image, "CMD")):
        program, *words = re.findall(r'"([^"]*)"', text)
        assert program == "raymlops"
        if words != ["--help"]:
            command = typer.main.get_command(app).commands[words[0]]
            assert command.make_context(words[0], words[1:]).params is not None


def test_the_image_says_which_release_it_is():
    """By OCI's annotations."""
    *_, image = instructions()
    assert f"VERSION={__version__}" in said(image, "ARG")
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", said(image, "LABEL")[0]))
    assert {"title", "description", "licenses", "source", "version", "revision"} == labels


HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say():
    """Of any severity."""
    done = subprocess.run([HADOLINT, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")

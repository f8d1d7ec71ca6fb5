"""Which project a command is about: ``--config FILE``, or the NAME of a model; then values that replace its own.

Every verb about a model takes both alike. Verbs that make a model (train, sweep, pipeline) need the file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from raymlops.errors import UsageError

if TYPE_CHECKING:
    from raymlops.config.load import LoadedSpec
    from raymlops.config.schema import ProjectSpec

NamedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME[@VERSION]] [KEY.PATH=VALUE]...",
        help="A model, instead of --config: served as it was deployed last. Then values to replace.",
    ),
]
VersionOption = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="A number or @alias.")]


def split_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the words of a command that name something, and those that are ``key.path=value``."""
    found = list(words or ())
    return [word for word in found if "=" not in word], [word for word in found if "=" in word]


@dataclass(frozen=True)
class Chosen:
    """The project of a command, read once."""

    source: LoadedSpec | ProjectSpec
    version: str | None
    """A number or @alias, None where neither NAME@VERSION nor --version was given."""
    named: bool
    """Whether it came from a name alone, so that the configuration file is unknown."""
    words: tuple[str, ...]
    """What chose it, for the command that comes next."""

    @property
    def spec(self) -> ProjectSpec:
        """Return the specification; ``source`` also knows the place of each value in the file."""
        from raymlops.config.load import LoadedSpec

        return self.source.spec if isinstance(self.source, LoadedSpec) else self.source

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self.spec.project.name

    def command(self, verb: str, *words: object) -> str:
        """Return the shell command for another verb about the same project."""
        return f"raymlops {verb} {shlex.join([*self.words, *map(str, words)])}"


def choose(
    words: Sequence[str] | None,
    *,
    config: str | None,
    env: str | None,
    version: str | None = None,
    deployed: bool = False,
) -> Chosen:
    """Return the project that ``--config`` or the first word names.

    With ``deployed`` a name must be that of a model which was deployed before: how to serve it is taken from there.

    Raises:
        UsageError: neither is given, both contradict each other, or two versions are given.
        NotFoundError: no model of that name was ever deployed.
        ConfigError: of the file or the overrides.
    """
    found = choose_if_named(words, config=config, env=env, version=version, deployed=deployed)
    if found is None:
        raise UsageError("neither a model nor its configuration is named", hint="Give NAME, or --config FILE.")
    return found


def choose_if_named(
    words: Sequence[str] | None,
    *,
    config: str | None,
    env: str | None,
    version: str | None = None,
    deployed: bool = False,
) -> Chosen | None:
    """Return the same, None where neither is given: for verbs that work on every model, too."""
    from raymlops.config.load import load
    from raymlops.lifecycle.named_model import named, split_version

    first, overrides = None, list(words or ())
    if overrides and "=" not in overrides[0]:
        first = overrides.pop(0)
    if config is None and first is None:
        if overrides or env is not None or version is not None:
            raise UsageError("neither a model nor its configuration is named", hint="Give NAME, or --config FILE.")
        return None
    name, asked = (None, None) if first is None else split_version(first)
    if asked is not None and version is not None:
        raise UsageError(f"{first} and --version {version} both name a version", hint="Leave one of them out.")
    if config is None:
        assert name is not None
        if env is not None:
            raise UsageError("--env NAME lays a file over another one", hint="Name that one with --config FILE.")
        return Chosen(
            named(name, overrides=overrides, deployed=deployed), asked or version, named=True, words=(name, *overrides)
        )
    loaded = load(config, overrides=overrides, env=env)
    own = loaded.spec.project.name
    if name is not None and name != own:
        raise UsageError(f"{config} is the configuration of {own}, not of {name}", hint="Leave one of the two out.")
    overlay = () if env is None else ("--env", env)
    return Chosen(loaded, asked or version, named=False, words=("--config", config, *overrides, *overlay))

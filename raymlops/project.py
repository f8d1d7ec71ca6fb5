"""Bind a configuration to its recipe: validate the recipe's own section and the whole search space.

Owns the pair of a spec and a recipe that every later stage gets. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymlops.config import shape
from raymlops.config.bounds import check_space
from raymlops.config.load import LoadedSpec, Origin
from raymlops.config.messages import Finding, check
from raymlops.config.schema import ProjectSpec
from raymlops.config.yaml import KeyPath, dotted
from raymlops.errors import ConfigError, Problem, RecipeError, RecipeImportError
from raymlops.recipe import RecipeBase, RecipeConfig
from raymlops.recipe_import import reference_of, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.train import TrainSection


@dataclass(frozen=True)
class Project:
    """A spec and its recipe. ``spec.recipe.config`` holds every field of ``recipe_config``, defaults too."""

    spec: ProjectSpec
    recipe_class: type[RecipeBase]
    recipe_config: RecipeConfig

    @property
    def reference(self) -> str:
        """Return the import string of the recipe."""
        return reference_of(self.recipe_class)

    def recipe(self, *, state: Mapping[str, Any] | None = None) -> RecipeBase:
        """Return a new recipe instance, with the state that ``fit`` returned, if given."""
        return self.recipe_class(self.recipe_config, state=state, seed=self.spec.train.seed)

    def with_params(self, params: Mapping[str, Any]) -> Project:
        """Return the project with other values, such as a trial's: ``{"train.lr": 0.01, "recipe.config.hidden": 64}``.

        The search space is not checked again.

        Raises:
            ConfigError: an unknown key, or a value that its field rejects.
        """
        data = self.spec.to_dict()
        problems = []
        for key, value in params.items():
            try:
                path = shape.key_path(ProjectSpec, key)
            except shape.UnknownKeyError as error:
                problems.append(Problem(key, str(error), "params"))
                continue
            searched = self.spec.sweep.space.get(key)
            data = shape.with_value(data, path, value if searched is None else searched.written(value))
        if problems:
            raise ConfigError(problems)
        spec, findings = check(ProjectSpec, data, lenient=True)
        if spec is None:
            raise ConfigError(_problems(findings, {}))
        config, findings = check(type(self.recipe_config), spec.recipe.config)
        if config is None:
            raise ConfigError(_problems(_in_recipe(findings), {}))
        return Project(_filled(spec, self.recipe_class, config), self.recipe_class, config)

    def with_train(self, section: TrainSection) -> Project:
        """Return the project with another ``train`` section, which is valid already."""
        return replace(self, spec=self.spec.model_copy(update={"train": section}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for another process; ``from_dict`` imports the recipe there."""
        return self.spec.to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Project:
        """Rebuild a bound project; keys that another version wrote are ignored.

        Raises:
            ConfigError: a value that its field rejects.
            RecipeImportError: the recipe cannot be imported here.
        """
        spec, findings = check(ProjectSpec, dict(data), lenient=True)
        if spec is None:
            raise ConfigError([Problem(dotted(finding.path), finding.message) for finding in findings])
        recipe_class = resolve(spec.recipe.import_)
        config, findings = check(_config_class(recipe_class), spec.recipe.config, lenient=True)
        if config is None:
            raise ConfigError(_problems(_in_recipe(findings), {}))
        return cls(_filled(spec, recipe_class, config), recipe_class, config)


def bind(loaded: LoadedSpec | ProjectSpec | Project, *, recipe: type | str | None = None) -> Project:
    """Import the recipe; validate its section and the search space.

    ``recipe`` replaces the spec's own.

    Raises:
        ConfigError: with every problem, each with its place where one is known.
        RecipeImportError: the recipe cannot be imported by a worker.
        RecipeError: its ``Config`` is not a ``RecipeConfig``, or does not survive its JSON form.
    """
    if isinstance(loaded, Project):
        if recipe is None:
            return loaded
        loaded = loaded.spec
    spec = loaded.spec if isinstance(loaded, LoadedSpec) else loaded
    origins = loaded.origins if isinstance(loaded, LoadedSpec) else {}
    recipe_class = _resolve(recipe if recipe is not None else spec.recipe.import_, origins)
    config_class = _config_class(recipe_class)
    config, findings = check(config_class, spec.recipe.config)
    findings = _in_recipe(findings) + check_space(
        spec.sweep.space,
        train=spec.train.model_dump(mode="json"),
        config=config_class,
        config_data=spec.recipe.config,
    )
    if findings or config is None:
        raise ConfigError(_problems(findings, origins))
    spec = _filled(spec, recipe_class, config)
    if check(config_class, spec.recipe.config)[0] != config:
        raise RecipeError(
            f"{reference_of(recipe_class)}.Config does not survive its JSON form: the values read back differ",
            hint="A worker rebuilds it from there: let every field survive model_dump(mode='json').",
        )
    return Project(spec, recipe_class, config)


def _resolve(reference: type | str, origins: Mapping[str, Origin]) -> type[RecipeBase]:
    try:
        return resolve(reference)
    except RecipeImportError as error:
        place = origins.get("recipe.import")
        if place is None or not isinstance(reference, str):
            raise
        raise RecipeImportError(f"{_place(place)}: recipe.import: {error.message}", hint=error.hint) from error


def _config_class(recipe_class: type[RecipeBase]) -> type[RecipeConfig]:
    config = recipe_class.Config
    if not (isinstance(config, type) and issubclass(config, RecipeConfig)):
        raise RecipeError(
            f"{reference_of(recipe_class)}.Config is not a raymlops.RecipeConfig",
            hint="Write class Config(RecipeConfig): with a field for each setting.",
        )
    return config


def _filled(spec: ProjectSpec, recipe_class: type[RecipeBase], config: RecipeConfig) -> ProjectSpec:
    """Return the spec with every field of the recipe's config written out, so that params and sha are complete."""
    written = config.model_dump(mode="json", by_alias=True, exclude_computed_fields=True)
    # The defining module, not a package that re-exports the class: one recipe, one name, one sha.
    section = spec.recipe.model_copy(update={"import_": reference_of(recipe_class), "config": written})
    return spec.model_copy(update={"recipe": section})


def _in_recipe(findings: list[Finding]) -> list[Finding]:
    return [Finding(("recipe", "config", *finding.path), finding.message) for finding in findings]


def _problems(findings: list[Finding], origins: Mapping[str, Origin]) -> list[Problem]:
    return [Problem(dotted(found.path), found.message, _nearest_place(found.path, origins)) for found in findings]


def _nearest_place(path: KeyPath, origins: Mapping[str, Origin]) -> str:
    """Return where the value or its parent is written; of a missing recipe field, where the recipe is named."""
    while len(path) > 1:
        origin = origins.get(dotted(path))
        if origin is not None and origin.kind != "default":
            return _place(origin)
        path = path[:-1]
    return _place(origins["recipe.import"]) if "recipe.import" in origins else ""


def _place(origin: Origin) -> str:
    return "override" if origin.kind == "override" else origin.place

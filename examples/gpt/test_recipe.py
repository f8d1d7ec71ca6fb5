"""The contract that raymlops holds every recipe to, checked for this one."""

from recipe import Definitions

from raymlops.testing import RecipeContract


class TestDefinitions(RecipeContract):
    recipe = Definitions

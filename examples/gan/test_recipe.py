"""The contract that raymlops holds every recipe to, checked for this one."""

from recipe import Gan

from raymlops.testing import RecipeContract


class TestGan(RecipeContract):
    recipe = Gan

"""The contract that raymlops holds every recipe to, checked for this one."""

from iris_like import IrisLike

from raymlops.testing import RecipeContract


class TestIrisLike(RecipeContract):
    recipe = IrisLike

"""The contract that raymlops holds every recipe to, checked for this one."""

from recipe import ImageClassifier

from raymlops.testing import RecipeContract


class TestImageClassifier(RecipeContract):
    recipe = ImageClassifier

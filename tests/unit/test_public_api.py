import importlib
import inspect

import raymlops


def test_all_is_complete_and_short():
    """``__all__`` names exactly what can be had, at most 24 names, each in the place it says."""
    assert len(raymlops.__all__) <= 24
    assert set(raymlops.__all__) == set(raymlops._HOMES)
    for name in raymlops.__all__:
        assert getattr(raymlops, name) is getattr(importlib.import_module(raymlops._HOMES[name]), name)


def test_every_public_function_is_documented():
    """Each public name has a docstring that starts with a sentence."""
    undocumented = [name for name in raymlops.__all__ if not inspect.getdoc(getattr(raymlops, name))]
    assert undocumented == []

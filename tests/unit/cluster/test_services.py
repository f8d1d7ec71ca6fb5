import importlib

from raymlops.cluster.services import GUARD


def test_a_cluster_starts_with_a_guard_that_exists():
    """Serve loads the guard by its name, which the cluster cannot check by importing it: the rooms are siblings."""
    (path,) = GUARD.values()
    module, _, name = path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))

"""What ``up`` refuses before it starts anything."""

from __future__ import annotations

import pytest

from raymlops.cluster import upfile
from raymlops.cluster.local import up
from raymlops.cluster.ports import free_port
from raymlops.errors import StorageError


def test_a_folder_of_the_cluster_before_that_cannot_be_removed_is_named(tmp_path):
    """Another user may have written into it."""
    (tmp_path / "ray").touch()
    ports = {f"{name}_port": free_port() for name in ("http", "dashboard", "mlflow", "ray")}
    with pytest.raises(StorageError, match=r"cannot replace .*/ray: File exists"):
        up(root=tmp_path, **ports)
    assert upfile.read(tmp_path) is None

"""What a cluster inherits of the shell that starts it."""

import re
from pathlib import Path

import raymlops
from raymlops.cluster.endpoint.inherited import OWN, inherited


def test_variables_that_a_configuration_names_reach_a_cluster(monkeypatch):
    """Those of raymlops' own commands do not, nor does another cluster's address."""
    monkeypatch.setenv("RAYMLOPS_TRACKING_URI", "http://mlflow")
    for name in (*OWN, "RAY_ADDRESS", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "x")
    found = inherited()
    assert found["RAYMLOPS_TRACKING_URI"] == "http://mlflow"
    assert found.keys().isdisjoint({*OWN, "RAY_ADDRESS", "MLFLOW_RUN_ID"})


def test_all_own_variables_are_known():
    """By the modules that name them; the mark of a result is none."""
    texts = (path.read_text() for path in Path(raymlops.__file__).parent.rglob("*.py"))
    named = {name for text in texts for name in re.findall(r"\bRAYMLOPS_[A-Z_]+", text)}
    assert named - OWN == {"RAYMLOPS_RESULT"}

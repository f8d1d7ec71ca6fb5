"""What a tracking URI of Databricks needs beside it."""

from __future__ import annotations

import pytest
from mlflow.tracking._model_registry.utils import _get_default_registry_uri_for_tracking_uri

from raymlops.config.load import load, load_data
from raymlops.config.platforms.databricks import is_databricks, registry_uri
from raymlops.errors import ConfigError

WELL = {"uri": "databricks://prod", "uc_schema": "main.ml", "experiment": "/Shared/flights"}


def loaded(tracking):
    return load_data({"project": {"name": "flights"}, "recipe": {"import": "m:R"}, "tracking": tracking}).spec.tracking


@pytest.mark.parametrize("uri", ["databricks", "databricks://prod", "databricks://scope:prefix", "https://mlflow"])
def test_the_registry_is_the_one_that_mlflow_takes(uri):
    """Unity Catalog of the same workspace, by the client's own rule."""
    assert registry_uri(uri) == _get_default_registry_uri_for_tracking_uri(uri)
    assert is_databricks(uri) == uri.startswith("databricks")


def test_a_workspace_a_schema_and_a_path_fit_each_other():
    """A reference is judged where it is read."""
    assert loaded(WELL).uc_schema == "main.ml"
    assert loaded({"uri": {"env": "RAYMLOPS_TRACKING_URI"}, "uc_schema": "main.ml"}).uri.env


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uc_schema": None}, "uc_schema is required where tracking.uri is databricks"),
        ({"uc_schema": "ml"}, "got 'ml'; CATALOG.SCHEMA"),
        ({"uc_schema": "Main.ML"}, "in lower case"),
        ({"uc_schema": "main.ml.flights"}, "CATALOG.SCHEMA"),
        ({"experiment": None}, "experiment is required: in Databricks it is a path"),
        ({"experiment": "flights"}, "got 'flights', no path"),
        ({"uri": "https://mlflow"}, "allowed only where tracking.uri is databricks"),
        ({"uri": "databrick"}, "got 'databrick'; databricks, or a URI that starts with http://"),
    ],
)
def test_what_databricks_would_reject_is_told_by_the_file(change, says):
    """Before anything is trained."""
    with pytest.raises(ConfigError, match="tracking") as raised:
        loaded({**WELL, **change})
    assert says in str(raised.value)


def test_tags_that_would_be_one_there_are_told_by_the_file(tmp_path):
    """At the second; elsewhere they are two."""
    file = tmp_path / "config.yaml"
    tags = "    cost-center: a\n    team: t\n    cost_center: b\n"
    text = f"project:\n  name: flights\n  tags:\n{tags}recipe: {{import: 'm:R'}}\n"
    file.write_text(text)
    assert len(load(file).spec.project.tags) == 3
    file.write_text(f"{text}tracking: {{uri: databricks, uc_schema: main.ml, experiment: /Shared/flights}}\n")
    with pytest.raises(
        ConfigError, match=r"cost-center and cost_center are one tag in Unity Catalog, cost_center"
    ) as no:
        load(file)
    assert [problem.place for problem in no.value.problems] == [f"{file}:6:5"]

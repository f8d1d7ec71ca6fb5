"""What a registry calls models and tags."""

from __future__ import annotations

import pytest

from raymlops.records import BundleRef
from raymlops.registry.lineage import CODE_CHANGE, CODE_NOW, CODE_THEN, COMPLETE, GATE, bundle_tags, lineage_tags
from raymlops.registry.names import Names

UC = Names("main.ml")


def test_elsewhere_everything_is_called_what_it_is():
    """A value is cut at MLflow's limit."""
    names, tags = Names(), {"raymlops.digest": "d", "cost-center": "ops"}
    assert (names.model("flights"), names.ours("flights"), names.read(names.write(tags))) == (
        "flights",
        "flights",
        tags,
    )
    assert len(names.write({"long": "x" * 9000})["long"]) == 5000


def test_in_unity_catalog_a_model_has_three_levels():
    """Those of other schemas are none of ours."""
    assert UC.model("flights") == "main.ml.flights"
    assert [UC.ours(name) for name in ("main.ml.flights", "main.dev.flights", "flights")] == ["flights", None, None]


def test_every_tag_of_ours_is_accepted_there_and_read_back():
    """Databricks: "contains one or more of the reserved characters: List(., ,, -, =, /, :)"."""
    run_tags = {f"raymlops.{name}": "v" for name in ("project", "config_sha", "weights_uri", "trial", "retrain_of")}
    tags = {
        **lineage_tags(run_id="r", run_tags={**run_tags, "mlflow.parentRunId": "p"}),
        **bundle_tags(BundleRef(uri="s3://b/x", digest="d")),
        **dict.fromkeys((GATE, CODE_NOW, CODE_THEN, CODE_CHANGE, COMPLETE), "v"),
    }
    written = UC.write(tags)
    assert not set(".,-=/: ") & set("".join(written))
    assert UC.read(written) == tags


@pytest.mark.parametrize(("key", "kept"), [("cost-center", "cost_center"), ("a b=c/d:e,f", "a_b_c_d_e_f")])
def test_a_tag_of_a_project_gets_a_key_that_is_accepted(key, kept):
    """And a value of at most 1,000 characters, none blank at an end."""
    assert UC.write({key: "  " + "x" * 990 + " " * 20 + "y"}) == {kept: "x" * 990}

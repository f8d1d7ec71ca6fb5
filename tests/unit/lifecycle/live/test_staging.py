"""Which bundles are fetched before their version is wanted, and on which nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from canaries import version_of

from raymlops.config.load import load_data
from raymlops.config.serve import ServeSection
from raymlops.errors import BundleError, ClusterError
from raymlops.lifecycle.live.staging import holding, stage
from raymlops.records import BundleRef

SPEC = load_data({"project": {"name": "m"}, "recipe": {"import": "any:Recipe"}}).spec
REMOTE = BundleRef("s3://bucket/bundles/d", "d" * 64)


def new(bundle=REMOTE):
    return replace(version_of(2, memory_gb=1.0), bundle=bundle)


def test_a_bundle_that_no_node_has_is_fetched():
    """One on a file system is read where it is, and one of a version that is up is there."""
    fetched = []

    def fetch(_spec, bundle, settings):
        fetched.append((bundle, settings.memory_gb))

    assert stage(SPEC, [version_of(1)], new(), fetch=fetch) == ()
    assert stage(SPEC, [new()], new(), fetch=fetch) == ()
    assert stage(SPEC, [], new(BundleRef("/bundles", "d" * 64)), fetch=fetch) == ()
    assert fetched == [(REMOTE, 1.0)]


def test_a_bundle_that_a_node_cannot_read_is_an_error_and_a_silent_node_is_none():
    """No replica could load the first; of the second it is only said that the version comes up later."""

    def damaged(*_given):
        raise BundleError("weights.safetensors: expected 5 bytes, got 4")

    def silent(*_given):
        raise ClusterError("a node does not fetch it: GetTimeoutError")

    with pytest.raises(BundleError):
        stage(SPEC, [], new(), fetch=damaged)
    (warning,) = stage(SPEC, [], new(), fetch=silent)
    assert warning.startswith("the bundle was not fetched beforehand")
    assert warning.endswith("a node does not fetch it: GetTimeoutError")


def test_nodes_that_are_too_small_for_a_replica_fetch_nothing():
    """Nor do those that are gone."""

    def node(name, *, alive=True, **resources):
        return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 4.0, "memory": 8e9, **resources}}

    nodes = [
        node("head", CPU=0.0),
        node("plain"),
        node("card", GPU=1.0, fast=1.0),
        node("small", GPU=1.0, fast=1.0, memory=1e9),
        node("gone", GPU=1.0, fast=1.0, alive=False),
    ]
    assert holding(nodes, ServeSection()) == ["plain", "card", "small"]
    large = ServeSection(gpus_per_replica=0.5, memory_gb=2.0, resources_per_replica={"fast": 1.0})
    assert holding(nodes, large) == ["card"]

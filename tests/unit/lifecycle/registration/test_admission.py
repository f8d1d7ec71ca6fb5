"""Which version may be loaded and deployed when MLflow's tags and aliases were changed: a real MLflow, a real state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from canaries import take_back
from fake_serve import FakeServe
from serving_bundles import scale_bundle
from states import deploy
from stored import put
from tiny_bundle import tiny_contents

from raymlops.arrays import Column
from raymlops.bundle.write import write_bundle
from raymlops.config.load import load_data
from raymlops.errors import BundleError, RefusedError, UsageError
from raymlops.lifecycle.registration.admission import admitted, adoptable, as_recorded, endless, loadable
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.lifecycle.sources import state_of
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.registry.versions import Registry
from raymlops.signature import Signature
from raymlops.state.store import Deployment
from raymlops.state.versions import VersionRecord, record_verdict, record_version, recorded, withdrawn
from raymlops.tracking.client import tracker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EVIL = {"uri": "/evil", "digest": "e" * 64}


@pytest.fixture
def spec(storage_path):
    data = {
        "project": {"name": "scale"},
        "recipe": {"import": "any:Recipe"},
        "storage": {"path": str(storage_path)},
        "tracking": {"uri": f"sqlite:///{storage_path}/mlflow.db"},
    }
    return load_data(data).spec


@pytest.fixture
def registry(spec):
    return Registry(tracker(spec))


@pytest.fixture
def state(spec):
    with state_of(spec) as opened:
        yield opened


@pytest.fixture
def version(spec, registry, storage_path):
    """Return version 1, in MLflow alone."""
    ours = tracker(spec)
    run_id = ours.start_run("scale", name="trained", tags={})
    bundle = scale_bundle(storage_path, factor=2.0)
    return registry.register("scale", run_id=run_id, bundle=bundle)


@pytest.fixture
def passed(version, registry, state):
    """Return version 1, which was registered and has passed its gate here."""
    record_version(state, version, why="", now=NOW)
    judge(state, registry, version)
    return version


def judge(state, registry, version, *, passed=True):
    seen = recorded(state, version.name, version.version)
    record_verdict(state, version, seen=seen, passed=passed, decision={}, why="", now=NOW)
    registry.tag("scale", version.version, {"raymlops.gate": "passed" if passed else "refused"})


def test_a_version_that_has_passed_is_admitted(spec, passed):
    """With the bundle and the run that were recorded."""
    found = admitted(spec, "1")
    assert (found.bundle, found.run_id) == (passed.bundle, passed.run_id)


def test_a_version_of_another_digest_is_not_the_one_that_was_meant(spec, passed):
    """Its number is another model's in another MLflow; that is said before what this state knows of it."""
    found = admitted(spec, "1", digest=passed.bundle.digest)
    assert found.bundle == passed.bundle
    for digest in ("e" * 64, passed.bundle.digest[:12], ""):
        with pytest.raises(
            RefusedError, match=f"has digest {passed.bundle.digest} by MLflow, and {digest} was"
        ) as caught:
            admitted(spec, "1", digest=digest)
        assert "another MLflow" in caught.value.hint


def test_a_slice_of_what_is_no_input_is_refused(spec, passed):
    """It would never be counted."""
    monitor = spec.monitor.model_copy(update={"slices": {"colour": ("red",)}})
    with pytest.raises(UsageError, match=r"monitor\.slices names 'colour'"):
        admitted(spec.model_copy(update={"monitor": monitor}), "1")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"raymlops.bundle_uri": "/evil"}, r"MLflow says bundle /evil; this state recorded bundle /\S+ at 2026-01-01"),
        ({"raymlops.digest": "e" * 64}, r"MLflow says digest e{64}; this state recorded digest [0-9a-f]{64} at"),
        ({"raymlops.run_id": "other"}, r"MLflow says run other; this state recorded run \w+ at"),
    ],
)
def test_a_version_whose_tags_were_changed_is_neither_deployed_nor_loaded(spec, passed, state, tags, said):
    """What they say now, what was recorded, and how to go on in either case."""
    registry = Registry(tracker(spec))
    registry.tag("scale", 1, tags)
    with pytest.raises(RefusedError, match=said) as caught:
        admitted(spec, "1")
    assert f"--adopt {tags.get('raymlops.digest', passed.bundle.digest)}" in caught.value.hint
    with pytest.raises(RefusedError, match=said):
        loadable(registry, state, "scale", "1")


def test_a_version_without_a_place_is_refused_and_hides_no_other(spec, passed, registry):
    """Somebody deleted the tag."""
    tracker(spec).client.delete_model_version_tag("scale", "1", "raymlops.bundle_uri")
    with pytest.raises(RefusedError, match="MLflow says bundle unknown; this state recorded bundle /"):
        admitted(spec, "1")
    assert [ref.version for ref in registry.list("scale")] == [1]


def test_a_changed_bundle_is_not_vouched_for_by_a_changed_digest(spec, passed, registry, tmp_path):
    """All three tags of a whole bundle from elsewhere, which would pass any check against each other."""
    evil = scale_bundle(tmp_path / "elsewhere", factor=666.0)
    registry.tag("scale", 1, {"raymlops.bundle_uri": evil.uri, "raymlops.digest": evil.digest})
    with pytest.raises(RefusedError, match=rf"MLflow says digest {evil.digest}, bundle {evil.uri}; this state"):
        admitted(spec, "1")


def test_a_verdict_in_mlflow_is_none(spec, version, registry, state):
    """Neither before the gate was asked nor after it refused, whoever set the tag and the alias."""
    record_version(state, version, why="", now=NOW)
    registry.tag("scale", 1, {"raymlops.gate": "passed"})
    registry.set_alias("scale", "challenger", 1)
    with pytest.raises(RefusedError, match="version 1 has not passed its gate; MLflow says passed"):
        admitted(spec, "@challenger")
    judge(state, registry, version, passed=False)
    registry.tag("scale", 1, {"raymlops.gate": "passed"})
    with pytest.raises(RefusedError, match="version 1 was refused by its gate; MLflow says passed"):
        admitted(spec, "@challenger")


def test_a_version_that_was_rolled_back_comes_back_by_its_number_and_again_alone(spec, passed, registry, state):
    """Also as the challenger that it still is until MLflow is told; a nightly deploy must not undo a rollback."""
    registry.set_alias("scale", "challenger", 1)
    serve = FakeServe(dashboard_url="http://dashboard:8265")  # where no proxy is asked whether it answers
    deploy(state, serve, "scale", 7)
    deploy(state, serve, "scale", 1, bundle=passed.bundle)
    assert take_back(state, serve, "scale").version == 7
    said = "version 1 of scale was taken back: rolled back from version 1 to version 7"
    for asked, again in (("1", False), ("@challenger", False), ("@challenger", True)):
        with pytest.raises(RefusedError, match=said) as caught:
            admitted(spec, asked, again=again)
        assert "raymlops deploy scale --version 1 --again" in caught.value.hint
    MlflowAliases(spec, state.owner()).withdraw("scale", withdrawn(state, "scale"))
    assert registry.get("scale", "1").aliases == ("candidate",)
    assert admitted(spec, "1", again=True).version == 1
    deploy(state, serve, "scale", 1, bundle=passed.bundle)
    assert admitted(spec, "1").version == 1


@pytest.mark.parametrize("tag", ["refused", None])
def test_what_counts_is_the_verdict_of_this_state(spec, version, registry, state, tag):
    """Another state's gate refused the version since, beside another champion; or ours was killed before the tag."""
    record_version(state, version, why="", now=NOW)
    record_verdict(state, version, seen=recorded(state, "scale", 1), passed=True, decision={}, why="", now=NOW)
    if tag is not None:
        registry.tag("scale", 1, {"raymlops.gate": tag})
    assert admitted(spec, "1").version == 1


def test_a_version_that_this_state_does_not_know_is_refused_with_the_way_in(spec, version, registry, state):
    """Another state registered and gated it, in the same MLflow."""
    registry.tag("scale", 1, {"raymlops.gate": "passed"})
    said = rf"version 1 was not registered from this state.*digest {version.bundle.digest} at {version.bundle.uri}"
    with pytest.raises(RefusedError, match=said) as caught:
        admitted(spec, "1")
    command = f"raymlops models gate --config FILE --version 1 --adopt {version.bundle.digest}"
    assert caught.value.hint.endswith(command)
    registry.set_alias("scale", "champion", 1)
    with pytest.raises(RefusedError, match="not registered from this state"):
        loadable(registry, state, "scale", "@champion")


def test_a_damaged_bundle_is_refused(spec, passed):
    """The state's digest is what its files are compared with."""
    weights = next(Path(passed.bundle.uri).glob("*.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with pytest.raises(BundleError):
        admitted(spec, "1")


def test_the_champion_that_is_loaded_is_the_one_that_is_live(passed, registry, state):
    """An alias that somebody moved, or that has not followed yet, moves nobody's predictions."""
    live = Deployment("scale", 7, BundleRef("/b/7", "7" * 64), "run7", "champion")
    put(state, "scale", [live])
    registry.set_alias("scale", "champion", 1)
    for which in ("@champion", "champion"):
        assert loadable(registry, state, "scale", which).bundle == live.bundle
    assert loadable(registry, state, "scale", "1").bundle == passed.bundle


SAID = ModelVersionRef("m", 7, "run7", BundleRef("/b/7", "7" * 64), ("candidate",))
RECORD = VersionRecord("m", 7, "run7", SAID.bundle, NOW)


def test_the_gate_loads_what_was_recorded_or_what_it_is_told_to_adopt():
    """By the whole digest: one that MLflow does not name, or a part of it, adopts nothing."""
    assert adoptable(SAID, RECORD, adopt=None) == as_recorded(SAID, RECORD) == SAID
    assert adoptable(SAID, None, adopt="7" * 64) == SAID
    other = replace(SAID, bundle=BundleRef("/b/8", "8" * 64))
    assert adoptable(other, RECORD, adopt="8" * 64) == other
    for said, record in ((SAID, None), (other, RECORD)):
        with pytest.raises(RefusedError, match="--adopt"):
            adoptable(said, record, adopt=None)
    for said, adopt in ((other, "7" * 64), (SAID, "7" * 63)):
        with pytest.raises(RefusedError, match="nothing was loaded"):
            adoptable(said, None, adopt=adopt)


def test_rows_without_a_bound_are_named(tmp_path):
    """What bounds a body of them, and how a bound is given; with one nothing is said."""
    for most, said in ((None, 1), (8, 0)):
        inputs = (Column("x", "float"), Column("sound", "float", shape=(None, 2), max_length=most))
        signature = Signature(inputs, (Column("y", "float"),))
        found = endless(write_bundle(tmp_path / f"{most}", tiny_contents(signature=signature)))
        assert [("(sound)" in text, "500,000 values" in text) for text in found] == [(True, True)] * said

"""The gate's record: what it writes, in which order, and what it says of a champion that cannot be asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import raymlops as rm
from raymlops.bundle.load import load
from raymlops.errors import BundleError, GateRefusedError, NotFoundError, RefusedError, StorageError, TakenError
from raymlops.lifecycle.overview import events
from raymlops.lifecycle.registration.aliases import own_aliases
from raymlops.lifecycle.registration.gate import _project_of
from raymlops.lifecycle.sources import spec_of
from raymlops.registry.versions import Registry
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def config(tmp_path_factory, mlflow_database):
    """A project whose version 1 passed its gate and is champion; version 2 is a candidate."""
    storage = tmp_path_factory.mktemp("gating") / "storage"
    storage.mkdir()
    shutil.copy(mlflow_database, storage / "mlflow.db")
    data = {
        "project": {"name": "tiny"},
        "recipe": {"import": "tiny:Tiny", "config": {"train_rows": 400}},
        "train": {"epochs": 1, "lr": 0.01},
        "gate": {"margin": 0.9},
        "storage": {"path": str(storage)},
        "tracking": {"uri": f"sqlite:///{storage}/mlflow.db"},
    }
    for lr in (0.01, 0.02):
        run = rm.train({**data, "train": {"epochs": 1, "lr": lr}})
        version = rm.register(data, run.run_id).version
        if version == 1:
            rm.gate(data)
            rm.promote(data)
    return data


def registry(config):
    return Registry(tracker(spec_of(config)))


def elsewhere(config, folder):
    """Return the same project with a state of its own: another team, in the same MLflow."""
    return {**config, "storage": {**config["storage"], "state": f"sqlite:///{folder}/state.db"}}


def strict(config):
    return {**config, "gate": {"thresholds": {"test/auc": {"min": 0.999}}}}


def test_what_cannot_be_recorded_is_not_decided(config, tmp_path):
    """The audit comes first: without it the version has no verdict and no alias."""
    (tmp_path / "file").touch()
    nowhere = elsewhere(config, tmp_path / "file")
    with pytest.raises(StorageError):
        rm.gate(nowhere, "2")
    assert "raymlops.gate" not in registry(config).tags("tiny", 2)
    assert "challenger" not in registry(config).get("tiny", "2").aliases


def test_a_version_that_is_refused_is_challenger_no_more(config):
    """It passed, the rules became stricter, and it can no longer be made live, by alias or by number."""
    version, _ = rm.gate(config, "2")
    assert "challenger" in version.aliases
    with pytest.raises(GateRefusedError, match=r"test/auc: got 0\.\d+, allowed >= 0.999"):
        rm.gate(strict(config), "2")
    with pytest.raises(NotFoundError, match="challenger"):
        rm.promote(config)
    with pytest.raises(RefusedError, match="version 2 was refused by its gate"):
        rm.promote(config, "2")
    assert [event.action for event in events(config)][-2:] == ["gate.pass", "gate.refuse"]


def test_a_version_that_does_not_answer_is_refused(config):
    """Its metrics are those of any other; requests for its validation rows get NaN, and the reason is on the record."""
    broken = {**config, "recipe": {**config["recipe"], "import": "tiny:GapsInAnswers"}}
    version = rm.register(broken, rm.train(broken).run_id)
    with pytest.raises(GateRefusedError, match=r"answers requests: got None, .*GapsInAnswers.decode\(\): .* is nan"):
        rm.gate(broken, str(version.version))
    assert events(config)[-1].after["checks"][0]["name"] == "answers requests"
    assert registry(config).tags("tiny", version.version)["raymlops.gate"] == "refused"


def test_an_alias_alone_admits_nothing(config):
    """Somebody moved it by hand in MLflow: the verdict is what counts."""
    with pytest.raises(GateRefusedError):
        rm.gate(strict(config), "2")
    registry(config).set_alias("tiny", "challenger", 2)
    with pytest.raises(RefusedError, match="was refused by its gate"):
        rm.promote(config)


def test_another_state_adopts_what_it_deploys(config, tmp_path):
    """By the digest that its caller names, nothing by a tag; and no alias that is another state's."""
    there = elsewhere(config, tmp_path)
    first, second = (registry(config).get("tiny", which) for which in ("1", "2"))
    with pytest.raises(RefusedError, match=f"--version 2 --adopt {second.bundle.digest}"):
        rm.gate(there, "2")
    with pytest.raises(RefusedError, match="nothing was loaded"):
        rm.gate(there, "2", adopt=first.bundle.digest)
    registry(config).delete_alias("tiny", "challenger")
    version, decision = rm.gate(there, "2", adopt=second.bundle.digest)
    assert ("challenger" in version.aliases, decision.champion_version) == (False, None)
    assert "No version is live here to compare with: MLflow's champion is of the state" in decision.notes[-1]
    with pytest.raises(TakenError, match="raymlops models own tiny"):
        rm.promote(there, "2")


def test_who_takes_the_aliases_is_compared_with_their_champion_once_it_knows_it(config, tmp_path):
    """It is adopted first, since the gate runs its code as well; else nothing holds up the first version here."""
    there = elsewhere(config, tmp_path)
    first, second = (registry(config).get("tiny", which) for which in ("1", "2"))
    assert own_aliases(there) == 1
    version, decision = rm.gate(there, "2", adopt=second.bundle.digest)
    assert ("challenger" in version.aliases, decision.champion_version) == (True, None)
    assert "MLflow's champion version 1 was not registered from this state" in decision.notes[-1]
    rm.gate(there, "1", adopt=first.bundle.digest)
    assert rm.gate(there, "2")[1].champion_version == 1
    assert rm.promote(there, "2").version == 2
    assert [(event.action, event.subject) for event in events(there)] == [
        ("alias.own", "tiny"),
        ("adopt", "tiny/2"),
        ("gate.pass", "tiny/2"),
        ("adopt", "tiny/1"),
        ("gate.pass", "tiny/1"),
        ("gate.pass", "tiny/2"),
        ("promote", "tiny/2"),
    ]
    own_aliases(config)
    registry(config).set_alias("tiny", "champion", 1)


def test_a_champion_of_nobody_is_not_passed_over(config, tmp_path):
    """As one of an earlier release, which may be live somewhere: whoever it does not concern owns the aliases first."""
    there = elsewhere(config, tmp_path)
    second = registry(config).get("tiny", "2")
    registry(config).set_owner("tiny", "")
    with pytest.raises(GateRefusedError, match=r"not worse than champion version 1.*: got None"):
        rm.gate(there, "2", adopt=second.bundle.digest)
    own_aliases(config)


def test_a_registration_that_was_cut_off_is_recorded_by_the_next_try(config, tmp_path):
    """MLflow has the version and the state has not: its digest is that of the bundle which is made again here."""
    there = elsewhere(config, tmp_path)
    known = registry(config).get("tiny", "2")
    for _ in range(2):
        assert rm.register(there, known.run_id) == known
    assert [event.action for event in events(there)] == ["register"]


def test_a_registration_takes_no_digest_from_a_tag(config, tmp_path):
    """Somebody changed it before the next try: nothing is recorded, and after that nothing is registered again."""
    there = elsewhere(config, tmp_path)
    known = registry(config).get("tiny", "2")
    registry(config).tag("tiny", 2, {"raymlops.digest": "e" * 64})
    try:
        with pytest.raises(BundleError, match=rf"registered with digest e{{64}}, written with {known.bundle.digest}"):
            rm.register(there, known.run_id)
        with pytest.raises(RefusedError, match=r"MLflow says digest e{64}; this state recorded"):
            rm.register(config, known.run_id)
        with pytest.raises(NotFoundError, match="the audit record has nothing of tiny"):
            events(there)
    finally:
        registry(config).tag("tiny", 2, {"raymlops.digest": known.bundle.digest})


def test_registering_again_lets_mlflow_say_where_the_bundle_is(config):
    """It was killed between the state and the tag, or somebody changed that."""
    known = registry(config).get("tiny", "2")
    registry(config).tag("tiny", 2, {"raymlops.bundle_uri": "/nowhere"})
    assert rm.register(config, known.run_id).bundle == known.bundle
    assert registry(config).get("tiny", "2").bundle == known.bundle


def test_a_configuration_of_another_raymlops_is_read_leniently(config):
    """A bundle whose configuration has keys that this version does not know can still be asked about."""
    ref = registry(config).get("tiny", "2")
    model = load(ref.bundle.uri, ref.bundle.digest)
    text = model.config_yaml.replace("train:\n", "train:\n  warp_speed: 9\n", 1)
    object.__setattr__(model, "config_yaml", text)
    assert _project_of(model, spec_of(config)).spec.train.epochs == 1


def test_a_champion_that_cannot_be_asked_is_a_reason(config):
    """Its bundle is damaged: the version is not shown to be as good, and the message says how to go on."""
    champion = registry(config).get("tiny", "1")
    weights = next(Path(champion.bundle.uri).glob("*.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with pytest.raises(GateRefusedError, match="version 1 could not be evaluated: BundleError") as caught:
        rm.gate(config, "2")
    assert "raymlops promote" in str(caught.value)
    assert events(config)[-1].action == "gate.refuse"

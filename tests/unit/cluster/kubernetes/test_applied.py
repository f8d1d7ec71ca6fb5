import pytest

from raymlops.cluster.kubernetes.applied import CONFIG_DIGEST, check_applied
from raymlops.cluster.kubernetes.manifests import manifests
from raymlops.errors import RefusedError


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Return a check against the digest "a", of a pod whose files become others after a time."""
    monkeypatch.setenv(CONFIG_DIGEST, "a")
    now, told = [0.0], []

    def run(found, later=None, *, after_s=0.0):
        def sleep(seconds):
            now[0] += seconds
            if later is not None and now[0] > after_s:
                (tmp_path / "digest").write_text(later)

        if found is not None:
            (tmp_path / "digest").write_text(found)
        config = str(tmp_path / "project.yaml")
        check_applied(config, write=told.append, sleep=sleep, clock=lambda: now[0])
        return now[0], len(told)

    return run


def test_the_configuration_that_was_applied(check, monkeypatch):
    """Is taken at once, and what the verb starts is asked no more."""
    assert check("a") == (0.0, 0)
    assert check("b") == (0.0, 0)


def test_one_that_was_just_applied_is_waited_for(check):
    """A kubelet renews it within two minutes."""
    assert check("b", "a", after_s=100.0) == (102.0, 1)


@pytest.mark.parametrize("found", ["b", None], ids=["another", "of an earlier release"])
def test_another_one_is_refused(check, found):
    """With what to do."""
    with pytest.raises(RefusedError, match="made of another configuration") as raised:
        check(found)
    assert "kubectl apply --server-side -k" in raised.value.hint


def test_the_digest_is_of_what_a_verb_reads(place):
    """A training may have another image, and nodes; it is what is applied."""
    assert place("train.lr=9.0").digest != place().digest
    assert place("kubernetes.image=flights:2").digest == place().digest
    (found,) = manifests(place(), config="", ray_version="2.60.0")["config"]
    assert found["data"]["digest"] == place().digest

"""Making a restored state count: real state databases, Serve in memory."""

from __future__ import annotations

import pytest
from fake_serve import FakeServe
from raymlops.serving.control.apply import apply
from states import copied, deploy, opened

from raymlops.errors import OutdatedStateError
from raymlops.lifecycle.live.restored_state import make_count


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")


@pytest.fixture
def state(tmp_path):
    with opened(tmp_path, "state") as opened_state:
        yield opened_state


def test_a_backup_can_be_made_to_count(serve, tmp_path):
    """Serve is brought to it, and what a newer copy writes afterwards is news to it again."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop")
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        deploy(state, serve, "shop", 2)
    with opened(tmp_path, "backup") as old:
        with pytest.raises(OutdatedStateError):
            apply(old.desired(), api=serve, wait_s=2)
        assert make_count(old, serve)
        assert make_count(old, serve) == ()
        apply(old.desired(), api=serve, wait_s=2)
        assert sorted(serve.live) == ["raymlops", "shop--v1"]
    with opened(tmp_path, "state") as state, pytest.raises(OutdatedStateError):
        deploy(state, serve, "shop", 3)
    assert sorted(serve.live) == ["raymlops", "shop--v1"]


def test_what_another_state_deployed_stays_its_own(serve, tmp_path, state):
    """Where one counts there is nothing to write, and it says nothing of anybody else."""
    with opened(tmp_path, "other") as other:
        deploy(other, serve, "shop")
    deploy(state, serve, "lab")
    before, live = len(state.events()), dict(serve.live)
    assert make_count(state, serve) == ()
    apply(state.desired(), api=serve, wait_s=2)
    assert (len(state.events()), serve.live) == (before, live)

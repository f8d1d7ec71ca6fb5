"""What is sent while another state changes the same Serve."""

from __future__ import annotations

import itertools
import socket
import threading
from types import SimpleNamespace

import pytest
from fake_serve import FakeServe
from states import deploy, marks, opened

from raymlops.cluster.ports import free_port
from raymlops.config.serve import ServeSection
from raymlops.errors import PortTakenError, TakenError, UsageError
from raymlops.serving.control.plan import check_port, plan_of


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")


@pytest.fixture
def states(tmp_path):
    with opened(tmp_path, "first") as first, opened(tmp_path, "second") as second:
        yield first, second


@pytest.fixture
def planned(serve, states):
    """Return the plan of the second state, which is to have another model, before the first has deployed its own."""
    _, second = states
    deploy(second, FakeServe(dashboard_url="http://elsewhere:8265"), "pub")
    return plan_of(second.desired(), serve, host="127.0.0.1", port=8000, grpc_port=None)


def test_what_comes_up_after_a_change_was_planned_is_sent_along(serve, states, planned):
    """Minutes may pass between the reading and the last config of a change; a model that came meanwhile stays."""
    first, second = states
    deploy(first, serve, "shop")
    planned.put(serve, planned.wanted)
    assert {name: owner for name, owner in marks(serve).items() if name != "raymlops"} == {
        "shop--v1": first.owner().id,
        "pub--v1": second.owner().id,
    }


def test_a_name_that_was_taken_after_a_change_was_planned_is_left(serve, states, planned):
    """Nothing is sent."""
    first, _ = states
    deploy(first, serve, "pub", digest="e" * 64)
    sent = len(serve.sent)
    with pytest.raises(TakenError, match=f"belongs to state {first.owner().short}"):
        planned.put(serve, planned.wanted)
    assert len(serve.sent) == sent


def test_two_states_send_one_after_the_other(states):
    """The second begins while the first is between its reading and its sending: neither drops the other's model."""
    first, second = states

    class Meeting(FakeServe):
        def get(self):
            return {**super().get(), "controller_info": {"actor_id": f"of test {id(self)}"}}

        def put(self, config):
            if not other.ident:
                other.start()
                other.join(0.3)
            super().put(config)

    serve = Meeting(dashboard_url="http://dashboard:8265")
    other = threading.Thread(target=lambda: deploy(second, serve, "pub"))
    deploy(first, serve, "shop")
    other.join()
    assert {"shop", "pub"} == {name.partition("--")[0] for name in serve.live} - {"raymlops"}
    assert serve.started.count("pub--v1") == serve.started.count("shop--v1") == 1


def test_a_sender_that_was_stopped_reads_serve_again(serve, states, planned, monkeypatch):
    """Another state deployed a model while it stood between its reading and its sending."""
    first, _ = states
    clock, asked = itertools.count(), []

    def stopped():
        if not asked:
            deploy(first, serve, "shop")
            next(clock)
        asked.append(None)
        return True

    monkeypatch.setattr("raymlops.serving.control.plan.STALE_S", 2)
    monkeypatch.setattr("raymlops.serving.control.plan.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert planned.put(serve, planned.wanted, current=stopped)
    assert {"shop--v1", "pub--v1"} <= serve.live.keys()
    assert len(asked) == 2


def test_a_taken_port_is_found_before_anything_starts():
    """Somebody listens there, and the error says which port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)) as caught:
            check_port("127.0.0.1", port)
        assert caught.value.hint == "Set serve.port to another one, or to 0 for any free one."


def test_a_taken_port_is_found_before_serve_starts(states):
    """Serve does not run and somebody listens on its port: nothing is sent."""

    class NotRunning(FakeServe):
        def get(self):
            return {"applications": {}, "proxies": {}}

    serve = NotRunning()
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTakenError):
        deploy(states[0], serve, section=ServeSection(port=other.getsockname()[1]))
    assert serve.sent == []


def test_a_free_port_can_be_listened_on():
    """A port that was found free passes the check."""
    check_port("127.0.0.1", free_port())


def test_an_address_of_another_machine_is_refused():
    """203.0.113.0/24 is set aside for documentation, so no machine has it."""
    with pytest.raises(UsageError, match="cannot listen"):
        check_port("203.0.113.9", 21060)


FOREIGN = {"name": "shop", "route_prefix": "/", "import_path": "shop:app", "args": {}, "deployments": []}


@pytest.mark.parametrize("foreign", [FOREIGN, {**FOREIGN, "name": "raymlops", "route_prefix": "/shop"}])
def test_a_foreign_application_keeps_the_place_of_the_list_of_models(serve, states, foreign):
    """Then that list is not served, the models are."""
    serve.live = {foreign["name"]: foreign}
    deploy(states[0], serve)
    assert serve.live.keys() == {foreign["name"], "m--v1"}
    assert serve.live[foreign["name"]] == foreign

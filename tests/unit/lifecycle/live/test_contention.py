"""Verbs and controllers in threads of their own, that really contend for the lock and for the database."""

from __future__ import annotations

import random
import threading

import pytest
from canaries import beside, share, take_back
from fake_serve import FakeServe
from states import SERVE, converge, deploy

from raymlops.errors import RaymlopsError
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.lifecycle.rollout.controller import Controller
from raymlops.lifecycle.rollout.evidence import Reports
from raymlops.serving.control.details import differing
from raymlops.state.audit import changes_of
from raymlops.state.store import State


class Narrow(FakeServe):
    """Serve that takes one config at a time."""

    def __init__(self):
        super().__init__(dashboard_url="http://dashboard:8265", cpus=100.0)
        self.door, self.met = threading.Lock(), 0

    def put(self, config):
        free = self.door.acquire(blocking=False)
        self.met += not free
        try:
            super().put(config)
        finally:
            if free:
                self.door.release()


def person(state, serve, choice):
    """Make five changes of two models, as chance has it."""
    for _ in range(5):
        name, version = choice.choice("mn"), choice.randint(1, 3)
        try:
            match choice.choice(["deploy", "beside", "share", "roll back"]):
                case "deploy":
                    deploy(state, serve, name, version)
                case "beside":
                    beside(state, serve, version, name=name)
                case "share":
                    share(state, serve, version, TrafficRequest(weight=0.1))
                case "roll back":
                    take_back(state, serve, name)
        except RaymlopsError:
            continue  # somebody else was faster


def agree(state, serve):
    """Compare what is desired, what Serve runs, and the audit record."""
    plan = converge(state, serve).plan
    assert not differing(plan.wanted, plan.ours)
    assert plan.desired.coming == ()
    routes = {config["route_prefix"]: name for name, config in serve.live.items() if config["route_prefix"]}
    for name in "mn":
        champions = [item.version for item in state.deployments(name) if item.role == "champion"]
        assert [routes.get(f"/models/{name}")] == ([f"{name}--v{one}" for one in champions] or [None])
        left = []
        for event in reversed([*changes_of(state, name)]):
            assert event.before == left
            left = event.after
        assert left == [item.to_dict() for item in state.deployments(name)]


@pytest.mark.parametrize("seed", range(2))
def test_who_contends_for_the_lock_sends_alone_and_all_agree_in_the_end(tmp_path, seed):
    """Three people change two models, and two controllers take the same steps."""
    serve, url = Narrow(), f"sqlite:///{tmp_path}/state.db"
    State.open(url).close()
    over, broken = threading.Event(), []

    def begun(function, *args):
        def run():
            try:
                with State.open(url) as state:
                    function(state, *args)
            except BaseException as error:
                broken.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def control(state):
        controller = Controller(state, serve, serve=SERVE, reports=Reports())
        while not over.wait(0.01):
            controller.step(state.now())

    people = [begun(person, serve, random.Random(10 * seed + number)) for number in range(3)]
    controllers = [begun(control) for _ in range(2)]
    for thread in people:
        thread.join(60)
    over.set()
    for thread in controllers:
        thread.join(60)
    assert (broken, serve.met) == ([], 0)
    with State.open(url) as state:
        agree(state, serve)

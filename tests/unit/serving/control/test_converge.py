from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from fake_serve import FakeServe

from raymlops.errors import ClusterError, DeployError, PortTakenError
from raymlops.records import BundleRef
from raymlops.serving.control.apply import apply, await_up, refresh, send
from raymlops.serving.names import DEPLOYMENT
from raymlops.state.store import Deployment, Desired

FOREIGN = {"name": "shop", "route_prefix": "/shop", "import_path": "shop:app", "deployments": [], "args": {"a": 1}}


def deployment(version: int, role: str, *, uri: str = "/bundles", name: str = "flights", **serve) -> Deployment:
    return Deployment(name, version, BundleRef(uri, f"digest{version}"), f"run{version}", role, serve)


def desired(*deployments: Deployment) -> Desired:
    return Desired(deployments)


def bring(serve: FakeServe, *deployments: Deployment, **options):
    return apply(Desired(deployments), api=serve, **{"wait_s": 2, "probe": False, **options})


def test_a_first_version_comes_up_with_its_route():
    """Where nobody holds the route there is nothing to wait for."""
    serve = FakeServe()
    applied = bring(serve, deployment(1, "champion"))
    assert applied.changed
    assert applied.routes["/models/flights"] == "flights--v1"
    assert applied.base_url == "http://127.0.0.1:21050"
    assert len(serve.sent) == 1


def test_the_same_again_sends_nothing():
    """An unchanged config is not sent, so that nothing can restart."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    assert not bring(serve, deployment(1, "champion")).changed
    assert len(serve.sent) == 1


def test_a_new_champion_comes_up_beside_the_old_one_first():
    """Two configs: in the first the old version still holds the route, in the second the new one does."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    assert serve.routes(1) == {"flights--v1": "/models/flights", "raymlops": "/", "flights--v2": None}
    assert serve.routes(2) == {"flights--v1": None, "flights--v2": "/models/flights", "raymlops": "/"}


def test_a_warm_version_takes_the_route_at_once():
    """A rollback to what is up already is one config."""
    serve = FakeServe()
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    assert len(serve.sent) == 2
    assert serve.routes(1)["flights--v1"] == "/models/flights"


def test_a_new_champion_is_first_scaled_to_what_the_old_one_runs():
    """Three replicas are up before the flip sends them the traffic; afterwards its own minimum holds again."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", min_replicas=3, max_replicas=4))
    bring(serve, deployment(1, "warm", min_replicas=3, max_replicas=4), deployment(2, "champion", max_replicas=4))

    def least(index):
        return {
            item["name"]: item["deployments"][0]["autoscaling_config"]["min_replicas"]
            for item in serve.sent[index]["applications"]
            if item["name"] != "raymlops"
        }["flights--v2"]

    assert (least(1), least(2)) == (3, 1)


def test_a_broken_version_leaves_the_route_and_says_why():
    """The message is its own, cut to a screen; the old version is still live; the state before can be applied."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    with pytest.raises(DeployError, match="boom: no such layer") as caught:
        bring(serve, deployment(1, "warm"), deployment(2, "champion", uri="/broken"))
    assert "the constructor raised" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 30
    assert "/models/flights by flights--v1" in str(caught.value)
    applied = bring(serve, deployment(1, "champion"))
    assert applied.routes == {"/models/flights": "flights--v1", "/": "raymlops"}
    assert "flights--v2" not in applied.statuses


def test_a_broken_champion_does_not_stop_the_rollback():
    """The version that loses the route may be unhealthy: that is why it loses it."""
    serve = FakeServe()
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    serve.unhealthy = {"flights--v2"}
    applied = bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    assert applied.routes["/models/flights"] == "flights--v1"


def test_another_models_trouble_does_not_stop_a_deploy():
    """What a change does not concern is sent and not waited for, whether the change is one or not."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", name="digits"))
    serve.unhealthy = {"digits--v1"}
    everything = [deployment(1, "champion", name="digits"), deployment(1, "champion")]
    assert bring(serve, *everything, concerned={("flights", 1)}).changed
    assert not bring(serve, *everything, concerned={("flights", 1)}).changed
    with pytest.raises(DeployError, match="digits--v1 is UNHEALTHY"):
        bring(serve, *everything)


def test_after_an_empty_serve_only_what_is_concerned_is_awaited():
    """The cluster was started anew: the neighbour's broken version and our own warm one are sent and left to Serve."""
    serve = FakeServe(unhealthy={"flights--v1"})
    everything = [
        deployment(1, "champion", name="digits", uri="/broken"),
        deployment(1, "warm"),
        deployment(2, "champion"),
    ]
    applied = bring(serve, *everything, concerned={("flights", 2)})
    assert applied.routes["/models/flights"] == "flights--v2"
    assert applied.statuses["digits--v1"] == "DEPLOY_FAILED"


def test_a_neighbours_unfinished_change_flips_no_route_to_what_is_not_up():
    """Its deploy was killed on its way: version 1 goes on, 2 comes up beside it, and our change goes through."""
    serve = FakeServe(unhealthy={"digits--v2"})
    bring(serve, deployment(1, "champion", name="digits"))
    unfinished = [deployment(1, "warm", name="digits"), deployment(2, "champion", name="digits")]
    applied = bring(serve, *unfinished, deployment(1, "champion"), concerned={("flights", 1)})
    assert applied.routes["/models/digits"] == "digits--v1"
    assert serve.routes(-1)["digits--v2"] is None
    serve.unhealthy = set()
    applied = bring(serve, *unfinished, deployment(1, "champion"), concerned={("flights", 1)})
    assert applied.routes["/models/digits"] == "digits--v2"


def test_a_champion_that_failed_is_tried_anew_when_it_is_asked_for_again():
    """Nothing is different, but Serve has given it up, and would only repeat its old failure."""
    serve = FakeServe()
    with pytest.raises(DeployError):
        bring(serve, deployment(1, "champion", uri="/broken"))
    sent = len(serve.sent)
    with pytest.raises(DeployError):
        bring(serve, deployment(1, "champion", uri="/broken"))
    assert "flights--v1" not in serve.routes(sent)
    assert serve.routes(-1)["flights--v1"] == "/models/flights"


def test_a_warm_version_takes_the_route_where_there_is_no_room_to_scale_it():
    """Three replicas hold all there is, so the third and second of the old version never come: it goes ahead."""

    class Full(FakeServe):
        def _details(self, config):
            details = super()._details(config)
            if config["name"] == "flights--v1":
                details["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}]
                scaled = config["deployments"][0]["autoscaling_config"]["min_replicas"] > 1
                details["status"] = "DEPLOYING" if scaled else "RUNNING"
            return details

    serve = Full()
    bring(serve, deployment(1, "warm", max_replicas=3), deployment(2, "champion", min_replicas=3, max_replicas=3))
    rolled = [deployment(1, "champion", max_replicas=3), deployment(2, "warm", min_replicas=3, max_replicas=3)]
    applied = apply(desired(*rolled), api=serve, wait_s=0.2, probe=False, concerned={("flights", 1)})
    assert applied.routes["/models/flights"] == "flights--v1"


def test_asking_for_what_is_live_but_broken_is_an_error():
    """No change is needed, and yet it does not answer: that must be said."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    serve.unhealthy = {"flights--v1"}
    with pytest.raises(DeployError, match="flights--v1 is UNHEALTHY"):
        bring(serve, deployment(1, "champion"))


def test_foreign_applications_stay_as_they_are():
    """Declared ones are sent along unchanged in every step, others are not ours to send."""
    serve = FakeServe(live={"shop": FOREIGN}, imperative=("notebook",))
    bring(serve, deployment(1, "champion"))
    bring(serve, deployment(2, "champion"))
    applied = bring(serve)
    assert serve.live == {"shop": FOREIGN}
    assert set(applied.statuses) == {"shop", "notebook"}
    assert all(FOREIGN in config["applications"] for config in serve.sent)


def test_a_version_that_is_too_slow_is_an_error():
    """Not failed, only not up in time: the message says what it was doing."""

    class Slow(FakeServe):
        def _details(self, config):
            details = super()._details(config)
            details["deployments"][DEPLOYMENT]["message"] = "waiting for 0.2 CPU"
            return {**details, "status": "DEPLOYING"}

    with pytest.raises(DeployError, match=r"flights--v1 is DEPLOYING(.|\n)*waiting for 0.2 CPU"):
        apply(desired(deployment(1, "champion")), api=Slow(), wait_s=0, probe=False)


def test_what_an_earlier_attempt_left_failed_is_tried_anew():
    """The failed application is deleted first, or Serve would only repeat its old failure."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    with pytest.raises(DeployError):
        bring(serve, deployment(1, "warm"), deployment(2, "champion", uri="/broken"))
    sent = len(serve.sent)
    bring(serve, deployment(1, "warm"), deployment(2, "champion"))
    assert "flights--v2" not in serve.routes(sent)
    assert serve.routes(sent)["flights--v1"] == "/models/flights"
    assert serve.routes(-1)["flights--v2"] == "/models/flights"


def test_a_taken_port_is_found_before_serve_starts():
    """Serve does not run and somebody listens on its port: nothing is sent."""

    class NotRunning(FakeServe):
        def get(self):
            return {"applications": {}, "proxies": {}}

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        serve = NotRunning()
        with pytest.raises(PortTakenError):
            apply(desired(deployment(1, "champion")), api=serve, wait_s=2, port=other.getsockname()[1])
    assert serve.sent == []


def least(serve: FakeServe, index: int, name: str) -> int:
    """Return the replicas that an application was sent to keep."""
    (item,) = (item for item in serve.sent[index]["applications"] if item["name"] == name)
    minimum: int = item["deployments"][0]["autoscaling_config"]["min_replicas"]
    return minimum


def test_in_a_hurry_the_route_moves_first_and_replicas_follow():
    """The old version runs three: the one that is up takes the route at once, is asked for three, then let be."""
    serve = FakeServe()
    bring(serve, deployment(1, "warm", max_replicas=3), deployment(2, "champion", min_replicas=3, max_replicas=3))
    sent = len(serve.sent)
    rolled = [deployment(1, "champion", max_replicas=3), deployment(2, "warm", min_replicas=3, max_replicas=3)]
    applied = bring(serve, *rolled, hurry=True)
    assert applied.routes["/models/flights"] == "flights--v1"
    assert [serve.routes(index)["flights--v1"] for index in range(sent, len(serve.sent))] == ["/models/flights"] * 2
    assert [least(serve, index, "flights--v1") for index in range(sent, len(serve.sent))] == [3, 1]


def test_a_hurry_does_not_flip_to_what_is_not_up():
    """A cold version comes up beside first, in a hurry as otherwise."""
    serve = FakeServe()
    bring(serve, deployment(2, "champion"))
    bring(serve, deployment(1, "champion"), deployment(2, "warm"), hurry=True)
    assert serve.routes(1)["flights--v1"] is None
    assert serve.routes(-1)["flights--v1"] == "/models/flights"


def test_a_version_at_zero_replicas_gets_one_before_the_route():
    """Both may go to zero when idle: the flip is not to make a request wait for a start."""

    class Scaled(FakeServe):
        def _details(self, config):
            details = super()._details(config)
            options = config["deployments"][0].get("autoscaling_config", {})
            if options.get("min_replicas") == 0:
                details["deployments"][DEPLOYMENT]["replicas"] = []
            return details

    serve = Scaled()
    bring(serve, deployment(1, "warm", min_replicas=0), deployment(2, "champion", min_replicas=0))
    sent = len(serve.sent)
    bring(serve, deployment(1, "champion", min_replicas=0), deployment(2, "warm", min_replicas=0))
    assert (least(serve, sent, "flights--v1"), serve.routes(sent)["flights--v1"]) == (1, None)
    assert (least(serve, -1, "flights--v1"), serve.routes(-1)["flights--v1"]) == (0, "/models/flights")


def test_a_change_of_settings_alone_is_one_config_and_asks_no_route():
    """A canary's share: nothing comes up, nothing flips, and nothing listens on the port that would be asked."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    canary = replace(deployment(2, "warm"), weight=0.1)
    applied = bring(serve, deployment(1, "champion"), canary, probe=True, concerned={("flights", 1), ("flights", 2)})
    assert applied.changed
    assert len(serve.sent) == 2


def bounds(serve: FakeServe, index: int, name: str) -> tuple[int, int | None]:
    """Return the replicas that an application was sent to keep, and to start with."""
    (item,) = (item for item in serve.sent[index]["applications"] if item["name"] == name)
    scaling = item["deployments"][0]["autoscaling_config"]
    return scaling["min_replicas"], scaling.get("initial_replicas")


def test_a_version_that_may_sleep_starts_with_a_replica_and_is_never_woken_by_a_change():
    """It says so in the config that it comes up by, and in none after: Serve would go there at each change."""
    serve = FakeServe()
    one = deployment(1, "champion", min_replicas=0)
    bring(serve, one)
    bring(serve, replace(one, serve={**one.serve, "max_rows": 7}))
    assert [bounds(serve, index, "flights--v1") for index in range(2)] == [(0, 1), (0, None)]
    assert not bring(serve, replace(one, serve={**one.serve, "max_rows": 7})).changed


def test_one_that_may_sleep_is_scaled_for_the_flip_like_any_other():
    """The holder runs three: three are kept until the flip, and Serve is sent no bounds that it refuses."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", min_replicas=3, max_replicas=3))
    bring(
        serve,
        deployment(1, "warm", min_replicas=3, max_replicas=3),
        deployment(2, "champion", min_replicas=0, max_replicas=3),
    )
    assert [bounds(serve, index, "flights--v2") for index in (1, 2)] == [(3, None), (0, None)]


def test_a_flip_stands_though_the_bounds_could_not_be_given_back():
    """The route answers by then; what is left over is a setting, which is sent later."""

    class Away(FakeServe):
        def put(self, config):
            if len(self.sent) == 2:
                raise ClusterError("the Ray dashboard does not answer")
            super().put(config)

    serve = Away()
    before = [deployment(1, "warm", max_replicas=3), deployment(2, "champion", min_replicas=3, max_replicas=3)]
    after = [deployment(1, "champion", max_replicas=3), deployment(2, "warm", min_replicas=3, max_replicas=3)]
    bring(serve, *before)
    applied = bring(serve, *after, hurry=True)
    assert applied.routes["/models/flights"] == "flights--v1"
    assert bounds(serve, -1, "flights--v1") == (3, None)
    serve.sent.append({})
    assert refresh(desired(*after), api=serve)
    assert bounds(serve, -1, "flights--v1") == (1, None)
    assert not refresh(desired(*after), api=serve)


def test_the_controller_sends_no_version_home_that_is_coming_up():
    """It may keep none later, and has one until it takes its route; what else changed is sent all the same."""
    serve = FakeServe()
    champion, coming = deployment(1, "champion"), deployment(2, "warm", min_replicas=0)
    bring(serve, champion)
    send(desired(champion, coming), api=serve, coming=("flights", 2), replicas=1)
    assert bounds(serve, -1, "flights--v2")[0] == 1
    refresh(desired(champion, deployment(2, "warm", min_replicas=0, max_rows=7)), api=serve)
    (app,) = (item for item in serve.sent[-1]["applications"] if item["name"] == "flights--v2")
    assert app["deployments"][0]["user_config"]["limits"]["max_rows"] == 7
    assert bounds(serve, -1, "flights--v2")[0] == 1


def test_what_is_sent_to_come_up_is_not_waited_for():
    """The route stays where it is, replicas are asked for as the flip will need them, a broken one fails the wait."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    beside = desired(deployment(1, "champion"), deployment(2, "warm", max_replicas=4, uri="/broken"))
    assert send(beside, api=serve, coming=("flights", 2), replicas=3)
    assert (bounds(serve, -1, "flights--v2"), serve.routes(-1)["flights--v1"]) == ((3, None), "/models/flights")
    with pytest.raises(DeployError, match="no such layer"):
        await_up(serve, ("flights", 2), least=1, replicas=3, wait_s=2, check=lambda: None)


def test_new_settings_are_waited_for_whatever_others_change_meanwhile():
    """Keys, traffic and bounds are theirs; what the version was given is seen when all its replicas have it."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    wanted = deployment(1, "champion", cpus_per_replica=0.7)
    assert send(desired(wanted), api=serve, coming=("flights", 1), replicas=1)
    (settings, _index) = serve.sent[-1]["applications"]
    (options,) = serve.live["flights--v1"]["deployments"]
    options["user_config"] = {**options["user_config"], "access": {"required": True, "keys": []}}
    await_up(serve, ("flights", 1), least=1, replicas=1, wait_s=2, check=lambda: None, settings=settings)
    options["ray_actor_options"] = {"num_cpus": 0.1, "num_gpus": 0.0}
    with pytest.raises(DeployError, match="not ready in time"):
        await_up(serve, ("flights", 1), least=1, replicas=1, wait_s=0, check=lambda: None, settings=settings)

"""What Serve runs next on its way to the desired state, with Serve's API in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_serve import FakeServe

from raymlops.records import BundleRef
from raymlops.serving.control.converge import broken, index_starts, lacking, next_applications
from raymlops.serving.control.details import differing, settled
from raymlops.serving.control.plan import plan_of
from raymlops.serving.names import DEPLOYMENT
from raymlops.state.store import Deployment, Desired
from raymlops.state.transitions import Transition

FOREIGN = {"name": "shop", "route_prefix": "/shop", "import_path": "shop:app", "deployments": [], "args": {"a": 1}}


def deployment(version: int, role: str, *, uri: str = "/bundles", name: str = "flights", **serve) -> Deployment:
    return Deployment(name, version, BundleRef(uri, f"digest{version}"), f"run{version}", role, serve)


def planned(serve: FakeServe, *items: Deployment, coming=()):
    desired = Desired(items, coming=coming)
    return plan_of(desired, serve, host="127.0.0.1", port=8000, grpc_port=None)


def bring(serve: FakeServe, *items: Deployment, coming=()):
    """Send what comes next until there is nothing to send, and return the plan then."""
    for _ in range(5):
        plan = planned(serve, *items, coming=coming)
        applications = next_applications(plan)
        if not differing(applications, plan.ours):
            return plan
        plan.put(serve, applications)
    raise AssertionError("it does not end")


def on_its_way(version: int) -> Transition:
    now = datetime.now(UTC)
    goal = {"role": "champion"}
    return Transition("t", "flights", version, goal, "deploy", "deploy.start", "", "me", now, 60.0)


def bounds(serve: FakeServe, index: int, name: str) -> tuple[int, int | None]:
    """Return the replicas that an application was sent to keep, and to start with."""
    (item,) = (item for item in serve.sent[index]["applications"] if item["name"] == name)
    scaling = item["deployments"][0]["autoscaling_config"]
    return scaling["min_replicas"], scaling.get("initial_replicas")


def holder(serve: FakeServe, index: int = -1, name: str = "flights") -> str:
    (found,) = (app for app, route in serve.routes(index).items() if route == f"/models/{name}")
    return found


def test_where_nobody_holds_the_route_everything_is_sent_at_once():
    """A first deploy, and a Serve that was started anew: one config, and nothing after it."""
    serve = FakeServe()
    everything = [deployment(1, "warm"), deployment(2, "champion"), deployment(7, "champion", name="digits")]
    for _ in range(2):
        serve.live, sent = {}, len(serve.sent)
        bring(serve, *everything)
        assert len(serve.sent) == sent + 1
        assert (holder(serve), holder(serve, name="digits")) == ("flights--v2", "digits--v7")


def test_the_route_moves_once_its_new_version_is_up():
    """Until then the old version holds it, with its newest settings; then one config exchanges both."""
    serve = FakeServe(slow={"flights--v2"})
    bring(serve, deployment(1, "champion"))
    after = [deployment(1, "warm", max_rows=7), deployment(2, "champion")]
    plan = bring(serve, *after)
    assert serve.routes(-1) == {"flights--v1": "/models/flights", "raymlops": "/", "flights--v2": None}
    (options,) = serve.live["flights--v1"]["deployments"]
    assert options["user_config"]["limits"]["max_rows"] == 7
    assert lacking(plan, after[1:]) == "flights--v2 does not have its settings yet"
    serve.slow, sent = set(), len(serve.sent)
    assert lacking(bring(serve, *after), after) is None
    assert len(serve.sent) == sent + 1
    assert serve.routes(-1) == {"flights--v1": None, "flights--v2": "/models/flights", "raymlops": "/"}


def test_a_version_on_its_way_is_scaled_to_what_the_holder_runs():
    """Three replicas are up before the flip sends them the traffic; afterwards its own minimum holds again."""
    serve = FakeServe()
    old, new = deployment(1, "champion", min_replicas=3, max_replicas=3), deployment(2, "warm", max_replicas=4)
    bring(serve, old)
    bring(serve, old, new, coming=(on_its_way(2),))
    assert (bounds(serve, -1, "flights--v2"), holder(serve)) == ((3, None), "flights--v1")
    bring(serve, replace(old, role="warm"), replace(new, role="champion"))
    assert (bounds(serve, -1, "flights--v2"), holder(serve)) == ((1, None), "flights--v2")


def test_a_version_that_is_up_takes_the_route_in_one_config_and_its_replicas_follow():
    """A rollback: the old version runs three, the one that is up has one, is asked for three, then let be."""
    serve = FakeServe(unhealthy={"flights--v2"})  # which is no reason to wait for it
    many = {"min_replicas": 3, "max_replicas": 3}
    bring(serve, deployment(1, "warm", max_replicas=3), deployment(2, "champion", **many))
    sent = len(serve.sent)
    bring(serve, deployment(1, "champion", max_replicas=3), deployment(2, "warm", **many))
    assert [holder(serve, index) for index in range(sent, len(serve.sent))] == ["flights--v1"] * 2
    assert [bounds(serve, index, "flights--v1")[0] for index in range(sent, len(serve.sent))] == [3, 1]


class Idle(FakeServe):
    """Serve by which a version without a minimum has no replica."""

    def _details(self, config):
        details = super()._details(config)
        options = config["deployments"][0].get("autoscaling_config", {})
        if options.get("min_replicas") == 0:
            details["deployments"][DEPLOYMENT]["replicas"] = []
        return details


def test_a_version_without_a_replica_gets_one_before_the_route():
    """Both may go to zero when idle: no request is to wait for a start."""
    serve = Idle()
    bring(serve, deployment(1, "warm", min_replicas=0), deployment(2, "champion", min_replicas=0))
    sent = len(serve.sent)
    after = [deployment(1, "champion", min_replicas=0), deployment(2, "warm", min_replicas=0)]
    plan = bring(serve, *after)
    assert (bounds(serve, sent, "flights--v1")[0], holder(serve, sent)) == (1, "flights--v2")
    assert (bounds(serve, -1, "flights--v1")[0], holder(serve)) == (0, "flights--v1")
    assert lacking(plan, after) is None


def test_a_version_that_may_sleep_starts_with_a_replica_and_is_never_woken_by_a_change():
    """It says so in the config by which it comes up, and in none after: Serve would go there at each change."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion", min_replicas=0))
    bring(serve, deployment(1, "champion", min_replicas=0, max_rows=7))
    assert [bounds(serve, index, "flights--v1") for index in range(2)] == [(0, 1), (0, None)]
    assert len(serve.sent) == 2


def test_a_model_whose_version_fails_keeps_its_route_and_holds_up_no_other():
    """Version 2 of digits does not come up, and flights is changed all the while; once it is up, the route moves."""
    serve = FakeServe(unhealthy={"digits--v2"})
    bring(serve, deployment(1, "champion", name="digits"), deployment(1, "champion"))
    digits = [deployment(1, "warm", name="digits"), deployment(2, "champion", name="digits")]
    flights = [deployment(1, "warm"), deployment(2, "champion")]
    plan = bring(serve, *digits, *flights)
    assert (holder(serve, name="digits"), holder(serve)) == ("digits--v1", "flights--v2")
    assert lacking(plan, flights) is None
    assert [broken(plan, item) for item in digits] == [False, True]
    serve.unhealthy = set()
    bring(serve, *digits, *flights)
    assert holder(serve, name="digits") == "digits--v2"


def test_why_a_version_fails_is_said_on_a_screen():
    """By its own message, the end of which counts."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"))
    after = [deployment(1, "warm"), deployment(2, "champion", uri="/broken")]
    said = lacking(bring(serve, *after), after[1:])
    assert said.startswith("flights--v2 is DEPLOY_FAILED\n")
    assert "boom: no such layer" in said
    assert "the constructor raised" in said
    assert len(said.splitlines()) < 30


@pytest.mark.parametrize("share", [{"weight": 0.3}, {"shadow": 1.0}])
def test_a_removed_version_leaves_after_its_traffic(share):
    """First the champion sends it nothing any more, then it goes: no request meets a version that ends."""
    serve = FakeServe()
    champion = deployment(1, "champion")
    bring(serve, champion, replace(deployment(2, "warm"), **share))
    sent = len(serve.sent)
    bring(serve, champion)
    assert ["flights--v2" in serve.routes(index) for index in range(sent, len(serve.sent))] == [True, False]
    (options,) = next(one for one in serve.sent[sent]["applications"] if one["name"] == "flights--v1")["deployments"]
    assert (options["user_config"]["traffic"]["canaries"], options["user_config"]["traffic"]["shadows"]) == ([], [])


def test_a_removed_model_goes_at_once_and_foreign_applications_stay():
    """Declared ones are sent along unchanged in every config, others are not ours to send."""
    serve = FakeServe(live={"shop": FOREIGN}, imperative=("notebook",))
    bring(serve, deployment(1, "champion"), replace(deployment(2, "warm"), weight=0.3))
    bring(serve)
    assert serve.live == {"shop": FOREIGN}
    assert len(serve.sent) == 2
    assert all(FOREIGN in config["applications"] for config in serve.sent)


def test_what_serve_lacks_is_said():
    """Nothing where another state has the model; a start; in a hurry one replica is enough."""
    serve = FakeServe()
    one, two = deployment(1, "champion"), deployment(2, "warm")
    assert lacking(planned(serve, one), [one]) == "flights--v1 does not have its settings yet"
    serve.slow = {"flights--v1"}
    plan = bring(serve, one, two)
    assert lacking(plan, [one]) == lacking(plan, [one], hurry=True) == "flights--v1 is DEPLOYING"
    assert lacking(plan, [two]) is None
    plan.details["applications"]["flights--v1"]["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}]
    assert lacking(plan, [one], hurry=True) is None
    plan.details["applications"]["flights--v1"]["route_prefix"] = None
    assert lacking(plan, [one], hurry=True) == "flights--v1 does not hold /models/flights yet"
    assert lacking(plan, [deployment(9, "champion", name="theirs")]) is None


def test_a_list_of_models_that_starts_is_seen():
    """Until it has its first replica; new contents of it are no start."""
    serve = FakeServe(slow={"raymlops"})
    plan = bring(serve, deployment(1, "champion"))
    assert index_starts(plan)
    plan.details["applications"]["raymlops"]["deployments"][DEPLOYMENT]["replicas"] = [{"state": "RUNNING"}]
    assert not index_starts(plan)
    assert not index_starts(planned(FakeServe()))


def test_a_version_has_its_settings_whatever_others_change_meanwhile():
    """Keys, traffic, bounds and the route are theirs."""
    serve = FakeServe()
    plan = bring(serve, deployment(1, "champion"))
    wanted, live = plan.wanted["flights--v1"], serve.live["flights--v1"]
    (options,) = live["deployments"]
    options["user_config"] = {**options["user_config"], "access": {"required": True}, "traffic": None}
    options["autoscaling_config"] = {**options["autoscaling_config"], "min_replicas": 9}
    assert settled({**live, "route_prefix": None}, wanted)
    options["ray_actor_options"] = {"num_cpus": 0.7}
    assert not settled(live, wanted)


def test_new_settings_of_a_version_come_before_its_route():
    """It is up with others, which would take requests until its replicas start anew, perhaps in vain."""
    serve = FakeServe()
    bring(serve, deployment(1, "champion"), deployment(2, "warm"))
    sent = len(serve.sent)
    bring(serve, deployment(1, "warm"), deployment(2, "champion", max_rows=7))
    assert [holder(serve, index) for index in range(sent, len(serve.sent))] == ["flights--v1", "flights--v2"]

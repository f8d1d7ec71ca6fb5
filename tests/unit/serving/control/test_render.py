from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from raymlops.config.serve import ServeSection
from raymlops.records import BundleRef
from raymlops.serving.control.render import render
from raymlops.serving.names import INDEX_APP, app_name
from raymlops.serving.places import IN_FLIGHT, OWN_PLACES
from raymlops.serving.settings import Settings
from raymlops.serving.traffic import Share
from raymlops.state.identity import Owner
from raymlops.state.keys import KeyRecord
from raymlops.state.store import Deployment, Desired

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def deployment(version: int, role: str, *, name: str = "flights", **serve) -> Deployment:
    return Deployment(name, version, BundleRef(f"/bundles/{version}", f"digest{version}"), f"run{version}", role, serve)


def rendered(*deployments, host="127.0.0.1"):
    config = render(Desired(deployments), host=host, port=8000)
    return {application["name"]: application for application in config["applications"]}


def test_the_champion_holds_the_route_and_a_warm_one_none():
    """One application a version; the route says who is live."""
    apps = rendered(deployment(7, "champion"), deployment(6, "warm"))
    assert apps["flights--v7"]["route_prefix"] == "/models/flights"
    assert apps["flights--v6"]["route_prefix"] is None


def test_a_flip_changes_nothing_that_restarts():
    """What Serve hashes into a code version is the same before and after."""
    before = rendered(deployment(7, "champion"), deployment(6, "warm"))
    after = rendered(deployment(7, "warm"), deployment(6, "champion"))
    for name in ("flights--v6", "flights--v7"):
        changed = {key for key in before[name] if before[name][key] != after[name][key]}
        assert changed == {"route_prefix", "deployments"}
        (one,), (other,) = before[name]["deployments"], after[name]["deployments"]
        assert {key for key in one if one[key] != other[key]} == {"user_config"}


def test_serve_waits_for_no_request_for_ever():
    """Five seconds longer than the slowest model has, over HTTP and gRPC; without models nothing is said."""
    slow = deployment(3, "champion", name="digits", timeout_s=90)
    config = render(Desired((deployment(7, "champion"), slow)), host="127.0.0.1", port=8000, grpc_port=9000)
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 95.0}
    assert config["grpc_options"]["request_timeout_s"] == 95.0
    assert "request_timeout_s" not in render(Desired(()), host="127.0.0.1", port=8000)["http_options"]


def test_serve_is_started_with_the_proxies_and_the_certificate_of_the_section():
    """On the head alone and without TLS by default; TLS is for HTTP here, and gRPC has it from there."""
    desired = Desired((deployment(7, "champion"),))
    plain = render(desired, host="127.0.0.1", port=8000)
    assert plain["proxy_location"] == "HeadOnly"
    assert "ssl_certfile" not in plain["http_options"]
    config = render(desired, host="127.0.0.1", port=8000, everywhere=True, tls=("/c", "/k"))
    assert config["proxy_location"] == "EveryNode"
    assert {key: config["http_options"][key] for key in ("ssl_certfile", "ssl_keyfile")} == {
        "ssl_certfile": "/c",
        "ssl_keyfile": "/k",
    }


def test_arguments_name_the_bundle_and_its_digest():
    """The digest that a replica verifies comes from the desired state."""
    args = rendered(deployment(7, "champion"))["flights--v7"]["args"]
    expected = {"bundle_uri": "/bundles/7", "digest": "digest7", "name": "flights", "version": 7, "run_id": "run7"}
    assert args == expected


def test_settings_become_serve_options():
    """Each field of the serve section that concerns a replica is in its options or its user_config."""
    app = rendered(deployment(7, "champion", min_replicas=2, max_replicas=5, cpus_per_replica=0.5, max_rows=10))
    (options,) = app["flights--v7"]["deployments"]
    assert options["autoscaling_config"]["min_replicas"] == 2
    assert options["autoscaling_config"]["max_replicas"] == 5
    assert options["ray_actor_options"]["num_cpus"] == 0.5
    assert options["user_config"]["limits"]["max_rows"] == 10
    assert options["user_config"]["limits"]["max_ongoing_requests"] == options["max_ongoing_requests"]


def test_the_champion_is_told_who_gets_what():
    """A canary, a shadow and one that only stands there; they themselves pass nothing on."""
    beside = [replace(deployment(8, "warm"), weight=0.1), replace(deployment(9, "warm"), shadow=0.5)]
    apps = rendered(deployment(7, "champion"), *beside, deployment(6, "warm"))
    told = {name: Settings.from_dict(app["deployments"][0]["user_config"]).traffic for name, app in apps.items()}
    champion = told["flights--v7"]
    assert champion.canaries == (Share(8, 0.1),)
    assert champion.shadows == (Share(9, 0.5),)
    assert champion.standing == (6, 8, 9)
    assert not told["flights--v8"].canaries
    assert not told["flights--v8"].standing


def test_what_is_slow_is_what_the_rollout_was_started_with():
    """Not what the champion was deployed with; a canary that is late is slow at the latest."""
    versions = (deployment(7, "champion"), replace(deployment(8, "warm"), weight=0.1))
    found = []
    for slow_s in ({}, {"other": 0.1}, {"flights": 0.1}, {"flights": 5.0}):
        config = render(Desired(versions, slow_s=slow_s), host="127.0.0.1", port=8000)
        champion = next(app for app in config["applications"] if app["name"] == "flights--v7")
        found.append(champion["deployments"][0]["user_config"]["slow_s"])
    assert found == [0.25, 0.25, 0.1, 1.0]


def test_callers_cannot_tell_which_version_a_value_leads_to():
    """They know the model and its version; where the canary's share begins depends on the state's id too."""
    champion = deployment(7, "champion")
    salts = set()
    for owner in ("a" * 32, "b" * 32):
        config = render(Desired((champion,), owner=Owner(owner)), host="127.0.0.1", port=8000)
        app = next(app for app in config["applications"] if app["name"] == "flights--v7")
        salts.add(Settings.from_dict(app["deployments"][0]["user_config"]).traffic.salt)
    assert len(salts) == 2


def test_all_versions_draw_a_sample_of_the_log_by_one_secret():
    """The id of the state, which no caller knows: a request that several answered is logged by all, or by none."""
    beside = replace(deployment(8, "canary"), weight=0.5)
    config = render(Desired((deployment(7, "champion"), beside), owner=Owner("a" * 32)), host="127.0.0.1", port=8000)
    apps = [app for app in config["applications"] if app["name"].startswith("flights--")]
    logs = [Settings.from_dict(app["deployments"][0]["user_config"]).log for app in apps]
    assert [log.state for log in logs] == ["a" * 32] * 2


def test_each_step_of_a_rollout_is_an_epoch_of_its_own():
    """The same weights in two rollouts are not counted together."""
    versions = (deployment(7, "champion"), replace(deployment(8, "warm"), weight=0.1))
    epochs = set()
    for step in ("one.0", "one.1", "two.0"):
        config = render(Desired(versions, epochs={"flights": step}), host="127.0.0.1", port=8000)
        champion = next(app for app in config["applications"] if app["name"] == "flights--v7")
        epochs.add(champion["deployments"][0]["user_config"]["traffic"]["epoch"])
    assert epochs == {"one.0", "one.1", "two.0"}


def test_keys_reach_the_models_that_they_are_for():
    """By their hashes, as settings that restart nothing."""
    key = KeyRecord("k1", "shop", "h" * 64, ("flights",), ("predict",), None, NOW, None, None)
    config = render(
        Desired((deployment(7, "champion"), deployment(1, "champion", name="digits")), (key,)),
        host="127.0.0.1",
        port=8000,
    )
    told = {
        app["name"]: Settings.from_dict(app["deployments"][0]["user_config"]).access
        for app in config["applications"]
        if app["name"] != INDEX_APP
    }
    assert [entry.hash for entry in told["flights--v7"].keys] == ["h" * 64]
    assert told["digits--v1"].keys == ()


def test_the_log_is_beside_the_bundles():
    """A replica finds the storage by the bundle that it serves."""
    bundle = BundleRef("s3://bucket/raymlops/bundles/abc?region=x", "abc")
    item = Deployment("flights", 7, bundle, "run7", "champion", {})
    config = render(Desired((item,)), host="127.0.0.1", port=8000)
    log = Settings.from_dict(config["applications"][0]["deployments"][0]["user_config"]).log
    assert (log.enabled, log.uri) == (True, "s3://bucket/raymlops?region=x")


def bounds(*deployments):
    apps = rendered(*deployments)
    return {name: app["deployments"][0].get("autoscaling_config", {}) for name, app in apps.items()}


def test_a_model_that_may_go_to_zero_is_woken_by_nothing_but_a_request():
    """Serve would take initial replicas for the target at each change of a key or a share."""
    scaling = bounds(deployment(7, "champion", min_replicas=0))["flights--v7"]
    assert (scaling["min_replicas"], scaling["downscale_to_zero_delay_s"]) == (0, 900.0)
    assert "initial_replicas" not in scaling


def test_who_has_a_share_does_not_go_to_zero():
    """A canary or a shadow that sleeps would be late for every first request; one that stands idle may sleep."""
    idle = deployment(8, "warm", min_replicas=0)
    beside = [replace(idle, version=9, weight=0.1), replace(idle, version=10, shadow=0.1)]
    found = bounds(deployment(7, "champion"), idle, *beside)
    assert [found[f"flights--v{version}"]["min_replicas"] for version in (8, 9, 10)] == [0, 1, 1]


def test_a_whole_serve_section_is_taken():
    """Settings as the configuration dumps them are accepted as they are."""
    assert rendered(deployment(7, "champion", **ServeSection().model_dump(mode="json")))["flights--v7"]


def test_a_setting_of_a_newer_version_is_left_out():
    """Stored settings are read leniently, so that a rollback of raymlops itself can still serve."""
    assert rendered(deployment(7, "champion", shadow_percent=10))["flights--v7"]


def test_limits_are_no_part_of_the_arguments():
    """A changed limit reaches the replicas as user_config, without a restart."""
    one, other = (rendered(deployment(7, "champion", max_rows=rows))["flights--v7"] for rows in (10, 20))
    assert one["args"] == other["args"]
    assert one != other


def test_the_same_deployments_give_the_same_config():
    """In whatever order they come, so that sending it again changes nothing."""
    first, second = deployment(7, "champion"), deployment(3, "champion", name="digits")
    assert json.dumps(rendered(first, second)) == json.dumps(rendered(second, first))


def test_the_index_lists_the_champions():
    """It learns of them by user_config, so that it does not restart."""
    apps = rendered(deployment(7, "champion"), deployment(6, "warm"), deployment(1, "champion", name="digits"))
    (options,) = apps[INDEX_APP]["deployments"]
    assert [model["path"] for model in options["user_config"]["models"]] == ["/models/digits", "/models/flights"]
    assert apps[INDEX_APP]["args"] == {}


def test_the_index_knows_each_models_bounds_and_keys():
    """So that it holds no more of a request than the model would, no longer, and for nobody else."""
    apps = rendered(deployment(7, "champion", timeout_s=3.0, max_body_bytes=2048, auth="keys"))
    (options,) = apps[INDEX_APP]["deployments"]
    (model,) = options["user_config"]["models"]
    assert (model["timeout_s"], model["max_body_bytes"]) == (3.0, 2048)
    assert model["access"] == {"required": True, "keys": [], "hosts": None}
    assert options["max_queued_requests"] > 0


def test_the_index_scales_with_its_load_and_has_room_for_each_models_own_places():
    """It forwards all gRPC calls of the host; what hangs may not take its own pages."""
    apps = rendered(*(deployment(7, "champion", name=f"m{index}") for index in range(50)))
    (options,) = apps[INDEX_APP]["deployments"]
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"] > 1) == (1, True)
    assert options["max_ongoing_requests"] > IN_FLIGHT + 50 * OWN_PLACES


@pytest.mark.parametrize(
    ("host", "settings", "hosts"),
    [
        ("127.0.0.1", {}, []),
        ("127.0.0.1", {"allowed_hosts": ["models.local"]}, ["models.local"]),
        ("127.0.0.1", {"auth": "keys"}, None),
        ("10.0.0.1", {"auth": "open"}, None),
        ("10.0.0.1", {}, None),
    ],
)
def test_web_pages_are_kept_from_what_is_open_on_loopback_alone(host, settings, hosts):
    """With keys no page has one; at another address it was opened to others explicitly."""
    apps = rendered(deployment(7, "champion", **settings), host=host)
    (options,) = apps[app_name("flights", 7)]["deployments"]
    assert options["user_config"]["access"]["hosts"] == hosts
    (options,) = apps[INDEX_APP]["deployments"]
    assert options["user_config"]["models"][0]["access"]["hosts"] == hosts


def test_nothing_desired_needs_no_list_of_models():
    """Without a model there is no index that would answer for nothing."""
    assert rendered() == {}


def test_names_of_applications():
    """A version's application can be told from its name."""
    assert app_name("flights", 7) == "flights--v7"


def test_memory_is_reserved_and_bounded():
    """By the same number; without one neither."""
    (options,) = rendered(deployment(7, "champion", memory_gb=1.5))["flights--v7"]["deployments"]
    assert options["ray_actor_options"]["memory"] == 1_500_000_000
    assert Settings.from_dict(options["user_config"]).memory_bytes == 1_500_000_000
    (options,) = rendered(deployment(7, "champion"))["flights--v7"]["deployments"]
    assert "memory" not in options["ray_actor_options"]
    assert Settings.from_dict(options["user_config"]).memory_bytes is None

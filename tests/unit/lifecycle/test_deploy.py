"""The verbs of what is live, against a state database and Serve in memory."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from canaries import beside, share, version_of
from fake_dashboard import fake_dashboard
from fake_serve import FakeServe
from http_server import serving
from served_days import bundle_of, references
from states import deploy, marks, opened
from stored import put
from tiny_bundle import tiny_contents

from raymlops.bundle.write import write_bundle
from raymlops.config.base import SecretRef
from raymlops.config.load import load_data
from raymlops.config.serve import RolloutSection
from raymlops.errors import ClusterError, ConfigError, NotFoundError, RefusedError, TakenError, UsageError
from raymlops.lifecycle.deploy import (
    ALONE,
    OPENED,
    _bring,
    _Call,
    _share,
    rollout_outlook,
)
from raymlops.lifecycle.live import transitions
from raymlops.lifecycle.live.lineup import champion_of
from raymlops.lifecycle.live.transitions import Request
from raymlops.lifecycle.remove import number_of, remove, remove_version
from raymlops.lifecycle.restore import restore
from raymlops.lifecycle.rollback import rollback, rollback_target
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.lifecycle.rollout.follow import running_rollout
from raymlops.profiles.slices import Slice
from raymlops.records import BundleRef, ModelVersionRef
from raymlops.state.database import state_url
from raymlops.state.rollouts import rollouts
from raymlops.state.store import State
from raymlops.state.versions import record_version, withdrawn

ROLLOUT = TrafficRequest(weight=0.1, rollout=RolloutSection())
NO_CONTROLLER = "the controller could not be started"


class Unguarded(BaseHTTPRequestHandler):
    """A proxy of Serve's own, which has the route of version 1 and no guard."""

    def do_GET(self):
        self.send_response(200 if self.path == "/models/m" else 404)
        self.send_header("x-model-version", "1")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


class Aliases:
    """The registry, as far as a change asks it."""

    def set_champion(self, name, version):
        """Take it."""


@pytest.fixture
def dashboard():
    with fake_dashboard() as running:
        yield running


@pytest.fixture
def configured(tmp_path, monkeypatch, dashboard):
    """Return the configuration with these settings of ``serve``; nothing of this machine says where a cluster is."""
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))

    def make(**serve):
        data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(tmp_path)}}
        data["cluster"] = {"dashboard": dashboard.url}
        return load_data({**data, "serve": {"ready_timeout_s": 30, **serve}}).spec

    return make


@pytest.fixture
def state(configured):
    with State.open(state_url(configured())) as opened:
        yield opened


@pytest.fixture
def serve(dashboard):
    """Return the Serve of that dashboard; what asks it directly probes no route."""
    dashboard.serve.dashboard_url = "http://dashboard:8265"
    return dashboard.serve


@pytest.fixture
def called(state, serve, configured, tmp_path):
    """Return the call for a version with these settings."""
    own = BundleRef(f"{tmp_path}/bundles/{'d' * 64}", "d" * 64)

    def make(version, *, bundle=None, **settings):
        ref = ModelVersionRef("m", version, "run", bundle or own)
        return _Call(configured(**settings), ref, "a test", state, serve, Aliases())

    return make


@pytest.fixture
def bring(called):
    """Return how a version is brought up, with these settings."""

    def do(version, action="deploy", *, abort=False, **settings):
        return _bring(called(version, **settings), action=action, breaking=True, abort=abort)

    return do


@pytest.fixture
def rollout(state, serve, bring):
    """Return the id of the rollout of version 2 beside the champion 1."""
    bring(1)
    bring(2, "deploy.beside")
    return share(state, serve, 2, ROLLOUT).rollout_id


def newest(state):
    with state.reading() as connection:
        return rollouts(connection, "m")[0]


def line_up(state):
    return {item.version: "champion" if item.role == "champion" else item.weight for item in state.deployments("m")}


def test_the_verbs_replace_as_configured(state, serve, bring, called):
    """What would stand beside the champion is refused before its bundle is fetched, which may take minutes."""
    serve.cpus = 1.0
    alone = {"update": "replace", "cpus_per_replica": 1.0}
    assert bring(1, **alone).away_s is None
    fetched = []
    remote = replace(
        called(2, bundle=BundleRef("nosuch://bucket/b", "d" * 64), **alone),
        fetch=lambda _spec, bundle, _settings: fetched.append(bundle),
    )
    with pytest.raises(RefusedError, match="version 2 of m cannot run beside version 1"):
        _bring(remote, action="deploy.beside", breaking=True)
    with pytest.raises(RefusedError, match="version 2 of m cannot run beside version 1"):
        _share(remote, TrafficRequest(weight=0.1), abort=False)
    assert fetched == []
    record = _bring(remote, action="deploy", breaking=True)
    assert (record.previous_version, record.away_s is not None, line_up(state)) == (1, True, {2: "champion"})
    assert fetched == [remote.ref.bundle]


@pytest.mark.parametrize("verb", ["deploy", "deploy.beside", "promote", "canary"])
def test_each_verb_that_brings_a_version_up_asks_what_it_comes_up_on(state, serve, bring, called, verb):
    """Serve that answers without the certificate, and disks that other machines lack, before anything changes."""
    bring(1)
    before, sent = line_up(state), len(serve.sent)

    def do(**settings):
        if verb == "canary":
            return _share(called(2, **settings), TrafficRequest(weight=0.1), abort=False)
        return bring(2, verb, **settings)

    with pytest.raises(UsageError, match="nothing shows from here that Serve answers"):
        do(tls_cert="/c", tls_key="/k")
    serve.grows = True
    with pytest.raises(UsageError, match="autoscaler may add machines"):
        do()
    assert (line_up(state), len(serve.sent)) == (before, sent)


def test_a_deploy_keeps_the_slices_that_are_judged(state, called, tmp_path):
    """Configured without any: status shows those of the bundle, and the deploy says how to have others."""
    sliced = bundle_of(tmp_path / "sliced", references(days=10, slices=[Slice("carrier", "AA")]))
    record = _bring(called(1, bundle=sliced), action="deploy", breaking=True)
    assert any("register its run again" in warning for warning in record.warnings)
    assert champion_of(state.deployments("m")).monitor["slices"] == {"carrier": ["AA"]}


def test_a_share_is_taken_away_whatever_serve_lacks(state, serve, bring, called):
    """Whoever takes it away is in a hurry."""
    bring(1)
    bring(2, "deploy.beside")
    share(state, serve, 2, TrafficRequest(weight=0.1))
    serve.grows = True
    _share(called(2, tls_cert="/c", tls_key="/k"), TrafficRequest(weight=0.0), abort=False)
    assert line_up(state) == {1: "champion", 2: 0}


def test_a_deploy_ends_no_rollout_unless_told_to(state, bring, rollout):
    """Another version is refused, naming it, before it comes up; settings of the champion are not in its way."""
    for version in (2, 3):
        with pytest.raises(RefusedError, match=f"being rolled out: {rollout}") as caught:
            bring(version)
        assert "--abort" in caught.value.hint
    bring(1, max_rows=9)
    assert (newest(state).status, line_up(state)) == ("running", {1: "champion", 2: 0.1})
    bring(3, abort=True)
    assert (newest(state).status, line_up(state)) == ("stopped", {1: 0, 2: 0, 3: "champion"})
    came_up, began = state.events("m")[:2]
    assert (came_up.action, began.action) == ("deploy", "deploy.start")
    assert began.why.startswith(f"a test: first it comes up; for version 3: version 2 answered 10%, rollout {rollout}")


def test_a_deploy_that_is_refused_ends_no_rollout(state, serve, bring, rollout, called):
    """Serve goes away before the change is written."""
    looks = itertools.count()

    class Away(FakeServe):
        def get(self):
            if next(looks):
                raise ClusterError("the dashboard does not answer")
            return super().get()

    call = replace(called(3), api=Away(dashboard_url=serve.dashboard_url, live=serve.live))
    with pytest.raises(ClusterError):
        _bring(call, action="deploy", breaking=True, abort=True)
    assert (newest(state).status, line_up(state)) == ("running", {1: "champion", 2: 0.1})


def test_a_version_begins_its_rollout_anew(state, called, rollout, tmp_path):
    """It is up: the change that ends its rollout takes it back, and it is requested by the same change."""
    bundle = write_bundle(tmp_path, tiny_contents())
    put(state, "m", [replace(item, bundle=bundle) for item in state.deployments("m")])
    two = called(2, bundle=bundle)
    record_version(state, two.ref, why="", now=state.events()[0].ts)
    assert _share(two, ROLLOUT, abort=True).rollout_id != rollout
    with state.reading() as connection:
        assert [one.status for one in rollouts(connection, "m")] == ["running", "stopped"]
    assert line_up(state) == {1: "champion", 2: 0.1}


def test_a_rollout_is_replaced_by_another_one(state, bring, rollout, called, tmp_path):
    """The first has ended when the second begins; its version is taken back, and comes back only by name."""
    bundle = write_bundle(tmp_path, tiny_contents())
    put(state, "m", [replace(item, bundle=bundle) for item in state.deployments("m")])
    record_version(state, called(2, bundle=bundle).ref, why="", now=state.events()[0].ts)
    three = called(3, bundle=bundle)
    _bring(three, action="deploy.beside", breaking=True)
    record = _share(three, ROLLOUT, abort=True)
    with state.reading() as connection:
        assert {one.id: one.status for one in rollouts(connection, "m")} == {
            rollout: "stopped",
            record.rollout_id: "running",
        }
    assert line_up(state) == {1: "champion", 2: 0, 3: 0.1}
    assert withdrawn(state, "m") == {2}


def test_a_rollout_that_begins_while_a_deploy_looks_at_serve_goes_on(state, serve, bring, called):
    """What the deploy decides on is read in its own transaction, so that it finds the rollout, and is refused."""
    bring(1)
    bring(2, "deploy.beside")
    rollout, looks = [], itertools.count()

    class Looked(FakeServe):
        def get(self):
            if next(looks) == 1:  # of the change; the one before it is where Serve listens
                rollout.append(share(state, serve, 2, ROLLOUT).rollout_id)
            return super().get()

    call = replace(called(3), api=Looked(dashboard_url=serve.dashboard_url, live=serve.live))
    with pytest.raises(RefusedError, match="version 2 of m is being rolled out"):
        _bring(call, action="deploy", breaking=True)
    assert ([newest(state).id], newest(state).status) == (rollout, "running")
    assert line_up(state) == {1: "champion", 2: 0.1}


def test_a_version_that_has_to_come_up_begins_its_rollout_then(state, called, tmp_path):
    """With its share, by one event; that nobody moves it is said."""
    one, two = (called(version, bundle=write_bundle(tmp_path, tiny_contents())) for version in (1, 2))
    _bring(one, action="deploy", breaking=True)
    record = _share(two, ROLLOUT, abort=False)
    assert (record.rollout_id, record.weight, record.previous_version) == (newest(state).id, 0.1, 1)
    assert [event.action for event in state.events("m")[:2]] == ["rollout.start", "deploy.beside"]
    assert NO_CONTROLLER in record.warnings[0]


def test_a_rollout_begins_with_what_it_can_show(bring, called, configured, tmp_path):
    """The steps that were asked for, by the traffic of the last hour: there was none. A fixed share shows nothing."""
    bundle = write_bundle(tmp_path, tiny_contents())
    _bring(called(1, bundle=bundle), action="deploy", breaking=True)
    said = ("no request in the last hour: without traffic there is no verdict, and the step is held",)
    assert rollout_outlook(configured(), canary=10, steps=[10, 50]) == said
    assert rollout_outlook(configured(), canary=10) == ()
    record = _share(called(2, bundle=bundle), ROLLOUT, abort=False)
    assert record.outlook == said
    assert json.loads(json.dumps(record.to_dict()))["outlook"] == list(said)
    assert _share(called(2, bundle=bundle), TrafficRequest(shadow=0.5), abort=False).outlook == ()


def test_a_rollout_of_the_first_version_ends_at_once(state, called, configured):
    """There is no champion to compare with; asked for again, as by a delivery that was cut off, it changes nothing."""
    assert rollout_outlook(configured(), steps=(10, 100)) == (ALONE,)
    record = _share(called(1), ROLLOUT, abort=False)
    assert (record.role, record.warnings[0], line_up(state)) == ("champion", ALONE, {1: "champion"})
    again = _share(called(1), ROLLOUT, abort=False)
    assert (again.role, again.changed, ALONE in again.warnings) == ("champion", False, False)
    with pytest.raises(RefusedError, match="version 1 of m is champion already"):
        _share(called(1), TrafficRequest(weight=0.1), abort=False)


def test_a_first_version_takes_nobody_s_place(state, serve, called, monkeypatch):
    """Another one that became live while it was looked at stays, since the rollout would have been beside it."""
    monkeypatch.setattr("raymlops.lifecycle.deploy.stage", lambda *_, **__: (deploy(state, serve, version=7), ())[1])
    with pytest.raises(RefusedError, match="version 7 of m became live just now"):
        _share(called(1), ROLLOUT, abort=False)
    assert line_up(state) == {7: "champion"}


def test_the_champion_gets_no_share_beside_a_canary(called, rollout):
    """It does not have all of the traffic, and is not told so."""
    with pytest.raises(RefusedError, match="version 1 of m is champion already: it answers all that no canary does"):
        _share(called(1), TrafficRequest(weight=0.2), abort=False)


def test_promoting_what_is_rolled_out_ends_its_rollout(state, bring, rollout):
    """As promoted, by the same change, saying by what."""
    bring(2, "promote")
    assert (newest(state).status, line_up(state)) == ("promoted", {1: 0, 2: "champion"})
    assert newest(state).reason == "version 2 was made champion by promote"
    assert state.events("m")[0].action == "promote"


def test_a_wait_finds_the_rollout_that_runs(configured, bring, rollout):
    """Of the version that is named, if one is."""
    assert running_rollout(configured()) == running_rollout(configured(), "2") == rollout
    with pytest.raises(UsageError, match="none of version 3 runs for m"):
        running_rollout(configured(), "3")
    bring(2, "promote")
    with pytest.raises(UsageError, match="none runs for m"):
        running_rollout(configured())


def test_what_a_rollback_would_do_is_told_before(configured, state, bring, rollout):
    """Whose share it takes away, also on its way; where nobody has one, between which versions the route moves."""
    assert rollback_target(configured()) == "takes the share of the traffic away from version 2 of m"
    bring(2, "promote")
    assert rollback_target(configured()) == "gives the route of m back from version 2 to version 1"
    for asked, told in ((TrafficRequest(shadow=0.5), "gives the route"), (TrafficRequest(weight=0.1), "takes the sh")):
        request = Request(asked.action, "a test", "me", state.now(), 30.0)
        begun = partial(transitions.bring, new=version_of(3), goal=asked.goal(2), request=request, up=False)
        state.change("m", begun)
        assert rollback_target(configured()).startswith(told)


def test_an_endpoint_is_opened_only_by_saying_so(state, bring):
    """Version 2 does not say: it asks for keys as 1 does. Version 3 says open: so does the record, and the audit."""
    bring(1, auth="keys")
    bring(2)
    bring(4, "deploy.beside", auth="open")
    assert [item.serve["auth"] for item in state.deployments("m")] == ["keys"] * 3
    assert OPENED in bring(3, "promote", auth="open").warnings
    assert {item.serve["auth"] for item in state.deployments("m")} == {"open"}
    assert state.events()[0].why == f"a test: {OPENED}"


def test_an_endpoint_is_opened_by_the_address_that_serve_listens_on(serve, bring):
    """Its callers need a key where others reach it, though no setting says so; to open it must be said, and is told."""
    serve.host = "0.0.0.0"
    bring(1)
    assert OPENED in bring(1, auth="open").warnings
    assert "answers without an API key" in "".join(bring(1).warnings)


def test_a_first_deploy_asks_for_a_controller(bring):
    """It completes the deploy if its verb is killed, and keeps the log to its days; that none could start is said."""
    (warning,) = bring(1).warnings
    assert NO_CONTROLLER in warning


def test_a_first_deploy_on_nodes_without_the_guard_says_so(serve, bring):
    """As after a plain `ray start`: Serve starts with this version, so that its proxy is asked afterwards."""
    plain = ThreadingHTTPServer(("127.0.0.1", 0), Unguarded)
    with serving(plain):
        serve.dashboard_url, serve.started_up, serve.port = "http://127.0.0.1:8265", False, plain.server_port
        serve.proxies = {"n1": {"node_ip": "127.0.0.1", "actor_id": "p"}}
        assert "runs without the guard" in "".join(bring(1).warnings)


def test_a_rollback_asks_for_a_controller(state, configured, rollout):
    """That none could be started keeps it from nothing."""
    record = rollback(configured())
    assert (record.version, newest(state).status, line_up(state)) == (2, "stopped", {1: "champion", 2: 0})
    (warning,) = record.warnings
    assert NO_CONTROLLER in warning


def test_a_restore_asks_for_a_controller_for_the_rollout_that_resumes(state, serve, configured, rollout):
    """After a restart of the cluster, on which nothing runs."""
    serve.live, said = {}, []
    serve.cluster = "another"
    restore(configured(), on_warning=said.append)
    (options,) = serve.live["m--v1"]["deployments"]
    assert [one["version"] for one in options["user_config"]["traffic"]["canaries"]] == [2]
    assert newest(state).status == "running"
    (warning,) = said
    assert NO_CONTROLLER in warning


def test_a_restore_waits_for_what_is_live_by_then(state, serve, configured, bring):
    """Version 2 does not come up, and a colleague rolls back to version 1 meanwhile."""
    for version in (1, 2):
        bring(version)
    serve.live, serve.slow, look = {}, {"m--v2"}, serve.get

    def get():
        found = look()
        if "m--v1" in serve.live and champion_of(state.deployments("m")).version == 2:
            roles = {1: "champion", 2: "warm"}
            put(state, "m", [replace(item, role=roles[item.version]) for item in state.deployments("m")])
        return found

    serve.get = get
    assert [(item.version, item.role) for item in restore(configured(ready_timeout_s=3), on_warning=str)] == [
        (1, "champion"),
        (2, "warm"),
    ]


def test_a_restore_leaves_models_of_another_state_alone(configured, serve, state, tmp_path):
    """With a state that holds nothing, nothing changes, and that is said; one of the same name keeps no other."""
    said = []
    with opened(tmp_path, "theirs") as theirs:
        deploy(theirs, serve, "m")
        live = dict(serve.live)
        restore(configured(), on_warning=said.append)
        assert serve.live == live
        assert "left alone: m--v1, raymlops" in said[-1]
        for name in ("m", "lab"):
            put(state, name, [replace(version_of(1, name), role="champion")])
        with pytest.raises(TakenError, match="the model m on this Serve belongs to"):
            restore(configured(), on_warning=said.append)
        assert marks(serve)["m--v1"] == theirs.owner().id
    assert marks(serve)["lab--v1"] == state.owner().id


def test_a_model_that_is_removed_is_gone_from_serve(state, serve, configured, bring):
    """With all of its versions."""
    for version in (1, 2):
        bring(version)
    assert remove(configured()) == [1, 2]
    assert (state.deployments(), set(serve.live)) == ([], set())


@pytest.fixture
def three(state, serve):
    """Have version 1 champion, and 2 and 3 beside it."""
    deploy(state, serve, "m")
    for version in (2, 3):
        beside(state, serve, version)


def test_a_warm_version_goes_and_the_others_stay(state, serve, configured, three):
    """On Serve, in the desired state and on the record."""
    remove_version(configured(), 2)
    assert list(line_up(state)) == [1, 3]
    assert set(serve.live) == {"m--v1", "m--v3", "raymlops"}
    event = state.events("m")[0]
    assert (event.action, event.why) == ("remove.version", "version 2 requested")
    assert [len(side) for side in (event.before, event.after)] == [3, 2]


@pytest.mark.parametrize("traffic", [{"weight": 0.2}, {"shadow": 0.5}])
def test_a_version_with_traffic_loses_it_before_it_goes(state, serve, configured, three, traffic):
    """The champion sends it nothing any more by the time that it goes."""
    share(state, serve, 2, TrafficRequest(**traffic))
    remove_version(configured(), 2)
    assert set(serve.live) == {"m--v1", "m--v3", "raymlops"}
    told, gone = ([item["name"] for item in sent["applications"]] for sent in serve.sent[-2:])
    assert "m--v2" in told
    assert "m--v2" not in gone
    assert state.events("m")[0].action == "remove.version"


def test_the_champion_is_not_removed_by_its_number(state, configured, three):
    with pytest.raises(RefusedError, match="version 1 of m is the champion") as caught:
        remove_version(configured(), 1)
    assert "--remove without --version" in caught.value.hint
    assert len(state.deployments("m")) == 3


def test_a_version_that_is_rolled_out_is_not_removed(state, serve, configured, three):
    """Its rollout is ended first, by name."""
    rollout = share(state, serve, 2, ROLLOUT).rollout_id
    with pytest.raises(RefusedError, match=f"version 2 of m is being rolled out: {rollout}") as caught:
        remove_version(configured(), 2)
    assert "raymlops rollback" in caught.value.hint


def test_a_version_that_is_not_up_is_not_found(configured, three):
    with pytest.raises(NotFoundError, match=r"version 9 of m is not up; versions that are: 1 \(champion\), 2 \(warm\)"):
        remove_version(configured(), 9)


def test_a_version_is_removed_by_its_number():
    """An alias may name another one a moment later."""
    assert number_of("12") == 12
    with pytest.raises(UsageError, match="not '@challenger'"):
        number_of("@challenger")


def test_a_deploy_warns_of_windows_that_get_no_serving_baseline(called):
    """A week's takes 155 days of the log, which keeps 90."""
    call = called(1)
    weeks = call.spec.model_copy(update={"monitor": call.spec.monitor.model_copy(update={"window_h": 168})})
    record = _bring(replace(call, spec=weeks), action="deploy", breaking=True)
    assert any("takes 155 days of the log" in warning for warning in record.warnings)


def test_who_is_told_of_incidents_is_checked_before_anything_is_changed(state, called, tmp_path, monkeypatch):
    """A URL that apprise does not know is refused; one that is not here may be where the controller runs."""
    monkeypatch.chdir(tmp_path)
    call = called(1)
    notify = {"notify": SecretRef(file="who")}
    told = replace(call, spec=call.spec.model_copy(update={"monitor": call.spec.monitor.model_copy(update=notify)}))
    (tmp_path / "who").write_text("slak://s3cret")
    with pytest.raises(ConfigError, match="URL 1: unknown to apprise") as raised:
        _bring(told, action="deploy", breaking=True)
    assert "s3cret" not in str(raised.value)
    assert state.deployments("m") == []
    (tmp_path / "who").unlink()
    record = _bring(told, action="deploy", breaking=True)
    assert "the file who cannot be read" in " ".join(record.warnings)
    (item,) = state.deployments("m")
    assert item.monitor["notify"] == {"file": f"{tmp_path}/who"}
    assert "s3cret" not in str([event.to_dict() for event in state.events()])

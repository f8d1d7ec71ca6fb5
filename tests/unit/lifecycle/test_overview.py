"""What is told of what is live, from a state database written by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from canaries import version_of
from fake_dashboard import fake_dashboard
from fake_serve import FakeServe
from stored import put

from raymlops.config.serve import RolloutSection, ServeSection
from raymlops.errors import NotFoundError
from raymlops.lifecycle.live.reconciler import Reconciler
from raymlops.lifecycle.live.rollouts import begin
from raymlops.lifecycle.live.transitions import ROUTE, Request, bring
from raymlops.lifecycle.overview import UNMOVED, champion_line, outage_line, overview, wanted
from raymlops.lifecycle.rollout.follow import follow_rollout
from raymlops.records import BundleRef
from raymlops.state.rollouts import start_rollout, update_rollout
from raymlops.state.store import Deployment, State
from raymlops.state.watch.incidents import Filed, Incident, record_window, tell
from raymlops.state.watch.messages import Message, put_message
from raymlops.state.watch.windows import JudgedWindow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROLLOUT = begin(rollout_id="r1", name="m", version=3, champion=2, settings=RolloutSection(steps=(10.0, 50.0)), now=NOW)


def version(number, role="warm", **shares):
    return Deployment("m", number, BundleRef("file:///b", "d" * 64), "run", role, **shares)


@pytest.fixture
def root(tmp_path):
    """Return a folder whose state holds a champion, a canary, a shadow, and two that stand warm."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [version(1, "champion")], why="first", actor="ann@here")
        after = [
            version(1),
            version(2, "champion"),
            version(3, weight=0.1),
            version(4, shadow=0.5),
            version(5),
        ]
        put(state, "m", after, action="promote", why="better", actor="bob@here")
        put(state, "m", after[:-1], action="deploy.beside", actor="eve@here")
        with state.writing() as connection:
            start_rollout(connection, ROLLOUT)
    return tmp_path


@pytest.fixture
def config(root):
    return {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(root)}}


def test_who_is_live_since_when_and_by_whom(root, config):
    """The champion is the one that bob promoted, whoever changed something else since."""
    (model,) = overview(root=str(root))
    assert (model.name, model.champion, model.by, model.why) == ("m", 2, "bob@here", "better")
    assert (model.canaries, model.shadows) == ({3: 0.1}, {4: 0.5})
    assert datetime.fromisoformat(model.warm[1]) > datetime.fromisoformat(model.since)
    assert model.rollout["id"] == "r1"
    assert not model.keys
    assert overview(config) == [model]


def test_whether_callers_need_a_key_is_told(root):
    """By the champion's settings, whatever those beside it say."""
    items = [version(1, serve={"auth": "open"}), version(2, "champion", serve={"auth": "keys"})]
    items = [replace(item, name="closed") for item in items]
    with State.open(f"sqlite:///{root}/state.db") as state:
        put(state, "closed", items)
    assert {model.name: model.keys for model in overview(root=str(root))} == {"closed": True, "m": False}


def test_what_comes_up_and_why_it_waits_is_told(root, config):
    """Version 6 is on its way to the route, and its replica does not start yet; without a controller nobody goes on."""
    serve = FakeServe(dashboard_url="http://dashboard:8265", slow={"m--v6"})
    request = Request("deploy", "a test", "ann@here", NOW, 60.0)
    with State.open(f"sqlite:///{root}/state.db") as state:
        state.change("m", lambda model: bring(model, version_of(6), goal=ROUTE, request=request, up=False))
        reconciler = Reconciler(state, serve, serve=ServeSection())
        while reconciler.step(NOW).acted:
            pass
    (model,) = overview(config)
    assert model.coming == {
        6: {"goal": ROUTE, "since": NOW.isoformat(), "by": "ann@here", "until": "2026-01-01T00:01:00+00:00"}
    }
    assert model.warm.keys() == {1}
    assert f"coming    version 6 for the route, since 2026-01-01 00:00:00 UTC by ann@here\n            {UNMOVED}" in (
        model.text()
    )
    assert "waits     version 6 of m comes up: 0 of 1 replicas run, m--v6 is DEPLOYING\n" in model.text()


def test_it_is_told_that_nobody_answers_while_a_version_is_replaced(tmp_path):
    """Before it is, by the settings of what is deployed, or of the champion for a rollback; and meanwhile."""
    config = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": {"path": str(tmp_path)}}
    alone = {**config, "serve": {"update": "replace"}}
    told = "version 2 ends first, and nobody answers until the next one is up (no start has been measured yet)"
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        put(state, "m", [version(2, "champion", serve={"update": "replace"})])
        assert [outage_line(config, "3"), outage_line(alone, "2")] == [None, None]
        assert [outage_line(alone, "3"), outage_line(config, None)] == [told, told]
        request = Request("deploy", "a test", "ann@here", NOW, 60.0, replaces=True)
        state.change("m", lambda model: bring(model, version_of(6), goal=ROUTE, request=request, up=False))
    (model,) = overview(config)
    assert "coming    version 6 in place of version 2, which has ended, since 2026-01-01 00:00:00 UTC" in model.text()
    assert champion_line(config).startswith("until version 6 is up no version is live of m; raymlops status")


def test_asking_makes_no_database(tmp_path):
    """Where there is none, nothing should be live."""
    assert overview(root=str(tmp_path)) == []
    assert wanted(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_what_should_be_live_are_only_read(root, tmp_path):
    """A file that is no state of this version is left as it is."""
    assert wanted(root) == ["m"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "state.db").write_bytes(b"something else")
    assert wanted(other) == []
    assert (other / "state.db").read_bytes() == b"something else"


def test_a_wait_tells_each_decision_once(root, config):
    """Two steps begin; how it ended is returned, for the caller to tell, once Serve runs what follows from it."""
    second = replace(ROLLOUT, step=1, reason="step 1 passed")
    course = [second, second, replace(second, status="promoted", reason="all passed", ended_at=NOW)]
    lines = []

    def sleep(_seconds):
        with State.open(f"sqlite:///{root}/state.db") as state, state.writing() as connection:
            update_rollout(connection, course.pop(0))

    with fake_dashboard() as dashboard:
        config["cluster"] = {"dashboard": dashboard.url}
        ended = follow_rollout(config, "r1", on_line=lines.append, sleep=sleep, clock=lambda: 0.0)
        assert dashboard.serve.live["m--v2"]["route_prefix"] == "/models/m"
    assert ended.status == "promoted"
    assert [line.partition("version 3: ")[2] for line in lines] == [
        "step 1 of 2 at 10 percent begins",
        "step 1 passed",
    ]


def test_no_such_rollout(config):
    """By its id."""
    with pytest.raises(NotFoundError, match="no rollout r9"):
        follow_rollout(config, "r9", on_line=print)


def test_messages_that_a_messenger_lacks_are_told(root):
    """How many, since when and why, once they were tried; no condition of the model itself."""
    start = NOW
    window = JudgedWindow("m", "inputs", "drift", 0, start, start, 2, "alarm", "why", 1_000, start)
    incident = Incident("i", "m", "inputs", "drift", 0, start, start, 1, "x")
    message = Message("i-opened", "i", "opened", "title", "body", start)
    with State.open(f"sqlite:///{root}/state.db") as state:
        record_window(state, window, lambda _: [Filed(incident, "drift.opened", "moved")])
        tell(state, lambda incidents, _: [(message, incidents)])
        assert overview(root=str(root))[0].messages is None
        put_message(state, replace(message, attempts=1, retry_at=NOW, last_error="URL 1 (Slack): answered 404"))
        (model,) = overview(root=str(root))
        assert (model.messages["waiting"], model.condition) == (1, None)
        assert "1 not delivered: URL 1 (Slack): answered 404" in model.text()
        put_message(state, replace(message, attempts=2, sent_at=NOW))
    assert overview(root=str(root))[0].messages is None


def test_how_a_model_is_watched_is_told(root, config):
    """By the champion's settings; where no traffic is kept, nothing is judged whatever they are."""
    (model,) = overview(config)
    assert "\n  watched   windows of 24 h; no notify" in model.text()
    weeks = version(2, "champion", monitor={"window_h": 168})
    off = version(2, "champion", serve={"log": {"enabled": False}}, monitor={"window_h": 6})
    with State.open(f"sqlite:///{root}/state.db") as state:
        put(state, "off", [replace(off, name="off")])
        put(state, "weeks", [replace(weeks, name="weeks")])
    (found,) = (one for one in overview(config) if one.name == "weeks")
    assert "a serving baseline of windows of 168 h takes 155 days of the log" in found.text()
    assert [one.watched for one in overview(config) if one.name == "off"] == ["off: serve.log.enabled is false"]

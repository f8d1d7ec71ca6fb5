"""The controller step by step: a real state database, Serve's API in memory, reports by hand, time as an argument."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from canaries import beside, share, take_back, version_of
from canary_worlds import judged
from fake_serve import FakeServe
from states import converge, copied, deploy, marks, opened, unmark
from stored import put

from raymlops.config.serve import RolloutSection, ServeSection
from raymlops.errors import ClusterError, StorageError, TrackingError
from raymlops.lifecycle.live.change import within
from raymlops.lifecycle.rollout.canary import TrafficRequest
from raymlops.lifecycle.rollout.controller import ALIAS_EVERY_S, IDLE_S, ROUND_S, Controller
from raymlops.lifecycle.rollout.evidence import Reports, epoch_of
from raymlops.lifecycle.rollout.loss_reader import LogLosses, Window
from raymlops.records import ModelVersionRef
from raymlops.state.audit import changes_of
from raymlops.state.keys import create_key, revoke_key
from raymlops.state.rollouts import rollouts, running
from raymlops.state.store import State
from raymlops.state.versions import record_version

START = datetime(2026, 1, 1, tzinfo=UTC)
SERVE = ServeSection(ready_timeout_s=30)
SETTINGS = RolloutSection(steps=(10.0, 50.0, 100.0), bake_s=60.0, max_wait_s=600.0)
GOOD = {"requests": 4000, "errors": 0, "slow": 0, "late": 0, "seconds_sum": 1.0}
BAD = {**GOOD, "errors": 2000}


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265")  # where no proxy is asked whether it answers


@pytest.fixture
def rollout(state, serve):
    """Return the rollout of version 2 beside the champion 1, at its first step."""
    deploy(state, serve)
    beside(state, serve, 2)
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=SETTINGS), now=START)
    return now_running(state)


def now_running(state):
    with state.reading() as connection:
        return next(iter(running(connection, "m")), None)


def newest(state):
    with state.reading() as connection:
        return rollouts(connection, "m")[0]


class Stepper(Controller):
    """A controller whose clock goes with the time that each step is given."""

    seconds = 0.0

    def step(self, now):
        self.seconds = (now - START).total_seconds()
        return super().step(now)


def controller(state, serve, reports=None, **options):
    made = Stepper(state, serve, serve=SERVE, reports=reports or Reports(), clock=lambda: made.seconds, **options)
    return made


def told(reports, rollout, *, canary, champion=GOOD, replica="a", sequence=1):
    reports.take("m", replica, sequence, {epoch_of(rollout): {"2": canary, "champion": champion}})


def line_up(state):
    return {item.version: (item.role, item.weight) for item in state.deployments("m")}


def canaries(serve, version):
    """Return the shares that Serve was told last by the settings of a version's replicas."""
    (options,) = serve.live[f"m--v{version}"]["deployments"]
    return [(share["version"], share["weight"]) for share in options["user_config"]["traffic"]["canaries"]]


def at(seconds):
    return START + timedelta(seconds=seconds)


def test_a_good_version_goes_through_its_steps_and_takes_the_route(state, serve, rollout):
    """10 percent, then 50, then champion; each with its audit event, and Serve told each time."""
    reports = Reports()
    steering = controller(state, serve, reports)
    assert canaries(serve, 1) == [(2, 0.1)]
    told(reports, rollout, canary=GOOD)
    assert steering.step(at(30)) == ROUND_S
    assert line_up(state) == {1: ("champion", 0), 2: ("warm", 0.1)}
    steering.step(at(61))
    assert line_up(state) == {1: ("champion", 0), 2: ("warm", 0.5)}
    assert canaries(serve, 1) == [(2, 0.5)]
    told(reports, now_running(state), canary=GOOD, sequence=2)
    steering.step(at(122))
    assert line_up(state) == {1: ("warm", 0), 2: ("champion", 0)}
    assert serve.live["m--v2"]["route_prefix"] == "/models/m"
    ended = newest(state)
    assert (ended.status, ended.step, ended.ended_at) == ("promoted", 1, at(122))
    assert ended.evidence["numbers"]["questions"]["errors"]
    actions = [event.action for event in state.events()][::-1]
    assert actions == ["deploy.start", "deploy", "deploy.beside", "rollout.start", "rollout.advance", "rollout.promote"]
    assert state.events()[0].actor.startswith("controller of ")
    assert "passed" in state.events()[0].why
    assert steering.step(at(130)) == IDLE_S


class Stopped(Reports):
    """Reports whose reader is stopped once it has read, while others ``act``."""

    act = None

    def of(self, name, epoch):
        found, act, self.act = super().of(name, epoch), self.act, None
        if act is not None:
            act()
        return found


def test_a_decision_on_a_step_that_another_controller_has_left_is_dropped(state, serve):
    """It was stopped before it wrote what it had decided, and two steps were taken: the share does not fall back."""
    deploy(state, serve)
    beside(state, serve, 2)
    settings = SETTINGS.model_copy(update={"steps": (10.0, 50.0, 90.0, 100.0)})
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=settings), now=START)
    reports, stopped = Reports(), Stopped()
    other = controller(state, serve, reports)

    def two_steps():
        for sequence, seconds in ((1, 61), (2, 122)):
            told(reports, now_running(state), canary=GOOD, sequence=sequence)
            other.step(at(seconds))

    told(stopped, now_running(state), canary=GOOD)
    stopped.act = two_steps
    controller(state, serve, stopped).step(at(61))
    assert (line_up(state)[2], now_running(state).step, canaries(serve, 1)) == (("warm", 0.9), 2, [(2, 0.9)])


def test_numbers_of_a_step_that_another_controller_has_left_are_dropped(state, serve, rollout):
    """It was stopped before it wrote down what it had counted: the next step goes on."""
    reports, stopped = Reports(), Stopped()
    told(reports, rollout, canary=GOOD)
    stopped.act = lambda: controller(state, serve, reports).step(at(61))
    told(stopped, rollout, canary=GOOD)
    controller(state, serve, stopped).step(at(59))
    assert (line_up(state)[2], now_running(state).step, canaries(serve, 1)) == (("warm", 0.5), 1, [(2, 0.5)])
    assert not [event for event in state.events() if event.action == "controller.error"]


def test_replicas_count_as_slow_what_the_rollout_says(state, serve):
    """It was started with another bound than the champion was deployed with, which counts again once it has ended."""
    deploy(state, serve)
    beside(state, serve, 2)
    settings = SETTINGS.model_copy(update={"slow_s": 0.07})
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=settings), now=START)
    reports = Reports()
    steering = controller(state, serve, reports)

    def slow_s():
        (options,) = serve.live["m--v1"]["deployments"]
        return options["user_config"]["slow_s"]

    steering.step(at(1))
    assert slow_s() == 0.07
    told(reports, now_running(state), canary=BAD)
    steering.step(at(2))
    assert (newest(state).status, slow_s()) == ("aborted", 0.25)


def test_an_erring_version_loses_its_share_at_once(state, serve, rollout):
    """Half of its requests fail: no step is waited for, the champion has everything, the version stands warm."""
    reports = Reports()
    told(reports, rollout, canary=BAD)
    controller(state, serve, reports).step(at(3))
    assert line_up(state) == {1: ("champion", 0), 2: ("warm", 0)}
    assert canaries(serve, 1) == []
    assert newest(state).status == "aborted"
    assert state.events()[0].action == "rollout.abort"


def test_replicas_add_up_and_their_totals_replace_each_other(state, serve, rollout):
    """Two replicas with 30 and 40 requests; the second report of the first holds 50, an old one that comes late 10."""
    reports = Reports()
    for replica, sequence, requests in (("a", 1, 30), ("b", 1, 40), ("a", 3, 50), ("a", 2, 10)):
        told(reports, rollout, canary={"requests": requests}, replica=replica, sequence=sequence)
    controller(state, serve, reports).step(at(3))
    assert newest(state).evidence["steps"][0]["canary"]["requests"] == 90


def test_a_controller_that_starts_anew_knows_what_the_one_before_knew(state, serve, rollout):
    """A replica that is gone by then reports no more, yet its requests count; the step goes on from when it began."""
    reports = Reports()
    told(reports, rollout, canary={"requests": 1000}, champion={"requests": 9000})
    controller(state, serve, reports).step(at(30))
    reports = Reports()
    told(reports, rollout, canary={"requests": 500}, champion={"requests": 4500}, replica="b")
    controller(state, serve, reports).step(at(61))
    first = newest(state).evidence["steps"][0]
    assert (first["canary"]["requests"], first["champion"]["requests"]) == (1500, 13500)
    assert line_up(state)[2] == ("warm", 0.5)


def test_a_decision_that_did_not_reach_serve_reaches_it_later(state, serve, rollout):
    """Killed after the state was written, before Serve was told: the next controller tells it, and decides nothing."""

    class KilledError(Exception):
        """What ends a process between two lines, as far as a test can have it."""

    class Dying(FakeServe):
        def put(self, config):
            raise KilledError

    reports = Reports()
    told(reports, rollout, canary=BAD)
    dying = Dying(dashboard_url=serve.dashboard_url, live=serve.live)
    controller(state, dying, reports).step(at(3))
    assert (line_up(state)[2], canaries(serve, 1)) == (("warm", 0), [(2, 0.1)])
    controller(state, serve).step(at(5))
    assert canaries(serve, 1) == []
    assert [event.action for event in state.events() if event.action.startswith("rollout.")][::-1] == [
        "rollout.start",
        "rollout.abort",
    ]


def test_while_serve_is_away_nothing_is_decided(state, serve, rollout):
    """The version has passed, and goes on as soon as the dashboard answers; the trouble is told once."""

    class Away(FakeServe):
        def get(self):
            raise ClusterError("the Ray dashboard does not answer")

    reports = Reports()
    told(reports, rollout, canary=GOOD)
    steering = controller(state, Away(), reports)
    for second in (61, 62, 63):
        steering.step(at(second))
    assert line_up(state)[2] == ("warm", 0.1)
    assert [event.action for event in state.events()].count("controller.error") == 2  # for Serve, and for the rollout
    controller(state, serve, reports).step(at(64))
    assert line_up(state)[2] == ("warm", 0.5)


def test_a_version_that_does_not_come_up_as_champion_is_aborted(state, serve):
    """Its replicas crash once it is to have the route: the old champion keeps it, the reason is on the record."""
    deploy(state, serve)
    beside(state, serve, 2)
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=RolloutSection(steps=(10.0,), bake_s=0.0)), now=START)
    serve.unhealthy = {"m--v2"}
    reports = Reports()
    told(reports, now_running(state), canary=GOOD)
    controller(state, serve, reports).step(at(1))
    assert line_up(state) == {1: ("champion", 0), 2: ("warm", 0)}
    assert newest(state).status == "aborted"
    assert "did not come up as champion" in newest(state).reason
    assert serve.live["m--v1"]["route_prefix"] == "/models/m"


def test_a_promotion_by_hand_ends_the_rollout(state, serve, rollout):
    """Also where the verb was killed before it said so."""
    deploy(state, serve, version=2)
    controller(state, serve).step(at(5))
    assert newest(state).status == "promoted"
    assert "was made champion" in newest(state).reason


def test_another_champion_stops_the_rollout(state, serve, rollout):
    """It was compared with version 1, which is champion no more."""
    deploy(state, serve, version=3)
    controller(state, serve).step(at(5))
    assert newest(state).status == "stopped"
    assert line_up(state)[2] == ("warm", 0)


def test_an_abort_by_hand_is_final(state, serve, rollout):
    """The share is gone with the rollout, in one event; evidence that comes later moves nothing."""
    reports = Reports()
    told(reports, rollout, canary=GOOD)
    done = take_back(state, serve)
    assert (done.version, done.weight, done.rollout_id) == (2, 0.0, rollout.id)
    controller(state, serve, reports).step(at(90))
    assert (newest(state).status, line_up(state)[2]) == ("stopped", ("warm", 0))
    assert state.events()[0].action == "rollback.canary"


def revoked_meanwhile(state, serve):
    """Leave Serve with a key that is not good any more, as a verb does that is killed before it sends."""
    key, _ = create_key(state, name="shop", models=["m"], now=START)
    converge(state, serve)
    revoke_key(state, key.id, now=START)
    return key


def keys(serve, version):
    (options,) = serve.live[f"m--v{version}"]["deployments"]
    return [key["id"] for key in options["user_config"]["access"]["keys"]]


def test_a_revocation_that_was_cut_off_reaches_serve(state, serve):
    """Within the pause of an idle controller; where Serve has what it should, nothing is sent."""
    deploy(state, serve)
    steering = controller(state, serve)
    steering.step(START)
    key = revoked_meanwhile(state, serve)
    assert keys(serve, 1) == [key.id]
    steering.step(at(IDLE_S))
    assert keys(serve, 1) == []
    sent = len(serve.sent)
    steering.step(at(2 * IDLE_S))
    assert len(serve.sent) == sent


def test_settings_are_sent_past_a_version_that_does_not_come_up(state, serve):
    """Version 2 is to have the route, and starts no replica: the key goes, and the route stays until it has one."""
    deploy(state, serve)
    steering = controller(state, serve)
    steering.step(START)
    revoked_meanwhile(state, serve)
    serve.slow = {"m--v2"}
    one, two = state.deployments("m")[0], version_of(2)
    put(state, "m", [replace(one, role="warm"), replace(two, role="champion")])
    steering.step(at(IDLE_S))
    assert keys(serve, 1) == []
    assert serve.live["m--v1"]["route_prefix"] == "/models/m"
    serve.slow = set()
    steering.step(at(2 * IDLE_S))
    assert serve.live["m--v2"]["route_prefix"] == "/models/m"


def test_a_clock_that_is_set_back_stops_no_job(state, serve):
    """Maintenance is done an hour after the last time, though the wall says that it is before it."""
    times, seconds = [], [0.0]
    steering = Controller(state, serve, serve=SERVE, reports=Reports(), maintain=times.append, clock=lambda: seconds[0])
    steering.step(at(0))
    seconds[0] = 3600.0
    steering.step(at(-3600))
    assert times == [at(0), at(-3600)]


def test_messages_are_looked_for_every_five_seconds(state, serve):
    """What fails there is recorded once, and the controller goes on."""
    times, seconds = [], [0.0]

    def tell(now):
        times.append(now)
        raise OSError("no file")

    steering = Controller(state, serve, serve=SERVE, reports=Reports(), tell=tell, clock=lambda: seconds[0])
    for second in (0, 3, 5, 10):
        seconds[0] = float(second)
        steering.step(at(second))
    assert times == [at(0), at(5), at(10)]
    assert [(event.action, event.subject) for event in state.events()] == [("controller.error", "messages")]


def test_what_was_kept_warm_for_long_enough_is_taken_down(state, serve):
    """An hour after it lost the route, with its event; a version that only stands beside stays."""
    for version in (1, 2):
        deploy(state, serve, version=version)
    beside(state, serve, 3)
    lost = [*changes_of(state, "m")][1].ts
    steering = controller(state, serve)
    steering.step(lost + timedelta(seconds=3599))
    assert set(line_up(state)) == {1, 2, 3}
    steering.step(lost + timedelta(seconds=3660))
    assert set(line_up(state)) == {2, 3}
    steering.step(lost + timedelta(seconds=3661))
    assert "m--v1" not in serve.live
    assert (state.events()[0].action, state.events()[0].subject) == ("keep_warm.end", "m")


class Mlflow:
    """The aliases of ``m`` in MLflow: ``away`` it answers nobody."""

    def __init__(self, champion=None):
        self.named, self.away, self.calls, self.withdrawn = champion, False, 0, set()

    def owned_by(self, _name, _version):
        """Nobody else."""

    def champion(self, _name):
        self.calls += 1
        if self.away:
            raise TrackingError("MLflow does not answer")
        return self.named

    def set_champion(self, _name, version):
        self.named = version

    def withdraw(self, _name, versions):
        self.withdrawn |= versions


def follows(state):
    return [(event.subject, event.why) for event in state.events() if event.action == "alias.follow"]


def test_an_alias_that_was_not_set_follows(state, serve):
    """The verb that made the version live was killed before: the controller sets it, once, and says so."""
    deploy(state, serve)
    mlflow = Mlflow()
    steering = controller(state, serve, aliases=mlflow)
    for minutes in range(3):
        steering.step(at(60 * minutes))
    assert (mlflow.named, follows(state)) == (1, [("m/1", "MLflow named none")])


def test_an_alias_that_was_moved_by_hand_is_set_right(state, serve):
    """Within half a minute, and no more often is MLflow asked."""
    deploy(state, serve)
    mlflow = Mlflow(1)
    steering = controller(state, serve, aliases=mlflow)
    steering.step(at(0))
    mlflow.named = 7
    for second in range(1, int(ALIAS_EVERY_S) + 1):
        assert mlflow.named == 7
        steering.step(at(second))
    assert (mlflow.named, mlflow.calls, follows(state)) == (1, 2, [("m/1", "MLflow named version 7")])


def test_an_alias_that_a_verb_sets_meanwhile_is_left(state, serve):
    """While MLflow is asked, version 2 goes live and gets it: it is not given back to what was live before."""

    class Asked(Mlflow):
        def champion(self, name):
            deploy(state, serve, version=2)
            self.named = 2
            return super().champion(name)

    deploy(state, serve)
    mlflow = Asked(1)
    controller(state, serve, aliases=mlflow).step(at(0))
    assert (mlflow.named, follows(state)) == (2, [])


def test_an_alias_that_is_set_late_is_set_right(state, serve):
    """MLflow hung while 2 went live, and answers the request of then once 1 has the route and its alias back."""
    mlflow, answers, set_late = Mlflow(), threading.Event(), threading.Event()

    def late(version):
        answers.wait(30)
        mlflow.named = version
        set_late.set()

    for version in (1, 2):
        deploy(state, serve, version=version)
    with pytest.raises(TrackingError):
        within(0.01, lambda: late(2))
    assert take_back(state, serve).version == 1
    steering = controller(state, serve, aliases=mlflow)
    steering.step(at(0))
    assert mlflow.named == 1
    answers.set()
    assert set_late.wait(30)
    assert mlflow.named == 2
    steering.step(at(ALIAS_EVERY_S))
    assert mlflow.named == 1


def test_an_alias_follows_when_mlflow_answers_again(state, serve):
    """That it did not is told once."""
    deploy(state, serve)
    mlflow = Mlflow()
    mlflow.away = True
    steering = controller(state, serve, aliases=mlflow)
    for minutes in range(3):
        steering.step(at(60 * minutes))
        mlflow.away = minutes == 0
    assert mlflow.named == 1
    assert [event.action for event in state.events()].count("controller.error") == 1


def test_a_version_that_a_rollout_aborted_is_no_challenger_any_more(state, serve, rollout):
    """The state remembers it, and MLflow's alias is taken from it."""
    item = state.deployments("m")[1]
    record_version(state, ModelVersionRef("m", 2, item.run_id, item.bundle), why="", now=START)
    reports, mlflow = Reports(), Mlflow()
    told(reports, rollout, canary=BAD)
    controller(state, serve, reports, aliases=mlflow).step(at(3))
    assert newest(state).status == "aborted"
    assert mlflow.withdrawn == {2}


def at_once(work, _what):
    """Read where it is asked for."""
    work()


class Readings(list):
    """Readings that were begun, each to be finished by calling it: ``start`` of a controller."""

    def __call__(self, work, what):
        self.append((what, work))

    def finish(self):
        """End the oldest one."""
        self.pop(0)[1]()


EQUAL = {1: judged(500), 2: judged(500)}
WORSE = {1: judged(500), 2: judged(0, 500)}


def found(losses, asked=None):
    """Return what reads these losses of the step now, and keeps what it was asked for."""

    def read(name, windows, *, labelled):
        if asked is not None:
            asked.append((name, windows))
        if losses:
            labelled()
        return LogLosses({window: dict(losses) if window.until is None else {} for window in windows})

    return read


def away(_name, _windows, *, labelled):
    raise StorageError("s3://logs cannot be used: timeout")


def test_labels_are_read_for_each_step(state, serve, rollout):
    """From the beginning of a step to its end; they can abort what errors would not."""
    reports, asked = Reports(), []
    told(reports, rollout, canary=GOOD)
    steering = controller(state, serve, reports, losses=found(EQUAL, asked), start=at_once)
    for second in (61, 64, 65):
        steering.step(at(second))
    assert line_up(state)[2] == ("warm", 0.5)
    began = now_running(state).step_started_at
    assert (began, asked) == (at(64), [("m", [Window(START, None)])] * 2)
    steering = controller(state, serve, reports, losses=found(WORSE, asked), start=at_once)
    steering.step(at(70))
    assert asked[-1] == ("m", [Window(START, began), Window(began, None)])
    assert newest(state).status == "aborted"
    assert "mean loss 1 of 500 against 0 of 500" in newest(state).reason


def test_labels_are_not_read_without_a_margin_for_quality(state, serve):
    """They are never asked for, and the reason of the promotion says that answers were not compared."""
    settings = SETTINGS.model_copy(update={"quality_margin": None})
    deploy(state, serve)
    beside(state, serve, 2)
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=settings), now=START)
    reports, asked = Reports(), []
    told(reports, now_running(state), canary=GOOD)
    steering = controller(state, serve, reports, losses=found(WORSE, asked), start=at_once)
    steering.step(at(61))
    assert asked == []
    assert now_running(state).step == 1
    assert newest(state).reason.endswith("; quality not judged: serve.rollout.quality_margin is null")


def test_errors_are_judged_while_the_log_is_away(state, serve, rollout):
    """A canary that fails half of its requests is aborted, and that losses are unknown is told once."""
    reports = Reports()
    steering = controller(state, serve, reports, losses=away, start=at_once)
    for second in range(10):
        steering.step(at(second))
    events = [event for event in state.events() if event.action == "controller.error"]
    why = (
        "StorageError: losses unknown since 2026-01-01T00:00:00+00:00: StorageError: s3://logs cannot be used: timeout"
    )
    assert [(event.subject, event.why) for event in events] == [("m", why)]
    told(reports, rollout, canary=BAD)
    steering.step(at(11))
    assert newest(state).status == "aborted"


def test_nothing_waits_for_a_reading_that_does_not_end(state, serve, rollout):
    """The rollout that it is for is aborted by its errors, and what was kept warm for long enough goes."""
    deploy(state, serve, "other")
    deploy(state, serve, "other", 2)
    reports, readings = Reports(), Readings()
    steering = controller(state, serve, reports, losses=found({}), start=readings)
    steering.step(at(1))
    told(reports, rollout, canary=BAD)
    steering.step(at(2))
    assert newest(state).status == "aborted"
    steering.step(next(changes_of(state, "other")).ts + timedelta(seconds=3660))
    assert [item.version for item in state.deployments("other")] == [2]
    assert [what for what, _ in readings] == ["m"]


def test_a_step_passes_on_labels_that_are_read_after_its_bake(state, serve):
    """A bake of 5 seconds, good answers, labels that come in the meantime and show that they are worse: aborted.

    What was read as the step began knew none of them. The log holds what was answered within its ``flush_s`` of 1
    second and 2 more.
    """
    deploy(state, serve)
    beside(state, serve, 2)
    share(
        state, serve, 2, TrafficRequest(weight=0.1, rollout=RolloutSection(steps=(10.0, 50.0), bake_s=5.0)), now=START
    )
    reports, losses = Reports(), {}
    told(reports, now_running(state), canary=GOOD)
    steering = controller(state, serve, reports, losses=found(losses), start=at_once)
    steering.step(at(0))
    losses |= WORSE
    for second in (5, 6, 7):
        steering.step(at(second))
        assert (newest(state).status, line_up(state)[2]) == ("running", ("warm", 0.1))
    assert "the prediction log is being read for labels" in newest(state).reason
    steering.step(at(8))
    assert newest(state).status == "aborted"


def test_a_step_passes_without_labels_once_a_reading_found_none(state, serve, rollout):
    """One that has not ended holds it."""
    reports, readings = Reports(), Readings()
    told(reports, rollout, canary=GOOD)
    steering = controller(state, serve, reports, losses=found({}), start=readings)
    steering.step(at(1))
    readings.finish()
    for second in (63, 70, 80):
        steering.step(at(second))
        assert line_up(state)[2] == ("warm", 0.1)
    readings.finish()
    steering.step(at(81))
    assert line_up(state)[2] == ("warm", 0.5)
    assert newest(state).reason.endswith("; no labels")


def test_a_log_that_is_switched_off_is_not_read(state, serve):
    """The step passes as soon as it has baked, and says so."""
    off = SERVE.model_copy(update={"log": SERVE.log.model_copy(update={"enabled": False})})
    deploy(state, serve, section=off)
    beside(state, serve, 2, section=off)
    share(state, serve, 2, TrafficRequest(weight=0.1, rollout=SETTINGS), now=START)
    reports = Reports()
    told(reports, now_running(state), canary=GOOD)
    controller(state, serve, reports, losses=away, start=at_once).step(at(60))
    assert line_up(state)[2] == ("warm", 0.5)
    assert newest(state).reason.endswith("; quality not judged: the prediction log is off; set serve.log.enabled")


def test_losses_that_a_controller_read_are_known_to_the_next_one(state, serve, rollout):
    """The log is away as it starts: evidence of worse answers stands."""
    reports = Reports()
    told(reports, rollout, canary=GOOD)
    few = {1: judged(500), 2: judged(3)}
    controller(state, serve, reports, losses=found(few), start=at_once).step(at(30))
    controller(state, serve, reports, losses=away, start=at_once).step(at(70))
    assert (newest(state).status, line_up(state)[2]) == ("running", ("warm", 0.1))
    assert "of the canary and 500 of the champion" in newest(state).reason


def test_maintenance_is_done_once_an_hour_and_its_trouble_ends_nothing(state, serve):
    """Twice in 61 minutes, and the second time it raises."""
    times = []

    def maintain(now):
        times.append(now)
        if len(times) > 1:
            raise OSError("the disk is full")

    steering = controller(state, serve, maintain=maintain)
    for minutes in (0, 30, 61):
        assert steering.step(START + timedelta(minutes=minutes)) == IDLE_S
    assert [(now - START).total_seconds() for now in times] == [0, 3660]
    assert "the disk is full" in state.events()[0].why


def test_a_step_that_another_process_takes_is_not_waited_for(state, serve, rollout):
    """It is decided and written meanwhile; Serve is told by whoever takes the next step."""
    reports = Reports()
    told(reports, rollout, canary=BAD)
    steering = controller(state, serve, reports)
    with state.exclusive("reconciling", wait_s=1):
        steering.step(at(3))
        assert (newest(state).status, canaries(serve, 1)) == ("aborted", [(2, 0.1)])
    steering.step(at(4))
    assert canaries(serve, 1) == []
    assert [event.action for event in state.events()].count("controller.error") == 0


def test_a_controller_on_an_empty_database_removes_nothing_and_says_what_it_saw(state, serve, tmp_path):
    """The database of what is live was lost, or is another one: once, also after later steps."""
    deploy(state, serve)
    live, sent = dict(serve.live), len(serve.sent)
    with State.open(f"sqlite:///{tmp_path}/empty.db") as empty:
        steering = controller(empty, serve)
        for minutes in (0, 5, 60):
            steering.step(START + timedelta(minutes=minutes))
        (event,) = empty.events()
    assert (serve.live, len(serve.sent), steering._errors) == (live, sent, {})
    assert "2 applications of another state on this Serve, left alone: m--v1, raymlops" in event.why


def test_a_controller_on_an_older_backup_says_so_and_changes_nothing(serve, tmp_path):
    """Its rollout too stands still, which no waiting would end."""
    with opened(tmp_path, "state") as state:
        deploy(state, serve)
    copied(tmp_path, "state", "backup")
    with opened(tmp_path, "state") as state:
        deploy(state, serve, version=2)
    live = dict(serve.live)
    with opened(tmp_path, "backup") as old:
        steering = controller(old, serve)
        steering.step(at(0))
        steering.step(at(60))
        assert "OutdatedStateError" in steering._errors["Serve"]
        assert [event.action for event in old.events()].count("controller.error") == 1
    assert serve.live == live


def test_what_carries_no_mark_gets_one_from_the_controller(state, serve):
    """After an upgrade, without a restart of what runs."""
    deploy(state, serve)
    unmark(serve)
    started = list(serve.started)
    controller(state, serve).step(at(0))
    assert set(marks(serve).values()) == {state.owner().id}
    assert serve.started == started

"""A retraining from its decision to its end, step by step, by a real controller on a real state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from loop_world import BAD, FEW, MINUTE, REFUSAL, SERVE, WORSE, World
from stored import put

from raymlops.errors import BundleError, NotFoundError, TrackingError, UsageError
from raymlops.state.loop import retrainings_of
from raymlops.state.store import State
from raymlops.state.watch.messages import messages_of


def told(world):
    with State.open(world.url) as state:
        messages = sorted(message.what for message in messages_of(state, "m"))
        events = [event for event in state.events("m") if event.action.startswith("retrain.")]
        moves = [event.action for event in events if (event.before or {}).get("stage") != event.after["stage"]]
        return messages, moves[::-1]


def test_a_good_one_is_promoted_bakes_and_stays(world):
    """Each stage once, in order, with its event; somebody is told of the promotion and of the end."""
    world.begin()
    one = world.run()

    assert (one.stage, one.version, one.run_id) == ("done", 2, "run-2")
    assert world.line_up() == {1: ("warm", 0), 2: ("champion", 0)}
    assert [entry["stage"] for entry in one.stages] == [
        "decided",
        "checking",
        "training",
        "gating",
        "replaying",
        "rolling_out",
        "baking",
        "done",
    ]
    messages, actions = told(world)
    assert messages == ["done", "promoted"]
    assert actions == [f"retrain.{entry['stage']}" for entry in one.stages]
    assert [task for task, _ in world.jobs.tasks.values()] == ["train", "gate", "replay"]
    assert one.rollout_id is not None
    assert one.note.startswith("version 2 stays: it stood for 0.1 h; 4,000 requests since its promotion")


def test_one_that_its_gate_refuses_ends_with_the_numbers(world):
    """What is live is not touched."""
    world.decision = REFUSAL
    world.begin()
    one = world.run()

    assert (one.stage, one.version) == ("stopped", 2)
    assert one.note == "the gate refused version 2: not worse: got -0.1, allowed >= 0 (auc 0.6 against 0.7)"
    assert world.line_up() == {1: ("champion", 0)}
    assert one.found["gating"]["checks"][0]["name"] == "not worse"


def test_one_that_its_replay_refuses_ends_too(world):
    """With the replay's numbers."""
    world.replayed = REFUSAL
    world.begin()
    one = world.run()

    assert one.stage == "stopped"
    assert one.note.startswith("the replay refused version 2: not worse: got -0.1")


def test_without_hours_of_replay_there_is_no_job_of_it(tmp_path, bundle):
    """``retrain.replay_h`` is 0."""
    world = World(tmp_path, bundle, replay_h=0)
    world.begin()

    assert world.run().stage == "done"
    assert [task for task, _ in world.jobs.tasks.values()] == ["train", "gate"]


def test_a_canary_that_errs_takes_the_version_back(world):
    """By the rollout itself, whose reason is kept."""
    world.canary = BAD
    world.begin()
    one = world.run()

    assert one.stage == "taken_back"
    assert "was aborted: step 1 of 2 at 10 percent: errors and rejected requests 50.00%" in one.note
    assert world.line_up()[1] == ("champion", 0)


def test_a_promoted_version_that_errs_gives_the_route_back(world):
    """Half of 4,000 requests, where the version before had none: the route flips, and the reason is kept."""
    world.baked = BAD
    world.begin()
    one = world.run()

    assert one.stage == "taken_back"
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0)}
    assert one.note.startswith("version 2 was taken back: errors 50.00% of 4,000")
    assert one.found["baking"]["outcome"] == "worse"
    with State.open(world.url) as state:
        rollback = next(event for event in state.events("m") if event.action == "rollback")
        assert "errors 50.00%" in rollback.why
    assert told(world)[0] == ["promoted", "taken_back", "worse"]


def test_a_version_shown_to_be_worse_says_so_while_another_ones_share_holds_it(world):
    """A person's canary has 1%: somebody is told once, status has the reason; it is taken back after that canary."""
    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    world.baked = BAD
    with State.open(world.url) as state:
        items = state.deployments("m")
        canary = replace(items[0], version=3, role="warm", weight=0.01)
        put(state, "m", [*items, canary])
    world.run(until=lambda one: one.note.startswith("version 3 of m, which a person rolls out"))
    for _ in range(3):
        world.look()
    assert "version 2 is to be taken back: errors 50.00%" in world.newest().note
    assert told(world)[0] == ["promoted", "worse"]
    with State.open(world.url) as state:
        put(state, "m", [replace(item, weight=0.0) for item in state.deployments("m")])
    assert world.run().stage == "taken_back"
    assert world.line_up()[1] == ("champion", 0)


def test_the_version_before_is_warm_until_the_bake_has_ended(tmp_path, bundle):
    """Longer than ``serve.keep_warm_s``, so that the route goes back at once."""
    world = World(tmp_path, bundle, bake_h=1.0)
    world.now = datetime(2100, 1, 1, tzinfo=UTC)  # after what the audit record has by the real clock
    with State.open(world.url) as state:
        put(state, "m", [replace(item, serve={**item.serve, "keep_warm_s": 60}) for item in state.deployments("m")])
    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    for _ in range(30):
        world.now += MINUTE
        world.look()
    assert set(world.line_up()) == {1, 2}
    world.run(most=200)
    world.now += 2 * MINUTE
    world.look()
    assert set(world.line_up()) == {2}


def test_an_autonomy_that_is_lowered_holds_what_began_by_itself(world):
    """It is not promoted; one that a person began is, and so is it once the loop may act again."""

    def policy(autonomy):
        with State.open(world.url) as state:
            put(state, "m", [replace(item, retrain={"autonomy": autonomy}) for item in state.deployments("m")])

    world.begin()
    world.run(until=lambda one: one.stage == "training")
    policy("observe")
    world.run(until=lambda one: one.note.startswith("retrain.autonomy is observe now"))
    for _ in range(3):
        world.look()
    assert [task for task, _ in world.jobs.tasks.values()] == ["train"]
    policy("act")
    assert world.run().stage == "done"


def test_one_that_answers_worse_than_the_one_before_gives_the_route_back(world):
    """By the comparison on the same labelled requests; the reason is kept."""
    world.quality, world.compared = "worse", WORSE
    world.begin()
    one = world.run()

    assert (one.stage, one.note) == (
        "taken_back",
        "version 2 was taken back: 0.050 of skill lost; beside version 1: +0.050 of the loss",
    )
    assert world.line_up() == {1: ("champion", 0), 2: ("warm", 0)}


def test_skill_that_both_versions_lose_takes_nothing_back(world):
    """The world changed: the version before is no better on the same requests."""
    world.quality = "worse"
    world.begin()
    one = world.run()

    assert one.stage == "done"
    assert one.note.endswith("quality worse; beside version 1: +0.001 of the loss")


def test_where_they_are_not_compared_skill_that_is_lost_gives_the_route_back(world):
    """A comparison that failed as often as it may is none, which is said."""
    world.quality, world.jobs.fails = "worse", {"compare": 3}
    world.begin()
    one = world.run()

    assert one.stage == "taken_back"
    assert one.note == (
        "version 2 was taken back: 0.050 of skill lost; by its own answers alone: the comparison with the version "
        "before failed 3 times, as retrain.max_failures allows; the last time: RuntimeError: no such table"
    )


def test_a_comparison_that_cannot_be_begun_is_none(world):
    """The bundle of what is live has a configuration of another release, for one."""
    world.quality, world.jobs.ruled_out = "worse", {"compare": UsageError("this release cannot read it")}
    world.begin()

    assert world.run().note.endswith("0.050 of skill lost; by its own answers alone: this release cannot read it")


def test_newer_labels_are_compared_again(world):
    """Each window has a job of its own; it bakes on while labels are too few."""
    world.quality, world.compared = "worse", FEW
    world.begin()
    world.run(until=lambda one: "comparing" in one.found)
    world.judged_until += MINUTE
    world.compared = WORSE

    assert world.run().stage == "taken_back"
    ids = [submitted for submitted, (task, _) in world.jobs.tasks.items() if task == "compare"]
    assert [submitted.rsplit("-", 1)[1] for submitted in ids] == ["20260101T000000", "20260101T000100"]


def test_what_cannot_be_found_out_is_its_note(world):
    """MLflow is away, then back; a run that was removed there ends it."""
    world.begin()
    world.run(until=lambda one: one.stage == "training")
    world.jobs.away = TrackingError("MLflow does not answer")
    world.run(until=lambda one: "MLflow does not answer" in one.note)
    assert world.newest().note == "cannot determine the next step: MLflow does not answer"
    world.jobs.away = None
    assert world.run().stage == "done"


def test_a_run_that_was_removed_from_mlflow_ends_it(world):
    """Nothing would be found of what was trained, however often it is looked for."""
    world.jobs.away = NotFoundError("there is no run run-1")
    world.begin()

    one = world.run()
    assert (one.stage, one.note) == ("stopped", "there is no run run-1")


def test_a_task_that_fails_is_tried_again(world):
    """Training fails twice, with jobs of their own names; the failures of a stage are not those of the next one."""
    world.jobs.fails = {"train": 2, "gate": 1}
    world.begin()
    one = world.run()

    assert one.stage == "done"
    ids = [submitted.removeprefix(f"raymlops-retrain-{one.id}-") for submitted in world.jobs.found]
    assert ids == ["train", "train-2", "train-3", "gate", "gate-2", "replay"]


def test_what_is_away_for_minutes_costs_one_attempt(world):
    """A store or MLflow that restarts: the next attempt begins after two minutes, the next after a quarter."""
    world.jobs.fails = {"gate": 2}
    world.begin()
    one = world.run(until=lambda one: one.failures == 2)
    failed = world.now
    assert one.note.startswith(f"attempt 2 of the gate failed, the next one begins at {failed + 15 * MINUTE:%X} UTC: ")
    world.jobs.away = TrackingError("MLflow does not answer")
    world.look()
    world.jobs.away = None
    world.look()
    assert world.newest().note == one.note
    world.run(until=lambda one: one.stage == "replaying")
    assert world.now > failed + 15 * MINUTE


def test_a_task_that_fails_three_times_stops_it_and_says_so(world):
    """As ``retrain.max_failures`` allows."""
    world.jobs.fails = {"train": 3}
    world.begin()
    one = world.run()

    assert one.stage == "stopped"
    assert one.note == (
        "training failed 3 times, as retrain.max_failures allows; the last time: RuntimeError: no such table"
    )
    assert told(world)[0] == ["stopped"]


@pytest.mark.parametrize("begun", [{"stage": "proposed"}, {}])
def test_a_stage_that_waits_is_announced_at_half_of_its_hours_and_then_stopped(world, begun):
    """A proposal nobody answers, and a job that gets no room: a message after 7 days of 14, the end after 14."""
    world.begin(**begun)
    world.look()
    begin = world.newest().stage_at
    for hours in (167.9, 168, 200, 335.9):
        world.now = begin + timedelta(hours=hours)
        world.look()
        assert world.newest().is_open
        assert told(world)[0] == ([] if hours < 168 else ["waiting"])
    world.now = begin + timedelta(hours=336)
    world.look()
    assert world.newest().stage == "stopped"
    assert "retrain.max_stage_h" in world.newest().note
    assert told(world)[0] == ["stopped", "waiting"]


def test_a_rollout_that_is_held_loses_its_share_at_the_end_of_its_hours(tmp_path, bundle):
    """No verdict comes, and ``retrain.max_stage_h`` ends the rollout and the retraining; what was live still is."""
    world = World(tmp_path, bundle, max_stage_h=1.0)
    world.canary = world.champion = {**world.champion, "requests": 0, "seconds_sum": 0.0}
    world.begin()
    world.run(until=lambda one: one.stage == "rolling_out" and 2 in world.line_up())
    one = world.run(most=90)
    assert (one.stage, world.line_up()[1]) == ("taken_back", ("champion", 0))
    assert world.line_up()[2] == ("warm", 0)
    assert "retrain.max_stage_h" in one.note
    assert told(world)[0] == ["taken_back", "waiting"]


def test_what_cannot_be_found_out_is_not_waited_for_for_ever(world):
    """MLflow does not answer for two weeks while it is looked for the run."""
    world.begin()
    world.run(until=lambda one: one.stage == "training")
    world.work()
    world.jobs.away = TrackingError("MLflow does not answer")
    for days in (7, 7):
        world.now += timedelta(days=days)
        world.look()
    assert world.newest().stage == "stopped"
    assert "MLflow does not answer" in world.newest().note
    assert told(world)[0] == ["stopped", "waiting"]


def test_what_a_rule_refuses_is_not_tried_again(world):
    """Checks of the data refuse a training; a comparison that is refused is none, and its own answers decide."""
    world.jobs.refuses = {"train": "column 'length' has 3% nulls, allowed 1%"}
    world.begin()
    one = world.run()
    assert (one.stage, one.note) == ("stopped", "training was refused: column 'length' has 3% nulls, allowed 1%")
    assert len(world.jobs.found) == 1

    world.jobs.refuses, world.quality = {"compare": "the bundle is damaged"}, "worse"
    world.begin("day 10")
    assert world.run().note.endswith("the comparison with the version before was refused: the bundle is damaged")


def test_a_person_who_rolls_back_while_it_bakes_ends_it(world):
    """The version is not promoted again, and the reason is that of the rollback."""
    from canaries import take_back

    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    with State.open(world.url) as state:
        take_back(state, world.serve)
    one = world.run()

    assert one.stage == "taken_back"
    assert one.note == "version 2 was taken back: rolled back from version 2 to version 1"
    assert world.line_up()[1] == ("champion", 0)


def test_another_version_that_a_person_makes_live_ends_it(world, bundle):
    """It was to replace version 1, which is live no more."""
    from states import deploy

    world.begin()
    world.run(until=lambda one: one.stage == "training")
    with State.open(world.url) as state:
        deploy(state, world.serve, version=9, bundle=bundle)
    one = world.run()

    assert (one.stage, one.note) == ("stopped", "version 9 is live now, and it was to replace version 1")


def test_a_model_that_is_taken_down_ends_it(world):
    """Nothing of it is begun any more."""
    from states import take_down

    world.begin()
    with State.open(world.url) as state:
        take_down(state, world.serve)

    assert world.run().note == "m was taken down"


def test_a_clock_that_is_set_back_makes_no_time_negative(tmp_path, bundle):
    """Ten days in a bake: what stands in the record and in the reason goes forward."""
    world = World(tmp_path, bundle, bake_h=4.0)
    ticks = iter(range(0, 10**9, 10))
    world.seconds = lambda: next(ticks)
    world.restart()
    world.begin()
    world.run(until=lambda one: one.stage == "baking")
    world.now += 61 * MINUTE
    world.look()
    world.now -= timedelta(days=10)
    for _ in range(5):
        world.look()
        world.now += 61 * MINUTE
    one = world.newest()
    assert one.note.startswith("version 2 stays: it stood for 3.0 h")
    times = [entry["at"] for entry in one.stages]
    assert times == sorted(times)
    assert one.ended_at == one.stage_at


def test_a_second_controller_with_an_outdated_reading_changes_nothing(world):
    """Both see the same retraining; the second write finds another revision."""
    from raymlops.lifecycle.loop.act import Loop

    world.begin()
    with State.open(world.url) as state:
        outdated = retrainings_of(state, "m")[0]
        world.look()
        before = world.newest()
        loop = Loop(state, world.serve, serve=SERVE, jobs=world.jobs, counted=None, quality=None)
        assert loop.step(outdated, world.now) == outdated
    assert world.newest() == before


def test_a_champion_whose_bundle_is_lost_stops_it_and_says_so(world):
    """No job can be sent without the recipe's code in it."""
    world.jobs.ruled_out = {"train": BundleError("expected the manifest of a bundle, got nothing")}
    world.begin()

    one = world.run()
    assert one.stage == "stopped"
    assert one.note.endswith("the last time: expected the manifest of a bundle, got nothing")


@pytest.mark.parametrize("task", ["train", "compare"])
def test_a_bundle_that_cannot_be_read_for_minutes_costs_one_attempt(world, task):
    """Its storage is not mounted just then, so that its folder is empty: neither is it stopped nor taken back."""
    world.quality, world.jobs.ruled_out = "worse", {task: BundleError("expected the manifest of a bundle, got nothing")}
    world.begin()
    world.run(until=lambda one: one.failures == 1)
    world.jobs.ruled_out = {}

    assert world.run().stage == "done"


def test_a_cluster_that_is_away_is_waited_for(world):
    """Its error is recorded once by the controller, and the next look goes on."""
    from raymlops.errors import ClusterError

    submit = world.jobs.submit

    def away(*arguments):
        world.jobs.submit = submit
        raise ClusterError("the cluster does not answer")

    world.jobs.submit = away
    world.begin()

    assert world.run().stage == "done"
    errors = [event.why for event in world.state.events("m") if event.action == "controller.error"]
    assert errors == ["ClusterError: the cluster does not answer"]

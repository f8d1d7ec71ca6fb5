from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from raymlops.errors import NotFoundError, RefusedError
from raymlops.lifecycle.live.lineup import (
    as_asked,
    asks_for_keys,
    beside,
    cooled,
    opens,
    previous_champion,
    spare_of,
    with_canary,
    with_champion,
    with_shadow,
    without_traffic,
)
from raymlops.records import BundleRef
from raymlops.state.audit import AuditEvent
from raymlops.state.store import Deployment

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(number, role="warm", **serve):
    return Deployment("m", number, BundleRef("file:///b", "d" * 64), "run", role, serve, created_at=NOW)


def share(item, **shares):
    return replace(item, **shares)


def roles(deployments):
    return {item.version: item.role for item in deployments}


def history(*changes):
    """Audit events, newest first, from (action, before, after) in the order they happened; numbers are champions."""
    events = [
        AuditEvent(index, NOW, "me", action, "m", *([version(v, "champion").to_dict()] if v else [] for v in sides), "")
        for index, (action, *sides) in enumerate(changes)
    ]
    return events[::-1]


def test_the_champion_of_before_is_kept_warm_beside_those_that_were():
    """Version 3 takes over from 2; 2 and 1 stay up without any traffic."""
    after = with_champion([version(1), version(2, "champion"), share(version(3), weight=0.5)], version(3))
    assert [(item.version, item.role, item.weight) for item in after] == [
        (1, "warm", 0),
        (2, "warm", 0),
        (3, "champion", 0),
    ]


def test_a_new_champion_ends_canaries_and_leaves_shadows():
    """4 was compared with 1, which is champion no more; 2 goes on being shown copies; 3 is no shadow of its own."""
    shadows = [share(version(2), shadow=0.2), share(version(3), shadow=1.0), share(version(4), weight=0.1)]
    after = with_champion([version(1, "champion"), *shadows], version(3))
    assert {item.version: (item.weight, item.shadow) for item in after} == {
        1: (0, 0),
        2: (0, 0.2),
        3: (0, 0),
        4: (0, 0),
    }


def test_deploying_the_champion_again_changes_nothing():
    """The line-up stays equal, so nothing is sent to Serve."""
    before = [version(1), version(2, "champion", max_rows=5)]
    assert with_champion(before, version(2, "champion", max_rows=5)) == before


def test_new_settings_reach_a_version_that_is_up():
    """The champion takes the settings it is deployed with again."""
    (item,) = with_champion([version(2, "champion", max_rows=5)], version(2, max_rows=9))
    assert (item.role, item.serve) == ("champion", {"max_rows": 9})


def test_beside_moves_no_route():
    """A version that comes up beside is warm; the champion stays."""
    assert roles(beside([version(1, "champion")], version(2))) == {1: "champion", 2: "warm"}


def test_rollback_goes_to_the_champion_before():
    """After 1, then 2, the version before 2 is 1."""
    events = history(("deploy", None, 1), ("deploy", 1, 2))
    assert previous_champion([version(2, "champion")], events).version == 1


def test_a_second_rollback_goes_further_back():
    """3 was rolled back to 2: rolling back again gives 1, not 3."""
    events = history(("deploy", None, 1), ("deploy", 1, 2), ("deploy", 2, 3), ("rollback", 3, 2))
    assert previous_champion([version(2, "champion")], events).version == 1


def test_a_deploy_that_was_undone_does_not_count():
    """3 never came up: the version before 2 is still 1."""
    events = history(("deploy", None, 1), ("deploy", 1, 2), ("deploy", 2, 3), ("deploy.undone", 3, 2))
    assert previous_champion([version(2, "champion")], events).version == 1


def test_a_version_that_did_not_come_up_was_no_champion_whatever_happened_meanwhile():
    """3 began beside 2, a rollback to 1 went on meanwhile, 3 was taken away: 2 stays what was rolled back from."""
    events = history(
        *(("deploy", None, 1), ("deploy", 1, 2), ("deploy.start", 2, 2), ("rollback", 2, 1)),
        *(("deploy.start.undone", 1, 1), ("deploy", 1, 4), ("rollback", 4, 1)),
    )
    with pytest.raises(NotFoundError, match="before version 1"):
        previous_champion([version(1, "champion")], events)


def test_a_version_that_somebody_stopped_waiting_for_is_taken_down():
    """It came up to take the route, and kill -9 ended who waited: kept as long as they may have gone on."""
    line = [version(1, "champion", keep_warm_s=10.0), version(2, ready_timeout_s=300.0)]
    before, after = ([item.to_dict() for item in side] for side in (line[:1], line))
    events = [AuditEvent(1, NOW, "me", "deploy.start", "m", before, after, "")]
    assert cooled(line, events, now=NOW + timedelta(seconds=400)) == []
    assert cooled(line, events, now=NOW + timedelta(seconds=420)) == [2]
    beside = [replace(event, action="deploy.beside") for event in events]
    assert cooled(line, beside, now=NOW + timedelta(days=9)) == []


@pytest.mark.parametrize("restored_by", ["deploy.start.undone", "rollback", "remove.version", "deploy"])
def test_a_version_that_made_room_and_came_back_cools_down_as_before(restored_by):
    """It lost the route, left for version 3, and was restored: by its failure, or by what took version 3 back."""
    one, two, three = version(1), version(2, "champion", keep_warm_s=10.0), version(3)
    lines = [[version(1, "champion")], [one, two], [two, three], [one, two]]
    actions = ["deploy", "deploy.start", restored_by]
    events = [
        AuditEvent(
            index, NOW, "me", action, "m", *([item.to_dict() for item in line] for line in lines[index:][:2]), ""
        )
        for index, action in enumerate(actions)
    ][::-1]
    assert cooled(lines[-1], events, now=NOW + timedelta(seconds=10)) == [1]


def test_what_was_read_of_a_version_that_stays_is_not_read_again():
    """Version 2 was deployed beside; later events alone may change that."""
    line = [version(1, "champion", keep_warm_s=10.0), version(2)]
    canary = [line[0], share(line[1], weight=0.1)]

    def event(number, action, *sides):
        return AuditEvent(number, NOW, "me", action, "m", *([item.to_dict() for item in side] for side in sides), "")

    def no_more():
        yield event(8, "deploy", line, line)
        raise AssertionError

    stay, later = {}, NOW + timedelta(days=9)
    old = [event(8, "deploy", line, line), event(7, "deploy.beside", line[:1], line)]
    assert cooled(line, old, now=later, stay=stay) == []
    assert cooled(line, no_more(), now=later, stay=stay) == []
    new = [event(10, "deploy.canary", canary, line), event(9, "deploy.canary", line, canary)]
    assert cooled(line, new, now=later, stay=stay) == [2]


def test_no_more_of_the_record_is_read_than_is_needed():
    """The newest event says when version 1 lost the route; what came before is left alone."""
    line = [version(1), version(2, "champion", keep_warm_s=10.0)]
    before = [version(1, "champion").to_dict()]

    def changes():
        yield AuditEvent(9, NOW, "me", "deploy", "m", before, [item.to_dict() for item in line], "")
        raise AssertionError

    assert cooled(line, changes(), now=NOW + timedelta(seconds=10)) == [1]


def test_no_more_of_the_record_is_read_than_a_rollback_needs():
    """3 was rolled back to 2, which had taken the route from 1: what came before is left alone."""

    def changes():
        yield from history(("deploy", 1, 2), ("deploy", 2, 3), ("rollback", 3, 2))
        raise AssertionError

    assert previous_champion([version(2, "champion")], changes()).version == 1


def test_removing_and_deploying_again_forgets_nothing():
    """1, 2, taken down, 2 again: the champion before 2 is still 1; 3 after it goes back to 2."""
    past = [("deploy", None, 1), ("deploy", 1, 2), ("remove", 2, None)]
    events = history(*past, ("deploy", None, 2))
    assert previous_champion([version(2, "champion")], events).version == 1
    events = history(*past, ("deploy", None, 3))
    assert previous_champion([version(3, "champion")], events).version == 2


def test_a_version_deployed_once_more_after_its_rollback_counts_again():
    """2 was rolled back to 1, deployed again and followed by 3: before 3 there was 2, before that 1."""
    past = [("deploy", None, 1), ("deploy", 1, 2), ("rollback", 2, 1), ("deploy", 1, 2), ("promote", 2, 3)]
    assert previous_champion([version(3, "champion")], history(*past)).version == 2
    events = history(*past, ("rollback", 3, 2))
    assert previous_champion([version(2, "champion")], events).version == 1


def test_a_warm_version_takes_over_as_it_stands():
    """Its settings now, not those of its time as champion: anything else would restart it."""
    events = history(("deploy", None, 1), ("deploy", 1, 2))
    before = [version(1, max_rows=9), version(2, "champion")]
    assert previous_champion(before, events).serve == {"max_rows": 9}


def test_a_version_that_was_rolled_back_from_is_not_gone_back_to():
    """2, 3, 2, then 3 by a rollout, back to 2: the 3 of long ago counts as little as the last one, until it is live."""
    past = [("deploy", None, 2), ("deploy", 2, 3), ("deploy", 3, 2), ("rollout.promote", 2, 3), ("rollback", 3, 2)]
    before = [version(2, "champion"), version(3), version(5)]
    with pytest.raises(NotFoundError, match="but for what was rolled back from: 3") as caught:
        previous_champion(before, history(*past))
    assert caught.value.hint == "raymlops deploy --version N makes one live all the same; warm are: 3, 5"
    past = [("deploy", None, 1), ("remove", 1, None), *past]
    assert previous_champion(before, history(*past)).version == 1
    undone = [("rollback", 2, 1), ("rollback.undone", 1, 2)]
    assert previous_champion(before, history(*past, *undone)).version == 1
    again = [*past, ("deploy", 2, 3), ("promote", 3, 4)]
    assert previous_champion([version(4, "champion")], history(*again)).version == 3


@pytest.mark.parametrize(
    ("was", "new", "configured", "needs"),
    [
        ({"auth": "keys"}, {}, True, True),
        ({"auth": "keys"}, {"auth": None}, True, True),
        ({"auth": "keys"}, {"auth": "open"}, True, False),
        ({"auth": "keys"}, {"auth": "open"}, False, True),
        ({"auth": "keys"}, {}, False, True),
        ({"host": "0.0.0.0"}, {}, True, True),
        ({}, {"auth": "keys"}, True, True),
        ({}, {"auth": "keys"}, False, False),
        ({"auth": "open"}, {"auth": None}, True, False),
    ],
)
def test_whether_keys_are_asked_for_belongs_to_the_model(was, new, configured, needs):
    """Only a configuration that says so changes it; all that are up ask as the champion does."""
    before = [version(1, "champion", **was), version(3, auth="open")]
    after = with_champion(before, version(2, max_rows=5, **new), configured=configured)
    assert [asks_for_keys(item) for item in after] == [needs] * 3
    assert opens(before, after) == (asks_for_keys(before[0]) and not needs)
    refreshed = with_champion(before, version(1, max_rows=5, **new), configured=configured)
    assert [asks_for_keys(item) for item in refreshed] == [needs] * 2
    assert asks_for_keys(as_asked(before, version(2, **new))) == asks_for_keys(before[0])


def test_what_nobody_decided_stays_undecided():
    """Serve's address decides then; an explicit "open" of a version beside would open what asks for keys by it."""
    before = [version(1, "champion"), version(3, auth="open"), version(4, auth="keys")]
    after = with_champion(before, version(3, auth="open"))
    assert [item.serve.get("auth") for item in after] == [None] * 3
    assert as_asked(before, version(5, auth="open")).serve["auth"] is None
    assert opens(before, with_champion(before, version(2, auth="open"), configured=True), "0.0.0.0")
    assert not opens(before, with_champion(before, version(2, auth="open"), configured=True), "127.0.0.1")


def test_nothing_to_roll_back_to():
    """The first champion has no version before it, and a model that is not served has none at all."""
    with pytest.raises(NotFoundError, match="before version 1"):
        previous_champion([version(1, "champion")], history(("deploy", None, 1)))
    with pytest.raises(NotFoundError, match="not served"):
        previous_champion([], [])


def test_a_canary_gets_its_share_and_no_more_than_there_is():
    """One of two canaries with 30% can have 70%, not 80%; a share can be taken away again."""
    before = [version(1, "champion"), share(version(2), weight=0.3), version(3)]
    after = with_canary(before, 3, weight=0.7)
    assert [item.weight for item in after] == [0, 0.3, 0.7]
    with pytest.raises(RefusedError, match="80%: other canaries answer 30%"):
        with_canary(before, 3, weight=0.8)
    assert [item.weight for item in without_traffic(after)] == [0, 0, 0]
    assert [item.weight for item in without_traffic(after, {2})] == [0, 0, 0.7]


def test_the_champion_is_no_canary_and_no_shadow():
    """It has the traffic already; and without a champion there is nothing to share."""
    for change in (lambda items: with_canary(items, 1, weight=0.1), lambda items: with_shadow(items, 1, share=1)):
        with pytest.raises(RefusedError, match="version 1 is live already"):
            change([version(1, "champion")])
        with pytest.raises(RefusedError, match="no version is live"):
            change([version(1)])


def test_only_those_that_nobody_asks_may_make_room():
    """Not the champion, not a canary, not a shadow, not the version that comes up."""
    before = [
        version(1),
        version(2, "champion"),
        share(version(3), weight=0.1),
        share(version(4), shadow=1),
        version(5),
    ]
    assert spare_of(before, version(5)) == {1}


def test_a_version_cools_down_from_when_it_lost_its_traffic():
    """1 lost the route at 10:00, 3 its share at 10:30, 4 only ever stood beside: at 11:00 it is 1's time to go."""
    at = datetime(2026, 1, 1, 10, tzinfo=UTC)
    lines = [
        [version(1, "champion")],
        [version(1, "champion"), version(4)],
        [version(1), version(2, "champion", keep_warm_s=3600.0), version(4)],
        [version(1), version(2, "champion"), share(version(3), weight=0.1), version(4)],
        [version(1), version(2, "champion", keep_warm_s=3600.0), version(3), version(4)],
    ]
    times = [
        at - timedelta(hours=2),
        at - timedelta(hours=1),
        at,
        at + timedelta(minutes=10),
        at + timedelta(minutes=30),
    ]
    events = [
        AuditEvent(
            index, ts, "me", "deploy", "m", [item.to_dict() for item in one], [item.to_dict() for item in other], ""
        )
        for index, (ts, one, other) in enumerate(zip(times, [[], *lines], lines, strict=False))
    ][::-1]
    assert cooled(lines[-1], events, now=at + timedelta(minutes=59)) == []
    assert cooled(lines[-1], events, now=at + timedelta(hours=1)) == [1]
    assert cooled(lines[-1], events, now=at + timedelta(days=9)) == [1, 3]

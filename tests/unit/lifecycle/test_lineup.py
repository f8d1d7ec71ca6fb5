from datetime import UTC, datetime

import pytest

from raymlops.errors import NotFoundError
from raymlops.lifecycle.lineup import beside, previous_champion, with_champion
from raymlops.records import BundleRef
from raymlops.state.store import AuditEvent, Deployment

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(number, role="warm", **serve):
    return Deployment("m", number, BundleRef("file:///b", "d" * 64), "run", role, serve, NOW)


def roles(deployments):
    return {item.version: item.role for item in deployments}


def history(*changes):
    """Audit events, newest first, from (action, before, after) in the order they happened; numbers are champions."""
    events = [
        AuditEvent(index, NOW, "me", action, "m", *([version(v, "champion").to_dict()] if v else [] for v in sides), "")
        for index, (action, *sides) in enumerate(changes)
    ]
    return events[::-1]


def test_the_champion_of_before_is_kept_warm_and_older_ones_go():
    """Version 3 takes over from 2; 2 stays warm; 1, warm until now, is dropped."""
    assert roles(with_champion([version(1), version(2, "champion")], version(3))) == {2: "warm", 3: "champion"}


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


def test_nothing_to_roll_back_to():
    """The first champion has no version before it, and a model that is not served has none at all."""
    with pytest.raises(NotFoundError, match="before version 1"):
        previous_champion([version(1, "champion")], history(("deploy", None, 1)))
    with pytest.raises(NotFoundError, match="not served"):
        previous_champion([], [])

"""The place that backups are in."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from raymlops.errors import NotFoundError, RefusedError
from raymlops.lifecycle.backup.place import FOLDER, newest, next_time, opened, publish


def test_a_manifest_that_names_no_file_is_refused(tmp_path):
    """Although its digest is that in the backup's id."""
    draft = tmp_path / FOLDER / "draft"
    draft.mkdir(parents=True)
    backup_id = publish(draft, str(tmp_path), at=datetime(2026, 1, 1, tzinfo=UTC))
    with (
        pytest.raises(RefusedError, match=r"lacks backup\.json; nothing was restored"),
        opened(str(tmp_path), backup_id),
    ):
        pass


@pytest.mark.parametrize("later", [timedelta(0), timedelta(seconds=0.4), timedelta(hours=-3), timedelta(days=1)])
def test_the_newest_is_the_one_that_was_written_last(tmp_path, later):
    """In one second, and by a clock that was set back."""
    made_at = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(5):
        draft = tmp_path / FOLDER / "draft"
        draft.mkdir(parents=True)
        (draft / "backup.json").write_text(str(number))
        backup_id = publish(draft, str(tmp_path), at=next_time(str(tmp_path), made_at + number * later))
        assert newest(str(tmp_path))[0] == backup_id


@pytest.mark.parametrize("time", ["99999999T999999Z", "20260230T000000Z", "99991231T235959Z"])
def test_a_folder_that_is_named_by_no_time_is_no_backup(tmp_path, time):
    """It holds up none, whatever is in it."""
    (tmp_path / FOLDER / f"{time}-{'0' * 16}").mkdir(parents=True)
    (tmp_path / FOLDER / f"{time}-{'0' * 16}" / "manifest.json").write_text("")
    made_at = datetime(2026, 1, 1, tzinfo=UTC)
    assert next_time(str(tmp_path), made_at) == made_at
    with pytest.raises(NotFoundError, match="there is no backup in"):
        newest(str(tmp_path))


def test_of_two_that_began_in_one_second_the_later_one_is_the_newest(tmp_path):
    """At once, so that neither found the other there: the digest in their names says nothing."""
    made_at = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(5):
        draft = tmp_path / FOLDER / "draft"
        draft.mkdir(parents=True)
        said = {"made_at": (made_at + timedelta(milliseconds=number)).isoformat(), "made_by": "me", "state_id": "a"}
        (draft / "backup.json").write_text(json.dumps(said))
        backup_id = publish(draft, str(tmp_path), at=made_at)
        assert newest(str(tmp_path))[0] == backup_id

"""The place that backups are in."""

from datetime import UTC, datetime, timedelta

import pytest

from raymlops.errors import RefusedError
from raymlops.lifecycle.backup.place import FOLDER, newest, opened, publish


def test_a_manifest_that_names_no_file_is_refused(tmp_path):
    """Although its digest is that in the backup's id."""
    draft = tmp_path / FOLDER / "draft"
    draft.mkdir(parents=True)
    backup_id = publish(draft, str(tmp_path), made_at=datetime(2026, 1, 1, tzinfo=UTC))
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
        backup_id = publish(draft, str(tmp_path), made_at=made_at + number * later)
        assert newest(str(tmp_path))[0] == backup_id

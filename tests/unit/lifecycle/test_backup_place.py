"""The place that backups are in."""

from datetime import UTC, datetime

import pytest

from raymlops.errors import RefusedError
from raymlops.lifecycle.backup.place import FOLDER, opened, publish


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

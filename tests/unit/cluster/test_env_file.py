from __future__ import annotations

import pytest

from raymlops.cluster.endpoint.env_file import read_env_file
from raymlops.errors import UsageError


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a file that its owner alone may read."""
    file = tmp_path / "node.env"

    def write(content):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(0o600)
        return file

    return write


def test_values_are_literal(written):
    """What a shell would run, expand, split or take for a comment is part of the value."""
    file = written(
        "# of every node\n\nRAYMLOPS_STATE_URL=postgresql://u:pa$$word@h/db?sslmode=require&target_session_attrs=x\n"
        "A=b c\r\n  B=$(id) `id` ; # 'x' \\\nEMPTY=\nC=d=e"
    )
    assert read_env_file(file) == {
        "RAYMLOPS_STATE_URL": "postgresql://u:pa$$word@h/db?sslmode=require&target_session_attrs=x",
        "A": "b c",
        "B": "$(id) `id` ; # 'x' \\",
        "EMPTY": "",
        "C": "d=e",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("A=b\nhunter2\n", "line 2: expected NAME=VALUE"),
        ("export A=hunter2", "line 1: expected NAME=VALUE"),
        ("=hunter2", "line 1: expected NAME=VALUE"),
        ("A =hunter2", "line 1: expected NAME=VALUE"),
        ("A=b\n\nB='hunter2'\n", "line 3: the value of B is in quotes"),
        ('B="hunter2"', "line 1: the value of B is in quotes"),
        (b"A=hunter2\x00", "line 1: the value of A has a NUL"),
        (b"A=b\nB=hunter2\xff", "no UTF-8"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(content, said, written):
    """Without its text, which may be a password."""
    with pytest.raises(UsageError, match=said) as raised:
        read_env_file(written(content))
    assert "hunter2" not in f"{raised.value.message} {raised.value.hint}"


def test_a_file_that_others_may_read_or_that_is_missing_is_refused(written, tmp_path):
    """It holds passwords."""
    file = written("A=b\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="mode 0644") as raised:
        read_env_file(file)
    assert raised.value.hint.startswith(f"chmod 600 {file}")
    with pytest.raises(UsageError, match=r"cannot read .*none: No such file"):
        read_env_file(tmp_path / "none")

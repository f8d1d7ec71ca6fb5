"""A name says which rows of a Delta table are read."""

from datetime import UTC, datetime

import pytest

from raymlops.errors import UsageError
from raymlops.storage.delta.names import TableName, parse

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lake/flights", TableName("lake/flights")),
        ("lake/flights/", TableName("lake/flights")),
        ("lake/flights@v3", TableName("lake/flights", version=3)),
        ("lake/flights@2026-11-27T12:00", TableName("lake/flights", at=NOON)),
        ("lake/flights@2026-11-27T13:00+01:00", TableName("lake/flights", at=NOON)),
        ("lake/flights@20261127120000000", TableName("lake/flights", at=NOON)),
        ("delta+s3://lake/flights@v3", TableName("s3://lake/flights", version=3, explicit=True)),
        ("s3://lake/t@v3?region=x", TableName("s3://lake/t?region=x", version=3)),
        ("abfs://lake@me.dfs.core.windows.net/t", TableName("abfs://lake@me.dfs.core.windows.net/t")),
        ("t@v3/split=train/k=a%2Fb", TableName("t", version=3, partitions=(("split", "train"), ("k", "a/b")))),
        ("t/k=__HIVE_DEFAULT_PARTITION__", TableName("t", partitions=(("k", None),))),
        ("user@vast/t", TableName("user@vast/t")),
        ("a?b@v3", TableName("a?b", version=3)),
    ],
)
def test_a_name_is_a_place_a_version_and_partitions(text, expected):
    """By Delta's own notation, and what is written of it reads the same."""
    assert parse(text) == expected
    again = parse(str(expected))
    assert (again.uri, again.version, again.at, again.partitions) == (
        expected.uri,
        expected.version,
        expected.at,
        expected.partitions,
    )


def test_a_time_that_is_none_is_refused():
    """With what a name may say."""
    with pytest.raises(UsageError, match=r"as of '2026-13-45', which is no time\n.*@v3"):
        parse("lake/flights@2026-13-45")
    with pytest.raises(UsageError, match="needs a path"):
        parse("delta+")

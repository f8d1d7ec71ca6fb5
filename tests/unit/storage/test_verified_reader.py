"""Parts of a checkpoint's files: what is read is checked, and nothing else is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from raymlops.errors import DamagedError, NotFoundError, StorageError
from raymlops.storage import filesystem, manifest
from raymlops.storage.manifest import BLOCK_BYTES, Draft
from raymlops.storage.verified_reader import VerifiedFolder

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3

SIZE = 2 * BLOCK_BYTES + 1000
DATA = bytes(range(256)) * (SIZE // 256 + 1)


def written(uri: str, *, by_range: bool = True) -> str:
    """Write a folder with a file of two blocks and a bit, and a small one."""
    draft = Draft(filesystem.join(uri, "f"), by_range=by_range)
    with draft.part() as folder:
        (folder / "large").write_bytes(DATA[:SIZE])
        (folder / "small").write_bytes(b"small")
    draft.seal(draft.digests)
    return draft.uri


@pytest.mark.parametrize("by_range", [True, False])
def test_parts_are_those_of_the_file(place: str, by_range: bool) -> None:
    """Within a block, over their borders and beyond the end; with digests of blocks or of the file alone."""
    ticks: list[int] = []
    with VerifiedFolder(written(place, by_range=by_range), on_progress=lambda: ticks.append(1)) as files:
        for offset, length in ((10, 20), (BLOCK_BYTES - 5, 10), (5, SIZE), (SIZE - 3, 3), (SIZE - 3, 9)):
            assert files.range("large", offset, length) == DATA[offset : min(offset + length, SIZE)]
        assert files.range("small", 1, 3) == b"mal"
        assert files.read("small") == b"small"
        assert len(ticks) >= 4


def test_only_the_blocks_of_a_part_are_read(s3: FakeS3) -> None:
    """And a block once, where parts follow each other."""
    uri = written(s3.uri("bucket/run"))
    s3.sent.clear()
    with VerifiedFolder(uri) as files:
        for offset in range(0, 1000, 100):
            files.range("large", BLOCK_BYTES + offset, 100)
            files.range("small", 0, 5)
    assert s3.sent["bucket/run/f/large"] == BLOCK_BYTES
    assert s3.sent["bucket/run/f/small"] == 5


def test_damage_is_found_where_it_is_read(tmp_path: Path) -> None:
    """A changed byte in the last block: parts before it are what was written, and the whole is damaged."""
    uri = written(str(tmp_path))
    path = tmp_path / "f" / "large"
    path.write_bytes(DATA[: SIZE - 1] + b"?")
    with VerifiedFolder(uri) as files:
        assert files.range("large", 0, 100) == DATA[:100]
        with pytest.raises(DamagedError, match=r"large is damaged: expected SHA-256 .* of block 2, got "):
            files.range("large", SIZE - 10, 5)
        with pytest.raises(DamagedError, match=r"manifest\.json does not name other"):
            files.read("other")
    assert "large is damaged: expected SHA-256" in str(manifest.damage(uri))
    path.write_bytes(DATA[: SIZE - 1])
    with VerifiedFolder(uri) as files, pytest.raises(DamagedError, match=f"expected {SIZE} bytes, got {SIZE - 1}"):
        files.range("large", SIZE - 10, 10)
    assert manifest.damage(uri, check=lambda _: False) == (
        f"large is damaged: expected a file of {SIZE} bytes, got {SIZE - 1} bytes"
    )
    path.unlink()
    with VerifiedFolder(uri) as files, pytest.raises(DamagedError, match=f"a file of {SIZE} bytes, got nothing"):
        files.range("large", 0, 10)


def test_what_needs_no_blocks_is_of_the_earlier_format(tmp_path: Path) -> None:
    """Which earlier releases read; they refuse the other as newer, not as damaged."""
    for by_range, version in ((False, 2), (True, 3)):
        uri = written(str(tmp_path / str(version)), by_range=by_range)
        assert json.loads(filesystem.read_bytes(f"{uri}/manifest.json"))["format_version"] == version
        assert manifest.damage(uri) is None
    assert manifest.CHECKPOINT.decode(filesystem.read_bytes(f"{uri}/manifest.json")) == (3, {})


def test_digests_that_contradict_each_other(tmp_path: Path) -> None:
    """A manifest in which a block's digest was changed is damaged as a whole."""
    uri = written(str(tmp_path))
    path = tmp_path / "f" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["large"]["blocks"][1] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match="the digests of large contradict each other"):
        VerifiedFolder(uri)


def test_a_folder_without_manifest_does_not_exist(place: str) -> None:
    with pytest.raises(NotFoundError):
        VerifiedFolder(filesystem.join(place, "f"))
    filesystem.write_bytes(filesystem.join(place, "f", "manifest.json"), b'{"format_version": 9, "files": {}}')
    with pytest.raises(StorageError, match="has format 9; this raymlops reads up to 3"):
        VerifiedFolder(filesystem.join(place, "f"))

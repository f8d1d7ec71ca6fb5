"""Folders are whole or absent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from raymlops.errors import NotFoundError, StorageError
from raymlops.storage import filesystem, manifest
from raymlops.storage.manifest import Draft, damage, set_aside, verified

if TYPE_CHECKING:
    from pathlib import Path

    from fake_s3 import FakeS3


@pytest.fixture(params=["path", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").uri("bucket/runs")
    return f"{tmp_path}/runs"


def draft(uri: str, *, rank: int = 0, **files: bytes) -> Draft:
    made = Draft(uri, rank=rank)
    with made.part() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return made


def test_a_sealed_folder_is_read_back(place: str) -> None:
    """It holds its files and the manifest, and nothing else is left."""
    made = draft(filesystem.join(place, "f"), a=b"weights", b=b"")
    assert filesystem.listing(place)["f"] == {"a", "b"}
    made.seal(made.digests)
    with verified(made.uri, only=("a", "b")) as folder:
        assert (folder / "a").read_bytes() == b"weights"
    assert filesystem.listing(place) == {"f": {"a", "b", "manifest.json"}}


def test_a_part_of_a_folder_is_read(place: str) -> None:
    """Damage of the rest, whose size is right, does not matter; a file that was never there does."""
    made = draft(filesystem.join(place, "f"), a=b"weights", b=b"state")
    made.seal(made.digests)
    filesystem.write_bytes(filesystem.join(made.uri, "b"), b"State")
    with verified(made.uri, only=("a",)) as folder:
        assert (folder / "a").read_bytes() == b"weights"
    for name, problem in (("b", "b is damaged: expected SHA-256"), ("c", "c is not in manifest.json")):
        with pytest.raises(StorageError, match=problem), verified(made.uri, only=(name,)):
            pass


def test_ranks_fill_one_folder(place: str) -> None:
    """Each one's files are named by the one manifest."""
    uri = filesystem.join(place, "f")
    parts = [draft(uri, rank=rank, **{f"part{rank}": b"%d" % rank}) for rank in range(3)]
    parts[0].seal({name: entry for part in parts for name, entry in part.digests.items()})
    assert damage(uri, needs=("part0", "part1", "part2")) is None


def test_an_unsealed_folder_is_not_there(place: str) -> None:
    """Whatever lies in it."""
    made = draft(filesystem.join(place, "f"), a=b"weights")
    for uri in (made.uri, filesystem.join(place, "nothing")):
        with pytest.raises(NotFoundError, match=r"there is no checkpoint at '.*(f|nothing)"):
            damage(uri)
        with pytest.raises(NotFoundError, match=r"there is no checkpoint at '.*(f|nothing)"), verified(uri):
            pass


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"Weights", "a is damaged: expected SHA-256 "),
        (b"weight", "a is damaged: expected 7 bytes, got 6 bytes"),
        (None, "a is damaged: expected a file of 7 bytes, got nothing"),
    ],
)
def test_a_damaged_file_is_named(place: str, data: bytes | None, what: str) -> None:
    """Changed, cut or missing: it is found before anybody reads it."""
    made = draft(filesystem.join(place, "f"), a=b"weights")
    made.seal(made.digests)
    file = filesystem.join(made.uri, "a")
    filesystem.delete(file) if data is None else filesystem.write_bytes(file, data)
    assert what in str(damage(made.uri))
    with pytest.raises(StorageError, match=what), verified(made.uri):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2, "files": {"a": 1}}', '{"files": {}}'])
def test_a_damaged_manifest_is_damage(tmp_path: Path, text: str) -> None:
    """Cut or of another shape."""
    (tmp_path / "manifest.json").write_text(text)
    assert "manifest.json cannot be read" in str(damage(str(tmp_path)))


def test_a_manifest_speaks_of_its_own_folder_alone(tmp_path: Path) -> None:
    """A name that leads elsewhere is damage, whatever lies there."""
    made = draft(f"{tmp_path}/f", a=b"x")
    made.seal({"../f/a": made.digests["a"]})
    assert "which is not a file of this folder" in str(damage(made.uri))


def test_a_file_that_is_needed_must_be_in_the_manifest(tmp_path: Path) -> None:
    """What the manifest does not name was not checked."""
    made = draft(f"{tmp_path}/f", a=b"x", b=b"x")
    made.seal({"a": made.digests["a"]})
    assert damage(made.uri, needs=("a",)) is None
    assert damage(made.uri, needs=("a", "b")) == "b is not in manifest.json"


def test_a_newer_format_is_refused_clearly(tmp_path: Path) -> None:
    """It is no damage: the error says which versions can be read."""
    made = draft(f"{tmp_path}/f", a=b"x")
    made.seal(made.digests)
    manifest = tmp_path / "f" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    with pytest.raises(StorageError, match="has format 99; this raymlops reads up to 3"):
        damage(made.uri)


def test_a_store_that_does_not_answer_is_no_damage(s3: FakeS3) -> None:
    """Nobody may throw away a checkpoint for it."""
    made = draft(s3.uri("bucket/f"), a=b"x")
    made.seal(made.digests)
    s3.refuse = lambda _method, path: path.endswith("/a")
    with pytest.raises(StorageError, match="cannot be used"):
        damage(made.uri)


def test_a_failed_write_leaves_nothing(place: str) -> None:
    """What was written before it failed is removed."""
    made = draft(filesystem.join(place, "f"), a=b"x")

    def fail(folder: Path) -> None:
        (folder / "b").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    again = Draft(made.uri, rank=1)
    with pytest.raises(StorageError, match="No space left on device"), again.part() as folder:
        fail(folder)
    assert not again.folder.exists()
    assert filesystem.listing(place) == {"f": {"a"}}
    made.discard()
    assert not filesystem.listing(place)


def test_the_manifest_goes_first(s3: FakeS3) -> None:
    """A process that is killed while it removes a folder leaves an unfinished one, not a damaged one."""
    made = draft(s3.uri("bucket/f"), a=b"x", z=b"x")
    made.seal(made.digests)
    s3.requests.clear()
    manifest.delete(made.uri)
    removing = [request for request in s3.requests if request.startswith(("DELETE", "POST"))]
    assert removing[0] == "DELETE bucket/f/manifest.json"
    assert not [key for key in s3.objects if key.startswith("bucket/f/")]


def test_what_is_set_aside_keeps_its_files(place: str) -> None:
    """Renamed where the filesystem can, else marked."""
    made = draft(filesystem.join(place, "f"), a=b"x")
    made.seal(made.digests)
    name = set_aside(filesystem.join(place, "f"), reason="a is damaged") or "f"
    files = filesystem.listing(place)[name]
    assert files is not None
    assert manifest.is_set_aside(name, files)
    assert files >= {"a", "manifest.json"}

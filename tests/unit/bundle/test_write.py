"""What is in a bundle, and that there is a whole one or none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny_bundle import tiny_contents

from raymlops.bundle.verify import fetch, verify
from raymlops.bundle.write import write_bundle
from raymlops.errors import BundleError, RecipeError, StorageError

TESTS = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_bundle_holds_these_files_and_no_other(tmp_path):
    """Weights, rows, texts and code under a manifest; nothing that is pickle or a program."""
    ref = write_bundle(tmp_path, tiny_contents())

    assert set(files_of(Path(ref.uri))) == {
        "code/tiny.py",
        "config.yaml",
        "evaluation.json",
        "example.json",
        "lineage.json",
        "manifest.json",
        "profile.json",
        "profiles.parquet",
        "recipe.json",
        "rows.safetensors",
        "signature.json",
        "state.json",
        "weights.safetensors",
    }
    assert ref.uri == str(tmp_path / "bundles" / ref.digest)


def test_the_same_contents_twice_are_one_bundle_that_is_not_touched(tmp_path):
    """Same digest, same folder, not even a new modification time."""
    ref = write_bundle(tmp_path, tiny_contents())
    before = files_of(tmp_path)

    assert write_bundle(tmp_path, tiny_contents()) == ref
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("change", ["weights", "state", "seed"])
def test_other_contents_are_another_bundle(tmp_path, change):
    """One number changed anywhere changes the digest."""
    contents = tiny_contents()
    changed = {
        "weights": {name: tensor + 1e-3 for name, tensor in contents.weights.items()},
        "state": {**contents.state, "width_mean": 10.0},
        "seed": 4,
    }[change]

    first, second = (write_bundle(tmp_path, item) for item in (contents, replace(contents, **{change: changed})))

    assert first.digest != second.digest


def test_tied_weights_are_written_under_both_names(tmp_path):
    """Two names for one tensor are no obstacle, and give the bytes that two equal tensors give."""
    tensor = torch.arange(6.0).reshape(2, 3)
    tied = write_bundle(tmp_path, tiny_contents(weights={"a": tensor, "b": tensor}))
    equal = write_bundle(tmp_path, tiny_contents(weights={"a": tensor, "b": tensor.clone()}))

    assert tied == equal


def test_weights_are_the_bytes_of_safetensors_save(tmp_path):
    """Whatever they lie in: views of one storage that overlap or not, other types, no element, no dimension."""
    base = torch.arange(12.0).reshape(4, 3)
    weights = {
        "left": base[:2],
        "right": base[2:],
        "middle": base[1:3],
        "across": base.T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }
    ref = write_bundle(tmp_path, tiny_contents(weights=weights))

    path = Path(ref.uri, "weights.safetensors")
    assert path.read_bytes() == save({name: tensor.contiguous().clone() for name, tensor in weights.items()})
    assert path.stat().st_mode == Path(ref.uri, "state.json").stat().st_mode


MEMORY = """
import sys
from pathlib import Path
import torch
from tiny_bundle import tiny_contents
from raymlops.bundle.write import write_bundle

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10

write_bundle(sys.argv[1], tiny_contents())
weights = {str(number): torch.ones(1 << 22) for number in range(8)}
before = peak_bytes()
write_bundle(sys.argv[1], tiny_contents(weights=weights))
print((peak_bytes() - before) / sum(tensor.nbytes for tensor in weights.values()))
"""


def test_writing_takes_no_copy_of_the_weights(tmp_path):
    """128 MB of weights raise the highest resident memory by less than a quarter of that."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(TESTS / "fixtures")}

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert float(done.stdout) < 0.25


def test_a_metric_that_is_nan_is_null(tmp_path):
    """JSON has no NaN; an evaluation is recorded all the same."""
    ref = write_bundle(tmp_path, tiny_contents(evaluation={"metrics": {"test/auc": float("nan"), "n": np.int64(3)}}))

    text = Path(ref.uri, "evaluation.json").read_text(encoding="utf-8")
    assert text.split() == ["{", '"metrics":', "{", '"n":', "3,", '"test/auc":', "null", "}", "}"]


def test_a_state_that_is_no_json_is_refused(tmp_path):
    """A recipe whose fit returned an object is told so, and nothing is written."""
    with pytest.raises(RecipeError, match=r"state\.json .* complex is not JSON data"):
        write_bundle(tmp_path, tiny_contents(state={"mean": 1j}))

    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_in_its_place_is_named(tmp_path):
    """Writing again does not pass over damage."""
    ref = write_bundle(tmp_path, tiny_contents())
    Path(ref.uri, "config.yaml").write_text("project: {name: tinY}\n", encoding="utf-8")

    with pytest.raises(BundleError, match=r"config\.yaml: expected SHA-256"):
        write_bundle(tmp_path, tiny_contents())


def test_storage_that_cannot_be_written_is_named(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "store").write_text("", encoding="utf-8")

    with pytest.raises(StorageError, match="store/bundles"):
        write_bundle(tmp_path / "store", tiny_contents())


KILL = """
import os, signal, sys
from tiny_bundle import tiny_contents
from raymlops.bundle.write import write_bundle

contents = tiny_contents()
for point in ("state.json", "manifest.json", "rename"):
    child = os.fork()
    if child == 0:
        def hook(event, args):
            renamed = event == "os.rename" and point == "rename"
            opened = event == "open" and str(args[0]).endswith(point) and ".tmp/" in str(args[0])
            if renamed or opened:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write_bundle(os.path.join(sys.argv[1], point), contents)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_writer_killed_at_any_point_leaves_nothing_that_looks_like_a_bundle(tmp_path):
    """kill -9 before a file, before the manifest, before the rename: only a hidden folder is left."""
    script = tmp_path / "kill.py"
    script.write_text(KILL, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(TESTS / "fixtures")}

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["-9", "-9", "-9"]
    for point in ("state.json", "manifest.json", "rename"):
        (left,) = (tmp_path / point / "bundles").iterdir()
        assert left.name.startswith(".")
        ref = write_bundle(tmp_path / point, tiny_contents())
        verify(ref.uri, ref.digest)


def test_what_was_abandoned_a_day_ago_is_removed(tmp_path):
    """A killed writer's folder goes at the next write, a fresh one stays: its writer may be alive."""
    old, fresh = (tmp_path / "bundles" / f".{name}.tmp" for name in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))

    write_bundle(tmp_path, tiny_contents())

    assert not old.exists()
    assert fresh.exists()


def test_a_remote_bundle_is_fetched_into_the_cache_and_verified(s3, tmp_path):
    """What comes back is what was written; a damaged cache is fetched again."""
    ref = write_bundle(s3.uri("bucket/store"), tiny_contents(), cache=tmp_path)
    folder = fetch(ref.uri, ref.digest, cache=tmp_path)
    (folder / "state.json").write_text("{}", encoding="utf-8")

    assert fetch(ref.uri, ref.digest, cache=tmp_path) == tmp_path / ref.digest
    verify(folder, ref.digest)
    verify(ref.uri, ref.digest)
    assert ref.uri.partition("?")[0] == f"s3://bucket/store/bundles/{ref.digest}"


def test_a_bundle_that_was_fetched_beforehand_needs_no_storage(s3, tmp_path):
    """Its digest says that it is whole; what is no digest is no name of a folder."""
    ref = write_bundle(s3.uri("bucket/store"), tiny_contents(), cache=tmp_path)
    folder = fetch(ref.uri, ref.digest, cache=tmp_path)
    s3.objects.clear()

    assert fetch(ref.uri, ref.digest, cache=tmp_path) == folder
    with pytest.raises(BundleError, match="not a digest"):
        fetch(ref.uri, f"../{tmp_path.name}", cache=tmp_path)
    assert folder.exists()


def test_a_remote_folder_without_manifest_is_no_bundle_and_is_written_again(s3, tmp_path):
    """The manifest comes last, so a killed upload lacks it."""
    ref = write_bundle(s3.uri("bucket"), tiny_contents(), cache=tmp_path)
    assert [request for request in s3.requests if request.startswith("PUT")][-1].endswith("/manifest.json")
    del s3.objects[f"bucket/bundles/{ref.digest}/manifest.json"]

    with pytest.raises(BundleError, match="got nothing"):
        verify(ref.uri, ref.digest)
    assert write_bundle(s3.uri("bucket"), tiny_contents(), cache=tmp_path) == ref
    verify(ref.uri, ref.digest)


def test_a_remote_bundle_that_was_tampered_with_is_refused(s3, tmp_path):
    """Another content under a listed name reaches no cache."""
    ref = write_bundle(s3.uri("bucket"), tiny_contents(), cache=tmp_path)
    code = f"bucket/bundles/{ref.digest}/code/tiny.py"
    s3.objects[code] = s3.objects[code].replace(b"sigmoid", b"sigmoiD")

    with pytest.raises(BundleError, match=r"code/tiny\.py: expected SHA-256"):
        fetch(ref.uri, ref.digest, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []

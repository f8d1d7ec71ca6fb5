"""Sharded checkpoints: written by two ranks, read by one, two and three, and by none."""

from __future__ import annotations

import os
import pickle
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import rank_jobs as jobs
import torch
from ranks import ranks
from saved_weights import read_full
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from raymlops.errors import RecipeError, StorageError
from raymlops.training.checkpoints.sharded import load, start_save

if TYPE_CHECKING:
    from pathlib import Path

FSDP = {"strategy": "fsdp"}


@pytest.fixture(scope="module", params=["blocks", "language", "sgd"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder that two ranks wrote after three steps, how they went on, and how one resumes from it."""
    folder = tmp_path_factory.mktemp("sharded")
    given = {
        "folder": str(folder),
        "before": 3,
        "after": 3,
        "spec": FSDP | ({"optimizer": "sgd"} if request.param == "sgd" else {}),
        "language": request.param == "language",
    }
    return folder, ranks().run(2, partial(jobs.checkpoint, **given))[0], partial(jobs.resume, **given)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_goes_on(saved: Any, world: int) -> None:
    """Weights, moments and step counts come back, so the losses are those of the ranks that were not interrupted."""
    _, want, job = saved
    for found in ranks().run(world, job):
        for name, tensor in want["state"].items():
            torch.testing.assert_close(found["state"][name], tensor, rtol=0, atol=0)
        assert len(found["moments"]) == len(want["moments"]) > 0
        for tensor, moment in zip(found["moments"], want["moments"], strict=True):
            torch.testing.assert_close(tensor, moment, rtol=0, atol=0)
        assert found["losses"] == pytest.approx(want["losses"], rel=1e-5)
        for name, tensor in want["end"].items():
            torch.testing.assert_close(found["end"][name], tensor, rtol=1e-4, atol=1e-5)


def test_as_many_ranks_go_on_exactly(saved: Any) -> None:
    """On two ranks again every bit is the same."""
    _, want, job = saved
    found = ranks().run(2, job)[0]
    assert found["losses"] == want["losses"]
    for name, tensor in want["end"].items():
        torch.testing.assert_close(found["end"][name], tensor, rtol=0, atol=0)


def test_one_process_reads_the_whole_model(saved: Any) -> None:
    """For a bundle: whole tensors under their own names, without a process group, the optimizer left out."""
    folder, want, _ = saved
    found = read_full(folder)
    assert found.keys() == want["state"].keys()
    for name, tensor in want["state"].items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_the_state_is_that_of_the_call(saved: Any) -> None:
    """Training went on while a thread wrote; what lies there is the state at the call, not a later one."""
    folder, want, _ = saved
    name = next(iter(want["state"]))
    assert not torch.equal(want["state"][name], want["end"][name])
    torch.testing.assert_close(read_full(folder)[name], want["state"][name], rtol=0, atol=0)


def test_each_rank_may_write_into_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two folders, put together afterwards, are one checkpoint."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    job = partial(jobs.failed_save, folders=[str(folder) for folder in folders], spec=FSDP, spoil=False)
    assert ranks().run(2, job) == ["saved", "saved"]
    assert [path.name for path in folders[1].iterdir()] == ["__1_0.distcp"]
    shutil.copytree(folders[1], folders[0], dirs_exist_ok=True)
    assert ranks().run(3, partial(jobs.failed_load, folders=[str(folders[0])] * 3, spec=FSDP)) == ["loaded"] * 3


def test_a_rank_that_cannot_write_fails_all(tmp_path: Path) -> None:
    """Rank 1's folder is a file; both ranks hear of it, by its rank and its reason, and none waits for ever."""
    (tmp_path / "b").write_text("")
    folders = [str(tmp_path), str(tmp_path / "b" / "c")]
    for message in ranks().run(2, partial(jobs.failed_save, folders=folders, spec=FSDP, spoil=False)):
        assert message.startswith("StorageError: the sharded checkpoint cannot be written: rank 1: NotADirectoryError")
        assert "Traceback" not in message


def test_nan_is_not_written(tmp_path: Path) -> None:
    """NaN in the shard of rank 1 alone: both ranks refuse, name the tensor and leave the folder empty."""
    job = partial(jobs.failed_save, folders=[str(tmp_path)] * 2, spec=FSDP, spoil=True)
    for message in ranks().run(2, job):
        assert message.startswith("NonFiniteError: a state with NaN or infinity is not saved")
        assert "optimizer.first.weight.exp_avg" in message
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_before_its_first_step(tmp_path: Path) -> None:
    """Saving one that holds nothing gives it nothing: torch's own way would count a step that was never taken."""
    assert ranks().run(2, partial(jobs.untouched_optimizer, folder=str(tmp_path), spec=FSDP)) == [(0, 0)] * 2


def test_a_missing_shard(saved: Any, tmp_path: Path) -> None:
    """Every rank, and the reader without ranks, says that the checkpoint cannot be read and which file is not there."""
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(StorageError, match=r"cannot be read: rank 0: FileNotFoundError: .*__1_0\.distcp"):
        read_full(folder)
    for message in ranks().run(3, partial(jobs.failed_load, folders=[str(folder)] * 3, spec=FSDP)):
        assert message.startswith("StorageError: the sharded checkpoint cannot be read")


@pytest.mark.parametrize("content", [None, b"no pickle"])
def test_missing_or_damaged_metadata(tmp_path: Path, content: bytes | None) -> None:
    """Without the list of tensors nothing can be read."""
    if content is not None:
        (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(StorageError, match="the sharded checkpoint cannot be read"):
        read_full(tmp_path)


class Exploit:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._made),)


def test_code_in_the_list_of_tensors_is_not_run(tmp_path: Path) -> None:
    """Whoever can write to a run's folder can write its digests too; what is unpickled are descriptions of tensors."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Exploit(tmp_path / "made")}))
    with pytest.raises(StorageError, match=r"cannot be read: UnpicklingError: .*mkdir"):
        read_full(tmp_path)
    # A name with a dot would lead from an allowed module to any other.
    texts = ["torch.distributed.checkpoint.metadata", "os.mkdir", str(tmp_path / "made")]
    module, name, made = (b"\x8c" + bytes([len(text)]) + text.encode() for text in texts)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + module + name + b"\x93" + made + b"\x85R.")
    with pytest.raises(StorageError, match=r"cannot be read: UnpicklingError: .*os\.mkdir"):
        read_full(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_code_in_a_value_of_the_optimizer_is_not_run(tmp_path: Path) -> None:
    """Values other than tensors are pickles too; plain ones are read, and what could not be is not written."""
    model = torch.nn.Linear(2, 1)
    optimizer, fresh = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    optimizer.state[model.bias]["step"] = 3
    start_save(tmp_path / "plain", model, {"": optimizer}, group=None)()
    load(tmp_path / "plain", model, {"": fresh})
    assert fresh.state[model.bias]["step"] == 3

    optimizer.state[model.bias]["step"] = {"count": 3}
    with pytest.raises(RecipeError, match="step is a dict, which a checkpoint in shards cannot hold"):
        start_save(tmp_path / "refused", model, {"": optimizer}, group=None)
    optimizer.state[model.bias]["step"] = Exploit(tmp_path / "made")
    with pytest.raises(RecipeError, match=r"^optimizer\.bias\.step is a Exploit, which a checkpoint cannot hold"):
        start_save(tmp_path / "refused", model, {"": optimizer}, group=None)
    state = {"model.weight": model.weight, "model.bias": model.bias, "optimizer.bias.step": Exploit(tmp_path / "made")}
    dcp_save(state, storage_writer=FileSystemWriter(tmp_path / "saved"), no_dist=True)
    with pytest.raises(StorageError, match="cannot be read"):
        load(tmp_path / "saved", model, {"": fresh})
    assert not (tmp_path / "made").exists()


def test_a_rank_that_cannot_read_fails_all(saved: Any, tmp_path: Path) -> None:
    """Only rank 1 lacks the list of tensors; rank 0 hears of it instead of waiting."""
    job = partial(jobs.failed_load, folders=[str(saved[0]), str(tmp_path)], spec=FSDP)
    for message in ranks().run(2, job):
        assert message.startswith("StorageError: the sharded checkpoint cannot be read: FileNotFoundError")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    """A parameter that was not saved is named."""
    folders = [str(tmp_path)] * 2
    assert ranks().run(2, partial(jobs.failed_save, folders=folders, spec=FSDP, spoil=False)) == ["saved"] * 2
    job = partial(jobs.failed_load, folders=folders, spec=FSDP, config={"tied": True})
    for message in ranks().run(2, job):
        assert message.startswith("StorageError: the sharded checkpoint cannot be read: rank 0: RuntimeError")
        assert "model.again.weight" in message

"""Which checkpoints stay, and what they hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from raymlops.errors import RecipeError, StorageError
from raymlops.training.checkpoint import FolderSaver, load_weights, tensors
from raymlops.training.context import Snapshot

if TYPE_CHECKING:
    from pathlib import Path


def snapshot(epoch: int, *, value: float = 0.0) -> Snapshot:
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.nn.init.constant_(model.weight, value)
    return Snapshot(epoch, epoch * 10, {"validation/loss": 0.5}, model, optimizer, {"mean": 1.5})


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_the_best_and_the_last_few_stay(tmp_path: Path) -> None:
    """Best is epoch 2; of epochs 1 to 6 every second is due, and 2 of those are kept beside it."""
    saver = FolderSaver(str(tmp_path), every_epochs=2, keep=2)
    for epoch in range(1, 7):
        saver.save(snapshot(epoch), best=epoch <= 2, last=epoch == 6)
    assert kept(tmp_path) == ["epoch-0002", "epoch-0004", "epoch-0006"]
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["best"], index["last"]) == ("epoch-0002", "epoch-0006")
    assert saver.best_uri == f"{tmp_path}/epoch-0002"


def test_a_best_that_was_beaten_goes(tmp_path: Path) -> None:
    """Every epoch improves, one is kept: only the last one is there."""
    saver = FolderSaver(str(tmp_path), every_epochs=10, keep=1)
    for epoch in range(1, 5):
        saver.save(snapshot(epoch), best=True, last=False)
    assert kept(tmp_path) == ["epoch-0004"]


def test_weights_and_fitted_state_come_back(tmp_path: Path) -> None:
    """What was saved is what is loaded; the optimizer's state loads without pickle."""
    saver = FolderSaver(str(tmp_path), every_epochs=1, keep=1)
    saver.save(snapshot(1, value=3.0), best=True, last=True)
    weights, state = load_weights(saver.best_uri)
    assert weights["weight"].tolist() == [[3.0, 3.0]]
    assert state == {"mean": 1.5}
    trainer = torch.load(tmp_path / "epoch-0001" / "trainer.pt", weights_only=True)
    assert (trainer["epoch"], trainer["step"]) == (1, 10)
    assert trainer["optimizer"]["state"][0]["step"] == 1


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    """A changed byte is found before it is read as weights."""
    saver = FolderSaver(str(tmp_path), every_epochs=1, keep=1)
    saver.save(snapshot(1), best=True, last=True)
    path = tmp_path / "epoch-0001" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"model\.safetensors is damaged"):
        load_weights(saver.best_uri)


def test_a_failed_write_keeps_the_best_and_says_where(tmp_path: Path) -> None:
    """Something in the way of epoch 2: the error names epoch 1's folder, which still loads."""
    saver = FolderSaver(str(tmp_path), every_epochs=1, keep=1)
    saver.save(snapshot(1, value=2.0), best=True, last=False)
    (tmp_path / "epoch-0002").write_text("in the way")
    with pytest.raises(StorageError, match="the checkpoint of epoch 2 failed") as raised:
        saver.save(snapshot(2), best=True, last=False)
    assert f"{tmp_path}/epoch-0001" in str(raised.value.hint)
    assert load_weights(saver.best_uri)[0]["weight"].tolist() == [[2.0, 2.0]]


def test_tied_weights_become_copies_that_load_back() -> None:
    """Two names of one tensor are stored twice, which safetensors accepts and load_state_dict takes."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    state = tensors(model)
    assert state["a.weight"].data_ptr() != state["b.weight"].data_ptr()
    assert not model.load_state_dict(state).missing_keys


def test_a_state_of_more_than_tensors_is_refused() -> None:
    """Extra state would need pickle."""

    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> object:
            return {"vocabulary": ["a"]}

    with pytest.raises(RecipeError, match="_extra_state, which is no tensor"):
        tensors(Extra(1, 1))

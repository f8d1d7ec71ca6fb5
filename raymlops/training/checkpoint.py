"""Checkpoints of a run: the last few and the best, in folders that are whole or absent.

::

    runs/<run_id>/checkpoints/
      epoch-0003/   model.safetensors  trainer.pt  state.json  manifest.json
      index.json    which one is best, which one is last

The index is replaced in one step after a checkpoint is there, so it never names one that is not. No pickle:
``trainer.pt`` loads with ``weights_only=True``. Rank 0 alone writes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from raymlops.errors import RecipeError, StorageError
from raymlops.training import storage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from raymlops.training.context import Snapshot

MODEL = "model.safetensors"
TRAINER = "trainer.pt"
STATE = "state.json"


class FolderSaver:
    """Keeps the best checkpoint and the last ``keep`` of those that are due every ``every_epochs``."""

    def __init__(self, uri: str, *, every_epochs: int, keep: int) -> None:
        self.uri = uri
        self.best: str | None = None
        self._every_epochs = every_epochs
        self._keep = keep
        self._recent: list[str] = []

    @property
    def best_uri(self) -> str:
        """Return the folder of the best checkpoint."""
        if self.best is None:
            raise StorageError(f"no checkpoint was written to {self.uri!r}")
        return storage.join(self.uri, self.best)

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:
        """Write a checkpoint if it is the best, the last or due, then drop those no longer kept.

        Raises:
            StorageError: it cannot be written; the message names the last good checkpoint, which stays.
            RecipeError: the model's state holds more than tensors.
        """
        if not (best or last or snapshot.epoch % self._every_epochs == 0):
            return
        name = f"epoch-{snapshot.epoch:04d}"
        try:
            storage.publish(storage.join(self.uri, name), lambda folder: _write(folder, snapshot))
            chosen = name if best else self.best
            index = json.dumps({"format_version": storage.FORMAT_VERSION, "best": chosen, "last": name})
            storage.write_bytes(storage.join(self.uri, "index.json"), index.encode())
        except StorageError as error:
            kept = f"The best checkpoint so far is kept: {self.best_uri}" if self.best else error.hint
            raise StorageError(
                f"the checkpoint of epoch {snapshot.epoch} failed: {error.message}", hint=kept
            ) from error
        before, self.best = self.best, chosen
        self._recent.append(name)
        expired = [old for old in self._recent[: -self._keep] if old != self.best]
        self._recent = self._recent[-self._keep :]
        if before is not None and before != self.best and before not in self._recent:
            expired.append(before)
        for old in dict.fromkeys(expired):
            storage.delete(storage.join(self.uri, old))


class MemorySaver:
    """Keeps the best model's state in memory, for trials."""

    def __init__(self) -> None:
        self.model_state: dict[str, torch.Tensor] = {}

    def save(self, snapshot: Snapshot, *, best: bool, last: bool) -> None:  # noqa: ARG002 - the best alone counts
        """Keep a copy if it is the best so far."""
        if best:
            self.model_state = tensors(snapshot.model)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state as tensors of their own on the CPU; tied weights become equal copies.

    Raises:
        RecipeError: the state holds something else.
    """
    state = model.state_dict()
    other = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise RecipeError(
            f"the model's state_dict() holds {', '.join(other)}, which is no tensor",
            hint="Keep other values in fit()'s state or in the recipe's config; weights are stored without pickle.",
        )
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def load_weights(weights_uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return a checkpoint's model state and what ``fit`` learnt, after checking every file's digest.

    Raises:
        NotFoundError: there is no checkpoint.
        StorageError: a file is damaged.
    """
    from safetensors.torch import load_file

    with storage.verified(weights_uri) as folder:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return load_file(folder / MODEL), dict(state["fit"])


def _write(folder: Path, snapshot: Snapshot) -> None:
    from safetensors.torch import save_file

    _io(lambda: save_file(tensors(snapshot.model), folder / MODEL))
    trainer = {
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "optimizer": snapshot.optimizer.state_dict() if snapshot.optimizer is not None else None,
    }
    _io(lambda: torch.save(trainer, folder / TRAINER))
    state: Mapping[str, Any] = {
        "format_version": storage.FORMAT_VERSION,
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "metrics": snapshot.metrics,
        "fit": dict(snapshot.state),
    }
    (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def _io(write: Any) -> None:
    """Run a writer of torch or safetensors, which report a full disk as errors of their own kinds."""
    try:
        write()
    except RecipeError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error

"""Read and write the files of a checkpoint: model, optimizer, scaler and state.

Owns the file names and their formats. Knows nothing of when or where checkpoints are written, or which are kept.

No pickle: ``trainer.pt`` loads with ``weights_only=True``, and ``sharded`` reads the pickles of torch's format as data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from raymlops.bundle.weights import read_into
from raymlops.errors import NotFoundError
from raymlops.storage import filesystem, manifest
from raymlops.storage.verified_reader import VerifiedFolder
from raymlops.training.checkpoints.retention import POINTER, STATE, Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
"""One optimizer, or several by name."""


class Stateful(Protocol):
    """What a checkpoint can keep: its state is made of tensors, numbers, texts, lists and dicts."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> object:
        """Restore it."""


MODEL = "model.safetensors"
TRAINER = "trainer.pt"
SHARDS = ".metadata"
"""torch.distributed.checkpoint's index of tensors and files."""
TRAINED = "raymlops.trained"
"""The entry of ``keep`` with the weights that are trained, where a loop keeps others, such as averages of its own."""


def write_whole(folder: Path, *, model: Mapping[str, torch.Tensor], trainer: Mapping[str, Any]) -> None:
    """Write a model's and its trainer's state from host memory.

    Raises:
        OSError: they cannot be written; torch and safetensors report a full disk as errors of their own kinds.
    """
    from safetensors.torch import save_file

    try:
        save_file(dict(model), folder / MODEL)
        write_trainer(folder, trainer)
        # safetensors creates a file that only its owner can read; torch's has the umask's mode.
        (folder / MODEL).chmod((folder / TRAINER).stat().st_mode & 0o777)
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def write_trainer(folder: Path, trainer: Mapping[str, Any]) -> None:
    """Write ``optimizers``, ``scaler``, ``keep`` and ``online``; what is in shards is left out."""
    torch.save(dict(trainer), folder / TRAINER)


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write everything but tensors. NaN and infinity are written as Python's json does."""
    (folder / STATE).write_text(json.dumps({"format_version": manifest.CHECKPOINT.version, **state}), encoding="utf-8")


def read_state(data: bytes, uri: str) -> dict[str, Any]:
    """Return what ``write_state`` wrote.

    Raises:
        ValueError: it is damaged.
        StorageError: a newer raymlops wrote it.
    """
    state = json.loads(data)
    if not isinstance(state, dict) or not isinstance(version := state.get("format_version"), int):
        raise ValueError(f"{STATE} has no format_version")
    if version > manifest.CHECKPOINT.version:
        raise manifest.newer(uri, version)
    return state


def read_pointer(checkpoints_uri: str) -> Kept | None:
    """Return the pointer of a run's checkpoints; None if it does not exist or is damaged.

    Raises:
        StorageError: it cannot be read, or a newer raymlops wrote it.
    """
    try:
        return Kept.from_json(filesystem.read_bytes(filesystem.join(checkpoints_uri, POINTER)))
    except NotFoundError:
        return None


def optimizers_of(optimizer: Optimizers | None) -> dict[str, torch.optim.Optimizer]:
    """Return optimizers by name; a single one has the empty name."""
    if optimizer is None:
        return {}
    return dict(optimizer) if isinstance(optimizer, Mapping) else {"": optimizer}


def kinds_of(optimizer: Optimizers | None) -> str | None:
    """Return the classes of optimizers, which a checkpoint names."""
    kinds = {key: type(each).__name__ for key, each in optimizers_of(optimizer).items()}
    return ", ".join(f"{key}: {kind}" if key else kind for key, kind in kinds.items()) or None


def needed(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that a checkpoint of that state must have."""
    return (STATE, SHARDS, TRAINER) if state.get("sharded") else (STATE, MODEL, TRAINER)


@dataclass(frozen=True)
class Trained:
    """A verified checkpoint: what ``fit`` learnt, and weights that are read when they are asked for."""

    files: Path | VerifiedFolder
    """A sharded one's are verified as they are read."""
    fit: dict[str, Any]
    step: int
    """Of the run, when it was written."""

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into a model on the CPU, without a second copy of them in memory.

        Raises:
            RuntimeError: they do not fit the model.
            StorageError: a file is damaged.
        """
        if isinstance(self.files, VerifiedFolder):
            from raymlops.training.checkpoints.sharded import read_into as read_shards_into

            read_shards_into(model, self.files)
        else:
            read_into(model, self.files / MODEL)


@contextlib.contextmanager
def trained(weights_uri: str, *, on_progress: Callable[[], object] = lambda: None) -> Iterator[Trained]:
    """Yield a checkpoint; of a sharded one nothing but the model is read. ``on_progress`` is called as bytes arrive.

    Raises:
        NotFoundError: there is no checkpoint.
        StorageError: a file is damaged.
    """
    with contextlib.ExitStack() as stack:
        shards = stack.enter_context(VerifiedFolder(weights_uri, on_progress=on_progress))
        state = whole_state(shards)
        whole = manifest.verified(weights_uri, only=(MODEL,), on_progress=on_progress)
        files = shards if state.get("sharded") else stack.enter_context(whole)
        yield Trained(files, dict(state["fit"]), int(state.get("run", {}).get("step", 0)))


def whole_state(files: VerifiedFolder) -> dict[str, Any]:
    """Return a checkpoint's state, once its manifest names all that belongs to it.

    Raises:
        DamagedError: it does not, or the state is damaged.
        StorageError: it cannot be read, or a newer raymlops wrote it.
    """
    try:
        state = read_state(files.read(STATE), files.uri)
    except ValueError as error:
        raise manifest.unusable(files.uri, f"{STATE} cannot be read: {error}") from error
    if missing := [name for name in needed(state) if name not in files.files]:
        raise manifest.unusable(files.uri, f"{manifest.MANIFEST} does not name {', '.join(missing)}")
    return state

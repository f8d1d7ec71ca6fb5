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
from torch import distributed

from raymlops.bundle.weights import read_into
from raymlops.config.paths import local_path
from raymlops.errors import NotFoundError, RecipeError, StorageError, UsageError
from raymlops.storage import filesystem, manifest
from raymlops.training.checkpoints.host_copies import model_state
from raymlops.training.checkpoints.retention import POINTER, STATE, Kept, with_best_of
from raymlops.training.checkpoints.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from raymlops.training.ema import Ema

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

_SHOWN = 5


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

    folder: Path
    sharded: bool
    fit: dict[str, Any]
    step: int
    """Of the run, when it was written."""

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into a model on the CPU, without a second copy of them in memory.

        Raises:
            RuntimeError: they do not fit the model.
            StorageError: a file is damaged.
        """
        if self.sharded:
            from raymlops.training.checkpoints.sharded import read_into as read_shards_into

            read_shards_into(model, self.folder)
        else:
            read_into(model, self.folder / MODEL)


@contextlib.contextmanager
def trained(weights_uri: str) -> Iterator[Trained]:
    """Yield a checkpoint after checking every file's digest.

    Raises:
        NotFoundError: there is no checkpoint.
        StorageError: a file is damaged.
    """
    with manifest.verified(weights_uri, needs=(STATE,)) as folder:
        state = _whole_state(folder, weights_uri)
        step = int(state.get("run", {}).get("step", 0))
        yield Trained(folder, bool(state.get("sharded")), dict(state["fit"]), step)


def restore(
    folder_uri: str,
    *,
    identity: Mapping[str, str],
    model: nn.Module,
    optimizer: Optimizers | None,
    scaler: Any | None = None,
    ema: Ema | None = None,
    keep: Mapping[str, Stateful] | None = None,
    sharded: bool = False,
    kept: Kept | None = None,
) -> RunState:
    """Put a checkpoint's state into the model and all that trains it, and return the run's state.

    Every file's digest is verified before any of them is loaded. Sharded, all ranks call this together. With ``kept``,
    the returned state's best report is one whose checkpoint still exists.

    Raises:
        NotFoundError: there is no checkpoint.
        StorageError: a file is damaged.
        UsageError: another recipe or another configuration wrote it.
        RecipeError: model or optimizer differ from what wrote it.
    """
    with _verified(folder_uri, together=sharded) as folder:
        state = _whole_state(folder, folder_uri)
        if "run" not in state:
            raise UsageError(
                f"checkpoint {folder_uri!r} is of an older format, which holds weights but not the run's progress",
                hint="Its weights can be loaded; the training cannot be resumed.",
            )
        _check_identity(state, folder_uri, identity=identity, sharded=sharded)
        _check_optimizer(state, folder_uri, optimizer=optimizer)
        trainer = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
        optimizers = optimizers_of(optimizer)
        online: Mapping[str, torch.Tensor] = {}
        if sharded:
            from raymlops.training.checkpoints.sharded import load

            online = load(folder, model, optimizers, online=ema.named() if ema is not None and state.get("ema") else {})
        else:
            _load_model(folder, folder_uri, model=model)
            # A single one was under a key of its own before there could be several.
            saved = trainer["optimizers"] if "optimizers" in trainer else {"": trainer["optimizer"]}
            for key, each in optimizers.items():
                _load_optimizer(saved[key], folder_uri, optimizer=each)
            online = trainer.get("online", {})
        if ema is not None:
            ema.load(online)
        if scaler is not None and trainer["scaler"]:
            scaler.load_state_dict(trainer["scaler"])
        _load_kept(trainer.get("keep", {}), folder_uri, keep=keep or {})
    run = RunState.from_dict(state["run"])
    return run if kept is None else with_best_of(run, kept)


@contextlib.contextmanager
def _verified(uri: str, *, together: bool) -> Iterator[Path]:
    """Yield a verified folder; where all ranks see it, each verifies a part of the shards."""
    world = distributed.get_world_size() if together and distributed.is_initialized() else 1
    folder = local_path(uri)
    if world == 1 or folder is None:
        with manifest.verified(uri, needs=(STATE,)) as verified:
            yield verified
        return
    rank, own = distributed.get_rank(), {STATE, SHARDS, TRAINER}
    problem: str | None
    try:
        problem = manifest.damage(uri, needs=(STATE,), check=lambda index, name: index % world == rank or name in own)
    except (NotFoundError, StorageError) as error:
        problem = error.message
    problems: list[str | None] = [None] * world
    distributed.all_gather_object(problems, problem)
    if found := next(filter(None, problems), None):
        raise manifest.unusable(uri, found)
    yield folder


def _whole_state(folder: Path, uri: str) -> dict[str, Any]:
    try:
        state = read_state((folder / STATE).read_bytes(), uri)
    except ValueError as error:
        raise StorageError(f"{uri!r}: {STATE} cannot be read: {error}") from error
    unchecked = [name for name in needed(state) if name not in manifest.names(folder)]
    if unchecked:
        raise StorageError(f"{uri!r}: {manifest.MANIFEST} does not name {', '.join(unchecked)}")
    return state


def _check_identity(state: Mapping[str, Any], uri: str, *, identity: Mapping[str, str], sharded: bool) -> None:
    wrote = dict(state["identity"])
    if wrote != dict(identity):
        raise UsageError(
            f"checkpoint {uri!r} was written by {_described(wrote)}; this run is {_described(identity)}",
            hint="Resume with the recipe and configuration that wrote it, or start a new run.",
        )
    if bool(state["sharded"]) != sharded:
        kinds = {True: "in shards (train.strategy: fsdp)", False: "as a whole (train.strategy: ddp)"}
        raise UsageError(f"checkpoint {uri!r} was written {kinds[not sharded]}, this run reads {kinds[sharded]}")


def _described(identity: Mapping[str, str]) -> str:
    others = "".join(f", {key} {value}" for key, value in sorted(identity.items()) if key not in {"recipe", "config"})
    return f"recipe {identity.get('recipe')} with config {str(identity.get('config'))[:12]}{others}"


def _check_optimizer(state: Mapping[str, Any], uri: str, *, optimizer: Optimizers | None) -> None:
    if optimizer is None:
        return
    wrote, this = state["optimizer"], kinds_of(optimizer)
    if wrote is None:
        raise RecipeError(
            f"checkpoint {uri!r} holds no optimizer state, this run has {this}",
            hint="Pass optimizer= to ctx.report(...), so that a run can be resumed.",
        )
    if wrote != this:
        raise RecipeError(f"checkpoint {uri!r} holds the state of optimizer {wrote}, this run has {this}")


def _load_model(folder: Path, uri: str, *, model: nn.Module) -> None:
    from safetensors.torch import load_file

    weights, now = load_file(folder / MODEL), model_state(model)
    problems = [f"{name} is missing" for name in now if name not in weights]
    problems += [f"{name} is not in the model" for name in weights if name not in now]
    problems += [
        f"{name} is {tuple(value.shape)}, the model's is {tuple(now[name].shape)}"
        for name, value in weights.items()
        if name in now and value.shape != now[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise RecipeError(
            f"checkpoint {uri!r} does not fit the recipe's model: {'; '.join(problems[:_SHOWN])}{more}",
            hint="model() must build what it built when the checkpoint was written.",
        )
    model.load_state_dict(weights)


def _load_optimizer(saved: Mapping[str, Any], uri: str, *, optimizer: torch.optim.Optimizer) -> None:
    try:
        optimizer.load_state_dict(dict(saved))
    except (ValueError, KeyError) as error:
        raise RecipeError(
            f"checkpoint {uri!r} does not fit the optimizer {type(optimizer).__name__}: {error}",
            hint="The optimizer must be made over the same parameters, in the same groups.",
        ) from error


def _load_kept(saved: Mapping[str, Any], uri: str, *, keep: Mapping[str, Stateful]) -> None:
    for key, each in keep.items():
        if key in saved:
            each.load_state_dict(saved[key])
        elif each.state_dict():  # what has no state had none to save
            raise RecipeError(
                f"checkpoint {uri!r} holds no state of {key!r}; it holds {', '.join(sorted(saved)) or 'none'}",
                hint="Resume with the code that wrote it, or start a new run.",
            )

"""Read and write the files of a checkpoint: model, optimizer, scaler and state.

Owns the file names and their formats. Knows nothing of when or where checkpoints are written, or which are kept.

No pickle: ``trainer.pt`` loads with ``weights_only=True``, and ``sharded`` reads the pickles of torch's format as data.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed

from raymlops.bundle.weights import read_into
from raymlops.errors import DamagedError, NotFoundError, RaymlopsError, RecipeError, UsageError
from raymlops.storage import filesystem, manifest
from raymlops.storage.verified_reader import VerifiedFolder
from raymlops.training.checkpoints.for_all_ranks import for_all, gathered
from raymlops.training.checkpoints.host_copies import model_state
from raymlops.training.checkpoints.retention import POINTER, STATE, Kept, with_best_of
from raymlops.training.checkpoints.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
TRAINED = "raymlops.trained"
"""The entry of ``keep`` with the weights that are trained, where a loop keeps others, such as averages of its own."""

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
        state = _whole_state(shards)
        whole = manifest.verified(weights_uri, on_progress=on_progress)
        files = shards if state.get("sharded") else stack.enter_context(whole)
        yield Trained(files, dict(state["fit"]), int(state.get("run", {}).get("step", 0)))


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
    node: int = 0,
    on_progress: Callable[[], object] = lambda: None,
) -> RunState:
    """Put a checkpoint's state into the model and all that trains it, and return the run's state.

    All ranks call this together. Each one's shards are read by range, and verified as they are read; a whole checkpoint
    is read and verified once a ``node``. ``on_progress`` is called as bytes arrive. A damaged checkpoint is set aside.
    With ``kept``, the returned state's best report is one whose checkpoint still exists.

    Raises:
        NotFoundError: there is no checkpoint.
        DamagedError: a file is damaged.
        StorageError: the storage cannot be read.
        UsageError: another recipe or another configuration wrote it.
        RecipeError: model or optimizer differ from what wrote it.
    """
    online: Mapping[str, torch.Tensor]
    try:
        with for_all(lambda: VerifiedFolder(folder_uri, on_progress=on_progress)) as files:
            state = for_all(lambda: _whole_state(files))
            if "run" not in state:
                raise UsageError(
                    f"checkpoint {folder_uri!r} is of an older format, which holds weights but not the run's progress",
                    hint="Its weights can be loaded; the training cannot be resumed.",
                )
            _check_identity(state, folder_uri, identity=identity, sharded=sharded)
            _check_optimizer(state, folder_uri, optimizer=optimizer)
            optimizers = optimizers_of(optimizer)
            if sharded:
                from raymlops.training.checkpoints.sharded import load

                trainer = for_all(lambda: _trainer(io.BytesIO(files.read(TRAINER))))
                online = load(
                    files, model, optimizers, online=ema.named() if ema is not None and state.get("ema") else {}
                )
            else:
                trainer, online = _load_whole(
                    folder_uri, model=model, optimizers=optimizers, node=node, on_progress=on_progress
                )
    except DamagedError as error:
        _set_aside(error)
        raise
    if ema is not None:
        ema.load(online)
    if scaler is not None and trainer["scaler"]:
        scaler.load_state_dict(trainer["scaler"])
    others = trainer.get("keep", {})
    if TRAINED in others:
        model.load_state_dict(others[TRAINED])
    _load_kept(others, folder_uri, keep=keep or {})
    run = RunState.from_dict(state["run"])
    return run if kept is None else with_best_of(run, kept)


def restore_weights(
    folder_uri: str, *, model: nn.Module, node: int = 0, on_progress: Callable[[], object] = lambda: None
) -> None:
    """Put the weights of a whole checkpoint into the model, read and verified once a ``node``.

    All ranks call this together.

    Raises:
        NotFoundError: there is no checkpoint.
        DamagedError: a file is damaged.
        RuntimeError: they do not fit the model.
    """
    with _once_a_node(folder_uri, node=node, on_progress=on_progress) as folder:
        read_into(model, folder / MODEL)


def _load_whole(
    uri: str,
    *,
    model: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    node: int,
    on_progress: Callable[[], object],
) -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
    """Load model and optimizers, and return what else the trainer holds, and the weights that an average is of."""
    with _once_a_node(uri, node=node, on_progress=on_progress) as folder:
        trainer = _trainer(folder / TRAINER)
        _load_model(folder, uri, model=model)
    # A single one was under a key of its own before there could be several.
    saved = trainer["optimizers"] if "optimizers" in trainer else {"": trainer["optimizer"]}
    for key, each in optimizers.items():
        _load_optimizer(saved[key], uri, optimizer=each)
    return trainer, trainer.get("online", {})


def _trainer(source: Path | io.BytesIO) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    return found


@contextlib.contextmanager
def _once_a_node(uri: str, *, node: int, on_progress: Callable[[], object]) -> Iterator[Path]:
    """Yield a folder whose files the first rank of each node has fetched and verified."""
    nodes = gathered(node)
    rank = distributed.get_rank() if len(nodes) > 1 else 0
    first = nodes.index(node)
    with contextlib.ExitStack() as stack:

        def fetched() -> Path | None:
            if rank != first:
                return None
            return stack.enter_context(manifest.verified(uri, on_progress=on_progress))

        folder = gathered(for_all(fetched))[first]
        assert folder is not None
        try:
            yield folder
        finally:
            gathered(None)  # the first rank removes it


def _set_aside(error: DamagedError) -> None:
    """Keep a damaged checkpoint from being chosen again."""
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        with contextlib.suppress(RaymlopsError):
            manifest.set_aside(error.uri, reason=error.problem)


def _whole_state(files: VerifiedFolder) -> dict[str, Any]:
    try:
        state = read_state(files.read(STATE), files.uri)
    except ValueError as error:
        raise manifest.unusable(files.uri, f"{STATE} cannot be read: {error}") from error
    if missing := [name for name in needed(state) if name not in files.files]:
        raise manifest.unusable(files.uri, f"{manifest.MANIFEST} does not name {', '.join(missing)}")
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

"""Load a checkpoint into what trains on this rank and the others: all of its state, or its weights alone.

Owns what ranks do together: each reads its part of a sharded checkpoint, one of each node a whole one; all fail if one
does, and a damaged checkpoint is set aside. Knows nothing of when a checkpoint is written or which one is chosen.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from raymlops.errors import DamagedError, RaymlopsError, RecipeError, UsageError
from raymlops.storage import manifest
from raymlops.storage.verified_reader import VerifiedFolder
from raymlops.training.checkpoints.for_all_ranks import for_all, gathered
from raymlops.training.checkpoints.format import (
    MODEL,
    TRAINED,
    TRAINER,
    Optimizers,
    Stateful,
    kinds_of,
    optimizers_of,
    whole_state,
)
from raymlops.training.checkpoints.host_copies import model_state
from raymlops.training.checkpoints.retention import Kept, with_best_of
from raymlops.training.checkpoints.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from raymlops.training.ema import Ema

_SHOWN = 5


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
    with _opened(folder_uri, on_progress=on_progress) as (files, state):
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
            online = load(files, model, optimizers, online=ema.named() if ema is not None and state.get("ema") else {})
        else:
            trainer, online = _load_whole(
                folder_uri, model=model, optimizers=optimizers, node=node, on_progress=on_progress
            )
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
    folder_uri: str,
    *,
    model: nn.Module,
    sharded: bool = False,
    node: int = 0,
    on_progress: Callable[[], object] = lambda: None,
) -> None:
    """Put a checkpoint's weights alone into a model. All ranks call this together, and nothing else of it is read.

    Raises:
        NotFoundError, DamagedError, StorageError, RecipeError: as ``restore``.
    """
    with _opened(folder_uri, on_progress=on_progress) as (files, _):
        if sharded:
            from raymlops.training.checkpoints.sharded import load

            load(files, model, {})
        else:
            with _once_a_node(folder_uri, MODEL, node=node, on_progress=on_progress) as folder:
                _load_model(folder, folder_uri, model=model)


@contextlib.contextmanager
def _opened(uri: str, *, on_progress: Callable[[], object]) -> Iterator[tuple[VerifiedFolder, dict[str, Any]]]:
    """Yield a checkpoint's files and its state; where the block finds it damaged, it is set aside."""
    try:
        with for_all(lambda: VerifiedFolder(uri, on_progress=on_progress)) as files:
            yield files, for_all(lambda: whole_state(files))
    except DamagedError as error:
        _set_aside(error)
        raise


def _load_whole(
    uri: str,
    *,
    model: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    node: int,
    on_progress: Callable[[], object],
) -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
    """Load model and optimizers, and return what else the trainer holds, and the weights that an average is of."""
    with _once_a_node(uri, MODEL, TRAINER, node=node, on_progress=on_progress) as folder:
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
def _once_a_node(uri: str, *names: str, node: int, on_progress: Callable[[], object]) -> Iterator[Path]:
    """Yield a folder with these files, which the first rank of each node has fetched and verified."""
    nodes = gathered(node)
    rank = distributed.get_rank() if len(nodes) > 1 else 0
    first = nodes.index(node)
    with contextlib.ExitStack() as stack:

        def fetched() -> Path | None:
            if rank != first:
                return None
            return stack.enter_context(manifest.verified(uri, only=names, on_progress=on_progress))

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

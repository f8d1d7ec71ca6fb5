"""Sharded checkpoints: every rank writes a part of model and optimizer, readable on any number of ranks.

On ``torch.distributed.checkpoint`` (DCP). Owns names and tensors: ``model.NAME`` and ``optimizer.NAME.KEY``, with the
parameter's NAME in the model, so that nothing depends on ranks or on order. Must not know when to save, where to
upload, or what a manifest is. ``.metadata`` and values other than tensors are pickles: callers of ``load`` and
``read_full`` verify the digests of all files first.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.fsdp import FSDPModule

from raymlops.errors import NonFiniteError, StorageError, TrainingError
from raymlops.training.checkpoints.host_copies import not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from raymlops.training.checkpoints.host_copies import Entries

_MODEL, _OPTIMIZER = "model.", "optimizer."


def start_save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    group: dist.ProcessGroup | None,
    except_for: Entries | None = None,
) -> Callable[[], None]:
    """Copy this rank's part into host memory, and return the function that writes it.

    Every rank calls both. The copy exchanges nothing; the function runs in a thread and takes part in collectives of
    ``group``: a gloo group of all ranks that nothing else uses, so that they do not interleave with the training's.
    When it returns, this rank's files are in ``folder``, complete and synced; ``folder`` exists and may be shared by
    the ranks or local to each. ``.metadata``, which makes them readable, is written last, by rank 0.
    ``except_for`` says which entries of this rank's part of the model may be NaN or infinite.

    The function raises on every rank if any rank fails:

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing was written.
        StorageError: a file cannot be written; others may have been.
        TrainingError: at once: the optimizer holds a parameter that the model does not.
    """
    writer = FileSystemWriter(folder)
    staged = _copy(_tensors(model, optimizer), writer)

    def finish() -> None:
        _refuse_non_finite(staged, group, except_for=except_for or {})
        # What every rank holds in full is taken from rank 0, whose buffers are the ones that evaluation uses.
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        try:
            dcp_save(staged, storage_writer=writer, planner=planner, process_group=group)
        except CheckpointException as failed:
            raise StorageError(f"the sharded checkpoint cannot be written: {_reasons(failed)}") from failed

    return finish


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Fill model and optimizer in place from files that any number of ranks wrote. A collective on the default group.

    Every rank's ``folder`` holds all files. The optimizer is one like the saved one's over the same parameters; what it
    held is replaced, also by nothing, where it was saved before its first step.

    Raises:
        StorageError: a file is missing or damaged, or a tensor is missing or has another shape. On all ranks alike.
    """
    saved = _saved_for_all(folder)
    target: dict[str, Any] = {f"{_MODEL}{name}": tensor for name, tensor in _model_state(model).items()}
    named = {} if optimizer is None else _named_parameters(model, optimizer)
    for name, parameter in named.items():
        prefix = f"{_OPTIMIZER}{name}."
        target |= {key: _empty(saved[key], parameter) for key in saved if key.startswith(prefix)}
    _read(folder, target, no_dist=False)

    model.load_state_dict({key.removeprefix(_MODEL): target[key] for key in target if key.startswith(_MODEL)})
    if optimizer is None:
        return
    values = {
        index: {
            key.removeprefix(f"{_OPTIMIZER}{name}."): target[key]
            for key in target
            if key.startswith(f"{_OPTIMIZER}{name}.")
        }
        for index, name in enumerate(named)
    }
    # Learning rate and the like are the configuration's and the schedule's, so the groups stay as they were built.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {index: state for index, state in values.items() if state}, "param_groups": groups}
    )


def read_full(folder: Path) -> dict[str, torch.Tensor]:
    """Return the model's tensors, whole, under the names of its state dict: in one process, without a process group.

    Raises:
        StorageError: a file is missing or damaged.
    """
    whole = {
        name: _whole(entry)
        for name, entry in _saved(folder).items()
        if name.startswith(_MODEL) and isinstance(entry, TensorStorageMetadata)
    }
    _read(folder, whole, no_dist=True)
    return {name.removeprefix(_MODEL): tensor for name, tensor in whole.items()}


def read_into(model: nn.Module, folder: Path) -> None:
    """Fill a whole model on the CPU, in place: in one process, without a process group.

    Raises:
        RuntimeError: the tensors do not fit the model.
        StorageError: a file is missing or damaged.
    """
    live = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    target = {
        name: tensor if (tensor.shape, tensor.dtype) == (entry.size, entry.properties.dtype) else _whole(entry)
        for name, entry in _saved(folder).items()
        if name.startswith(_MODEL) and isinstance(entry, TensorStorageMetadata)
        for tensor in [live.get(name, torch.empty(0))]
    }
    _read(folder, target, no_dist=True)
    model.load_state_dict({name.removeprefix(_MODEL): tensor for name, tensor in target.items()})


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return what is saved, live.

    torch's ``get_optimizer_state_dict`` would take an empty step with an optimizer that has no state yet, by
    which Adam's correction of its averages would start one step late.
    """
    tensors: dict[str, Any] = {f"{_MODEL}{name}": tensor for name, tensor in _model_state(model).items()}
    if optimizer is not None:
        for name, parameter in _named_parameters(model, optimizer).items():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{_OPTIMIZER}{name}.{key}": value for key, value in state.items()}
    return tensors


def _copy(tensors: dict[str, Any], writer: FileSystemWriter) -> dict[str, Any]:
    try:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    except ImportError:  # an older torch, whose writer copies every tensor twice
        return dict(writer.stage(tensors))
    # Memory is not pinned: that takes longer than it saves for a copy that is thrown away.
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    staged: Any = DefaultStager(options).stage(tensors)
    return dict(staged)


def _model_state(model: nn.Module) -> dict[str, Any]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after an evaluation the root still shows gathered parameters
    return dict(model.state_dict())


def _named_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's parameters in its order, by their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [tuple(parameter.shape) for parameter in parameters if parameter not in names]
    if strangers:
        raise TrainingError(
            f"the optimizer holds {len(strangers)} parameters that the model does not have, of shapes {strangers[:3]}",
            hint="Under strategy fsdp build it after ctx.parallel(model), over model.parameters().",
        )
    return {names[parameter]: parameter for parameter in parameters}


def _saved_for_all(folder: Path) -> Mapping[str, Any]:
    """Return the index of tensors if every rank can read it: one that cannot would leave the others waiting."""
    reason, saved = "", None
    try:
        saved = _saved(folder)
    except StorageError as error:
        reason = error.message
    reasons = _gathered(reason, None)
    if saved is None or any(reasons):
        raise StorageError(next(filter(None, reasons)))
    return saved


def _saved(folder: Path) -> Mapping[str, Any]:
    try:
        return FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error


def _empty(entry: Any, parameter: torch.Tensor) -> torch.Tensor | None:
    """Return a buffer for a value of the optimizer: sharded like its parameter, or whole; None for no tensor."""
    if not isinstance(entry, TensorStorageMetadata):
        return None
    if entry.size == parameter.shape:
        return torch.empty_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _whole(entry: TensorStorageMetadata) -> torch.Tensor:
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _read(folder: Path, target: dict[str, Any], *, no_dist: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            dcp_load(target, storage_reader=FileSystemReader(folder), no_dist=no_dist)
        except CheckpointException as failed:
            raise _unreadable(_reasons(failed)) from failed


def _refuse_non_finite(staged: dict[str, Any], group: dist.ProcessGroup | None, *, except_for: Entries) -> None:
    masks = {f"{_MODEL}{name}": mask for name, mask in except_for.items()}
    bad = [name for name, value in staged.items() if not_finite({name: value}, except_for=masks)]
    names = sorted(set().union(*_gathered(bad, group)))
    if names:
        raise NonFiniteError(
            f"a state with NaN or infinity is not saved as a checkpoint; found in {', '.join(names[:5])}"
        )


def _gathered(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    everyone = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return list(everyone)


def _reasons(failed: CheckpointException) -> str:
    """Return each rank's error, without the tracebacks that torch puts into the message."""
    return "; ".join(f"rank {rank}: {type(error).__name__}: {error}" for rank, (error, _) in failed.failures.items())


def _unreadable(reason: str) -> StorageError:
    return StorageError(f"the sharded checkpoint cannot be read: {reason}")

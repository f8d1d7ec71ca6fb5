"""Sharded checkpoints: every rank writes a part of model and optimizer, readable on any number of ranks.

On ``torch.distributed.checkpoint`` (DCP). Owns names and tensors: ``model.NAME``, ``online.NAME`` and
``optimizer.NAME.KEY`` (``optimizer:WHICH.NAME.KEY`` with several), with the parameter's NAME in the model, so that
nothing depends on ranks or on order. Must not know when to save, where to upload, or what a manifest is. ``.metadata``
and values other than tensors are pickles, which DCP reads with any code in them. Their digests lie in the same folder,
so whoever can write there could run code: here they are read as data.
"""

from __future__ import annotations

import io
import pickle
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from raymlops.errors import DamagedError, NonFiniteError, RecipeError, StorageError, TrainingError
from raymlops.storage.verified_reader import VerifiedFolder
from raymlops.training.checkpoints.for_all_ranks import for_all, gathered
from raymlops.training.checkpoints.host_copies import check_plain, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import nn
    from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, WriteItem

    from raymlops.training.checkpoints.host_copies import Entries

_MODEL, _ONLINE, _OPTIMIZER = "model.", "online.", "optimizer"

Optimizers = dict[str, torch.optim.Optimizer]
_DCP = "torch.distributed.checkpoint"
_INDEX_CLASSES = {
    f"{_DCP}.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""All that ``.metadata`` names (torch 2.13): descriptions of tensors, and where they lie."""


def start_save(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    *,
    group: dist.ProcessGroup | None,
    online: Mapping[str, torch.Tensor] | None = None,
    except_for: Entries | None = None,
    copy: bool = True,
) -> Callable[[], None]:
    """Copy this rank's part into host memory, and return the function that writes it.

    Every rank calls both. The copy exchanges nothing; the function runs in a thread and takes part in collectives of
    ``group``: a gloo group of all ranks that nothing else uses, so that they do not interleave with the training's.
    When it returns, this rank's files are in ``folder``, complete and not synced yet; ``folder`` exists and may be
    shared by the ranks or local to each. ``.metadata``, which makes them readable, is written last, by rank 0.
    Without ``copy`` it writes what is there when it runs, and nothing may change it meanwhile.
    ``online`` are the weights that are trained where those of the model are averages of them.
    ``except_for`` says which entries of this rank's part of the model may be NaN or infinite.

    The function raises on every rank if any rank fails:

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing was written.
        StorageError: a file cannot be written; others may have been.
        TrainingError: at once: the optimizer holds a parameter that the model does not.
        RecipeError: at once: the optimizer holds a value that could not be read back.
    """
    writer = FileSystemWriter(folder, sync_files=False)
    live = _tensors(model, optimizers, online or {})
    staged = _copy(live, writer) if copy else live

    def finish() -> None:
        _refuse_non_finite(staged, group, except_for=except_for or {})
        # What every rank holds in full is taken from rank 0, whose buffers are the ones that evaluation uses.
        planner = _SavePlanner(dedup_save_to_lowest_rank=True)
        try:
            dcp_save(staged, storage_writer=writer, planner=planner, process_group=group)
        except CheckpointException as failed:
            raise StorageError(f"the sharded checkpoint cannot be written: {_reasons(failed)}") from failed

    return finish


def in_host_memory(model: nn.Module) -> bool:
    """Return whether the parameters are, so that a copy there would take as much again of the same memory."""
    return all(tensor.device.type == "cpu" for tensor in _local(model.parameters()))


def local_bytes(model: nn.Module, optimizers: Optimizers, online: Mapping[str, torch.Tensor]) -> int:
    """Return the size of this rank's part."""
    return sum(int(value.nbytes) for value in _local(_tensors(model, optimizers, online).values()))


def _local(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.to_local() if isinstance(value, DTensor) else value


def load(
    folder: Path | VerifiedFolder,
    model: nn.Module,
    optimizers: Optimizers,
    *,
    online: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Fill model and optimizers in place from files that any number of ranks wrote. A collective on the default group.

    Every rank's ``folder`` holds all files, of which it reads what it needs. An optimizer is one like the saved one's
    over the same parameters; what it held is replaced, also by nothing, where it was saved before its first step.
    Returns what was saved as ``online``, in tensors like these.

    Raises:
        DamagedError: a file of a ``VerifiedFolder`` is missing or damaged. On all ranks alike, as the others.
        StorageError: a file is missing, or a tensor is missing or has another shape.
    """
    saved = for_all(lambda: _saved(folder))
    target: dict[str, Any] = {f"{_MODEL}{name}": tensor for name, tensor in _model_state(model).items()}
    target |= {f"{_ONLINE}{name}": torch.empty_like(tensor) for name, tensor in (online or {}).items()}
    named = {key: _named_parameters(model, optimizer) for key, optimizer in optimizers.items()}
    for key, parameters in named.items():
        for name, parameter in parameters.items():
            prefix = _prefix(key, name)
            target |= {entry: _empty(saved[entry], parameter) for entry in saved if entry.startswith(prefix)}
    _read(folder, target, no_dist=False)

    model.load_state_dict({key.removeprefix(_MODEL): target[key] for key in target if key.startswith(_MODEL)})
    for key, optimizer in optimizers.items():
        values = {
            index: {
                entry.removeprefix(_prefix(key, name)): target[entry]
                for entry in target
                if entry.startswith(_prefix(key, name))
            }
            for index, name in enumerate(named[key])
        }
        # Learning rate and the like are the configuration's and the schedule's, so the groups stay as they were built.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(
            {"state": {index: state for index, state in values.items() if state}, "param_groups": groups}
        )
    return {name: target[f"{_ONLINE}{name}"] for name in online or {}}


def read_into(model: nn.Module, folder: Path | VerifiedFolder) -> None:
    """Fill a whole model on the CPU, in place: in one process, without a process group.

    The optimizer's state is not read.

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


def _tensors(model: nn.Module, optimizers: Optimizers, online: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return what is saved, live.

    torch's ``get_optimizer_state_dict`` would take an empty step with an optimizer that has no state yet, by
    which Adam's correction of its averages would start one step late.
    """
    tensors: dict[str, Any] = {f"{_MODEL}{name}": tensor for name, tensor in _model_state(model).items()}
    tensors |= {f"{_ONLINE}{name}": tensor for name, tensor in online.items()}
    for key, optimizer in optimizers.items():
        for name, parameter in _named_parameters(model, optimizer).items():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{_prefix(key, name)}{entry}": value for entry, value in state.items()}
    for name, value in tensors.items():
        check_plain(value, name=name)
        if isinstance(value, dict):  # DCP takes it apart, and its keys for those of the parameter
            raise RecipeError(
                f"{name} is a dict, which a checkpoint in shards cannot hold",
                hint="Keep the optimizer's state in tensors and numbers by name, or train with strategy ddp.",
            )
    return tensors


def _prefix(key: str, name: str) -> str:
    return f"{_OPTIMIZER}{':' if key else ''}{key}.{name}."


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


def _saved(folder: Path | VerifiedFolder) -> Mapping[str, Any]:
    try:
        return _Reader(folder).read_metadata().state_dict_metadata
    except StorageError:
        raise
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


def _read(folder: Path | VerifiedFolder, target: dict[str, Any], *, no_dist: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            dcp_load(target, storage_reader=_Reader(folder), planner=_Planner(), no_dist=no_dist)
        except CheckpointException as failed:
            damaged = (error for error, _ in failed.failures.values() if isinstance(error, DamagedError))
            raise next(damaged, _unreadable(_reasons(failed))) from failed


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if name not in _INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """torch's reader, over the files of a folder or over what a ``VerifiedFolder`` reads of them."""

    def __init__(self, folder: Path | VerifiedFolder) -> None:
        super().__init__("" if isinstance(folder, VerifiedFolder) else folder)
        self._folder = folder if isinstance(folder, VerifiedFolder) else None
        if self._folder is not None:
            self.fs = _Names()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs  # a rank's own, where ranks do not exchange what they save: not here
        if self._folder is not None:
            metadata = _Unpickler(io.BytesIO(self._folder.read(".metadata"))).load()
        else:
            with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as stream:
                metadata = _Unpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(metadata).__name__}, not the index of tensors")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        def place(item: ReadItem) -> tuple[str, int]:
            stored = self.storage_data[item.storage_index]
            return stored.relative_path, stored.offset

        return replace(plan, items=sorted(plan.items, key=place))  # so that no block is read twice

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        if self._folder is None:
            return super()._slice_file(file, sinfo)
        return io.BytesIO(self._folder.range(sinfo.relative_path, sinfo.offset, sinfo.length))


class _Names(FileSystem):
    """Opens nothing: the reader gets its parts by name."""

    @contextmanager
    def create_stream(self, *_: Any) -> Iterator[Any]:
        yield None

    def concat_path(self, _path: Any, suffix: str) -> str:
        return suffix


class _SavePlanner(DefaultSavePlanner):
    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        def size(item: WriteItem) -> int:
            return 0 if item.tensor_data is None else item.tensor_data.chunk.sizes.numel()

        # Each rank reads the small ones of rank 0, such as counts of steps: side by side they are in one block.
        return super().finish_plan(replace(new_plan, items=sorted(new_plan.items, key=size)))


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def _refuse_non_finite(staged: dict[str, Any], group: dist.ProcessGroup | None, *, except_for: Entries) -> None:
    masks = {f"{_MODEL}{name}": mask for name, mask in except_for.items()}
    bad = [name for name, value in staged.items() if not_finite({name: value}, except_for=masks)]
    names = sorted(set().union(*gathered(bad, group=group)))
    if names:
        raise NonFiniteError(
            f"a state with NaN or infinity is not saved as a checkpoint; found in {', '.join(names[:5])}"
        )


def _reasons(failed: CheckpointException) -> str:
    """Return each rank's error, without the tracebacks that torch puts into the message."""
    return "; ".join(f"rank {rank}: {type(error).__name__}: {error}" for rank, (error, _) in failed.failures.items())


def _unreadable(reason: str) -> StorageError:
    return StorageError(f"the sharded checkpoint cannot be read: {reason}")

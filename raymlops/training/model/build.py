"""Build the model on a rank: the same on every rank, whole or sharded, with its first weights.

Owns that every rank starts alike, for any strategy and number of ranks, and that of a sharded model only the first rank
ever holds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raymlops.data.order import seed_start
from raymlops.errors import UsageError, describe
from raymlops.recipe import model_of
from raymlops.training.model.first_weights import has_first_weights, load_first_weights, tensors_of
from raymlops.training.model.parallel import shard
from raymlops.training.model.precision import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from raymlops.config.train import TrainSection
    from raymlops.recipe import RecipeBase
    from raymlops.training.model.ranks import Ranks

_REGISTERED = {"_parameters", "_buffers", "_modules"}
_DEPTH = 4
"""How deep containers and objects in a module's attributes are searched for tensors."""


def build(recipe: RecipeBase, spec: TrainSection, *, ranks: Ranks, fresh: bool) -> nn.Module:
    """Return the untrained model on this rank's device, the same on every rank; ``fresh`` with its first weights.

    Raises:
        RecipeError: ``model()`` or ``initialize()`` raises, or ``train.init_from`` does not fit.
    """
    seed_start(spec.seed)
    model = model_of(recipe)
    first = fresh and has_first_weights(recipe, spec.init_from)
    if first and ranks.rank == 0:
        load_first_weights(recipe, model, spec.init_from)
    model = model.to(ranks.device)
    if first:
        ranks.copy_from_first([*model.parameters(), *model.buffers()])
    return _synced(model, spec, ranks=ranks)


def build_sharded(
    recipe: RecipeBase, spec: TrainSection, *, ranks: Ranks, fresh: bool, notice: Callable[[str], None]
) -> nn.Module:
    """Return the model that ``build`` returns, sharded, without holding it whole on any rank but the first.

    Every rank builds it on the meta device, without memory, and shards it; rank 0 also builds it in its host memory,
    as ``build`` does, and hands out its tensors one by one, each freed once it is sent. So the first weights are those
    of any other strategy and number of ranks. Where ``model()`` cannot be built on the meta device every rank builds
    it whole, and ``notice`` gets the reason.

    Raises:
        RecipeError: as ``build``, or ``shard_layers()`` breaks its contract.
        UsageError: the model cannot be sharded, or a GPU has too little memory for its part.
    """
    per_node = ranks.per_node() if spec.shard_over == "node" else None
    if spec.shard_over == "node" and per_node is None:
        notice("train.shard_over is node, but the nodes have unequally many workers: the model is sharded over all")
    seed_start(spec.seed)
    model, reason = _on_meta(recipe)
    host = replace(ranks, device=torch.device("cpu"), world_size=1)
    source = build(recipe, spec, ranks=host, fresh=fresh) if ranks.rank == 0 else None
    if source is not None and not reason and tensors_of(source) != tensors_of(model):
        reason = "its tensors have other names, shapes or types there"
    reason = next(filter(None, ranks.gathered(reason)), "")
    if reason:
        notice(f"every worker builds the whole model before it is sharded: model() on torch's meta device: {reason}")
        model = build(recipe, spec, ranks=host, fresh=fresh) if source is None else source
        model = model.to(ranks.device)
        ranks.copy_from_first([*model.parameters(), *model.buffers()])
    model = _synced(model, spec, ranks=ranks)
    shard(recipe, model, spec, world_size=ranks.world_size, device=ranks.device, per_node=per_node)
    if ranks.device.type == "cuda":
        sharing = per_node or ranks.world_size
        check_room(model, spec, ranks=sharing, free_bytes=torch.cuda.mem_get_info(ranks.device)[0])
    if not reason:
        _fill(model, source, ranks=ranks, on_host=spec.cpu_offload)
    seed_start(spec.seed)  # the first rank has drawn more than the others
    return model


def check_room(model: nn.Module, spec: TrainSection, *, ranks: int, free_bytes: int) -> None:
    """Raise UsageError where the device of a rank has too little memory for its part, and say what would fit.

    ``ranks`` share the sharded model. Counted is what there is at least: weights, gradients, and what the optimizer is
    known to hold of each; beside it one layer in full. Activations come on top of that.
    """
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if module is model or isinstance(module, FSDPModule)]
    counted: set[nn.Parameter] = set()
    largest = 0
    for unit in reversed(units):  # the inner ones first
        own = set(unit.parameters()) - counted
        counted |= own
        dtype = DTYPES.get(spec.precision)
        largest = max(largest, sum(value.numel() * (dtype or value.dtype).itemsize for value in own))
    moments = {"adam": 2, "adamw": 2, "sgd": int(spec.momentum > 0)}.get(spec.optimizer, 0)
    state = sum(value.nbytes * (2 + moments if value.requires_grad else 1) for value in model.parameters())
    here = 0 if spec.cpu_offload else state
    if -(-here // ranks) + largest <= free_bytes:
        return
    room = free_bytes - largest
    if room <= 0:
        hint = "Let shard_layers(model) name smaller parts, or train with precision bf16."
    else:
        hint = f"{-(-here // room)} of them would have room for it; or set train.cpu_offload: true."
    raise UsageError(
        f"the model does not fit {ranks} such devices: weights, gradients and optimizer take {_gib(here)}, "
        f"{_gib(-(-here // ranks))} of it each, and the largest layer {_gib(largest)}; {_gib(free_bytes)} are free",
        hint=hint,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _synced(model: nn.Module, spec: TrainSection, *, ranks: Ranks) -> nn.Module:
    if spec.sync_batch_norm and ranks.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model


def _on_meta(recipe: RecipeBase) -> tuple[nn.Module, str]:
    """Return the model without memory, and why it cannot be used, if it cannot."""
    try:
        with torch.device("meta"):
            model = model_of(recipe)
    except Exception as error:  # whatever needs numbers, or a library that places tensors itself
        return nn.Module(), describe(error)
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _REGISTERED}
        if key := next((key for key, value in own.items() if _has_meta(value, known)), None):
            return model, f"{'.'.join(filter(None, (name, key)))} holds a tensor that is neither parameter nor buffer"
    return model, ""


def _has_meta(value: Any, known: set[int], depth: int = 0) -> bool:
    """Return whether a value holds a tensor without memory that is not among the known ones."""
    if isinstance(value, torch.Tensor):
        return value.is_meta and id(value) not in known
    if depth == _DEPTH or isinstance(value, nn.Module | type) or callable(value):
        return False
    if isinstance(value, Mapping):
        return any(_has_meta(each, known, depth + 1) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_has_meta(each, known, depth + 1) for each in value)
    return any(_has_meta(each, known, depth + 1) for each in getattr(value, "__dict__", {}).values())


def _fill(model: nn.Module, source: nn.Module | None, *, ranks: Ranks, on_host: bool) -> None:
    """Give a sharded model on the meta device memory, and rank 0's values, one tensor at a time."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    sent = {} if source is None else {**dict(source.named_parameters()), **dict(source.named_buffers())}
    places = _places(model)

    def received(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in sent:
            whole = sent[name].detach().to(ranks.device).contiguous()  # as the others receive it
            sent[name].data = torch.empty(0)
        else:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=ranks.device)
        ranks.copy_from_first([whole])
        return whole

    def part(whole: torch.Tensor, parameter: DTensor) -> torch.Tensor:
        mesh, placements = parameter.device_mesh, parameter.placements
        own = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
        if own.untyped_storage().nbytes() > own.nbytes:  # it would keep the whole one; torch 2.13 has copied it already
            own = own.clone()
        own = own.cpu() if on_host else own
        stride = parameter.stride()
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=parameter.shape, stride=stride)

    def place(tensor: torch.Tensor, new: torch.Tensor) -> None:
        for module, name in places[id(tensor)]:
            setattr(module, name, new)

    with torch.no_grad():
        for name, parameter in list(model.named_parameters()):
            whole = received(name, parameter)
            filled = part(whole, parameter) if isinstance(parameter, DTensor) else whole
            place(parameter, nn.Parameter(filled, requires_grad=parameter.requires_grad))
            del whole
        for name, buffer in list(model.named_buffers()):
            place(buffer, received(name, buffer))
    model._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]  # noqa: SLF001 - how FSDP learns of them


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return where each tensor is registered: a tied one in several modules."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found.setdefault(id(tensor), []).append((module, name))
    return found

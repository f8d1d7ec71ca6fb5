"""Parallelize a model: DDP or FSDP2, activation checkpointing and compilation; and the layers to shard.

Owns how a model becomes a module that maps a batch to its loss. All of it happens in place and without new names, so
a state dict has the recipe's own keys whatever is enabled. Knows nothing of steps, files or Ray.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from contextlib import nullcontext
from importlib.util import find_spec
from os import environ
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from raymlops.display import some_of
from raymlops.errors import RecipeError, UsageError
from raymlops.loss_value import LossValue, loss_value
from raymlops.recipe import RecipeBase, call_recipe
from raymlops.training.model.precision import DTYPES, autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from raymlops.config.train import TrainSection
    from raymlops.recipe import Batch


_REPEATED = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_NEVER_RUN = (nn.ModuleList, nn.ModuleDict)
_SHOWN = 5


def layers_to_shard(recipe: RecipeBase, model: nn.Module, *, min_params: int) -> list[nn.Module]:
    """Return the submodules to gather, and to recompute, one at a time; the rest belongs to the root.

    They are the recipe's ``shard_layers(model)`` or, where that is None, found by size: the outermost repeated blocks,
    which are the children of ``ModuleList``, ``ModuleDict`` and ``Sequential``, of at least ``min_params`` parameters;
    and other submodules of that size that hold no such block. Left to the root, which stays gathered through a
    step, are embeddings, whose table is often used as output layer as well, and whatever shares a parameter with
    something outside it.

    Raises:
        UsageError: the model has no parameters.
        RecipeError: ``shard_layers()`` raises, or returns anything but separate submodules of the model.
    """
    if next(model.parameters(), None) is None:
        raise UsageError(
            f"there is nothing to shard: {type(model).__name__} has no parameters",
            hint="Use train.strategy: ddp without train.activation_checkpointing.",
        )
    where = f"{type(recipe).__name__}.shard_layers()"
    given = call_recipe(where, lambda: recipe.shard_layers(model))
    if given is not None:
        return _checked(given, model, where=where)
    return [layer for layer in _by_size(model, min_params) if not _shared_outside(layer, model)]


def _by_size(module: nn.Module, min_params: int) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag) or _count(child) < min_params:
            continue
        if isinstance(module, _REPEATED) and not isinstance(child, _NEVER_RUN):
            yield child  # a block, whatever it consists of
            continue
        inside = list(_by_size(child, min_params))
        if inside or isinstance(child, _NEVER_RUN):
            yield from inside
        else:
            yield child


def _checked(given: Any, model: nn.Module, *, where: str) -> list[nn.Module]:
    names = {module: name for name, module in model.named_modules() if name}
    if not isinstance(given, list | tuple) or not all(layer in names for layer in given):
        raise RecipeError(f"{where} must return a list of submodules of the model that it gets, or None")
    layers = list(dict.fromkeys(given))
    for layer in layers:
        if isinstance(layer, _NEVER_RUN):
            raise RecipeError(
                f"{where}: {names[layer]} is a {type(layer).__name__}, which is never run; name its parts"
            )
        around = [other for other in layers if other is not layer and layer in set(other.modules())]
        if around:
            raise RecipeError(f"{where}: {names[layer]} lies inside {names[around[0]]}; name one of them")
        if _shared_outside(layer, model):
            raise RecipeError(
                f"{where}: {names[layer]} shares a parameter with a module outside it, which sharding would untie",
                hint="Leave it out: what is not named is sharded with the model as a whole.",
            )
    return layers


def _shared_outside(layer: nn.Module, model: nn.Module) -> bool:
    inside, own = set(layer.modules()), set(layer.parameters())
    return any(
        parameter in own
        for module in model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class BatchLoss(nn.Module):
    """The recipe's loss as a module, which is what DDP can wrap: a batch in, its ``LossValue`` or its mean out."""

    def __init__(
        self, recipe: RecipeBase, model: nn.Module, *, spec: TrainSection, device: torch.device, mean: bool
    ) -> None:
        super().__init__()
        self._mean = mean
        self.model = model
        self.sharded = spec.strategy == "fsdp"
        self._recipe, self._spec, self._device = recipe, spec, device
        self._where = f"{type(recipe).__name__}.loss()"

    def forward(self, batch: Batch) -> LossValue | torch.Tensor:
        """Return the loss of the batch.

        Raises:
            RecipeError: it mixes FSDP's shards with plain tensors; instead of torch's RuntimeError about DTensors.
        """
        try:
            with autocast(self._spec, self._device):
                found = loss_value(self._recipe.loss(self.model, batch), where=self._where)
                return found.mean() if self._mean else found
        except RuntimeError as error:
            if "DTensor" not in str(error):
                raise
            raise RecipeError(
                "a parameter was used while only its shard was there, under train.strategy fsdp",
                hint="loss() and metrics() must call the model itself, not its methods or parameters, and a layer "
                "whose parameters others use must not be among shard_layers(model).",
            ) from error


class _Averaged(DistributedDataParallel):
    def __init__(self, loss: nn.Module, *, find_unused_parameters: bool) -> None:
        super().__init__(loss, find_unused_parameters=find_unused_parameters)
        # torch (2.13) numbers those that it reduces, and goes on to reduce those that are frozen later
        self._reduced = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise UsageError(
                f"{self._without_gradient(str(error))} had no part in the loss of the last step, and torch's DDP waits "
                "for the gradient",
                hint="Set train.find_unused_parameters: true. auto looks at a few forward passes before the training, "
                "which did not show it.",
            ) from error

    def _without_gradient(self, message: str) -> str:
        """Return the parameters that torch names by their numbers among those that it reduces."""
        numbers = re.search(r"did not receive grad for rank \d+: ([\d ]+)", message)
        found = [self._reduced[int(number)].removeprefix("model.") for number in numbers[1].split()] if numbers else []
        return some_of(found, _SHOWN) if found else "a parameter"


def parallelize(
    recipe: RecipeBase,
    model: nn.Module,
    spec: TrainSection,
    *,
    world_size: int,
    device: torch.device | str,
    unused_parameters: bool = False,
    per_node: int | None = None,
    mean: bool = True,
) -> nn.Module:
    """Return a module that maps a batch to its mean loss and averages gradients over all ranks.

    Changes ``model`` in place, so do it once a model and before the optimizer is built: under FSDP its parameters
    become shards, unless ``shard`` has made them shards before. A collective; fsdp needs a process group, of one rank
    too. The recipe sees the plain model in every case.

    Args:
        recipe: whose ``loss`` is computed, and whose ``shard_layers`` is called.
        model: on ``device``, with the same parameters on every rank.
        spec: ``strategy``, ``precision``, ``compile``, ``activation_checkpointing``, ``shard_min_params``,
            ``shard_over`` and ``cpu_offload`` count.
        world_size: the number of ranks.
        device: this rank's.
        unused_parameters: DDP only: look in each step for parameters that took no part, and do without them.
            FSDP does without them anyway, where they are the same on every rank.
        per_node: FSDP only: as for ``shard``.
        mean: False for the ``LossValue``, whose sums the caller divides.

    Raises:
        UsageError: nothing to shard or to recompute, or no compiler; see ``check`` and ``check_compile``.
        RecipeError: ``shard_layers()`` breaks its contract.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a mesh, and object collectives over NCCL, take the current device
    layers = check(recipe, model, spec=spec)
    if spec.compile:
        check_compile(device)
    for region in _compiled_regions(model, layers, spec):
        _replace_forward(region, torch.compile)
    if spec.activation_checkpointing:
        for layer in layers:
            _replace_forward(layer, _recomputed)

    loss = BatchLoss(recipe, model, spec=spec, device=device, mean=mean)
    if spec.strategy == "fsdp":
        _shard(model, layers, spec=spec, world_size=world_size, device=device, per_node=per_node)
    elif world_size > 1 and any(parameter.requires_grad for parameter in model.parameters()):
        return _Averaged(loss, find_unused_parameters=unused_parameters)
    return loss


def shard(
    recipe: RecipeBase,
    model: nn.Module,
    spec: TrainSection,
    *,
    world_size: int,
    device: torch.device,
    per_node: int | None = None,
) -> None:
    """Shard a model in place, also one on the meta device, whose shards get memory and values afterwards.

    ``per_node`` is the number of ranks on each node, contiguous and equal, or None: then ``shard_over: node`` shards
    over all ranks. A collective.

    Raises:
        UsageError, RecipeError: as ``check``.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    layers = check(recipe, model, spec=spec)
    _shard(model, layers, spec=spec, world_size=world_size, device=device, per_node=per_node)


def check(recipe: RecipeBase, model: nn.Module, *, spec: TrainSection) -> list[nn.Module]:
    """Return the layers that are sharded and recomputed by themselves, or say why ``spec`` does not fit the model.

    Cheap and without a process group, so that a driver can ask before any worker starts.

    Raises:
        UsageError: fsdp and a model without parameters, or with a scalar one; no layer to recompute.
        RecipeError: ``shard_layers()`` breaks its contract.
    """
    if spec.strategy != "fsdp" and not spec.activation_checkpointing:
        return []
    layers = layers_to_shard(recipe, model, min_params=spec.shard_min_params)
    if spec.activation_checkpointing and not layers:
        raise UsageError(
            f"train.activation_checkpointing found no layer to recompute: {type(model).__name__} has no submodule "
            f"of at least train.shard_min_params = {spec.shard_min_params:,} parameters that is run as a unit",
            hint="Define shard_layers(model) on the recipe, or lower train.shard_min_params.",
        )
    if spec.strategy == "fsdp":
        scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
        if scalars:
            raise UsageError(
                f"strategy fsdp cannot shard parameters without a dimension: {', '.join(scalars)}",
                hint="Give them the shape (1,), or use train.strategy: ddp.",
            )
    return layers


def check_compile(device: torch.device | str = "cpu") -> None:
    """Raise UsageError unless this machine has what ``torch.compile`` calls: a C++ compiler, or Triton and a C one."""
    missing = []
    if torch.device(device).type == "cpu":
        if not any(shutil.which(name) for name in (environ.get("CXX") or "g++", "clang++")):
            missing.append("a C++ compiler (g++, clang++ or what CXX names)")
    else:
        if find_spec("triton") is None:
            missing.append("the package triton")
        if not any(shutil.which(name) for name in (environ.get("CC") or "gcc", "clang")):
            missing.append("a C compiler (gcc, clang or what CC names)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("Python's header files (Python.h)")
    if missing:
        raise UsageError(
            f"train.compile needs {' and '.join(missing)}, which this machine does not have",
            hint="Install it (on Debian: apt install g++ python3-dev), or set train.compile: false.",
        )


def local_only(loss_of: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Return the context of one micro-batch, forward and backward: only the ``last`` one reduces gradients.

    Between them FSDP keeps a whole gradient, of every parameter, on every rank.
    """
    if isinstance(loss_of, DistributedDataParallel):
        return nullcontext() if last else loss_of.no_sync()
    if isinstance(loss_of, BatchLoss) and loss_of.sharded:
        model: Any = loss_of.model
        model.set_requires_gradient_sync(last)
    return nullcontext()


def _compiled_regions(model: nn.Module, layers: list[nn.Module], spec: TrainSection) -> list[nn.Module]:
    """Return the modules to compile: the whole model, or each layer where something happens between them.

    Gathering breaks a graph, and DDP's splitting of a graph into its buckets refuses one with a recomputed part, so
    recomputation goes around a compiled layer. Layers of one class share one compilation.
    """
    if not spec.compile:
        return []
    return layers or [model]


def _replace_forward(module: nn.Module, wrap: Callable[[Any], Any]) -> None:
    """Wrap a module's forward in place: hooks and names stay, and a copy of the module gets one of its own."""
    own = module.__dict__.get("forward")
    forward = own.__func__ if isinstance(own, MethodType) else type(module).forward
    module.__dict__["forward"] = MethodType(wrap(forward), module)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Dropout draws the same numbers again: torch puts the generators back for the second time (preserve_rng_state).
        return checkpoint(forward, self, *args, use_reentrant=False, **kwargs)

    return run


def _shard(
    model: nn.Module,
    layers: list[nn.Module],
    *,
    spec: TrainSection,
    world_size: int,
    device: torch.device,
    per_node: int | None,
) -> None:
    """Shard the layers, then what remains, over all ranks or, replicated over the nodes, over those of each node.

    In low precision, weights are gathered in it, half the bytes, and gradients summed in float32. Autocast is on as
    well, as under DDP, so the same operations run in float32; over gathered float32 weights, it alone would keep a low
    copy of every weight until the backward pass, which is the memory that sharding is to save. A module's
    inputs are cast too: torch's norms refuse weights of a lower precision than their input.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second that DDP need not wait for
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

    if isinstance(model, FSDPModule):
        return
    if spec.shard_over == "node" and per_node is not None and per_node < world_size:
        shape, names = (world_size // per_node, per_node), ("nodes", "shards")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device.type, (world_size,))
    dtype = DTYPES.get(spec.precision)
    options: dict[str, Any] = {"mesh": mesh}
    if spec.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    if dtype is not None:
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        for norm in model.modules():
            # Running statistics are buffers, which stay float32, and torch wants weights like them.
            if isinstance(norm, _BatchNorm) and norm is not model and next(norm.parameters(), None) is not None:
                fully_shard(norm, mp_policy=whole, **options)
    for layer in layers:
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, mp_policy=policy, **options)
    fully_shard(model, mp_policy=policy, **options)

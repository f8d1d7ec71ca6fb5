"""The weights of a model in a file: written from where they are in memory, read into a model that exists.

In the format of safetensors, which holds no code. Owns that neither takes a second copy of the weights in memory.
"""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def write(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as the bytes of ``safetensors.save``.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    end = 0
    for name in sorted(plain, key=lambda name: plain[name].data_ptr()):
        tensor = plain[name]
        if tensor.nbytes and tensor.data_ptr() < end:
            # Tied weights share memory, which safetensors refuses: each name gets a copy, and a model that ties
            # them loads both into one tensor.
            plain[name] = tensor.clone()
        else:
            end = max(end, tensor.data_ptr() + tensor.nbytes)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(plain, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors leaves it readable by the owner only


def read_into(model: nn.Module, path: Path) -> None:
    """Load all weights of a verified file into a model on the CPU, as ``load_state_dict`` does.

    Raises:
        RuntimeError: they do not fit the model.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = _views(mapped)

    def forget(*_: Any) -> None:
        # Pages that were copied would count as this process's memory. A hook of the model may have changed some, which
        # are not in the file.
        if not any(tensor._version for tensor in tensors.values()):  # noqa: SLF001 - torch documents it
            mapped.madvise(mmap.MADV_DONTNEED)

    hooks = [module.register_load_state_dict_pre_hook(forget) for module in model.modules()]  # type: ignore[no-untyped-call]
    try:
        model.load_state_dict(tensors)
    finally:
        for hook in hooks:
            hook.remove()


def _views(mapped: mmap.mmap) -> dict[str, torch.Tensor]:
    """Return the tensors of a mapped file, none of which is read before it is used."""
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (first, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        count = (end - first) // dtype.itemsize
        # frombuffer takes no empty part.
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + first) if count else torch.empty(0)
        found[name] = flat.to(dtype).reshape(entry["shape"])
    return found

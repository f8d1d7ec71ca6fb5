"""Open Inference Protocol v2 over HTTP: JSON documents, with tensors in JSON or as bytes after it.

Owns the documents: inference requests and responses, metadata, readiness. ``tensors`` checks tensors, ``binary`` reads
and writes their bytes.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from raymlops.serving.protocols.base import BINARY, JSON, Encoded, Parsed
from raymlops.serving.protocols.binary import HEADER, bad_data, read_tensor, split_body, write_tensor
from raymlops.serving.protocols.json_body import object_of, read_json, value_limit, wrong
from raymlops.serving.protocols.tensors import (
    Tensor,
    columns_of,
    datatype_of,
    described,
    element_count,
    json_data,
    output_array,
    requested,
)
from raymlops.serving.request import usable_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.arrays import Column, Columns
    from raymlops.serving.protocols.base import Responder
    from raymlops.signature import Signature

REQUEST_KEYS = ("id", "inputs", "outputs", "parameters", "model_name", "model_version")
"""The last two are not part of the protocol: KServe's client sends them. The path alone selects the model."""
INPUT_KEYS = ("name", "shape", "datatype", "data", "parameters")
OUTPUT_KEYS = ("name", "parameters")


@dataclass(frozen=True, slots=True)
class _Options:
    request_id: str | None
    outputs: tuple[tuple[Column, bool], ...]
    """Each requested output, and whether as bytes."""


class Oip:
    """The Open Inference Protocol over HTTP."""

    name = "oip"

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Parsed:
        """Return a request's columns.

        Raises:
            Refusal: 400 for invalid JSON or bytes that do not match it, 413 for too many rows, 422
                for tensors that do not fit the signature.
        """
        head, rest = split_body(body, headers)
        given = read_json(head, max_values=value_limit(head, signature, max_rows=max_rows))
        data = object_of(given, known=REQUEST_KEYS, required=("inputs",))
        request_id = _text(data.get("id"), "id")
        parameters = _parameters(data, "parameters")
        options = _Options(request_id, _requested(data.get("outputs"), parameters, signature))
        tensors, start = [], 0
        for index, item in enumerate(_list(data["inputs"], "inputs")):
            tensor, start = _tensor(item, index, rest, start, signature=signature, max_rows=max_rows)
            tensors.append(tensor)
        if rest is not None and start != len(rest):
            raise bad_data(f"{len(rest) - start} bytes follow the last tensor")
        columns, rows = columns_of(tensors, signature)
        return Parsed(columns, rows, None if request_id is None else usable_id(request_id), options)

    def encode(self, outputs: Columns, parsed: Parsed, responder: Responder, *, signature: Signature) -> Encoded:  # noqa: ARG002
        """Return the requested outputs, each in JSON or as bytes.

        Raises:
            Refusal: 422, a tensor cannot hold an output.
        """
        options: _Options = parsed.options
        tensors, tail = [], []
        for column, as_bytes in options.outputs:
            array = output_array(column, outputs)
            tensor: dict[str, Any] = {"name": column.name, "datatype": datatype_of(column), "shape": list(array.shape)}
            if as_bytes:
                tail.append(write_tensor(array))
                tensor["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                tensor["data"] = json_data(column, array)
            tensors.append(tensor)
        head = orjson.dumps(
            {
                "model_name": responder.name,
                "model_version": responder.version,
                "id": responder.request_id if options.request_id is None else options.request_id,
                "outputs": tensors,
            }
        )
        if not tail:
            return Encoded(head, JSON)
        return Encoded(b"".join((head, *tail)), BINARY, ((HEADER, str(len(head)).encode()),))


PROTOCOL = Oip()


def metadata(signature: Signature, name: str, versions: Sequence[str]) -> dict[str, Any]:
    """Return a model's metadata."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "pytorch_safetensors",
        "inputs": described(signature.inputs),
        "outputs": described(signature.outputs),
    }


def server_metadata() -> dict[str, Any]:
    """Return the server's name and version, and its protocol extensions."""
    return {"name": "raymlops", "version": importlib.metadata.version("raymlops"), "extensions": ["binary_tensor_data"]}


def server_live() -> dict[str, Any]:
    """Return the answer to ``GET v2/health/live``."""
    return {"live": True}


def server_ready() -> dict[str, Any]:
    """Return the answer to ``GET v2/health/ready``; a server that is not ready answers with an error."""
    return {"ready": True}


def model_ready(name: str) -> dict[str, Any]:
    """Return the answer to ``GET v2/models/NAME/ready``; a model that is not ready answers with an error."""
    return {"name": name, "ready": True}


def _tensor(
    item: Any, index: int, rest: memoryview | None, start: int, *, signature: Signature, max_rows: int
) -> tuple[Tensor, int]:
    """Return one input tensor, and the offset of the next one's bytes."""
    where = f"inputs[{index}]"
    item = object_of(item, known=INPUT_KEYS, required=("name", "shape", "datatype"), where=where)
    name, datatype, shape = item["name"], item["datatype"], item["shape"]
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise wrong(where, "expected name and datatype to be strings")
    if not isinstance(shape, list) or set(map(type, shape)) - {int}:
        raise wrong(name[:80], "expected the shape to be a list of integers")
    count = element_count(name, datatype, shape, signature=signature, max_rows=max_rows)
    size = _parameters(item, name).get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise wrong(name, 'neither "data" nor the parameter "binary_data_size" is given')
        return Tensor(name, datatype, tuple(shape), _flat(item["data"], name, shape, count)), start
    if type(size) is not int or size < 0 or "data" in item:
        raise wrong(name, 'expected "binary_data_size" to be an integer, and no "data" with it')
    if rest is None or start + size > len(rest):
        left = 0 if rest is None else len(rest) - start
        raise bad_data(f"the tensor {name!r} has {size} bytes, of which {left} follow; see {HEADER.decode()}")
    values = read_tensor(name, datatype, count, rest[start : start + size])
    return Tensor(name, datatype, tuple(shape), values), start + size


def _flat(data: Any, name: str, shape: Sequence[int], count: int) -> list[Any]:
    """Return JSON data as a flat list; it may be flat or nested like the shape."""
    if not isinstance(data, list):
        raise wrong(name, "expected the data to be a list")
    if list not in set(map(type, data)):
        if len(data) != count:
            raise wrong(name, f"the shape {list(shape)} has {count} elements, the data {len(data)}")
        return data
    flat = [data]
    for size in shape:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            raise wrong(name, f"expected data that is flat, or nested like the shape {list(shape)}")
        flat = list(chain.from_iterable(flat))
        if not flat:
            break
    return flat


def _requested(outputs: Any, parameters: Mapping[str, Any], signature: Signature) -> tuple[tuple[Column, bool], ...]:
    default = _flag(parameters, "binary_data_output", default=False)
    names, as_bytes = [], []
    for index, item in enumerate([] if outputs is None else _list(outputs, "outputs")):
        item = object_of(item, known=OUTPUT_KEYS, required=("name",), where=f"outputs[{index}]")  # noqa: PLW2901
        if not isinstance(item["name"], str):
            raise wrong(f"outputs[{index}]", "expected the name to be a string")
        names.append(item["name"])
        as_bytes.append(_flag(_parameters(item, item["name"][:80]), "binary_data", default=default))
    columns = requested(names, signature)
    return tuple(zip(columns, as_bytes or [default] * len(columns), strict=True))


def _parameters(item: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the parameters of a request, an input or an output; unknown ones are ignored."""
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise wrong(field, "expected the parameters to be an object")
    return parameters


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise wrong("parameters", f'expected "{key}" to be true or false')
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(field, "expected a list of tensors")
    return value


def _text(value: Any, field: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise wrong(field, "expected a string")
    return value

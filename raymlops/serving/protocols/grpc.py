"""Open Inference Protocol v2 over gRPC: conversion between its messages and columns.

Owns the mapping between messages and tensors, and of an error to a call's details. Messages are bytes here. Knows
nothing of gRPC servers and does not import grpc.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from raymlops.serving.protocols import oip
from raymlops.serving.protocols.base import Encoded, Parsed
from raymlops.serving.protocols.binary import bad_data, raw_elements, read_tensor, write_tensor
from raymlops.serving.protocols.grpc_messages import Wire, request_class, response_class
from raymlops.serving.protocols.json_body import wrong
from raymlops.serving.protocols.protobuf_scan import NOT_PROTOBUF, fields_of, refuse_too_many
from raymlops.serving.protocols.tensors import (
    Tensor,
    columns_of,
    datatype_of,
    element_count,
    elements,
    output_array,
    requested,
)
from raymlops.serving.refusal import Refusal, error_body
from raymlops.serving.request import usable_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Column, Columns
    from raymlops.serving.protocols.base import Responder
    from raymlops.signature import Signature

KIND = b"application/grpc"

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_MAX_DETAILS_BYTES = 3500
"""Details travel as a header: Serve truncates them at 4,096 characters, clients reject headers of more than 8 KiB."""


@dataclass(frozen=True, slots=True)
class _Options:
    request_id: str
    outputs: tuple[Column, ...]
    raw: bool


class Grpc:
    """The Open Inference Protocol over gRPC: ``parse`` reads a ModelInferRequest, ``encode`` writes a response.

    ``model`` is the one that answers: a message for another one is refused. None accepts any name.
    """

    name = "grpc"

    def __init__(self, model: str | None = None) -> None:
        self._model = model

    def parse(self, body: bytes, headers: Mapping[bytes, bytes], *, signature: Signature, max_rows: int) -> Parsed:  # noqa: ARG002
        """Return a request's columns.

        Raises:
            Refusal: 400 for an invalid message or raw contents of a wrong size, 404 for another model, 413 for
                too many rows or fields, 422 for tensors that do not fit the signature.
        """
        refuse_too_many(body, signature, max_rows=max_rows)
        try:
            request = request_class("ModelInfer").FromString(body)
        except DecodeError as error:
            raise NOT_PROTOBUF from error
        if self._model is not None and request.model_name not in {"", self._model}:
            raise Refusal(404, "not_found", f"no model {request.model_name[:80]!r} here; this is {self._model}")
        outputs = requested([output.name for output in request.outputs], signature)
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise bad_data(f"expected raw_input_contents for each of {len(request.inputs)} inputs, got {len(raw)}")
        tensors = []
        for index, item in enumerate(request.inputs):
            shape = tuple(item.shape)
            count = element_count(item.name, item.datatype, shape, signature=signature, max_rows=max_rows)
            if raw:
                if item.HasField("contents"):
                    raise bad_data(f"the tensor {item.name!r} has contents and raw_input_contents; send one of them")
                values = read_tensor(item.name, item.datatype, count, raw[index])
            else:
                values = _typed(item, count)
            tensors.append(Tensor(item.name, item.datatype, shape, values))
        columns, rows = columns_of(tensors, signature)
        options = _Options(request.id, tuple(outputs), raw=bool(raw))
        return Parsed(columns, rows, usable_id(request.id), options, request.model_version or None)

    def encode(self, outputs: Columns, parsed: Parsed, responder: Responder, *, signature: Signature) -> Encoded:  # noqa: ARG002
        """Return a ModelInferResponse, with raw contents if the request has them.

        Raises:
            Refusal: 422, a tensor cannot hold an output.
        """
        options: _Options = parsed.options
        response = response_class("ModelInfer")(
            model_name=responder.name,
            model_version=responder.version,
            id=options.request_id or responder.request_id,
        )
        for column in options.outputs:
            array = output_array(column, outputs)
            datatype = datatype_of(column)
            tensor = response.outputs.add(name=column.name, datatype=datatype, shape=array.shape)
            if options.raw:
                response.raw_output_contents.append(write_tensor(array))
            else:
                values = raw_elements(array) if datatype == "BYTES" else array.reshape(-1).tolist()
                getattr(tensor.contents, _CONTENTS[datatype]).extend(values)
        return Encoded(response.SerializeToString(), KIND)


PROTOCOL = Grpc()


def model_of(body: bytes) -> tuple[str, str]:
    """Return the model name and version in a request of any method, each empty if it has none.

    They are the first two fields of every message that has them; what comes after a few, which may be millions of
    tensors, is not read.

    Raises:
        Refusal: 400 for an invalid message.
    """
    found = {number: body[start:stop] for number, start, stop in islice(fields_of(body, 0, len(body)), 8)}
    try:
        return found.get(1, b"").decode(), found.get(2, b"").decode()
    except UnicodeDecodeError as error:
        raise NOT_PROTOBUF from error


def ready(method: str, *, ready: bool) -> Wire:
    """Return the answer to ServerLive, ServerReady or ModelReady."""
    field = "live" if method == "ServerLive" else "ready"
    return Wire(response_class(method)(**{field: ready}).SerializeToString())


def server_metadata() -> Wire:
    """Return the answer to ServerMetadata."""
    return Wire(response_class("ServerMetadata")(**oip.server_metadata()).SerializeToString())


def model_metadata(metadata: Mapping[str, Any]) -> Wire:
    """Return the answer to ModelMetadata, from what ``oip.metadata`` returns."""
    return Wire(response_class("ModelMetadata")(**metadata).SerializeToString())


def details(refusal: Refusal, request_id: str) -> str:
    """Return the error as JSON in ASCII, with as many of its problems and as much of its message as fit a header."""
    message, problems = refusal.message, refusal.problems
    while True:
        fitting = Refusal(refusal.status, refusal.code, message, problems=problems)
        text = json.dumps(json.loads(error_body(fitting, request_id)), separators=(",", ":"))
        if len(text) <= _MAX_DETAILS_BYTES or not (message or problems):
            return text
        if len(problems) > 1:
            problems = problems[: len(problems) // 2]
        elif not message:  # a field's name alone is too long
            problems = ()
        else:
            message = message[: len(message) // 2]
            problems = tuple(replace(problem, message=problem.message[: len(message)]) for problem in problems)


def _typed(item: Any, count: int) -> Any:
    """Return the typed contents of an input tensor."""
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise wrong(item.name, f"{item.datatype} has no typed contents; send raw_input_contents")
    given = [descriptor.name for descriptor, _ in item.contents.ListFields()]
    if [name for name in given if name != field]:
        raise wrong(item.name, f"expected {field} for {item.datatype}, got {', '.join(given)}")
    contents = getattr(item.contents, field)
    if len(contents) != count:
        raise wrong(item.name, f"the shape has {count} elements, {field} {len(contents)}")
    values = list(contents)
    return elements(values) if item.datatype == "BYTES" else values

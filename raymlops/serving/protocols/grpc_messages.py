"""The messages and methods of ``open_inference.proto``, beside whatever other stubs a process holds.

Owns a descriptor pool of its own: tritonclient's and KServe's stubs define the same names in protobuf's default pool,
which takes each once. The few kinds of line that the file has are read here, so that nothing is generated and it alone
says which field has which number. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
SERVICE = "inference.GRPCInferenceService"
PROTO = "open_inference.proto"

_PACKAGE = "inference"
_FIELD = re.compile(r"(repeated )?(?:map<string, (\w+)>|(\w+)) (\w+) = (\d+);")
_BLOCK = re.compile(r"(message|oneof|service) (\w+) \{")
_RPC = re.compile(r"rpc (\w+)\((\w+)\) returns \((\w+)\) \{\}")


class Wire(bytes):
    """A message as its bytes, which is how it travels: from a gRPC server to a replica, and back.

    So a server in front parses nothing, and a message that is damaged is refused where all others are.
    """

    __slots__ = ()

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name, by which Serve asks for the bytes of an answer
        """Return the bytes."""
        return bytes(self)


def add_servicer(servicer: Any, server: Any) -> None:
    """Add the service to a gRPC server, as the function that protoc generates does.

    Serve is given its import path. Each method of ``servicer`` is called with a ``Wire`` and returns one, or a message.
    """
    import grpc

    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method), request_deserializer=Wire, response_serializer=_serialize
        )
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def request_class(method: str) -> Any:
    """Return the class of a method's requests."""
    return message_class(f"{method}Request")


def response_class(method: str) -> Any:
    """Return the class of a method's responses."""
    return message_class(f"{method}Response")


@functools.cache
def message_class(name: str) -> Any:
    """Return the class of a message, such as ``ModelInferRequest``."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def file_descriptor(text: str) -> Any:
    """Return what a .proto file says, as protobuf describes files to itself.

    Raises:
        ValueError: a line is of a kind that is not read here.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=PROTO, package=_PACKAGE, syntax="proto3")
    lines = (line.partition("//")[0].strip() for line in text.splitlines())
    open_blocks: list[Any] = [file]
    oneof = False
    for line in lines:
        if not line or line in {'syntax = "proto3";', f"package {_PACKAGE};"}:
            continue
        if line == "}":
            if oneof:
                oneof = False
            else:
                open_blocks.pop()
        elif block := _BLOCK.fullmatch(line):
            kind, name = block.groups()
            if kind == "oneof":
                open_blocks[-1].oneof_decl.add(name=name)
                oneof = True
            elif kind == "service":
                open_blocks.append(file.service.add(name=name))
            else:
                parent = open_blocks[-1]
                open_blocks.append((file.message_type if parent is file else parent.nested_type).add(name=name))
        elif rpc := _RPC.fullmatch(line):
            name, taken, given = rpc.groups()
            types = {"input_type": f".{_PACKAGE}.{taken}", "output_type": f".{_PACKAGE}.{given}"}
            open_blocks[-1].method.add(name=name, options={}, **types)
        elif field := _FIELD.fullmatch(line):
            _add_field(open_blocks, field, oneof=oneof)
        else:
            msg = f"expected a message, a oneof, a service, a method or a field on one line, got {line!r}"
            raise ValueError(msg)
    return file


def _add_field(open_blocks: list[Any], field: re.Match[str], *, oneof: bool) -> None:
    repeated, mapped, kind, name, number = field.groups()
    message = open_blocks[-1]
    path = [_PACKAGE, *(block.name for block in open_blocks[1:])]
    if mapped:  # a map is a repeated message of keys and values
        kind = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=kind, options={"map_entry": True})
        entry.field.add(name="key", number=1, label="LABEL_OPTIONAL", type="TYPE_STRING")
        entry.field.add(name="value", number=2, label="LABEL_OPTIONAL", **_type(mapped, [_PACKAGE]))
    nested = any(inner.name == kind for inner in message.nested_type)
    message.field.add(
        name=name,
        number=int(number),
        label="LABEL_REPEATED" if repeated or mapped else "LABEL_OPTIONAL",
        **_type(kind, path if nested else [_PACKAGE]),
        **({"oneof_index": 0} if oneof else {}),
    )


def _type(kind: str, path: list[str]) -> dict[str, str]:
    if kind[0].islower():
        return {"type": f"TYPE_{kind.upper()}"}
    return {"type": "TYPE_MESSAGE", "type_name": "." + ".".join([*path, kind])}


@functools.cache
def _pool() -> Any:
    from google.protobuf.descriptor_pool import DescriptorPool

    text = importlib.resources.files(__package__).joinpath(PROTO).read_text(encoding="utf-8")
    pool = DescriptorPool()
    pool.AddSerializedFile(file_descriptor(text).SerializeToString())
    return pool


_serialize: Callable[[Any], bytes] = lambda reply: reply.SerializeToString()  # noqa: E731 - one line says it

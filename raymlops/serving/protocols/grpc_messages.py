"""The gRPC messages and methods of ``open_inference.proto``, independent of other stubs in the process.

Owns a descriptor pool of its own, filled from what protoc compiled: tritonclient's and KServe's stubs define the same
names in protobuf's default pool, which takes each once. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
SERVICE = "inference.GRPCInferenceService"
DESCRIPTORS = "open_inference.binpb"


class Wire(bytes):
    """A serialized message, as it travels between a gRPC server and a replica.

    The server in front parses nothing, and a damaged message is rejected where all others are: in the replica.
    """

    __slots__ = ()

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name, by which Serve asks for the bytes of an answer
        """Return the message's bytes."""
        return bytes(self)


def add_servicer(servicer: Any, server: Any) -> None:
    """Add the service to a gRPC server, like the function that protoc generates.

    Serve gets its import path. Each method of ``servicer`` is called with a ``Wire`` and returns one, or a message.
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

    return GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@functools.cache
def _pool() -> Any:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    compiled = importlib.resources.files(__package__).joinpath(DESCRIPTORS).read_bytes()
    for file in FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_serialize: Callable[[Any], bytes] = lambda reply: reply.SerializeToString()  # noqa: E731 - one line says it

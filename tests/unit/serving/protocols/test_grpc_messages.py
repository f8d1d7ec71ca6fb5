from __future__ import annotations

import asyncio
import importlib.resources
import pickle
import re

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from raymlops.serving.protocols import grpc_messages
from raymlops.serving.protocols.grpc_messages import (
    METHODS,
    Wire,
    add_servicer,
    message_class,
    response_class,
)


def compiled() -> FileDescriptorSet:
    folder = importlib.resources.files("raymlops.serving.protocols")
    return FileDescriptorSet.FromString(folder.joinpath(grpc_messages.DESCRIPTORS).read_bytes())


def test_messages_have_the_bytes_of_the_public_protocol():
    """Worked out by hand from the public field numbers: a tag is number * 8 + 2 for texts, bytes and packed numbers."""
    request = message_class("ModelInferRequest")(model_name="m", model_version="7", id="a")
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[2])
    request.parameters["p"].bool_param = True
    request.raw_input_contents.append(b"\x01")
    request.outputs.add(name="y")
    assert tensor.SerializeToString(deterministic=True) == b"\x0a\x01x" + b"\x12\x04FP64" + b"\x1a\x01\x02"
    assert request.SerializeToString(deterministic=True) == (
        b"\x0a\x01m"  # 1 model_name
        b"\x12\x017"  # 2 model_version
        b"\x1a\x01a"  # 3 id
        b"\x22\x07\x0a\x01p\x12\x02\x08\x01"  # 4 parameters: 1 key, 2 value: 1 bool_param
        b"\x2a\x0c\x0a\x01x\x12\x04FP64\x1a\x01\x02"  # 5 inputs
        b"\x32\x03\x0a\x01y"  # 6 outputs
        b"\x3a\x01\x01"  # 7 raw_input_contents
    )
    contents = message_class("InferTensorContents")(
        bool_contents=[True],
        int_contents=[1],
        int64_contents=[2],
        uint_contents=[3],
        uint64_contents=[4],
        fp32_contents=[0.0],
        fp64_contents=[1.0],
        bytes_contents=[b"b"],
    )
    assert contents.SerializeToString(deterministic=True) == (
        b"\x0a\x01\x01\x12\x01\x01\x1a\x01\x02\x22\x01\x03\x2a\x01\x04"
        b"\x32\x04\x00\x00\x00\x00\x3a\x08\x00\x00\x00\x00\x00\x00\xf0\x3f\x42\x01b"
    )
    answer = message_class("ModelInferResponse")(model_name="m", raw_output_contents=[b"\x02"])
    assert answer.SerializeToString(deterministic=True) == b"\x0a\x01m\x32\x01\x02"


def test_the_compiled_descriptors_are_those_of_the_proto_file(tmp_path):
    """Where grpcio-tools is installed, compiling again gives the same file."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    folder = importlib.resources.files("raymlops.serving.protocols")
    (tmp_path / "open_inference.proto").write_bytes(folder.joinpath("open_inference.proto").read_bytes())
    out = tmp_path / "set.binpb"
    assert (
        protoc.main(["", f"-I{tmp_path}", f"--descriptor_set_out={out}", str(tmp_path / "open_inference.proto")]) == 0
    )
    assert FileDescriptorSet.FromString(out.read_bytes()) == compiled()


def test_the_proto_file_names_the_fields_of_the_compiled_descriptors():
    """Message by message, each field with its number: a changed file that was not compiled again is found."""
    text = importlib.resources.files("raymlops.serving.protocols").joinpath("open_inference.proto").read_text("utf-8")
    (file,) = compiled().file
    todo, fields = list(file.message_type), []
    while todo:
        message = todo.pop()
        todo += [nested for nested in message.nested_type if not nested.options.map_entry]
        fields += [(field.name, str(field.number)) for field in message.field]
    assert sorted(fields) == sorted(re.findall(r"(\w+) = (\d+);", text))
    assert [method.name for method in file.service[0].method] == list(METHODS) == re.findall(r"rpc (\w+)", text)


def test_other_stubs_of_the_same_names_may_live_beside_ours():
    """Ours are not in protobuf's default pool, where tritonclient's and KServe's are."""
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
    assert message_class("ModelInferRequest").DESCRIPTOR.full_name == "inference.ModelInferRequest"


def test_bytes_survive_the_way_to_a_replica():
    """Serve pickles requests and asks answers for their bytes."""
    wire = pickle.loads(pickle.dumps(Wire(b"abc")))
    assert (type(wire), wire.SerializeToString()) == (Wire, b"abc")


def test_the_service_answers_over_grpc():
    """Each method is called with bytes and may answer with bytes or a message; damaged bytes come through to it."""
    seen = []

    class Servicer:
        def __getattr__(self, method):
            async def answer(request, context):
                seen.append((method, bytes(request)))
                made = response_class(method)()
                return made if method == "ServerLive" else Wire(made.SerializeToString())

            return answer

    async def run():
        server = grpc.aio.server()
        add_servicer(Servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in METHODS:
                await channel.unary_unary(f"/{grpc_messages.SERVICE}/{method}")(b"\xff")
        await server.stop(None)

    asyncio.run(run())
    assert seen == [(method, b"\xff") for method in METHODS]

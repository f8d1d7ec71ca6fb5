"""Objects between processes: pickled into anonymous shared memory, whose descriptor goes over a Unix socket.

Tensors and arrays are copied once, by the sender: the receiver's are the memory itself, which is freed with the last of
them. Nothing of it has a name, so a process that is killed leaves nothing behind, and none of it counts against the
size of ``/dev/shm``, which is 64 MB in many containers. ``torch.multiprocessing`` would need both, and a sender that
lives until its message is read.

Owns the format. Knows nothing of what is sent.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import select
import socket
import struct
from typing import Any

import torch

_ALIGNMENT = 64
_COUNT = struct.Struct("<q")


class Closed(Exception):  # noqa: N818 - not an error: the other side is gone
    """The other side has closed its socket, or has died."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, which keep the bounds of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, value: Any) -> None:
    """Send an object.

    Raises:
        Closed: nobody receives it.
    """
    send_pickled(to, *pickled(value))


def pickled(value: Any) -> list[Any]:
    """Return an object pickled, and the buffers that are left out of that."""
    buffers: list[pickle.PickleBuffer] = []
    written = io.BytesIO()
    _Pickler(written, protocol=5, buffer_callback=buffers.append).dump(value)
    return [written.getbuffer(), *(buffer.raw() for buffer in buffers)]


def send_pickled(to: socket.socket, *frames: Any) -> None:
    """Send an object that is pickled already, and its buffers.

    Raises:
        Closed: nobody receives it.
    """
    sizes = [len(frame) for frame in frames]
    index = struct.pack(f"<{1 + len(sizes)}q", len(sizes), *sizes)
    memory = os.memfd_create("raymlops-batch")
    try:
        starts, end = _places(sizes)
        os.ftruncate(memory, max(end, 1))
        for start, data in zip([0, *starts], [index, *frames], strict=True):
            _write(memory, memoryview(data), start)
        try:
            socket.send_fds(to, [_COUNT.pack(max(end, 1))], [memory])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error
    finally:
        os.close(memory)


def readable(source: socket.socket, *, within_s: float) -> bool:
    """Return whether a message, or the end, arrives in time."""
    waiting = select.poll()  # ``select.select`` takes no descriptor from 1024 on
    waiting.register(source, select.POLLIN)
    return bool(waiting.poll(within_s * 1000))


def send_heartbeat(to: socket.socket, number: int) -> None:
    """Send a number, as a heartbeat."""
    try:
        to.send(_COUNT.pack(number))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error


def receive(source: socket.socket) -> tuple[Any, int | None]:
    """Wait for the next message and return its object, or None and the number of a heartbeat.

    Raises:
        Closed: the other side is gone.
        OSError: this process may open no more files.
    """
    try:
        data, descriptors, flags, _address = socket.recv_fds(source, _COUNT.size, 1)
    except ConnectionResetError:
        # Told once, where the other side died with messages unread; what it had sent comes after it.
        data, descriptors, flags, _address = socket.recv_fds(source, _COUNT.size, 1)
    if not data:
        raise Closed
    if flags & socket.MSG_CTRUNC:  # the kernel had nowhere to put the descriptor
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    (number,) = _COUNT.unpack(data)
    if not descriptors:
        return None, number
    try:
        # Unlike Python's, torch's mapping keeps no descriptor open: a loop may keep thousands of batches.
        mapped = torch.from_file(f"/proc/self/fd/{descriptors[0]}", shared=True, size=number, dtype=torch.uint8)
    finally:
        os.close(descriptors[0])
    bytes_: Any = mapped.numpy()
    view = memoryview(bytes_)
    (count,) = _COUNT.unpack_from(view)
    sizes = struct.unpack_from(f"<{count}q", view, _COUNT.size)
    main, *buffers = (view[start : start + size] for start, size in zip(_places(sizes)[0], sizes, strict=True))
    return pickle.loads(main, buffers=buffers), None  # noqa: S301 - from a process of our own


def _places(sizes: Any) -> tuple[list[int], int]:
    """Return where each part starts behind the index, and where the last one ends."""
    starts, end = [], _COUNT.size * (1 + len(sizes))
    for size in sizes:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        starts.append(start)
        end = start + size
    return starts, end


def _write(memory: int, data: memoryview, start: int) -> None:
    data = data.cast("B")
    while len(data):
        written = os.pwrite(memory, data, start)  # at most 2 GB a call
        data, start = data[written:], start + written


class _Pickler(pickle.Pickler):
    """Leaves the memory of plain tensors out of the pickle; arrays do so themselves."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or value.layout is not torch.strided or value.device.type != "cpu":
            return NotImplemented
        if value.is_quantized or not value.numel():
            return NotImplemented
        tensor = value.detach().resolve_conj().resolve_neg()
        if not tensor.is_contiguous():
            tensor = tensor.clone()  # without gaps, in its order of dimensions: channels last stay so
        flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        data: Any = flat.numpy()
        return _tensor, (pickle.PickleBuffer(data), value.dtype, tuple(tensor.shape), tensor.stride())


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(data, dtype=dtype).as_strided(shape, stride)

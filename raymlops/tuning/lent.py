"""One value in Ray's object store for every process of a node, for as long as whoever lent it keeps it.

Owns the reference. Ray pins an object whose reference is pickled into a class, as a trainable's is, until the driver
ends: a notebook that sweeps ten times would hold the data of ten sweeps. Knows nothing of what is lent.
"""

from __future__ import annotations

from typing import Any

import ray


class Lent:
    """A value in the object store. It may be pickled into classes; a process maps the value with ``get``."""

    def __init__(self, value: Any) -> None:
        self._reference: Any = ray.put(value)

    def get(self) -> Any:
        """Return the value; its arrays are views of the node's memory."""
        return ray.get(self._reference)

    def release(self) -> None:
        """Let go of it: Ray frees it once no process has it mapped."""
        self._reference = None

    def __reduce__(self) -> tuple[Any, ...]:
        # What Ray (2.60) does for a reference, but for pinning it.
        reference = self._reference
        worker = ray._private.worker.global_worker  # noqa: SLF001 - no public call
        _, owner, status = worker.core_worker.serialize_object_ref(reference)
        return _borrowed, (reference.binary(), owner, status, reference.tensor_transport())


def _borrowed(reference_id: bytes, owner: bytes, status: bytes, transport: str) -> Lent:
    from ray._private.serialization import _object_ref_deserializer

    lent = Lent.__new__(Lent)
    lent._reference = _object_ref_deserializer(reference_id, "", owner, status, transport)  # noqa: SLF001
    return lent

"""Per-model limits, as known to a process that accepts requests before a replica has them.

Owns how a replica announces its limits, the defaults until then, and those of a release that announces none; and whose
bodies are worth reading. The proxy learns both from every response, in a key that no client sees; a replica behind
HAProxy, which accepts requests itself and knows the keys, when its settings change. The gateway learns how many values
a body may have from a header of a model's answers, and forgets it after ten seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from raymlops.serving.auth import NOBODYS, secret_of
from raymlops.serving.csv_scan import CsvScan
from raymlops.serving.json_scan import MAX_LABEL_VALUES, JsonScan, most_values
from raymlops.serving.protocols.binary import HEADER
from raymlops.serving.refusal import Limits, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping
    from typing import Any

    from raymlops.serving.auth import Guard

ANNOUNCED = "raymlops.bounds"
"""Key of a response's first ASGI message for the name of a model and its ``Bounds``."""
ANNOUNCED_MORE = "raymlops.more_bounds"
"""Key for what ``Bounds`` has besides deadline and size: a proxy that outlives an upgrade knows those two alone."""
INDEX = ""
"""In place of a model's name: the gateway to all models."""
MODELS = "/models/"
BY_INDEX = "/v2/models/"
OF_MODEL = b"x-model-version"
"""Header of every response of a model, in every release; responses of Serve and of the index lack it."""
MAX_VALUES = b"x-model-max-values"
"""Header by which a model tells the gateway how many values a JSON body may have; clients do not see it."""


class Bounds(NamedTuple):
    """The limits of a request that matter before a replica has it."""

    timeout_s: float
    max_body_bytes: int
    max_values: int | None = None
    """Of a body in JSON or CSV; None for any number."""
    key_required: bool = False

    @classmethod
    def of(cls, limits: Limits, *, values_per_row: int | None = None, key_required: bool = False) -> Bounds:
        """Return the bounds in a model's limits."""
        most = most_values(values_per_row, max_rows=limits.max_rows)
        return cls(limits.timeout_s, limits.max_body_bytes, most, key_required)

    def allow_more_than(self, other: Bounds) -> bool:
        """Return whether a body that the others refuse may be within these."""
        values = math.inf if self.max_values is None else self.max_values
        return self.max_body_bytes > other.max_body_bytes or (
            other.max_values is not None and values > other.max_values
        )


def announcement(name: str, bounds: Bounds) -> dict[str, Any]:
    """Return what a replica adds to a response's first message."""
    return {ANNOUNCED: (name, tuple(bounds[:2])), ANNOUNCED_MORE: tuple(bounds[2:])}


SILENT = Bounds(timeout_s=300.0, max_body_bytes=64 * 1024 * 1024)
"""Bounds of a model whose replicas announce none, as those of an earlier release. The size is that of a gRPC
message."""
UNKNOWN = Bounds(timeout_s=SILENT.timeout_s, max_body_bytes=Limits().max_body_bytes)
"""Bounds of a model of which no replica has answered yet, and of a name without a model, which anybody may invent. The
wait for an answer is as long as for any model, that for a body is not."""
UNKNOWN_BODY_S = Limits().timeout_s
"""How long a body for such a name may take."""


class KnownBounds:
    """The known bounds of each model, and in its replicas the guard of its keys."""

    def __init__(self) -> None:
        self._bounds: dict[str, Bounds] = {}
        self.guard_of: Callable[[str], Guard | None] = lambda _name: None
        """Replaced in a process that knows keys; it returns None for a name without a model."""
        self.guards: Callable[[], Iterable[Guard]] = tuple
        """Replaced there too: of all its models. A gRPC call names its model in its message."""
        self.most_message_bytes: int | None = None
        """The largest body of a model of this process; None where they are not known."""

    def record(self, name: str, bounds: Bounds) -> None:
        """Record the bounds of a model, or of the index."""
        self._bounds[name] = bounds

    def take(self, message: MutableMapping[str, Any], *, path: str = "") -> None:
        """Record and remove the bounds in a response's first message; at ``path``, a model may have answered."""
        announced, more = message.pop(ANNOUNCED, None), message.pop(ANNOUNCED_MORE, ())
        if announced is not None:
            name, bounds = announced
            self._bounds[name] = Bounds(*(*bounds, *more)[: len(Bounds._fields)])
        elif path.startswith(MODELS) and any(name == OF_MODEL for name, _ in message.get("headers", ())):
            self._bounds.setdefault(name_in(path), SILENT)

    def of_path(self, path: str) -> Bounds | None:
        """Return the bounds of a request at this path; None if it is for no model."""
        if path.startswith(MODELS):
            return self._bounds.get(name_in(path), UNKNOWN)
        index = self._bounds.get(INDEX)  # until it has answered, the path may be another application's
        if index is None or not path.startswith(BY_INDEX):
            return None
        model = self._bounds.get(asked_for(path))
        if model is None:
            return index
        required = index.key_required or model.key_required
        return index._replace(max_values=model.max_values, key_required=required)

    def may_send(self, path: str, headers: Mapping[bytes, bytes], bounds: Bounds) -> bool:
        """Return whether a body is worth reading: the model's front refuses a caller without a valid key anyway."""
        secret, guard = secret_of(headers), self.guard_of(asked_for(path))
        if guard is None:
            return secret is not None or not bounds.key_required
        try:
            guard.identify(secret)
        except Refusal:
            return False
        return True

    def key_of(self, name: str, secret: str | None) -> str | None:
        """Return the id of the key of a gRPC call, None without one, or where no keys are known.

        Raises:
            Refusal: 401, no model of this process admits its caller; the model of that name did not, by its answers.
        """
        guards = list(self.guards())
        if not guards and secret is None and self._bounds.get(name, UNKNOWN).key_required:
            guards = [NOBODYS]
        for index, guard in enumerate(guards, 1):
            try:
                return guard.identify(secret).key_id
            except Refusal:
                if index == len(guards):
                    raise
        return None

    def of_model(self, name: str) -> Bounds | None:
        """Return the bounds of a model that are known."""
        return self._bounds.get(name)

    def forget(self, name: str) -> None:
        """Take the bounds of a model for unknown."""
        self._bounds.pop(name, None)


def name_in(path: str) -> str:
    """Return the model in a path below ``MODELS``; the index for others."""
    return path[len(MODELS) :].partition("/")[0] if path.startswith(MODELS) else INDEX


def asked_for(path: str) -> str:
    """Return the model in a path below ``MODELS`` or ``BY_INDEX``."""
    return path.removeprefix(MODELS).removeprefix(BY_INDEX).partition("/")[0]


def scan_of(path: str, headers: Mapping[bytes, bytes], bounds: Bounds) -> JsonScan | CsvScan | None:
    """Return what scans the body of a request before a replica has it; None for one that is neither JSON nor CSV."""
    path = path.rstrip("/")  # as a front does
    kind, encoding = headers.get(b"content-type", b""), headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() not in {b"", b"identity"} or HEADER in headers:
        return None
    if kind.strip().lower().startswith(b"text/csv") and path.endswith("/invocations"):
        return CsvScan(bounds.max_values)
    return JsonScan(MAX_LABEL_VALUES if path.endswith("/feedback") else bounds.max_values)


KNOWN = KnownBounds()
"""The bounds that this process knows."""

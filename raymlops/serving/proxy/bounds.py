"""What a process that takes requests from clients knows of the models' limits, before a replica has one of them.

Owns how a replica tells it, what counts until one has, and what counts for one of a release that tells nothing. The
proxy is told with every answer, beside its headers, where no client sees it; a replica behind HAProxy, which takes its
requests by itself, when its settings change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from raymlops.serving.refusal import Limits

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

TOLD = "raymlops.bounds"
"""Key of an answer's first ASGI message for the name of a model and its ``Bounds``."""
INDEX = ""
"""In place of a model's name: the way to all of them."""
MODELS = "/models/"
BY_INDEX = "/v2/models/"
OF_MODEL = b"x-model-version"
"""Header that each answer of a model has, in every release; Serve's own answers and the index' have it not."""


class Bounds(NamedTuple):
    """What a request may ask for at most."""

    timeout_s: float
    max_body_bytes: int

    @classmethod
    def of(cls, limits: Limits) -> Bounds:
        """Return those of a model."""
        return cls(limits.timeout_s, limits.max_body_bytes)


SILENT = Bounds(timeout_s=300.0, max_body_bytes=64 * 1024 * 1024)
"""Of a model whose replicas answer and tell none, as those of an earlier release. The size is that of a message over
gRPC."""
UNKNOWN = Bounds(timeout_s=SILENT.timeout_s, max_body_bytes=Limits().max_body_bytes)
"""Of a model of which no replica has answered this process yet, and of a name that is no model's: anybody may invent
one. An answer is waited for as long as any model may ask for, a body is not."""
UNKNOWN_BODY_S = Limits().timeout_s
"""How long a body for such a name may take."""


class Known:
    """The bounds of each model, as far as they are known."""

    def __init__(self) -> None:
        self._bounds: dict[str, Bounds] = {}

    def tell(self, name: str, bounds: Bounds) -> None:
        """Note the bounds of a model, or of all of them together."""
        self._bounds[name] = bounds

    def take(self, message: MutableMapping[str, Any], *, path: str = "") -> None:
        """Note what an answer's first message tells, and take it out; at ``path``, a model may have answered."""
        told = message.pop(TOLD, None)
        if told is not None:
            name, bounds = told
            self._bounds[name] = Bounds(*bounds)
        elif path.startswith(MODELS) and any(name == OF_MODEL for name, _ in message.get("headers", ())):
            self._bounds.setdefault(name_in(path), SILENT)

    def of_path(self, path: str) -> Bounds | None:
        """Return what counts for a request at this path; None where it is for no model."""
        if path.startswith(MODELS):
            return self._bounds.get(name_in(path), UNKNOWN)
        if path.startswith(BY_INDEX):
            return self._bounds.get(INDEX)  # until the index has answered, the path may be another application's
        return None


def name_in(path: str) -> str:
    """Return whose path this is, which is below ``MODELS`` or the index'."""
    return path[len(MODELS) :].partition("/")[0] if path.startswith(MODELS) else INDEX


KNOWN = Known()
"""Of this process."""

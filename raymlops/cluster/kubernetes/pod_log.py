"""The log of a pod as it is followed: each line once, however often its stream ends.

Owns what of a log was given already. What a stream is cut by, and whether it is asked for again, is others'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from raymlops.cluster.kubernetes.api_server import ApiServer

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\S+")


class _Part(NamedTuple):
    """What came of a line up to a carriage return, to its end, or to the end of the stream."""

    time: str
    """Of its line, as far as it came; empty where the kubelet speaks itself."""
    number: int
    text: str
    end: str


@dataclass
class PodLog:
    """The log of a pod.

    A kubelet writes times of one width (``RFC3339NanoFixed``), and takes whole seconds of ``sinceTime``. What comes
    before a carriage return, as of a progress bar, is given as a line of its own.
    """

    server: ApiServer
    pod: str = ""
    time: str = ""
    """Of the last line, and how many lines had that time."""
    count: int = 0
    parts: int = 0
    """How many parts of the next line were given."""
    rest: str | None = None
    """The last line as far as it came, where a stream ended within one: the next stream has all of it."""

    def lines(self, pod: str) -> Iterator[str]:
        """Yield the lines that are new, until the stream ends; of another pod, all."""
        if pod != self.pod:
            self.pod, self.time, self.count, self.parts, self.rest = pod, "", 0, 0, None
        before, known, given = self.time, self.count, self.parts
        since = {"sinceTime": before} if before else {}
        path = f"/api/v1/namespaces/{self.server.namespace}/pods/{pod}/log"
        old = False
        for part in _parts(self.server.lines(path, follow="true", timestamps="true", **since)):
            if not part.time:
                if _says(part):
                    yield part.text
                continue
            if part.number == 0:
                # Lines come in their order, which a clock that is set back is not: behind the last one all are new.
                old = known > 0 and part.time <= before
                known = 0 if not old else known - (part.time == before)
            if not part.end:
                self.rest = self.rest or "" if old else part.text
                return
            if old:
                continue
            if part.number >= given and _says(part):
                yield part.text
            if part.end == "\r":
                self.parts, self.rest = max(given, part.number + 1), ""
            else:
                self.count = self.count + 1 if part.time == self.time else 1
                self.time, self.parts, self.rest, given = part.time, 0, None, 0


def _parts(pieces: Iterable[str]) -> Iterator[_Part]:
    time, number = "", 0
    for piece in pieces:
        text, end = piece.rstrip("\r\n"), piece[-1] if piece.endswith(("\r", "\n")) else ""
        if number == 0:
            time, _, words = text.partition(" ")
            if _TIME.fullmatch(time) or not end:
                text = words
            else:
                time = ""  # the kubelet's own words
        yield _Part(time, number, text, end)
        number = 0 if end == "\n" else number + 1


def _says(part: _Part) -> bool:
    """Return whether a part is one: a bar begins with a carriage return, and its line ends behind one."""
    return bool(part.text) or (part.number == 0 and part.end == "\n")

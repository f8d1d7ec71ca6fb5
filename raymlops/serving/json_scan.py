"""Values and depth of a JSON body, counted as it arrives, before anybody parses it. Pure.

Owns how many values a body may have, and that it is refused once it has more or is nested too deeply. orjson holds the
interpreter, and so all other requests, until it has made an object of each value: .2 s for 8 MB. A body that is refused
while it arrives is handed over to no replica.
"""

from __future__ import annotations

import math

import numpy as np

from raymlops.serving.refusal import Refusal

UNCOUNTED_BYTES = 64_000
"""The values of a smaller body are not counted before it is parsed: parsing takes no longer."""
PIECE_BYTES = 65_536
"""Scanned at once: numpy's functions hold the interpreter for less than a millisecond of them."""
MAX_LABEL_VALUES = 500_000
"""Values in one body of labels, of which each may be a list."""
MAX_FREE_VALUES = 500_000
"""Values in one body for a model whose rows have no bound, by a free dimension without ``max_length``: they hold the
interpreter for some 10 ms."""
MAX_DEPTH = 1024
"""As orjson has it."""
TOO_DEEP = Refusal(400, "too_deep", "the body is nested too deeply")
_COMMA, _QUOTE, _OPEN, _CLOSE = b',"{}'
_LOWER = 0x20
"""Makes [ of the same code as {, and ] as }."""


def most_values(values_per_row: int | None, *, max_rows: int) -> int:
    """Return how many values a body may have in any protocol: those of its rows, and what is around them."""
    least = ((values_per_row or 1) + 2) * max_rows + 10_000
    return max(least, MAX_FREE_VALUES) if values_per_row is None else least


class JsonScan:
    """What was seen of one body, which may have ``most`` values; None for any number.

    All values but the first of a list or an object follow a comma. ``looks_large`` takes a hundredth of the time of
    ``add``. It counts commas in texts, too, so that it misses no body with too many values. Closing brackets in a text
    may hide depth from it, which the parser then refuses.
    """

    def __init__(self, most: int | None) -> None:
        self.within_text = False
        self._most = math.inf if most is None else most
        self._commas = self._open = 0
        self._values = self._depth = 0
        self._rest = b""

    def looks_large(self, chunk: bytes) -> bool:
        """Return whether the body may be refused, with a chunk that comes next."""
        codes = np.frombuffer(chunk, np.uint8)
        lower = codes | _LOWER
        self._commas += int(np.count_nonzero(codes == _COMMA))
        self._open += int(np.count_nonzero(lower == _OPEN)) - int(np.count_nonzero(lower == _CLOSE))
        return self._commas > self._most or self._open > MAX_DEPTH

    def add(self, piece: bytes) -> None:
        """Count what comes next, ``PIECE_BYTES`` at most.

        Raises:
            Refusal: 413, the body has more values; 400, it is nested too deeply.
        """
        piece, self._rest = self._rest + piece, b""
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece, self._rest = piece[:-1], b"\\"  # a backslash and what it escapes stay together
        codes = np.frombuffer(piece.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
        if not codes.size:
            return
        texts = np.logical_xor.accumulate(codes == _QUOTE) ^ self.within_text
        self.within_text = bool(texts[-1])
        codes = codes[~texts]
        self._values += int(np.count_nonzero(codes == _COMMA))
        if self._values > self._most:
            raise Refusal(413, "too_many_rows", f"the body has more than {self._most} values; send fewer at a time")
        lower = codes | _LOWER
        steps = (lower == _OPEN).astype(np.int32) - (lower == _CLOSE)
        if steps.size and self._depth + int(np.cumsum(steps).max()) > MAX_DEPTH:
            raise TOO_DEEP
        self._depth += int(steps.sum())

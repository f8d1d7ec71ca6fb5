"""Values of a CSV body, counted as it arrives, before anybody parses it. Pure.

The parser makes an object of each value and holds the interpreter for a whole line, and so all other requests.
"""

from __future__ import annotations

import codecs
import math
from typing import TYPE_CHECKING

import numpy as np

from raymlops.serving.json_scan import PIECE_BYTES
from raymlops.serving.refusal import Refusal

if TYPE_CHECKING:
    import numpy.typing as npt

_COMMA, _QUOTE, _LF, _CR = b',"\n\r'


class CsvScan:
    """What was seen of one body, which may have ``most`` values; None for any number.

    Each value ends with a comma or a line end, of which CRLF counts as two. A quote within a value that does not begin
    with one is part of it for the parser: from there on texts are counted too, so that it hides no values.
    """

    def __init__(self, most: int | None) -> None:
        self._most = math.inf if most is None else most
        self._ends = self._values = 0
        self._within_text = self._stray = False
        self._last: int | None = None

    def looks_large(self, chunk: bytes) -> bool:
        """Return whether the body may be refused, with a chunk that comes next."""
        self._ends += int(np.count_nonzero(_ends(np.frombuffer(chunk, np.uint8))))
        return self._ends > self._most

    def add(self, piece: bytes) -> None:
        """Count what comes next.

        Raises:
            Refusal: 413, the body has more values.
        """
        if self._last is None:
            piece, self._last = piece.removeprefix(codecs.BOM_UTF8), _LF
        codes = np.frombuffer(piece, np.uint8)
        if not codes.size:
            return
        ends = _ends(codes)
        if not self._stray:
            quotes = codes == _QUOTE
            texts = np.logical_xor.accumulate(quotes) ^ self._within_text
            before = np.concatenate((np.array([self._last], np.uint8), codes[:-1]))
            stray = np.flatnonzero(quotes & texts & ~_ends(before) & (before != _QUOTE))
            if stray.size:
                self._stray = True
                texts[stray[0] :] = False
            self._within_text, self._last = bool(texts[-1]), int(codes[-1])
            ends &= ~texts
        self._values += int(np.count_nonzero(ends))
        if self._values > self._most:
            raise Refusal(413, "too_many_rows", f"the body has more than {self._most} values; send fewer at a time")


def refuse_more(body: bytes, most: int | None) -> None:
    """Refuse a whole body with more values, as one that no guard has counted.

    Raises:
        Refusal: 413, it has more.
    """
    if most is not None and sum(map(body.count, (b",", b"\n", b"\r"))) > most:
        scan = CsvScan(most)
        for start in range(0, len(body), PIECE_BYTES):
            scan.add(body[start : start + PIECE_BYTES])


def _ends(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (codes == _COMMA) | (codes == _LF) | (codes == _CR)
    return found

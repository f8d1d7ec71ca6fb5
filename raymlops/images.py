"""Images as arrays of pixels: uint8, of shape (height, width, channels) with 1 (gray), 3 (RGB) or 4 (RGBA) channels.

Owns reading PNG and JPEG, and writing PNG. Nothing is resized or rotated, and nothing is decoded before its header has
said how large it is, nor where it has more parts than any encoder writes: each is a walk over all pixels, or a turn of
a loop in Python, that costs its sender a few bytes. Pillow is imported where it is used.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL.Image import Image

Array = npt.NDArray[Any]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels."""
MAX_BYTES = 256 * 1024 * 1024
"""Decoded size of the images of one column in one request."""
MAX_PIXELS = 2**26
"""Of one image, wherever it comes from: 8192 by 8192."""
MAX_SCANS = 100
"""Of one JPEG, each a walk over all its blocks: encoders write 1, or about 10 where it is progressive."""
MAX_SEGMENTS = 2000
"""Before the first scan of a JPEG, which Pillow reads in Python: of metadata, 64 kB each, and of tables."""
MAX_STRAY_BYTES = 65_536
"""Between these segments, which Pillow skips one by one."""
MAX_CHUNKS = 10_000
"""Of one PNG: encoders write 8 kB or more of its pixels each."""
_SCAN, _END, _FF_SCAN = 0xDA, 0xD9, b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Of a JPEG, but for those within its pixels: what stands between segments is skipped, as decoders do."""
_ALONE = frozenset({0x01, 0xC8, 0xD8, _END, *range(0xF0, 0xFE)})
"""Markers that Pillow takes to have no segment."""
_WINDOW = 65_536
"""Bytes that are searched at a time, since a search keeps the interpreter from the event loop."""
_STARTS = (b"\x89PNG", b"\xff\xd8\xff")
"""Of each file, PNG or JPEG."""
_LEAST_CHARACTERS = 80
"""Of a file in base64: a PNG has 67 bytes at least, a JPEG more."""
_PLUS, _BELOW_BASE64 = b"+-"
"""Quotes, commas and spaces are below the characters of base64, all but the plus."""
_READ = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel, which convert to each other; deeper ones would be clipped."""


def open_image(data: bytes, shape: Sequence[int | None]) -> Image:
    """Read the header of an image, which must fit ``shape``; no pixel is decoded.

    Raises:
        ValueError: it is no PNG or JPEG, has more than 8 bits a channel, is too large, of another size, or of too many
            parts.
    """
    from PIL import Image

    _require_few_parts(data)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"got an image of more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # whatever a damaged header makes of its parser
        raise ValueError(f"got {len(data)} bytes that are no PNG or JPEG image") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"got an image of {height} x {width} pixels; at most {MAX_PIXELS} are decoded")
    if any(want not in (None, got) for want, got in zip(shape, (height, width), strict=False)):
        raise ValueError(f"got an image of {height} x {width} pixels (height x width)")
    if image.mode not in _READ:
        raise ValueError(f"got an image of mode {image.mode}; only images of 8 bits a channel are read")
    return image


def _require_few_parts(data: bytes) -> None:
    """Check how many parts a file has that take its decoder time, whatever their size.

    Raises:
        ValueError: it has more than any encoder writes.
    """
    png, jpeg = _STARTS
    if data.startswith(png) and len(data) > 12 * MAX_CHUNKS:  # of twelve bytes each at least
        _require_few_chunks(data)
    elif data.startswith(jpeg):
        _require_few_scans(data)


def _require_few_chunks(data: bytes) -> None:
    place, chunks = 8, 0
    while place < len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ValueError(f"got a PNG image of more than {MAX_CHUNKS} chunks")
        place += 12 + int.from_bytes(data[place : place + 4])


def _require_few_scans(data: bytes) -> None:
    few = len(data) <= 4 * MAX_SEGMENTS  # of four bytes each at least
    place = 0 if few else _first_scan(data)
    if data.count(_FF_SCAN, place) <= MAX_SCANS:  # at most so many, as segments may hold the same bytes
        return
    scans, place = 0, place or 2
    while place < len(data):
        found = _MARKER.search(data, place, place + _WINDOW)
        if found is None:
            place += _WINDOW - 1  # a marker has two bytes
            continue
        place = found.end()
        if data[place - 1] == _END:
            return
        scans += data[place - 1] == _SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"got a JPEG image of more than {MAX_SCANS} scans")
        place += _length(data, place)


def _first_scan(data: bytes) -> int:
    """Return where the first scan begins, as Pillow finds it."""
    place, segments, stray = 2, 0, 0
    while (found := _MARKER.search(data, place, place + MAX_STRAY_BYTES)) is not None:
        segments += 1
        stray += found.start() - place
        if segments > MAX_SEGMENTS or stray > MAX_STRAY_BYTES:
            break
        place = found.end()
        if data[place - 1] == _SCAN:
            return found.start()
        if data[place - 1] not in _ALONE:
            place += _length(data, place)
    else:
        if place + MAX_STRAY_BYTES >= len(data):  # there is none: it is damaged
            return len(data)
    raise ValueError(f"got a JPEG image of more than {MAX_SEGMENTS} segments, or {MAX_STRAY_BYTES} bytes between them")


def _length(data: bytes, place: int) -> int:
    return 0 if data[place - 1] == 0x01 else int.from_bytes(data[place : place + 2])


def decoded_bytes(image: Image, channels: int) -> int:
    """Return the size of an image's pixels."""
    return image.width * image.height * channels


def pixels(image: Image, channels: int) -> Array:
    """Decode an opened image, with its channels converted as Pillow converts them: alpha is dropped.

    Raises:
        ValueError: it is damaged.
    """
    try:
        array = np.array(image.convert(MODES[channels]), dtype=np.uint8)
    except Exception as error:  # a damaged body raises anything
        raise ValueError(f"got a damaged image: {error}") from error
    return array.reshape(image.height, image.width, channels)


def count_images(body: bytes) -> int:
    """Return at most how many images a request's body holds, without parsing it: as files, or in base64 before them.

    In base64 each run of characters that is long enough counts, so that no spelling of JSON or CSV hides one.
    """
    starts = [place for start in _STARTS if (place := body.find(start)) >= 0]
    codes = np.frombuffer(body[: min(starts)] if starts else body, np.uint8)
    ends = np.flatnonzero((codes < _BELOW_BASE64) & (codes != _PLUS))
    runs = np.diff(ends, prepend=-1, append=codes.size)
    return sum(body.count(start) for start in _STARTS) + int(np.count_nonzero(runs > _LEAST_CHARACTERS))


def image_arrays(values: Iterable[Any], shape: Sequence[int | None]) -> list[Array]:
    """Return images of ``shape``, files (``bytes``) or arrays of uint8, as arrays.

    Raises:
        ValueError: one is damaged or of another type or shape; the text follows "holds".
    """
    found = []
    for row, value in enumerate(values):
        try:
            item = pixels(open_image(value, shape), shape[2] or 0) if isinstance(value, bytes) else np.asarray(value)
        except ValueError as error:
            raise ValueError(f"another in row {row}: {error}") from error
        fits = item.ndim == 3 and all(want in (None, got) for want, got in zip(shape, item.shape, strict=True))
        if item.dtype != np.uint8 or not fits:
            raise ValueError(f"in row {row} {item.dtype} of shape {item.shape}")
        found.append(item)
    return found


def png_files(images: Iterable[Array]) -> list[bytes]:
    """Return images as PNG, which is lossless."""
    return [_png(np.asarray(image, dtype=np.uint8)) for image in images]


def _png(array: Array) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    gray = array.shape[-1] == 1
    Image.fromarray(array[..., 0] if gray else array).save(sink, "PNG", compress_level=1)
    return sink.getvalue()

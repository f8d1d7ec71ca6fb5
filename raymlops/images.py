"""Images as arrays of pixels: uint8, of shape (height, width, channels) with 1 (gray), 3 (RGB) or 4 (RGBA) channels.

Owns reading PNG and JPEG, and writing PNG. Nothing is resized or rotated, and nothing is decoded before its header has
said how large it is. Pillow is imported where it is used.
"""

from __future__ import annotations

import io
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
        ValueError: it is no PNG or JPEG, has more than 8 bits a channel, is too large, or of another size.
    """
    from PIL import Image

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

"""Bytes, times and images as requests bring them, as arrays hold them, and as answers send them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from datetime import UTC, datetime, timedelta, timezone

import jsonschema
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from raymlops.arrays import Column
from raymlops.column_types import TYPES
from raymlops.errors import InvalidRowsError
from raymlops.signature import Signature

OUTPUTS = (Column("y", "float"),)
BLOB = Signature((Column("blob", "bytes"), Column("more", "bytes", nullable=True)), OUTPUTS)
TIMES = Signature((Column("at", "datetime"), Column("end", "datetime", nullable=True)), OUTPUTS)
FIXED = Signature((Column("photo", "image", shape=(2, 3, 3)),), OUTPUTS)
FREE = Signature((Column("photo", "image", shape=(None, None, 1)),), OUTPUTS)
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13


def encoded(array, kind="PNG", **options) -> str:
    """Return an image file in base64."""
    sink = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(sink, kind, **options)
    return base64.b64encode(sink.getvalue()).decode()


def problems(call):
    with pytest.raises(InvalidRowsError) as caught:
        call()
    return [(problem.row, problem.field, problem.message) for problem in caught.value.problems]


def test_bytes_are_base64_in_json():
    """They come back as they were sent; what is missing is None."""
    rows = [{"blob": "AAEC", "more": None}, {"blob": "", "more": "/w=="}]
    columns = BLOB.parse_rows(rows)
    assert columns["blob"].tolist() == [b"\x00\x01\x02", b""]
    assert columns["more"].tolist() == [None, b"\xff"]
    assert BLOB.rows(columns) == rows


@pytest.mark.parametrize("value", ["A", "AA", "AAE_", "AA EC", "AAEC\n", "é", 3, ["AAEC"], "A" * 1001])
def test_what_is_no_base64_is_refused(value):
    """By row and field."""
    ((row, field, message),) = problems(lambda: BLOB.parse_rows([{"blob": "AAEC"}, {"blob": value}]))
    assert (row, field) == (1, "blob")
    assert message.startswith("expected bytes in base64, got ")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-27T08:30:00Z", "2026-11-27T08:30:00.000000"),
        ("2026-11-27T08:30:00.123456789+02:00", "2026-11-27T06:30:00.123456"),
        ("2026-11-27T08:30-05:30", "2026-11-27T14:00:00.000000"),
        ("1969-12-31T23:59:59.9Z", "1969-12-31T23:59:59.900000"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000"),
    ],
)
def test_a_time_is_microseconds_in_utc(text, expected):
    """Whatever its offset; digits beyond microseconds are cut."""
    columns = TIMES.parse_rows([{"at": text}])
    assert columns["at"].dtype == np.dtype("datetime64[us]")
    assert columns["at"][0] == np.datetime64(expected)
    assert np.isnat(columns["end"]).all()
    again = TIMES.rows(columns)
    assert again == [{"at": f"{expected}Z", "end": None}]
    assert TIMES.parse_rows(again)["at"][0] == columns["at"][0]


@pytest.mark.parametrize(
    "value",
    ["2026-11-27T08:30:00", "2026-11-27", "27.11.2026", "now", "", 1_700_000_000, "0001-01-01T00:00:00+05:00"],
)
def test_a_time_has_its_offset(value):
    """A text without one may mean any zone; a number any unit."""
    ((row, field, message),) = problems(lambda: TIMES.parse_rows([{"at": value}]))
    assert (row, field) == (0, "at")
    assert message.startswith("expected a time in ISO 8601 with its offset")


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times_of_frames_and_arrays_are_utc(unit):
    """These have no place for an offset, or have one: a table and a request give the same array."""
    naive = np.array(["2026-11-27T08:30:00", "2026-11-27T09:30:00"], dtype=f"datetime64[{unit}]")
    zoned = pd.Series(naive).dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    arrow = pa.array(naive).to_pylist()
    for values in (naive, pd.Series(naive), zoned, arrow, [datetime.fromisoformat("2026-11-27T08:30"), naive[1]]):
        found = TIMES.parse_columns({"at": values, "end": [pd.NaT, None]})
        assert found["at"].tolist() == naive.astype("datetime64[us]").tolist()
        assert np.isnat(found["end"]).all()
    offset = datetime(2026, 11, 27, 10, 30, tzinfo=timezone(timedelta(hours=2)))
    assert TIMES.parse_columns({"at": [offset]})["at"][0] == naive[0]
    assert offset.astimezone(UTC).hour == 8


def test_bytes_of_frames_are_taken_as_they_are():
    """A Parquet file's binary column needs no base64."""
    frame = pd.DataFrame({"blob": [b"\x00", b"ab\x00"], "more": [None, float("nan")]})
    columns = BLOB.parse_columns({name: frame[name] for name in frame})
    assert columns["blob"].tolist() == [b"\x00", b"ab\x00"]
    assert columns["more"].tolist() == [None, None]


def test_an_image_becomes_its_pixels():
    """Height, width, channels; as PNG they come back to the bit."""
    columns = FIXED.parse_rows([{"photo": encoded(PIXELS)}, {"photo": encoded(PIXELS[::-1])}])
    assert columns["photo"].dtype == np.uint8
    assert np.array_equal(columns["photo"], [PIXELS, PIXELS[::-1]])
    assert np.array_equal(FIXED.parse_rows(FIXED.rows(columns))["photo"], columns["photo"])
    jpeg = FIXED.parse_rows([{"photo": encoded(np.full((2, 3, 3), 100, dtype=np.uint8), "JPEG")}])["photo"]
    assert abs(jpeg.astype(int) - 100).max() <= 3


def test_images_may_differ_in_size():
    """Where the column leaves it free: an array for each."""
    small, large = np.full((1, 2), 7, dtype=np.uint8), np.full((4, 3), 9, dtype=np.uint8)
    columns = FREE.parse_rows([{"photo": encoded(small)}, {"photo": encoded(large)}])
    assert [photo.shape for photo in columns["photo"]] == [(1, 2, 1), (4, 3, 1)]
    again = FREE.parse_rows(FREE.rows(columns))["photo"]
    assert all(np.array_equal(one, other) for one, other in zip(columns["photo"], again, strict=True))
    same = FREE.parse_rows([{"photo": encoded(small)}] * 2)["photo"]
    assert same.shape == (2,)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_channels_are_converted(mode):
    """A gray or palette file is an RGB image too, of a white pixel; alpha is dropped."""
    image = Image.new("RGB", (3, 2), "white").convert(mode)
    text = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert FIXED.parse_rows([{"photo": text}])["photo"].min() == 255


def png_header(width, height) -> bytes:
    """Return a small PNG file of that many white pixels: the decompression bomb of a few kilobytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\x00" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (encoded(PIXELS.swapaxes(0, 1).copy()), "got an image of 3 x 2 pixels (height x width)"),
        (base64.b64encode(b"GIF89a" + b"\x00" * 20).decode(), "got 26 bytes that are no PNG or JPEG image"),
        (base64.b64encode(base64.b64decode(encoded(PIXELS))[:-30]).decode(), "got a damaged image"),
        (encoded(Image.fromarray(np.zeros((2, 3), dtype=np.uint16))), "only images of 8 bits a channel"),
        ("not base64", "got the string 'not base64'"),
        (7, "got 7"),
        (None, "must not be null"),
        ([[1]], "got an array"),
        (base64.b64encode(png_header(3, 2)[:40]).decode(), "got 40 bytes that are no PNG or JPEG image"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(value, message):
    """Never resized, clipped or filled."""
    ((row, field, text),) = problems(lambda: FIXED.parse_rows([{"photo": encoded(PIXELS)}, {"photo": value}]))
    assert (row, field) == (1, "photo")
    assert message in text
    assert "a PNG or JPEG image in base64, of height, width and channels (2, 3, 3)" in text


def scanned(count, *, between=b"", quality=50) -> bytes:
    """Return a progressive JPEG of 16 x 16 pixels whose last scan stands in it so often."""
    sink = io.BytesIO()
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(sink, "JPEG", progressive=True, quality=quality)
    data = sink.getvalue()[:-2]
    last = data[data.rindex(b"\xff\xda") :]
    scans = data.count(b"\xff\xda")
    return data + (between + last) * (count - scans) + b"\xff\xd9"


def chunked(count) -> bytes:
    """Return a PNG of one gray pixel with so many chunks."""
    file = base64.b64decode(encoded(np.zeros((1, 1), dtype=np.uint8)))  # IHDR, IDAT and IEND
    empty = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return file[:33] + empty * (count - 3) + file[33:]


def sent(file: bytes):
    return FREE.parse_rows([{"photo": base64.b64encode(file).decode()}])["photo"][0]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (scanned(101), "a JPEG image of more than 100 scans"),
        (scanned(101, between=b"\xff\xff\x01junk\xff\xd0"), "a JPEG image of more than 100 scans"),
        (scanned(100_000), "a JPEG image of more than 100 scans"),
        (
            b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2001 + scanned(9)[2:],
            "more than 2000 segments, or 65536 bytes between them",
        ),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" + b"\x00" * 70_000 + scanned(9)[2:], "65536 bytes between them"),
        (b"\xff\xd8" + b"\xff\xf0\x00\x07" + b"\x00" * 50_000 + b"\xff\xd0" * 9_000, "65536 bytes between them"),
        (chunked(10_001), "a PNG image of more than 10000 chunks"),
    ],
    ids=["scans", "what decoders skip", "a file of megabytes", "segments", "stray bytes", "markers alone", "chunks"],
)
def test_an_image_of_too_many_parts_is_refused_before_it_is_opened(file, message, monkeypatch):
    """Twelve bytes may cost a decoder a walk over all pixels, which nothing could stop."""
    monkeypatch.setattr(Image, "open", None)
    ((row, field, text),) = problems(lambda: sent(file))
    assert (row, field) == (0, "photo")
    assert text.endswith(message)


def test_an_image_of_as_many_parts_as_any_encoder_writes_is_read():
    """Progressive and plain ones; a thumbnail, a note or what follows the image may hold any bytes."""
    many = b"\xff\xda" * 500
    note = b"\xff\xfe" + struct.pack(">H", 2 + len(many)) + many
    plain = base64.b64decode(encoded(np.full((16, 16), 128, np.uint8), "JPEG"))
    files = [scanned(10), scanned(100), plain[:2] + note + plain[2:], plain + many, chunked(10_000)]
    assert [sent(file).shape for file in files] == [(16, 16, 1)] * 4 + [(1, 1, 1)]
    noise = np.random.default_rng(1).integers(0, 256, (256, 256), dtype=np.uint8)
    assert sent(base64.b64decode(encoded(noise, "JPEG", quality=95, restart_marker_blocks=1))).shape == (256, 256, 1)


@pytest.mark.parametrize("side", [8193, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side, monkeypatch):
    """Whether Pillow would warn, raise or decode it."""
    monkeypatch.setattr("raymlops.arrays.pixels", None)  # which would decode
    text = base64.b64encode(png_header(side, side)).decode()
    ((row, _, message),) = problems(lambda: FREE.parse_rows([{"photo": text}]))
    assert row == 0
    assert "pixels" in message


def test_many_small_files_are_bounded_together(monkeypatch):
    """Five images of 64 MiB each, in a body of kilobytes."""
    monkeypatch.setattr("raymlops.arrays.pixels", None)
    text = base64.b64encode(png_header(8192, 8192)).decode()
    ((row, field, message),) = problems(lambda: FREE.parse_rows([{"photo": text}] * 5))
    assert (row, field) == (None, "photo")
    assert message == "the images of 5 rows have 320 MiB when decoded; at most 256 in one request"


@pytest.mark.parametrize(
    "options",
    [
        {"type": "bytes", "shape": (2,)},
        {"type": "datetime", "shape": (None,)},
        {"type": "image"},
        {"type": "image", "shape": (28, 28)},
        {"type": "image", "shape": (28, 28, 2)},
        {"type": "image", "shape": (28, 28, None)},
        {"type": "image", "shape": (28, 28, 3), "nullable": True},
    ],
)
def test_an_impossible_column_is_refused(options):
    """Text and times have no shape, an image has all three dimensions and is never missing."""
    with pytest.raises(ValueError, match="column 'x'"):
        Column("x", **options)


@pytest.mark.parametrize("signature", [BLOB, TIMES, FIXED, FREE])
def test_signatures_of_these_types_survive_json_and_have_a_schema(signature):
    """The schema says how a value is written; an image is one string, whatever its shape."""
    assert Signature.from_dict(json.loads(json.dumps(signature.to_dict()))) == signature
    for column in signature.inputs:
        schema = column.json_schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        assert jsonschema.Draft202012Validator(schema).is_valid("AAEC")
        assert not jsonschema.Draft202012Validator(schema).is_valid(7)
    assert FIXED.inputs[0].json_schema()["contentEncoding"] == "base64"
    assert TIMES.inputs[0].json_schema()["format"] == "date-time"
    assert "(2, 3, 3)" in FIXED.inputs[0].json_schema()["description"]


def test_whole_arrays_of_texts_are_read_as_values():
    """As tensors bring them: raw bytes, or base64 in JSON."""
    raw = np.array([b"\x00\x00", None], dtype=object)
    assert BLOB.parse_arrays({"blob": raw[:1], "more": raw[1:]})["blob"].tolist() == [b"\x00\x00"]
    texts = np.array(["AAEC"], dtype=object)
    assert BLOB.parse_arrays({"blob": texts})["blob"].tolist() == [b"\x00\x01\x02"]
    assert BLOB.parse_arrays({"blob": texts})["more"].tolist() == [None]
    at = TIMES.parse_arrays({"at": np.array(["2026-11-27T08:30:00Z"], dtype=object)})
    assert at["at"][0] == np.datetime64("2026-11-27T08:30:00")
    assert np.isnat(at["end"]).all()
    photo = np.empty(1, dtype=object)
    photo[0] = base64.b64decode(encoded(PIXELS))
    assert np.array_equal(FIXED.parse_arrays({"photo": photo})["photo"], [PIXELS])


def test_an_input_and_an_output_may_share_a_name():
    """A mask of floats beside a picture of bytes."""
    signature = Signature((Column("x", "image", shape=(2, 3, 3)),), (Column("x", "float", shape=(2,)),))
    assert signature.rows({"x": np.ones((1, 2))}) == [{"x": [1.0, 1.0]}]
    assert isinstance(signature.rows({"x": PIXELS[None]})[0]["x"], str)


def test_the_table_of_types_is_complete():
    """A type that JSON writes as text and that is not one has both directions."""
    for name, info in TYPES.items():
        assert (info.read is None) == (info.write is None) == (name in {"float", "int", "bool", "string"})
        assert info.is_text == (info.json_types == (str,))

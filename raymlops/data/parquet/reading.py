"""How pyarrow reads Parquet here, for all who read files that others wrote.

Times in Spark's INT96 become microseconds: as pyarrow's nanoseconds, those before 1677 and after 2262 are other times,
without an error.
"""

from __future__ import annotations

from typing import Any

from raymlops.storage.filesystem import open_filesystem


def open_parquet(uri: str) -> Any:
    """Return a file as a ``pyarrow.parquet.ParquetFile``.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    import pyarrow.parquet as pq

    filesystem, path = open_filesystem(uri)
    return pq.ParquetFile(
        filesystem.open_input_file(path),
        pre_buffer=True,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit="us",
    )


def parquet_format() -> Any:
    """Return the format of files in a ``pyarrow.dataset.Dataset``."""
    import pyarrow.dataset as ds

    return ds.ParquetFileFormat(coerce_int96_timestamp_unit="us")

"""The three parts of the data that a recipe returns, what each may be, and a window of time that they are asked of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time in UTC: rows that arose at ``start`` or later, and before ``stop``.

    ``datasets(window)`` returns rows of it alone, and of them those whose label was known before ``stop``: a model
    that is retrained then has nothing else.
    """

    start: datetime
    stop: datetime

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M} until {self.stop:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of the data.

    Each may be

    - a table in memory: a mapping of names to arrays of one length, a ``pyarrow.Table``, a pandas ``DataFrame``;
    - Parquet files: a path, a folder, a glob (``"data/2024-*/*.parquet"``), a URI (``s3://``, ``gs://``, ``file://``,
      any that pyarrow knows), or a list of them. Up to 64 MB are read as a table; more is streamed by row groups
      in bounded memory and shuffled within windows of them. Every process must reach the files, and they must not
      change during a run;
    - a Delta table, by its path or URI, at a version (``s3://bucket/table@v3``), at a time, or as it is when the run
      starts, and partitions of it (``s3://bucket/table/split=train``), or a ``deltalake.DeltaTable``: as files above;
    - a ``ray.data.Dataset``: written once as Parquet below ``storage.path``, in its order, then as above. Ray must run;
    - a torch dataset with ``__len__`` and ``__getitem__``, whose items are collated into batches. Random numbers of
      training items are seeded as in ``RecipeBase.loss``. It is identified by its length, the dataset's
      ``fingerprint()``, if it has one, and a few items, unless they draw from a generator of their own;
    - an iterable torch dataset, or any object whose ``__iter__`` starts a new pass. A pass is an epoch, must end, and
      must yield the same number of items each time: ``len()``, or what a first pass counts. It may shuffle itself by
      drawing from torch's CPU generator, ``random`` or ``numpy.random``, which in its code are a separate stream that
      depends on seed and epoch alone, or in ``set_epoch(epoch)``, which is called before a pass if it exists. A
      generator that it keeps between passes must be reseeded there, or workers and restarts see other rows: only their
      number and the first few are checked. Every worker reads all rows, keeps its share, and in mid-epoch reads up to
      its place.

    A table, Parquet and Ray Data hold the columns of the signature and the label. The order of an epoch depends on
    seed and epoch alone, so a resumed run draws what it would have drawn, on any number of workers.
    """

    train: Any
    validation: Any
    test: Any

"""Rows a second of loader processes beside ``torch.utils.data.DataLoader`` with as many workers, taking turns.

Two kinds of data: JPEG files of which each takes about 5 ms to decode, in a torch dataset with an index; and a vector
of 1,024 floats a row in Parquet, streamed by row groups. The peer reads the first as its documentation says, with
shuffling and workers that are kept; for the second it has an iterable dataset as users write them: each worker takes
every n-th row group, shuffles its rows and yields whole batches. Both are asked for one batch after another, first
without anything in between, then with a step that sleeps a little longer than a batch takes to be read, of which the
share is printed that is spent waiting for data. Starting the workers is left out on both sides, and printed by itself.

    python tests/benchmarks/data_loading.py [ROUNDS]
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from loading_bench import Groups, Jpegs, Pictures, Vectors
from PIL import Image
from torch.utils.data import DataLoader

from raymlops.data.dataset_split import DatasetSplit
from raymlops.data.loading.loader import Loader
from raymlops.data.parquet.files import list_parquet
from raymlops.data.parquet_split import ParquetSplit
from raymlops.recipe import Progress

DECODE_MS = 5.0
IMAGES, IMAGE_BATCH = 640, 32
ROWS, WIDTH, GROUP_ROWS, ROW_BATCH = 240_000, 1_024, 2_500, 256
CACHE_BYTES = 64 << 20
"""A sixteenth of the rows: what one epoch leaves there spares the next one little."""
WORKERS = (1, 2)


def jpegs() -> list[bytes]:
    """Return photographs whose size makes one take ``DECODE_MS``."""
    rng = np.random.default_rng(0)

    def encoded(side: int) -> bytes:
        noise = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)).resize((side, side))
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=90)
        return file.getvalue()

    side = 64
    while True:
        one = Jpegs([encoded(side)])
        if statistics.median(timed(lambda one=one: one[0]) for _ in range(9)) * 1e3 >= DECODE_MS:
            break
        side += 32
    print(f"an image of {side} x {side} pixels takes about {DECODE_MS:g} ms to decode")
    return [encoded(side) for _ in range(8)]


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def vectors(folder: Path) -> None:
    """Write the rows to a few files."""
    rng = np.random.default_rng(0)
    for number in range(4):
        rows = ROWS // 4
        values = pa.array(rng.standard_normal(rows * WIDTH, dtype=np.float32))
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, WIDTH), "y": rng.random(rows)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=GROUP_ROWS, compression="zstd")


class Ours:
    """Epochs of a split by loader processes."""

    def __init__(self, split, *, workers: int, batch_size: int) -> None:
        self.split, self.batch_size, self.epoch = split, batch_size, 0
        self.loader = Loader({"train": split}, processes=workers, ahead=2, timeout_s=60.0)

    def __iter__(self):
        self.epoch += 1
        self.split.start_epoch(seed=0, epoch=self.epoch)
        batches = self.split.global_batches(batch_size=self.batch_size, seed=0, epoch=self.epoch)
        steps = ((Progress(), rows) for rows in batches)
        for _, rows in self.loader.steps(self.split, steps, lambda rows: [(rows, 1.0)]):
            yield self.loader.batch(self.split, rows)

    def close(self) -> None:
        self.loader.close()


class Peer:
    """Epochs of a ``DataLoader``."""

    def __init__(self, dataset, *, workers: int, batch_size: int | None) -> None:
        shuffle = {} if batch_size is None else {"shuffle": True}
        kept = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
        self.loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, **shuffle, **kept)

    def __iter__(self):
        return iter(self.loader)

    def close(self) -> None:
        self.loader._iterator = None


def pass_of(source, *, batches: int, step_s: float = 0.0) -> tuple[float, float]:
    """Return rows a second and the share of the time spent waiting, after the first batch."""
    rows, waited, iterator = 0, 0.0, iter(source)
    next(iterator)
    began = time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        rows += len(batch["x"])
        if step_s:
            time.sleep(step_s)
    took = time.perf_counter() - began
    del iterator
    return rows / took, waited / took


def compare(name: str, ours, peer, *, batch_size: int, batches: int, rounds: int) -> None:
    """Print the ratio of rates over all rounds, and the shares of waiting."""
    for workers in WORKERS:
        sides = {"raymlops": ours(workers), "DataLoader": peer(workers)}
        for side, source in sides.items():
            print(
                f"{name}, {workers} workers: {side} starts in {timed(lambda source=source: next(iter(source))):.1f} s"
            )
        rates = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                rates[side].append(pass_of(sides[side], batches=batches)[0])
        ratios = [one / other for one, other in zip(rates["raymlops"], rates["DataLoader"], strict=True)]
        shown = ", ".join(f"{side} {statistics.median(found):.0f}" for side, found in rates.items())
        print(
            f"{name}, {workers} workers, rows a second: {shown}; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
        step_s = 1.25 * batch_size / statistics.median(rates["DataLoader"])
        waits = {side: [pass_of(sides[side], batches=batches, step_s=step_s)[1] for _ in range(3)] for side in sides}
        shown = ", ".join(f"{side} {statistics.median(found):.3f}" for side, found in waits.items())
        print(f"{name}, {workers} workers, share of a step of {step_s * 1e3:.0f} ms spent waiting: {shown}")
        for source in sides.values():
            source.close()
    rate, _ = pass_of(ours(0), batches=batches)
    print(f"{name}, without workers: {rate:.0f} rows a second")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    images = Jpegs(jpegs() * (IMAGES // 8))
    compare(
        "images",
        lambda workers: Ours(
            DatasetSplit(images, name="train", recipe=Pictures()), workers=workers, batch_size=IMAGE_BATCH
        ),
        lambda workers: Peer(images, workers=workers, batch_size=IMAGE_BATCH),
        batch_size=IMAGE_BATCH,
        batches=IMAGES // IMAGE_BATCH - 2,
        rounds=rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        vectors(Path(folder))
        files = list_parquet(folder)

        def ours(workers: int) -> Ours:
            split = ParquetSplit(files, name="train", recipe=Vectors(), cache_bytes=CACHE_BYTES)
            return Ours(split, workers=workers, batch_size=ROW_BATCH)

        compare(
            "rows",
            ours,
            lambda workers: Peer(Groups(folder, ROW_BATCH), workers=workers, batch_size=None),
            batch_size=ROW_BATCH,
            batches=ROWS // ROW_BATCH - 8,
            rounds=rounds,
        )


if __name__ == "__main__":
    main()

"""What the checks of a recipe's data cost before a run, beside reading its Parquet files once and hashing its rows.

    python tests/benchmarks/data_checks.py [--rows 1000000]

Tables of 20 columns, a quarter of them texts, and of 2,000 numbers, read whole, and the first one streamed too. Prints
seconds, the ratio to reading the files once, and the peak of what the checks allocate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.arrays import Column
from raymlops.config.data import ChecksSection
from raymlops.data.parquet.files import list_parquet
from raymlops.data.prepare import Memory, Prepared
from raymlops.data.sources import Source
from raymlops.recipe import RecipeBase
from raymlops.signature import Signature
from raymlops.training.data_checks.gate import check_data

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Print a line for each table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        for numbers, texts, count in ((15, 5, rows), (2_000, 0, rows // 100)):
            paths = write(Path(folder), numbers, texts, count)
            read_s = timed(lambda paths=paths: [pq.read_table(path) for path in paths.values()])  # type: ignore[misc]
            for how in ("whole", "streamed") if texts else ("whole",):
                prepared = opened(paths, numbers, texts, streamed=how == "streamed")
                identity_s = timed(lambda prepared=prepared: prepared.identities)  # type: ignore[misc]
                told: list[str] = []
                check_s = timed(lambda p=prepared, told=told: check_data(p, ChecksSection(), notice=told.append))  # type: ignore[misc]
                tracemalloc.start()
                check_data(prepared, ChecksSection(), notice=lambda _line: None)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                print(
                    f"{count:>9,} rows of {numbers + texts:>5} columns, {how:>8}: read {read_s:.2f} s, identified "
                    f"{identity_s:.2f} s, checked {check_s:.2f} s: {check_s / read_s:.1f} times reading it once; peak "
                    f"{peak / 2**20:.0f} MiB; told {told or 'nothing'}"
                )


def write(folder: Path, numbers: int, texts: int, rows: int) -> dict[str, str]:
    """Write three files and return their paths."""
    found = {}
    for seed, (name, count) in enumerate((("train", rows), ("validation", rows // 5), ("test", rows // 5))):
        rng = np.random.default_rng(seed)
        table = {f"n{at}": rng.normal(size=count) for at in range(numbers)}
        table |= {f"t{at}": np.array(["AA", "UA", "DL", "B6"])[rng.integers(0, 4, count)] for at in range(texts)}
        table["label"] = rng.integers(0, 2, count)
        found[name] = str(folder / f"{name}-{numbers}.parquet")
        pq.write_table(pa.table(table), found[name], row_group_size=max(1000, count // 20))
    return found


def opened(paths: dict[str, str], numbers: int, texts: int, *, streamed: bool) -> Prepared:
    """Return the splits of a recipe that reads these columns."""
    columns = [Column(f"n{at}", "float") for at in range(numbers)] + [Column(f"t{at}", "string") for at in range(texts)]

    class Wide(RecipeBase):
        label = "label"

        def signature(self) -> Signature:
            return Signature(tuple(columns), (Column("p", "float"),))

        def encode(self, columns: Any) -> Any:
            import torch

            return {"x": torch.as_tensor(np.stack([columns[f"n{at}"] for at in range(numbers)], axis=1))}

    recipe, found = Wide(), {}
    for name, path in paths.items():
        files = list_parquet(path)
        data = files if streamed else files.columns()
        found[name] = Source(name, data, Memory(), files=files).split(recipe)
    return Prepared(recipe, found, {})


def timed(do: Callable[[], Any]) -> float:
    """Return seconds."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

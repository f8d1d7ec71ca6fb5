"""Batch prediction: a registered version asked for every row of Parquet files, without an endpoint.

Owns the order of the steps. How a piece of output is made is ``chunks``'; when the output is there, ``batchfiles``'.
The numbers are those of the endpoint, because checking and predicting are the same code.
"""

from __future__ import annotations

import logging
import pickle
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from raymlops.display import OnEvent, shown
from raymlops.errors import ClusterError, UsageError
from raymlops.lifecycle.batch.chunks import ChunkWorker, Job, plan
from raymlops.lifecycle.batch.files import (
    input_files,
    kept_columns,
    place,
    published,
    refuse_existing,
    said,
    write_manifest,
)
from raymlops.lifecycle.sources import Source, spec_of
from raymlops.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.batch.chunks import Chunk
    from raymlops.records import ModelVersionRef


@dataclass(frozen=True)
class BatchRecord(Record):
    """One finished batch prediction; ``_manifest.json`` beside the output holds the same."""

    name: str
    version: int
    digest: str
    """Of the version's bundle."""
    input: str
    output: str
    rows: int
    files: int
    """Of the output."""
    duration_s: float


def batch_predict(
    source: Source,
    input_uri: str,
    output_uri: str,
    *,
    version: str = "@champion",
    keep: Sequence[str] | None = None,
    batch_rows: int = 1024,
    concurrency: int | None = None,
    overrides: Sequence[str] = (),
    env: str | None = None,
    on_event: OnEvent | None = None,
) -> BatchRecord:
    """Predict every row of Parquet files with a version of the project's model, and write Parquet.

    ``input_uri`` is a file, folder, glob or URI. The output is a folder of files whose rows, in the order of the files'
    names, are in the order of the input: the columns of the input that ``keep`` names, by default those that the model
    does not take (an id, a label), then the model's outputs and ``model_version``. A local folder appears when it is
    whole. On an object store, which cannot rename, output counts once ``_manifest.json`` is there.

    ``concurrency`` workers of ``train.cpus_per_worker`` CPUs predict ``batch_rows`` rows at a time; by default as many
    as the cluster has room for. ``on_event`` gets progress, whose steps are rows.

    Raises:
        UsageError: the output exists, the input is not there or empty, or a column would be there twice.
        InvalidRowsError: a row does not fit the signature, named by its file and number; nothing is published.
        NotFoundError: there is no such version.
        RefusedError: this state has no record of the version, or MLflow says otherwise than it.
        NonFiniteError, RecipeError: the model fails; nothing is published.
        BundleError, StorageError, InsufficientResourcesError, TrackingError, ClusterError: as they say.
    """
    from raymlops.bundle.load import load
    from raymlops.cluster.connect import connect
    from raymlops.lifecycle.registration.admission import loadable
    from raymlops.lifecycle.sources import state_of
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    begun = time.monotonic()
    spec = spec_of(source, overrides=overrides, env=env)
    if batch_rows < 1 or (concurrency is not None and concurrency < 1):
        raise UsageError(f"batch_rows={batch_rows}, concurrency={concurrency}: each is at least 1")
    input_uri, output_uri = (place(uri, what) for uri, what in ((input_uri, "input"), (output_uri, "output")))
    refuse_existing(output_uri)
    files = input_files(input_uri)
    with state_of(spec) as state:
        ref = loadable(Registry(tracker(spec)), state, spec.project.name, version)
    # What does not load here would load in no worker.
    kept = kept_columns(files, load(ref.bundle.uri, ref.bundle.digest).signature, keep)
    chunks = plan(files)
    with connect(spec), published(output_uri, chunks) as folder:
        _check_machines(spec, input_uri, output_uri)
        job = Job(ref, files, kept, folder, batch_rows)
        with shown(on_event) as emit:
            _run(job, chunks, spec=spec, concurrency=concurrency, emit=emit)
        record = _record(ref, input_uri, output_uri, rows=files.rows, parts=len(chunks), begun=begun)
        write_manifest(record, folder)
    return record


def _check_machines(spec: ProjectSpec, *uris: str) -> None:
    """Refuse folders that only one of several machines can reach."""
    import ray

    from raymlops.config.paths import local_path
    from raymlops.lifecycle.shared_storage import check_sharing

    check_sharing(spec)
    machines = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    local = [uri for uri in uris if local_path(uri) is not None]
    if machines > 1 and local and not spec.storage.shared:
        raise UsageError(
            f"the cluster has {machines} machines, but {' and '.join(local)} is a folder of this one",
            hint="Use a URI such as s3://bucket/folder, or storage.shared: true where the path is one on every node.",
        )


def _run(job: Job, chunks: Sequence[Chunk], *, spec: ProjectSpec, concurrency: int | None, emit: OnEvent) -> None:
    """Let workers do the chunks, and tell how far they are.

    Raises:
        RaymlopsError: what the first worker that failed raised.
    """
    import ray.data
    from ray.exceptions import RayError

    from raymlops.training.events import Event

    total, done, begun = job.files.rows, 0, time.monotonic()
    emit(Event("start", steps=total, message=f"version {job.version.version}, {total} rows"))
    dataset = ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks)).map_batches(
        ChunkWorker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_workers(spec, len(chunks), concurrency)),
        num_cpus=spec.train.cpus_per_worker,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    try:
        with _quiet():
            for result in dataset.iter_rows():
                if result["error"]:
                    raise said(pickle.loads(result["error"]))  # noqa: S301 - a worker of ours wrote it
                done += int(result["rows"])
                elapsed_s = time.monotonic() - begun
                emit(Event("step", step=done, steps=total, elapsed_s=elapsed_s, rows_per_s=done / elapsed_s))
        emit(Event("end", step=done, steps=total, elapsed_s=time.monotonic() - begun))
    except RayError as error:
        raise ClusterError(
            f"the workers did not finish: {error}", hint="Nothing was published; start again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Ray Data (2.60) say on stderr only what went wrong: progress is told by us."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _workers(spec: ProjectSpec, chunks: int, concurrency: int | None) -> int:
    from raymlops.cluster.capacity import Places, check_fits

    each = {"cpus_per_worker": spec.train.cpus_per_worker, "purpose": "a batch prediction"}
    check_fits(workers=concurrency or 1, wait_s=spec.cluster.wait_s, **each)  # type: ignore[arg-type]
    return int(min(chunks, concurrency or max(1, Places(**each).count())))  # type: ignore[arg-type]


def _record(ref: ModelVersionRef, source: str, output: str, *, rows: int, parts: int, begun: float) -> BatchRecord:
    return BatchRecord(
        name=ref.name,
        version=ref.version,
        digest=ref.bundle.digest,
        input=source,
        output=output,
        rows=rows,
        files=parts,
        duration_s=round(time.monotonic() - begun, 3),
    )

"""Batch prediction: predict every row of Parquet files with a registered version, without an endpoint.

Owns the order of the steps. ``chunks`` makes the output files, ``files`` publishes them. Predictions are equal to the
endpoint's, because validation and prediction are the same code.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raymlops.display import OnEvent, shown
from raymlops.errors import StorageError, UsageError
from raymlops.lifecycle.batch.chunks import ChunkWorker, Job, output_schema, plan, work_of
from raymlops.lifecycle.batch.files import input_files, kept_columns, place, without_hint
from raymlops.lifecycle.batch.outputs import output_at
from raymlops.lifecycle.batch.pool import over
from raymlops.lifecycle.batch.record import BatchRecord
from raymlops.lifecycle.shared_storage import check_sharing
from raymlops.lifecycle.sources import Source, spec_of, state_of
from raymlops.storage.delta.commit import NewFile
from raymlops.storage.delta.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.config.schema import ProjectSpec
    from raymlops.lifecycle.batch.chunks import Chunk


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
    """Predict every row of Parquet files or a Delta table with a version of the project's model, and write either.

    ``input_uri`` is a file, folder, glob or URI, or a table (``s3://bucket/table@v3``). The output is a folder of
    files; sorted by name, they have the rows in the order of the input: the input columns in ``keep``, by default those
    that are not inputs of the model (an id, a label), then the model's outputs and ``model_version``. A local folder
    appears when it is complete. On an object store, which cannot rename, the output is complete once
    ``_manifest.json`` exists.

    Where the output is a Delta table, or is named as one (``delta+s3://bucket/table``), the rows are added to it by one
    commit. The same rows by the same version are in it once, however often this is called.

    ``concurrency`` workers of ``train.cpus_per_worker`` CPUs predict ``batch_rows`` rows at a time; by default as many
    as fit on the cluster. ``on_event`` gets progress, whose steps are rows.

    Raises:
        UsageError: the output exists or is a table of other columns, the input is missing, empty or lacks a column, or
            a column would be in the output twice.
        InvalidRowsError: a row does not match the signature; names its file and number. Nothing is published.
        NotFoundError: there is no such version.
        RefusedError: this state has no record of the version, or MLflow contradicts it.
        NonFiniteError, RecipeError: the model fails; nothing is published.
        BundleError, StorageError, InsufficientResourcesError, TrackingError, ClusterError: as described there.
    """
    from raymlops.bundle.load import load
    from raymlops.cluster.connect import connect
    from raymlops.lifecycle.registration.admission import loadable
    from raymlops.registry.versions import Registry
    from raymlops.tracking.client import tracker

    started = time.monotonic()
    spec = spec_of(source, overrides=overrides, env=env)
    if batch_rows < 1 or (concurrency is not None and concurrency < 1):
        raise UsageError(f"batch_rows={batch_rows}, concurrency={concurrency}: each is at least 1")
    input_uri, output_uri = (place(uri, what) for uri, what in ((input_uri, "input"), (output_uri, "output")))
    output = output_at(output_uri)
    files = input_files(input_uri)
    with state_of(spec) as state:
        ref = loadable(Registry(tracker(spec)), state, spec.project.name, version)
    # A bundle that does not load here would not load in a worker either.
    signature = load(ref.bundle.uri, ref.bundle.digest).signature
    kept = output.kept(kept_columns(files, signature, keep))
    record = BatchRecord(
        name=ref.name,
        version=ref.version,
        digest=ref.bundle.digest,
        input=input_uri if files.table is None else files.table.name,
        output=output_uri,
        rows=files.rows,
        files=0,
        duration_s=0.0,
    )

    def duration_s() -> float:
        return round(time.monotonic() - started, 3)

    found = output.version_with(partial(work_of, ref, files, kept), output_schema(signature, kept))
    if found is not None:
        return replace(record, table_version=found, repeated=True, duration_s=duration_s())
    chunks = plan(files)
    job = Job(ref, files, kept, output.uri, batch_rows, output.mark)
    with connect(spec), output.writing([job.file(chunk) for chunk in chunks]) as folder:
        check_sharing(spec, input_uri.removeprefix(PREFIX), output.uri)
        job = replace(job, folder=folder)
        with shown(on_event) as emit:
            sizes = _run(job, chunks, spec=spec, concurrency=concurrency, emit=emit)
        record = replace(record, files=len(chunks), duration_s=duration_s())
        made = [NewFile(job.file(chunk), size=sizes[chunk.number], rows=chunk.rows) for chunk in chunks]
        return output.complete(record, folder, made)


def _run(
    job: Job, chunks: Sequence[Chunk], *, spec: ProjectSpec, concurrency: int | None, emit: OnEvent
) -> dict[int, int]:
    """Predict the chunks on workers, report progress, and return the size of each chunk's file.

    Raises:
        RaymlopsError: the error of the first chunk that failed.
    """
    from raymlops.training.events import Event

    total, done, started = job.files.rows, 0, time.monotonic()
    sizes: dict[int, int] = {}
    emit(Event("start", steps=total, message=f"version {job.version.version}, {total} rows"))
    try:
        for result in over(chunks, ChunkWorker, job, spec=spec, purpose="a batch prediction", concurrency=concurrency):
            done += int(result["rows"])
            sizes[int(result["number"])] = int(result["bytes"])
            elapsed_s = time.monotonic() - started
            emit(Event("step", step=done, steps=total, elapsed_s=elapsed_s, rows_per_s=done / elapsed_s))
    except StorageError as error:
        raise without_hint(error) from error
    emit(Event("end", step=done, steps=total, elapsed_s=time.monotonic() - started))
    return sizes

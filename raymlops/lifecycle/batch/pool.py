"""Ray Data over pieces of work: named by their place in the input, done by actors that load a bundle once."""

from __future__ import annotations

import logging
import pickle
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from raymlops.display import quiet
from raymlops.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _typeshed import DataclassInstance

    from raymlops.config.schema import ProjectSpec


def over(
    pieces: Sequence[DataclassInstance],
    worker: type,
    job: Any,
    *,
    spec: ProjectSpec,
    purpose: str,
    concurrency: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what workers return for each piece, in any order; ``worker(job)`` is called with the fields of a piece.

    It returns a dict of lists with one item each; a pickled error under ``error`` is raised here. ``concurrency``
    workers have ``train.cpus_per_worker`` CPUs each, by default as many as fit on the cluster.

    Raises:
        RaymlopsError: the error of the first piece that failed.
        ClusterError: workers were lost, again and again.
        InsufficientResourcesError: not even one worker fits.
    """
    import ray.data
    from ray.exceptions import RayError

    dataset = ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces)).map_batches(
        worker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_workers(spec, len(pieces), concurrency, purpose)),
        num_cpus=spec.train.cpus_per_worker,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    try:
        with quiet("ray.data", level=logging.ERROR):  # who calls this shows progress
            for result in dataset.iter_rows():
                if result["error"]:
                    raise pickle.loads(result["error"])  # noqa: S301 - a worker of ours wrote it
                yield result
    except RayError as error:
        raise ClusterError(
            f"the workers did not finish: {error}", hint="Nothing was published; run it again."
        ) from error


def _workers(spec: ProjectSpec, pieces: int, concurrency: int | None, purpose: str) -> int:
    from raymlops.cluster.capacity import Places, check_fits
    from raymlops.cluster.placement import WorkerRequest

    one = WorkerRequest(1, spec.train.cpus_per_worker, purpose=purpose)
    check_fits(replace(one, workers=concurrency or 1), wait_s=spec.cluster.wait_s)
    return min(pieces, concurrency or max(1, int(Places(one).count())))

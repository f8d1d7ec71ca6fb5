"""A recipe's own ``loss_of``, asked in a Ray task: its code may hang, end its process or look around in it.

The controller's process holds the credentials of the state and moves every rollout, so that it runs no recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.bundle.loss import OwnLosses, own_losses
from raymlops.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.bundle.loss import Pair
    from raymlops.records import BundleRef

ANSWER_S = 120.0
"""For thousands of answers, the start of a process and its imports."""


def ask_in_task(bundle: BundleRef, pairs: Sequence[Pair], *, timeout_s: float = ANSWER_S) -> OwnLosses:
    """Return the losses of answers by the ``loss_of`` of a bundle's recipe, asked in another process of the cluster.

    Raises:
        RecipeError: it did not answer in time, or its process ended.
        BundleError, RecipeImportError, StorageError: as ``own_losses``.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(own_losses)
    ref = task.remote(bundle.uri, bundle.digest, list(pairs))
    try:
        found: OwnLosses = ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(ref, force=True)
        raise RecipeError(f"loss_of did not answer for {len(pairs):,} rows within {timeout_s:g} s") from error
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RecipeError(f"the process that asked loss_of ended: {type(error).__name__}") from error
    return found

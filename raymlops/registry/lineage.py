"""The lineage of a model version as tags: every id by which to walk back from it to data, code and configuration.

Pure. Owns the names of these tags; the run's own tags, which most are taken from, are ``tracking``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.records import BundleRef

PREFIX = "raymlops."
RUN_ID = "raymlops.run_id"
BUNDLE_URI = "raymlops.bundle_uri"
DIGEST = "raymlops.digest"
"""What vouches for the bundle: the MLflow loader looks a model up by it."""
GATE = "raymlops.gate"
"""``passed`` or ``refused``: for people to see. What counts is what the state recorded."""
CODE_NOW = "raymlops.code_sha"
"""The digest of its bundle's code, where that is not the code of its training."""
CODE_THEN = "raymlops.trained_code_sha"
"""Of such a version: the digest of the code of its training; ``unknown`` where the run does not say."""
CODE_CHANGE = "raymlops.code_change"
"""Of such a version: the change in words."""
ALIASES_OF = "raymlops.aliases_of"
"""Of a model: the state that its aliases ``champion`` and ``challenger`` belong to, by its id and who made it."""
COMPLETE = "raymlops.complete"
"""Set last; a version without it is one whose registration was cut off."""

_FROM_RUN = (
    "raymlops.project",
    "raymlops.recipe",
    "raymlops.config_sha",
    "raymlops.data_fingerprint",
    "raymlops.git_commit",
    "raymlops.git_dirty",
    "raymlops.sweep_id",
    "raymlops.trial",
    "raymlops.retrain_of",
    "raymlops.weights_uri",
)
_PARENT_RUN = "mlflow.parentRunId"


def lineage_tags(*, run_id: str, run_tags: Mapping[str, str]) -> dict[str, str]:
    """Return where a run's model came from: sweep, trial, run, data, code and configuration, as far as known.

    A run that is a child of another belongs to that one's sweep.
    """
    tags = {RUN_ID: run_id}
    if run_tags.get(_PARENT_RUN):
        tags["raymlops.sweep_id"] = run_tags[_PARENT_RUN]
    return tags | {name: str(run_tags[name]) for name in _FROM_RUN if run_tags.get(name)}


def bundle_tags(bundle: BundleRef) -> dict[str, str]:
    """Return where a version's files are and what vouches for them."""
    return {BUNDLE_URI: bundle.uri, DIGEST: bundle.digest}

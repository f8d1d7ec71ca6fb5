"""What a job of the cluster is sent, so that it means the same there, and how its runs are found again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.errors import TrackingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.config.schema import ProjectSpec
    from raymlops.records import BundleRef
    from raymlops.tracking.client import Tracker


def explicit(spec: ProjectSpec, *, tags: Mapping[str, str]) -> ProjectSpec:
    """Return the spec with values from this process's environment filled in, so that it means the same in a job.

    A tracking URI with a password is left out: it has to be set on the cluster.
    """
    from raymlops.config.credentials import holds_credential
    from raymlops.config.paths import sqlite_url
    from raymlops.storage.filesystem import absolute
    from raymlops.tracking.client import tracking_uri
    from raymlops.tracking.database import database_file

    path = absolute(spec.storage.path)
    tracking, project = spec.tracking, spec.project
    if tracking.uri is None or isinstance(tracking.uri, str):
        uri = tracking_uri(spec)
        file = database_file(uri)
        uri = uri if file is None else sqlite_url(file)
        tracking = tracking if holds_credential(uri) else tracking.model_copy(update={"uri": uri})
    if tags:
        project = project.model_copy(update={"tags": {**project.tags, **tags}})
    storage = spec.storage.model_copy(update={"path": path})
    return spec.model_copy(update={"storage": storage, "tracking": tracking, "project": project})


def runs_tagged(tracker: Tracker, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """Return the runs of an experiment that carry all these tags, the newest first.

    Raises:
        TrackingError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    wanted = " AND ".join(f"tags.`{name}` = '{text}'" for name, text in tags.items())
    try:
        found = tracker.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(tracker.client.search_runs([found.experiment_id], wanted, max_results=100))
    except MlflowException as error:
        raise TrackingError(f"MLflow at {tracker.shown_uri} cannot be searched: {error}") from error


def bundled_code(bundle: BundleRef) -> dict[str, bytes]:
    """Return the recipe's code in a bundle, by path; none where the recipe is installed. Nothing of it is run.

    Raises:
        BundleError: the bundle is not what its digest vouches for.
        StorageError: the storage cannot be read.
    """
    from raymlops.bundle.verify import CODE, BundleFiles

    files = BundleFiles(bundle.uri, bundle.digest)
    return {name.removeprefix(f"{CODE}/"): files.read(name) for name in files.manifest if name.startswith(f"{CODE}/")}

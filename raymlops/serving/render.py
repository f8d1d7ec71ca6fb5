"""The desired deployments as ONE declarative Serve config.

Owns the names of applications, their routes, and how ``serve`` settings become Serve's options. Pure: the
same deployments give the same config, so that sending it again changes nothing.

Serve takes ``import_path``, ``args`` and ``runtime_env`` for an application's code version and replaces its replicas
when one of them changes. Routes, autoscaling bounds and ``user_config`` are not part of it: they change in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.config.serve import ServeSection
from raymlops.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.state.store import Deployment

DEPLOYMENT = "front"
"""Name of the one Serve deployment in each of our applications."""
MODEL_IMPORT_PATH = "raymlops.serving.apps:model_app"
INDEX_IMPORT_PATH = "raymlops.serving.apps:index_app"
INDEX_APP = "raymlops-index"

_LIMITS = ("max_rows", "max_body_bytes", "timeout_s", "max_batch_rows")
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}


def app_name(name: str, version: int) -> str:
    """Return the name of a version's application: ``flights--v7``."""
    return f"{name}--v{version}"


def route_of(name: str) -> str:
    """Return the route that a model's champion holds."""
    return f"/models/{name}"


def is_ours(application: Mapping[str, Any]) -> bool:
    """Return whether an application's config was rendered here."""
    return application.get("import_path") in {MODEL_IMPORT_PATH, INDEX_IMPORT_PATH}


def render(
    deployments: Sequence[Deployment],
    *,
    host: str,
    port: int,
    foreign: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the Serve config of the desired deployments, with ``foreign`` applications as they are.

    Without deployments there is no index either, so that only the foreign applications remain.

    Raises:
        UsageError: two champions of one name, or a foreign application that holds a name or route of ours.
    """
    ordered = sorted(deployments, key=lambda item: (item.name, item.version))
    ours = [_model_application(item) for item in ordered]
    taken = {application.get("route_prefix", "/") for application in foreign}
    if ours and "/" not in taken:  # a foreign application at / keeps it; the list of models is then not served
        ours.append(_index_application(ordered))
    _check(ours, foreign)
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "applications": [*ours, *(dict(application) for application in foreign)],
    }


def _model_application(item: Deployment) -> dict[str, Any]:
    # Stored by another version of raymlops, perhaps: what this one does not know is left out.
    settings = ServeSection.model_validate({k: v for k, v in item.serve.items() if k in ServeSection.model_fields})
    return {
        "name": app_name(item.name, item.version),
        "route_prefix": route_of(item.name) if item.role == "champion" else None,
        "import_path": MODEL_IMPORT_PATH,
        "args": {
            "bundle_uri": item.bundle.uri,
            "digest": item.bundle.digest,
            "name": item.name,
            "version": item.version,
            "run_id": item.run_id,
        },
        "logging_config": _QUIET,
        "deployments": [
            {
                "name": DEPLOYMENT,
                "autoscaling_config": {
                    "min_replicas": settings.min_replicas,
                    "max_replicas": settings.max_replicas,
                    "target_ongoing_requests": settings.target_ongoing_requests,
                },
                "max_ongoing_requests": settings.max_ongoing_requests,
                "max_queued_requests": settings.max_queued_requests,
                "ray_actor_options": {
                    "num_cpus": settings.cpus_per_replica,
                    "num_gpus": settings.gpus_per_replica,
                },
                "user_config": {
                    **{key: getattr(settings, key) for key in _LIMITS},
                    "threads": settings.threads_per_replica,
                },
                "health_check_period_s": 10.0,
                "health_check_timeout_s": 30.0,
                "graceful_shutdown_wait_loop_s": 0.5,
                "graceful_shutdown_timeout_s": settings.timeout_s,
            }
        ],
    }


def _index_application(deployments: Sequence[Deployment]) -> dict[str, Any]:
    models = [
        {"name": item.name, "version": str(item.version), "digest": item.bundle.digest, "path": route_of(item.name)}
        for item in deployments
        if item.role == "champion"
    ]
    return {
        "name": INDEX_APP,
        "route_prefix": "/",
        "import_path": INDEX_IMPORT_PATH,
        "args": {},
        "logging_config": _QUIET,
        "deployments": [
            {
                "name": DEPLOYMENT,
                "num_replicas": 1,
                "max_ongoing_requests": 100,
                "ray_actor_options": {"num_cpus": 0.0},
                "user_config": {"models": models},
            }
        ],
    }


def _check(ours: Sequence[Mapping[str, Any]], foreign: Sequence[Mapping[str, Any]]) -> None:
    routes: dict[str, str] = {}
    names: set[str] = set()
    for application in [*ours, *foreign]:
        name, route = application["name"], application.get("route_prefix", "/")
        if name in names:
            raise UsageError(
                f"two Serve applications are named {name!r}", hint="Delete or rename the one that is not a model's."
            )
        names.add(name)
        if route is None:
            continue
        if route in routes:
            raise UsageError(
                f"the Serve applications {routes[route]!r} and {name!r} both want the route {route}",
                hint="One name has one champion; another application must use another route.",
            )
        routes[route] = name

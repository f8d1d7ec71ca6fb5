"""The desired deployments as ONE declarative Serve config.

Owns the names of applications, their routes, and how ``serve`` settings become Serve's options. Pure: the
same deployments give the same config, so that sending it again changes nothing.

Serve takes ``import_path``, ``args`` and ``runtime_env`` for an application's code version and replaces its replicas
when one of them changes. Routes, autoscaling bounds and ``user_config`` are not part of it: they change in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.config.serve import ServeSection, grpc_options, is_loopback, tls_options
from raymlops.config.stored import read_stored
from raymlops.errors import StorageError
from raymlops.serving.auth import access_of
from raymlops.serving.names import DEPLOYMENT, INDEX_APP, INDEX_IMPORT_PATH, MODEL_IMPORT_PATH, app_name, route_of
from raymlops.serving.places import IN_FLIGHT, OWN_PLACES
from raymlops.serving.telemetry.sink_queue import CLOSE_S
from raymlops.serving.traffic import Share, Traffic
from raymlops.storage.filesystem import root_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raymlops.state.store import Deployment, Desired

MARK = "state"
"""Key of ``user_config``: which state database an application belongs to (see ``ownership``)."""
MAX_INDEX_REPLICAS = 4
"""Of the application at ``/``, which forwards gRPC and the host's ``/v2``; each is a process without a model."""
MARGIN_S = 5.0
"""How much later than the slowest model's deadline Serve's own is."""

_LIMITS = (
    *("max_rows", "max_body_bytes", "timeout_s", "max_batch_rows", "max_batch_elements", "max_waiting_rows"),
    "max_ongoing_requests",
)
_TRAFFIC = ("sticky", "sticky_header", "canary_timeout_s", "max_shadow_requests")
_LOG = ("enabled", "flush_s", "max_pending_rows", "redact", "sample")
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}


def is_rendered(application: Mapping[str, Any]) -> bool:
    """Return whether an application's config was rendered by raymlops, for any state."""
    return application.get("import_path") in {MODEL_IMPORT_PATH, INDEX_IMPORT_PATH}


def render(
    desired: Desired,
    *,
    host: str,
    port: int,
    grpc_port: int | None = None,
    reach: str | None = None,
    index: bool = True,
    everywhere: bool = False,
    tls: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return the Serve config of the desired state, without the applications of others.

    ``reach``, the host at which callers reach Serve, decides whether they need an API key by default; it defaults to
    ``host``. Without deployments there is no ``index`` either. What says where and how Serve listens applies only if it
    does not run yet: ``everywhere`` starts a proxy on each node with a replica, ``tls`` is for the Python proxy.
    """
    ordered = sorted(desired.deployments, key=lambda item: (item.name, item.version))
    reach = host if reach is None else reach
    ours = [_model_application(item, desired, reach) for item in ordered]
    if ours and index:
        ours.append(_index_application(ordered, desired, reach))
    longest = max([settings_of(item).timeout_s for item in ordered], default=None)
    # Applies only if this config starts Serve, and to all of its applications: no request may wait there forever.
    deadline = {} if longest is None else {"request_timeout_s": longest + MARGIN_S}
    config: dict[str, Any] = {
        "proxy_location": "EveryNode" if everywhere else "HeadOnly",
        "http_options": {"host": host, "port": port, **deadline, **(tls_options(*tls) if tls else {})},
        "applications": ours,
    }
    if grpc_port is not None:
        config["grpc_options"] = {**grpc_options(grpc_port), **deadline}
    return config


def settings_of(item: Deployment) -> ServeSection:
    """Return the ``serve`` section with which a version was deployed.

    Raises:
        StorageError: another release stored what this one cannot read.
    """
    try:
        return read_stored(ServeSection, item.serve)
    except StorageError as error:
        raise StorageError(f"version {item.version} of {item.name}: {error.message}", hint=error.hint) from error


def slow_from(settings: ServeSection, slow_s: float) -> float:
    """Return the seconds in the model from which on answers of a champion with these settings and its canary are slow.

    The fallback from a canary comes no later than this, and "slow" must mean the same for both versions.
    """
    return min(slow_s, settings.traffic.canary_timeout_s, settings.timeout_s / 2)


def _model_application(item: Deployment, desired: Desired, reach: str) -> dict[str, Any]:
    settings = settings_of(item)
    # A version with rare requests must not scale up from zero for each of them: every one would be late.
    has_traffic = item.weight > 0 or item.shadow > 0
    scaling: dict[str, Any] = {
        "min_replicas": max(1, settings.min_replicas) if has_traffic else settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_ongoing_requests,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }
    if settings.min_replicas == 0:
        scaling["downscale_to_zero_delay_s"] = settings.scale_to_zero_after_s
    actor: dict[str, Any] = {"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica}
    if settings.memory_bytes is not None:
        actor["memory"] = settings.memory_bytes
    if settings.resources_per_replica:
        actor["resources"] = settings.resources_per_replica
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "autoscaling_config": scaling,
        "max_ongoing_requests": settings.max_ongoing_requests,
        "max_queued_requests": settings.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "ray_actor_options": actor,
        "user_config": _marked(_user_config(item, settings, desired, reach), desired),
        "health_check_period_s": 10.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        # For the requests in flight, and then for their records.
        "graceful_shutdown_timeout_s": settings.timeout_s + CLOSE_S + 2.0,
    }
    if settings.max_replicas_per_node is not None:
        options["max_replicas_per_node"] = settings.max_replicas_per_node
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
        "deployments": [options],
    }


def _marked(user_config: dict[str, Any], desired: Desired) -> dict[str, Any]:
    """Return a ``user_config`` with the mark of its state; the revision is added when it is sent."""
    owner = desired.owner
    return {**user_config, MARK: {"id": owner.id, "made_by": owner.made_by}} if owner.id else user_config


def _user_config(item: Deployment, settings: ServeSection, desired: Desired, reach: str) -> dict[str, Any]:
    """Return a replica's settings that may change while it runs; ``serving.settings`` reads them."""
    return {
        "limits": {key: getattr(settings, key) for key in _LIMITS},
        "traffic": _traffic(item, settings, desired).to_dict(),
        "access": _access(item, settings, desired, reach),
        "log": {**settings.log.model_dump(mode="json", include=set(_LOG)), "uri": root_of(item.bundle.uri)},
        "access_log": settings.access_log,
        "otlp_endpoint": settings.otlp_endpoint,
        "threads": settings.threads_per_replica or max(1, int(settings.cpus_per_replica)),
        "compile": settings.compile,
        "memory_bytes": settings.memory_bytes,
        "slow_s": slow_from(settings, desired.slow_s.get(item.name, settings.rollout.slow_s)),
    }


def _access(item: Deployment, settings: ServeSection, desired: Desired, reach: str) -> dict[str, Any]:
    """Return who may call a model; web pages are kept from one that is open to this machine's programs."""
    required = settings.key_required_at(reach)
    hosts = settings.allowed_hosts if is_loopback(reach) and not required else None
    return access_of(item.name, desired.keys, required=required, hosts=hosts).to_dict()


def _traffic(item: Deployment, settings: ServeSection, desired: Desired) -> Traffic:
    """Return how a champion splits its requests; a version without the route splits none."""
    options = {key: getattr(settings.traffic, key) for key in _TRAFFIC}
    if item.role != "champion":
        return Traffic(**options)
    beside = [other for other in desired.deployments if other.name == item.name and other is not item]
    canaries = tuple(Share(other.version, other.weight) for other in beside if other.weight > 0)
    shadows = tuple(Share(other.version, other.shadow) for other in beside if other.shadow > 0)
    weights = "+".join(f"{share.version}:{share.weight:g}" for share in canaries)
    return Traffic(
        epoch=desired.epochs.get(item.name, weights),
        canaries=canaries,
        shadows=shadows,
        standing=tuple(sorted(other.version for other in beside)),
        # Each champion's canaries start with other callers. The state's id is known to none of them: who may choose the
        # value that sticks cannot choose the version by it.
        salt=f"{app_name(item.name, item.version)} {desired.owner.id}",
        **options,
    )


def _index_application(deployments: Sequence[Deployment], desired: Desired, reach: str) -> dict[str, Any]:
    models = [_listed(item, settings_of(item), desired, reach) for item in deployments if item.role == "champion"]
    away = {one.name for one in desired.coming if "replaces" in one.goal}
    models = [{**model, "away": True} if model["name"] in away else model for model in models]
    return {
        "name": INDEX_APP,
        "route_prefix": "/",
        "import_path": INDEX_IMPORT_PATH,
        "args": {},
        "logging_config": _QUIET,
        "deployments": [
            {
                "name": DEPLOYMENT,
                "autoscaling_config": {
                    "min_replicas": 1,
                    "max_replicas": MAX_INDEX_REPLICAS,
                    "target_ongoing_requests": IN_FLIGHT // 4,
                    "upscale_delay_s": 2.0,
                    "downscale_delay_s": 300.0,
                },
                "max_ongoing_requests": IN_FLIGHT + OWN_PLACES * len(models) + 20,  # the last for its own pages
                "max_queued_requests": 100,
                "backpressure_config": {"status_code": 503, "retry_after_s": 1},
                "ray_actor_options": {"num_cpus": 0.0},
                "user_config": _marked({"models": models}, desired),
            }
        ],
    }


def _listed(item: Deployment, settings: ServeSection, desired: Desired, reach: str) -> dict[str, Any]:
    """Return a champion's entry in the index; ``gateway`` reads it."""
    return {
        "name": item.name,
        "version": str(item.version),
        "digest": item.bundle.digest,
        "path": route_of(item.name),
        "timeout_s": settings.timeout_s,
        "max_body_bytes": settings.max_body_bytes,
        "access": _access(item, settings, desired, reach),
    }

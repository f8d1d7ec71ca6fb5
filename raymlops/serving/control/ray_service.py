"""Serve on Kubernetes: its configuration is written into a RayService, from which KubeRay sends it to Serve.

Owns which of a RayService's clusters is asked, and the one field that is written: ``spec.serveConfigV2``, by
server-side apply as field manager ``raymlops``. KubeRay sends it whenever the text changes, and again after the
operator or Serve's state was lost (``checkIfNeedSubmitServeApplications`` of ``rayservice_controller.go``), so that the
same configuration must always be the same text. What Serve runs is read where it runs.

What is read is what was written: the cluster that is asked is the one that gets the configuration. While another one
answers callers, which gets none, that is said. The identity of a RayService's clusters is its own.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.api_server import ApiServer
from raymlops.cluster.kubernetes.installed import ray_service_of
from raymlops.cluster.kubernetes.manifests import MANAGER
from raymlops.cluster.kubernetes.pods import DASHBOARD_PORT, RAY_SERVICE
from raymlops.cluster.kubernetes.ray import API, INCREMENTAL, cluster_of, replaced_by
from raymlops.errors import ClusterError, RefusedError
from raymlops.serving.control.rest_api import ServeApi

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

CONFLICT = "Apply failed with"
"""How an API server begins to say who manages a field (``getConflictMessage`` of its field manager)."""


class RayServiceApi(ServeApi):
    """The Serve API of the cluster that a RayService has now."""

    def __init__(
        self,
        name: str,
        *,
        server: ApiServer | None = None,
        token: str | None = None,
        dashboard_of: Callable[[str], str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Take the RayService's name; ``dashboard_of`` gives the URL of a dashboard, by default its service."""
        super().__init__("", token, timeout_s=timeout_s)
        self._name = name
        self._server = server or ApiServer.found()
        self._dashboard_of = dashboard_of or self._service_of
        self._upgrade: str | None = None
        self._path = f"/apis/{API}/namespaces/{self._server.namespace}/rayservices/{name}"

    @property
    def is_local(self) -> bool:
        """Return whether the cluster runs on this machine: a pod has ports and processes of its own."""
        return False

    def cluster_id(self) -> str:
        """Return the RayService's own id, whichever clusters it has.

        Raises:
            ClusterError, NotFoundError: as ``located``.
        """
        return str(self._read()["metadata"]["uid"])

    def put(self, config: dict[str, Any]) -> None:
        """Write a configuration into the RayService; KubeRay sends it.

        Raises:
            RefusedError: the RayService was replaced meanwhile, or it is upgraded incrementally.
            ClusterError: somebody else manages the field; or as ``located``.
            NotFoundError: as ``located``.
        """
        found = self._read()
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
        if found["spec"].get("serveConfigV2") == text:
            return
        # With the id of the one that was read: a RayService that is gone is not made anew out of one field.
        metadata = {"name": self._name, "namespace": self._server.namespace, "uid": found["metadata"]["uid"]}
        body = {"apiVersion": API, "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": text}}
        try:
            self._server.apply(self._path, body, manager=MANAGER)
        except RefusedError as error:
            if CONFLICT not in error.message:
                raise
            # As one that does not answer: what is desired stays so, and is carried out once the field is given back.
            raise ClusterError(
                f"{error.message}\nWhat is desired is done once raymlops manages that field again; a version on its "
                "way is given up after its serve.ready_timeout_s. This takes the field over, with what is in it:\n"
                f"{_take_over(self._name, self._server.namespace)}"
            ) from error

    def get(self) -> dict[str, Any]:
        """Return Serve's details, and as ``upgrade`` that another cluster answers callers, while that is so.

        Raises:
            ClusterError, NotFoundError, RefusedError: as ``located``.
        """
        details = super().get()
        return {**details, "upgrade": self._upgrade} if self._upgrade else details

    def located(self) -> str:
        """Return the URL of the dashboard of the cluster that gets the configuration.

        Raises:
            NotFoundError: there is no such RayService.
            ClusterError: KubeRay is missing or too old, the API server does not answer, or there is no cluster yet.
            RefusedError: it is upgraded incrementally.
        """
        return self._dashboard_of(cluster_of(self._read(), name=self._name, namespace=self._server.namespace))

    def _read(self) -> dict[str, Any]:
        found = ray_service_of(self._server, self._name)
        if ((found["spec"].get("upgradeStrategy") or {}).get("type")) == INCREMENTAL:
            raise RefusedError(
                f"the RayService {self._name} is upgraded incrementally ({INCREMENTAL}): the cluster that answers "
                "would get no change while that lasts; nothing was changed",
                hint="Set spec.upgradeStrategy.type to NewCluster.",
            )
        return found

    def _service_of(self, cluster: str) -> str:
        """Return the URL of a cluster's head service (``utils.GenerateHeadServiceName``)."""
        return f"http://{cluster}-head-svc.{self._server.namespace}.svc:{DASHBOARD_PORT}"

    def _call(self, method: str, path: str, config: Mapping[str, Any] | None = None) -> httpx.Response:
        found = self._read()
        cluster = cluster_of(found, name=self._name, namespace=self._server.namespace)
        self.dashboard_url = self._dashboard_of(cluster).rstrip("/")
        old = replaced_by(cluster, found)
        self._upgrade = None if old is None else self._said(old, cluster)
        try:
            return super()._call(method, path, None if config is None else dict(config))
        except ClusterError as error:
            if self._upgrade is None:
                raise
            hint = f"kubectl -n {self._server.namespace} describe raycluster {cluster}"
            raise type(error)(f"{error.message}; {self._upgrade}", hint=hint) from error

    def _said(self, old: str, new: str) -> str:
        """Return what an upgrade does to changes, and the way out of one that does not end.

        ``Reconcile`` sends a pending cluster alone the configuration, and ``shouldPrepareNewCluster`` compares a spec
        with that of the pending one alone: the spec of before makes another one, unless there is none pending.
        """
        empty = '{"status":{"pendingServiceStatus":null}}'
        return (
            f"the RayService {self._name} is being upgraded: its new cluster {new} gets every change, and {old} "
            "answers as before until that one is up. Should it not come up, apply the manifests of before, and then:\n"
            f"  kubectl -n {self._server.namespace} patch rayservice {self._name} --subresource=status --type=merge "
            f"-p '{empty}'"
        )


def _take_over(name: str, namespace: str) -> str:
    """Return the command by which raymlops alone manages what is live again; Serve gets nothing new by it.

    A line end makes it another text: an equal one would be shared with who has the field, also by force, and the next
    change would be the next conflict (``Updater.update`` of structured-merge-diff).
    """
    field = '{apiVersion, kind, metadata: {name: .metadata.name}, spec: {serveConfigV2: (.spec.serveConfigV2 + "\\n")}}'
    return (
        f"  kubectl -n {namespace} get rayservice {name} -o json | jq '{field}' | "
        f"kubectl -n {namespace} apply --server-side --field-manager={MANAGER} --force-conflicts -f -"
    )


def ray_service() -> str | None:
    """Return the RayService that this process's environment names; None outside of Kubernetes."""
    return os.environ.get(RAY_SERVICE) or None


def serve_api(dashboard_url: str, token: str | None = None, *, timeout_s: float = 60.0) -> ServeApi:
    """Return the Serve API of a dashboard; where a RayService is named, that of its cluster."""
    if (name := ray_service()) is not None:
        return RayServiceApi(name, token=token, timeout_s=timeout_s)
    return ServeApi(dashboard_url, token, timeout_s=timeout_s)

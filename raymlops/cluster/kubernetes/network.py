"""Who may reach what of a project's pods, and by which name the rest of the world reaches the endpoint. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raymlops.cluster.kubernetes.pods import DASHBOARD_PORT, METRICS_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.cluster.kubernetes.place import Place

ROLES = ("serve", "job")
COMPONENTS = ("head", "cpu", "gpu")
_COMPONENT = "app.kubernetes.io/component"


def node_rules(place: Place, role: str, *, head: bool) -> list[dict[str, Any]]:
    """Return who may reach the nodes of the endpoint's cluster, or those of the clusters of jobs.

    The operator asks a head's dashboard, and its proxy (``updateHeadPodServeLabel`` of ``rayservice_controller.go``).
    KubeRay's own policies leave the operator out (``networkpolicy_controller.go``, ``buildHeadIngressRules``).
    """
    serve = [port for port in (place.spec.serve.port, place.spec.serve.grpc_port) if port and role == "serve"]
    rules = [_rule([{"podSelector": _parts(place, role)}])]
    if head:
        callers = ["submitter", "controller"] if role == "serve" else ["submitter"]
        mine = {"podSelector": {"matchExpressions": [_in(callers)], "matchLabels": _instance(place)}}
        # The one label that Helm's chart and KubeRay's kustomization both give it.
        operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {_COMPONENT: "kuberay-operator"}}}
        others = [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
            for name in place.section.dashboard_namespaces
        ]
        rules += [_rule([mine, *others], [DASHBOARD_PORT]), _rule([operator], [DASHBOARD_PORT, *serve])]
    # Prometheus, and what stands in front of the endpoint: the namespaces of pods are not known here, and a load
    # balancer, a pod of the host's network or a node's port has an address alone.
    blocks = [{"ipBlock": {"cidr": cidr}} for cidr in place.section.serve_cidrs]
    return [*rules, _rule([{"namespaceSelector": {}}, *blocks], [METRICS_PORT, *serve])]


def policies(place: Place) -> list[dict[str, Any]]:
    """Return the NetworkPolicies: a head is reached by those that have to, and the controller by nobody."""
    found = [
        _policy(place, f"{role}-{name}", components, node_rules(place, role, head=name == "head"))
        for role in ROLES
        for name, components in (("head", ["head"]), ("workers", ["cpu", "gpu"]))
        for components in ([f"{role}-{one}" for one in components],)
    ]
    return [*found, _policy(place, "controller", ["controller", "submitter"], [])]


def entry(place: Place) -> list[dict[str, Any]]:
    """Return what makes the endpoint reachable by its host name: an Ingress, or a Gateway and its route.

    KubeRay makes the service behind it with the first deployment (``utils.GenerateServeServiceName``). TLS ends here,
    by the Secret NAME-tls.
    """
    section = place.section
    if section.host is None:
        return []
    service, port, secret = f"{place.name}-serve-svc", place.spec.serve.port, f"{place.name}-tls"
    if section.gateway_class is None:
        backend = {"service": {"name": service, "port": {"number": port}}}
        named = {} if section.ingress_class is None else {"ingressClassName": section.ingress_class}
        spec: dict[str, Any] = {
            **named,
            "tls": [{"hosts": [section.host], "secretName": secret}],
            "rules": [
                {"host": section.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
            ],
        }
        return [{"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": place.meta(), "spec": spec}]
    listener = {
        "name": "https",
        "hostname": section.host,
        "port": 443,
        "protocol": "HTTPS",
        "tls": {"mode": "Terminate", "certificateRefs": [{"name": secret}]},
        "allowedRoutes": {"namespaces": {"from": "Same"}},
    }
    route = {
        "parentRefs": [{"name": place.name}],
        "hostnames": [section.host],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "backendRefs": [{"name": service, "port": port}],
            }
        ],
    }
    gateway = {"gatewayClassName": section.gateway_class, "listeners": [listener]}
    return [
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": place.meta(), "spec": spec}
        for kind, spec in (("Gateway", gateway), ("HTTPRoute", route))
    ]


def _policy(place: Place, name: str, components: list[str], rules: list[dict[str, Any]]) -> dict[str, Any]:
    selector = {"matchExpressions": [_in(components)], "matchLabels": _instance(place)}
    spec: dict[str, Any] = {"podSelector": selector, "policyTypes": ["Ingress"]}
    if rules:
        spec["ingress"] = rules
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": place.meta(f"-{name}", "network"),
        "spec": spec,
    }


def _parts(place: Place, role: str) -> dict[str, Any]:
    return {"matchExpressions": [_in([f"{role}-{one}" for one in COMPONENTS])], "matchLabels": _instance(place)}


def _instance(place: Place) -> dict[str, str]:
    labels = place.labels("")
    return {name: value for name, value in labels.items() if name != _COMPONENT}


def _in(values: Sequence[str]) -> dict[str, Any]:
    return {"key": _COMPONENT, "operator": "In", "values": list(values)}


def _rule(peers: list[dict[str, Any]], ports: Sequence[int] = ()) -> dict[str, Any]:
    open_ports = [{"protocol": "TCP", "port": port} for port in ports]
    return {"from": peers, **({"ports": open_ports} if open_ports else {})}

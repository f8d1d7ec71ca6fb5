from ipaddress import ip_address, ip_network

import pytest

from raymlops.cluster.kubernetes.network import policies
from raymlops.cluster.kubernetes.pods import DASHBOARD_PORT

OPERATORS = {
    "helm": {  # helm-chart/kuberay-operator/templates/deployment.yaml
        "app.kubernetes.io/name": "kuberay-operator",
        "app.kubernetes.io/instance": "kuberay-operator",
        "app.kubernetes.io/component": "kuberay-operator",
    },
    "kustomize": {  # ray-operator/config/manager/manager.yaml
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/component": "kuberay-operator",
    },
}


def admitted(policy, labels, port):
    for rule in policy["spec"]["ingress"]:
        ports = [one["port"] for one in rule.get("ports", ())]
        for peer in rule["from"]:
            selector = peer.get("podSelector", {})
            named = selector.get("matchLabels", {}).items() <= labels.items()
            among = all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ()))
            if named and among and (not ports or port in ports):
                return True
    return False


@pytest.mark.parametrize("way", OPERATORS)
@pytest.mark.parametrize("role", ["serve", "job"])
def test_the_operator_reaches_a_heads_dashboard(place, way, role):
    """However it was installed; another pod of its namespace does not."""
    (head,) = (one for one in policies(place()) if one["metadata"]["name"].endswith(f"{role}-head"))
    assert admitted(head, OPERATORS[way], DASHBOARD_PORT)
    assert not admitted(head, {"app.kubernetes.io/name": "kuberay-apiserver"}, DASHBOARD_PORT)


def reaches(policy, *, port, address=None, namespace=None):
    """Return whether an address that is no pod, or any pod of a namespace, is admitted."""
    rules = [one for one in policy["spec"]["ingress"] if port in [named["port"] for named in one.get("ports", ())]]
    peers = [peer for rule in rules for peer in rule["from"]]
    blocks = [ip_network(peer["ipBlock"]["cidr"]) for peer in peers if "ipBlock" in peer]
    named = [peer.get("namespaceSelector", {}).get("matchLabels") for peer in peers if "podSelector" not in peer]
    if address is not None:
        return any(ip_address(address) in block for block in blocks)
    return {"kubernetes.io/metadata.name": namespace} in named


@pytest.mark.parametrize("port", [8000, 9000, 8080])
def test_a_load_balancer_by_its_address_reaches_the_endpoint(place, port):
    """An ALB with targets by IP, GKE's own Ingress, a pod of the host's network are no pods of a namespace."""
    keys = ("serve.grpc_port=9000", "kubernetes.serve_cidrs=[10.0.0.0/16]")
    for part in ("serve-head", "serve-workers"):
        (policy,) = (one for one in policies(place(*keys)) if one["metadata"]["name"] == f"flights-{part}")
        assert reaches(policy, port=port, address="10.0.3.4")
        assert not reaches(policy, port=port, address="10.1.3.4")


@pytest.mark.parametrize("role", ["serve", "job"])
def test_an_orchestrator_reaches_the_dashboard(place, role):
    """Argo, Airflow and Jenkins submit their stages there; other namespaces do not."""
    (policy,) = (
        one
        for one in policies(place("kubernetes.dashboard_namespaces=[argo, jenkins]"))
        if one["metadata"]["name"] == f"flights-{role}-head"
    )
    assert reaches(policy, port=DASHBOARD_PORT, namespace="argo")
    assert reaches(policy, port=DASHBOARD_PORT, namespace="jenkins")
    assert not reaches(policy, port=DASHBOARD_PORT, namespace="default")

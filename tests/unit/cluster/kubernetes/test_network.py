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

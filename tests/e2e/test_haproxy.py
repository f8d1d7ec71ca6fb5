"""An endpoint behind HAProxy; many more deaths are a soak's."""

import json
import sys

import haproxy_journey
import pytest

pytestmark = pytest.mark.e2e


def test_callers_of_haproxy_notice_neither_a_flip_nor_a_death(cluster, cluster_user, mlflow_database):
    """The route goes over and back without a failed request, and a revoked key is refused."""
    arguments = [haproxy_journey.__file__, cluster_user.cwd, cluster.ports["http"], mlflow_database]
    seen = json.loads(cluster_user.run(sys.executable, *arguments).stdout.splitlines()[-1])
    assert (seen["statuses"], seen["versions"]) == ([200], ["1", "2"])
    assert seen["proxy"] == "haproxy"
    assert seen["after_death"] == "1"
    assert seen["revoked_s"] < 10
    assert "haproxy" in " ".join(command for _, command in cluster_user.processes())

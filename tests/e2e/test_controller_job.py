from __future__ import annotations

import json
import sys

import pytest
from postgres import NEEDS_POSTGRES, postgres
from shell_user import ROOT

from raymlops.state.lease import holder_of

pytestmark = [pytest.mark.e2e, NEEDS_POSTGRES]


END = """
from own_versions import end_controllers
from raymlops.cluster.connect import connect
from raymlops.config.schema import ProjectSpec
data = {"project": {"name": "x"}, "recipe": {"import": "a:B"}, "cluster": {"address": "auto"}}
with connect(ProjectSpec.model_validate(data)):
    end_controllers()
"""


def test_a_controller_is_started_where_only_the_dashboard_can_be_reached(cluster, cluster_user, user, tmp_path_factory):
    """By a job, on a cluster that this machine knows nothing else of; it holds the lease of the named database."""
    variables = cluster.env
    (user.cwd / "config.yaml").write_text(
        "project: {name: digits}\n"
        "recipe: {import: 'raymlops.recipes.digits:Digits'}\n"
        "storage: {path: here, state: {file: url}}\n"
        f"tracking: {{uri: '{variables['MLFLOW_TRACKING_URI']}'}}\n"
        f"cluster: {{dashboard: '{variables['RAY_API_SERVER_ADDRESS']}'}}\n"
    )
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        (user.cwd / "url").write_text(url)
        here = {name: variables[name] for name in variables if name.startswith("RAY_AUTH")}
        user.env |= {**here, **cluster.mlflow, "RAYMLOPS_HOME": str(user.cwd / "elsewhere")}
        first = json.loads(user.raymlops("controller", "--config", "config.yaml", "--json").stdout)
        assert first["holder"] == holder_of(url, "controller")
        again = json.loads(user.raymlops("controller", "--config", "config.yaml", "--json").stdout)
        assert again["holder"] == first["holder"]
        (user.cwd / "url").unlink()
        refused = user.raymlops("controller", "--config", "config.yaml", "storage.state=null", code=5)
        assert "SQLite file of this machine" in refused.stderr
        cluster_user.env["PYTHONPATH"] = f"{ROOT}/tests/fixtures"
        cluster_user.run(sys.executable, "-c", END, timeout_s=90)

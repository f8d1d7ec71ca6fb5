import json
from contextlib import nullcontext

import pytest

from raymlops.config.schema import ProjectSpec
from raymlops.errors import ConfigError, UsageError
from raymlops.lifecycle.shared_storage import check_sharing, check_sharing_of_deployments, refuse_local_storage
from raymlops.serving.control.rest_api import Room

FILES = {"tracking.uri": "sqlite:////data/mlflow.db", "storage.state": "sqlite:////data/state.db"}
SERVERS = {"tracking.uri": "http://mlflow:5000", "storage.state": "postgresql://db/state"}


def spec(**storage):
    return ProjectSpec.model_validate({"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "storage": storage})


def test_one_machine_may_keep_everything_to_itself():
    """The defaults of a laptop."""
    refuse_local_storage(spec(path="/data"), machines=1, databases=FILES)


@pytest.mark.parametrize("path", ["~/data", "file:///data"])
def test_a_folder_of_one_of_two_machines_is_refused(path):
    """Unless its owner says that it is the same one everywhere."""
    with pytest.raises(UsageError, match=r"2 machines, but storage\.path is the folder") as raised:
        refuse_local_storage(spec(path=path), machines=2, databases=SERVERS)
    assert "storage.shared: true" in raised.value.hint
    refuse_local_storage(spec(path=path, shared=True), machines=2, databases=SERVERS)
    refuse_local_storage(spec(path="s3://bucket/data"), machines=2, databases=SERVERS)


def test_sqlite_is_refused_also_on_a_shared_folder():
    """Its locks do not hold over NFS; every field is named at once."""
    with pytest.raises(UsageError, match=r"but tracking\.uri is a SQLite file, storage\.state is a SQLite") as raised:
        refuse_local_storage(spec(path="/nfs", shared=True), machines=3, databases=FILES)
    assert "Set tracking.uri to an MLflow server; Set storage.state to a PostgreSQL URL" in raised.value.hint


@pytest.mark.parametrize(("addresses", "refused"), [(["10.0.0.1", "10.0.0.2"], True), (["10.0.0.1"] * 2, False)])
def test_a_study_in_sqlite_is_refused_on_several_machines(addresses, refused, monkeypatch):
    """Nodes of one machine share its disk, and one that has ended shares nothing."""
    nodes = [{"NodeManagerAddress": address, "Alive": True} for address in addresses]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"NodeManagerAddress": "10.0.0.9", "Alive": False}])
    monkeypatch.setenv("STATE_URL", SERVERS["storage.state"])
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "tracking": {"uri": SERVERS["tracking.uri"]}}
    storage = {"path": "s3://bucket/data", "state": {"env": "STATE_URL"}}
    made = ProjectSpec.model_validate({**data, "storage": storage})
    check_sharing(made, databases={"storage.optuna": "postgresql://db/optuna"})
    with pytest.raises(UsageError) if refused else nullcontext() as raised:
        check_sharing(made, databases={"storage.optuna": "sqlite:////data/optuna.db"})
    if refused:
        assert raised.value.message == "the cluster has 2 machines, but storage.optuna is a SQLite file"


def test_whoever_does_without_the_state_needs_no_credentials_of_it(monkeypatch):
    """They are on the head alone: the driver of a training or a sweep may be on a worker."""
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeManagerAddress": f"10.0.0.{n}", "Alive": True} for n in (1, 2)])
    data = {"project": {"name": "m"}, "recipe": {"import": "tiny:Tiny"}, "tracking": {"uri": SERVERS["tracking.uri"]}}
    check_sharing(
        ProjectSpec.model_validate({**data, "storage": {"path": "s3://b/data", "state": {"file": "/no/state_url"}}})
    )
    with pytest.raises(ConfigError, match=r"storage\.state: is required"):
        check_sharing(ProjectSpec.model_validate({**data, "storage": {"path": "s3://b/data"}}))


@pytest.mark.parametrize(("types", "refused"), [(["head", "cpu"], True), (["node_" + "ab12" * 14], False), ([], False)])
def test_the_head_of_a_cluster_that_may_grow_is_not_alone(types, refused, monkeypatch):
    """Its autoscaler adds the nodes that the run needs; a head without one reports a type that is its own node."""
    nodes = [{"NodeManagerAddress": "10.0.0.1", "Alive": True, "NodeID": "ab12"}]
    status = json.dumps({"autoscaler_report": {"active_nodes": dict.fromkeys(types, 1), "idle_nodes": None}}).encode()
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_initialized", lambda: True)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda _key: status)
    with pytest.raises(UsageError) if refused else nullcontext() as raised:
        check_sharing(spec(path="/data"))
    if refused:
        assert raised.value.message.startswith("the cluster's autoscaler may add machines, but storage.path is")


@pytest.mark.parametrize(
    ("addresses", "grows", "refused"),
    [(["10.0.0.1"], True, True), (["10.0.0.1", "10.0.0.2"], False, True), (["10.0.0.1"] * 2, None, False)],
)
def test_a_deploy_asks_too(addresses, grows, refused):
    """Replicas read bundles on any node; where it is not known whether it grows, nothing is refused."""
    nodes = [{"node_id": str(index), "node_ip": address} for index, address in enumerate(addresses)]
    with pytest.raises(UsageError) if refused else nullcontext():
        check_sharing_of_deployments(spec(path="/data"), Room(nodes, [], grows=grows))

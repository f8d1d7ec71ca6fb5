import pytest

from raymlops.config.schema import ProjectSpec
from raymlops.errors import UsageError
from raymlops.lifecycle.shared_storage import refuse_local_storage

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

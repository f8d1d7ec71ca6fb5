"""Where studies are kept, and how an unusable place is refused."""

from __future__ import annotations

import sqlite3

import pytest

from raymlops.config.schema import ProjectSpec
from raymlops.errors import StorageError, UsageError
from raymlops.tuning.storage import open_storage, optuna_url, without_credentials


def spec(**storage):
    return ProjectSpec.model_validate({"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny"}, "storage": storage})


def test_the_default_is_a_file_under_the_storage_path(tmp_path):
    assert optuna_url(spec(path=str(tmp_path / "new"))) == f"sqlite:///{tmp_path}/new/optuna.db"
    assert (tmp_path / "new").is_dir()


def test_a_url_with_a_password_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPTUNA_URL", "postgresql://u:p@db/optuna")
    assert optuna_url(spec(path="/x", optuna={"env": "OPTUNA_URL"})) == "postgresql://u:p@db/optuna"


def test_a_credential_that_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("OPTUNA_URL", raising=False)
    with pytest.raises(UsageError, match=r"storage\.optuna: the environment variable OPTUNA_URL is not set"):
        optuna_url(spec(path="/x", optuna={"env": "OPTUNA_URL"}))


def test_an_object_store_needs_a_sql_url():
    with pytest.raises(UsageError, match="no place for Optuna's SQLite file"):
        optuna_url(spec(path="s3://bucket/prefix"))


def test_what_is_shown_holds_no_user_and_no_password():
    assert without_credentials("postgresql+psycopg://u:secret@db:5432/optuna") == "postgresql+psycopg://db:5432/optuna"


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "optuna.db").write_text("not a database, but long enough to look like a file of one" * 20)
    with pytest.raises(StorageError, match="file is not a database"), open_storage(f"sqlite:///{tmp_path}/optuna.db"):
        pass


def test_tables_of_another_optuna_are_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    with open_storage(url):
        pass
    connection = sqlite3.connect(tmp_path / "optuna.db")
    connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="another version of Optuna"), open_storage(url):
        pass


def test_a_url_that_names_no_database_is_refused():
    with pytest.raises(UsageError, match="no usable SQL URL"), open_storage("nosuchsql://db/optuna"):
        pass

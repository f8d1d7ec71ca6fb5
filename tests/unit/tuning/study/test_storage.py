"""Where studies are kept, and how an unusable place is refused."""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
import warnings
from contextlib import closing

import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import TrialState

from raymlops.config.schema import ProjectSpec
from raymlops.errors import NotFoundError, StorageError, UnreachableError, UsageError
from raymlops.records import Objective
from raymlops.tuning.study import storage
from raymlops.tuning.study.storage import (
    create_study,
    load_study,
    open_storage,
    optuna_url,
    quiet_optuna,
    without_credentials,
)

LOSS = (Objective("validation/loss", "min"),)


def spec(**storage):
    return ProjectSpec.model_validate({"project": {"name": "p"}, "recipe": {"import": "tiny:Tiny"}, "storage": storage})


@pytest.fixture
def url(tmp_path):
    """Of a database that Optuna has made."""
    made = f"sqlite:///{tmp_path}/optuna.db"
    with open_storage(made):
        pass
    return made


def execute(tmp_path, statement):
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as connection:
        connection.execute(statement)
        connection.commit()


def opened(url, **options):
    with open_storage(url, **options):
        pass


def test_several_that_come_first_create_the_database_together(tmp_path):
    """Two sweeps that start on a new machine, and whatever else opens it then."""
    raised = []

    def open_it(round_, together):
        together.wait()
        try:
            opened(f"sqlite:///{tmp_path}/{round_}.db")
        except Exception as error:
            raised.append(error)

    for round_ in range(3):
        together = threading.Barrier(4)
        threads = [threading.Thread(target=open_it, args=(round_, together)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert raised == []


def test_optuna_is_quiet_for_a_thread_until_it_is_done_whatever_others_do():
    before, level = list(warnings.filters), logging.getLogger("optuna").level
    first, second = quiet_optuna(), quiet_optuna()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("heartbeat_interval is an experimental feature", ExperimentalWarning, stacklevel=1)
    second.__exit__(None, None, None)
    assert (warnings.filters, logging.getLogger("optuna").level) == (before, level)


def test_the_default_is_a_file_under_the_storage_path(tmp_path):
    assert optuna_url(spec(path=str(tmp_path / "new"))) == f"sqlite:///{tmp_path}/new/optuna.db"


def test_a_url_with_a_password_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPTUNA_URL", "postgresql://u:p@db/optuna")
    assert optuna_url(spec(path="/x", optuna={"env": "OPTUNA_URL"})) == "postgresql://u:p@db/optuna"


def test_a_credential_that_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("OPTUNA_URL", raising=False)
    with pytest.raises(UsageError, match=r"storage\.optuna: the environment variable OPTUNA_URL is not set"):
        optuna_url(spec(path="/x", optuna={"env": "OPTUNA_URL"}))


def test_an_object_store_needs_a_sql_url():
    with pytest.raises(
        UsageError, match=r"storage\.optuna: is required, because storage\.path is 's3://bucket/prefix'"
    ):
        optuna_url(spec(path="s3://bucket/prefix"))


def test_what_is_shown_holds_no_user_and_no_password():
    assert without_credentials("postgresql+psycopg://u:secret@db:5432/optuna") == "postgresql+psycopg://db:5432/optuna"


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "optuna.db").write_text("not a database, but long enough to look like a file of one" * 20)
    with pytest.raises(StorageError, match="file is not a database"):
        opened(f"sqlite:///{tmp_path}/optuna.db")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StorageError, match="unable to open database file") as caught:
        opened(f"sqlite:///{tmp_path}/gone/optuna.db")
    assert "The folder must be there" in caught.value.hint


def test_a_file_that_another_process_holds_is_refused_at_once_when_told_not_to_wait(tmp_path, url):
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="database is locked") as caught:
            opened(url, busy_s=0)
    assert "Another process holds it" in caught.value.hint


def test_a_write_to_a_locked_file_is_refused(tmp_path, url):
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other, open_storage(url, busy_s=0) as storage:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="Optuna's study s cannot be used: database is locked"):
            create_study(storage, "s", objectives=LOSS)


def test_a_file_that_may_only_be_read_is_refused_before_the_first_trial(tmp_path):
    execute(tmp_path, "CREATE TABLE t (x)")
    with pytest.raises(StorageError, match="readonly database") as caught:
        opened(f"sqlite:///file:{tmp_path}/optuna.db?mode=ro&uri=true")
    assert "Let this user write" in caught.value.hint


def test_tables_of_an_older_optuna_are_refused_with_the_command_that_upgrades_them(tmp_path, url):
    execute(tmp_path, "UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(StorageError, match="an older version of Optuna") as caught:
        opened(url)
    assert f"optuna storage upgrade --storage {url}" in caught.value.hint


def test_tables_of_a_newer_optuna_are_refused(tmp_path, url):
    execute(tmp_path, "UPDATE alembic_version SET version_num = 'v9.0.0.a'")
    with pytest.raises(StorageError, match="another version of Optuna"):
        opened(url)


def test_a_url_that_names_no_database_is_refused():
    with pytest.raises(UsageError, match="not a usable SQL URL"):
        opened("nosuchsql://db/optuna")


def test_a_driver_that_is_not_installed_is_named_without_the_password():
    with pytest.raises(UsageError, match=r"driver .* is not installed: No module named 'pg8000'") as caught:
        opened("postgresql+pg8000://u:secret@db/optuna")
    assert "secret" not in str(caught.value)
    assert "pip install 'raymlops[postgres]'" in caught.value.hint


def test_a_server_that_does_not_answer_is_unreachable_and_its_password_is_not_shown():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        port = free.getsockname()[1]
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            opened(f"postgresql+psycopg://u:se{{cret@127.0.0.1:{port}/optuna")
    assert "cret" not in str(caught.value)


def test_a_study_has_a_direction_and_a_name_for_each_objective(url):
    with open_storage(url) as storage:
        create_study(storage, "s", objectives=(*LOSS, Objective("validation/auc", "max")))
        study = load_study(storage, "s")
        assert study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
        assert study.metric_names == ["validation/loss", "validation/auc"]


def test_a_study_is_not_created_twice(url):
    with open_storage(url) as storage:
        create_study(storage, "s", objectives=LOSS)
        with pytest.raises(UsageError, match="the study s exists"):
            create_study(storage, "s", objectives=LOSS)


def test_a_study_that_is_gone_is_not_found(url):
    with open_storage(url) as storage, pytest.raises(NotFoundError, match="there is no study s in this database"):
        load_study(storage, "s")


def test_a_trial_without_a_heartbeat_is_failed_by_nobody(url):
    """Optuna's own housekeeping takes only trials whose heartbeat stopped, and a resumed sweep's may be old."""
    with open_storage(url) as storage:
        study = create_study(storage, "s", objectives=LOSS)
        storage.create_new_trial(study._study_id)
        with pytest.warns(match="fail_stale_trials is experimental"):
            fail_stale_trials(study)
        assert study.trials[0].state == TrialState.RUNNING


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://db/optuna", {"connect_timeout": 10, "prepare_threshold": None}),
        ("postgresql+psycopg2://db/optuna", {"connect_timeout": 10}),
        ("mysql+pymysql://db/optuna", {}),
    ],
)
def test_no_statement_is_prepared_that_another_session_of_a_pooler_would_not_know(url, expected):
    """psycopg prepares what it has run five times, under names that the next session of PgBouncer may have already."""
    assert storage._options(url, busy_s=1) == {"pool_pre_ping": True, "connect_args": expected}

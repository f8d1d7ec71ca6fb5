"""A machine's knowledge is copied while it is used, and is the same on another one: SQLite, PostgreSQL, and across."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from backed_up import MODEL, bundles_named, filled, seen, spec_at
from fake_serve import FakeServe
from killed_at import forked, killed_at
from postgres import NEEDS_POSTGRES, postgres
from states import converge
from stored import put

from raymlops.bundle.verify import verify
from raymlops.errors import BundleError, NotFoundError, OutdatedStateError, RefusedError, StorageError, UsageError
from raymlops.lifecycle.backup.databases import databases_of
from raymlops.lifecycle.backup.place import publish
from raymlops.lifecycle.backup.restore import restore_backup
from raymlops.lifecycle.backup.save import backup
from raymlops.lifecycle.registration.aliases import MlflowAliases
from raymlops.records import BundleRef
from raymlops.registry.versions import Registry
from raymlops.state.store import Deployment, State
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def machine(tmp_path_factory, mlflow_database):
    """Return a machine on SQLite with one of everything."""
    folder = tmp_path_factory.mktemp("machine") / "home"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield filled(spec_at(folder))


@pytest.fixture(scope="module")
def saved(machine, tmp_path_factory):
    """Return the place of a backup of it, which no test changes, its record, and what the machine had by then."""
    place = tmp_path_factory.mktemp("place")
    return place, backup(machine.spec, to=str(place)), seen(machine.spec)


def new_machine(folder, mlflow_database):
    """Return a configuration of a machine on which MLflow has run and nothing else: making its tables takes seconds."""
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return spec_at(folder)


@pytest.fixture
def empty(tmp_path, mlflow_database):
    return new_machine(tmp_path / "elsewhere", mlflow_database)


@pytest.fixture
def another(tmp_path, mlflow_database):
    return new_machine(tmp_path / "another", mlflow_database)


@pytest.fixture
def serve():
    return FakeServe(dashboard_url="http://dashboard:8265", cpus=8.0)


@pytest.fixture
def place(saved, tmp_path):
    """Return a place of backups of the test's own."""
    return Path(shutil.copytree(saved[0], tmp_path / "place"))


def bundle_uri(spec, machine):
    return f"{spec.storage.path}/bundles/{machine.version.bundle.digest}"


def test_another_machine_has_the_same_and_names_its_own_places(machine, saved, empty):
    """Digests, aliases, audit, keys, metrics, artifacts and trials are equal; every bundle that is named is there."""
    record = restore_backup(empty, uri=str(saved[0]))
    assert seen(empty) == seen(machine.spec)
    assert {ref.uri for ref in bundles_named(empty)} == {bundle_uri(empty, machine)}
    verify(bundle_uri(empty, machine), machine.version.bundle.digest)
    run = tracker(empty).run(machine.version.run_id)
    assert run.data.tags["raymlops.storage_path"] == empty.storage.path
    assert run.info.artifact_uri.startswith(f"{empty.storage.path}/")
    with State.open(databases_of(empty).urls["state"]) as state:
        (event,) = (event for event in state.events() if event.action == "restore")
    assert (event.after["backup"], event.subject) == (record.id, "state")


def test_nobody_but_its_owner_reads_a_backup_and_it_holds_no_secret(machine, saved):
    """The secret of a key is in no file, and each is its owner's alone."""
    files = [path for path in saved[0].rglob("*") if path.is_file()]
    assert [path for path in files if machine.secret.encode() in path.read_bytes()] == []
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    inside = (path for name in ("backups", "bundles") for path in (saved[0] / name).rglob("*") if path.is_dir())
    assert {path.stat().st_mode & 0o777 for path in inside} == {0o700}


def test_what_is_not_empty_is_left_as_it_is(machine, saved):
    """The original itself: what it has is said, and it is the same afterwards."""
    before = seen(machine.spec)
    with pytest.raises(
        RefusedError, match=r"cannot restore: the state database is not empty \(state \w+ with 3 changes, 1 version,"
    ):
        restore_backup(machine.spec, uri=str(saved[0]))
    assert seen(machine.spec) == before


def test_no_other_state_gets_the_original_mlflow_or_optuna(machine, saved, tmp_path):
    """Although they are as they were when the backup was made: two states would move one MLflow's aliases."""
    urls = databases_of(machine.spec).urls
    spec = spec_at(tmp_path / "other", mlflow=urls["mlflow"], optuna=urls["optuna"])
    with pytest.raises(
        RefusedError, match=r"MLflow's database is not empty \(2 .*; Optuna's database is not empty \(1 st"
    ):
        restore_backup(spec, uri=str(saved[0]), as_copy=True)


def test_an_older_backup_beside_what_runs_removes_nothing(machine, saved, empty, serve, another):
    """It is refused on the same Serve; as a copy it is another state, which leaves applications alone."""
    with State.open(databases_of(machine.spec).urls["state"]) as state:
        state.record(action="later", subject="state", why="after the backup")
        converge(state, serve)
        live = dict(serve.live)
        restore_backup(empty, uri=str(saved[0]))
        with State.open(databases_of(empty).urls["state"]) as older, pytest.raises(OutdatedStateError):
            converge(older, serve)
        restore_backup(another, uri=str(saved[0]), as_copy=True)
        with State.open(databases_of(another).urls["state"]) as copy:
            assert copy.owner().id != state.owner().id
            assert MlflowAliases(another, copy.owner()).owned_by(MODEL, 1) is None
            assert [str(error) for error in converge(copy, serve).plan.blocked.values()] != []
    assert serve.live == live


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder, _bundle: (folder / "state.db").write_bytes(b"x"), "state.db is damaged: expected"),
        (lambda folder, _bundle: (folder / "mlflow.db").unlink(), "mlflow.db is damaged: expected a file"),
        (lambda folder, _bundle: (folder / "manifest.json").write_text("{}"), "manifest.json is damaged"),
        (lambda folder, _bundle: (folder / "manifest.json").unlink(), "there is no backup in .*: 1 unfinished"),
        (lambda _folder, bundle: shutil.rmtree(bundle), "expected the manifest of a bundle, got nothing"),
        (lambda _folder, bundle: (bundle / "state.json").write_text("[]"), "state.json: expected"),
    ],
)
def test_nothing_is_restored_of_a_damaged_backup(machine, place, empty, spoil, says):
    """A file that is missing, changed or cut, and a bundle: found before anything is written."""
    (folder,) = (place / "backups").iterdir()
    spoil(folder, place / "bundles" / machine.version.bundle.digest)
    with pytest.raises((RefusedError, BundleError, NotFoundError), match=says):
        restore_backup(empty, uri=str(place))
    assert sorted(path.name for path in Path(empty.storage.path).iterdir()) == ["mlflow.db"]


def test_a_backup_of_a_newer_format_is_refused(place, empty):
    """Its manifest says so; it is renamed by the digest of that."""
    (folder,) = (place / "backups").iterdir()
    manifest = (folder / "manifest.json").read_bytes().replace(b'"format_version": 1', b'"format_version": 9')
    (folder / "manifest.json").write_bytes(manifest)
    folder.rename(folder.with_name(f"{folder.name[:-16]}{hashlib.sha256(manifest).hexdigest()[:16]}"))
    with pytest.raises(StorageError, match="has format 9; this raymlops reads up to 1"):
        restore_backup(empty, uri=str(place))


@pytest.mark.parametrize(
    ("name", "made_by", "says"),
    [
        ("mlflow", "mlflow 9", r"have schema 0, made by mlflow 9; mlflow 3.*, which is installed here, has"),
        ("state", "raymlops 9", r"the backup's state has schema 0, which a newer raymlops made"),
    ],
)
def test_tables_of_another_release_are_refused_by_name(place, empty, name, made_by, says):
    """Before anything is written: what was would be in the way of another backup."""
    (folder,) = (place / "backups").iterdir()
    contents = json.loads((folder / "backup.json").read_text())
    contents["databases"][name] |= {"schema": "0", "made_by": made_by}
    (folder / "backup.json").write_text(json.dumps(contents))
    (folder / "manifest.json").unlink()
    changed = publish(folder, str(place), at=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises((RefusedError, StorageError), match=says):
        restore_backup(empty, uri=str(place), backup_id=changed, dry_run=True)
    with pytest.raises((RefusedError, StorageError), match=says):
        restore_backup(empty, uri=str(place), backup_id=changed)
    assert sorted(path.name for path in Path(empty.storage.path).iterdir()) == ["mlflow.db"]


def test_a_bundle_in_two_places_is_found_by_what_names_either(machine, empty, tmp_path):
    """As after ``storage.path`` was moved: one model names the old place, another the new one."""
    digest = machine.version.bundle.digest
    old = BundleRef(str(shutil.copytree(machine.version.bundle.uri, tmp_path / "old" / digest)), digest)
    url = databases_of(machine.spec).urls["state"]
    with State.open(url) as state:
        put(state, "second", [Deployment("second", 1, old, machine.version.run_id, "champion", {})])
    try:
        record = backup(machine.spec, to=str(tmp_path / "both"))
    finally:
        with State.open(url) as state:
            put(state, "second", [])
    assert (record.bundles, record.left_out) == (1, ())
    restore_backup(empty, uri=str(tmp_path / "both"))
    with State.open(databases_of(empty).urls["state"]) as state:
        assert {item.bundle.uri for item in state.deployments()} == {bundle_uri(empty, machine)}


def test_a_place_that_refuses_names_what_it_refuses(machine, s3):
    """Before anything is read."""
    s3.refuse = lambda method, _path: method in {"PUT", "POST"}
    with pytest.raises(
        StorageError, match=r"no backup was written: .*during CreateMultipartUpload operation: AccessDenied"
    ):
        backup(machine.spec, to=s3.uri("bucket/backups"))


def test_a_bucket_holds_a_backup(machine, empty, s3):
    """Uploaded with its manifest last; a second one to the same place adds no bundle."""
    place = s3.uri("bucket/place")
    assert backup(machine.spec, to=place).new_bundles == 1
    assert [key for key in s3.requests if key.startswith("PUT")][-1].endswith("/manifest.json")
    assert backup(machine.spec, to=place).new_bundles == 0
    restore_backup(empty, uri=place)
    assert seen(empty) == seen(machine.spec)


def test_two_backups_at_once_to_one_place_are_two(machine, tmp_path):
    """Each whole, of one bundle."""
    place = tmp_path / "place"
    pids = [forked(lambda: backup(machine.spec, to=str(place))) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    ids = [path.name for path in (place / "backups").iterdir()]
    assert len(ids) == 2
    for name in ids:
        restore_backup(spec_at(tmp_path / name), uri=str(place), backup_id=name, dry_run=True)
    assert [path.name for path in (place / "bundles").iterdir()] == [machine.version.bundle.digest]


def test_a_lost_bundle_of_what_is_live_is_no_backup(machine, tmp_path):
    """Of a version that is not live it is left out, and said."""
    away = Path(machine.version.bundle.uri).rename(tmp_path / "away")
    try:
        with pytest.raises(BundleError, match="expected the manifest of a bundle, got nothing"):
            backup(machine.spec, to=str(tmp_path / "place"))
        assert list((tmp_path / "place" / "backups").iterdir()) == []
        url = databases_of(machine.spec).urls["state"]
        with State.open(url) as state:
            live = put(state, MODEL, [])
        record = backup(machine.spec, to=str(tmp_path / "place"))
        with State.open(url) as state:
            put(state, MODEL, live.deployments)
    finally:
        away.rename(machine.version.bundle.uri)
    assert (record.bundles, len(record.left_out)) == (0, 1)


def test_a_killed_backup_is_none(machine, tmp_path):
    """There is no backup then, and the next one is whole; a soak kills it at each change."""
    place = tmp_path / "place"
    assert killed_at(place, lambda: backup(machine.spec, to=str(place)), 36)
    with pytest.raises(NotFoundError, match="there is no backup in"):
        restore_backup(spec_at(tmp_path / "new"), uri=str(place))
    backup(machine.spec, to=str(place))
    restore_backup(spec_at(tmp_path / "new"), uri=str(place), dry_run=True)


def test_a_killed_restore_goes_on(saved, empty):
    """The same command ends it, with what was there already; a soak kills it at each change."""
    home = Path(empty.storage.path)
    assert killed_at(home, lambda: restore_backup(empty, uri=str(saved[0])), 24)
    restore_backup(empty, uri=str(saved[0]))
    assert seen(empty) == saved[2]


def cut(monkeypatch, spec, place, *, at="raymlops.state.copies.restore_state", **how):
    """Restore, and end before a step."""
    with monkeypatch.context() as patched:
        patched.setattr(at, unavailable)
        with pytest.raises(StorageError, match="not today"):
            restore_backup(spec, uri=str(place), **how)


def test_a_killed_restore_goes_on_by_name_where_there_is_a_newer_backup(machine, saved, place, empty, monkeypatch):
    """Whose rows would not belong to those that are there; no older one is taken that nobody named."""
    first = place_of_backups(place)
    cut(monkeypatch, empty, place)
    backup(machine.spec, to=str(place))
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=f"the restore of backup {first.name} was not ended(.|\n)*--backup ID"):
            restore_backup(empty, uri=str(place), dry_run=dry_run)
    assert restore_backup(empty, uri=str(place), backup_id=first.name).id == first.name
    assert seen(empty) == saved[2]


def test_what_came_after_a_restore_that_was_given_up_is_not_of_its_backup(place, empty, monkeypatch):
    """Work went on with another state, which is lost later: MLflow has rows that the backup's state does not know."""
    first = place_of_backups(place)
    cut(monkeypatch, empty, place)
    tracker(empty).client.create_experiment("later")
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=r"3 experiments.*was not ended, and its rows are others now"):
            restore_backup(empty, uri=str(place), backup_id=first.name, dry_run=dry_run)
    with pytest.raises(RefusedError, match="not empty"):
        restore_backup(empty, uri=str(place))


def test_a_restore_that_was_cut_after_the_state_is_over(place, empty, monkeypatch):
    """The same command says so, and what it wrote counts as its own from then on; any change of the state ends that."""
    cut(monkeypatch, empty, place, at="raymlops.storage.tables.TableSet.settle")
    steps = []
    record = restore_backup(empty, uri=str(place), on_step=steps.append)
    assert (record.state_id, record.new_bundles) == (seen(empty)["id"], 0)
    assert "no more than files that are gone since is left to write" in steps[1]
    shutil.rmtree(Path(empty.storage.path) / "bundles")
    assert restore_backup(empty, uri=str(place), dry_run=True).new_bundles == 0
    assert restore_backup(empty, uri=str(place)).new_bundles == record.bundles
    with pytest.raises(RefusedError, match="the state database is not empty"):
        restore_backup(empty, uri=str(place), as_copy=True)
    databases_of(empty).file("mlflow").unlink()
    with pytest.raises(RefusedError, match="the state database is not empty"):
        restore_backup(empty, uri=str(place))


def test_the_newest_backup_is_the_one_that_copied_the_databases_last(machine, tmp_path):
    """A long one that began before a short one and ends after it has the older content."""
    place, short = str(tmp_path / "place"), []

    def meanwhile(step):
        if step.startswith("artifacts") and not short:
            short.append(None)
            short[0] = backup(machine.spec, to=place).id

    long = backup(machine.spec, to=place, on_step=meanwhile).id
    assert restore_backup(spec_at(tmp_path / "new"), uri=place, dry_run=True).id == short[0] != long


def second_state(spec, folder):
    """Return the configuration of another state with the same MLflow and Optuna, which has one version live."""
    urls = databases_of(spec).urls
    other = spec_at(folder, mlflow=urls["mlflow"], optuna=urls["optuna"])
    folder.mkdir()
    with State.open(databases_of(spec).urls["state"]) as state:
        live = state.deployments()
    with State.open(databases_of(other).urls["state"]) as state:
        put(state, MODEL, live)
    return other


def test_of_backups_of_several_states_one_is_named(machine, place, empty, tmp_path):
    """The newest may be the other one's: what is said names the state of each, who made it and when."""
    other = second_state(machine.spec, tmp_path / "production")
    newest = backup(other, to=str(place))
    ids = [seen(machine.spec)["id"], *(one.owner().id for one in [State.open(databases_of(other).urls["state"])])]
    with pytest.raises(RefusedError, match="has backups of several states") as caught:
        restore_backup(empty, uri=str(place), dry_run=True)
    for backup_id, state_id in zip(sorted(path.name for path in (place / "backups").iterdir()), ids, strict=True):
        assert f"--backup {backup_id}  state {state_id[:8]}, made by" in str(caught.value)
    asked, steps = [], []
    restore_backup(empty, uri=str(place), backup_id=newest.id, agree=asked.append, on_step=steps.append)
    (which,) = asked
    assert which.startswith(f"backup {newest.id} of state {ids[1][:8]}, made by ")
    assert steps[0].startswith(which)


def test_a_lost_state_comes_back_beside_an_mlflow_that_goes_on(machine, tmp_path):
    """With its id and so its aliases; neither MLflow nor Optuna is changed, and one without what is live is refused."""
    place, other = str(tmp_path / "place"), second_state(machine.spec, tmp_path / "production")
    saved = backup(other, to=place)
    url = databases_of(other).urls["state"]
    with State.open(url) as state:
        before, live = state.owner().id, state.deployments()
        state.record(action="later", subject="state", why="lost")
    databases_of(other).file("state").unlink()
    mlflow = tracker(machine.spec).client
    mlflow.set_registered_model_tag(MODEL, "later", "x")
    with pytest.raises(RefusedError, match=r"MLflow's database is not empty(.|\n)*--state-only"):
        restore_backup(other, uri=place)
    mine = seen(machine.spec)
    elsewhere = other.model_copy(
        update={"storage": other.storage.model_copy(update={"path": str(tmp_path / "x"), "state": url})}
    )
    with pytest.raises(RefusedError, match=r"storage\.path is .*/x: no version could be gated"):
        restore_backup(elsewhere, uri=place, state_only=True)
    for dry_run in (True, False):
        assert restore_backup(other, uri=place, state_only=True, dry_run=dry_run).databases.keys() == {"state"}
    with State.open(url) as state:
        assert (state.owner().id, [item.bundle.digest for item in state.deployments()]) == (
            before,
            [item.bundle.digest for item in live],
        )
    assert seen(machine.spec) == mine
    assert mlflow.get_registered_model(MODEL).tags["later"] == "x"
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=r"MLflow has no such version, and it is live(.|\n)*tracking\.uri"):
            restore_backup(spec_at(tmp_path / "new"), uri=place, backup_id=saved.id, state_only=True, dry_run=dry_run)
    with pytest.raises(UsageError, match="exclude each other"):
        restore_backup(other, uri=place, state_only=True, as_copy=True)


@pytest.mark.parametrize("as_copy", [False, True])
def test_the_aliases_of_a_copy_are_nobody_s(machine, place, empty, monkeypatch, as_copy):
    """Whoever had them, and although a restore that was cut was to be none: no other state looks at its MLflow."""
    registry = Registry(tracker(machine.spec))
    mine = registry.owner(MODEL)
    registry.set_owner(MODEL, "another (made by somebody)")
    try:
        saved = backup(machine.spec, to=str(place)).id
    finally:
        registry.set_owner(MODEL, mine)
    cut(monkeypatch, empty, place, as_copy=as_copy)
    restore_backup(empty, uri=str(place), backup_id=saved, as_copy=True)
    assert Registry(tracker(empty)).owner(MODEL) == ""


def test_a_restore_goes_on_where_it_was_killed_while_optuna_made_its_tables(saved, empty):
    """Which it does one by one: some are there, and nothing in them."""
    from optuna.storages._rdb.models import StudyModel, TrialModel

    engine = sa.create_engine(databases_of(empty).urls["optuna"])
    for table in (StudyModel.__table__, TrialModel.__table__):
        table.create(engine)
    engine.dispose()
    restore_backup(empty, uri=str(saved[0]))
    assert seen(empty) == saved[2]


def test_what_was_restored_is_no_part_of_a_restore_any_more(saved, empty):
    """Its state is lost later: MLflow has gone on since, and is not taken for what the backup left."""
    restore_backup(empty, uri=str(saved[0]))
    databases_of(empty).file("state").unlink()
    with pytest.raises(RefusedError, match="MLflow's database is not empty"):
        restore_backup(empty, uri=str(saved[0]))


def unavailable(*_args, **_kwargs):
    raise StorageError("not today")


def place_of_backups(place):
    """Return the folder of the only backup in a place."""
    (folder,) = (place / "backups").iterdir()
    return folder


def test_the_storage_itself_is_no_place_for_backups(machine, tmp_path):
    """They would be lost with it."""
    with pytest.raises(UsageError, match=r"is storage\.path itself: a backup in it is lost with it"):
        backup(machine.spec, to=f"{machine.spec.storage.path}/")
    link = tmp_path / "link"
    link.symlink_to(machine.spec.storage.path)
    with pytest.raises(UsageError, match=r"is storage\.path itself"):
        backup(machine.spec, to=str(link))


def test_a_disk_for_temporary_files_without_room_is_named(place, empty, monkeypatch):
    """It is not the place, and not the storage, that has none."""
    monkeypatch.setattr("raymlops.storage.filesystem._free_bytes", lambda _folder: 0)
    with pytest.raises(StorageError, match=r"has 0.0 MB free, .* MB are needed\n.*TMPDIR"):
        restore_backup(empty, uri=str(place))


def test_a_damaged_copy_in_the_place_is_named_with_what_mends_it(machine, place):
    """The bundle itself is whole."""
    (copy,) = (place / "bundles").iterdir()
    (copy / "state.json").write_text("")
    with pytest.raises(BundleError, match=f"the copy that is there is damaged: .*\n.*Move {copy} away"):
        backup(machine.spec, to=str(place))


def flip(path):
    """Change a byte of a file, and not its size."""
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def test_a_copy_with_a_changed_byte_is_found_by_reading_it(machine, place):
    """And written again once it is moved away."""
    (copy,) = (place / "bundles").iterdir()
    flip(copy / "state.json")
    assert backup(machine.spec, to=str(place)).new_bundles == 0
    with pytest.raises(BundleError, match=f"the copy that is there is damaged: .*\n.*Move {copy} away"):
        backup(machine.spec, to=str(place), verify=True)
    copy.rename(place / "away")
    assert backup(machine.spec, to=str(place), verify=True).new_bundles == 1


def test_what_is_in_the_way_of_files_is_found_before_anything_is_written(machine, saved, empty):
    """A bundle that is there and damaged, and a file where a folder belongs; by a dry run too."""
    home = Path(empty.storage.path)
    there = Path(shutil.copytree(machine.version.bundle.uri, bundle_uri(empty, machine)))
    flip(there / "state.json")
    for dry_run in (True, False):
        with pytest.raises(BundleError, match=f"the copy that is there is damaged: {there}/state.json"):
            restore_backup(empty, uri=str(saved[0]), dry_run=dry_run)
    shutil.rmtree(home / "bundles")
    (home / "mlartifacts").write_text("")
    for dry_run in (True, False):
        with pytest.raises(StorageError, match=f"cannot be made: '{home}/mlartifacts' is a file"):
            restore_backup(empty, uri=str(saved[0]), dry_run=dry_run)
    assert sorted(path.name for path in home.iterdir()) == ["mlartifacts", "mlflow.db"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _home, path: path.write_text("other"), "is there and is another file: expected"),
        (lambda _home, path: path.mkdir(), "is there and is a folder, and a file belongs there"),
        (lambda _home, path: (path.parent.rmdir(), path.parent.write_text("")), "is a file"),
        (lambda home, _path: (home / "bundles").write_text(""), "bundles' is a file"),
    ],
)
def test_what_is_in_the_way_of_a_file_is_found_before_anything_is_written(machine, saved, empty, spoil, says):
    """Of a run, and of the bundle that a version's MLflow model has."""
    home, old = Path(empty.storage.path), Path(machine.spec.storage.path)
    artifacts = Path(tracker(machine.spec).run(machine.version.run_id).info.artifact_uri)
    for name in ("config/resolved.yaml", "**/manifest.json"):
        (path,) = artifacts.glob(name)
        target = home / path.relative_to(old)
        target.parent.mkdir(parents=True)
        spoil(home, target)
        before = sorted(home.rglob("*"))
        for dry_run in (True, False):
            with pytest.raises((RefusedError, StorageError), match=says):
                restore_backup(empty, uri=str(saved[0]), dry_run=dry_run)
        assert sorted(home.rglob("*")) == before
        shutil.rmtree(home / "mlartifacts")
        (home / "bundles").unlink(missing_ok=True)


def test_links_among_artifacts_are_left_out_and_said(machine, tmp_path):
    """They may lead to any file of the machine, or to themselves."""
    artifacts = Path(tracker(machine.spec).run(machine.version.run_id).info.artifact_uri)
    links = {"config/again": artifacts, "passwd": Path("/etc/passwd")}
    for name, target in links.items():
        (artifacts / name).symlink_to(target)
    try:
        record = backup(machine.spec, to=str(tmp_path / "place"))
    finally:
        for name in links:
            (artifacts / name).unlink()
    said = f"artifacts of run {machine.version.run_id}"
    assert record.left_out == tuple(f"{said}: {name} is a link, which is not followed" for name in sorted(links)[::-1])
    (folder,) = (tmp_path / "place" / "backups").iterdir()
    kept = [path.name for path in (folder / "artifacts").rglob("*")]
    assert "again" not in kept
    assert "passwd" not in kept


@NEEDS_POSTGRES
def test_postgres_to_sqlite_and_back(tmp_path, saved, empty):
    """The state, MLflow and Optuna on a server; each counts on from what was restored, and no password is written."""
    server, place, before = tmp_path / "server", tmp_path / "place", saved[2]
    server.mkdir()
    with postgres(server) as url:
        where = {name: database(url, f"of_{name}") for name in ("state", "mlflow", "optuna")}
        served = spec_at(tmp_path / "served", **where)

        def there_and_back():
            restore_backup(served, uri=str(saved[0]))
            assert seen(served) == before
            tracker(served).client.create_experiment("one more")
            with State.open(where["state"]) as state:
                state.record(action="later", subject="state", why="counts on")
                numbers = [event.id for event in state.events()]
                assert numbers == list(range(numbers[0], 0, -1))
            backup(served, to=str(place))

        # In a process of its own: the server waits for its clients, and MLflow keeps its connections.
        assert os.waitpid(forked(there_and_back), 0)[1] == 0
    assert [path for path in place.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    restore_backup(empty, uri=str(place))
    assert seen(empty) == before


def database(url, name):
    """Make a database on a server, and return its URL."""
    url = url.replace("postgresql:", "postgresql+psycopg:")
    with sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    return url.removesuffix("/postgres") + f"/{name}"

"""What a backup says of itself, and how places move: pure."""

import pytest

from raymlops.errors import RefusedError, StorageError
from raymlops.lifecycle.backup.contents import Contents, Move, Saved, check_schema, to_copy
from raymlops.records import BundleRef
from raymlops.storage.tables import moved_in

MOVE = Move(
    {"/old/bundles/d": "s3://new/bundles/d?region=x"},
    [("/old", "/home/two words"), ("/old/inner", "/inner"), ("s3://b/a?region=x", "/disk"), ("s3://c/a", "s3://d/e")],
)


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("/old", "/home/two words"),
        ("/old/mlartifacts/1", "/home/two words/mlartifacts/1"),
        ("file:///old/mlartifacts/1", "file:///home/two%20words/mlartifacts/1"),
        ("/old/inner/file", "/inner/file"),
        ("/older/file", "/older/file"),
        ("in /old/file", "in /old/file"),
        ("/old/bundles/d", "s3://new/bundles/d?region=x"),
        ("/old/what?file", "/home/two words/what?file"),
        ("s3://b/a/runs/r?region=x", "/disk/runs/r"),
        ("s3://c/a/runs", "s3://d/e/runs"),
        ("s3://c/another", "s3://c/another"),
        ("", ""),
    ],
)
def test_a_place_moves_with_the_folder_that_it_is_in(text, moved):
    """The innermost one counts, a bundle before all, and nothing else is touched."""
    assert MOVE(text) == moved


def test_places_within_json_move_too():
    """In mappings and lists, and in JSON that is stored as text, which stays to the byte where nothing moves."""
    assert moved_in({"a": [{"uri": "/old/x"}, 1, None]}, MOVE) == {"a": [{"uri": "/home/two words/x"}, 1, None]}
    assert moved_in('{"a":  "/old/x"}', MOVE) == '{"a": "/home/two words/x"}'
    assert moved_in('{"a":  "/b"}', MOVE) == '{"a":  "/b"}'
    assert moved_in("[no JSON", MOVE) == "[no JSON"


def test_a_bundle_has_each_place_that_is_named_first_where_it_is_live():
    """Versions may name another copy of it; a version of MLflow's that the state does not know counts too."""
    here, there, late = BundleRef("/z/here", "a"), BundleRef("/there", "a"), BundleRef("/late", "b")
    needed, live = to_copy([here], [there, here], [late, BundleRef("", "c")])
    assert (needed, live) == ({"a": [here, there], "b": [late]}, frozenset({"a"}))


def test_tables_of_another_release_are_refused_with_its_name():
    """And the command that installs it."""
    with pytest.raises(RefusedError, match=r"schema 1, made by mlflow 3.1; mlflow 3.2, which is installed") as caught:
        check_schema(Saved("1", "mlflow 3.1", 0), ("2", "mlflow 3.2"), what="MLflow")
    assert "pip install 'mlflow==3.1'" in str(caught.value)


def test_contents_that_lack_something_are_damaged():
    """It is named."""
    with pytest.raises(StorageError, match=r"backup\.json of the backup is damaged: KeyError: 'made_at'"):
        Contents.from_dict({})

import pickle

import pytest

import raymlops.errors
from raymlops import arrays
from raymlops.errors import (
    MAX_PROBLEMS,
    ConfigError,
    GateRefusedError,
    InvalidRowsError,
    Problem,
    RaymlopsError,
    RowProblem,
    StorageError,
    UsageError,
)
from raymlops.predictions import labels


def every_class(base=RaymlopsError):
    return [base, *(found for child in base.__subclasses__() for found in every_class(child))]


def example(cls):
    if issubclass(cls, ConfigError):
        return cls([Problem("train.lr", "got 0; above 0", "a.yaml:1:2"), Problem("", "is empty")], hint="look")
    if issubclass(cls, InvalidRowsError):
        return cls([RowProblem(3, "dest", "is missing"), RowProblem(None, None, "is empty")])
    return cls("what happened", hint="what to do")


def test_a_full_disk_is_no_mistake_of_the_command_line():
    """Hour 30 of a run does not end in the exit code of a wrong option."""
    assert (StorageError("no space left").exit_code, issubclass(StorageError, UsageError)) == (5, False)


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls):
    """Type, text and attributes arrive: otherwise Ray gives UnserializableException and no except fires."""
    error = example(cls)
    error.extra = {"rows": 3}
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_the_tree_in_the_docstring_is_complete():
    """Every class is drawn, with the exit code that it means or inherits."""
    code = None
    drawn = {}
    for line in raymlops.errors.__doc__.splitlines():
        words = line.strip("│├└─ ").split()
        if words and words[0].endswith("Error"):
            code = int(words[1]) if words[1].isdigit() else code
            drawn[words[0]] = code
    ours = {cls.__name__: cls.exit_code for cls in every_class() if cls.__module__ == "raymlops.errors"}
    assert drawn == ours


def test_text_is_message_and_hint():
    """The hint stands on a line of its own, where there is one."""
    assert str(UsageError("no", hint="do")) == "no\n  do"
    assert str(GateRefusedError("no")) == "no"


def test_config_error_lists_every_problem():
    """One line a problem: place, path, message; what is not known is left out."""
    error = example(ConfigError)
    assert error.message == "a.yaml:1:2: train.lr: got 0; above 0\nis empty"


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([RowProblem(3, "dest", "is missing")], "row 3, field 'dest': is missing"),
        ([RowProblem(None, "x", "unknown")], "field 'x': unknown"),
        ([RowProblem(None, None, "empty"), RowProblem(1, "x", "bad")], "empty (and 1 more)"),
        ([RowProblem(row, None, "bad") for row in range(19)], "row 0: bad (and 18 more)"),
        ([RowProblem(row, None, "bad") for row in range(20)], "row 0: bad (and at least 19 more)"),
    ],
)
def test_rows_error_names_row_and_field(problems, message):
    """The first problem is told, the others are counted."""
    assert InvalidRowsError(problems).message == message


def test_as_many_problems_as_are_looked_for_may_be_more():
    """Whoever checks rows stops at the number that the message knows of."""
    assert {arrays.MAX_PROBLEMS, labels.MAX_PROBLEMS} == {MAX_PROBLEMS}

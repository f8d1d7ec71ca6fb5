import json
import math
from dataclasses import dataclass, field

import pytest

from raymlops.records import (
    BundleRef,
    DataRecord,
    GateCheck,
    GateDecision,
    ModelVersionRef,
    Record,
    SweepRecord,
    TrialRecord,
    to_json,
)


def test_a_record_is_plain_json_and_comes_back_equal():
    """A flat record survives JSON; keys that a newer version wrote are ignored."""
    record = TrialRecord(3, {"train.lr": 0.1}, "complete", 0.7, epochs=2, metrics={"validation/auc": 0.7})
    data = json.loads(json.dumps(record.to_dict()))
    assert TrialRecord.from_dict({**data, "from_the_future": 1}) == record


def test_nested_records_become_plain_data():
    """A reference inside a record is written as a mapping."""
    ref = ModelVersionRef("flights", 7, "abc", BundleRef("file:///x", "00"), ("champion",))
    assert ref.to_dict()["bundle"] == {"uri": "file:///x", "digest": "00"}


def test_records_cannot_be_changed():
    """What happened stays as it was recorded."""
    with pytest.raises(AttributeError):
        DataRecord("00", {"train": 1}).fingerprint = "11"


def test_a_decision_says_why():
    """A refusal names what failed with its numbers; a pass counts the checks."""
    good = GateCheck("auc", passed=True, got=0.8, allowed="at least 0.7")
    bad = GateCheck("log_loss", passed=False, got=0.9, allowed="at most 0.5")
    assert GateDecision(passed=False, checks=(good, bad)).reason == "log_loss: got 0.9, allowed at most 0.5"
    none = GateCheck("answers requests", passed=False, got=None, allowed="2 rows answered", detail="decode() raised")
    assert GateDecision(passed=False, checks=(none,)).reason == (
        "answers requests: got None, allowed 2 rows answered: decode() raised"
    )
    assert GateDecision(passed=True, checks=(good, good)).reason == "2 checks passed"


def test_a_record_is_shown_in_a_few_lines():
    """A sweep of many trials in a notebook: a line a field, nested values in short, empty ones left out."""
    trial = TrialRecord(3, {"train.lr": 0.0123456}, "complete", 0.7, metrics={f"m{n}": 0.1 for n in range(99)})
    record = SweepRecord("s1", "flights", "st", "sqlite", "auc", "max", (trial,) * 500, trial, "/s/best.yaml", 3.0)
    lines = str(record).splitlines()
    assert lines[6] == "trials      500 entries"
    assert lines[7].startswith("best        number 3, params train.lr 0.012346, status complete, value 0.7, ")
    assert len(lines) == 11
    assert max(map(len, lines)) < 140
    assert record._repr_html_().count("<tr>") == 11
    assert "TrialRecord(number=3" in repr(record)


def test_what_repr_hides_is_not_shown():
    """Such as the secret of a new key, which only its owner prints."""

    @dataclass(frozen=True)
    class Key(Record):
        name: str
        secret: str = field(repr=False)

    @dataclass(frozen=True)
    class Change(Record):
        key: Key

    shown = str(Change(Key("ann", "s3cret"))) + Key("ann", "s3cret")._repr_html_()
    assert "ann" in shown
    assert "s3cret" not in shown


def test_json_has_no_nan():
    """A metric that is not a number is null at any depth, and everything else stays."""
    data = {"metrics": {"a": math.nan, "b": 0.5}, "history": (math.inf, [-math.inf, 1, True, None])}
    assert json.loads(to_json(data)) == {
        "schema_version": 1,
        "metrics": {"a": None, "b": 0.5},
        "history": [None, [None, 1, True, None]],
    }

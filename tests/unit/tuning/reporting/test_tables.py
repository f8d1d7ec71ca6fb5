"""What rows of the report say."""

from __future__ import annotations

import math

from raymlops.records import Objective, TrialRecord
from raymlops.tuning.reporting import tables

AUC = (Objective("validation/auc", "max"),)


def record(number, status="complete", value=0.5, **details):
    return TrialRecord(number=number, params=details.pop("params", {}), status=status, value=value, **details)


def test_whole_trials_come_before_those_that_break_a_constraint_or_were_stopped_or_failed():
    records = [
        record(0, "failed", None),
        record(1, "pruned", 0.99),
        record(2, value=0.98, feasible=False),
        record(3, value=0.7),
        record(4, value=0.8),
        record(5, value=math.nan),
    ]
    assert [trial.number for trial in tables.ranked(records, objectives=AUC)] == [4, 3, 1, 2, 5, 0]


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_runners_up_show_their_distance_and_what_is_set_differently():
    order = [
        record(4, value=0.9, params={"train.lr": 0.1, "recipe.config.hidden": 64}),
        record(2, value=0.875, params={"train.lr": 0.1, "recipe.config.hidden": 32}),
        record(3, value=0.8, params={"train.lr": 0.1}),
    ]
    table = tables.top(order, objectives=AUC, params=["train.lr", "recipe.config.hidden"])
    assert table.head == ["trial", "validation/auc", "difference", "epochs", "duration", "train.lr", "hidden"]
    assert texts(table)[1] == ["2", "0.875", "−0.025", "0", "0 s", "0.1", "32"]  # noqa: RUF001 - a minus sign
    marked = [cell.text for row in table.rows for cell in row if cell.mark]
    assert marked == ["32", "–"]  # noqa: RUF001 - hidden of 2, and of 3, which has none


def test_no_more_than_five_are_compared():
    table = tables.top([record(number) for number in range(9)], objectives=AUC, params=[])
    assert len(table.rows) == tables.TOP


def test_failures_that_differ_in_numbers_alone_are_one_reason():
    records = [record(number, "failed", None, reason=f"loss is NaN at step {number}") for number in (3, 4, 5, 9)]
    table = tables.failures([*records, record(1, "failed", None, reason="MemoryError"), record(2)])
    assert texts(table) == [["4", "loss is NaN at step 3", "3, 4, 5, 9"], ["1", "MemoryError", "1"]]


def test_a_long_reason_is_folded():
    reason = "ValueError: <b>\n  Traceback </script>"
    ((_, cell, _),) = tables.failures([record(0, "failed", None, reason=reason)]).rows
    assert (cell.text, cell.detail) == ("ValueError: <b>", reason)


def test_a_sweep_without_failures_has_no_table_of_them():
    details = {"objectives": AUC, "params": [], "front": (), "constrained": False}
    assert list(tables.tables_of([record(0)], best=None, **details)) == ["trials"]


def test_more_trials_than_a_page_holds_are_cut_with_a_word():
    order = [record(number) for number in range(tables.MAX_ROWS + 1)]
    table = tables.everything(order, objectives=AUC, params=[], front=(), constrained=False)
    assert len(table.rows) == tables.MAX_ROWS
    assert "The best 1,000 of 1,001 trials" in table.caption


def test_a_trial_of_another_sweep_names_it():
    order = [record(0, carried_from="abc/7")]
    table = tables.everything(order, objectives=AUC, params=[], front=(), constrained=False)
    assert table.rows[0][0].note == "from abc/7"


def test_values_of_several_objectives_and_constraints_have_columns():
    objectives = (*AUC, Objective("validation/cost", "min"))
    order = [record(0, value=0.9, values=(0.9, 7.0)), record(1, value=0.8, values=(0.8, 9.0), feasible=False)]
    table = tables.everything(order, objectives=objectives, params=[], front=(0,), constrained=True)
    assert [table.head[column] for column in (2, 3, 6, 7)] == [
        "validation/auc",
        "validation/cost",
        "beaten",
        "constraints",
    ]
    rows = texts(table)
    assert [rows[0][column] for column in (2, 3, 6, 7)] == ["0.9", "7", "by none", "kept"]
    assert rows[1][7] == "broken"

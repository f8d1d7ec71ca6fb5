"""What is found in a recipe's splits before a run: what is wrong for certain is refused, the rest is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sourced
import torch
from tiny import make_table
from torch.utils.data import TensorDataset

from raymlops.arrays import Column
from raymlops.config.data import CHECKS, ChecksSection
from raymlops.data.prepare import Memory, Prepared, prepare
from raymlops.data.sources import Source
from raymlops.errors import DataRefusedError, UsageError
from raymlops.recipe import RecipeBase
from raymlops.records import to_json
from raymlops.signature import Signature
from raymlops.training.data_checks import read
from raymlops.training.data_checks.gate import blaming_data, check_data
from raymlops.training.first_loss import NonFiniteLossError


class Model(RecipeBase):
    """Reads a number that may be missing and a text."""

    label = "y"

    def signature(self) -> Signature:
        inputs = (Column("x", "float", nullable=True), Column("kind", "string", nullable=True))
        return Signature(inputs, (Column("p", "float"),))


def rows(number: int, seed: int, **others: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=number)
    kind = np.array(rng.choice(["a", "b"], number), object)
    return {"x": x, "kind": kind, "y": (x > 0).astype(float), **others}


def prepared_of(recipe: type[RecipeBase] = Model, **tables: Any) -> Prepared:
    """Return splits of 2,000, 500 and 400 rows, but for those that are given."""
    splits = {"train": rows(2000, 1), "validation": rows(500, 2), "test": rows(400, 3)} | tables
    made = recipe()
    opened = {name: Source(name, table, Memory()).split(made) for name, table in splits.items()}
    return Prepared(made, opened, {})


def told(prepared: Prepared, **section: Any) -> dict[str, str]:
    """Return the warnings by their check."""
    lines: list[str] = []
    assert check_data(prepared, ChecksSection(**section), notice=lines.append) is not None
    found: dict[str, str] = {}
    for line in lines:
        check = line.removeprefix("data check ").partition(":")[0]
        found[check] = "\n".join([*([found[check]] if check in found else []), line])
    return found


def refusal(prepared: Prepared, **section: Any) -> str:
    with pytest.raises(DataRefusedError) as caught:
        check_data(prepared, ChecksSection(**section), notice=print)
    assert caught.value.exit_code == 4
    return f"{caught.value.message}\n{caught.value.hint}"


def test_good_data_is_told_nothing() -> None:
    """Neither random splits nor shipped data are; what was read is on record all the same."""
    prepared = prepared_of()
    found = check_data(prepared, ChecksSection(), notice=pytest.fail, clock=lambda: 0.0)
    assert found is not None
    assert found.findings == ()
    assert found.splits["train"]["read"] == found.splits["train"]["rows"] == 2000
    data = json.loads(to_json(found.to_dict()))
    assert set(data["splits"]["test"]["label"]["classes"]) == {"0.0", "1.0"}


@pytest.mark.parametrize("recipe", ["digits", "tiny"])
def test_data_of_recipes_is_told_nothing(tiny_project: Any, recipe: str) -> None:
    """Images, and a table with missing values and a category that validation alone has."""
    names = {"digits": "raymlops.recipes.digits:Digits", "tiny": "tiny:Tiny"}
    own = {"train_rows": 2000, "validation_rows": 501} if recipe == "tiny" else None
    project = tiny_project(config=own) if own else tiny_project(more={"recipe": {"import": names[recipe]}})
    check_data(prepare(project), ChecksSection(), notice=pytest.fail, clock=lambda: 0.0)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_table_that_is_both_train_and_validation_is_refused(shuffled: bool) -> None:
    """In whatever order its rows are; and not where it is configured to be a warning."""
    table = rows(300, 5)
    order = np.random.default_rng(0).permutation(300) if shuffled else np.arange(300)
    prepared = prepared_of(train=table, validation={name: values[order] for name, values in table.items()})
    message = refusal(prepared)
    assert "data check same_rows: the validation split and the train split are the same 300 rows" in message
    assert "data.checks.severity.same_rows=warn" in message
    assert list(told(prepared, severity={"same_rows": "warn"})) == ["same_rows"]


def test_a_test_split_that_is_the_validation_split_is_a_warning() -> None:
    """Where there is no third split, that is done on purpose."""
    table = rows(300, 5)
    prepared = prepared_of(validation=table, test=table)
    assert list(told(prepared)) == ["same_rows"]
    assert "the test split and the validation split" in refusal(prepared, severity={"same_rows": "refuse"})


def test_rows_of_train_in_validation_are_told() -> None:
    """A tenth of 500: by value, whatever other columns the tables have."""
    train = rows(2000, 1, id=np.arange(2000))
    validation = rows(500, 2)
    for name, values in validation.items():
        values[:50] = train[name][:50]
    line = told(prepared_of(train=train, validation=validation))["leakage"]
    assert "10.00% of the validation rows are train rows too, more than 1.00% (max_leakage)" in line
    assert "10.00% of the validation rows" in refusal(
        prepared_of(train=train, validation=validation), severity={"leakage": "refuse"}
    )


def test_a_part_of_train_estimates_what_is_shared() -> None:
    """200 of 2,000 rows are read, of which validation has a tenth: the share is divided by the tenth that is read."""
    train = rows(2000, 1)
    validation = {name: values[:1000] for name, values in train.items()}
    line = told(prepared_of(train=train, validation=validation), rows=500)["leakage"]
    assert "about " in line


def test_rows_that_repeat_are_told_with_what_that_says_of_leakage() -> None:
    """Ten different rows a hundred times: nearly every row of validation is one of them, by chance."""
    table = {name: np.tile(values[:10], 100) for name, values in rows(10, 1).items()}
    validation = {name: values[::-1][:50] for name, values in table.items()}
    found = told(prepared_of(train=table, validation=validation))
    assert "100.0% of the train rows are there more than once" in found["duplicates"]
    assert "unless rows are equal by chance: 100.0% of the train rows" in found["leakage"]


def test_labels_that_are_missing_or_one_are_refused() -> None:
    """Both make nothing to learn; `target` may have a use for missing ones."""
    gone = rows(500, 2)
    gone["y"][:5] = np.nan
    assert "the label 'y' is missing in 1.00% of the validation rows, of which target() gives nan" in refusal(
        prepared_of(validation=gone)
    )

    class Filled(Model):
        def target(self, columns: Any) -> torch.Tensor:
            return torch.as_tensor(np.nan_to_num(columns["y"], nan=0.5))

    assert told(prepared_of(Filled, validation=gone)) == {}
    same = rows(2000, 1)
    same["y"][:] = 1.0
    assert "the label 'y' is 1.0 in all 2,000 rows of train" in refusal(prepared_of(train=same))
    assert "in all 200 rows of train that were read" in told(prepared_of(train=same), rows=200)["label_values"]

    class Weighted(Model):
        def target(self, columns: Any) -> torch.Tensor:
            return torch.as_tensor(columns["y"] * columns["x"])

    assert "label_values" not in told(prepared_of(Weighted, train=same))


def test_a_first_loss_of_missing_labels_is_told_as_such() -> None:
    """Of what else there is the loss itself is told, at no cost, and of a run that is resumed."""
    gone = rows(2000, 1)
    gone["y"][:7] = np.nan
    on, lost = ChecksSection(), NonFiniteLossError("loss() is nan on the first rows of train")

    def tried(prepared: Prepared, section: ChecksSection | None = on, error: Exception = lost) -> None:
        with blaming_data(prepared, section):
            raise error

    with pytest.raises(DataRefusedError, match=r"label_values: the label 'y' is missing in 0\.35% of the train rows"):
        tried(prepared_of(train=gone))
    with pytest.raises(NonFiniteLossError):
        tried(prepared_of(train=gone), None)
    with pytest.raises(NonFiniteLossError):
        tried(prepared_of())
    with pytest.raises(UsageError, match="other"):
        tried(prepared_of(train=gone), error=UsageError("other"))


def test_labels_unlike_those_of_train_are_told() -> None:
    """Classes by total variation, numbers by their distribution function; a class that train never has is named."""
    other = rows(500, 2)
    other["y"] = np.where(np.arange(500) < 300, 2.0, other["y"])
    assert "train never has 2.0" in told(prepared_of(validation=other))["label_shift"]
    prices = {name: rows(n, n) | {"y": np.random.default_rng(n).normal(at, 1, n)} for name, n, at in _PRICES}
    line = told(prepared_of(**prices), severity={"label_as_input": "off"})["label_shift"]
    assert line.startswith("data check label_shift: the labels of test are 0.")


_PRICES = (("train", 2000, 0.0), ("validation", 500, 0.0), ("test", 400, 2.0))


def test_an_input_that_is_the_label_is_told() -> None:
    """Not where nearly all labels are one."""
    table = {name: rows(n, n) for name, n, _ in _PRICES}
    for each in table.values():
        each["x"] = each["y"].copy()
    assert "the label 'y' equals an input in every row: x" in refusal(prepared_of(**table))
    for each in table.values():
        each["x"][:] = each["y"][:] = 0.0
        each["x"][:3] = each["y"][:3] = 1.0
    assert "label_as_input" not in told(prepared_of(**table))


def test_inputs_are_compared_with_train() -> None:
    """One value alone, nothing at all, another unit and unknown texts."""
    train, other = rows(2000, 1), rows(500, 2)
    train["kind"][:] = "a"
    other["kind"][:100] = "zz"
    other["x"] *= 100
    found = told(prepared_of(train=train, validation=other))
    assert found["constant"].endswith("inputs with one value in all 2,000 rows of train that were looked at: kind")
    assert "texts that train has not, or hardly: kind" in found["new_categories"]
    assert "validation values, outside of what train has: x 9" in found["out_of_range"]
    other["x"] = np.full(500, np.nan)
    assert (
        "validation values, missing: x 100.0%, more than 95.0% (max_nulls)"
        in told(prepared_of(validation=other))["nulls"]
    )


def test_configured_bounds_refuse_in_any_row_of_any_split() -> None:
    """One row of 2,000 is enough; a name that is no input is a mistake."""
    train = rows(2000, 1)
    train["x"][1234], train["kind"][77], train["x"][5] = 50.0, "q", np.nan
    section = {"columns": {"x": {"max": 10.0, "max_nulls": 0.0}, "kind": {"values": ["a", "b"]}}}
    message = refusal(prepared_of(train=train), **section)
    assert "x in train is missing in 0.05% of the rows, more than 0.00% (max_nulls)" in message
    assert "x in train is 50, above 10 (max)" in message
    assert "kind in train has 'q'" in message
    check_data(prepared_of(), ChecksSection(**section), notice=pytest.fail, clock=lambda: 0.0)
    with pytest.raises(UsageError, match="names 'z', no input of the signature"):
        check_data(prepared_of(), ChecksSection(columns={"z": {}}), notice=print)


def test_few_rows_are_told_and_checks_can_be_off() -> None:
    """By name or altogether, which reads nothing."""
    prepared = prepared_of(test=rows(7, 3))
    assert "the test split has 7 rows, fewer than 30 (min_rows)" in told(prepared)["rows"]
    assert told(prepared, severity={"rows": "off"}) == {}
    assert told(prepared, severity={"all": "off", "rows": "warn"}).keys() == {"rows"}
    assert check_data(prepared, ChecksSection(severity={"all": "off"}), notice=print) is None
    assert {ChecksSection().severity_of(check) for check in CHECKS} == {"warn", "refuse"}


def test_streamed_files_are_read_as_far_as_asked_for(tiny_project: Any, tmp_path: Any) -> None:
    """Evenly spread row groups of them, and every row of smaller tables; a shared row is found in the other kind."""
    table = make_table(601, seed=7)
    path = sourced.write_parquet(
        tmp_path / "train", {name: values[:300] for name, values in table.items()}, files=3, row_group_rows=16
    )
    project = tiny_project(recipe="sourced:FromParquet", config={"path": path})
    prepared = prepare(project, memory=Memory(whole_bytes=0, cache_bytes=4000))
    found = check_data(prepared, ChecksSection(rows=100), notice=print)
    assert found is not None
    # 7 of 21 row groups, one of which has but the last 4 rows of its file.
    assert (found.splits["train"]["read"], found.splits["train"]["rows"]) == (6 * 16 + 4, 300)
    whole = check_data(prepared, ChecksSection(), notice=print)
    assert whole is not None
    assert whole.splits["train"]["read"] == 300
    validation = Source("validation", {name: values[:60] for name, values in table.items()}, Memory())
    leaking = replace(prepared, splits=prepared.splits | {"validation": validation.split(prepared.recipe)})
    assert "100.00% of the validation rows are train rows too" in told(leaking)["leakage"]


@pytest.mark.parametrize("asked_for", [None, 3000])
def test_a_sorted_panel_is_sampled_fairly(monkeypatch: pytest.MonkeyPatch, asked_for: int | None) -> None:
    """40 kinds in turn, of which every 80th or 40th row would be one: no split has a kind that train has not.

    Of 120,000, 60,000 and 40,000 rows 3,000 are read, or all, and of them 1,000 looked at.
    """
    monkeypatch.setattr(read, "LOOKED_AT", 1000)

    def panel(number: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        kind = np.roll(np.tile(np.array([f"S{one:02d}" for one in range(40)], object), number // 40), seed)
        return {"x": rng.normal(size=number), "kind": kind, "y": rng.integers(0, 2, number).astype(float)}

    tables = {"train": panel(120_000, 1), "validation": panel(60_000, 2), "test": panel(40_000, 3)}
    assert told(prepared_of(**tables), rows=asked_for) == {}


def test_tensors_in_memory_are_compared_and_other_items_where_asked_for() -> None:
    """Items that take long to read are not, unless ``rows`` says how many."""
    train = torch.arange(300.0).reshape(100, 3)
    shared = TensorDataset(torch.cat([train[:20], train[:20] + 0.5]))

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return (shared[index][0],)

    tensors = {"train": TensorDataset(train), "validation": shared, "test": Slow()}
    prepared = prepared_of(**tensors)
    assert "50.00% of the validation rows are train rows too" in told(prepared)["leakage"]
    every = refusal(prepared, rows="all", severity={"leakage": "refuse"}).splitlines()
    assert sum("data check leakage" in line for line in every) == 2
    assert sum("same_rows: the test split and the validation split" in line for line in every) == 1


class Everything(RecipeBase):
    """Reads what a request may hold beside numbers and text."""

    label = "kind"

    def signature(self) -> Signature:
        inputs = (
            Column("file", "bytes", nullable=True),
            Column("at", "datetime", nullable=True),
            Column("series", "float", shape=(None,)),
            Column("pixels", "image", shape=(2, 2, 1)),
            Column("flag", "bool"),
            Column("count", "int", nullable=True),
        )
        return Signature(inputs, (Column("p", "float"),))


def test_columns_of_every_type_are_checked() -> None:
    """Files, times, arrays of different lengths, images, truth values; a text as label; nothing is found in them."""

    def everything(number: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        series = np.empty(number, object)
        series[:] = [rng.normal(size=int(length)) for length in rng.integers(1, 5, number)]
        file = np.array([bytes(rng.integers(0, 255, 8, np.uint8)) for _ in range(number)], object)
        file[0] = None
        at = np.datetime64("2026-01-01") + rng.integers(0, 100, number).astype("timedelta64[D]")
        at[1] = np.datetime64("NaT")
        return {
            "file": file,
            "at": at,
            "series": series,
            "pixels": rng.integers(0, 255, (number, 2, 2, 1), np.uint8),
            "flag": rng.integers(0, 2, number).astype(bool),
            "count": np.where(rng.random(number) < 0.1, np.nan, rng.integers(0, 9, number)),
            "kind": np.array(rng.choice(["good", "bad"], number), object),
        }

    tables = {"train": everything(400, 1), "validation": everything(100, 2), "test": everything(100, 3)}
    section = ChecksSection(
        columns={"count": {"min": 0, "max": 8, "max_nulls": 0.5}, "flag": {"values": [True, False]}}
    )
    check_data(prepared_of(Everything, **tables), section, notice=pytest.fail, clock=lambda: 0.0)
    tables["validation"]["series"] = tables["validation"]["series"][::-1].copy()
    tables["validation"]["series"][:] = [values + 50 for values in tables["validation"]["series"]]
    assert "series (mean) 100.0%" in told(prepared_of(Everything, **tables))["out_of_range"]


def test_two_thousand_columns_are_told_nothing_by_chance() -> None:
    """Of few rows, where the largest of so many shares is far from that of train."""

    class Wide(RecipeBase):
        label = "y"

        def signature(self) -> Signature:
            return Signature(tuple(Column(f"c{at}", "float") for at in range(2000)), (Column("p", "float"),))

    def wide(number: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {f"c{at}": rng.normal(size=number) for at in range(2000)} | {"y": rng.integers(0, 2, number)}

    tables = {"train": wide(200, 1), "validation": wide(60, 2), "test": wide(60, 3)}
    check_data(prepared_of(Wide, **tables), ChecksSection(), notice=pytest.fail, clock=lambda: 0.0)


def test_a_refusal_names_what_refuses_first_and_warnings_apart() -> None:
    """Only the first are a reason, and only their checks are in the hint."""
    table = rows(300, 5, kind=np.full(300, "a", object))
    message = refusal(prepared_of(train=table, validation=table))
    refused, _, warnings = message.partition("\nwarnings:\n")
    assert "data check same_rows" in refused
    assert "data check constant" not in refused
    assert "data check constant" in warnings
    assert "severity.constant" not in message

"""The contract of a recipe, as a test class that users inherit for their own.

::

    class TestMine(RecipeContract):
        recipe = Mine
        config = {"hidden": 8}  # small, so that it takes seconds

Owns what every recipe must do. Needs no cluster, writes no file, and imports no pytest: each test is a plain
method with assertions that say what to change.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import SkipTest

import numpy as np
import torch

from raymlops.data.batches import select
from raymlops.data.prepare import prepare
from raymlops.errors import InvalidRowsError, RecipeError
from raymlops.loss_value import loss_value
from raymlops.predictions.label_type import LabelType
from raymlops.recipe import RecipeBase, batch_rows, defines_loss, label_type_of, times_of
from raymlops.recipe_import import reference_of, resolve
from raymlops.testing.batches import assert_same
from raymlops.testing.case import RecipeCase, answer_of, case_of, drawn, first_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.arrays import Column, Columns
    from raymlops.signature import Signature

UNSEEN = "\N{SNOWMAN} never seen in training"
_TRAINING_ROWS = 256
"""More rows than a request has: ``encode`` may depend on their number by mistake."""


class RecipeContract:
    """Tests that a recipe must pass. Inherit, name the class ``Test...`` and set ``recipe``."""

    recipe: ClassVar[type[RecipeBase]]
    config: ClassVar[Mapping[str, Any]] = {}
    """Fields of the recipe's own ``Config``; choose a small model."""
    seed: ClassVar[int] = 0
    rtol: ClassVar[float] = 1e-3
    """Relative difference that two orders of summation may make in float32."""
    atol: ClassVar[float] = 1e-5

    def test_config_has_valid_defaults_for_all_its_fields(self) -> None:
        """A configuration file may leave the recipe's section out."""
        self.recipe.Config()

    def test_import_string_leads_to_the_recipe(self) -> None:
        """Workers and replicas find the class by its import string."""
        found = resolve(reference_of(self.recipe))
        assert found is self.recipe, f"{reference_of(self.recipe)!r} is another class: give the recipe one home"

    def test_datasets_give_three_splits_with_rows(self) -> None:
        """The splits exist, hold rows, and tables have the columns and types that the signature says."""
        rows = {name: split.rows for name, split in self._case.prepared.splits.items()}
        assert set(rows) == {"train", "validation", "test"}
        assert all(rows.values()), f"a split is empty: {rows}"

    def test_datasets_are_the_same_every_time(self) -> None:
        """Two processes must see the same rows: ``datasets()`` seeds what it draws.

        What items draw from the generators that a step seeds (see ``RecipeBase.loss``) is seeded here too; of items
        that draw from elsewhere the number is compared.
        """
        again = prepare(self._case.project, state=self._case.prepared.state)
        for name, split in self._case.prepared.splits.items():
            assert split.rows == again.splits[name].rows, f"the {name} split of two processes differ in length"
            if split.note:
                continue
            batches = [drawn(one, first_rows(split.rows)) for one in (split, again.splits[name])]
            assert_same(*batches, what=f"the {name} split of two processes")

    def test_fit_gives_the_same_json_every_time(self) -> None:
        """What is learnt from data is plain JSON, and a second fit gives the same."""
        again = prepare(self._case.project)
        first, second = (json.dumps(prepared.state, allow_nan=False) for prepared in (self._case.prepared, again))
        assert first == second, "fit() gives another state each time: sort sets, seed what is random"

    def test_label_is_no_input(self) -> None:
        """What is to be predicted is not among the columns of a request."""
        inputs = {column.name for column in self._case.signature.inputs}
        assert self.recipe.label not in inputs, f"the label {self.recipe.label!r} is an input of the signature"

    def test_model_is_on_the_cpu_and_seeded(self) -> None:
        """The framework moves and wraps the model, and its seed alone decides the first weights."""
        first, second = (self._case.model().state_dict() for _ in range(2))
        devices = {str(tensor.device) for tensor in first.values()}
        assert devices <= {"cpu"}, f"model() puts weights on {devices}: leave devices to the framework"
        assert_same(first, second, what="the weights of two models with one seed")

    def test_loss_is_a_finite_scalar_with_a_gradient(self) -> None:
        """One step of training is possible."""
        if not defines_loss(self.recipe):
            raise SkipTest("the recipe has no loss, but a train_loop of its own")
        model = self._case.model().train()
        returned = self._case.recipe.loss(model, self._case.batch("train"))
        try:
            loss = loss_value(returned, where="loss()").mean()
        except RecipeError as error:
            raise AssertionError(error.message) from error
        assert torch.isfinite(loss), f"loss() returns {loss.item()}"
        assert loss.requires_grad, "loss() has no gradient: it reaches no parameter of the model, or is detached"
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        assert gradients, "loss() has a gradient for none of the model's own parameters"
        assert all(torch.isfinite(gradient).all() for gradient in gradients), "loss() has a gradient that is not finite"

    def test_metrics_are_sums(self) -> None:
        """The metrics of two halves add up to those of the whole, which makes them exact on any number of workers."""
        case = self._case
        take = first_rows(case.prepared.splits["validation"].rows)
        if len(take) < 2:
            raise SkipTest("the validation split has a single row")
        middle = len(take) // 3 or 1
        batches = zip(
            case.whole_and_parts("validation", take, middle), (len(take), middle, len(take) - middle), strict=True
        )
        whole, *parts = (case.metrics(batch, rows=rows) for batch, rows in batches)
        assert "count" in whole, "metrics() returns no 'count' of rows"
        if self.recipe.metrics is not RecipeBase.metrics:  # whose count is the sum of a loss's weights
            assert whole["count"] == len(take), f"metrics() counts {whole['count']} of {len(take)} rows"
        again = case.metrics(case.whole_and_parts("validation", take, middle)[0], rows=len(take))
        for name, total in whole.items():
            if not np.array_equal(again[name], total, equal_nan=True):
                continue  # drawn, such as an answer to noise: seeded in an evaluation, not here
            np.testing.assert_allclose(
                parts[0][name] + parts[1][name],
                total,
                rtol=self.rtol,
                atol=self.atol,
                err_msg=f"metrics()[{name!r}] is no sum over rows: the parts of a batch do not add up to the whole",
            )

    def test_finalize_gives_finite_numbers(self) -> None:
        """Merged sums become named values."""
        rows = first_rows(self._case.prepared.splits["validation"].rows)
        batch = self._case.prepared.splits["validation"].batch(rows)
        values = self._case.recipe.finalize(self._case.metrics(batch, rows=len(rows)))
        assert values, "finalize() returns no value"
        for name, value in values.items():
            assert isinstance(value, float), f"finalize()[{name!r}] is a {type(value).__name__}, not a float"
            assert math.isfinite(value), f"finalize()[{name!r}] is {value}"

    def test_requests_are_encoded_as_in_training(self) -> None:
        """Training rows that come back as a request become the very same batch.

        But for padding: a batch is as wide as its longest row, and that of a training has more rows.
        """
        case = self._case
        split = case.prepared.splits["train"]
        if not split.is_table:
            raise SkipTest("the splits are torch datasets, whose items are no request rows")
        take = first_rows(split.rows)
        trained = select(split.batch(first_rows(split.rows, most=_TRAINING_ROWS)), take)
        if self.recipe.label is not None:
            trained = {name: value for name, value in trained.items() if name != "label"}
        columns = split.take(take) or {}
        again = case.recipe.encode({column.name: columns[column.name] for column in case.signature.inputs})
        asked = case.recipe.encode(case.signature.parse_rows(case.example))
        assert batch_rows(asked) == len(case.example), f"encode() makes {batch_rows(asked)} rows of {len(case.example)}"
        assert_same(again, asked, what="training rows and the same rows in a request")
        assert_same(trained, asked, what="training rows and the same rows in a request", padded=True)

    def test_example_is_answered_as_the_signature_says(self) -> None:
        """Request rows are parsed, encoded, predicted and decoded to the outputs, one for each row."""
        decoded = self._case.decode(self._case.example)
        outputs = self._case.signature.outputs
        names = [column.name for column in outputs]
        assert sorted(decoded) == sorted(names), f"decode() returns {sorted(decoded)}, the signature says {names}"
        for column in outputs:
            _assert_type(column, decoded[column.name])
        answer = self._case.ask(self._case.example)
        json.dumps(self._case.signature.rows(answer), allow_nan=False)

    def test_answers_do_not_depend_on_the_batch(self) -> None:
        """A row alone gets the answer that it gets among others: a replica puts strangers' rows together.

        Where ``encode`` pads rows to the longest, ``decode`` must cut the answers to the length of their own row.
        """
        case = self._case
        whole = case.ask(case.example)
        for index, row in enumerate(case.example):
            self._assert_close(case.ask([row]), {name: array[index : index + 1] for name, array in whole.items()})

    def test_answers_are_the_same_every_time(self) -> None:
        """In eval mode nothing is random."""
        first, second = (self._case.ask(self._case.example) for _ in range(2))
        self._assert_close(first, second)

    def test_columns_of_a_request_are_left_as_they_are(self) -> None:
        """The prediction log and shadows get the same arrays: what is changed in place is changed there too."""
        case = self._case
        columns = case.signature.parse_rows(case.example)
        before = {name: _content(array) for name, array in columns.items()}
        with torch.no_grad():
            case.recipe.predict(case.trained, case.recipe.encode(columns))
        changed = [
            name for name, content in before.items() if name not in columns or _content(columns[name]) != content
        ]
        assert not changed, f"encode() or the model changes {', '.join(changed)} in place: copy the array first"

    def test_weights_and_state_make_the_same_model_elsewhere(self) -> None:
        """A fresh recipe with the state read back from JSON loads the weights strictly and answers alike."""
        case = self._case
        state = json.loads(json.dumps(case.prepared.state, allow_nan=False))
        elsewhere = case.project.recipe(state=state)
        model = elsewhere.model()
        model.load_state_dict({name: tensor.clone() for name, tensor in case.trained.state_dict().items()}, strict=True)
        assert elsewhere.signature() == case.signature, "signature() depends on more than config and state"
        self._assert_close(case.ask(case.example), answer_of(elsewhere, model.eval(), case.example, case.signature))

    def test_labels_of_the_table_are_of_the_declared_type(self) -> None:
        """Feedback that is like them would be refused otherwise."""
        column = label_type_of(self._case.recipe)
        if column is None:
            return
        labels = (label for label in self._case.losses.labels if label is not None)
        wrong = [why for label in labels if (why := LabelType(column).problem(label)) is not None]
        assert not wrong, f"label_type refuses {len(wrong)} labels of the table: {wrong[0]}"

    def test_rows_of_a_table_have_times_if_any(self) -> None:
        """Registration puts rows in their order, after the training."""
        for split in self._case.prepared.splits.values():
            for columns in split.chunks():
                times_of(self._case.recipe, columns)

    def test_losses_of_answers_are_numbers_from_0_to_1(self) -> None:
        """A rollout compares versions by the loss of an answer against its label, whatever label a client sends."""
        losses = self._case.losses
        if losses.rule.kind == "none":
            raise SkipTest(f"rollouts cannot ask how good the answers are: {losses.rule.reason}; loss_of() can say it")
        for output in losses.outputs:
            for label in (*losses.labels, 0, 1, 2.5, True, "no such label", [1, 2]):
                losses.of(output, label)
        known = [losses.of(output, label) for output, label in losses.pairs]
        assert not known or any(loss is not None for loss in known), (
            f"loss_of() returns None for every label of the table, such as {losses.labels[0]!r}"
        )

    def test_a_right_answer_costs_no_more_than_a_wrong_one(self) -> None:
        """The mean loss of answers that are the label is not above that of answers that are another row's label."""
        losses = self._case.losses
        pairs = losses.right_and_wrong(self._case.signature.outputs)
        if not pairs:
            raise SkipTest("no output is of the labels' kind, or no two labels can be compared")
        right, wrong = (float(np.mean(values)) for values in zip(*pairs, strict=True))
        assert right <= wrong, f"loss_of() is {right:.3g} for right answers, {wrong:.3g} for wrong ones"

    def test_missing_values_are_answered(self) -> None:
        """Every nullable column may be missing, from one row or from all."""
        nullable = [column.name for column in self._case.signature.inputs if column.nullable]
        if not nullable:
            raise SkipTest("no input is nullable")
        rows = [row | dict.fromkeys(nullable) for row in self._case.example]
        self._case.ask(rows)

    def test_unknown_categories_get_what_the_signature_says(self) -> None:
        """A category that training never saw is answered, or rejected where the signature says ``reject``."""
        texts = [column for column in self._case.signature.inputs if column.type == "string"]
        if not texts:
            raise SkipTest("no input is text")
        for column in texts:
            rows = [row | {column.name: UNSEEN} for row in self._case.example]
            if column.categories is not None and column.unknown == "reject":
                _assert_refused(self._case.signature, rows, column)
            else:
                self._case.ask(rows)

    @property
    def _case(self) -> RecipeCase:
        recipe: Any = self.recipe  # mypy takes the hash of a recipe for that of its class
        return case_of(recipe, json.dumps(dict(self.config), sort_keys=True), self.seed)

    def _assert_close(self, got: Columns, expected: Columns) -> None:
        for name, values in expected.items():
            ragged = any(isinstance(value, np.ndarray) for value in values) and values.dtype == object
            for one, other in zip(got[name], values, strict=True) if ragged else [(got[name], values)]:
                options: dict[str, Any] = {"err_msg": f"output {name!r}"}
                if other.dtype.kind == "f":
                    np.testing.assert_allclose(one, other, rtol=self.rtol, atol=self.atol, **options)
                else:
                    np.testing.assert_array_equal(one, other, strict=ragged, **options)


def _content(array: Any) -> list[bytes]:
    """Return what an array holds: of texts, which cannot change in place, the objects themselves."""
    return [array.tobytes(), *(value.tobytes() for value in array if isinstance(value, np.ndarray))]


def _assert_type(column: Column, values: Any) -> None:
    """Assert that numbers have the type of their column, which a replica would otherwise convert."""
    kinds = column.info.kinds if column.type != "float" else "f"
    ragged = None in column.shape
    for value in values if ragged else [values]:
        array = np.asarray(value)
        allowed = kinds + ("f" if column.nan_missing else "") + ("" if ragged else "OS")
        what = f"decode() returns {column.name!r} as {array.dtype}, the signature says {column.type}"
        assert not array.size or array.dtype.kind in allowed, what


def _assert_refused(signature: Signature, rows: list[dict[str, Any]], column: Column) -> None:
    try:
        signature.parse_rows(rows)
    except InvalidRowsError:
        return
    raise AssertionError(f"{column.name!r} accepts an unknown category, though the signature says reject")

"""A few answers and their labels, as the contract of a recipe compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column
    from raymlops.recipe import RecipeBase


@dataclass(frozen=True)
class AnsweredRows:
    """Answers to rows, and the labels of these rows, which may be none."""

    rule: AnswerLoss
    recipe: RecipeBase
    outputs: list[dict[str, Any]]
    labels: list[Any]

    @property
    def pairs(self) -> list[tuple[dict[str, Any], Any]]:
        """Return each answer with its own label, where it has one."""
        pairs = zip(self.outputs, self.labels, strict=bool(self.labels))
        return [(output, label) for output, label in pairs if label is not None]

    def of(self, output: dict[str, Any], label: Any) -> float | None:
        """Return a loss as a rollout would get it, and assert that it is one."""
        where = f"loss_of({output!r}, {label!r})"
        try:
            found = self.recipe.loss_of(output, label) if self.rule.kind == "recipe" else self.rule.of(output, label)
        except Exception as error:
            raise AssertionError(f"{where} raises {error!r}: return None for a label that fits nothing") from error
        assert found is None or 0 <= found <= 1, f"{where} is {found!r}: return a number from 0 to 1, or None"
        return found

    def right_and_wrong(self, columns: Sequence[Column]) -> list[tuple[float, float]]:
        """Return the losses of answers that are the label and of answers that are another one, where it can be known.

        That is where an output is of the labels' kind: it is replaced, and the others stay what they are.
        """
        places = [column.name for column in columns if self._may_be_label(column)]
        found = []
        for output, label in self.pairs if places else []:
            for other in self.labels:
                right, wrong = (self.of(output | dict.fromkeys(places, value), label) for value in (label, other))
                if other != label and right is not None and wrong is not None:
                    found.append((right, wrong))
        return found

    def _may_be_label(self, column: Column) -> bool:
        return not column.shape and all(type(label) in column.info.json_types for label in self.labels)

"""What a label of a model may be: by the recipe's ``label_type``, or else whatever its answers can be compared with.

Owns both checks and how they are described. Pure: how answers are compared is ``answer_loss``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raymlops.arrays import expected
from raymlops.errors import InvalidRowsError
from raymlops.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column

_LISTED = 12
_LARGEST = 2**63
"""Of integers with 64 bits; and the square of a larger number is beyond floats with 32 bits, by which losses count."""


@dataclass(frozen=True)
class LabelType:
    """The labels that are accepted. Without any of these, everything that JSON has but objects and null is."""

    column: Column | None = None
    """What the recipe declares."""
    loss: AnswerLoss | None = None
    """By which answers are compared with labels."""
    outputs: tuple[Column, ...] = ()
    answer: Mapping[str, Any] | None = None
    """One row of the model's answers, to compare labels with."""

    @property
    def expected(self) -> str:
        """Describe what is accepted."""
        if self.column is not None:
            known = self.column.categories if self.column.unknown == "reject" else None
            return expected(self.column) + ("" if known is None else f", one of {_listed(known)}")
        return "a text, number, boolean or list" if not self._is_compared else self._comparable

    def schema(self) -> dict[str, Any] | None:
        """Return the JSON Schema of accepted labels, without other ways to write them; None for any label."""
        if self.column is not None:
            found = self.column.json_schema()
        elif not self._is_compared:
            return None
        else:
            found = self._compared_schema()
        return {**found, "description": f"the true label: {self.expected}"}

    @property
    def example(self) -> Any:
        """Return a label that is accepted."""
        schema = self.schema() or {}
        for found in (*schema.get("enum", ()), 1, 0.5, True, "2026-01-31T12:00:00Z", "a text", ""):
            if self.problem(found) is None:
                return found
        return None

    def problem(self, label: Any) -> str | None:
        """Return why a label is refused; None for one that is accepted."""
        if self.column is not None:
            try:
                self._declared.parse_rows([{self.column.name: label}])
            except InvalidRowsError as error:
                return error.problems[0].message
            return unheld(label)
        if (why := unheld(label)) is not None or not self._is_compared:
            return why
        assert self.loss is not None
        assert self.answer is not None
        known = self._classes
        if known is not None and isinstance(label, str) and label not in known:
            return f"unknown class {label[:40]!r}; known: {_listed(known)}"
        if self.loss.of(self.answer, label) is not None:
            return None
        return f"cannot be compared with the model's answers; expected {self._comparable}"

    @cached_property
    def _declared(self) -> Signature:
        assert self.column is not None
        return Signature((self.column,), (self.column,))

    @property
    def _is_compared(self) -> bool:
        return self.loss is not None and self.loss.kind not in {"recipe", "none"} and self.answer is not None

    @property
    def _classes(self) -> tuple[str, ...] | None:
        """Return the texts that can be an answer, where the signature says which."""
        if self.loss is None or isinstance(self.loss.positive, str):  # the rule has both classes itself
            return None
        output = next((column for column in self.outputs if column.name == self.loss.output), None)
        return output.categories if output is not None and output.unknown == "reject" else None

    def _compared_schema(self) -> dict[str, Any]:
        loss = self.loss
        assert loss is not None
        if isinstance(loss.positive, str):
            return {"enum": [loss.positive, loss.negative]}
        if loss.kind == "number":
            return {"type": "number"}
        if loss.kind == "probability" or loss.positive is not None:
            return {"enum": [0, 1, False, True]}
        if loss.kind == "vector":
            several = loss.probabilities if len(loss.probabilities) > 1 else ()
            count = len(several) or len((self.answer or {})[loss.probabilities[0]])
            return {"enum": [*range(count), *several]}
        if {column.name: column.type for column in self.outputs}.get(loss.output or "") == "string":
            return {"type": "string"} if self._classes is None else {"enum": [*self._classes]}
        return {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}

    @property
    def _comparable(self) -> str:
        loss = self.loss
        assert loss is not None
        if isinstance(loss.positive, str):
            return f"{loss.positive!r} or {loss.negative!r}"
        if loss.kind == "number":
            return "a number"
        if loss.kind == "probability" or loss.positive is not None:
            return "1 or 0, also as true or false"
        if len(loss.probabilities) > 1:
            return f"a class: its number from 0, or one of {_listed(loss.probabilities)}"
        kinds = {column.name: column.type for column in self.outputs}
        return "a class, as text" if kinds.get(loss.output or "") == "string" else "a class: its number from 0"


def unheld(label: Any) -> str | None:
    """Return why no column of a table can hold a label; None for one that some can."""
    if isinstance(label, list):
        return next((why for why in map(unheld, label) if why is not None), None)
    if isinstance(label, str):
        try:
            label.encode()
        except UnicodeEncodeError:
            return "a text with half of a surrogate pair is no Unicode"
    elif isinstance(label, int | float) and not -_LARGEST <= label < _LARGEST:
        return "a number beyond 2^63 is too large to count"
    return None


def _listed(texts: tuple[str, ...]) -> str:
    return ", ".join(texts[:_LISTED]) + (" ..." if len(texts) > _LISTED else "")

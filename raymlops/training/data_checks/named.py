"""The columns that a configuration names: are they inputs of the recipe's signature, of such values?

Owns what is said of those that are not. No data is read for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.bundle.slices import slices_of
from raymlops.errors import RecipeError, UsageError
from raymlops.recipe import signature_of

if TYPE_CHECKING:
    from raymlops.arrays import Column
    from raymlops.config.data import ChecksSection, ColumnBounds
    from raymlops.project import Project
    from raymlops.signature import Signature

_EQUAL: dict[str, set[type]] = {"string": {str}, "int": {int, float}, "float": {int, float}, "bool": {bool, int}}
"""What may equal a value of a column."""


def check_named(project: Project) -> str | None:
    """Check the columns of ``monitor.slices`` and ``data.checks.columns``; return why they cannot be checked, or None.

    A recipe's signature may depend on what its ``fit`` returns, which a run alone has.

    Raises:
        UsageError: one is no input, or a value is of another type.
    """
    slices, checks = project.spec.monitor.slices, project.spec.data.checks
    named = [name for name, given in (("monitor.slices", slices), ("data.checks.columns", checks.columns)) if given]
    if not named:
        return None
    try:
        signature = signature_of(project.recipe())
    except RecipeError as error:
        fields, are = " and ".join(named), "are" if len(named) > 1 else "is"
        return f"{fields} {are} not checked here; a run checks before it starts: without fitted state {error.message}"
    check_bounded(checks, signature)
    slices_of(slices, signature)
    return None


def check_bounded(section: ChecksSection, signature: Signature) -> None:
    """Check that every column with bounds is an input, and that its values can have them.

    Raises:
        UsageError: one is not, or cannot.
    """
    inputs = {column.name: column for column in signature.inputs}
    if unknown := [name for name in section.columns if name not in inputs]:
        raise UsageError(
            f"data.checks.columns names {', '.join(map(repr, unknown))}, no input of the signature",
            hint=f"Those are {', '.join(inputs)}.",
        )
    for name, bounds in section.columns.items():
        _check_types(inputs[name], bounds)


def _check_types(column: Column, bounds: ColumnBounds) -> None:
    where, of = f"data.checks.columns.{column.name}", f"the signature says {column.type}"
    if (bounds.min is not None or bounds.max is not None) and column.info.dtype.kind not in "biuf":
        raise UsageError(f"{where}: min and max are of numbers; {of}")
    if bounds.values is not None and column.shape:
        raise UsageError(f"{where}: values are of inputs with a single value a row; {of} of shape {column.shape}")
    if other := [value for value in bounds.values or () if type(value) not in _EQUAL.get(column.type, set())]:
        raise UsageError(f"{where}.values: got {', '.join(map(repr, other))}; {of}")

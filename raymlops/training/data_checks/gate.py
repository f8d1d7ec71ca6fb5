"""Check a recipe's data before a run or a sweep: what is wrong for certain is refused, the rest is told."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import DataRefusedError
from raymlops.records import Record
from raymlops.training.data_checks.named import check_bounded
from raymlops.training.data_checks.read import read_splits
from raymlops.training.data_checks.rules import findings
from raymlops.training.first_loss import NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raymlops.config.data import ChecksSection
    from raymlops.data.prepare import Prepared
    from raymlops.monitor.data_quality import Finding
    from raymlops.training.data_checks.facts import SplitFacts

REPORT = "data/checks.json"
"""Artifact of a run and of a sweep: what was read of its data, and what was found."""
_LONG_S = 5.0


@dataclass(frozen=True)
class DataReport(Record):
    """What was checked of a recipe's data."""

    findings: tuple[Finding, ...]
    splits: dict[str, dict[str, Any]]
    """Of each split: how many rows it has, were read and looked at, and what is known of them and their labels."""
    seconds: float


def check_data(
    prepared: Prepared,
    section: ChecksSection,
    *,
    notice: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> DataReport | None:
    """Check the splits of a run; None where every check is off. ``notice`` gets each warning.

    Raises:
        DataRefusedError: a finding is of a check that refuses; the message has these, and then the warnings.
        UsageError: the configuration bounds a column that is no input.
        RecipeError: a row does not match the signature.
        StorageError: a file cannot be read.
    """
    if section.severity.get("all") == "off" and all(severity == "off" for severity in section.severity.values()):
        return None
    check_bounded(section, prepared.signature)
    began = clock()
    facts = read_splits(prepared, section)
    found = findings(facts, section)
    report = DataReport(tuple(found), {name: _described(each) for name, each in facts.items()}, clock() - began)
    if refused := [finding for finding in found if finding.refused]:
        checks = " ".join(f"data.checks.severity.{check}=warn" for check in dict.fromkeys(f.check for f in refused))
        warnings = [finding for finding in found if not finding.refused]
        lines = ["the data was refused before the training:", *(f"  {_line(finding)}" for finding in refused)]
        lines += ["warnings:"] if warnings else []
        raise DataRefusedError(
            "\n".join([*lines, *(f"  {_line(finding)}" for finding in warnings)]),
            hint=f"Correct what datasets() returns. To train on it as it is: {checks}",
        )
    for finding in found:
        notice(_line(finding))
    if report.seconds > _LONG_S:
        read = ", ".join(f"{split.read:,} of {split.rows:,} of {name}" for name, split in facts.items())
        notice(f"data.checks took {report.seconds:.0f} s for these rows: {read}; data.checks.rows sets how many")
    return report


@contextmanager
def blaming_data(prepared: Prepared, section: ChecksSection | None) -> Iterator[None]:
    """Tell a loss of the first rows that is not finite by what is wrong with the data, where its checks refuse it.

    Nothing is checked otherwise, nor without a ``section``: a recipe is tried on a few rows, the checks read all.

    Raises:
        DataRefusedError: in place of ``NonFiniteLossError``.
    """
    try:
        yield
    except NonFiniteLossError:
        if section is not None:
            check_data(prepared, section, notice=lambda _text: None)
        raise


def _line(finding: Finding) -> str:
    return f"data check {finding.check}: {finding.message}"


def _described(split: SplitFacts) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": split.rows, "read": split.read, "looked_at": split.looked_at}
    if split.distinct is not None:
        found["repeated"] = split.distinct.repeated
    if split.label is not None:
        found["label"] = {"missing": split.label.missing, "rows": split.label.rows}
        if split.label.classes:
            found["label"]["classes"] = {str(label): rows for label, rows in split.label.classes.items()}
    return found

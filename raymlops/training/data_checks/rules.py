"""What is wrong, or may be, with a recipe's data: facts and bounds in, findings out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.display import some_of
from raymlops.monitor.data_quality import Finding, column_quality, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from raymlops.config.data import Check, ChecksSection
    from raymlops.training.data_checks.facts import SplitFacts

    Splits = Mapping[str, SplitFacts]
    Found = Iterator[tuple[Check, str, float, float, str]]
    """The check, the split, what was got and is allowed, and a sentence."""

_NO_THIRD, _PART = "test, validation", "train, as far as it was read"
_TOLD = {_NO_THIRD, _PART}
"""What may be meant, where there is no third split, or chance, is refused where the configuration says so alone."""
_PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))


def findings(splits: Splits, section: ChecksSection) -> list[Finding]:
    """Return what is beyond its bound, what refuses the data first; of checks that are off nothing."""
    rules: tuple[Callable[[Splits, ChecksSection], Found], ...]
    rules = (_rows, _shared_rows, _duplicates, _labels, _label_shift, _inputs, _against_train, _bounded)
    found = []
    for rule in rules:
        for check, where, got, allowed, text in rule(splits, section):
            severity = section.severity_of(check)
            refused = severity == "refuse" and (where not in _TOLD or check in section.severity)
            if severity != "off":
                found.append(Finding(check, where, got, allowed, text, refused=refused))
    return sorted(found, key=lambda finding: not finding.refused)


def _rows(splits: Splits, section: ChecksSection) -> Found:
    for name, split in splits.items():
        if split.rows < section.min_rows:
            text = f"the {name} split has {split.rows} rows, fewer than {section.min_rows} (min_rows)"
            yield "rows", name, split.rows, section.min_rows, text


def _shared_rows(splits: Splits, section: ChecksSection) -> Found:
    for name, other in _PAIRS:
        one, two = splits[name], splits[other]
        if _is_same(one, two):
            text = f"the {name} split and the {other} split are the same {one.rows:,} rows"
            yield "same_rows", f"{name}, {other}", one.rows, 0, text
            continue
        if one.distinct is None or two.distinct is None or other == "validation":
            continue
        shared = min(1.0, one.distinct.share_in(two.distinct) / two.share_read)
        if shared > section.max_leakage:
            twins = two.distinct.repeated
            text = (
                f"{_about(one, two)}{shared:.2%} of the {name} rows are {other} rows too, more than "
                f"{section.max_leakage:.2%} (max_leakage): metrics of {name} are too good"
            )
            if twins > shared / 2:
                text += f", unless rows are equal by chance: {twins:.1%} of the {other} rows are there more than once"
            yield "leakage", name, shared, section.max_leakage, text


def _is_same(one: SplitFacts, two: SplitFacts) -> bool:
    if one.rows != two.rows:
        return False
    if one.identity == two.identity:
        return True
    whole = one.read == one.rows and two.read == two.rows
    return whole and one.distinct is not None and two.distinct is not None and one.distinct.equals(two.distinct)


def _about(*splits: SplitFacts) -> str:
    """Return how a share begins that is an estimate."""
    exact = all(split.read == split.rows and split.distinct and split.distinct.is_exact for split in splits)
    return "" if exact else "about "


def _duplicates(splits: Splits, section: ChecksSection) -> Found:
    train = splits["train"]
    if train.distinct is None:
        return
    share = min(1.0, train.distinct.repeated / train.share_read)
    if share > section.max_duplicates:
        text = (
            f"{_about(train)}{share:.1%} of the train rows are there more than once, more than "
            f"{section.max_duplicates:.1%} (max_duplicates)"
        )
        yield "duplicates", "train", share, section.max_duplicates, text


def _labels(splits: Splits, _: ChecksSection) -> Found:
    for name, split in splits.items():
        label = split.label
        if label is None:
            continue
        if label.unusable:
            gone = label.missing / label.rows
            text = f"the label {label.name!r} is missing in {gone:.2%} of the {name} rows, of which {label.unusable}"
            yield "label_values", name, gone, 0, text
        elif label.constant and name == "train":
            text = f"the label {label.name!r} is {label.constant} in all {label.rows:,} rows of train that were read"
            where = name if split.read == split.rows else _PART
            yield "label_values", where, 1, 1, f"{text}: there is nothing to learn"
        if name == "train" and split.as_label:
            text = f"the label {label.name!r} equals an input in every row: {some_of(split.as_label)}"
            yield "label_as_input", name, len(split.as_label), 0, text


def _label_shift(splits: Splits, section: ChecksSection) -> Found:
    train = splits["train"].label
    for name in ("validation", "test"):
        label = splits[name].label
        found = None if train is None or label is None else train.distance(label)
        if train is None or label is None or found is None:
            continue
        far, chance = found
        if far - chance > section.max_label_shift:
            new = [repr(value) for value in label.classes if value not in train.classes] if train.classes else []
            never = f"; train never has {some_of(new)}" if new else ""
            text = (
                f"the labels of {name} are {far:.2f} from those of train, of which {chance:.2f} may be chance, more "
                f"than {section.max_label_shift:.2f} (max_label_shift){never}"
            )
            yield "label_shift", name, far, section.max_label_shift, text


def _inputs(splits: Splits, _: ChecksSection) -> Found:
    train = splits["train"]
    if train.constant:
        text = f"inputs with one value in all {train.looked_at:,} rows of train that were looked at: "
        yield "constant", "train", len(train.constant), 0, text + some_of(train.constant)


def _against_train(splits: Splits, section: ChecksSection) -> Found:
    train = splits["train"].profile
    for name, split in splits.items():
        if train is None or split.profile is None:
            continue
        columns = column_quality(train, split.profile)
        gone = [(column.column, column.nulls.after) for column in columns if column.nulls.after > section.max_nulls]
        outside = [
            (column.column, column.out_of_range.after)
            for column in columns
            if column.out_of_range is not None and column.out_of_range.risen > section.max_out_of_range
        ]
        new = [
            (column.column, column.new_categories.after)
            for column in columns
            if column.new_categories is not None and column.new_categories.risen > section.max_new_categories
        ]
        shown: tuple[tuple[Check, list[tuple[str, float]], float, str], ...] = (
            ("nulls", [each for each in gone if each[0] not in splits["train"].constant], section.max_nulls, "missing"),
            ("out_of_range", outside, section.max_out_of_range, "outside of what train has"),
            ("new_categories", new, section.max_new_categories, "texts that train has not, or hardly"),
        )
        for check, found, bound, what in shown:
            if found:
                text = f"{name} values, {what}: {named(found)}, more than {bound:.1%} (max_{check})"
                yield check, name, max(share for _, share in found), bound, text


def _bounded(splits: Splits, section: ChecksSection) -> Found:
    for name, split in splits.items():
        for column, facts in split.bounded.items():
            bounds, where = section.columns[column], f"{column} in {name}"
            if bounds.max_nulls is not None and facts.nulls > bounds.max_nulls:
                text = f"{where} is missing in {facts.nulls:.2%} of the rows, more than {bounds.max_nulls:.2%}"
                yield "columns", where, facts.nulls, bounds.max_nulls, f"{text} (max_nulls)"
            if bounds.min is not None and facts.least is not None and facts.least < bounds.min:
                text = f"{where} is {facts.least:g}, below {bounds.min:g} (min)"
                yield "columns", where, facts.least, bounds.min, text
            if bounds.max is not None and facts.most is not None and facts.most > bounds.max:
                text = f"{where} is {facts.most:g}, above {bounds.max:g} (max)"
                yield "columns", where, facts.most, bounds.max, text
            if facts.others:
                text = f"{where} has {', '.join(facts.others)}, which its values are not to be (values)"
                yield "columns", where, len(facts.others), 0, text

"""What is checked of data: of splits before a run (``data``), of traffic and of labelled answers (``monitor``)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raymlops.config.base import Spec, frozen

Severity = Literal["off", "warn", "refuse"]
Check = Literal[
    "rows",
    "same_rows",
    "leakage",
    "duplicates",
    "label_values",
    "label_shift",
    "label_as_input",
    "nulls",
    "constant",
    "out_of_range",
    "new_categories",
    "columns",
]
CHECKS: tuple[Check, ...] = get_args(Check)
REFUSING: frozenset[Check] = frozenset({"same_rows", "label_values", "label_as_input", "columns"})
"""Refuse by default: what they find is wrong for certain, or was ruled out by the configuration. Others warn."""
Share = Annotated[float, Field(ge=0, le=1)]


class ColumnBounds(Spec):
    """What an input may hold in every split."""

    min: float | None = Field(None, description="smallest number")
    max: float | None = Field(None, description="largest number")
    max_nulls: Share | None = Field(None, description="largest share of rows without a value")
    values: Annotated[tuple[str | int | float | bool, ...] | None, BeforeValidator(frozen)] = Field(
        None, description="the only values that it may have"
    )

    @model_validator(mode="after")
    def _in_order(self) -> ColumnBounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            msg = f"min {self.min:g} is above max {self.max:g}"
            raise ValueError(msg)
        return self


class ChecksSection(Spec):
    """What is checked of a recipe's data before a run or a sweep, and what a finding leads to."""

    rows: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None,
        description="rows of each split that are read for it, evenly spread; default: those of tables, as far as a "
        "million rows or 512 MB, and no items of torch datasets but of tensors",
    )
    min_rows: int = Field(30, ge=1, description="rows: fewest rows of a split")
    max_leakage: Share = Field(
        0.01, description="leakage: largest share of validation or test rows that are training rows too"
    )
    max_duplicates: Share = Field(
        0.5, description="duplicates: largest share of training rows that are there more than once"
    )
    max_label_shift: Share = Field(
        0.25, description="label_shift: largest distance of a split's labels from those of train, beyond chance"
    )
    max_nulls: Share = Field(0.95, description="nulls: largest share of rows without a value in an input")
    max_out_of_range: Share = Field(
        0.05, description="out_of_range: largest share of a split's rows beyond the range of train, beyond chance"
    )
    max_new_categories: Share = Field(
        0.05, description="new_categories: largest share of a split's texts that train has not, beyond chance"
    )
    columns: dict[str, ColumnBounds] = Field(
        default_factory=dict, description="columns: {INPUT: {min, max, max_nulls, values}}, in every split"
    )
    severity: dict[Check | Literal["all"], Severity] = Field(
        default_factory=dict,
        description=f"{{CHECK: off|warn|refuse}}, of {', '.join(CHECKS)}, or all the others; default: "
        f"{', '.join(check for check in CHECKS if check in REFUSING)} refuse, the others warn",
    )

    @field_validator("severity", mode="before")
    @classmethod
    def _known(cls, severity: Any) -> Any:
        for name in severity if isinstance(severity, dict) else ():
            if name not in {*CHECKS, "all"}:
                near = get_close_matches(str(name), CHECKS, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                msg = f"got {name!r}; one of {', '.join(CHECKS)} or all{meant}"
                raise ValueError(msg)
        return severity

    def severity_of(self, check: Check) -> Severity:
        """Return what a finding of a check leads to."""
        default: Severity = "refuse" if check in REFUSING else "warn"
        return self.severity.get(check, self.severity.get("all", default))


class DataSection(Spec):
    """A recipe's data."""

    checks: ChecksSection = Field(default_factory=ChecksSection, description="what is checked of it before a run")


class QualitySection(Spec):
    """Bounds of a window of traffic, beside its drift: a window beyond one is an alarm. By default there is none."""

    max_nulls: Share | None = Field(None, description="largest share of rows without a value in an input")
    max_out_of_range: Share | None = Field(
        None, description="largest share of rows beyond nearly all values that an input had in training"
    )
    max_new_categories: Share | None = Field(
        None,
        description="largest share of texts in an input that training has not, or hardly, beside its own share of them "
        "and chance",
    )
    max_repeated: Share | None = Field(None, description="largest share of rows whose request id was there before")
    min_rows: int | None = Field(
        None, ge=1, description="fewest rows that a window serves, those of a sampled log by their weight"
    )
    max_silence_h: float | None = Field(None, gt=0, le=48, description="hours without any row until now")


class SkillSection(Spec):
    """What is judged of a version's labelled answers. By default they are judged by their loss, without any bound."""

    window_h: Literal[24, 168] = Field(24, description="hours of requests that are measured at a time")
    metric: Literal["loss", "log_loss", "auc"] = Field(
        "loss",
        description="loss of an answer by the recipe's rule or its own loss_of; log_loss of probabilities; auc of a "
        "probability of two classes",
    )
    reference: Literal["base_rate", "frozen"] = Field(
        "base_rate",
        description="whom skill is measured against: one who answers the base rate of each window's labels, or that of "
        "the test rows; of a recipe's own loss_of always frozen, the answers to other rows",
    )
    labels_within_h: float | None = Field(
        None,
        gt=0,
        le=24 * 366,
        description="hours after a window's end by which its labels have come, and it is judged; default: half as long "
        "again as 9 of 10 of its labels took",
    )
    margin: float = Field(0.01, ge=0, lt=1, description="skill that may be lost without a verdict, however sure it is")
    min: float | None = Field(None, le=1, description="smallest skill; less than it for certain is an alarm")
    max_loss: float | None = Field(
        None, ge=0, description="largest mean of the metric's loss, of auc 1 - auc; more for certain is an alarm"
    )
    max_caller_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="largest share of the labels by which quality and rollouts judge that come from one API key, where "
        "there are several keys; rows of larger ones are left out; default: any",
    )

"""How the quality of answers is judged once their labels are known (``monitor.skill``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlops.config.base import Spec


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
        None, gt=0, le=1, description="largest share of a window's labels that one caller's requests may have"
    )

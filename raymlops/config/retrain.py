"""The ``retrain`` section of a configuration: when a model is retrained by itself, on what, and within which bounds.

Owns every field with its range, default and one-line description. By default nothing triggers a retraining but a
person.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raymlops.config.base import Spec
from raymlops.config.data import Share
from raymlops.config.durations import Moment


class TriggersSection(Spec):
    """What makes the loop retrain a model; any of them does."""

    skill: bool = Field(
        default=False, description="skill is lost since the version's promotion, as raymlops quality judges it"
    )
    min_skill: float | None = Field(
        None, lt=1, description="skill has been below this bound since some window, and not by chance"
    )
    drift_alarms: int | None = Field(
        None,
        ge=1,
        description="so many windows of inputs, since the promotion or the last retraining, are an alarm for a column "
        "that the output depends on",
    )
    min_influence: Share = Field(
        0.05, description="drift_alarms: how much the output depends, from 0 to 1, on columns that count"
    )
    every_days: float | None = Field(None, gt=0, description="days after the promotion or the last retraining")
    new_labels: int | None = Field(
        None, ge=1, description="so many rows got a label since the promotion or the last retraining"
    )

    @property
    def any(self) -> bool:
        """Return whether anything but a person triggers a retraining."""
        others = (self.min_skill, self.drift_alarms, self.every_days, self.new_labels)
        return self.skill or any(each is not None for each in others)


class WindowSection(Spec):
    """Which rows a model is retrained on, by the time at which they arose."""

    kind: Literal["trailing", "growing"] = Field(
        "trailing", description="trailing: the last days; growing: everything from since on, at least the last days"
    )
    days: float = Field(90.0, gt=0, description="days of a trailing window")
    since: Moment | None = Field(
        None, description="start of a growing window, as '2026-01-31'; default with data: log: the oldest row there"
    )


class RetrainSection(Spec):
    """When a model is retrained by itself, on what, and within which bounds."""

    autonomy: Literal["observe", "propose", "act"] = Field(
        "propose",
        description="observe: what would be retrained is recorded and told; propose: a person accepts it first; act: "
        "it is retrained, and promoted if it passes",
    )
    triggers: TriggersSection = Field(
        default_factory=TriggersSection, description="what makes the loop retrain; by default only a person does"
    )
    cool_down_h: float = Field(24.0, ge=0, description="hours after a retraining has ended before the next one")
    budget: int = Field(4, ge=1, description="retrainings within budget_days at most; those of a person count too")
    budget_days: float = Field(30.0, gt=0, le=3650, description="days over which the budget holds")
    data: Literal["recipe", "log"] = Field(
        "recipe",
        description="rows to train on: those of the recipe's datasets(window), or the prediction log's with labels",
    )
    window: WindowSection = Field(default_factory=WindowSection, description="which rows, by their time")
    min_coverage: Share = Field(
        0.5, description="data: log: smallest share of the window's rows that have a label, or they are refused"
    )
    max_caller_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="largest share of the labels that come from one API key, in data: log, the replay and the bake, "
        "where there are several keys; rows of larger ones are left out; default: any",
    )
    start: Literal["scratch", "champion"] = Field(
        "scratch", description="first weights: new random ones, or those of the live version"
    )
    sweep: bool = Field(default=False, description="search for the configuration too, as the sweep section says")
    replay_h: float = Field(
        24.0, ge=0, description="hours of logged requests that a new version answers before it gets any; 0: none"
    )
    bake_h: float = Field(24.0, ge=0, description="hours after a promotion in which a worse version is taken back")
    max_failures: int = Field(3, ge=1, description="failed attempts of one step after which a retraining stops")
    max_stage_h: float = Field(
        336.0, gt=0, description="hours that a proposal, a job or a rollout may wait or run; a message says so at half"
    )

    @model_validator(mode="after")
    def _anchored(self) -> RetrainSection:
        if self.window.kind == "growing" and self.window.since is None and self.data == "recipe":
            msg = "a growing window of the recipe's rows has to start somewhere: set window.since"
            raise ValueError(msg)
        return self

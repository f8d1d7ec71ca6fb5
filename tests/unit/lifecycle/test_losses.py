"""Losses read from a log that a prediction log wrote, with labels as feedback leaves them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tiny_bundle import tiny_contents

from raymlops.answerloss import AnswerLoss
from raymlops.bundle.loss import OwnLosses
from raymlops.bundle.write import write_bundle
from raymlops.errors import RecipeError
from raymlops.lifecycle.losses import LabelLosses
from raymlops.predictions.counts import Losses
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import Served
from raymlops.predictions.settings import LogSettings
from raymlops.signature import Column, Signature
from raymlops.state.store import Deployment, State

NOW = datetime.now(UTC)
SINCE = NOW - timedelta(minutes=10)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"), Column("yes", "bool")))
RULE = AnswerLoss("probability", "yes", ("p",), positive=True, negative=False)


@pytest.fixture
def state(tmp_path):
    """Return a state in which version 1 is live and version 2 stands beside it."""
    with State.open(f"sqlite:///{tmp_path}/state.db") as state:
        yield state


def live(state, tmp_path, rule=RULE):
    bundle = write_bundle(tmp_path, tiny_contents(signature=SIGNATURE, loss=rule.to_dict()))
    items = [Deployment("m", 1, bundle, "run", "champion"), Deployment("m", 2, bundle, "run", "warm")]
    state.put_deployments({"m": items}, action="deploy", why="")


def answered(tmp_path, *requests):
    """Write requests, `(id, version, probabilities, labels)` each, as the champion's replica would."""
    log = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="m", signature=SIGNATURE, writer="w")
    labels = LabelLog(str(tmp_path), name="m", writer="w")
    for number, (name, version, chances, truths) in enumerate(requests):
        rows = len(chances)
        route = "champion" if version == 1 else "canary"
        served = Served(name, NOW.timestamp() + number, version, route, "native", 200, "", rows, 9, 0.1, 0.1)
        outputs = {"p": np.array(chances), "yes": np.array(chances) >= 0.5}
        log.take([served._replace(columns={"x": np.ones(rows)}, outputs=outputs)])
        if truths:
            labels.add([Label(name, row, text) for row, text in enumerate(truths)]).result(30)
    log.close()
    labels.close()


def test_requests_are_read_with_their_labels(state, tmp_path):
    """0.1 squared and 0.3 squared of one request are 0.05; what has no label is no loss."""
    live(state, tmp_path)
    answered(tmp_path, ("a", 1, [0.9, 0.7], ["1", "true"]), ("b", 2, [0.4], ['"1"']), ("c", 2, [0.4], []))
    losses = LabelLosses(state)
    assert losses("m", 1, SINCE, None) == Losses.of([0.05])
    assert losses("m", 2, SINCE, None) == Losses.of([0.36])


def test_the_log_is_read_twice_a_minute(state, tmp_path):
    live(state, tmp_path)
    now = [0.0]
    losses = LabelLosses(state, clock=lambda: now[0])
    assert losses("m", 1, SINCE, None) == Losses()  # there is no log yet
    answered(tmp_path, ("a", 1, [0.9], ["1"]))
    assert losses("m", 1, SINCE, None) == Losses()
    now[0] = 31.0
    assert losses("m", 1, SINCE, None) == Losses.of([0.01])


def test_where_there_can_be_none_it_says_why(state, tmp_path):
    """And the log is not looked at: it would not be found."""
    live(state, tmp_path, AnswerLoss.none("'p' is a number"))
    assert LabelLosses(state)("m", 2, SINCE, None).note.startswith("'p' is a number; train and register")


def test_a_recipe_that_cannot_be_asked_is_told_and_not_fatal(state, tmp_path):
    """Its code may not import here, hang or end its process: then there is no loss, and the reason."""
    live(state, tmp_path, AnswerLoss("recipe"))
    answered(tmp_path, ("a", 1, [0.9], ["1"]))

    def ask(bundle, pairs):
        raise RecipeError("loss_of did not answer for 1 rows within 120 s")

    losses = LabelLosses(state, ask_recipe=ask)("m", 1, SINCE, None)
    assert losses == Losses(note="loss_of cannot be asked: loss_of did not answer for 1 rows within 120 s")


def test_a_recipe_sees_outputs_and_labels_as_json(state, tmp_path):
    live(state, tmp_path, AnswerLoss("recipe"))
    answered(tmp_path, ("a", 1, [0.75], ['["x",1]']))
    seen = []

    def ask(bundle, pairs):
        seen.extend(pairs)
        return OwnLosses([0.5] * len(pairs))

    assert LabelLosses(state, ask_recipe=ask)("m", 1, SINCE, None) == Losses.of([0.5])
    assert seen == [({"p": 0.75, "yes": True}, ["x", 1])]

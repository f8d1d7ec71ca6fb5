"""What a rollout finds by labels: versions trained, registered and gated, asked in this process; no cluster.

The shipped flights and digits, a regression in two units, and a text beside the probabilities of all classes.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from functools import partial

import pytest
from judged_versions import WORLDS, configured, labelled_rows, made
from labelled_batch import batch_of
from own_versions import config_in, edited_in

import raymlops as rm
from raymlops.bundle.load import load
from raymlops.bundle.loss import own_losses, read_loss
from raymlops.config.serve import RolloutSection
from raymlops.errors import GateRefusedError
from raymlops.lifecycle.rollout.loss_rule import Counted
from raymlops.lifecycle.rollout.significance import StepEvidence, find

pytestmark = pytest.mark.integration

REQUESTS = 800
KINDS = {"flights": "probability", "digits": "class", "price-1e5": "number", "price-1e-3": "number", "trees": "class"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder on the path, where the recipes' file is written."""
    with edited_in(tmp_path_factory.mktemp("judged")) as folder:
        yield folder
    sys.modules.pop("judged", None)


def quality(champion, canary, rows):
    """Return the finding on quality where both versions answered half of the requests, each with its label."""
    rule = read_loss(champion.bundle.uri, champion.bundle.digest)
    models = [load(ref.bundle.uri, ref.bundle.digest) for ref in (champion, canary)]
    answers = [model.predict_rows([row for row, _ in rows]) for model in models]
    log = []
    for number in range(REQUESTS):
        side = number % 2
        about = {"request_id": str(number), "ts": datetime.now(UTC), "fallback_from": None}
        about |= {"model_version": side, "route": ("champion", "canary")[side]}
        at = number % len(rows)
        log.append({**about, "output": answers[side][at], "label": json.dumps(rows[at][1])})
    batch, labels = batch_of(log)
    ask = partial(own_losses, champion.bundle.uri, champion.bundle.digest)
    counted = Counted(rule, ask, labels, max_caller_share=0.5)
    counted.add(batch)
    losses = counted.losses()
    step = StepEvidence(0.5, canary_losses=losses[1], champion_losses=losses[0])
    (found,) = (finding for finding in find([step], RolloutSection()) if finding.question == "quality")
    return rule, found


@pytest.mark.parametrize(
    "world", [pytest.param(world, marks=pytest.mark.soak if world == "flights" else ()) for world in WORLDS]
)
def test_a_constant_is_worse_than_a_trained_model_by_its_labels(world, folder, tmp_path, mlflow_database):
    """As canary it is harm, surely; as champion it is no reason to keep the trained one back."""
    data = config_in(tmp_path, name=world, dashboard_url="http://127.0.0.1:1", mlflow_database=mlflow_database)
    data = configured(data, world)
    versions, rows = made(data, folder, seed=0), labelled_rows(data, seed=0)
    rule, found = quality(versions["trained"], versions["constant"], rows)
    assert rule.kind == KINDS[world]
    assert (found.harmful, found.passed) == (True, False), found
    with pytest.raises(GateRefusedError, match="answers agree with metrics: got 0"):
        rm.gate(data, str(versions["constant"].version))
    _, decision = rm.gate(data, str(versions["trained"].version))
    assert [check.name for check in decision.checks] == ["answers requests", "answers agree with metrics"]
    _, found = quality(versions["constant"], versions["trained"], rows)
    assert (found.harmful, found.passed) == (False, True), found

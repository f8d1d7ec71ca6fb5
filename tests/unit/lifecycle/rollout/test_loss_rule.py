"""One loss a request, by the champion's rule, and why there may be none."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from labelled_batch import batch_of
from tiny_bundle import tiny_contents

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.bundle.loss import OwnLosses
from raymlops.bundle.write import write_bundle
from raymlops.config.serve import RolloutSection
from raymlops.lifecycle.quality.answers import rule_of
from raymlops.lifecycle.registration.quality import of_answers
from raymlops.lifecycle.rollout.loss_rule import Counted, unasked
from raymlops.lifecycle.rollout.significance import StepEvidence, find
from raymlops.signature import Signature
from raymlops.state.store import Deployment

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATE = AnswerLoss("probability", "late", ("probability",), positive=True, negative=False)
PRICE = AnswerLoss("number", "price", scale=10.0)
RECIPE = AnswerLoss("recipe")


def row(request, output, label, *, version=1, route="champion", fallback_from=None, second=0, caller=None):
    return {
        "request_id": request,
        "caller": caller,
        "ts": NOW + timedelta(seconds=second),
        "model_version": version,
        "route": route,
        "fallback_from": fallback_from,
        "output": output,
        "label": json.dumps(label),
    }


def late(request, probability, label, **of):
    return row(request, {"probability": probability, "late": probability >= 0.5}, label, **of)


def counted(rows, rule=LATE, ask=None, known=None):
    batch, labels = batch_of(rows)
    found = Counted(rule, ask or (lambda pairs: OwnLosses([])), labels, max_caller_share=0.5, known=known)
    found.add(batch)
    return found.losses()


def means(rows, rule=LATE):
    """Return how many requests of each version have a loss, and its mean."""
    return {version: (losses.count, pytest.approx(losses.mean)) for version, losses in counted(rows, rule).items()}


def test_a_request_has_one_loss_however_many_rows_it_has():
    """0.16, 0.04 and 0.01 are 0.07 in the mean; the other request counts as much, with its single row."""
    rows = [late("a", 0.6, 1), late("a", 0.2, 0), late("a", 0.1, 0), late("b", 0.5, 1)]
    assert means(rows) == {1: (2, 0.16)}


def test_a_request_gains_what_a_blind_predictor_loses_more():
    """Labels 1, 1, 0 and 0: blind is one half, and loses .25 of each row; of the rows of "a" .25 - (.16 + .04) / 2."""
    rows = [late("a", 0.6, 1), late("a", 0.2, 0), late("b", 1.0, 1), late("c", 1.0, 0, version=2, route="canary")]
    found = counted(rows)
    assert {version: losses.gain for version, losses in found.items()} == pytest.approx({1: 0.2, 2: -0.75})
    assert found[2].extremes == pytest.approx((-0.75, 0.0))


def test_a_blind_number_is_the_median():
    """Of 0, 10 and 40 it is 10: 1, 0 and, clipped at the scale of 10, 1."""
    rows = [row(name, {"price": 10.0}, label) for name, label in (("a", 0.0), ("b", 10.0), ("c", 40.0))]
    assert counted(rows, PRICE)[1].gains[1] == pytest.approx(0.0)
    assert counted([*rows, row("d", {"price": 40.0}, 40.0)], PRICE)[1].gains[1] == pytest.approx(1.0)


def test_each_version_has_its_own_requests():
    rows = [late("a", 1.0, 1), late("b", 0.0, 1, version=2, route="canary")]
    assert means(rows) == {1: (1, 0), 2: (1, 1)}


def test_a_retry_under_the_same_id_counts_once():
    """The same answer twice, and of two versions' the one that came first, in whatever order they are read."""
    assert means([late("a", 0.9, 1), late("a", 0.9, 1, second=2)]) == {1: (1, 0.01)}
    rows = [late("a", 1.0, 1, second=2), late("a", 0.0, 1, version=2, route="canary"), late("a", 1.0, 1, second=3)]
    assert means(rows) == {2: (1, 1)}


@pytest.mark.parametrize("ours", [{}, {"version": 2, "route": "canary"}], ids=["champion", "canary"])
def test_of_an_id_that_is_used_again_the_first_answer_alone_counts(ours):
    """An order's number, asked again for other rows: else the version that answers more of them had more to add."""
    rows = [late("a", 1.0, 1, **ours), late("a", 1.0, 1, **ours), late("a", 0.0, 1, second=9, **ours)]
    (found,) = means(rows).values()
    assert found == (1, 0.0)
    assert counted(rows[::-1]) == counted(rows)


def test_an_id_of_another_caller_is_another_request():
    """Two shops that number their orders from 1; nobody takes away what another one's answers show."""
    rows = [late("1", 1.0, 1, caller="shop"), late("1", 0.0, 1, second=1, caller="store")]
    assert means(rows) == {1: (2, 0.5)}


def test_equally_good_versions_have_equal_losses_where_ids_are_used_again():
    """The first answer to each is wrong, nine later ones are right: counted together, the champion, to which most of
    them fall, seemed better by a half.
    """
    rng = np.random.default_rng(4)
    rows = []
    for request in range(2000):
        for repeat in range(10):
            side = {"version": 2, "route": "canary"} if rng.random() < 0.1 else {}
            rows.append(late(str(request), float(repeat > 0), 1, second=repeat, **side))
    assert {version: losses.mean for version, losses in counted(rows).items()} == {1: 1.0, 2: 1.0}


@pytest.mark.parametrize("of", [{"route": "shadow"}, {"route": "pinned"}, {"fallback_from": 2}])
def test_what_chance_did_not_give_to_a_version_counts_for_none(of):
    assert means([late("a", 0.9, 1, **of), late("b", 0.9, 1)]) == {1: (1, 0.01)}


def test_a_request_is_clipped_where_most_of_its_errors_are_beyond_the_scale():
    rows = [row("a", {"price": value}, 0.0) for value in (50.0, 80.0, 1.0)] + [row("b", {"price": 2.0}, 0.0)]
    assert means(rows, PRICE) == {1: (2, 0.45)}
    assert counted(rows, PRICE)[1].clipped == 1


def test_labels_that_fit_nothing_are_said():
    """One that fits is enough to ask; the others say nothing of a version."""
    unlike = [late("a", 0.9, "maybe"), late("b", 0.9, None)]
    note = counted(unlike)[None].note
    assert note.startswith('none of 2 labels, such as "maybe", can be compared with its answer')
    assert means([*unlike, late("c", 0.9, True)]) == {1: (1, 0.01)}


def test_a_recipe_is_asked_itself_and_its_failures_count_and_are_told():
    """A version whose outputs make it fail is none the better for it; where most fail there is no measure."""
    asked = []

    def ask(pairs):
        asked.extend(pairs)
        return OwnLosses([0.25, None, math.nan, math.nan], "Mine.loss_of() raised KeyError: 'x'")

    rows = [row(name, {"y": 1.0}, 1) for name in "abcd"]
    known = of_answers(RECIPE, [{"y": 1.0}] * 80, [0, 1] * 40, own=lambda output, label: abs(output["y"] - label) / 2)
    losses = counted(rows, RECIPE, ask, known)[1]
    assert asked == [({"y": 1.0}, 1)] * 4
    assert (losses.count, losses.mean, losses.clipped) == (3, 0.75, 2)
    assert losses.note == "Mine.loss_of() raised KeyError: 'x'"
    assert losses.mostly_clipped
    assert losses.gain == pytest.approx(known.metrics["loss"].base[1] - 0.75)


def test_without_test_rows_a_recipes_own_loss_has_no_blind_predictor():
    found = counted([row("a", {"y": 1.0}, 1)], RECIPE, lambda pairs: OwnLosses([0.25]))
    assert "keeps no test rows" in found[None].note


def deployed(tmp_path, serve=None, **changes):
    bundle = write_bundle(tmp_path, tiny_contents(**changes))
    return Deployment("tiny", 7, bundle, "run", "champion", serve or {})


def test_the_rule_is_that_of_the_champions_bundle(tmp_path):
    champion = deployed(tmp_path, loss=LATE.to_dict())
    assert rule_of(champion) == LATE
    assert unasked(champion) is None


def test_a_bundle_of_before_has_what_its_signature_allows(tmp_path):
    """A class and its probability need no scale; a number does, and it says what to do."""
    late = Signature((Column("x", "float"),), (Column("probability", "float"), Column("late", "bool")))
    assert rule_of(deployed(tmp_path / "class", signature=late)) == LATE
    price = Signature((Column("x", "float"),), (Column("price", "float"),))
    lack = unasked(deployed(tmp_path / "price", signature=price))
    assert lack == (
        "'price' is a number, and no scale of its errors was kept; "
        "train and register again, where that is not enough with loss_of(output, label) in the recipe"
    )


@pytest.mark.parametrize(
    ("log", "lack"),
    [
        ({"enabled": False}, "the prediction log is off; set serve.log.enabled"),
        ({"redact": ["probability"]}, "serve.log.redact leaves probability out of the log"),
        ({"redact": ["late"]}, None),
    ],
)
def test_without_the_log_there_is_nothing_to_compare(tmp_path, log, lack):
    assert unasked(deployed(tmp_path, {"log": log}, loss=LATE.to_dict())) == lack


def test_a_bundle_that_is_gone_is_said(tmp_path):
    champion = deployed(tmp_path)
    (tmp_path / "bundles" / champion.bundle.digest / "manifest.json").unlink()
    assert unasked(champion).startswith("the bundle of version 7 cannot be read: ")


def test_equally_good_versions_are_not_aborted_where_a_request_has_a_hundred_rows():
    """Rows of a request go wrong together, and chance gave the request. Counted row by row, nearly every other of these
    rollouts was aborted: none of twenty is.
    """
    rng = np.random.default_rng(3)
    harmful = []
    for _ in range(20):
        rows = []
        for request in range(400):
            side = {"version": 2, "route": "canary"} if rng.random() < 0.1 else {}
            wrong = rng.random(100) < rng.beta(0.6, 1.4)
            rows += [row(f"{request}", {"kind": "b" if bad else "a"}, "a", **side) for bad in wrong]
        batch, labels = batch_of(rows)
        found = Counted(AnswerLoss("class", "kind"), lambda pairs: OwnLosses([]), labels, max_caller_share=0.5)
        for look in range(4):
            found.add(batch.slice(10_000 * look, 10_000))
            losses = found.losses()
            step = StepEvidence(0.1, canary_losses=losses[2], champion_losses=losses[1])
            harmful += [finding.harmful for finding in find([step], RolloutSection()) if finding.question == "quality"]
    assert len(harmful) == 80
    assert not any(harmful)


def test_worse_versions_do_not_pass_by_the_rows_of_few_requests():
    """Worse by twice the margin in 120 requests of 100 rows. Counted row by row, 12,000 rows were sure of anything."""
    rng = np.random.default_rng(6)
    for _ in range(10):
        rows = []
        for request in range(120):
            worse = bool(request % 2)
            side = {"version": 2, "route": "canary"} if worse else {}
            mean = 0.4 if worse else 0.3
            wrong = rng.random(100) < rng.beta(2 * mean, 2 * (1 - mean))
            rows += [row(f"{request}", {"kind": "b" if bad else "a"}, "a", **side) for bad in wrong]
        losses = counted(rows, AnswerLoss("class", "kind"))
        step = StepEvidence(0.5, canary_losses=losses[2], champion_losses=losses[1])
        assert [one.passed for one in find([step], RolloutSection()) if one.question == "quality"] == [False]

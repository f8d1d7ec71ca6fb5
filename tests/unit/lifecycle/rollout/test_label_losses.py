"""Which answers of the log are compared with a label, in which window, and what is said where there is no loss."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from stored import put
from tiny_bundle import tiny_contents

from raymlops.answer_loss import AnswerLoss
from raymlops.arrays import Column
from raymlops.bundle.loss import OwnLosses
from raymlops.bundle.write import write_bundle
from raymlops.errors import RecipeError
from raymlops.lifecycle.rollout.label_losses import LabelLosses
from raymlops.lifecycle.rollout.loss_reader import Window
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.records import BundleRef
from raymlops.signature import Signature
from raymlops.state.store import Deployment

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOUR = Window(NOW - timedelta(hours=1), None)
SIGNATURE = Signature((Column("x", "float"),), (Column("p", "float"), Column("yes", "bool")))
RULE = AnswerLoss("probability", "yes", ("p",), positive=True, negative=False)


def live(state, tmp_path, rule=RULE, signature=SIGNATURE):
    """Make version 1 champion and version 2 warm; the log is where the champion's bundle is."""
    bundle = write_bundle(tmp_path, tiny_contents(signature=signature, loss=rule.to_dict()))
    elsewhere = BundleRef(f"{tmp_path}/elsewhere/bundles/{'d' * 64}", "d" * 64)
    items = [Deployment("m", 1, bundle, "run", "champion"), Deployment("m", 2, elsewhere, "run", "warm")]
    put(state, "m", items)


def answer(request_id, *chances, version=1, route="champion", minute=0, **fields):
    arrived = (NOW + timedelta(minutes=minute)).timestamp()
    rows = len(chances)
    served = RequestRecord(request_id, arrived, version, route, "native", 200, "", rows, 9, 0.1, 0.1, **fields)
    outputs = {"p": np.array(chances), "yes": np.array(chances) >= 0.5}
    return served._replace(columns={"x": np.ones(rows)}, outputs=outputs)


def log(tmp_path, *answers, signature=SIGNATURE):
    """Write what was answered as one file, and return the files of the log."""
    written = PredictionLog(LogSettings(enabled=True, uri=str(tmp_path)), name="m", signature=signature, writer="a")
    written.take(answers)
    written.close()
    return list((tmp_path / "predictions").rglob("*.parquet"))


def label(tmp_path, *labels):
    kept = LabelLog(str(tmp_path), name="m", writer="a", now=NOW.timestamp)
    kept.add(labels).result(timeout=30)
    kept.close()


def means(found):
    """Return how many requests of each version have a loss, and its mean."""
    return {version: (losses.count, pytest.approx(losses.mean)) for version, losses in found.items()}


def test_losses_are_read_of_shared_out_answers_with_a_label(state, tmp_path):
    """Of both versions, in each window: neither those that were pinned, nor of copies, nor where one stood in."""
    live(state, tmp_path)
    log(
        tmp_path,
        answer("a", 0.8, minute=-20),
        answer("b", 0.5),
        answer("c", 0.9, version=2, route="canary"),
        answer("d", 0.1, route="pinned"),
        answer("e", 0.2, version=2, route="pinned"),
        answer("f", 0.3, version=2, route="shadow"),
        answer("g", 0.4, fallback_from=2),
        answer("h", 0.6),
    )
    label(tmp_path, *(Label(request_id, 0, "true") for request_id in "abcdefg"))
    seen = []
    before, during = Window(NOW - timedelta(hours=1), NOW), Window(NOW, None)
    found = LabelLosses(state)("m", [before, during], labelled=lambda: seen.append(True))
    assert (seen, found.left_out) == ([True], "")
    assert means(found.losses[before]) == {1: (1, 0.04)}
    assert means(found.losses[during]) == {1: (1, 0.25), 2: (1, 0.01)}


def test_a_request_has_one_loss(state, tmp_path):
    """0.1 squared and 0.3 squared of its labelled rows are 0.05 in the mean."""
    live(state, tmp_path)
    log(tmp_path, answer("a", 0.9, 0.7, 0.2))
    label(tmp_path, Label("a", 0, "1"), Label("a", 1, '"true"'))
    assert means(LabelLosses(state)("m", [HOUR], labelled=lambda: None).losses[HOUR]) == {1: (1, 0.05)}


def test_without_a_label_no_answer_is_read(state, tmp_path):
    """A look at the labels' folder is enough: a damaged file of the log is not even opened, as no warning tells."""
    live(state, tmp_path)
    losses = LabelLosses(state)
    assert losses("m", [HOUR], labelled=pytest.fail).losses == {HOUR: {}}
    (file,) = log(tmp_path, answer("a", 0.8))
    file.write_bytes(b"no Parquet")
    assert losses("m", [HOUR], labelled=pytest.fail).losses == {HOUR: {}}


def test_labels_of_the_days_before_announce_those_of_a_rollout(state, tmp_path):
    """They arrived three days before it began, so that its own may be as late; nine are over."""
    live(state, tmp_path)
    log(tmp_path, answer("a", 0.8))
    label(tmp_path, Label("z", 0, "true"))
    seen = []
    for days in (3, 9):
        since = NOW + timedelta(days=days)
        window = Window(since, None)
        found = LabelLosses(state)("m", [window], labelled=lambda days=days: seen.append(days))
        assert found.losses == {window: {}}
    assert seen == [3]


def test_a_step_that_took_no_time_has_no_losses(state, tmp_path):
    """It began and ended at once."""
    live(state, tmp_path)
    log(tmp_path, answer("a", 0.8))
    label(tmp_path, Label("a", 0, "true"))
    window = Window(NOW, NOW)
    assert LabelLosses(state)("m", [window], labelled=lambda: None).losses == {window: {}}


def test_what_is_left_out_of_too_many_labels_is_said(state, tmp_path):
    """400 labels of at least 36 bytes take the room of 4 KiB twice, so that at most one in eight rows is read."""
    live(state, tmp_path)
    numbers = range(400)
    log(tmp_path, *(answer(f"{number:036}", 0.5) for number in numbers))
    label(tmp_path, *(Label(f"{number:036}", 0, "true") for number in numbers))
    losses = LabelLosses(state)
    losses.max_label_bytes = 4096
    found = losses("m", [HOUR], labelled=lambda: None)
    assert found.left_out.startswith("labels take more than 4 KiB, so that those of one in ")
    assert 0 < found.losses[HOUR][1].count < 100


def test_damaged_files_are_left_out_and_said(state, tmp_path):
    """Of labels and of answers: otherwise a rollout would be held without a reason."""
    live(state, tmp_path)
    (rows,) = log(tmp_path, answer("a", 0.8))
    label(tmp_path, Label("a", 0, "true"))
    (labels,) = (tmp_path / "labels").rglob("*.parquet")
    for file in (rows, labels):
        kept = file.read_bytes()
        file.write_bytes(b"no Parquet")
        found = LabelLosses(state)("m", [HOUR], labelled=lambda: None)
        said = f"damaged and left out: 1 files, such as {file.relative_to(tmp_path)}"
        assert (found.losses, found.left_out) == ({HOUR: {}}, said)
        file.write_bytes(kept)


def test_where_there_can_be_none_it_says_why(state, tmp_path):
    """And no label is looked for: those that are there change nothing."""
    live(state, tmp_path, AnswerLoss.none("'p' is a number"))
    label(tmp_path, Label("a", 0, "true"))
    found = LabelLosses(state)("m", [HOUR], labelled=pytest.fail).losses[HOUR]
    assert found[None].note.startswith("'p' is a number; train and register")


def test_a_bundle_that_is_damaged_gives_no_losses(state, tmp_path):
    """Its replicas run, and what they answer is still judged by errors and slowness."""
    live(state, tmp_path)
    (tmp_path / "bundles" / state.deployments("m")[0].bundle.digest / "manifest.json").write_text("{}")
    note = LabelLosses(state)("m", [HOUR], labelled=pytest.fail).losses[HOUR][None].note
    assert note.startswith("the bundle of version 1 cannot be read: ")


def test_a_recipe_that_cannot_be_asked_is_a_log_that_cannot_be_read(state, tmp_path):
    """Its code does not import here, hangs or ends its process: what its labels would say is not known."""
    live(state, tmp_path, AnswerLoss("recipe"))
    log(tmp_path, answer("a", 0.9))
    label(tmp_path, Label("a", 0, "1"))

    def ask(bundle, pairs):
        raise RecipeError("loss_of did not answer for 1 rows within 120 s")

    seen = []
    with pytest.raises(RecipeError, match="within 120 s"):
        LabelLosses(state, ask_recipe=ask)("m", [HOUR], labelled=lambda: seen.append(True))
    assert seen == [True]


def test_a_recipe_sees_outputs_and_labels_as_json(state, tmp_path):
    live(state, tmp_path, AnswerLoss("recipe"))
    log(tmp_path, answer("a", 0.75))
    label(tmp_path, Label("a", 0, '["x",1]'))
    seen = []

    def ask(bundle, pairs):
        seen.extend(pairs)
        return OwnLosses([0.5] * len(pairs))

    found = LabelLosses(state, ask_recipe=ask)("m", [HOUR], labelled=lambda: None).losses[HOUR]
    assert "keeps no test rows" in found[None].note
    assert seen == [({"p": 0.75, "yes": True}, ["x", 1])]


def test_a_recipe_sees_answers_as_a_caller_does(state, tmp_path):
    """Times as text, gaps as null, vectors as lists: as its contract and the gate show it answers."""
    outputs = {
        "at": (Column("at", "datetime", nullable=True), np.array(["2026-01-31T12:00:00.5", "NaT"], "datetime64[us]")),
        "count": (Column("count", "int", nullable=True), np.array([3.0, np.nan])),
        "parts": (Column("parts", "float", shape=(None,)), np.array([np.ones(1), np.arange(3.0)], dtype=object)),
        "name": (Column("name", "string"), np.array(["a", "b"], dtype=object)),
    }
    signature = Signature((Column("x", "float"),), tuple(column for column, _ in outputs.values()))
    answered = {name: values for name, (_, values) in outputs.items()}
    live(state, tmp_path, AnswerLoss("recipe"), signature)
    log(tmp_path, answer("a", 0.5, 0.5)._replace(outputs=answered), signature=signature)
    label(tmp_path, Label("a", 0, "1"), Label("a", 1, "2"))
    seen = []

    def ask(bundle, pairs):
        seen.extend(output for output, _ in pairs)
        return OwnLosses([0.5] * len(pairs))

    LabelLosses(state, ask_recipe=ask)("m", [HOUR], labelled=lambda: None)
    assert seen == signature.rows(answered)
    assert [output["at"] for output in seen] == ["2026-01-31T12:00:00.500000Z", None]

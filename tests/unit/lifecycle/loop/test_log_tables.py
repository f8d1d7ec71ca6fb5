import itertools
import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import Tiny
from tiny_log import DAY, TODAY, live, log_days, retraining

from raymlops.arrays import Column
from raymlops.config.load import load_data
from raymlops.data.prepare import prepare
from raymlops.errors import ConfigError, DataRefusedError, RecipeError
from raymlops.lifecycle.loop.training_data import check_recipe, tables_of, training_window, unretrainable, windowed
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.project import bind
from raymlops.recipe import ASKED_AT, LABELLED_AT, known_times_of, times_of
from raymlops.signature import Signature
from raymlops.splits import Window
from raymlops.state.watch.incidents import Filed, Incident, record_window
from raymlops.state.watch.windows import JudgedWindow


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Return a folder with the log of 40 days."""
    folder = tmp_path_factory.mktemp("logged")
    log_days(folder, 40)
    return folder


def made(state, folder, **retrain):
    champion = live(state, folder, window={"days": 40}, **retrain)
    return tables_of(state, retraining(champion), champion, Tiny)


def test_the_labelled_log_becomes_tables_that_a_run_reads(state, logged, tmp_path):
    """40 days of 40 rows: the labels of 39 came in, each day's at 0.95 of the next; 312 of 1,560 rows test.

    The test begins on day 31, with its third request. What was asked until day 30 had its label by then: 1,200 rows, of
    which 150 validate, two more with the rest of their request; 48 rows were labelled too late.
    """
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    found = made(state, tmp_path)
    assert found.numbers | {"rows": 1_600, "labelled": 1_560, "known_late": 48} == found.numbers
    assert found.numbers["coverage"] > 0.99
    sizes = {part: found.numbers[part] for part in ("train", "validation", "test")}
    assert sizes == {"train": 1_048, "validation": 152, "test": 312}
    data = {"project": {"name": "t"}, "recipe": {"import": "tiny:Tiny"}, "train": {"tables": found.uri}}
    prepared = prepare(bind(load_data(data)))
    assert prepared.data.rows == sizes
    (train,), (test,) = (list(prepared.splits[part].chunks()) for part in ("train", "test"))
    assert known_times_of(prepared.recipe, train).max() < times_of(prepared.recipe, test).min()
    assert train["label"].dtype == np.float64
    assert set(train) == {"length", "width", "colour", "label", ASKED_AT, LABELLED_AT}
    assert "all rows were answered by version 3: what was done with the answers may show in the labels" in found.notes


def log_one(folder, length, values):
    """Log a labelled request that version 2 answered a day ago, whose ``length`` was of another type."""
    width, colour = Column("width", "float", nullable=True), Column("colour", "string", nullable=True)
    signature = Signature((length, width, colour), (Column("probability", "float"),))
    log = PredictionLog(LogSettings(enabled=True, uri=str(folder)), name="tiny", signature=signature, writer="old")
    columns = {"length": values, "width": np.ones(1), "colour": np.array(["red"], dtype=object)}
    asked = (TODAY - DAY).timestamp()
    record = RequestRecord("old", asked, 2, "champion", "native", 200, "", 1, 100, 0.1, 0.1)
    log.take([record._replace(columns=columns, outputs={"probability": np.ones(1)}, caller="a")])
    log.close()
    labels = LabelLog(str(folder), name="tiny", writer="old", now=lambda: asked + 60)
    labels.add([Label("old", 0, "1.0")], caller="a").result(timeout=30)
    labels.close()


def test_an_input_of_another_type_is_refused_with_the_version_that_took_it(state, logged, tmp_path):
    """Integers become floats, as they mean the same."""
    shutil.copytree(logged, tmp_path / "texts")
    log_one(tmp_path / "texts", Column("length", "string"), np.array(["7"], dtype=object))
    with pytest.raises(DataRefusedError, match=r"length as string where version 2 answered; .* takes double"):
        made(state, tmp_path / "texts")
    shutil.copytree(logged, tmp_path / "integers")
    log_one(tmp_path / "integers", Column("length", "int"), np.array([7]))
    champion = live(state, tmp_path / "integers", window={"days": 40})
    assert tables_of(state, retraining(champion), champion, Tiny).numbers["labelled"] == 1_561


def test_rows_keep_their_inputs_and_labels(state, logged, tmp_path):
    """The first training rows are those that were first asked, copies to a shadow left out."""
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    found = made(state, tmp_path)
    table = Tiny(Tiny.Config(train_rows=1_600, validation_rows=1, test_rows=1)).datasets().train
    train = pq.read_table(f"{found.uri}/train.parquet")
    for name in ("length", "label"):
        np.testing.assert_array_equal(train[name].to_numpy()[:100], np.asarray(table[name], np.float64)[:100])
    assert train["colour"].to_pylist()[:100] == list(table["colour"][:100])
    assert (np.diff(train[ASKED_AT].to_numpy()) >= np.timedelta64(0)).all()


def test_a_second_call_finds_what_the_first_one_wrote(state, logged, tmp_path):
    """Whatever became of the log since: a resumed run has the same rows."""
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    first = made(state, tmp_path)
    files = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    shutil.rmtree(tmp_path / "predictions")
    assert made(state, tmp_path) == first
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == files


def test_callers_that_number_their_own_requests_have_rows_of_their_own(state, tmp_path):
    """Two of them with the same ids: nobody's rows vanish, and each row has its own caller's label."""
    log_days(tmp_path, 20, ids_of_callers=True)
    found = made(state, tmp_path)
    assert (found.numbers["rows"], found.numbers["labelled"]) == (800, 760)
    table = Tiny(Tiny.Config(train_rows=800, validation_rows=1, test_rows=1)).datasets().train
    train = pq.read_table(f"{found.uri}/train.parquet")
    np.testing.assert_array_equal(train["label"].to_numpy()[:80], np.asarray(table["label"], np.float64)[:80])


def test_a_label_of_another_kind_is_left_out(state, tmp_path):
    """One text among numbers, which the answers cannot be compared with."""
    said = itertools.count()
    log_days(tmp_path, 20, truth=lambda label: float(label) if next(said) else '"x"')
    found = made(state, tmp_path)
    assert (found.numbers["labelled"], found.numbers["do_not_count"]) == (760, 1)
    assert "left out: 1 labels are of another kind, or of a class that the reference has no row of" in found.notes


def test_a_correction_is_known_when_it_comes(state, logged, tmp_path):
    """100 requests of the first 20 days are corrected after the test began, as many others after the decision.

    The label of the former was not known in time, whatever was said first; that of the latter is as if not corrected.
    """
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    for first, at in ((0, TODAY - 2 * DAY), (1, TODAY + timedelta(hours=1))):
        labels = LabelLog(str(tmp_path), name="tiny", writer=f"c{first}", now=at.timestamp)
        corrected = [Label(f"r{of}", row, "7.0", True) for of in range(first, 200, 2) for row in range(4)]
        labels.add(corrected, caller="ab"[first]).result(timeout=30)
        labels.close()
    found = made(state, tmp_path)
    assert (found.numbers["known_late"], found.numbers["test"]) == (48 + 400, 312)
    train, test = (pq.read_table(f"{found.uri}/{part}.parquet") for part in ("train", "test"))
    assert train[LABELLED_AT].to_numpy().max() < test[ASKED_AT].to_numpy().min()
    assert train["label"].to_numpy().max() == 1.0


@pytest.mark.parametrize(
    ("log", "retrain", "match"),
    [
        (
            {"days": 40, "labelled": 0.2},
            {},
            r"20\.\d% of the 1,600 rows in the log get a label, .* is 0\.5: 312 have",
        ),
        ({"days": 2}, {}, r"of 40 labelled rows there are 0 for train, .*, and 30 are needed"),
        ({"days": 40, "callers": ("x",) * 9 + ("y",)}, {"max_caller_share": 0.2}, r"the key x sent 90% of the labels"),
        (
            {"days": 40, "redact": ("width",)},
            {},
            r"the prediction log lacks the input width: serve.log.redact leaves it out",
        ),
        ({"days": 0}, {}, "the prediction log has no row of the window"),
    ],
)
def test_a_log_that_nothing_can_be_trained_on_is_refused_with_numbers(state, tmp_path, log, retrain, match):
    """Too few labels, too few rows, one caller who floods, an input that is not logged, nothing at all."""
    log_days(tmp_path, **log)
    with pytest.raises(DataRefusedError, match=match):
        made(state, tmp_path, **retrain)
    assert not list(tmp_path.glob("data/*.json"))


def test_days_of_a_known_fault_are_left_out(state, logged, tmp_path):
    """An incident of a bound that was open for ten days."""
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    start = TODAY - 30 * DAY
    window = JudgedWindow("tiny", "inputs", "quality", 0, start, start + DAY, 3, "alarm", "nulls", 400, start)
    incident = Incident(
        "i1", "tiny", "inputs", "quality", 0, start, start, 1, "width (max_nulls)", closed_at=start + 10 * DAY
    )
    assert record_window(state, window, lambda _known: [Filed(incident)])
    found = made(state, tmp_path)
    assert found.numbers["of_faults"] == 400
    assert "400 rows of 240 h are left out: what was served was broken (incident i1)" in found.notes


def test_the_window_ends_with_the_decision(state, tmp_path):
    """Trailing days before it, or all since a growing window began; rows of the recipe are asked for by it."""
    champion = live(state, tmp_path, data="recipe", window={"days": 30})
    one = retraining(champion)
    assert training_window(one) == Window(TODAY - 30 * DAY, TODAY)
    later = TODAY + 11 * DAY
    accepted = replace(
        one, stages=({"stage": "proposed", "at": TODAY.isoformat()}, {"stage": "checking", "at": later.isoformat()})
    )
    assert training_window(accepted) == Window(later - 30 * DAY, later)
    assert windowed(one) == {"window": {"start": "2026-01-30T00:00:00+00:00", "stop": "2026-03-01T00:00:00+00:00"}}
    grows = {"data": "recipe", "window": {"kind": "growing", "since": "2025-01-01", "days": 30}}
    since = training_window(replace(one, settings=live(state, tmp_path, **grows).retrain)).start
    assert since == TODAY - timedelta(days=424)
    assert windowed(replace(one, settings={"data": "log"})) == {}
    with pytest.raises(ConfigError, match="has to start somewhere"):
        load_data({"project": {"name": "t"}, "recipe": {"import": "a:B"}, "retrain": {"window": {"kind": "growing"}}})


def test_a_recipe_without_windows_or_labels_is_refused():
    """The message says how to have them."""
    with pytest.raises(RecipeError, match=r"Tiny.datasets\(\) takes no window"):
        check_recipe(Tiny, later_rows=None)

    class Untimed(Tiny):
        def datasets(self, window=None):
            raise NotImplementedError

    with pytest.raises(RecipeError, match=r"Untimed has no row_times\(\): the gate would reject each version"):
        check_recipe(Untimed, later_rows=None)
    check_recipe(Untimed, later_rows=False)

    class Unlabelled(Tiny):
        label = None

    with pytest.raises(RecipeError, match="Unlabelled has no label"):
        tables_of(None, None, None, Unlabelled)
    loaded = {"project": {"name": "t"}, "recipe": {"import": "tiny:Tiny"}, "retrain": {"triggers": {"skill": True}}}
    assert "Tiny.datasets() takes no window" in unretrainable(bind(load_data(loaded)))
    assert unretrainable(bind(load_data({**loaded, "retrain": {**loaded["retrain"], "data": "log"}}))) is None
    assert unretrainable(bind(load_data({**loaded, "retrain": {}}))) is None

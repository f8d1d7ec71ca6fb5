"""From a training to a verdict: what `register` keeps is what labelled traffic is compared with."""

from __future__ import annotations

from datetime import timedelta

from labelled_days import DAY, FIRST
from stored import put
from tiny import make_table

from raymlops.bundle.load import answer, load
from raymlops.lifecycle.quality.judge import QualityJudge
from raymlops.lifecycle.registration.register import register
from raymlops.predictions.labels import Label, LabelLog
from raymlops.predictions.log import PredictionLog
from raymlops.predictions.served import RequestRecord
from raymlops.predictions.settings import LogSettings
from raymlops.state.database import state_url
from raymlops.state.store import Deployment, State
from raymlops.state.watch.windows import judged_windows
from raymlops.training.run import train

ROWS = 400


def served(folder, model, table, *, day, flip):
    """Answer a day's requests of one row each, and label them an hour after its end."""
    inputs = {column.name: table[column.name] for column in model.signature.inputs}
    outputs = answer(model.recipe, model.model, inputs, signature=model.signature)
    begin, step = (FIRST + day * DAY).timestamp(), 86400.0 / ROWS
    log = PredictionLog(
        LogSettings(enabled=True, uri=str(folder)), name="tiny", signature=model.signature, writer=f"w{day}"
    )
    asked = [
        RequestRecord(
            f"{day}-{at}", begin + at * step, 1, "champion", "native", 200, "", 1, 9, 0.1, 0.1,
            columns={name: values[at : at + 1] for name, values in inputs.items()},
            outputs={name: values[at : at + 1] for name, values in outputs.items()},
        )
        for at in range(ROWS)
    ]  # fmt: skip
    log.take(asked)
    log.close()
    kept = LabelLog(str(folder), name="tiny", writer=f"l{day}", now=lambda: begin + 86400 + 3600)
    truths = table["label"] != flip
    kept.add([Label(f"{day}-{at}", 0, str(int(truth))) for at, truth in enumerate(truths)]).result(timeout=30)
    kept.close()


def test_a_registered_version_is_judged_by_its_labels(tiny_project, storage_path):
    """Days like its test rows are as before; then every label is the other one, and it is worse."""
    project = tiny_project(epochs=1, config={"test_rows": 1000})
    run = train(project)
    version = register(project.spec, run.run_id)
    model = load(version.bundle.uri, version.bundle.digest)
    with State.open(state_url(project.spec)) as state:
        put(state, "tiny", [Deployment("tiny", 1, version.bundle, run.run_id, "champion", {})])
        for day, flip in enumerate([False] * 5 + [True] * 3):
            served(storage_path, model, make_table(ROWS, seed=50 + day), day=day, flip=flip)
        QualityJudge(state)(FIRST + 8 * DAY + timedelta(days=2))
        found = judged_windows(state, "tiny", kind="skill")
    assert [one.rows for one in found] == [ROWS] * 8
    assert [one.outcome for one in (found[0], found[3])] == ["alarm", "ok"], [one.reason for one in found]

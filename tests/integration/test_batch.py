"""Batch prediction on a real cluster gives what the model gives, whole or not at all."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_bundles import scale_bundle

from raymlops.bundle.load import load
from raymlops.errors import InvalidRowsError, UsageError
from raymlops.lifecycle.batch.predict import batch_predict
from raymlops.lifecycle.sources import spec_of, state_of
from raymlops.registry.versions import Registry
from raymlops.state.versions import record_version
from raymlops.tracking.client import tracker

pytestmark = pytest.mark.integration

ROWS = 5000
FILES = 3


@pytest.fixture
def config(ray_local, storage_path):
    """Return a configuration whose model has one version: its champion answers ``(a + b) * 3``."""
    config = {
        "project": {"name": "scale"},
        "recipe": {"import": "any:Recipe"},
        "train": {"cpus_per_worker": 0.5},
        "storage": {"path": str(storage_path)},
        "tracking": {"uri": f"sqlite:///{storage_path}/mlflow.db"},
        "cluster": {"address": "auto"},
    }
    ours = tracker(spec_of(config))
    run_id = ours.start_run("scale", name="trained", tags={})
    registry = Registry(ours)
    ref = registry.register("scale", run_id=run_id, bundle=scale_bundle(storage_path, factor=3.0))
    with state_of(spec_of(config)) as state:
        record_version(state, ref, why="", now=datetime.now(UTC))
    registry.set_alias("scale", "champion", 1)
    return config


def write(folder, columns):
    """Write columns as three files of row groups of 700, so that files, groups and batches end in different places."""
    folder.mkdir()
    table = pa.table(columns)
    for index in range(FILES):
        part = table.slice(index * 1700, 1700)
        pq.write_table(part, folder / f"rows-{index}.parquet", row_group_size=700)


def test_files_are_predicted_as_the_model_predicts(config, tmp_path):
    """5,000 rows over 3 files are, to the last bit, what the model gives at once; a bad row publishes nothing."""
    rng = np.random.default_rng(0)
    columns = {"id": np.arange(ROWS), "a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS)}
    write(tmp_path / "in", columns)
    out = tmp_path / "out"
    events = []
    record = batch_predict(config, str(tmp_path / "in"), str(out), concurrency=2, on_event=events.append)
    assert (record.name, record.version, record.rows) == ("scale", 1, ROWS)
    assert (events[0].kind, events[-1].kind, events[-1].step) == ("start", "end", ROWS)

    ref = Registry(tracker(spec_of(config))).get("scale", "@champion")
    model = load(ref.bundle.uri, ref.bundle.digest)
    wanted = model.predict(model.signature.parse_columns({name: columns[name] for name in ("a", "b")}))
    table = pq.read_table(out)
    assert table.column_names == ["id", "y", "model_version"]
    assert np.array_equal(table.column("id").to_numpy(), columns["id"])
    assert np.array_equal(table.column("y").to_numpy().view(np.int64), wanted["y"].view(np.int64))
    assert set(table.column("model_version").to_pylist()) == {1}
    manifest = json.loads((out / "_manifest.json").read_text())
    assert {key: manifest[key] for key in ("rows", "files", "digest")} == {
        "rows": ROWS,
        "files": len(list(out.glob("*.parquet"))),
        "digest": ref.bundle.digest,
    }

    with pytest.raises(UsageError, match="out exists"):
        batch_predict(config, str(tmp_path / "in"), str(out))

    columns["a"][4321] = np.nan  # row 921 of the third file
    write(tmp_path / "broken", columns)
    with pytest.raises(InvalidRowsError, match=r"row 921, field 'a': .*broken/rows-2\.parquet"):
        batch_predict(config, str(tmp_path / "broken"), str(tmp_path / "never"), concurrency=1)
    shutil.rmtree(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "in", "storage"]

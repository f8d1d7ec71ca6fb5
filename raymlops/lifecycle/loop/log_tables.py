"""The labelled prediction log of a model as tables to train on, written once for a retraining.

Owns where the tables are. Which rows count is ``monitor.training_rows``', what a label becomes ``log_labels``'. A
second call finds what the first one wrote: a retraining that is repeated or resumed trains on the same rows, whatever
was logged since.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.bundle.loss import read_loss
from raymlops.bundle.quality import quality_of
from raymlops.data.windowed import table_file
from raymlops.errors import NotFoundError
from raymlops.lifecycle.live.log_owner import log_of
from raymlops.lifecycle.loop.log_labels import label_array, of_one_kind, of_type
from raymlops.lifecycle.loop.log_rows import LogRows
from raymlops.lifecycle.registration.compatibility import signature_of
from raymlops.monitor.skill.reference import QualityReference
from raymlops.monitor.training_rows import Fault, choose
from raymlops.records import Record
from raymlops.state.watch.incidents import incidents_of
from raymlops.storage import filesystem
from raymlops.storage.filesystem import join, root_of
from raymlops.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from raymlops.answer_loss import AnswerLoss
    from raymlops.arrays import Column
    from raymlops.config.retrain import RetrainSection
    from raymlops.records import BundleRef
    from raymlops.splits import Window
    from raymlops.state.loop import Retraining
    from raymlops.state.store import Deployment, State

FOLDER = "data"
"""Below the storage, beside what runs wrote from Ray Data."""
_GROUP_ROWS = 16_384


@dataclass(frozen=True)
class LogTables(Record):
    """Tables of a retraining: where they are, and what is to be known of them."""

    uri: str
    """For ``train.tables``: named by the digest of their content."""
    numbers: dict[str, Any]
    """Rows in the window, with a label, of each part, left out, and the share that gets a label."""
    notes: tuple[str, ...]

    def sentence(self) -> str:
        """Return how many rows there are for what, and all that is to be known of them."""
        count = self.numbers
        parts = (
            f"{count['train']:,} labelled rows of the log, {count['validation']:,} validate and {count['test']:,} test"
        )
        share = f"of {count['rows']:,} rows in the window {count['coverage']:.1%} get a label"
        return "; ".join([f"{parts}: {share}", *self.notes])


def log_tables(
    state: State,
    one: Retraining,
    champion: Deployment,
    *,
    policy: RetrainSection,
    window: Window,
    label: str,
    label_type: Column | None = None,
) -> LogTables:
    """Return the tables of a retraining, which are written now unless they were before.

    ``label`` is the recipe's column of the label, ``label_type`` what it may be, where the recipe says so.

    Raises:
        DataRefusedError: too few rows are there or have a label, too many labels do not count, too few callers
            gave them, or the log lacks inputs: redacted ones, and bytes and images, of which it has the digest alone.
        BundleError, StorageError, UnreachableError: the bundle, the storage or the state cannot be read or written.
    """
    root = root_of(champion.bundle.uri)
    index = f"{FOLDER}/log-{one.id}.json"
    if (known := _known(join(root, index))) is not None:
        return known
    log = log_of(champion, state.owner().id)
    found = LogRows(log, one.name, signature=signature_of(champion.bundle), window=window)
    rows, place = found.rows()
    rule = read_loss(champion.bundle.uri, champion.bundle.digest)
    said = [json.loads(text) for text in found.labels]
    meant = of_one_kind(said, rule) if label_type is None else of_type(said, label_type)
    uncounted = _unseen(champion.bundle, rule, said) | np.array([label is None for label in meant], dtype=np.bool_)
    unseen = np.append(uncounted, False)[place]
    chosen = choose(
        rows,
        unseen=unseen,
        stop_s=window.stop.timestamp(),
        faults=_faults(state, one.name, window),
        min_coverage=policy.min_coverage,
        max_caller_share=policy.max_caller_share,
    )
    kept = np.sort(np.concatenate([place[places] for places in chosen.parts.values()]))
    labels = label_array([meant[at] for at in kept.tolist()], rule, label_type)
    whole = found.table().take(pa.array(kept)).append_column(label, labels)
    tables = {part: whole.take(pa.array(np.searchsorted(kept, place[places]))) for part, places in chosen.parts.items()}
    store = Store(root)
    done = LogTables(_written(store, tables), dict(chosen.numbers), (*chosen.notes, *found.notes()))
    store.write(index, pa.py_buffer(json.dumps(done.to_dict()).encode()))
    return done


def _unseen(bundle: BundleRef, rule: AnswerLoss, labels: Sequence[Any]) -> npt.NDArray[np.bool_]:
    """Return which labels are of a class that a bundle's test rows have none of; none where it keeps no such rows."""
    try:
        known = QualityReference.from_dict(quality_of(bundle.uri, bundle.digest))
    except (NotFoundError, ValueError):  # it is of another release
        return np.zeros(len(labels), dtype=np.bool_)
    codes = known.classes.codes(rule, labels)
    return ~np.append(known.metrics["loss"].expectation.known, False)[codes]


def _faults(state: State, name: str, window: Window) -> list[Fault]:
    """Return the spans in which what was served was beyond a bound of ``monitor.quality``."""
    found = []
    for one in incidents_of(state, name):
        stop = window.stop if one.closed_at is None else one.closed_at
        if one.kind == "quality" and one.opened_at < window.stop and stop > window.start:
            found.append(Fault(f"incident {one.id}", one.opened_at.timestamp(), stop.timestamp()))
    return sorted(found, key=lambda fault: fault.start_s)


def _written(store: Store, tables: Mapping[str, pa.Table]) -> str:
    """Write tables into a folder that is named by their digest; return its URI."""
    files, digest = {}, sha256()
    for part, table in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=_GROUP_ROWS, compression="zstd", write_page_checksum=True)
        files[part] = sink.getvalue()
        digest.update(part.encode() + sha256(files[part]).digest())
    folder = f"{FOLDER}/log-{digest.hexdigest()[:32]}"
    for part, data in files.items():
        store.write(f"{folder}/{table_file(part)}", data)
    return join(store.uri, folder)


def _known(index: str) -> LogTables | None:
    try:
        data = json.loads(filesystem.read_bytes(index))
    except NotFoundError:
        return None
    return LogTables(data["uri"], data["numbers"], tuple(data["notes"]))

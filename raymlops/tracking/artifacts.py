"""What callbacks log of a run: what of it waits for MLflow, and that nothing is there twice, whatever is repeated.

When it is sent, and sent again, is the sender's decision.
"""

from __future__ import annotations

import io
import json
import posixpath
import tempfile
from collections import defaultdict, deque
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.errors import TrackingError
from raymlops.records import STEP
from raymlops.tracking.failures import refused

if TYPE_CHECKING:
    from raymlops.records import Artifact
    from raymlops.tracking.client import Tracker

_IMAGES = "images"
"""MLflow's folder of images that have a key, named ``KEY+step+STEP+timestamp+...`` (3.17)."""


MAX_BYTES = 128 << 20
"""Size of the artifacts of a run that wait."""
MAX_REFUSALS = 3
MAX_FAILURES = 8
"""After so many in a row, while MLflow answers, an artifact is given up."""


class PendingArtifacts:
    """The artifacts of one run that are still to be written, in their order.

    Of its methods only ``write_first`` takes long, and changes nothing that the others use.
    """

    def __init__(self) -> None:
        self._waiting: deque[Artifact] = deque()
        self._bytes = 0
        self._failures = 0
        self._told: set[str] = set()
        self._log: ArtifactLog | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, artifact: Artifact) -> list[str]:
        """Add an artifact; return a notice, if it is lost since there are too many."""
        if self._bytes + len(artifact.data) > MAX_BYTES:
            return self._lost(artifact, f"{MAX_BYTES >> 20} MiB are waiting for MLflow")
        self._bytes += len(artifact.data)
        self._waiting.append(artifact)
        return []

    def write_first(self, tracker: Tracker, run_id: str) -> str:
        """Write the first one; return why it is given up, if it is, since it must not delay what follows.

        Raises:
            TrackingError: it is to be tried again.
        """
        self._log = self._log or ArtifactLog(tracker, run_id)
        why = ""
        try:
            self._log.write(self._waiting[0])
        except TrackingError as error:
            self._failures += 1
            if self._failures < (MAX_REFUSALS if refused(error) else MAX_FAILURES):
                raise
            why = error.message[:300]
        self._failures = 0
        return why

    def remove_first(self, why_lost: str) -> list[str]:
        """Remove the first one, which is written, or lost for a reason; return a notice of that."""
        artifact = self._waiting.popleft()
        self._bytes -= len(artifact.data)
        return self._lost(artifact, why_lost) if why_lost else []

    def clear(self) -> None:
        """Forget them."""
        self._waiting.clear()
        self._bytes = 0

    def _lost(self, artifact: Artifact, why: str) -> list[str]:
        if artifact.name in self._told:
            return []
        self._told.add(artifact.name)
        return [f"{artifact.kind} {artifact.name!r} of step {artifact.step} is not logged: {why}"]


class ArtifactLog:
    """Writes to one run. As of metric points, only what is above the last step of its name is written."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker = tracker
        self._run_id = run_id
        self._images: dict[str, int] | None = None
        """The last step of each key; None until it is read from MLflow."""
        self._tables: dict[str, int] = {}

    def write(self, artifact: Artifact) -> None:
        """Write an artifact, unless its step has been written. After an error, MLflow is read again.

        Raises:
            TrackingError: MLflow or its artifact store does not accept it.
        """
        try:
            with self._tracker.errors():
                {"image": self._image, "table": self._table, "figure": self._figure}[artifact.kind](artifact)
        except Exception:
            self._images, self._tables = None, {}
            raise

    def _image(self, artifact: Artifact) -> None:
        from PIL import Image

        if self._images is None:
            self._images = self._logged_images()
        key = artifact.name.replace("/", "~")  # as in MLflow's file names
        if artifact.step <= self._images.get(key, -1):
            return
        with Image.open(io.BytesIO(artifact.data)) as image:
            self._tracker.client.log_image(
                self._run_id,
                image,
                key=artifact.name,
                step=artifact.step,
                timestamp=artifact.timestamp_ms,
                synchronous=True,
            )
        self._images[key] = artifact.step

    def _logged_images(self) -> dict[str, int]:
        found: dict[str, int] = defaultdict(lambda: -1)
        for item in self._tracker.client.list_artifacts(self._run_id, _IMAGES):
            key, _, rest = posixpath.basename(item.path).partition("+step+")
            step = rest.partition("+")[0]
            if step.isdecimal():
                found[key] = max(found[key], int(step))
        return found

    def _table(self, artifact: Artifact) -> None:
        import pandas as pd

        path = artifact.name
        if path not in self._tables:
            self._tables[path] = self._logged_rows(path)
        if artifact.step <= self._tables[path]:
            return
        table = json.loads(artifact.data)
        # As objects: of pandas' own type for text MLflow's look for images would warn (3.17).
        rows = pd.DataFrame(table["data"], columns=table["columns"], dtype=object)
        self._tracker.client.log_table(self._run_id, rows, path)
        self._tables[path] = artifact.step

    def _logged_rows(self, path: str) -> int:
        """Return the last step in a table; -1 where there is none."""
        import pandas as pd

        client = self._tracker.client
        if path not in {item.path for item in client.list_artifacts(self._run_id, posixpath.dirname(path) or None)}:
            return -1
        with tempfile.TemporaryDirectory() as folder:
            file = Path(client.download_artifacts(self._run_id, path, folder))
            table = pd.read_parquet(file) if path.endswith(".parquet") else pd.read_json(file, orient="split")
        return int(table[STEP].max()) if len(table) else -1

    def _figure(self, artifact: Artifact) -> None:
        folder, name = posixpath.split(artifact.name)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, name)
            file.write_bytes(artifact.data)
            self._tracker.client.log_artifact(self._run_id, str(file), folder or None)

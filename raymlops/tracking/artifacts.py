"""What callbacks log of one run: each image and each table's rows once, however often their step is repeated.

Owns the way into MLflow. Knows nothing of when it is sent, or again after a failure: the sender does.
"""

from __future__ import annotations

import io
import json
import posixpath
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.records import STEP

if TYPE_CHECKING:
    from raymlops.records import Artifact
    from raymlops.tracking.client import Tracker

_IMAGES = "images"
"""MLflow's folder of images that have a key, named ``KEY+step+STEP+timestamp+...`` (3.17)."""


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

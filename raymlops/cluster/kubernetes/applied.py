"""Whether a pod has the configuration that its job was made for.

A job is made of a file, and its verb reads what was applied of one: a digest beside it says of which.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from raymlops.cluster.kubernetes.place import DIGEST_FILE
from raymlops.config.paths import CONFIG_DIGEST
from raymlops.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 2.0
LATE_S = 150.0
"""A kubelet renews the files of pods that run within a minute, and what it knows of a ConfigMap is a minute old."""


def check_applied(
    config: str,
    *,
    write: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the configuration in a pod is that of the job that this process is; nothing where it is none.

    Raises:
        RefusedError: it stays another one.
    """
    wanted, file, begin = os.environ.pop(CONFIG_DIGEST, None), Path(config).with_name(DIGEST_FILE), clock()
    told = False
    while wanted is not None and (found := _digest(file)) != wanted:
        if clock() - begin > LATE_S:
            raise RefusedError(
                f"this job was made of another configuration (digest {wanted}) than was applied ({config}, digest "
                f"{found or 'none'}); nothing was run",
                hint="raymlops render kubernetes, and kubectl apply --server-side -k DIR/ENV; then submit it "
                "anew. Values for one run alone follow its verb: train train.lr=0.1",
            )
        if not told:
            write(f"{config} is not the configuration of this job; one that was just applied comes within two minutes")
            told = True
        sleep(POLL_S)


def _digest(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""

"""What the driver can import, its processes in the cluster can too: its import path and its working directory.

A recipe need not be installed on the machine that both are on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def own_paths() -> dict[str, str]:
    """Return the paths of this process, as text: Ray Tune would search nested data for search spaces of its own."""
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    return {"sys_path": json.dumps(entries), "cwd": str(Path.cwd())}


def take_over(paths: Mapping[str, str]) -> None:
    """Add to this process what ``own_paths`` returned in another one, as far as it is on this machine."""
    sys.path += [each for each in json.loads(paths["sys_path"]) if each not in sys.path and Path(each).exists()]
    if Path(paths["cwd"]).is_dir():
        os.chdir(paths["cwd"])

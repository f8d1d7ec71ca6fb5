"""Scripts and recipes are imported by the name of their folder, also in the processes of other ranks."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "examples")]

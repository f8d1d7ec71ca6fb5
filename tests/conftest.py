"""What every test may use: the importable fixture recipes, and a home of its own."""

from __future__ import annotations

import sys
from pathlib import Path

# Test modules are imported by path and workers import by name: what a worker needs lives in tests/fixtures.
sys.path.insert(0, str(Path(__file__).parent / "fixtures"))

"""A training goes after what answers requests."""

import os
import subprocess
import sys


def test_a_training_is_ten_steps_nicer_or_as_nice_as_can_be():
    """Linux knows twenty of them."""
    program = "import os; from raymlops.training.priority import lower_priority as l; l(); l(); l(); print(os.nice(0))"
    by_one = program.replace(" l(); l();", "")
    found = [int(subprocess.check_output([sys.executable, "-c", text])) for text in (by_one, program)]
    assert found == [min(os.nice(0) + 10, 19), 19]

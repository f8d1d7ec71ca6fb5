"""Ctrl-C and kill -9 of the demo at moments drawn from a seed, in the home of a user of its own."""

import random
import signal
import time

import pytest

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", range(10))
def test_interrupted_at_any_moment_the_demo_leaves_nothing(user, seed):
    """A SIGINT within the first two minutes: exit 130 (or 0, when it was faster), no process, no state."""
    process = user.start("demo", "--trials", "3")
    # The moment itself is what is drawn here; nothing is waited for.
    time.sleep(random.Random(seed).uniform(0.5, 120))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode in {0, 130}
    assert user.processes() == []
    assert not (user.cwd / "raymlops-demo" / "state").exists()

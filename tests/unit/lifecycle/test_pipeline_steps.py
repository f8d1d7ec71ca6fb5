from raymlops.lifecycle.pipeline import Steps


def test_steps_are_numbered_and_timed():
    """Each step prints its number, then its seconds and what came of it."""
    lines = []
    ticks = iter([10.0, 12.5, 20.0, 20.0])
    steps = Steps(2, sink=lines.append, clock=lambda: next(ticks))
    with steps.step("sweep") as said:
        said.append("best 0.7")
    with steps.step("train"):
        pass
    assert lines == ["[1/2] sweep", "      2.5 s: best 0.7", "[2/2] train", "      0.0 s"]
    assert steps.seconds == {"sweep": 2.5, "train": 0.0}
